//! Opening, closing, and making files.

use std::sync::Arc;
use std::time::Instant;

use super::attributes::Birth;
use super::core::{CachePolicy, Core};
use super::handles::OpenFile;
use super::inode::Inode;
use super::listings::JUST_NOW;
use super::stream::Streams;
use crate::fs::flags::fopen;
use crate::fs::{Context, Entry, Errno, Handle, NodeId, Opened, Result};
use crate::store::{Kind, Store};

/// Files of up to so many bytes come whole when they are opened to be read: as many as the guest's kernel asks for with its first
/// read ahead, so that the request that tells the version moves no byte that the next would not.
const SMALL: u64 = 128 << 10;

/// open(2)'s access mode: may it read, may it write.
fn access(flags: u32) -> (bool, bool) {
    match flags as i32 & libc::O_ACCMODE {
        libc::O_RDONLY => (true, false),
        libc::O_WRONLY => (false, true),
        _ => (true, true),
    }
}

impl<S: Store> Core<S> {
    /// FUSE_OPEN: finds out which version is the newest (close-to-open), then opens that.
    pub(super) async fn open(&self, nodeid: NodeId, flags: u32) -> Result<Opened> {
        let inode = self.inode(nodeid)?;
        inode.regular()?;
        let truncate = flags as i32 & libc::O_TRUNC != 0;
        match self.newest(&inode, flags).await {
            // The guest opens by number: what was unlinked meanwhile is still open to those who hold it.
            Err(Errno::ENOENT) => return Err(Errno::ESTALE),
            other => other?,
        }
        {
            let state = inode.state();
            if state.unlinked && state.open == 0 {
                // Nobody held its bytes.
                return Err(Errno::ESTALE);
            }
        }
        let truncate = truncate && access(flags).1;
        if truncate {
            self.end_sending(&inode, 0, u64::MAX).await;
        }
        let opened = self.open_inode(&inode, flags)?;
        if truncate {
            let mut state = inode.state();
            state.content.truncate(0);
            state.touch();
        }
        Ok(opened)
    }

    /// Makes sure that what is known of `inode` is its newest version. open(2) begins with looking the name up, and an answer of
    /// just now is not asked for again. A small file that is opened to be read comes whole, if it still is of the version
    /// that is known: then that is all there is to ask.
    async fn newest(&self, inode: &Arc<Inode>, flags: u32) -> Result<()> {
        let (just_now, base) = {
            let mut state = inode.state();
            let just_now = state.looked_up.take().is_some_and(|at| at.elapsed() < JUST_NOW);
            let settled = !state.is_local() && !state.moved && state.hidden.is_none();
            (just_now && self.is_fresh(state.asked), state.content.base().filter(|_| settled).cloned())
        };
        if just_now {
            return Ok(());
        }
        let whole = base.filter(|base| {
            let small = (1..=SMALL).contains(&base.version.size) && base.version.etag.is_some();
            // Then reading proves nothing.
            let small = small && !self.capabilities.cached_here;
            small && access(flags) == (true, false) && flags as i32 & libc::O_TRUNC == 0
        });
        if let Some(base) = whole
            && self.clean.get(base.id, 0).is_none()
        {
            let asked = Instant::now();
            if self.block(inode, &base, 0, 0..base.version.size).await.is_ok() {
                let mut state = inode.state();
                if state.content.base() == Some(&base) && state.asked.is_none_or(|at| at < asked) {
                    state.asked_for_object(asked);
                }
                return Ok(());
            }
        }
        self.revalidate(inode).await
    }

    fn open_inode(&self, inode: &Arc<Inode>, flags: u32) -> Result<Opened> {
        let (readable, writable) = access(flags);
        let lineage = inode.state().content.lineage();
        let handle = self.handles.open_file(OpenFile {
            inode: Arc::clone(inode),
            lineage,
            // A guest that collects writes reads around them through any handle.
            readable: readable || self.config.writeback,
            writable,
            append: flags as i32 & libc::O_APPEND != 0,
            streams: Streams::new(Arc::clone(&self.reading_ahead), self.config.block_size),
        })?;
        let mut state = inode.state();
        state.open += 1;
        state.writers += u32::from(writable);
        let unchanged = state.cached.replace(lineage) == Some(lineage);
        let flags = match self.config.cache {
            CachePolicy::Never | CachePolicy::Metadata => fopen::DIRECT_IO,
            // The store was just asked, so even a guest that trusts everything need not keep what is out of date.
            CachePolicy::Auto | CachePolicy::Always => u32::from(unchanged) * fopen::KEEP_CACHE,
        };
        Ok(Opened { handle: Some(handle), flags })
    }

    /// FUSE_CREATE: opens what is there, or makes an empty file, which reaches the store when it is closed or synced.
    pub(super) async fn create(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        flags: u32,
        (mode, umask): (u32, u32),
    ) -> Result<(Entry, Opened)> {
        let name = Self::new_name(parent, name)?;
        let exclusive = flags as i32 & libc::O_EXCL != 0;
        match self.learn(parent, name).await {
            Ok(inode) => {
                let opened = if exclusive { Err(Errno::EEXIST) } else { self.open_learnt(&inode, flags).await };
                if opened.is_err() {
                    self.tree().forget(inode.id, 1);
                }
                return Ok((self.entry(&inode), opened?));
            }
            Err(Errno::ENOENT) => {}
            Err(other) => return Err(other),
        }
        let birth = self.birth(ctx, parent, libc::S_IFREG, mode, umask)?;
        let inode = self.new_file(parent, name, exclusive, birth)?;
        let opened = self.open_inode(&inode, flags);
        let mut tree = self.tree();
        if opened.is_err() {
            tree.detach(inode.id);
        } else {
            // It is open, so it is there.
            tree.remember(inode.id);
        }
        drop(tree);
        Ok((self.entry(&inode), opened?))
    }

    async fn open_learnt(&self, inode: &Inode, flags: u32) -> Result<Opened> {
        inode.regular()?;
        self.open(inode.id, flags).await
    }

    pub(super) fn new_file(&self, parent: NodeId, name: &str, exclusive: bool, birth: Birth) -> Result<Arc<Inode>> {
        if !self.capabilities.write {
            return Err(Errno::EROFS);
        }
        let mut tree = self.tree();
        crate::store::path::check_path(&tree.path_of(parent, name)?)?;
        tree.create(parent, name, exclusive, birth)
    }

    /// FUSE_FLUSH: a descriptor is closed. What it wrote is in the store when this returns.
    pub(super) async fn flush(&self, nodeid: NodeId, handle: Handle) -> Result<()> {
        let file = self.handles.file(nodeid, handle)?;
        if Self::stores_nothing(&file) { Ok(()) } else { self.store_closed(&file.inode).await }
    }

    /// Whether closing `file` brings nothing to the store: it was only read, and is not new.
    fn stores_nothing(file: &OpenFile) -> bool {
        !file.writable && file.inode.state().content.base().is_some()
    }

    /// FUSE_FSYNC.
    pub(super) async fn fsync(&self, nodeid: NodeId, handle: Handle) -> Result<()> {
        let file = self.handles.file(nodeid, handle)?;
        self.upload(&file.inode).await?;
        let mut state = file.inode.state();
        state.stored_late();
        state.unreported.take().map_or(Ok(()), Err)
    }

    /// FUSE_RELEASE.
    pub(super) async fn release(&self, nodeid: NodeId, handle: Handle) -> Result<()> {
        let file = self.handles.file(nodeid, handle)?;
        self.handles.close_file(handle);
        let result = if Self::stores_nothing(&file) { Ok(()) } else { self.store_closed(&file.inode).await };
        self.closed(&file);
        self.give_up_refused(&file.inode);
        result
    }

    /// Counts a handle as closed; the last one lets an unlinked file go.
    pub(super) fn closed(&self, file: &OpenFile) {
        let hidden = {
            let mut state = file.inode.state();
            state.open = state.open.saturating_sub(1);
            state.writers = state.writers.saturating_sub(u32::from(file.writable));
            if state.open == 0 && state.unlinked {
                state.let_go();
                state.hidden.take()
            } else {
                None
            }
        };
        if let Some(path) = hidden {
            self.discard_hidden(path);
        }
        self.tree().reap(file.inode.id);
    }

    /// Deletes a hidden object that nobody reads any more; nobody waits for it.
    pub(super) fn discard_hidden(&self, path: String) {
        self.spawn(|core| async move {
            if let Err(error) = core.remote.delete(path.clone()).await {
                log::warn!("object {path:?} of a deleted file stays behind: {error}");
            }
        });
    }

    /// FUSE_ACCESS, which the guest kernel only sends where it does not check modes itself. Where the mount keeps no owners,
    /// everybody may do everything, but run what is not executable.
    pub(super) fn access(&self, ctx: Context, nodeid: NodeId, mask: u32) -> Result<()> {
        let inode = self.inode(nodeid)?;
        let attr = self.attr(&inode);
        let wanted = mask & 0o7;
        let allowed = if attr.mode & 0o111 != 0 || inode.kind == Kind::Dir { 0o7 } else { 0o6 };
        let allowed = match ctx.uid {
            _ if !self.config.posix => allowed,
            0 => allowed,
            uid if uid == attr.uid => attr.mode >> 6 & 0o7,
            _ if ctx.gid == attr.gid => attr.mode >> 3 & 0o7,
            _ => attr.mode & 0o7,
        };
        if wanted & !allowed == 0 { Ok(()) } else { Err(Errno::EACCES) }
    }
}
