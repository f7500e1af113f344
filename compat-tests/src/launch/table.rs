//! The process table, as `/proc` shows it.

use std::fs;

/// Sends a signal; a process that is already gone is no error.
pub fn kill(pid: u32, signal: libc::c_int) {
    if let Ok(pid) = libc::pid_t::try_from(pid) {
        // SAFETY: numbers only.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Makes orphans of our daemons our children: where the machine's first process reaps nobody, they would pile up.
pub(super) fn adopt_orphans() {
    // SAFETY: numbers only. Where the kernel refuses, orphans go to the first process as usual.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}

/// Reaps the ended members of a process group whose leader was reaped before.
pub(super) fn reap_group(group: u32) {
    let Ok(group) = libc::pid_t::try_from(group) else { return };
    // SAFETY: a null status pointer is allowed; the call takes numbers besides.
    while unsafe { libc::waitpid(-group, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

/// One line of the process table.
#[derive(Clone, Copy, Debug)]
pub struct ProcessEntry {
    /// The process.
    pub pid: u32,
    /// Its parent.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
}

/// All processes that are not zombies, by rising id.
pub fn process_table() -> Vec<ProcessEntry> {
    let mut table: Vec<ProcessEntry> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| process_entry(entry.file_name().to_str()?.parse().ok()?))
        .collect();
    table.sort_by_key(|process| process.pid);
    table
}

/// Whether the process runs (a zombie does not).
pub fn is_alive(pid: u32) -> bool {
    process_entry(pid).is_some()
}

fn process_entry(pid: u32) -> Option<ProcessEntry> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything: the fixed fields begin after the last one.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let entry = |parent: &str, group: &str| {
        Some(ProcessEntry { pid, parent: parent.parse().ok()?, group: group.parse().ok()? })
    };
    let state = fields.next()?;
    let found = entry(fields.next()?, fields.next()?);
    // The first thread of a process can be a zombie while others still hold its files: 14 fields on is their number.
    let threads: u32 = fields.nth(14)?.parse().ok()?;
    let ended = matches!(state, "Z" | "X") && threads <= 1;
    found.filter(|_| !ended)
}
