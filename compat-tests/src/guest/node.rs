//! The operations on nodes and handles.

use super::{Call, Guest};
use crate::error::{Answer, Error, Fault};
use crate::fuse::{AttrOut, Body, DirEntry, Entry, Fields, Opened, Statfs, dir_entries, fattr, init, op};

/// The fields of SETATTR; `valid` says which count (`fuse::fattr`).
#[allow(missing_docs, reason = "the names are the protocol's")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    pub valid: u32,
    pub fh: u64,
    pub size: u64,
    pub atime: (i64, u32),
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl SetAttr {
    /// A new length.
    pub fn size(size: u64) -> SetAttr {
        SetAttr { valid: fattr::SIZE, size, ..SetAttr::default() }
    }

    /// New permission bits.
    pub fn mode(mode: u32) -> SetAttr {
        SetAttr { valid: fattr::MODE, mode, ..SetAttr::default() }
    }

    /// A new owner and group.
    pub fn owner(uid: u32, gid: u32) -> SetAttr {
        SetAttr { valid: fattr::UID | fattr::GID, uid, gid, ..SetAttr::default() }
    }

    /// New access and modification times, in seconds and nanoseconds.
    pub fn times(atime: (i64, u32), mtime: (i64, u32)) -> SetAttr {
        SetAttr { valid: fattr::ATIME | fattr::MTIME, atime, mtime, ..SetAttr::default() }
    }
}

fn whole<T>(payload: &[u8], what: &'static str, read: impl FnOnce(&mut Fields) -> Answer<T>) -> Answer<T> {
    let mut fields = Fields::of(payload, what);
    let value = read(&mut fields)?;
    fields.end()?;
    Ok(value)
}

impl Guest {
    /// A guest that has negotiated SECURITY_CTX sends a context with every new inode, an empty one if it has none.
    fn security_context(&self, extensions: Vec<u8>) -> Vec<u8> {
        let wanted = self.negotiated & init::SECURITY_CTX != 0 && extensions.is_empty();
        if wanted { Body::new().u32s(&[8, 0]).0 } else { extensions }
    }

    fn entry(&mut self, opcode: u32, nodeid: u64, arg: &[u8], extensions: Vec<u8>) -> Answer<Entry> {
        let payload = self.call(&Call { opcode, nodeid, args: vec![arg], extensions, reply: Some(128) })?;
        whole(&payload, "entry", Entry::read)
    }

    /// LOOKUP.
    pub fn lookup(&mut self, parent: u64, name: &[u8]) -> Answer<Entry> {
        self.entry(op::LOOKUP, parent, &Body::new().name(name).0, Vec::new())
    }

    /// GETATTR, by handle if one is given.
    pub fn getattr(&mut self, nodeid: u64, fh: Option<u64>) -> Answer<AttrOut> {
        let arg = Body::new().u32s(&[fh.is_some().into(), 0]).u64s(&[fh.unwrap_or(0)]).0;
        let payload = self.simple(op::GETATTR, nodeid, &arg, 104)?;
        whole(&payload, "GETATTR", AttrOut::read)
    }

    /// SETATTR.
    pub fn setattr(&mut self, nodeid: u64, set: &SetAttr) -> Answer<AttrOut> {
        let arg = Body::new()
            .u32s(&[set.valid, 0])
            .u64s(&[set.fh, set.size, 0])
            .u64s(&[set.atime.0, set.mtime.0, set.ctime.0].map(i64::cast_unsigned))
            .u32s(&[set.atime.1, set.mtime.1, set.ctime.1, set.mode, 0, set.uid, set.gid, 0]);
        let payload = self.simple(op::SETATTR, nodeid, &arg.0, 104)?;
        whole(&payload, "SETATTR", AttrOut::read)
    }

    /// READLINK.
    pub fn readlink(&mut self, nodeid: u64) -> Answer<Vec<u8>> {
        self.simple(op::READLINK, nodeid, &[], 4096)
    }

    /// SYMLINK: `name` in `parent` pointing to `target`.
    pub fn symlink(&mut self, parent: u64, name: &[u8], target: &[u8]) -> Answer<Entry> {
        let extensions = self.security_context(Vec::new());
        self.entry(op::SYMLINK, parent, &Body::new().name(name).name(target).0, extensions)
    }

    /// MKNOD; `mode` with type bits.
    pub fn mknod(&mut self, parent: u64, name: &[u8], mode: u32, rdev: u32, umask: u32) -> Answer<Entry> {
        let extensions = self.security_context(Vec::new());
        self.entry(op::MKNOD, parent, &Body::new().u32s(&[mode, rdev, umask, 0]).name(name).0, extensions)
    }

    /// MKDIR.
    pub fn mkdir(&mut self, parent: u64, name: &[u8], mode: u32) -> Answer<Entry> {
        self.mkdir_ext(parent, name, mode, 0, Vec::new())
    }

    /// MKDIR with a umask and extensions.
    pub fn mkdir_ext(&mut self, parent: u64, name: &[u8], mode: u32, umask: u32, extensions: Vec<u8>) -> Answer<Entry> {
        let extensions = self.security_context(extensions);
        self.entry(op::MKDIR, parent, &Body::new().u32s(&[mode, umask]).name(name).0, extensions)
    }

    /// UNLINK.
    pub fn unlink(&mut self, parent: u64, name: &[u8]) -> Answer<()> {
        self.plain(op::UNLINK, parent, &Body::new().name(name).0)
    }

    /// RMDIR.
    pub fn rmdir(&mut self, parent: u64, name: &[u8]) -> Answer<()> {
        self.plain(op::RMDIR, parent, &Body::new().name(name).0)
    }

    /// RENAME.
    pub fn rename(&mut self, from: u64, name: &[u8], to: u64, new_name: &[u8]) -> Answer<()> {
        self.plain(op::RENAME, from, &Body::new().u64s(&[to]).name(name).name(new_name).0)
    }

    /// RENAME2 with `RENAME_*` flags.
    pub fn rename2(&mut self, from: u64, name: &[u8], to: u64, new_name: &[u8], flags: u32) -> Answer<()> {
        self.plain(op::RENAME2, from, &Body::new().u64s(&[to]).u32s(&[flags, 0]).name(name).name(new_name).0)
    }

    /// LINK: a further name for `nodeid`.
    pub fn link(&mut self, nodeid: u64, parent: u64, name: &[u8]) -> Answer<Entry> {
        self.entry(op::LINK, parent, &Body::new().u64s(&[nodeid]).name(name).0, Vec::new())
    }

    /// OPEN.
    pub fn open(&mut self, nodeid: u64, flags: i32) -> Answer<Opened> {
        let payload = self.simple(op::OPEN, nodeid, &Body::new().u32s(&[flags.cast_unsigned(), 0]).0, 16)?;
        whole(&payload, "OPEN", Opened::read)
    }

    /// CREATE: makes the file if it is missing, and opens it.
    pub fn create(&mut self, parent: u64, name: &[u8], flags: i32, mode: u32) -> Answer<(Entry, Opened)> {
        self.create_ext(parent, name, flags, mode, 0, Vec::new())
    }

    /// CREATE with a umask and extensions.
    pub fn create_ext(
        &mut self,
        parent: u64,
        name: &[u8],
        flags: i32,
        mode: u32,
        umask: u32,
        extensions: Vec<u8>,
    ) -> Answer<(Entry, Opened)> {
        let extensions = self.security_context(extensions);
        let arg = Body::new().u32s(&[flags.cast_unsigned(), libc::S_IFREG | mode, umask, 0]).name(name).0;
        let call = Call { opcode: op::CREATE, nodeid: parent, args: vec![&arg], extensions, reply: Some(144) };
        let payload = self.call(&call)?;
        whole(&payload, "CREATE", |f| Ok((Entry::read(f)?, Opened::read(f)?)))
    }

    /// The argument of READ and READDIR.
    pub fn read_arg(fh: u64, offset: u64, size: u32) -> Vec<u8> {
        Body::new().u64s(&[fh, offset]).u32s(&[size, 0]).u64s(&[0]).u32s(&[0, 0]).0
    }

    /// The argument of WRITE, without its data.
    pub fn write_arg(fh: u64, offset: u64, size: u32, write_flags: u32, open_flags: i32) -> Vec<u8> {
        Body::new().u64s(&[fh, offset]).u32s(&[size, write_flags]).u64s(&[0]).u32s(&[open_flags.cast_unsigned(), 0]).0
    }

    /// READ.
    pub fn read(&mut self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Answer<Vec<u8>> {
        self.simple(op::READ, nodeid, &Self::read_arg(fh, offset, size), size)
    }

    /// WRITE; the number of bytes taken.
    pub fn write(&mut self, nodeid: u64, fh: u64, offset: u64, data: &[u8]) -> Answer<u32> {
        self.write_with(nodeid, fh, offset, data, 0, 0)
    }

    /// WRITE with `WRITE_*` flags and the open flags of the handle.
    pub fn write_with(
        &mut self,
        nodeid: u64,
        fh: u64,
        offset: u64,
        data: &[u8],
        write_flags: u32,
        open_flags: i32,
    ) -> Answer<u32> {
        let arg = Self::write_arg(fh, offset, data.len() as u32, write_flags, open_flags);
        let call = Call { opcode: op::WRITE, nodeid, args: vec![&arg, data], reply: Some(8), ..Call::default() };
        let payload = self.call(&call)?;
        whole(&payload, "WRITE", |f| {
            let size = f.u32()?;
            f.u32()?;
            if size as usize > data.len() {
                let why = format!("WRITE of {} bytes says {size} were written", data.len());
                return Err(Fault::Device(Error::BadReply(why)));
            }
            Ok(size)
        })
    }

    /// FLUSH.
    pub fn flush(&mut self, nodeid: u64, fh: u64) -> Answer<()> {
        self.plain(op::FLUSH, nodeid, &Body::new().u64s(&[fh, 0, 0]).0)
    }

    /// FSYNC.
    pub fn fsync(&mut self, nodeid: u64, fh: u64, data_only: bool) -> Answer<()> {
        self.plain(op::FSYNC, nodeid, &Body::new().u64s(&[fh]).u32s(&[data_only.into(), 0]).0)
    }

    /// RELEASE.
    pub fn release(&mut self, nodeid: u64, fh: u64) -> Answer<()> {
        self.plain(op::RELEASE, nodeid, &Body::new().u64s(&[fh, 0, 0]).0)
    }

    /// OPENDIR.
    pub fn opendir(&mut self, nodeid: u64) -> Answer<Opened> {
        let payload = self.simple(op::OPENDIR, nodeid, &Body::new().u32s(&[libc::O_DIRECTORY as u32, 0]).0, 16)?;
        whole(&payload, "OPENDIR", Opened::read)
    }

    /// READDIR.
    pub fn readdir(&mut self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Answer<Vec<DirEntry>> {
        let payload = self.simple(op::READDIR, nodeid, &Self::read_arg(fh, offset, size), size)?;
        dir_entries(&payload, false)
    }

    /// READDIRPLUS; each entry but `.` and `..` adds a reference to its node.
    pub fn readdirplus(&mut self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Answer<Vec<DirEntry>> {
        let payload = self.simple(op::READDIRPLUS, nodeid, &Self::read_arg(fh, offset, size), size)?;
        dir_entries(&payload, true)
    }

    /// RELEASEDIR.
    pub fn releasedir(&mut self, nodeid: u64, fh: u64) -> Answer<()> {
        self.plain(op::RELEASEDIR, nodeid, &Body::new().u64s(&[fh, 0, 0]).0)
    }

    /// FSYNCDIR.
    pub fn fsyncdir(&mut self, nodeid: u64, fh: u64, data_only: bool) -> Answer<()> {
        self.plain(op::FSYNCDIR, nodeid, &Body::new().u64s(&[fh]).u32s(&[data_only.into(), 0]).0)
    }

    /// STATFS.
    pub fn statfs(&mut self, nodeid: u64) -> Answer<Statfs> {
        let payload = self.simple(op::STATFS, nodeid, &[], 80)?;
        whole(&payload, "STATFS", Statfs::read)
    }

    /// SYNCFS.
    pub fn syncfs(&mut self, nodeid: u64) -> Answer<()> {
        self.plain(op::SYNCFS, nodeid, &[0; 8])
    }

    /// ACCESS with `R_OK`, `W_OK`, `X_OK`.
    pub fn access(&mut self, nodeid: u64, mask: i32) -> Answer<()> {
        self.plain(op::ACCESS, nodeid, &Body::new().u32s(&[mask.cast_unsigned(), 0]).0)
    }

    /// LSEEK; the new offset.
    pub fn lseek(&mut self, nodeid: u64, fh: u64, offset: u64, whence: i32) -> Answer<u64> {
        let arg = Body::new().u64s(&[fh, offset]).u32s(&[whence.cast_unsigned(), 0]).0;
        let payload = self.simple(op::LSEEK, nodeid, &arg, 8)?;
        whole(&payload, "LSEEK", |f| f.u64())
    }

    /// FALLOCATE with `FALLOC_FL_*`.
    pub fn fallocate(&mut self, nodeid: u64, fh: u64, mode: i32, offset: u64, len: u64) -> Answer<()> {
        let arg = Body::new().u64s(&[fh, offset, len]).u32s(&[mode.cast_unsigned(), 0]).0;
        self.plain(op::FALLOCATE, nodeid, &arg)
    }

    /// COPY_FILE_RANGE between (node, handle, offset) triples; the number of bytes copied.
    pub fn copy_file_range(&mut self, from: (u64, u64, u64), to: (u64, u64, u64), len: u64, flags: u64) -> Answer<u32> {
        let arg = Body::new().u64s(&[from.1, from.2, to.0, to.1, to.2, len, flags]).0;
        let payload = self.simple(op::COPY_FILE_RANGE, from.0, &arg, 8)?;
        whole(&payload, "COPY_FILE_RANGE", |f| {
            let size = f.u32()?;
            f.u32()?;
            Ok(size)
        })
    }

    /// SETXATTR with `XATTR_*` flags.
    pub fn setxattr(&mut self, nodeid: u64, name: &[u8], value: &[u8], flags: i32) -> Answer<()> {
        let mut arg = Body::new().u32s(&[value.len() as u32, flags.cast_unsigned()]);
        if self.negotiated & init::SETXATTR_EXT != 0 {
            arg = arg.u32s(&[0, 0]);
        }
        self.plain(op::SETXATTR, nodeid, &arg.name(name).bytes(value).0)
    }

    /// GETXATTR of the value, at most `size` bytes.
    pub fn getxattr(&mut self, nodeid: u64, name: &[u8], size: u32) -> Answer<Vec<u8>> {
        self.simple(op::GETXATTR, nodeid, &Body::new().u32s(&[size, 0]).name(name).0, size.max(8))
    }

    /// GETXATTR with size 0: the length of the value.
    pub fn getxattr_len(&mut self, nodeid: u64, name: &[u8]) -> Answer<u32> {
        let payload = self.getxattr(nodeid, name, 0)?;
        whole(&payload, "GETXATTR", |f| {
            let size = f.u32()?;
            f.u32()?;
            Ok(size)
        })
    }

    /// LISTXATTR: NUL-terminated names, at most `size` bytes.
    pub fn listxattr(&mut self, nodeid: u64, size: u32) -> Answer<Vec<u8>> {
        self.simple(op::LISTXATTR, nodeid, &Body::new().u32s(&[size, 0]).0, size.max(8))
    }

    /// REMOVEXATTR.
    pub fn removexattr(&mut self, nodeid: u64, name: &[u8]) -> Answer<()> {
        self.plain(op::REMOVEXATTR, nodeid, &Body::new().name(name).0)
    }
}
