//! Renaming. Files and directories that are open follow their new name; what is dirty is uploaded there.

use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;

use super::core::Core;
use super::inode::Inode;
use super::lookup::gone;
use super::remove::{Kept, Leaving};
use crate::fs::{Errno, NodeId, Result};
use crate::store::{Condition, Kind, Meta, Store, StoreErrorKind};

/// A name in a directory.
#[derive(Clone, Copy)]
struct Place<'a> {
    parent: NodeId,
    name: &'a str,
}

impl<S: Store> Core<S> {
    /// FUSE_RENAME and FUSE_RENAME2. Of the flags, RENAME_NOREPLACE can be had; stores cannot exchange two objects.
    pub(super) async fn rename(
        &self,
        parent: NodeId,
        name: &[u8],
        new_parent: NodeId,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        if flags & !libc::RENAME_NOREPLACE != 0 {
            return Err(Errno::EINVAL);
        }
        let from = Place { parent, name: Self::old_name(parent, name)? };
        let to = Place { parent: new_parent, name: Self::new_name(new_parent, new_name)? };
        let source = self.resolve(from.parent, from.name).await?;
        let target = match self.resolve(to.parent, to.name).await {
            Ok(inode) => Some(inode),
            Err(Errno::ENOENT) => None,
            Err(other) => return Err(other),
        };
        let noreplace = flags & libc::RENAME_NOREPLACE != 0;
        match &target {
            Some(target) if target.id == source.id => return if noreplace { Err(Errno::EEXIST) } else { Ok(()) },
            Some(_) if noreplace => return Err(Errno::EEXIST),
            Some(target) if source.kind == Kind::File && target.kind == Kind::Dir => return Err(Errno::EISDIR),
            Some(target) if source.kind == Kind::Dir && target.kind == Kind::File => return Err(Errno::ENOTDIR),
            _ => {}
        }
        match source.kind {
            Kind::File => self.rename_file(&source, from, target.as_ref(), to, noreplace).await,
            Kind::Dir => {
                self.rename_dir(&source, from, target.as_ref(), to).await?;
                // It has its new name whatever becomes of this; what fails is tried again.
                let _ = self.upload(&source).await;
                Ok(())
            }
        }
    }

    /// The paths of both places, if `source` is still at the first.
    fn paths(&self, source: &Inode, from: Place<'_>, to: Place<'_>) -> Result<(String, String)> {
        let tree = self.tree();
        if tree.child(from.parent, from.name).is_none_or(|now| now.id != source.id) {
            return Err(Errno::ENOENT);
        }
        let new = tree.path_of(to.parent, to.name)?;
        crate::store::path::check_path(&new)?;
        Ok((tree.path_of(from.parent, from.name)?, new))
    }

    fn rename_file<'a>(
        &'a self,
        source: &'a Arc<Inode>,
        from: Place<'a>,
        target: Option<&'a Arc<Inode>>,
        to: Place<'a>,
        noreplace: bool,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let _paths_stay = self.renaming.read().await;
            // Both files' uploads stand still, locked in the order of their numbers.
            let (first, second) = match target {
                Some(target) if target.id < source.id => (target, Some(source)),
                Some(target) => (source, Some(target)),
                None => (source, None),
            };
            let _first = first.upload.lock().await;
            let _second = match second {
                Some(inode) => Some(inode.upload.lock().await),
                None => None,
            };
            let (old, new) = self.paths(source, from, to)?;
            self.settle(&new).await;
            self.keep_dir(from.parent).await?;
            let (in_store, shadows) = {
                let state = source.state();
                (state.content.base().is_some(), state.shadows)
            };
            if in_store {
                self.must_stand(source, &old).await?;
            }
            self.keep_dir(from.parent).await?;
            let mut over_object = false;
            let mut kept = Kept::InMemory;
            if let Some(target) = target {
                let target_shadows = target.state().shadows;
                if target.state().content.base().is_some() {
                    kept = self.keep_open(target, &new, Leaving::Replaced).await?;
                    over_object = true;
                }
                over_object |= target_shadows;
            }
            let moved = self.move_file(source, (old, new), noreplace, (in_store, shadows, over_object)).await;
            if let Some(target) = target {
                match moved {
                    Ok(()) => self.goes(target, &kept),
                    Err(_) => self.stays(target, kept),
                }
            }
            moved?;
            self.tree().rename(source.id, to.parent, to.name)?;
            if !source.state().content.is_dirty() {
                // As for a directory.
                let _ = self.save_attributes(source).await;
            }
            Ok(())
        })
    }

    /// Renames the object of `source`, if it has one, and remembers what the store must still do. `shadows` and `over_object`:
    /// another program's object stands at the old name, any object at the new one.
    async fn move_file(
        &self,
        source: &Arc<Inode>,
        (old, new): (String, String),
        noreplace: bool,
        (in_store, shadows, over_object): (bool, bool, bool),
    ) -> Result<()> {
        if in_store {
            let when = if noreplace { Condition::IfAbsent } else { Condition::Any };
            let meta = match self.rename_with_attributes(source, &old, &new, &when).await? {
                Some(meta) => meta,
                None => self.rename_object(source, old, new, when).await?,
            };
            let fresh = self.tree().content_id();
            let mut state = source.state();
            let own_mtime = state.own_mtime || meta.mtime_ns != Some(state.mtime_ns);
            let same_size = state.content.base().is_some_and(|base| base.version.size == meta.size);
            if same_size {
                state.content.rebase(meta.version());
            } else if !state.content.is_dirty() {
                // Somebody else has put another object there by the time the store was asked about it.
                state.content.replace(meta.version(), fresh);
            }
            state.committed(&meta);
            // A rename changes no bytes, so it changes no modification time, whatever the store says of the copy.
            state.own_mtime = own_mtime;
        } else {
            if shadows {
                self.remote.delete(old).await?;
            }
            let mut state = source.state();
            state.exclusive = noreplace;
            state.shadows = over_object;
        }
        Ok(())
    }

    /// Renames the object of `source` and stores its changed attributes in one: where renaming is copying anyway, with the copy.
    /// `None`: that is no gain, or somebody else has changed the object.
    async fn rename_with_attributes(
        &self,
        source: &Arc<Inode>,
        old: &str,
        new: &str,
        when: &Condition,
    ) -> Result<Option<Meta>> {
        if self.capabilities.rename || source.state().moved {
            return Ok(None);
        }
        let Some((base, sent)) = self.begin_save(source, old) else { return Ok(None) };
        let meta = match self.compose_whole(source, new, base, when.clone(), &sent).await {
            Ok(meta) => meta,
            Err(error) if matches!(error.kind, StoreErrorKind::VersionMismatch | StoreErrorKind::NotFound) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        self.remote.delete(old).await?;
        Ok(Some(meta))
    }

    /// Renames the object of `source`. What somebody else has put in its place is renamed just as well, unless the guest's changes
    /// lie over the version that is gone.
    async fn rename_object(&self, source: &Arc<Inode>, old: String, new: String, when: Condition) -> Result<Meta> {
        if source.state().moved && self.rebase_moved(source).await.is_err() {
            self.must_stand(source, &old).await?;
        }
        let version = source.state().object_version();
        match self.remote.rename_file(old.as_str(), new.as_str(), when.clone(), version).await {
            Err(error) if error.kind == StoreErrorKind::VersionMismatch || gone(&error) => {}
            answer => return Ok(answer?),
        }
        if source.state().content.is_dirty() {
            return Err(Errno::ESTALE);
        }
        self.revalidate(source).await?;
        let version = source.state().object_version();
        Ok(self.remote.rename_file(old, new, when, version).await?)
    }

    /// Before the object `path` of `inode` moves, which gives it another version: if somebody needs the bytes that are known, they
    /// must be the ones that move, or those who have it open would see a mix.
    ///
    /// # Errors
    /// ESTALE: somebody else replaced the object under what the guest wrote. ENOENT: or deleted it.
    async fn must_stand(&self, inode: &Arc<Inode>, path: &str) -> Result<()> {
        let (open, dirty) = {
            let state = inode.state();
            (state.open > 0, state.content.is_dirty())
        };
        if !open && !dirty || self.base_stands(inode, path).await? {
            return Ok(());
        }
        if dirty { Err(Errno::ESTALE) } else { self.revalidate(inode).await }
    }

    fn rename_dir<'a>(
        &'a self,
        source: &'a Arc<Inode>,
        from: Place<'a>,
        target: Option<&'a Arc<Inode>>,
        to: Place<'a>,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let waiting = self.rename_wanted.want();
            let _nothing_else = self.renaming.write().await;
            drop(waiting);
            let (old, new) = self.paths(source, from, to)?;
            self.settle_all().await?;
            if self.tree().is_below(to.parent, source.id) {
                return Err(Errno::EINVAL);
            }
            if let Some(target) = target {
                self.no_local_children(target.id)?;
            }
            let below = self.tree().below(source.id);
            for inode in below {
                if inode.state().content.base().is_some() {
                    let path = self.tree().path(inode.id)?;
                    match self.must_stand(&inode, &path).await {
                        Err(Errno::ENOENT) => {}
                        other => other?,
                    }
                }
            }
            self.keep_dir(from.parent).await?;
            match self.remote.rename_dir(old, new.clone()).await {
                // Others emptied it, but it has files that the store does not have yet.
                Err(error) if gone(&error) && self.tree().is_local(source) => {
                    if target.is_some() {
                        match self.remote.remove_dir(new).await {
                            Err(error) if gone(&error) => {}
                            other => other?,
                        }
                    }
                }
                Err(error) => {
                    if gone(&error) {
                        // Others removed it while its name was trusted; this ends that.
                        self.revalidate(source).await?;
                    }
                    return Err(error.into());
                }
                Ok(()) => {}
            }
            let mut moved = Vec::new();
            {
                let mut tree = self.tree();
                tree.rename(source.id, to.parent, to.name)?;
                let now = Instant::now();
                for inode in tree.below(source.id) {
                    let mut state = inode.state();
                    let held = state.open > 0 || state.content.is_dirty();
                    // What nobody holds is known anew when it is opened.
                    state.moved = inode.kind == Kind::File && state.content.base().is_some() && held;
                    state.asked = None;
                    // What was listed before told of the versions before.
                    state.committed = Some(now);
                    state.own_mtime = true;
                    if state.moved {
                        drop(state);
                        moved.push(inode);
                    }
                }
            }
            for inode in moved {
                // If it cannot be told now, it is asked again before it is read or uploaded.
                let _ = self.rebase_moved(&inode).await;
            }
            Ok(())
        })
    }
}
