//! One store that is down or silent, and what that is to its neighbours.

use std::thread;
use std::time::{Duration, Instant};

use ovfs_compat_tests::daemon::patience;
use ovfs_compat_tests::fuse::{ROOT, op};
use ovfs_compat_tests::gate::Gate;
use ovfs_compat_tests::guest::Call;
use ovfs_compat_tests::launch::{Exit, Scratch};
use ovfs_compat_tests::stores::{Kind, TestStore, free_port};

use super::{errno, guest, launch, local, s3, share, write};

/// Longest that anything may take which asks no store, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);

#[test]
fn killed_server_is_errnos_in_its_own_mount() {
    let (mut moto, s3s, files) =
        (TestStore::start(Kind::Moto), TestStore::start(Kind::S3sFs), TestStore::start(Kind::Fs));
    moto.put("f", b"of moto");
    s3s.put("f", b"of s3s-fs");
    files.put("f", b"of the directory");
    let mut share = share(&[
        s3("/a", moto.port(), "request_timeout = \"3s\"\ncache = \"never\""),
        s3("/b", s3s.port(), ""),
        local("/c", &files, ""),
    ]);
    let guest = &mut share.guest;
    assert_eq!(guest.read_file("a/f").expect("read"), b"of moto");
    moto.stop_server();
    let begun = Instant::now();
    let said = errno(guest.read_file("a/f"));
    assert!(matches!(said, libc::EIO | libc::ETIMEDOUT), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(3) + AT_ONCE, "{:?}", begun.elapsed());
    let begun = Instant::now();
    assert_eq!(guest.list("").expect("list"), ["a", "b", "c"]);
    for entry in guest.entries(ROOT, true, 4096).expect("list") {
        assert!(guest.getattr(entry.ino, None).expect("getattr").attr.is_dir());
    }
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert_eq!(guest.read_file("b/f").expect("read"), b"of s3s-fs");
    guest.write_file("b/new", b"still").expect("write");
    guest.write_file("c/new", b"still").expect("write");
    assert_eq!(s3s.get("new").as_deref(), Some(&b"still"[..]));
    moto.start_server();
    let end = Instant::now() + patience();
    // It keeps nothing, so its bucket is gone; but it answers.
    while errno(guest.read_file("a/f")) == libc::ETIMEDOUT && Instant::now() < end {
        thread::sleep(Duration::from_millis(100));
    }
}

/// An S3 bucket, a directory and an Azure container; each server in turn is killed, and then takes what it is sent and says nothing.
#[test]
fn three_kinds_of_store_lie_side_by_side_and_fail_alone() {
    let mut servers = [TestStore::start(Kind::S3sFs), TestStore::start(Kind::Azurite)];
    let files = TestStore::start(Kind::Fs);
    let gates = [Gate::before(servers[0].port()), Gate::before(servers[1].port())];
    let mounts = ["s3", "azure"];
    let entry = |mount: &str, settings: String| {
        format!("[[mounts]]\npath = \"/{mount}\"\nrequest_timeout = \"4s\"\ncache = \"never\"\n{settings}")
    };
    let mut share = share(&[
        entry(mounts[0], servers[0].settings_through(gates[0].port())),
        entry(mounts[1], servers[1].settings_through(gates[1].port())),
        entry("files", files.settings_through(0)),
    ]);
    for (mount, store) in mounts.iter().zip(&servers).chain([(&"files", &files)]) {
        store.put("f", mount.as_bytes());
        assert_eq!(share.guest.read_file(&format!("{mount}/f")).expect("read"), mount.as_bytes());
        share.guest.write_file(&format!("{mount}/new"), b"from the guest").expect("write");
        assert_eq!(store.get("new").as_deref(), Some(&b"from the guest"[..]), "{mount}");
    }
    for (at, bad) in mounts.into_iter().enumerate() {
        // This Azurite keeps nothing beyond its end, so that comes last.
        for killed in [false, true] {
            match killed {
                true => servers[at].stop_server(),
                false => gates[at].shut(),
            }
            let guest = &mut share.guest;
            let said = errno(guest.read_file(&format!("{bad}/f")));
            assert!(matches!(said, libc::EIO | libc::ETIMEDOUT), "{bad}: {said}");
            assert_eq!(guest.list("").expect("list"), ["azure", "files", "s3"]);
            for good in ["s3", "azure", "files"].into_iter().filter(|good| *good != bad) {
                let name = format!("{good}/beside-{bad}-{killed}");
                guest.write_file(&name, name.as_bytes()).expect("write");
                assert_eq!(guest.read_file(&name).expect("read"), name.as_bytes());
            }
            match killed {
                true if bad == "azure" => return,
                true => servers[at].start_server(),
                false => gates[at].open(),
            }
            let end = Instant::now() + patience();
            while share.guest.read_file(&format!("{bad}/f")).is_err() && Instant::now() < end {
                thread::sleep(Duration::from_millis(100));
            }
            assert_eq!(share.guest.read_file(&format!("{bad}/f")).expect("read"), bad.as_bytes());
        }
    }
}

#[test]
fn slow_server_is_slow_in_its_own_mount_alone() {
    let (fast, slow) = (TestStore::start(Kind::S3sFs), TestStore::start(Kind::S3sFs));
    let gate = Gate::before(slow.port());
    let late = Duration::from_secs(3);
    fast.put("f", b"of the fast one");
    let names: Vec<String> = (0..8).map(|n| format!("file-{n}")).collect();
    names.iter().for_each(|name| slow.put(name, name.as_bytes()));
    let mut share = share(&[s3("/fast", fast.port(), ""), s3("/slow", gate.port(), "")]);
    let guest = &mut share.guest;
    let known: Vec<u64> = names.iter().map(|name| guest.resolve(&format!("slow/{name}")).expect("look up")).collect();
    gate.set_delay(late);
    let begun = Instant::now();
    let open = |nodeid| Call { opcode: op::OPEN, nodeid, args: vec![&[0; 8]], reply: Some(16), ..Call::default() };
    let tickets: Vec<_> = known.iter().map(|&nodeid| guest.submit(&open(nodeid)).expect("submit")).collect();
    assert_eq!(guest.read_file("fast/f").expect("read"), b"of the fast one");
    guest.write_file("fast/new", b"at once").expect("write");
    assert_eq!(fast.get("new").as_deref(), Some(&b"at once"[..]));
    assert!(begun.elapsed() < late, "{:?}", begun.elapsed());
    for ticket in tickets {
        guest.wait(ticket).expect("late is not never");
    }
    assert!(begun.elapsed() >= late, "{:?}", begun.elapsed());
    assert_eq!(guest.read_file("slow/file-3").expect("read"), b"file-3");
}

#[test]
fn mount_whose_store_is_down_at_the_start_is_served_when_it_comes() {
    let mut s3s = TestStore::start(Kind::S3sFs);
    let files = TestStore::start(Kind::Fs);
    s3s.put("f", b"of s3s-fs");
    files.put("f", b"of the directory");
    s3s.stop_server();
    let mut share = share(&[s3("/down", s3s.port(), ""), local("/up", &files, "")]);
    share.daemon.wait_stderr("/down: the store does not answer, and is asked again");
    let guest = &mut share.guest;
    let begun = Instant::now();
    let said = errno(guest.read_file("down/f"));
    assert!(matches!(said, libc::EIO | libc::ETIMEDOUT), "{said}");
    assert_eq!(guest.read_file("up/f").expect("read"), b"of the directory");
    assert_eq!(guest.list("").expect("list"), ["down", "up"]);
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    s3s.start_server();
    share.daemon.wait_stderr("/down: the store answers, and is served");
    assert_eq!(share.guest.read_file("down/f").expect("read"), b"of s3s-fs");
    let stderr = share.daemon.stderr();
    let warnings = stderr.lines().filter(|line| line.contains("does not answer, and is asked again")).count();
    assert_eq!(warnings, 1, "{stderr}");
}

#[test]
fn root_store_that_is_down_at_the_start_is_an_error() {
    let files = TestStore::start(Kind::Fs);
    let scratch = Scratch::new();
    let (file, socket) = (scratch.join("f.toml"), scratch.join("run/s"));
    write(&file, &[s3("/", free_port(), "request_timeout = \"2s\""), local("/up", &files, "")].concat());
    let finished = launch(&file, &socket).run();
    assert_eq!(finished.exit, Exit::Code(1), "{}", finished.stderr);
    assert!(finished.stderr.contains("The store cannot be served: "), "{}", finished.stderr);
}

#[test]
fn end_stores_what_it_can_beside_a_store_that_is_silent() {
    let holed = TestStore::start(Kind::Moto);
    let s3s = TestStore::start(Kind::S3sFs);
    let gate = Gate::before(holed.port());
    let scratch = Scratch::new();
    let (file, socket) = (scratch.join("ovfs.toml"), scratch.join("run/s"));
    let options = "[options]\nflush_timeout = \"6s\"\nwriteback_delay = \"1h\"\nrequest_timeout = \"4s\"\n".to_owned();
    write(&file, &[options, s3("/a", s3s.port(), ""), s3("/b", gate.port(), "")].concat());
    let mut daemon = launch(&file, &socket).start();
    let mut guest = guest(&mut daemon, &socket);
    guest.write_file("b/lost", b"nobody takes it").expect("write");
    guest.write_file("a/kept", b"dirty at the end").expect("write");
    assert_eq!(s3s.get("kept"), None, "it waits to be uploaded");
    gate.shut();
    let begun = Instant::now();
    daemon.signal(libc::SIGTERM);
    let finished = daemon.finish();
    assert!(begun.elapsed() < Duration::from_secs(6) + AT_ONCE * 2, "{:?}", begun.elapsed());
    assert_eq!(s3s.get("kept").as_deref(), Some(&b"dirty at the end"[..]));
    assert_eq!(finished.exit, Exit::Code(1));
    assert!(finished.stderr.contains("lost"), "{}", finished.stderr);
    gate.open();
}
