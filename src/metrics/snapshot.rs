//! All counters at one moment: what the broker answers over its status socket. Times are durations that ended then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::board::{Board, OPCODES};
use super::histogram::Spread;
use super::mount::{CLASSES, MountCounts};
use crate::fuse::abi::Opcode;

/// Version of the answer.
pub const VERSION: u32 = 2;

/// All counters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`VERSION`]
    pub version: u32,
    /// The broker's.
    pub pid: u32,
    /// The device process's.
    pub device_pid: u32,
    /// Since the start.
    pub uptime: Duration,
    /// Requests by opcode, those that there were.
    pub ops: Vec<OpCounts>,
    /// The mounts, the root first.
    pub mounts: Vec<MountSnapshot>,
    /// What the disk tier did, if there is one.
    pub disk: Option<DiskCounts>,
}

/// Requests of one opcode.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OpCounts {
    /// In small letters; `other` for what has no name.
    pub op: String,
    /// Those that ended in an errno.
    pub errors: u64,
    /// How long they took.
    pub took: Spread,
}

/// One mount.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MountSnapshot {
    /// Where in the share.
    pub path: String,
    /// The store's kind: the scheme of its URL.
    pub scheme: String,
    /// Bytes of memory that are its own.
    pub pool_bytes: u64,
    /// Of those, bytes in use: by size class, 4 KiB and its doubles.
    pub used_bytes: [u64; CLASSES],
    /// Blocks that were taken of those at hand, by size class.
    pub taken_listed: [u64; CLASSES],
    /// Blocks that were taken from elsewhere, by size class.
    pub taken_cut: [u64; CLASSES],
    /// Bytes of memory that hold what the store does not have.
    pub dirty_bytes: u64,
    /// For how long the oldest of them do.
    pub dirty_age: Option<Duration>,
    /// nodeids in use.
    pub nodeids: u64,
    /// Open files.
    pub files: u64,
    /// Open directories.
    pub dirs: u64,
    /// Times that somebody waited because the memory was full.
    pub full: u64,
    /// Files that were changed here and in the store at once.
    pub conflicts: u64,
    /// Pieces of reads that memory had.
    pub hits: u64,
    /// Their bytes.
    pub hit_bytes: u64,
    /// Pieces of reads that waited for the store.
    pub misses: u64,
    /// Their bytes.
    pub miss_bytes: u64,
    /// Requests to the store.
    pub store: StoreCounts,
    /// Uploads under way.
    pub uploads: UploadCounts,
    /// What was heard of the store.
    pub health: Health,
}

/// Requests to a store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoreCounts {
    /// In the order of [`super::Kind::ALL`].
    pub kinds: Vec<KindCounts>,
    /// Bytes of content that went to the store.
    pub sent_bytes: u64,
    /// Bytes of content that came from it.
    pub received_bytes: u64,
}

/// Requests of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KindCounts {
    /// Those that did not bring what they were to.
    pub errors: u64,
    /// Those that were made once more.
    pub retries: u64,
    /// How long they took.
    pub took: Spread,
}

/// Uploads under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UploadCounts {
    /// How many.
    pub in_flight: u64,
    /// How many wait for their turn.
    pub waiting: u64,
    /// Bytes of the objects that come of those under way.
    pub bytes: u64,
    /// How long the oldest has been under way.
    pub oldest: Option<Duration>,
}

/// What was heard of a store, and how long ago.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// The last answer.
    pub answer: Option<Duration>,
    /// The first failure since.
    pub failing: Option<Duration>,
    /// The last failure at all, and what it was.
    pub error: Option<(Duration, String)>,
}

/// What the disk tier did, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCounts {
    /// Read from there.
    pub hit_bytes: u64,
    /// Fetched because it was not there.
    pub miss_bytes: u64,
}

/// The name of an opcode.
fn name(number: usize) -> String {
    let opcode = u32::try_from(number).ok().and_then(Opcode::from_number);
    opcode.map_or_else(|| "other".to_owned(), |opcode| format!("{opcode:?}").to_lowercase())
}

/// What the device process has counted of requests. Numbers without a name are those that it may not use.
pub fn ops(board: &Board) -> Vec<OpCounts> {
    let all = (0..OPCODES).map(|number| (name(number), number, board.requests(number)));
    let known = all.filter(|(name, number, _)| *number == 0 || name != "other");
    let counts = known.map(|(op, _, requests)| OpCounts { op, errors: requests.errors, took: requests.took });
    counts.filter(|counts| counts.took.count() > 0).collect()
}

impl MountSnapshot {
    /// Takes over what the device process has counted; `now` is [`Board::now`].
    pub fn count(&mut self, counts: &MountCounts, now: u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.pool_bytes = load(&counts.pool_bytes);
        self.used_bytes = counts.used_bytes.each_ref().map(load);
        self.taken_listed = counts.taken_listed.each_ref().map(load);
        self.taken_cut = counts.taken_cut.each_ref().map(load);
        self.dirty_bytes = load(&counts.dirty_bytes);
        let since = load(&counts.dirty_since);
        self.dirty_age = (since > 0).then(|| Duration::from_nanos(now.saturating_sub(since)));
        self.nodeids = load(&counts.nodeids);
        self.files = load(&counts.files);
        self.dirs = load(&counts.dirs);
        self.full = load(&counts.full);
        self.conflicts = load(&counts.conflicts);
        self.hits = counts.read(|reads| &reads.hits);
        self.hit_bytes = counts.read(|reads| &reads.hit_bytes);
        self.misses = counts.read(|reads| &reads.misses);
        self.miss_bytes = counts.read(|reads| &reads.miss_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_opcodes_with_a_name_are_told() {
        let board = Board::new(1).expect("memory");
        for number in [0, 7, 15, 63, 1000] {
            board.record(number, number == 15, Duration::from_micros(5));
        }
        let told: Vec<(String, u64, u64)> =
            ops(&board).into_iter().map(|counts| (counts.op, counts.took.count(), counts.errors)).collect();
        assert_eq!(told, [("other".to_owned(), 2, 0), ("read".to_owned(), 1, 1)]);
        assert!(Opcode::ALL.iter().all(|opcode| (*opcode as usize) < OPCODES));
    }
}
