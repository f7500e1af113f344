//! OpenDAL's own directory store, `fs`: ovfs on it beside virtiofsd on the same directory.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use ovfs_compat_tests::fuse::ROOT;

use crate::lane::Until;
use crate::process::Spec;
use crate::record::{Row, Sample, Unit};
use crate::rows::{During, Failure, Settings, announce, turn, write_pattern};
use crate::session::{Pair, Session, Shape, metered};
use crate::work::io::{OpenFile, Order, Reads, Writes};
use crate::work::names::{Files, Listing, Name};
use crate::work::pattern;

const SEED: u64 = 8;
const MIB: u32 = 1 << 20;
const SMALL: u32 = 4096;
const DEPTH: usize = 32;
const STREAM_DEPTH: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Random,
    Write,
    Files,
    List,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Read, Kind::Random, Kind::Write, Kind::Files, Kind::List];

    fn row(self) -> Row {
        let (name, unit) = match self {
            Kind::Read => ("fs: sequential read of a file that the pool does not hold", Unit::Mib),
            Kind::Random => ("fs: random 4 KiB read, depth 32", Unit::Ops),
            Kind::Write => ("fs: sequential write + fsync", Unit::Mib),
            Kind::Files => ("fs: write many files of 4 KiB, depth 32", Unit::Ops),
            Kind::List => ("fs: ls -l of many files", Unit::Seconds),
        };
        Row::new(name, unit).compare("ovfs", &["virtiofsd"], None)
    }
}

/// Every row. Everybody is freshly started in each round; the files are in the host's memory.
///
/// # Errors
/// A daemon fails, or a result is wrong.
pub fn run(settings: &Settings, only: Option<&str>) -> Result<Vec<Row>, Failure> {
    let share = settings.share()?;
    let dir = share.path();
    // Larger than the pool of the measured daemon.
    let size = settings.large / 4;
    let many = settings.many / 10;
    write_pattern(&dir.join("data"), SEED, size)?;
    fs::create_dir(dir.join("list"))?;
    for n in 0..many {
        fs::write(dir.join("list").join(Name::new("f", n).text()), pattern(n, 0).to_le_bytes())?;
    }
    let url = format!("fs://{}", dir.display());
    let specs = [Spec::virtiofsd(dir), Spec::ovfs_on(&url).arg(format!("--cache-size={}", (size / 2).max(16 << 20)))];
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        let mut row = kind.row();
        if only.is_some_and(|only| !row.name.contains(only)) {
            continue;
        }
        let began = Instant::now();
        for round in (0..).take_while(|round| settings.another(*round, began)) {
            for n in turn(round, specs.len()) {
                let daemon = specs[n].start()?;
                let shape = Shape { wait: settings.wait, ..Shape::default() };
                let session = Session::open(&daemon.socket(), shape).during("INIT")?;
                let mut pair = Pair { session, daemon };
                let sample = measure(kind, &mut pair, dir, (size, many), settings, round as u64)?;
                if !pair.daemon.is_alive() {
                    return Err(Failure::Wrong(format!("{} ended: {}", specs[n].label, pair.daemon.messages())));
                }
                row.add(&specs[n].label, sample);
            }
        }
        announce(&row);
        rows.push(row);
    }
    Ok(rows)
}

fn measure(
    kind: Kind,
    pair: &mut Pair,
    dir: &Path,
    (size, many): (u64, u64),
    settings: &Settings,
    round: u64,
) -> Result<Sample, Failure> {
    let pids = pair.daemon.pids();
    let session = &mut pair.session;
    let unit = kind.row().unit;
    let run = metered(&pids, || {
        let began = Instant::now();
        let mut outcome = match kind {
            Kind::Read => {
                let file = session.open_file("data", libc::O_RDONLY, SEED).during("OPEN")?;
                let mut work = Reads::new(file, MIB, Order::once(size), STREAM_DEPTH);
                session.one(&mut work, STREAM_DEPTH, Until::Done).during("sequential read")?
            }
            Kind::Random => {
                let file = session.open_file("data", libc::O_RDONLY, SEED).during("OPEN")?;
                let mut work = Reads::new(file, SMALL, Order::random(round + 1), DEPTH);
                return session.one(&mut work, DEPTH, Until::Elapsed(settings.window)).during("random read");
            }
            Kind::Write => {
                let flags = libc::O_RDWR | libc::O_CREAT;
                let (entry, opened) = session.guest.create(ROOT, b"written", flags, 0o644).during("CREATE")?;
                let file = OpenFile { nodeid: entry.nodeid, fh: opened.fh, size, seed: SEED };
                let mut work = Writes::new(file, MIB, Order::once(size));
                let outcome = session.one(&mut work, STREAM_DEPTH, Until::Done).during("sequential write")?;
                session.guest.fsync(file.nodeid, file.fh, false).during("FSYNC")?;
                session.guest.flush(file.nodeid, file.fh).during("FLUSH")?;
                session.guest.release(file.nodeid, file.fh).during("RELEASE")?;
                outcome
            }
            Kind::Files => {
                let made = session.guest.mkdir(ROOT, b"made", 0o755).during("MKDIR")?.nodeid;
                let mut work = Files::kept(made, "m", SMALL, (0, many), DEPTH);
                session.one(&mut work, DEPTH, Until::Done).during("writing many files")?
            }
            Kind::List => {
                let list = session.dir("list").during("LOOKUP")?;
                let handle = session.guest.opendir(list).during("OPENDIR")?.fh;
                let mut work = Listing::new(list, &[handle], 32 << 10, false);
                session.one(&mut work, 1, Until::Done).during("READDIRPLUS")?
            }
        };
        outcome.time = began.elapsed();
        Ok(outcome)
    })?;
    check(kind, dir, (size, many), run.outcome.ops)?;
    Ok(Sample::rate(&run, unit))
}

/// Looks at what came of it in the directory, and takes it away again.
fn check(kind: Kind, dir: &Path, (size, many): (u64, u64), ops: u64) -> Result<(), Failure> {
    let word = |file: &fs::File, at: u64| -> Result<u64, Failure> {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, at)?;
        Ok(u64::from_le_bytes(word))
    };
    match kind {
        Kind::Read | Kind::Random => {}
        Kind::Write => {
            let path = dir.join("written");
            if fs::metadata(&path)?.len() != size {
                return Err(Failure::Wrong("the file that was written has another length".into()));
            }
            let file = fs::File::open(&path)?;
            for at in (0..size).step_by(SMALL as usize) {
                if word(&file, at)? != pattern(SEED, at) {
                    return Err(Failure::Wrong(format!("the file that was written holds wrong data at {at}")));
                }
            }
            fs::remove_file(&path)?;
        }
        Kind::Files => {
            for n in 0..many {
                let path = dir.join("made").join(Name::new("m", n).text());
                let file = fs::File::open(&path)?;
                if file.metadata()?.len() != u64::from(SMALL) || word(&file, 0)? != pattern(n, 0) {
                    return Err(Failure::Wrong(format!("{} holds wrong data", path.display())));
                }
            }
            fs::remove_dir_all(dir.join("made"))?;
        }
        Kind::List if ops != many => {
            return Err(Failure::Wrong(format!("{ops} entries instead of {many}")));
        }
        Kind::List => {}
    }
    Ok(())
}
