//! One mount: its file system once its store has answered, and until then what can be said without it.

use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use event_listener::Event;
use futures::executor::block_on;
use futures::future::BoxFuture;

use crate::cache::Part;
use crate::fs::{Attr, Errno, Result};
use crate::objectfs::{Config, Ids, ObjectFs};
use crate::store::{Capabilities, Remote, Store, StoreError, StoreErrorKind};

/// How long after a store did not answer it is asked again, at first and at most.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(15);

/// A store, and how the guest is to see it.
pub struct Spec<S> {
    /// Where in the share: `/` or names with a slash before each.
    pub path: String,
    /// How the guest sees it.
    pub config: Config,
    /// The guest cannot change it.
    pub readonly: bool,
    /// How owners differ.
    pub ids: Arc<Ids>,
    /// The store.
    pub remote: Remote<S>,
    /// What it can do, if it has been asked. Others are asked in the background, until they answer.
    pub capabilities: Option<Capabilities>,
    /// Its part of the memory.
    pub memory: Part,
}

impl<S> fmt::Debug for Spec<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spec").field("path", &self.path).field("config", &self.config).finish_non_exhaustive()
    }
}

/// A mount.
pub(super) struct Slot<S: Store> {
    pub config: Config,
    pub readonly: bool,
    ids: Arc<Ids>,
    fs: OnceLock<ObjectFs<S>>,
    /// What the store's last answer means for the guest, as long as there was none that would do.
    refused: Mutex<Option<Errno>>,
    /// Notified when one of these changes.
    told: Event,
    /// Its end ends the asking.
    _asking: Option<mpsc::Sender<()>>,
    start: Duration,
}

impl<S: Store> Slot<S> {
    /// Serves what has been asked, and begins to ask the others.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn new(spec: Spec<S>) -> std::io::Result<Arc<Slot<S>>> {
        let (asking, end) = mpsc::channel();
        let asked = spec.capabilities.is_some();
        let slot = Arc::new(Slot {
            config: spec.config,
            readonly: spec.readonly,
            ids: Arc::clone(&spec.ids),
            fs: OnceLock::new(),
            refused: Mutex::default(),
            told: Event::new(),
            _asking: (!asked).then_some(asking),
            start: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        });
        match &spec.capabilities {
            Some(capabilities) => {
                let capabilities = capabilities.clone();
                slot.serve(spec, capabilities)?;
            }
            None => {
                let weak = Arc::downgrade(&slot);
                std::thread::Builder::new().name("mount-probe".into()).spawn(move || {
                    let mut pause = AGAIN;
                    let mut failures = 0;
                    loop {
                        let answer = block_on(spec.remote.probe()).and_then(|can| check(&spec.config, can));
                        let Some(slot) = weak.upgrade() else { return };
                        match answer {
                            Ok(capabilities) => {
                                let path = spec.path.clone();
                                match slot.serve(spec, capabilities) {
                                    Ok(()) if failures > 0 => log::info!("{path}: the store answers, and is served"),
                                    Ok(()) => {}
                                    Err(error) => {
                                        log::error!("{path}: it cannot be served: {error}");
                                        slot.refuse(Errno::EIO);
                                    }
                                }
                                return;
                            }
                            Err(error) => {
                                let level = if failures == 0 { log::Level::Warn } else { log::Level::Debug };
                                let text = &error.text;
                                log::log!(
                                    level,
                                    "{}: the store does not answer, and is asked again: {text}",
                                    spec.path
                                );
                                failures += 1;
                                slot.refuse(errno(error.kind));
                            }
                        }
                        drop(slot);
                        match end.recv_timeout(pause) {
                            Err(RecvTimeoutError::Timeout) => pause = (pause * 2).min(AGAIN_MAX),
                            _ => return,
                        }
                    }
                })?;
            }
        }
        Ok(slot)
    }

    fn serve(&self, spec: Spec<S>, capabilities: Capabilities) -> std::io::Result<()> {
        let fs = ObjectFs::with_ids(spec.config, spec.ids, spec.remote, capabilities, spec.memory)?;
        // Nobody else sets it.
        let _ = self.fs.set(fs);
        self.told.notify(usize::MAX);
        Ok(())
    }

    fn refuse(&self, errno: Errno) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(errno);
        self.told.notify(usize::MAX);
    }

    /// The file system, if there is one yet.
    pub fn ready(&self) -> Option<&ObjectFs<S>> {
        self.fs.get()
    }

    /// The file system. While the store is being asked for the first time, this waits for its answer.
    ///
    /// # Errors
    /// What the store's last answer was, until there is one that will do.
    pub async fn fs(&self) -> Result<&ObjectFs<S>> {
        match self.fs.get() {
            Some(fs) => Ok(fs),
            None => self.wait().await,
        }
    }

    fn wait(&self) -> BoxFuture<'_, Result<&ObjectFs<S>>> {
        Box::pin(async {
            loop {
                let told = self.told.listen();
                if let Some(fs) = self.fs.get() {
                    return Ok(fs);
                }
                let refused = *self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(errno) = refused {
                    return Err(errno);
                }
                told.await;
            }
        })
    }

    /// What the root of a mount looks like before its store has answered, and a directory that only leads to mounts.
    pub fn bare_attr(&self) -> Attr {
        bare_attr(&self.config, &self.ids, self.start)
    }
}

/// A directory of which nothing but the configuration is known.
pub(super) fn bare_attr(config: &Config, ids: &Ids, at: Duration) -> Attr {
    let (seconds, nanos) = (i64::try_from(at.as_secs()).unwrap_or(0), at.subsec_nanos());
    Attr {
        mode: libc::S_IFDIR | config.dir_mode,
        // One link, not two: "unknown number of subdirectories" to find(1) and others that count.
        nlink: 1,
        uid: ids.guest_uid(config.uid),
        gid: ids.guest_gid(config.gid),
        atime: seconds,
        mtime: seconds,
        ctime: seconds,
        atimensec: nanos,
        mtimensec: nanos,
        ctimensec: nanos,
        blksize: 4096,
        ..Attr::default()
    }
}

/// Whether a store can do what its mount is to do.
fn check(config: &Config, can: Capabilities) -> std::result::Result<Capabilities, StoreError> {
    if config.posix && !can.attributes {
        let text = format!("{} keeps no attributes with its files, which posix_metadata needs", can.scheme);
        return Err(StoreError { kind: StoreErrorKind::Unsupported, text });
    }
    Ok(can)
}

/// What the guest is told below a mount that cannot be served: it says nothing of names, for none is known.
fn errno(kind: StoreErrorKind) -> Errno {
    match kind {
        StoreErrorKind::Unavailable | StoreErrorKind::Silent => Errno::ETIMEDOUT,
        StoreErrorKind::PermissionDenied => Errno::EACCES,
        _ => Errno::EIO,
    }
}
