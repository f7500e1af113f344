//! A directory of the host: virtiofsd and ovfs beside each other on the same files.

use std::fs;
use std::path::Path;

use crate::lane::{Outcome, Until};
use crate::process::Spec;
use crate::record::{Row, Sample, Unit};
use crate::rows::{During, Failure, Settings, announce, beside_pool, turn, write_pattern};
use crate::session::{Pair, Session, Shape, metered};
use crate::usage;
use crate::work::io::{Order, Reads, Writes};
use crate::work::names::{Files, Listing, Name, Stats};
use crate::work::{Work, pattern};

const DATA: u64 = 256 << 20;
const DATA_SEED: u64 = 1;
const NAMES: u64 = 1000;
const MIB: u32 = 1 << 20;
const PAGE: u32 = 4096;
/// What Linux asks of READDIRPLUS at a time.
const LISTING: u32 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    GetAttr,
    Lookup,
    Create,
    List,
    ReadMib,
    WriteMib,
}

impl Kind {
    const ALL: [Kind; 8] =
        [Kind::Read, Kind::Write, Kind::GetAttr, Kind::Lookup, Kind::Create, Kind::List, Kind::ReadMib, Kind::WriteMib];

    fn text(self) -> &'static str {
        match self {
            Kind::Read => "4 KiB random read",
            Kind::Write => "4 KiB random write",
            Kind::GetAttr => "stat (GETATTR)",
            Kind::Lookup => "stat (LOOKUP)",
            Kind::Create => "create + unlink",
            Kind::List => "readdirplus, 1,000 names (entries)",
            Kind::ReadMib => "1 MiB sequential read",
            Kind::WriteMib => "1 MiB sequential write",
        }
    }

    fn unit(self) -> Unit {
        if matches!(self, Kind::ReadMib | Kind::WriteMib) { Unit::Mib } else { Unit::Ops }
    }

    fn is_small(self) -> bool {
        self.unit() == Unit::Ops
    }
}

/// What is on the share, as inodes and handles of one session.
#[derive(Debug)]
struct Bench {
    pair: Pair,
    data: crate::work::io::OpenFile,
    dir: u64,
    names: Vec<u64>,
    lists: Vec<u64>,
    new: u64,
    made: u64,
}

/// Fills `dir` with what the measurements need.
///
/// # Errors
/// The host's file system refuses.
pub fn prepare(dir: &Path) -> Result<(), Failure> {
    write_pattern(&dir.join("data"), DATA_SEED, DATA)?;
    fs::create_dir(dir.join("names"))?;
    fs::create_dir(dir.join("new"))?;
    for n in 0..NAMES {
        fs::write(dir.join("names").join(Name::new("f", n).text()), pattern(n, 0).to_le_bytes())?;
    }
    Ok(())
}

impl Bench {
    fn open(spec: &Spec, shape: Shape, place: usize) -> Result<Bench, Failure> {
        let daemon = spec.start()?;
        let mut session = Session::open(&daemon.socket(), shape).during("INIT")?;
        let data = session.open_file("data", libc::O_RDWR, DATA_SEED).during("opening the data file")?;
        let dir = session.dir("names").during("LOOKUP")?;
        let names: Result<Vec<u64>, _> = (0..NAMES)
            .map(|n| session.guest.lookup(dir, Name::new("f", n).text().as_bytes()).map(|entry| entry.nodeid))
            .collect();
        let names = names.during("LOOKUP")?;
        let handles = shape.depth * session.queues();
        let lists: Result<Vec<u64>, _> =
            (0..handles).map(|_| session.guest.opendir(dir).map(|opened| opened.fh)).collect();
        let lists = lists.during("OPENDIR")?;
        let parent = session.dir("new").during("LOOKUP")?;
        let place = Name::new("d", place as u64).text();
        let new = session.guest.mkdir(parent, place.as_bytes(), 0o755).during("MKDIR")?.nodeid;
        Ok(Bench { pair: Pair { session, daemon }, data, dir, names, lists, new, made: 0 })
    }

    fn work(&self, kind: Kind, queue: usize, depth: usize, seed: u64) -> Box<dyn Work> {
        let data = self.data;
        match kind {
            Kind::Read => Box::new(Reads::new(data, PAGE, Order::random(seed), depth)),
            Kind::Write => Box::new(Writes::new(data, PAGE, Order::random(seed))),
            Kind::GetAttr | Kind::Lookup => {
                Box::new(Stats::new(self.dir, "f", self.names.clone(), kind == Kind::Lookup, seed))
            }
            Kind::Create => {
                let first = self.made + queue as u64 * 10_000_000;
                Box::new(Files::made_and_removed(self.new, &format!("q{queue}-"), first, depth))
            }
            Kind::List => {
                let handles = &self.lists[queue * depth..(queue + 1) * depth];
                Box::new(Listing::new(self.dir, handles, LISTING, true))
            }
            Kind::ReadMib => Box::new(Reads::new(data, MIB, Order::over_and_over(DATA), depth)),
            Kind::WriteMib => Box::new(Writes::new(data, MIB, Order::over_and_over(DATA))),
        }
    }

    fn run(&mut self, kind: Kind, depth: usize, until: Until, seed: u64) -> Result<Outcome, Failure> {
        let queues = self.pair.session.queues().min(depth);
        let depth = depth / queues;
        let mut works: Vec<_> =
            (0..queues).map(|queue| self.work(kind, queue, depth, seed + 7 * queue as u64)).collect();
        let mut works: Vec<&mut dyn Work> = works.iter_mut().map(|work| work.as_mut() as &mut dyn Work).collect();
        let outcome = self.pair.session.run(&mut works, depth, until).during(kind.text())?;
        self.made += outcome.ops + 64;
        Ok(outcome)
    }

    fn sample(&mut self, kind: Kind, depth: usize, settings: &Settings, seed: u64) -> Result<Sample, Failure> {
        let pids = self.pair.daemon.pids();
        // A moment of the same, so that nobody is measured with cold caches or with the other's.
        self.run(kind, depth, Until::Elapsed(settings.window / 10), seed)?;
        let run = metered(&pids, || self.run(kind, depth, Until::Elapsed(settings.window), seed))?;
        if !self.pair.daemon.is_alive() {
            return Err(Failure::Wrong(format!("{} ended: {}", self.pair.daemon.label, self.pair.daemon.messages())));
        }
        Ok(Sample::rate(&run, kind.unit()))
    }
}

/// Every row.
///
/// # Errors
/// A daemon fails or answers with wrong data.
pub fn run(settings: &Settings, only: Option<&str>) -> Result<Vec<Row>, Failure> {
    let share = settings.share()?;
    prepare(share.path())?;
    let shape = Shape { wait: settings.wait, ..Shape::default() };
    let mut benches = vec![
        Bench::open(&Spec::virtiofsd(share.path()), shape, 0)?,
        Bench::open(&Spec::ovfs(share.path()), shape, 1)?,
        Bench::open(
            &Spec::ovfs(share.path()).called("ovfs, 2 queues").arg("--num-request-queues=2"),
            Shape { queues: 2, ..shape },
            2,
        )?,
    ];
    if let Some(spec) = Spec::beside(share.path()) {
        benches.push(Bench::open(&spec, shape, 3)?);
    }
    let (mut rows, mut memory) = (Vec::new(), Vec::new());
    for (kind, depth) in Kind::ALL.into_iter().flat_map(|kind| [(kind, 1), (kind, 32)]) {
        let name = format!("{}, depth {depth}", kind.text());
        if only.is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let target = if kind.is_small() && depth == 32 { 1.3 } else { 1.0 };
        let mut row = Row::new(name, kind.unit()).compare("ovfs", &["virtiofsd"], Some(target));
        if depth > 1 {
            let target = if kind.is_small() { 1.8 } else { 1.0 };
            row = row.compare("ovfs, 2 queues", &["virtiofsd"], Some(target));
        }
        if benches.len() > 3 {
            row = row.compare("ovfs", &["ovfs beside"], None);
        }
        for round in 0..settings.rounds {
            for n in turn(round, benches.len()) {
                if benches[n].pair.session.queues() > depth {
                    continue;
                }
                let bench = &mut benches[n];
                let label = bench.pair.daemon.label.clone();
                row.add(&label, bench.sample(kind, depth, settings, round as u64 + 1)?);
                if label == "ovfs" {
                    memory.push(usage::own_memory(&bench.pair.daemon.pids()));
                }
            }
        }
        announce(&row);
        rows.push(row);
    }
    if only.is_none() {
        rows.push(beside_pool("memory of ovfs after each of these measurements", &memory));
        rows.last().into_iter().for_each(announce);
    }
    Ok(rows)
}
