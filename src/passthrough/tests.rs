//! A temporary directory through the whole server.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use virtiofsd::passthrough::xattrmap::XattrMap;
use virtiofsd::passthrough::{CachePolicy, Config};

use super::Passthrough;
use crate::fs::{Errno, Migrate};
use crate::fuse::abi::{
    AttrOut, Dirent, EntryOut, Field, InHeader, LseekOut, Opcode, OpenOut, OutHeader, SetattrIn, WriteOut,
};
use crate::fuse::flags::{fopen, init, setattr};
use crate::fuse::testing::{Reply, Request, VecReply, VecSource, now};
use crate::fuse::{Server, ServerOptions};

const ROOT: u64 = 1;

/// A server over a directory of its own, after INIT.
struct Share {
    dir: tempfile::TempDir,
    server: Server<Passthrough>,
}

impl Share {
    fn new() -> Share {
        Share::with(false, |_| ())
    }

    fn with(readonly: bool, configure: impl FnOnce(&mut Config)) -> Share {
        let dir = tempfile::tempdir().unwrap();
        let server = serve(dir.path(), readonly, configure);
        let share = Share { dir, server };
        assert_eq!(share.ask(&Request::init(u64::MAX)).error, 0);
        share
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn ask(&self, request: &Request) -> Reply {
        let buffer = VecReply::new(1 << 16);
        let used = now(self.server.serve(VecSource::new(request.bytes()), buffer.clone()));
        Reply::parse(&buffer, used, request.header.unique)
    }

    fn errno(&self, request: &Request) -> i32 {
        -self.ask(request).error
    }

    fn forget(&self, nodeid: u64, nlookup: u64) {
        let request = Request::new(Opcode::Forget, nodeid).with(nlookup);
        assert_eq!(now(self.server.serve(VecSource::new(request.bytes()), VecReply::new(0))), 0);
    }

    fn lookup(&self, parent: u64, name: &str) -> EntryOut {
        let reply = self.ask(&Request::new(Opcode::Lookup, parent).name(name));
        assert_eq!(reply.error, 0, "{name}");
        reply.at(0)
    }

    fn create(&self, parent: u64, name: &str) -> (u64, u64) {
        let flags = (libc::O_CREAT | libc::O_RDWR).cast_unsigned();
        let reply = self.ask(&Request::new(Opcode::Create, parent).with([flags, 0o640, 0o777, 0]).name(name));
        assert_eq!(reply.error, 0, "{name}");
        (reply.at::<EntryOut>(0).nodeid, reply.at::<OpenOut>(128).fh)
    }

    fn opendir(&self, nodeid: u64) -> u64 {
        self.ask(&Request::new(Opcode::Opendir, nodeid).with([0u32, 0])).at::<OpenOut>(0).fh
    }

    fn read(&self, nodeid: u64, fh: u64, offset: u64, size: u32) -> Reply {
        let request = Request::new(Opcode::Read, nodeid).with(fh).with(offset).with([size, 0]).with([0u32; 4]);
        self.ask(&request)
    }

    fn write(&self, nodeid: u64, fh: u64, offset: u64, flags: i32, data: &[u8]) -> Reply {
        let size = u32::try_from(data.len()).unwrap();
        let request = Request::new(Opcode::Write, nodeid).with(fh).with(offset).with([size, 0]).with(0u64);
        self.ask(&request.with([flags.cast_unsigned(), 0]).raw(data))
    }
}

fn serve(dir: &Path, readonly: bool, configure: impl FnOnce(&mut Config)) -> Server<Passthrough> {
    let mut config = Config { root_dir: dir.to_str().unwrap().into(), ..Config::default() };
    configure(&mut config);
    Server::new(Arc::new(Passthrough::new(config, readonly).unwrap()), ServerOptions { readonly })
}

/// Nodeid, ino, name of each entry, and the cookie after the last one.
fn list(share: &Share, opcode: Opcode, nodeid: u64, fh: u64, size: u32) -> Vec<(u64, u64, String)> {
    let (mut found, mut cookie) = (Vec::new(), 0);
    loop {
        let request = Request::new(opcode, nodeid).with(fh).with(cookie).with([size, 0]).with([0u32; 4]);
        let reply = share.ask(&request);
        assert_eq!(reply.error, 0);
        assert!(reply.data.len() <= size as usize);
        if reply.data.is_empty() {
            return found;
        }
        let mut at = 0;
        while at < reply.data.len() {
            let mut child = 0;
            if opcode == Opcode::Readdirplus {
                child = reply.at::<EntryOut>(at).nodeid;
                at += EntryOut::SIZE;
            }
            let dirent: Dirent = reply.at(at);
            let name = &reply.data[at + Dirent::SIZE..][..dirent.namelen as usize];
            found.push((child, dirent.ino, String::from_utf8(name.to_vec()).unwrap()));
            at += (Dirent::SIZE + name.len()).next_multiple_of(8);
            cookie = dirent.off;
        }
    }
}

#[test]
fn init_answers_virtiofsds_flags() {
    let flags = |configure: fn(&mut Config)| {
        let dir = tempfile::tempdir().unwrap();
        let server = serve(dir.path(), false, configure);
        let buffer = VecReply::new(80);
        let used = now(server.serve(VecSource::new(Request::init(u64::MAX).bytes()), buffer.clone()));
        Reply::parse(&buffer, used, 0x5eed).init_flags()
    };
    let default = 0x104_4844_f829;
    assert_eq!(flags(|_| ()), default);
    assert_eq!(flags(|config| config.readdirplus = false), default & !(init::DO_READDIRPLUS | init::READDIRPLUS_AUTO));
    assert_eq!(flags(|config| config.writeback = true), default | init::WRITEBACK_CACHE);
    assert_eq!(flags(|config| config.killpriv_v2 = true), default | init::HANDLE_KILLPRIV_V2);
    assert_eq!(flags(|config| config.allow_mmap = true), default | init::DIRECT_IO_ALLOW_MMAP);
}

#[test]
fn a_file_from_create_to_unlink() {
    let share = Share::new();
    let (nodeid, fh) = share.create(ROOT, "f");
    assert_eq!(fs::metadata(share.path("f")).unwrap().mode() & 0o7777, 0o640, "the umask is the guest's affair");

    assert_eq!(share.write(nodeid, fh, 0, 0, b"hello world").at::<WriteOut>(0).size, 11);
    assert_eq!(share.write(nodeid, fh, 6, 0, b"there").at::<WriteOut>(0).size, 5);
    assert_eq!(share.write(nodeid, fh, 0, libc::O_APPEND, b"!").at::<WriteOut>(0).size, 1);
    assert_eq!(fs::read(share.path("f")).unwrap(), b"hello there!");
    assert_eq!(share.read(nodeid, fh, 6, 100).data, b"there!");
    assert_eq!(share.read(nodeid, fh, 100, 100).data, b"");
    assert_eq!(share.read(nodeid, fh + 1, 0, 1).error, -libc::EBADF);
    assert_eq!(share.read(ROOT, fh, 0, 1).error, -libc::EBADF, "a handle belongs to its inode");

    let attr: AttrOut = share.ask(&Request::new(Opcode::Getattr, nodeid).with([0u32; 4])).at(0);
    assert_eq!((attr.attr.size, attr.attr_valid), (12, 5));
    let change = SetattrIn {
        valid: setattr::SIZE | setattr::MTIME | setattr::MODE,
        size: 5,
        mtime: 1000,
        mtimensec: 7,
        mode: 0o600,
        ..SetattrIn::default()
    };
    let attr: AttrOut = share.ask(&Request::new(Opcode::Setattr, nodeid).with(change)).at(0);
    assert_eq!((attr.attr.size, attr.attr.mtime, attr.attr.mtimensec), (5, 1000, 7));
    assert_eq!(fs::metadata(share.path("f")).unwrap().permissions().mode() & 0o7777, 0o600);

    for request in [
        Request::new(Opcode::Flush, nodeid).with(fh).with([0u64; 1].map(|zero| zero)[0]).with(0u64),
        Request::new(Opcode::Fsync, nodeid).with(fh).with([1u32, 0]),
        Request::new(Opcode::Fallocate, nodeid).with(fh).with(0u64).with(4096u64).with(0u64),
    ] {
        assert_eq!(share.errno(&request), 0, "{request:?}");
    }
    assert_eq!(fs::metadata(share.path("f")).unwrap().len(), 4096);
    let end = Request::new(Opcode::Lseek, nodeid).with(fh).with(0u64).with([2u32, 0]);
    assert_eq!(share.ask(&end).at::<LseekOut>(0).offset, 4096);

    assert_eq!(share.errno(&Request::new(Opcode::Unlink, ROOT).name("f")), 0);
    assert!(!share.path("f").exists());
    assert_eq!(share.read(nodeid, fh, 0, 5).data, b"hello", "unlinked, still open");
    let release = Request::new(Opcode::Release, nodeid).with(fh).with(0u64).with(0u64);
    assert_eq!(share.errno(&release), 0);
    assert_eq!(share.errno(&release), libc::EBADF);
    share.forget(nodeid, 1);
    assert_eq!(share.errno(&Request::new(Opcode::Getattr, nodeid).with([0u32; 4])), libc::EBADF);
}

#[test]
fn names_and_directories() {
    let share = Share::new();
    let mkdir = |parent, name: &str| Request::new(Opcode::Mkdir, parent).with([0o755u32, 0]).name(name);
    let dir = share.ask(&mkdir(ROOT, "d")).at::<EntryOut>(0).nodeid;
    assert_eq!(share.errno(&mkdir(ROOT, "d")), libc::EEXIST);
    let (file, _) = share.create(dir, "f");
    assert_eq!(share.lookup(dir, "f").nodeid, file);
    assert_eq!(share.errno(&Request::new(Opcode::Lookup, ROOT).name("gone")), libc::ENOENT);
    assert_eq!(share.errno(&Request::new(Opcode::Lookup, file).name("x")), libc::ENOTDIR);
    assert_eq!(share.errno(&Request::new(Opcode::Lookup, 4711).name("x")), libc::EBADF);

    let rename = |flags: u32, from: &str, to: &str| {
        Request::new(Opcode::Rename2, dir).with(ROOT).with([flags, 0]).name(from).name(to)
    };
    assert_eq!(share.errno(&rename(0, "f", "g")), 0);
    assert_eq!(share.lookup(ROOT, "g").nodeid, file);
    fs::write(share.path("d/h"), "h").unwrap();
    assert_eq!(share.errno(&rename(libc::RENAME_NOREPLACE, "h", "g")), libc::EEXIST);
    assert_eq!(share.errno(&Request::new(Opcode::Link, dir).with(file).name("l")), 0);
    assert_eq!(fs::metadata(share.path("d/l")).unwrap().ino(), fs::metadata(share.path("g")).unwrap().ino());
    let symlink = Request::new(Opcode::Symlink, ROOT).name("s").name("/etc/passwd");
    let link = share.ask(&symlink).at::<EntryOut>(0).nodeid;
    assert_eq!(share.ask(&Request::new(Opcode::Readlink, link)).data, b"/etc/passwd");
    assert_eq!(share.errno(&Request::new(Opcode::Open, link).with([0u32, 0])), libc::EBADF);
    let mknod = Request::new(Opcode::Mknod, ROOT).with([libc::S_IFIFO | 0o600, 0, 0, 0]).name("fifo");
    let fifo = share.ask(&mknod).at::<EntryOut>(0).nodeid;
    assert!(fs::metadata(share.path("fifo")).unwrap().file_type().is_fifo());
    assert_eq!(share.errno(&Request::new(Opcode::Open, fifo).with([0u32, 0])), libc::EBADF);
    assert_eq!(share.errno(&Request::new(Opcode::Rmdir, ROOT).name("d")), libc::ENOTEMPTY);
    for name in ["h", "l"] {
        assert_eq!(share.errno(&Request::new(Opcode::Unlink, dir).name(name)), 0);
    }
    assert_eq!(share.errno(&Request::new(Opcode::Rmdir, ROOT).name("d")), 0);
    assert_eq!(share.errno(&Request::new(Opcode::Statfs, ROOT)), 0);
    assert_eq!(share.errno(&Request::new(Opcode::Access, ROOT).with([4u32, 0])), 0);
}

#[test]
fn listings_in_small_pieces_are_complete() {
    let share = Share::new();
    for index in 0..40 {
        fs::write(share.path(&format!("file-{index:02}")), "").unwrap();
    }
    let mut expected: Vec<String> = (0..40).map(|index| format!("file-{index:02}")).collect();
    expected.extend([".".into(), "..".into()]);
    expected.sort();
    let fh = share.opendir(ROOT);
    for (opcode, size) in
        [(Opcode::Readdir, 32), (Opcode::Readdir, 100), (Opcode::Readdirplus, 160), (Opcode::Readdirplus, 4096)]
    {
        let found = list(&share, opcode, ROOT, fh, size);
        let mut names: Vec<String> = found.iter().map(|(_, _, name)| name.clone()).collect();
        names.sort();
        assert_eq!(names, expected, "{opcode:?} {size}");
        for (child, ino, name) in found {
            let is_dot = name.starts_with('.');
            assert_eq!(child == 0, is_dot || opcode == Opcode::Readdir, "{name}");
            if !is_dot {
                assert_eq!(ino, fs::metadata(share.path(&name)).unwrap().ino());
            }
        }
    }
    let tiny = Request::new(Opcode::Readdir, ROOT).with(fh).with(0u64).with([0u32, 0]).with([0u32; 4]);
    assert_eq!(share.ask(&tiny).data, b"");
    let release = Request::new(Opcode::Releasedir, ROOT).with(fh).with(0u64).with(0u64);
    assert_eq!(share.errno(&release), 0);
}

/// Each entry that READDIRPLUS hands out counts as one look-up, no more: forgetting it once ends the inode.
#[test]
fn readdirplus_counts_one_lookup_for_what_it_hands_out() {
    let share = Share::new();
    for name in ["a", "b", "c"] {
        fs::write(share.path(name), "").unwrap();
    }
    let fh = share.opendir(ROOT);
    let found = list(&share, Opcode::Readdirplus, ROOT, fh, 160);
    let children: Vec<u64> = found.iter().map(|(child, ..)| *child).filter(|child| *child != 0).collect();
    assert_eq!(children.len(), 3);
    for child in children {
        let getattr = Request::new(Opcode::Getattr, child).with([0u32; 4]);
        assert_eq!(share.errno(&getattr), 0);
        share.forget(child, 1);
        assert_eq!(share.errno(&getattr), libc::EBADF);
    }
}

#[test]
fn root_survives_being_forgotten() {
    let share = Share::new();
    share.forget(ROOT, u64::MAX);
    crate::fs::FileSystem::forget(&**share.server.fs(), crate::fs::NodeId::ROOT, u64::MAX);
    assert_eq!(share.errno(&Request::new(Opcode::Getattr, ROOT).with([0u32; 4])), 0);
    share.create(ROOT, "f");
}

#[test]
fn a_second_init_wipes_handles_and_inodes() {
    let share = Share::new();
    let (nodeid, fh) = share.create(ROOT, "f");
    assert_eq!(share.ask(&Request::init(u64::MAX)).error, 0);
    assert_eq!(share.read(nodeid, fh, 0, 1).error, -libc::EBADF);
    assert_eq!(share.lookup(ROOT, "f").attr.size, 0);
}

#[test]
fn cache_modes_set_open_flags() {
    for (policy, open, dir) in [
        (CachePolicy::Never, fopen::DIRECT_IO, 0),
        (CachePolicy::Auto, 0, 0),
        (CachePolicy::Metadata, fopen::DIRECT_IO, fopen::CACHE_DIR | fopen::KEEP_CACHE),
        (CachePolicy::Always, fopen::KEEP_CACHE, fopen::CACHE_DIR | fopen::KEEP_CACHE),
    ] {
        let share = Share::with(false, |config| config.cache_policy = policy);
        fs::write(share.path("f"), "").unwrap();
        let file = share.lookup(ROOT, "f").nodeid;
        let flags = |request: Request| share.ask(&request).at::<OpenOut>(0).open_flags;
        assert_eq!(flags(Request::new(Opcode::Open, file).with([0u32, 0])), open);
        assert_eq!(flags(Request::new(Opcode::Opendir, ROOT).with([0u32, 0])), dir);
    }
}

#[test]
fn attributes_are_off_unless_configured() {
    let name = "user.a";
    let set = Request::new(Opcode::Setxattr, ROOT).with([1u32, 0]).name(name).raw("v");
    let get = Request::new(Opcode::Getxattr, ROOT).with([16u32, 0]).name(name);
    let requests = [
        set.clone(),
        get.clone(),
        Request::new(Opcode::Listxattr, ROOT).with([16u32, 0]),
        Request::new(Opcode::Removexattr, ROOT).name(name),
    ];
    let share = Share::new();
    for request in &requests {
        assert_eq!(share.errno(request), libc::ENOSYS, "{request:?}");
    }
    let share = Share::with(false, |config| config.xattr = true);
    assert_eq!(share.errno(&get), libc::ENODATA);
    let acl = Request::new(Opcode::Getxattr, ROOT).with([16u32, 0]).name("system.posix_acl_access");
    assert_eq!(share.errno(&acl), libc::ENOTSUP);
    if share.errno(&set) == 0 {
        assert_eq!(share.ask(&get).data, b"v");
    }
}

#[test]
fn a_map_without_a_last_rule_does_not_end_the_daemon() {
    let map = |rules| Some(XattrMap::try_from(rules).unwrap());
    let share = Share::with(false, |config| {
        config.xattr = true;
        config.xattrmap = map(":prefix:client:security.:user.virtiofs.:");
    });
    let name = "user.unmatched";
    for request in [
        Request::new(Opcode::Getxattr, ROOT).with([16u32, 0]).name(name),
        Request::new(Opcode::Removexattr, ROOT).name(name),
        Request::new(Opcode::Setxattr, ROOT).with([1u32, 0]).name(name).raw("v"),
    ] {
        assert_eq!(share.errno(&request), libc::EOPNOTSUPP, "{request:?}");
    }
    share.create(ROOT, "f");

    let config = Config { xattrmap: map(":prefix:client:trusted.:user.virtiofs.:"), ..Config::default() };
    assert!(Passthrough::new(config, false).is_err());
}

#[test]
fn a_panic_in_the_crate_costs_the_request_only() {
    assert_eq!(super::guarded::<()>(|| panic!("by intent")), Err(Errno::EIO));
}

#[test]
fn readonly_refuses_what_virtiofsd_refuses() {
    let share = Share::with(true, |_| ());
    fs::write(share.path("f"), "data").unwrap();
    let file = share.lookup(ROOT, "f").nodeid;
    let open = |flags: i32| Request::new(Opcode::Open, file).with([flags.cast_unsigned(), 0]);
    let create = |name: &str, flags: i32| {
        Request::new(Opcode::Create, ROOT).with([flags.cast_unsigned(), 0o644, 0, 0]).name(name)
    };
    let fh = share.ask(&open(0)).at::<OpenOut>(0).fh;
    let copy = [fh, 0, file, fh, 0, 1, 0];
    let refused = [
        Request::new(Opcode::Setattr, file).with(SetattrIn::default()),
        Request::new(Opcode::Mkdir, ROOT).with([0o755u32, 0]).name("f"),
        Request::new(Opcode::Unlink, ROOT).name("missing"),
        Request::new(Opcode::Rmdir, ROOT).name("missing"),
        Request::new(Opcode::Rename, ROOT).with(ROOT).name("f").name("g"),
        Request::new(Opcode::Link, ROOT).with(file).name("g"),
        Request::new(Opcode::Symlink, ROOT).name("s").name("t"),
        Request::new(Opcode::Mknod, ROOT).with([0o100_644u32, 0, 0, 0]).name("n"),
        Request::new(Opcode::Write, file).with(fh).with(0u64).with([1u32, 0]).with([0u32; 4]).raw("x"),
        Request::new(Opcode::Fallocate, file).with(fh).with(0u64).with(1u64).with(0u64),
        Request::new(Opcode::Setxattr, file).with([1u32, 0]).name("user.a").raw("v"),
        Request::new(Opcode::Removexattr, file).name("user.a"),
        copy.into_iter().fold(Request::new(Opcode::CopyFileRange, file), |request, value| request.with(value)),
        Request::new(Opcode::Access, file).with([2u32, 0]),
        open(libc::O_WRONLY),
        open(libc::O_RDWR),
        create("new", libc::O_CREAT),
        create("f", libc::O_CREAT | libc::O_EXCL),
        create("f", libc::O_CREAT | libc::O_WRONLY),
    ];
    for request in refused {
        assert_eq!(share.errno(&request), Errno::EROFS.raw(), "{request:?}");
    }
    for flags in [libc::O_TRUNC, libc::O_TMPFILE] {
        assert_eq!(share.errno(&open(flags)), libc::EINVAL);
    }
    assert_eq!(share.errno(&create("f", libc::O_CREAT)), 0);
    for request in [
        Request::new(Opcode::Fsync, file).with(fh).with([0u32, 0]),
        Request::new(Opcode::Statfs, ROOT),
        Request::new(Opcode::Access, file).with([4u32, 0]),
    ] {
        assert_eq!(share.errno(&request), 0, "{request:?}");
    }
    assert_eq!(share.errno(&Request::new(Opcode::Getxattr, file).with([0u32, 0]).name("user.a")), libc::ENOSYS);
    assert_eq!(share.read(file, fh, 0, 10).data, b"data");
    assert_eq!(fs::read_dir(share.dir.path()).unwrap().count(), 1);
}

#[test]
fn a_session_moves_with_its_handles() {
    let share = Share::new();
    let (nodeid, fh) = share.create(ROOT, "f");
    share.write(nodeid, fh, 0, 0, b"moved");
    share.server.prepare_save(&Arc::default());
    let mut state = tempfile::tempfile().unwrap();
    share.server.save(state.try_clone().unwrap()).unwrap();

    let server = serve(share.dir.path(), false, |config| config.announce_submounts = false);
    std::io::Seek::rewind(&mut state).unwrap();
    server.load(state).unwrap();
    let there = Share { dir: tempfile::tempdir().unwrap(), server };
    assert_eq!(there.read(nodeid, fh, 0, 10).data, b"moved");
    assert_eq!(there.lookup(ROOT, "f").nodeid, nodeid);
    assert!(there.server.load(tempfile::tempfile().unwrap()).is_err());
}

#[test]
fn the_host_tree_around_the_share_stays_as_it_was() {
    let outer = tempfile::tempdir().unwrap();
    fs::create_dir(outer.path().join("share")).unwrap();
    fs::write(outer.path().join("canary"), "canary").unwrap();
    symlink("../canary", outer.path().join("share/link")).unwrap();
    let server = serve(&outer.path().join("share"), false, |_| ());
    let share = Share { dir: tempfile::tempdir().unwrap(), server };
    assert_eq!(share.ask(&Request::init(u64::MAX)).error, 0);
    for request in [
        Request::new(Opcode::Mkdir, ROOT).with([0o755u32, 0]).name("../evil"),
        Request::new(Opcode::Mknod, ROOT).with([0o20_666u32, 0x103, 0, 0]).name("../evil"),
        Request::new(Opcode::Unlink, ROOT).name("../canary"),
        Request::new(Opcode::Symlink, ROOT).name(outer.path().join("evil").to_str().unwrap()).name("x"),
        Request::new(Opcode::Rename, ROOT).with(ROOT).name("link").name("../evil"),
        Request::new(Opcode::Create, ROOT).with([0o101u32, 0o644, 0, 0]).name("../evil"),
        Request::new(Opcode::Lookup, ROOT).name(".."),
    ] {
        assert_eq!(share.errno(&request), libc::EINVAL, "{request:?}");
    }
    let open = Request::new(Opcode::Create, ROOT).with([0o1002u32, 0o644, 0, 0]).name("link");
    assert_ne!(share.errno(&open), 0, "a link is not followed");
    assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2);
    assert_eq!(fs::read(outer.path().join("canary")).unwrap(), b"canary");
}

/// One step of a hostile session: an opcode with a body of extreme numbers, and a name where one may stand.
fn step() -> impl Strategy<Value = Request> {
    let served: Vec<Opcode> = Opcode::ALL
        .iter()
        .copied()
        // FALLOCATE could fill the host's disk, SYNCFS would write it all out.
        .filter(|opcode| !matches!(opcode, Opcode::Fallocate | Opcode::Syncfs))
        .collect();
    let number = prop::sample::select(vec![0u64, 1, 2, 3, 8, 0o100_644, 1 << 32, (1 << 63) - 1, 1 << 63, u64::MAX]);
    let name = prop::sample::select(vec!["", "f\0", "g\0", "d\0", "..\0", "f\0g\0", "user.a\0", "x"]);
    (prop::sample::select(served), 0u64..6, prop::collection::vec(number, 0..8), name).prop_map(
        |(opcode, nodeid, numbers, name)| {
            numbers.into_iter().fold(Request::new(opcode, nodeid), |request, number| request.with(number)).raw(name)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_sessions_neither_panic_nor_hang(steps in prop::collection::vec(step(), 1..60), readonly: bool) {
        let share = Share::with(readonly, |config| config.xattr = true);
        fs::write(share.path("f"), "file").unwrap();
        fs::create_dir(share.path("d")).unwrap();
        for request in steps {
            let buffer = VecReply::new(1 << 16);
            let used = now(share.server.serve(VecSource::new(request.bytes()), buffer.clone()));
            let header = InHeader::take(&mut request.bytes().as_slice()).unwrap();
            let is_silent = Opcode::from_number(header.opcode).is_some_and(Opcode::is_without_reply);
            prop_assert_eq!(used == 0, is_silent);
            if used > 0 {
                prop_assert_eq!(OutHeader::take(&mut buffer.bytes().as_slice()).unwrap().len, used);
            }
        }
    }
}
