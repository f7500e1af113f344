//! Looking at processes, files and FUSE replies, and naming what is seen.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::Facts;
use crate::launch::{Daemon, EXIT_TIMEOUT, is_alive};
use crate::minivu::Connection;

/// A line of `/proc/PID/status`, without its key.
pub fn status(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.map_or_else(|| "(gone)".to_owned(), |value| value.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A file below `/proc/PID`, trimmed.
pub fn proc_file(pid: u32, name: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{name}"))
        .map_or_else(|error| error.to_string(), |text| text.trim().to_owned())
}

/// Whether a process shares each kind of namespace with us: `ipc shared, mnt own, …`.
pub fn namespaces(pid: u32) -> String {
    let link = |pid: &str, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).ok();
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    let words = kinds.map(|kind| match (link(&pid.to_string(), kind), link("self", kind)) {
        (Some(theirs), Some(ours)) => format!("{kind} {}", if theirs == ours { "shared" } else { "own" }),
        _ => format!("{kind} unreadable"),
    });
    words.join(", ")
}

/// All that confines a process but its namespaces: capabilities, NoNewPrivs, Seccomp, users, groups.
///
/// A bounding set that was left alone shows as `inherited`: its bits are the machine's.
pub fn put_confinement(facts: &mut Facts, prefix: &str, pid: u32) {
    for key in ["CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs", "Seccomp", "Uid", "Gid", "Groups"] {
        facts.put(format!("{prefix} {key}"), status(pid, key));
    }
    let bound = status(pid, "CapBnd");
    let inherited = bound != "0".repeat(16) && bound == status(std::process::id(), "CapBnd");
    facts.put(format!("{prefix} CapBnd"), if inherited { "inherited" } else { &bound });
}

/// How many processes a daemon has and how each is confined. The namespaces shown are those of the one that serves.
pub fn put_processes(facts: &mut Facts, daemon: &Daemon) {
    let (parent, worker) = (daemon.pid(), daemon.worker());
    facts.put("processes", if worker == parent { 1 } else { 2 });
    put_confinement(facts, "parent", parent);
    if worker != parent {
        put_confinement(facts, "worker", worker);
    }
    facts.put("worker namespaces", namespaces(worker));
}

/// `name soft hard` of a resource limit.
pub fn open_files_limit(pid: u32) -> String {
    let limits = proc_file(pid, "limits");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.map_or_else(|| "(gone)".to_owned(), |line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}

/// The names of all threads, sorted.
pub fn threads(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut names: Vec<String> = tasks
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect();
    names.sort();
    names
}

/// `socket 700 0:0`, `file 600 0:0`, `absent`.
pub fn file(path: &Path) -> String {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return "absent".to_owned();
    };
    let kind = match meta.file_type() {
        kind if kind.is_socket() => "socket",
        kind if kind.is_symlink() => "symlink",
        kind if kind.is_dir() => "directory",
        _ => "file",
    };
    format!("{kind} {:o} {}:{}", meta.mode() & 0o7777, meta.uid(), meta.gid())
}

/// Any group but root's that this machine knows: name and number.
///
/// # Panics
/// When there is none.
pub fn some_group() -> (String, u32) {
    let groups = fs::read_to_string("/etc/group").expect("read the groups");
    let parse = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        Some((name, fields.nth(1)?.parse().ok()?))
    };
    groups.lines().filter_map(parse).find(|&(_, gid)| gid != 0).expect("a group besides root")
}

/// The interfaces that a process sees.
pub fn interfaces(pid: u32) -> Vec<String> {
    let table = proc_file(pid, "net/dev");
    table.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

/// Waits until a process is gone; false when it stays.
pub fn gone(pid: u32) -> bool {
    let deadline = Instant::now() + EXIT_TIMEOUT;
    while is_alive(pid) {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

/// The words of an INIT reply: `7.38 flags 0x… …`.
pub fn init_reply(reply: &[u8]) -> String {
    let word = |at: usize| reply.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let half = |at: usize| reply.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    let flags = u64::from(word(12)) | u64::from(word(32)) << 32;
    format!(
        "{}.{} readahead {} flags {flags:#x} background {} congestion {} write {} granularity {} pages {} alignment {} length {}",
        word(0),
        word(4),
        word(8),
        half(16),
        half(18),
        word(20),
        word(24),
        half(28),
        half(30),
        reply.len()
    )
}

/// What reading a file gives: its text or the errno.
pub fn read_of(guest: &mut Connection, parent: u64, name: &str) -> String {
    let mut attempt = || -> io::Result<String> {
        let entry = guest.lookup(parent, name)?;
        let (handle, flags) = guest.open_file(entry.nodeid, 0)?;
        let data = guest.read_file(entry.nodeid, handle, 4096)?;
        Ok(format!("mode {:o}, open flags {flags:#x}, {:?}", entry.mode, String::from_utf8_lossy(&data)))
    };
    attempt().unwrap_or_else(|error| error.to_string())
}
