//! The process around the file system: its name, log, limits, socket, sandbox, system-call filter, capabilities and
//! signals. Each file is one step of the start order, which `daemon` holds.
//!
//! What an observer outside sees of these steps is virtiofsd's, to the text of the errors. Knows the OS; knows nothing
//! of FUSE, virtio or stores.

pub mod caps;
pub mod comm;
pub mod isolated;
pub mod limits;
pub mod log;
pub mod memory;
pub mod sandbox;
pub mod seccomp;
pub mod secrets;
pub mod signals;
pub mod socket;
pub mod throttle;
