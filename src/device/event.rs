//! An eventfd: wakes an epoll loop that listens to its edges, so that nobody has to read it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, RawFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A non-blocking eventfd.
pub(super) struct Event {
    file: File,
}

impl Event {
    /// A new one, not raised.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub(super) fn new() -> io::Result<Event> {
        let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        // SAFETY: `into_raw_fd` hands over the only owner of an open descriptor.
        let file = unsafe { File::from_raw_fd(event.into_raw_fd()) };
        Ok(Event { file })
    }

    /// Makes an edge.
    pub(super) fn raise(&self) {
        // Refused only when the counter is full, which takes 2^64 edges.
        _ = (&self.file).write(&1_u64.to_ne_bytes());
    }
}

impl AsRawFd for Event {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
