//! The narrow waist: what a FUSE server asks of a file system, in our own types.
//!
//! `fuse` calls it, `passthrough` and `objectfs` implement it, and it depends on neither. Methods are `async`
//! with static dispatch: a queue worker polls each future once, so an answer that is at hand costs a function
//! call, and one that waits for a store is parked without a thread (`device`).
//!
//! Names arrive validated: not empty, not `.` or `..`, no `/`, no NUL, at most 255 bytes. Offsets and sizes
//! arrive below 2^63. No future may hold a lock or a thread-bound guard across an await.
//!
//! Lookup counts: every [`Entry`] with a nodeid other than 0 that reaches the guest (LOOKUP, CREATE, MKDIR, MKNOD,
//! SYMLINK, LINK, READDIRPLUS) raises its inode's count by one; FORGET lowers it. An inode lives while its count is above zero,
//! whatever happens to its names.

pub mod errno;
pub mod flags;
pub mod io;
pub mod readonly;
pub mod types;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use errno::{Errno, Result};
pub use io::{DirSink, Sink, Source};
pub use types::*;

/// A file that is not stored at the end.
#[derive(Debug, PartialEq, Eq)]
pub struct Unstored {
    /// Its path.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// Why it is lost; `None`: it is kept for later.
    pub lost: Option<String>,
}

/// A file system that a FUSE server can serve. Every method's default refuses with ENOSYS, which the guest
/// kernel remembers for the life of the mount.
#[allow(unused_variables, reason = "defaults name their parameters for the reader")]
pub trait FileSystem: Send + Sync + 'static {
    /// Chooses among the optional FUSE_INIT flags ([`flags::init`]) that the guest offers; the others are the server's. A second call starts
    /// afresh: all handles and inodes of the session before are gone, dirty data excepted, which is flushed.
    ///
    /// # Errors
    /// EPROTO when the guest lacks a flag that the configuration insists on.
    fn init(&self, offered: u64) -> impl Future<Output = Result<u64>> + Send;

    /// Ends the session (FUSE_DESTROY, vhost-user RESET_DEVICE): drops handles and inodes, flushes dirty data first.
    fn destroy(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// Makes everything acknowledged durable, as far as `deadline` allows; on shutdown, disconnect, ring stop and
    /// migration. Returns how many bytes could not be stored.
    fn flush_all(&self, deadline: Duration) -> impl Future<Output = u64> + Send {
        async { 0 }
    }

    /// Bytes of files that are not stored yet and may still be.
    fn unstored(&self) -> u64 {
        0
    }

    /// Has what is not stored kept elsewhere, because the end has come. Returns each file, with its path and length, and
    /// whether that was done.
    fn keep_unstored(&self) -> impl Future<Output = Vec<Unstored>> + Send {
        async { Vec::new() }
    }

    /// FUSE_LOOKUP.
    ///
    /// # Errors
    /// ENOENT: no such name. ENOTDIR: `parent` is no directory. EBADF: unknown nodeid.
    fn lookup(&self, ctx: Context, parent: NodeId, name: &[u8]) -> impl Future<Output = Result<Entry>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_FORGET and one item of FUSE_BATCH_FORGET. Never waits, never fails; counts saturate and the root stays.
    fn forget(&self, nodeid: NodeId, nlookup: u64) {}

    /// FUSE_GETATTR: the attributes and how long they may be trusted.
    fn getattr(
        &self,
        ctx: Context,
        nodeid: NodeId,
        handle: Option<Handle>,
    ) -> impl Future<Output = Result<(Attr, Duration)>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_SETATTR.
    fn setattr(
        &self,
        ctx: Context,
        nodeid: NodeId,
        change: SetAttr,
    ) -> impl Future<Output = Result<(Attr, Duration)>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_READLINK: the target, without NUL.
    fn readlink(&self, ctx: Context, nodeid: NodeId) -> impl Future<Output = Result<Vec<u8>>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_SYMLINK. `target` is any non-empty byte string without NUL.
    fn symlink(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        target: &[u8],
        ext: Extensions,
    ) -> impl Future<Output = Result<Entry>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_MKNOD; `mode` holds type and permission bits, `umask` the caller's mask.
    #[allow(clippy::too_many_arguments, reason = "the wire's fields")]
    fn mknod(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        rdev: u32,
        umask: u32,
        ext: Extensions,
    ) -> impl Future<Output = Result<Entry>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_MKDIR.
    fn mkdir(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        umask: u32,
        ext: Extensions,
    ) -> impl Future<Output = Result<Entry>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_UNLINK.
    fn unlink(&self, ctx: Context, parent: NodeId, name: &[u8]) -> impl Future<Output = Result<()>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_RMDIR.
    fn rmdir(&self, ctx: Context, parent: NodeId, name: &[u8]) -> impl Future<Output = Result<()>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_RENAME and FUSE_RENAME2; `flags` are RENAME_* of renameat2(2), unknown ones already dropped.
    fn rename(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        new_parent: NodeId,
        new_name: &[u8],
        flags: u32,
    ) -> impl Future<Output = Result<()>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_LINK.
    fn link(
        &self,
        ctx: Context,
        nodeid: NodeId,
        new_parent: NodeId,
        new_name: &[u8],
    ) -> impl Future<Output = Result<Entry>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_OPEN; `flags` are open(2)'s, without O_CREAT and O_EXCL.
    fn open(
        &self,
        ctx: Context,
        nodeid: NodeId,
        flags: u32,
        kill_priv: bool,
    ) -> impl Future<Output = Result<Opened>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_CREATE: creates if need be and opens. With O_EXCL in `flags`, EEXIST when the name is there.
    #[allow(clippy::too_many_arguments, reason = "the wire's fields")]
    fn create(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        flags: u32,
        umask: u32,
        kill_priv: bool,
        ext: Extensions,
    ) -> impl Future<Output = Result<(Entry, Opened)>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_READ: puts at most `op.size` bytes into `out`; fewer only at end of file. Returns the count.
    fn read(&self, ctx: Context, op: Read, out: &mut impl Sink) -> impl Future<Output = Result<usize>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_WRITE: takes `op.size` bytes from `data`. Returns the count.
    fn write(&self, ctx: Context, op: Write, data: &mut impl Source) -> impl Future<Output = Result<usize>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_FLUSH: one descriptor of the open file is being closed; reports upload errors.
    fn flush(
        &self,
        ctx: Context,
        nodeid: NodeId,
        handle: Handle,
        lock_owner: u64,
    ) -> impl Future<Output = Result<()>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_FSYNC.
    fn fsync(
        &self,
        ctx: Context,
        nodeid: NodeId,
        handle: Handle,
        datasync: bool,
    ) -> impl Future<Output = Result<()>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_RELEASE: the last descriptor is closed; the handle ends whatever the result.
    fn release(
        &self,
        ctx: Context,
        nodeid: NodeId,
        handle: Handle,
        flags: u32,
        lock_owner: Option<u64>,
        flock_unlock: bool,
    ) -> impl Future<Output = Result<()>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_STATFS.
    fn statfs(&self, ctx: Context, nodeid: NodeId) -> impl Future<Output = Result<StatFs>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_SETXATTR; `flags` are XATTR_*, `extra` FUSE_SETXATTR_*.
    fn setxattr(
        &self,
        ctx: Context,
        nodeid: NodeId,
        name: &[u8],
        value: &[u8],
        flags: u32,
        extra: u32,
    ) -> impl Future<Output = Result<()>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_GETXATTR; `size` 0 asks for the length.
    fn getxattr(
        &self,
        ctx: Context,
        nodeid: NodeId,
        name: &[u8],
        size: u32,
    ) -> impl Future<Output = Result<XattrReply>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_LISTXATTR; `size` 0 asks for the length.
    fn listxattr(&self, ctx: Context, nodeid: NodeId, size: u32) -> impl Future<Output = Result<XattrReply>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_REMOVEXATTR.
    fn removexattr(&self, ctx: Context, nodeid: NodeId, name: &[u8]) -> impl Future<Output = Result<()>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_OPENDIR.
    fn opendir(&self, ctx: Context, nodeid: NodeId, flags: u32) -> impl Future<Output = Result<Opened>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_READDIR: entries after cookie `offset` (0: from the start), as many as `out` takes.
    fn readdir(
        &self,
        ctx: Context,
        nodeid: NodeId,
        handle: Handle,
        offset: u64,
        out: &mut impl DirSink,
    ) -> impl Future<Output = Result<()>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_READDIRPLUS: as READDIR, with a lookup of each entry; `.` and `..` carry nodeid 0.
    fn readdirplus(
        &self,
        ctx: Context,
        nodeid: NodeId,
        handle: Handle,
        offset: u64,
        out: &mut impl DirSink,
    ) -> impl Future<Output = Result<()>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_FSYNCDIR.
    fn fsyncdir(
        &self,
        ctx: Context,
        nodeid: NodeId,
        handle: Handle,
        datasync: bool,
    ) -> impl Future<Output = Result<()>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_RELEASEDIR.
    fn releasedir(
        &self,
        ctx: Context,
        nodeid: NodeId,
        handle: Handle,
        flags: u32,
    ) -> impl Future<Output = Result<()>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_ACCESS; `mask` is access(2)'s.
    fn access(&self, ctx: Context, nodeid: NodeId, mask: u32) -> impl Future<Output = Result<()>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_LSEEK: the new offset; `whence` is lseek(2)'s.
    fn lseek(&self, ctx: Context, at: FileAt, whence: u32) -> impl Future<Output = Result<u64>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_FALLOCATE; `mode` is fallocate(2)'s.
    fn fallocate(&self, ctx: Context, at: FileAt, length: u64, mode: u32) -> impl Future<Output = Result<()>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_COPY_FILE_RANGE: bytes copied.
    fn copy_file_range(
        &self,
        ctx: Context,
        from: FileAt,
        to: FileAt,
        len: u64,
        flags: u64,
    ) -> impl Future<Output = Result<usize>> + Send {
        async { Err(Errno::ENOSYS) }
    }

    /// FUSE_SYNCFS.
    fn syncfs(&self, ctx: Context, nodeid: NodeId) -> impl Future<Output = Result<()>> + Send {
        async { Err(Errno::ENOSYS) }
    }
}

/// Device state for live migration (vhost-user DEVICE_STATE): what `device` asks of a file system that can move.
pub trait Migrate: Send + Sync + 'static {
    /// Collects what can be collected while the guest still runs; returns early once `cancel` turns true. Blocks.
    fn prepare_save(&self, cancel: &Arc<AtomicBool>);

    /// Writes the state to `pipe`. Blocks; the rings are stopped.
    ///
    /// # Errors
    /// Any; its text goes to the log and CHECK_DEVICE_STATE answers failure.
    fn save(&self, pipe: std::fs::File) -> std::io::Result<()>;

    /// Reads state from `pipe` up to its end and takes it over. Blocks.
    ///
    /// # Errors
    /// As [`Migrate::save`].
    fn load(&self, pipe: std::fs::File) -> std::io::Result<()>;
}
