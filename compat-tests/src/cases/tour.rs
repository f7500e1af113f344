//! A walk over most operations, once for every option of the daemon: what an option is not about must stay as it is.

use super::with;
use crate::fuse::ROOT;
use crate::guest::SetAttr;
use crate::script::{Case, Script};

const OPTIONS: [&[&str]; 30] = [
    &[],
    &["--cache", "never"],
    &["--cache", "auto"],
    &["--cache", "always"],
    &["--cache", "metadata"],
    &["--xattr"],
    &["--xattrmap", ":map::user.virtiofs.:"],
    &["--readonly"],
    &["--readonly", "--xattr", "--cache", "always"],
    &["--writeback"],
    &["--writeback", "--cache", "always", "--xattr", "--killpriv-v2"],
    &["--no-readdirplus"],
    &["--allow-direct-io"],
    &["--allow-mmap", "--cache", "never"],
    &["--preserve-noatime"],
    &["--killpriv-v2"],
    &["--no-killpriv-v2"],
    &["--posix-acl"],
    &["--posix-acl=auto"],
    &["--security-label"],
    &["--translate-uid", "map:0:1000:65536", "--translate-gid", "map:0:1000:65536"],
    &["--thread-pool-size", "0"],
    &["--thread-pool-size", "4"],
    &["--sandbox", "namespace"],
    &["--sandbox", "chroot"],
    &["--sandbox", "none"],
    &["--inode-file-handles=never"],
    &["--inode-file-handles=mandatory"],
    &["--no-announce-submounts"],
    &["--modcaps=-mknod"],
];

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    OPTIONS.iter().map(|args| with(&format!("tour {}", args.join(" ")), args, tour)).collect()
}

fn tour(s: &mut Script) {
    s.mount();
    look(s);
    make(s);
    change(s);
    remove(s);
}

fn look(s: &mut Script) {
    for name in ["f", "big", "owned", "setuid", "d", "link", "pipe", "missing"] {
        let answer = s.guest.lookup(ROOT, name.as_bytes());
        let Some(entry) = s.entry(&format!("LOOKUP {name}"), answer) else { continue };
        let answer = s.guest.getattr(entry.nodeid, None);
        s.attr(&format!("GETATTR {name}"), answer);
        for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY] {
            let answer = s.guest.open(entry.nodeid, flags);
            let Some(file) = s.opened(&format!("OPEN {name} {flags}"), answer) else { continue };
            let answer = s.guest.read(entry.nodeid, file.fh, 0, 4096);
            s.data(&format!("READ {name}"), answer);
            let answer = s.guest.flush(entry.nodeid, file.fh);
            s.done(&format!("FLUSH {name}"), answer);
            let answer = s.guest.release(entry.nodeid, file.fh);
            s.done(&format!("RELEASE {name}"), answer);
        }
        let answer = s.guest.access(entry.nodeid, libc::W_OK);
        s.done(&format!("ACCESS {name}"), answer);
        let answer = s.guest.listxattr(entry.nodeid, 4096);
        s.data(&format!("LISTXATTR {name}"), answer);
    }
    let answer = s.guest.entries(ROOT, true, 8192);
    s.listing("READDIRPLUS", answer);
    let answer = s.guest.entries(ROOT, false, 8192);
    s.listing("READDIR", answer);
}

fn make(s: &mut Script) {
    (s.guest.uid, s.guest.gid) = (1000, 1000);
    let answer = s.guest.create(ROOT, b"made", libc::O_RDWR | libc::O_CREAT, 0o664);
    if let Some((entry, file)) = s.created("CREATE", answer) {
        let answer = s.guest.write(entry.nodeid, file.fh, 0, b"made by the tour");
        s.number("WRITE", answer);
        let answer = s.guest.fsync(entry.nodeid, file.fh, false);
        s.done("FSYNC", answer);
        let answer = s.guest.fallocate(entry.nodeid, file.fh, 0, 0, 20_000);
        s.done("FALLOCATE", answer);
        let answer = s.guest.lseek(entry.nodeid, file.fh, 0, libc::SEEK_END);
        s.number("LSEEK", answer);
        let answer = s.guest.copy_file_range((entry.nodeid, file.fh, 0), (entry.nodeid, file.fh, 30_000), 100, 0);
        s.number("COPY_FILE_RANGE", answer);
        let answer = s.guest.release(entry.nodeid, file.fh);
        s.done("RELEASE", answer);
    }
    let answer = s.guest.create(ROOT, b"f", libc::O_RDONLY | libc::O_CREAT, 0o644);
    s.created("CREATE of an existing file to read", answer);
    let answer = s.guest.create(ROOT, b"f", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o644);
    s.created("CREATE of an existing file, exclusively", answer);
    for name in ["dir", "d"] {
        let answer = s.guest.mkdir(ROOT, name.as_bytes(), 0o2775);
        s.entry(&format!("MKDIR {name}"), answer);
    }
    let answer = s.guest.mknod(ROOT, b"fifo", libc::S_IFIFO | 0o600, 0, 0);
    s.entry("MKNOD fifo", answer);
    let answer = s.guest.mknod(ROOT, b"null", libc::S_IFCHR | 0o600, 0x103, 0);
    s.entry("MKNOD device", answer);
    let answer = s.guest.symlink(ROOT, b"sym", b"made");
    s.entry("SYMLINK", answer);
    (s.guest.uid, s.guest.gid) = (0, 0);
    let answer = s.guest.resolve("f");
    if let Some(node) = s.number("resolve f", answer) {
        let answer = s.guest.link(node, ROOT, b"linked");
        s.entry("LINK", answer);
    }
}

fn change(s: &mut Script) {
    let answer = s.guest.resolve("f");
    let Some(node) = s.number("resolve f", answer) else { return };
    for (what, set) in [
        ("mode", SetAttr::mode(0o600)),
        ("owner", SetAttr::owner(5, 6)),
        ("size", SetAttr::size(3)),
        ("times", SetAttr::times((1_000_000_001, 1), (1_000_000_002, 2))),
    ] {
        let answer = s.guest.setattr(node, &set);
        s.attr(&format!("SETATTR {what}"), answer);
    }
    let answer = s.guest.setxattr(node, b"user.tour", b"value", 0);
    s.done("SETXATTR", answer);
    let answer = s.guest.getxattr(node, b"user.tour", 100);
    s.data("GETXATTR", answer);
    let answer = s.guest.removexattr(node, b"user.tour");
    s.done("REMOVEXATTR", answer);
    let answer = s.guest.rename(ROOT, b"made", ROOT, b"renamed");
    s.done("RENAME", answer);
    let answer = s.guest.rename2(ROOT, b"f", ROOT, b"big", 2);
    s.done("RENAME2 EXCHANGE", answer);
    let answer = s.guest.statfs(ROOT).map(|st| u64::from(st.namelen));
    s.number("STATFS", answer);
    let answer = s.guest.syncfs(ROOT);
    s.done("SYNCFS", answer);
    let answer = s.guest.open(node, libc::O_RDWR | libc::O_TRUNC);
    s.opened("OPEN truncating", answer);
}

fn remove(s: &mut Script) {
    for name in ["renamed", "sym", "fifo", "missing", "d"] {
        let answer = s.guest.unlink(ROOT, name.as_bytes());
        s.done(&format!("UNLINK {name}"), answer);
    }
    for name in ["dir", "d", "missing"] {
        let answer = s.guest.rmdir(ROOT, name.as_bytes());
        s.done(&format!("RMDIR {name}"), answer);
    }
}
