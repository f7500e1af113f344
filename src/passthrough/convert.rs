//! Our types and the `virtiofsd` crate's, one into the other.

use std::ffi::CStr;

use virtiofsd::filesystem::{self as crate_fs, OpenOptions, SetattrValid};
use virtiofsd::fuse;
use virtiofsd::soft_idmap::Id;

use crate::fs::{Attr, Context, DirEntry, Entry, Errno, Handle, NodeId, Opened, Result, SetAttr, SetTime, StatFs};

/// Longest file name with its NUL.
const NAME_LEN: usize = 256;

/// Room for a file name and its NUL, without an allocation.
pub(super) struct NameBuffer([u8; NAME_LEN]);

impl Default for NameBuffer {
    fn default() -> NameBuffer {
        NameBuffer([0; NAME_LEN])
    }
}

impl NameBuffer {
    /// The name with its NUL.
    ///
    /// # Errors
    /// ENAMETOOLONG: more than 255 bytes. EINVAL: a NUL inside. The server lets neither through.
    pub(super) fn fill(&mut self, name: &[u8]) -> Result<&CStr> {
        let room = self.0.get_mut(..=name.len()).ok_or(Errno::ENAMETOOLONG)?;
        let (text, nul) = room.split_at_mut(name.len());
        text.copy_from_slice(name);
        nul.fill(0);
        CStr::from_bytes_with_nul(room).map_err(|_| Errno::EINVAL)
    }
}

pub(super) fn context(ctx: Context) -> crate_fs::Context {
    crate_fs::Context { uid: ctx.uid.into(), gid: ctx.gid.into(), pid: ctx.pid.cast_signed() }
}

pub(super) fn attr(attr: &fuse::Attr) -> Attr {
    Attr {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.cast_signed(),
        mtime: attr.mtime.cast_signed(),
        ctime: attr.ctime.cast_signed(),
        atimensec: attr.atimensec,
        mtimensec: attr.mtimensec,
        ctimensec: attr.ctimensec,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid.into_inner(),
        gid: attr.gid.into_inner(),
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: attr.flags,
    }
}

pub(super) fn entry(entry: &crate_fs::Entry) -> Entry {
    Entry {
        nodeid: NodeId(entry.inode),
        generation: entry.generation,
        attr: attr(&entry.attr),
        entry_timeout: entry.entry_timeout,
        attr_timeout: entry.attr_timeout,
    }
}

pub(super) fn opened(handle: Option<u64>, options: OpenOptions) -> Opened {
    Opened { handle: handle.map(Handle), flags: options.bits() }
}

pub(super) fn dir_entry<'a>(entry: &crate_fs::DirEntry<'a>) -> DirEntry<'a> {
    DirEntry { ino: entry.ino, next_offset: entry.offset, kind: entry.type_, name: entry.name.to_bytes() }
}

pub(super) fn statfs(stat: &libc::statvfs64) -> StatFs {
    StatFs {
        blocks: stat.f_blocks,
        bfree: stat.f_bfree,
        bavail: stat.f_bavail,
        files: stat.f_files,
        ffree: stat.f_ffree,
        // The wire has 32 bits for each; no file system's unit is larger.
        bsize: stat.f_bsize as u32,
        namelen: stat.f_namemax as u32,
        frsize: stat.f_frsize as u32,
    }
}

/// The wire's structure, and the bits that say which of its fields count.
pub(super) fn setattr(change: &SetAttr) -> (fuse::SetattrIn, SetattrValid) {
    let mut valid = SetattrValid::empty();
    valid.set(SetattrValid::MODE, change.mode.is_some());
    valid.set(SetattrValid::UID, change.uid.is_some());
    valid.set(SetattrValid::GID, change.gid.is_some());
    valid.set(SetattrValid::SIZE, change.size.is_some());
    valid.set(SetattrValid::ATIME, change.atime.is_some());
    valid.set(SetattrValid::MTIME, change.mtime.is_some());
    valid.set(SetattrValid::CTIME, change.ctime.is_some());
    valid.set(SetattrValid::ATIME_NOW, change.atime == Some(SetTime::Now));
    valid.set(SetattrValid::MTIME_NOW, change.mtime == Some(SetTime::Now));
    valid.set(SetattrValid::KILL_SUIDGID, change.kill_suid_gid);
    let (atime, atimensec) = seconds(change.atime);
    let (mtime, mtimensec) = seconds(change.mtime);
    let (ctime, ctimensec) = change.ctime.unwrap_or_default();
    let wire = fuse::SetattrIn {
        valid: valid.bits(),
        fh: change.handle.map_or(0, |handle| handle.0),
        size: change.size.unwrap_or_default(),
        lock_owner: change.lock_owner.unwrap_or_default(),
        atime,
        mtime,
        ctime: ctime.cast_unsigned(),
        atimensec,
        mtimensec,
        ctimensec,
        mode: change.mode.unwrap_or_default(),
        uid: change.uid.unwrap_or_default().into(),
        gid: change.gid.unwrap_or_default().into(),
        ..fuse::SetattrIn::default()
    };
    (wire, valid)
}

fn seconds(time: Option<SetTime>) -> (u64, u32) {
    match time {
        Some(SetTime::At(seconds, nanos)) => (seconds.cast_unsigned(), nanos),
        Some(SetTime::Now) | None => (0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_their_nul() {
        let mut buffer = NameBuffer::default();
        assert_eq!(buffer.fill(b"abcdef").unwrap(), c"abcdef");
        assert_eq!(buffer.fill(b"ab").unwrap(), c"ab");
        assert_eq!(buffer.fill(&[b'n'; 255]).unwrap().to_bytes(), [b'n'; 255]);
        assert_eq!(buffer.fill(&[b'n'; 256]), Err(Errno::ENAMETOOLONG));
        assert_eq!(buffer.fill(b"a\0b"), Err(Errno::EINVAL));
    }

    #[test]
    fn setattr_bits_follow_the_fields() {
        let (wire, valid) = setattr(&SetAttr {
            size: Some(5),
            atime: Some(SetTime::Now),
            mtime: Some(SetTime::At(-1, 7)),
            uid: Some(9),
            ..SetAttr::default()
        });
        let expected = SetattrValid::SIZE
            | SetattrValid::ATIME
            | SetattrValid::ATIME_NOW
            | SetattrValid::MTIME
            | SetattrValid::UID;
        assert_eq!(valid, expected);
        assert_eq!((wire.size, wire.mtime, wire.mtimensec, wire.uid.into_inner()), (5, u64::MAX, 7, 9));
        assert_eq!(setattr(&SetAttr::default()).1, SetattrValid::empty());
    }
}
