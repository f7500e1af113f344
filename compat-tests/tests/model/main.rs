//! The reference model of the object file system, over whole daemons: the same steps and the same contract as in the
//! unit tests (`src/objectfs/tests/model`), with real stores, the broker and the front-end in between.
//!
//! `OVFS_DAEMON_MODEL_CASES` says how many sequences to run on `fs`; on moto there are a twentieth as many.

#[path = "../../../src/objectfs/tests/model/contract.rs"]
mod contract;
#[path = "../../../src/objectfs/tests/model/listing.rs"]
mod listing;
#[path = "../../../src/objectfs/tests/model/run.rs"]
mod run;
#[path = "../../../src/objectfs/tests/model/run_files.rs"]
mod run_files;
#[path = "../../../src/objectfs/tests/model/run_names.rs"]
mod run_names;
#[allow(dead_code, reason = "not every way to make sequences is used here")]
#[path = "../../../src/objectfs/tests/model/step.rs"]
mod step;
#[path = "../../../src/objectfs/tests/model/system.rs"]
mod system;

mod daemon;

use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestCaseError, TestRunner};

use daemon::Whole;
use ovfs_compat_tests::stores::Kind;
use run::Runner;

/// Sequences on `fs`, by default.
const CASES: u32 = 100;

fn sequences(kind: Kind, share: u32) {
    let cases = std::env::var("OVFS_DAEMON_MODEL_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES);
    let config = ProptestConfig {
        cases: cases.div_ceil(share),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        source_file: Some(file!()),
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    };
    let store = daemon::shared(kind);
    let result = TestRunner::new(config)
        .run(&step::everybody(), |steps| Runner::new(Whole::new(&store)).run(&steps).map_err(TestCaseError::fail));
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn the_contract_holds_over_a_whole_daemon_on_fs() {
    sequences(Kind::Fs, 1);
}

#[test]
fn the_contract_holds_over_a_whole_daemon_on_moto() {
    sequences(Kind::Moto, 20);
}
