//! Close-to-open: two guests, each with a daemon of its own, and a program outside, on one bucket at the same time.
//!
//! Whoever opens a file sees what was closed last, whoever closed it; nobody sees a mix; of two who change the same
//! version, one is told.

mod history;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use history::{Event, Op, Value, is_possible, told};
use ovfs_compat_tests::error::Fault;
use ovfs_compat_tests::fuse::ROOT;
use ovfs_compat_tests::guest::Guest;
use ovfs_compat_tests::mounted::Mounted;
use ovfs_compat_tests::stores::{Kind, TestStore};
use ovfs_compat_tests::subject::Rng;

/// Names that everybody uses.
const NAMES: [&str; 3] = ["one", "two", "three"];
/// Operations of each in one round, and rounds.
const OPERATIONS: u32 = 30;
const ROUNDS: u64 = 3;
/// Bytes per read: small, so that others come between.
const CHUNK: u32 = 16 << 10;

/// Contents that say which they are in every part.
struct Contents {
    next: AtomicU64,
}

impl Contents {
    fn fresh(&self, rng: &mut Rng) -> (u64, Vec<u8>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let most = if rng.below(5) == 0 { 8_000 } else { 200 };
        let lines = 1 + rng.below(most);
        (number, Contents::of(number, lines))
    }

    fn of(number: u64, lines: u64) -> Vec<u8> {
        (0..lines).flat_map(|_| format!("{number:08} {lines:06}\n").into_bytes()).collect()
    }

    /// Which content `bytes` are.
    ///
    /// # Panics
    /// When they are none, or parts of several.
    fn number(bytes: &[u8]) -> u64 {
        let first = bytes.get(..16).and_then(|line| std::str::from_utf8(line).ok());
        let parsed = first.and_then(|line| {
            let (number, lines) = line.trim_end().split_once(' ')?;
            Some((number.parse().ok()?, lines.parse().ok()?))
        });
        let (number, lines) = parsed.unwrap_or_else(|| panic!("{} bytes of nobody: {first:?}", bytes.len()));
        assert!(bytes == Contents::of(number, lines), "a mix that begins as content {number}");
        number
    }
}

/// What everybody did, by name.
struct Record {
    began: Instant,
    /// Taken by whoever uses a name, where the store itself would mix what is done at the same time.
    turns: Option<[Mutex<()>; NAMES.len()]>,
    events: Mutex<HashMap<&'static str, Vec<Event>>>,
}

impl Record {
    fn new(kind: Kind) -> Record {
        let turns = (!kind.replaces_at_once()).then(Default::default);
        Record { began: Instant::now(), turns, events: Mutex::default() }
    }

    /// Held for an operation on `name`.
    fn turn(&self, name: &str) -> Option<MutexGuard<'_, ()>> {
        let at = NAMES.iter().position(|known| *known == name)?;
        // Who panicked has failed the test already.
        self.turns.as_ref().map(|turns| turns[at].lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn add(&self, name: &'static str, actor: &'static str, op: Op, start: Duration, end: Duration) {
        let event = Event { actor, op, start, end };
        self.events.lock().expect("no panics while it is held").entry(name).or_default().push(event);
    }
}

/// What a guest's operation came to: done, told that it was not, or something else.
fn is_refused(fault: &Fault) -> bool {
    matches!(fault, Fault::Errno(libc::ESTALE | libc::ENOENT | libc::EEXIST))
}

fn unexpected(what: &str, fault: &Fault) -> ! {
    panic!("{what}: {fault}")
}

/// Reads a file as programs do: open, read to the end, close. `None`: it went stale on the way.
fn read(guest: &mut Guest, record: &Record, name: &str) -> Option<(Value, Duration, Duration)> {
    let start = record.now();
    let mut open = || guest.lookup(ROOT, name.as_bytes()).and_then(|e| Ok((e.nodeid, guest.open(e.nodeid, 0)?.fh)));
    let opened = match open() {
        // As Linux does: a name that went stale is looked up once more.
        Err(Fault::Errno(libc::ESTALE)) => open(),
        other => other,
    };
    let end = record.now();
    let (node, fh) = match opened {
        Ok(opened) => opened,
        Err(Fault::Errno(libc::ENOENT)) => return Some((None, start, end)),
        Err(Fault::Errno(libc::ESTALE)) => return None,
        Err(fault) => unexpected("open", &fault),
    };
    let mut bytes = Vec::new();
    let whole = loop {
        match guest.read(node, fh, bytes.len() as u64, CHUNK) {
            Ok(chunk) if chunk.is_empty() => break true,
            Ok(chunk) => bytes.extend(chunk),
            Err(Fault::Errno(libc::ESTALE)) => break false,
            Err(fault) => unexpected("read", &fault),
        }
    };
    guest.flush(node, fh).unwrap_or_else(|fault| unexpected("close of a file that was read", &fault));
    guest.release(node, fh).unwrap_or_else(|fault| unexpected("release", &fault));
    whole.then(|| (Some(Contents::number(&bytes)), start, end))
}

/// Writes a file as programs do: O_CREAT, O_TRUNC, write, close. Says when the close began and ended, and whether it said Ok.
fn write(guest: &mut Guest, record: &Record, name: &str, data: &[u8]) -> Option<(Duration, Duration, bool)> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
    let mut create = || guest.create(ROOT, name.as_bytes(), flags, 0o644);
    let created = match create() {
        Err(Fault::Errno(libc::ESTALE)) => create(),
        other => other,
    };
    let (node, fh) = match created {
        Ok((entry, opened)) => (entry.nodeid, opened.fh),
        Err(fault) if is_refused(&fault) => return None,
        Err(fault) => unexpected("create", &fault),
    };
    match guest.write_all(node, fh, 0, data) {
        Ok(()) => {}
        Err(Fault::Errno(libc::ESTALE)) => {
            // Replaced since it was opened.
            guest.flush(node, fh).ok();
            guest.release(node, fh).ok();
            return None;
        }
        Err(fault) => unexpected("write", &fault),
    }
    let start = record.now();
    let closed = guest.flush(node, fh);
    guest.release(node, fh).ok();
    let end = record.now();
    match closed {
        Ok(()) => Some((start, end, true)),
        Err(fault) if is_refused(&fault) => Some((start, end, false)),
        Err(fault) => unexpected("close", &fault),
    }
}

fn guest_operation(guest: &mut Guest, actor: &'static str, rng: &mut Rng, record: &Record, contents: &Contents) {
    let name = *rng.pick(&NAMES);
    let _turn = record.turn(name);
    match rng.below(10) {
        0..5 => {
            if let Some((value, start, end)) = read(guest, record, name) {
                record.add(name, actor, Op::Read(value), start, end);
            }
        }
        5..7 => {
            let (number, data) = contents.fresh(rng);
            match write(guest, record, name, &data) {
                // Told that it failed: somebody else's is there.
                None | Some((_, _, false)) => {}
                Some((start, end, true)) => record.add(name, actor, Op::Write(number), start, end),
            }
        }
        7..9 => {
            // As editors save.
            let (number, data) = contents.fresh(rng);
            let beside = format!("{name}.{actor}");
            assert!(write(guest, record, &beside, &data).is_some_and(|(.., ok)| ok), "nobody else writes {beside}");
            let start = record.now();
            let renamed = guest.rename(ROOT, beside.as_bytes(), ROOT, name.as_bytes());
            let end = record.now();
            match renamed {
                Ok(()) => record.add(name, actor, Op::Write(number), start, end),
                Err(fault) if is_refused(&fault) => record.add(name, actor, Op::MayWrite(number), start, end),
                // moto trips over two requests for one name at a time; what it did by then is not known.
                Err(Fault::Errno(libc::EIO)) => record.add(name, actor, Op::MayWrite(number), start, end),
                Err(fault) => unexpected("rename", &fault),
            }
        }
        _ => {
            let start = record.now();
            match guest.unlink(ROOT, name.as_bytes()) {
                Ok(()) => {
                    // Many removals reach the store together; syncfs(2) waits for them.
                    guest.syncfs(ROOT).unwrap_or_else(|fault| unexpected("syncfs", &fault));
                    record.add(name, actor, Op::Delete, start, record.now());
                }
                Err(fault) if is_refused(&fault) => {}
                Err(fault) => unexpected("unlink", &fault),
            }
        }
    }
}

fn outside_operation(store: &TestStore, rng: &mut Rng, record: &Record, contents: &Contents) {
    let name = *rng.pick(&NAMES);
    let _turn = record.turn(name);
    let start = record.now();
    if rng.below(2) == 0 {
        let (number, data) = contents.fresh(rng);
        let start = record.now();
        store.put(name, &data);
        record.add(name, "outside", Op::Write(number), start, record.now());
    } else {
        let found = store.get(name).map(|bytes| Contents::number(&bytes));
        record.add(name, "outside", Op::Read(found), start, record.now());
    }
}

/// Everybody at once, and then the histories.
fn round(store: &TestStore, a: &mut Guest, b: &mut Guest, seed: u64) {
    for name in NAMES {
        if store.get(name).is_some() {
            store.delete(name);
        }
    }
    // What names were trusted before is out of date by then.
    std::thread::sleep(Duration::from_millis(1_200));
    let record = Record::new(store.kind());
    let contents = Contents { next: AtomicU64::new(seed * 100_000) };
    std::thread::scope(|scope| {
        for (actor, guest, seed) in [("A", a, seed * 3), ("B", b, seed * 3 + 1)] {
            let (record, contents) = (&record, &contents);
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                for _ in 0..OPERATIONS {
                    guest_operation(guest, actor, &mut rng, record, contents);
                }
            });
        }
        let (record, contents) = (&record, &contents);
        scope.spawn(move || {
            let mut rng = Rng::new(seed * 3 + 2);
            for _ in 0..OPERATIONS {
                outside_operation(store, &mut rng, record, contents);
                std::thread::sleep(Duration::from_millis(rng.below(20)));
            }
        });
    });
    for (name, events) in record.events.into_inner().expect("no panics") {
        assert!(is_possible(&events), "{name:?}, seed {seed}: no order explains\n{}", told(&events));
    }
}

fn close_to_open(kind: Kind) {
    let store = TestStore::start(kind);
    let (mut a, mut b) = (Mounted::new(&store, &[]), Mounted::new(&store, &[]));
    for seed in 1..=ROUNDS {
        round(&store, &mut a.guest, &mut b.guest, seed);
    }
}

#[test]
fn an_open_sees_what_was_closed_last_on_moto() {
    close_to_open(Kind::Moto);
}

#[test]
fn an_open_sees_what_was_closed_last_on_s3s_fs() {
    close_to_open(Kind::S3sFs);
}

#[test]
fn an_open_sees_what_was_closed_last_on_fs() {
    close_to_open(Kind::Fs);
}

/// Adds a line to a file as log writers do, if nobody else has changed it since it was opened.
fn append(guest: &mut Guest, name: &str, line: &str) -> bool {
    let Ok(entry) = guest.lookup(ROOT, name.as_bytes()) else { return false };
    let Ok(opened) = guest.open(entry.nodeid, libc::O_RDWR | libc::O_APPEND) else { return false };
    let size = guest.getattr(entry.nodeid, Some(opened.fh)).map_or(0, |out| out.attr.size);
    let written = guest.write_all(entry.nodeid, opened.fh, size, line.as_bytes());
    let closed = guest.flush(entry.nodeid, opened.fh);
    guest.release(entry.nodeid, opened.fh).ok();
    match (written, closed) {
        (Ok(()), Ok(())) => true,
        (Err(Fault::Errno(libc::ESTALE)), _) | (_, Err(Fault::Errno(libc::ESTALE))) => false,
        other => panic!("append: {other:?}"),
    }
}

/// Two guests add lines to one file; every line that was acknowledged is there, once, and no line that was not.
fn no_update_is_lost(kind: Kind) {
    let store = TestStore::start(kind);
    let (mut a, mut b) = (Mounted::new(&store, &[]), Mounted::new(&store, &[]));
    store.put("log", b"begin\n");
    let acknowledged = Mutex::new(Vec::new());
    let refused = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for (actor, guest) in [("A", &mut a.guest), ("B", &mut b.guest)] {
            let (acknowledged, refused) = (&acknowledged, &refused);
            scope.spawn(move || {
                for count in 0..40 {
                    let line = format!("{actor}{count:04}\n");
                    if append(guest, "log", &line) {
                        acknowledged.lock().expect("no panics while it is held").push(line);
                    } else {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let log = String::from_utf8(store.get("log").expect("it is there")).expect("text");
    let acknowledged = acknowledged.into_inner().expect("no panics");
    let lines: Vec<&str> = log.split_inclusive('\n').collect();
    for line in &acknowledged {
        let times = lines.iter().filter(|there| *there == line).count();
        assert_eq!(times, 1, "{line:?} was acknowledged; the file:\n{log}");
    }
    assert_eq!(lines.len(), acknowledged.len() + 1, "the file:\n{log}");
    assert!(!acknowledged.is_empty());
    let refused = refused.into_inner();
    println!("{}: {} lines acknowledged, {refused} refused", kind.name(), acknowledged.len());
}

#[test]
fn no_acknowledged_update_is_lost_on_moto() {
    no_update_is_lost(Kind::Moto);
}

#[test]
fn no_acknowledged_update_is_lost_on_fs() {
    no_update_is_lost(Kind::Fs);
}
