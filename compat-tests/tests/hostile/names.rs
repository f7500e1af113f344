//! N rows: names that are no names.

use ovfs_compat_tests::fuse::{Body, ROOT, op};
use ovfs_compat_tests::hostile::{Session, Target};

use crate::{EXIT, INVALID, lookup};

pub(crate) fn n1_dot_names(target: &Target) {
    let mut s = Session::start(target, &[]);
    for name in [".", ".."] {
        let outcome = lookup(&mut s, name.as_bytes());
        s.judge(name, &outcome, INVALID, &["ok"]);
    }
    s.finish();
}

pub(crate) fn n2_paths_as_names(target: &Target) {
    let mut s = Session::start(target, &[]);
    for name in ["d/..", "d/a", "/etc/passwd", "../outside", "../share/f", "/", "d/", "f/"] {
        let outcome = lookup(&mut s, name.as_bytes());
        s.judge(name, &outcome, INVALID, &["ok", "ENOENT", "ENOTDIR"]);
    }
    s.finish();
}

pub(crate) fn n3_empty_name(target: &Target) {
    let mut s = Session::start(target, &[]);
    let outcome = lookup(&mut s, b"");
    s.judge("the empty name", &outcome, &["EINVAL", "ENOENT"], &["ENOENT"]);
    s.finish();
}

pub(crate) fn n4_names_without_end(target: &Target) {
    let mut s = Session::start(target, &[]);
    let mode = Body::new().u32s(&[0o755, 0]).0;
    for (what, opcode, arg) in [
        ("LOOKUP without NUL", op::LOOKUP, b"f".to_vec()),
        ("LOOKUP with NUL inside", op::LOOKUP, b"f\0g\0".to_vec()),
        ("LOOKUP without a name", op::LOOKUP, Vec::new()),
        ("UNLINK without NUL", op::UNLINK, b"f".to_vec()),
        ("MKDIR without NUL", op::MKDIR, [&mode[..], b"new"].concat()),
        ("MKDIR without a name", op::MKDIR, mode.clone()),
        ("SYMLINK with one name", op::SYMLINK, b"name\0".to_vec()),
        ("RENAME with one name", op::RENAME, Body::new().u64s(&[ROOT]).name(b"f").0),
    ] {
        let outcome = s.request(opcode, ROOT, &arg, 128);
        s.judge(what, &outcome, INVALID, EXIT);
    }
    s.finish();
}

pub(crate) fn n5_long_names(target: &Target) {
    let mut s = Session::start(target, &[]);
    for (len, errno) in [(255, "ENOENT"), (256, "ENAMETOOLONG"), (4000, "ENAMETOOLONG")] {
        let outcome = lookup(&mut s, &vec![b'n'; len]);
        s.judge(&format!("{len} bytes"), &outcome, &[errno], &[errno]);
    }
    s.finish();
}

pub(crate) fn n6_names_that_are_not_utf8(target: &Target) {
    let mut s = Session::start(target, &[]);
    let outcome = lookup(&mut s, b"\xff\xfe");
    s.judge("LOOKUP", &outcome, &["ENOENT"], &["ENOENT"]);
    let arg = Body::new().u32s(&[libc::O_CREAT as u32 | 2, 0o100644, 0, 0]).name(b"\xff\xfe").0;
    let outcome = s.request(op::CREATE, ROOT, &arg, 144);
    let want: &[&str] = if s.target.passthrough { &["ok"] } else { &["EILSEQ", "EINVAL"] };
    s.judge("CREATE", &outcome, want, &["ok"]);
    s.finish();
}

pub(crate) fn n7_make_outside(target: &Target) {
    let mut s = Session::start(target, &[]);
    let arg = Body::new().u32s(&[0o755, 0]).name(b"../evil").0;
    let outcome = s.request(op::MKDIR, ROOT, &arg, 128);
    s.judge("MKDIR", &outcome, INVALID, &["ENOENT"]);
    let arg = Body::new().u32s(&[0o020666, 0x103, 0, 0]).name(b"../evildev").0;
    let outcome = s.request(op::MKNOD, ROOT, &arg, 128);
    s.judge("MKNOD", &outcome, &["EINVAL"], &["ENOENT"]);
    let escaped = s.share.surroundings().join("evil").exists();
    s.judge("the directory outside", if escaped { "made" } else { "absent" }, &["absent"], &["made"]);
    s.finish();
}

pub(crate) fn n8_unlink_outside(target: &Target) {
    let mut s = Session::start(target, &[]);
    for (what, opcode, name) in [
        ("UNLINK through the parent", op::UNLINK, "../share/f"),
        ("UNLINK outside", op::UNLINK, "../canary"),
        ("RMDIR outside", op::RMDIR, "../outside"),
    ] {
        let outcome = s.request(opcode, ROOT, &Body::new().name(name.as_bytes()).0, 0);
        s.judge(what, &outcome, INVALID, &[]);
    }
    s.finish();
}

pub(crate) fn n9_symlink_outside(target: &Target) {
    let mut s = Session::start(target, &[]);
    let outside = s.share.surroundings().join("planted");
    let arg = Body::new().name(outside.as_os_str().as_encoded_bytes()).name(b"x").0;
    let outcome = s.request(op::SYMLINK, ROOT, &arg, 128);
    s.judge("SYMLINK", &outcome, INVALID, &["ENOENT"]);
    let planted = outside.symlink_metadata().is_ok();
    s.judge("the link outside", if planted { "made" } else { "absent" }, &["absent"], &["made"]);
    s.finish();
}

pub(crate) fn n10_bad_names_in_every_operation(target: &Target) {
    let mut s = Session::start(target, &["--xattr"]);
    // virtiofsd would carry these out.
    if !s.wanted() {
        return;
    }
    let f = s.guest().resolve("f").unwrap();
    for bad in ["", ".", "..", "a/b", "../x", "/", "/abs", "d/../../x", "f/"] {
        let name = || Body::new().name(bad.as_bytes()).0;
        let two = |first: &[u8]| [first, &name()].concat();
        let head = |body: Body| two(&body.0);
        for (what, opcode, node, arg, reply) in [
            ("LOOKUP", op::LOOKUP, ROOT, name(), 128),
            ("SYMLINK", op::SYMLINK, ROOT, [&name()[..], b"target\0"].concat(), 128),
            ("MKNOD", op::MKNOD, ROOT, head(Body::new().u32s(&[0o100644, 0, 0, 0])), 128),
            ("MKDIR", op::MKDIR, ROOT, head(Body::new().u32s(&[0o755, 0])), 128),
            ("UNLINK", op::UNLINK, ROOT, name(), 0),
            ("RMDIR", op::RMDIR, ROOT, name(), 0),
            ("RENAME from", op::RENAME, ROOT, [head(Body::new().u64s(&[ROOT])), b"new\0".to_vec()].concat(), 0),
            ("RENAME to", op::RENAME, ROOT, two(&Body::new().u64s(&[ROOT]).name(b"f").0), 0),
            ("RENAME2 to", op::RENAME2, ROOT, two(&Body::new().u64s(&[ROOT, 0]).name(b"f").0), 0),
            ("LINK", op::LINK, ROOT, head(Body::new().u64s(&[f])), 128),
            ("CREATE", op::CREATE, ROOT, head(Body::new().u32s(&[0x42, 0o100644, 0, 0])), 144),
        ] {
            let outcome = s.request(opcode, node, &arg, reply);
            let mut want = vec!["EINVAL"];
            if bad.is_empty() {
                want.push("ENOENT");
            }
            if !s.target.passthrough {
                // A store has no hard links, symbolic links or special files; it may say that first.
                want.extend(["EPERM", "ENOSYS", "EOPNOTSUPP"]);
            }
            s.judge(&format!("{what} \"{bad}\""), &outcome, &want, &[]);
        }
    }
    s.finish();
}
