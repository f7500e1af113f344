//! The command line: what a user may say ([`Options`]), and what follows from it ([`Plan`]).
//!
//! Every flag, conflict, `-o` word and error text is virtiofsd's, because launchers parse them; `--backend` and what
//! belongs to it is ours. Each step is a file: `options` (clap), `given` (what a file of settings may add), `legacy`
//! (`-o`, which overrides flags whatever their order), `mounts` (several stores), `plan` (defaults, cross checks; the rest of the program sees only
//! the plan). `flags` is the list of flags, for whoever reads files.
//!
//! Knows no sockets, processes, stores or files, and does nothing but read its arguments.

pub mod capabilities;
pub mod flags;
mod given;
mod legacy;
mod listen;
mod mounts;
pub mod options;
pub mod plan;
mod size;
mod usage;

use std::ffi::OsString;

pub use given::{Given, Line, Preset};
pub use listen::MetricsAddr;
pub use mounts::{MountArg, mount_path};
pub use options::Options;
pub use plan::{
    BackendShare, Device, EndpointPlan, HostDir, LogPlan, Plan, PlanError, SandboxPlan, Setup, Share, Stores,
};
pub use usage::takes_value;

/// Reads the arguments, the program's name first, and nothing else. A daemon asks files too: [`Given`].
///
/// # Errors
/// What clap answers to a wrong argument, or to `--help` and `--version`; its `exit` prints it and ends the process
/// with virtiofsd's code (2, or 0 for help and version).
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Options, clap::Error> {
    Given::read(args)?.complete(&[], None, Vec::new()).map(|line| line.options)
}
