//! Nodes and names: lookup, attributes, making, linking, renaming, removing, symbolic links, extended attributes.

use std::os::unix::fs::MetadataExt;

use super::{plain, with};
use crate::fuse::{Entry, ROOT, fattr};
use crate::guest::{SetAttr, group_extension, security_extension};
use crate::script::{Case, Script, show_fault, show_time};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        plain("names", lookups),
        plain("attributes", attributes),
        plain("special-files", special_files),
        plain("rename", rename),
        plain("remove", remove),
        plain("owners", owners),
        with("owners-labelled", &["--security-label", "--xattr"], labels),
        with(
            "owners-translated",
            &["--translate-uid", "map:0:1000:2000", "--translate-gid", "map:0:1000:2000"],
            owners,
        ),
        with("umask-acl", &["--posix-acl"], umask),
        plain("umask", umask),
        plain("xattr-off", xattrs),
        with("xattr-on", &["--xattr"], xattrs),
        with("xattr-map", &["--xattrmap", ":map::user.virtiofs.:"], xattrs),
        with("xattr-acl", &["--posix-acl"], xattrs),
        with("submounts", &["--shared-dir", "/", "--sandbox", "none"], submounts),
        with(
            "submounts-unannounced",
            &["--shared-dir", "/", "--sandbox", "none", "--no-announce-submounts"],
            submounts,
        ),
        with("xattr-killpriv", &["--xattr", "--killpriv-v2"], killpriv),
        with("xattr-no-killpriv", &["--xattr"], killpriv),
        with("translate-squash", &["--translate-uid", "squash-guest:0:5000:100000"], owners),
        with("translate-host", &["--translate-uid", "host:1000:0:1", "--translate-gid", "host:1000:0:1"], owners),
        with("translate-forbid", &["--translate-uid", "forbid-guest:1000:1"], owners),
    ]
}

fn find(s: &mut Script, name: &str) -> Entry {
    let answer = s.guest.lookup(ROOT, name.as_bytes());
    s.entry(&format!("LOOKUP {name}"), answer).unwrap_or_default()
}

fn lookups(s: &mut Script) {
    s.mount();
    for name in ["f", "hard", "d", "link", "escape", "pipe", "missing", "f", "owned", "setuid"] {
        let entry = find(s, name);
        let host = s.share.join(name).symlink_metadata().map(|meta| meta.ino()).unwrap_or(0);
        s.note(format!("inode number of {name}"), if entry.attr.ino == host { "the host's" } else { "another" });
    }
    let (file, dir) = (find(s, "f").nodeid, find(s, "d").nodeid);
    for (what, parent, name) in [
        ("255 bytes", ROOT, "n".repeat(255).into_bytes()),
        ("256 bytes", ROOT, "n".repeat(256).into_bytes()),
        ("bytes that are not UTF-8", ROOT, vec![0xff, 0xfe]),
        ("a space", ROOT, b" ".to_vec()),
        ("a trailing space", ROOT, b"f ".to_vec()),
        ("a backslash", ROOT, b"d\\a".to_vec()),
        ("below a file", file, b"x".to_vec()),
        ("below a directory", dir, b"a".to_vec()),
        ("below an unknown node", 4242, b"x".to_vec()),
        ("below node 0", 0, b"x".to_vec()),
    ] {
        let answer = s.guest.lookup(parent, &name);
        s.entry(&format!("lookup {what}"), answer);
    }
    for (what, parent, name) in [(". of root", ROOT, "."), (".. of root", ROOT, ".."), (".. of d", dir, "..")] {
        let answer = s.guest.lookup(parent, name.as_bytes());
        let outcome = answer.map_or_else(|fault| show_fault(&fault), |entry| format!("node={}", entry.nodeid));
        s.note(format!("lookup {what}"), outcome);
    }
    let symlink = find(s, "link").nodeid;
    let answer = s.guest.lookup(symlink, b"x");
    s.entry("below a symbolic link", answer);
    for name in ["link", "escape", "f", "d"] {
        let node = find(s, name).nodeid;
        let answer = s.guest.readlink(node);
        s.data(&format!("READLINK {name}"), answer);
    }
    std::fs::write(s.share.join("appears"), "later").unwrap_or_default();
    find(s, "appears");
    std::fs::write(s.share.join("f"), "changed on the host").unwrap_or_default();
    let answer = s.guest.getattr(file, None);
    s.attr("GETATTR after a change on the host", answer);
    std::fs::remove_file(s.share.join("appears")).unwrap_or_default();
    find(s, "appears");
}

/// Shares `/`, where `/proc` and `/dev` are mounts of their own, and looks only at what marks a submount.
fn submounts(s: &mut Script) {
    s.mount();
    for name in ["proc", "dev", "usr"] {
        let outcome = match s.guest.lookup(ROOT, name.as_bytes()) {
            Ok(entry) => {
                let again = s.guest.getattr(entry.nodeid, None).map(|out| out.attr.flags);
                format!("node={} flags={:#x} GETATTR flags={again:?}", entry.nodeid, entry.attr.flags)
            }
            Err(fault) => show_fault(&fault),
        };
        s.note(format!("LOOKUP /{name}"), outcome);
    }
}

fn attributes(s: &mut Script) {
    s.mount();
    for name in ["f", "d", "owned", "setuid", "link", "pipe", "empty"] {
        let node = find(s, name).nodeid;
        for (what, set) in [
            ("chmod", SetAttr::mode(0o640)),
            ("chmod with bits", SetAttr::mode(0o7777)),
            ("chown", SetAttr::owner(1, 2)),
            ("only group", SetAttr { valid: fattr::GID, gid: 77, ..SetAttr::default() }),
            ("times", SetAttr::times((1_200_000_000, 5), (1_300_000_000, 999_999_999))),
            ("old times", SetAttr::times((-1, 0), (-1_000_000_000, 7))),
            ("only mtime", SetAttr { valid: fattr::MTIME, mtime: (1_250_000_000, 1), ..SetAttr::default() }),
            (
                "times now",
                SetAttr {
                    valid: fattr::ATIME | fattr::MTIME | fattr::ATIME_NOW | fattr::MTIME_NOW,
                    ..SetAttr::default()
                },
            ),
            ("bad nanoseconds", SetAttr::times((1, 2_000_000_000), (1, 2_000_000_000))),
            ("grow", SetAttr::size(10_000)),
            ("shrink", SetAttr::size(5)),
            ("size 2^63", SetAttr::size(1 << 63)),
            ("ctime", SetAttr { valid: fattr::CTIME, ctime: (5, 5), ..SetAttr::default() }),
            ("nothing", SetAttr::default()),
            ("kill bits", SetAttr { valid: fattr::SIZE | fattr::KILL_SUIDGID, size: 3, ..SetAttr::default() }),
            ("unknown handle", SetAttr { valid: fattr::SIZE | fattr::FH, fh: 99, size: 1, ..SetAttr::default() }),
            ("unknown valid bits", SetAttr { valid: 0xffff_0000, ..SetAttr::default() }),
        ] {
            let answer = s.guest.setattr(node, &set);
            s.attr(&format!("{name}: {what}"), answer);
        }
        let answer = s.guest.getattr(node, None);
        if let Some(out) = s.attr(&format!("{name}: GETATTR"), answer) {
            s.note(format!("{name}: atime"), show_time(out.attr.atime, out.attr.atimensec));
        }
        for mask in [libc::F_OK, libc::R_OK, libc::W_OK, libc::X_OK, 7, 8] {
            for uid in [0, 1000] {
                (s.guest.uid, s.guest.gid) = (uid, uid);
                let answer = s.guest.access(node, mask);
                s.done(&format!("{name}: ACCESS {mask} as {uid}"), answer);
            }
            (s.guest.uid, s.guest.gid) = (0, 0);
        }
    }
    let answer = s.guest.getattr(4242, None);
    s.attr("GETATTR of an unknown node", answer);
    let answer = s.guest.setattr(4242, &SetAttr::mode(0));
    s.attr("SETATTR of an unknown node", answer);
    for node in [ROOT, 4242] {
        let answer = s.guest.statfs(node);
        let outcome = answer.map(|st| format!("bsize={} namelen={} frsize={}", st.bsize, st.namelen, st.frsize));
        let outcome = outcome.unwrap_or_else(|fault| show_fault(&fault));
        s.note(format!("STATFS {node}"), outcome);
        let answer = s.guest.syncfs(node);
        s.done(&format!("SYNCFS {node}"), answer);
    }
}

fn special_files(s: &mut Script) {
    s.mount();
    let kinds = [
        ("regular", libc::S_IFREG),
        ("fifo", libc::S_IFIFO),
        ("socket", libc::S_IFSOCK),
        ("char", libc::S_IFCHR),
        ("block", libc::S_IFBLK),
        ("dir", libc::S_IFDIR),
        ("none", 0),
    ];
    for (name, kind) in kinds {
        let answer = s.guest.mknod(ROOT, name.as_bytes(), kind | 0o660, 0x0103, 0);
        let made = s.entry(&format!("MKNOD {name}"), answer);
        let answer = s.guest.mknod(ROOT, name.as_bytes(), kind | 0o660, 0x0103, 0);
        s.entry(&format!("MKNOD {name} again"), answer);
        let Some(made) = made else { continue };
        for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_NONBLOCK, libc::O_PATH] {
            let answer = s.guest.open(made.nodeid, flags);
            s.opened(&format!("OPEN {name} {flags:#x}"), answer);
        }
        let answer = s.guest.create(ROOT, name.as_bytes(), libc::O_RDWR | libc::O_CREAT, 0o600);
        s.created(&format!("CREATE {name}"), answer);
    }
    for (name, target) in [("s1", "f"), ("s2", "/absolute"), ("s3", "../up"), ("f", "exists"), ("s4", "")] {
        let answer = s.guest.symlink(ROOT, name.as_bytes(), target.as_bytes());
        s.entry(&format!("SYMLINK {name}"), answer);
    }
    let answer = s.guest.symlink(ROOT, b"long", &[b'x'; 4095]);
    s.entry("SYMLINK of 4095 bytes", answer);
    let answer = s.guest.symlink(ROOT, b"longer", &[b'x'; 4096]);
    s.entry("SYMLINK of 4096 bytes", answer);
    for (name, new) in [("f", "l1"), ("d", "l2"), ("link", "l3"), ("pipe", "l4"), ("f", "hard")] {
        let node = find(s, name).nodeid;
        let answer = s.guest.link(node, ROOT, new.as_bytes());
        s.entry(&format!("LINK {name} {new}"), answer);
    }
    let answer = s.guest.link(4242, ROOT, b"l5");
    s.entry("LINK of an unknown node", answer);
}

fn rename(s: &mut Script) {
    s.mount();
    let (dir, sub) = (find(s, "d").nodeid, {
        let d = find(s, "d").nodeid;
        let answer = s.guest.lookup(d, b"sub");
        s.entry("LOOKUP d/sub", answer).unwrap_or_default().nodeid
    });
    let moved = find(s, "f").nodeid;
    for (what, from, name, to, new) in [
        ("plain", ROOT, "f", ROOT, "g"),
        ("into a directory", ROOT, "g", dir, "g"),
        ("over a file", ROOT, "empty", dir, "g"),
        ("missing", ROOT, "missing", ROOT, "x"),
        ("file over directory", ROOT, "owned", ROOT, "d"),
        ("directory over file", ROOT, "d", ROOT, "owned"),
        ("directory over full directory", ROOT, "sticky", ROOT, "d"),
        ("directory over empty directory", ROOT, "sticky", ROOT, "group"),
        ("into itself", ROOT, "d", sub, "loop"),
        ("onto itself", dir, "a", dir, "a"),
        ("a hard link over its twin", ROOT, "hard", dir, "g"),
        ("a symbolic link", ROOT, "link", dir, "link"),
        ("below an unknown node", ROOT, "big", 4242, "x"),
        ("long name", ROOT, "big", ROOT, "x"),
    ] {
        let answer = s.guest.rename(from, name.as_bytes(), to, new.as_bytes());
        s.done(&format!("RENAME {what}"), answer);
    }
    let answer = s.guest.rename(ROOT, b"x", ROOT, "x".repeat(256).as_bytes());
    s.done("RENAME to 256 bytes", answer);
    let answer = s.guest.getattr(moved, None);
    s.attr("GETATTR of a renamed and replaced file", answer);
    for (what, flags) in
        [("NOREPLACE", 1), ("EXCHANGE", 2), ("WHITEOUT", 4), ("NOREPLACE and EXCHANGE", 3), ("unknown bit", 8)]
    {
        let answer = s.guest.rename2(ROOT, b"setuid", ROOT, b"sparse", flags);
        s.done(&format!("RENAME2 {what} onto an existing name"), answer);
        let answer = s.guest.rename2(ROOT, b"setuid", ROOT, format!("fresh{flags}").as_bytes(), flags);
        s.done(&format!("RENAME2 {what} onto a fresh name"), answer);
        let answer = s.guest.rename2(ROOT, b"missing", ROOT, b"sparse", flags);
        s.done(&format!("RENAME2 {what} of a missing name"), answer);
        for name in ["setuid", "sparse", &format!("fresh{flags}")] {
            find(s, name);
        }
    }
}

fn remove(s: &mut Script) {
    s.mount();
    let dir = find(s, "d").nodeid;
    for name in ["f", "f", "d", "link", "pipe", "missing"] {
        let answer = s.guest.unlink(ROOT, name.as_bytes());
        s.done(&format!("UNLINK {name}"), answer);
    }
    for name in ["d", "hard", "group", "group", "missing"] {
        let answer = s.guest.rmdir(ROOT, name.as_bytes());
        s.done(&format!("RMDIR {name}"), answer);
    }
    let answer = s.guest.unlink(4242, b"x");
    s.done("UNLINK below an unknown node", answer);
    let answer = s.guest.rmdir(4242, b"x");
    s.done("RMDIR below an unknown node", answer);
    for name in ["sub/deep/e", "sub/c", "a", "b"] {
        let answer = s.guest.remove_file(&format!("d/{name}"));
        s.done(&format!("unlink d/{name}"), answer);
    }
    for name in ["d/sub/deep", "d/sub", "d"] {
        let answer = s.guest.remove_dir(name);
        s.done(&format!("rmdir {name}"), answer);
    }
    let answer = s.guest.getattr(dir, None);
    s.attr("GETATTR of a removed directory", answer);
    let answer = s.guest.lookup(dir, b"a");
    s.entry("LOOKUP below a removed directory", answer);
    let answer = s.guest.mkdir(dir, b"a", 0o755);
    s.entry("MKDIR below a removed directory", answer);
    let answer = s.guest.opendir(dir);
    s.opened("OPENDIR of a removed directory", answer);
}

fn owners(s: &mut Script) {
    s.mount();
    for name in ["f", "owned", "group", "sticky"] {
        find(s, name);
    }
    let group = find(s, "group").nodeid;
    for (uid, gid) in [(0, 0), (1000, 1000), (1000, 5), (5001, 5002), (70_000, 70_000)] {
        (s.guest.uid, s.guest.gid) = (uid, gid);
        for (place, parent) in [("root", ROOT), ("group", group)] {
            let name = |kind: &str| format!("{kind}-{uid}-{gid}").into_bytes();
            let who = format!("as {uid}:{gid} in {place}");
            let answer = s.guest.create(parent, &name("file"), libc::O_RDWR | libc::O_CREAT, 0o666);
            s.created(&format!("CREATE {who}"), answer);
            let answer = s.guest.create(parent, &name("sgid"), libc::O_RDWR | libc::O_CREAT, 0o2755);
            s.created(&format!("CREATE set-group-id {who}"), answer);
            let answer = s.guest.mkdir(parent, &name("dir"), 0o777);
            s.entry(&format!("MKDIR {who}"), answer);
            let answer = s.guest.mknod(parent, &name("node"), libc::S_IFREG | 0o660, 0, 0);
            s.entry(&format!("MKNOD {who}"), answer);
            let answer = s.guest.symlink(parent, &name("link"), b"target");
            s.entry(&format!("SYMLINK {who}"), answer);
        }
        let answer =
            s.guest.mkdir_ext(ROOT, format!("ext-{uid}-{gid}").as_bytes(), 0o2775, 0, group_extension(&[1000]));
        s.entry(&format!("MKDIR with groups as {uid}:{gid}"), answer);
    }
    (s.guest.uid, s.guest.gid) = (0, 0);
    for name in ["f", "owned"] {
        let node = find(s, name).nodeid;
        for uid in [0, 1, 1000, 1999, 5000, 200_000] {
            let answer = s.guest.setattr(node, &SetAttr::owner(uid, uid));
            s.attr(&format!("chown {name} to {uid}"), answer);
        }
    }
}

fn umask(s: &mut Script) {
    s.mount();
    for umask in [0, 0o022, 0o077, 0o777] {
        let name = |kind: &str| format!("{kind}{umask:o}").into_bytes();
        let flags = libc::O_RDWR | libc::O_CREAT;
        let answer = s.guest.create_ext(ROOT, &name("f"), flags, 0o666, umask, Vec::new());
        s.created(&format!("CREATE with umask {umask:o}"), answer);
        let answer = s.guest.mkdir_ext(ROOT, &name("d"), 0o777, umask, Vec::new());
        s.entry(&format!("MKDIR with umask {umask:o}"), answer);
        let answer = s.guest.mknod(ROOT, &name("n"), libc::S_IFREG | 0o666, 0, umask);
        s.entry(&format!("MKNOD with umask {umask:o}"), answer);
    }
}

fn labels(s: &mut Script) {
    s.mount();
    let label = || security_extension(b"security.selinux", b"system_u:object_r:tmp_t:s0");
    let answer = s.guest.create_ext(ROOT, b"labelled", libc::O_RDWR | libc::O_CREAT, 0o644, 0, label());
    let node = s.created("CREATE with a label", answer).map(|(entry, _)| entry.nodeid);
    if let Some(node) = node {
        let answer = s.guest.getxattr(node, b"security.selinux", 100);
        s.data("the label", answer);
    }
    let answer = s.guest.mkdir_ext(ROOT, b"labelled dir", 0o755, 0, label());
    s.entry("MKDIR with a label", answer);
    let answer = s.guest.create(ROOT, b"unlabelled", libc::O_RDWR | libc::O_CREAT, 0o644);
    s.created("CREATE without a label", answer);
    let both = [label(), group_extension(&[4, 5])].concat();
    let answer = s.guest.mkdir_ext(ROOT, b"both", 0o755, 0, both);
    s.entry("MKDIR with a label and groups", answer);
}

fn xattrs(s: &mut Script) {
    s.mount();
    for name in ["f", "d", "link"] {
        let node = find(s, name).nodeid;
        let keys = ["user.a", "user.empty", "trusted.t", "security.capability", "system.posix_acl_access", "bad"];
        for key in keys {
            let value: &[u8] = if key == "user.empty" { b"" } else { b"value" };
            let at = |what: &str| format!("{name}: {what} {key}");
            let answer = s.guest.setxattr(node, key.as_bytes(), value, 0);
            s.done(&at("SETXATTR"), answer);
            let answer = s.guest.getxattr_len(node, key.as_bytes());
            s.number(&at("length of"), answer);
            for size in [1, 5, 4096] {
                let answer = s.guest.getxattr(node, key.as_bytes(), size);
                s.data(&at(&format!("GETXATTR {size}")), answer);
            }
        }
        let answer = s.guest.setxattr(node, b"user.a", b"2", libc::XATTR_CREATE);
        s.done(&format!("{name}: create an existing one"), answer);
        let answer = s.guest.setxattr(node, b"user.new", b"2", libc::XATTR_REPLACE);
        s.done(&format!("{name}: replace a missing one"), answer);
        let answer = s.guest.setxattr(node, b"user.a", &[7; 3000], libc::XATTR_REPLACE);
        s.done(&format!("{name}: replace by 3000 bytes"), answer);
        for size in [1, 4096] {
            let answer = s.guest.listxattr(node, size).map(|list| {
                let mut names: Vec<_> = list.split_inclusive(|&b| b == 0).collect();
                names.sort_unstable();
                names.concat()
            });
            s.data(&format!("{name}: LISTXATTR {size}"), answer);
        }
        for key in ["user.a", "user.a", "user.empty"] {
            let answer = s.guest.removexattr(node, key.as_bytes());
            s.done(&format!("{name}: REMOVEXATTR {key}"), answer);
        }
    }
    let answer = s.guest.getxattr(4242, b"user.a", 10);
    s.data("GETXATTR of an unknown node", answer);
}

fn killpriv(s: &mut Script) {
    s.mount();
    let node = find(s, "setuid").nodeid;
    let answer = s.guest.open(node, libc::O_RDWR);
    let Some(file) = s.opened("OPEN", answer) else { return };
    for (what, flags) in [("plain", 0), ("from the page cache", 1), ("killing bits", 4)] {
        let answer = s.guest.setattr(node, &SetAttr::mode(0o6755));
        s.attr("chmod 6755", answer);
        let answer = s.guest.write_with(node, file.fh, 0, b"data", flags, 0);
        s.number(&format!("WRITE {what}"), answer);
        let answer = s.guest.getattr(node, None);
        s.attr(&format!("after WRITE {what}"), answer);
    }
    let answer = s.guest.setattr(node, &SetAttr::mode(0o6755));
    s.attr("chmod 6755", answer);
    let answer = s.guest.fallocate(node, file.fh, 0, 0, 8192);
    s.done("FALLOCATE", answer);
    let answer = s.guest.getattr(node, None);
    s.attr("after FALLOCATE", answer);
    let answer = s.guest.setattr(node, &SetAttr::mode(0o6755));
    s.attr("chmod 6755", answer);
    let answer = s.guest.setattr(node, &SetAttr { valid: fattr::SIZE | fattr::KILL_SUIDGID, ..SetAttr::default() });
    s.attr("truncate killing bits", answer);
    let answer = s.guest.setattr(node, &SetAttr::mode(0o6755));
    s.attr("chmod 6755", answer);
    let answer = s.guest.open(node, libc::O_WRONLY | libc::O_TRUNC);
    s.opened("OPEN truncating", answer);
    let answer = s.guest.getattr(node, None);
    s.attr("after OPEN truncating", answer);
}
