//! An eventfd: wakes an epoll loop.

use std::fs::File;
use std::io::{self, Read, Write};
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

    /// Makes the descriptor readable.
    pub(super) fn raise(&self) {
        // Refused only when the counter is full, and then the descriptor is readable anyway.
        _ = (&self.file).write(&1_u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable.
    pub(super) fn clear(&self) {
        // Refused only when the descriptor is unreadable already.
        _ = (&self.file).read(&mut [0; 8]);
    }
}

impl AsRawFd for Event {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
