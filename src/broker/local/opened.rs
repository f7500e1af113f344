//! A name that was opened once, so that all that is asked and done is of one inode, whatever happens to the name.
//!
//! First it is opened for looking only (O_PATH), which nothing notices and nothing blocks; what then is a file or a directory
//! is opened in earnest, and must still be the same. Special files never are: opening a FIFO would wake its writers.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use super::confine::{open_in, read_link};
use super::status::{Stat, fstat};

/// How often a name that became another file between the two steps is opened again.
const ATTEMPTS: u32 = 16;

/// What it was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be read or asked about.
    Read,
    /// To have its attributes changed; a file that may be written and not read does as well.
    Change,
}

/// What stood at a name when it was opened.
#[derive(Debug)]
pub(super) struct Opened {
    /// For looking only.
    pub fd: OwnedFd,
    /// In earnest: of regular files and directories, unless permissions forbid it.
    pub file: Option<File>,
    /// When it was opened.
    pub stat: Stat,
}

impl Opened {
    /// Opens what is at `path` below `dir`, following no link.
    ///
    /// # Errors
    /// openat2(2)'s. ESTALE: it became something else again and again.
    pub fn at(dir: &impl AsRawFd, path: &str, purpose: Purpose) -> io::Result<Opened> {
        for _ in 0..ATTEMPTS {
            let fd = open_in(dir.as_raw_fd(), path, libc::O_PATH, 0)?;
            let stat = fstat(&fd)?;
            // O_NONBLOCK, O_NOCTTY: it may have become anything since.
            let flags = match () {
                () if stat.is_regular() => libc::O_NONBLOCK | libc::O_NOCTTY,
                () if stat.is_dir() => libc::O_DIRECTORY,
                () => return Ok(Opened { fd, file: None, stat }),
            };
            let mut file = open_in(dir.as_raw_fd(), path, flags | libc::O_RDONLY, 0);
            if purpose == Purpose::Change && stat.is_regular() && file.as_ref().is_err_and(is_forbidden) {
                file = open_in(dir.as_raw_fd(), path, flags | libc::O_WRONLY, 0);
            }
            let file = match file {
                Ok(file) => File::from(file),
                Err(e) if is_forbidden(&e) => return Ok(Opened { fd, file: None, stat }),
                // Gone, or a link or a directory by now; the next attempt tells.
                Err(e)
                    if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ELOOP | libc::ENOTDIR | libc::ENXIO)) =>
                {
                    continue;
                }
                Err(e) => return Err(e),
            };
            let again = fstat(&file)?;
            if again.is_same(&stat) {
                return Ok(Opened { fd, file: Some(file), stat: again });
            }
        }
        Err(io::Error::from_raw_os_error(libc::ESTALE))
    }

    /// Fills `dest` from `offset` on, with the target if it is a symbolic link.
    ///
    /// # Errors
    /// UnexpectedEof: it is shorter. EACCES: permissions forbid it.
    pub fn read_exact_at(&self, dest: &mut [u8], offset: u64) -> io::Result<()> {
        if !self.stat.is_link() {
            return self.file()?.read_exact_at(dest, offset);
        }
        let target = read_link(&self.fd)?;
        let from = usize::try_from(offset).ok().and_then(|from| target.get(from..)?.get(..dest.len()));
        dest.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// The file, opened in earnest.
    ///
    /// # Errors
    /// EACCES: permissions forbid it.
    pub fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EACCES))
    }
}

fn is_forbidden(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM))
}
