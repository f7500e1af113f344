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
    /// ovfs, and every peer that is installed; where figures do not matter the first of them stands for all.
    pub fn all(settings: &Settings) -> Vec<Who> {
        let peers = Peer::here().into_iter().take(if settings.all_peers { usize::MAX } else { 1 });
        [Who::Ovfs].into_iter().chain(peers.map(Who::Over)).collect()
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

    /// Starts it with cold caches and connects a guest. With `later`, what is closed is uploaded
    /// [`Settings::upload_delay`] later, where that can be had.
    ///
    /// # Errors
    /// Something did not start.
    pub fn mount(self, s3: &S3, later: bool, settings: &Settings) -> Result<Mounted, Failure> {
        let delay = if later { settings.upload_delay } else { Duration::ZERO };
        let (mount, spec) = match self {
            Who::Ovfs => (None, s3.ovfs().arg(format!("--writeback-delay={}", delay.as_millis()))),
            Who::Over(peer) => {
                let mount = peer.mount(s3, delay)?;
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
/// It does not `within` that time.
pub fn until_stored(what: &str, within: Duration, mut is_there: impl FnMut() -> bool) -> Result<(), Failure> {
    let began = Instant::now();
    while !is_there() {
        if began.elapsed() > within {
            return Err(Failure::Wrong(format!("{what} never reached the store")));
        }
        // Asking takes the store's time as well.
        std::thread::sleep((began.elapsed() / 500).clamp(Duration::from_millis(1), Duration::from_millis(20)));
    }
    Ok(())
}
