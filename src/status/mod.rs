//! `ovfs status`: asks a running daemon what it has counted, and shows it.
//!
//! It is a program of its own that happens to be in the same file: the first argument calls it, before any of the daemon's
//! flags is looked at. `target` finds the daemon, [`crate::metrics`] makes text of what it says.

mod target;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use clap::Parser;

use self::target::Target;
use crate::metrics::report::Report;
use crate::metrics::{Snapshot, screen};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Clears the screen and goes to its corner.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Show what a running daemon does.
#[derive(Debug, Parser)]
#[command(
    name = "ovfs status",
    bin_name = "ovfs status",
    about = "Show what a running daemon with a backend does: requests, latencies, caches, uploads, stores.",
    long_about = "Show what a running daemon with a backend does: requests of the guest and to the stores, latencies, caches, \
                  uploads, health. Rates and percentiles are of one second, or with --total of the time since the start; \
                  counts are since the start. Only root and the user that the daemon runs as may ask."
)]
struct Arguments {
    /// The daemon's vhost-user socket, or the id of one of its processes
    #[arg(value_name = "SOCKET|PID")]
    target: String,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Show it again every second, until interrupted
    #[arg(long)]
    watch: bool,

    /// Rates and percentiles since the start, at once
    #[arg(long, conflicts_with = "watch")]
    total: bool,
}

/// Whether the arguments, without the program's name, are for `ovfs status`. The short form of the daemon's command line may
/// name a socket so; what stands behind it is then a URL.
pub fn is_meant<S: AsRef<std::ffi::OsStr>>(mut args: impl Iterator<Item = S>) -> bool {
    let is_url = |arg: S| arg.as_ref().to_string_lossy().contains("://");
    args.next().is_some_and(|first| first.as_ref() == "status") && !args.next().is_some_and(is_url)
}

/// The whole program: `args` are those behind `status`. The exit code is 1, after one line, when there is nobody to ask.
pub fn main(args: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let arguments = Arguments::parse_from([std::ffi::OsString::from("ovfs status")].into_iter().chain(args));
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Trouble::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(trouble) => {
            // Nobody is left to tell if that cannot be written.
            let _ = writeln!(io::stderr(), "ovfs status: {trouble}");
            ExitCode::FAILURE
        }
    }
}

/// Why nothing is shown.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Target(#[from] target::TargetError),
    #[error("cannot write: {0}")]
    Output(io::Error),
}

fn run(arguments: &Arguments) -> Result<(), Trouble> {
    let target = Target::find(&arguments.target)?;
    let mut before = target.ask()?;
    if arguments.total {
        return show(arguments, &Report::new(&before, None));
    }
    loop {
        sleep(INTERVAL);
        let now: Snapshot = target.ask()?;
        show(arguments, &Report::new(&now, Some(&before)))?;
        if !arguments.watch {
            return Ok(());
        }
        before = now;
    }
}

fn show(arguments: &Arguments, report: &Report) -> Result<(), Trouble> {
    let mut out = io::stdout().lock();
    let text = match arguments.json {
        true => serde_json::to_string(report).map(|line| line + "\n").map_err(|e| Trouble::Output(e.into()))?,
        false if arguments.watch && out.is_terminal() => format!("{CLEAR}{}", screen::render(report)),
        false => screen::render(report),
    };
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Trouble::Output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_argument_calls_it_but_not_in_the_short_form() {
        let meant = |line: &str| is_meant(line.split_whitespace());
        assert!(meant("status /run/s") && meant("status --json 7") && meant("status"));
        assert!(!meant("status s3://bucket") && !meant("--fd 3 status") && !meant("/run/s status") && !meant(""));
    }

    #[test]
    fn arguments_are_sound() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
        assert!(Arguments::try_parse_from(["ovfs status", "--watch", "--total", "7"]).is_err());
        assert!(Arguments::try_parse_from(["ovfs status"]).is_err());
    }
}
