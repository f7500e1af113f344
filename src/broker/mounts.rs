//! The mounts that a broker serves: each with its own store, limits and deadlines, none aware of another.
//!
//! How a mount's store is reached can change while requests are under way ([`Slot::change`]): those finish where they
//! began, later ones go the new way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use futures::future::join_all;

use super::BrokerOptions;
use super::serve::Mount;
use super::url::{Backend, BackendError};
use crate::store::{MountId, Op, Pool};

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
    /// Those before it, which may still have something under way.
    past: Mutex<Vec<Weak<Mount>>>,
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
        let current = Current { mount, backend: backend.clone(), options };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.retain(|mount| mount.strong_count() > 0);
        past.push(Arc::downgrade(&old));
        Changed::Applied
    }

    /// Waits until nothing is being written any more.
    async fn settle(&self) {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all: Vec<Arc<Mount>> = past.iter().filter_map(Weak::upgrade).chain([self.mount()]).collect();
        join_all(all.iter().map(|mount| mount.settle())).await;
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
            all.insert(id, Arc::new(Slot { path, current, past: Mutex::default() }));
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

    /// How long a request to whichever of them may take.
    pub fn request_timeout(&self) -> Duration {
        self.all.values().map(|slot| slot.request_timeout()).max().unwrap_or_default()
    }

    /// The device is gone: nothing of what it sent in part is to stay.
    pub async fn abort_flows(&self) {
        join_all(self.all.values().map(|slot| async { slot.mount().abort_flows().await })).await;
    }

    /// Waits until nothing is being written any more, to any store.
    pub async fn settle(&self) {
        join_all(self.all.values().map(|slot| slot.settle())).await;
    }
}
