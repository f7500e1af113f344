//! What a store that takes requests and never answers costs its neighbour: none of the neighbour's requests waits for it, however
//! many hang. (`scripts/bench neighbours` measures the speed that is left.)

use std::time::{Duration, Instant};

use ovfs_compat_tests::daemon::patience;
use ovfs_compat_tests::fuse::{ROOT, op};
use ovfs_compat_tests::gate::Gate;
use ovfs_compat_tests::guest::Call;
use ovfs_compat_tests::stores::{Kind, TestStore};

use super::{Share, errno, local, s3, share};

/// Requests to the black hole that are under way meanwhile: more than the broker serves at once for one store.
const HUNG: usize = 200;

/// Files written and read beside it.
const FILES: usize = 100;

#[test]
fn black_hole_keeps_none_of_its_neighbours_requests_waiting() {
    let (a, b, c) = (TestStore::start(Kind::S3sFs), TestStore::start(Kind::S3sFs), TestStore::start(Kind::Fs));
    let gate = Gate::before(b.port());
    (0..HUNG).for_each(|n| b.put(&format!("file-{n}"), b"in the hole"));
    let hole = s3("/b", gate.port(), "request_timeout = \"10m\"");
    let Share { mut guest, daemon, _scratch } = share(&[s3("/a", a.port(), ""), hole, local("/c", &c, "")]);
    let known: Vec<u64> = (0..HUNG).map(|n| guest.resolve(&format!("b/file-{n}")).expect("look up")).collect();
    gate.shut();
    // Opening asks the store each time.
    let open = |nodeid| Call { opcode: op::OPEN, nodeid, args: vec![&[0; 8]], reply: Some(16), ..Call::default() };
    let tickets: Vec<_> = known.into_iter().map(|nodeid| guest.submit(&open(nodeid)).expect("submit")).collect();
    for n in 0..FILES {
        for mount in ["a", "c"] {
            let (name, bytes) = (format!("{mount}/new-{n}"), format!("bytes {n}").into_bytes());
            guest.write_file(&name, &bytes).expect("write");
            assert_eq!(guest.read_file(&name).expect("read"), bytes);
        }
    }
    assert_eq!(guest.list("a").expect("list").len(), FILES);
    gate.open();
    for ticket in tickets {
        guest.wait(ticket).expect("late is not never");
    }
    drop(daemon);
}

#[test]
fn silent_store_fails_at_once_after_its_time_until_it_answers_again() {
    let (a, b) = (TestStore::start(Kind::S3sFs), TestStore::start(Kind::S3sFs));
    let gate = Gate::before(b.port());
    (0..HUNG).for_each(|n| b.put(&format!("file-{n}"), b"in the hole"));
    let timeout = Duration::from_secs(3);
    let mut share = share(&[s3("/a", a.port(), ""), s3("/b", gate.port(), "request_timeout = \"3s\"")]);
    let guest = &mut share.guest;
    assert_eq!(guest.read_file("b/file-0").expect("read"), b"in the hole");
    gate.shut();
    let begun = Instant::now();
    for n in 1..HUNG {
        assert_eq!(errno(guest.read_file(&format!("b/file-{n}"))), libc::ETIMEDOUT);
    }
    // One after the other they would take ten minutes.
    assert!(begun.elapsed() < timeout * HUNG as u32 / 4, "{:?}", begun.elapsed());
    assert!(guest.getattr(ROOT, None).is_ok() && guest.list("a").expect("list").is_empty());
    let said = |text: &str| share.daemon.stderr().lines().filter(|line| line.contains(text)).count();
    assert_eq!(said("/b: the store has said nothing for 3 s"), 1, "{}", share.daemon.stderr());
    assert!(said("file-") < HUNG / 2, "{}", share.daemon.stderr());
    gate.open();
    share.daemon.wait_stderr("/b: the store answers again");
    let end = Instant::now() + patience();
    while share.guest.read_file("b/file-7").is_err() && Instant::now() < end {}
    assert_eq!(share.guest.read_file("b/file-7").expect("read"), b"in the hole");
}
