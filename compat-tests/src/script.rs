//! A script run over a guest, writing down every reply in a form that does not depend on the run.
//!
//! What differs between two runs of the same daemon is replaced or left out: times that are not in the past become
//! `now`, directory entries come in alphabetical order, and inode numbers, sizes of directories and block counts, which
//! are the host file system's affair, are left out. Everything else is kept: errnos, nodeids, generations, handles,
//! flags, timeouts, modes, owners, data.

use std::path::Path;

use crate::error::{Answer, Error, Fault};
use crate::frontend::Config;
use crate::fuse::{Attr, AttrOut, DirEntry, Entry, InitReply, InitRequest, Opened};
use crate::guest::Guest;
use crate::subject::Share;
use crate::tree;

/// One recorded step: what was done, what came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What was done.
    pub step: String,
    /// What came back.
    pub outcome: String,
}

/// Times before this are fixtures and are kept; later ones are `now`.
const FIXED_TIMES_END: i64 = 1_577_836_800;

/// A named script and the options of the daemon it runs on.
#[derive(Clone, Debug)]
pub struct Case {
    /// Unique name.
    pub name: String,
    /// Daemon options beside the shared directory and the socket.
    pub args: Vec<String>,
    /// The script; it starts without INIT.
    pub run: fn(&mut Script),
}

/// A running script.
#[derive(Debug)]
pub struct Script {
    /// The guest the script drives.
    pub guest: Guest,
    /// The shared directory on the host, for what happens behind the daemon's back.
    pub share: Share,
    lines: Vec<Line>,
}

impl Script {
    /// Runs a case on `bin` over a fresh directory and returns what it recorded, the resulting host tree included.
    ///
    /// # Panics
    /// When the daemon does not start.
    pub fn run(bin: &Path, case: &Case) -> Vec<Line> {
        let share = Share::new();
        fixture(&share);
        let mut daemon = share.serve(bin, &case.args);
        let guest = Guest::connect(&daemon.socket(), &Config::default())
            .unwrap_or_else(|error| panic!("{}: {error}: {}", case.name, daemon.log()));
        let mut script = Script { guest, share, lines: Vec::new() };
        (case.run)(&mut script);
        let Script { guest, share, mut lines, .. } = script;
        drop(guest);
        let code = daemon.wait_exit().map_or_else(|error| error.to_string(), |code| code.to_string());
        lines.push(Line { step: "exit code".into(), outcome: code });
        for line in tree::snapshot(share.surroundings()) {
            lines.push(Line { step: "host".into(), outcome: line });
        }
        lines
    }

    /// Writes down a step.
    pub fn note(&mut self, step: impl Into<String>, outcome: impl Into<String>) {
        self.lines.push(Line { step: step.into(), outcome: outcome.into() });
    }

    /// Records ENOMEM as ESTALE: of a directory that is gone the host's kernel says one or the other when its file handle is
    /// opened, as memory and time have it.
    pub fn take_enomem_for_estale(&mut self) {
        for line in self.lines.iter_mut().filter(|line| line.outcome == "ENOMEM") {
            line.outcome = "ESTALE".into();
        }
    }

    fn keep<T>(&mut self, step: &str, answer: Answer<T>, show: impl FnOnce(&T) -> String) -> Option<T> {
        match answer {
            Ok(value) => {
                let text = show(&value);
                self.note(step, text);
                Some(value)
            }
            Err(fault) => {
                self.note(step, show_fault(&fault));
                None
            }
        }
    }

    /// Sends INIT with every flag and records the answer; every script but those about INIT starts with it.
    pub fn mount(&mut self) {
        let answer = self.guest.init(&InitRequest::default());
        self.init("INIT", answer);
    }

    /// Records an INIT answer.
    pub fn init(&mut self, step: &str, answer: Answer<InitReply>) -> Option<InitReply> {
        self.keep(step, answer, |reply| format!("{:#x} {reply:?}", reply.flags))
    }

    /// Records an answer without content.
    pub fn done(&mut self, step: &str, answer: Answer<()>) -> bool {
        self.keep(step, answer, |()| "ok".into()).is_some()
    }

    /// Records a number.
    pub fn number<N: Into<u64> + Copy>(&mut self, step: &str, answer: Answer<N>) -> Option<N> {
        self.keep(step, answer, |&n| n.into().to_string())
    }

    /// Records bytes: text as it is, much or binary as length and checksum.
    pub fn data(&mut self, step: &str, answer: Answer<Vec<u8>>) -> Option<Vec<u8>> {
        self.keep(step, answer, |bytes| show_bytes(bytes))
    }

    /// Records an entry.
    pub fn entry(&mut self, step: &str, answer: Answer<Entry>) -> Option<Entry> {
        self.keep(step, answer, show_entry)
    }

    /// Records attributes.
    pub fn attr(&mut self, step: &str, answer: Answer<AttrOut>) -> Option<AttrOut> {
        self.keep(step, answer, |out| format!("ttl={} {}", show_ns(out.attr_timeout_ns), show_attr(&out.attr)))
    }

    /// Records an opened handle.
    pub fn opened(&mut self, step: &str, answer: Answer<Opened>) -> Option<Opened> {
        self.keep(step, answer, |opened| format!("fh={} flags={:#x}", opened.fh, opened.flags))
    }

    /// Records a created and opened file.
    pub fn created(&mut self, step: &str, answer: Answer<(Entry, Opened)>) -> Option<(Entry, Opened)> {
        self.keep(step, answer, |(entry, opened)| {
            format!("{} fh={} flags={:#x}", show_entry(entry), opened.fh, opened.flags)
        })
    }

    /// Records directory entries in alphabetical order.
    pub fn listing(&mut self, step: &str, answer: Answer<Vec<DirEntry>>) -> Option<Vec<DirEntry>> {
        self.keep(step, answer, |entries| {
            let mut sorted: Vec<_> = entries.iter().collect();
            sorted.sort_by(|a, b| a.name.cmp(&b.name));
            let shown = sorted.iter().map(|entry| {
                let name = entry.name.escape_ascii();
                let plus = entry.entry.as_ref().map(|e| show_listed(&entry.name, e)).unwrap_or_default();
                format!("{name} type={}{plus}", entry.kind)
            });
            format!("[{}]", shown.collect::<Vec<_>>().join("; "))
        })
    }
}

/// READDIRPLUS gives nodeids in the host's order, so they are left out; `..` of the root is the host's affair.
fn show_listed(name: &[u8], entry: &Entry) -> String {
    if name == b"." || name == b".." {
        return format!(" node={}", entry.nodeid);
    }
    let ttl = (show_ns(entry.entry_timeout_ns), show_ns(entry.attr_timeout_ns));
    format!(" gen={} ttl={}/{} {}", entry.generation, ttl.0, ttl.1, show_attr(&entry.attr))
}

fn show_entry(entry: &Entry) -> String {
    let ttl = (show_ns(entry.entry_timeout_ns), show_ns(entry.attr_timeout_ns));
    format!("node={} gen={} ttl={}/{} {}", entry.nodeid, entry.generation, ttl.0, ttl.1, show_attr(&entry.attr))
}

fn show_attr(attr: &Attr) -> String {
    let kind = match attr.kind() {
        libc::S_IFREG => "file",
        libc::S_IFDIR => "dir",
        libc::S_IFLNK => "symlink",
        libc::S_IFIFO => "fifo",
        libc::S_IFSOCK => "socket",
        libc::S_IFCHR => "char",
        libc::S_IFBLK => "block",
        _ => "unknown",
    };
    let size = if attr.is_dir() { String::new() } else { format!(" size={}", attr.size) };
    let mtime = show_time(attr.mtime, attr.mtimensec);
    format!(
        "{kind} {:o} {}:{} nlink={}{size} rdev={:#x} blksize={} flags={:#x} mtime={mtime}",
        attr.mode & 0o7777,
        attr.uid,
        attr.gid,
        attr.nlink,
        attr.rdev,
        attr.blksize,
        attr.flags
    )
}

/// A time: exact when a script set it, `now` otherwise.
pub fn show_time(seconds: i64, nanoseconds: u32) -> String {
    if seconds < FIXED_TIMES_END { format!("{seconds}.{nanoseconds:09}") } else { "now".into() }
}

fn show_ns(ns: u128) -> String {
    format!("{}s", ns as f64 / 1e9)
}

/// A fault as recorded. What a device failure says in detail depends on the run, so only its class is kept.
pub fn show_fault(fault: &Fault) -> String {
    match fault {
        Fault::Errno(_) => fault.to_string(),
        Fault::Device(Error::Disconnected(_)) => "the daemon is gone".into(),
        Fault::Device(Error::Timeout { .. }) => "no answer".into(),
        Fault::Device(error) => format!("device failure: {error}"),
    }
}

fn show_bytes(bytes: &[u8]) -> String {
    if bytes.len() <= 64 {
        format!("\"{}\"", bytes.escape_ascii())
    } else {
        use md5::{Digest, Md5};
        format!("{} bytes md5={}", bytes.len(), tree::hex(&Md5::digest(bytes)))
    }
}

/// What every script finds in its share: files, links, directories and special files with fixed times and owners.
///
/// # Panics
/// When the temporary directory cannot be filled.
pub fn fixture(share: &Share) {
    fill(share).expect("the fixture can be made");
}

fn fill(share: &Share) -> std::io::Result<()> {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    let at = |name: &str| share.join(name);
    fs::write(at("f"), "hello world\n")?;
    fs::write(at("empty"), "")?;
    fs::write(at("big"), (0..300_000u32).map(|n| (n * 7 % 251) as u8).collect::<Vec<_>>())?;
    fs::write(at("owned"), "owned by 1000")?;
    fs::write(at("setuid"), "#!/bin/true\n")?;
    fs::hard_link(at("f"), at("hard"))?;
    symlink("f", at("link"))?;
    symlink("../outside/secret", at("escape"))?;
    for dir in ["d", "d/sub", "d/sub/deep", "sticky", "group"] {
        fs::create_dir(at(dir))?;
    }
    for file in ["d/a", "d/b", "d/sub/c", "d/sub/deep/e"] {
        fs::write(at(file), file)?;
    }
    let sparse = fs::File::create(at("sparse"))?;
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 1 << 20)?;
    sparse.set_len(2 << 20)?;
    make_fifo(&at("pipe"))?;
    for (name, mode) in
        [("f", 0o644), ("owned", 0o600), ("setuid", 0o6755), ("sticky", 0o1777), ("group", 0o2775), ("d", 0o755)]
    {
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode))?;
    }
    // Only root can give files away; everybody else's fixture is the same on both sides all the same.
    for (name, uid, gid) in [("owned", 1000, 1000), ("group", 0, 1000)] {
        let _ = chown(at(name), Some(uid), Some(gid));
    }
    fs::set_permissions(at("group"), fs::Permissions::from_mode(0o2775))?;
    for name in ["f", "empty", "big", "owned", "setuid", "sparse", "d/a", "d/sub/c", "d/sub", "d", "sticky", "group"] {
        set_times(&at(name), 1_000_000_000, 1_100_000_000)?;
    }
    Ok(())
}

fn c_path(path: &Path) -> std::io::Result<std::ffi::CString> {
    Ok(std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?)
}

fn make_fifo(path: &Path) -> std::io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: a NUL-terminated path that lives through the call.
    match unsafe { libc::mkfifo(path.as_ptr(), 0o644) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Sets access and modification time, in seconds.
pub fn set_times(path: &Path, atime: i64, mtime: i64) -> std::io::Result<()> {
    let path = c_path(path)?;
    let times = [atime, mtime].map(|tv_sec| libc::timespec { tv_sec, tv_nsec: 123_456_789 });
    // SAFETY: a NUL-terminated path and two timespecs that live through the call.
    match unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
