//! Where a script plays: one program in one scratch directory.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Facts, inspect, text};
use crate::launch::{Daemon, Exit, Launch, Scratch, Which, binary, set_mode};
use crate::minivu::{Connection, Offer, ROOT};

/// An executable and the name and version that it prints.
pub struct Program {
    /// Which of the two it plays.
    pub which: Which,
    /// The executable.
    pub exe: PathBuf,
    /// The first word of `--version`.
    pub name: String,
    /// The rest of it.
    pub version: String,
}

impl Program {
    /// Finds the executable and asks its version.
    ///
    /// # Panics
    /// When it is missing or does not answer.
    pub fn find(which: Which) -> Self {
        let exe = binary(which);
        let finished = Launch::new(&exe).arg("--version").run();
        assert_eq!(finished.exit, Exit::Code(0), "{} --version: {}", exe.display(), finished.stderr);
        let line = finished.stdout.trim().to_owned();
        let (name, version) = line.split_once(' ').unwrap_or_else(|| panic!("{} --version: {line:?}", exe.display()));
        Self { which, exe, name: name.to_owned(), version: version.to_owned() }
    }
}

/// A program in a scratch directory.
pub struct Stage<'a> {
    /// The program.
    pub program: &'a Program,
    /// Where it runs: `sh/f`, `run/`, and what the script adds.
    pub scratch: Scratch,
}

impl<'a> Stage<'a> {
    /// A fresh scratch directory for a program.
    pub fn new(program: &'a Program) -> Self {
        Self { program, scratch: Scratch::new() }
    }

    /// The program with these arguments, in the scratch directory.
    pub fn launch<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Launch {
        Launch::new(&self.program.exe).cwd(self.scratch.path()).args(args)
    }

    /// The same with `--shared-dir sh --socket-path run/s` in front.
    pub fn basic<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Launch {
        self.launch(["--shared-dir", "sh", "--socket-path", "run/s"]).args(args)
    }

    /// The same under another name, in a place that every user can reach.
    pub fn basic_as<S: AsRef<OsStr>>(&self, exe: &Path, args: impl IntoIterator<Item = S>) -> Launch {
        Launch::new(exe).cwd(self.scratch.path()).args(["--shared-dir", "sh", "--socket-path", "run/s"]).args(args)
    }

    /// A path in the scratch directory.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.scratch.join(relative)
    }

    /// The socket of `basic`.
    pub fn socket(&self) -> PathBuf {
        self.path("run/s")
    }

    /// Adds what lies at the socket's and the pid file's place.
    pub fn put_files(&self, facts: &mut Facts, prefix: &str) {
        facts.put(format!("{prefix}socket"), inspect::file(&self.socket()));
        facts.put(format!("{prefix}pid file"), inspect::file(&self.path("run/s.pid")));
    }

    /// A symbolic link to the executable under this name.
    ///
    /// # Panics
    /// When the link cannot be made.
    pub fn linked_as(&self, name: &str) -> PathBuf {
        let dir = self.path("bin");
        fs::create_dir_all(&dir).expect("make a folder");
        let link = dir.join(name);
        symlink(&self.program.exe, &link).expect("link the executable");
        link
    }

    /// The executable in a place that every user can reach (cargo's directories may be root's alone).
    ///
    /// # Panics
    /// When it can be neither linked nor copied.
    pub fn public_exe(&self) -> PathBuf {
        let dir = self.path("public");
        fs::create_dir_all(&dir).expect("make a folder");
        set_mode(&dir, 0o755);
        let copy = dir.join(&self.program.name);
        if fs::hard_link(&self.program.exe, &copy).is_err() {
            fs::copy(&self.program.exe, &copy).expect("copy the executable");
            set_mode(&copy, 0o755);
        }
        copy
    }

    /// A listening socket at `run/s`, as libvirt or Kata makes it.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn listener(&self) -> UnixListener {
        UnixListener::bind(self.socket()).expect("listen")
    }

    /// Output without names, versions, times and scratch paths.
    pub fn normal(&self, output: &str) -> String {
        let mut out = String::new();
        for line in output.split_inclusive('\n') {
            let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
            out.push_str(&text::log_line(line));
            out.push_str(end);
        }
        let out = text::mount_ids(&out).replace(&*self.scratch.path().to_string_lossy(), "SCRATCH");
        let out = out.replace(&format!("{} {}", self.program.name, self.program.version), "NAME VERSION");
        text::replace_word(&out, &self.program.name, text::NAME)
    }

    /// Starts and waits for readiness.
    pub fn ready(&self, launch: Launch) -> Daemon {
        let mut daemon = launch.start();
        daemon.wait_ready();
        daemon
    }

    /// Runs to the end: `rc`, `stdout`, `stderr`, `usage`.
    pub fn ended(&self, launch: Launch) -> Facts {
        let mut facts = Facts::new();
        facts.put_finished("", self, &launch.run());
        facts
    }

    /// Connects, retrying until the daemon listens, and negotiates.
    ///
    /// # Panics
    /// When the daemon does not answer.
    pub fn connect(&self, daemon: &mut Daemon) -> (Connection, Offer) {
        daemon.wait_socket(&self.socket());
        for _ in 0..2000 {
            match Connection::open(&self.socket()) {
                Ok(answer) => return answer,
                // Bound but not yet listening.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    assert!(daemon.try_exit().is_none(), "the daemon ended: {}", daemon.stderr());
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("connect: {error}; standard error:\n{}", daemon.stderr()),
            }
        }
        panic!("nobody listens; standard error:\n{}", daemon.stderr());
    }

    /// Plays a VMM and a guest: negotiation, INIT, look `f` up, read it, hang up; then the daemon's end.
    pub fn serve(&self, mut daemon: Daemon) -> Facts {
        let mut facts = Facts::new();
        let (mut guest, offer) = self.connect(&mut daemon);
        facts.put("virtio features", format!("{:#x}", offer.features));
        facts.put("protocol features", format!("{:#x}", offer.protocol_features));
        guest.start_queues().expect("start the queues");
        match guest.init() {
            Ok(reply) => facts.put("INIT", inspect::init_reply(&reply)),
            Err(error) => facts.put("INIT", error),
        };
        facts.put("f", inspect::read_of(&mut guest, ROOT, "f"));
        inspect::put_processes(&mut facts, &daemon);
        drop(guest);
        facts.put_finished("", self, &daemon.finish());
        facts.put("socket left", self.socket().exists());
        facts.put("pid file left", self.path("run/s.pid").exists());
        facts
    }
}
