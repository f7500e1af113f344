//! A store at a distance: ovfs, FUSE mounts behind virtiofsd, and OpenDAL alone, each with cold caches in every round.

use std::cell::Cell;
use std::time::{Duration, Instant};

use ovfs_compat_tests::fuse::ROOT;

use crate::lane::Until;
use crate::process::S3;
use crate::raw::{CONCURRENCIES, Raw};
use crate::record::{Comparison, Row, Sample, Unit};
use crate::rows::contender::{Mounted, Watch, Who, until_stored};
use crate::rows::{During, Failure, Settings, announce, beside_pool, turn};
use crate::s3::MemoryS3;
use crate::session::metered;
use crate::work::io::{OpenFile, Order, Reads, Writes};
use crate::work::names::{Files, Listing, Name};
use crate::work::{fill, pattern};

/// The distance of the target table.
pub const LATENCY: Duration = Duration::from_millis(20);
/// What one connection to an object store passes in a second.
pub const RATE: u64 = 90 << 20;

const RAW: &str = "OpenDAL alone";
const IDEAL: &str = "depth / latency";
/// The object of random reads: in full size everywhere, so that the pool never holds much of it.
const SPREAD: &str = "spread";
const SEED: u64 = 5;
const NEW_SEED: u64 = 6;
const DEPTH: usize = 32;
/// Requests in flight of a program that reads or writes through the guest's page cache.
const STREAM_DEPTH: usize = 2;
const MIB: u32 = 1 << 20;
const SMALL: u32 = 4096;
/// Bytes of READDIRPLUS replies.
const LISTING: u32 = 32 << 10;
/// Names in each directory of the tree.
const TREE_DIR: u64 = 1000;

/// The store, what is in it, and who takes part.
#[derive(Debug)]
pub struct Bench<'a> {
    store: &'a MemoryS3,
    s3: S3,
    settings: &'a Settings,
    who: Vec<Who>,
    only: Option<&'a str>,
    /// Before the name of each row.
    label: String,
    latency: Duration,
    rows: Vec<Row>,
    /// Highest memory of ovfs in each mount, in bytes.
    memory: Vec<u64>,
}

/// Every row.
///
/// # Errors
/// ovfs or OpenDAL fails, or a result is wrong. Failures of peers are recorded and go on.
pub fn run(settings: &Settings, only: Option<&str>) -> Result<Vec<Row>, Failure> {
    let store = MemoryS3::start()?;
    store.put_pattern("large", SEED, settings.large);
    store.copy("large", SPREAD);
    for n in 0..settings.many {
        store.put_pattern(&format!("list/{}", Name::new("f", n).text()), n, 8);
    }
    for n in 0..settings.tree {
        let dir = Name::new("d", n / TREE_DIR).text();
        store.put_pattern(&format!("tree/{dir}/{}", Name::new("f", n).text()), n, 8);
    }
    let mut bench = Bench::new(&store, LATENCY, String::new(), settings, only);
    bench.sequential_read()?;
    bench.random_read()?;
    bench.sequential_write()?;
    bench.small_change("4 KiB write + fsync in the middle of the large object", false)?;
    bench.small_change("4 KiB append + fsync to the large object", true)?;
    bench.many_files(Close::Waits)?;
    bench.many_files(Close::Returns)?;
    bench.listing()?;
    bench.find()?;
    bench.peak_memory();
    Ok(bench.rows)
}

/// The store nearer and farther: how the ratios go with the distance, with less data and no targets.
///
/// # Errors
/// As [`run`].
pub fn distances(settings: &Settings, only: Option<&str>) -> Result<Vec<Row>, Failure> {
    let store = MemoryS3::start()?;
    store.put_pattern(SPREAD, SEED, settings.large);
    let settings = Settings {
        large: settings.large / 8,
        many: settings.many / 10,
        rounds: settings.rounds.min(3),
        many_longest: settings.many_longest / 3,
        slow: settings.slow / 5,
        ..settings.clone()
    };
    store.put_pattern("large", SEED, settings.large);
    let mut rows = Vec::new();
    for latency in [0, 5, 50] {
        let label = format!("{latency} ms: ");
        let mut bench = Bench::new(&store, Duration::from_millis(latency), label, &settings, only);
        if !settings.all_peers {
            bench.who.retain(|who| *who == Who::Ovfs);
        }
        bench.sequential_read()?;
        bench.random_read()?;
        bench.sequential_write()?;
        bench.many_files(Close::Waits)?;
        rows.append(&mut bench.rows);
    }
    Ok(rows)
}

type Measure<'m> = &'m dyn Fn(&mut Mounted, usize) -> Result<Sample, Failure>;
type RawMeasure<'m> = &'m dyn Fn(usize) -> Result<Sample, Failure>;

/// What closing a file that was written waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The upload.
    Waits,
    /// Nothing: the upload comes later.
    Returns,
}

impl<'a> Bench<'a> {
    fn new(
        store: &'a MemoryS3,
        latency: Duration,
        label: String,
        settings: &'a Settings,
        only: Option<&'a str>,
    ) -> Bench<'a> {
        store.server.distance.set(latency, RATE);
        let (s3, who) = (store.access(), Who::all(settings));
        Bench { store, s3, settings, who, only, label, latency, rows: Vec::new(), memory: Vec::new() }
    }

    fn wanted(&self, row: &Row) -> bool {
        self.only.is_none_or(|only| row.name.contains(only))
    }

    /// Fills a row: everybody in each round, in turning order, each freshly mounted.
    fn fill(&mut self, row: Row, raw: Option<RawMeasure>, measure: Measure) -> Result<(), Failure> {
        self.fill_with(row, Close::Waits, raw, measure)
    }

    fn fill_with(
        &mut self,
        mut row: Row,
        close: Close,
        raw: Option<RawMeasure>,
        measure: Measure,
    ) -> Result<(), Failure> {
        let raw_place = self.who.len();
        let began = Instant::now();
        let (mut sitting_out, mut slow) = (Vec::new(), Vec::new());
        for round in (0..).take_while(|round| self.settings.another(*round, began)) {
            for n in turn(round, raw_place + usize::from(raw.is_some())) {
                if let (true, Some(raw)) = (n == raw_place, raw) {
                    row.add(RAW, raw(round)?);
                    continue;
                }
                let who = self.who[n];
                if sitting_out.contains(&who) {
                    continue;
                }
                let turn = Instant::now();
                match self.one(who, close, round, measure) {
                    Ok(sample) => row.add(&who.label(), sample),
                    // A peer that cannot do it has no figure; ovfs must.
                    Err(failure) if who != Who::Ovfs => {
                        row.fail(&who.label(), &failure.to_string());
                        sitting_out.push(who);
                    }
                    Err(failure) => return Err(failure),
                }
                if who != Who::Ovfs && turn.elapsed() > self.settings.slow {
                    slow.push(who);
                }
            }
            // One round is enough of a peer that takes long and is not the best of them.
            let peers = Comparison { of: String::new(), against: Who::peers(&self.who), target: None, at_most: false };
            let best = row.rival(&peers).map(|rival| rival.label.clone());
            sitting_out.extend(slow.drain(..).filter(|who| Some(who.label()) != best));
        }
        announce(&row);
        self.rows.push(row);
        Ok(())
    }

    fn one(&mut self, who: Who, close: Close, round: usize, measure: Measure) -> Result<Sample, Failure> {
        let mut mounted = who.mount(&self.s3, close == Close::Returns, self.settings)?;
        let before = self.store.server.counters.now();
        let watch = Watch::start(&mounted.pids);
        let result = measure(&mut mounted, round);
        let peak = watch.stop();
        if who == Who::Ovfs {
            self.memory.push(peak);
            if !mounted.pair.daemon.is_alive() {
                return Err(Failure::Wrong(format!("ovfs ended: {}", mounted.pair.daemon.messages())));
            }
        }
        let mut sample = result?;
        sample.store = self.store.server.counters.now().since(&before).list();
        Ok(sample)
    }

    /// A row beside OpenDAL alone, with the ratio aimed at, and beside the best chain. Targets are those of one
    /// distance.
    fn row(&self, name: &str, unit: Unit, raw: Option<f64>, chain: f64) -> Row {
        let target = |ratio: f64| (self.latency == LATENCY).then_some(ratio);
        let row = Row::new(format!("{}{name}", self.label), unit);
        let row = match raw {
            Some(ratio) => row.compare("ovfs", &[RAW], target(ratio)),
            None => row,
        };
        let peers = Who::peers(&self.who);
        if peers.is_empty() {
            return row;
        }
        row.compare("ovfs", &peers.iter().map(String::as_str).collect::<Vec<_>>(), target(chain))
    }

    fn sequential_read(&mut self) -> Result<(), Failure> {
        let row = self.row("cold sequential read of the large object", Unit::Mib, Some(0.9), 2.0);
        if !self.wanted(&row) {
            return Ok(());
        }
        let raw = Raw::new(&self.s3)?;
        let size = self.settings.large;
        let raw = move |_| best(|concurrency| Ok(mib(size, raw.read("large", size, concurrency)?)));
        self.fill(row, Some(&raw), &|mounted, _| {
            let pids = mounted.pids.clone();
            let session = &mut mounted.pair.session;
            let run = metered(&pids, || {
                let began = Instant::now();
                let file = session.open_file("large", libc::O_RDONLY, SEED).during("OPEN")?;
                let mut work = Reads::new(file, MIB, Order::once(file.size), STREAM_DEPTH);
                let mut outcome = session.one(&mut work, STREAM_DEPTH, Until::Done).during("cold sequential read")?;
                outcome.time = began.elapsed();
                Ok::<_, Failure>(outcome)
            })?;
            Ok(Sample::rate(&run, Unit::Mib))
        })
    }

    fn random_read(&mut self) -> Result<(), Failure> {
        let row = self.row("cold random 4 KiB read, depth 32", Unit::Ops, Some(0.9), 3.0);
        if !self.wanted(&row) {
            return Ok(());
        }
        let raw = Raw::new(&self.s3)?;
        let window = self.settings.window * 2;
        let size = self.store.size(SPREAD).unwrap_or_default();
        // Without a distance there is no ideal, and OpenDAL alone tells what is possible.
        let ideal = (!self.latency.is_zero()).then(|| DEPTH as f64 / self.latency.as_secs_f64());
        let row = match ideal {
            Some(_) => row.compare("ovfs", &[IDEAL], (self.latency == LATENCY).then_some(0.9)),
            None => row,
        };
        let count = (ideal.unwrap_or(2000.0) * window.as_secs_f64()) as usize;
        let raw = move |round| Ok(Sample::of(raw.random(SPREAD, size, DEPTH, count, round as u64 + 77)?));
        self.fill(row, Some(&raw), &|mounted, round| {
            let pids = mounted.pids.clone();
            let session = &mut mounted.pair.session;
            let file = session.open_file(SPREAD, libc::O_RDONLY, SEED).during("OPEN")?;
            let run = metered(&pids, || {
                let mut work = Reads::new(file, SMALL, Order::random(round as u64 + 1), DEPTH);
                session.one(&mut work, DEPTH, Until::Elapsed(window)).during("cold random read")
            })?;
            Ok(Sample::rate(&run, Unit::Ops))
        })?;
        if let (Some(row), Some(ideal)) = (self.rows.last_mut(), ideal) {
            (0..self.settings.rounds).for_each(|_| row.add(IDEAL, Sample::of(ideal)));
        }
        Ok(())
    }

    fn sequential_write(&mut self) -> Result<(), Failure> {
        let row = self.row("sequential write of an object as large, until it is stored", Unit::Mib, Some(0.9), 1.5);
        if !self.wanted(&row) {
            return Ok(());
        }
        let raw = Raw::new(&self.s3)?;
        let (size, store, within) = (self.settings.large, self.store, self.settings.stored_within);
        let raw = move |_| best(|concurrency| Ok(mib(size, raw.write("new/raw", NEW_SEED, size, concurrency)?)));
        self.fill(row, Some(&raw), &|mounted, round| {
            let pids = mounted.pids.clone();
            let name = Name::new("w", round as u64).text();
            let session = &mut mounted.pair.session;
            let run = metered(&pids, || {
                let began = Instant::now();
                let (entry, opened) = session
                    .guest
                    .create(ROOT, name.as_bytes(), libc::O_RDWR | libc::O_CREAT, 0o644)
                    .during("CREATE")?;
                let file = OpenFile { nodeid: entry.nodeid, fh: opened.fh, size, seed: NEW_SEED };
                let mut work = Writes::new(file, MIB, Order::once(size));
                let mut outcome = session.one(&mut work, STREAM_DEPTH, Until::Done).during("sequential write")?;
                session.guest.flush(file.nodeid, file.fh).during("FLUSH")?;
                session.guest.fsync(file.nodeid, file.fh, false).during("FSYNC")?;
                session.guest.release(file.nodeid, file.fh).during("RELEASE")?;
                until_stored("what was written", within, || store.size(&name) == Some(size))?;
                outcome.time = began.elapsed();
                Ok::<_, Failure>(outcome)
            })?;
            if !store.follows_pattern(&name, NEW_SEED, size) {
                return Err(Failure::Wrong("the object that was written holds wrong data".into()));
            }
            store.clear(&name);
            Ok(Sample::rate(&run, Unit::Mib))
        })?;
        self.store.clear("new/");
        Ok(())
    }

    fn small_change(&mut self, name: &str, append: bool) -> Result<(), Failure> {
        let row = self.row(name, Unit::Ms, None, 10.0);
        if !self.wanted(&row) {
            return Ok(());
        }
        let (size, store, within) = (self.settings.large, self.store, self.settings.stored_within);
        // An object each, there before anybody mounts: some remember what they saw first.
        let turn = Cell::new(0);
        (0..self.settings.rounds * self.who.len()).for_each(|n| store.copy("large", &format!("changed-{n}")));
        self.fill(row, None, &|mounted, round| {
            let key = format!("changed-{}", turn.get());
            turn.set(turn.get() + 1);
            let session = &mut mounted.pair.session;
            let flags = libc::O_RDWR | if append { libc::O_APPEND } else { 0 };
            let file = session.open_file(&key, flags, SEED).during("OPEN")?;
            let at = if append { size } else { size / 2 + (round as u64 * 4096) };
            let mut data = vec![0; SMALL as usize];
            fill(NEW_SEED, at, &mut data);
            let before = crate::usage::cpu(&mounted.pids);
            let began = Instant::now();
            let written = session.guest.write_with(file.nodeid, file.fh, at, &data, 0, flags).during("WRITE")?;
            session.guest.fsync(file.nodeid, file.fh, false).during("FSYNC")?;
            let mut took = began.elapsed();
            if store.word(&key, at) != Some(pattern(NEW_SEED, at)) {
                if mounted.mount.is_none() {
                    return Err(Failure::Wrong("fsync returned before the store had the change".into()));
                }
                // Not every peer keeps fsync's promise: then what counts is when the store has the change.
                session.guest.flush(file.nodeid, file.fh).during("FLUSH")?;
                session.guest.release(file.nodeid, file.fh).during("RELEASE")?;
                until_stored("the change", within, || store.word(&key, at) == Some(pattern(NEW_SEED, at)))?;
                took = began.elapsed();
            }
            let cpu = crate::usage::cpu(&mounted.pids).saturating_sub(before);
            let intact = store.word(&key, 4096) == Some(pattern(SEED, 4096))
                && store.word(&key, size - 4096) == Some(pattern(SEED, size - 4096));
            store.clear(&key);
            if u64::from(written) != u64::from(SMALL) || !intact {
                return Err(Failure::Wrong("the rest of the object has changed too".into()));
            }
            Ok(Sample { value: took.as_secs_f64() * 1e3, cpu_s: cpu.as_secs_f64(), ..Sample::default() })
        })?;
        self.store.clear("changed-");
        Ok(())
    }

    fn many_files(&mut self, close: Close) -> Result<(), Failure> {
        let row = match close {
            Close::Waits => {
                let name = "write many files of 4 KiB, depth 32, until they are stored";
                let row = self.row(name, Unit::Ops, None, 2.0);
                row.compare("ovfs", &[RAW], None)
            }
            Close::Returns => {
                let name = "write many files of 4 KiB, write-back, depth 32, until the last is closed";
                self.row(name, Unit::Ops, None, 5.0)
            }
        };
        if !self.wanted(&row) {
            return Ok(());
        }
        let alone = Raw::new(&self.s3)?;
        let (many, store) = (self.settings.many, self.store);
        let (longest, within) = (self.settings.many_longest, self.settings.stored_within);
        let raw = move |_| {
            let took = alone.write_many("many/raw-", SMALL as usize, many, DEPTH)?;
            Ok(Sample::of(many as f64 / took.as_secs_f64()))
        };
        let raw = (close == Close::Waits).then_some(&raw as RawMeasure);
        self.fill_with(row, close, raw, &|mounted, round| {
            let pids = mounted.pids.clone();
            let prefix = format!("m{round}-");
            let all_stored =
                |made| until_stored("the last of the files", within, || store.count(&prefix) as u64 >= made);
            let session = &mut mounted.pair.session;
            let run = metered(&pids, || {
                let began = Instant::now();
                let mut work = Files::kept(ROOT, &prefix, SMALL, (0, many), DEPTH);
                let until = Until::Elapsed(longest);
                let mut outcome = session.one(&mut work, DEPTH, until).during("writing many files")?;
                if close == Close::Waits {
                    all_stored(outcome.ops)?;
                    outcome.time = began.elapsed();
                }
                Ok::<_, Failure>(outcome)
            })?;
            let made = run.outcome.ops;
            all_stored(made)?;
            let right = (0..made).all(|n| {
                let name = Name::new(&prefix, n).text();
                store.size(&name) == Some(SMALL.into()) && store.word(&name, 0) == Some(pattern(n, 0))
            });
            store.clear(&prefix);
            if !right {
                return Err(Failure::Wrong("a file that was written holds wrong data".into()));
            }
            Ok(Sample::rate(&run, Unit::Ops))
        })?;
        self.store.clear("many/");
        Ok(())
    }

    fn listing(&mut self) -> Result<(), Failure> {
        let row = self.row("ls -l of many objects, cold", Unit::Seconds, Some(0.8), 2.0);
        if !self.wanted(&row) {
            return Ok(());
        }
        let raw = Raw::new(&self.s3)?;
        let many = self.settings.many;
        let raw = move |_| Ok(Sample::of(raw.list("list/", false)?.0.as_secs_f64()));
        self.fill(row, Some(&raw), &|mounted, _| {
            let pids = mounted.pids.clone();
            let session = &mut mounted.pair.session;
            let run = metered(&pids, || {
                let began = Instant::now();
                let dir = session.dir("list").during("LOOKUP")?;
                let handle = session.guest.opendir(dir).during("OPENDIR")?.fh;
                let mut work = Listing::new(dir, &[handle], LISTING, false);
                let mut outcome = session.one(&mut work, 1, Until::Done).during("READDIRPLUS")?;
                session.guest.releasedir(dir, handle).during("RELEASEDIR")?;
                outcome.time = began.elapsed();
                Ok::<_, Failure>(outcome)
            })?;
            if run.outcome.ops != many {
                return Err(Failure::Wrong(format!("{} entries instead of {many}", run.outcome.ops)));
            }
            Ok(Sample::rate(&run, Unit::Seconds))
        })
    }

    fn find(&mut self) -> Result<(), Failure> {
        let row = self.row("find over a tree", Unit::Seconds, Some(0.8), 2.0);
        if !self.wanted(&row) {
            return Ok(());
        }
        let raw = Raw::new(&self.s3)?;
        let tree = self.settings.tree;
        let raw = move |_| Ok(Sample::of(raw.list("tree/", true)?.0.as_secs_f64()));
        self.fill(row, Some(&raw), &|mounted, _| {
            let before = crate::usage::cpu(&mounted.pids);
            let session = &mut mounted.pair.session;
            let began = Instant::now();
            let mut found = 0;
            let mut dirs = vec![session.dir("tree").during("LOOKUP")?];
            while let Some(dir) = dirs.pop() {
                let handle = session.guest.opendir(dir).during("OPENDIR")?.fh;
                let mut offset = 0;
                loop {
                    let entries = session.guest.readdirplus(dir, handle, offset, LISTING).during("READDIRPLUS")?;
                    let Some(last) = entries.last() else { break };
                    offset = last.offset;
                    let mut forgotten = Vec::new();
                    for entry in entries.into_iter().filter(|entry| entry.name != b"." && entry.name != b"..") {
                        let Some(node) = entry.entry else { continue };
                        if node.attr.is_dir() {
                            dirs.push(node.nodeid);
                        } else {
                            found += 1;
                            forgotten.push((node.nodeid, 1));
                        }
                    }
                    // As a guest short of memory does: virtiofsd has a descriptor open for each inode that a guest knows
                    // of, and hosts limit these.
                    session.guest.batch_forget(&forgotten).during("BATCH_FORGET")?;
                }
                session.guest.releasedir(dir, handle).during("RELEASEDIR")?;
            }
            let took = began.elapsed();
            if found != tree {
                return Err(Failure::Wrong(format!("find sees {found} files instead of {tree}")));
            }
            let cpu = crate::usage::cpu(&mounted.pids).saturating_sub(before);
            Ok(Sample { value: took.as_secs_f64(), cpu_s: cpu.as_secs_f64(), ..Sample::default() })
        })
    }

    fn peak_memory(&mut self) {
        if self.memory.is_empty() {
            return;
        }
        let row =
            beside_pool("memory of ovfs beside its cache pool, highest in each mount of these rows", &self.memory);
        announce(&row);
        self.rows.push(row);
    }
}

fn mib(size: u64, took: Duration) -> f64 {
    size as f64 / f64::from(1 << 20) / took.as_secs_f64()
}

/// The best of several concurrencies.
fn best(measure: impl Fn(usize) -> Result<f64, Failure>) -> Result<Sample, Failure> {
    let mut best = 0.0f64;
    for concurrency in CONCURRENCIES {
        best = best.max(measure(concurrency)?);
    }
    Ok(Sample::of(best))
}
