//! The filter of system calls: virtiofsd's own list, by calling virtiofsd, so that it can never differ.
//!
//! What it forbids shapes the program: no sleeping, polling or sockets after this point (`process::log` waits on a
//! condition variable, the device on epoll).

use std::io;

use thiserror::Error;
use virtiofsd::seccomp::{SeccompAction, enable_seccomp};

/// Why the filter is not in force.
#[derive(Debug, Error)]
pub enum SeccompError {
    /// libseccomp or the kernel refused it.
    #[error("Error enabling the seccomp filter: {0}")]
    Load(virtiofsd::seccomp::Error),
    /// Privileges could not be renounced.
    #[error("Error setting no_new_privs: {0}")]
    NoNewPrivs(io::Error),
}

/// Filters the system calls of this process, for good. `Allow` filters nothing. With `syslog`, sending datagrams
/// stays allowed.
///
/// # Errors
/// The filter cannot be loaded.
pub fn enable(action: SeccompAction, syslog: bool) -> Result<(), SeccompError> {
    match action {
        SeccompAction::Allow => Ok(()),
        action => enable_seccomp(action, syslog).map_err(SeccompError::Load),
    }
}

/// Renounces every privilege that executing a file could give, which the filter implies but `--seccomp none` does not.
///
/// # Errors
/// prctl(2)'s.
pub fn no_new_privs() -> Result<(), SeccompError> {
    // SAFETY: takes four plain numbers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(SeccompError::NoNewPrivs(io::Error::last_os_error()));
    }
    Ok(())
}
