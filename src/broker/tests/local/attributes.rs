use std::collections::BTreeMap;

use super::*;

fn xattrs<const N: usize>(all: [(&str, &[u8]); N]) -> Option<BTreeMap<String, Vec<u8>>> {
    Some(all.into_iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect())
}

/// (uid, gid) that the test may give.
fn owner() -> (u32, u32) {
    // SAFETY: they only ask.
    if is_root() { (12345, 54321) } else { unsafe { (libc::geteuid(), libc::getegid()) } }
}

fn everything() -> Attributes {
    let (uid, gid) = owner();
    Attributes {
        mode: Some(libc::S_IFREG | 0o7777),
        uid: Some(uid),
        gid: Some(gid),
        // In the future: reading does not touch it.
        atime_ns: Some(4_234_567_890_123_456_789),
        mtime_ns: Some(-1_000_000_007),
        ctime_ns: Some(1),
        xattrs: xattrs([("user.a", b"1"), ("user.\u{e4}", b"\0\xff"), ("user.empty", b"")]),
    }
}

fn assert_kept(meta: &fs::Metadata, want: &Attributes) {
    assert_eq!(Some(meta.mode()), want.mode, "{:o}", meta.mode());
    assert_eq!((Some(meta.uid()), Some(meta.gid())), (want.uid, want.gid));
    assert_eq!(Some(meta.atime() * 1_000_000_000 + meta.atime_nsec()), want.atime_ns);
    assert_eq!(Some(meta.mtime() * 1_000_000_000 + meta.mtime_nsec()), want.mtime_ns);
}

#[test]
fn fs_gives_a_new_file_all_its_attributes_and_tells_them() {
    let dir = tempfile::tempdir().unwrap();
    let bed = posix(dir.path());
    let can = block_on(bed.remote.probe()).unwrap();
    assert!(can.attributes && can.attributes_listed && can.xattrs_max > 4096, "{can:?}");
    let want = everything();
    let made = bed.make("f", b"content", Condition::IfAbsent, &want).unwrap();
    let host = fs::metadata(dir.path().join("f")).unwrap();
    assert_kept(&host, &want);
    assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"content");
    assert_eq!(xattr(&dir.path().join("f"), "user.\u{e4}").unwrap(), b"\0\xff");

    let stat = bed.stat("f").unwrap();
    assert_eq!(stat, made, "the reply to a write is what a question tells");
    assert_eq!(stat.mtime_ns, want.mtime_ns);
    let ctime_ns = Some(host.ctime() * 1_000_000_000 + host.ctime_nsec());
    assert_eq!(*told(&stat), Attributes { ctime_ns, ..want.clone() }, "that of the last change is the kernel's own");
    let listed = bed.pages("").remove(0).meta;
    assert_eq!(*told(&listed), Attributes { ctime_ns, xattrs: None, ..want });
    assert_eq!(listed.version(), stat.version());
    // Of directories, the root too.
    for path in ["", "d"] {
        let made = if path.is_empty() { Ok(()) } else { bed.mkdir(path) };
        made.unwrap();
        let stat = bed.stat(path).unwrap();
        let host = fs::metadata(dir.path().join(path)).unwrap();
        assert_eq!((stat.size, told(&stat).mode, told(&stat).uid), (0, Some(host.mode()), Some(host.uid())));
    }
}

#[test]
fn fs_changes_attributes_in_place_and_tells_the_new_version() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let bed = posix(dir.path());
    for content in [&b"content"[..], b""] {
        let first = bed.put("f", content);
        let _ = fs::remove_file(dir.path().join("other name"));
        fs::hard_link(&path, dir.path().join("other name")).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();

        // No time: the version stays.
        let mode = bed.change("f", &first, &attributes(libc::S_IFREG | 0o4751)).unwrap();
        assert_eq!(mode.version(), first.version());
        let want = everything();
        let changed = bed.change("f", &mode, &want).unwrap();
        assert_eq!(changed, bed.stat("f").unwrap());
        assert_ne!(changed.version(), first.version());
        assert_kept(&fs::metadata(&path).unwrap(), &want);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert_eq!(fs::metadata(dir.path().join("other name")).unwrap().ino(), inode);
        assert_eq!(bed.get("f"), content);

        // The old version is no more, and nothing is done on it.
        let stale = bed.change("f", &first, &attributes(0o600)).unwrap_err();
        assert_eq!(stale.kind, StoreErrorKind::VersionMismatch);
        assert_kept(&fs::metadata(&path).unwrap(), &want);
        // What is not told stays.
        let later = Attributes { mtime_ns: Some(5), ..Attributes::default() };
        bed.change("f", &changed, &later).unwrap();
        assert_kept(&fs::metadata(&path).unwrap(), &Attributes { mtime_ns: Some(5), ..want });
        assert_eq!(xattr(&path, "user.a").unwrap(), b"1");
        bed.delete("f").unwrap();
    }
    assert_eq!(
        bed.change("f", &bed.put("g", b"x"), &attributes(0o600)).unwrap_err().kind,
        StoreErrorKind::VersionMismatch
    );
    // A cut is no change of attributes alone.
    let full = bed.put("g", b"12345");
    let inode = fs::metadata(dir.path().join("g")).unwrap().ino();
    let base = Base { path: "g".into(), version: full.version() };
    let set = Some(Box::new(attributes(0o640)));
    let cut = block_on(bed.remote.compose("g", vec![base], Condition::Any, vec![], set, ())).unwrap();
    assert_eq!((cut.size, told(&cut).mode), (0, Some(libc::S_IFREG | 0o640)));
    assert_ne!(fs::metadata(dir.path().join("g")).unwrap().ino(), inode);
}

#[test]
fn fs_keeps_a_rewritten_files_attributes_but_the_special_bits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let bed = posix(dir.path());
    let want = everything();
    let made = bed.make("f", b"content", Condition::Any, &want).unwrap();
    bed.rewrite("f", &made, vec![Segment::Copy { base: 0, offset: 0, len: 4 }, bed.data(b"!")]).unwrap();
    let host = fs::metadata(&path).unwrap();
    assert_eq!((host.mode(), Some(host.uid())), (libc::S_IFREG | 0o777, want.uid), "no set-user-ID on other content");
    assert!(host.mtime() > 1_500_000_000, "the time is now");
    assert_eq!(xattr(&path, "user.a").unwrap(), b"1");
    // Without a base too.
    bed.put("f", b"all new");
    assert_eq!(xattr(&path, "user.a").unwrap(), b"1");
    assert_eq!(fs::metadata(&path).unwrap().mode(), libc::S_IFREG | 0o777);
    // With attributes, they are as told.
    let made = bed.stat("f").unwrap();
    let base = Base { path: "f".into(), version: made.version() };
    let segments = vec![bed.data(b"and again")];
    block_on(bed.remote.compose("f", vec![base], Condition::Any, segments, Some(Box::new(want.clone())), ())).unwrap();
    assert_kept(&fs::metadata(&path).unwrap(), &want);
}

#[test]
fn fs_matches_extended_attributes_and_touches_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let bed = posix(dir.path());
    let mut meta = bed.put("f", b"content");
    assert_eq!(told(&meta).xattrs, xattrs([]));
    if is_root() {
        set_xattr(&path, "trusted.x", b"not the user's");
    }
    for want in [xattrs([("user.a", b"1"), ("user.b", b"2")]), xattrs([("user.b", b"22"), ("user.c", b"")]), xattrs([])]
    {
        let set = Attributes { xattrs: want.clone(), ..Attributes::default() };
        meta = bed.change("f", &meta, &set).unwrap();
        assert_eq!(told(&meta).xattrs, want);
        assert_eq!(told(&bed.stat("f").unwrap()).xattrs, want);
    }
    assert_eq!(xattr(&path, "trusted.x").is_some(), is_root());
}

#[test]
fn fs_refuses_hostile_extended_attributes_and_keeps_the_old_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let bed = posix(dir.path());
    let old = xattrs([("user.a", b"1")]);
    bed.make("f", b"content", Condition::Any, &Attributes { xattrs: old.clone(), ..Attributes::default() }).unwrap();
    let big = vec![b'x'; (64 << 10) + 1];
    let long = format!("user.{}", "n".repeat(300));
    let many = (0..8000).map(|n| (format!("user.{n:0200}"), vec![0; 100])).collect();
    for (kind, names) in [
        (StoreErrorKind::Unsupported, xattrs([("security.capability", b"\x01\0\0\x02")])),
        (StoreErrorKind::Unsupported, xattrs([("system.posix_acl_access", b"x")])),
        (StoreErrorKind::Unsupported, xattrs([("trusted.x", b"x")])),
        (StoreErrorKind::Unsupported, xattrs([("", b"x")])),
        (StoreErrorKind::InvalidName, xattrs([("user.", b"x")])),
        (StoreErrorKind::InvalidName, xattrs([("user.a\0b", b"x")])),
        (StoreErrorKind::InvalidName, xattrs([(&long, b"x")])),
        (StoreErrorKind::AttributesTooLarge, xattrs([("user.big", &big)])),
        (StoreErrorKind::AttributesTooLarge, Some(many)),
    ] {
        let set = Attributes { xattrs: names, mode: Some(0o600), ..Attributes::default() };
        let stands = bed.stat("f").unwrap();
        assert_eq!(bed.change("f", &stands, &set).unwrap_err().kind, kind);
        assert_eq!(bed.make("new", b"x", Condition::Any, &set).unwrap_err().kind, kind);
        assert_eq!(bed.mkdir_with("d", &Attributes { mode: None, ..set }), Err(kind));
        assert_eq!(told(&bed.stat("f").unwrap()).xattrs, old);
    }
    assert_eq!(bed.names(""), ["f"]);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
    // More than the file system takes: all or nothing.
    let stands = bed.stat("f").unwrap();
    let set = (0..10).map(|n| (format!("user.{n}"), vec![n; 20_000])).collect();
    let set = Attributes { xattrs: Some(set), ..Attributes::default() };
    match bed.change("f", &stands, &set) {
        Ok(meta) => assert_eq!(told(&meta).xattrs, set.xattrs),
        Err(e) => {
            assert_eq!(e.kind, StoreErrorKind::AttributesTooLarge, "{e}");
            assert_eq!(told(&bed.stat("f").unwrap()).xattrs, old);
        }
    }
}

#[test]
fn fs_gives_directories_attributes_new_ones_and_old_ones() {
    let dir = tempfile::tempdir().unwrap();
    let bed = posix(dir.path());
    for mode in [0o3750, 0o0, 0o7777] {
        let want = Attributes { mode: Some(libc::S_IFDIR | mode), ..everything() };
        bed.mkdir_with("d", &want).unwrap();
        assert_kept(&fs::metadata(dir.path().join("d")).unwrap(), &want);
        let stat = bed.stat("d").unwrap();
        let kept = (told(&stat).mode, told(&stat).mtime_ns, told(&stat).xattrs.clone());
        assert_eq!(kept, (want.mode, want.mtime_ns, want.xattrs));
    }
    bed.mkdir("d").unwrap();
    assert_eq!(fs::metadata(dir.path().join("d")).unwrap().mode(), libc::S_IFDIR | 0o7777, "as it was");
    assert_eq!(bed.mkdir_with("e", &everything()), Err(StoreErrorKind::Protocol), "attributes of a file");
    bed.put("f", b"");
    assert_eq!(bed.mkdir_with("f", &attributes(0o700)), Err(StoreErrorKind::Exists));
    let refused = bed.make("g", b"", Condition::Any, &attributes(libc::S_IFDIR | 0o700)).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::Protocol);
    assert_eq!(bed.names(""), ["d", "f"]);
}

#[test]
fn fs_composes_from_two_bases() {
    let dir = tempfile::tempdir().unwrap();
    let bed = posix(dir.path());
    let (one, two) = (noise(100_000, 3), noise(70_000, 4));
    let base = |path: &str, meta: &Meta| Base { path: path.into(), version: meta.version() };
    let bases = vec![base("one", &bed.put("one", &one)), base("two", &bed.put("two", &two))];
    let copy = |base, offset, len| Segment::Copy { base, offset, len };
    let segments = || vec![copy(1, 10, 60_000), bed.data(b"between"), copy(0, 5, 99_995), copy(1, 0, 1)];
    let compose = |path: &str, bases: &[Base]| {
        block_on(bed.remote.compose(path, bases.to_vec(), Condition::Any, segments(), None, ()))
    };
    let want = [&two[10..60_010], b"between", &one[5..], &two[..1]].concat();
    compose("made", &bases).unwrap();
    assert_eq!(bed.get("made"), want);
    // Over one of them.
    compose("two", &bases).unwrap();
    assert_eq!(bed.get("two"), want);
    // The second has changed, or is gone.
    assert_eq!(compose("made", &bases).unwrap_err().kind, StoreErrorKind::VersionMismatch);
    bed.delete("two").unwrap();
    assert_eq!(compose("new", &bases).unwrap_err().kind, StoreErrorKind::VersionMismatch);
    assert_eq!((bed.get("made"), bed.names("")), (want, vec!["made".to_owned(), "one".to_owned()]));
}

#[test]
fn fs_tells_versions_apart_whose_times_were_set_alike() {
    let dir = tempfile::tempdir().unwrap();
    let bed = posix(dir.path());
    let same = Attributes { mtime_ns: Some(1_000_000_000), ..Attributes::default() };
    let mut versions = Vec::new();
    for n in 0..20u8 {
        let made = bed.make("f", &[n; 10], Condition::Any, &same).unwrap();
        assert_eq!(made.mtime_ns, same.mtime_ns);
        assert!(!versions.contains(&made.version()), "inode numbers come back, versions do not");
        versions.push(made.version());
        // The clock that inodes are born by ticks every few milliseconds.
        std::thread::sleep(Duration::from_millis(12));
    }
}

#[test]
fn fs_without_the_option_tells_and_changes_no_attributes() {
    let dir = tempfile::tempdir().unwrap();
    let bed = Bed::new(&url(dir.path()));
    let can = block_on(bed.remote.probe()).unwrap();
    assert!(!can.attributes && !can.attributes_listed && can.xattrs_max == 0);
    let made = bed.make("f", b"x", Condition::Any, &everything()).unwrap();
    bed.mkdir_with("d", &attributes(libc::S_IFDIR | 0o700)).unwrap();
    assert!(made.details.is_none() && bed.stat("f").unwrap().details.is_none());
    assert!(bed.pages("").iter().all(|entry| entry.meta.details.is_none()));
    let host = fs::metadata(dir.path().join("f")).unwrap();
    assert_eq!(host.mode(), libc::S_IFREG | 0o644);
    assert_ne!(host.uid(), 12345);
    assert!(host.mtime() > 0 && xattr(&dir.path().join("f"), "user.a").is_none());
    assert_eq!(fs::metadata(dir.path().join("d")).unwrap().mode() & 0o777, 0o755);
    let refused = bed.make("l", b"target", Condition::Any, &attributes(libc::S_IFLNK | 0o777)).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::Unsupported);
}
