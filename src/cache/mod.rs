//! Blocks of the pool: who owns them, which are dirty, which may go.
//!
//! `block` hands out exclusive memory, `clean` keeps what was read from the store, `extents` what the guest wrote and the
//! store does not have yet. Below them `buddy` knows what is free, and `lists` keeps some of it at hand for those who must
//! not wait for a lock. Knows neither inodes nor OpenDAL.

pub mod block;
pub mod buddy;
pub mod clean;
pub mod extents;
pub mod lists;
#[cfg(test)]
mod models;
mod sync;
#[cfg(test)]
mod tests;
mod warm;

pub use block::{Block, Blocks, Part};
pub use clean::{Clean, CleanCache, ContentId};
pub use extents::{Extent, Extents};
