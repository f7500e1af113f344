//! The log: lines on standard error as virtiofsd writes them, or syslog.
//!
//! `[2026-11-21T07:13:09Z INFO  ovfs] text`. Launchers wait for some of these texts, and silence others with
//! `RUST_LOG`, which therefore replaces `--log-level` whenever it is set.
//!
//! Standard error may be a pipe that nobody empties, even a non-blocking one. A line that does not go out within
//! [`PATIENCE`] is dropped and counted; the count goes out with the next line that does.

use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs, process};

use env_logger::{Builder, Target, WriteStyle};
use log::{Level, LevelFilter, Log, Metadata, Record, warn};
use syslog::{BasicLogger, Facility, Formatter3164, Logger, LoggerBackend};

use crate::cli::LogPlan;

/// The module name in lines about the daemon as a whole; tools match on it.
pub const TARGET: &str = "ovfs";

/// How long a line may wait for a full standard error.
const PATIENCE: Duration = Duration::from_millis(100);

/// Modules whose records below WARN go nowhere, whatever the level: they write requests, and with those signatures, tokens
/// and whole URLs.
const QUIET: &[&str] = &["opendal", "reqsign", "reqwest", "hyper", "hyper_util", "rustls", "hdfs_native"];

/// Starts logging. `program` is the name in syslog's lines.
///
/// Where no syslog listens, that is said on standard error, which is then used instead.
pub fn init(plan: LogPlan, program: &str) {
    if !plan.syslog {
        return to_stderr(plan.level);
    }
    match syslog_logger(program) {
        Ok(logger) => install(logger, plan.level),
        Err(error) => {
            to_stderr(plan.level);
            warn!(target: TARGET, "can't enable syslog: {error}");
        }
    }
}

fn to_stderr(level: LevelFilter) {
    let mut builder = Builder::new();
    match env::var("RUST_LOG") {
        Ok(filters) => builder.parse_filters(&filters),
        Err(_) => builder.filter_level(level),
    };
    builder.write_style(style(&env::var("RUST_LOG_STYLE").unwrap_or_default()));
    builder.target(Target::Pipe(Box::new(PatientWriter::new(io::stderr()))));
    let logger = builder.build();
    let level = logger.filter();
    install(logger, level);
}

/// The local syslog: its sockets, else TCP port 601, else UDP port 514 of this machine, which never fails.
fn syslog_logger(program: &str) -> Result<BasicLogger, syslog::Error> {
    let formatter = |hostname| Formatter3164 {
        facility: Facility::LOG_USER,
        hostname,
        process: program.to_owned(),
        pid: process::id(),
    };
    if let Ok(logger) = syslog::unix(formatter(None)) {
        return Ok(BasicLogger::new(logger));
    }
    let hostname = env::var("HOSTNAME").ok().or_else(|| fs::read_to_string("/proc/sys/kernel/hostname").ok());
    let formatter = formatter(hostname.map(|name| name.trim().to_owned()));
    let backend = match TcpStream::connect(("127.0.0.1", 601)) {
        Ok(stream) => LoggerBackend::Tcp(BufWriter::new(stream)),
        Err(_) => {
            let socket = UdpSocket::bind(("127.0.0.1", 0))?;
            LoggerBackend::Udp(socket, SocketAddr::from(([127, 0, 0, 1], 514)))
        }
    };
    Ok(BasicLogger::new(Logger { formatter, backend }))
}

fn install(logger: impl Log + 'static, level: LevelFilter) {
    // Fails only if a logger exists already, which then does the job.
    if log::set_boxed_logger(Box::new(Discreet(logger))).is_ok() {
        log::set_max_level(level);
    }
}

/// A logger that keeps what may hold secrets to itself.
struct Discreet<L>(L);

impl<L> Discreet<L> {
    fn is_secret(metadata: &Metadata<'_>) -> bool {
        let is_below = |root: &&str| {
            metadata.target().strip_prefix(*root).is_some_and(|rest| rest.is_empty() || rest.starts_with(['_', ':']))
        };
        metadata.level() > Level::Warn && QUIET.iter().any(is_below)
    }
}

impl<L: Log> Log for Discreet<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        !Self::is_secret(metadata) && self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !Self::is_secret(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

fn style(wish: &str) -> WriteStyle {
    match wish {
        "always" => WriteStyle::Always,
        "never" => WriteStyle::Never,
        _ => {
            let dumb = env::var_os("TERM").is_none_or(|term| term == "dumb");
            let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            if io::stderr().is_terminal() && !dumb && !refused { WriteStyle::Always } else { WriteStyle::Never }
        }
    }
}

/// A writer that neither fails nor waits for long. Takes one whole line per `write`.
struct PatientWriter<W> {
    inner: W,
    /// Lines dropped since the last one that went out.
    lost: u64,
    /// Nobody ever signals it: it is a sleep that the system-call filter allows.
    pause: (Mutex<()>, Condvar),
}

impl<W: Write> PatientWriter<W> {
    fn new(inner: W) -> PatientWriter<W> {
        PatientWriter { inner, lost: 0, pause: (Mutex::new(()), Condvar::new()) }
    }

    /// Writes all of `line`, or gives up. A reader that has stopped once is given no second wait before it goes on.
    fn try_write(&mut self, mut line: &[u8]) -> bool {
        let patience = if self.lost == 0 { PATIENCE } else { Duration::ZERO };
        let deadline = Instant::now() + patience;
        while !line.is_empty() {
            match self.inner.write(line) {
                Ok(0) => return false,
                Ok(written) => line = &line[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                    let guard = self.pause.0.lock().unwrap_or_else(PoisonError::into_inner);
                    drop(self.pause.1.wait_timeout(guard, Duration::from_millis(1)));
                }
                Err(_) => return false,
            }
        }
        true
    }
}

impl<W: Write> Write for PatientWriter<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let reported = self.lost == 0 || {
            let report = format!("(lines of this log that could not be written: {})\n", self.lost);
            self.try_write(report.as_bytes())
        };
        if reported {
            self.lost = 0;
        }
        if !(reported && self.try_write(line)) {
            self.lost += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes at a time and then says EAGAIN until more room is made.
    struct Narrow {
        room: usize,
        taken: Vec<u8>,
    }

    impl Write for Narrow {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let count = data.len().min(self.room).min(3);
            self.room -= count;
            self.taken.extend_from_slice(&data[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_may_hold_secrets_is_quiet_below_warnings() {
        let secret =
            |target, level| Discreet::<()>::is_secret(&Metadata::builder().target(target).level(level).build());
        assert!(secret("opendal_service_s3::backend", Level::Debug));
        assert!(secret("hyper_util::client", Level::Trace));
        assert!(secret("reqsign", Level::Info));
        assert!(!secret("opendal_service_s3::backend", Level::Warn));
        assert!(!secret("ovfs::broker", Level::Trace));
        assert!(!secret("hyperion", Level::Trace));
    }

    #[test]
    fn lines_that_do_not_go_out_are_counted_and_the_daemon_goes_on() {
        let mut writer = PatientWriter::new(Narrow { room: 6, taken: Vec::new() });
        for line in ["first\n", "second\n", "third\n"] {
            assert_eq!(writer.write(line.as_bytes()).unwrap(), line.len());
        }
        assert_eq!(writer.lost, 2);
        writer.inner.room = 1000;
        writer.write_all(b"fourth\n").unwrap();
        let text = String::from_utf8(writer.inner.taken).unwrap();
        assert_eq!(text, "first\n(lines of this log that could not be written: 2)\nfourth\n");
        assert_eq!(writer.lost, 0);
    }
}
