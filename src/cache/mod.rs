//! Blocks of the pool: who owns them, which are dirty, which may go.
//!
//! `block` hands out exclusive memory, `clean` keeps what was read from the store, `extents` what the guest wrote and the
//! store does not have yet. Knows neither inodes nor OpenDAL.

pub mod block;
pub mod buddy;
pub mod clean;
pub mod extents;

pub use block::{Block, Blocks, Part};
pub use clean::{Clean, CleanCache, ContentId};
pub use extents::{Extent, Extents};
