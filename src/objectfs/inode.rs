//! What stands behind a nodeid: the last word of the store on it, and for files the bytes.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use event_listener::{Event, EventListener};

use super::attributes::{Birth, Posix, type_of};
use super::content::{BaseObject, Content};
use crate::cache::ContentId;
use crate::fs::{Errno, NodeId};
use crate::store::{Kind, Meta, Version};

/// A file or directory that the guest knows, or whose bytes the store does not have yet.
#[derive(Debug)]
pub struct Inode {
    /// Its number.
    pub id: NodeId,
    /// File or directory, for life: a name that changes kind gets another inode.
    pub kind: Kind,
    /// File type (S_IFMT bits), for life as well. Other types than directories are files with a mark, to the store.
    pub file_type: u32,
    /// Uploads of this file, one at a time.
    pub upload: Turn,
    /// Told of more bytes to send while they are sent in pieces.
    pub written: Event,
    /// Pieces on their way.
    pub pieces: AtomicUsize,
    /// Length in bytes of the next one.
    pub piece_len: AtomicU64,
    state: Mutex<State>,
}

/// A lock whose holder can know that somebody waits for it.
#[derive(Debug, Default)]
pub struct Turn {
    lock: async_lock::Mutex<()>,
    /// Those who wait.
    pub wanted: Wanted,
}

impl Turn {
    /// Waits until nobody else holds it.
    pub async fn lock(&self) -> async_lock::MutexGuard<'_, ()> {
        if let Some(guard) = self.lock.try_lock() {
            return guard;
        }
        let _waiting = self.wanted.want();
        self.lock.lock().await
    }

    /// The lock, if nobody holds it.
    pub fn try_lock(&self) -> Option<async_lock::MutexGuard<'_, ()>> {
        self.lock.try_lock()
    }
}

/// How many wait for something, and who is told of it.
#[derive(Debug, Default)]
pub struct Wanted {
    count: AtomicUsize,
    event: Event,
}

impl Wanted {
    /// Counts among those who wait, until the result is dropped.
    pub fn want(&self) -> Wanting<'_> {
        self.count.fetch_add(1, Ordering::SeqCst);
        self.event.notify(usize::MAX);
        Wanting(self)
    }

    /// Whether anybody waits. Take [`Wanted::listen`] first.
    pub fn is_wanted(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    /// Resolves when the next one begins to wait.
    pub fn listen(&self) -> EventListener {
        self.event.listen()
    }
}

/// Somebody waits.
#[derive(Debug)]
pub struct Wanting<'a>(&'a Wanted);

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What changes of an inode. Never locked across an await; taken after the tree's lock, never before it.
#[derive(Debug)]
pub struct State {
    /// ETag as the store last said it.
    pub etag: Option<String>,
    /// Whether a directory has a marker of its own, as far as known.
    pub marker: Option<bool>,
    /// When the store was last asked, if its answer may still be used.
    pub asked: Option<Instant>,
    /// When the name was last found to lead here, if that is longer ago: since then the store was asked for the object alone,
    /// which may be hidden by a directory of its name.
    pub named: Option<Instant>,
    /// When the store's answer to the last lookup of the name came, if nothing has been asked of this inode since.
    pub looked_up: Option<Instant>,
    /// Answers to questions asked before this moment are out of date: we changed the object then.
    pub committed: Option<Instant>,
    /// Modification time in nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Access time in nanoseconds since the epoch.
    pub atime_ns: i64,
    /// Modification time that the store gave for the base object.
    pub store_mtime_ns: Option<i64>,
    /// `mtime_ns` is ours (a write or utimensat(2)) and the store's time of the same version does not replace it.
    pub own_mtime: bool,
    /// Attributes beside these, and whether the store has them.
    pub posix: Posix,
    /// The object is being replaced by itself with other attributes, so what the store says meanwhile counts for nothing.
    pub saving: bool,
    /// The bytes, of a file.
    pub content: Content,
    /// Lineage of the bytes when the file was last opened: what the guest's page cache may hold.
    pub cached: Option<u64>,
    /// Open handles.
    pub open: u32,
    /// Open handles that may write.
    pub writers: u32,
    /// Where the object of an unlinked open file is kept, if it has one.
    pub hidden: Option<String>,
    /// The name is gone; nothing of this file is to reach it any more.
    pub unlinked: bool,
    /// It was renamed over an object before its own first upload: until then that object stands at its path.
    pub shadows: bool,
    /// Created with O_EXCL: the first upload must find nothing there.
    pub exclusive: bool,
    /// A directory above was renamed: the object's version may have changed though its bytes have not.
    pub moved: bool,
    /// The last upload failed for good: the store will not take these bytes at this name.
    pub refused: Option<Errno>,
    /// What the store had taken in pieces is gone, and nobody was told yet.
    pub lost: Option<Errno>,
    /// It is being sent in pieces, or about to.
    pub flowing: bool,
    /// The store does not take it in pieces; asked again after the next upload.
    pub no_flow: bool,
    /// An upload in the background failed, and nobody was told yet.
    pub unreported: Option<Errno>,
}

/// Nanoseconds since the epoch, now.
pub fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

impl Inode {
    /// An inode as `meta` describes it, asked for at `asked`.
    pub fn of_store(id: NodeId, meta: &Meta, asked: Instant, content: ContentId, fallback_ns: i64) -> Inode {
        let mtime_ns = meta.mtime_ns.unwrap_or(fallback_ns);
        let content = match meta.kind {
            Kind::File => Content::of_store(meta.version(), content),
            Kind::Dir => Content::default(),
        };
        let file_type = type_of(meta).unwrap_or(libc::S_IFREG);
        Inode::new(id, (meta.kind, file_type), content, mtime_ns, |state| {
            state.etag.clone_from(&meta.etag);
            state.store_mtime_ns = meta.mtime_ns;
            state.marker = meta.marker;
            state.asked = Some(asked);
            if let Some(details) = &meta.details {
                state.told(details, asked);
            }
        })
    }

    /// A new, empty file that the store does not have yet.
    pub fn new_file(id: NodeId, exclusive: bool, birth: Birth) -> Inode {
        Inode::new(id, (Kind::File, birth.file_type), Content::new_local(), now_ns(), |state| {
            state.own_mtime = true;
            state.exclusive = exclusive;
            state.posix.born(birth);
        })
    }

    fn new(
        id: NodeId,
        (kind, file_type): (Kind, u32),
        content: Content,
        mtime_ns: i64,
        set: impl FnOnce(&mut State),
    ) -> Inode {
        let mut state = State {
            etag: None,
            marker: None,
            asked: None,
            named: None,
            looked_up: None,
            committed: None,
            mtime_ns,
            atime_ns: mtime_ns,
            store_mtime_ns: None,
            own_mtime: false,
            posix: Posix::new(mtime_ns),
            saving: false,
            content,
            cached: None,
            open: 0,
            writers: 0,
            hidden: None,
            unlinked: false,
            shadows: false,
            exclusive: false,
            moved: false,
            refused: None,
            lost: None,
            flowing: false,
            no_flow: false,
            unreported: None,
        };
        set(&mut state);
        Inode {
            id,
            kind,
            file_type,
            upload: Turn::default(),
            written: Event::new(),
            pieces: AtomicUsize::new(0),
            piece_len: AtomicU64::new(0),
            state: Mutex::new(state),
        }
    }

    /// The changing part.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses directories.
    ///
    /// # Errors
    /// EISDIR.
    pub fn file(&self) -> Result<&Inode, Errno> {
        if self.kind == Kind::File { Ok(self) } else { Err(Errno::EISDIR) }
    }

    /// Refuses all but regular files: what else there is has no bytes that a guest could reach.
    ///
    /// # Errors
    /// EISDIR; ELOOP: a symbolic link; EINVAL: a FIFO or a socket.
    pub fn regular(&self) -> Result<&Inode, Errno> {
        match self.file_type {
            libc::S_IFREG => Ok(self),
            libc::S_IFDIR => Err(Errno::EISDIR),
            libc::S_IFLNK => Err(Errno::ELOOP),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Whether `meta` can be of this inode.
    pub fn is(&self, meta: &Meta) -> bool {
        self.kind == meta.kind && type_of(meta).is_none_or(|file_type| file_type == self.file_type)
    }

    /// Refuses files.
    ///
    /// # Errors
    /// ENOTDIR.
    pub fn dir(&self) -> Result<&Inode, Errno> {
        if self.kind == Kind::Dir { Ok(self) } else { Err(Errno::ENOTDIR) }
    }
}

/// Whether `meta` is of the bytes that are known by `etag`, `size` and the store's `mtime_ns`: by ETag where both
/// have one, else by size and time as far as both are known.
fn same_version(etag: Option<&String>, size: u64, mtime_ns: Option<i64>, meta: &Meta) -> bool {
    match (etag, &meta.etag) {
        (Some(a), Some(b)) => a == b,
        _ => size == meta.size && mtime_ns.zip(meta.mtime_ns).is_none_or(|(a, b)| a == b),
    }
}

impl State {
    /// Whether what the guest did to this file is more recent than anything that the store can say.
    pub fn is_local(&self) -> bool {
        self.unlinked || self.content.is_dirty() || self.saving
    }

    /// Whether `meta` is of the bytes that are known.
    pub fn agrees(&self, meta: &Meta) -> bool {
        let same =
            |base: &BaseObject| same_version(base.version.etag.as_ref(), base.version.size, self.store_mtime_ns, meta);
        meta.kind == Kind::Dir || self.is_local() || self.content.base().is_some_and(same)
    }

    /// Whether the attributes that are known are those of the object that a listing shows as `meta`. Other attributes are another
    /// object with the same ETag and a later time; the time has whole seconds, so what was known in the second of the
    /// object's making may be out of date.
    pub fn attributes_stand(&self, meta: &Meta) -> bool {
        const DOUBT_NS: i64 = 2_000_000_000;
        let Some(told) = self.posix.asked.filter(|_| self.posix.known) else { return false };
        let Some(mtime_ns) = meta.mtime_ns.filter(|_| meta.etag.is_some()) else { return false };
        let told_ns = now_ns().saturating_sub(i64::try_from(told.elapsed().as_nanos()).unwrap_or(i64::MAX));
        self.etag == meta.etag && self.store_mtime_ns == meta.mtime_ns && told_ns > mtime_ns.saturating_add(DOUBT_NS)
    }

    /// The version of the object that the bytes lie over, if it is known: not after a directory above was renamed.
    pub fn object_version(&self) -> Option<Version> {
        self.content.base().filter(|_| !self.moved).map(|base| base.version.clone())
    }

    /// An upload succeeded after earlier ones had failed: only of a conflict somebody must still be told.
    pub fn stored_late(&mut self) {
        self.unreported = self.unreported.filter(|errno| *errno == Errno::ESTALE);
    }

    /// The file changed under the guest's hands.
    pub fn touch(&mut self) {
        self.mtime_ns = now_ns();
        self.own_mtime = true;
        self.posix.ctime_ns = self.mtime_ns;
    }

    /// Whether what is known is from later than an answer asked for at `asked`.
    pub fn known_since(&self, asked: Instant) -> bool {
        self.committed.is_some_and(|at| asked < at) || self.asked.is_some_and(|at| asked < at)
    }

    /// What the store says of the object alone, asked for at `asked`, is taken in.
    pub fn asked_for_object(&mut self, asked: Instant) {
        self.named = self.named.or(self.asked);
        self.asked = Some(asked);
    }

    /// Asked for at `asked`, the name leads here.
    pub fn stands(&mut self, asked: Instant) {
        self.named = self.named.map(|before| before.max(asked));
    }

    /// The store has nothing here, said it when asked at `asked`; the inode stays for what the guest did.
    pub fn absent(&mut self, asked: Instant) {
        if !self.known_since(asked) && self.marker.is_some() {
            self.marker = Some(false);
        }
    }

    /// Whether the name is known to lead here from later than an answer asked for at `asked`.
    pub fn named_since(&self, asked: Instant) -> bool {
        self.committed.is_some_and(|at| asked < at) || self.named.or(self.asked).is_some_and(|at| asked < at)
    }

    /// Nobody has this nameless file open any more: the memory of what was written to it is free again, though the guest may
    /// remember its number for long.
    pub fn let_go(&mut self) {
        if self.content.is_dirty() {
            self.content.abandon();
        }
    }

    /// Takes in what the store said when asked at `asked`. `fresh` numbers the bytes if they are others than before.
    pub fn observe(&mut self, kind: Kind, meta: &Meta, asked: Instant, fresh: impl FnOnce() -> ContentId) {
        if self.known_since(asked) {
            return;
        }
        self.asked = Some(asked);
        if kind == Kind::Dir {
            if meta.marker.is_some() {
                self.marker = meta.marker;
            }
            if let Some(mtime_ns) = meta.mtime_ns.filter(|_| !self.own_mtime) {
                self.mtime_ns = mtime_ns;
            }
            if let Some(details) = &meta.details {
                self.told(details, asked);
            }
            return;
        }
        if self.is_local() {
            return;
        }
        self.observe_bytes(meta, fresh);
        if let Some(details) = &meta.details {
            // Attributes change without the bytes, and then the version stays.
            self.told(details, asked);
        }
    }

    fn observe_bytes(&mut self, meta: &Meta, fresh: impl FnOnce() -> ContentId) {
        if self.is_base(meta) {
            if meta.etag.is_some() || self.moved {
                self.content.rebase(meta.version());
                self.etag.clone_from(&meta.etag);
            }
            self.store_mtime_ns = meta.mtime_ns.or(self.store_mtime_ns);
            self.moved = false;
            return;
        }
        self.moved = false;
        self.content.replace(meta.version(), fresh());
        self.etag.clone_from(&meta.etag);
        self.posix.object = None;
        self.posix.asked = None;
        if self.posix.is_dirty() {
            // The guest's times, which the store is still to get.
            self.store_mtime_ns = meta.mtime_ns;
            return;
        }
        self.own_mtime = false;
        self.mtime_ns = meta.mtime_ns.unwrap_or(self.mtime_ns);
        self.store_mtime_ns = meta.mtime_ns;
        self.atime_ns = self.mtime_ns;
    }

    /// Whether `meta` is of the version that the bytes lie over.
    pub fn is_base(&self, meta: &Meta) -> bool {
        self.content.base().is_some_and(|base| {
            same_version(base.version.etag.as_ref(), base.version.size, self.store_mtime_ns, meta)
                || (self.moved && base.version.size == meta.size)
        })
    }

    /// Our own upload stands in the store as `meta`.
    pub fn committed(&mut self, meta: &Meta) {
        self.etag.clone_from(&meta.etag);
        self.store_mtime_ns = meta.mtime_ns;
        self.committed = Some(Instant::now());
        self.asked = self.committed;
        self.named = None;
        self.posix.asked = self.committed;
        self.posix.object_is(meta);
        self.exclusive = false;
        self.shadows = false;
        self.moved = false;
        self.refused = None;
        self.no_flow = false;
    }
}
