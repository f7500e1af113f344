//! What the system says of a file (statx(2)).

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;

use libc::c_int;

use super::confine::check;
use crate::store::{Kind, Meta, Version};

/// A file's state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stat {
    /// Major and minor number of the device.
    pub dev: (u32, u32),
    pub ino: u64,
    /// Type and permissions.
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Nanoseconds since the epoch, as are the others.
    pub atime_ns: i64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
    /// When the inode was made, where the file system keeps it.
    born_ns: Option<i64>,
}

impl Stat {
    /// The file type, in place in the mode.
    pub fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Permissions with the special bits.
    pub fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }

    pub fn is_dir(&self) -> bool {
        self.file_type() == libc::S_IFDIR
    }

    pub fn is_regular(&self) -> bool {
        self.file_type() == libc::S_IFREG
    }

    pub fn is_link(&self) -> bool {
        self.file_type() == libc::S_IFLNK
    }

    /// Whether both are of one inode.
    pub fn is_same(&self, other: &Stat) -> bool {
        (self.dev, self.ino, self.born_ns) == (other.dev, other.ino, other.born_ns)
    }

    /// The state in the store's words, without details. The ETag is inode, its birth and the time of the last change: two writes
    /// of ours within one tick of the clock make two inodes, and an inode number that is used again has another birth, so that a time
    /// set back by utimens(2) does not bring an old version back.
    pub fn meta(&self) -> Meta {
        let dir = self.is_dir();
        let etag = || match self.born_ns {
            Some(born) => format!("\"{:x}-{born:x}-{:x}\"", self.ino, self.mtime_ns),
            None => format!("\"{:x}-{:x}\"", self.ino, self.mtime_ns),
        };
        Meta {
            kind: if dir { Kind::Dir } else { Kind::File },
            size: if dir { 0 } else { self.size },
            mtime_ns: Some(self.mtime_ns),
            etag: (!dir).then(etag),
            marker: dir.then_some(true),
            details: None,
        }
    }

    /// The version of the content.
    pub fn version(&self) -> Version {
        self.meta().version()
    }
}

/// What is open as `fd`.
pub(super) fn fstat(fd: &impl AsRawFd) -> io::Result<Stat> {
    statx(fd, c"", libc::AT_EMPTY_PATH)
}

/// What `name` in `dir` is, not followed; `None`: nothing at all.
pub(super) fn stat_in(dir: &impl AsRawFd, name: &CStr) -> io::Result<Option<Stat>> {
    match statx(dir, name, libc::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

fn statx(fd: &impl AsRawFd, name: &CStr, flags: c_int) -> io::Result<Stat> {
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME;
    // SAFETY: statx is plain data for which zeros are valid.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor, a C string and a struct to fill; the result is checked.
    check(unsafe { libc::statx(fd.as_raw_fd(), name.as_ptr(), flags, mask, &raw mut stat) })?;
    let ns = |at: &libc::statx_timestamp| at.tv_sec.saturating_mul(1_000_000_000).saturating_add(at.tv_nsec.into());
    Ok(Stat {
        dev: (stat.stx_dev_major, stat.stx_dev_minor),
        ino: stat.stx_ino,
        mode: stat.stx_mode.into(),
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size: stat.stx_size,
        atime_ns: ns(&stat.stx_atime),
        mtime_ns: ns(&stat.stx_mtime),
        ctime_ns: ns(&stat.stx_ctime),
        born_ns: (stat.stx_mask & libc::STATX_BTIME != 0).then(|| ns(&stat.stx_btime)),
    })
}
