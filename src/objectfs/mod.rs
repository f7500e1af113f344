//! A store as a file system: nodeids, names, handles, directories, attributes.
//!
//! `tree` knows names, `inode` and `content` what stands behind them, `handles` what is open, `listings` what was listed of
//! directories lately, `scan` what an open one has told; `lookup`, `open`, `read`, `write`, `upload` (`flow` for long files), `remove`,
//! `rename` and `readdir` are the operations. What POSIX keeps of a file beside its bytes is in `attributes`, reached
//! by `xattr` and `special` too, and brought to the store by `upload` and `save`. File data lies in the pool (`cache`); the store is reached
//! through [`Remote`]. Knows neither virtio nor OpenDAL.
//!
//! What a guest may rely on: close(2) and fsync(2) return when the store has the bytes, or say why not; an open file
//! shows one version of an object, or ESTALE; opening a file asks the store for its newest version.
//!
//! Locks, in this order: `Core::renaming`, an inode's `upload` (several: by number), a directory handle's listing, then, never
//! across an await, the tree, then an inode's state, then the cache's own.

mod attributes;
mod conflict;
mod content;
mod copy;
mod core;
mod deletions;
mod due;
mod errno;
mod flow;
mod handles;
mod ids;
mod inode;
mod listings;
mod lookup;
mod open;
mod read;
mod readdir;
mod remove;
mod rename;
mod save;
mod scan;
mod special;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod tree;
mod upload;
mod write;
mod writeback;
mod xattr;

use std::sync::Arc;
use std::time::Duration;

use self::core::Core;
pub use self::core::{CachePolicy, Config, OnConflict};
pub use self::ids::Ids;
use crate::cache::Part;
use crate::fs::{
    Attr, Context, DirSink, Entry, Errno, Extensions, FileAt, FileSystem, Handle, NodeId, Opened, Read, Result,
    SetAttr, Sink, Source, StatFs, Unstored, Write, XattrReply,
};
use crate::store::{Capabilities, Pool, Remote, Store};

/// How long the end of a session waits for dirty files.
const SESSION_END: Duration = Duration::from_secs(30);

/// A store as a file system.
pub struct ObjectFs<S: Store> {
    core: Arc<Core<S>>,
    retrier: upload::Retrier,
    saver: Option<due::Follower>,
    writeback: Option<due::Follower>,
}

impl<S: Store> ObjectFs<S> {
    /// A file system over `remote`, which can do `capabilities`, with file data in `pool`.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn new(
        config: Config,
        remote: Remote<S>,
        capabilities: Capabilities,
        pool: Arc<Pool>,
    ) -> std::io::Result<ObjectFs<S>> {
        ObjectFs::with_ids(config, Arc::default(), remote, capabilities, pool)
    }

    /// As [`ObjectFs::new`], with owners translated between guest and store, and with file data in a part of the pool.
    ///
    /// # Errors
    /// As [`ObjectFs::new`].
    pub fn with_ids(
        config: Config,
        ids: Arc<Ids>,
        remote: Remote<S>,
        capabilities: Capabilities,
        memory: impl Into<Part>,
    ) -> std::io::Result<ObjectFs<S>> {
        let core = Core::new(config, ids, remote, capabilities, memory.into())?;
        let retrier = upload::Retrier::start(Arc::downgrade(&core))?;
        let follow = due::Follower::start;
        let saver = || follow("ovfs-attributes", &core, &core.pending, Core::save_due);
        let saver = config.posix.then(saver).transpose()?;
        let writeback = || follow("ovfs-writeback", &core, &core.closed_files, Core::write_back);
        let writeback = (!config.writeback_delay.is_zero()).then(writeback).transpose()?;
        Ok(ObjectFs { core, retrier, saver, writeback })
    }

    /// How long names and attributes may be trusted from now on, under [`CachePolicy::Auto`].
    pub fn set_expiration(&self, time: Duration) {
        self.core.set_expiration(time);
    }

    /// Nobody uses it any more: closes and forgets everything, lets go of all memory, and ends its threads but one, which has
    /// nothing to do. Returns whether nothing is left; while it is not, requests are still under way.
    pub fn retire(&self) -> bool {
        self.retrier.stop();
        self.saver.iter().chain(&self.writeback).for_each(due::Follower::stop);
        for file in self.core.handles.close_all() {
            self.core.closed(&file);
        }
        self.core.drop_refused();
        self.core.tree().forget_all();
        self.core.clean.clear();
        self.core.blocks.free_bytes() == self.core.blocks.len()
    }

    async fn end_session(&self) {
        let (left, _) = self.core.upload_all(SESSION_END).await;
        if left > 0 {
            log::error!("end of session: {left} bytes are not in the store yet; they will be tried again");
        }
        for file in self.core.handles.close_all() {
            self.core.closed(&file);
        }
        self.core.tree().forget_all();
    }
}

impl<S: Store> FileSystem for ObjectFs<S> {
    async fn init(&self, offered: u64) -> Result<u64> {
        self.end_session().await;
        Ok(self.core.config.init_flags() & offered)
    }

    async fn destroy(&self) {
        self.end_session().await;
    }

    async fn flush_all(&self, deadline: Duration) -> u64 {
        self.core.upload_all(deadline).await.0
    }

    fn unstored(&self) -> u64 {
        self.core.unstored()
    }

    async fn keep_unstored(&self) -> Vec<Unstored> {
        self.core.keep_unstored().await
    }

    async fn lookup(&self, _: Context, parent: NodeId, name: &[u8]) -> Result<Entry> {
        self.core.lookup(parent, name).await
    }

    fn forget(&self, nodeid: NodeId, nlookup: u64) {
        self.core.tree().forget(nodeid, nlookup);
    }

    async fn getattr(&self, _: Context, nodeid: NodeId, _: Option<Handle>) -> Result<(Attr, Duration)> {
        self.core.getattr(nodeid).await
    }

    async fn setattr(&self, _: Context, nodeid: NodeId, change: SetAttr) -> Result<(Attr, Duration)> {
        self.core.setattr(nodeid, change).await
    }

    async fn readlink(&self, _: Context, nodeid: NodeId) -> Result<Vec<u8>> {
        self.core.readlink(nodeid).await
    }

    async fn symlink(&self, ctx: Context, parent: NodeId, name: &[u8], target: &[u8], _: Extensions) -> Result<Entry> {
        self.core.symlink(ctx, parent, name, target).await
    }

    async fn mknod(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        _: u32,
        umask: u32,
        _: Extensions,
    ) -> Result<Entry> {
        self.core.mknod(ctx, parent, name, mode, umask).await
    }

    async fn mkdir(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        umask: u32,
        _: Extensions,
    ) -> Result<Entry> {
        self.core.mkdir(ctx, parent, name, (mode, umask)).await
    }

    async fn unlink(&self, _: Context, parent: NodeId, name: &[u8]) -> Result<()> {
        self.core.unlink(parent, name).await
    }

    async fn rmdir(&self, _: Context, parent: NodeId, name: &[u8]) -> Result<()> {
        self.core.rmdir(parent, name).await
    }

    async fn rename(
        &self,
        _: Context,
        parent: NodeId,
        name: &[u8],
        new_parent: NodeId,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        self.core.rename(parent, name, new_parent, new_name, flags).await
    }

    async fn link(&self, _: Context, _: NodeId, _: NodeId, _: &[u8]) -> Result<Entry> {
        Err(Errno::EPERM)
    }

    async fn open(&self, _: Context, nodeid: NodeId, flags: u32, _: bool) -> Result<Opened> {
        self.core.open(nodeid, flags).await
    }

    async fn create(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        flags: u32,
        umask: u32,
        _: bool,
        _: Extensions,
    ) -> Result<(Entry, Opened)> {
        self.core.create(ctx, parent, name, flags, (mode, umask)).await
    }

    async fn read(&self, _: Context, op: Read, out: &mut impl Sink) -> Result<usize> {
        self.core.read(op, out).await
    }

    async fn write(&self, _: Context, op: Write, data: &mut impl Source) -> Result<usize> {
        self.core.write(op, data).await
    }

    async fn flush(&self, _: Context, nodeid: NodeId, handle: Handle, _: u64) -> Result<()> {
        self.core.flush(nodeid, handle).await
    }

    async fn fsync(&self, _: Context, nodeid: NodeId, handle: Handle, _: bool) -> Result<()> {
        self.core.fsync(nodeid, handle).await
    }

    async fn release(&self, _: Context, nodeid: NodeId, handle: Handle, _: u32, _: Option<u64>, _: bool) -> Result<()> {
        self.core.release(nodeid, handle).await
    }

    async fn statfs(&self, _: Context, nodeid: NodeId) -> Result<StatFs> {
        self.core.inode(nodeid)?;
        Ok(self.core.config.statfs())
    }

    async fn opendir(&self, _: Context, nodeid: NodeId, _: u32) -> Result<Opened> {
        self.core.opendir(nodeid).await
    }

    async fn readdir(
        &self,
        _: Context,
        nodeid: NodeId,
        handle: Handle,
        offset: u64,
        out: &mut impl DirSink,
    ) -> Result<()> {
        self.core.readdir(nodeid, handle, offset, false, out).await
    }

    async fn readdirplus(
        &self,
        _: Context,
        nodeid: NodeId,
        handle: Handle,
        offset: u64,
        out: &mut impl DirSink,
    ) -> Result<()> {
        self.core.readdir(nodeid, handle, offset, true, out).await
    }

    async fn fsyncdir(&self, _: Context, nodeid: NodeId, handle: Handle, _: bool) -> Result<()> {
        let dir = self.core.handles.dir(nodeid, handle)?;
        self.core.upload(&dir.inode).await?;
        self.core.settle_all().await
    }

    async fn releasedir(&self, _: Context, nodeid: NodeId, handle: Handle, _: u32) -> Result<()> {
        self.core.releasedir(nodeid, handle).await
    }

    async fn access(&self, ctx: Context, nodeid: NodeId, mask: u32) -> Result<()> {
        self.core.access(ctx, nodeid, mask)
    }

    async fn setxattr(&self, _: Context, nodeid: NodeId, name: &[u8], value: &[u8], flags: u32, _: u32) -> Result<()> {
        self.core.setxattr(nodeid, name, value, flags).await
    }

    async fn getxattr(&self, _: Context, nodeid: NodeId, name: &[u8], size: u32) -> Result<XattrReply> {
        self.core.getxattr(nodeid, name, size).await
    }

    async fn listxattr(&self, _: Context, nodeid: NodeId, size: u32) -> Result<XattrReply> {
        self.core.listxattr(nodeid, size).await
    }

    async fn removexattr(&self, _: Context, nodeid: NodeId, name: &[u8]) -> Result<()> {
        self.core.removexattr(nodeid, name).await
    }

    async fn lseek(&self, _: Context, at: FileAt, whence: u32) -> Result<u64> {
        self.core.lseek(at, whence)
    }

    async fn fallocate(&self, _: Context, at: FileAt, length: u64, mode: u32) -> Result<()> {
        self.core.fallocate(at, length, mode).await
    }

    async fn copy_file_range(&self, _: Context, from: FileAt, to: FileAt, len: u64, flags: u64) -> Result<usize> {
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        self.core.copy_file_range(from, to, len).await
    }

    async fn syncfs(&self, _: Context, nodeid: NodeId) -> Result<()> {
        self.core.inode(nodeid)?;
        match self.core.upload_all(SESSION_END).await {
            (_, Some(error)) => Err(error),
            (_, None) => Ok(()),
        }
    }
}
