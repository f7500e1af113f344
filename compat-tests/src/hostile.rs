//! A session with a guest that breaks the rules: sends anything, judges what comes back, and checks afterwards that
//! the daemon serves on, that nothing outside the share changed, and that neither log nor memory grew.
//!
//! A probe is judged against one of two columns: what ovfs must do, or what virtiofsd 1.14.0 was measured to do. The
//! second keeps the harness honest: a probe that does not reproduce the known failure would prove nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::daemon::{Daemon, patience};
use crate::error::{Error, errno_name};
use crate::frontend::Config;
use crate::fuse::{InHeader, InitRequest};
use crate::guest::Guest;
use crate::memory::Region;
use crate::queue::{Completion, Token};
use crate::ring::Descriptor;
use crate::subject::Share;
use crate::tree;

/// Which column a probe is judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// What ovfs must do.
    Want,
    /// What virtiofsd 1.14.0 does.
    Measured,
}

/// A daemon to be probed.
#[derive(Clone, Debug)]
pub struct Target {
    /// The binary.
    pub bin: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// The column that counts.
    pub column: Column,
    /// Whether the share is the host directory.
    pub passthrough: bool,
}

impl Target {
    /// ovfs sharing a host directory.
    pub fn passthrough(bin: PathBuf, args: &[&str]) -> Target {
        Target { bin, args: owned(args), column: Column::Want, passthrough: true }
    }

    /// ovfs over a store.
    pub fn backend(bin: PathBuf, url: &str) -> Target {
        Target { bin, args: owned(&["--backend", url]), column: Column::Want, passthrough: false }
    }

    /// virtiofsd without a sandbox, as it was measured.
    pub fn virtiofsd(bin: PathBuf) -> Target {
        Target { bin, args: owned(&["--sandbox", "none"]), column: Column::Measured, passthrough: true }
    }
}

fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

/// How many bytes a daemon may write to its log during one row.
const LOG_BYTES_MAX: u64 = 64 << 10;
/// How much its resident memory may grow during one row, in KiB.
const GROWTH_KIB_MAX: u64 = 128 << 10;

/// A row being probed.
#[derive(Debug)]
pub struct Session {
    /// The daemon being probed.
    pub target: Target,
    /// The host directory and its surroundings.
    pub share: Share,
    daemon: Daemon,
    guest: Option<Guest>,
    failures: Vec<String>,
    rss_kib: u64,
}

impl Session {
    /// Starts the target, mounts it, and puts `f` ("hello world"), `d` and `d/a` into it.
    ///
    /// # Panics
    /// When that fails.
    pub fn start(target: &Target, more_args: &[&str]) -> Session {
        let mut target = target.clone();
        target.args.extend(owned(more_args));
        let share = Share::new();
        let daemon = share.serve(&target.bin, &target.args);
        let mut session = Session { target, share, daemon, guest: None, failures: Vec::new(), rss_kib: 0 };
        session.connect(true);
        session.rss_kib = session.resident_kib();
        session
    }

    /// Starts the target again and connects, with INIT and the files or without both.
    pub fn restart(&mut self, init: bool) {
        self.guest = None;
        self.daemon = self.share.serve(&self.target.bin, &self.target.args);
        self.connect(init);
        self.rss_kib = self.resident_kib();
    }

    fn connect(&mut self, init: bool) {
        let mut guest = Guest::connect(&self.daemon.socket(), &Config::default()).expect("the device starts");
        if init {
            guest.init(&InitRequest::default()).expect("INIT succeeds");
            guest.make_dirs("d").expect("a directory can be made");
            guest.write_file("f", b"hello world").expect("a file can be written");
            guest.write_file("d/a", b"a").expect("a file can be written");
        }
        self.guest = Some(guest);
    }

    /// The mounted guest.
    pub fn guest(&mut self) -> &mut Guest {
        self.guest.as_mut().expect("the session is connected")
    }

    /// The daemon.
    pub fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// Whether ovfs is probed, and not virtiofsd.
    pub fn wanted(&self) -> bool {
        self.target.column == Column::Want
    }

    /// A well-formed header for a request whose arguments have `args` bytes.
    pub fn header(&mut self, opcode: u32, nodeid: u64, args: usize) -> InHeader {
        let unique = self.guest().next_unique();
        InHeader { len: (40 + args) as u32, opcode, unique, nodeid, ..InHeader::default() }
    }

    /// Sends a request of any bytes with `reply` writable bytes, and says what came of it.
    pub fn send(&mut self, unique: u64, parts: &[&[u8]], reply: u32) -> String {
        self.send_on(1, unique, parts, reply)
    }

    /// As [`Session::send`], on a queue of the caller's choice.
    pub fn send_on(&mut self, queue: u32, unique: u64, parts: &[&[u8]], reply: u32) -> String {
        let token = self.guest().frontend.queue(queue).submit("a hostile request", parts, reply);
        self.outcome(queue, unique, token)
    }

    /// Sends a request with a proper header.
    pub fn request(&mut self, opcode: u32, nodeid: u64, arg: &[u8], reply: u32) -> String {
        let header = self.header(opcode, nodeid, arg.len());
        self.send(header.unique, &[&header.encode(), arg], 16 + reply)
    }

    /// Sends descriptors of the caller's own, from ring entry 0 on.
    pub fn send_table(&mut self, unique: u64, table: &[Descriptor]) -> String {
        let token = self.guest().frontend.queue(1).submit_raw("a hostile chain", 0, table);
        self.outcome(1, unique, token)
    }

    /// Guest memory for descriptors of the caller's own.
    pub fn alloc(&mut self, len: u64) -> (std::sync::Arc<Region>, u64) {
        let queue = self.guest().frontend.queue(1);
        let at = queue.alloc(len).expect("guest memory is large enough");
        (queue.region().clone(), at)
    }

    fn outcome(&mut self, queue: u32, unique: u64, token: Result<Token, Error>) -> String {
        let waited = token.and_then(|token| {
            let limit = if self.wanted() { patience() } else { Duration::from_secs(2) };
            let queue = self.guest().frontend.queue(queue);
            queue.set_timeout(limit);
            queue.wait(token)
        });
        self.describe(unique, waited)
    }

    fn describe(&mut self, unique: u64, waited: Result<Completion, Error>) -> String {
        match waited {
            Ok(done) if done.used == 0 => "used 0".into(),
            Ok(done) => match (done.clone().reply(unique), done.reply(0)) {
                (Ok((0, _)), _) => "ok".into(),
                (Ok((errno, _)), _) => errno_name(errno),
                (Err(_), Ok((errno, _))) if errno != 0 => format!("{} for unique 0", errno_name(errno)),
                (Err(error), _) => error.to_string(),
            },
            Err(Error::Timeout { .. }) => "hang".into(),
            Err(Error::Disconnected(_)) => match self.daemon.wait_exit() {
                Ok(code) => format!("exit {code}"),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        }
    }

    /// Judges an outcome: `want` and `measured` list what is right in each column; an empty list is not judged. A
    /// daemon that ended or hangs is started again for the next probe.
    pub fn judge(&mut self, what: &str, outcome: &str, want: &[&str], measured: &[&str]) {
        let right = if self.wanted() { want } else { measured };
        if !right.is_empty() && !right.contains(&outcome) {
            self.fail(format!("{what}: {outcome} instead of {}", right.join(" or ")));
        }
        if outcome == "hang" || outcome.starts_with("exit ") {
            self.restart(true);
        }
    }

    /// Remembers a failure; the row goes on.
    pub fn fail(&mut self, why: String) {
        self.failures.push(why);
    }

    /// Resident memory of the process that serves the guest, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon.device_pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    }

    /// Ends the row. For ovfs: it must still serve a normal request, nothing outside the share may have changed, log
    /// and memory are bounded, and it ends with success when the guest goes.
    ///
    /// # Panics
    /// With every failure of the row.
    pub fn finish(mut self) {
        if self.wanted() {
            self.check_service();
            self.check_surroundings();
            self.check_bounds();
            self.guest = None;
            match self.daemon.wait_exit() {
                Ok(0) => {}
                Ok(code) => self.fail(format!("the daemon ended with {code}")),
                Err(error) => self.fail(error.to_string()),
            }
        }
        assert!(self.failures.is_empty(), "\n{}\n{}", self.failures.join("\n"), self.daemon.log());
    }

    fn check_service(&mut self) {
        let guest = self.guest();
        let round = |guest: &mut Guest| {
            let entry = guest.write_file("afterwards", b"still here")?;
            let data = guest.read_file("afterwards")?;
            let f = guest.resolve("f")?;
            guest.getattr(f, None)?;
            guest.forget(entry.nodeid, 1)?;
            guest.remove_file("afterwards")?;
            Ok::<_, crate::error::Fault>(data)
        };
        match round(guest) {
            Ok(data) if data == b"still here" => {}
            Ok(data) => self.fail(format!("afterwards a file holds {data:?}")),
            Err(fault) => self.fail(format!("afterwards a normal request fails: {fault}")),
        }
    }

    fn check_surroundings(&mut self) {
        let untouched = tree::snapshot(Share::new().surroundings());
        let outside = |root: &Path| {
            let lines = tree::snapshot(root);
            lines.into_iter().filter(|line| !line.starts_with("share")).collect::<Vec<_>>()
        };
        let expected: Vec<_> = untouched.into_iter().filter(|line| !line.starts_with("share")).collect();
        let actual = outside(self.share.surroundings());
        if actual != expected {
            self.fail(format!("outside the share the host changed: {actual:?}"));
        }
    }

    fn check_bounds(&mut self) {
        let log = self.daemon.log_len();
        if log > LOG_BYTES_MAX {
            self.fail(format!("the log has {log} bytes"));
        }
        let grown = self.resident_kib().saturating_sub(self.rss_kib);
        if grown > GROWTH_KIB_MAX {
            self.fail(format!("resident memory grew by {grown} KiB"));
        }
    }
}
