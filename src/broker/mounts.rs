//! The mounts that a broker serves: each with its own store, limits and deadlines, none aware of another.
//!
//! A mount's store can be replaced while requests are under way: those finish where they began.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use futures::future::join_all;

use super::BrokerOptions;
use super::serve::Mount;
use super::url::{Backend, BackendError};
use crate::store::{MountId, Pool};

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
    mount: RwLock<Arc<Mount>>,
}

impl Slot {
    /// The store as it is now.
    pub fn mount(&self) -> Arc<Mount> {
        Arc::clone(&self.mount.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether it is the one in the root, which the log need not name.
    pub fn is_root(&self) -> bool {
        self.path == "/"
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
            all.insert(id, Arc::new(Slot { path, mount: RwLock::new(Arc::new(mount)) }));
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

    /// Waits until nothing is being written any more, to any store.
    pub async fn settle(&self) {
        join_all(self.all.values().map(|slot| async { slot.mount().settle().await })).await;
    }
}
