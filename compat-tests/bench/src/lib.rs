//! Benchmarks of ovfs: every figure beside the figure of a peer, measured alternately in the same run.
//!
//! - [`lane`] drives a request queue at a fixed depth without allocating; [`work`] says what it sends and checks what
//!   comes back. Wrong data ends a run, slowness never does.
//! - [`process`] starts daemons and FUSE mounts; [`session`] is a guest connected to one; [`usage`] is what they cost.
//! - [`http`], [`server`], [`s3`] and [`proxy`] are stores that answer at a chosen distance and count what they are
//!   asked. [`raw`] is OpenDAL alone against the same store: the ceiling.
//! - [`rows`] are the measurements, [`record`] their results, [`report`] the page made of them, with what [`explained`]
//!   says of the rows that miss their targets.

pub mod dates;
pub mod explained;
pub mod http;
pub mod lane;
pub mod process;
pub mod proxy;
pub mod raw;
pub mod record;
pub mod report;
pub mod rows;
pub mod s3;
pub mod server;
pub mod session;
pub mod stats;
pub mod usage;
pub mod work;
