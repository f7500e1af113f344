//! Mounts that come and go while a guest works, because the file of settings says so.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use ovfs_compat_tests::daemon::patience;
use ovfs_compat_tests::gate::Gate;
use ovfs_compat_tests::guest::Guest;
use ovfs_compat_tests::launch::{Daemon, Scratch};
use ovfs_compat_tests::stores::{Kind, TestStore, free_port};

use super::reload::wait_count;
use super::{errno, guest, launch, local, s3, write};

const TAKEN_AWAY: &str = "it is taken away once its store has all that is dirty";

fn start(scratch: &Scratch, file: &Path, text: &str) -> (Daemon, Guest) {
    write(file, text);
    let socket = scratch.join("run/s");
    let mut daemon = launch(file, &socket).start();
    let guest = guest(&mut daemon, &socket);
    (daemon, guest)
}

fn wait_errno(guest: &mut Guest, path: &str, wanted: i32) {
    let end = Instant::now() + patience();
    while errno(guest.stat(path)) != wanted {
        assert!(Instant::now() < end, "{path}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn mount_comes_and_goes_with_its_entry() {
    let (kept, other) = (TestStore::start(Kind::S3sFs), TestStore::start(Kind::Fs));
    kept.put("f", b"kept");
    other.put("f", b"other");
    let scratch = Scratch::new();
    let file = scratch.join("ovfs.toml");
    let (a, b) = (s3("/a", kept.port(), ""), local("/deep/b", &other, ""));
    let (daemon, mut guest) = start(&scratch, &file, &a);
    assert_eq!(guest.list("").expect("list"), ["a"]);
    let (entry, opened) = {
        let dir = guest.resolve("a").expect("resolve");
        guest.create(dir, b"open", libc::O_RDWR, 0o644).expect("create")
    };
    for round in 1..=3 {
        write(&file, &[a.clone(), b.clone()].concat());
        wait_count(&daemon, "/deep/b: it is mounted", round);
        let end = Instant::now() + patience();
        while guest.list("deep").ok().is_none_or(|names| names != ["b"]) {
            assert!(Instant::now() < end, "it appears");
        }
        assert_eq!(guest.list("").expect("list"), ["a", "deep"]);
        assert_eq!(guest.read_file("deep/b/f").expect("read"), b"other");
        let name = format!("deep/b/new-{round}");
        guest.write_file(&name, name.as_bytes()).expect("write");
        assert_eq!(other.get(&format!("new-{round}")).as_deref(), Some(name.as_bytes()));
        write(&file, &a);
        wait_count(&daemon, "/deep/b: all is stored, and it is gone", round);
        wait_errno(&mut guest, "deep", libc::ENOENT);
        assert_eq!(guest.list("").expect("list"), ["a"]);
        // Nothing of this is seen where nothing changed.
        let bytes = format!("{round}").into_bytes();
        guest.write_all(entry.nodeid, opened.fh, 0, &bytes).expect("write");
        guest.fsync(entry.nodeid, opened.fh, false).expect("fsync");
        assert_eq!(kept.get("open"), Some(bytes));
        assert_eq!(guest.read_file("a/f").expect("read"), b"kept");
    }
}

#[test]
fn mount_that_goes_stores_what_is_dirty_before_its_open_files_are_stale() {
    let (a, b) = (TestStore::start(Kind::Fs), TestStore::start(Kind::S3sFs));
    let gate = Gate::before(b.port());
    let scratch = Scratch::new();
    let file = scratch.join("ovfs.toml");
    let first = format!("[options]\nwriteback_delay = \"1h\"\nrequest_timeout = \"3s\"\n{}", local("/a", &a, ""));
    let (daemon, mut guest) = start(&scratch, &file, &[first.clone(), s3("/b", gate.port(), "")].concat());
    guest.write_file("b/closed", b"closed and dirty").expect("write");
    let dir = guest.resolve("b").expect("resolve");
    let (entry, opened) = guest.create(dir, b"open", libc::O_RDWR, 0o644).expect("create");
    guest.write_all(entry.nodeid, opened.fh, 0, b"open and dirty").expect("write");
    assert_eq!((b.get("closed"), b.get("open")), (None, None));
    gate.shut();
    write(&file, &first);
    wait_count(&daemon, TAKEN_AWAY, 1);
    wait_errno(&mut guest, "b", libc::ENOENT);
    assert_eq!(errno(guest.lookup(dir, b"closed")), libc::ENOENT);
    guest.write_all(entry.nodeid, opened.fh, 14, b", and more").expect("what is open works as long as it must");
    assert_eq!((b.get("closed"), b.get("open")), (None, None));
    gate.open();
    wait_count(&daemon, "/b: all is stored, and it is gone", 1);
    assert_eq!(b.get("closed").as_deref(), Some(&b"closed and dirty"[..]));
    assert_eq!(b.get("open").as_deref(), Some(&b"open and dirty, and more"[..]));
    assert_eq!(errno(guest.write(entry.nodeid, opened.fh, 0, b"x")), libc::ESTALE);
    assert_eq!(errno(guest.read(entry.nodeid, opened.fh, 0, 4)), libc::ESTALE);
    assert_eq!(errno(guest.flush(entry.nodeid, opened.fh)), libc::ESTALE);
    assert!(guest.list("a").expect("list").is_empty());
}

#[test]
fn mount_whose_store_does_not_answer_does_not_come_and_that_is_said_once() {
    let (a, mut b) = (TestStore::start(Kind::Fs), TestStore::start(Kind::S3sFs));
    b.put("f", b"late");
    b.stop_server();
    let scratch = Scratch::new();
    let file = scratch.join("ovfs.toml");
    let entry = local("/a", &a, "");
    let (daemon, mut guest) = start(&scratch, &file, &entry);
    write(&file, &[entry.clone(), s3("/b", b.port(), "request_timeout = \"2s\"")].concat());
    wait_count(&daemon, "the settings before stay in force: /b is not mounted:", 1);
    assert_eq!(guest.list("").expect("list"), ["a"]);
    guest.write_file("a/new", b"all the same").expect("write");
    b.start_server();
    // It is tried again by itself.
    wait_count(&daemon, "/b: it is mounted", 1);
    assert_eq!(guest.read_file("b/f").expect("read"), b"late");
    wait_count(&daemon, "stay in force", 1);
    let stderr = daemon.stderr();
    assert_eq!(stderr.lines().filter(|line| line.contains("stay in force")).count(), 1, "{stderr}");
    write(&file, &[entry, s3("/c", free_port(), ""), "[[mounts]\n".into()].concat());
    wait_count(&daemon, "stay in force", 2);
    assert_eq!(guest.list("").expect("list"), ["a", "b"]);
}

#[test]
fn cache_time_follows_the_file() {
    let store = TestStore::start(Kind::Fs);
    store.put("f", b"here");
    let scratch = Scratch::new();
    let file = scratch.join("ovfs.toml");
    let cache = |time: &str| {
        let times = "[cache_settings]\nenabled_cache_expiration = true\ncache_expiration_time = ";
        format!("{times}\"{time}\"\n{}", local("/m", &store, ""))
    };
    let (_daemon, mut guest) = start(&scratch, &file, &cache("60s"));
    let dir = guest.resolve("m").expect("resolve");
    let seconds = |guest: &mut Guest| guest.lookup(dir, b"f").expect("look up").entry_timeout_ns / 1_000_000_000;
    assert_eq!(seconds(&mut guest), 60);
    write(&file, &cache("7s"));
    let end = Instant::now() + patience();
    while seconds(&mut guest) != 7 {
        assert!(Instant::now() < end, "{}", seconds(&mut guest));
        thread::sleep(Duration::from_millis(50));
    }
}
