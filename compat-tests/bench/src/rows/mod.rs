//! The measurements, in groups that can be run alone.

pub mod contender;
pub mod costs;
pub mod hot;
pub mod local;
pub mod neighbours;
pub mod remote;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use ovfs_compat_tests::error::{Error, Fault};

use crate::lane::Wait;
use crate::record::{Row, Sample};
use crate::work;

/// How long and how large.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Rounds of every measurement; all contenders take part in each, in turning order.
    pub rounds: usize,
    /// How long an endless workload runs.
    pub window: Duration,
    /// Bytes of the large object.
    pub large: u64,
    /// Number of files of the many-files rows.
    pub many: u64,
    /// Number of objects below the tree that `find` walks.
    pub tree: u64,
    /// How completions are waited for.
    pub wait: Wait,
    /// Whether FUSE mounts that are installed take part.
    pub peers: bool,
}

impl Settings {
    /// What the report is made with.
    pub fn full(wait: Wait) -> Settings {
        let window = Duration::from_secs(1);
        Settings { rounds: 5, window, large: 1 << 30, many: 10_000, tree: 100_000, wait, peers: true }
    }

    /// Smaller and fewer: for a first look in ten minutes.
    pub fn quick(wait: Wait) -> Settings {
        Settings { rounds: 3, large: 128 << 20, many: 1000, tree: 10_000, ..Settings::full(wait) }
    }

    /// Everything once and small: for finding mistakes, not for figures.
    pub fn smoke(wait: Wait) -> Settings {
        let window = Duration::from_millis(100);
        Settings { rounds: 1, window, large: 32 << 20, many: 200, tree: 2000, wait, peers: false }
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
