//! F, X, L and S rows: requests whose numbers, lengths and handles lie, and what a guest may exhaust or must not open.

use ovfs_compat_tests::fuse::{Body, InitRequest, ROOT, init, op};
use ovfs_compat_tests::guest::Guest;
use ovfs_compat_tests::hostile::{Session, Target};

use crate::{EXIT, INVALID, REFUSED, lookup};

pub(crate) fn f1_before_init(target: &Target) {
    let mut s = Session::start(target, &[]);
    s.restart(false);
    for (what, opcode, arg) in [
        ("LOOKUP", op::LOOKUP, b"f\0".to_vec()),
        ("MKDIR", op::MKDIR, Body::new().u32s(&[0o755, 0]).name(b"early").0),
        ("GETATTR", op::GETATTR, vec![0; 16]),
        ("STATFS", op::STATFS, Vec::new()),
    ] {
        let outcome = s.request(opcode, ROOT, &arg, 128);
        s.judge(what, &outcome, &["EIO", "EPERM", "EBADF"], &["EBADF"]);
    }
    s.guest().init(&InitRequest::default()).unwrap();
    s.guest().write_file("f", b"hello world").unwrap();
    assert!(!s.guest().exists("early").unwrap(), "nothing was made before INIT");
    s.finish();
}

pub(crate) fn f2_init_twice(target: &Target) {
    let mut s = Session::start(target, &[]);
    let outcome = s.request(op::INIT, 0, &InitRequest::default().encode(), 64);
    s.judge("the second INIT", &outcome, &["ok", "EIO"], &["ok"]);
    let data = s.guest().read_file("f").unwrap();
    assert_eq!(data, b"hello world");
    s.finish();
}

pub(crate) fn f3_init_values(target: &Target) {
    let mut s = Session::start(target, &[]);
    let request = InitRequest::default();
    let outcome = |s: &mut Session, request: InitRequest| s.request(op::INIT, 0, &request.encode(), 64);
    s.restart(false);
    let got = outcome(&mut s, InitRequest { minor: 5, ..request });
    s.judge("minor 5", &got, &["EPROTO"], &["EPROTO"]);
    s.restart(false);
    let got = outcome(&mut s, InitRequest { major: 99, ..request });
    s.judge("major 99", &got, &["ok"], &["ok"]);
    s.restart(false);
    let got = outcome(&mut s, InitRequest { flags: init::INIT_EXT, short: true, minor: 36, ..request });
    s.judge("INIT_EXT with the short structure", &got, &["ok"], EXIT);
    for offered in [0, init::ALL, init::INIT_EXT, !init::INIT_EXT, u64::MAX] {
        s.restart(false);
        let reply = s.guest().init(&InitRequest { flags: offered, ..request }).unwrap();
        assert_eq!(reply.flags & !offered, 0, "flags are a subset of {offered:#x}");
        if s.wanted() && offered & init::INIT_EXT == 0 {
            assert_eq!(reply.flags >> 32, 0, "no second word without INIT_EXT");
        }
    }
    s.guest().write_file("f", b"hello world").unwrap();
    s.finish();
}

pub(crate) fn f4_init_truncated(target: &Target) {
    let mut s = Session::start(target, &[]);
    for len in [0, 4, 15] {
        s.restart(false);
        let outcome = s.request(op::INIT, 0, &InitRequest::default().encode()[..len], 64);
        s.judge(&format!("{len} bytes"), &outcome, INVALID, EXIT);
    }
    s.restart(true);
    s.finish();
}

pub(crate) fn f5_header_lengths(target: &Target) {
    let mut s = Session::start(target, &[]);
    for len in [1, 4, 20, 39] {
        let header = s.header(op::STATFS, ROOT, 0);
        let outcome = s.send(header.unique, &[&header.encode()[..len]], 96);
        s.judge(&format!("a header of {len} bytes"), &outcome, &["EINVAL", "used 0"], EXIT);
    }
    for len in [0, 16, 39] {
        let mut header = s.header(op::LOOKUP, ROOT, 2);
        header.len = len;
        let outcome = s.send(header.unique, &[&header.encode(), b"f\0"], 144);
        s.judge(&format!("header.len {len}"), &outcome, INVALID, EXIT);
    }
    let mut header = s.header(op::LOOKUP, ROOT, 2);
    header.len += 100;
    let outcome = s.send(header.unique, &[&header.encode(), b"f\0"], 144);
    s.judge("header.len larger than the request", &outcome, INVALID, EXIT);
    s.finish();
}

pub(crate) fn f6_header_length_4g(target: &Target) {
    let mut s = Session::start(target, &[]);
    for opcode in [op::LOOKUP, op::WRITE, op::BATCH_FORGET, op::SETXATTR, op::IOCTL] {
        let mut header = s.header(opcode, ROOT, 0);
        header.len = u32::MAX;
        let outcome = s.send(header.unique, &[&header.encode(), &[0; 100]], 144);
        s.judge(&format!("opcode {opcode}"), &outcome, &["EINVAL", "ENOMEM", "ENOSYS", "used 0"], &[]);
    }
    s.finish();
}

pub(crate) fn f7_unknown_opcodes(target: &Target) {
    let mut s = Session::start(target, &[]);
    for opcode in [0, 7, 19, 60, 100, 4095, 4096, 1 << 31, u32::MAX] {
        let outcome = s.request(opcode, ROOT, &[0; 64], 128);
        s.judge(&format!("opcode {opcode}"), &outcome, &["ENOSYS"], &["ENOSYS"]);
    }
    s.finish();
}

pub(crate) fn f8_forged_nodes(target: &Target) {
    let mut s = Session::start(target, &[]);
    for node in [0, 999_999, 1 << 32, 1 << 63, u64::MAX] {
        for (what, opcode, arg) in [
            ("GETATTR", op::GETATTR, vec![0; 16]),
            ("LOOKUP", op::LOOKUP, b"f\0".to_vec()),
            ("OPEN", op::OPEN, vec![0; 8]),
            ("OPENDIR", op::OPENDIR, vec![0; 8]),
            ("UNLINK", op::UNLINK, b"f\0".to_vec()),
            ("LINK to it", op::LINK, Body::new().u64s(&[node]).name(b"l").0),
            ("RENAME into it", op::RENAME, Body::new().u64s(&[node]).name(b"f").name(b"g").0),
        ] {
            let nodeid = if what.ends_with("it") { ROOT } else { node };
            let outcome = s.request(opcode, nodeid, &arg, 128);
            let mut want = vec!["EBADF", "ESTALE"];
            if what == "LINK to it" && !s.target.passthrough {
                want.extend(["EPERM", "ENOSYS", "EOPNOTSUPP"]);
            }
            s.judge(&format!("{what} {node:#x}"), &outcome, &want, &["EBADF"]);
        }
    }
    s.finish();
}

pub(crate) fn f9_forged_handles(target: &Target) {
    let mut s = Session::start(target, &[]);
    let f = s.guest().resolve("f").unwrap();
    let d = s.guest().resolve("d").unwrap();
    let file = s.guest().open(f, libc::O_RDWR).unwrap().fh;
    let dir = s.guest().opendir(d).unwrap().fh;
    for (what, opcode, node, arg) in [
        ("READ, forged", op::READ, f, Guest::read_arg(4242, 0, 16)),
        ("READ, 2^64-1", op::READ, f, Guest::read_arg(u64::MAX, 0, 16)),
        ("READ, of another node", op::READ, d, Guest::read_arg(file, 0, 16)),
        ("WRITE, of another node", op::WRITE, d, Guest::write_arg(file, 0, 0, 0, 0)),
        ("READDIR, forged", op::READDIR, d, Guest::read_arg(4242, 0, 16)),
        ("READDIR, of another node", op::READDIR, ROOT, Guest::read_arg(dir, 0, 16)),
        ("FLUSH, forged", op::FLUSH, f, Body::new().u64s(&[4242, 0, 0]).0),
        ("FSYNC, forged", op::FSYNC, f, Body::new().u64s(&[4242, 0]).0),
        ("RELEASE, forged", op::RELEASE, f, Body::new().u64s(&[4242, 0, 0]).0),
        ("RELEASE, of another node", op::RELEASE, d, Body::new().u64s(&[file, 0, 0]).0),
        ("RELEASEDIR, of another node", op::RELEASEDIR, ROOT, Body::new().u64s(&[dir, 0, 0]).0),
        ("LSEEK, forged", op::LSEEK, f, Body::new().u64s(&[4242, 0, 0]).0),
    ] {
        let outcome = s.request(opcode, node, &arg, 128);
        s.judge(what, &outcome, &["EBADF"], &["EBADF"]);
    }
    s.finish();
}

pub(crate) fn f10_forget_the_root(target: &Target) {
    let mut s = Session::start(target, &[]);
    for count in [1, 2, u64::MAX, u64::MAX] {
        s.guest().forget(ROOT, count).unwrap();
    }
    let outcome = s.request(op::GETATTR, ROOT, &[0; 16], 104);
    s.judge("GETATTR of the root", &outcome, &["ok"], &["EBADF"]);
    s.finish();
}

pub(crate) fn f11_forget_too_much(target: &Target) {
    let mut s = Session::start(target, &[]);
    let f = s.guest().resolve("f").unwrap();
    s.guest().forget(f, u64::MAX).unwrap();
    s.guest().forget(f, 1).unwrap();
    s.guest().forget(777_777, u64::MAX).unwrap();
    let outcome = lookup(&mut s, b"f");
    s.judge("LOOKUP afterwards", &outcome, &["ok"], &["ok"]);
    for count in [u32::MAX, 1, 1000, 1 << 28] {
        let arg = Body::new().u32s(&[count, 0]).0;
        let header = s.header(op::BATCH_FORGET, 0, arg.len());
        let outcome = s.send_on(0, header.unique, &[&header.encode(), &arg], 0);
        s.judge(&format!("BATCH_FORGET of {count} without items"), &outcome, &["used 0"], &["exit 1", "used 0"]);
    }
    s.finish();
}

pub(crate) fn f12_readdir_extremes(target: &Target) {
    let mut s = Session::start(target, &[]);
    let fh = s.guest().opendir(ROOT).unwrap().fh;
    for opcode in [op::READDIR, op::READDIRPLUS] {
        for offset in [0, 1, 0xdead_beef, 1 << 62, 1 << 63, u64::MAX] {
            for size in [0, 1, 4096, u32::MAX] {
                let outcome = s.request(opcode, ROOT, &Guest::read_arg(fh, offset, size), 1 << 20);
                let want = ["ok", "EINVAL", "ENOMEM", "EOVERFLOW"];
                s.judge(&format!("opcode {opcode}, offset {offset:#x}, size {size}"), &outcome, &want, &want);
            }
        }
    }
    s.finish();
}

pub(crate) fn f13_read_4g(target: &Target) {
    let mut s = Session::start(target, &[]);
    let f = s.guest().resolve("f").unwrap();
    let fh = s.guest().open(f, libc::O_RDONLY).unwrap().fh;
    for size in [u32::MAX, 1 << 31, 1 << 21] {
        let outcome = s.request(op::READ, f, &Guest::read_arg(fh, 0, size), 1 << 16);
        s.judge(&format!("READ of {size}"), &outcome, &["ok"], &["ok"]);
    }
    s.finish();
}

pub(crate) fn f14_read_beyond_2_63(target: &Target) {
    let mut s = Session::start(target, &[]);
    for offset in [1 << 63, u64::MAX, u64::MAX - 4096] {
        let f = s.guest().resolve("f").unwrap();
        let fh = s.guest().open(f, libc::O_RDWR).unwrap().fh;
        let outcome = s.request(op::READ, f, &Guest::read_arg(fh, offset, 16), 16);
        s.judge(&format!("READ at {offset:#x}"), &outcome, INVALID, &["hang"]);
    }
    s.finish();
}

pub(crate) fn f15_write_more_than_sent(target: &Target) {
    let mut s = Session::start(target, &[]);
    let f = s.guest().resolve("f").unwrap();
    let fh = s.guest().open(f, libc::O_RDWR).unwrap().fh;
    for size in [4, 4096, 1 << 20, u32::MAX] {
        let arg = [&Guest::write_arg(fh, 0, size, 0, 0)[..], b"bad"].concat();
        let outcome = s.request(op::WRITE, f, &arg, 8);
        s.judge(&format!("WRITE of 3 bytes that says {size}"), &outcome, &["EINVAL", "EIO", "ENOMEM"], &[]);
    }
    if s.wanted() {
        let data = s.guest().read_file("f").unwrap();
        assert_eq!(data, b"hello world", "a refused WRITE writes nothing");
    }
    s.finish();
}

pub(crate) fn f16_write_at_the_end(target: &Target) {
    let mut s = Session::start(target, &[]);
    let f = s.guest().resolve("f").unwrap();
    let fh = s.guest().open(f, libc::O_RDWR).unwrap().fh;
    let arg = [&Guest::write_arg(fh, i64::MAX as u64, 3, 0, 0)[..], b"bad"].concat();
    let outcome = s.request(op::WRITE, f, &arg, 8);
    s.judge("WRITE at 2^63-1", &outcome, &["EINVAL", "EFBIG"], &["EINVAL", "EFBIG"]);
    if s.wanted() {
        for offset in [1 << 63, u64::MAX, u64::MAX - 2] {
            let arg = [&Guest::write_arg(fh, offset, 3, 0, 0)[..], b"bad"].concat();
            let outcome = s.request(op::WRITE, f, &arg, 8);
            s.judge(&format!("WRITE at {offset:#x}"), &outcome, &["EINVAL", "EFBIG"], &[]);
        }
        for (offset, len) in [(1u64 << 63, 1u64), (u64::MAX, u64::MAX), (1 << 62, 1 << 62)] {
            let arg = Body::new().u64s(&[fh, offset, len, 0]).0;
            let outcome = s.request(op::FALLOCATE, f, &arg, 0);
            let want = ["EINVAL", "EFBIG", "EOPNOTSUPP", "ENOSPC"];
            s.judge(&format!("FALLOCATE {offset:#x}+{len:#x}"), &outcome, &want, &[]);
            let arg = Body::new().u64s(&[fh, offset, f, fh, len, 10, 0]).0;
            let outcome = s.request(op::COPY_FILE_RANGE, f, &arg, 8);
            let want = ["ok", "EINVAL", "EFBIG", "EOVERFLOW", "EOPNOTSUPP"];
            s.judge(&format!("COPY_FILE_RANGE {offset:#x} to {len:#x}"), &outcome, &want, &[]);
        }
        let data = s.guest().read_file("f").unwrap();
        assert_eq!(data, b"hello world");
    }
    s.finish();
}

pub(crate) fn f17_no_room_for_a_reply(target: &Target) {
    let mut s = Session::start(target, &[]);
    for reply in [0, 1, 8, 15] {
        let header = s.header(op::STATFS, ROOT, 0);
        let outcome = s.send(header.unique, &[&header.encode()], reply);
        s.judge(&format!("STATFS with {reply} bytes for the reply"), &outcome, &["used 0"], EXIT);
    }
    // Room for the header and an errno, but not for the answer.
    let outcome = s.request(op::STATFS, ROOT, &[], 10);
    s.judge("STATFS with 26 bytes for the reply", &outcome, REFUSED, &[]);
    let f = s.guest().resolve("f").unwrap();
    let fh = s.guest().open(f, libc::O_RDONLY).unwrap().fh;
    let outcome = s.request(op::READ, f, &Guest::read_arg(fh, 0, 4096), 4);
    s.judge("READ of 11 bytes with room for 4", &outcome, &["ok", "used 0", "EINVAL", "EIO", "ENOMEM"], &[]);
    s.finish();
}

pub(crate) fn f18_truncated_arguments(target: &Target) {
    let mut s = Session::start(target, &["--xattr"]);
    if !s.wanted() {
        return;
    }
    let f = s.guest().resolve("f").unwrap();
    let opcodes =
        (1..=53).filter(|opcode| ![op::FORGET, op::BATCH_FORGET, op::INTERRUPT, op::DESTROY].contains(opcode));
    for opcode in opcodes {
        for len in [0, 1, 7, 8, 15] {
            let outcome = s.request(opcode, f, &[0xee; 15][..len], 256);
            // Whatever it is, it is an errno; operations without arguments may succeed.
            if outcome.contains(' ') || outcome == "hang" {
                s.judge(&format!("opcode {opcode} with {len} bytes"), &outcome, &["an errno"], &[]);
            }
        }
    }
    s.finish();
}

pub(crate) fn x1_setxattr_longer_than_sent(target: &Target) {
    let mut s = Session::start(target, &["--xattr"]);
    let f = s.guest().resolve("f").unwrap();
    for size in [3, 1 << 20, u32::MAX] {
        let arg = Body::new().u32s(&[size, 0]).name(b"user.a").bytes(b"xy").0;
        let outcome = s.request(op::SETXATTR, f, &arg, 0);
        let want: &[&str] = if s.target.passthrough {
            &["EINVAL", "ENOMEM", "E2BIG"]
        } else {
            &["EINVAL", "ENOSYS", "EOPNOTSUPP", "E2BIG"]
        };
        s.judge(&format!("a value of 2 bytes that says {size}"), &outcome, want, &["exit 1", "ENOMEM"]);
    }
    s.finish();
}

fn huge_xattr(target: &Target, opcode: u32, name: &[u8]) {
    let mut s = Session::start(target, &["--xattr"]);
    let f = s.guest().resolve("f").unwrap();
    for size in [u32::MAX - 15, u32::MAX, 1 << 31] {
        let arg = Body::new().u32s(&[size, 0]).bytes(name).0;
        let outcome = s.request(opcode, f, &arg, 1 << 16);
        let want = ["ERANGE", "ENOMEM", "ENODATA", "ok", "ENOSYS", "EOPNOTSUPP"];
        s.judge(&format!("size {size}"), &outcome, &want, &["ENOMEM"]);
    }
    s.finish();
}

pub(crate) fn x2_getxattr_4g(target: &Target) {
    huge_xattr(target, op::GETXATTR, b"user.a\0");
}

pub(crate) fn x3_listxattr_4g(target: &Target) {
    huge_xattr(target, op::LISTXATTR, b"");
}

pub(crate) fn l1_descriptor_limit(target: &Target) {
    if !target.passthrough {
        // An open object is no descriptor.
        return;
    }
    let mut s = Session::start(target, &["--rlimit-nofile=800"]);
    let f = s.guest().resolve("f").unwrap();
    let mut open = Vec::new();
    let errno = loop {
        match s.guest().open(f, libc::O_RDONLY) {
            Ok(file) => open.push(file.fh),
            Err(fault) => break fault.errno(),
        }
        assert!(open.len() < 800, "the limit counts");
    };
    assert_eq!(errno, Some(libc::ENFILE));
    assert!(open.len() > 100, "only {} opens", open.len());
    s.guest().getattr(ROOT, None).unwrap();
    for _ in 0..100 {
        assert!(s.guest().open(f, libc::O_RDONLY).is_err());
    }
    let complaints = s.daemon().log().matches("No more file descriptors available to the guest").count();
    assert_eq!(complaints, 1, "{}", s.daemon().log());
    for fh in open.drain(..) {
        s.guest().release(f, fh).unwrap();
    }
    let fh = s.guest().open(f, libc::O_RDONLY).unwrap().fh;
    s.guest().release(f, fh).unwrap();
    s.finish();
}

pub(crate) fn s1_special_files(target: &Target) {
    let mut s = Session::start(target, &[]);
    for (name, mode) in
        [("char", libc::S_IFCHR), ("block", libc::S_IFBLK), ("fifo", libc::S_IFIFO), ("socket", libc::S_IFSOCK)]
    {
        let made = s.guest().mknod(ROOT, name.as_bytes(), mode | 0o666, 0x103, 0);
        if !s.target.passthrough {
            let errno = made.err().and_then(|fault| fault.errno());
            assert!(matches!(errno, Some(libc::EPERM | libc::ENOSYS | libc::EOPNOTSUPP)), "{name}: {errno:?}");
            continue;
        }
        let node = made.unwrap().nodeid;
        for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_NONBLOCK] {
            let outcome = s.request(op::OPEN, node, &Body::new().u32s(&[flags as u32, 0]).0, 16);
            s.judge(&format!("OPEN {name} {flags:#x}"), &outcome, &["EBADF", "ENXIO"], &["EBADF"]);
        }
        let arg = Body::new().u32s(&[libc::O_RDWR as u32, 0o100644, 0, 0]).name(name.as_bytes()).0;
        let outcome = s.request(op::CREATE, ROOT, &arg, 144);
        s.judge(&format!("CREATE {name}"), &outcome, &["EBADF", "ENXIO", "EEXIST"], &["EBADF", "EEXIST"]);
    }
    s.finish();
}
