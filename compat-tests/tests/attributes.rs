//! `--posix-metadata` through the whole daemon: what a guest sets is what the store keeps, as other programs read it, and what
//! another mount of the same store shows.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ovfs_compat_tests::error::Fault;
use ovfs_compat_tests::fuse::ROOT;
use ovfs_compat_tests::guest::SetAttr;
use ovfs_compat_tests::launch::{Exit, Launch, Scratch, Which, binary};
use ovfs_compat_tests::mounted::Mounted;
use ovfs_compat_tests::stores::{Kind, TestStore};

const KINDS: [Kind; 2] = [Kind::Moto, Kind::Fs];

fn mount(store: &TestStore, args: &[&str]) -> Mounted {
    let mut m = Mounted::new(store, args);
    (m.guest.uid, m.guest.gid) = (1000, 100);
    m
}

/// The guest goes; the daemon ends in order.
fn end(m: Mounted) {
    let (exit, said) = m.end();
    assert_eq!(exit, Exit::Code(0), "{said}");
}

fn set(m: &mut Mounted, path: &str, change: &SetAttr) {
    let node = m.guest.resolve(path).expect("lookup");
    m.guest.setattr(node, change).expect("setattr");
}

fn errno<T: std::fmt::Debug>(answer: Result<T, Fault>) -> i32 {
    match answer {
        Err(Fault::Errno(errno)) => errno,
        other => panic!("expected an errno, got {other:?}"),
    }
}

fn each(case: impl Fn(&TestStore) + Sync) {
    std::thread::scope(|scope| {
        for kind in KINDS {
            let case = &case;
            std::thread::Builder::new()
                .name(format!("{kind:?}"))
                .spawn_scoped(scope, move || case(&TestStore::start(kind)))
                .expect("a thread");
        }
    });
}

/// A header of the object `key`, asked from moto without ovfs.
fn header(store: &TestStore, key: &str, name: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", store.port())).expect("moto listens");
    let request = format!(
        "HEAD /bucket/{key} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: AWS key:unchecked\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("moto reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("moto answers");
    let mut headers = answer.lines().filter_map(|line| line.split_once(':'));
    headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
}

/// Where a store that is a directory keeps `key`.
fn place(store: &TestStore, key: &str) -> PathBuf {
    PathBuf::from(store.url().strip_prefix("fs://").expect("a directory")).join(key)
}

fn kept_mode(store: &TestStore, key: &str) -> Option<u32> {
    match store.kind() {
        Kind::Moto => header(store, key, "x-amz-meta-mode").map(|mode| mode.parse().expect("decimal")),
        _ => std::fs::symlink_metadata(place(store, key)).ok().map(|metadata| metadata.mode()),
    }
}

#[test]
fn what_a_guest_sets_is_kept_and_shown_by_the_next_mount() {
    each(|store| {
        let mut m = mount(store, &["--posix-metadata"]);
        m.guest.mkdir(ROOT, b"d", 0o750).expect("mkdir");
        m.guest.write_file("d/f", b"some bytes").expect("write");
        set(&mut m, "d/f", &SetAttr::mode(0o4711));
        set(&mut m, "d/f", &SetAttr::times((5, 6), (1_000_000_007, 123_456_789)));
        let node = m.guest.resolve("d/f").expect("lookup");
        m.guest.setxattr(node, b"user.colour", b"\x00green\xff", 0).expect("setxattr");
        let dir = m.guest.resolve("d").expect("lookup");
        m.guest.symlink(dir, b"l", b"../over/there").expect("symlink");
        m.guest.mknod(dir, b"p", libc::S_IFIFO | 0o640, 0, 0).expect("mkfifo");
        m.guest.mknod(dir, b"s", libc::S_IFSOCK | 0o600, 0, 0).expect("a socket");
        assert_eq!(errno(m.guest.mknod(dir, b"c", libc::S_IFCHR | 0o600, 0x103, 0)), libc::EPERM);
        set(&mut m, "d", &SetAttr::times((8, 0), (900_000_000, 0)));
        end(m);

        assert_eq!(kept_mode(store, "d/f"), Some(libc::S_IFREG | 0o4711));
        assert_eq!(kept_mode(store, "d/l"), Some(libc::S_IFLNK | 0o777));
        assert_eq!(kept_mode(store, "d/p"), Some(libc::S_IFIFO | 0o640));
        if store.kind() == Kind::Moto {
            assert_eq!(header(store, "d/f", "x-amz-meta-uid").as_deref(), Some("1000"));
            assert_eq!(header(store, "d/f", "x-amz-meta-gid").as_deref(), Some("100"));
            assert_eq!(header(store, "d/f", "x-amz-meta-mtime").as_deref(), Some("1000000007.123456789"));
            assert_eq!(store.get("d/l").as_deref(), Some(&b"../over/there"[..]));
            assert_eq!(kept_mode(store, "d/"), Some(libc::S_IFDIR | 0o750));
        } else {
            let metadata = std::fs::symlink_metadata(place(store, "d/f")).expect("a file");
            assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1_000_000_007, 123_456_789));
            assert_eq!(std::fs::read_link(place(store, "d/l")).expect("a link"), PathBuf::from("../over/there"));
            assert!(std::fs::symlink_metadata(place(store, "d/p")).expect("a FIFO").file_type().is_fifo());
        }

        let mut m = mount(store, &["--posix-metadata"]);
        let attr = m.guest.stat("d/f").expect("stat");
        assert_eq!((attr.mode, attr.mtime, attr.mtimensec), (libc::S_IFREG | 0o4711, 1_000_000_007, 123_456_789));
        if store.kind() == Kind::Moto {
            assert_eq!((attr.uid, attr.gid, attr.atime), (1000, 100, 5));
        }
        assert_eq!(m.guest.read_file("d/f").expect("read"), b"some bytes");
        let node = m.guest.resolve("d/f").expect("lookup");
        assert_eq!(m.guest.getxattr(node, b"user.colour", 100).expect("getxattr"), b"\x00green\xff");
        assert_eq!(m.guest.listxattr(node, 100).expect("listxattr"), b"user.colour\0");
        let link = m.guest.resolve("d/l").expect("lookup");
        assert_eq!(m.guest.readlink(link).expect("readlink"), b"../over/there");
        let dir = m.guest.stat("d").expect("stat");
        assert_eq!((dir.mode, dir.mtime), (libc::S_IFDIR | 0o750, 900_000_000));
        let node = m.guest.resolve("d").expect("lookup");
        let mut types: Vec<(String, u32)> = (m.guest.entries(node, true, 4096).expect("readdirplus").iter())
            .map(|entry| (String::from_utf8_lossy(&entry.name).into_owned(), entry.kind))
            .filter(|(name, _)| name != "." && name != "..")
            .collect();
        types.sort();
        let expect = [("f", libc::DT_REG), ("l", libc::DT_LNK), ("p", libc::DT_FIFO), ("s", libc::DT_SOCK)];
        assert_eq!(types, expect.map(|(name, kind)| (name.to_owned(), u32::from(kind))));
        end(m);
    });
}

#[test]
fn changes_by_path_reach_the_store_while_the_guest_goes_on() {
    each(|store| {
        let mut m = mount(store, &["--posix-metadata"]);
        m.guest.write_file("f", b"x").expect("write");
        set(&mut m, "f", &SetAttr::mode(0o600));
        let start = Instant::now();
        while kept_mode(store, "f") != Some(libc::S_IFREG | 0o600) {
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", kept_mode(store, "f"));
            std::thread::sleep(Duration::from_millis(50));
        }
        // As rsync does it: another name, all attributes, then the right name.
        m.guest.write_file(".f.tmp", b"newer").expect("write");
        set(&mut m, ".f.tmp", &SetAttr::times((1, 0), (77, 0)));
        set(&mut m, ".f.tmp", &SetAttr::mode(0o640));
        m.guest.rename_path(".f.tmp", "f").expect("rename");
        assert_eq!(kept_mode(store, "f"), Some(libc::S_IFREG | 0o640), "stored when rename returns");
        assert_eq!(store.get("f").as_deref(), Some(&b"newer"[..]));
        assert_eq!(store.keys(), ["f"]);
        assert_eq!(m.guest.stat("f").expect("stat").mtime, 77);
        end(m);
    });
}

#[test]
fn owners_are_translated_between_guest_and_store() {
    let store = TestStore::start(Kind::Moto);
    let args = ["--posix-metadata", "--translate-uid=map:1000:501000:1", "--translate-gid=map:100:500100:1"];
    let mut m = mount(&store, &args);
    m.guest.write_file("f", b"x").expect("write");
    let attr = m.guest.stat("f").expect("stat");
    assert_eq!((attr.uid, attr.gid), (1000, 100));
    assert_eq!(header(&store, "f", "x-amz-meta-uid").as_deref(), Some("501000"));
    assert_eq!(header(&store, "f", "x-amz-meta-gid").as_deref(), Some("500100"));
    end(m);
}

#[test]
fn without_posix_metadata_the_flags_say_whose_everything_is() {
    each(|store| {
        store.put("d/f", b"x");
        let fixed = ["--uid=7", "--gid=8", "--file-mode=0666", "--dir-mode=0777", "--umask=027", "--capacity=1T"];
        let mut m = mount(store, &[&fixed[..], &["--xattr"]].concat());
        set(&mut m, "d/f", &SetAttr::mode(0o600));
        set(&mut m, "d/f", &SetAttr::owner(1, 1));
        let attr = m.guest.stat("d/f").expect("stat");
        assert_eq!((attr.mode, attr.uid, attr.gid), (libc::S_IFREG | 0o640, 7, 8));
        assert_eq!(m.guest.stat("d").expect("stat").mode, libc::S_IFDIR | 0o750);
        let statfs = m.guest.statfs(ROOT).expect("statfs");
        assert_eq!(statfs.blocks * u64::from(statfs.frsize), 1 << 40);
        let node = m.guest.resolve("d/f").expect("lookup");
        assert_eq!(errno(m.guest.setxattr(node, b"user.a", b"1", 0)), libc::EOPNOTSUPP);
        assert_eq!(errno(m.guest.symlink(ROOT, b"l", b"x")), libc::EPERM);
        match store.kind() {
            Kind::Moto => {
                let etag = header(store, "d/f", "etag").expect("moto has ETags");
                let told = m.guest.getxattr(node, b"ovfs.etag", 100).expect("getxattr");
                assert_eq!(String::from_utf8_lossy(&told), etag);
                let content_type = header(store, "d/f", "content-type").expect("a type");
                let told = m.guest.getxattr(node, b"ovfs.content-type", 100).expect("getxattr");
                assert_eq!(String::from_utf8_lossy(&told), content_type);
            }
            _ => {
                assert!(m.guest.getxattr(node, b"ovfs.etag", 100).expect("getxattr").starts_with(b"\""));
                assert_eq!(errno(m.guest.getxattr(node, b"ovfs.content-type", 100)), libc::ENODATA);
            }
        }
        end(m);
    });
}

/// One line, exit code 1, and no socket.
fn refused(url: &str, args: &[&str], says: &str) {
    let scratch = Scratch::new();
    let socket = scratch.join("run/s");
    let launch = Launch::new(binary(Which::Ovfs)).arg("--socket-path").arg(&socket);
    let finished = launch.args(["--backend", url]).args(args).run();
    assert_eq!(finished.exit, Exit::Code(1), "{args:?}: {}", finished.stderr);
    assert!(finished.stderr.contains(says), "{args:?}: {}", finished.stderr);
    assert_eq!(finished.stderr.lines().count(), 1, "{args:?}: {}", finished.stderr);
    assert!(!socket.exists());
}

#[test]
fn posix_metadata_is_refused_where_it_cannot_be_kept() {
    refused("webdav://127.0.0.1:9/", &["--posix-metadata"], "webdav");
}

#[test]
fn posix_acl_is_refused_for_a_store() {
    refused("memory://", &["--posix-acl"], "--posix-acl=always");
    refused("memory://", &["--posix-acl=auto"], "--posix-acl=auto");
}

#[test]
fn translations_that_overlap_are_refused() {
    refused("memory://", &["--translate-uid=guest:5:100:10", "--translate-uid=guest:5:200:10"], "intersects");
}
