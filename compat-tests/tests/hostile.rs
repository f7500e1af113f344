//! A guest that breaks the rules of names, of FUSE and of virtio rings.
//!
//! Every row runs on ovfs sharing a directory without a sandbox (where a bad name would do most harm), on ovfs in its
//! default sandbox with a thread pool, on ovfs over a store, and on virtiofsd 1.14.0, whose measured behaviour must
//! show, so that it is known that the probe bites.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ovfs_compat_tests::daemon::{ovfs_bin, patience, virtiofsd_bin};
use ovfs_compat_tests::fuse::{Body, InitRequest, ROOT, init, op};
use ovfs_compat_tests::guest::Guest;
use ovfs_compat_tests::hostile::{Session, Target};
use ovfs_compat_tests::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor};
use ovfs_compat_tests::vhost_user::wait_readable;

macro_rules! rows {
    ($($name:ident)*) => {
        mod passthrough {
            $(#[test] fn $name() {
                super::$name(&super::Target::passthrough(super::ovfs_bin(), &["--sandbox", "none"]));
            })*
        }
        mod confined_with_pool {
            $(#[test] fn $name() {
                super::$name(&super::Target::passthrough(super::ovfs_bin(), &["--thread-pool-size", "4"]));
            })*
        }
        mod store {
            $(#[test] fn $name() { super::$name(&super::Target::backend(super::ovfs_bin(), "memory://")); })*
        }
        mod virtiofsd {
            $(#[test] fn $name() { super::$name(&super::Target::virtiofsd(super::virtiofsd_bin())); })*
        }
    };
}

rows! {
    n1_dot_names n2_paths_as_names n3_empty_name n4_names_without_end n5_long_names n6_names_that_are_not_utf8
    n7_make_outside n8_unlink_outside n9_symlink_outside n10_bad_names_in_every_operation
    f1_before_init f2_init_twice f3_init_values f4_init_truncated f5_header_lengths f6_header_length_4g
    f7_unknown_opcodes f8_forged_nodes f9_forged_handles f10_forget_the_root f11_forget_too_much
    f12_readdir_extremes f13_read_4g f14_read_beyond_2_63 f15_write_more_than_sent f16_write_at_the_end
    f17_no_room_for_a_reply f18_truncated_arguments
    x1_setxattr_longer_than_sent x2_getxattr_4g x3_listxattr_4g
    r1_descriptors_outside_memory r2_chain_without_end r3_indices_beyond_the_ring r4_empty_chain
    r5_nested_indirect r6_indirect_table_of_odd_length r7_indirect_table_of_4g r8_indirect_table_outside_memory
    r9_one_head_many_times r10_available_index_jumps r11_spurious_kicks r12_overlapping_giants
    r13_exchanged_directions r14_request_changes_under_way
    l1_descriptor_limit s1_special_files
}

const EXIT: &[&str] = &["exit 1"];
const INVALID: &[&str] = &["EINVAL"];
/// What a chain may end in that cannot be trusted to hold a reply, or can only partly.
const REFUSED: &[&str] = &["used 0", "EINVAL", "EIO"];

fn lookup(s: &mut Session, name: &[u8]) -> String {
    s.request(op::LOOKUP, ROOT, &Body::new().name(name).0, 128)
}

fn n1_dot_names(target: &Target) {
    let mut s = Session::start(target, &[]);
    for name in [".", ".."] {
        let outcome = lookup(&mut s, name.as_bytes());
        s.judge(name, &outcome, INVALID, &["ok"]);
    }
    s.finish();
}

fn n2_paths_as_names(target: &Target) {
    let mut s = Session::start(target, &[]);
    for name in ["d/..", "d/a", "/etc/passwd", "../outside", "../share/f", "/", "d/", "f/"] {
        let outcome = lookup(&mut s, name.as_bytes());
        s.judge(name, &outcome, INVALID, &["ok", "ENOENT", "ENOTDIR"]);
    }
    s.finish();
}

fn n3_empty_name(target: &Target) {
    let mut s = Session::start(target, &[]);
    let outcome = lookup(&mut s, b"");
    s.judge("the empty name", &outcome, &["EINVAL", "ENOENT"], &["ENOENT"]);
    s.finish();
}

fn n4_names_without_end(target: &Target) {
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

fn n5_long_names(target: &Target) {
    let mut s = Session::start(target, &[]);
    for (len, errno) in [(255, "ENOENT"), (256, "ENAMETOOLONG"), (4000, "ENAMETOOLONG")] {
        let outcome = lookup(&mut s, &vec![b'n'; len]);
        s.judge(&format!("{len} bytes"), &outcome, &[errno], &[errno]);
    }
    s.finish();
}

fn n6_names_that_are_not_utf8(target: &Target) {
    let mut s = Session::start(target, &[]);
    let outcome = lookup(&mut s, b"\xff\xfe");
    s.judge("LOOKUP", &outcome, &["ENOENT"], &["ENOENT"]);
    let arg = Body::new().u32s(&[libc::O_CREAT as u32 | 2, 0o100644, 0, 0]).name(b"\xff\xfe").0;
    let outcome = s.request(op::CREATE, ROOT, &arg, 144);
    let want: &[&str] = if s.target.passthrough { &["ok"] } else { &["EILSEQ", "EINVAL"] };
    s.judge("CREATE", &outcome, want, &["ok"]);
    s.finish();
}

fn n7_make_outside(target: &Target) {
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

fn n8_unlink_outside(target: &Target) {
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

fn n9_symlink_outside(target: &Target) {
    let mut s = Session::start(target, &[]);
    let outside = s.share.surroundings().join("planted");
    let arg = Body::new().name(outside.as_os_str().as_encoded_bytes()).name(b"x").0;
    let outcome = s.request(op::SYMLINK, ROOT, &arg, 128);
    s.judge("SYMLINK", &outcome, INVALID, &["ENOENT"]);
    let planted = outside.symlink_metadata().is_ok();
    s.judge("the link outside", if planted { "made" } else { "absent" }, &["absent"], &["made"]);
    s.finish();
}

fn n10_bad_names_in_every_operation(target: &Target) {
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

fn f1_before_init(target: &Target) {
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

fn f2_init_twice(target: &Target) {
    let mut s = Session::start(target, &[]);
    let outcome = s.request(op::INIT, 0, &InitRequest::default().encode(), 64);
    s.judge("the second INIT", &outcome, &["ok", "EIO"], &["ok"]);
    let data = s.guest().read_file("f").unwrap();
    assert_eq!(data, b"hello world");
    s.finish();
}

fn f3_init_values(target: &Target) {
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

fn f4_init_truncated(target: &Target) {
    let mut s = Session::start(target, &[]);
    for len in [0, 4, 15] {
        s.restart(false);
        let outcome = s.request(op::INIT, 0, &InitRequest::default().encode()[..len], 64);
        s.judge(&format!("{len} bytes"), &outcome, INVALID, EXIT);
    }
    s.restart(true);
    s.finish();
}

fn f5_header_lengths(target: &Target) {
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

fn f6_header_length_4g(target: &Target) {
    let mut s = Session::start(target, &[]);
    for opcode in [op::LOOKUP, op::WRITE, op::BATCH_FORGET, op::SETXATTR, op::IOCTL] {
        let mut header = s.header(opcode, ROOT, 0);
        header.len = u32::MAX;
        let outcome = s.send(header.unique, &[&header.encode(), &[0; 100]], 144);
        s.judge(&format!("opcode {opcode}"), &outcome, &["EINVAL", "ENOMEM", "ENOSYS", "used 0"], &[]);
    }
    s.finish();
}

fn f7_unknown_opcodes(target: &Target) {
    let mut s = Session::start(target, &[]);
    for opcode in [0, 7, 19, 60, 100, 4095, 4096, 1 << 31, u32::MAX] {
        let outcome = s.request(opcode, ROOT, &[0; 64], 128);
        s.judge(&format!("opcode {opcode}"), &outcome, &["ENOSYS"], &["ENOSYS"]);
    }
    s.finish();
}

fn f8_forged_nodes(target: &Target) {
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

fn f9_forged_handles(target: &Target) {
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

fn f10_forget_the_root(target: &Target) {
    let mut s = Session::start(target, &[]);
    for count in [1, 2, u64::MAX, u64::MAX] {
        s.guest().forget(ROOT, count).unwrap();
    }
    let outcome = s.request(op::GETATTR, ROOT, &[0; 16], 104);
    s.judge("GETATTR of the root", &outcome, &["ok"], &["EBADF"]);
    s.finish();
}

fn f11_forget_too_much(target: &Target) {
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

fn f12_readdir_extremes(target: &Target) {
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

fn f13_read_4g(target: &Target) {
    let mut s = Session::start(target, &[]);
    let f = s.guest().resolve("f").unwrap();
    let fh = s.guest().open(f, libc::O_RDONLY).unwrap().fh;
    for size in [u32::MAX, 1 << 31, 1 << 21] {
        let outcome = s.request(op::READ, f, &Guest::read_arg(fh, 0, size), 1 << 16);
        s.judge(&format!("READ of {size}"), &outcome, &["ok"], &["ok"]);
    }
    s.finish();
}

fn f14_read_beyond_2_63(target: &Target) {
    let mut s = Session::start(target, &[]);
    for offset in [1 << 63, u64::MAX, u64::MAX - 4096] {
        let f = s.guest().resolve("f").unwrap();
        let fh = s.guest().open(f, libc::O_RDWR).unwrap().fh;
        let outcome = s.request(op::READ, f, &Guest::read_arg(fh, offset, 16), 16);
        s.judge(&format!("READ at {offset:#x}"), &outcome, INVALID, &["hang"]);
    }
    s.finish();
}

fn f15_write_more_than_sent(target: &Target) {
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

fn f16_write_at_the_end(target: &Target) {
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

fn f17_no_room_for_a_reply(target: &Target) {
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

fn f18_truncated_arguments(target: &Target) {
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

fn x1_setxattr_longer_than_sent(target: &Target) {
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

fn x2_getxattr_4g(target: &Target) {
    huge_xattr(target, op::GETXATTR, b"user.a\0");
}

fn x3_listxattr_4g(target: &Target) {
    huge_xattr(target, op::LISTXATTR, b"");
}

/// A STATFS request in memory of its own: (unique, request address, reply address); the reply takes 96 bytes.
fn statfs_in_memory(s: &mut Session) -> (u64, u64, u64) {
    let header = s.header(op::STATFS, ROOT, 0);
    let (region, at) = s.alloc(0x2000);
    region.write(at, &header.encode());
    (header.unique, at, at + 0x1000)
}

fn readable(addr: u64, len: u32, next: u16) -> Descriptor {
    Descriptor { addr, len, flags: DESC_NEXT, next }
}

fn writable(addr: u64, len: u32) -> Descriptor {
    Descriptor { addr, len, flags: DESC_WRITE, next: 0 }
}

fn r1_descriptors_outside_memory(target: &Target) {
    let mut s = Session::start(target, &[]);
    // A request that cannot be read has no `unique`.
    let want = [REFUSED, &["EIO for unique 0"]].concat();
    for addr in [0, 0x10, u64::MAX - 16, u64::MAX, 1 << 63] {
        let (unique, _, reply) = statfs_in_memory(&mut s);
        let outcome = s.send_table(unique, &[readable(addr, 40, 1), writable(reply, 96)]);
        s.judge(&format!("request at {addr:#x}"), &outcome, &want, EXIT);
        let (unique, at, _) = statfs_in_memory(&mut s);
        let outcome = s.send_table(unique, &[readable(at, 40, 1), writable(addr, 96)]);
        s.judge(&format!("reply at {addr:#x}"), &outcome, REFUSED, EXIT);
    }
    let end = s.guest().frontend.region().gpa() + s.guest().frontend.region().size();
    let (unique, at, _) = statfs_in_memory(&mut s);
    let outcome = s.send_table(unique, &[readable(at, 40, 1), readable(end - 8, 4096, 2), writable(at + 0x1000, 96)]);
    s.judge("a descriptor across the end of memory", &outcome, REFUSED, EXIT);
    s.finish();
}

fn r2_chain_without_end(target: &Target) {
    let mut s = Session::start(target, &[]);
    let (unique, at, reply) = statfs_in_memory(&mut s);
    let outcome = s.send_table(unique, &[readable(at, 40, 0)]);
    s.judge("a descriptor that follows itself", &outcome, REFUSED, EXIT);
    let (unique, at, _) = statfs_in_memory(&mut s);
    let outcome = s.send_table(unique, &[readable(at, 40, 1), readable(at, 4096, 0)]);
    s.judge("two that follow each other", &outcome, REFUSED, EXIT);
    let looping = Descriptor { flags: DESC_NEXT | DESC_WRITE, ..readable(reply, 0, 1) };
    let outcome = s.send_table(unique, &[readable(at, 40, 1), looping]);
    s.judge("an empty writable one that follows itself", &outcome, REFUSED, &[]);
    s.finish();
}

fn r3_indices_beyond_the_ring(target: &Target) {
    let mut s = Session::start(target, &[]);
    let (unique, at, _) = statfs_in_memory(&mut s);
    for next in [512, 0x7fff, 0xffff] {
        let outcome = s.send_table(unique, &[readable(at, 40, next)]);
        s.judge(&format!("next {next}"), &outcome, REFUSED, EXIT);
    }
    // Such a head cannot be completed; what follows it must be.
    for head in [512, 0x7fff, 0xffff] {
        let queue = s.guest().frontend.queue(1);
        queue.ring().push(head);
        queue.kick_if_wanted().unwrap();
        let outcome = s.request(op::STATFS, ROOT, &[], 80);
        s.judge(&format!("a request behind head {head}"), &outcome, &["ok"], EXIT);
    }
    s.finish();
}

fn r4_empty_chain(target: &Target) {
    let mut s = Session::start(target, &[]);
    let (unique, at, reply) = statfs_in_memory(&mut s);
    let outcome = s.send_table(unique, &[Descriptor { flags: 0, ..readable(at, 0, 0) }]);
    s.judge("one empty descriptor", &outcome, &["used 0"], EXIT);
    let outcome = s.send_table(unique, &[writable(reply, 96)]);
    s.judge("nothing readable", &outcome, REFUSED, EXIT);
    s.finish();
}

fn indirect(target: &Target, probe: impl Fn(&mut Session, u64, u64, u64) -> (String, Descriptor)) {
    let mut s = Session::start(target, &[]);
    let (unique, at, reply) = statfs_in_memory(&mut s);
    let (region, table) = s.alloc(0x1000);
    region.write(table, &readable(at, 40, 1).encode());
    region.write(table + 16, &writable(reply, 96).encode());
    let (what, entry) = probe(&mut s, table, at, reply);
    let outcome = s.send_table(unique, &[entry]);
    s.judge(&what, &outcome, REFUSED, EXIT);
    s.finish();
}

fn table_at(addr: u64, len: u32) -> Descriptor {
    Descriptor { addr, len, flags: DESC_INDIRECT, next: 0 }
}

fn r5_nested_indirect(target: &Target) {
    indirect(target, |s, table, _, _| {
        let region = s.guest().frontend.region().clone();
        region.write(table + 32, &table_at(table, 32).encode());
        ("a table in a table".into(), table_at(table + 32, 16))
    });
}

fn r6_indirect_table_of_odd_length(target: &Target) {
    for len in [0, 1, 15, 17, 33] {
        indirect(target, |_, table, _, _| (format!("a table of {len} bytes"), table_at(table, len)));
    }
}

fn r7_indirect_table_of_4g(target: &Target) {
    indirect(target, |_, table, _, _| ("a table of 4 GiB".into(), table_at(table, u32::MAX - 15)));
}

fn r8_indirect_table_outside_memory(target: &Target) {
    for addr in [0x10, u64::MAX - 31, 1 << 63] {
        indirect(target, |_, _, _, _| (format!("a table at {addr:#x}"), table_at(addr, 32)));
    }
}

fn r9_one_head_many_times(target: &Target) {
    let mut s = Session::start(target, &[]);
    let (unique, at, reply) = statfs_in_memory(&mut s);
    let queue = s.guest().frontend.queue(1);
    queue.ring().set_descriptor(7, &readable(at, 40, 8));
    queue.ring().set_descriptor(8, &writable(reply, 96));
    for _ in 0..256 {
        queue.ring().push(7);
    }
    queue.kick_if_wanted().unwrap();
    let used = queue.wait_used(256).unwrap();
    assert!(used.iter().all(|&entry| entry == (7, 96)), "{used:?}");
    assert_eq!(queue.region().bytes(reply + 8, 8), unique.to_le_bytes());
    s.guest().frontend.restart_queue(1).unwrap();
    s.finish();
}

fn r10_available_index_jumps(target: &Target) {
    let mut s = Session::start(target, &[]);
    let queue = s.guest().frontend.queue(1);
    let jumped = queue.ring().avail_idx().wrapping_add(20_000);
    queue.ring().force_avail_idx(jumped);
    queue.kick().unwrap();
    if s.wanted() {
        let queue = s.guest().frontend.queue(1);
        let err = queue.err_fd().as_raw_fd();
        assert!(wait_readable(&[err], patience()).unwrap()[0], "a broken ring is reported");
        assert!(queue.err_signalled());
        // Kicking on must not make it busy or talkative.
        for _ in 0..1000 {
            queue.kick().unwrap();
        }
        // The other queue and the control channel go on; a driver that resets the ring gets a working one.
        s.guest().forget(12345, 1).unwrap();
        s.guest().frontend.restart_queue(1).unwrap();
    } else {
        let deadline = Instant::now() + patience();
        while s.daemon().log_len() < 1 << 20 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(s.daemon().log_len() >= 1 << 20, "virtiofsd 1.14.0 floods its log");
    }
    s.finish();
}

fn r11_spurious_kicks(target: &Target) {
    let mut s = Session::start(target, &[]);
    let mut kick = std::fs::File::from(s.guest().frontend.queue(1).kick_fd().try_clone_to_owned().unwrap());
    for _ in 0..20_000 {
        // A full counter is a kick as good as any.
        let _ = kick.write_all(&1u64.to_ne_bytes());
    }
    let outcome = s.request(op::STATFS, ROOT, &[], 80);
    s.judge("a request afterwards", &outcome, &["ok"], &["ok"]);
    s.finish();
}

fn r12_overlapping_giants(target: &Target) {
    let mut s = Session::start(target, &[]);
    let f = s.guest().resolve("f").unwrap();
    let fh = s.guest().open(f, libc::O_RDONLY).unwrap().fh;
    let arg = Guest::read_arg(fh, 0, u32::MAX);
    let header = s.header(op::READ, f, arg.len());
    const GIANT: u64 = 24 << 20;
    let (region, giant) = s.alloc(GIANT);
    let (_, at) = s.alloc(0x1000);
    region.write(at, &[header.encode(), arg].concat());
    let mut table = vec![readable(at, 80, 1)];
    for next in 2..=256u16 {
        table.push(Descriptor { addr: giant, len: GIANT as u32, flags: DESC_WRITE | DESC_NEXT, next });
    }
    table.push(writable(giant, 4096));
    let outcome = s.send_table(header.unique, &table);
    s.judge("READ into 6 GiB of overlapping buffers", &outcome, &["ok", "EINVAL", "EIO", "used 0"], &[]);
    s.finish();
}

fn r13_exchanged_directions(target: &Target) {
    let mut s = Session::start(target, &[]);
    // Where the readable part begins is anybody's guess, so `unique` may be unknown.
    let want = [REFUSED, &["EINVAL for unique 0"]].concat();
    let (unique, at, reply) = statfs_in_memory(&mut s);
    let header = Descriptor { flags: DESC_WRITE | DESC_NEXT, ..readable(at, 40, 1) };
    let outcome = s.send_table(unique, &[header, Descriptor { flags: 0, ..writable(reply, 96) }]);
    s.judge("header writable, reply readable", &outcome, &want, &[]);
    let (unique, at, reply) = statfs_in_memory(&mut s);
    let first = Descriptor { flags: DESC_WRITE | DESC_NEXT, next: 1, ..writable(reply, 96) };
    let outcome = s.send_table(unique, &[first, Descriptor { flags: 0, ..readable(at, 40, 0) }]);
    s.judge("reply before the request", &outcome, &want, &[]);
    s.finish();
}

fn r14_request_changes_under_way(target: &Target) {
    let mut s = Session::start(target, &["--xattr"]);
    let (region, at) = s.alloc(0x3000);
    let stop = AtomicBool::new(false);
    let names: [&[u8]; 6] = [b"f\0", b"..", b"/\0", b"\0\0", b"a/", b"ab"];
    let mut failures = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0usize;
            while !stop.load(Ordering::Relaxed) {
                region.write(at + 40, names[round % names.len()]);
                // Length and opcode change too; `unique` stays, since the reply is matched by it.
                let len: u32 = [42, 41, 40, 0, 4096, u32::MAX][round % 6];
                region.write(at, &len.to_le_bytes());
                let opcode = [op::LOOKUP, op::MKDIR, op::UNLINK, op::GETATTR, op::SYMLINK][round % 5];
                region.write(at + 4, &opcode.to_le_bytes());
                round += 1;
            }
        });
        let rounds = if s.wanted() { 3000 } else { 0 };
        for _ in 0..rounds {
            let header = s.header(op::LOOKUP, ROOT, 2);
            region.write(at, &header.encode());
            let outcome = s.send_table(header.unique, &[readable(at, 42, 1), writable(at + 0x1000, 4096)]);
            if outcome == "hang" || outcome.starts_with("exit") || outcome.starts_with("bad reply") {
                failures.push(outcome);
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(failures.is_empty(), "{failures:?}");
    // The probe may well have removed the file.
    s.guest().write_file("f", b"hello world").unwrap();
    s.finish();
}

fn l1_descriptor_limit(target: &Target) {
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

fn s1_special_files(target: &Target) {
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
