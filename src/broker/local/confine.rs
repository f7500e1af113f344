//! A directory that nothing leads out of.
//!
//! Every path is resolved by the kernel below the root's descriptor (openat2(2), RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS), so
//! neither `..` nor a symbolic link, even one put there between two of our calls, can name anything outside. A link as the
//! last component is opened as the link that it is, and only to be looked at (O_PATH).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::c_int;

use super::status::{Stat, fstat};

/// The resolution of every path: below the root, through no symbolic link.
const RESOLVE: u64 = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;

/// How often a resolution that was disturbed by a rename is repeated.
const ATTEMPTS: u32 = 16;

/// Longest target of a symbolic link in bytes, as in every Linux file system.
pub(super) const LINK_MAX: usize = 4095;

pub(super) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// The root's descriptor.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
}

impl Root {
    /// Opens a directory; symbolic links in its own path are followed, they are the administrator's.
    pub fn open(path: &str) -> io::Result<Root> {
        let path = c_string(path)?;
        // SAFETY: a C string; the result is checked.
        let fd = check(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) })?;
        // SAFETY: open just gave us this descriptor.
        Ok(Root { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Opens `path` below the root, `""` being the root itself. `flags` always gain O_CLOEXEC and O_NOFOLLOW.
    pub fn open_below(&self, path: &str, flags: c_int) -> io::Result<OwnedFd> {
        open_in(self.fd.as_raw_fd(), path, flags, 0)
    }

    /// The directory that `path` is in, and its name there.
    pub fn parent(&self, path: &str) -> io::Result<(OwnedFd, CString)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.open_below(dir, libc::O_RDONLY | libc::O_DIRECTORY)?, c_string(name)?))
    }

    /// What is at `path`, not followed; `None`: nothing.
    pub fn stat(&self, path: &str) -> io::Result<Option<Stat>> {
        match self.open_below(path, libc::O_PATH) {
            Ok(fd) => fstat(&fd).map(Some),
            Err(e) if is_nothing(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The descriptor, for calls that take one and a path.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

/// Opens `path` below `dir`, as [`Root::open_below`] does. `mode` counts with O_CREAT only.
pub(super) fn open_in(dir: RawFd, path: &str, flags: c_int, mode: u32) -> io::Result<OwnedFd> {
    let path = c_string(if path.is_empty() { "." } else { path })?;
    // SAFETY: open_how is plain data for which zeros are valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (flags | libc::O_CLOEXEC | libc::O_NOFOLLOW) as u64;
    how.mode = mode.into();
    how.resolve = RESOLVE;
    for attempt in 1.. {
        // SAFETY: a C string and a struct of the given size; the result is checked.
        let fd = unsafe {
            libc::syscall(libc::SYS_openat2, dir, path.as_ptr(), &raw const how, std::mem::size_of::<libc::open_how>())
        };
        if fd >= 0 {
            // SAFETY: openat2 just gave us this descriptor, which fits.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
        }
        let e = io::Error::last_os_error();
        let again = matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) && attempt < ATTEMPTS;
        if !again {
            return Err(e);
        }
    }
    Err(io::ErrorKind::Other.into())
}

/// Whether an error says that nothing (that can be shown) is there.
pub(super) fn is_nothing(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENXIO))
}

/// The text of the symbolic link open as `fd`.
pub(super) fn read_link(fd: &impl AsRawFd) -> io::Result<Vec<u8>> {
    let mut text = vec![0u8; LINK_MAX + 1];
    // SAFETY: an open descriptor, a C string and a buffer of the given length.
    let len = unsafe { libc::readlinkat(fd.as_raw_fd(), c"".as_ptr(), text.as_mut_ptr().cast(), text.len()) };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    if len > LINK_MAX {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    text.truncate(len);
    Ok(text)
}

/// symlinkat(2).
pub(super) fn symlink_in(target: &CStr, dir: &impl AsRawFd, name: &CStr) -> io::Result<()> {
    // SAFETY: an open descriptor and two C strings.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// mknodat(2), for what is no device.
pub(super) fn mknod_in(dir: &impl AsRawFd, name: &CStr, mode: u32) -> io::Result<()> {
    // SAFETY: an open descriptor and a C string.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, 0) }).map(drop)
}

/// mkdirat(2).
pub(super) fn mkdir_in(dir: &impl AsRawFd, name: &CStr, mode: u32) -> io::Result<()> {
    // SAFETY: an open descriptor and a C string.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// unlinkat(2), of a directory if `dir_too`.
pub(super) fn unlink_in(dir: &impl AsRawFd, name: &CStr, directory: bool) -> io::Result<()> {
    let flags = if directory { libc::AT_REMOVEDIR } else { 0 };
    // SAFETY: an open descriptor and a C string.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), flags) }).map(drop)
}

/// renameat2(2): replaces what is there, or with `no_replace` fails with EEXIST, on every file system.
pub(super) fn rename_in(from: (&impl AsRawFd, &CStr), to: (&impl AsRawFd, &CStr), no_replace: bool) -> io::Result<()> {
    let ((from_dir, from), (to_dir, to)) = ((from.0.as_raw_fd(), from.1), (to.0.as_raw_fd(), to.1));
    let flags = if no_replace { libc::RENAME_NOREPLACE } else { 0 };
    // SAFETY: open descriptors and C strings.
    let result =
        unsafe { libc::syscall(libc::SYS_renameat2, from_dir, from.as_ptr(), to_dir, to.as_ptr(), flags as c_int) };
    if result == 0 {
        return Ok(());
    }
    let e = io::Error::last_os_error();
    if !(no_replace && e.raw_os_error() == Some(libc::EINVAL)) {
        return Err(e);
    }
    // A file system without the flag: a link does not replace either.
    // SAFETY: open descriptors and C strings.
    check(unsafe { libc::linkat(from_dir, from.as_ptr(), to_dir, to.as_ptr(), 0) })?;
    // SAFETY: as above.
    check(unsafe { libc::unlinkat(from_dir, from.as_ptr(), 0) }).map(drop)
}

/// A directory being read.
#[derive(Debug)]
pub(super) struct DirStream {
    stream: *mut libc::DIR,
}

// SAFETY: the stream is used by one thread at a time, through `&mut self`, and belongs to no thread.
unsafe impl Send for DirStream {}

impl DirStream {
    /// Reads the directory open as `fd`.
    pub fn new(fd: OwnedFd) -> io::Result<DirStream> {
        use std::os::fd::IntoRawFd;
        let fd = fd.into_raw_fd();
        // SAFETY: an open descriptor that is ours; on success the stream owns it.
        let stream = unsafe { libc::fdopendir(fd) };
        if stream.is_null() {
            let e = io::Error::last_os_error();
            // SAFETY: fdopendir failed, so the descriptor is still ours.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            return Err(e);
        }
        Ok(DirStream { stream })
    }

    /// The next name that is neither `.` nor `..`.
    pub fn next_name(&mut self) -> io::Result<Option<CString>> {
        loop {
            // SAFETY: the thread's own errno; readdir sets it only on failure.
            unsafe { *libc::__errno_location() = 0 };
            // SAFETY: an open stream.
            let entry = unsafe { libc::readdir64(self.stream) };
            if entry.is_null() {
                let e = io::Error::last_os_error();
                return if e.raw_os_error() == Some(0) { Ok(None) } else { Err(e) };
            }
            // SAFETY: d_name is a C string, valid until the next call on the stream.
            let name = unsafe { CStr::from_ptr((&raw const (*entry).d_name).cast()) };
            if !matches!(name.to_bytes(), b"." | b"..") {
                return Ok(Some(name.to_owned()));
            }
        }
    }
}

impl AsRawFd for DirStream {
    fn as_raw_fd(&self) -> RawFd {
        // SAFETY: an open stream.
        unsafe { libc::dirfd(self.stream) }
    }
}

impl Drop for DirStream {
    fn drop(&mut self) {
        // SAFETY: an open stream, used by nobody after this.
        unsafe { libc::closedir(self.stream) };
    }
}
