//! INIT: versions, flags, limits; what happens without it; opcodes that do not exist; FORGET, INTERRUPT, DESTROY.

use super::{plain, with};
use crate::error::Fault;
use crate::fuse::{Body, InitRequest, ROOT, init, op};
use crate::guest::Call;
use crate::script::{Case, Script, show_fault};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        plain("versions", versions),
        plain("init-twice", init_twice),
        plain("init-short", init_short),
        with("init-refused", &["--posix-acl"], init_refused),
        plain("before-init", before_init),
        plain("absent-opcodes", absent_opcodes),
        plain("forget", forget),
        plain("destroy", destroy),
        plain("submounts-unsupported", |s| init_without(s, init::SUBMOUNTS)),
    ];
    let flag_sets: [(&str, &[&str]); 13] = [
        ("default", &[]),
        ("no-readdirplus", &["--no-readdirplus"]),
        ("cache-never", &["--cache", "never"]),
        ("cache-always", &["--cache", "always"]),
        ("cache-metadata", &["--cache", "metadata"]),
        ("writeback", &["--writeback"]),
        ("killpriv", &["--killpriv-v2"]),
        ("acl-always", &["--posix-acl"]),
        ("acl-auto", &["--posix-acl=auto"]),
        ("label", &["--security-label"]),
        ("label-auto", &["--security-label=auto"]),
        ("mmap", &["--cache", "never", "--allow-mmap"]),
        ("no-submounts", &["--no-announce-submounts"]),
    ];
    for (name, args) in flag_sets {
        cases.push(with(&format!("init-flags-{name}"), args, every_flag));
        cases.push(with(&format!("init-without-{name}"), args, without_option_flags));
    }
    cases
}

fn request(minor: u32) -> InitRequest {
    InitRequest { minor, ..InitRequest::default() }
}

fn versions(s: &mut Script) {
    let versions = [(7, 26), (7, 27), (7, 31), (7, 36), (7, 38), (7, 41), (7, 99), (6, 38), (5, 0), (8, 0), (99, 1)];
    for (major, minor) in versions {
        let answer = s.guest.init(&InitRequest { major, ..request(minor) });
        s.init(&format!("INIT {major}.{minor}"), answer);
    }
    let answer = s.guest.getattr(ROOT, None);
    s.attr("GETATTR afterwards", answer);
}

fn init_twice(s: &mut Script) {
    s.mount();
    s.mount();
    let answer = s.guest.lookup(ROOT, b"f");
    s.entry("LOOKUP", answer);
}

fn init_short(s: &mut Script) {
    for (name, flags) in [("all but INIT_EXT", init::ALL & !init::INIT_EXT), ("none", 0)] {
        let answer = s.guest.init(&InitRequest { short: true, flags, minor: 31, ..InitRequest::default() });
        s.init(&format!("short INIT, {name}"), answer);
    }
    let answer = s.guest.init(&InitRequest { flags: init::ALL & !init::INIT_EXT, ..InitRequest::default() });
    s.init("junk in flags2 without INIT_EXT", answer);
    for max_readahead in [0, 1, 4096, 1 << 20, u32::MAX] {
        let answer = s.guest.init(&InitRequest { max_readahead, ..InitRequest::default() });
        s.init(&format!("max_readahead {max_readahead}"), answer);
    }
}

fn init_refused(s: &mut Script) {
    let answer = s.guest.init(&InitRequest { flags: init::ALL & !init::POSIX_ACL, ..InitRequest::default() });
    s.init("INIT without POSIX_ACL", answer);
    let answer = s.guest.lookup(ROOT, b"missing");
    s.entry("LOOKUP after a refused INIT", answer);
}

fn every_flag(s: &mut Script) {
    s.mount();
    for bit in 0..64 {
        let flags = 1 << bit | init::INIT_EXT;
        let answer = s.guest.init(&InitRequest { flags, ..InitRequest::default() });
        s.init(&format!("only flag {bit}"), answer);
    }
}

fn init_without(s: &mut Script, missing: u64) {
    let answer = s.guest.init(&InitRequest { flags: init::ALL & !missing, ..InitRequest::default() });
    if s.init(&format!("INIT without {missing:#x}"), answer).is_some() {
        let answer = s.guest.lookup(ROOT, b"f");
        s.entry("LOOKUP", answer);
    }
}

fn without_option_flags(s: &mut Script) {
    init_without(s, init::POSIX_ACL);
    init_without(s, init::DONT_MASK);
    init_without(s, init::SETXATTR_EXT);
    init_without(s, init::SECURITY_CTX);
    init_without(s, init::HANDLE_KILLPRIV_V2 | init::WRITEBACK_CACHE | init::DO_READDIRPLUS);
}

fn before_init(s: &mut Script) {
    let answer = s.guest.lookup(ROOT, b"f");
    s.entry("LOOKUP", answer);
    let answer = s.guest.getattr(ROOT, None);
    s.attr("GETATTR", answer);
    let answer = s.guest.mkdir(ROOT, b"new", 0o755);
    s.entry("MKDIR", answer);
    s.mount();
    let answer = s.guest.lookup(ROOT, b"new");
    s.entry("LOOKUP new", answer);
}

fn absent_opcodes(s: &mut Script) {
    s.mount();
    let absent = [
        op::GETLK,
        op::SETLK,
        op::SETLKW,
        op::BMAP,
        op::IOCTL,
        op::POLL,
        op::NOTIFY_REPLY,
        op::SETUPMAPPING,
        op::REMOVEMAPPING,
        op::TMPFILE,
        op::STATX,
        53,
        4096,
        u32::MAX,
        0,
        7,
        19,
    ];
    for opcode in absent {
        let arg = [0; 64];
        let answer =
            s.guest.call(&Call { opcode, nodeid: ROOT, args: vec![&arg], reply: Some(256), ..Call::default() });
        s.data(&format!("opcode {opcode}"), answer);
    }
}

fn forget(s: &mut Script) {
    s.mount();
    for _ in 0..3 {
        let answer = s.guest.lookup(ROOT, b"f");
        s.entry("LOOKUP", answer);
    }
    let answer = s.guest.lookup(ROOT, b"f");
    let Some(entry) = s.entry("LOOKUP", answer) else { return };
    for (count, left) in [(1, "3 left"), (2, "1 left"), (1, "0 left")] {
        let answer = s.guest.forget(entry.nodeid, count).map_err(Fault::Device);
        s.done(&format!("FORGET {count}"), answer);
        let answer = s.guest.getattr(entry.nodeid, None);
        s.attr(left, answer);
    }
    let answer = s.guest.lookup(ROOT, b"f");
    let Some(again) = s.entry("LOOKUP", answer) else { return };
    let answer = s.guest.batch_forget(&[(again.nodeid, 5), (9999, 1)]).map_err(Fault::Device);
    s.done("BATCH_FORGET", answer);
    let answer = s.guest.getattr(again.nodeid, None);
    s.attr("forgotten", answer);
    let answer = s.guest.interrupt(2).map_err(Fault::Device);
    s.done("INTERRUPT", answer);
    let answer = s.guest.lookup(ROOT, b"d");
    s.entry("LOOKUP d", answer);
}

fn destroy(s: &mut Script) {
    s.mount();
    let answer = s.guest.lookup(ROOT, b"f");
    let Some(entry) = s.entry("LOOKUP", answer) else { return };
    let answer = s.guest.open(entry.nodeid, libc::O_RDONLY);
    s.opened("OPEN", answer);
    let outcome = s.guest.destroy().map_err(Fault::Device).map_or_else(|fault| show_fault(&fault), |()| "ok".into());
    s.note("DESTROY", outcome);
    let answer = s.guest.getattr(ROOT, None);
    s.attr("GETATTR after DESTROY", answer);
    s.mount();
    let answer = s.guest.read(entry.nodeid, 0, 0, 16);
    s.data("READ through an old handle", answer);
    let answer = s.guest.getattr(entry.nodeid, None);
    s.attr("GETATTR of an old node", answer);
    let answer = s.guest.lookup(ROOT, b"f");
    s.entry("LOOKUP", answer);
    let answer = s.guest.simple(op::ACCESS, ROOT, &Body::new().u32s(&[4, 0]).0, 0);
    s.data("ACCESS", answer);
}
