//! `ovfs-bench`: runs groups of measurements and writes the report.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::{Parser, ValueEnum};
use ovfs_bench::lane::Wait;
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// A directory of the host.
    Local,
    /// A store whose data is in ovfs's pool, beside a directory in the host's page cache.
    Hot,
    /// A store 20 ms away, 90 MiB/s per connection.
    Remote,
    /// Requests to the store, memory, time to start.
    Costs,
    /// A mount beside one whose store is silent.
    Neighbours,
}

impl Name {
    fn file(self) -> &'static str {
        match self {
            Name::Local => "local",
            Name::Hot => "hot",
            Name::Remote => "remote",
            Name::Costs => "costs",
            Name::Neighbours => "neighbours",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Name::Local => "A directory of the host",
            Name::Hot => "Hot data of a store",
            Name::Costs => "Requests, memory, time to start",
            Name::Neighbours => "A mount beside one whose store is silent",
            Name::Remote => "An object store 20 ms away, 90 MiB/s per connection",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Name::Local => {
                "Both daemons at their defaults, alive all the time, on the same directory, taking turns by the second. \
                 The files are in the host's page cache. `ovfs, 2 queues` has the same number of requests in flight, \
                 half on each queue; virtiofsd has only one request queue."
            }
            Name::Hot => {
                "ovfs on an S3 store whose object lies in its cache pool, beside virtiofsd on the same file in the host's \
                 page cache, taking turns by the second."
            }
            Name::Costs => {
                "Requests that the store has counted (no distance), from a daemon just started; resident memory of all \
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
                 the data."
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
        " Sizes of this run: large object {} MiB, many = {}, tree of {} files, {} rounds.",
        settings.large >> 20,
        settings.many,
        settings.tree,
        settings.rounds
    );
    format!("{}{}", name.about(), if name == Name::Remote { sizes } else { format!(" {} rounds.", settings.rounds) })
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

fn run(options: &Options) -> Result<(), Failure> {
    let wait = if options.busy { Wait::Busy } else { Wait::Event };
    let mut settings = match (options.smoke, options.quick) {
        (true, _) => Settings::smoke(wait),
        (_, true) => Settings::quick(wait),
        _ => Settings::full(wait),
    };
    settings.rounds = options.rounds.unwrap_or(settings.rounds);
    let groups = if options.groups.is_empty() { Name::value_variants().to_vec() } else { options.groups.clone() };
    let record = !options.smoke && options.only.is_none();
    if !options.report_only {
        for name in groups {
            let (began, load) = (Instant::now(), load_average());
            eprintln!("-- {}", name.title());
            let rows = name.run(&settings, options.only.as_deref())?;
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
        report::write(&groups, &options.report)?;
    }
    Ok(())
}
