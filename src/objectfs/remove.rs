//! Making directories, and taking names away.

use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;

use super::conflict::is_conflict;
use super::core::Core;
use super::inode::Inode;
use super::upload::hidden_name;
use crate::fs::{Context, Entry, Errno, NodeId, Result};
use crate::store::{Condition, Details, Kind, Meta, Store, Version};

/// What happens to the object at the name of an open file that goes.
pub(super) enum Leaving {
    /// The name's object is deleted: it is renamed away if the file still needs it.
    Deleted,
    /// Another object takes the name: it is copied away if the file still needs it.
    Replaced,
}

/// What was done to keep the bytes of an open file whose name goes.
pub(super) enum Kept {
    /// Nothing, or they are in memory: the object is at its name.
    InMemory,
    /// The object was copied to a hidden name; at its own it has this version.
    Copied(Version),
    /// The object was renamed to a hidden name.
    Moved,
    /// Somebody else has replaced or deleted the object: its bytes cannot be had any more.
    Lost,
}

impl<S: Store> Core<S> {
    /// FUSE_MKDIR: a marker object where the store has no directories of its own.
    pub(super) async fn mkdir(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        (mode, umask): (u32, u32),
    ) -> Result<Entry> {
        let name = Self::new_name(parent, name)?;
        match self.resolve(parent, name).await {
            Ok(_) => return Err(Errno::EEXIST),
            Err(Errno::ENOENT) => {}
            Err(other) => return Err(other),
        }
        let attributes = self.birth(ctx, parent, libc::S_IFDIR, mode, umask)?.attributes();
        let _paths_stay = self.renaming.read().await;
        let path = self.tree().path_of(parent, name)?;
        crate::store::path::check_path(&path)?;
        self.settle(&path).await;
        self.remote.create_dir(path, attributes.clone().map(Box::new)).await?;
        let details = attributes.map(|attributes| Box::new(Details { attributes, ..Details::default() }));
        let born = details.is_some();
        let meta = Meta { kind: Kind::Dir, size: 0, mtime_ns: None, etag: None, marker: Some(true), details };
        let mut tree = self.tree();
        tree.mark_changed(parent);
        let inode = tree.adopt(parent, name, &meta, Instant::now())?;
        self.listings.outdate(parent, name);
        tree.remember(inode.id);
        drop(tree);
        {
            let mut state = inode.state();
            state.committed = Some(Instant::now());
            if !born {
                state.touch();
            }
        }
        Ok(self.entry(&inode))
    }

    /// FUSE_RMDIR.
    pub(super) async fn rmdir(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        let name = Self::old_name(parent, name)?;
        let inode = self.resolve(parent, name).await?;
        inode.dir()?;
        let _paths_stay = self.renaming.read().await;
        // Storing the attributes of a directory makes it.
        let _no_attributes = inode.upload.lock().await;
        let path = self.tree().path_of(parent, name)?;
        self.no_local_children(inode.id)?;
        self.settle_all().await?;
        self.keep_dir(parent).await?;
        match self.remote.remove_dir(path).await {
            // It was there a moment ago; some servers show no directory that is empty.
            Err(error) if !super::lookup::gone(&error) => return Err(error.into()),
            _ => {}
        }
        let mut tree = self.tree();
        tree.mark_changed(parent);
        tree.detach(inode.id);
        Ok(())
    }

    /// Refuses directories with files that the store does not have yet, however deep.
    pub(super) fn no_local_children(&self, dir: NodeId) -> Result<()> {
        let below = self.tree().below(dir);
        let local = |inode: &Arc<Inode>| {
            let state = inode.state();
            !state.unlinked && state.content.is_dirty()
        };
        if below.iter().any(local) { Err(Errno::ENOTEMPTY) } else { Ok(()) }
    }

    /// Sees to it that the directory `dir` stays when its last entry goes: gives it a marker if it is only a prefix.
    pub(super) fn keep_dir<'a>(&'a self, dir: NodeId) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if dir == NodeId::ROOT || self.capabilities.real_dirs {
                return Ok(());
            }
            let inode = self.inode(dir)?;
            if inode.state().marker == Some(true) {
                return Ok(());
            }
            let path = self.tree().path(dir)?;
            let sent = inode.state().outgoing(&inode, self.config.posix);
            self.remote.create_dir(path, sent.attributes.clone()).await?;
            let mut state = inode.state();
            state.marker = Some(true);
            // It stands, and so do those above it, whatever was said before.
            state.committed = Some(Instant::now());
            state.posix.arrived(&sent);
            Ok(())
        })
    }

    /// FUSE_UNLINK. A file that is open stays whole for those who have it open.
    pub(super) async fn unlink(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        let name = Self::old_name(parent, name)?;
        let inode = self.resolve(parent, name).await?;
        inode.file()?;
        if !self.capabilities.write {
            return Err(Errno::EROFS);
        }
        let _paths_stay = self.renaming.read().await;
        let _no_upload = inode.upload.lock().await;
        let path = {
            let tree = self.tree();
            if tree.child(parent, name).is_none_or(|now| now.id != inode.id) {
                return Err(Errno::ENOENT);
            }
            tree.path_of(parent, name)?
        };
        self.keep_dir(parent).await?;
        let (in_store, shadows) = {
            let state = inode.state();
            (state.content.base().is_some(), state.shadows)
        };
        let kept = if in_store { self.keep_open(&inode, &path, Leaving::Deleted).await? } else { Kept::InMemory };
        if shadows || (in_store && !matches!(kept, Kept::Moved)) {
            let deleted = self.delete_object(path, parent, name).await;
            if let Err(error) = deleted {
                self.stays(&inode, kept);
                return Err(error);
            }
        }
        self.goes(&inode, &kept);
        let mut tree = self.tree();
        tree.mark_changed(parent);
        tree.detach(inode.id);
        Ok(())
    }

    /// Before the name `path` of `inode` goes: if it is open, keeps its bytes, in memory if they are few, else in a hidden object.
    /// Those that somebody else replaced cannot be kept, and its handles say ESTALE. The caller holds the inode's upload lock;
    /// once the name is gone it calls [`Core::goes`], and [`Core::stays`] if it does not go.
    ///
    /// # Errors
    /// What the store says.
    pub(super) fn keep_open<'a>(
        &'a self,
        inode: &'a Arc<Inode>,
        path: &'a str,
        leaving: Leaving,
    ) -> BoxFuture<'a, Result<Kept>> {
        Box::pin(async move {
            let few = {
                let mut state = inode.state();
                if state.open == 0 {
                    return Ok(Kept::InMemory);
                }
                let few = !state.content.needs_base() || state.content.size() <= (self.blocks.len() / 8) as u64;
                if few {
                    state.content.begin_parting();
                }
                few
            };
            if few {
                if self.keep_in_memory(inode).await {
                    return Ok(Kept::InMemory);
                }
                inode.state().content.reunite();
            }
            if inode.state().moved && !self.base_stands(inode, path).await? {
                return Ok(Kept::Lost);
            }
            let hidden = hidden_name();
            let version = inode.state().object_version();
            let kept = match leaving {
                Leaving::Deleted => {
                    self.remote.rename_file(path, hidden.as_str(), Condition::Any, version.clone()).await
                }
                Leaving::Replaced => self.remote.copy(path, hidden.as_str(), version.clone()).await,
            };
            let meta = match kept {
                Ok(meta) => meta,
                Err(error) if is_conflict(&error) => return Ok(Kept::Lost),
                Err(error) => return Err(error.into()),
            };
            let mut state = inode.state();
            let before = state.content.base().map(|base| base.version.clone());
            state.content.rebase(meta.version());
            state.hidden = Some(hidden);
            Ok(match (leaving, before) {
                (Leaving::Replaced, Some(before)) => Kept::Copied(before),
                _ => Kept::Moved,
            })
        })
    }

    /// The name of `inode`, whose bytes were `kept`, has gone.
    pub(super) fn goes(&self, inode: &Inode, kept: &Kept) {
        let mut state = inode.state();
        match kept {
            Kept::Lost => state.content.disown(),
            Kept::InMemory | Kept::Copied(_) | Kept::Moved => state.content.part(),
        }
    }

    /// The name of `inode`, whose bytes were `kept`, has not gone after all: they lie over the object there as before.
    pub(super) fn stays(&self, inode: &Inode, kept: Kept) {
        let mut state = inode.state();
        state.content.reunite();
        let Kept::Copied(version) = kept else { return };
        state.content.rebase(version);
        if let Some(hidden) = state.hidden.take() {
            drop(state);
            self.discard_hidden(hidden);
        }
    }

    /// Reads what `inode` still needs of its object into memory that does not depend on it. False: there is no room, or the
    /// store did not give it.
    async fn keep_in_memory(&self, inode: &Arc<Inode>) -> bool {
        let base = {
            let state = inode.state();
            state.content.base().filter(|_| state.content.needs_base()).cloned()
        };
        let Some(base) = base else { return true };
        let mut at = 0;
        while at < base.version.size {
            let Ok(clean) = self.block(inode, &base, at, at..base.version.size).await else { return false };
            let Some(mut block) = self.clean.try_take(&self.blocks, clean.len) else { return false };
            block.write(0, clean.block.bytes(0, clean.len));
            let mut state = inode.state();
            if state.content.base() != Some(&base) {
                return false;
            }
            state.content.keep(clean.start, block, clean.len);
            at = clean.end();
        }
        true
    }
}
