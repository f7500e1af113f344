//! What a guest sees of several stores that are all well.

use std::collections::BTreeSet;

use ovfs_compat_tests::fuse::ROOT;
use ovfs_compat_tests::launch::{Exit, Launch, Scratch, Which, binary};
use ovfs_compat_tests::stores::{Kind, TestStore};

use super::{errno, guest, launch, local, s3, share, write};

#[test]
fn two_s3_servers_and_a_directory_lie_side_by_side() {
    let (moto, s3s, files) = (TestStore::start(Kind::Moto), TestStore::start(Kind::S3sFs), TestStore::start(Kind::Fs));
    let mut share = share(&[
        "[options]\ncache_size = \"64M\"\ncapacity = \"4G\"\n".into(),
        s3("/models", moto.port(), "capacity = \"1G\""),
        s3("/data/sets", s3s.port(), "uid = 77"),
        local("/data/local", &files, "readonly = true"),
    ]);
    let guest = &mut share.guest;
    moto.put("m", b"of moto");
    s3s.put("s", b"of s3s-fs");
    files.put("l", b"of the directory");
    for (path, bytes) in
        [("models/m", &b"of moto"[..]), ("data/sets/s", b"of s3s-fs"), ("data/local/l", b"of the directory")]
    {
        assert_eq!(guest.read_file(path).expect("read"), bytes, "{path}");
    }
    assert_eq!(guest.list("").expect("list"), ["data", "models"]);
    assert_eq!(guest.list("data").expect("list"), ["local", "sets"]);
    guest.write_file("models/new", b"to moto").expect("write");
    guest.write_file("data/sets/dir", b"to s3s-fs").expect("write");
    assert_eq!(moto.get("new").as_deref(), Some(&b"to moto"[..]));
    assert_eq!(s3s.get("dir").as_deref(), Some(&b"to s3s-fs"[..]));

    assert_eq!(errno(guest.rename_path("models/new", "data/sets/new")), libc::EXDEV);
    assert_eq!(errno(guest.write_file("data/local/new", b"x")), libc::EROFS);
    assert_eq!(errno(guest.remove_file("data/local/l")), libc::EROFS);
    assert_eq!(errno(guest.write_file("new", b"x")), libc::EROFS);
    assert_eq!(errno(guest.mkdir(ROOT, b"new", 0o755)), libc::EROFS);
    assert_eq!(errno(guest.remove_dir("models")), libc::EBUSY);
    assert_eq!(errno(guest.rename_path("data", "elsewhere")), libc::EBUSY);
    assert_eq!(guest.stat("data/sets/s").expect("stat").uid, 77);
    assert_eq!(guest.stat("models/m").expect("stat").uid, 0);

    let tree = guest.tree("").expect("walk");
    let inos: BTreeSet<u64> = tree.iter().map(|(_, attr)| attr.ino).collect();
    assert_eq!(inos.len(), tree.len(), "{tree:?}");
    let blocks = |guest: &mut ovfs_compat_tests::guest::Guest, path: &str| {
        let node = guest.resolve(path).expect("resolve");
        let statfs = guest.statfs(node).expect("statfs");
        statfs.blocks * u64::from(statfs.frsize)
    };
    assert_eq!((blocks(guest, "models"), blocks(guest, "data"), blocks(guest, "")), (1 << 30, 4 << 30, 4 << 30));
    drop(share.guest);
    assert_eq!(share.daemon.finish().exit, Exit::Code(0));
}

#[test]
fn repeated_backend_mounts_stores_over_the_one_in_the_root() {
    let (moto, files, other) = (TestStore::start(Kind::Moto), TestStore::start(Kind::Fs), TestStore::start(Kind::Fs));
    files.put("top", b"root");
    files.put("m/hidden", b"under the mount");
    moto.put("f", b"of moto");
    other.put("g", b"of the other");
    let scratch = Scratch::new();
    let socket = scratch.join("run/s");
    let mut launch = Launch::new(binary(Which::Ovfs)).arg("--socket-path").arg(&socket);
    launch = launch.arg(format!("--backend=/m={}", moto.url())).args(["--backend", &files.url()]);
    launch = launch.args(["--backend", &format!("/deep/down={}", other.url())]);
    for (name, value) in moto.env() {
        launch = launch.env(name, value);
    }
    let mut daemon = launch.start();
    let mut guest = guest(&mut daemon, &socket);
    assert_eq!(guest.list("").expect("list"), ["deep", "m", "top"]);
    assert_eq!(guest.list("m").expect("list"), ["f"]);
    assert_eq!(guest.read_file("deep/down/g").expect("read"), b"of the other");
    for plus in [false, true] {
        let names = guest.entries(ROOT, plus, 400).expect("list");
        let names: Vec<String> = names.iter().map(|e| String::from_utf8_lossy(&e.name).into_owned()).collect();
        assert_eq!(names, ["deep", "m", "top"], "mount points first, each once");
    }
    guest.write_file("new", b"in the root").expect("write");
    assert_eq!(files.get("new").as_deref(), Some(&b"in the root"[..]));
    assert_eq!(files.get("m/hidden").as_deref(), Some(&b"under the mount"[..]));
    drop(guest);
    assert_eq!(daemon.finish().exit, Exit::Code(0));
}

#[test]
fn secrets_of_mounts_are_seen_nowhere() {
    const CANARY: &str = "cAnArY41d8";
    let files = TestStore::start(Kind::Fs);
    let scratch = Scratch::new();
    let socket = scratch.join("run/s");
    let url =
        format!("s3://bucket?region=r&endpoint=http://127.0.0.1:9&access_key_id={CANARY}1&secret_access_key={CANARY}2");
    let launch = Launch::new(binary(Which::Ovfs)).arg("--socket-path").arg(&socket).arg("--log-level=debug");
    let launch = launch.args(["--backend", &format!("/a={url}"), "--backend", &files.url()]);
    let mut daemon = launch.arg(format!("--backend=/b={url}")).start();
    let mut guest = guest(&mut daemon, &socket);
    assert!(guest.read_file("a/x").is_err());
    for pid in [daemon.pid(), daemon.worker()] {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).expect("read");
        assert!(!String::from_utf8_lossy(&line).contains(CANARY));
    }
    drop(guest);
    let stderr = daemon.finish().stderr;
    assert!(!stderr.contains(CANARY), "{stderr}");
}

#[test]
fn shares_that_cannot_be_are_refused_in_one_line() {
    let scratch = Scratch::new();
    let (file, socket) = (scratch.join("f.toml"), scratch.join("run/s"));
    let mount = |path: &str| format!("[[mounts]]\npath = \"{path}\"\ntype = \"memory\"\n");
    write(&file, &format!("[options]\ncache_size = \"32M\"\n{}{}{}", mount("/a"), mount("/b"), mount("/c")));
    let finished = launch(&file, &socket).run();
    assert_eq!(finished.exit, Exit::Code(1));
    let said = "--cache-size: 3 stores need at least 48M, 16M each";
    assert!(finished.stderr.lines().count() == 1 && finished.stderr.contains(said), "{}", finished.stderr);
    assert!(!socket.exists());
}
