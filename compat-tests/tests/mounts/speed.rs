//! What a store that takes requests and never answers costs its neighbour: the throughput of one mount while the other is
//! a black hole, compared with the same share without the other.

use std::time::{Duration, Instant};

use ovfs_compat_tests::fuse::op;
use ovfs_compat_tests::gate::Gate;
use ovfs_compat_tests::guest::{Call, Guest};
use ovfs_compat_tests::stores::{Kind, TestStore};

use super::{Share, s3, share};

/// Bytes of a file.
const FILE: usize = 2 << 20;

/// Files of one measurement.
const FILES: usize = 12;

/// Measurements of each kind, of which the best counts: others use this machine too.
const ROUNDS: usize = 3;

/// Requests to the black hole that are under way meanwhile.
const HUNG: usize = 32;

/// The least that may be left of the speed. It is meant to be all; a busy machine makes measurements differ by tens of per cent.
const LEAST: f64 = 0.5;

/// Writes files and reads them by other handles, without what the pool keeps of them.
fn measure(guest: &mut Guest, store: &TestStore, round: usize) -> Duration {
    let bytes: Vec<u8> = (0..FILE).map(|n| (n * 31 + round) as u8).collect();
    let read: Vec<String> = (0..FILES).map(|n| format!("read-{round}-{n}")).collect();
    read.iter().for_each(|name| store.put(name, &bytes));
    let begun = Instant::now();
    for (n, name) in read.iter().enumerate() {
        guest.write_file(&format!("a/written-{round}-{n}"), &bytes).expect("write");
        assert!(guest.read_file(&format!("a/{name}")).expect("read") == bytes, "{name}");
    }
    begun.elapsed()
}

#[test]
fn black_hole_leaves_its_neighbour_its_speed() {
    let (a, b) = (TestStore::start(Kind::S3sFs), TestStore::start(Kind::Moto));
    let gate = Gate::before(b.port());
    (0..HUNG).for_each(|n| b.put(&format!("file-{n}"), b"in the hole"));
    let size = |megabytes: u32| format!("[options]\ncache_size = \"{megabytes}M\"\n");
    let mut best = [Duration::MAX; 2];
    for round in 0..ROUNDS {
        let mut alone = share(&[size(64), s3("/a", a.port(), "")]);
        best[0] = best[0].min(measure(&mut alone.guest, &a, 2 * round));
        drop(alone);
        gate.open();
        let both = [size(128), s3("/a", a.port(), ""), s3("/b", gate.port(), "request_timeout = \"60s\"")];
        let Share { mut guest, daemon, _scratch } = share(&both);
        let known = (0..HUNG).map(|n| guest.resolve(&format!("b/file-{n}")).expect("it answers still"));
        let known: Vec<u64> = known.collect();
        gate.shut();
        // Opening asks the store each time.
        for nodeid in known {
            let call = Call { opcode: op::OPEN, nodeid, args: vec![&[0; 8]], reply: Some(16), ..Call::default() };
            guest.submit(&call).expect("submit");
        }
        best[1] = best[1].min(measure(&mut guest, &a, 2 * round + 1));
        drop((daemon, guest));
    }
    gate.open();
    let ratio = best[0].as_secs_f64() / best[1].as_secs_f64();
    println!("alone {:?}, beside a black hole {:?}: {:.0} %", best[0], best[1], ratio * 100.0);
    assert!(ratio >= LEAST, "alone {:?}, beside a black hole {:?}", best[0], best[1]);
}
