//! Seeded random operations: the same seed gives the same requests as long as the answers are the same.

use super::{plain, with};
use crate::fuse::{Entry, ROOT};
use crate::guest::SetAttr;
use crate::script::{Case, Script};
use crate::subject::Rng;

const OPERATIONS: usize = 400;
const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "big", "sub"];

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        plain("random-1", |s| random(s, 1)),
        plain("random-2", |s| random(s, 2)),
        plain("random-3", |s| random(s, 3)),
        with("random-writeback-xattr", &["--writeback", "--xattr", "--killpriv-v2"], |s| random(s, 4)),
        with("random-pool", &["--thread-pool-size", "4", "--cache", "always"], |s| random(s, 5)),
        with("random-readonly", &["--readonly", "--xattr"], |s| random(s, 6)),
    ]
}

struct State {
    rng: Rng,
    nodes: Vec<u64>,
    handles: Vec<(u64, u64)>,
}

impl State {
    fn node(&mut self) -> u64 {
        *self.rng.pick(&self.nodes)
    }

    fn name(&mut self) -> Vec<u8> {
        self.rng.pick(&NAMES).as_bytes().to_vec()
    }

    fn handle(&mut self) -> (u64, u64) {
        if self.handles.is_empty() { (ROOT, 99) } else { *self.rng.pick(&self.handles) }
    }

    fn met(&mut self, entry: Option<Entry>) {
        if let Some(entry) = entry
            && !self.nodes.contains(&entry.nodeid)
        {
            self.nodes.push(entry.nodeid);
        }
    }
}

fn random(s: &mut Script, seed: u64) {
    operations(s, seed);
    s.take_enomem_for_estale();
}

fn operations(s: &mut Script, seed: u64) {
    s.mount();
    let mut state = State { rng: Rng::new(seed), nodes: vec![ROOT], handles: Vec::new() };
    for name in ["d", "f", "big", "sparse"] {
        let answer = s.guest.lookup(ROOT, name.as_bytes());
        let entry = s.entry("LOOKUP", answer);
        state.met(entry);
    }
    for number in 0..OPERATIONS {
        let step = format!("seed {seed}, operation {number}");
        if state.rng.below(2) == 0 { on_names(s, &mut state, &step) } else { on_handles(s, &mut state, &step) }
    }
}

fn on_names(s: &mut Script, state: &mut State, step: &str) {
    let (node, name) = (state.node(), state.name());
    let step = |what: &str| format!("{step}: {what} {node} {}", name.escape_ascii());
    (s.guest.uid, s.guest.gid) = *state.rng.pick(&[(0, 0), (0, 0), (1000, 1000)]);
    let guest = &mut s.guest;
    let entry = match state.rng.below(11) {
        0..=2 => {
            let answer = guest.lookup(node, &name);
            s.entry(&step("LOOKUP"), answer)
        }
        3 => {
            let answer = guest.mkdir(node, &name, 0o750);
            s.entry(&step("MKDIR"), answer)
        }
        4 => {
            let answer = guest.symlink(node, &name, b"a/b");
            s.entry(&step("SYMLINK"), answer)
        }
        5 => {
            let target = state.node();
            let answer = guest.link(target, node, &name);
            s.entry(&step("LINK"), answer)
        }
        6 => {
            let answer = guest.unlink(node, &name);
            s.done(&step("UNLINK"), answer);
            None
        }
        7 => {
            let answer = guest.rmdir(node, &name);
            s.done(&step("RMDIR"), answer);
            None
        }
        8 => {
            let (to, new) = (state.node(), state.name());
            let flags = *state.rng.pick(&[0, 0, 1, 2]);
            let answer = guest.rename2(node, &name, to, &new, flags);
            s.done(&step(&format!("RENAME2 {flags} to {to} {}", new.escape_ascii())), answer);
            None
        }
        _ => {
            let flags = *state.rng.pick(&[libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC, libc::O_RDONLY, libc::O_EXCL]);
            let answer = guest.create(node, &name, flags | libc::O_CREAT, 0o640);
            let made = s.created(&step("CREATE"), answer);
            state.handles.extend(made.map(|(entry, file)| (entry.nodeid, file.fh)));
            made.map(|(entry, _)| entry)
        }
    };
    state.met(entry);
}

fn on_handles(s: &mut Script, state: &mut State, step: &str) {
    let (node, fh) = state.handle();
    let offset = state.rng.below(100_000);
    let len = state.rng.below(20_000);
    let step = |what: &str| format!("{step}: {what} {node} {fh} {offset}+{len}");
    let guest = &mut s.guest;
    match state.rng.below(12) {
        0 | 1 => {
            let answer = guest.read(node, fh, offset, len as u32);
            s.data(&step("READ"), answer);
        }
        2 | 3 => {
            let data = state.rng.bytes(len as usize);
            let answer = guest.write(node, fh, offset, &data);
            s.number(&step("WRITE"), answer);
        }
        4 => {
            let target = state.node();
            let answer = guest.setattr(target, &SetAttr::size(offset));
            s.attr(&step(&format!("truncate {target}")), answer);
        }
        5 => {
            let target = state.node();
            let answer = guest.setattr(target, &SetAttr::mode(offset as u32 & 0o777));
            s.attr(&step(&format!("chmod {target}")), answer);
        }
        6 => {
            let target = state.node();
            let flags = *state.rng.pick(&[libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY]);
            let answer = guest.open(target, flags);
            let opened = s.opened(&step(&format!("OPEN {target}")), answer);
            state.handles.extend(opened.map(|file| (target, file.fh)));
        }
        7 => {
            let answer = guest.release(node, fh);
            s.done(&step("RELEASE"), answer);
            state.handles.retain(|&handle| handle != (node, fh));
        }
        8 => {
            let target = state.node();
            let answer = guest.getattr(target, None);
            s.attr(&step(&format!("GETATTR {target}")), answer);
        }
        9 => {
            let target = state.node();
            let answer = guest.entries(target, false, 4096);
            s.listing(&step(&format!("list {target}")), answer);
        }
        10 => {
            let (to, to_fh) = state.handle();
            let answer = guest.copy_file_range((node, fh, offset), (to, to_fh, len), len, 0);
            s.number(&step(&format!("COPY_FILE_RANGE to {to} {to_fh}")), answer);
        }
        _ => {
            let target = state.node();
            let answer = guest.setxattr(target, b"user.random", &offset.to_le_bytes(), 0);
            s.done(&step(&format!("SETXATTR {target}")), answer);
            let answer = s.guest.getxattr(target, b"user.random", 64);
            s.data(&step(&format!("GETXATTR {target}")), answer);
        }
    }
}
