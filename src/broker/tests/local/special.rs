use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;

use super::*;

const LINK: u32 = libc::S_IFLNK | 0o777;
const FIFO: u32 = libc::S_IFIFO | 0o640;
const SOCKET: u32 = libc::S_IFSOCK | 0o604;

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().mode()
}

#[test]
fn fs_keeps_its_contract_with_attributes() {
    let dir = tempfile::tempdir().unwrap();
    let bed = posix(dir.path());
    contract(&bed, Corners { real_dirs: true, parents_needed: true, ..Corners::default() });
}

#[test]
fn fs_shows_links_fifos_and_sockets_and_no_devices() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    symlink("/nowhere/at all", at("link")).unwrap();
    mkfifo(&at("fifo"));
    let _socket = UnixListener::bind(at("socket")).unwrap();
    if is_root() {
        // SAFETY: a C string.
        let made = unsafe { libc::mknod(c_path(&at("null")).as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 3)) };
        // Not in every sandbox.
        assert!(made == 0 || std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM));
    }
    let bed = posix(dir.path());
    let mut entries = bed.pages("");
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let seen: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.meta.kind, e.meta.size)).collect();
    assert_eq!(seen, [("fifo", Kind::File, 0), ("link", Kind::File, 15), ("socket", Kind::File, 0)]);
    for entry in &entries {
        let stat = bed.stat(&entry.name).unwrap();
        assert_eq!(told(&stat).mode, Some(mode(&at(&entry.name))));
        assert_eq!((told(&entry.meta).mode, entry.meta.version()), (told(&stat).mode, stat.version()));
    }
    assert_eq!(bed.kind("null"), Err(StoreErrorKind::NotFound));
    assert_eq!(bed.read("null", None, 0, 1).unwrap_err().kind, StoreErrorKind::NotFound);
    if at("null").symlink_metadata().is_ok() {
        bed.delete("null").unwrap();
        assert_eq!(bed.put_when("null", b"x", Condition::Any).unwrap_err().kind, StoreErrorKind::Exists);
        assert!(at("null").symlink_metadata().is_ok(), "what is not shown is not deleted");
    }
}

#[test]
fn fs_reads_a_links_target_and_never_opens_a_fifo() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("secret"), "not this").unwrap();
    symlink("secret", at("link")).unwrap();
    let bed = posix(dir.path());
    let link = bed.stat("link").unwrap();
    assert_eq!(bed.get("link"), b"secret");
    assert_eq!(bed.read("link", None, 2, 3).unwrap(), b"cre");
    assert!(bed.read("link", None, 2, 5).is_err(), "beyond the end is an error");
    fs::remove_file(at("link")).unwrap();
    symlink("other!", at("link")).unwrap();
    let old = bed.read("link", Some(link.version()), 0, 6).unwrap_err();
    assert_eq!(old.kind, StoreErrorKind::VersionMismatch);
    // Through a link there is nothing.
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/f"), "x").unwrap();
    symlink("d", at("to-d")).unwrap();
    assert_eq!(bed.kind("to-d/f"), Err(StoreErrorKind::NotFound));
    assert!(bed.list("to-d").is_err());
    assert_eq!(bed.read("to-d/f", None, 0, 1).unwrap_err().kind, StoreErrorKind::NotFound);
    assert_eq!(bed.rmdir("to-d"), Err(StoreErrorKind::NotDir));

    mkfifo(&at("fifo"));
    let _socket = UnixListener::bind(at("socket")).unwrap();
    let fifo = at("fifo");
    // It waits for the first reader.
    let writer = std::thread::spawn(move || fs::File::options().write(true).open(fifo).unwrap());
    std::thread::sleep(Duration::from_millis(50));
    for name in ["fifo", "socket"] {
        let meta = bed.stat(name).unwrap();
        for version in [None, Some(meta.version())] {
            assert_eq!(bed.read(name, version, 0, 1).unwrap_err().kind, StoreErrorKind::InvalidName);
        }
        bed.change(name, &meta, &attributes(0o600)).unwrap();
        block_on(bed.remote.copy(name, "copied", None)).unwrap();
        assert_eq!(bed.names("").len(), 7);
    }
    assert!(!writer.is_finished(), "somebody has opened the FIFO");
    // Held open until the writer has it.
    let reader = fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(at("fifo")).unwrap();
    drop(writer.join().unwrap());
    drop(reader);
}

#[test]
fn fs_makes_links_fifos_and_sockets_atomically() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let bed = posix(dir.path());
    let long = "x".repeat(4095);
    let owner = if is_root() { (Some(77), Some(88)) } else { (None, None) };
    let set = |mode| Attributes {
        uid: owner.0,
        gid: owner.1,
        mtime_ns: Some(1_000_000_000_000_000_001),
        atime_ns: Some(3),
        ..attributes(mode)
    };
    for (name, bytes, mode) in [
        ("link", &b"../\xff\xfe where"[..], LINK),
        ("long", long.as_bytes(), LINK),
        ("fifo", b"", FIFO),
        ("socket", b"", SOCKET),
    ] {
        let made = bed.make(name, bytes, Condition::IfAbsent, &set(mode)).unwrap();
        assert_eq!((made.kind, made.size), (Kind::File, bytes.len() as u64));
        assert_eq!(made, bed.stat(name).unwrap());
        let host = at(name).symlink_metadata().unwrap();
        assert_eq!((host.mode(), host.size()), (mode, bytes.len() as u64));
        assert_eq!((host.mtime_nsec(), host.mtime(), host.atime_nsec()), (1, 1_000_000_000, 3));
        if is_root() {
            assert_eq!((host.uid(), host.gid()), (77, 88));
        }
        // Somebody was faster.
        let again = bed.make(name, bytes, Condition::IfAbsent, &set(mode)).unwrap_err();
        assert_eq!(again.kind, StoreErrorKind::Exists);
        // In place of a file, and a file in its place.
        let file = bed.put("file", b"x");
        bed.make("file", bytes, Condition::IfVersion(file.version()), &set(mode)).unwrap();
        assert_eq!(self::mode(&at("file")), mode);
        bed.make("file", b"again", Condition::Any, &attributes(libc::S_IFREG | 0o600)).unwrap();
        assert_eq!((self::mode(&at("file")), bed.get("file")), (libc::S_IFREG | 0o600, b"again".to_vec()));
    }
    assert_eq!(fs::read_link(at("long")).unwrap().to_str().unwrap(), long);
    // A link from ranges, as a device process makes it that changes one.
    let base = Base { path: "link".into(), version: bed.stat("link").unwrap().version() };
    let segments = vec![Segment::Copy { base: 0, offset: 0, len: 3 }, bed.data(b"there")];
    block_on(bed.remote.compose("link", vec![base], Condition::Any, segments, None, ())).unwrap();
    assert_eq!(fs::read_link(at("link")).unwrap().to_str().unwrap(), "../there");

    for (bytes, mode, why) in [
        ("x".repeat(4096).as_bytes(), LINK, StoreErrorKind::InvalidName),
        (b"a\0b", LINK, StoreErrorKind::InvalidName),
        (b"", LINK, StoreErrorKind::InvalidName),
        (b"x", FIFO, StoreErrorKind::InvalidName),
        (b"x", SOCKET, StoreErrorKind::InvalidName),
        (b"", libc::S_IFCHR | 0o600, StoreErrorKind::Protocol),
        (b"", libc::S_IFBLK | 0o600, StoreErrorKind::Protocol),
        (b"", 0o170_000 | 0o600, StoreErrorKind::Protocol),
        (b"", 1 << 20, StoreErrorKind::Protocol),
    ] {
        assert_eq!(bed.make("refused", bytes, Condition::Any, &attributes(mode)).unwrap_err().kind, why, "{mode:o}");
    }
    let set = Attributes { uid: Some(u32::MAX), ..Attributes::default() };
    assert_eq!(bed.make("refused", b"", Condition::Any, &set).unwrap_err().kind, StoreErrorKind::Protocol);
    let zeros = vec![Segment::Zero { len: 1 << 40 }];
    let link = Some(Box::new(attributes(LINK)));
    let refused = block_on(bed.remote.compose("refused", vec![], Condition::Any, zeros, link, ())).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::InvalidName);
    assert_eq!(bed.names(""), ["fifo", "file", "link", "long", "socket"]);
    let left =
        fs::read_dir(dir.path().join(".ovfs-tmp")).unwrap().flat_map(|d| fs::read_dir(d.unwrap().path()).unwrap());
    assert_eq!(left.count(), 0, "drafts are left");
}

#[test]
fn fs_renames_copies_changes_and_deletes_what_is_special() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("target"), "x").unwrap();
    let before = fs::metadata(outside.path().join("target")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    symlink(outside.path().join("target"), at("link")).unwrap();
    mkfifo(&at("fifo"));
    drop(UnixListener::bind(at("socket")).unwrap());
    let bed = posix(dir.path());
    for (name, kind) in [("link", LINK), ("fifo", FIFO), ("socket", SOCKET)] {
        let old = bed.stat(name).unwrap();
        let inode = at(name).symlink_metadata().unwrap().ino();
        let set = Attributes { mtime_ns: Some(7), atime_ns: Some(8), ..attributes(kind & libc::S_IFMT | 0o7531) };
        let changed = bed.change(name, &old, &set).unwrap();
        let host = at(name).symlink_metadata().unwrap();
        assert_eq!((host.ino(), host.mtime_nsec(), host.atime_nsec()), (inode, 7, 8));
        assert_eq!(host.mode(), if kind == LINK { LINK } else { kind & libc::S_IFMT | 0o7531 });
        assert_eq!(changed, bed.stat(name).unwrap());
        if is_root() {
            let owner = Attributes { uid: Some(42), gid: Some(43), ..Attributes::default() };
            bed.change(name, &changed, &owner).unwrap();
            let host = at(name).symlink_metadata().unwrap();
            assert_eq!((host.uid(), host.gid()), (42, 43));
        }
        let refused = Attributes { xattrs: Some([("user.a".to_owned(), vec![])].into()), ..Attributes::default() };
        let refused = bed.change(name, &bed.stat(name).unwrap(), &refused).unwrap_err();
        assert_eq!(refused.kind, StoreErrorKind::Unsupported);

        bed.put("over", b"what a copy replaces");
        let stands = at(name).symlink_metadata().unwrap();
        let copied = block_on(bed.remote.copy(name, "over", None)).unwrap();
        assert_eq!((copied.size, told(&copied).mode), (old.size, Some(stands.mode())));
        assert_eq!((told(&copied).mtime_ns, told(&copied).uid), (Some(7), Some(stands.uid())));
        assert_ne!(at("over").symlink_metadata().unwrap().ino(), inode);
        let moved = bed.rename("over", "moved", Condition::IfAbsent).unwrap();
        assert_eq!(moved.version(), copied.version());
        if kind == LINK {
            assert_eq!(fs::read_link(at("moved")).unwrap(), outside.path().join("target"));
        }
        assert_eq!(bed.rename(name, "moved", Condition::IfAbsent).unwrap_err(), StoreErrorKind::Exists);
        bed.rename(name, "moved", Condition::IfVersion(moved.version())).unwrap();
        assert_eq!(bed.rename_dir("moved", "dir"), Err(StoreErrorKind::NotDir));
        assert_eq!(bed.rmdir("moved"), Err(StoreErrorKind::NotDir));
        let names = bed.names("");
        assert!(names.contains(&"moved".to_owned()) && !names.contains(&name.to_owned()), "{names:?}");
        bed.delete("moved").unwrap();
        assert!(at("moved").symlink_metadata().is_err());
    }
    assert_eq!(bed.names(""), [""; 0]);
    let after = fs::metadata(outside.path().join("target")).unwrap();
    assert_eq!((after.mode(), after.uid(), after.mtime_nsec()), (before.mode(), before.uid(), before.mtime_nsec()));
}

#[test]
fn fs_copies_a_file_with_all_its_attributes() {
    let dir = tempfile::tempdir().unwrap();
    let bed = posix(dir.path());
    let xattrs = Some([("user.a".to_owned(), b"1".to_vec())].into());
    let set = Attributes { mtime_ns: Some(17), xattrs, ..attributes(libc::S_IFREG | 0o4751) };
    let made = bed.make("f", b"content", Condition::Any, &set).unwrap();
    bed.put("g", b"what stood there");
    set_xattr(&dir.path().join("g"), "user.old", b"x");
    let copied = block_on(bed.remote.copy("f", "g", None)).unwrap();
    let but_times = |meta: &Meta| Attributes { ctime_ns: None, atime_ns: None, ..told(meta).clone() };
    assert_eq!((but_times(&copied), bed.get("g")), (but_times(&made), b"content".to_vec()));
    assert_ne!(copied.version(), made.version());
}

#[test]
fn fs_deletes_what_it_can_of_many_and_no_directory() {
    let dir = tempfile::tempdir().unwrap();
    let bed = posix(dir.path());
    fs::create_dir(dir.path().join("d")).unwrap();
    for name in ["a", "b", "c", "d/x"] {
        bed.put(name, b"x");
    }
    fs::create_dir(dir.path().join("empty")).unwrap();
    let paths = ["a", "missing", "empty", "no/such/dir", "b", "a/below a file", "d", "c"].map(String::from);
    let refused = block_on(bed.remote.delete_many(paths.to_vec())).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::IsDir);
    assert!(refused.text.contains("'empty'"), "{refused}");
    assert_eq!(bed.names(""), ["d", "empty"]);
    block_on(bed.remote.delete_many(vec!["d/x".into()])).unwrap();
    assert_eq!(bed.names("d"), [""; 0]);
}

#[test]
fn fs_hides_reserved_names_and_lets_only_unlinked_files_be_reached() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".ovfs-foreign"), "x").unwrap();
    fs::create_dir(dir.path().join(".ovfs-dir")).unwrap();
    fs::write(dir.path().join(".ovfs-dir/x"), "x").unwrap();
    for bed in [posix(dir.path()), Bed::new(&url(dir.path()))] {
        let hidden = ".ovfs-unlinked-0123";
        let made = bed.put("f", b"content");
        let moved = bed.rename("f", hidden, Condition::Any).unwrap();
        assert_eq!(moved.version(), made.version());
        assert_eq!(bed.kind(hidden), Err(StoreErrorKind::NotFound));
        assert_eq!(bed.read(hidden, Some(moved.version()), 0, 7).unwrap(), b"content");
        bed.rewrite(hidden, &moved, vec![Segment::Copy { base: 0, offset: 0, len: 3 }]).unwrap();
        block_on(bed.remote.copy(hidden, "back", None)).unwrap();
        assert_eq!((bed.get("back"), bed.names("")), (b"con".to_vec(), vec!["back".to_owned()]));
        bed.delete(hidden).unwrap();
        assert!(!dir.path().join(hidden).exists());
        for name in [".ovfs-foreign", ".ovfs-dir", ".ovfs-dir/x", ".ovfs-new"] {
            assert_eq!(bed.kind(name), Err(StoreErrorKind::NotFound), "{name}");
            assert_eq!(bed.list(name).unwrap_err().kind, StoreErrorKind::NotFound, "{name}");
            assert_eq!(bed.mkdir(name), Err(StoreErrorKind::InvalidName), "{name}");
            assert_eq!(bed.rmdir(name), Err(StoreErrorKind::InvalidName), "{name}");
            assert_eq!(bed.delete(name), Err(StoreErrorKind::InvalidName), "{name}");
            assert_eq!(bed.read(name, None, 0, 1).unwrap_err().kind, StoreErrorKind::InvalidName, "{name}");
            let refused = bed.put_when(name, b"x", Condition::Any).unwrap_err();
            assert_eq!(refused.kind, StoreErrorKind::InvalidName, "{name}");
            assert_eq!(bed.rename("back", name, Condition::Any), Err(StoreErrorKind::InvalidName), "{name}");
            assert_eq!(bed.rename_dir(name, "d"), Err(StoreErrorKind::InvalidName), "{name}");
        }
        // Below the root they are names like others.
        bed.mkdir("d").unwrap();
        bed.put("d/.ovfs-x", b"fine");
        assert_eq!(bed.names("d"), [".ovfs-x"]);
        for name in ["d/.ovfs-x", "back"] {
            bed.delete(name).unwrap();
        }
        bed.rmdir("d").unwrap();
    }
}
