//! What outlives the daemon.

use ovfs_compat_tests::fuse::ROOT;
use ovfs_compat_tests::stores::Kind;

use crate::stage::{Outcome, Stage, demand, full, not_applicable, pattern};

const IN_MEMORY: &str = "what is in memory ends with the daemon";

pub fn what_was_closed_outlives_a_killed_daemon(s: &mut Stage) -> Outcome {
    if s.kind() == Kind::Memory {
        return not_applicable(IN_MEMORY);
    }
    let dir = s.path("d");
    if s.kind().keeps_empty_dirs() {
        s.guest().make_dirs(&format!("{dir}/deep"))?;
    } else {
        s.store.put(&format!("{dir}/deep/f0"), b"here to make the directories");
    }
    let files: Vec<(String, Vec<u8>)> = [0usize, 1, 4095, 70_000, 6 << 20]
        .into_iter()
        .zip(1..)
        .map(|(len, seed)| (format!("{dir}/deep/f{len}"), pattern(len, seed)))
        .collect();
    for (path, data) in &files {
        s.guest().write_file(path, data)?;
    }
    s.crash();
    demand(s.guest().list(&format!("{dir}/deep"))?.len() == files.len(), "files are missing")?;
    for (path, data) in &files {
        s.expect(path, data)?;
    }
    full()
}

pub fn what_was_fsynced_outlives_a_killed_daemon(s: &mut Stage) -> Outcome {
    if s.kind() == Kind::Memory {
        return not_applicable(IN_MEMORY);
    }
    let (path, data) = (s.path("f"), pattern(1 << 20, 9));
    let (entry, file) = s.guest().create(ROOT, path.as_bytes(), libc::O_RDWR, 0o644)?;
    s.guest().write_all(entry.nodeid, file.fh, 0, &data)?;
    s.guest().fsync(entry.nodeid, file.fh, false)?;
    s.guest().write(entry.nodeid, file.fh, 0, b"not synced")?;
    s.crash();
    let got = s.guest().read_file(&path)?;
    demand(got.len() == data.len() && got[10..] == data[10..], "it is not there")?;
    demand(got[..10] == data[..10] || &got[..10] == b"not synced", "it is a mix")?;
    full()
}
