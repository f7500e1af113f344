//! POSIX attributes in user metadata.

use std::collections::BTreeMap;

use super::faults::Proxy;
use super::s3::{head, moto, put_with, s3s, url, url_at};
use super::*;

const LINK: u32 = libc::S_IFLNK | 0o777;

fn attributes(mode: u32) -> Attributes {
    Attributes {
        mode: Some(mode),
        uid: Some(1000),
        gid: Some(100),
        atime_ns: Some(1_600_000_000_000_000_000),
        mtime_ns: Some(1_700_000_000_123_456_789),
        ctime_ns: Some(1_700_000_001_000_000_000),
        xattrs: Some(BTreeMap::from([("user.a".to_owned(), b"\x00\xff".to_vec())])),
    }
}

fn without_xattrs(attributes: &Attributes) -> Attributes {
    Attributes { xattrs: None, ..attributes.clone() }
}

fn told(meta: &Meta) -> &Attributes {
    &meta.details.as_ref().expect("details").attributes
}

/// What every store that keeps attributes in user metadata must do.
pub(super) fn keeps_attributes(bed: &Bed, markers: bool) {
    let can = block_on(bed.remote.probe()).unwrap();
    assert!(can.attributes && can.xattrs_max > 1000, "{can:?}");
    files(bed, can.attributes_listed);
    special_files(bed);
    limits(bed);
    if markers {
        directories(bed, can.attributes_listed);
    }
}

fn files(bed: &Bed, listed: bool) {
    let first = attributes(libc::S_IFREG | 0o640);
    let text = noise(1000, 1);
    let made = bed.compose("f", &[], Condition::IfAbsent, vec![bed.data(&text)], Some(&first)).unwrap();
    assert_eq!((made.kind, told(&made)), (Kind::File, &first));
    let stat = bed.stat("f").unwrap();
    assert_eq!((told(&stat), stat.version()), (&first, made.version()));
    let (entries, _) = block_on(bed.remote.list("", 0)).unwrap();
    let details = entries.iter().find(|e| e.name == "f").unwrap().meta.details.as_ref();
    assert_eq!(details.map(|d| &d.attributes), listed.then_some(&first));

    // New content alone leaves them as they are.
    let copy = |len| Segment::Copy { base: 0, offset: 0, len };
    let longer = bed.rewrite("f", &stat, vec![copy(1000), bed.data(b"tail")]).unwrap();
    assert_eq!((told(&longer), longer.size), (&first, 1004));
    let replaced = bed.put_when("f", b"all new", Condition::IfVersion(longer.version())).unwrap();
    assert_eq!(told(&replaced), &first, "even if nothing of the old content stays");
    // They alone leave the content as it is.
    let second =
        Attributes { mode: Some(libc::S_IFREG | 0o4755), uid: None, mtime_ns: Some(-5), ..without_xattrs(&first) };
    let when = Condition::IfVersion(replaced.version());
    let changed = bed.compose("f", &[("f", &replaced)], when, vec![copy(7)], Some(&second)).unwrap();
    let second = Attributes { xattrs: first.xattrs.clone(), ..second };
    assert_eq!(told(&changed), &second, "extended attributes that are not spoken of stay");
    assert_eq!((told(&bed.stat("f").unwrap()), bed.get("f")), (&second, b"all new".to_vec()));
    // Both at once; and none of them at all.
    let third = Attributes { xattrs: Some(BTreeMap::new()), ..attributes(libc::S_IFREG | 0o600) };
    let when = Condition::IfVersion(changed.version());
    let both = bed.compose("f", &[("f", &changed)], when, vec![copy(3), bed.data(b"!")], Some(&third)).unwrap();
    assert_eq!((told(&both), bed.get("f")), (&third, b"all!".to_vec()));
    let nothing = Attributes { xattrs: Some(BTreeMap::new()), ..Attributes::default() };
    let when = Condition::IfVersion(both.version());
    let bare = bed.compose("f", &[("f", &both)], when, vec![copy(4)], Some(&nothing)).unwrap();
    assert_eq!((told(&bare), told(&bed.stat("f").unwrap())), (&nothing, &nothing));
    let when = Condition::IfVersion(bare.version());
    let empty = bed.compose("f", &[], when, vec![], Some(&first)).unwrap();
    assert_eq!((told(&empty), empty.size), (&first, 0));

    // They go where the file goes.
    let old = bed.put("there", b"another object with attributes of none");
    assert_eq!(told(&old), &nothing);
    assert_eq!(told(&block_on(bed.remote.copy("f", "copied", None)).unwrap()), &first);
    assert_eq!(told(&bed.rename("f", "there", Condition::Any).unwrap()), &first);
    assert_eq!(told(&bed.stat("there").unwrap()), &first);
    // A part of a file is not the file, but what is made of it starts with what that had.
    let there = bed.compose("copied", &[], Condition::Any, vec![bed.data(b"0123456789")], Some(&second)).unwrap();
    let part = bed.compose("part", &[("copied", &there)], Condition::IfAbsent, vec![copy(4)], None).unwrap();
    assert_eq!((told(&part), bed.get("part")), (&second, b"0123".to_vec()));
    let whole = bed.compose("whole", &[("copied", &there)], Condition::IfAbsent, vec![copy(10)], None).unwrap();
    assert_eq!((told(&whole), bed.get("whole")), (&second, b"0123456789".to_vec()));
    let own = bed.compose("own", &[("copied", &there)], Condition::IfAbsent, vec![copy(10)], Some(&third)).unwrap();
    assert_eq!((told(&own), bed.get("own")), (&third, b"0123456789".to_vec()));
    for name in ["there", "copied", "part", "whole", "own"] {
        bed.delete(name).unwrap();
    }
}

fn special_files(bed: &Bed) {
    for mode in [LINK, libc::S_IFIFO | 0o644, libc::S_IFSOCK | 0o700] {
        let content: &[u8] = if mode == LINK { b"../where/it.html" } else { b"" };
        let segments = if content.is_empty() { vec![] } else { vec![bed.data(content)] };
        let special = attributes(mode);
        let made = bed.compose("special.html", &[], Condition::IfAbsent, segments, Some(&special)).unwrap();
        assert_eq!((made.kind, told(&made)), (Kind::File, &special));
        let stat = bed.stat("special.html").unwrap();
        assert_eq!((stat.kind, told(&stat)), (Kind::File, &special));
        assert_eq!(stat.details.unwrap().content_type.as_deref(), Some("application/octet-stream"));
        assert_eq!(bed.get("special.html"), content);
        bed.delete("special.html").unwrap();
    }
}

fn limits(bed: &Bed) {
    let can = block_on(bed.remote.probe()).unwrap();
    let of = |len| {
        let xattrs = Some(BTreeMap::from([("user.x".to_owned(), vec![b'v'; len])]));
        Attributes { xattrs, ..attributes(libc::S_IFREG | 0o644) }
    };
    let made = bed.compose("f", &[], Condition::IfAbsent, vec![bed.data(b"x")], Some(&of(can.xattrs_max / 2))).unwrap();
    assert_eq!(told(&made), &of(can.xattrs_max / 2));
    let when = Condition::IfVersion(made.version());
    let refused = bed.compose("f", &[], when, vec![bed.data(b"y")], Some(&of(can.xattrs_max * 2))).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::AttributesTooLarge, "{refused}");
    assert_eq!(bed.stat("f").unwrap().version(), made.version());
    bed.delete("f").unwrap();
}

fn directories(bed: &Bed, listed: bool) {
    let mkdir = |path: &str, with: &Attributes| block_on(bed.remote.create_dir(path, Some(Box::new(with.clone()))));
    let first = attributes(libc::S_IFDIR | 0o2750);
    mkdir("d", &first).unwrap();
    let stat = bed.stat("d").unwrap();
    assert_eq!((stat.kind, stat.marker, told(&stat)), (Kind::Dir, Some(true), &first));
    assert_eq!(stat.details.unwrap().content_type.as_deref(), Some("application/x-directory"));
    bed.mkdir("d").unwrap();
    assert_eq!(told(&bed.stat("d").unwrap()), &first, "making it again changes nothing");
    let (entries, _) = block_on(bed.remote.list("", 0)).unwrap();
    let details = entries.iter().find(|e| e.name == "d").unwrap().meta.details.as_ref();
    assert_eq!(details.map(|d| &d.attributes), listed.then_some(&first));

    let second = Attributes { mode: Some(libc::S_IFDIR | 0o700), uid: None, ..without_xattrs(&first) };
    mkdir("d", &second).unwrap();
    let second = Attributes { xattrs: first.xattrs.clone(), ..second };
    bed.put("d/f", b"x");
    assert_eq!(told(&bed.stat("d").unwrap()), &second);
    mkdir("d/sub", &first).unwrap();
    bed.rename_dir("d", "e").unwrap();
    assert_eq!(told(&bed.stat("e").unwrap()), &second);
    assert_eq!(told(&bed.stat("e/sub").unwrap()), &first);
    assert_eq!(bed.get("e/f"), b"x");

    // One that is only a prefix has none, until it gets some.
    bed.put("implied/f", b"x");
    let stat = bed.stat("implied").unwrap();
    assert_eq!((stat.kind, told(&stat)), (Kind::Dir, &Attributes::default()));
    mkdir("implied", &first).unwrap();
    assert_eq!(told(&bed.stat("implied").unwrap()), &first);
    bed.put("file", b"x");
    assert_eq!(mkdir("file", &first).unwrap_err().kind, StoreErrorKind::Exists);
    assert_eq!(bed.kind("none"), Err(StoreErrorKind::NotFound));
    for file in ["implied/f", "e/f", "file"] {
        bed.delete(file).unwrap();
    }
    for dir in ["implied", "e/sub", "e"] {
        bed.rmdir(dir).unwrap();
    }
    assert_eq!(bed.names(""), [""; 0]);
}

#[test]
fn memory_keeps_attributes() {
    keeps_attributes(&Bed::posix("memory://"), true);
}

#[test]
fn moto_keeps_attributes() {
    let server = moto();
    keeps_attributes(&Bed::posix(&url(&server, "/some/root")), true);
}

#[test]
fn s3s_keeps_attributes_of_files() {
    let server = s3s();
    let bed = Bed::posix(&url(&server, ""));
    keeps_attributes(&bed, false);
    // It has no markers; that is no error.
    let made = block_on(bed.remote.create_dir("d", Some(Box::new(attributes(libc::S_IFDIR | 0o700)))));
    made.unwrap();
    bed.put("d/f", b"x");
    assert_eq!(bed.kind("d"), Ok(Kind::Dir));
}

#[test]
fn the_contract_holds_with_attributes() {
    contract(&Bed::posix("memory://"), Corners::default());
    let server = moto();
    contract(&Bed::posix(&url(&server, "")), Corners::default());
}

#[test]
fn without_posix_metadata_nothing_is_told_and_nothing_lost() {
    let server = moto();
    put_with(
        &server,
        "/f",
        "Content-Type: text/x-special\r\nx-amz-meta-mode: 33152\r\nx-amz-meta-md5chksum: x\r\n",
        b"abcd",
    );
    let bed = Bed::new(&url(&server, ""));
    let can = block_on(bed.remote.probe()).unwrap();
    assert_eq!((can.attributes, can.attributes_listed, can.xattrs_max), (false, false, 0));
    let stat = block_on(bed.remote.tell("f", Kind::File)).unwrap();
    let details = stat.details.clone().unwrap();
    assert_eq!((details.attributes, details.content_type.as_deref()), (Attributes::default(), Some("text/x-special")));
    let (copy, given) = (Segment::Copy { base: 0, offset: 0, len: 4 }, attributes(0o100_777));
    let when = Condition::IfVersion(stat.version());
    bed.compose("f", &[("f", &stat)], when, vec![copy, bed.data(b"e")], Some(&given)).unwrap();
    let said = head(&server, "/f");
    assert!(said.contains("x-amz-meta-mode: 33152") && said.contains("text/x-special"), "{said}");
    assert!(!said.contains("md5chksum"), "the digest of another content: {said}");
    block_on(bed.remote.create_dir("d", Some(Box::new(given)))).unwrap();
    assert!(!head(&server, "/d/").contains("x-amz-meta-"));
}

#[test]
fn metadata_of_other_programs_is_read_kept_and_brought_up_to_date() {
    let server = moto();
    let headers = "x-amz-meta-colour: blue\r\nx-amz-meta-file-permissions: 0100600\r\nx-amz-meta-file-owner: 7\r\n\
                   x-amz-meta-goog-reserved-file-mtime: 1600000000\r\nx-amz-meta-mc-attrs: gid:8/mtime:1#0\r\n";
    put_with(&server, "/f", headers, b"abcd");
    put_with(&server, "/d/", "x-amz-meta-mode: 16832\r\nx-amz-meta-colour: red\r\nCache-Control: no-store\r\n", b"");
    let bed = Bed::posix(&url(&server, ""));
    let stat = bed.stat("f").unwrap();
    let want = Attributes {
        mode: Some(0o100_600),
        uid: Some(7),
        gid: Some(8),
        mtime_ns: Some(1_600_000_000_000_000_000),
        xattrs: Some(BTreeMap::new()),
        ..Attributes::default()
    };
    assert_eq!(told(&stat), &want);
    let (copy, new) = (Segment::Copy { base: 0, offset: 0, len: 4 }, attributes(0o100_644));
    bed.compose("f", &[("f", &stat)], Condition::IfVersion(stat.version()), vec![copy], Some(&new)).unwrap();
    assert_eq!(told(&bed.stat("f").unwrap()), &new);
    let said = head(&server, "/f");
    for line in [
        "x-amz-meta-colour: blue",
        "x-amz-meta-mode: 33188",
        "x-amz-meta-uid: 1000",
        "x-amz-meta-mtime: 1700000000.123456789",
        "x-amz-meta-ctime: 1700000001\r",
        "x-amz-meta-xattr: %7b%22user.a%22%3a%22ap8%3d%22%7d",
        "x-amz-meta-file-permissions: 0100644",
        "x-amz-meta-file-owner: 1000",
        "x-amz-meta-goog-reserved-file-mtime: 1700000000\r",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(!said.contains("mc-attrs"), "{said}");
    let dir = attributes(libc::S_IFDIR | 0o755);
    assert_eq!(told(&bed.stat("d").unwrap()).mode, Some(libc::S_IFDIR | 0o700));
    block_on(bed.remote.create_dir("d", Some(Box::new(dir)))).unwrap();
    bed.rename_dir("d", "e").unwrap();
    let said = head(&server, "/e/");
    for line in
        ["x-amz-meta-colour: red", "x-amz-meta-mode: 16877", "cache-control: no-store", "application/x-directory"]
    {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(head(&server, "/d/").contains(" 404 "));
}

#[test]
fn markers_keep_their_metadata_without_posix_metadata_too() {
    let server = moto();
    put_with(&server, "/d/", "x-amz-meta-mode: 16832\r\nContent-Type: application/x-directory\r\n", b"");
    put_with(&server, "/d/f", "x-amz-meta-mode: 33152\r\n", b"x");
    let bed = Bed::new(&url(&server, ""));
    bed.rename_dir("d", "e").unwrap();
    let said = head(&server, "/e/");
    assert!(said.contains("x-amz-meta-mode: 16832") && said.contains("application/x-directory"), "{said}");
    assert!(head(&server, "/e/f").contains("x-amz-meta-mode: 33152"));
}

#[test]
fn hostile_metadata_does_no_harm() {
    let server = moto();
    let headers = format!(
        "x-amz-meta-mode: -1\r\nx-amz-meta-uid: 4294967295\r\nx-amz-meta-mtime: 99999999999999999999.5\r\n\
         x-amz-meta-xattr: {}\r\nx-amz-meta-mc-attrs: ////:::#\r\nx-amz-meta-file-permissions: 0777777777777\r\n",
        "%7B".repeat(300)
    );
    put_with(&server, "/f", &headers, b"abcd");
    let bed = Bed::posix(&url(&server, ""));
    let empty = Attributes { xattrs: Some(BTreeMap::new()), ..Attributes::default() };
    assert_eq!(told(&bed.stat("f").unwrap()), &empty);
    assert_eq!(bed.get("f"), b"abcd");
}

#[test]
fn attributes_of_large_files_change_inside_the_store() {
    let server = moto();
    let proxy = Proxy::new(&server);
    let bed = Bed::posix(&url_at(proxy.port, ""));
    let text = noise(40 << 20, 2);
    let segments = text.chunks(1 << 20).map(|part| bed.data(part)).collect();
    let first = attributes(0o100_600);
    let made = bed.compose("big", &[], Condition::IfAbsent, segments, Some(&first)).unwrap();
    proxy.forget();
    let second = attributes(0o100_755);
    let whole = vec![Segment::Copy { base: 0, offset: 0, len: 40 << 20 }];
    let when = Condition::IfVersion(made.version());
    let changed = bed.compose("big", &[("big", &made)], when, whole, Some(&second)).unwrap();
    assert_eq!((told(&changed), changed.size), (&second, 40 << 20));
    assert_eq!(proxy.count("GET /bucket/big"), 0, "nothing passes through us");
    assert!(bed.get("big") == text);
}
