//! What all operations share: the tree, the handles, the memory, the store.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::executor::{ThreadPool, ThreadPoolBuilder};
use serde::{Deserialize, Serialize};

use super::attributes::{Birth, Owned, PERMISSIONS};
use super::deletions::Deletions;
use super::due::DueList;
use super::handles::Handles;
use super::ids::Ids;
use super::inode::{Inode, State, Wanted, now_ns};
use super::listings::Listings;
use super::tree::{Tree, is_reserved};
use crate::cache::{Blocks, CleanCache, Part};
use crate::fs::flags::init;
use crate::fs::{Attr, Context, Entry, Errno, NodeId, Result, StatFs};
use crate::metrics::MountMeter;
use crate::store::path::check_name;
use crate::store::{Attributes, Capabilities, Kind, ListEntry, Meta, Remote, Store, StoreError};

/// How the guest may cache, by `--cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CachePolicy {
    /// Nothing is trusted; files bypass the guest's page cache.
    Never,
    /// A second for names and attributes.
    Auto,
    /// A day for names and attributes; files bypass the guest's page cache.
    Metadata,
    /// A day for everything.
    Always,
}

/// What becomes of what the guest wrote to a file that somebody else has changed in the store meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnConflict {
    /// fsync(2) and close(2) say ESTALE, and theirs stays; what the guest wrote is gone after the last close.
    Fail,
    /// Ours replaces theirs.
    Overwrite,
    /// Theirs stays, ours is stored beside it under another name; fsync(2) and close(2) say ESTALE.
    KeepBoth,
}

/// Settings of an object file system.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Config {
    /// How the guest may cache.
    pub cache: CachePolicy,
    /// How long names and attributes may be trusted under [`CachePolicy::Auto`], if not a second.
    pub expiration: Option<Duration>,
    /// READDIRPLUS is offered.
    pub readdirplus: bool,
    /// The guest may collect writes in its page cache.
    pub writeback: bool,
    /// Files that bypass the page cache may be mapped shared.
    pub allow_mmap: bool,
    /// FUSE_HANDLE_KILLPRIV_V2 is offered.
    pub killpriv_v2: bool,
    /// Owner of everything.
    pub uid: u32,
    /// Group of everything.
    pub gid: u32,
    /// Permission bits of files.
    pub file_mode: u32,
    /// Permission bits of directories.
    pub dir_mode: u32,
    /// Owners, modes, times, extended attributes and file types are kept in the store; those above are for objects that
    /// have none.
    pub posix: bool,
    /// The guest may use extended attributes.
    pub xattr: bool,
    /// What is done about a file that somebody else has changed.
    pub on_conflict: OnConflict,
    /// Size of the file system in bytes, as statfs(2) says it.
    pub capacity: u64,
    /// How long a closed file may wait before it is uploaded; zero: closing waits for the store.
    pub writeback_delay: Duration,
    /// How much of the memory may hold what the store does not have yet, in percent.
    pub dirty_ratio: u32,
    /// Length of the first pieces in which a long file is sent to the store while it is written, in bytes.
    pub piece: u64,
    /// What a read at random fetches around itself, in bytes: a power of two.
    pub block_size: u64,
    /// Most inodes the guest may know at once.
    pub inodes_max: usize,
    /// Most open files, and most open directories.
    pub handles_max: usize,
}

impl Config {
    /// How long names and attributes may be trusted.
    pub fn timeout(&self) -> Duration {
        match self.cache {
            CachePolicy::Never => Duration::ZERO,
            CachePolicy::Auto => self.expiration.unwrap_or(Duration::from_secs(1)),
            CachePolicy::Metadata | CachePolicy::Always => Duration::from_secs(86_400),
        }
    }

    /// The optional FUSE_INIT flags ([`init`]) that it calls for.
    pub fn init_flags(&self) -> u64 {
        let readdirplus = self.readdirplus && self.cache != CachePolicy::Never;
        let wanted = [
            (readdirplus, init::DO_READDIRPLUS | init::READDIRPLUS_AUTO),
            (self.writeback, init::WRITEBACK_CACHE),
            (self.killpriv_v2 && !self.posix, init::HANDLE_KILLPRIV_V2),
            (self.allow_mmap, init::DIRECT_IO_ALLOW_MMAP),
        ];
        wanted.iter().filter(|(on, _)| *on).fold(0, |flags, (_, flag)| flags | flag)
    }

    /// What statfs(2) says. A store has no size: what the operator says of it, all free.
    pub fn statfs(&self) -> StatFs {
        const FILES: u64 = 1 << 40;
        let blocks = self.capacity / 4096;
        StatFs {
            blocks,
            bfree: blocks,
            bavail: blocks,
            files: FILES,
            ffree: FILES,
            bsize: 4096,
            namelen: 255,
            frsize: 4096,
        }
    }
}

/// What all operations share.
pub struct Core<S> {
    pub(super) config: Config,
    pub(super) ids: Arc<Ids>,
    pub(super) remote: Remote<S>,
    pub(super) capabilities: Capabilities,
    pub(super) blocks: Arc<Blocks>,
    pub(super) clean: CleanCache,
    /// Held for reading by what depends on the path of a file staying as it is, for writing by renames.
    pub(super) renaming: async_lock::RwLock<()>,
    /// Who wants `renaming` for writing.
    pub(super) rename_wanted: Wanted,
    /// Numbers of what is sent in pieces.
    pub(super) flows: AtomicU64,
    /// Handles that are read from front to back.
    pub(super) reading_ahead: Arc<AtomicUsize>,
    pub(super) handles: Handles,
    pub(super) deletions: Deletions,
    pub(super) listings: Arc<Listings>,
    /// Attributes that wait to be stored.
    pub(super) pending: Arc<DueList>,
    /// Closed files that wait to be stored.
    pub(super) closed_files: Arc<DueList>,
    /// An upload failed since the retrier last looked.
    pub(super) retry_wanted: AtomicBool,
    /// Runs what no request waits for.
    pub(super) background: ThreadPool,
    /// How long names and attributes may be trusted under [`CachePolicy::Auto`], in milliseconds.
    expiration_ms: AtomicU64,
    tree: Mutex<Tree>,
    /// Answers asked for before this moment are out of date: tests let time pass without waiting.
    #[cfg(test)]
    expired: Mutex<Option<Instant>>,
    me: Weak<Core<S>>,
}

impl<S: Store> Core<S> {
    /// A file system over `remote`, whose file data lives in `memory`.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn new(
        config: Config,
        ids: Arc<Ids>,
        remote: Remote<S>,
        capabilities: Capabilities,
        memory: Part,
    ) -> std::io::Result<Arc<Core<S>>> {
        let meter = memory.meter().clone();
        let tree = Tree::new(now_ns(), config.inodes_max, meter.clone());
        let background = ThreadPoolBuilder::new().pool_size(1).name_prefix("ovfs-background").create()?;
        Ok(Arc::new_cyclic(|me| Core {
            config,
            ids,
            remote,
            capabilities,
            blocks: Blocks::new(memory),
            clean: CleanCache::new(),
            renaming: async_lock::RwLock::new(()),
            rename_wanted: Wanted::default(),
            flows: AtomicU64::new(0),
            reading_ahead: Arc::default(),
            handles: Handles::new(config.handles_max, meter),
            deletions: Deletions::default(),
            listings: tree.listings(),
            pending: tree.pending(),
            closed_files: Arc::new(super::writeback::list(config.writeback_delay)),
            retry_wanted: AtomicBool::new(false),
            background,
            expiration_ms: AtomicU64::new(millis(config.timeout())),
            tree: Mutex::new(tree),
            #[cfg(test)]
            expired: Mutex::new(None),
            me: Weak::clone(me),
        }))
    }

    /// How long names and attributes may be trusted.
    pub(super) fn timeout(&self) -> Duration {
        match self.config.cache {
            CachePolicy::Auto => Duration::from_millis(self.expiration_ms.load(Ordering::Relaxed)),
            _ => self.config.timeout(),
        }
    }

    /// That is another time from now on, under [`CachePolicy::Auto`].
    pub(super) fn set_expiration(&self, time: Duration) {
        self.expiration_ms.store(millis(time), Ordering::Relaxed);
    }

    /// The tree. Locked before any inode's state.
    pub(super) fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the mount counts.
    pub(super) fn meter(&self) -> &MountMeter {
        self.blocks.meter()
    }

    /// Runs `work` with nobody waiting for it.
    pub(super) fn spawn<Fut: Future<Output = ()> + Send + 'static>(&self, work: impl FnOnce(Arc<Core<S>>) -> Fut) {
        if let Some(me) = self.me.upgrade() {
            self.background.spawn_ok(work(me));
        }
    }

    /// As [`Core::spawn`], begun at once: what `work` does before it first waits is done when this returns.
    pub(super) fn begin<Fut: Future<Output = ()> + Send + 'static>(&self, work: impl FnOnce(Arc<Core<S>>) -> Fut) {
        if let Some(me) = self.me.upgrade() {
            let mut work = Box::pin(work(me));
            if (&mut work).now_or_never().is_none() {
                self.background.spawn_ok(work);
            }
        }
    }

    /// Most bytes that may be dirty: never all of the memory, so that reading always finds some.
    pub(super) fn dirty_max(&self) -> usize {
        let (len, percent) = (self.blocks.len(), self.config.dirty_ratio as usize);
        len / 100 * percent + len % 100 * percent / 100
    }

    /// Whether an answer of the store asked for at `asked` may still be used.
    pub(super) fn is_fresh(&self, asked: Option<Instant>) -> bool {
        #[cfg(test)]
        let asked = asked.filter(|at| self.expired.lock().is_ok_and(|expired| expired.is_none_or(|limit| *at > limit)));
        let timeout = self.timeout();
        asked.is_some_and(|at| at.elapsed() < timeout)
    }

    /// As [`Core::knows`], and its name may be taken to lead to it.
    pub(super) fn knows_by_name(&self, state: &State) -> bool {
        let named = state.is_local() || state.named.is_none_or(|named| self.is_fresh(Some(named)));
        named && self.knows(state)
    }

    /// Whether what is known of an inode may be told to the guest without asking the store.
    pub(super) fn knows(&self, state: &State) -> bool {
        let attributes = !self.config.posix || self.is_fresh(state.posix.asked);
        state.is_local() || (self.is_fresh(state.asked) && attributes)
    }

    /// Asks the store about `path`. The answer says what the mount keeps of attributes, and no more: none is all defaults.
    pub(super) async fn stat(&self, path: String) -> Result<Meta, StoreError> {
        self.remote.stat(path).await.map(|meta| self.complete(meta))
    }

    /// As [`Core::stat`], with all names of a directory if they come along.
    pub(super) async fn look(&self, path: String) -> Result<(Meta, Option<Vec<ListEntry>>), StoreError> {
        let (meta, below) = self.remote.look(path).await?;
        Ok((self.complete(meta), below))
    }

    /// As [`Core::stat`], of what a listing has told to be of this kind.
    pub(super) async fn tell_one(&self, path: &str, kind: Kind) -> Result<Meta, StoreError> {
        self.remote.tell(path, kind).await.map(|meta| self.complete(meta))
    }

    fn complete(&self, mut meta: Meta) -> Meta {
        if self.config.posix {
            let told = meta.details.is_some();
            let attributes = &mut meta.details.get_or_insert_default().attributes;
            if !told || (meta.kind == Kind::Dir && meta.marker == Some(false)) {
                // Nothing is there that could have any.
                attributes.xattrs.get_or_insert_default();
            }
        } else if let Some(details) = &mut meta.details {
            details.attributes = Attributes::default();
        }
        meta
    }

    /// What a new inode of type `file_type` below `parent` begins with, asked for by `ctx` with `mode`. In a set-group-id
    /// directory it is of the directory's group, and a directory is such a one, too.
    ///
    /// # Errors
    /// A rule forbids that user or group to own anything.
    pub(super) fn birth(&self, ctx: Context, parent: NodeId, file_type: u32, mode: u32, umask: u32) -> Result<Birth> {
        if !self.config.posix {
            return Ok(Birth { file_type, owned: None });
        }
        let above = self.inode(parent)?;
        let (above_mode, above_gid) = {
            let state = above.state();
            (state.posix.mode.unwrap_or(self.config.dir_mode), state.posix.gid.unwrap_or(self.config.gid))
        };
        let inherits = above_mode & libc::S_ISGID != 0;
        let gid = if inherits { above_gid } else { self.ids.stored_gid(ctx.gid)? };
        let mut mode = mode & PERMISSIONS & !umask;
        if inherits && file_type == libc::S_IFDIR {
            mode |= libc::S_ISGID;
        }
        Ok(Birth { file_type, owned: Some(Owned { mode, uid: self.ids.stored_uid(ctx.uid)?, gid }) })
    }

    /// As if the time for which answers of the store may be used had passed.
    #[cfg(test)]
    pub(super) fn expire(&self) {
        *self.expired.lock().expect("no panics in it") = Some(Instant::now());
    }

    /// A name that is to be created or removed.
    ///
    /// # Errors
    /// EILSEQ: not UTF-8. EINVAL: a name that no key can have, or one of ours.
    pub(super) fn new_name(parent: NodeId, name: &[u8]) -> Result<&str> {
        let name = check_name(name)?;
        if is_reserved(parent, name) || name.trim() != name {
            return Err(Errno::EINVAL);
        }
        Ok(name)
    }

    /// A name that is looked up: what no key can have, does not exist.
    ///
    /// # Errors
    /// ENOENT; ENAMETOOLONG.
    pub(super) fn old_name(parent: NodeId, name: &[u8]) -> Result<&str> {
        match Self::new_name(parent, name) {
            Err(Errno::EILSEQ | Errno::EINVAL) => Err(Errno::ENOENT),
            other => other,
        }
    }

    /// Attributes as the guest sees them.
    pub(super) fn attr(&self, inode: &Inode) -> Attr {
        let state = inode.state();
        let (default, nlink, size) = match inode.kind {
            Kind::File => (self.config.file_mode, u32::from(!state.unlinked), state.content.size()),
            // One link, not two: "unknown number of subdirectories" to find(1) and others that count.
            Kind::Dir => (self.config.dir_mode, 1, 0),
        };
        let mode = inode.file_type | state.posix.mode.unwrap_or(default);
        let (mtime, mtimensec) = split_ns(state.mtime_ns);
        let (atime, atimensec) = split_ns(state.atime_ns);
        let (ctime, ctimensec) = split_ns(if self.config.posix { state.posix.ctime_ns } else { state.mtime_ns });
        Attr {
            ino: inode.id.0,
            size,
            blocks: size.div_ceil(512),
            atime,
            mtime,
            ctime,
            atimensec,
            mtimensec,
            ctimensec,
            mode,
            nlink,
            uid: self.ids.guest_uid(state.posix.uid.unwrap_or(self.config.uid)),
            gid: self.ids.guest_gid(state.posix.gid.unwrap_or(self.config.gid)),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// The answer that names `inode`; the caller has raised its lookup count.
    pub(super) fn entry(&self, inode: &Inode) -> Entry {
        let timeout = self.timeout();
        Entry { nodeid: inode.id, generation: 0, attr: self.attr(inode), entry_timeout: timeout, attr_timeout: timeout }
    }

    /// The inode behind `nodeid`.
    ///
    /// # Errors
    /// EBADF.
    pub(super) fn inode(&self, nodeid: NodeId) -> Result<Arc<Inode>> {
        self.tree().inode(nodeid)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds and nanoseconds of a time in nanoseconds since the epoch.
fn split_ns(ns: i64) -> (i64, u32) {
    let nanos = ns.rem_euclid(1_000_000_000);
    (ns.div_euclid(1_000_000_000), u32::try_from(nanos).unwrap_or(0))
}

/// The other way round, as far as 64 bits go.
pub(super) fn join_ns(seconds: i64, nanos: u32) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(nanos))
}
