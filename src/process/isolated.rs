//! Running a check in a short-lived process of its own, so that nothing it reads stays in this one's memory.
//!
//! A backend URL must be checked before the socket appears, thus before the device process is forked; but what the check
//! leaves on the heap (parsed credentials) the device process would inherit.

use std::io::{self, Read, Write};

use thiserror::Error;

/// Why a check did not pass.
#[derive(Debug, Error)]
pub enum CheckError {
    /// The check's own words.
    #[error("{0}")]
    Failed(String),
    /// No process for it.
    #[error("Error checking the backend: {0}")]
    Process(#[from] io::Error),
    /// It died.
    #[error("Error checking the backend: the check ended without an answer")]
    Died,
}

/// Runs `check` in a forked process and returns its verdict. Call it while there is one thread.
///
/// # Errors
/// What `check` says, or why it could not be run.
pub fn run<E: std::fmt::Display>(check: impl FnOnce() -> Result<(), E>) -> Result<(), CheckError> {
    let (mut reader, mut writer) = io::pipe()?;
    // SAFETY: there is one thread, so the child may run any code.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error().into());
    }
    if pid == 0 {
        let verdict = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match check() {
            Ok(()) => "+".to_owned(),
            Err(error) => format!("-{error}"),
        }));
        let sent = verdict.is_ok_and(|verdict| writer.write_all(verdict.as_bytes()).is_ok());
        // SAFETY: ends this process without running the parent's exit handlers.
        unsafe { libc::_exit(if sent { 0 } else { 1 }) };
    }
    drop(writer);
    let mut verdict = String::new();
    let read = reader.read_to_string(&mut verdict);
    super::sandbox::reap(pid);
    read?;
    match verdict.split_at_checked(1) {
        Some(("+", "")) => Ok(()),
        Some(("-", error)) => Err(CheckError::Failed(error.to_owned())),
        _ => Err(CheckError::Died),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_crosses_the_process_boundary() {
        let mut touched = false;
        let check = || {
            touched = true;
            Ok::<(), String>(())
        };
        assert!(run(check).is_ok());
        assert!(!touched, "the check ran in this process");
        assert_eq!(run(|| Err("no such\nbucket")).unwrap_err().to_string(), "no such\nbucket");
        assert!(matches!(run(|| Err("")).unwrap_err(), CheckError::Failed(text) if text.is_empty()));
        // SAFETY: ends the check's own process.
        let died = run(|| -> Result<(), String> { unsafe { libc::_exit(0) } });
        assert!(matches!(died, Err(CheckError::Died)));
    }
}
