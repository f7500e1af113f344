//! A host directory, served by the `virtiofsd` crate's own file system.
//!
//! A share without a backend must behave as virtiofsd to the byte, so it *is* virtiofsd's file system: this module
//! translates between our trait and the crate's and adds nothing of its own, but for what a hostile guest would
//! otherwise turn against the daemon: the root cannot be forgotten, an attribute name that no rule of `--xattrmap`
//! matches is refused, and a panic inside the crate costs the request and not the queue.
//!
//! Every method blocks and is ready at first poll, so the crate's guards that belong to a thread (credentials, working
//! directory, umask) never outlive the poll. **Threads that poll these futures must have called
//! `unshare(CLONE_FS)`**: the crate changes working directory and umask of its thread.

mod convert;
mod stream;
#[cfg(test)]
mod tests;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use virtiofsd::filesystem::{
    self as crate_fs, DirectoryIterator, FileSystem as _, FsOptions, SerializableFileSystem, SetxattrFlags,
};
use virtiofsd::passthrough::read_only::PassthroughFsRo;
use virtiofsd::passthrough::xattrmap::XattrMap;
use virtiofsd::passthrough::{Config, PassthroughFs};

use crate::fs::{
    Attr, Context, DirSink, Entry, Errno, Extensions, FileAt, FileSystem, Handle, Migrate, NodeId, Opened, Read,
    Result, SetAttr, Sink, Source, StatFs, Write, XattrReply,
};
use convert::NameBuffer;
use stream::{SinkWriter, SourceReader};

/// A directory of the host.
pub struct Passthrough {
    inner: Inner,
    /// A copy of the crate's, to ask before the crate does: it panics over names that no rule matches.
    xattrmap: Option<XattrMap>,
}

enum Inner {
    ReadWrite(PassthroughFs),
    ReadOnly(PassthroughFsRo),
}

/// Calls a method of whichever file system it is, and turns what comes back into our terms.
macro_rules! call {
    ($self:ident, $($call:tt)*) => {
        guarded(|| match &$self.inner {
            Inner::ReadWrite(fs) => fs.$($call)*,
            Inner::ReadOnly(fs) => fs.$($call)*,
        })
    };
}

/// Runs a call into the crate. A panic in it becomes EIO; the panic hook has logged it.
fn guarded<T>(call: impl FnOnce() -> io::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(Errno::from),
        Err(_) => Err(Errno::EIO),
    }
}

/// A name or text for a system call.
fn c_string(text: &[u8]) -> Result<CString> {
    CString::new(text).map_err(|_| Errno::EINVAL)
}

/// Whether the map says anything about the name.
fn has_rule(map: Option<&XattrMap>, name: &CStr) -> bool {
    map.is_none_or(|map| map.map_client_xattr(name).is_ok())
}

impl Passthrough {
    /// Opens the share. Sets the process's umask to 0, as guests set all bits of a mode themselves.
    ///
    /// # Errors
    /// `/proc/self/fd` or `/proc/self/mountinfo` cannot be opened, an id map overlaps itself, file handles are
    /// mandatory and do not work, the attribute map has no rule for `security.capability`.
    pub fn new(cfg: Config, readonly: bool) -> io::Result<Passthrough> {
        let xattrmap = cfg.xattrmap.clone();
        if !has_rule(xattrmap.as_ref(), c"security.capability") {
            return Err(io::Error::other("The xattrmap has no rule that matches security.capability"));
        }
        let inner = if readonly {
            Inner::ReadOnly(PassthroughFsRo::new(cfg)?)
        } else {
            Inner::ReadWrite(PassthroughFs::new(cfg)?)
        };
        Ok(Passthrough { inner, xattrmap })
    }

    /// The name of an extended attribute.
    ///
    /// # Errors
    /// EOPNOTSUPP: no rule of the map matches it. EINVAL: a NUL inside.
    fn xattr_name(&self, name: &[u8]) -> Result<CString> {
        let name = c_string(name)?;
        if has_rule(self.xattrmap.as_ref(), &name) { Ok(name) } else { Err(Errno::EOPNOTSUPP) }
    }

    fn extensions(&self, ext: Extensions) -> Result<crate_fs::Extensions> {
        let secctx = match ext.security {
            Some((name, secctx)) => Some(crate_fs::SecContext { name: self.xattr_name(&name)?, secctx }),
            None => None,
        };
        Ok(crate_fs::Extensions { secctx, sup_gids: ext.groups.into_iter().map(Into::into).collect() })
    }

    /// Walks what is left of a directory from `offset`, as far as one getdents64(2) into `room` bytes goes, until
    /// `visit` says `false`.
    fn walk(
        &self,
        ctx: Context,
        (nodeid, handle, offset): (NodeId, Handle, u64),
        room: usize,
        mut visit: impl FnMut(&crate_fs::DirEntry<'_>) -> Result<bool>,
    ) -> Result<()> {
        let size = u32::try_from(room).unwrap_or(u32::MAX);
        let mut entries = call!(self, readdir(convert::context(ctx), nodeid.0, handle.0, size, offset))?;
        while let Some(entry) = entries.next() {
            if !visit(&entry)? {
                break;
            }
        }
        Ok(())
    }

    /// One entry of READDIRPLUS; `false` when it does not fit.
    fn add_plus(
        &self,
        ctx: Context,
        parent: NodeId,
        entry: &crate_fs::DirEntry<'_>,
        out: &mut impl DirSink,
    ) -> Result<bool> {
        let listed = convert::dir_entry(entry);
        if matches!(listed.name, b"." | b"..") {
            let attr = Attr { ino: listed.ino, mode: listed.kind << 12, ..Attr::default() };
            let (zero, nodeid) = (Duration::ZERO, NodeId(0));
            let dot = Entry { nodeid, generation: 0, attr, entry_timeout: zero, attr_timeout: zero };
            return Ok(out.add_plus(&listed, &dot));
        }
        if !out.fits_plus(listed.name.len()) {
            return Ok(false);
        }
        match call!(self, lookup(convert::context(ctx), parent.0, entry.name)) {
            Ok(found) => {
                let is_added = out.add_plus(&listed, &convert::entry(&found));
                if !is_added {
                    self.forget(NodeId(found.inode), 1);
                }
                Ok(is_added)
            }
            // It went away between the listing and the look-up; the rest is still there.
            Err(Errno::ENOENT) => Ok(true),
            Err(errno) => Err(errno),
        }
    }
}

impl FileSystem for Passthrough {
    async fn init(&self, offered: u64) -> Result<u64> {
        call!(self, init(FsOptions::from_bits_truncate(offered))).map(|wanted| wanted.bits())
    }

    async fn destroy(&self) {
        // Nothing can fail but by panic, which `guarded` takes.
        let _ = guarded(|| {
            match &self.inner {
                Inner::ReadWrite(fs) => fs.destroy(),
                Inner::ReadOnly(fs) => fs.destroy(),
            }
            Ok(())
        });
    }

    async fn lookup(&self, ctx: Context, parent: NodeId, name: &[u8]) -> Result<Entry> {
        let mut buffer = NameBuffer::default();
        let name = buffer.fill(name)?;
        call!(self, lookup(convert::context(ctx), parent.0, name)).map(|entry| convert::entry(&entry))
    }

    fn forget(&self, nodeid: NodeId, nlookup: u64) {
        if nodeid == NodeId::ROOT {
            return;
        }
        let ctx = convert::context(Context::default());
        let _ = guarded(|| {
            match &self.inner {
                Inner::ReadWrite(fs) => fs.forget(ctx, nodeid.0, nlookup),
                Inner::ReadOnly(fs) => fs.forget(ctx, nodeid.0, nlookup),
            }
            Ok(())
        });
    }

    async fn getattr(&self, ctx: Context, nodeid: NodeId, handle: Option<Handle>) -> Result<(Attr, Duration)> {
        let handle = handle.map(|handle| handle.0);
        let (attr, timeout) = call!(self, getattr(convert::context(ctx), nodeid.0, handle))?;
        Ok((convert::attr(&attr), timeout))
    }

    async fn setattr(&self, ctx: Context, nodeid: NodeId, change: SetAttr) -> Result<(Attr, Duration)> {
        let (wire, valid) = convert::setattr(&change);
        let handle = change.handle.map(|handle| handle.0);
        let (attr, timeout) = call!(self, setattr(convert::context(ctx), nodeid.0, wire, handle, valid))?;
        Ok((convert::attr(&attr), timeout))
    }

    async fn readlink(&self, ctx: Context, nodeid: NodeId) -> Result<Vec<u8>> {
        call!(self, readlink(convert::context(ctx), nodeid.0))
    }

    async fn symlink(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        target: &[u8],
        ext: Extensions,
    ) -> Result<Entry> {
        let mut buffer = NameBuffer::default();
        let (name, target) = (buffer.fill(name)?, c_string(target)?);
        let ext = self.extensions(ext)?;
        call!(self, symlink(convert::context(ctx), &target, parent.0, name, ext)).map(|entry| convert::entry(&entry))
    }

    async fn mknod(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        rdev: u32,
        umask: u32,
        ext: Extensions,
    ) -> Result<Entry> {
        let mut buffer = NameBuffer::default();
        let (name, ext) = (buffer.fill(name)?, self.extensions(ext)?);
        call!(self, mknod(convert::context(ctx), parent.0, name, mode, rdev, umask, ext))
            .map(|entry| convert::entry(&entry))
    }

    async fn mkdir(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        umask: u32,
        ext: Extensions,
    ) -> Result<Entry> {
        let mut buffer = NameBuffer::default();
        let (name, ext) = (buffer.fill(name)?, self.extensions(ext)?);
        call!(self, mkdir(convert::context(ctx), parent.0, name, mode, umask, ext)).map(|entry| convert::entry(&entry))
    }

    async fn unlink(&self, ctx: Context, parent: NodeId, name: &[u8]) -> Result<()> {
        let mut buffer = NameBuffer::default();
        let name = buffer.fill(name)?;
        call!(self, unlink(convert::context(ctx), parent.0, name))
    }

    async fn rmdir(&self, ctx: Context, parent: NodeId, name: &[u8]) -> Result<()> {
        let mut buffer = NameBuffer::default();
        let name = buffer.fill(name)?;
        call!(self, rmdir(convert::context(ctx), parent.0, name))
    }

    async fn rename(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        new_parent: NodeId,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        let (mut old_buffer, mut new_buffer) = (NameBuffer::default(), NameBuffer::default());
        let (name, new_name) = (old_buffer.fill(name)?, new_buffer.fill(new_name)?);
        call!(self, rename(convert::context(ctx), parent.0, name, new_parent.0, new_name, flags))
    }

    async fn link(&self, ctx: Context, nodeid: NodeId, new_parent: NodeId, new_name: &[u8]) -> Result<Entry> {
        let mut buffer = NameBuffer::default();
        let name = buffer.fill(new_name)?;
        call!(self, link(convert::context(ctx), nodeid.0, new_parent.0, name)).map(|entry| convert::entry(&entry))
    }

    async fn open(&self, ctx: Context, nodeid: NodeId, flags: u32, kill_priv: bool) -> Result<Opened> {
        let (handle, options) = call!(self, open(convert::context(ctx), nodeid.0, kill_priv, flags))?;
        Ok(convert::opened(handle, options))
    }

    async fn create(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        flags: u32,
        umask: u32,
        kill_priv: bool,
        ext: Extensions,
    ) -> Result<(Entry, Opened)> {
        let mut buffer = NameBuffer::default();
        let (name, ext) = (buffer.fill(name)?, self.extensions(ext)?);
        let (entry, handle, options) =
            call!(self, create(convert::context(ctx), parent.0, name, mode, kill_priv, flags, umask, ext))?;
        Ok((convert::entry(&entry), convert::opened(handle, options)))
    }

    async fn read(&self, ctx: Context, op: Read, out: &mut impl Sink) -> Result<usize> {
        let Read { nodeid, handle, offset, size, lock_owner, flags } = op;
        let out = SinkWriter(out);
        call!(self, read(convert::context(ctx), nodeid.0, handle.0, out, size, offset, lock_owner, flags))
    }

    async fn write(&self, ctx: Context, op: Write, data: &mut impl Source) -> Result<usize> {
        let Write { nodeid, handle, offset, size, lock_owner, delayed, kill_priv, flags } = op;
        let (ctx, data) = (convert::context(ctx), SourceReader(data));
        call!(self, write(ctx, nodeid.0, handle.0, data, size, offset, lock_owner, delayed, kill_priv, flags))
    }

    async fn flush(&self, ctx: Context, nodeid: NodeId, handle: Handle, lock_owner: u64) -> Result<()> {
        call!(self, flush(convert::context(ctx), nodeid.0, handle.0, lock_owner))
    }

    async fn fsync(&self, ctx: Context, nodeid: NodeId, handle: Handle, datasync: bool) -> Result<()> {
        call!(self, fsync(convert::context(ctx), nodeid.0, datasync, handle.0))
    }

    async fn release(
        &self,
        ctx: Context,
        nodeid: NodeId,
        handle: Handle,
        flags: u32,
        lock_owner: Option<u64>,
        flock_unlock: bool,
    ) -> Result<()> {
        let flush = lock_owner.is_some();
        call!(self, release(convert::context(ctx), nodeid.0, flags, handle.0, flush, flock_unlock, lock_owner))
    }

    async fn statfs(&self, ctx: Context, nodeid: NodeId) -> Result<StatFs> {
        call!(self, statfs(convert::context(ctx), nodeid.0)).map(|stat| convert::statfs(&stat))
    }

    async fn setxattr(
        &self,
        ctx: Context,
        nodeid: NodeId,
        name: &[u8],
        value: &[u8],
        flags: u32,
        extra: u32,
    ) -> Result<()> {
        let (name, extra) = (self.xattr_name(name)?, SetxattrFlags::from_bits_truncate(extra));
        call!(self, setxattr(convert::context(ctx), nodeid.0, &name, value, flags, extra))
    }

    async fn getxattr(&self, ctx: Context, nodeid: NodeId, name: &[u8], size: u32) -> Result<XattrReply> {
        let name = self.xattr_name(name)?;
        Ok(match call!(self, getxattr(convert::context(ctx), nodeid.0, &name, size))? {
            crate_fs::GetxattrReply::Value(value) => XattrReply::Data(value),
            crate_fs::GetxattrReply::Count(count) => XattrReply::Size(count),
        })
    }

    async fn listxattr(&self, ctx: Context, nodeid: NodeId, size: u32) -> Result<XattrReply> {
        Ok(match call!(self, listxattr(convert::context(ctx), nodeid.0, size))? {
            crate_fs::ListxattrReply::Names(names) => XattrReply::Data(names),
            crate_fs::ListxattrReply::Count(count) => XattrReply::Size(count),
        })
    }

    async fn removexattr(&self, ctx: Context, nodeid: NodeId, name: &[u8]) -> Result<()> {
        let name = self.xattr_name(name)?;
        call!(self, removexattr(convert::context(ctx), nodeid.0, &name))
    }

    async fn opendir(&self, ctx: Context, nodeid: NodeId, flags: u32) -> Result<Opened> {
        let (handle, options) = call!(self, opendir(convert::context(ctx), nodeid.0, flags))?;
        Ok(convert::opened(handle, options))
    }

    async fn readdir(
        &self,
        ctx: Context,
        nodeid: NodeId,
        handle: Handle,
        offset: u64,
        out: &mut impl DirSink,
    ) -> Result<()> {
        let room = out.room();
        self.walk(ctx, (nodeid, handle, offset), room, |entry| Ok(out.add(&convert::dir_entry(entry))))
    }

    async fn readdirplus(
        &self,
        ctx: Context,
        nodeid: NodeId,
        handle: Handle,
        offset: u64,
        out: &mut impl DirSink,
    ) -> Result<()> {
        let room = out.room();
        self.walk(ctx, (nodeid, handle, offset), room, |entry| self.add_plus(ctx, nodeid, entry, out))
    }

    async fn fsyncdir(&self, ctx: Context, nodeid: NodeId, handle: Handle, datasync: bool) -> Result<()> {
        call!(self, fsyncdir(convert::context(ctx), nodeid.0, datasync, handle.0))
    }

    async fn releasedir(&self, ctx: Context, nodeid: NodeId, handle: Handle, flags: u32) -> Result<()> {
        call!(self, releasedir(convert::context(ctx), nodeid.0, flags, handle.0))
    }

    async fn access(&self, ctx: Context, nodeid: NodeId, mask: u32) -> Result<()> {
        call!(self, access(convert::context(ctx), nodeid.0, mask))
    }

    async fn lseek(&self, ctx: Context, at: FileAt, whence: u32) -> Result<u64> {
        call!(self, lseek(convert::context(ctx), at.nodeid.0, at.handle.0, at.offset, whence))
    }

    async fn fallocate(&self, ctx: Context, at: FileAt, length: u64, mode: u32) -> Result<()> {
        call!(self, fallocate(convert::context(ctx), at.nodeid.0, at.handle.0, mode, at.offset, length))
    }

    async fn copy_file_range(&self, ctx: Context, from: FileAt, to: FileAt, len: u64, flags: u64) -> Result<usize> {
        let (ctx, from_inode, to_inode) = (convert::context(ctx), from.nodeid.0, to.nodeid.0);
        let (from_handle, to_handle) = (from.handle.0, to.handle.0);
        call!(
            self,
            copyfilerange(ctx, from_inode, from_handle, from.offset, to_inode, to_handle, to.offset, len, flags)
        )
    }

    async fn syncfs(&self, ctx: Context, nodeid: NodeId) -> Result<()> {
        call!(self, syncfs(convert::context(ctx), nodeid.0))
    }
}

impl Migrate for Passthrough {
    fn prepare_save(&self, cancel: &Arc<AtomicBool>) {
        match &self.inner {
            Inner::ReadWrite(fs) => fs.prepare_serialization(Arc::clone(cancel)),
            Inner::ReadOnly(fs) => fs.prepare_serialization(Arc::clone(cancel)),
        }
    }

    fn save(&self, pipe: File) -> io::Result<()> {
        match &self.inner {
            Inner::ReadWrite(fs) => fs.serialize(pipe),
            Inner::ReadOnly(fs) => fs.serialize(pipe),
        }
    }

    fn load(&self, pipe: File) -> io::Result<()> {
        match &self.inner {
            Inner::ReadWrite(fs) => fs.deserialize_and_apply(pipe),
            Inner::ReadOnly(fs) => fs.deserialize_and_apply(pipe),
        }
    }
}
