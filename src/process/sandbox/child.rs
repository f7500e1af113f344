//! The worker, as its parent sees it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_int, pid_t};
use log::error;

use super::TARGET;
use crate::process::memory::release_code;

/// Milliseconds after which everything has started.
const START: c_int = 1000;

/// A forked worker.
#[derive(Debug)]
pub struct Child {
    pid: pid_t,
    pidfd: OwnedFd,
}

impl Child {
    pub(super) fn new(pid: pid_t, pidfd: OwnedFd) -> Child {
        Child { pid, pidfd }
    }

    /// Its process id, in the parent's pid namespace.
    pub fn pid(&self) -> pid_t {
        self.pid
    }

    /// A descriptor that is readable once the child has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits for the child's end, at most `millis` milliseconds; whether it has come.
    fn has_ended_within(&self, millis: c_int) -> bool {
        let mut end = libc::pollfd { fd: self.pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, which lives through the call.
        unsafe { libc::poll(&raw mut end, 1, millis) != 0 }
    }

    /// Waits for the child's end and returns the exit code that says the same of the parent: the child's own, or minus
    /// the signal that killed it (which exit(3) makes 256 - N of), which is logged.
    pub fn wait(self) -> i32 {
        release_code();
        // Whoever has threads beside this one may still be starting; a moment later there is next to nothing to do.
        if !self.has_ended_within(START) {
            release_code();
        }
        match wait(self.pid) {
            Ok(status) => mirror(status),
            Err(_) => {
                error!(target: TARGET, "Error during waitpid()");
                1
            }
        }
    }
}

fn mirror(status: c_int) -> i32 {
    if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        error!(target: TARGET, "Child process terminated by signal {signal}");
        -signal
    } else {
        error!(target: TARGET, "Unexpected waitpid status: {status:#X}");
        1
    }
}

fn wait(pid: pid_t) -> io::Result<c_int> {
    let mut status = 0;
    loop {
        // SAFETY: `status` lives through the call.
        if unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid {
            return Ok(status);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Waits for the child `pid`, whatever becomes of it.
pub fn reap(pid: pid_t) {
    // Only "no such child" is left as an error, and then there is nothing to wait for.
    let _ = wait(pid);
}

#[cfg(test)]
mod tests {
    use super::mirror;

    #[test]
    fn parent_says_what_the_child_said() {
        assert_eq!(mirror(0), 0);
        assert_eq!(mirror(3 << 8), 3);
        assert_eq!(mirror(9), -9);
        assert_eq!(mirror(31 | 0x80), -31);
    }
}
