//! What the daemon counts about itself, and how that is shown.
//!
//! Two processes count. The device process writes into memory that it shares with the broker ([`Board`]): requests by
//! opcode and, for each mount, what its cache and its tables hold. The broker counts what goes to the stores
//! ([`StoreMeter`]). It alone answers questions: a [`Snapshot`] of both, from which [`report`] makes what `ovfs status`
//! shows and [`prometheus`] what a scraper reads.
//!
//! Counting takes no lock and allocates nothing. To the broker the board is as little to be trusted as the device
//! process that writes it: numbers for display, of which none is an index, a length or a text.

mod board;
mod histogram;
mod mount;
pub mod prometheus;
pub mod report;
pub mod screen;
mod snapshot;
mod store;

pub use board::{Board, Requests};
pub use histogram::{BUCKETS, Histogram, Spread};
pub use mount::{MountCounts, MountMeter};
pub use snapshot::{
    DiskCounts, Health, KindCounts, MountSnapshot, OpCounts, Snapshot, StoreCounts, UploadCounts, VERSION, ops,
};
pub use store::{Cost, Kind, StoreMeter, Upload};
