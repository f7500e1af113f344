//! The broker: the process that talks to stores, through OpenDAL, on behalf of a device process that can reach nothing.
//!
//! It holds the credentials and the network and never sees guest memory. [`Backend`] is what `--backend` says; [`run`] serves
//! one or several ([`Mounted`]) over the messages of `store::protocol` until the device process ends. It trusts neither side: not the device, whose
//! every path, slice and length is checked (`serve`), and not the store, whose names, sizes and versions are.
//!
//! `services` tells how stores differ, `operator` builds OpenDAL's part, `remote` does the operations on what OpenDAL
//! reaches, `local` on a directory of this machine. `disk` keeps blocks of what was read on this machine's disk.
//! `requests` tells the kinds of requests apart, `eyes` and `exporter` show what was counted.

mod breaker;
mod cursors;
mod disk;
mod error;
mod exporter;
mod eyes;
mod gate;
#[cfg(feature = "s3")]
mod keys;
mod local;
mod mounts;
mod operator;
mod reload;
mod remote;
mod requests;
mod run;
mod serve;
mod services;
mod spool;
#[cfg(test)]
mod tests;
mod url;

pub use disk::Disk;
pub use exporter::MetricsListener;
pub use eyes::{Answer, Eyes, status_name};
pub use mounts::Mounted;
pub use reload::{Configuration, Wanted};
pub use run::{BrokerOptions, run};
pub use spool::Spool;
pub use url::{Backend, BackendError};
