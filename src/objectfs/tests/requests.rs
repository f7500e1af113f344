//! How many requests operations cost: as few as can be, and never fewer than the contract needs.

use super::*;

const PAGE: usize = 1000;

fn fs(cache: CachePolicy) -> Fs {
    Fs::with_pages((32 << 20, PAGE), capabilities(), |config| config.cache = cache)
}

/// A share with so many files in `d`, of which the guest knows nothing yet.
fn with_files(cache: CachePolicy, count: usize) -> Fs {
    let fs = fs(cache);
    for number in 0..count {
        fs.bucket().put(&format!("d/{number:03}"), b"content");
    }
    fs.forget_log();
    fs
}

fn read(fs: &Fs, file: (NodeId, Handle)) -> Vec<u8> {
    let bytes = fs.read_at(file, 0, 4096).expect("read");
    fs.close(file).expect("close");
    bytes
}

#[test]
fn a_small_file_that_is_known_is_opened_and_read_in_one_request() {
    let fs = with_files(CachePolicy::Auto, 1);
    let node = fs.lookup("d/000").expect("d/000").nodeid;
    std::thread::sleep(super::super::listings::JUST_NOW * 2);
    fs.forget_log();
    let opened = block_on(fs.fs.open(CTX, node, libc::O_RDONLY as u32, false)).expect("open");
    assert_eq!(read(&fs, (node, opened.handle.expect("handle"))), b"content");
    assert_eq!((fs.count("read"), fs.count("tell"), fs.count("stat")), (1, 0, 0));
    // What is in memory is only asked about.
    fs.forget_log();
    let opened = block_on(fs.fs.open(CTX, node, libc::O_RDONLY as u32, false)).expect("open");
    assert_eq!(read(&fs, (node, opened.handle.expect("handle"))), b"content");
    assert_eq!((fs.count("read"), fs.count("tell"), fs.count("stat")), (0, 1, 0));
}

#[test]
fn a_small_file_that_others_changed_is_opened_as_it_is_now() {
    let fs = with_files(CachePolicy::Always, 1);
    let node = fs.lookup("d/000").expect("d/000").nodeid;
    fs.bucket().put("d/000", b"longer content");
    let file = fs.open("d/000", libc::O_RDONLY as u32).expect("open");
    assert_eq!(file.0, node);
    assert_eq!(read(&fs, file), b"longer content");
}

#[test]
fn an_open_that_follows_the_lookup_of_its_name_asks_no_more() {
    // More than come along with the lookup of the directory.
    let fs = with_files(CachePolicy::Auto, PAGE + 1);
    fs.lookup("d").expect("d");
    fs.forget_log();
    let file = fs.open("d/000", RDWR).expect("open");
    assert!(fs.count("stat") == 1 && fs.count("tell") <= 1, "{} and {}", fs.count("stat"), fs.count("tell"));
    // Once only: the next open asks.
    fs.forget_log();
    block_on(fs.fs.open(CTX, file.0, RDWR, false)).expect("open");
    assert_eq!(fs.count("stat") + fs.count("tell"), 1);
}

#[test]
fn many_lookups_in_a_directory_become_one_listing() {
    let fs = with_files(CachePolicy::Auto, 200);
    for number in 0..PAGE {
        // Too much for all of it to come along with the lookup of the directory.
        fs.bucket().put(&format!("d/deep/{number}"), b"x");
    }
    fs.lookup("d").expect("d");
    fs.forget_log();
    for number in 0..200 {
        assert_eq!(fs.lookup(&format!("d/{number:03}")).map(|entry| entry.attr.size), Ok(7));
    }
    assert!(fs.count("list") >= 1);
    assert!(fs.count("stat") + fs.count("list") < 20, "{} and {}", fs.count("stat"), fs.count("list"));
    // Somebody else makes a file: it is there at once.
    fs.bucket().put("d/new", b"x");
    assert_eq!(fs.lookup("d/new").map(|entry| entry.attr.size), Ok(1));
}

#[test]
fn a_small_directory_comes_along_with_the_lookup_of_it() {
    let fs = with_files(CachePolicy::Auto, 200);
    fs.lookup("d").expect("d");
    for number in 0..200 {
        assert_eq!(fs.lookup(&format!("d/{number:03}")).map(|entry| entry.attr.size), Ok(7));
    }
    assert_eq!((fs.count("stat"), fs.count("list")), (1, 0));
    // What is not in it is asked for.
    fs.bucket().put("d/new", b"x");
    assert_eq!(fs.lookup("d/new").map(|entry| entry.attr.size), Ok(1));
    assert_eq!(fs.count("stat"), 2);
}

#[test]
fn names_of_a_small_directory_are_asked_for_again_at_once() {
    let fs = with_files(CachePolicy::Auto, 10);
    let look = || (0..10).all(|number| fs.lookup(&format!("d/{number:03}")).is_ok());
    assert!(look());
    fs.fs.core.expire();
    fs.bucket().put("d/007", b"changed by others");
    fs.forget_log();
    assert!(look());
    // One for the directory itself.
    assert_eq!((fs.count("stat"), fs.count("list"), fs.count("tell")), (1, 1, 0));
    assert_eq!(fs.lookup("d/007").map(|entry| entry.attr.size), Ok(17));
    // One that the listing did not have is asked for alone.
    fs.fs.core.expire();
    fs.forget_log();
    assert_eq!(fs.lookup("d/none").err(), Some(Errno::ENOENT));
    assert_eq!((fs.count("stat"), fs.count("list")), (2, 0));
}

/// The names of a directory that is opened and read once something has happened between, and the requests that it takes.
fn names_after(fs: &Fs, happens: impl FnOnce()) -> (Vec<String>, usize) {
    fs.fs.forget(fs.lookup("d").expect("d").nodeid, u64::MAX);
    fs.forget_log();
    let nodeid = fs.lookup("d").expect("d").nodeid;
    let handle = block_on(fs.fs.opendir(CTX, nodeid, 0)).expect("opendir").handle.expect("handle");
    let opened = fs.count("stat") + fs.count("list");
    happens();
    let read = |offset| {
        let mut out = Names::new(100);
        block_on(fs.fs.readdirplus(CTX, nodeid, handle, offset, &mut out)).expect("readdirplus");
        out.names.into_iter().map(|(name, ..)| name).skip(2).collect::<Vec<_>>()
    };
    let before = fs.count("list");
    let mut names = read(0);
    let listed = fs.count("list");
    // rewinddir(3): as it is now.
    let mut again = read(0);
    assert_eq!(fs.count("list"), listed + 1);
    names.sort();
    again.sort();
    assert_eq!(again, names);
    block_on(fs.fs.releasedir(CTX, nodeid, handle, 0)).expect("releasedir");
    (names, opened + listed - before)
}

#[test]
fn a_small_directory_is_looked_up_opened_and_read_in_one_request() {
    let fs = with_files(CachePolicy::Auto, 3);
    // Where the machine takes its time between lookup and opendir, it is asked again.
    let mut requests = 2;
    for _ in 0..1000 {
        let (names, asked) = names_after(&fs, || ());
        assert_eq!(names, ["000", "001", "002"]);
        assert!(asked <= 2, "{asked}");
        requests = requests.min(asked);
        if requests == 1 {
            break;
        }
    }
    assert_eq!(requests, 1);
}

#[test]
fn what_the_guest_changes_between_opendir_and_readdir_is_seen() {
    let fs = with_files(CachePolicy::Auto, 3);
    let (names, _) = names_after(&fs, || fs.unlink("d/001").expect("unlink"));
    assert_eq!(names, ["000", "002"]);
    let (names, _) = names_after(&fs, || fs.put("d/new", b"x").expect("put"));
    assert_eq!(names, ["000", "002", "new"]);
    let (names, _) = names_after(&fs, || fs.rename("d/000", "d/111", 0).expect("rename"));
    assert_eq!(names, ["002", "111", "new"]);
    fs.bucket().put("d/theirs", b"x");
    let (names, _) = names_after(&fs, || ());
    assert_eq!(names, ["002", "111", "new", "theirs"]);
}

#[test]
fn a_large_directory_is_asked_name_by_name() {
    let fs = with_files(CachePolicy::Auto, PAGE + 1);
    fs.lookup("d").expect("d");
    fs.forget_log();
    for number in 0..50 {
        fs.lookup(&format!("d/{number:03}")).expect("it is there");
    }
    assert_eq!((fs.count("list"), fs.count("stat")), (1, 50));
}

#[test]
fn a_listing_does_not_bring_back_what_the_guest_removed_or_hide_what_it_made() {
    let fs = with_files(CachePolicy::Always, 50);
    for number in 0..50 {
        fs.lookup(&format!("d/{number:03}")).expect("it is there");
    }
    for number in 0..50 {
        let name = format!("d/{number:03}");
        fs.unlink(&name).expect("unlink");
        assert_eq!(fs.lookup(&name).err(), Some(Errno::ENOENT), "{name}");
        fs.put(&format!("{name}.new"), b"x").expect("put");
        // The guest forgets it, too.
        let made = fs.lookup(&format!("{name}.new")).expect("it is there").nodeid;
        fs.fs.forget(made, u64::MAX);
        assert_eq!(fs.lookup(&name).err(), Some(Errno::ENOENT), "{name}");
        assert_eq!(fs.lookup(&format!("{name}.new")).map(|entry| entry.attr.size), Ok(1), "{name}.new");
    }
}

#[test]
fn without_trust_every_name_is_asked_for() {
    let fs = with_files(CachePolicy::Never, 20);
    for number in 0..20 {
        fs.lookup(&format!("d/{number:03}")).expect("it is there");
    }
    assert_eq!(fs.count("list"), 0);
    fs.bucket().put("d/new", b"x");
    fs.lookup("d/new").expect("it is there");
}

#[test]
fn attributes_that_still_stand_are_not_asked_for_again() {
    let capabilities = Capabilities { attributes: true, xattrs_max: 1024, ..capabilities() };
    let fs = Fs::with_pages((32 << 20, PAGE), capabilities, |config| {
        config.cache = CachePolicy::Auto;
        config.posix = true;
        config.xattr = true;
    });
    for number in 0..100 {
        let attributes = crate::store::Attributes { mode: Some(libc::S_IFREG | 0o640), ..Default::default() };
        fs.bucket().put_with(&format!("d/{number:03}"), b"content", attributes);
    }
    let mode = |number: usize| fs.lookup(&format!("d/{number:03}")).map(|entry| entry.attr.mode & 0o777);
    assert!((0..100).all(|number| mode(number) == Ok(0o640)));
    fs.fs.core.expire();
    fs.forget_log();
    assert!((0..100).all(|number| mode(number) == Ok(0o640)));
    let asked = fs.count("stat") + fs.count("tell") + fs.count("list");
    assert!(asked < 20, "{asked}");
    // Another program gives one other attributes, and another one other bytes.
    for (number, bytes) in [(7, &b"content"[..]), (8, b"other")] {
        let attributes = crate::store::Attributes { mode: Some(libc::S_IFREG | 0o600), ..Default::default() };
        fs.bucket().put_with(&format!("d/{number:03}"), bytes, attributes);
    }
    fs.fs.core.expire();
    assert!((0..100).all(|number| mode(number) == Ok(if number == 7 || number == 8 { 0o600 } else { 0o640 })));
}

#[test]
fn a_large_file_is_read_with_few_requests_and_no_byte_twice() {
    const SIZE: usize = 40 << 20;
    const READ: u32 = 128 << 10;
    let fs = Fs::with_pages((16 << 20, PAGE), capabilities(), |_| {});
    let bytes: Vec<u8> = (0..SIZE / 8).flat_map(|n| (n as u64).to_le_bytes()).collect();
    fs.bucket().put("large", &bytes);
    let file = fs.open("large", libc::O_RDONLY as u32).expect("open");
    fs.forget_log();
    for offset in (0..SIZE).step_by(READ as usize) {
        let read = fs.read_at(file, offset as u64, READ).expect("read");
        assert!(read == bytes[offset..offset + READ as usize], "at {offset}");
    }
    assert_eq!(fs.bucket().read, SIZE as u64);
    // Requests of 2 MiB, a quarter of the window that so much memory allows, and shorter ones at the beginning.
    assert!(fs.count("read") <= SIZE / (2 << 20) + 20, "{}", fs.count("read"));
}

/// How many times a file of so many MiB is composed when two writers share 16 MiB of memory, of which so many percent may be
/// dirty.
fn composes(size: usize, dirty_ratio: u32) -> usize {
    const PIECE: usize = 256 << 10;
    let fs = Fs::with_pages((16 << 20, PAGE), capabilities(), |config| config.dirty_ratio = dirty_ratio);
    let file = fs.create("f", 0).expect("create");
    let piece = vec![7u8; PIECE];
    fs.forget_log();
    block_on(async {
        let write = |offset: usize| {
            let op = Write {
                nodeid: file.0,
                handle: file.1,
                offset: offset as u64,
                size: PIECE as u32,
                lock_owner: None,
                delayed: false,
                kill_priv: false,
                flags: RDWR,
            };
            let mut data = Buffer::of(&piece);
            let fs = &fs;
            async move { fs.fs.write(CTX, op, &mut data).await.expect("write") }
        };
        for offset in (0..size << 20).step_by(2 * PIECE) {
            futures::join!(write(offset), write(offset + PIECE));
        }
    });
    let composed = fs.count("compose");
    fs.close(file).expect("close");
    assert_eq!(fs.object("f").map(|object| object == vec![7u8; size << 20]), Some(true));
    composed
}

#[test]
fn writers_wait_for_the_store_once_their_share_of_the_memory_is_full() {
    assert_eq!(composes(12, 90), 0);
    // An upload each time that 4 MiB are dirty, and none for the little that the other writer has added meanwhile.
    let composed = composes(40, 25);
    assert!((9..=13).contains(&composed), "{composed}");
}

#[test]
fn a_read_at_random_fetches_the_block_that_it_lies_in() {
    const SIZE: usize = 8 << 20;
    for block_size in [4 << 10, 64 << 10, 1 << 20] {
        let fs = Fs::with_pages((32 << 20, PAGE), capabilities(), |config| config.block_size = block_size);
        fs.bucket().put("f", &vec![7; SIZE]);
        let file = fs.open("f", 0).expect("open");
        for (reads, offset) in [(1, 2 << 20), (2, (5 << 20) + 1000)] {
            assert_eq!(fs.read_at(file, offset, 100).as_deref(), Ok(&[7; 100][..]));
            assert_eq!(fs.bucket().read, reads * block_size, "blocks of {block_size}");
        }
    }
}

#[test]
fn a_read_beside_an_upload_of_the_same_file_waits_for_the_version_that_comes_of_it() {
    const SIZE: usize = 8 << 20;
    let fs = Fs::with_pages((32 << 20, PAGE), capabilities(), |_| {});
    fs.bucket().put("f", &vec![7; SIZE]);
    let (writer, reader) = (fs.open("f", RDWR).expect("open"), fs.open("f", RDWR).expect("open"));
    fs.write_at(writer, 0, &[8]).expect("write");
    // The store has the new version long before we hear of it.
    fs.bucket().late = Some(("compose", 50));
    let mut out = Buffer::room(100);
    let op = Read { nodeid: reader.0, handle: reader.1, offset: 4 << 20, size: 100, lock_owner: None, flags: 0 };
    let (synced, read) =
        block_on(async { futures::join!(fs.fs.fsync(CTX, writer.0, writer.1, true), fs.fs.read(CTX, op, &mut out)) });
    assert_eq!((synced, read), (Ok(()), Ok(100)));
    assert_eq!(out.bytes, [7; 100]);
}
