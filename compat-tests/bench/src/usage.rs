//! What a daemon costs: processor time and memory of a process and everything below it, from `/proc`.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// The process and all its descendants.
pub fn tree(pid: u32) -> Vec<u32> {
    let mut pids = vec![pid];
    let mut next = 0;
    while let Some(&pid) = pids.get(next) {
        next += 1;
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            pids.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    pids
}

/// Processor time of these processes, and of their children that have ended.
pub fn cpu(pids: &[u32]) -> Duration {
    // SAFETY: no pointers are involved.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as f64;
    let ticks: u64 = pids.iter().map(|pid| ticks(*pid).unwrap_or(0)).sum();
    Duration::from_secs_f64(ticks as f64 / hertz)
}

fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in brackets, which may hold anything.
    let rest = stat.rsplit_once(')')?.1;
    rest.split_whitespace().skip(11).take(4).map(|field| field.parse::<u64>().ok()).sum()
}

/// Memory of processes, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Anonymous and file pages.
    pub own: u64,
    /// Pages of shared memory other than the guest's: the pool. Counted once for each process that has touched them.
    pub shared: u64,
    /// Highest resident size ever, guest memory included.
    pub peak: u64,
}

/// Memory of these processes now. Pages of the guest's memory, which a daemon has mapped, are left out.
pub fn memory(pids: &[u32]) -> Memory {
    let mut memory = Memory::default();
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        memory.own += field(&status, "RssAnon:") + field(&status, "RssFile:");
        memory.peak += field(&status, "VmHWM:");
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
        let mut counted = false;
        for line in smaps.lines() {
            if line.split_once(' ').is_some_and(|(first, _)| first.contains('-') && !first.ends_with(':')) {
                counted = line.contains("/memfd:") && !line.contains("guest-memory");
            } else if counted && line.starts_with("Rss:") {
                memory.shared += field(line, "Rss:");
            }
        }
    }
    memory
}

/// Anonymous and file pages of these processes now: cheap enough to be asked often.
pub fn own_memory(pids: &[u32]) -> u64 {
    let statuses = pids.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default());
    statuses.map(|status| field(&status, "RssAnon:") + field(&status, "RssFile:")).sum()
}

/// Bytes that the file system of `path` has free.
///
/// # Errors
/// The host's.
pub fn free(path: &Path) -> io::Result<u64> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: a structure of numbers, for which zeros are values.
    let mut about: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated path and a structure that outlives the call.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut about) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(about.f_bavail * about.f_frsize)
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processor time of this thread.
    fn own_time() -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a structure that outlives the call.
        assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) }, 0);
        Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
    }

    #[test]
    fn this_process_has_used_time_and_memory() {
        let pids = tree(std::process::id());
        let mut sum = 0u64;
        // Not by the clock on the wall: other processes take of that what they want.
        while own_time() < Duration::from_millis(60) {
            sum = sum.wrapping_mul(31).wrapping_add(7);
        }
        assert_ne!(sum, 1);
        assert!(cpu(&pids) >= Duration::from_millis(20), "{:?}", cpu(&pids));
        let memory = memory(&pids);
        assert!(memory.own > 1 << 16 && memory.peak >= memory.own / 2, "{memory:?}");
    }
}
