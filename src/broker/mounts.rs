//! The mounts that a broker serves: each with its own store, limits and deadlines, none aware of another.
//!
//! How a mount's store is reached can change while requests are under way ([`Slot::change`]): those finish where they
//! began, later ones go the new way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use futures::future::join_all;

use super::BrokerOptions;
use super::breaker::{ASK_AGAIN, ASK_AGAIN_MAX, Breaker};
use super::disk::Disk;
use super::error::error;
use super::serve::Mount;
use super::url::{Backend, BackendError};
use crate::metrics::StoreMeter;
use crate::store::{MountId, Op, Pool, Reply, StoreError, StoreErrorKind};

/// A store to be served, and where.
#[derive(Clone, Debug)]
pub struct Mounted {
    /// What the device calls it.
    pub id: MountId,
    /// Where it is in the share, for the log: `/` for the root.
    pub path: String,
    /// The store.
    pub backend: Backend,
    /// How it is served.
    pub options: BrokerOptions,
}

/// A mount in service.
#[derive(Debug)]
pub(super) struct Slot {
    /// Where it is in the share.
    pub path: String,
    current: RwLock<Current>,
    /// Those before it, which may still have something under way, and how they are reached.
    past: Mutex<Vec<(Weak<Mount>, Backend)>>,
    /// Whether the store answers at all.
    breaker: Breaker,
}

#[derive(Debug)]
struct Current {
    mount: Arc<Mount>,
    backend: Backend,
    options: BrokerOptions,
}

/// What came of a wish for change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Changed {
    /// It is as it was wished already.
    Nothing,
    /// From now on it is as wished.
    Applied,
    /// It stays as it was: the store does not answer so.
    Refused(String),
    /// It stays as it was: that would be another store.
    OtherStore,
}

impl Slot {
    fn current<T>(&self, of: impl FnOnce(&Current) -> T) -> T {
        of(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The store as it is now.
    pub fn mount(&self) -> Arc<Mount> {
        self.current(|current| Arc::clone(&current.mount))
    }

    /// Whether it is the one in the root, which the log need not name.
    pub fn is_root(&self) -> bool {
        self.path == "/"
    }

    /// Whether the store was taken for gone when it was last asked.
    pub fn is_gone(&self) -> bool {
        self.breaker.is_open()
    }

    /// Does `op` on the store as `mount` reaches it, unless the store is taken for gone.
    pub async fn serve(self: &Arc<Self>, mount: &Mount, op: Op) -> Result<Reply, StoreError> {
        // Whoever only probes wants to know.
        if self.breaker.is_open() && !matches!(op, Op::Probe) {
            return Err(error(StoreErrorKind::Silent, "the store is silent, and is asked in the background"));
        }
        let (sent, patience) = (Instant::now(), self.request_timeout());
        let result = mount.serve(op).await;
        match &result {
            Err(e) if e.kind == StoreErrorKind::Unavailable => {
                if self.breaker.unanswered(sent, patience) {
                    let seconds = patience.as_secs_f32();
                    log::warn!(
                        "{}: the store has said nothing for {seconds} s; until it does, requests fail at once",
                        self.path
                    );
                    tokio::spawn(Arc::clone(self).ask_until_heard());
                }
            }
            // Not the store's words.
            Err(e) if matches!(e.kind, StoreErrorKind::Protocol | StoreErrorKind::ReadOnly | StoreErrorKind::Stale) => {
            }
            _ => self.heard(),
        }
        result
    }

    fn heard(&self) {
        if self.breaker.heard() {
            log::info!("{}: the store answers again", self.path);
        }
    }

    async fn ask_until_heard(self: Arc<Self>) {
        let mut pause = ASK_AGAIN;
        while self.breaker.is_open() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ASK_AGAIN_MAX);
            match self.mount().serve(Op::Probe).await {
                Err(e) if e.kind == StoreErrorKind::Unavailable => log::debug!("{}: still silent: {e}", self.path),
                _ => self.heard(),
            }
        }
    }

    /// Where what goes to its store is counted.
    pub fn meter(&self) -> Arc<StoreMeter> {
        self.current(|current| Arc::clone(&current.options.meter))
    }

    /// Where what was read may come from instead of the store.
    pub fn disk(&self) -> Option<Arc<Disk>> {
        self.current(|current| current.options.disk.clone())
    }

    /// The scheme of its store's URL.
    pub fn scheme(&self) -> &'static str {
        self.current(|current| current.backend.service.scheme)
    }

    /// How long its requests may take.
    pub fn request_timeout(&self) -> Duration {
        self.current(|current| current.options.request_timeout)
    }

    /// Reaches the same store as `backend` says from now on (`None`: as before), with another timeout; if the store answers.
    pub async fn change(&self, backend: Option<&Backend>, request_timeout: Duration) -> Changed {
        let (old, before, options) =
            self.current(|current| (Arc::clone(&current.mount), current.backend.clone(), current.options.clone()));
        let backend = backend.unwrap_or(&before);
        if backend.is_as(&before) && options.request_timeout == request_timeout {
            return Changed::Nothing;
        }
        if !backend.is_same_store(&before) {
            return Changed::OtherStore;
        }
        let options = BrokerOptions { request_timeout, ..options };
        let same_place = backend.is_same_place(&before);
        let mount = match old.succeed(backend, &options, same_place) {
            Ok(mount) => Arc::new(mount),
            Err(error) => return Changed::Refused(error.to_string()),
        };
        if let Err(error) = mount.serve(Op::Probe).await {
            return Changed::Refused(error.text);
        }
        self.heard();
        if same_place {
            // Their keys may be taken out of use before they are done.
            old.follow(&mount);
            let past = self.past();
            past.iter().filter(|(_, place)| backend.is_same_place(place)).for_each(|(past, _)| past.follow(&mount));
        }
        let current = Current { mount, backend: backend.clone(), options };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.retain(|(mount, _)| mount.strong_count() > 0);
        past.push((Arc::downgrade(&old), before));
        Changed::Applied
    }

    /// The store as it was before, as long as anything there is under way.
    fn past(&self) -> Vec<(Arc<Mount>, Backend)> {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.iter().filter_map(|(mount, backend)| Some((mount.upgrade()?, backend.clone()))).collect()
    }

    /// Waits until nothing is being written any more.
    async fn settle(&self) {
        let past = self.past();
        let now = self.mount();
        join_all(past.iter().map(|(mount, _)| mount).chain([&now]).map(|mount| mount.settle())).await;
    }
}

/// All mounts.
#[derive(Debug)]
pub(super) struct Mounts {
    all: HashMap<MountId, Arc<Slot>>,
}

impl Mounts {
    /// Puts `stores` into service, without asking them anything.
    ///
    /// # Errors
    /// The first store that cannot be, with its path.
    pub fn new(stores: Vec<Mounted>, pool: &Arc<Pool>) -> Result<Mounts, (String, BackendError)> {
        let mut all = HashMap::new();
        for Mounted { id, path, backend, options } in stores {
            let mount = Mount::new(&backend, pool, &options).map_err(|error| (path.clone(), error))?;
            let current = RwLock::new(Current { mount: Arc::new(mount), backend, options });
            all.insert(id, Arc::new(Slot { path, current, past: Mutex::default(), breaker: Breaker::default() }));
        }
        Ok(Mounts { all })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// The mount of this number.
    pub fn get(&self, id: MountId) -> Option<Arc<Slot>> {
        self.all.get(&id).map(Arc::clone)
    }

    /// All mounts by their numbers, the lowest first.
    pub fn numbered(&self) -> Vec<(MountId, &Arc<Slot>)> {
        let mut all: Vec<_> = self.all.iter().map(|(id, slot)| (*id, slot)).collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        all
    }

    /// How long a request to whichever of them may take.
    pub fn request_timeout(&self) -> Duration {
        self.all.values().map(|slot| slot.request_timeout()).max().unwrap_or_default()
    }

    /// Waits until nothing is being written any more, to any store.
    pub async fn settle(&self) {
        join_all(self.all.values().map(|slot| slot.settle())).await;
    }
}
