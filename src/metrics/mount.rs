//! What the device process counts of one mount.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::board::Board;

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
    /// Pieces of reads that were answered from memory, and their bytes.
    pub hits: AtomicU64,
    /// As `hits`.
    pub hit_bytes: AtomicU64,
    /// Pieces of reads that waited for the store, and their bytes.
    pub misses: AtomicU64,
    /// As `misses`.
    pub miss_bytes: AtomicU64,
}

impl MountCounts {
    /// A piece of a read that memory had.
    pub fn hit(&self, bytes: usize) {
        self.hits.fetch_add(1, Ordering::Relaxed);
        self.hit_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A piece of a read that the store had to be asked for.
    pub fn miss(&self, bytes: usize) {
        self.misses.fetch_add(1, Ordering::Relaxed);
        self.miss_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A block of this order (size class) and length in bytes is in use.
    pub fn taken(&self, order: u8, bytes: usize) {
        if let Some(class) = self.used_bytes.get(usize::from(order)) {
            class.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// It is not any more.
    pub fn given(&self, order: u8, bytes: usize) {
        if let Some(class) = self.used_bytes.get(usize::from(order)) {
            class.fetch_sub(bytes as u64, Ordering::Relaxed);
        }
    }
}

/// One mount's counters, wherever they lie.
#[derive(Clone, Debug)]
pub struct MountMeter(Place);

#[derive(Clone, Debug)]
enum Place {
    /// Nobody looks.
    Own(Arc<(MountCounts, Instant)>),
    /// Number so many of a board, which has it.
    Board(Arc<Board>, usize),
}

impl MountMeter {
    /// Those of mount number `mount` of `board`; if it has no such mount, nobody will see what is counted.
    pub fn of(board: &Arc<Board>, mount: usize) -> MountMeter {
        match board.mount(mount) {
            Some(_) => MountMeter(Place::Board(Arc::clone(board), mount)),
            None => MountMeter::default(),
        }
    }

    /// Nanoseconds since some moment in the past, at least 1.
    pub fn now(&self) -> u64 {
        match &self.0 {
            Place::Own(own) => super::board::since(own.1),
            Place::Board(board, _) => board.now(),
        }
    }
}

impl Default for MountMeter {
    fn default() -> MountMeter {
        MountMeter(Place::Own(Arc::new((MountCounts::default(), Instant::now()))))
    }
}

impl Deref for MountMeter {
    type Target = MountCounts;

    fn deref(&self) -> &MountCounts {
        static NOBODY: std::sync::LazyLock<MountCounts> = std::sync::LazyLock::new(MountCounts::default);
        match &self.0 {
            Place::Own(own) => &own.0,
            // `of` has seen that it is there.
            Place::Board(board, mount) => board.mount(*mount).unwrap_or(&NOBODY),
        }
    }
}
