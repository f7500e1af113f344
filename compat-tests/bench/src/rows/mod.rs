//! The measurements, in groups that can be run alone.

pub mod contender;
pub mod costs;
pub mod directory;
pub mod guest;
pub mod hot;
pub mod local;
pub mod neighbours;
pub mod remote;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ovfs_compat_tests::error::{Error, Fault};

use tempfile::TempDir;

use crate::lane::Wait;
use crate::record::{Row, Sample, Unit};
use crate::usage;
use crate::work;

/// Rounds that a row has at least, however long they take.
const ROUNDS_LEAST: usize = 3;

/// How long and how large.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Rounds of every measurement; all contenders take part in each, in turning order.
    pub rounds: usize,
    /// A row that has taken so long has no further round once it has had three.
    pub patience: Duration,
    /// How long an endless workload runs.
    pub window: Duration,
    /// How long many files are written at most: the rate of the slowest is known by then.
    pub many_longest: Duration,
    /// A peer that takes longer in a round takes part in one only, unless it is the best peer.
    pub slow: Duration,
    /// How much later a closed file is uploaded where that is measured; whole seconds. rclone's own default is five.
    pub upload_delay: Duration,
    /// How long a store may take to show what has been written.
    pub stored_within: Duration,
    /// How long a store must have been asked nothing for what was begun to be over.
    pub quiet: Duration,
    /// Whether all peers take part, or one for all where that is needed to try the measurement itself.
    pub all_peers: bool,
    /// Bytes of the large object.
    pub large: u64,
    /// Number of files of the many-files rows.
    pub many: u64,
    /// Number of objects below the tree that `find` walks.
    pub tree: u64,
    /// How completions are waited for.
    pub wait: Wait,
    /// Directory for what the groups `local` and `hot` share: one in memory, where there is one, spares the figures
    /// the noise of a disk.
    pub scratch: PathBuf,
}

impl Settings {
    /// What the report is made with.
    pub fn full(wait: Wait) -> Settings {
        Settings {
            rounds: 5,
            patience: Duration::from_secs(75),
            window: Duration::from_secs(1),
            many_longest: Duration::from_secs(30),
            slow: Duration::from_secs(15),
            upload_delay: Duration::from_secs(5),
            stored_within: Duration::from_secs(60),
            quiet: Duration::from_millis(1500),
            all_peers: true,
            large: 1 << 30,
            many: 10_000,
            tree: 100_000,
            wait,
            scratch: scratch(),
        }
    }

    /// Smaller and fewer: for a first look in ten minutes.
    pub fn quick(wait: Wait) -> Settings {
        Settings { rounds: 3, large: 128 << 20, many: 1000, tree: 10_000, ..Settings::full(wait) }
    }

    /// Whether a row that began then is to have another round.
    pub fn another(&self, round: usize, began: Instant) -> bool {
        round < self.rounds && (round < ROUNDS_LEAST || began.elapsed() < self.patience)
    }

    /// A directory for what is to be shared, which goes when it is dropped.
    ///
    /// # Errors
    /// The host refuses it.
    pub fn share(&self) -> io::Result<TempDir> {
        tempfile::Builder::new().prefix("ovfs-bench-share-").tempdir_in(&self.scratch)
    }

    /// Everything once and small: for finding mistakes, not for figures.
    pub fn smoke(wait: Wait) -> Settings {
        Settings {
            rounds: 1,
            window: Duration::from_millis(100),
            many_longest: Duration::from_secs(2),
            upload_delay: Duration::from_secs(1),
            quiet: Duration::from_millis(300),
            all_peers: false,
            large: 32 << 20,
            many: 200,
            tree: 2000,
            ..Settings::full(wait)
        }
    }
}

/// The file system in memory that every Linux has, unless it is too small.
fn scratch() -> PathBuf {
    const ENOUGH: u64 = 1 << 30;
    let memory = Path::new("/dev/shm");
    match usage::free(memory) {
        Ok(free) if free >= ENOUGH => memory.into(),
        _ => std::env::temp_dir(),
    }
}

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The file system answered with an error, or the device failed.
    #[error("{what}: {cause}")]
    Guest {
        /// What was being done.
        what: String,
        /// Why not.
        cause: Fault,
    },
    /// A program did not start, or the host refused something.
    #[error("{0}")]
    Host(#[from] io::Error),
    /// OpenDAL alone failed.
    #[error("OpenDAL alone: {0}")]
    Raw(#[from] opendal::Error),
    /// A result is wrong.
    #[error("{0}")]
    Wrong(String),
}

impl From<Fault> for Failure {
    fn from(cause: Fault) -> Self {
        Failure::Guest { what: "the guest".into(), cause }
    }
}

impl From<Error> for Failure {
    fn from(cause: Error) -> Self {
        Failure::Guest { what: "the guest".into(), cause: cause.into() }
    }
}

/// Says of a result what was being done.
pub trait During<T> {
    /// The same, with `what` in its error.
    ///
    /// # Errors
    /// The same.
    fn during(self, what: &str) -> Result<T, Failure>;
}

impl<T, E: Into<Fault>> During<T> for Result<T, E> {
    fn during(self, what: &str) -> Result<T, Failure> {
        self.map_err(|cause| Failure::Guest { what: what.to_owned(), cause: cause.into() })
    }
}

/// The order in which `count` contenders take part in `round`, so that none is always first.
pub fn turn(round: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |n| (n + round) % count)
}

/// Writes a file of `size` bytes that follows [`work::pattern`].
///
/// # Errors
/// The file system refuses.
pub fn write_pattern(path: &Path, seed: u64, size: u64) -> io::Result<()> {
    let mut file = io::BufWriter::with_capacity(1 << 20, fs::File::create(path)?);
    let mut block = vec![0; 1 << 16];
    let mut at = 0;
    while at < size {
        let piece = (size - at).min(block.len() as u64) as usize;
        work::fill(seed, at, &mut block[..piece]);
        file.write_all(&block[..piece])?;
        at += piece as u64;
    }
    file.flush()
}

/// A row of the memory that ovfs had beside its pool, in bytes after each measurement of a group.
pub fn beside_pool(name: &str, figures: &[u64]) -> Row {
    let mut row = Row::new(name, Unit::Memory).bound("ovfs", &["64 MiB"], 1.0);
    for figure in figures {
        row.add("ovfs", Sample::of(*figure as f64 / f64::from(1 << 20)));
        row.add("64 MiB", Sample::of(64.0));
    }
    row
}

/// Tells whoever waits at the terminal what has just been measured.
pub fn announce(row: &Row) {
    use crate::stats::{median, short};
    let mut line = format!("{:44}", row.name);
    for contender in &row.contenders {
        match &contender.failure {
            Some(why) if contender.samples.is_empty() => line += &format!("  {}: failed ({why})", contender.label),
            _ => line += &format!("  {}: {}", contender.label, short(median(&contender.values()))),
        }
    }
    line += &format!(" {}", row.unit.text());
    for comparison in &row.comparisons {
        if let Some(ratio) = row.ratio(comparison) {
            line += &format!("  x{}", short(ratio.median));
        }
    }
    for contender in &row.contenders {
        let of = |what: fn(&Sample) -> f64| median(&contender.samples.iter().map(what).collect::<Vec<_>>());
        if of(|sample| sample.cpu_s) > 0.0 {
            let cpu = of(|sample| sample.cpu_s * 1e6 / sample.requests.max(1) as f64);
            let (kicks, calls, p50) =
                (of(|sample| sample.kicks), of(|sample| sample.calls), of(|sample| sample.p50_us));
            let (cpu, kicks, calls, p50) = (short(cpu), short(kicks), short(calls), short(p50));
            line += &format!(
                "\n    {}: p50 {p50} µs; a request: CPU {cpu} µs, kicks {kicks}, calls {calls}",
                contender.label
            );
        }
        let last = contender.samples.last().map(|sample| sample.store.as_slice()).unwrap_or_default();
        if !last.is_empty() {
            let kinds: Vec<String> = last.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
            line += &format!("\n    {}: {}", contender.label, kinds.join(", "));
        }
    }
    let mut stderr = io::stderr().lock();
    // Nobody to tell is no reason to stop.
    let _ = writeln!(stderr, "{line}");
}
