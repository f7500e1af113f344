//! Showing what is counted: a socket that answers whoever may ask with a [`Snapshot`].
//!
//! The socket has no path, so that it leaves nothing behind and needs no directory: its abstract name is made of the
//! broker's process id. Anybody on the host can connect to it; it answers root and the user that the broker runs as.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdUnixListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::exporter::MetricsListener;
use super::mounts::Mounts;
use crate::metrics::{Board, DiskCounts, MountSnapshot, Snapshot, VERSION, ops};

/// Questions that are answered at once; others wait.
const AT_ONCE: usize = 8;

/// How long somebody has to read the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of the daemon, and where it is shown.
#[derive(Debug)]
pub struct Eyes {
    /// Where the device process counts.
    pub board: Arc<Board>,
    /// Its process id.
    pub device_pid: u32,
    /// Where scrapers ask.
    pub metrics: Option<MetricsListener>,
}

/// What the status socket says, as JSON, to who connects to it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// All counters.
    Snapshot(Box<Snapshot>),
    /// Who asks may not.
    Refused(String),
}

/// The abstract name of the status socket of the broker with this process id.
pub fn status_name(pid: u32) -> String {
    format!("ovfs-status-{pid}")
}

/// What a broker can be asked.
#[derive(Debug)]
pub(super) struct Observer {
    board: Arc<Board>,
    device_pid: u32,
    mounts: Arc<Mounts>,
    start: Instant,
}

impl Observer {
    /// All counters, now.
    pub fn snapshot(&self) -> Snapshot {
        let now = self.board.now();
        let numbered = self.mounts.numbered();
        let mounts = numbered.iter().map(|(id, slot)| {
            let meter = slot.meter();
            let mut mount = MountSnapshot {
                path: slot.path.clone(),
                scheme: slot.scheme().to_owned(),
                store: meter.counts(),
                uploads: meter.uploads(),
                health: meter.health(),
                ..MountSnapshot::default()
            };
            if let Some(counts) = self.board.mount(usize::from(*id)) {
                mount.count(counts, now);
            }
            mount
        });
        let disk = numbered.iter().find_map(|(_, slot)| slot.disk());
        Snapshot {
            version: VERSION,
            pid: std::process::id(),
            device_pid: self.device_pid,
            uptime: self.start.elapsed(),
            ops: ops(&self.board),
            mounts: mounts.collect(),
            disk: disk.map(|disk| {
                let (hit_bytes, miss_bytes) = disk.counts();
                DiskCounts { hit_bytes, miss_bytes }
            }),
        }
    }
}

impl Eyes {
    /// Begins to answer, in tasks of their own. Nothing else depends on it, so trouble with it is a line in the log.
    pub(super) fn open(self, mounts: &Arc<Mounts>) {
        let Eyes { board, device_pid, metrics } = self;
        let observer = Arc::new(Observer { board, device_pid, mounts: Arc::clone(mounts), start: Instant::now() });
        if let Some(Err(e)) = metrics.map(|metrics| metrics.serve(Arc::clone(&observer))) {
            log::error!("--metrics-listen: metrics cannot be served: {e}");
        }
        match listen() {
            Ok(listener) => drop(tokio::spawn(answer_all(listener, Arc::clone(&observer)))),
            Err(e) => log::warn!("'ovfs status' will find nobody here: {e}"),
        }
    }
}

fn listen() -> io::Result<UnixListener> {
    let name = SocketAddr::from_abstract_name(status_name(std::process::id()))?;
    let listener = StdUnixListener::bind_addr(&name)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

async fn answer_all(listener: UnixListener, observer: Arc<Observer>) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(turn) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let observer = Arc::clone(&observer);
                tokio::spawn(async move {
                    // Who went away does not miss the answer.
                    let _ = timeout(PATIENCE, answer(stream, &observer)).await;
                    drop(turn);
                });
            }
            Err(e) => {
                log::debug!("the status socket: {e}");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, observer: &Observer) -> io::Result<()> {
    // SAFETY: always succeeds.
    let me = unsafe { libc::geteuid() };
    let uid = stream.peer_cred()?.uid();
    let answer = match may_ask(uid, me) {
        true => Answer::Snapshot(Box::new(observer.snapshot())),
        false => Answer::Refused(format!("only root and the user {me} may ask")),
    };
    stream.write_all(&serde_json::to_vec(&answer)?).await?;
    stream.shutdown().await
}

fn may_ask(uid: u32, me: u32) -> bool {
    uid == 0 || uid == me
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_own_user_may_ask() {
        assert!(may_ask(0, 7) && may_ask(7, 7) && !may_ask(8, 7) && may_ask(0, 0) && !may_ask(7, 0));
    }
}
