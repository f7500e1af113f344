//! Live migration: moving the file system's state through the front end (vhost-user DEVICE_STATE).
//!
//! The front end announces a migration by F_LOG_ALL (the source then collects what it can while the guest runs), stops
//! the rings, hands over a pipe (SET_DEVICE_STATE_FD) and asks for the result (CHECK_DEVICE_STATE). Saving and loading
//! run on a thread of their own, since the message that starts them must be answered at once.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use vhost::vhost_user::message::{VhostTransferStateDirection, VhostTransferStatePhase};

use crate::fs::Migrate;

/// The state of a migration, on either side.
pub(super) struct Migration {
    target: Option<Arc<dyn Migrate>>,
    preparation: Option<Preparation>,
    transfer: Option<JoinHandle<io::Result<()>>>,
}

/// A thread that collects state while the guest runs.
struct Preparation {
    thread: JoinHandle<()>,
    cancel: Arc<AtomicBool>,
}

impl Preparation {
    fn start(target: Arc<dyn Migrate>) -> io::Result<Preparation> {
        let cancel = Arc::new(AtomicBool::new(false));
        let cancelled = Arc::clone(&cancel);
        let thread =
            Builder::new().name("migration".to_owned()).spawn(move || run(|| target.prepare_save(&cancelled)))?;
        Ok(Preparation { thread, cancel })
    }

    fn cancel(self) {
        self.cancel.store(true, Ordering::Relaxed);
        if self.thread.join().is_err() {
            log::warn!("The cancelled preparation for migration had panicked");
        }
    }
}

/// Runs `work` with a working directory and umask of its own, which a file system may change.
fn run<T>(work: impl FnOnce() -> T) -> T {
    if let Err(error) = super::unshare_fs() {
        log::warn!("Migration shares its working directory: {error}");
    }
    work()
}

fn named(text: &str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{text}: {error}"))
}

impl Migration {
    /// For a file system that can move, or none.
    pub(super) fn new(target: Option<Arc<dyn Migrate>>) -> Migration {
        Migration { target, preparation: None, transfer: None }
    }

    /// F_LOG_ALL appeared in or vanished from the acknowledged features: a migration is announced, or called off.
    pub(super) fn announce(&mut self, logging: bool) {
        if !logging {
            if let Some(preparation) = self.preparation.take() {
                preparation.cancel();
            }
            return;
        }
        let Some(target) = &self.target else { return };
        if self.preparation.is_none() {
            match Preparation::start(Arc::clone(target)) {
                Ok(preparation) => self.preparation = Some(preparation),
                Err(error) => log::warn!("Cannot prepare for migration while the guest runs: {error}"),
            }
        }
    }

    /// SET_DEVICE_STATE_FD: starts to save to or load from `pipe`. Does not wait.
    ///
    /// # Errors
    /// A phase other than STOPPED, a file system that cannot move, or no thread to be had; the text is logged here.
    pub(super) fn start(
        &mut self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        pipe: File,
    ) -> io::Result<()> {
        self.try_start(direction, phase, pipe)
            .inspect_err(|error| log::error!("Failed to initiate state (de-)serialization: {error}"))
    }

    fn try_start(
        &mut self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        pipe: File,
    ) -> io::Result<()> {
        if phase != VhostTransferStatePhase::STOPPED {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("Transfer in phase {phase:?} is not supported"),
            ));
        }
        let Some(target) = self.target.clone() else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "This file system cannot be migrated"));
        };
        let preparation = self.preparation.take();
        let thread = Builder::new().name("migration".to_owned());
        self.transfer = Some(match direction {
            VhostTransferStateDirection::SAVE => {
                thread.spawn(move || run(|| save(target.as_ref(), preparation, pipe)))?
            }
            VhostTransferStateDirection::LOAD => {
                if let Some(preparation) = preparation {
                    log::warn!("An incoming migration calls off the outgoing one that was announced");
                    preparation.cancel();
                }
                thread.spawn(move || run(|| target.load(pipe).map_err(named("Failed to load state"))))?
            }
        });
        Ok(())
    }

    /// CHECK_DEVICE_STATE: waits for the transfer and tells how it went.
    ///
    /// # Errors
    /// The transfer's, or that there was none; the text is logged here.
    pub(super) fn check(&mut self) -> io::Result<()> {
        let result = match self.transfer.take() {
            None => Err(io::Error::new(io::ErrorKind::InvalidInput, "no transfer of state was started")),
            Some(transfer) => transfer.join().unwrap_or_else(|_| Err(io::Error::other("the transfer panicked"))),
        };
        result.inspect_err(|error| log::error!("Migration failed: {error}"))
    }
}

fn save(target: &dyn Migrate, preparation: Option<Preparation>, pipe: File) -> io::Result<()> {
    match preparation {
        Some(preparation) => {
            let joined = preparation.thread.join();
            joined.map_err(|_| io::Error::other("Failed to finalize serialization preparation"))?;
        }
        None => {
            log::warn!(
                "State is saved without a migration announced before (as for a snapshot): collecting it now, the \
                 guest stays stopped meanwhile"
            );
            target.prepare_save(&Arc::default());
        }
    }
    target.save(pipe).map_err(named("Failed to save state"))
}

impl Drop for Migration {
    fn drop(&mut self) {
        if let Some(preparation) = self.preparation.take() {
            preparation.cancel();
        }
    }
}
