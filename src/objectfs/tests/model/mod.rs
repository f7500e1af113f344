//! The reference model: random sequences of what a guest, other programs, time and failures can do, each answer judged by the
//! contract.
//!
//! - [`contract`]: what may be answered. Read this to learn what ovfs promises.
//! - [`step`]: what can happen. [`system`]: what it happens to. [`run`], [`run_names`], [`run_files`], [`listing`]: how.
//! - [`double`]: the file system over the store double. The black-box tests drive whole daemons with the same steps and the same
//!   contract.
//! - [`regressions`]: sequences that once went wrong, under the name of what was wrong.
//!
//! `OVFS_MODEL_CASES` says how many random sequences to run in all; without it, the same 2000 each time. Seeds of sequences that failed are kept in
//! `mod.regressions` beside this file and run first.

mod contract;
mod double;
mod listing;
mod regressions;
mod run;
mod run_files;
mod run_names;
mod step;
mod system;

use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, RngSeed, TestCaseError};

use self::double::Double;
use self::run::Runner;
use self::step::Step;
use super::super::CachePolicy;

/// Sequences in all, by default.
const CASES: u32 = 2000;
/// Where the default ones begin.
const SEED: u64 = 3;
/// Tests that share them.
const TESTS: u32 = 5;

fn config() -> ProptestConfig {
    let told = std::env::var("OVFS_MODEL_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig {
        cases: told.unwrap_or(CASES).div_ceil(TESTS),
        // The same for everybody who changes nothing; who looks for more, finds others each time.
        rng_seed: told.map_or(RngSeed::Fixed(SEED), |_| RngSeed::Random),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        max_shrink_iters: 4_000,
        ..ProptestConfig::default()
    }
}

/// Takes `steps` on a file system with that policy and so much memory.
fn run(cache: CachePolicy, pool: usize, steps: &[Step]) -> Result<(), TestCaseError> {
    Runner::new(Double::new(cache, pool)).run(steps).map_err(TestCaseError::fail)
}

/// Memory for everything.
const AMPLE: usize = 4 << 20;
/// Memory for less than a guest writes: files go to the store before they are closed.
const SCARCE: usize = 64 << 10;

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_guest_alone_sees_posix_whatever_it_does(steps in step::alone()) {
        run(CachePolicy::Always, AMPLE, &steps)?;
    }

    #[test]
    fn the_contract_holds_with_others_and_failures(steps in step::everybody()) {
        run(CachePolicy::Never, AMPLE, &steps)?;
    }

    #[test]
    fn the_contract_holds_with_others_and_failures_in_little_memory(steps in step::everybody()) {
        run(CachePolicy::Never, SCARCE, &steps)?;
    }

    #[test]
    fn the_contract_holds_with_others_and_failures_while_names_are_trusted(steps in step::everybody()) {
        run(CachePolicy::Always, AMPLE, &steps)?;
    }

    #[test]
    fn the_contract_holds_with_others_and_failures_while_names_are_trusted_in_little_memory(
        steps in step::everybody(),
    ) {
        run(CachePolicy::Always, SCARCE, &steps)?;
    }
}
