//! ovfs: a virtio-fs daemon, a drop-in virtiofsd whose file system can be any storage that Apache OpenDAL reaches.
//!
//! Data flows one way: `device` (virtio) → `fuse` (protocol) → `fs` (the narrow waist), implemented by `passthrough`
//! (a host directory), by `mounts` (several stores) and by `objectfs` → `cache` → `store` (messages) → `broker` (OpenDAL, another process).
//! `cli`, `config` and `process` surround them; `metrics` is what they count, `status` shows it; `daemon` is the start order.

pub mod broker;
pub mod cache;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod device;
pub mod fs;
pub mod fuse;
pub mod metrics;
pub mod mounts;
pub mod objectfs;
pub mod passthrough;
pub mod process;
pub mod status;
pub mod store;
