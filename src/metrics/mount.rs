//! What the device process counts of one mount.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::board::{Board, SHARDS, shard};
use crate::process::throttle::Throttle;

/// Lines per minute about files whose content goes, or is kept, somewhere else than the guest wanted.
const CONFLICTS: u64 = 20;

/// Size classes of the pool: 4 KiB and its doubles, to 4 MiB.
pub const CLASSES: usize = 11;

/// The counters of a mount. They lie in memory that two processes share.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct MountCounts {
    /// Bytes of the pool that are its own.
    pub pool_bytes: AtomicU64,
    /// Of those, bytes in blocks in use, by size class.
    pub used_bytes: [AtomicU64; CLASSES],
    /// Blocks that were taken so far from those at hand, by size class.
    pub taken_listed: [AtomicU64; CLASSES],
    /// Blocks that were taken so far from elsewhere, by size class.
    pub taken_cut: [AtomicU64; CLASSES],
    /// Bytes in blocks that hold what the store does not have.
    pub dirty_bytes: AtomicU64,
    /// When the oldest of those became so, in nanoseconds after [`Board::now`]'s zero; 0: there is none.
    pub dirty_since: AtomicU64,
    /// nodeids in use.
    pub nodeids: AtomicU64,
    /// Open files.
    pub files: AtomicU64,
    /// Open directories.
    pub dirs: AtomicU64,
    /// Times that somebody waited because the memory was full.
    pub full: AtomicU64,
    /// Files that were changed here and in the store at once.
    pub conflicts: AtomicU64,
    /// What was read, by the thread that read it.
    pub reads: [ReadCounts; SHARDS],
}

/// Reads of a thread. Each has a cache line of its own, so that queues whose reads memory answers do not wait for one
/// another.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub struct ReadCounts {
    /// Pieces of reads that were answered from memory.
    pub hits: AtomicU64,
    /// Their bytes.
    pub hit_bytes: AtomicU64,
    /// Pieces of reads that waited for the store.
    pub misses: AtomicU64,
    /// Their bytes.
    pub miss_bytes: AtomicU64,
}

impl MountCounts {
    /// A piece of a read that memory had.
    pub fn hit(&self, bytes: usize) {
        if let Some(reads) = self.reads.get(shard()) {
            reads.hits.fetch_add(1, Ordering::Relaxed);
            reads.hit_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// A piece of a read that the store had to be asked for.
    pub fn miss(&self, bytes: usize) {
        if let Some(reads) = self.reads.get(shard()) {
            reads.misses.fetch_add(1, Ordering::Relaxed);
            reads.miss_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// One counter of what all threads have read.
    pub fn read(&self, counter: impl Fn(&ReadCounts) -> &AtomicU64) -> u64 {
        self.reads.iter().fold(0, |sum, reads| sum.wrapping_add(counter(reads).load(Ordering::Relaxed)))
    }

    /// A block of this order (size class) and length in bytes is in use; `listed`: it was at hand.
    pub fn taken(&self, order: u8, bytes: usize, listed: bool) {
        let order = usize::from(order);
        if let Some(class) = self.used_bytes.get(order) {
            class.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        let taken = if listed { &self.taken_listed } else { &self.taken_cut };
        if let Some(class) = taken.get(order) {
            class.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many blocks were taken so far.
    pub fn taken_so_far(&self) -> u64 {
        let all = self.taken_listed.iter().chain(&self.taken_cut);
        all.fold(0, |sum, class| sum.wrapping_add(class.load(Ordering::Relaxed)))
    }

    /// It is not any more.
    pub fn given(&self, order: u8, bytes: usize) {
        if let Some(class) = self.used_bytes.get(usize::from(order)) {
            class.fetch_sub(bytes as u64, Ordering::Relaxed);
        }
    }
}

/// One mount's counters, wherever they lie, and its lines of the log.
#[derive(Clone, Debug)]
pub struct MountMeter {
    counts: Place,
    said: Arc<Said>,
}

/// Lines of the log about a mount: of each sort one per minute, but for those that name where a guest's data is.
#[derive(Debug)]
pub struct Said {
    /// What lines about the mount begin with: nothing for the root.
    place: String,
    /// Uploads that failed and are tried again.
    pub retries: Throttle,
    /// Uploads that the store refuses.
    pub refusals: Throttle,
    /// Waiting for memory.
    pub full: Throttle,
    /// Two writers of one object.
    pub conflicts: Throttle,
}

impl Said {
    fn new(path: &str) -> Said {
        let place = if matches!(path, "" | "/") { String::new() } else { format!("{path}: ") };
        let (retries, full) = (Throttle::new(), Throttle::new());
        Said { place, retries, refusals: Throttle::several(CONFLICTS), full, conflicts: Throttle::several(CONFLICTS) }
    }
}

#[derive(Clone, Debug)]
enum Place {
    /// Nobody looks.
    Own(Arc<(MountCounts, Instant)>),
    /// Number so many of a board, which has it.
    Board(Arc<Board>, usize),
}

impl Place {
    fn own() -> Place {
        Place::Own(Arc::new((MountCounts::default(), Instant::now())))
    }
}

impl MountMeter {
    /// Those of mount number `mount` of `board`, at `path` of the share; if it has no such mount, nobody will see what is
    /// counted.
    pub fn of(board: &Arc<Board>, mount: usize, path: &str) -> MountMeter {
        let counts = match board.mount(mount) {
            Some(_) => Place::Board(Arc::clone(board), mount),
            None => Place::own(),
        };
        MountMeter { counts, said: Arc::new(Said::new(path)) }
    }

    /// What lines of the log about the mount begin with: nothing for the root.
    pub fn place(&self) -> &str {
        &self.said.place
    }

    /// Its lines of the log.
    pub fn said(&self) -> &Said {
        &self.said
    }

    /// Nanoseconds since some moment in the past, at least 1.
    pub fn now(&self) -> u64 {
        match &self.counts {
            Place::Own(own) => super::board::since(own.1),
            Place::Board(board, _) => board.now(),
        }
    }
}

impl Default for MountMeter {
    fn default() -> MountMeter {
        MountMeter { counts: Place::own(), said: Arc::new(Said::new("/")) }
    }
}

impl Deref for MountMeter {
    type Target = MountCounts;

    fn deref(&self) -> &MountCounts {
        static NOBODY: std::sync::LazyLock<MountCounts> = std::sync::LazyLock::new(MountCounts::default);
        match &self.counts {
            Place::Own(own) => &own.0,
            // `of` has seen that it is there.
            Place::Board(board, mount) => board.mount(*mount).unwrap_or(&NOBODY),
        }
    }
}
