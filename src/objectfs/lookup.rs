//! From names to inodes, and the attributes of those.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

use super::attributes::PERMISSIONS;
use super::core::{Core, join_ns};
use super::inode::{Inode, now_ns};
use super::listings::Asked;
use crate::fs::{Attr, Entry, Errno, Handle, NodeId, Result, SetAttr, SetTime};
use crate::store::{Kind, Meta, Store, StoreError, StoreErrorKind};

/// How often a question to the store is asked again because names changed under it.
const RACES_MAX: u32 = 8;

impl<S: Store> Core<S> {
    /// FUSE_LOOKUP.
    pub(super) async fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Entry> {
        self.inode(parent)?.dir()?;
        let inode = self.learn(parent, Self::old_name(parent, name)?).await?;
        Ok(self.entry(&inode))
    }

    /// As [`Core::resolve`], for a guest that will be told the number: it counts one lookup more. FUSE_FORGET comes on a queue of
    /// its own, so that the node may go between the two: then the name is looked up again.
    pub(super) async fn learn(&self, parent: NodeId, name: &str) -> Result<Arc<Inode>> {
        for _ in 0..RACES_MAX {
            let inode = self.resolve(parent, name).await?;
            if self.tree().remember(inode.id) {
                return Ok(inode);
            }
        }
        Err(Errno::EAGAIN)
    }

    /// The inode called `name` below `parent`, from what is known if that is fresh enough, else from the store.
    ///
    /// # Errors
    /// ENOENT; what the store says.
    pub(super) async fn resolve(&self, parent: NodeId, name: &str) -> Result<Arc<Inode>> {
        let known = self.tree().child(parent, name);
        let known = known.filter(|inode| {
            let mut state = inode.state();
            state.looked_up = None;
            self.knows_by_name(&state)
        });
        match known {
            Some(inode) => Ok(inode),
            None => self.look_up(parent, name).await,
        }
    }

    fn look_up<'a>(&'a self, parent: NodeId, name: &'a str) -> BoxFuture<'a, Result<Arc<Inode>>> {
        Box::pin(async move {
            for race in 0..RACES_MAX {
                let (path, above) = {
                    let tree = self.tree();
                    if let Some(inode) = tree.child(parent, name) {
                        let state = inode.state();
                        if self.knows_by_name(&state) {
                            drop(state);
                            return Ok(inode);
                        }
                    }
                    (tree.path_of(parent, name)?, tree.path(parent)?)
                };
                if self.deletions.contains(&path) {
                    return Err(Errno::ENOENT);
                }
                let listed = if race == 0 { self.listed(parent, &above, name).await } else { None };
                let by_name = listed.is_none();
                let mut below = None;
                let (asked, answer) = match listed {
                    Some((meta, asked)) => self.attributes_of(parent, name, &path, meta, asked).await,
                    None if self.is_worth_a_look(parent, name) => {
                        let asked = Instant::now();
                        let answer = self.look(path.clone()).await.map(|(meta, names)| {
                            below = names;
                            meta
                        });
                        (asked, answer)
                    }
                    None => (Instant::now(), self.stat(path.clone()).await),
                };
                let mut tree = self.tree();
                let known = tree.child(parent, name);
                if tree.path_of(parent, name)? != path {
                    // A directory above was renamed meanwhile.
                    continue;
                }
                match answer {
                    Ok(meta) => {
                        if known.is_none() && tree.removed_since(parent, name, asked) {
                            continue;
                        }
                        let inode = tree.adopt(parent, name, &meta, asked)?;
                        if by_name {
                            inode.state().looked_up = Some(Instant::now());
                        }
                        if let (None, Some(below), Kind::Dir) = (known, below, inode.kind) {
                            // Just now it came to be known, so the guest has changed nothing in it.
                            let asked = Asked { at: asked, deleted: HashSet::new() };
                            self.note_listing(inode.id, asked, &below);
                        }
                        return Ok(inode);
                    }
                    Err(error) if gone(&error) => {
                        let Some(inode) = known else {
                            return Err(Errno::ENOENT);
                        };
                        if tree.is_local(&inode) {
                            inode.state().absent(asked);
                            return Ok(inode);
                        }
                        if tree.made_since(&inode, asked) {
                            continue;
                        }
                        tree.detach(inode.id);
                        return Err(Errno::ENOENT);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Err(Errno::EAGAIN)
        })
    }

    /// Whether the names in a directory are wanted along with the answer to a lookup: if the guest sees it for the first time, it
    /// will look into it.
    fn is_worth_a_look(&self, parent: NodeId, name: &str) -> bool {
        // Attributes are told with no listing, and what is deleted might still be there.
        let told = self.config.posix || self.capabilities.real_dirs || self.timeout().is_zero();
        !told && self.deletions.is_empty() && self.tree().child(parent, name).is_none()
    }

    /// What a listing asked for at `asked` says of a name, with its attributes where the mount keeps them and listings do not tell
    /// them: those that are known if they still stand, else in one request, for what it is is known.
    async fn attributes_of(
        &self,
        parent: NodeId,
        name: &str,
        path: &str,
        meta: Meta,
        asked: Instant,
    ) -> (Instant, std::result::Result<Meta, StoreError>) {
        if !self.config.posix || self.capabilities.attributes_listed {
            return (asked, Ok(meta));
        }
        if let Some(inode) = self.tree().child(parent, name) {
            let mut state = inode.state();
            if inode.kind == Kind::File && state.attributes_stand(&meta) {
                state.posix.asked = state.posix.asked.max(Some(asked));
                return (asked, Ok(meta));
            }
        }
        (Instant::now(), self.tell_one(path, meta.kind).await)
    }

    /// Asks the store about `inode` and takes in what it says. Unlinked and dirty files are what they are.
    ///
    /// # Errors
    /// ENOENT: it is gone, or something of another kind took its place.
    pub(super) fn revalidate<'a>(&'a self, inode: &'a Arc<Inode>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if inode.id == NodeId::ROOT {
                return Ok(());
            }
            let path = {
                let tree = self.tree();
                if inode.state().is_local() {
                    return Ok(());
                }
                tree.path(inode.id)?
            };
            let asked = Instant::now();
            // Of an object, its name is known to be one: that a directory hides it is found when the name is looked up.
            let answer = match inode.kind {
                Kind::File => self.tell_one(&path, Kind::File).await,
                Kind::Dir => self.stat(path.clone()).await,
            };
            let mut tree = self.tree();
            if tree.path(inode.id).is_ok_and(|now| now != path) {
                // It was renamed meanwhile, or a directory above it: by us, so it is there.
                return Ok(());
            }
            match answer {
                Ok(meta) if inode.is(&meta) => {
                    let fresh = tree.content_id();
                    let mut state = inode.state();
                    if inode.kind == Kind::File && !state.known_since(asked) {
                        state.asked_for_object(asked);
                    }
                    state.observe(inode.kind, &meta, asked, || fresh);
                    Ok(())
                }
                Ok(_) if tree.is_local(inode) => {
                    if inode.kind == Kind::Dir {
                        inode.state().absent(asked);
                    }
                    Ok(())
                }
                Ok(_) => {
                    tree.detach(inode.id);
                    Err(Errno::ENOENT)
                }
                Err(error) if gone(&error) => {
                    if tree.is_local(inode) || tree.made_since(inode, asked) {
                        inode.state().absent(asked);
                        return Ok(());
                    }
                    tree.detach(inode.id);
                    Err(Errno::ENOENT)
                }
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Whether the object at `path` is still the version that the bytes of `inode` lie over.
    ///
    /// # Errors
    /// What the store says.
    pub(super) async fn base_stands(&self, inode: &Inode, path: &str) -> Result<bool> {
        match self.remote.stat(path).await {
            Ok(meta) => Ok(meta.kind == Kind::File && inode.state().is_base(&meta)),
            Err(error) if gone(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// FUSE_GETATTR.
    pub(super) async fn getattr(&self, nodeid: NodeId) -> Result<(Attr, Duration)> {
        let inode = self.inode(nodeid)?;
        let known = {
            let state = inode.state();
            nodeid == NodeId::ROOT || self.knows(&state)
        };
        if !known {
            self.revalidate(&inode).await?;
        }
        Ok((self.attr(&inode), self.timeout()))
    }

    /// FUSE_SETATTR. Where the mount keeps no attributes, length and times are kept (these until the inode is forgotten), and
    /// asking for another owner or mode changes nothing, so that tar, cp -p and rsync go on.
    pub(super) async fn setattr(&self, nodeid: NodeId, change: SetAttr) -> Result<(Attr, Duration)> {
        let inode = self.inode(nodeid)?;
        let posix = self.config.posix;
        // First of all what may be refused.
        let owner = change.uid.filter(|_| posix).map(|uid| self.ids.stored_uid(uid)).transpose()?;
        let group = change.gid.filter(|_| posix).map(|gid| self.ids.stored_gid(gid)).transpose()?;
        if posix && !inode.state().posix.known {
            self.revalidate(&inode).await?;
        }
        let nobody_will_close = match change.size {
            Some(size) => self.truncate(&inode, change.handle, size).await?,
            None => false,
        };
        {
            let mut state = inode.state();
            let time = |to: SetTime| match to {
                SetTime::Now => now_ns(),
                SetTime::At(seconds, nanos) => join_ns(seconds, nanos),
            };
            if let Some(to) = change.atime {
                state.atime_ns = time(to);
            }
            if let Some(to) = change.mtime {
                state.mtime_ns = time(to);
                state.own_mtime = true;
            }
            if posix {
                state.posix.mode = change.mode.map(|mode| mode & PERMISSIONS).or(state.posix.mode);
                state.posix.uid = owner.or(state.posix.uid);
                state.posix.gid = group.or(state.posix.gid);
                let ctime_ns = change.ctime.map_or_else(now_ns, |(seconds, nanos)| join_ns(seconds, nanos));
                self.attributes_changed(&inode, &mut state, ctime_ns);
            }
        }
        if nobody_will_close {
            self.upload(&inode).await?;
        }
        Ok((self.attr(&inode), self.timeout()))
    }

    /// Sets the length. True: it is to be uploaded, because nobody has the file open for writing.
    async fn truncate(&self, inode: &Arc<Inode>, handle: Option<Handle>, size: u64) -> Result<bool> {
        inode.regular()?;
        if self.capabilities.size_max.is_some_and(|max| size > max) {
            return Err(Errno::EFBIG);
        }
        match handle {
            Some(handle) => {
                let file = self.handles.file(inode.id, handle)?;
                if file.lineage != inode.state().content.lineage() {
                    return Err(Errno::ESTALE);
                }
            }
            None => self.revalidate(inode).await?,
        }
        if size < inode.state().content.size() {
            self.end_sending(inode, size, u64::MAX).await;
        }
        let mut state = inode.state();
        if state.content.size() != size {
            state.content.truncate(size);
            state.touch();
        } else if self.config.posix {
            state.touch();
        }
        Ok(state.writers == 0)
    }
}

/// Whether the store says that there is nothing of that name.
pub(super) fn gone(error: &StoreError) -> bool {
    matches!(error.kind, StoreErrorKind::NotFound | StoreErrorKind::NotDir)
}

/// The DT_* constant of a file type (S_IFMT bits).
pub(super) fn dirent_type(file_type: u32) -> u32 {
    (file_type & libc::S_IFMT) >> 12
}
