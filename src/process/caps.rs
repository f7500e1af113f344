//! Capabilities: virtiofsd's set for the process that serves a directory, none for everyone else.

use std::collections::BTreeSet;
use std::io;

use log::error;
use thiserror::Error;
use virtiofsd::passthrough::InodeFileHandlesMode;

use super::log::TARGET;

/// What serving a directory on behalf of any user needs; without `CAP_`.
const DEFAULT: [&str; 8] = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "MKNOD", "SETFCAP"];

/// What opening file handles needs.
const FILE_HANDLES: &str = "DAC_READ_SEARCH";

/// Why the capabilities are not as wished.
#[derive(Debug, Error)]
pub enum CapsError {
    /// An element of `--modcaps` is empty.
    #[error("empty modcap found: expected (+|-)capability:...")]
    Empty,
    /// An element of `--modcaps` starts with neither sign.
    #[error("invalid modcap action: expecting '+'|'-' but found '{0}'")]
    Action(char),
    /// The kernel library knows no such capability.
    #[error("invalid capability '{name}': {error}")]
    Unknown {
        /// In upper case.
        name: String,
        /// libcap-ng's answer.
        error: capng::Error,
    },
    /// `--modcaps` takes what `--inode-file-handles` needs.
    #[error("can't disable {FILE_HANDLES} when using --inode-file-handles={0:?}")]
    Needed(InodeFileHandlesMode),
    /// The set could not be prepared.
    #[error("can't set up the child capabilities: {0}")]
    Prepare(capng::Error),
    /// The set could not be put in force.
    #[error("can't apply the child capabilities: {0}")]
    Apply(capng::Error),
    /// The last capabilities could not be dropped.
    #[error("can't drop all capabilities: {0}")]
    DropAll(io::Error),
}

/// Limits a root process to what it needs to serve a directory, changed by `modcaps`. Processes of other users have
/// nothing to limit; for them even a nonsensical `modcaps` is fine, as in virtiofsd.
///
/// # Errors
/// `modcaps` makes no sense, or the kernel refuses the set.
pub fn keep_for_host_dir(file_handles: InodeFileHandlesMode, modcaps: Option<&str>) -> Result<(), CapsError> {
    // SAFETY: no arguments, no effects.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(());
    }
    let keep = wanted(file_handles, modcaps)?;
    capng::clear(capng::Set::BOTH);
    let which = capng::Type::PERMITTED | capng::Type::EFFECTIVE;
    capng::updatev(capng::Action::ADD, which, keep.iter().map(String::as_str).collect()).map_err(CapsError::Prepare)?;
    capng::apply(capng::Set::BOTH).map_err(CapsError::Apply)
}

/// The capabilities to keep.
fn wanted(file_handles: InodeFileHandlesMode, modcaps: Option<&str>) -> Result<BTreeSet<String>, CapsError> {
    let mut keep: BTreeSet<String> = DEFAULT.iter().map(ToString::to_string).collect();
    let mut refused = BTreeSet::new();
    for element in modcaps.into_iter().flat_map(|list| list.split(':')) {
        let mut rest = element.chars();
        let action = rest.next().ok_or(CapsError::Empty)?;
        let name = rest.as_str().to_uppercase();
        if !matches!(action, '+' | '-') {
            return Err(CapsError::Action(action));
        }
        if let Err(error) = capng::name_to_capability(&name) {
            return Err(CapsError::Unknown { name, error });
        }
        let (to, from) = if action == '+' { (&mut keep, &mut refused) } else { (&mut refused, &mut keep) };
        from.remove(&name);
        to.insert(name);
    }
    if file_handles != InodeFileHandlesMode::Never {
        if refused.contains(FILE_HANDLES) {
            return Err(CapsError::Needed(file_handles));
        }
        keep.insert(FILE_HANDLES.to_owned());
    }
    Ok(keep)
}

/// Drops every capability of a process that only waits for its child. A failure is logged: there is a child already.
pub fn drop_in_waiting_parent() {
    capng::clear(capng::Set::BOTH);
    if let Err(error) = capng::apply(capng::Set::BOTH) {
        error!(target: TARGET, "warning: can't apply the parent capabilities: {error}");
    }
}

/// Drops every capability from every set: effective, permitted, inheritable, ambient and bounding. For the device
/// process of a store, which needs none.
///
/// An ordinary user's process may not touch its bounding set, which gives it nothing without new privileges; there the
/// set stays.
///
/// # Errors
/// capset(2)'s, prctl(2)'s.
pub fn drop_all() -> Result<(), CapsError> {
    drop_bounding()?;
    let header = libc_caps::Header { version: libc_caps::VERSION_3, pid: 0 };
    let none = [libc_caps::Data::default(); 2];
    // SAFETY: version 3 reads a header and two data elements; both live through the call.
    if unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) } != 0 {
        return Err(CapsError::DropAll(io::Error::last_os_error()));
    }
    // Kernels before 4.3 have no ambient set (EINVAL); in later ones it emptied itself with the permitted set.
    // SAFETY: takes plain numbers.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    Ok(())
}

fn drop_bounding() -> Result<(), CapsError> {
    for capability in 0..64 {
        // SAFETY: takes plain numbers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            // The first number that this kernel does not know, or an ordinary user.
            Some(libc::EINVAL | libc::EPERM) => Ok(()),
            _ => Err(CapsError::DropAll(error)),
        };
    }
    Ok(())
}

/// The kernel's capset(2) interface (linux/capability.h), which the libc crate leaves out.
mod libc_caps {
    /// `_LINUX_CAPABILITY_VERSION_3`.
    pub(super) const VERSION_3: u32 = 0x2008_0522;

    /// `struct __user_cap_header_struct`.
    #[repr(C)]
    pub(super) struct Header {
        pub(super) version: u32,
        pub(super) pid: i32,
    }

    /// `struct __user_cap_data_struct`.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    pub(super) struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: InodeFileHandlesMode = InodeFileHandlesMode::Never;
    const PREFER: InodeFileHandlesMode = InodeFileHandlesMode::Prefer;

    fn error(modcaps: &str) -> String {
        wanted(PREFER, Some(modcaps)).unwrap_err().to_string()
    }

    #[test]
    fn default_set_follows_file_handles() {
        assert_eq!(wanted(NEVER, None).unwrap().len(), 8);
        let with_handles = wanted(PREFER, None).unwrap();
        assert!(with_handles.len() == 9 && with_handles.contains("DAC_READ_SEARCH"));
    }

    #[test]
    fn modcaps_adds_and_takes_and_the_last_word_counts() {
        let keep = wanted(NEVER, Some("-mknod:+sys_admin:-CHOWN:+chown")).unwrap();
        assert!(!keep.contains("MKNOD") && keep.contains("SYS_ADMIN") && keep.contains("CHOWN"));
        assert!(wanted(NEVER, Some("-dac_read_search")).is_ok());
        assert!(wanted(PREFER, Some("-dac_read_search:+dac_read_search")).is_ok());
    }

    #[test]
    fn modcaps_errors_are_those_of_virtiofsd() {
        assert_eq!(error(""), "empty modcap found: expected (+|-)capability:...");
        assert_eq!(error("+mknod:"), "empty modcap found: expected (+|-)capability:...");
        assert_eq!(error("mknod"), "invalid modcap action: expecting '+'|'-' but found 'm'");
        assert_eq!(error("é"), "invalid modcap action: expecting '+'|'-' but found 'é'");
        assert_eq!(
            error("+bogus"),
            "invalid capability 'BOGUS': failed to get the ID for the capability with name BOGUS"
        );
        assert_eq!(error("-dac_read_search"), "can't disable DAC_READ_SEARCH when using --inode-file-handles=Prefer");
    }
}
