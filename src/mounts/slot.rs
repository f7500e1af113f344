//! One mount: its file system once its store has answered, and until then what can be said without it.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use event_listener::Event;
use futures::executor::block_on;
use futures::future::BoxFuture;

use crate::cache::Part;
use crate::fs::{Attr, Errno, FileSystem, Result};
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

/// A mount is served.
const SERVED: u8 = 0;
/// It is being taken away: what is open can be read and written, and nothing is found any more.
const LEAVING: u8 = 1;
/// It is gone: nothing of it can be reached.
const GONE: u8 = 2;

/// No time was set.
const UNSET: u64 = u64::MAX;

/// How long between two tries to store what a mount that is being taken away has left.
const DRAIN_AGAIN: Duration = Duration::from_secs(5);

/// How often it is looked whether requests of a mount that is gone are still under way.
const EMPTY_AGAIN: Duration = Duration::from_millis(100);

/// A mount.
pub(super) struct Slot<S: Store> {
    path: String,
    pub config: Config,
    pub readonly: bool,
    ids: Arc<Ids>,
    fs: OnceLock<ObjectFs<S>>,
    /// What the store's last answer means for the guest, as long as there was none that would do.
    refused: Mutex<Option<Errno>>,
    /// Notified when one of these changes.
    told: Event,
    /// Its end ends the asking.
    asking: Mutex<Option<mpsc::Sender<()>>>,
    start: Duration,
    /// One of the three above.
    stage: AtomicU8,
    /// How long names and attributes may be trusted, in milliseconds, if that was set after the start.
    expiration_ms: AtomicU64,
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
            path: spec.path.clone(),
            config: spec.config,
            readonly: spec.readonly,
            ids: Arc::clone(&spec.ids),
            fs: OnceLock::new(),
            refused: Mutex::default(),
            told: Event::new(),
            asking: Mutex::new((!asked).then_some(asking)),
            start: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            stage: AtomicU8::new(SERVED),
            expiration_ms: AtomicU64::new(UNSET),
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
                        if slot.is_leaving() {
                            return;
                        }
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
        self.expire_as_set();
        self.told.notify(usize::MAX);
        Ok(())
    }

    /// Names and attributes may be trusted for so long from now on, under the policy that has such a time.
    pub fn set_expiration(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(UNSET - 1);
        self.expiration_ms.store(ms, Ordering::SeqCst);
        self.expire_as_set();
    }

    fn expire_as_set(&self) {
        let ms = self.expiration_ms.load(Ordering::SeqCst);
        if let (Some(fs), true) = (self.fs.get(), ms != UNSET) {
            fs.set_expiration(Duration::from_millis(ms));
        }
    }

    /// The path in the share of what the mount calls `path`.
    pub fn path_of(&self, path: &str) -> String {
        match self.path.as_str() {
            "/" => path.to_owned(),
            mount => format!("{}/{path}", mount.trim_start_matches('/')),
        }
    }

    /// Whether it is being taken away, or gone.
    pub fn is_leaving(&self) -> bool {
        self.stage.load(Ordering::Acquire) != SERVED
    }

    /// Whether it is gone.
    pub fn is_gone(&self) -> bool {
        self.stage.load(Ordering::Acquire) == GONE
    }

    /// Nothing new is found in it from now on.
    pub fn leave(&self) {
        self.stage.store(LEAVING, Ordering::Release);
        self.asking.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.refuse(Errno::ENOENT);
    }

    /// Stores what is dirty, however long that takes, then ends it for whoever has anything open, and returns when nothing is
    /// under way any more. Call it after [`Slot::leave`].
    pub fn drain(&self) {
        let Some(fs) = self.fs.get() else {
            self.stage.store(GONE, Ordering::Release);
            return;
        };
        self.store_all(fs);
        self.stage.store(GONE, Ordering::Release);
        // What was written while that was seen.
        loop {
            self.store_all(fs);
            if fs.retire() {
                return;
            }
            std::thread::park_timeout(EMPTY_AGAIN);
        }
    }

    fn store_all(&self, fs: &ObjectFs<S>) {
        let mut said = false;
        loop {
            block_on(fs.flush_all(DRAIN_AGAIN));
            let left = fs.unstored();
            if left == 0 {
                return;
            }
            let level = if said { log::Level::Debug } else { log::Level::Warn };
            log::log!(
                level,
                "{}: {left} bytes are not stored yet, and it is not taken away before they are",
                self.path
            );
            said = true;
            std::thread::park_timeout(DRAIN_AGAIN);
        }
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
