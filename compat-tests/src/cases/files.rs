//! Handles and data: open, create, read, write, append, seek, allocate, copy, directories, unlinked files.

use super::{plain, with};
use crate::fuse::{Entry, Opened, ROOT, WRITE_CACHE};
use crate::guest::SetAttr;
use crate::script::{Case, Script};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        plain("open-flags", open_flags),
        plain("open-creating", open_creating),
        plain("create", create),
        plain("handles", handles),
        plain("read-write", read_write),
        plain("append", append),
        with("append-writeback", &["--writeback"], append),
        plain("seek", seek),
        plain("allocate", allocate),
        plain("copy", copy),
        plain("unlinked-open", unlinked_open),
        plain("directories", directories),
        plain("directory-paging", directory_paging),
        plain("large", large),
        with("open-direct", &["--allow-direct-io"], open_flags),
        with("open-writeback", &["--writeback"], open_flags),
        with("open-killpriv", &["--killpriv-v2"], open_flags),
        with("open-noatime", &["--preserve-noatime"], open_flags),
        with("open-readonly", &["--readonly"], open_flags),
        with("create-readonly", &["--readonly"], create),
        with("large-pool", &["--thread-pool-size", "4"], large),
        with("directories-no-plus", &["--no-readdirplus"], directories),
    ];
    for mode in ["never", "auto", "always", "metadata"] {
        cases.push(with(&format!("open-cache-{mode}"), &["--cache", mode], open_flags));
        cases.push(with(&format!("directories-cache-{mode}"), &["--cache", mode], directories));
    }
    cases
}

fn find(s: &mut Script, name: &str) -> Entry {
    let answer = s.guest.lookup(ROOT, name.as_bytes());
    s.entry(&format!("LOOKUP {name}"), answer).unwrap_or_default()
}

fn open(s: &mut Script, name: &str, flags: i32) -> (u64, Opened) {
    let node = find(s, name).nodeid;
    let answer = s.guest.open(node, flags);
    (node, s.opened(&format!("OPEN {name}"), answer).unwrap_or_default())
}

const FLAGS: [(&str, i32); 16] = [
    ("read", libc::O_RDONLY),
    ("write", libc::O_WRONLY),
    ("both", libc::O_RDWR),
    ("neither", 3),
    ("append", libc::O_RDWR | libc::O_APPEND),
    ("direct", libc::O_RDWR | libc::O_DIRECT),
    ("noatime", libc::O_RDONLY | libc::O_NOATIME),
    ("sync", libc::O_RDWR | libc::O_SYNC),
    ("dsync", libc::O_RDWR | libc::O_DSYNC),
    ("nofollow", libc::O_RDONLY | libc::O_NOFOLLOW),
    ("path", libc::O_PATH),
    ("directory", libc::O_RDONLY | libc::O_DIRECTORY),
    ("exclusive", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL),
    ("tmpfile", libc::O_RDWR | libc::O_TMPFILE),
    ("nonblocking", libc::O_RDONLY | libc::O_NONBLOCK),
    ("truncate", libc::O_RDWR | libc::O_TRUNC),
];

fn open_flags(s: &mut Script) {
    s.mount();
    for name in ["f", "d", "link", "pipe", "owned"] {
        let node = find(s, name).nodeid;
        for (what, flags) in FLAGS.into_iter().filter(|(what, _)| *what != "exclusive") {
            let answer = s.guest.open(node, flags);
            let Some(file) = s.opened(&format!("OPEN {name} {what}"), answer) else { continue };
            let answer = s.guest.write(node, file.fh, 0, b"w");
            s.number(&format!("WRITE {name} {what}"), answer);
            let answer = s.guest.read(node, file.fh, 0, 4);
            s.data(&format!("READ {name} {what}"), answer);
            let answer = s.guest.release(node, file.fh);
            s.done(&format!("RELEASE {name} {what}"), answer);
        }
    }
    let answer = s.guest.open(4242, libc::O_RDONLY);
    s.opened("OPEN of an unknown node", answer);
    let answer = s.guest.opendir(4242);
    s.opened("OPENDIR of an unknown node", answer);
}

fn open_creating(s: &mut Script) {
    s.mount();
    let node = find(s, "f").nodeid;
    let answer = s.guest.open(node, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL);
    s.opened("OPEN creating exclusively", answer);
}

fn create(s: &mut Script) {
    s.mount();
    for (what, flags) in FLAGS {
        for name in ["f", "d", "link", "pipe", &format!("new-{what}")] {
            let answer = s.guest.create(ROOT, name.as_bytes(), flags | libc::O_CREAT, 0o640);
            let Some((entry, file)) = s.created(&format!("CREATE {name} {what}"), answer) else { continue };
            let answer = s.guest.write(entry.nodeid, file.fh, 2, b"w");
            s.number(&format!("WRITE {name} {what}"), answer);
            let answer = s.guest.read(entry.nodeid, file.fh, 0, 4);
            s.data(&format!("READ {name} {what}"), answer);
        }
    }
    let answer = s.guest.create(4242, b"x", libc::O_RDWR, 0o644);
    s.created("CREATE below an unknown node", answer);
    let file = find(s, "f").nodeid;
    let answer = s.guest.create(file, b"x", libc::O_RDWR, 0o644);
    s.created("CREATE below a file", answer);
}

fn handles(s: &mut Script) {
    s.mount();
    let (node, file) = open(s, "f", libc::O_RDWR);
    let (other, _) = open(s, "empty", libc::O_RDONLY);
    for (what, node, fh) in [("right", node, file.fh), ("of another node", other, file.fh), ("forged", node, 777)] {
        let answer = s.guest.read(node, fh, 0, 100);
        s.data(&format!("READ, handle {what}"), answer);
        let answer = s.guest.write(node, fh, 0, b"W");
        s.number(&format!("WRITE, handle {what}"), answer);
        let answer = s.guest.getattr(node, Some(fh));
        s.attr(&format!("GETATTR, handle {what}"), answer);
        let answer = s.guest.fsync(node, fh, false);
        s.done(&format!("FSYNC, handle {what}"), answer);
        let answer = s.guest.fsync(node, fh, true);
        s.done(&format!("FSYNC of data, handle {what}"), answer);
        let answer = s.guest.flush(node, fh);
        s.done(&format!("FLUSH, handle {what}"), answer);
        let answer = s.guest.lseek(node, fh, 0, libc::SEEK_END);
        s.number(&format!("LSEEK, handle {what}"), answer);
        let answer = s.guest.fallocate(node, fh, 0, 0, 100);
        s.done(&format!("FALLOCATE, handle {what}"), answer);
        let answer = s.guest.readdir(node, fh, 0, 4096);
        s.listing(&format!("READDIR, handle {what}"), answer);
        let answer = s.guest.fsyncdir(node, fh, false);
        s.done(&format!("FSYNCDIR, handle {what}"), answer);
        let answer = s.guest.releasedir(other, fh);
        s.done(&format!("RELEASEDIR with the other node, handle {what}"), answer);
    }
    for time in ["first", "second"] {
        let answer = s.guest.release(node, file.fh);
        s.done(&format!("RELEASE, {time} time"), answer);
    }
    let answer = s.guest.read(node, file.fh, 0, 100);
    s.data("READ after RELEASE", answer);
}

fn read_write(s: &mut Script) {
    s.mount();
    let (node, file) = open(s, "big", libc::O_RDWR);
    for (offset, size) in
        [(0, 0), (0, 1), (299_999, 10), (300_000, 10), (1 << 40, 10), (4095, 4098), (0, 1 << 20), (123, 70_000)]
    {
        let answer = s.guest.read(node, file.fh, offset, size);
        s.data(&format!("READ {offset}+{size}"), answer);
    }
    for (offset, size) in [(0, 0), (10, 5), (4090, 12), (299_999, 10), (1 << 20, 5), (500_000, 1 << 20)] {
        let data: Vec<u8> = (0..size).map(|n| (n % 253) as u8).collect();
        let answer = s.guest.write(node, file.fh, offset, &data);
        s.number(&format!("WRITE {offset}+{size}"), answer);
        let answer = s.guest.getattr(node, Some(file.fh));
        s.attr("GETATTR", answer);
    }
    for offset in [i64::MAX as u64, i64::MAX as u64 - 4, (i64::MAX as u64) / 2] {
        let answer = s.guest.write(node, file.fh, offset, b"12345678");
        s.number(&format!("WRITE at {offset:#x}"), answer);
        let answer = s.guest.read(node, file.fh, offset, 8);
        s.data(&format!("READ at {offset:#x}"), answer);
    }
    for size in [1 << 20, 10, 0, 4097] {
        let answer = s.guest.setattr(node, &SetAttr { fh: file.fh, ..SetAttr::size(size) });
        s.attr(&format!("truncate to {size}"), answer);
        let answer = s.guest.read(node, file.fh, 0, 1 << 20);
        s.data("READ all", answer);
    }
}

fn append(s: &mut Script) {
    s.mount();
    let (node, file) = open(s, "f", libc::O_RDWR | libc::O_APPEND);
    let flags = libc::O_RDWR | libc::O_APPEND;
    for (what, offset, write_flags, open_flags) in [
        ("appending", 0, 0, flags),
        ("appending far away", 1000, 0, flags),
        ("from the page cache", 3, WRITE_CACHE, flags),
        ("without the flag", 1, 0, libc::O_RDWR),
    ] {
        let answer = s.guest.write_with(node, file.fh, offset, b"<+>", write_flags, open_flags);
        s.number(&format!("WRITE {what}"), answer);
        let answer = s.guest.read(node, file.fh, 0, 2000);
        s.data(&format!("after WRITE {what}"), answer);
    }
}

fn seek(s: &mut Script) {
    s.mount();
    for name in ["sparse", "f", "empty"] {
        let (node, file) = open(s, name, libc::O_RDWR);
        for whence in [libc::SEEK_SET, libc::SEEK_CUR, libc::SEEK_END, libc::SEEK_DATA, libc::SEEK_HOLE, 5, 99] {
            for offset in [0, 5, 1 << 20, (1 << 20) + 4096, 2 << 20, 3 << 20, u64::MAX] {
                let answer = s.guest.lseek(node, file.fh, offset, whence);
                s.number(&format!("LSEEK {name} {offset} {whence}"), answer);
            }
        }
    }
    let node = find(s, "d").nodeid;
    let answer = s.guest.opendir(node);
    if let Some(dir) = s.opened("OPENDIR", answer) {
        let answer = s.guest.lseek(node, dir.fh, 0, libc::SEEK_SET);
        s.number("LSEEK of a directory", answer);
    }
}

fn allocate(s: &mut Script) {
    s.mount();
    let (node, file) = open(s, "big", libc::O_RDWR);
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    for (what, mode) in [
        ("plain", 0),
        ("keep size", keep),
        ("punch", libc::FALLOC_FL_PUNCH_HOLE | keep),
        ("punch without keep", libc::FALLOC_FL_PUNCH_HOLE),
        ("zero", libc::FALLOC_FL_ZERO_RANGE),
        ("zero, keep size", libc::FALLOC_FL_ZERO_RANGE | keep),
        ("collapse", libc::FALLOC_FL_COLLAPSE_RANGE),
        ("insert", libc::FALLOC_FL_INSERT_RANGE),
        ("unshare", libc::FALLOC_FL_UNSHARE_RANGE),
        ("unknown", 0x1000),
    ] {
        for (offset, len) in [(4096, 8192), (299_000, 5000), (0, 0), (1 << 62, 1 << 62), (u64::MAX, 1)] {
            let answer = s.guest.fallocate(node, file.fh, mode, offset, len);
            s.done(&format!("FALLOCATE {what} {offset}+{len}"), answer);
        }
        let answer = s.guest.getattr(node, None);
        s.attr(&format!("after {what}"), answer);
        let answer = s.guest.read(node, file.fh, 0, 400_000);
        s.data(&format!("content after {what}"), answer);
    }
    let (node, file) = open(s, "f", libc::O_RDONLY);
    let answer = s.guest.fallocate(node, file.fh, 0, 0, 100_000);
    s.done("FALLOCATE on a read-only handle", answer);
}

fn copy(s: &mut Script) {
    s.mount();
    let (from, src) = open(s, "big", libc::O_RDONLY);
    let answer = s.guest.create(ROOT, b"target", libc::O_RDWR | libc::O_CREAT, 0o644);
    let Some((entry, dst)) = s.created("CREATE", answer) else { return };
    let to = entry.nodeid;
    for (what, at, len, put, flags) in [
        ("start", 0, 1000, 0, 0),
        ("middle", 4096, 8192, 100, 0),
        ("past the end", 299_990, 100, 20_000, 0),
        ("behind the end", 400_000, 100, 0, 0),
        ("everything", 0, 1 << 20, 0, 0),
        ("nothing", 0, 0, 0, 0),
        ("with flags", 0, 10, 0, 1),
        ("more than 4 GiB", 0, 5 << 30, 0, 0),
    ] {
        let answer = s.guest.copy_file_range((from, src.fh, at), (to, dst.fh, put), len, flags);
        s.number(&format!("COPY_FILE_RANGE {what}"), answer);
        let answer = s.guest.read(to, dst.fh, 0, 400_000);
        s.data(&format!("target after {what}"), answer);
    }
    for (what, source, target) in [
        ("within one file", (to, dst.fh, 0), (to, dst.fh, 200_000)),
        ("overlapping", (to, dst.fh, 0), (to, dst.fh, 500)),
        ("onto a read-only handle", (to, dst.fh, 0), (from, src.fh, 0)),
        ("from a forged handle", (from, 777, 0), (to, dst.fh, 0)),
        ("to a forged handle", (from, src.fh, 0), (to, 777, 0)),
        ("with exchanged nodes", (to, src.fh, 0), (from, dst.fh, 0)),
    ] {
        let answer = s.guest.copy_file_range(source, target, 1000, 0);
        s.number(&format!("COPY_FILE_RANGE {what}"), answer);
    }
}

fn unlinked_open(s: &mut Script) {
    s.mount();
    let (node, file) = open(s, "owned", libc::O_RDWR);
    let answer = s.guest.unlink(ROOT, b"owned");
    s.done("UNLINK", answer);
    let answer = s.guest.read(node, file.fh, 0, 100);
    s.data("READ", answer);
    let answer = s.guest.write(node, file.fh, 5, b"still writable");
    s.number("WRITE", answer);
    let answer = s.guest.getattr(node, Some(file.fh));
    s.attr("GETATTR by handle", answer);
    let answer = s.guest.getattr(node, None);
    s.attr("GETATTR by node", answer);
    let answer = s.guest.setattr(node, &SetAttr::size(3));
    s.attr("truncate by node", answer);
    let answer = s.guest.open(node, libc::O_RDONLY);
    s.opened("OPEN of an unlinked file", answer);
    let answer = s.guest.release(node, file.fh);
    s.done("RELEASE", answer);
    let (node, file) = open(s, "big", libc::O_RDONLY);
    let answer = s.guest.rename(ROOT, b"empty", ROOT, b"big");
    s.done("RENAME over an open file", answer);
    let answer = s.guest.read(node, file.fh, 0, 400_000);
    s.data("READ of the replaced file", answer);
    find(s, "big");
    std::fs::remove_file(s.share.join("hard")).unwrap_or_default();
    std::fs::remove_file(s.share.join("f")).unwrap_or_default();
    find(s, "f");
}

fn directories(s: &mut Script) {
    s.mount();
    for name in ["d", "sticky", "f", "link"] {
        let node = find(s, name).nodeid;
        let answer = s.guest.opendir(node);
        let Some(dir) = s.opened(&format!("OPENDIR {name}"), answer) else { continue };
        for size in [0, 10, 24, 4096] {
            let answer = s.guest.readdir(node, dir.fh, 0, size);
            s.listing(&format!("READDIR {name} {size}"), answer);
        }
        for size in [0, 4096, 1 << 20] {
            let answer = s.guest.readdirplus(node, dir.fh, 0, size);
            s.listing(&format!("READDIRPLUS {name} {size}"), answer);
        }
        let answer = s.guest.read(node, dir.fh, 0, 100);
        s.data(&format!("READ of directory {name}"), answer);
        let answer = s.guest.fsyncdir(node, dir.fh, true);
        s.done(&format!("FSYNCDIR {name}"), answer);
        let answer = s.guest.releasedir(node, dir.fh);
        s.done(&format!("RELEASEDIR {name}"), answer);
        let answer = s.guest.readdir(node, dir.fh, 0, 4096);
        s.listing(&format!("READDIR {name} after RELEASEDIR"), answer);
    }
    // Of the root, `..` lies outside the share; the names are enough.
    let answer = s.guest.entries(ROOT, false, 4096);
    s.listing("all of the root", answer);
    let answer = s.guest.entries(ROOT, true, 4096);
    s.listing("all of the root with attributes", answer);
}

fn directory_paging(s: &mut Script) {
    s.mount();
    for n in 0..500 {
        std::fs::write(s.share.join(&format!("d/entry-{n:03}")), "").unwrap_or_default();
    }
    let node = find(s, "d").nodeid;
    for size in [64, 200, 1000, 4096, 65_536] {
        let answer = s.guest.entries(node, false, size);
        s.listing(&format!("by READDIR of {size}"), answer);
    }
    for size in [400, 4096, 1 << 20] {
        let answer = s.guest.entries(node, true, size);
        s.listing(&format!("by READDIRPLUS of {size}"), answer);
    }
    let answer = s.guest.opendir(node);
    let Some(dir) = s.opened("OPENDIR", answer) else { return };
    let answer = s.guest.readdir(node, dir.fh, 0, 1000);
    let middle = answer.ok().and_then(|page| page.last().map(|entry| entry.offset)).unwrap_or(0);
    let before = s.guest.readdir(node, dir.fh, middle, 1000).map(|page| page.first().map(|e| e.name.clone()));
    let again = s.guest.readdir(node, dir.fh, middle, 1000).map(|page| page.first().map(|e| e.name.clone()));
    s.note("reading twice from one offset", format!("{}", matches!((before, again), (Ok(a), Ok(b)) if a == b)));
    for n in 0..250 {
        std::fs::remove_file(s.share.join(&format!("d/entry-{n:03}"))).unwrap_or_default();
    }
    let answer = s.guest.entries(node, false, 4096);
    s.listing("after half of them are gone", answer);
}

fn large(s: &mut Script) {
    s.mount();
    let data: Vec<u8> = (0..9_000_000u32).map(|n| (n ^ (n >> 11)) as u8).collect();
    let answer = s.guest.write_file("d/large", &data);
    s.entry("write 9 MB", answer);
    let answer = s.guest.read_file("d/large");
    s.data("read 9 MB", answer);
    let (node, file) = {
        let node = s.guest.resolve("d/large").unwrap_or_default();
        let answer = s.guest.open(node, libc::O_RDWR);
        (node, s.opened("OPEN", answer).unwrap_or_default())
    };
    for size in [1 << 20, (1 << 20) + 1, (1 << 20) + 4096, (1 << 20) + 4097, 2 << 20] {
        let answer = s.guest.read(node, file.fh, 0, size);
        s.data(&format!("READ of {size}"), answer);
    }
}
