//! Sentences of ovfs-semantics(7) that need no more than the file system and a store.

use super::*;

fn attr(fs: &Fs, path: &str) -> Attr {
    let nodeid = fs.lookup(path).expect("lookup").nodeid;
    block_on(fs.fs.getattr(CTX, nodeid, None)).expect("getattr").0
}

#[test]
fn a_change_in_the_middle_of_a_large_object_moves_little() {
    let fs = Fs::new();
    fs.bucket().put("f", &vec![3; 12 << 20]);
    let file = fs.open("f", RDWR).expect("open");
    fs.write_at(file, 5 << 20, &[4; 4096]).expect("write");
    fs.write_at(file, 12 << 20, &[5; 10]).expect("append");
    fs.close(file).expect("close");
    assert_eq!(fs.object("f").map(|bytes| (bytes.len(), bytes[5 << 20])), Some(((12 << 20) + 10, 4)));
    let bucket = fs.bucket();
    assert_eq!((bucket.read, bucket.sent), (0, 4096 + 10));
}

#[test]
fn a_directory_has_one_link_and_the_time_of_its_last_change() {
    let fs = Fs::with(32 << 20, CachePolicy::Auto);
    fs.mkdir("d").expect("mkdir");
    let before = attr(&fs, "d");
    assert_eq!((before.nlink, before.mode & libc::S_IFMT), (1, libc::S_IFDIR));
    std::thread::sleep(Duration::from_millis(5));
    fs.put("d/f", b"x").expect("put");
    let made = attr(&fs, "d");
    assert!((made.mtime, made.mtimensec) > (before.mtime, before.mtimensec));
    std::thread::sleep(Duration::from_millis(5));
    fs.unlink("d/f").expect("unlink");
    let removed = attr(&fs, "d");
    assert!((removed.mtime, removed.mtimensec) > (made.mtime, made.mtimensec));
}

#[test]
fn a_failed_rename_leaves_the_file_where_it_was() {
    let fs = Fs::new();
    fs.put("f", b"content").expect("put");
    fs.put("g", b"other").expect("put");
    fs.bucket().fail.push(("rename_file", StoreErrorKind::Io));
    assert_eq!(fs.rename("f", "g", 0), Err(Errno::EIO));
    assert_eq!(fs.get("f").as_deref(), Ok(&b"content"[..]));
    assert_eq!(fs.get("g").as_deref(), Ok(&b"other"[..]));
}

#[test]
fn a_name_that_was_not_there_is_asked_for_again() {
    let fs = Fs::with(32 << 20, CachePolicy::Always);
    assert_eq!(fs.lookup("f").err(), Some(Errno::ENOENT));
    fs.bucket().put("f", b"x");
    assert_eq!(fs.lookup("f").map(|entry| entry.attr.size), Ok(1));
}

#[test]
fn a_prefix_that_another_program_empties_is_gone() {
    let fs = Fs::new();
    fs.bucket().put("d/f", b"x");
    assert!(fs.lookup("d").is_ok());
    fs.bucket().objects.clear();
    assert_eq!(fs.lookup("d").err(), Some(Errno::ENOENT));
}

#[test]
fn an_object_replaced_under_an_open_handle_is_stale_never_a_mix() {
    let fs = Fs::with(32 << 20, CachePolicy::Always);
    fs.bucket().put("f", &vec![1; 9 << 20]);
    let file = fs.open("f", 0).expect("open");
    assert_eq!(fs.read_at(file, 0, 100).as_deref(), Ok(&[1; 100][..]));
    fs.bucket().put("f", &vec![2; 9 << 20]);
    assert_eq!(fs.read_at(file, 0, 100).as_deref(), Ok(&[1; 100][..]), "what is in memory");
    assert_eq!(fs.read_at(file, 8 << 20, 100), Err(Errno::ESTALE));
    let newer = fs.open("f", 0).expect("open");
    assert_eq!(fs.read_at(newer, 0, 100).as_deref(), Ok(&[2; 100][..]));
    assert_eq!(fs.read_at(file, 0, 100), Err(Errno::ESTALE));
}

#[test]
fn an_object_deleted_under_an_open_handle_is_stale() {
    let fs = Fs::new();
    fs.bucket().put("f", &vec![1; 9 << 20]);
    let file = fs.open("f", 0).expect("open");
    fs.bucket().objects.remove("f");
    assert_eq!(fs.read_at(file, 8 << 20, 100), Err(Errno::ESTALE));
    assert_eq!(fs.lookup("f").err(), Some(Errno::ENOENT));
}

#[test]
fn files_reach_the_store_in_the_order_of_their_closing() {
    let fs = Fs::new();
    let files: Vec<_> = ["a", "b", "c"].map(|name| fs.create(name, 0).expect("create")).into();
    for (n, file) in files.iter().enumerate() {
        fs.write_at(*file, 0, &[n as u8]).expect("write");
    }
    for (file, stored) in [(files[1], "b"), (files[0], "a"), (files[2], "c")] {
        fs.close(file).expect("close");
        let newest = fs.bucket().objects.iter().max_by_key(|(_, object)| object.etag).map(|(key, _)| key.clone());
        assert_eq!(newest.as_deref(), Some(stored));
    }
}

#[test]
fn renames_replace_what_posix_lets_them() {
    let fs = Fs::new();
    for dir in ["empty", "full", "moved"] {
        fs.mkdir(dir).expect("mkdir");
    }
    for (name, data) in [("full/x", "x"), ("moved/y", "y"), ("f", "f"), ("g", "g")] {
        fs.put(name, data.as_bytes()).expect("put");
    }
    assert_eq!(fs.rename("f", "g", libc::RENAME_NOREPLACE), Err(Errno::EEXIST));
    assert_eq!(fs.rename("f", "f", 0), Ok(()));
    assert_eq!(fs.rename("f", "empty", 0), Err(Errno::EISDIR));
    assert_eq!(fs.rename("empty", "f", 0), Err(Errno::ENOTDIR));
    assert_eq!(fs.rename("moved", "full", 0), Err(Errno::ENOTEMPTY));
    assert_eq!(fs.rename("moved", "moved/below", 0), Err(Errno::EINVAL));
    assert_eq!(fs.rename("absent", "f", 0), Err(Errno::ENOENT));
    assert_eq!(fs.rename("moved", "empty", 0), Ok(()));
    assert_eq!(fs.rename("f", "g", 0), Ok(()));
    assert_eq!(fs.get("empty/y").as_deref(), Ok(&b"y"[..]));
    assert_eq!(fs.get("g").as_deref(), Ok(&b"f"[..]));
    assert_eq!(fs.list("", true, 100), ["empty", "full", "g"]);
}

#[test]
fn rename_flags_that_stores_cannot_have() {
    let fs = Fs::new();
    fs.put("f", b"f").expect("put");
    fs.put("g", b"g").expect("put");
    for flags in [libc::RENAME_EXCHANGE, libc::RENAME_WHITEOUT, 1 << 31] {
        assert_eq!(fs.rename("f", "g", flags), Err(Errno::EINVAL));
    }
    assert_eq!(fs.get("f").as_deref(), Ok(&b"f"[..]));
}

#[test]
fn reserved_names_are_hidden_and_refused() {
    let fs = Fs::new();
    fs.mkdir("d").expect("mkdir");
    fs.put("f", b"x").expect("put");
    for name in [".ovfs-tmp", ".ovfs-unlinked-1", ".ovfs-probe-2", ".ovfs-"] {
        fs.bucket().put(name, b"ours");
        assert_eq!(fs.lookup(name).err(), Some(Errno::ENOENT));
        assert_eq!(fs.create(name, 0).err(), Some(Errno::EINVAL));
        assert_eq!(fs.mkdir(name).err(), Some(Errno::EINVAL));
        assert_eq!(fs.rename("f", name, 0), Err(Errno::EINVAL));
        assert_eq!(fs.unlink(name), Err(Errno::ENOENT));
        fs.put(&format!("d/{name}"), b"x").expect("only in the root");
    }
    assert_eq!(fs.list("", true, 100), ["d", "f"]);
    assert_eq!(fs.list("d", false, 100).len(), 4);
}

#[test]
fn statfs_tells_the_capacity() {
    let fs = Fs::with_config(1 << 20, capabilities(), |config| config.capacity = 10 << 40);
    let told = block_on(fs.fs.statfs(CTX, NodeId::ROOT)).expect("statfs");
    assert_eq!(told.blocks * u64::from(told.frsize), 10 << 40);
    assert_eq!((told.bfree, told.bavail), (told.blocks, told.blocks));
    assert!(told.files > 0 && told.ffree > 0 && told.namelen == 255);
}

#[test]
fn with_o_sync_each_write_is_in_the_store() {
    let fs = Fs::new();
    for flag in [libc::O_SYNC, libc::O_DSYNC] {
        let flags = (libc::O_RDWR | flag) as u32;
        fs.put("f", b"").expect("put");
        let file = fs.open("f", flags).expect("open");
        for n in 1..4 {
            fs.write_with(file, n - 1, b"x", flags).expect("write");
            assert_eq!(fs.object("f").map(|bytes| bytes.len() as u64), Some(n));
        }
        fs.close(file).expect("close");
    }
}

#[test]
fn hard_links_and_devices_are_refused() {
    let fs = Fs::new();
    fs.put("f", b"x").expect("put");
    let nodeid = fs.lookup("f").expect("lookup").nodeid;
    let linked = block_on(fs.fs.link(CTX, nodeid, NodeId::ROOT, b"g"));
    assert_eq!(linked.err(), Some(Errno::EPERM));
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        let made = block_on(fs.fs.mknod(CTX, NodeId::ROOT, b"n", kind | 0o600, 0x103, 0, Extensions::default()));
        assert_eq!(made.err(), Some(Errno::EPERM));
    }
    assert_eq!(fs.list("", true, 100), ["f"]);
}

#[test]
fn a_number_that_was_told_is_known_though_others_forget_it_at_that_moment() {
    let fs = Fs::with(32 << 20, CachePolicy::Always);
    fs.bucket().put("f", b"x");
    let learn_and_forget = || {
        for _ in 0..20_000 {
            let nodeid = block_on(fs.fs.lookup(CTX, NodeId::ROOT, b"f")).expect("lookup").nodeid;
            block_on(fs.fs.getattr(CTX, nodeid, None)).expect("known");
            fs.fs.forget(nodeid, 1);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(learn_and_forget);
        }
    });
}
