//! The listening socket and the pid file beside it.
//!
//! Order and modes are virtiofsd's, because launchers watch the directory: pid file (locked, so that two daemons never
//! share a socket path), then the socket, replacing whatever stood there. Mode 0700, or 0770 with a group, whatever the
//! caller's umask.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process;

use log::warn;
use thiserror::Error;
use virtiofsd::oslib::ScopedUmask;
use virtiofsd::util::write_pid_file;

use super::log::TARGET;
use crate::cli::EndpointPlan;

/// Why there is no listening socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The path has no last component.
    #[error("Invalid socket file name")]
    Name,
    /// The directory of the socket is missing.
    #[error("{} does not exist or is not a directory", .0.display())]
    Directory(PathBuf),
    /// The pid file cannot be written, or another daemon holds it.
    #[error("Error creating pid file '{}': {error}", .path.display())]
    PidFile {
        /// Its path.
        path: PathBuf,
        /// Why not; EAGAIN: held by another daemon.
        error: io::Error,
    },
    /// bind(2) or listen(2) failed.
    #[error("Error creating listener: socket error: {0}")]
    Listener(io::Error),
    /// No such group.
    #[error("Couldn't resolve the group name specified for the socket path")]
    GroupName,
    /// The socket cannot be given to the group.
    #[error("Couldn't set up the group for the socket path: {0}")]
    Group(io::Error),
    /// The inherited descriptor is no listening socket.
    #[error("Failed to start daemon: CreateBackendListener(SocketError({0:?}))")]
    Inherited(io::Error),
}

/// A listening socket, and what has to last as long as it.
#[derive(Debug)]
pub struct Endpoint {
    listener: UnixListener,
    path: Option<PathBuf>,
    pid_file: Option<File>,
}

impl Endpoint {
    /// Creates the socket and its pid file, or takes over the inherited one.
    ///
    /// # Errors
    /// As the variants of [`SocketError`] say. What was created before a failure stays, as with virtiofsd.
    pub fn open(plan: &EndpointPlan) -> Result<Endpoint, SocketError> {
        match plan {
            EndpointPlan::Inherited(fd) => {
                let listener = inherit(*fd).map_err(SocketError::Inherited)?;
                Ok(Endpoint { listener, path: None, pid_file: None })
            }
            EndpointPlan::Path { path, group, deprecated } => {
                let endpoint = create(path, group.is_some(), *deprecated)?;
                if let Some(group) = group {
                    give_to_group(path, group)?;
                }
                Ok(endpoint)
            }
        }
    }

    /// The listening socket, for whoever accepts, and its place, for whoever outlives it. After a fork each process drops
    /// the part that it has no use for: a parent that kept listening would take in clients that nobody answers, and a
    /// child that kept the pid file's lock would keep out a successor of its parent.
    pub fn split(self) -> (UnixListener, SocketPath) {
        (self.listener, SocketPath { path: self.path, _pid_file: self.pid_file })
    }
}

/// Where the socket stands, with the lock of its pid file.
#[derive(Debug)]
pub struct SocketPath {
    path: Option<PathBuf>,
    /// Keeps other daemons from the same path; closed with the process.
    _pid_file: Option<File>,
}

impl SocketPath {
    /// Removes the socket, as virtiofsd does without a sandbox when the client has gone. Inherited sockets are not
    /// ours to remove.
    pub fn remove(&self) {
        if let Some(path) = &self.path {
            // It may be gone already, or be a successor's problem.
            let _ = fs::remove_file(path);
        }
    }
}

fn create(path: &Path, for_group: bool, deprecated: bool) -> Result<Endpoint, SocketError> {
    let all_others = libc::S_IROTH | libc::S_IWOTH | libc::S_IXOTH;
    let group = libc::S_IRGRP | libc::S_IWGRP | libc::S_IXGRP;
    let _umask = ScopedUmask::new(if for_group { all_others } else { group | all_others });
    if deprecated {
        warn!(
            target: TARGET,
            "use of deprecated parameter '--socket': Please use the '--socket-path' option instead"
        );
    }
    let directory = path.parent().ok_or(SocketError::Name)?;
    if !directory.as_os_str().is_empty() && !directory.exists() {
        return Err(SocketError::Directory(directory.to_owned()));
    }
    let pid_file = lock_pid_file(path)?;
    // Nothing there is the usual case; anything that cannot be removed makes bind fail.
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(SocketError::Listener)?;
    Ok(Endpoint { listener, path: Some(path.to_owned()), pid_file: Some(pid_file) })
}

/// Writes `<socket>.pid`. A longer pid of a predecessor is cut off, which virtiofsd leaves standing.
fn lock_pid_file(socket: &Path) -> Result<File, SocketError> {
    let mut name = socket.as_os_str().as_bytes().to_vec();
    name.extend_from_slice(b".pid");
    let path = PathBuf::from(OsString::from_vec(name));
    let write = || {
        let file = write_pid_file(&path)?;
        file.set_len(format!("{}\n", process::id()).len() as u64)?;
        Ok(file)
    };
    write().map_err(|error| SocketError::PidFile { path: path.clone(), error })
}

fn give_to_group(path: &Path, group: &CString) -> Result<(), SocketError> {
    // SAFETY: `group` is a C string; no other thread exists that could call getgrnam meanwhile.
    let entry = unsafe { libc::getgrnam(group.as_ptr()) };
    if entry.is_null() {
        return Err(SocketError::GroupName);
    }
    // SAFETY: getgrnam's result is valid until its next call.
    let gid = unsafe { (*entry).gr_gid };
    std::os::unix::fs::chown(path, None, Some(gid)).map_err(SocketError::Group)
}

/// Takes over descriptor `fd` if it is a listening socket. Checked before anything says that the daemon is ready.
///
/// # Errors
/// EBADF: not open. ENOTSOCK: no socket. EINVAL: a socket that does not listen. (accept(2)'s errors for the same.)
fn inherit(fd: RawFd) -> io::Result<UnixListener> {
    // SAFETY: asks about any number; the result is checked.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is open, as just seen, and borrowed for this function only.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut listens: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `listens` has room for the `len` bytes that SO_ACCEPTCONN answers.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ACCEPTCONN,
            (&raw mut listens).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if listens == 0 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: sets a flag of an open descriptor. Should it fail, a program that we start would inherit the socket.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: the launcher gave us this descriptor by its number, and nothing else here owns it.
    Ok(unsafe { UnixListener::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn plan(path: &Path) -> EndpointPlan {
        EndpointPlan::Path { path: path.to_owned(), group: None, deprecated: false }
    }

    #[test]
    fn socket_replaces_what_stands_there_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        fs::write(&path, b"stale").unwrap();
        fs::write(dir.path().join("s.pid"), b"99999999999999\n").unwrap();
        let endpoint = Endpoint::open(&plan(&path)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_to_string(dir.path().join("s.pid")).unwrap(), format!("{}\n", process::id()));
        let second = Endpoint::open(&plan(&path)).unwrap_err().to_string();
        assert!(second.ends_with("s.pid': Resource temporarily unavailable (os error 11)"), "{second}");
        let (listener, place) = endpoint.split();
        drop(listener);
        assert!(path.exists() && UnixStream::connect(&path).is_err());
        place.remove();
        assert!(!path.exists());
    }

    #[test]
    fn unusable_paths_are_named() {
        let error = |path: &str| Endpoint::open(&plan(Path::new(path))).unwrap_err().to_string();
        assert_eq!(error(""), "Invalid socket file name");
        assert_eq!(error("/"), "Invalid socket file name");
        assert_eq!(error("/does/not/exist/s"), "/does/not/exist does not exist or is not a directory");
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(110));
        let error = error(long.to_str().unwrap());
        assert_eq!(error, "Error creating listener: socket error: path must be shorter than SUN_LEN");
    }

    #[test]
    fn inherited_descriptor_must_listen() {
        let (one, _two) = UnixStream::pair().unwrap();
        let connected = inherit(one.into_raw_fd()).unwrap_err();
        assert_eq!(connected.raw_os_error(), Some(libc::EINVAL));
        let file = File::open("/dev/null").unwrap();
        assert_eq!(inherit(file.as_raw_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
        let closed = SocketError::Inherited(inherit(-1).unwrap_err()).to_string();
        assert!(
            closed.starts_with("Failed to start daemon: CreateBackendListener(SocketError(Os { code: 9,"),
            "{closed}"
        );
    }
}
