//! A real guest: User Mode Linux runs fio, sysbench and small files against the share, through its own kernel.
//!
//! `guest/boot.py` boots it on a daemon's socket with the machinery of `compat-tests/guests`, `guest/run` is what it
//! does. One boot gives a figure to every row.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::process::{Mount, Peer, S3, Spec};
use crate::record::{Row, Sample, Unit};
use crate::rows::{Failure, Settings, announce, turn};
use crate::s3::MemoryS3;
use crate::usage;

/// What the daemon announces and the guest mounts.
const TAG: &str = "share";
/// Distance of the store: next door, so that a program that does one thing after another ends within a minute.
const LATENCY: Duration = Duration::from_millis(2);
const RATE: u64 = 90 << 20;
/// How long a boot with all its work may take.
const PATIENCE: Duration = Duration::from_secs(240);
/// What `guest/boot.py` ends with when this machine cannot boot such a guest.
const ABSENT: i32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Virtiofsd,
    Ovfs,
    OvfsOnS3,
    Over(Peer),
}

impl Who {
    fn label(self) -> String {
        match self {
            Who::Virtiofsd => "virtiofsd".into(),
            Who::Ovfs => "ovfs".into(),
            Who::OvfsOnS3 => "ovfs on S3".into(),
            Who::Over(peer) => format!("virtiofsd over {}", peer.program()),
        }
    }

    fn spec(self, dir: &Path, s3: &S3) -> Result<(Spec, Option<Mount>), Failure> {
        Ok(match self {
            Who::Virtiofsd => (Spec::virtiofsd(dir), None),
            Who::Ovfs => (Spec::ovfs(dir), None),
            Who::OvfsOnS3 => (s3.ovfs(), None),
            Who::Over(peer) => {
                let mount = peer.mount(s3, Duration::ZERO)?;
                (mount.virtiofsd(), Some(mount))
            }
        })
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/boot.py")
}

/// Why this machine cannot boot the guest.
///
/// # Errors
/// Python itself is not there, or fails.
pub fn absence() -> Result<Option<String>, Failure> {
    let output = Command::new("python3").arg(script()).arg("--check").stdin(Stdio::null()).output()?;
    match output.status.code() {
        Some(0) => Ok(None),
        Some(ABSENT) => Ok(Some(last_line(&output))),
        _ => Err(Failure::Wrong(format!("the guest's script fails: {}", last_line(&output)))),
    }
}

fn last_line(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing").to_owned()
}

/// The end of what a program has said, on one line.
fn tail(said: &str) -> String {
    let words = |line: &str| line.chars().take(120).collect::<String>();
    let mut last: Vec<String> = said.lines().rev().take(4).map(words).collect();
    last.reverse();
    last.join("; ")
}

/// Every row; none where no such guest can be booted.
///
/// # Errors
/// ovfs or virtiofsd fails, or the guest sees wrong data.
pub fn run(settings: &Settings, only: Option<&str>) -> Result<Vec<Row>, Failure> {
    if let Some(why) = absence()? {
        eprintln!("left out, no guest: {why}");
        return Ok(Vec::new());
    }
    let (store, share) = (MemoryS3::start()?, settings.share()?);
    store.server.distance.set(LATENCY, RATE);
    let s3 = store.access();
    let chain = Peer::here().into_iter().find(|peer| settings.all_peers && *peer == Peer::Rclone).map(Who::Over);
    let who: Vec<Who> = [Who::Virtiofsd, Who::Ovfs, Who::OvfsOnS3].into_iter().chain(chain).collect();
    let mut rows: Vec<Row> = Vec::new();
    let mut failed: Vec<Who> = Vec::new();
    let rounds = settings.rounds.min(3);
    for round in 0..rounds {
        for n in turn(round, who.len()) {
            let who = who[n];
            if failed.contains(&who) {
                continue;
            }
            let began = Instant::now();
            let figures = boot(who, share.path(), &s3, settings);
            eprintln!("round {} of {rounds}: {}: {:.0} s", round + 1, who.label(), began.elapsed().as_secs_f64());
            match figures {
                Ok((figures, cpu)) => add(&mut rows, who, figures, cpu),
                Err(failure) if matches!(who, Who::Over(_)) => {
                    rows.iter_mut().for_each(|row| row.fail(&who.label(), &failure.to_string()));
                    failed.push(who);
                }
                Err(failure) => return Err(failure),
            }
            store.clear("");
        }
    }
    if let Some(Who::Over(peer)) = chain {
        let chain = Who::Over(peer).label();
        rows = rows.into_iter().map(|row| row.compare("ovfs on S3", &[&chain], None)).collect();
    }
    rows.retain(|row| only.is_none_or(|only| row.name.contains(only)));
    rows.iter().for_each(announce);
    Ok(rows)
}

fn add(rows: &mut Vec<Row>, who: Who, figures: Vec<Figure>, cpu: Duration) {
    let whole = "processor time of the daemon for all of the guest's work";
    let cpu = Figure { value: cpu.as_secs_f64(), unit: Unit::Seconds, name: whole.into() };
    for figure in figures.into_iter().chain([cpu]) {
        let row = match rows.iter().position(|row| row.name == figure.name) {
            Some(at) => &mut rows[at],
            None => {
                rows.push(Row::new(figure.name, figure.unit).compare("ovfs", &["virtiofsd"], None));
                let last = rows.len() - 1;
                &mut rows[last]
            }
        };
        row.add(&who.label(), Sample::of(figure.value));
    }
}

/// One thing that the guest has measured.
#[derive(Debug, PartialEq)]
struct Figure {
    value: f64,
    unit: Unit,
    name: String,
}

/// Boots a guest on a daemon of its own; its figures, and the processor time of all that served it.
fn boot(who: Who, dir: &Path, s3: &S3, settings: &Settings) -> Result<(Vec<Figure>, Duration), Failure> {
    let (spec, mount) = who.spec(dir, s3)?;
    let mut daemon = spec.arg("--tag").arg(TAG).start()?;
    let mut pids = daemon.pids();
    pids.extend(mount.iter().flat_map(Mount::pids));
    let before = usage::cpu(&pids);
    let mut command = Command::new("python3");
    command.arg(script()).arg("--socket").arg(daemon.socket()).args(["--tag", TAG]);
    command.arg("--seconds").arg(PATIENCE.as_secs().to_string());
    command.arg(format!("MIB={}", (settings.large >> 24).max(8)));
    command.arg(format!("FILES={}", settings.many / 20));
    command.arg(format!("SECONDS_EACH={}", settings.window.as_secs().max(1)));
    let mut guest = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // A daemon goes with its guest, and what it has used is told only while it is there.
    let mut cpu = Duration::ZERO;
    while guest.try_wait()?.is_none() {
        cpu = cpu.max(usage::cpu(&pids).saturating_sub(before));
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = guest.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let why = format!("{}: {}; {}; {}", who.label(), last_line(&output), tail(&said), tail(&daemon.messages()));
        return Err(Failure::Wrong(why));
    }
    let ended = Instant::now();
    while daemon.is_alive() && ended.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
    }
    let figures: Option<Vec<Figure>> = said.lines().filter(|line| line.starts_with("figure ")).map(parse).collect();
    match figures {
        Some(figures) if !figures.is_empty() => Ok((figures, cpu)),
        _ => Err(Failure::Wrong(format!("{}: the guest's figures make no sense: {said}", who.label()))),
    }
}

/// `figure VALUE UNIT NAME`.
fn parse(line: &str) -> Option<Figure> {
    let mut words = line.splitn(4, ' ').skip(1);
    let value: f64 = words.next()?.parse().ok()?;
    let unit = match words.next()? {
        "ops/s" => Unit::Ops,
        "MiB/s" => Unit::Mib,
        _ => return None,
    };
    (value > 0.0).then_some(Figure { value, unit, name: words.next()?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read() {
        let figure = Figure { value: 12.5, unit: Unit::Mib, name: "fio: sequential read".into() };
        assert_eq!(parse("figure 12.5 MiB/s fio: sequential read"), Some(figure));
        assert_eq!(parse("figure 0 ops/s nothing was done"), None);
        assert_eq!(parse("figure MiB/s what"), None);
    }
}
