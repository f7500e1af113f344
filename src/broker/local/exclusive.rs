//! One change of a name at a time.
//!
//! What stands at a name is looked at, and then replaced: two system calls. Between them nothing else may replace it, in this
//! daemon or in another one of this machine, or an update that was acknowledged would be lost. So whoever changes names in a
//! directory holds its lock (flock(2)) for these calls. Programs that know nothing of the lock are not kept out; the
//! manual says so.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::status::fstat;

/// How long another holder is waited for. Ours hold it for microseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses between attempts: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(4));

/// The lock of one or two directories, held until it is dropped.
#[derive(Debug)]
pub(super) struct Exclusive<'a> {
    dirs: [Option<&'a OwnedFd>; 2],
}

impl<'a> Exclusive<'a> {
    /// Locks a directory, which is open in this descriptor for this operation alone.
    ///
    /// # Errors
    /// ETIMEDOUT if somebody else holds it for long.
    pub fn of(dir: &'a OwnedFd) -> io::Result<Exclusive<'a>> {
        let mut held = Exclusive { dirs: [None, None] };
        held.take(0, dir)?;
        Ok(held)
    }

    /// Locks two directories, which may be the same, in the order that everybody locks them in.
    ///
    /// # Errors
    /// As [`Exclusive::of`]; those of fstat(2).
    pub fn of_both(one: &'a OwnedFd, other: &'a OwnedFd) -> io::Result<Exclusive<'a>> {
        let place = |dir: &OwnedFd| fstat(dir).map(|stat| (stat.dev, stat.ino));
        let (one_at, other_at) = (place(one)?, place(other)?);
        let mut held = Exclusive { dirs: [None, None] };
        let (first, second) = if one_at <= other_at { (one, other) } else { (other, one) };
        held.take(0, first)?;
        if one_at != other_at {
            held.take(1, second)?;
        }
        Ok(held)
    }

    fn take(&mut self, at: usize, dir: &'a OwnedFd) -> io::Result<()> {
        let began = Instant::now();
        let mut pause = PAUSES.0;
        while !lock(dir)? {
            if began.elapsed() > PATIENCE {
                return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSES.1);
        }
        self.dirs[at] = Some(dir);
        Ok(())
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        for dir in self.dirs.iter().flatten() {
            // SAFETY: an open descriptor.
            if unsafe { libc::flock(dir.as_raw_fd(), libc::LOCK_UN) } != 0 {
                log::debug!("a directory stays locked until it is closed: {}", io::Error::last_os_error());
            }
        }
    }
}

/// Takes the lock; false: somebody else has it.
pub(super) fn lock(dir: &OwnedFd) -> io::Result<bool> {
    // SAFETY: an open descriptor.
    if unsafe { libc::flock(dir.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if matches!(e.raw_os_error(), Some(libc::EWOULDBLOCK | libc::EINTR)) => Ok(false),
        e => Err(e),
    }
}
