//! The pool's code over loom's atomics and locks: each test runs in every order that two or three threads may be in, and
//! with every value that a weak memory may show them, up to a bound of preemptions.
//!
//! Of each block a [`Cell`] stands for its bytes. Whoever has the block writes it; loom fails if two do so with nothing
//! between them that makes the one come after the other.

#[path = "../block.rs"]
#[allow(clippy::duplicate_mod, dead_code, reason = "the same code over other locks; not all of it is used")]
mod block;
#[path = "../clean.rs"]
#[allow(clippy::duplicate_mod, dead_code, reason = "as above")]
mod clean;
#[path = "../lists.rs"]
#[allow(clippy::duplicate_mod, dead_code, reason = "as above")]
mod lists;
#[path = "../warm.rs"]
#[allow(clippy::duplicate_mod, reason = "as above")]
mod warm;

mod blocks_tests;
mod clean_tests;
mod lists_tests;

use super::buddy;

/// Loom's in place of the standard library's.
mod sync {
    pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub use loom::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
}

use std::sync::Arc;

use buddy::BLOCK_MIN;
use loom::cell::UnsafeCell;

use crate::store::Pool;
use block::{Block, Blocks};

/// Runs `test` in every order with at most `preemptions` of them.
fn explore(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(test);
}

/// One page of the pool, as loom sees it.
struct Page(UnsafeCell<u64>);

// SAFETY: loom's cell checks each access itself; this is what is under test.
unsafe impl Sync for Page {}
// SAFETY: as above.
unsafe impl Send for Page {}

/// The pages of a pool.
#[derive(Clone)]
struct Pages(Arc<Vec<Page>>);

impl Pages {
    fn new(pages: usize) -> Pages {
        Pages(Arc::new((0..pages).map(|_| Page(UnsafeCell::new(0))).collect()))
    }

    fn of(&self, offset: u64, len: usize) -> impl Iterator<Item = &Page> {
        let first = usize::try_from(offset).expect("small") / BLOCK_MIN;
        self.0[first..first + len.div_ceil(BLOCK_MIN)].iter()
    }

    /// The owner of these bytes writes them.
    fn write(&self, offset: u64, len: usize, value: u64) {
        // SAFETY: loom fails the test if anybody else has access.
        self.of(offset, len).for_each(|page| page.0.with_mut(|at| unsafe { *at = value }));
    }

    /// One of those who may read them does so.
    fn read(&self, offset: u64, len: usize) -> Vec<u64> {
        // SAFETY: as above.
        self.of(offset, len).map(|page| page.0.with(|at| unsafe { *at })).collect()
    }

    fn write_block(&self, block: &Block, value: u64) {
        self.write(block.slice(0, 1).offset, block.capacity(), value);
    }

    fn read_block(&self, block: &Block) -> Vec<u64> {
        self.read(block.slice(0, 1).offset, block.capacity())
    }
}

/// A pool of so many pages; the memory is made once for all orders.
fn pool(pages: usize) -> Arc<Pool> {
    Arc::new(Pool::new(pages * BLOCK_MIN).expect("memfd"))
}

fn blocks(pool: &Arc<Pool>) -> (Arc<Blocks>, Pages) {
    (Blocks::new(Arc::clone(pool)), Pages::new(pool.len() / BLOCK_MIN))
}
