use proptest::prelude::*;

use super::*;

fn user(pairs: &[(&str, &str)]) -> UserMetadata {
    pairs.iter().copied().collect()
}

fn file(pairs: &[(&str, &str)]) -> Attributes {
    decode(&user(pairs), Kind::File, 1)
}

const NONE: Attributes =
    Attributes { mode: None, uid: None, gid: None, atime_ns: None, mtime_ns: None, ctime_ns: None, xattrs: None };

fn some(attributes: Attributes) -> Attributes {
    Attributes { xattrs: Some(BTreeMap::new()), ..attributes }
}

#[test]
fn s3fs_and_geesefs_and_rclone_are_understood() {
    let s3fs = [
        ("mode", "33188"),
        ("uid", "1000"),
        ("gid", "100"),
        ("mtime", "1700000000.000000005"),
        ("ctime", "1700000001"),
        ("atime", "1700000002.500000000"),
        ("xattr", "%7B%22user.a%22%3A%22YWJj%22%2C%22system.posix_acl_access%22%3A%22AA%3D%3D%22%7D"),
    ];
    let want = Attributes {
        mode: Some(0o100644),
        uid: Some(1000),
        gid: Some(100),
        mtime_ns: Some(1_700_000_000_000_000_005),
        ctime_ns: Some(1_700_000_001_000_000_000),
        atime_ns: Some(1_700_000_002_500_000_000),
        xattrs: Some([("user.a".to_owned(), b"abc".to_vec())].into()),
    };
    assert_eq!(file(&s3fs), want);
    assert_eq!(file(&[("Mode", "33188"), ("UID", "0")]).uid, Some(0), "keys have no case");
    // rclone: octal modes, times as RFC 3339 or as a number with a fraction.
    let rclone = file(&[("mode", "0100664"), ("mtime", "2023-11-14T22:13:20.123456789Z"), ("atime", "1700000000.5")]);
    assert_eq!(rclone.mode, Some(0o100664));
    assert_eq!(rclone.mtime_ns, Some(1_700_000_000_123_456_789));
    assert_eq!(rclone.atime_ns, Some(1_700_000_000_500_000_000));
    assert_eq!(file(&[("mode", "0x81a4")]).mode, Some(0o100644));
}

#[test]
fn each_foreign_convention_is_understood() {
    let at = Some(1_700_000_000_000_000_000);
    let exact = Some(1_700_000_000_123_456_789);
    let plain = |mode, uid, gid| Attributes { mode, uid, gid, ..NONE };
    for (pairs, want) in [
        (
            &[
                ("file-permissions", "0100644"),
                ("file-owner", "5"),
                ("file-group", "6"),
                ("file-mtime", "1700000000123456789ns"),
                ("file-atime", "1700000000000"),
            ][..],
            Attributes { mtime_ns: exact, atime_ns: at, ..plain(Some(0o100644), Some(5), Some(6)) },
        ),
        (
            &[
                ("goog-reserved-posix-mode", "640"),
                ("goog-reserved-posix-uid", "5"),
                ("goog-reserved-posix-gid", "6"),
                ("goog-reserved-file-mtime", "1700000000"),
                ("goog-reserved-file-atime", "1700000000"),
            ],
            Attributes { mtime_ns: at, atime_ns: at, ..plain(Some(0o640), Some(5), Some(6)) },
        ),
        (
            &[("gcsfuse_mtime", "2023-11-14T22:13:20.123456789Z"), ("goog-reserved-file-mtime", "1")],
            Attributes { mtime_ns: exact, ..NONE },
        ),
        (&[("goog-reserved-file-is-symlink", "true")], plain(Some(libc::S_IFLNK | 0o777), None, None)),
        (
            &[(
                "mc-attrs",
                "atime:1700000000#0/ctime:1700000000#123456789/gid:6/gname:root/mode:33188/mtime:1700000000#123456789/uid:5/uname:root",
            )],
            Attributes { mtime_ns: exact, ctime_ns: exact, atime_ns: at, ..plain(Some(0o100644), Some(5), Some(6)) },
        ),
        (
            &[(
                "s3cmd-attrs",
                "uid:5/gname:g/uname:u/gid:6/mode:33188/mtime:1700000000/atime:1700000000/md5:d41d8/ctime:1700000000",
            )],
            Attributes { mtime_ns: at, ctime_ns: at, atime_ns: at, ..plain(Some(0o100644), Some(5), Some(6)) },
        ),
        (
            &[
                ("permissions", "33188"),
                ("posix_owner", "5"),
                ("posix_group", "6"),
                ("modtime", "1700000000123456789"),
                ("posix_atime", "1700000000000000000"),
                ("posix_ctime", "1700000000000000000"),
            ],
            Attributes { mtime_ns: exact, ctime_ns: at, atime_ns: at, ..plain(Some(0o100644), Some(5), Some(6)) },
        ),
        (&[("is_fifo", "true"), ("permissions", "0600")], plain(Some(libc::S_IFIFO | 0o600), None, None)),
        (
            &[("permissions", "0640"), ("owner", "5"), ("group", "6"), ("modtime", "2023-11-14 14:13:20 -0800")],
            Attributes { mtime_ns: at, ..plain(Some(0o640), Some(5), Some(6)) },
        ),
        // The first that tells is believed, field by field.
        (
            &[("mtime", "1700000000"), ("file-mtime", "1ns"), ("file-owner", "7"), ("mc-attrs", "uid:9/gid:8")],
            Attributes { mtime_ns: at, ..plain(None, Some(7), Some(8)) },
        ),
        (&[("owner", "somebody"), ("group", ""), ("permissions", "rw"), ("modtime", "yesterday")], NONE),
    ] {
        assert_eq!(file(pairs), some(want), "{pairs:?}");
    }
}

#[test]
fn what_makes_no_sense_is_ignored() {
    for value in ["", " ", "-1", "abc", "99999999999999999999", "0x", "0o7", "1e3", "08", "4294967295", "\u{1f600}"] {
        let pairs = [("mode", value), ("uid", value), ("gid", value)];
        let got = file(&pairs);
        assert!(got.uid.is_none() && got.gid.is_none(), "{value:?}");
        assert!(got.mode.is_none(), "{value:?}: {got:?}");
    }
    for value in
        ["", ".", "1.", "x", "1.5x", "9223372036854775807", "-9223372036854775808", "1..2", "2023-99-99T00:00:00Z"]
    {
        assert_eq!(file(&[("mtime", value)]).mtime_ns, None, "{value:?}");
    }
    for value in ["%", "{", "[]", "%7B%22user.a%22%3A1%7D", "null", "\"x\"", &"%5B".repeat(10_000)] {
        assert_eq!(file(&[("xattr", value)]).xattrs, Some(BTreeMap::new()), "{value:.20}");
    }
    assert_eq!(file(&[("mc-attrs", "mtime:1#9999999999/uid:/gid"), ("s3cmd-attrs", "//::/:/")]), some(NONE));
}

#[test]
fn a_type_is_told_only_where_it_can_be() {
    let mode = |mode: u32, kind, size| decode(&user(&[("mode", &mode.to_string())]), kind, size).mode;
    assert_eq!(mode(libc::S_IFLNK | 0o777, Kind::File, 3), Some(libc::S_IFLNK | 0o777));
    assert_eq!(mode(libc::S_IFLNK | 0o777, Kind::File, 0), Some(0o777), "a link without a target is none");
    assert_eq!(mode(libc::S_IFBLK | 0o660, Kind::File, 0), Some(libc::S_IFREG | 0o660));
    assert_eq!(mode(libc::S_IFDIR | 0o755, Kind::File, 0), Some(0o755));
    assert_eq!(mode(libc::S_IFIFO | 0o644, Kind::File, 0), Some(libc::S_IFIFO | 0o644));
    assert_eq!(mode(libc::S_IFREG | 0o750, Kind::Dir, 0), Some(libc::S_IFDIR | 0o750));
    assert_eq!(mode(0o030_644, Kind::File, 1), Some(0o644), "no such type");
    assert_eq!(mode(0o1_000_000, Kind::File, 1), None);
    assert_eq!(mode(0o107_777, Kind::File, 1), Some(0o107_777));
}

#[test]
fn what_others_left_is_kept_or_brought_up_to_date() {
    let before = user(&[
        ("colour", "blue"),
        ("owner", "somebody"),
        ("goog-reserved-file-mtime", "1"),
        ("goog-reserved-posix-uid", "9"),
        ("file-permissions", "0100600"),
        ("gcsfuse_mtime", "2001-01-01T00:00:00Z"),
        ("mc-attrs", "mtime:1#0"),
        ("modtime", "1"),
        ("Mtime", "1"),
        ("uid", "3"),
        ("xattr", "%7B%22security.x%22%3A%22AA%3D%3D%22%2C%22user.old%22%3A%22AA%3D%3D%22%7D"),
    ]);
    let attributes = Attributes {
        mode: Some(0o100640),
        mtime_ns: Some(1_700_000_000_000_000_001),
        xattrs: Some([("user.new".to_owned(), vec![0, 255])].into()),
        ..NONE
    };
    let now = encode(before.clone(), &attributes, Twins::None);
    let want = user(&[
        ("colour", "blue"),
        ("owner", "somebody"),
        ("goog-reserved-file-mtime", "1700000000"),
        ("file-permissions", "0100640"),
        ("gcsfuse_mtime", "2023-11-14T22:13:20.000000001Z"),
        ("mode", "33184"),
        ("mtime", "1700000000.000000001"),
        ("xattr", "%7B%22security.x%22%3A%22AA%3D%3D%22%2C%22user.new%22%3A%22AP8%3D%22%7D"),
    ]);
    assert_eq!(now, want);
    assert_eq!(decode(&now, Kind::File, 1), attributes);
    let kept = encode(now.clone(), &Attributes { xattrs: None, ..attributes.clone() }, Twins::None);
    assert_eq!(kept, now, "extended attributes that are not spoken of stay");
    let none = encode(now, &Attributes { xattrs: Some(BTreeMap::new()), ..NONE }, Twins::None);
    assert_eq!(decode(&none, Kind::File, 1), some(NONE));
    assert_eq!(none.get("xattr"), Some("%7B%22security.x%22%3A%22AA%3D%3D%22%7D"));
    assert_eq!(encode(UserMetadata::default(), &some(NONE), Twins::None), UserMetadata::default());
}

#[test]
fn links_are_marked_for_the_tools_of_their_store() {
    let link = Attributes { mode: Some(libc::S_IFLNK | 0o777), ..NONE };
    let google = encode(UserMetadata::default(), &link, Twins::of("gcs"));
    assert_eq!(google, user(&[("mode", "41471"), ("goog-reserved-file-is-symlink", "true")]));
    let azure = encode(UserMetadata::default(), &link, Twins::of("azblob"));
    assert_eq!(azure, user(&[("mode", "41471"), ("is_symlink", "true")]));
    let file = Attributes { mode: Some(libc::S_IFREG | 0o644), ..NONE };
    assert_eq!(encode(azure, &file, Twins::Azure), user(&[("mode", "33188")]));
}

#[test]
fn digests_go_with_the_content() {
    let before = user(&[("md5chksum", "x"), ("s3cmd-attrs", "uid:1/md5:d41d8/mode:33188"), ("a", "b")]);
    assert_eq!(before.without_digests(), user(&[("s3cmd-attrs", "uid:1/mode:33188"), ("a", "b")]));
}

#[test]
fn pairs_are_made_fit_for_headers() {
    let odd = user(&[("plain", "x y"), ("näme", "x"), ("value", "h\u{e9}\n"), ("", "x")]);
    assert_eq!(odd.for_headers(), user(&[("plain", "x y"), ("value", "h%C3%A9%0A")]));
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let types =
        prop_oneof![Just(0), Just(libc::S_IFREG), Just(libc::S_IFLNK), Just(libc::S_IFIFO), Just(libc::S_IFSOCK)];
    let id = || proptest::option::of(0..u32::MAX);
    let time =
        || proptest::option::of(any::<i64>().prop_filter("in range", |t| t.div_euclid(1_000_000_000) > -9_223_372_036));
    let xattrs =
        proptest::collection::btree_map("user\\.\\PC{1,40}", proptest::collection::vec(any::<u8>(), 0..50), 0..5);
    (proptest::option::of((types, 0..0o10000u32)), id(), id(), time(), time(), time(), xattrs).prop_map(
        |(mode, uid, gid, atime_ns, mtime_ns, ctime_ns, xattrs)| Attributes {
            mode: mode.map(|(t, p)| t | p),
            uid,
            gid,
            atime_ns,
            mtime_ns,
            ctime_ns,
            xattrs: Some(xattrs.into_iter().filter(|(name, _)| name.len() <= 255).collect()),
        },
    )
}

/// Keys that mean something, and some that mean nothing.
fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::sample::select(vec![
            "mode",
            "uid",
            "gid",
            "mtime",
            "atime",
            "ctime",
            "xattr",
            "file-permissions",
            "file-owner",
            "file-mtime",
            "goog-reserved-posix-mode",
            "goog-reserved-file-mtime",
            "gcsfuse_mtime",
            "mc-attrs",
            "s3cmd-attrs",
            "permissions",
            "modtime",
            "posix_owner",
            "is_symlink",
            "owner",
            "md5chksum",
        ])
        .prop_map(str::to_owned),
        "[a-zA-Z_-]{1,12}",
        "\\PC{0,8}",
    ]
}

fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        "[-+0-9.xeE#:/nsTZ %]{0,30}",
        "\\PC{0,40}",
        any::<i64>().prop_map(|n| n.to_string()),
        "(mode|uid|mtime|atime|md5):[-0-9.#]{0,25}(/(mode|uid|mtime|atime|md5):[-0-9.#]{0,25}){0,4}",
        "\\d{4}-\\d{2}-\\d{2}[T ]\\d{2}:\\d{2}:\\d{2}(\\.\\d{0,12})?(Z| ?[-+]\\d{0,5}|é0000)",
        "%7B(%22[a-z.]{0,8}%22%3A%22[A-Za-z0-9+/=]{0,9}%22%2C?){0,3}%7D",
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(attributes in attributes()) {
        let coded = encode(UserMetadata::default(), &attributes, Twins::None);
        for (key, value) in coded.clone().into_pairs() {
            prop_assert!(key.bytes().all(|b| b.is_ascii_lowercase()));
            prop_assert!(value.bytes().all(|b| b.is_ascii_graphic()), "{value}");
        }
        prop_assert_eq!(UserMetadata::from_line(&coded.to_line()), coded.clone());
        prop_assert_eq!(decode(&coded, Kind::File, 1), attributes);
    }

    #[test]
    fn foreign_text_is_never_too_much(
        pairs in proptest::collection::vec((any_key(), any_value()), 0..12),
        size in 0..2u64,
        new in attributes(),
    ) {
        let foreign: UserMetadata = pairs.into_iter().collect();
        for kind in [Kind::File, Kind::Dir] {
            let told = decode(&foreign, kind, size);
            prop_assert!(told.mode.is_none_or(|mode| mode <= 0o177_777));
            prop_assert!(told.uid != Some(u32::MAX) && told.gid != Some(u32::MAX));
        }
        let _ = foreign.clone().for_headers().without_digests().to_line();
        prop_assert_eq!(UserMetadata::from_line(&foreign.to_line()), foreign.clone());
        // Nothing stale wins over what was written last.
        for twins in [Twins::None, Twins::Google, Twins::Azure] {
            let now = encode(foreign.clone(), &new, twins);
            prop_assert_eq!(decode(&now, Kind::File, 1), new.clone());
        }
    }
}
