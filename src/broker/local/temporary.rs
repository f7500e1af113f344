//! Where files wait until they are whole: a directory of this instance's own in a hidden one at the root. It is locked while
//! the instance lives, so the next one can tell what was left behind and remove it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::super::remote::TEMPORARY;
use super::confine::{DirStream, Root, mkdir_in, open_in, unlink_in};
use super::exclusive::lock;
use super::status::fstat;

/// How often a directory that another instance took for abandoned is made again.
const ATTEMPTS: u32 = 8;

const DIRECTORY: libc::c_int = libc::O_RDONLY | libc::O_DIRECTORY;

/// This instance's directory.
#[derive(Debug)]
pub(super) struct Temporary {
    /// The root, and what `all` is called there.
    parent: (OwnedFd, CString),
    all: OwnedFd,
    name: CString,
    dir: OwnedFd,
    pub device: (u32, u32),
}

impl Temporary {
    /// Makes the directory, and removes those of instances that are no more.
    pub fn new(root: &Root) -> io::Result<Temporary> {
        let gone = |e: &io::Error| e.raw_os_error() == Some(libc::ENOENT);
        // The last of the other instances takes the hidden directory away, perhaps just now.
        for _ in 1..ATTEMPTS {
            match Temporary::attempt(root) {
                Err(e) if gone(&e) => {}
                other => return other,
            }
        }
        Temporary::attempt(root)
    }

    fn attempt(root: &Root) -> io::Result<Temporary> {
        let (parent, all_name) = root.parent(TEMPORARY)?;
        match mkdir_in(&parent, &all_name, 0o700) {
            Err(e) if e.raw_os_error() != Some(libc::EEXIST) => return Err(e),
            _ => {}
        }
        let all = root.open_below(TEMPORARY, DIRECTORY)?;
        if let Err(e) = sweep(&all) {
            log::warn!("cannot remove what earlier instances left in {TEMPORARY}: {e}");
        }
        for _ in 0..ATTEMPTS {
            let name = super::super::remote::unique();
            let c_name = CString::new(name.as_str())?;
            mkdir_in(&all, &c_name, 0o700)?;
            let dir = match open_in(all.as_raw_fd(), &name, DIRECTORY, 0) {
                Ok(dir) => dir,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => continue,
                Err(e) => return Err(e),
            };
            let stat = if lock(&dir)? { fstat(&dir)? } else { continue };
            if stat.nlink > 0 {
                return Ok(Temporary { parent: (parent, all_name), all, name: c_name, dir, device: stat.dev });
            }
        }
        Err(io::Error::other("the directory for temporary files goes as often as it is made"))
    }

    /// The directory.
    pub fn dir(&self) -> &OwnedFd {
        &self.dir
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let emptied = empty(&self.dir).and_then(|()| unlink_in(&self.all, &self.name, true));
        if let Err(e) = emptied {
            log::debug!("{:?} stays in {TEMPORARY}: {e}", self.name);
        }
        // Other instances may be at work in it; then it stays.
        let _ = unlink_in(&self.parent.0, &self.parent.1, true);
    }
}

/// A descriptor of its own for reading `dir`, whose position nobody shares.
fn reopen(dir: &OwnedFd) -> io::Result<DirStream> {
    open_in(dir.as_raw_fd(), "", DIRECTORY, 0).and_then(DirStream::new)
}

fn empty(dir: &OwnedFd) -> io::Result<()> {
    let mut names = reopen(dir)?;
    while let Some(name) = names.next_name()? {
        unlink_in(dir, &name, false)?;
    }
    Ok(())
}

fn sweep(all: &OwnedFd) -> io::Result<()> {
    let mut names = reopen(all)?;
    while let Some(name) = names.next_name()? {
        if let Err(e) = sweep_one(all, &name) {
            log::debug!("{name:?} stays in {TEMPORARY}: {e}");
        }
    }
    Ok(())
}

fn sweep_one(all: &OwnedFd, name: &CStr) -> io::Result<()> {
    let text = name.to_str().map_err(|_| io::Error::from_raw_os_error(libc::EILSEQ))?;
    let dir = open_in(all.as_raw_fd(), text, DIRECTORY, 0)?;
    if !lock(&dir)? {
        return Ok(());
    }
    empty(&dir)?;
    unlink_in(all, name, true)
}
