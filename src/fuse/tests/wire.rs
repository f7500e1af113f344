//! Bytes in and bytes out, opcode by opcode.

use super::super::abi::{
    AttrOut, Dirent, EntryOut, GetxattrOut, Kstatfs, LseekOut, Opcode, OpenOut, SetattrIn, WriteOut,
};
use super::super::flags::{init, setattr};
use super::*;

/// The request must reach the file system as `call` and come back without an error.
fn check(request: &Request, call: &str) -> Reply {
    check_on(&plain(), request, call)
}

fn check_on(server: &Server<Probe>, request: &Request, call: &str) -> Reply {
    let reply = ask(server, request);
    assert_eq!(reply.error, 0, "{request:?}");
    assert_eq!(server.fs().calls(), [call]);
    reply
}

fn check_empty(request: &Request, call: &str) {
    assert!(check(request, call).data.is_empty());
}

const NO_EXT: &str = "Extensions { security: None, groups: [] }";

#[test]
fn lookup_answers_an_entry() {
    let reply = check(&Request::new(Opcode::Lookup, 9).name("a name"), "lookup 9 a name");
    let out: EntryOut = reply.at(0);
    assert_eq!(reply.data.len(), 128);
    assert_eq!((out.nodeid, out.generation), (42, 0));
    assert_eq!((out.entry_valid, out.entry_valid_nsec), (1, 1_000_000));
    assert_eq!((out.attr_valid, out.attr_valid_nsec), (2, 2_000_000));
    assert_eq!((out.attr.ino, out.attr.atime, out.attr.flags), (1, -4, 16));
    let words: Vec<u32> =
        reply.data[88..128].chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
    assert_eq!(words, [7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
}

#[test]
fn getattr_and_setattr_answer_attributes() {
    let reply = check(&Request::new(Opcode::Getattr, 9).with([1u32, 0]).with(77u64), "getattr 9 Some(Handle(77))");
    let out: AttrOut = reply.at(0);
    assert_eq!((reply.data.len(), out.attr_valid, out.attr_valid_nsec, out.attr.size), (104, 3, 3_000_000, 2));
    check(&Request::new(Opcode::Getattr, 9).with([0u32, 0]).with(77u64), "getattr 9 None");

    let wire = SetattrIn {
        valid: setattr::SIZE | setattr::ATIME | setattr::ATIME_NOW | setattr::MTIME | setattr::MODE | setattr::FH,
        fh: 77,
        size: 1 << 40,
        mtime: -5,
        mtimensec: 999_999_999,
        mode: 0o106_755,
        uid: 3,
        ..SetattrIn::default()
    };
    check(
        &Request::new(Opcode::Setattr, 9).with(wire),
        "setattr 9 SetAttr { handle: Some(Handle(77)), size: Some(1099511627776), atime: Some(Now), \
         mtime: Some(At(-5, 999999999)), ctime: None, mode: Some(3565), uid: None, gid: None, lock_owner: None, \
         kill_suid_gid: false }",
    );
}

#[test]
fn what_creates_carries_every_field() {
    let mut mknod = Request::new(Opcode::Mknod, 9).with([0o20_600u32, 5, 0o22, 0]).name("dev");
    (mknod.header.uid, mknod.header.gid) = (1000, 100);
    check(&mknod, &format!("mknod 1000:100 9 dev 20600 5 22 {NO_EXT}"));
    check(&Request::new(Opcode::Mkdir, 9).with([0o755u32, 0o22]).name("d"), &format!("mkdir 9 d 755 22 {NO_EXT}"));
    check(&Request::new(Opcode::Symlink, 9).name("n").name("../t"), &format!("symlink 9 n -> ../t {NO_EXT}"));
    check(&Request::new(Opcode::Link, 9).with(5u64).name("n"), "link 5 -> 9 n");

    let create = Request::new(Opcode::Create, 9).with([0o102u32, 0o644, 0o22, 1]).name("f");
    let reply = check(&create, &format!("create 9 f 644 0o102 22 true {NO_EXT}"));
    assert_eq!(reply.data.len(), 144);
    assert_eq!(reply.at::<EntryOut>(0).nodeid, 42);
    assert_eq!(reply.at::<OpenOut>(128), OpenOut { fh: 77, open_flags: 2, padding: 0 });
}

#[test]
fn extensions_follow_the_name() {
    let group = [[16 + 4u32 + 4, 32], [1, 1000]];
    let mut request = Request::new(Opcode::Mkdir, 9).with([0o755u32, 0]).name("d").with([24u32, 32]);
    request = request.with([3u32, 1000]).with([1001u32, 1002]);
    assert_eq!(group.len(), 2);
    check(&request, "mkdir 9 d 755 0 Extensions { security: None, groups: [1000, 1001, 1002] }");

    let server = serving(init::SECURITY_CTX, ServerOptions::default());
    let context = Request::new(Opcode::Symlink, 9).name("n").name("t").with([40u32, 1]).with([6u32, 0]);
    let context = context.name("security.selinux").raw("label\0\0");
    check_on(
        &server,
        &context,
        &format!(
            "symlink 9 n -> t Extensions {{ security: Some(({:?}, {:?})), groups: [] }}",
            b"security.selinux", b"label\0"
        ),
    );
    assert_errno(&server, &Request::new(Opcode::Symlink, 9).name("n").name("t"), Errno::EINVAL);
}

#[test]
fn what_removes_or_renames_answers_nothing() {
    check_empty(&Request::new(Opcode::Unlink, 9).name("n"), "unlink 9 n");
    check_empty(&Request::new(Opcode::Rmdir, 9).name("n"), "rmdir 9 n");
    check_empty(&Request::new(Opcode::Rename, 9).with(5u64).name("a").name("b"), "rename 9 a -> 5 b 0");
    let rename2 = Request::new(Opcode::Rename2, 9).with(5u64).with([0xffff_fff9u32, 0]).name("a").name("b");
    check_empty(&rename2, "rename 9 a -> 5 b 1");
}

#[test]
fn open_and_release() {
    let reply = check(&Request::new(Opcode::Open, 9).with([0o1302u32, 1]), "open 9 0o1002 true");
    assert_eq!(reply.data, OpenOut { fh: 77, open_flags: 2, padding: 0 }.to_bytes());
    check(&Request::new(Opcode::Opendir, 9).with([0o200_000u32, 0]), "opendir 9 0o200000");
    let release = |opcode, flags| Request::new(opcode, 9).with(77u64).with([4u32, flags]).with(8u64);
    check_empty(&release(Opcode::Release, 0), "release 9 77 4 None false");
    check_empty(&release(Opcode::Release, 1), "release 9 77 4 Some(8) false");
    check_empty(&release(Opcode::Release, 2), "release 9 77 4 Some(8) true");
    check_empty(&release(Opcode::Releasedir, 1), "releasedir 9 77 4");
    check_empty(&Request::new(Opcode::Flush, 9).with(77u64).with(0u64).with(8u64), "flush 9 77 8");
    check_empty(&Request::new(Opcode::Fsync, 9).with(77u64).with([1u32, 0]), "fsync 9 77 true");
    check_empty(&Request::new(Opcode::Fsyncdir, 9).with(77u64).with([2u32, 0]), "fsyncdir 9 77 false");
}

#[test]
fn read_and_write_move_data() {
    let read = Request::new(Opcode::Read, 9).with(77u64).with(16u64).with([100u32, 2]).with(8u64).with([5u32, 0]);
    let reply = check(
        &read,
        "Read { nodeid: NodeId(9), handle: Handle(77), offset: 16, size: 100, lock_owner: Some(8), flags: 5 }",
    );
    assert_eq!(reply.data, b"hello");

    let write = Request::new(Opcode::Write, 9).with(77u64).with(16u64).with([3u32, 5]).with(8u64).with([6u32, 0]);
    let reply = check(
        &write.raw("abcdef"),
        "Write { nodeid: NodeId(9), handle: Handle(77), offset: 16, size: 3, lock_owner: None, delayed: true, \
         kill_priv: true, flags: 6 } abc",
    );
    assert_eq!(reply.data, WriteOut { size: 3, padding: 0 }.to_bytes());
}

#[test]
fn read_is_clamped_to_the_room() {
    let server = plain();
    let (buffer, used) = serve_bytes(&server, &sample(Opcode::Read).bytes(), 16 + 3);
    assert_eq!(Reply::parse(&buffer, used, 0x5eed).data, b"hel");
    let huge = Request::new(Opcode::Read, 9).with(77u64).with(0u64).with([u32::MAX - 1, 0]).with(0u64).with(0u64);
    assert_eq!(ask(&server, &huge).data, b"hello");
}

#[test]
fn directories_are_packed_into_what_the_guest_asked_for() {
    let list = |opcode, size| Request::new(opcode, 9).with(77u64).with(u64::MAX).with([size, 0u32]).with([0u32; 4]);
    let reply = check(&list(Opcode::Readdir, 70), "readdir 9 77 18446744073709551615 70");
    assert_eq!(reply.data.len(), 64);
    assert_eq!(reply.at::<Dirent>(32), Dirent { ino: 1, off: 2, namelen: 4, kind: 8 });
    assert_eq!(&reply.data[56..64], b"name\0\0\0\0");
    let reply = check(&list(Opcode::Readdirplus, 330), "readdirplus 9 77 18446744073709551615 330");
    assert_eq!(reply.data.len(), 320);
    assert_eq!(reply.at::<EntryOut>(160).nodeid, 42);
    assert_eq!(reply.at::<Dirent>(288).ino, 1);
    assert!(check(&list(Opcode::Readdir, 0), "readdir 9 77 18446744073709551615 0").data.is_empty());
    assert_errno(&plain(), &list(Opcode::Readdir, u32::MAX), Errno::ENOMEM);
}

#[test]
fn entries_with_lookup_counts_are_never_thrown_away() {
    let server = plain();
    *server.fs().error.lock().unwrap() = Some(Errno::EACCES);
    assert_errno(&server, &sample(Opcode::Readdir), Errno::EACCES);
    assert!(!ask(&server, &sample(Opcode::Readdirplus)).data.is_empty());
}

#[test]
fn attributes_in_both_forms() {
    let short = Request::new(Opcode::Setxattr, 9).with([3u32, 2]).name("user.a/b").raw("v\0w");
    let long = Request::new(Opcode::Setxattr, 9).with([3u32, 2, 1, 0]).name("user.a/b").raw("v\0w");
    check_empty(&short, "setxattr 9 user.a/b=v\\x00w 2 0");
    assert_errno(&plain(), &long, Errno::EINVAL);
    let extended = || serving(init::SETXATTR_EXT, ServerOptions::default());
    check_on(&extended(), &long, "setxattr 9 user.a/b=v\\x00w 2 1");
    assert_ne!(errno(&extended(), &short), 0);

    let get = |size| Request::new(Opcode::Getxattr, 9).with([size, 0u32]).name("user.a");
    assert_eq!(check(&get(0), "getxattr 9 user.a 0").data, GetxattrOut { size: 5, padding: 0 }.to_bytes());
    assert_eq!(check(&get(5), "getxattr 9 user.a 5").data, b"value");
    check(&get(1 << 20), "getxattr 9 user.a 65536");
    assert_errno(&plain(), &get(u32::MAX - 15), Errno::ENOMEM);
    let list = |size| Request::new(Opcode::Listxattr, 9).with([size, 0u32]);
    assert_eq!(check(&list(0), "listxattr 9 0").data, GetxattrOut { size: 7, padding: 0 }.to_bytes());
    assert_eq!(check(&list(100), "listxattr 9 100").data, b"user.a\0");
    assert_errno(&plain(), &list(u32::MAX), Errno::ENOMEM);
    check_empty(&Request::new(Opcode::Removexattr, 9).name("user.a"), "removexattr 9 user.a");

    let server = plain();
    let (buffer, used) = serve_bytes(&server, &get(100).bytes(), 16 + 4);
    assert_eq!(Reply::parse(&buffer, used, 0x5eed).error, -libc::ERANGE);
}

#[test]
fn the_rest() {
    assert_eq!(check(&Request::new(Opcode::Readlink, 9), "readlink 9").data, b"target");
    let stat: Kstatfs = check(&Request::new(Opcode::Statfs, 9), "statfs 9").at(0);
    assert_eq!((stat.blocks, stat.ffree, stat.bsize, stat.namelen, stat.frsize), (1, 5, 6, 7, 8));
    check_empty(&Request::new(Opcode::Access, 9).with([4u32, 0]), "access 9 4");
    check_empty(&Request::new(Opcode::Syncfs, 9).with(0u64), "syncfs 9");
    check_empty(&Request::new(Opcode::Syncfs, 9), "syncfs 9");
    let at = |offset| format!("FileAt {{ nodeid: NodeId(9), handle: Handle(77), offset: {offset} }}");
    let seek = Request::new(Opcode::Lseek, 9).with(77u64).with(16u64).with([4u32, 0]);
    assert_eq!(check(&seek, &format!("lseek {} 4", at(16))).data, LseekOut { offset: 99 }.to_bytes());
    let fallocate = Request::new(Opcode::Fallocate, 9).with(77u64).with(16u64).with(32u64).with([3u32, 0]);
    check_empty(&fallocate, &format!("fallocate {} 32 3", at(16)));
    let copy = |len| {
        [77, 16, 5, 78, 17, len, 0].into_iter().fold(Request::new(Opcode::CopyFileRange, 9), |r, v: u64| r.with(v))
    };
    let to = "FileAt { nodeid: NodeId(5), handle: Handle(78), offset: 17 }";
    let reply = check(&copy(100), &format!("copy {} {to} 100 0", at(16)));
    assert_eq!(reply.data, WriteOut { size: 88, padding: 0 }.to_bytes());
    check(&copy(u64::MAX), &format!("copy {} {to} {} 0", at(16), 0x7fff_f000));
}

#[test]
fn every_opcode_is_served_or_refused_as_a_whole() {
    for opcode in Opcode::ALL {
        let server = plain();
        let (buffer, used) = serve_bytes(&server, &sample(*opcode).bytes(), 1 << 16);
        if opcode.is_without_reply() {
            assert_eq!(used, 0, "{opcode:?}");
        } else {
            let expected = if opcode.is_unsupported() { Errno::ENOSYS.raw() } else { 0 };
            let expected = if *opcode == Opcode::CopyFileRange { 0 } else { expected };
            let reply = Reply::parse(&buffer, used, 0x5eed);
            assert_eq!(-reply.error, expected, "{opcode:?}");
        }
    }
}

#[test]
fn no_reply_to_what_has_none() {
    let server = plain();
    let silent = |request: &Request| assert_eq!(serve_bytes(&server, &request.bytes(), 4096).1, 0);
    silent(&Request::new(Opcode::Forget, 9).with(3u64));
    silent(&Request::new(Opcode::Interrupt, 0).with(5u64));
    silent(&sample(Opcode::BatchForget));
    assert_eq!(server.fs().calls(), ["forget 9 3", "forget 5 1", "forget 6 2"]);
    silent(&Request::new(Opcode::Destroy, 0));
    silent(&Request::new(Opcode::Destroy, 0));
    assert_eq!(server.fs().calls(), ["destroy"]);
}

#[test]
fn errors_come_back_negated() {
    let server = plain();
    *server.fs().error.lock().unwrap() = Some(Errno::ENOSPC);
    for opcode in Opcode::ALL {
        if opcode.is_without_reply() || opcode.is_unsupported() || *opcode == Opcode::Readdirplus {
            continue;
        }
        if *opcode == Opcode::Init {
            continue;
        }
        assert_errno(&server, &sample(*opcode), Errno::ENOSPC);
    }
}
