//! The end with data that no store takes: how it is told, and `--spool-dir`, from which the next start brings it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use ovfs_compat_tests::daemon::patience;
use ovfs_compat_tests::gate::Gate;
use ovfs_compat_tests::guest::Guest;
use ovfs_compat_tests::launch::{Daemon, Scratch};
use ovfs_compat_tests::stores::{Kind, TestStore};

use super::{guest, launch, write};

/// A daemon with a spool directory, on a store that a gate can shut.
struct Bed {
    store: TestStore,
    gate: Gate,
    scratch: Scratch,
}

impl Bed {
    fn new(kind: Kind) -> Bed {
        let store = TestStore::start(kind);
        let gate = Gate::before(store.port());
        Bed { store, gate, scratch: Scratch::new() }
    }

    fn spool(&self) -> PathBuf {
        self.scratch.join("spool")
    }

    fn start(&self, mount: &str, more: &str) -> (Daemon, Guest) {
        let (file, socket) = (self.scratch.join("ovfs.toml"), self.scratch.join("run/s"));
        fs::remove_file(&socket).ok();
        let options = "[options]\nwriteback_delay = \"1h\"\nrequest_timeout = \"2s\"\nflush_timeout = \"8s\"\n";
        let store = self.store.settings_through(self.gate.port());
        write(&file, &format!("{options}{more}[[mounts]]\npath = \"{mount}\"\n{store}"));
        let mut daemon = launch(&file, &socket).start();
        let guest = guest(&mut daemon, &socket);
        (daemon, guest)
    }

    fn start_spooling(&self) -> (Daemon, Guest) {
        self.start("/m", &format!("spool_dir = \"{}\"\n", self.spool().display()))
    }

    fn kept(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.spool()) else { return Vec::new() };
        let files = entries.flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> = files.filter(|path| !path.to_string_lossy().contains("/.")).collect();
        files.sort();
        files
    }

    fn wait_empty(&self, daemon: &Daemon) {
        let end = Instant::now() + patience();
        while !self.kept().is_empty() {
            assert!(Instant::now() < end, "{:?}: {}", self.kept(), daemon.stderr());
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn end(daemon: Daemon) -> String {
    daemon.signal(libc::SIGTERM);
    daemon.finish().stderr
}

fn bytes(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 13 + n / 255 + seed) as u8).collect()
}

#[test]
fn end_tells_how_far_it_is_and_names_what_is_lost() {
    let bed = Bed::new(Kind::S3sFs);
    let (daemon, mut guest) = bed.start("/m", "");
    guest.write_file("m/gone", &bytes(1, 100_000)).expect("write");
    bed.gate.shut();
    let stderr = end(daemon);
    assert!(stderr.contains("100000 bytes are still to be stored"), "{stderr}");
    assert!(stderr.contains("'m/gone': 100000 bytes could not be stored and are lost"), "{stderr}");
    assert!(stderr.contains("100000 bytes could not be stored and are lost"), "{stderr}");
    bed.gate.open();
}

#[test]
fn what_a_dead_store_did_not_take_is_kept_and_brought_by_the_next_start() {
    let mut bed = Bed::new(Kind::S3sFs);
    bed.store.put("old", &bytes(2, 9 << 20));
    let (daemon, mut guest) = bed.start_spooling();
    guest.write_file("m/dir-less", &bytes(3, 3 << 20)).expect("write");
    guest.write_file("m/empty", b"").expect("write");
    let old = guest.resolve("m/old").expect("resolve");
    let opened = guest.open(old, libc::O_RDWR).expect("open");
    guest.write_all(old, opened.fh, 6 << 20, b"in the middle of what is there").expect("write");
    bed.store.stop_server();
    let stderr = end(daemon);
    assert!(stderr.contains("what is not stored is kept"), "{stderr}");
    assert!(!stderr.contains("are lost"), "{stderr}");
    let kept = bed.kept();
    assert_eq!(kept.len(), 3, "{stderr}");
    for file in &kept {
        assert_eq!(fs::metadata(file).expect("stat").permissions().mode() & 0o777, 0o600);
        assert!(fs::metadata(file).expect("stat").len() < 4 << 20, "only what was written is kept");
        assert!(stderr.contains(&file.display().to_string()), "{stderr}");
    }
    drop(guest);
    bed.store.start_server();
    let (daemon, mut guest) = bed.start_spooling();
    bed.wait_empty(&daemon);
    for name in ["m/dir-less", "m/empty", "m/old"] {
        assert!(daemon.stderr().contains(&format!("'{name}':")), "{}", daemon.stderr());
    }
    let mut wanted = bytes(2, 9 << 20);
    wanted[6 << 20..][..30].copy_from_slice(b"in the middle of what is there");
    assert!(bed.store.get("old").as_deref() == Some(&wanted[..]));
    assert!(bed.store.get("dir-less") == Some(bytes(3, 3 << 20)));
    assert_eq!(bed.store.get("empty").as_deref(), Some(&b""[..]));
    assert!(guest.read_file("m/old").expect("read") == wanted);
}

#[test]
fn what_was_kept_takes_the_place_of_nothing_that_somebody_else_wrote() {
    let bed = Bed::new(Kind::Moto);
    bed.store.put("f", b"the version before");
    let (daemon, mut guest) = bed.start_spooling();
    assert_eq!(guest.read_file("m/f").expect("read"), b"the version before");
    for (name, text) in [("f", &b"the guest's"[..]), ("new", b"the guest's new"), ("same", b"the very same")] {
        guest.write_file(&format!("m/{name}"), text).expect("write");
    }
    bed.gate.shut();
    let stderr = end(daemon);
    assert_eq!(bed.kept().len(), 3, "{stderr}");
    drop(guest);
    for (name, text) in [("f", &b"somebody else's"[..]), ("new", b"somebody else's new"), ("same", b"the very same")] {
        bed.store.put(name, text);
    }
    bed.gate.open();
    let (daemon, _guest) = bed.start_spooling();
    bed.wait_empty(&daemon);
    assert_eq!(bed.store.get("f").as_deref(), Some(&b"somebody else's"[..]));
    assert_eq!(bed.store.get("new").as_deref(), Some(&b"somebody else's new"[..]));
    let keys = bed.store.keys();
    let beside = |name: &str| {
        let start = format!("{name}.conflict-");
        let found: Vec<&String> = keys.iter().filter(|key| key.starts_with(&start)).collect();
        assert!(found.len() < 2, "{keys:?}");
        found.first().and_then(|key| bed.store.get(key))
    };
    assert_eq!(beside("f").as_deref(), Some(&b"the guest's"[..]));
    assert_eq!(beside("new").as_deref(), Some(&b"the guest's new"[..]));
    assert_eq!(beside("same"), None, "it was there already");
    assert!(daemon.stderr().contains("'m/f' was changed by somebody else"), "{}", daemon.stderr());
}

#[test]
fn what_is_damaged_or_of_another_store_is_left_and_named() {
    let mut bed = Bed::new(Kind::S3sFs);
    let (daemon, mut guest) = bed.start_spooling();
    guest.write_file("m/a", &bytes(5, 5000)).expect("write");
    bed.store.stop_server();
    end(daemon);
    drop(guest);
    let kept = bed.kept();
    let [file] = &kept[..] else { panic!("{kept:?}") };
    let good = fs::read(file).expect("read");
    let mut bad = good.clone();
    *bad.last_mut().expect("it has bytes") ^= 1;
    fs::write(file, &bad).expect("write");
    fs::write(bed.spool().join("rubbish.spool"), "rubbish").expect("write");
    let text: Vec<u8> = {
        let at = good.windows(11).position(|window| window == b"s3://bucket").expect("it says its store");
        let mut text = good.clone();
        text[at..at + 11].copy_from_slice(b"s3://packet");
        text
    };
    fs::write(bed.spool().join("other.spool"), text).expect("write");
    bed.store.start_server();
    let (mut daemon, mut guest) = bed.start_spooling();
    daemon.wait_stderr("its checksum is another");
    daemon.wait_stderr("nobody can read its description");
    daemon.wait_stderr("which is not served here");
    guest.write_file("m/b", b"served all the same").expect("write");
    assert_eq!(bed.kept().len(), 3);
    assert_eq!(bed.store.get("a"), None);
    drop((daemon, guest));
    // Mended by hand.
    fs::write(file, &good).expect("write");
    let (daemon, _guest) = bed.start_spooling();
    let end = Instant::now() + patience();
    while bed.store.get("a").is_none() && Instant::now() < end {
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(bed.store.get("a"), Some(bytes(5, 5000)), "{}", daemon.stderr());
}
