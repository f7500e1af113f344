//! What others do to the store meanwhile.

use std::time::{Duration, Instant};

use ovfs_compat_tests::error::{Answer, Fault, errno_name};
use ovfs_compat_tests::guest::Guest;
use ovfs_compat_tests::mounted::Mounted;
use ovfs_compat_tests::stores::Kind;
use ovfs_compat_tests::stores::table::Level;

use crate::stage::{
    NO_OUTSIDE, Outcome, Race, Stage, Trouble, demand, emulated, errno, full, full_but, not_applicable, pattern,
};

/// Longer than the coarsest clock by which a store tells versions apart.
const A_TICK: Duration = Duration::from_millis(1100);

/// Longer than names and attributes are trusted, on a busy machine.
const CACHE_TIME: Duration = Duration::from_secs(30);

/// What an open file shows once its object is another, or none: how much of it was read ahead is chance.
const OLD_OR_ESTALE: &str = "the version that was opened, as far as it was read ahead; then ESTALE";

pub fn a_change_outside_is_seen_at_the_next_open(s: &mut Stage) -> Outcome {
    if !s.kind().has_outside() {
        return not_applicable(NO_OUTSIDE);
    }
    let path = s.path("f");
    s.guest().write_file(&path, b"by the guest")?;
    s.expect(&path, b"by the guest")?;
    s.store.put(&path, b"by somebody else");
    s.expect(&path, b"by somebody else")?;
    std::thread::sleep(A_TICK);
    s.store.put(&path, b"BY SOMEBODY ELSE");
    s.expect(&path, b"BY SOMEBODY ELSE")?;
    full()
}

pub fn a_change_of_equal_size_and_time_is_seen_at_the_next_open(s: &mut Stage) -> Outcome {
    if !s.kind().has_outside() {
        return not_applicable(NO_OUTSIDE);
    }
    let path = s.path("f");
    s.store.put(&path, b"one");
    s.expect(&path, b"one")?;
    if s.kind().is_files() {
        let then = s.store.mtime(&path).map_err(|e| Trouble::Wrong(e.to_string()))?;
        s.store.put(&path, b"two");
        s.store.set_mtime(&path, then).map_err(|e| Trouble::Wrong(e.to_string()))?;
    } else {
        s.store.put(&path, b"two");
    }
    match s.guest().read_file(&path)?.as_slice() {
        b"two" => full(),
        b"one" => emulated("not seen: versions are told apart by size and time"),
        _ => Err(Trouble::Wrong("it reads as something that it never was".into())),
    }
}

/// All that a handle shows from `at` on; `None`: it ended in ESTALE.
fn rest(guest: &mut Guest, node: u64, fh: u64, mut at: u64) -> Answer<Result<Vec<u8>, i32>> {
    let mut data = Vec::new();
    loop {
        match guest.read(node, fh, at, 64 << 10) {
            Ok(piece) if piece.is_empty() => return Ok(Ok(data)),
            Ok(piece) => {
                at += piece.len() as u64;
                data.extend(piece);
            }
            Err(Fault::Errno(errno)) => return Ok(Err(errno)),
            Err(fault) => return Err(fault),
        }
    }
}

pub fn an_open_file_replaced_outside_is_never_a_mix(s: &mut Stage) -> Outcome {
    const LEN: usize = 8 << 20;
    if !s.kind().has_outside() {
        return not_applicable(NO_OUTSIDE);
    }
    let (path, ours, theirs) = (s.path("f"), pattern(LEN, 1), pattern(LEN, 2));
    s.store.put(&path, &ours);
    let node = s.guest().resolve(&path)?;
    let file = s.guest().open(node, libc::O_RDONLY)?;
    demand(s.guest().read(node, file.fh, 0, 4096)? == ours[..4096], "the first bytes are others")?;
    std::thread::sleep(A_TICK);
    s.store.put(&path, &theirs);
    let rest = rest(s.guest(), node, file.fh, 4096)?;
    s.guest().release(node, file.fh)?;
    s.expect(&path, &theirs)?;
    match rest {
        Err(libc::ESTALE) => full_but(OLD_OR_ESTALE),
        Err(errno) => Err(Trouble::Wrong(format!("reading on says {}", errno_name(errno)))),
        Ok(data) if data == ours[4096..] => full_but(OLD_OR_ESTALE),
        Ok(_) => Err(Trouble::Wrong("a mix of both versions".into())),
    }
}

pub fn an_open_file_deleted_outside_is_no_other_file(s: &mut Stage) -> Outcome {
    const LEN: usize = 8 << 20;
    if !s.kind().has_outside() {
        return not_applicable(NO_OUTSIDE);
    }
    let (path, data) = (s.path("f"), pattern(LEN, 3));
    s.store.put(&path, &data);
    let node = s.guest().resolve(&path)?;
    let file = s.guest().open(node, libc::O_RDONLY)?;
    demand(s.guest().read(node, file.fh, 0, 4096)? == data[..4096], "the first bytes are others")?;
    s.store.delete(&path);
    let rest = rest(s.guest(), node, file.fh, 4096)?;
    s.guest().release(node, file.fh)?;
    let deadline = Instant::now() + CACHE_TIME;
    while s.guest().exists(&path)? {
        demand(Instant::now() < deadline, "its name stays")?;
        std::thread::sleep(Duration::from_millis(100));
    }
    match rest {
        Ok(rest) => {
            demand(rest == data[4096..], "it reads as something else")?;
            full_but(OLD_OR_ESTALE)
        }
        Err(libc::ESTALE) => full_but(OLD_OR_ESTALE),
        Err(errno) => emulated(format!("reading on says {}", errno_name(errno))),
    }
}

/// Opens and reads a file that then has a change of ours, not yet stored.
fn dirty(s: &mut Stage, path: &str) -> Result<(u64, u64), Trouble> {
    s.store.put(path, &pattern(64 << 10, 4));
    let node = s.guest().resolve(path)?;
    let file = s.guest().open(node, libc::O_RDWR)?;
    s.guest().read_to_end(node, file.fh)?;
    s.guest().write(node, file.fh, 0, b"ours")?;
    Ok((node, file.fh))
}

/// Theirs must be there and the guest told, or ours in its place.
fn conflict(s: &mut Stage, path: &str, theirs: &[u8], answer: Answer<()>, otherwise: &str) -> Outcome {
    let mut ours = pattern(64 << 10, 4);
    ours[..4].copy_from_slice(b"ours");
    match answer {
        Ok(()) => {
            s.expect_outside(path, Some(&ours))?;
            emulated(otherwise)
        }
        answer => {
            let got = errno(answer, "the close")?;
            s.conflict(path, theirs, &ours, got)
        }
    }
}

pub fn a_write_on_a_stale_base_is_a_conflict(s: &mut Stage) -> Outcome {
    if !s.kind().has_outside() {
        return not_applicable(NO_OUTSIDE);
    }
    let (path, theirs) = (s.path("f"), pattern(50_000, 5));
    let (node, fh) = dirty(s, &path)?;
    s.store.put(&path, &theirs);
    let answer = s.guest().flush(node, fh);
    // Nobody hears what a release says.
    s.guest().release(node, fh).ok();
    let verdict = conflict(s, &path, &theirs, answer, "")?;
    demand(verdict.level == Level::Full, "theirs is overwritten, and nobody is told")?;
    Ok(verdict)
}

pub fn a_write_on_a_stale_base_is_a_conflict_even_in_a_race(s: &mut Stage) -> Outcome {
    if !s.kind().has_outside() {
        return not_applicable(NO_OUTSIDE);
    }
    let (path, theirs) = (s.path("f"), pattern(50_000, 6));
    let (node, fh) = dirty(s, &path)?;
    let race = s.race_flush(node, fh, |store| store.put(&path, &theirs))?;
    s.guest().release(node, fh).ok();
    let Race::Answered(answer) = race else { return not_applicable("the moment cannot be met from outside") };
    conflict(s, &path, &theirs, answer, "looked for before the upload: who comes in between is overwritten")
}

pub fn two_daemons_are_close_to_open(s: &mut Stage) -> Outcome {
    if s.kind() == Kind::Memory {
        return not_applicable(NO_OUTSIDE);
    }
    let path = s.path("f");
    let mut other = Mounted::new(&s.store, &[]);
    let mut expected = pattern(150_000, 7);
    s.guest().write_file(&path, &expected)?;
    demand(other.guest.read_file(&path)? == expected, "the other guest does not see the first write")?;
    for round in 0..3u32 {
        // Versions that have only a time in whole seconds differ after one.
        std::thread::sleep(A_TICK);
        expected = pattern(150_000, 8 + round);
        other.guest.write_file(&path, &expected)?;
        demand(s.guest().read_file(&path)? == expected, "a rewrite by the other guest is not seen")?;
        std::thread::sleep(A_TICK);
        let node = s.guest().resolve(&path)?;
        let file = s.guest().open(node, libc::O_RDWR)?;
        s.guest().write(node, file.fh, 77_777, b"a change")?;
        s.guest().flush(node, file.fh)?;
        s.guest().release(node, file.fh)?;
        expected[77_777..77_785].copy_from_slice(b"a change");
        demand(other.guest.read_file(&path)? == expected, "a change is not seen by the other guest")?;
    }
    other.guest.remove_file(&path)?;
    let deadline = Instant::now() + CACHE_TIME;
    while s.guest().exists(&path)? {
        demand(Instant::now() < deadline, "a removal by the other guest is not seen")?;
        std::thread::sleep(Duration::from_millis(100));
    }
    other.end();
    full()
}
