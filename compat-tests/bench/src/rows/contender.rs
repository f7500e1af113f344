//! Who takes part in a measurement on a store: ovfs, virtiofsd over a FUSE mount, OpenDAL alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::process::{Mount, Peer, S3};
use crate::rows::{During, Failure, Settings};
use crate::session::{Pair, Session, Shape};
use crate::usage;

/// Someone with a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// ovfs on the store.
    Ovfs,
    /// virtiofsd over the peer's FUSE mount of the store.
    Over(Peer),
}

impl Who {
    /// ovfs, and every peer that is installed if they are to take part.
    pub fn all(settings: &Settings) -> Vec<Who> {
        let peers = if settings.peers { Peer::here() } else { Vec::new() };
        [Who::Ovfs].into_iter().chain(peers.into_iter().map(Who::Over)).collect()
    }

    /// What the report calls it.
    pub fn label(self) -> String {
        match self {
            Who::Ovfs => "ovfs".into(),
            Who::Over(peer) => format!("virtiofsd over {}", peer.program()),
        }
    }

    /// The labels of the peers among `all`.
    pub fn peers(all: &[Who]) -> Vec<String> {
        all.iter().filter(|who| **who != Who::Ovfs).map(|who| who.label()).collect()
    }

    /// Starts it with cold caches and connects a guest.
    ///
    /// # Errors
    /// Something did not start.
    pub fn mount(self, s3: &S3, settings: &Settings) -> Result<Mounted, Failure> {
        let (mount, spec) = match self {
            Who::Ovfs => (None, s3.ovfs()),
            Who::Over(peer) => {
                let mount = peer.mount(s3)?;
                let spec = mount.virtiofsd();
                (Some(mount), spec)
            }
        };
        let daemon = spec.start()?;
        let shape = Shape { wait: settings.wait, ..Shape::default() };
        let session = Session::open(&daemon.socket(), shape).during("INIT")?;
        let mut pids = daemon.pids();
        pids.extend(mount.iter().flat_map(Mount::pids));
        Ok(Mounted { pair: Pair { session, daemon }, pids, mount })
    }
}

/// A mounted store. Its parts end in this order: guest, daemon, FUSE mount.
#[derive(Debug)]
pub struct Mounted {
    /// Guest and daemon.
    pub pair: Pair,
    /// All processes that serve it.
    pub pids: Vec<u32>,
    /// The FUSE mount below the daemon.
    pub mount: Option<Mount>,
}

/// Watches the memory of processes until it is stopped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Looks every few milliseconds.
    pub fn start(pids: &[u32]) -> Watch {
        let (stop, peak) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, highest, pids) = (stop.clone(), peak.clone(), pids.to_vec());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                highest.fetch_max(usage::own_memory(&pids), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Watch { stop, peak, thread: Some(thread) }
    }

    /// The highest sum of anonymous and file pages seen.
    pub fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot fail; a panic there would only cost the figure.
            let _ = thread.join();
        }
        self.peak.load(Ordering::Relaxed)
    }
}

/// Waits until the store shows what was written; FUSE mounts may upload after close and fsync have returned.
///
/// # Errors
/// It does not within two minutes.
pub fn until_stored(what: &str, mut is_there: impl FnMut() -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_there() {
        if Instant::now() > deadline {
            return Err(Failure::Wrong(format!("{what} never reached the store")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
