//! Running a check in a short-lived process of its own, so that nothing it reads stays in this one's memory.
//!
//! A backend URL must be checked, and files of settings be read, before the socket appears, thus before the device process
//! is forked; but what that leaves on the heap (parsed credentials) the device process would inherit.

use std::io::{self, Read, Write};

use thiserror::Error;

use super::secrets::wipe;

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
    let check = || match check() {
        Ok(()) => b"+".to_vec(),
        Err(error) => format!("-{error}").into_bytes(),
    };
    ask(check, |verdict| match verdict.split_first() {
        Some((b'+', [])) => Ok(()),
        Some((b'-', error)) => Err(CheckError::Failed(String::from_utf8_lossy(error).into_owned())),
        _ => Err(CheckError::Died),
    })?
}

/// Runs `work` in a forked process and hands its answer, in memory that is wiped afterwards, to `read`. Call it while there
/// is one thread.
///
/// # Errors
/// Why `work` could not be run, or that it ended without an answer.
pub fn ask<T>(work: impl FnOnce() -> Vec<u8>, read: impl FnOnce(&[u8]) -> T) -> Result<T, CheckError> {
    let (mut reader, mut writer) = io::pipe()?;
    // SAFETY: there is one thread, so the child may run any code.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error().into());
    }
    if pid == 0 {
        let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let sent = answer.is_ok_and(|answer| {
            let len = (answer.len() as u64).to_ne_bytes();
            writer.write_all(&len).and_then(|()| writer.write_all(&answer)).is_ok()
        });
        // SAFETY: ends this process without running the parent's exit handlers.
        unsafe { libc::_exit(if sent { 0 } else { 1 }) };
    }
    drop(writer);
    let answer = receive(&mut reader);
    super::sandbox::reap(pid);
    let mut answer = answer?;
    let result = read(&answer);
    wipe(&mut answer);
    Ok(result)
}

/// The length and that many bytes, which lie in one place from the start: memory that grows leaves copies behind.
fn receive(reader: &mut impl Read) -> Result<Vec<u8>, CheckError> {
    let ended = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => CheckError::Died,
        _ => CheckError::Process(error),
    };
    let mut len = [0; 8];
    reader.read_exact(&mut len).map_err(ended)?;
    let mut answer = vec![0; usize::try_from(u64::from_ne_bytes(len)).map_err(|_| CheckError::Died)?];
    match reader.read_exact(&mut answer) {
        Ok(()) => Ok(answer),
        Err(error) => {
            wipe(&mut answer);
            Err(ended(error))
        }
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
