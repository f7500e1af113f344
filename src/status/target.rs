//! Finding the daemon that a user means, and asking it.
//!
//! What answers is the broker, under a name made of its process id ([`status_name`]). A user may name that process, the
//! device process, or the vhost-user socket: then the pid file beside it tells, or, where there is none because a launcher
//! made the socket, the kernel: who has it open. Connecting to the socket itself would take the guest's place.

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::broker::{Answer, status_name};
use crate::metrics::Snapshot;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest answer that is read.
const ANSWER_MAX: u64 = 256 << 20;

/// Why a daemon cannot be asked. Each is one line.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The process does not exist.
    #[error("there is no process {0}")]
    NoProcess(u32),
    /// The pid file's does not.
    #[error("there is no process {pid}, which {} names: the daemon has ended", file.display())]
    Stale {
        /// The pid file.
        file: PathBuf,
        /// The process.
        pid: u32,
    },
    /// It is something else.
    #[error("process {0} is not ovfs")]
    NotOvfs(u32),
    /// It is ovfs, and nobody answers in its name.
    #[error(
        "process {0} keeps no counters: it shares a directory, or is about to start or to end; only daemons with a backend \
         can be asked"
    )]
    Silent(u32),
    /// The path leads nowhere.
    #[error("{}: {error}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Nobody has the socket open whom we could find.
    #[error("{}: no daemon that can be asked has this socket open, as far as this user can see", .0.display())]
    Nobody(PathBuf),
    /// It will not tell us.
    #[error("process {pid} does not answer this user: {why}")]
    Refused {
        /// The broker.
        pid: u32,
        /// Its words.
        why: String,
    },
    /// Somebody else answers in its name.
    #[error("somebody else answers in the name of process {0}")]
    Impostor(u32),
    /// The answer did not come, or is not one.
    #[error("process {pid} could not be asked: {error}")]
    Broken {
        /// The broker.
        pid: u32,
        /// Why not.
        error: io::Error,
    },
}

/// A broker that listens.
#[derive(Debug)]
pub struct Target {
    pid: u32,
}

impl Target {
    /// The broker of the daemon that `text` names: a process id, or the path of a socket.
    ///
    /// # Errors
    /// As the variants say.
    pub fn find(text: &str) -> Result<Target, TargetError> {
        if let Ok(pid) = text.parse() {
            return broker_of(pid);
        }
        let path = Path::new(text);
        let file = PathBuf::from(format!("{text}.pid"));
        if let Some(pid) = fs::read_to_string(&file).ok().and_then(|pid| pid.trim().parse().ok()) {
            return broker_of(pid).map_err(|error| match error {
                TargetError::NoProcess(pid) => TargetError::Stale { file, pid },
                error => error,
            });
        }
        fs::metadata(path).map_err(|error| TargetError::Path { path: path.to_owned(), error })?;
        let path = fs::canonicalize(path).map_err(|error| TargetError::Path { path: path.to_owned(), error })?;
        let holders = listening(text, &path).map_or_else(|_| Vec::new(), |inodes| holders(&inodes));
        let found = holders.into_iter().find_map(|pid| broker_of(pid).ok());
        found.ok_or(TargetError::Nobody(path))
    }

    /// All counters, now.
    ///
    /// # Errors
    /// As the variants say.
    pub fn ask(&self) -> Result<Snapshot, TargetError> {
        let pid = self.pid;
        let broken = |error| TargetError::Broken { pid, error };
        let stream = connect(pid).map_err(broken)?;
        if peer(&stream).map_err(broken)? != pid {
            return Err(TargetError::Impostor(pid));
        }
        stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer).map_err(broken)?;
        match serde_json::from_slice(&answer).map_err(|error| broken(error.into()))? {
            Answer::Snapshot(snapshot) => Ok(*snapshot),
            Answer::Refused(why) => Err(TargetError::Refused { pid, why }),
        }
    }
}

/// The broker that is process `pid` or its parent.
fn broker_of(pid: u32) -> Result<Target, TargetError> {
    if connect(pid).is_ok() {
        return Ok(Target { pid });
    }
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return Err(TargetError::NoProcess(pid));
    };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let is_ours = |name: Option<&str>| matches!(name, Some("ovfs" | "virtiofsd"));
    if !is_ours(field("Name")) {
        return Err(TargetError::NotOvfs(pid));
    }
    let parent = field("PPid").and_then(|parent| parent.parse().ok()).filter(|parent| connect(*parent).is_ok());
    parent.map(|pid| Target { pid }).ok_or(TargetError::Silent(pid))
}

fn connect(pid: u32) -> io::Result<UnixStream> {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(status_name(pid))?)
}

/// The process that listens at the other end.
fn peer(stream: &UnixStream) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` has room for the `len` bytes that SO_PEERCRED answers.
    let result = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut len)
    };
    if result == 0 { Ok(peer.pid.unsigned_abs()) } else { Err(io::Error::last_os_error()) }
}

/// The inodes of the sockets that listen at this path, however it was spelt when they were bound.
fn listening(text: &str, path: &Path) -> io::Result<Vec<String>> {
    Ok(inodes_at(&fs::read_to_string("/proc/net/unix")?, &[text, &path.to_string_lossy()]))
}

/// From the table of `/proc/net/unix`: `Num RefCount Protocol Flags Type St Inode Path`.
fn inodes_at(table: &str, paths: &[&str]) -> Vec<String> {
    /// `__SO_ACCEPTCON`: it listens.
    const LISTENS: u32 = 1 << 16;
    let listens = |flags: &str| u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & LISTENS != 0);
    let sockets = table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (flags, inode) = (fields.nth(3)?, fields.nth(2)?);
        let name = line.split_once(&format!(" {inode} "))?.1;
        (listens(flags) && paths.contains(&name)).then(|| inode.to_owned())
    });
    sockets.collect()
}

/// The processes that have one of these sockets open, as far as we may look.
fn holders(inodes: &[String]) -> Vec<u32> {
    let links: Vec<PathBuf> = inodes.iter().map(|inode| format!("socket:[{inode}]").into()).collect();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_it = |pid: &u32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|link| links.contains(&link))
    };
    pids.filter(has_it).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn listening_sockets_are_found_by_path() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 11 /run/s\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 12 /run/s\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 13 /run/with space\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 14\n\
            nonsense\n";
        assert_eq!(inodes_at(table, &["/run/s"]), ["11"]);
        assert_eq!(inodes_at(table, &["/run/with space", "x"]), ["13"]);
        assert!(inodes_at(table, &["/run"]).is_empty());
    }

    #[test]
    fn holder_of_a_socket_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let _listener = UnixListener::bind(&path).expect("bind");
        let text = path.to_str().expect("UTF-8");
        let inodes = listening(text, &path).expect("/proc");
        assert!(holders(&inodes).contains(&std::process::id()), "{inodes:?}");
        assert!(matches!(Target::find(text), Err(TargetError::Nobody(_))));
    }

    #[test]
    fn what_cannot_be_asked_is_told() {
        let mut child = std::process::Command::new("true").spawn().expect("true(1)");
        child.wait().expect("it ends");
        let said = Target::find(&child.id().to_string()).expect_err("it is gone").to_string();
        assert_eq!(said, format!("there is no process {}", child.id()));
        assert!(matches!(Target::find("1"), Err(TargetError::NotOvfs(1))));
        let said = Target::find("/nonexistent/s").expect_err("nothing is there").to_string();
        assert_eq!(said, "/nonexistent/s: No such file or directory (os error 2)");
    }
}
