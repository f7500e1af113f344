//! Starts a daemon under test and ends it.
//!
//! A daemon that serves one guest, at default or given options; tests of command line and process use
//! [`launch`](crate::launch) instead.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::launch::{Which, binary};

/// What a daemon writes when it can be connected to.
pub const READY: &str = "Waiting for vhost-user socket connection";

/// How long anything in these tests may take before it counts as hung: `OVFS_TEST_TIMEOUT_S` or 60 seconds.
pub fn patience() -> Duration {
    let seconds = env::var("OVFS_TEST_TIMEOUT_S").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    Duration::from_secs(seconds)
}

/// The ovfs under test.
pub fn ovfs_bin() -> PathBuf {
    binary(Which::Ovfs)
}

/// The virtiofsd to compare with.
pub fn virtiofsd_bin() -> PathBuf {
    binary(Which::Virtiofsd)
}

/// A running daemon with its socket and log in a directory of its own.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    dir: TempDir,
    status: Option<ExitStatus>,
}

impl Daemon {
    /// Starts `bin --socket-path S ARGS…` and waits until it is ready.
    ///
    /// # Errors
    /// The daemon ended or said nothing in time; the error carries what it wrote.
    pub fn spawn<S: AsRef<std::ffi::OsStr>>(bin: &Path, args: &[S]) -> io::Result<Daemon> {
        let dir = tempfile::Builder::new().prefix("ovfs-run-").tempdir()?;
        let log = File::create(dir.path().join("stderr"))?;
        let mut command = Command::new(bin);
        command.arg("--socket-path").arg(dir.path().join("s")).args(args);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .env_remove("RUST_LOG")
            .env_remove("RUST_BACKTRACE");
        let mut daemon = Daemon { child: command.spawn()?, dir, status: None };
        let deadline = Instant::now() + patience();
        while !daemon.log().contains(READY) {
            if let Some(status) = daemon.try_exit()? {
                return Err(io::Error::other(format!("{} ended with {status}: {}", bin.display(), daemon.log())));
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("{} is not ready: {}", bin.display(), daemon.log())));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(daemon)
    }

    /// The socket it listens on.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// The process that was started.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process that serves the guest: the innermost of the children that carry the same executable, or the started
    /// process itself without a process sandbox.
    pub fn device_pid(&self) -> u32 {
        let mut pid = self.pid();
        while let Ok(children) = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")) {
            let Some(child) = children.split_whitespace().last().and_then(|c| c.parse().ok()) else { break };
            pid = child;
        }
        pid
    }

    /// Everything it has written to stdout and stderr.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("stderr")).unwrap_or_default()).into_owned()
    }

    /// How much it has written.
    pub fn log_len(&self) -> u64 {
        fs::metadata(self.dir.path().join("stderr")).map_or(0, |m| m.len())
    }

    /// The exit status if it has ended.
    pub fn try_exit(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// Waits for the end; the exit code, or 128 plus the signal.
    pub fn wait_exit(&mut self) -> io::Result<i32> {
        let deadline = Instant::now() + patience();
        loop {
            if let Some(status) = self.try_exit()? {
                return Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("the daemon does not end: {}", self.log())));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Killing the started process ends the sandboxed one through its parent-death signal.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
