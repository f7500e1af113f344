//! What is paid beside time: requests to the store, memory, and the wait for a daemon to start.

use ovfs_compat_tests::fuse::ROOT;

use crate::lane::Until;
use crate::process::{S3, Spec};
use crate::record::{Row, Sample, Unit};
use crate::rows::contender::{Who, until_stored};
use crate::rows::{During, Failure, Settings, announce, turn};
use crate::s3::MemoryS3;
use crate::server::Counts;
use crate::session::{Session, Shape};
use crate::usage;
use crate::work::names::{Files, Listing, Name, SmallReads};

/// Files of the listing and the reading.
const FILES: u64 = 1000;
const SMALL: u32 = 4096;
const DEPTH: usize = 8;

/// Every row.
///
/// # Errors
/// ovfs or virtiofsd fails.
pub fn run(settings: &Settings, only: Option<&str>) -> Result<Vec<Row>, Failure> {
    let wanted = |name: &str| only.is_none_or(|only| name.contains(only));
    let mut rows = Vec::new();
    if wanted("requests") {
        rows.extend(requests(settings)?);
    }
    if wanted("memory") {
        rows.extend(memory(settings)?);
    }
    if wanted("start") {
        rows.extend(start(settings)?);
    }
    rows.iter().for_each(announce);
    Ok(rows)
}

fn requests(settings: &Settings) -> Result<Vec<Row>, Failure> {
    let store = MemoryS3::start()?;
    for n in 0..FILES {
        store.put_pattern(&format!("dir/{}", Name::new("f", n).text()), n, SMALL.into());
    }
    let s3 = store.access();
    let who = Who::all(settings);
    let peers = Who::peers(&who);
    let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
    let names = [
        "requests: ls -l of 1,000",
        "requests: reading 1,000 small files after it",
        "requests: writing one small file",
    ];
    let mut rows = names.map(|name| Row::new(name, Unit::Requests).bound("ovfs", &peers, 1.0));
    for who in who {
        match one(who, &store, &s3, settings) {
            Ok(counts) => rows.iter_mut().zip(counts).for_each(|(row, counts)| {
                let sample = Sample { store: counts.list(), ..Sample::of(counts.total() as f64) };
                row.add(&who.label(), sample);
            }),
            Err(failure) if who != Who::Ovfs => {
                rows.iter_mut().for_each(|row| row.fail(&who.label(), &failure.to_string()));
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(rows.into())
}

fn one(who: Who, store: &MemoryS3, s3: &S3, settings: &Settings) -> Result<[Counts; 3], Failure> {
    let counters = &store.server.counters;
    let mut mounted = who.mount(s3, false, settings)?;
    quiet(store, settings);
    let began = counters.now();
    let session = &mut mounted.pair.session;
    let dir = session.dir("dir").during("LOOKUP")?;
    let handle = session.guest.opendir(dir).during("OPENDIR")?.fh;
    let mut listing = Listing::new(dir, &[handle], 32 << 10, false);
    listing.seen = Some(Vec::new());
    session.one(&mut listing, 1, Until::Done).during("READDIRPLUS")?;
    session.guest.releasedir(dir, handle).during("RELEASEDIR")?;
    let seen = listing.seen.take().unwrap_or_default();
    if seen.len() as u64 != FILES {
        return Err(Failure::Wrong(format!("{} entries instead of {FILES}", seen.len())));
    }
    // At once, as whoever lists a directory to read it does.
    let listed = counters.now();
    let mut files = Vec::new();
    for n in 0..FILES {
        // A guest has the inodes from the listing; asking again by name costs nothing that its cache would save.
        let entry = session.guest.lookup(dir, Name::new("f", n).text().as_bytes()).during("LOOKUP")?;
        files.push((entry.nodeid, SMALL, n));
    }
    session.one(&mut SmallReads::new(files, DEPTH), DEPTH, Until::Done).during("reading small files")?;
    quiet(store, settings);
    let read = counters.now();
    let mut work = Files::kept(ROOT, "new-", SMALL, (0, 1), 1);
    session.one(&mut work, 1, Until::Done).during("writing a small file")?;
    until_stored("the small file", settings.stored_within, || store.count("new-") == 1)?;
    quiet(store, settings);
    let written = counters.now();
    drop(mounted);
    store.clear("new-");
    Ok([listed.since(&began), read.since(&listed), written.since(&read)])
}

/// Waits until nobody asks the store anything any more.
fn quiet(store: &MemoryS3, settings: &Settings) {
    let mut last = store.server.counters.now();
    loop {
        std::thread::sleep(settings.quiet);
        let now = store.server.counters.now();
        if now == last {
            return;
        }
        last = now;
    }
}

fn specs(dir: &std::path::Path, s3: &S3) -> [Spec; 3] {
    [Spec::virtiofsd(dir), Spec::ovfs(dir), s3.ovfs().called("ovfs on S3")]
}

fn memory(settings: &Settings) -> Result<Vec<Row>, Failure> {
    let (store, share) = (MemoryS3::start()?, tempfile::tempdir()?);
    let mut row = Row::new("memory, idle", Unit::Memory).bound("ovfs", &["virtiofsd"], 2.0);
    row = row.bound("ovfs on S3", &["virtiofsd"], 2.0);
    for spec in specs(share.path(), &store.access()) {
        for _ in 0..settings.rounds {
            let daemon = spec.start()?;
            let session = Session::open(&daemon.socket(), Shape { depth: 1, ..Shape::default() }).during("INIT")?;
            std::thread::sleep(settings.window * 2);
            let memory = usage::memory(&daemon.pids());
            row.add(&spec.label, Sample::of((memory.own + memory.shared) as f64 / f64::from(1 << 20)));
            drop(session);
        }
    }
    Ok(vec![row])
}

fn start(settings: &Settings) -> Result<Vec<Row>, Failure> {
    let (store, share) = (MemoryS3::start()?, tempfile::tempdir()?);
    let mut row = Row::new("start to readiness line", Unit::Ms).bound("ovfs", &["virtiofsd"], 2.0);
    row = row.bound("ovfs on S3", &["virtiofsd"], 2.0);
    let specs = specs(share.path(), &store.access());
    for round in 0..settings.rounds * 3 {
        for n in turn(round, specs.len()) {
            let daemon = specs[n].start()?;
            row.add(&daemon.label, Sample::of(daemon.start_time.as_secs_f64() * 1e3));
        }
    }
    Ok(vec![row])
}
