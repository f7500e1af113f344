//! The object file system through the whole daemon: front-end, device process, broker, store; every store the same cases.
//! What a guest wrote is looked at from outside, by means that share nothing with ovfs.

use std::time::{Duration, Instant};

use ovfs_compat_tests::error::Fault;
use ovfs_compat_tests::fuse::{ROOT, op};
use ovfs_compat_tests::gate::Gate;
use ovfs_compat_tests::guest::{Call, Guest, SetAttr};
use ovfs_compat_tests::launch::{Daemon, Exit, Scratch};
use ovfs_compat_tests::mounted::Mounted;
use ovfs_compat_tests::stores::{Kind, TestStore};

/// ovfs on a store, with a guest.
struct Mount {
    guest: Guest,
    daemon: Daemon,
    store: TestStore,
    _scratch: Scratch,
}

fn mount_through(store: TestStore, port: u16, args: &[&str]) -> Mount {
    let Mounted { guest, daemon, scratch } = Mounted::at(&store.url_through(port), &store, args);
    Mount { guest, daemon, store, _scratch: scratch }
}

fn mount(kind: Kind, args: &[&str]) -> Mount {
    let store = TestStore::start(kind);
    let port = store.port();
    mount_through(store, port, args)
}

/// Bytes that differ everywhere.
fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..len.div_ceil(4)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

fn errno<T: std::fmt::Debug>(answer: Result<T, Fault>) -> i32 {
    match answer {
        Err(Fault::Errno(errno)) => errno,
        other => panic!("expected an errno, got {other:?}"),
    }
}

/// Whatever can be seen from outside must be what the guest sees.
fn assert_outside(mount: &mut Mount, path: &str, expect: &[u8]) {
    assert!(mount.guest.read_file(path).expect("the guest reads") == expect, "{path} in the guest");
    if mount.store.kind() != Kind::Memory {
        assert!(mount.store.get(path).as_deref() == Some(expect), "{path} in the store");
    }
}

/// An empty directory stays until it is removed, except where the server forgets it.
fn remove_empty_dir(mount: &mut Mount, path: &str) {
    if mount.store.kind().keeps_empty_dirs() {
        assert!(mount.guest.exists(path).expect("stat"), "{path} stays when its last entry goes");
        mount.guest.remove_dir(path).expect("rmdir");
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while mount.guest.exists(path).expect("stat") {
        assert!(Instant::now() < deadline, "{path} is gone");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn each(kinds: &[Kind], case: impl Fn(&mut Mount) + Sync) {
    std::thread::scope(|scope| {
        for &kind in kinds {
            let case = &case;
            std::thread::Builder::new()
                .name(format!("{kind:?}"))
                .spawn_scoped(scope, move || case(&mut mount(kind, &[])))
                .expect("a thread");
        }
    });
}

#[test]
fn files_written_in_the_guest_are_objects_and_the_reverse() {
    each(&Kind::ALL, |m| {
        for (name, len) in [("empty", 0), ("small", 5), ("page", 4096), ("odd", 1_048_577), ("large", 7 << 20)] {
            let data = pattern(len, 7);
            m.guest.write_file(name, &data).expect("write");
            assert_outside(m, name, &data);
        }
        let mut names = m.guest.list("").expect("list");
        names.sort();
        assert_eq!(names, ["empty", "large", "odd", "page", "small"]);
        if m.store.kind() != Kind::Memory {
            m.store.put("from/outside", b"hello guest");
            assert_eq!(m.guest.read_file("from/outside").expect("read"), b"hello guest");
            m.store.delete("small");
            let deadline = Instant::now() + Duration::from_secs(20);
            while m.guest.exists("small").expect("stat") {
                assert!(Instant::now() < deadline, "a deleted object is still seen");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    });
}

#[test]
fn a_change_in_the_middle_an_append_and_truncation() {
    each(&Kind::ALL, |m| {
        let mut data = pattern(12 << 20, 3);
        m.guest.write_file("f", &data).expect("write");
        let node = m.guest.resolve("f").expect("lookup");
        let file = m.guest.open(node, libc::O_RDWR).expect("open");
        m.guest.write(node, file.fh, 6_000_001, b"in the middle").expect("write");
        m.guest.fsync(node, file.fh, false).expect("fsync");
        data[6_000_001..6_000_014].copy_from_slice(b"in the middle");
        assert_outside(m, "f", &data);
        m.guest.release(node, file.fh).expect("release");

        let file = m.guest.open(node, libc::O_WRONLY | libc::O_APPEND).expect("open");
        let size = m.guest.getattr(node, None).expect("getattr").attr.size;
        m.guest.write(node, file.fh, size, b"at the end").expect("append");
        m.guest.flush(node, file.fh).expect("flush");
        m.guest.release(node, file.fh).expect("release");
        data.extend_from_slice(b"at the end");
        assert_outside(m, "f", &data);

        m.guest.truncate("f", 5_000_000).expect("truncate");
        data.truncate(5_000_000);
        assert_outside(m, "f", &data);
        m.guest.truncate("f", 5_500_000).expect("truncate");
        data.resize(5_500_000, 0);
        assert_outside(m, "f", &data);
        m.guest.truncate("f", 0).expect("truncate");
        assert_outside(m, "f", b"");
    });
}

#[test]
fn directories_are_made_listed_renamed_and_removed() {
    each(&Kind::ALL, |m| {
        m.guest.make_dirs("a/b").expect("mkdir");
        assert_eq!(errno(m.guest.mkdir(ROOT, b"a", 0o755)), libc::EEXIST);
        for i in 0..30 {
            m.guest.write_file(&format!("a/b/f{i:02}"), format!("file {i}").as_bytes()).expect("write");
        }
        assert_eq!(errno(m.guest.remove_dir("a/b")), libc::ENOTEMPTY);
        m.guest.rename_path("a", "z").expect("rename a directory");
        assert!(!m.guest.exists("a").expect("stat"));
        assert_eq!(m.guest.list("z/b").expect("list").len(), 30);
        for i in 0..30 {
            assert_outside(m, &format!("z/b/f{i:02}"), format!("file {i}").as_bytes());
        }
        m.guest.rename_path("z/b/f00", "z/b/f01").expect("rename over a file");
        assert_outside(m, "z/b/f01", b"file 0");
        for i in 1..30 {
            m.guest.remove_file(&format!("z/b/f{i:02}")).expect("unlink");
        }
        remove_empty_dir(m, "z/b");
        remove_empty_dir(m, "z");
        assert!(m.guest.list("").expect("list").is_empty());
        if m.store.kind() != Kind::Memory {
            assert!(m.store.keys().is_empty(), "{:?}", m.store.keys());
        }
    });
}

#[test]
fn directories_that_are_only_prefixes_are_directories() {
    each(&Kind::VISIBLE, |m| {
        m.store.put("only/a/prefix/f", b"x");
        assert_eq!(m.guest.list("only/a").expect("list"), ["prefix"]);
        m.guest.remove_file("only/a/prefix/f").expect("unlink");
        remove_empty_dir(m, "only/a/prefix");
        assert_eq!(m.guest.exists("only/a").expect("stat"), m.store.kind().keeps_empty_dirs());
    });
}

#[test]
fn open_files_outlive_their_names() {
    each(&Kind::ALL, |m| {
        let data = pattern(3 << 20, 11);
        m.guest.write_file("f", &data).expect("write");
        let node = m.guest.resolve("f").expect("lookup");
        let file = m.guest.open(node, libc::O_RDWR).expect("open");
        m.guest.remove_file("f").expect("unlink");
        assert!(!m.guest.exists("f").expect("stat"));
        assert!(m.guest.read(node, file.fh, 1 << 20, 4096).expect("read") == data[1 << 20..][..4096]);
        m.guest.write(node, file.fh, 10, b"still here").expect("write");
        assert_eq!(m.guest.read(node, file.fh, 10, 10).expect("read"), b"still here");
        m.guest.write_file("f", b"another").expect("write");
        m.guest.flush(node, file.fh).expect("flush");
        m.guest.release(node, file.fh).expect("release");
        assert_outside(m, "f", b"another");

        let node = m.guest.resolve("f").expect("lookup");
        let file = m.guest.open(node, libc::O_RDWR).expect("open");
        m.guest.write(node, file.fh, 0, b"ANOTHER").expect("write");
        m.guest.rename_path("f", "g").expect("rename");
        m.guest.flush(node, file.fh).expect("flush");
        m.guest.release(node, file.fh).expect("release");
        assert_outside(m, "g", b"ANOTHER");
        assert!(!m.guest.exists("f").expect("stat"));
    });
}

#[test]
fn five_thousand_entries_in_one_directory() {
    each(&[Kind::S3sFs, Kind::Fs], |m| {
        for i in 0..5000 {
            m.store.put(&format!("many/n{i:05}"), b"x");
        }
        let expect: Vec<String> = (0..5000).map(|i| format!("n{i:05}")).collect();
        let mut names = m.guest.list("many").expect("list");
        names.sort();
        assert!(names == expect, "{} names", names.len());
        let node = m.guest.resolve("many").expect("lookup");
        let mut plus: Vec<String> = (m.guest.entries(node, true, 4096).expect("readdirplus").iter())
            .map(|entry| String::from_utf8_lossy(&entry.name).into_owned())
            .filter(|name| name != "." && name != "..")
            .collect();
        plus.sort();
        assert!(plus == expect, "{} names", plus.len());
    });
}

#[test]
fn more_than_one_page_of_a_listing() {
    each(&[Kind::Moto], |m| {
        for i in 0..1100 {
            m.store.put(&format!("many/n{i:05}"), b"x");
        }
        assert_eq!(m.guest.list("many").expect("list").len(), 1100);
    });
}

#[test]
fn what_a_store_cannot_hold_is_refused() {
    each(&Kind::ALL, |m| {
        m.guest.write_file("f", b"x").expect("write");
        let node = m.guest.resolve("f").expect("lookup");
        assert_eq!(errno(m.guest.link(node, ROOT, b"hard")), libc::EPERM);
        assert_eq!(errno(m.guest.symlink(ROOT, b"soft", b"f")), libc::EPERM);
        assert_eq!(errno(m.guest.mknod(ROOT, b"fifo", libc::S_IFIFO | 0o644, 0, 0)), libc::EPERM);
        assert_eq!(errno(m.guest.setxattr(node, b"user.a", b"1", 0)), libc::ENOSYS);
        assert_eq!(errno(m.guest.mkdir(ROOT, b"trailing ", 0o755)), libc::EINVAL);
        assert_eq!(errno(m.guest.rename2(ROOT, b"f", ROOT, b"f", libc::RENAME_EXCHANGE)), libc::EINVAL);
        m.guest.setattr(node, &SetAttr::mode(0o600)).expect("chmod changes nothing and is no error");
        let times = SetAttr::times((1_000_000_000, 0), (1_000_000_001, 0));
        let attr = m.guest.setattr(node, &times).expect("utimensat").attr;
        assert_eq!(attr.mtime, 1_000_000_001);
        let statfs = m.guest.statfs(ROOT).expect("statfs");
        assert!(statfs.bavail > 1 << 20);
    });
}

#[test]
fn seek_fallocate_and_copy() {
    each(&Kind::ALL, |m| {
        let data = pattern(100_000, 5);
        m.guest.write_file("a", &data).expect("write");
        let a = m.guest.resolve("a").expect("lookup");
        let from = m.guest.open(a, libc::O_RDONLY).expect("open");
        assert_eq!(m.guest.lseek(a, from.fh, 0, libc::SEEK_HOLE).expect("lseek"), 100_000);
        assert_eq!(errno(m.guest.lseek(a, from.fh, 100_000, libc::SEEK_DATA)), libc::ENXIO);
        let (b, to) = m.guest.create(ROOT, b"b", libc::O_RDWR, 0o644).expect("create");
        let n = m.guest.copy_file_range((a, from.fh, 10), (b.nodeid, to.fh, 5), 50_000, 0).expect("copy");
        assert_eq!(n, 50_000);
        m.guest.fallocate(b.nodeid, to.fh, 0, 0, 60_000).expect("fallocate");
        m.guest.flush(b.nodeid, to.fh).expect("flush");
        let mut expect = vec![0; 5];
        expect.extend_from_slice(&data[10..50_010]);
        expect.resize(60_000, 0);
        assert_outside(m, "b", &expect);
    });
}

#[test]
fn a_gibibyte_passes_through_a_quarter_of_it() {
    const CHUNK: usize = 1 << 20;
    const CHUNKS: u64 = 1024;
    for kind in [Kind::S3sFs, Kind::Fs] {
        let mut m = mount(kind, &["--cache-size", "256M"]);
        let base = pattern(CHUNK, 1);
        let chunk = |i: u64| {
            let mut data = base.clone();
            data[..8].copy_from_slice(&i.to_le_bytes());
            data
        };
        let (entry, file) = m.guest.create(ROOT, b"big", libc::O_RDWR, 0o644).expect("create");
        for i in 0..CHUNKS {
            m.guest.write_all(entry.nodeid, file.fh, i << 20, &chunk(i)).expect("write");
        }
        m.guest.flush(entry.nodeid, file.fh).expect("flush");
        m.guest.release(entry.nodeid, file.fh).expect("release");
        let file = m.guest.open(entry.nodeid, libc::O_RDONLY).expect("open");
        for i in 0..CHUNKS {
            let mut got = Vec::new();
            while got.len() < CHUNK {
                let at = (i << 20) + got.len() as u64;
                got.extend(m.guest.read(entry.nodeid, file.fh, at, 128 << 10).expect("read"));
            }
            assert!(got == chunk(i), "chunk {i}");
        }
        let outside = m.store.get("big").expect("an object");
        assert!(outside.chunks(CHUNK).zip(0..).all(|(got, i)| got == chunk(i)), "the object as seen from outside");
        let resident: u64 = std::iter::once(m.daemon.pid()).chain(m.daemon.descendants()).map(resident_bytes).sum();
        assert!(resident < 700 << 20, "{} MiB resident", resident >> 20);
    }
}

/// Anonymous memory of a process, and its part of the pool.
fn resident_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let pss = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
    pss.unwrap_or(0) << 10
}

#[test]
fn what_waits_for_the_store_does_not_hold_up_what_does_not() {
    let store = TestStore::start(Kind::S3sFs);
    store.put("cold", &pattern(100_000, 2));
    let gate = Gate::before(store.port());
    let mut m = mount_through(store, gate.port(), &["--request-timeout", "30"]);
    m.guest.write_file("hot", b"in memory").expect("write");
    let hot = m.guest.resolve("hot").expect("lookup");
    let file = m.guest.open(hot, libc::O_RDONLY).expect("open");
    assert_eq!(m.guest.read(hot, file.fh, 0, 100).expect("read"), b"in memory");
    gate.shut();
    let mut waiting = Vec::new();
    for i in 0..50 {
        let name = format!("missing{i}\0");
        let call =
            Call { opcode: op::LOOKUP, nodeid: ROOT, args: vec![name.as_bytes()], reply: Some(128), ..Call::default() };
        waiting.push(m.guest.submit(&call).expect("submit"));
    }
    for _ in 0..100 {
        assert_eq!(m.guest.read(hot, file.fh, 0, 100).expect("a read from memory"), b"in memory");
    }
    gate.open();
    for ticket in waiting {
        assert_eq!(errno(m.guest.wait(ticket)), libc::ENOENT);
    }
}

#[test]
fn a_store_that_dies_gives_errnos_in_time_and_loses_nothing() {
    let mut m = mount(Kind::S3sFs, &["--request-timeout", "4"]);
    m.guest.write_file("before", b"before").expect("write");
    let (entry, file) = m.guest.create(ROOT, b"during", libc::O_RDWR, 0o644).expect("create");
    m.guest.write(entry.nodeid, file.fh, 0, b"written while the store is down").expect("write");
    m.store.stop_server();
    let start = Instant::now();
    let errno_of_flush = errno(m.guest.flush(entry.nodeid, file.fh));
    assert!(matches!(errno_of_flush, libc::ETIMEDOUT | libc::EIO), "{errno_of_flush}");
    let errno_of_lookup = errno(m.guest.lookup(ROOT, b"unknown"));
    assert!(matches!(errno_of_lookup, libc::ETIMEDOUT | libc::EIO), "{errno_of_lookup}");
    // Two requests of four seconds each, and as much again for a busy machine.
    assert!(start.elapsed() < Duration::from_secs(16), "{:?}", start.elapsed());
    m.guest.release(entry.nodeid, file.fh).ok();
    m.store.start_server();
    let deadline = Instant::now() + Duration::from_secs(60);
    while m.store.get("during").as_deref() != Some(b"written while the store is down") {
        assert!(Instant::now() < deadline, "the daemon does not try again: {}", m.daemon.stderr());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(m.guest.read_file("before").expect("read"), b"before");
    m.guest.write_file("after", b"after").expect("write");
    assert_eq!(m.store.get("after").as_deref(), Some(&b"after"[..]));
}

#[test]
fn sigterm_brings_what_was_written_to_the_store() {
    let mut m = mount(Kind::Moto, &[]);
    let (entry, file) = m.guest.create(ROOT, b"f", libc::O_RDWR, 0o644).expect("create");
    m.guest.write(entry.nodeid, file.fh, 0, b"not closed").expect("write");
    assert_eq!(m.store.get("f"), None);
    m.daemon.signal(libc::SIGTERM);
    let exit = m.daemon.wait_exit(Duration::from_secs(60)).expect("it ends");
    assert_eq!(exit, Exit::Code(1));
    assert_eq!(m.store.get("f").as_deref(), Some(&b"not closed"[..]));
}

#[test]
fn a_guest_that_vanishes_loses_nothing_that_was_written() {
    let m = mount(Kind::Moto, &[]);
    let Mount { mut guest, mut daemon, store, _scratch } = m;
    let (entry, file) = guest.create(ROOT, b"f", libc::O_RDWR, 0o644).expect("create");
    guest.write(entry.nodeid, file.fh, 0, b"not closed").expect("write");
    drop(guest);
    assert_eq!(daemon.wait_exit(Duration::from_secs(60)).expect("it ends"), Exit::Code(0));
    assert_eq!(store.get("f").as_deref(), Some(&b"not closed"[..]));
}

#[test]
fn a_read_only_share_changes_nothing() {
    let store = TestStore::start(Kind::Fs);
    store.put("f", b"x");
    let port = store.port();
    let mut m = mount_through(store, port, &["--readonly"]);
    assert_eq!(m.guest.read_file("f").expect("read"), b"x");
    assert_eq!(errno(m.guest.write_file("g", b"y")), libc::EROFS);
    assert_eq!(errno(m.guest.remove_file("f")), libc::EROFS);
    assert_eq!(errno(m.guest.mkdir(ROOT, b"d", 0o755)), libc::EROFS);
    assert_eq!(m.store.keys(), ["f"]);
}
