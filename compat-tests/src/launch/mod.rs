//! Starting a daemon, watching it and leaving nothing behind.
//!
//! `Launch` describes a process (arguments, environment, user, passed descriptors), `Daemon` is the running one,
//! `Finished` the ended one. Nothing here knows vhost-user or FUSE; it only knows processes, pipes and `/proc`.
//!
//! Invariants
//! (1) Standard input is `/dev/null`; both outputs are read continuously, so a daemon never waits for its reader.
//! (2) The environment is empty but for `PATH` and what the test adds: no `RUST_LOG` of the caller's leaks in.
//! (3) A daemon leads a process group of its own and dies with the thread that started it; dropping a `Daemon` kills
//!     what is left of that group and reaps the leader. The starting thread therefore has to outlive its daemons.

mod capture;
mod table;

pub use table::{ProcessEntry, is_alive, kill, process_table};

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use capture::Capture;

/// The standard error text that launchers wait for.
pub const READY: &str = "Waiting for vhost-user socket connection";

/// How long a daemon may take to become ready: generous, since the machine may be busy building.
pub const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a daemon may take to end after the event that ends it.
pub const EXIT_TIMEOUT: Duration = Duration::from_secs(30);

const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Which of the two programs a script runs against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The reference: virtiofsd 1.14.0.
    Virtiofsd,
    /// The program under test.
    Ovfs,
}

/// Finds the executable.
///
/// ovfs: `$OVFS_BIN`, else the one built beside this test executable, else the other profile's.
/// virtiofsd: `$VIRTIOFSD_BIN`, else `PATH`, else cargo's bin directory.
///
/// # Panics
/// When there is none, with the command that provides it: a test without its subject must not pass.
pub fn binary(which: Which) -> PathBuf {
    let found = match which {
        Which::Ovfs => from_env("OVFS_BIN").or_else(built_ovfs),
        Which::Virtiofsd => from_env("VIRTIOFSD_BIN").or_else(|| installed("virtiofsd")),
    };
    found.unwrap_or_else(|| match which {
        Which::Ovfs => panic!("no ovfs executable: run `cargo build --bin ovfs`, or set OVFS_BIN"),
        Which::Virtiofsd => panic!(
            "no virtiofsd executable: run `cargo install --locked --version 1.14.0 virtiofsd` (needs libcap-ng-dev and \
             libseccomp-dev), or set VIRTIOFSD_BIN"
        ),
    })
}

fn from_env(variable: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(variable)?);
    assert!(path.is_file(), "{variable} names {}, which is not a file", path.display());
    Some(fs::canonicalize(&path).unwrap_or(path))
}

/// `target/<profile>/deps/<test>` → `target/<profile>/ovfs`, then the other profiles beside it.
fn built_ovfs() -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let profile = test.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "deps"))?.parent()?;
    let target = profile.parent()?;
    [profile.to_path_buf(), target.join("release"), target.join("debug")]
        .into_iter()
        .map(|dir| dir.join("ovfs"))
        .find(|path| path.is_file())
}

/// An executable of this name in `PATH` or in cargo's bin directory.
pub fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    std::env::split_paths(&path)
        .chain(cargo_home.map(|home| home.join("bin")))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// A scratch directory with `sh/` (the share, holding `f` = "hello\n") and `run/` (sockets), open to every user.
pub struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    /// Makes the directory below the system's temporary directory: socket paths must stay under 108 bytes.
    ///
    /// # Panics
    /// When the file system refuses.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("ovfs-").tempdir().expect("make a scratch directory");
        set_mode(dir.path(), 0o755);
        for name in ["sh", "run"] {
            let path = dir.path().join(name);
            fs::DirBuilder::new().mode(0o755).create(&path).expect("make a scratch folder");
            set_mode(&path, if name == "run" { 0o777 } else { 0o755 });
        }
        fs::write(dir.path().join("sh/f"), "hello\n").expect("write the scratch file");
        Self { dir }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path below it.
    pub fn join(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(relative)
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// Sets permission bits, whatever the umask.
///
/// # Panics
/// When the file system refuses.
pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set permission bits");
}

/// What to start and how.
pub struct Launch {
    argv: Vec<OsString>,
    env: BTreeMap<OsString, OsString>,
    cwd: Option<PathBuf>,
    umask: Option<u32>,
    user: Option<(u32, u32)>,
    groups: Option<Vec<u32>>,
    nofile: Option<(u64, u64)>,
    fds: Vec<(OwnedFd, RawFd)>,
}

impl Launch {
    /// The executable, without arguments yet.
    pub fn new(exe: impl AsRef<OsStr>) -> Self {
        let env = std::env::var_os("PATH").map(|path| (OsString::from("PATH"), path)).into_iter().collect();
        Self {
            argv: vec![exe.as_ref().to_owned()],
            env,
            cwd: None,
            umask: None,
            user: None,
            groups: None,
            nofile: None,
            fds: Vec::new(),
        }
    }

    /// Appends one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.argv.push(arg.as_ref().to_owned());
        self
    }

    /// Appends arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Puts a program that ends in `exec "$@"` (`unshare`, `setpriv`, a shell) in front: the process id stays one.
    pub fn through<S: AsRef<OsStr>>(mut self, prefix: impl IntoIterator<Item = S>) -> Self {
        self.argv.splice(0..0, prefix.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Sets the working directory.
    pub fn cwd(mut self, dir: impl AsRef<Path>) -> Self {
        self.cwd = Some(dir.as_ref().to_owned());
        self
    }

    /// Sets the umask.
    pub fn umask(mut self, mask: u32) -> Self {
        self.umask = Some(mask);
        self
    }

    /// Starts as this user and group, without supplementary groups unless `groups` is called too.
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }

    /// Sets the supplementary groups.
    pub fn groups(mut self, groups: &[u32]) -> Self {
        self.groups = Some(groups.to_vec());
        self
    }

    /// Sets the soft and hard limit of open files.
    pub fn nofile(mut self, soft: u64, hard: u64) -> Self {
        self.nofile = Some((soft, hard));
        self
    }

    /// Passes a descriptor under this number; our copy closes once the process runs.
    pub fn pass_fd(mut self, fd: impl Into<OwnedFd>, number: RawFd) -> Self {
        self.fds.push((fd.into(), number));
        self
    }

    /// Starts the process.
    ///
    /// # Panics
    /// When it cannot be started at all.
    pub fn start(self) -> Daemon {
        table::adopt_orphans();
        let mut command = Command::new(&self.argv[0]);
        command.args(&self.argv[1..]).env_clear().envs(&self.env);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        if let Some(dir) = &self.cwd {
            command.current_dir(dir);
        }
        let setup = ChildSetup {
            umask: self.umask,
            user: self.user,
            groups: self.groups.or_else(|| self.user.map(|_| Vec::new())),
            nofile: self.nofile,
            // Sources above every target, so that placing one descriptor never overwrites the next one's source.
            fds: self.fds.iter().map(|(fd, number)| (duplicate_high(fd), *number)).collect(),
        };
        let raw: Vec<(RawFd, RawFd)> = setup.fds.iter().map(|(fd, number)| (fd.as_raw_fd(), *number)).collect();
        let spawned = {
            // SAFETY: between fork and exec the closure makes system calls only: it neither allocates nor takes a lock,
            // and every pointer it passes belongs to `setup` and `raw`, which it owns.
            unsafe { command.pre_exec(move || setup.apply(&raw)) };
            command.spawn()
        };
        let mut child = spawned.unwrap_or_else(|error| panic!("start {:?}: {error}", self.argv));
        let stdout = Capture::of(child.stdout.take().expect("standard output is piped"));
        let stderr = Capture::of(child.stderr.take().expect("standard error is piped"));
        let started = Instant::now();
        Daemon { child, stdout, stderr, status: None, started }
    }

    /// Starts the process and waits for its end.
    ///
    /// # Panics
    /// When it has not ended after `EXIT_TIMEOUT`.
    pub fn run(self) -> Finished {
        self.start().finish()
    }
}

fn duplicate_high(fd: &OwnedFd) -> OwnedFd {
    // SAFETY: the descriptor is open; the call takes numbers only and its result is checked.
    let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 200) };
    assert!(copy >= 0, "duplicate a descriptor: {}", io::Error::last_os_error());
    // SAFETY: `copy` was just opened and nobody else owns it.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(copy) }
}

struct ChildSetup {
    umask: Option<u32>,
    user: Option<(u32, u32)>,
    groups: Option<Vec<u32>>,
    nofile: Option<(u64, u64)>,
    fds: Vec<(OwnedFd, RawFd)>,
}

impl ChildSetup {
    /// Runs in the child between fork and exec.
    fn apply(&self, fds: &[(RawFd, RawFd)]) -> io::Result<()> {
        for &(source, target) in fds {
            // SAFETY: numbers only; the source is open and above every target.
            check(unsafe { libc::dup2(source, target) })?;
        }
        if let Some(mask) = self.umask {
            // SAFETY: numbers only; cannot fail.
            unsafe { libc::umask(mask) };
        }
        if let Some((soft, hard)) = self.nofile {
            let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
            // SAFETY: the pointer is to a live structure that the call only reads.
            check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
        }
        if let Some(groups) = &self.groups {
            // SAFETY: pointer and length are those of a live vector that the call only reads.
            check(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
        }
        if let Some((uid, gid)) = self.user {
            // SAFETY: numbers only.
            check(unsafe { libc::setresgid(gid, gid, gid) })?;
            // SAFETY: numbers only.
            check(unsafe { libc::setresuid(uid, uid, uid) })?;
        }
        // Whoever runs the tests in the background may have these ignored, and what is ignored is inherited.
        for signal in [libc::SIGINT, libc::SIGQUIT] {
            // SAFETY: numbers only; both signals exist and may be caught.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        // Last, since a change of user clears it.
        // SAFETY: numbers only.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// Killed by this signal.
    Signal(i32),
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, signal) => Self::Signal(signal.unwrap_or_default()),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "{code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A process that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its leader's end.
    pub exit: Exit,
    /// Everything that it and its children wrote to standard output.
    pub stdout: String,
    /// Everything that it and its children wrote to standard error.
    pub stderr: String,
}

/// A running process and its process group.
pub struct Daemon {
    child: Child,
    stdout: Capture,
    stderr: Capture,
    status: Option<Exit>,
    started: Instant,
}

impl Daemon {
    /// The process id of the one that was started (the outermost).
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Time since the start.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits for the readiness line.
    ///
    /// # Panics
    /// When the process ends first, or stays silent for `START_TIMEOUT`.
    pub fn wait_ready(&mut self) -> &mut Self {
        self.wait_stderr(READY)
    }

    /// Waits for a text on standard error.
    ///
    /// # Panics
    /// As `wait_ready`.
    pub fn wait_stderr(&mut self, text: &str) -> &mut Self {
        if self.stderr.wait_for(text, START_TIMEOUT) {
            return self;
        }
        let exit = self.try_exit();
        panic!("no {text:?} on standard error; exit: {exit:?}; standard error:\n{}", self.stderr());
    }

    /// Waits until `path` is a socket.
    ///
    /// # Panics
    /// When the process ends first, or the socket is still missing after `START_TIMEOUT`.
    pub fn wait_socket(&mut self, path: &Path) -> &mut Self {
        use std::os::unix::fs::FileTypeExt;
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
                return self;
            }
            let exit = self.try_exit();
            assert!(
                exit.is_none() && Instant::now() < deadline,
                "no socket at {}; exit: {exit:?}; standard error:\n{}",
                path.display(),
                self.stderr()
            );
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// The processes below the started one, oldest first.
    pub fn descendants(&self) -> Vec<u32> {
        let table = process_table();
        let mut found = vec![self.pid()];
        let mut next = 0;
        while let Some(&parent) = found.get(next) {
            found.extend(table.iter().filter(|process| process.parent == parent).map(|process| process.pid));
            next += 1;
        }
        found.split_off(1)
    }

    /// The process that serves the guest: the only child, or the started process itself where there is none.
    ///
    /// # Panics
    /// When there are several: nothing of virtiofsd's has more than two processes once it is ready.
    pub fn worker(&self) -> u32 {
        let children = self.descendants();
        assert!(children.len() <= 1, "several processes below {}: {children:?}", self.pid());
        children.first().copied().unwrap_or_else(|| self.pid())
    }

    /// Sends a signal to the started process.
    pub fn signal(&self, signal: libc::c_int) {
        if self.status.is_none() {
            kill(self.pid(), signal);
        }
    }

    /// The end, if it has come.
    pub fn try_exit(&mut self) -> Option<Exit> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten().map(Exit::from);
        }
        self.status
    }

    /// Waits for the end of the started process.
    ///
    /// # Errors
    /// The process still runs after `timeout`.
    pub fn wait_exit(&mut self, timeout: Duration) -> Result<Exit, StillRunning> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(exit) = self.try_exit() {
                return Ok(exit);
            }
            if Instant::now() > deadline {
                return Err(StillRunning { pid: self.pid() });
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits for the end of the process and of everything that holds its outputs.
    ///
    /// # Panics
    /// When it still runs after `EXIT_TIMEOUT`.
    pub fn finish(mut self) -> Finished {
        let exit = self.wait_exit(EXIT_TIMEOUT).unwrap_or_else(|error| panic!("{error}; {}", self.stderr()));
        self.stdout.wait_end(EXIT_TIMEOUT);
        self.stderr.wait_end(EXIT_TIMEOUT);
        Finished { exit, stdout: self.stdout(), stderr: self.stderr() }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let leader = self.pid();
        if self.try_exit().is_none() {
            kill(leader, libc::SIGKILL);
            // Reaped below; a failure here leaves nothing that could be done about it.
            let _ = self.child.wait();
        }
        // Until all are gone: a restart in the same place must not meet their locks.
        let deadline = Instant::now() + EXIT_TIMEOUT;
        loop {
            let members: Vec<u32> =
                process_table().iter().filter(|process| process.group == leader).map(|process| process.pid).collect();
            table::reap_group(leader);
            if members.is_empty() || Instant::now() > deadline {
                return;
            }
            members.into_iter().for_each(|pid| kill(pid, libc::SIGKILL));
            thread::sleep(POLL_INTERVAL);
        }
    }
}

/// A process that should have ended.
#[derive(Debug)]
pub struct StillRunning {
    /// The process.
    pub pid: u32,
}

impl fmt::Display for StillRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} still runs", self.pid)
    }
}

impl std::error::Error for StillRunning {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_and_exit_code_are_kept_apart() {
        let finished = Launch::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]).run();
        assert_eq!(finished.exit, Exit::Code(3));
        assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
    }

    #[test]
    fn dropping_a_daemon_ends_its_children_too() {
        let mut daemon = Launch::new("sh").args(["-c", "sleep 600 & echo up >&2; wait"]).start();
        daemon.wait_stderr("up");
        let children = daemon.descendants();
        assert_eq!(children.len(), 1);
        drop(daemon);
        let deadline = Instant::now() + EXIT_TIMEOUT;
        while is_alive(children[0]) {
            assert!(Instant::now() < deadline, "child {} outlived its daemon", children[0]);
            thread::sleep(POLL_INTERVAL);
        }
    }

    #[test]
    fn a_passed_descriptor_arrives_under_its_number() {
        let file = tempfile::tempfile().expect("make a file");
        let finished = Launch::new("sh").args(["-c", "readlink /proc/self/fd/7"]).pass_fd(file, 7).run();
        assert_eq!(finished.exit, Exit::Code(0));
    }

    #[test]
    fn the_callers_environment_stays_outside() {
        let finished = Launch::new("env").env("RUST_LOG", "off").run();
        assert!(finished.stdout.lines().all(|line| line.starts_with("PATH=") || line == "RUST_LOG=off"));
    }
}
