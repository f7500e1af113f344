//! `ovfs-bench`: runs groups of measurements and writes the report.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
use ovfs_bench::explained::{Explained, Refused};
use ovfs_bench::lane::Wait;
use ovfs_bench::process::Peer;
use ovfs_bench::record::{Group, load_average};
use ovfs_bench::report;
use ovfs_bench::rows::{self, Failure, Settings};

/// Benchmarks of ovfs beside virtiofsd, FUSE mounts and OpenDAL alone.
///
/// OVFS_BIN names the ovfs that is measured. OVFS_BESIDE names another one, with flags if need be, that takes part in the
/// group local: an older one, or the same with other flags.
#[derive(Debug, Parser)]
struct Options {
    /// Groups to run; all of them when none is named.
    groups: Vec<Name>,
    /// Everything once and small, nothing recorded: fails on wrong data or a dead daemon, never on time.
    #[arg(long)]
    smoke: bool,
    /// Smaller and fewer rounds; recorded, and said so in the report.
    #[arg(long, conflicts_with = "smoke")]
    quick: bool,
    /// Only rows whose name holds this; nothing is recorded then.
    #[arg(long)]
    only: Option<String>,
    /// Rounds of every measurement.
    #[arg(long)]
    rounds: Option<usize>,
    /// Wait for replies by looking at the ring instead of sleeping until a notification.
    #[arg(long)]
    busy: bool,
    /// Where records are kept.
    #[arg(long, default_value = "compat-tests/bench/results")]
    results: PathBuf,
    /// Write the report from the records that are there, without measuring.
    #[arg(long)]
    report_only: bool,
    /// The report.
    #[arg(long, default_value = "compat-tests/bench/REPORT.md")]
    report: PathBuf,
    /// Where the time goes in rows that miss their target, for the report.
    #[arg(long, default_value = "compat-tests/bench/explained.toml")]
    explained: PathBuf,
}

/// Why there is no report, or one that is not in order.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("failed: {0}")]
    Groups(String),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the report: {0}")]
    Report(#[from] std::io::Error),
    /// The report is written all the same.
    #[error(
        "{0} explains rows that do not miss their target; take these out, then write the report with --report-only: {1}"
    )]
    Stale(String, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// A directory of the host.
    Local,
    /// A store whose data is in ovfs's pool, beside a directory in the host's page cache.
    Hot,
    /// A store 20 ms away, 90 MiB/s per connection.
    Remote,
    /// The same store without distance, 5 ms and 50 ms away.
    Distances,
    /// A directory as a store.
    Directory,
    /// Requests to the store, memory, time to start.
    Costs,
    /// A mount beside one whose store is silent.
    Neighbours,
    /// fio, sysbench and small files in a User Mode Linux guest.
    Guest,
}

impl Name {
    fn file(self) -> &'static str {
        match self {
            Name::Local => "local",
            Name::Hot => "hot",
            Name::Remote => "remote",
            Name::Distances => "distances",
            Name::Directory => "directory",
            Name::Costs => "costs",
            Name::Neighbours => "neighbours",
            Name::Guest => "guest",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Name::Local => "A directory of the host",
            Name::Hot => "Hot data of a store",
            Name::Costs => "Requests, memory, time to start",
            Name::Neighbours => "A mount beside one whose store is silent",
            Name::Remote => "An object store 20 ms away, 90 MiB/s per connection",
            Name::Distances => "The same store nearer and farther",
            Name::Directory => "A directory as a store",
            Name::Guest => "A real guest",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Name::Local => {
                "Both daemons at their defaults, alive all the time, on the same directory, taking turns by the second. \
                 The directory is on a file system in memory where there is room, so that no disk disturbs. `ovfs, 2 queues` has the same number of requests in flight, \
                 half on each queue; virtiofsd has only one request queue."
            }
            Name::Hot => {
                "ovfs on an S3 store whose object lies in its cache pool, beside virtiofsd on the same file in the host's \
                 page cache, taking turns by the second."
            }
            Name::Costs => {
                "Requests that the store has counted (no distance), from a daemon just started, the reading right after the listing; resident memory of all \
                 processes of a daemon two seconds after a guest connected, guest memory left out; from start to the \
                 line that says it is ready."
            }
            Name::Neighbours => {
                "Two stores in one share, each 128 MiB of cache; the one that is measured is 2 ms away. Each round writes \
                 files and reads as many that nobody has read yet. `the other is silent`: 32 requests to the other store \
                 wait meanwhile for answers that do not come."
            }
            Name::Remote => {
                "An S3 server that keeps its objects in memory, on the loopback; it delays the first byte of every answer \
                 and paces each connection. Every figure is taken on a daemon (and a FUSE mount) just started. The tree \
                 has directories of 1,000 files. OpenDAL alone \
                 is the same library and version as in ovfs without a file system: the best of 8, 16 and 32 requests \
                 side by side. virtiofsd over FUSE mounts has a pool of 64 threads. Writing counts until the store has \
                 the data; with write-back, until the last file is closed, the upload following five seconds later \
                 where the peer can be told so (rclone). Beside several FUSE mounts the one with the best \
                 median counts; one that is slow and not the best takes part in one round only."
            }
            Name::Distances => {
                "As above, with an eighth of the data and a tenth of the files; the targets are those of 20 ms and do \
                 not apply."
            }
            Name::Directory => {
                "ovfs with `--backend fs://DIR` beside virtiofsd on the same directory, which is in memory; everybody just \
                 started. ovfs keeps a store's semantics there (a file appears whole when it is stored), which virtiofsd \
                 does not."
            }
            Name::Guest => {
                "User Mode Linux with one processor and one queue; fio, sysbench and a program that makes, looks at and \
                 removes small files run in it, on a directory and on an S3 store 2 ms away. One boot and one daemon \
                 for all rows of a round. The guest's kernel is part of every figure."
            }
        }
    }

    fn run(self, settings: &Settings, only: Option<&str>) -> Result<Vec<ovfs_bench::record::Row>, Failure> {
        match self {
            Name::Local => rows::local::run(settings, only),
            Name::Hot => rows::hot::run(settings, only),
            Name::Costs => rows::costs::run(settings, only),
            Name::Neighbours => rows::neighbours::run(settings, only),
            Name::Remote => rows::remote::run(settings, only),
            Name::Distances => rows::remote::distances(settings, only),
            Name::Directory => rows::directory::run(settings, only),
            Name::Guest => rows::guest::run(settings, only),
        }
    }
}

fn command(name: Name, options: &Options) -> String {
    let flags = [(options.quick, " --quick"), (options.busy, " --busy")];
    let flags: String = flags.into_iter().filter(|(given, _)| *given).map(|(_, flag)| flag).collect();
    format!("scripts/bench {}{flags}", name.file())
}

fn about(name: Name, settings: &Settings) -> String {
    let sizes = format!(
        " Sizes of this run: large object {} MiB, many = {}, tree of {} files, up to {} rounds (three for a row that takes long).",
        settings.large >> 20,
        settings.many,
        settings.tree,
        settings.rounds
    );
    let rounds = match name {
        Name::Guest | Name::Distances => settings.rounds.min(3),
        _ => settings.rounds,
    };
    let rounds = format!(" {rounds} rounds.");
    format!("{}{}", name.about(), if name == Name::Remote { sizes } else { rounds })
}

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("ovfs-bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Ended> {
    let wait = if options.busy { Wait::Busy } else { Wait::Event };
    let mut settings = match (options.smoke, options.quick) {
        (true, _) => Settings::smoke(wait),
        (_, true) => Settings::quick(wait),
        _ => Settings::full(wait),
    };
    settings.rounds = options.rounds.unwrap_or(settings.rounds);
    let groups = if options.groups.is_empty() { Name::value_variants().to_vec() } else { options.groups.clone() };
    let record = !options.smoke && options.only.is_none();
    let mut failed = Vec::new();
    if !options.report_only {
        for peer in Peer::ALL {
            if let Some(why) = peer.absence() {
                eprintln!("left out, {}: {why}", peer.program());
            }
        }
        for name in groups {
            let (began, load) = (Instant::now(), load_average());
            eprintln!("-- {}", name.title());
            let rows = match name.run(&settings, options.only.as_deref()) {
                Ok(rows) => rows,
                // The others are measured all the same.
                Err(failure) => {
                    eprintln!("FAILED, {}: {failure}", name.file());
                    failed.push(name.file());
                    continue;
                }
            };
            let group = Group {
                title: name.title().into(),
                about: about(name, &settings),
                command: command(name, options),
                taken: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
                load: (load, load_average()),
                took_s: began.elapsed().as_secs_f64(),
                rows,
            };
            if record {
                group.save(&options.results, name.file())?;
            }
        }
    }
    if record {
        let groups: Vec<Group> =
            Name::value_variants().iter().filter_map(|name| Group::load(&options.results, name.file()).ok()).collect();
        let explained = Explained::load(&options.explained)?;
        report::write(&groups, &explained, &options.report)?;
        let stale = explained.stale(&groups);
        if !stale.is_empty() {
            return Err(Ended::Stale(options.explained.display().to_string(), stale.join("; ")));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(Ended::Groups(failed.join(", "))) }
}
