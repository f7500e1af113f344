//! Confining the process that talks to the guest.
//!
//! [`enter`] returns in one process or in two: in the worker, which from then on sees nothing but what it serves, and,
//! if there was a fork, in the parent, which stays where it was. Both shares take the same road: the parent of a
//! directory's worker only waits, the parent of a store's worker becomes the broker, which is why it must not be moved
//! into the namespaces itself.
//!
//! | mode | a directory | a store |
//! |---|---|---|
//! | namespace | worker in new pid, mount, net (and user, unless root) namespaces, rooted in the directory | the same, rooted in an empty read-only tmpfs |
//! | chroot | one process, rooted in the directory | worker rooted in an empty, deleted directory |
//! | none | one process | worker |
//!
//! Modes, mounts and errors of a directory are virtiofsd's. Must be called while there is one thread.

mod child;
mod clone;
mod groups;
mod id_maps;
mod mounts;
mod roots;

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use log::warn;
use thiserror::Error;
use virtiofsd::sandbox::{Error as Cause, SandboxMode};

pub use child::{Child, reap};
use clone::{DeathLink, Forked, clone_process};

use crate::cli::SandboxPlan;

/// The module name in this folder's log lines.
const TARGET: &str = "ovfs::sandbox";

/// Why the process is not confined.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// A step failed; the texts are virtiofsd's.
    #[error("Error entering sandbox: {0}")]
    Enter(Cause),
    /// The id maps of the user namespace could not be written.
    #[error("sandbox: couldn't setup id mappings: {0}")]
    IdMaps(Cause),
    /// The shared directory has no absolute path.
    #[error("Error getting mountinfo prefix: {0}")]
    MountinfoPrefix(io::Error),
    /// A step towards an empty root failed.
    #[error("Error entering sandbox: {step}: {error}")]
    EmptyRoot {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

impl From<Cause> for SandboxError {
    fn from(cause: Cause) -> SandboxError {
        SandboxError::Enter(cause)
    }
}

/// Who this process is now.
#[derive(Debug)]
pub enum Role {
    /// The one outside. It has a child to wait for.
    Parent(Child),
    /// The one that talks to the guest.
    Worker(Confined),
}

/// What the worker was given to work with.
#[derive(Debug, Default)]
pub struct Confined {
    /// `/proc/self/fd`, of which nothing leads to the rest of /proc.
    pub proc_self_fd: Option<File>,
    /// `/proc/self/mountinfo`.
    pub mountinfo: Option<File>,
    /// Where the shared directory is now; empty for a store.
    pub root_dir: String,
    /// What to strip from the paths in `mountinfo`.
    pub mountinfo_prefix: Option<String>,
}

/// Confines, with a fork where the table above says so. With namespaces the parent calls `parent_first` before the worker
/// starts: whoever sees the worker at work sees the parent as it will stay.
///
/// # Errors
/// The mode is not for this user, or a step failed. In the worker, too, an error is returned, for the worker to report
/// before it ends; the parent then sees a child that ended with code 1.
pub fn enter(plan: &SandboxPlan, parent_first: impl FnOnce()) -> Result<Role, SandboxError> {
    // SAFETY: no arguments, no effects.
    let root = unsafe { libc::geteuid() } == 0;
    check_user(plan, root)?;
    let mountinfo_prefix = match (plan.mode, &plan.shared_dir) {
        (SandboxMode::Chroot, Some(dir)) => Some(absolute(dir).map_err(SandboxError::MountinfoPrefix)?),
        _ => None,
    };
    groups::drop_supplementary()?;
    match (plan.mode, &plan.shared_dir) {
        (SandboxMode::Namespace, dir) => namespace(plan, root, dir.as_deref(), parent_first),
        (SandboxMode::Chroot, Some(dir)) => roots::chroot_into(dir, mountinfo_prefix).map(Role::Worker),
        (SandboxMode::None, Some(dir)) => Ok(Role::Worker(Confined { root_dir: text(dir), ..Confined::default() })),
        (SandboxMode::Chroot, None) => separate(roots::chroot_into_nothing),
        (SandboxMode::None, None) => separate(|| Ok(Confined::default())),
    }
}

fn check_user(plan: &SandboxPlan, root: bool) -> Result<(), SandboxError> {
    let maps_allowed = !root && plan.mode == SandboxMode::Namespace;
    if plan.mode == SandboxMode::Chroot && !root {
        return Err(Cause::SandboxModeInvalidUID.into());
    }
    if !plan.uid_map.is_empty() && !maps_allowed {
        return Err(Cause::SandboxModeInvalidUidMap.into());
    }
    if !plan.gid_map.is_empty() && !maps_allowed {
        return Err(Cause::SandboxModeInvalidGidMap.into());
    }
    Ok(())
}

fn absolute(dir: &CStr) -> io::Result<String> {
    let path = fs::canonicalize(Path::new(std::ffi::OsStr::from_bytes(dir.to_bytes())))?;
    path.into_os_string().into_string().map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn text(dir: &CStr) -> String {
    dir.to_string_lossy().into_owned()
}

/// A worker without namespaces of its own.
fn separate(confine: impl FnOnce() -> Result<Confined, SandboxError>) -> Result<Role, SandboxError> {
    let link = DeathLink::new().map_err(Cause::Fork)?;
    match clone_process(0).map_err(Cause::Fork)? {
        Forked::Parent(child) => Ok(Role::Parent(child)),
        Forked::Child => {
            link.arm().map_err(Cause::Fork)?;
            confine().map(Role::Worker)
        }
    }
}

/// A worker in namespaces of its own. It waits for the parent to write its id maps, which only a process outside can.
fn namespace(
    plan: &SandboxPlan,
    root: bool,
    dir: Option<&CStr>,
    parent_first: impl FnOnce(),
) -> Result<Role, SandboxError> {
    let mut flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWNET;
    if !root {
        flags |= libc::CLONE_NEWUSER;
    }
    let link = DeathLink::new().map_err(Cause::Fork)?;
    let (mut go_reader, mut go_writer) = io::pipe().map_err(Cause::Fork)?;
    match clone_process(flags).map_err(Cause::Unshare)? {
        Forked::Parent(child) => {
            drop(go_reader);
            if !root && let Err(cause) = id_maps::write(child.pid(), &plan.uid_map, &plan.gid_map) {
                // Without the word to go the child ends.
                drop(go_writer);
                reap(child.pid());
                return Err(SandboxError::IdMaps(cause));
            }
            parent_first();
            // A child that has died meanwhile is found out by waiting for it.
            let _ = go_writer.write_all(&[1]);
            Ok(Role::Parent(child))
        }
        Forked::Child => {
            drop(go_writer);
            if go_reader.read_exact(&mut [0]).is_err() {
                // The parent says what went wrong.
                // SAFETY: ends this process, which has nothing to clean up.
                unsafe { libc::_exit(1) };
            }
            if dir.is_some() {
                become_root_inside();
            }
            // After the change of ids, which would undo it.
            link.arm().map_err(Cause::Fork)?;
            match dir {
                Some(dir) => mounts::enter_shared_dir(dir).map(Role::Worker),
                None => mounts::enter_empty_root().map(Role::Worker),
            }
        }
    }
}

/// Ids that are not mapped stay as they are, with a warning.
fn become_root_inside() {
    // SAFETY: takes plain numbers.
    let result = unsafe { libc::setresuid(0, 0, 0) };
    if result != 0 {
        warn!(target: TARGET, "Couldn't set the process uid as root: {result}");
    }
    // SAFETY: as above.
    let result = unsafe { libc::setresgid(0, 0, 0) };
    if result != 0 {
        warn!(target: TARGET, "Couldn't set the process gid as root: {result}");
    }
}
