//! Starts what is compared: daemons, and FUSE mounts for a daemon to share.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ovfs_compat_tests::launch::{READY, Which, binary, installed};
use tempfile::TempDir;

use crate::usage;

/// How long a program may take to become ready or to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lines of a program's messages that are kept.
const LOG_LINES: usize = 200;

/// A daemon to be started.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What the report calls it.
    pub label: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
}

impl Spec {
    /// The real virtiofsd on a directory.
    pub fn virtiofsd(dir: &Path) -> Spec {
        Spec::new("virtiofsd", Which::Virtiofsd).arg("--shared-dir").arg(dir)
    }

    /// ovfs on a directory.
    pub fn ovfs(dir: &Path) -> Spec {
        Spec::new("ovfs", Which::Ovfs).arg("--shared-dir").arg(dir)
    }

    /// ovfs on a store.
    pub fn ovfs_on(url: &str) -> Spec {
        Spec::new("ovfs", Which::Ovfs).arg("--backend").arg(url)
    }

    /// Another ovfs on a directory: the program and the flags that `OVFS_BESIDE` names, apart by blanks.
    pub fn beside(dir: &Path) -> Option<Spec> {
        let words = std::env::var("OVFS_BESIDE").ok()?;
        let mut words = words.split_ascii_whitespace();
        let program = words.next()?.into();
        let spec = Spec { program, ..Spec::ovfs(dir).called("ovfs beside") };
        Some(words.fold(spec, Spec::arg))
    }

    fn new(label: &str, which: Which) -> Spec {
        Spec { label: label.into(), program: binary(which), args: Vec::new(), env: Vec::new() }
    }

    /// With another name in the report.
    #[must_use]
    pub fn called(mut self, label: &str) -> Spec {
        self.label = label.into();
        self
    }

    /// With a further argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Spec {
        self.args.push(arg.into());
        self
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Spec {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts it and waits for the line that says it can be connected to.
    ///
    /// # Errors
    /// It ended, or said nothing in time; with its messages.
    pub fn start(&self) -> io::Result<Daemon> {
        let dir = tempfile::Builder::new().prefix("ovfs-bench-").tempdir()?;
        let mut command = Command::new(&self.program);
        command.arg("--socket-path").arg(dir.path().join("s")).args(&self.args);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.env_remove("RUST_LOG");
        let began = Instant::now();
        let mut program = Program::start(command)?;
        let ready = program.wait_for(READY)?;
        Ok(Daemon { start_time: ready - began, program, dir, label: self.label.clone() })
    }
}

/// A process whose messages are read.
#[derive(Debug)]
struct Program {
    child: Child,
    lines: Receiver<(Instant, String)>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Program {
    fn start(mut command: Command) -> io::Result<Program> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let (sender, lines) = mpsc::channel();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = log.clone();
        let stderr = child.stderr.take().ok_or_else(|| io::Error::other("no pipe for messages"))?;
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let now = Instant::now();
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() < LOG_LINES {
                    kept.push(line.clone());
                }
                drop(kept);
                // Nobody listens any more once the program is ready.
                let _ = sender.send((now, line));
            }
        });
        Ok(Program { child, lines, log })
    }

    fn wait_for(&mut self, text: &str) -> io::Result<Instant> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((at, line)) if line.contains(text) => return Ok(at),
                Ok(_) => {}
                Err(_) => return Err(io::Error::other(format!("a program is not ready: {}", self.messages()))),
            }
        }
    }

    fn messages(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    fn last_message(&self) -> String {
        let kept = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let last = kept.iter().rev().find(|line| !line.trim().is_empty());
        last.map_or(String::new(), |line| line.chars().take(160).collect())
    }

    /// Asks it to end, and makes it end when it does not.
    fn end(&mut self) {
        if let Ok(pid) = libc::pid_t::try_from(self.child.id()) {
            // SAFETY: no pointers; the child is not reaped yet, so the number is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    program: Program,
    dir: TempDir,
    /// From its start to its readiness line.
    pub start_time: Duration,
    /// What the report calls it.
    pub label: String,
}

impl Daemon {
    /// The socket it listens on.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// All its processes.
    pub fn pids(&self) -> Vec<u32> {
        usage::tree(self.program.child.id())
    }

    /// What it has written to standard error.
    pub fn messages(&self) -> String {
        self.program.messages()
    }

    /// Whether it is still there.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.program.child.try_wait(), Ok(None))
    }

    /// Asks it to end and waits for that; how long it took.
    pub fn stop(mut self) -> Duration {
        let began = Instant::now();
        self.program.end();
        began.elapsed()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_alive() {
            self.program.end();
        }
    }
}

/// Where an S3 server is, and who may use it.
#[derive(Clone, Debug)]
pub struct S3 {
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
    /// Name of the bucket.
    pub bucket: String,
    /// Access key.
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
}

impl S3 {
    /// What ovfs is given.
    pub fn url(&self) -> String {
        format!("s3://{}?region=us-east-1&endpoint={}", self.bucket, self.endpoint)
    }

    /// ovfs on this store.
    pub fn ovfs(&self) -> Spec {
        self.keys(Spec::ovfs_on(&self.url()))
    }

    /// ovfs with what stands for `--backend`, which may put this store at a path.
    pub fn ovfs_at(&self, backend: &str) -> Spec {
        self.keys(Spec::ovfs_on(backend))
    }

    fn keys(&self, spec: Spec) -> Spec {
        spec.env("AWS_ACCESS_KEY_ID", &self.access_key).env("AWS_SECRET_ACCESS_KEY", &self.secret_key)
    }
}

/// FUSE file systems for object stores that may be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// `rclone mount --vfs-cache-mode full`.
    Rclone,
    /// s3fs.
    S3fs,
    /// mountpoint-s3.
    MountS3,
    /// geesefs.
    Geesefs,
}

impl Peer {
    /// All of them.
    pub const ALL: [Peer; 4] = [Peer::Rclone, Peer::S3fs, Peer::MountS3, Peer::Geesefs];

    /// Name of its executable.
    pub fn program(self) -> &'static str {
        match self {
            Peer::Rclone => "rclone",
            Peer::S3fs => "s3fs",
            Peer::MountS3 => "mount-s3",
            Peer::Geesefs => "geesefs",
        }
    }

    /// Those that can take part here.
    pub fn here() -> Vec<Peer> {
        Peer::ALL.into_iter().filter(|peer| peer.absence().is_none()).collect()
    }

    /// Why it cannot take part here.
    pub fn absence(self) -> Option<&'static str> {
        match (Path::new("/dev/fuse").exists(), installed(self.program())) {
            (false, _) => Some("there is no /dev/fuse"),
            (true, None) => Some("it is not on PATH"),
            (true, Some(_)) => None,
        }
    }

    /// Mounts the bucket with fresh caches. Where the peer can be told so, a closed file is uploaded `delay` later.
    ///
    /// # Errors
    /// It ended, or did not mount in time; with its messages.
    pub fn mount(self, s3: &S3, delay: Duration) -> io::Result<Mount> {
        let dir = tempfile::Builder::new().prefix("ovfs-bench-mount-").tempdir()?;
        let (target, cache) = (dir.path().join("m"), dir.path().join("cache"));
        fs::create_dir(&target)?;
        fs::create_dir(&cache)?;
        let command = self.command(s3, &target, &cache, delay)?;
        let mut program = Program::start(command)?;
        let deadline = Instant::now() + PATIENCE;
        while !is_mounted(&target) {
            if !matches!(program.child.try_wait(), Ok(None)) || Instant::now() > deadline {
                program.end();
                let messages = program.last_message();
                return Err(io::Error::other(format!("{} does not mount: {messages}", self.program())));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Mount { peer: self, program, target, dir })
    }

    fn command(self, s3: &S3, target: &Path, cache: &Path, delay: Duration) -> io::Result<Command> {
        let mut command = Command::new(self.program());
        // rclone 1.60 does not start with it; nothing here speaks TLS.
        command.env_remove("AWS_CA_BUNDLE");
        command.env("AWS_ACCESS_KEY_ID", &s3.access_key).env("AWS_SECRET_ACCESS_KEY", &s3.secret_key);
        match self {
            Peer::Rclone => {
                let (key, secret) = (&s3.access_key, &s3.secret_key);
                let remote = format!(
                    ":s3,provider=Other,region=us-east-1,endpoint=\"{}\",access_key_id={key},secret_access_key={secret}:{}",
                    s3.endpoint, s3.bucket
                );
                command.arg("mount").arg(remote).arg(target).arg("--cache-dir").arg(cache);
                command.env("RCLONE_CONFIG", cache.join("none.conf"));
                command.arg("--vfs-write-back").arg(format!("{}s", delay.as_secs()));
                command.args(["--vfs-cache-mode", "full", "--vfs-read-ahead", "128M"]);
                command.args(["--transfers", "32", "--s3-upload-concurrency", "16", "--use-server-modtime"]);
            }
            Peer::S3fs => {
                use std::os::unix::fs::PermissionsExt;
                let keys = cache.join("keys");
                fs::write(&keys, format!("{}:{}", s3.access_key, s3.secret_key))?;
                fs::set_permissions(&keys, fs::Permissions::from_mode(0o600))?;
                command.arg(&s3.bucket).arg(target).arg("-f").arg("-o");
                command.arg(format!(
                    "url={},endpoint=us-east-1,use_path_request_style,passwd_file={},parallel_count=16,multireq_max=50,\
                     max_stat_cache_size=200000,tmpdir={}",
                    s3.endpoint,
                    keys.display(),
                    cache.display()
                ));
            }
            Peer::MountS3 => {
                command.arg(&s3.bucket).arg(target).args(["--foreground", "--force-path-style", "--allow-delete"]);
                command.args(["--allow-overwrite", "--region", "us-east-1", "--endpoint-url", &s3.endpoint]);
            }
            Peer::Geesefs => {
                command.args(["-f", "--endpoint", &s3.endpoint, "--region", "us-east-1", &s3.bucket]).arg(target);
            }
        }
        Ok(command)
    }
}

/// A mounted FUSE file system.
#[derive(Debug)]
pub struct Mount {
    /// Which one.
    pub peer: Peer,
    program: Program,
    target: PathBuf,
    dir: TempDir,
}

impl Mount {
    /// virtiofsd on it, handling requests side by side as the file system below can.
    pub fn virtiofsd(&self) -> Spec {
        let spec = Spec::virtiofsd(&self.target).called(&format!("virtiofsd over {}", self.peer.program()));
        spec.arg("--thread-pool-size=64").arg("--inode-file-handles=never")
    }

    /// All its processes.
    pub fn pids(&self) -> Vec<u32> {
        usage::tree(self.program.child.id())
    }

    /// Where it keeps everything of its own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Ok(path) = std::ffi::CString::new(self.target.as_os_str().as_encoded_bytes()) {
            // SAFETY: a NUL-terminated path.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
        self.program.end();
    }
}

fn is_mounted(path: &Path) -> bool {
    let wanted = path.display().to_string();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4) == Some(&wanted))
}
