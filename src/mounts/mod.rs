//! Several stores in one share: a file system over an [`ObjectFs`] for each, which appear as directories.
//!
//! `points` knows those directories and what leads to them, `numbers` tells the mounts' nodeids, handles and inode numbers
//! apart, `slot` is one mount, `changes` lets mounts come and go, `listing` reads the directories that mounts begin in. What lies inside a mount is its own
//! file system's business, and reaching it costs a shift and a mask: no lock, no memory.
//!
//! What a guest may rely on: a mount hides what stands at its name in the store above it. Looking at the directory that a
//! mount begins in, without what is in it, asks nothing of any store. Directories that only lead to mounts cannot be changed
//! (EROFS), mount points not be renamed or removed (EBUSY). Nothing is renamed, linked or copied from one mount to another
//! (EXDEV). A store that is down ends in errnos inside its own mount.
//!
//! **Mounts come and go** while the device runs ([`Mounts::add`], [`Mounts::remove`]). A number is used once, so what the guest
//! knows of a mount that is gone names nothing else; until it has stored what is dirty, what is open in it works, then it
//! is ESTALE.
//!
//! **Nothing is shared among mounts** that one could use up: each has its own part of the pool, its own threads for what
//! happens in the background, its own room for requests to the broker (`store`) and in it (`broker`). What all share is
//! the device's queues, in which each request takes a place until its answer.

mod changes;
mod listing;
mod numbers;
mod points;
mod slot;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::join_all;

use self::changes::Places;
use self::listing::{DOTS, Nothing, Overlay, dot, outer_attr, outer_entry};
use self::numbers::{NOWHERE, inner, inner_handle, mount_of, outer};
use self::points::{Point, Points};
use self::slot::{Slot, bare_attr};
use crate::fs::flags::{init, refused_readonly};
use crate::fs::{
    Attr, Context, DirEntry, DirSink, Entry, Errno, Extensions, FileAt, FileSystem, Handle, NodeId, Opened, Read,
    Result, SetAttr, Sink, Source, StatFs, Unstored, Write, XattrReply, readonly,
};
use crate::objectfs::{Config, Ids, ObjectFs};
use crate::store::{ADDED_MAX, MountId, Store};

pub use numbers::MOUNTS_MAX;
pub use slot::Spec;

/// d_type of a directory.
const DT_DIR: u32 = libc::DT_DIR as u32;

/// Several stores as one file system.
pub struct Mounts<S: Store> {
    points: RwLock<Arc<Points>>,
    /// What `points` is made of.
    places: Mutex<Places>,
    /// By number; the root's place is empty if no store is there, and so are those of mounts to come.
    slots: Box<[OnceLock<Arc<Slot<S>>>]>,
    /// What directories look like that only lead to mounts.
    own: Config,
    ids: Arc<Ids>,
    start: Duration,
}

/// Where a nodeid leads.
enum Place<'a, S: Store> {
    /// To a directory of no store.
    Own,
    /// Into this mount, which has this number and calls it so.
    Mount(&'a Slot<S>, MountId, NodeId),
}

impl<S: Store> Mounts<S> {
    /// The stores of `specs`. `own` is how directories that only lead to others look; they cannot be written.
    ///
    /// # Errors
    /// When there are more than [`MOUNTS_MAX`], or no thread can be made.
    pub fn new(own: Config, ids: Arc<Ids>, specs: Vec<Spec<S>>) -> std::io::Result<Mounts<S>> {
        if specs.len() >= MOUNTS_MAX {
            return Err(std::io::Error::other(format!("{} stores in one share are too many", specs.len())));
        }
        let most = (specs.len() + 1 + ADDED_MAX).min(MOUNTS_MAX);
        let slots: Box<[OnceLock<Arc<Slot<S>>>]> = (0..most).map(|_| OnceLock::new()).collect();
        let mut places = Places::default();
        for (number, spec) in specs.into_iter().enumerate() {
            let first = places.mounts.first().is_some_and(|(path, _)| path == "/");
            let number = match spec.path.as_str() {
                "/" => 0,
                _ => MountId::try_from(number + usize::from(!first)).map_err(std::io::Error::other)?,
            };
            places.mounts.push((spec.path.clone(), number));
            // Each number comes once.
            let _ = slots[usize::from(number)].set(Slot::new(spec)?);
        }
        let own = Config { dir_mode: own.dir_mode & !0o222, ..own };
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let points = RwLock::new(places.points());
        Ok(Mounts { points, places: Mutex::new(places), slots, own, ids, start })
    }

    fn slot(&self, mount: MountId) -> Option<&Slot<S>> {
        self.slots.get(usize::from(mount))?.get().map(Arc::as_ref)
    }

    fn all(&self) -> impl Iterator<Item = &Slot<S>> {
        self.slots.iter().filter_map(OnceLock::get).map(Arc::as_ref).filter(|slot| !slot.is_gone())
    }

    /// The directories in which mounts begin, if `nodeid` can be one of them: all others need no lock.
    fn points(&self, nodeid: NodeId) -> Option<Arc<Points>> {
        let can_be = mount_of(nodeid.0) == NOWHERE || inner(nodeid.0) == NodeId::ROOT.0;
        can_be.then(|| Arc::clone(&self.points.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Whether a mount begins at `name` in `parent`, or below it.
    fn leads_on(&self, parent: NodeId, name: &[u8]) -> bool {
        self.points(parent).is_some_and(|points| points.child(parent, name).is_some())
    }

    /// Refuses what a mount that is being taken away does not do any more: finding and opening anything.
    ///
    /// # Errors
    /// ENOENT.
    fn enter(&self, nodeid: NodeId) -> Result<()> {
        match self.slot(mount_of(nodeid.0)) {
            Some(slot) if slot.is_leaving() => Err(Errno::ENOENT),
            _ => Ok(()),
        }
    }

    fn place(&self, nodeid: NodeId) -> Result<Place<'_, S>> {
        let mount = mount_of(nodeid.0);
        match self.slot(mount) {
            Some(slot) if slot.is_gone() => Err(Errno::ESTALE),
            Some(slot) => Ok(Place::Mount(slot, mount, NodeId(inner(nodeid.0)))),
            None => {
                let known = self.points(nodeid).is_some_and(|points| points.get(nodeid).is_some());
                if known { Ok(Place::Own) } else { Err(Errno::EBADF) }
            }
        }
    }

    /// The file system that `nodeid` lies in, and what that calls it.
    ///
    /// # Errors
    /// `otherwise`: it lies in none. Those of [`Slot::fs`].
    async fn inside(&self, nodeid: NodeId, otherwise: Errno) -> Result<(&ObjectFs<S>, MountId, NodeId)> {
        match self.place(nodeid)? {
            Place::Own => Err(otherwise),
            Place::Mount(slot, mount, nodeid) => Ok((slot.fs().await?, mount, nodeid)),
        }
    }

    /// As [`Mounts::inside`], for a change.
    ///
    /// # Errors
    /// EROFS where nothing can be changed.
    async fn writable(&self, nodeid: NodeId) -> Result<(&ObjectFs<S>, MountId, NodeId)> {
        match self.place(nodeid)? {
            Place::Mount(slot, mount, nodeid) if !slot.readonly => Ok((slot.fs().await?, mount, nodeid)),
            _ => Err(Errno::EROFS),
        }
    }

    /// As [`Mounts::writable`], for a new name.
    ///
    /// # Errors
    /// EEXIST: a mount begins there.
    async fn new_name(&self, parent: NodeId, name: &[u8]) -> Result<(&ObjectFs<S>, MountId, NodeId)> {
        if self.leads_on(parent, name) {
            return Err(Errno::EEXIST);
        }
        self.enter(parent)?;
        self.writable(parent).await
    }

    /// As [`Mounts::writable`], for a name that is to go.
    ///
    /// # Errors
    /// EBUSY: a mount begins there.
    async fn old_name(&self, parent: NodeId, name: &[u8]) -> Result<(&ObjectFs<S>, NodeId)> {
        if self.leads_on(parent, name) {
            return Err(Errno::EBUSY);
        }
        self.enter(parent)?;
        let (fs, _, parent) = self.writable(parent).await?;
        Ok((fs, parent))
    }

    /// What a directory of `points` looks like, and for how long. Asks nothing of any store: a root's attributes are known.
    async fn point_attr(&self, point: &Point) -> Result<(Attr, Duration)> {
        let (attr, timeout) = match point.mount.and_then(|mount| self.slot(mount)) {
            None => (bare_attr(&self.own, &self.ids, self.start), self.own.timeout()),
            Some(slot) => match slot.ready() {
                Some(fs) => fs.getattr(Context::default(), NodeId::ROOT, None).await?,
                None => (slot.bare_attr(), slot.config.timeout()),
            },
        };
        Ok((Attr { ino: point.nodeid.0, ..attr }, timeout))
    }

    async fn point_entry(&self, point: &Point) -> Result<Entry> {
        let (attr, timeout) = self.point_attr(point).await?;
        Ok(Entry { nodeid: point.nodeid, generation: 0, attr, entry_timeout: timeout, attr_timeout: timeout })
    }

    /// What is said of extended attributes where there are none: once a guest hears ENOSYS it asks no mount any more.
    fn no_xattr(&self) -> Errno {
        if self.all().any(|slot| slot.config.xattr) { Errno::EOPNOTSUPP } else { Errno::ENOSYS }
    }

    fn xattr_result<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|errno| if errno == Errno::ENOSYS { self.no_xattr() } else { errno })
    }

    async fn list(
        &self,
        ctx: Context,
        nodeid: NodeId,
        handle: Handle,
        offset: u64,
        plus: bool,
        out: &mut impl DirSink,
    ) -> Result<()> {
        let place = self.place(nodeid)?;
        let points = self.points(nodeid);
        let point = points.as_ref().and_then(|points| points.get(nodeid));
        let mut start = offset;
        let mut shift = 0;
        if let (Some(points), Some(point)) = (&points, point) {
            shift = point.children().len() as u64;
            if offset == 0
                && let Place::Mount(slot, mount, node) = &place
            {
                // What was listed before is out of date.
                let fs = slot.fs().await?;
                fs.readdir(ctx, *node, inner_handle(*mount, handle)?, 0, &mut Nothing).await?;
            }
            if !self.list_point(points, point, offset, plus, out).await? {
                return Ok(());
            }
            start = offset.max(DOTS + shift) - shift;
        }
        let Place::Mount(slot, mount, node) = place else { return Ok(()) };
        let (fs, handle) = (slot.fs().await?, inner_handle(mount, handle)?);
        let mut overlay = Overlay { out, mount, point, shift, hidden: Vec::new() };
        let result = match plus {
            true => fs.readdirplus(ctx, node, handle, start, &mut overlay).await,
            false => fs.readdir(ctx, node, handle, start, &mut overlay).await,
        };
        overlay.hidden.into_iter().for_each(|nodeid| fs.forget(nodeid, 1));
        result
    }

    /// Lists what `point` itself has after `offset`. False: `out` is full.
    async fn list_point(
        &self,
        points: &Points,
        point: &Point,
        offset: u64,
        plus: bool,
        out: &mut impl DirSink,
    ) -> Result<bool> {
        for (at, (name, ino)) in [(&b"."[..], point.nodeid.0), (b"..", point.above.0)].into_iter().enumerate() {
            let next_offset = at as u64 + 1;
            if next_offset <= offset {
                continue;
            }
            let entry = DirEntry { ino, next_offset, kind: DT_DIR, name };
            if !(if plus { out.add_plus(&entry, &dot(ino)) } else { out.add(&entry) }) {
                return Ok(false);
            }
        }
        for (at, (name, index)) in point.children().enumerate() {
            let next_offset = DOTS + at as u64 + 1;
            let Some(child) = points.by_index(index).filter(|_| next_offset > offset) else { continue };
            let entry = DirEntry { ino: child.nodeid.0, next_offset, kind: DT_DIR, name };
            let fits = match plus {
                true => out.fits_plus(name.len()) && out.add_plus(&entry, &self.point_entry(child).await?),
                false => out.add(&entry),
            };
            if !fits {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A file's place, as its mount has it.
fn inner_at(mount: MountId, at: FileAt) -> Result<FileAt> {
    Ok(FileAt { nodeid: NodeId(inner(at.nodeid.0)), handle: inner_handle(mount, at.handle)?, offset: at.offset })
}

fn outer_opened(mount: MountId, opened: Opened) -> Opened {
    Opened { handle: opened.handle.map(|handle| Handle(outer(mount, handle.0))), ..opened }
}

impl<S: Store> FileSystem for Mounts<S> {
    async fn init(&self, offered: u64) -> Result<u64> {
        let ready = self.all().filter_map(Slot::ready);
        join_all(ready.map(|fs| fs.init(offered))).await.into_iter().collect::<Result<Vec<u64>>>()?;
        let flags = self.all().map(|slot| slot.config.init_flags()).fold(self.own.init_flags(), |all, one| all | one);
        // Whoever leaves dropping bits to the guest needs all mounts to do so.
        let kill = self.all().all(|slot| slot.config.init_flags() & init::HANDLE_KILLPRIV_V2 != 0);
        Ok(if kill { flags } else { flags & !init::HANDLE_KILLPRIV_V2 } & offered)
    }

    async fn destroy(&self) {
        join_all(self.all().filter_map(Slot::ready).map(ObjectFs::destroy)).await;
    }

    async fn flush_all(&self, deadline: Duration) -> u64 {
        join_all(self.all().filter_map(Slot::ready).map(|fs| fs.flush_all(deadline))).await.into_iter().sum()
    }

    fn unstored(&self) -> u64 {
        self.all().filter_map(Slot::ready).map(ObjectFs::unstored).sum()
    }

    async fn keep_unstored(&self) -> Vec<Unstored> {
        let mut all = Vec::new();
        for slot in self.all() {
            let Some(fs) = slot.ready() else { continue };
            let unstored = fs.keep_unstored().await.into_iter();
            all.extend(unstored.map(|file| Unstored { path: slot.path_of(&file.path), ..file }));
        }
        all
    }

    async fn lookup(&self, ctx: Context, parent: NodeId, name: &[u8]) -> Result<Entry> {
        if let Some(points) = self.points(parent)
            && let Some(point) = points.child(parent, name)
        {
            return self.point_entry(point).await;
        }
        self.enter(parent)?;
        let (fs, mount, parent) = self.inside(parent, Errno::ENOENT).await?;
        Ok(outer_entry(mount, fs.lookup(ctx, parent, name).await?))
    }

    fn forget(&self, nodeid: NodeId, nlookup: u64) {
        if let Some(fs) = self.slot(mount_of(nodeid.0)).and_then(Slot::ready) {
            fs.forget(NodeId(inner(nodeid.0)), nlookup);
        }
    }

    async fn getattr(&self, ctx: Context, nodeid: NodeId, handle: Option<Handle>) -> Result<(Attr, Duration)> {
        if let Some(points) = self.points(nodeid)
            && let Some(point) = points.get(nodeid)
        {
            return self.point_attr(point).await;
        }
        let (fs, mount, nodeid) = self.inside(nodeid, Errno::EBADF).await?;
        let handle = handle.map(|handle| inner_handle(mount, handle)).transpose()?;
        let (attr, timeout) = fs.getattr(ctx, nodeid, handle).await?;
        Ok((outer_attr(mount, attr), timeout))
    }

    async fn setattr(&self, ctx: Context, nodeid: NodeId, change: SetAttr) -> Result<(Attr, Duration)> {
        let (fs, mount, nodeid) = self.writable(nodeid).await?;
        let handle = change.handle.map(|handle| inner_handle(mount, handle)).transpose()?;
        let (attr, timeout) = fs.setattr(ctx, nodeid, SetAttr { handle, ..change }).await?;
        Ok((outer_attr(mount, attr), timeout))
    }

    async fn readlink(&self, ctx: Context, nodeid: NodeId) -> Result<Vec<u8>> {
        let (fs, _, nodeid) = self.inside(nodeid, Errno::EINVAL).await?;
        fs.readlink(ctx, nodeid).await
    }

    async fn symlink(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        target: &[u8],
        ext: Extensions,
    ) -> Result<Entry> {
        let (fs, mount, parent) = self.new_name(parent, name).await?;
        Ok(outer_entry(mount, fs.symlink(ctx, parent, name, target, ext).await?))
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
        let (fs, mount, parent) = self.new_name(parent, name).await?;
        Ok(outer_entry(mount, fs.mknod(ctx, parent, name, mode, rdev, umask, ext).await?))
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
        let (fs, mount, parent) = self.new_name(parent, name).await?;
        Ok(outer_entry(mount, fs.mkdir(ctx, parent, name, mode, umask, ext).await?))
    }

    async fn unlink(&self, ctx: Context, parent: NodeId, name: &[u8]) -> Result<()> {
        let (fs, parent) = self.old_name(parent, name).await?;
        fs.unlink(ctx, parent, name).await
    }

    async fn rmdir(&self, ctx: Context, parent: NodeId, name: &[u8]) -> Result<()> {
        let (fs, parent) = self.old_name(parent, name).await?;
        fs.rmdir(ctx, parent, name).await
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
        if self.leads_on(parent, name) || self.leads_on(new_parent, new_name) {
            return Err(Errno::EBUSY);
        }
        self.enter(parent)?;
        self.enter(new_parent)?;
        match (self.place(parent)?, self.place(new_parent)?) {
            (Place::Own, _) | (_, Place::Own) => Err(Errno::EROFS),
            (Place::Mount(_, from, _), Place::Mount(_, to, _)) if from != to => Err(Errno::EXDEV),
            (_, Place::Mount(_, _, new_parent)) => {
                let (fs, _, parent) = self.writable(parent).await?;
                fs.rename(ctx, parent, name, new_parent, new_name, flags).await
            }
        }
    }

    async fn link(&self, ctx: Context, nodeid: NodeId, new_parent: NodeId, new_name: &[u8]) -> Result<Entry> {
        if mount_of(nodeid.0) != mount_of(new_parent.0) {
            return Err(Errno::EXDEV);
        }
        let (fs, mount, new_parent) = self.new_name(new_parent, new_name).await?;
        Ok(outer_entry(mount, fs.link(ctx, NodeId(inner(nodeid.0)), new_parent, new_name).await?))
    }

    async fn open(&self, ctx: Context, nodeid: NodeId, flags: u32, kill_priv: bool) -> Result<Opened> {
        self.enter(nodeid)?;
        if let Place::Mount(slot, ..) = self.place(nodeid)?
            && slot.readonly
            && let Some(errno) = refused_readonly(flags)
        {
            return Err(errno);
        }
        let (fs, mount, nodeid) = self.inside(nodeid, Errno::EISDIR).await?;
        Ok(outer_opened(mount, fs.open(ctx, nodeid, flags, kill_priv).await?))
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
        if let Place::Mount(slot, mount, node) = self.place(parent)?
            && slot.readonly
            && !self.leads_on(parent, name)
        {
            self.enter(parent)?;
            let (entry, opened) = readonly::create(slot.fs().await?, ctx, node, name, flags, kill_priv).await?;
            return Ok((outer_entry(mount, entry), outer_opened(mount, opened)));
        }
        let (fs, mount, parent) = self.new_name(parent, name).await?;
        let (entry, opened) = fs.create(ctx, parent, name, mode, flags, umask, kill_priv, ext).await?;
        Ok((outer_entry(mount, entry), outer_opened(mount, opened)))
    }

    async fn read(&self, ctx: Context, op: Read, out: &mut impl Sink) -> Result<usize> {
        let (fs, mount, nodeid) = self.inside(op.nodeid, Errno::EBADF).await?;
        fs.read(ctx, Read { nodeid, handle: inner_handle(mount, op.handle)?, ..op }, out).await
    }

    async fn write(&self, ctx: Context, op: Write, data: &mut impl Source) -> Result<usize> {
        let (fs, mount, nodeid) = self.writable(op.nodeid).await?;
        fs.write(ctx, Write { nodeid, handle: inner_handle(mount, op.handle)?, ..op }, data).await
    }

    async fn flush(&self, ctx: Context, nodeid: NodeId, handle: Handle, lock_owner: u64) -> Result<()> {
        let (fs, mount, nodeid) = self.inside(nodeid, Errno::EBADF).await?;
        fs.flush(ctx, nodeid, inner_handle(mount, handle)?, lock_owner).await
    }

    async fn fsync(&self, ctx: Context, nodeid: NodeId, handle: Handle, datasync: bool) -> Result<()> {
        let (fs, mount, nodeid) = self.inside(nodeid, Errno::EBADF).await?;
        fs.fsync(ctx, nodeid, inner_handle(mount, handle)?, datasync).await
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
        let (fs, mount, nodeid) = self.inside(nodeid, Errno::EBADF).await?;
        fs.release(ctx, nodeid, inner_handle(mount, handle)?, flags, lock_owner, flock_unlock).await
    }

    async fn statfs(&self, _: Context, nodeid: NodeId) -> Result<StatFs> {
        Ok(match self.place(nodeid)? {
            Place::Own => self.own.statfs(),
            Place::Mount(slot, ..) => slot.config.statfs(),
        })
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
        let (fs, _, nodeid) = self.writable(nodeid).await?;
        self.xattr_result(fs.setxattr(ctx, nodeid, name, value, flags, extra).await)
    }

    async fn getxattr(&self, ctx: Context, nodeid: NodeId, name: &[u8], size: u32) -> Result<XattrReply> {
        let (fs, _, nodeid) = self.inside(nodeid, self.no_xattr()).await?;
        self.xattr_result(fs.getxattr(ctx, nodeid, name, size).await)
    }

    async fn listxattr(&self, ctx: Context, nodeid: NodeId, size: u32) -> Result<XattrReply> {
        let (fs, _, nodeid) = self.inside(nodeid, self.no_xattr()).await?;
        self.xattr_result(fs.listxattr(ctx, nodeid, size).await)
    }

    async fn removexattr(&self, ctx: Context, nodeid: NodeId, name: &[u8]) -> Result<()> {
        let (fs, _, nodeid) = self.writable(nodeid).await?;
        self.xattr_result(fs.removexattr(ctx, nodeid, name).await)
    }

    async fn opendir(&self, ctx: Context, nodeid: NodeId, flags: u32) -> Result<Opened> {
        self.enter(nodeid)?;
        match self.place(nodeid)? {
            Place::Own => Ok(Opened { handle: None, flags: 0 }),
            Place::Mount(slot, mount, node) => {
                if slot.readonly
                    && let Some(errno) = refused_readonly(flags)
                {
                    return Err(errno);
                }
                Ok(outer_opened(mount, slot.fs().await?.opendir(ctx, node, flags).await?))
            }
        }
    }

    async fn readdir(
        &self,
        ctx: Context,
        nodeid: NodeId,
        handle: Handle,
        offset: u64,
        out: &mut impl DirSink,
    ) -> Result<()> {
        self.list(ctx, nodeid, handle, offset, false, out).await
    }

    async fn readdirplus(
        &self,
        ctx: Context,
        nodeid: NodeId,
        handle: Handle,
        offset: u64,
        out: &mut impl DirSink,
    ) -> Result<()> {
        self.list(ctx, nodeid, handle, offset, true, out).await
    }

    async fn fsyncdir(&self, ctx: Context, nodeid: NodeId, handle: Handle, datasync: bool) -> Result<()> {
        match self.place(nodeid)? {
            Place::Own => Ok(()),
            Place::Mount(slot, mount, node) => {
                slot.fs().await?.fsyncdir(ctx, node, inner_handle(mount, handle)?, datasync).await
            }
        }
    }

    async fn releasedir(&self, ctx: Context, nodeid: NodeId, handle: Handle, flags: u32) -> Result<()> {
        match self.place(nodeid)? {
            Place::Own => Ok(()),
            Place::Mount(slot, mount, node) => {
                slot.fs().await?.releasedir(ctx, node, inner_handle(mount, handle)?, flags).await
            }
        }
    }

    async fn access(&self, ctx: Context, nodeid: NodeId, mask: u32) -> Result<()> {
        let writes = mask & libc::W_OK.cast_unsigned() != 0;
        match self.place(nodeid)? {
            Place::Own if writes => Err(Errno::EROFS),
            Place::Own => Ok(()),
            Place::Mount(slot, ..) if writes && slot.readonly => Err(Errno::EROFS),
            Place::Mount(slot, _, node) => slot.fs().await?.access(ctx, node, mask).await,
        }
    }

    async fn lseek(&self, ctx: Context, at: FileAt, whence: u32) -> Result<u64> {
        let (fs, mount, _) = self.inside(at.nodeid, Errno::EBADF).await?;
        fs.lseek(ctx, inner_at(mount, at)?, whence).await
    }

    async fn fallocate(&self, ctx: Context, at: FileAt, length: u64, mode: u32) -> Result<()> {
        let (fs, mount, _) = self.writable(at.nodeid).await?;
        fs.fallocate(ctx, inner_at(mount, at)?, length, mode).await
    }

    async fn copy_file_range(&self, ctx: Context, from: FileAt, to: FileAt, len: u64, flags: u64) -> Result<usize> {
        if mount_of(from.nodeid.0) != mount_of(to.nodeid.0) {
            return Err(Errno::EXDEV);
        }
        let (fs, mount, _) = self.writable(to.nodeid).await?;
        fs.copy_file_range(ctx, inner_at(mount, from)?, inner_at(mount, to)?, len, flags).await
    }

    async fn syncfs(&self, ctx: Context, nodeid: NodeId) -> Result<()> {
        self.place(nodeid)?;
        // The guest knows one file system, and names its root.
        let ready = self.all().filter_map(Slot::ready);
        join_all(ready.map(|fs| fs.syncfs(ctx, NodeId::ROOT))).await.into_iter().collect()
    }
}
