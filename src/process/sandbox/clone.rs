//! Forking into new namespaces, and the tie that ends the child with its parent.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, c_ulong};

use super::child::Child;

/// Who the caller of [`clone_process`] is afterwards.
#[derive(Debug)]
pub(super) enum Forked {
    /// The one that was there before.
    Parent(Child),
    /// The new one.
    Child,
}

/// fork(2) with `flags` of clone(2), so that the child is born in its namespaces and the parent never enters them.
///
/// There must be one thread: only then is the child, a copy of that thread, free to run any code.
pub(super) fn clone_process(flags: c_int) -> io::Result<Forked> {
    let mut pidfd: c_int = -1;
    let tid = thread_id_address();
    let mut flags = (flags | libc::CLONE_PIDFD | libc::SIGCHLD) as c_ulong;
    if tid != 0 {
        flags |= (libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID) as c_ulong;
    }
    // The order of the arguments differs between architectures. No stack: the child goes on with a copy of this one.
    // The last two are the child's thread id and its TLS, in either order; the latter is not looked at.
    #[cfg(not(target_arch = "s390x"))]
    let (first, second) = (flags, 0);
    #[cfg(target_arch = "s390x")]
    let (first, second) = (0, flags);
    // SAFETY: without CLONE_VM this is fork(2): the child has its own copy of all memory. `pidfd` has room for what
    // CLONE_PIDFD stores, and `tid`, if used, is where this thread's C library keeps its thread id.
    let pid = unsafe { libc::syscall(libc::SYS_clone, first, second, &raw mut pidfd, tid, tid) };
    match pid {
        0 => Ok(Forked::Child),
        pid if pid > 0 => {
            // SAFETY: clone(2) just gave us this descriptor.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent(Child::new(pid as libc::pid_t, pidfd)))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Where glibc keeps this thread's id, which the kernel must renew in the child as it does for glibc's own fork(2); or 0
/// where that is not known, with other C libraries or kernels built without checkpoint and restore.
fn thread_id_address() -> usize {
    /// linux/prctl.h.
    const PR_GET_TID_ADDRESS: c_int = 40;
    let mut address = 0_usize;
    if cfg!(target_env = "gnu") {
        // SAFETY: stores one pointer in `address`, or fails and leaves it 0.
        unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut address) };
    }
    address
}

/// Lets the child end with the parent. Made before the fork, armed after it, so that a parent that dies in between is
/// noticed. getppid(2) would not do: across pid namespaces it is always 0.
#[derive(Debug)]
pub(super) struct DeathLink {
    parent: OwnedFd,
}

impl DeathLink {
    /// In the parent, before the fork.
    pub(super) fn new() -> io::Result<DeathLink> {
        // SAFETY: takes plain numbers; the result is checked.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: pidfd_open just gave us this descriptor.
        Ok(DeathLink { parent: unsafe { OwnedFd::from_raw_fd(fd as c_int) } })
    }

    /// In the child: SIGTERM when the parent dies.
    ///
    /// # Errors
    /// The parent is dead already.
    pub(super) fn arm(self) -> io::Result<()> {
        // SAFETY: takes plain numbers; cannot fail for a valid signal.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) };
        let mut parent = libc::pollfd { fd: self.parent.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one element, alive through the call.
        match unsafe { libc::poll(&raw mut parent, 1, 0) } {
            0 => Ok(()),
            1 => Err(io::Error::other("Parent process died unexpectedly")),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
