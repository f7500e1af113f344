//! The mounts that a broker serves: each with its own store, limits and deadlines, none aware of another.
//!
//! Mounts come and go ([`Mounts::add`], [`Mounts::leave`]): one that is to go stays until the device has stored what is dirty.
//! How a mount's store is reached can change while requests are under way ([`Slot::change`]): those finish where they
//! began, later ones go the new way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::sync::Semaphore;

use super::BrokerOptions;
use super::breaker::{ASK_AGAIN, ASK_AGAIN_MAX, Breaker};
use super::disk::Disk;
use super::error::error;
use super::serve::Mount;
use super::spool::Spool;
use super::url::{Backend, BackendError};
use crate::metrics::StoreMeter;
use crate::store::client::IN_FLIGHT_MAX;
use crate::store::{ADDED_MAX, AREAS, Change, MountId, Op, Pool, Reply, StoreError, StoreErrorKind};

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
    /// The area that is its memory, of one that was added.
    area: Option<u16>,
    /// It is to go.
    leaving: AtomicBool,
    /// How long the device was last told that names and attributes may be trusted.
    expiration: Mutex<Option<Duration>>,
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
    fn new(path: String, mount: Mount, backend: Backend, options: BrokerOptions, area: Option<u16>) -> Slot {
        Slot::of(path, Arc::new(mount), backend, options, area)
    }

    fn of(path: String, mount: Arc<Mount>, backend: Backend, options: BrokerOptions, area: Option<u16>) -> Slot {
        Slot {
            path,
            current: RwLock::new(Current { mount, backend, options }),
            past: Mutex::default(),
            breaker: Breaker::default(),
            area,
            leaving: AtomicBool::new(false),
            expiration: Mutex::default(),
        }
    }

    /// Notes that names and attributes may be trusted for `time`; returns whether the device has to be told.
    pub fn expires(&self, time: Duration) -> bool {
        let told = self.expiration.lock().unwrap_or_else(PoisonError::into_inner).replace(time);
        told != Some(time)
    }

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

    /// What the store is called where people see it, and where it is told from others.
    pub fn shows_as(&self) -> String {
        self.current(|current| current.backend.to_string())
    }

    /// The path in the share of what the store calls `path`.
    pub fn path_of(&self, path: &str) -> String {
        if self.is_root() { path.to_owned() } else { format!("{}/{path}", self.path.trim_start_matches('/')) }
    }

    /// The same store, with bytes in another pool.
    ///
    /// # Errors
    /// As [`Mount::new`].
    pub fn beside(&self, pool: &Arc<Pool>) -> Result<Mount, BackendError> {
        self.current(|current| current.mount.beside(&current.backend, pool, &current.options))
    }

    /// Has what is to be stored kept for the next start.
    ///
    /// # Errors
    /// Unsupported: there is no place for it.
    pub async fn keep(&self, op: Op) -> Result<Reply, StoreError> {
        let spool = self.current(|current| current.options.spool.clone());
        let Some(spool) = spool else {
            return Err(error(StoreErrorKind::Unsupported, "there is no spool directory"));
        };
        self.mount().keep(&spool, self.shows_as(), self.path.clone(), op).await
    }

    /// Whether the store was taken for gone when it was last asked.
    pub fn is_gone(&self) -> bool {
        self.breaker.is_open()
    }

    /// Does `op` on the store as `mount` reaches it, unless the store is taken for gone.
    pub async fn serve(self: &Arc<Self>, mount: &Mount, op: Op) -> Result<Reply, StoreError> {
        // Whoever only probes wants to know; and what is half sent cannot be begun anew, so it has more patience than others.
        let goes_on = matches!(op, Op::Probe | Op::FlowSend { .. } | Op::FlowEnd { .. } | Op::FlowAbort { .. });
        if self.breaker.is_open() && !goes_on {
            return Err(error(StoreErrorKind::Silent, "the store is silent, and is asked in the background"));
        }
        // What writes takes as long as it takes, and much may have been answered within it.
        let asks = !op.writes();
        let (sent, patience) = (Instant::now(), self.request_timeout());
        let result = mount.serve(op).await;
        match &result {
            Err(e) if e.kind == StoreErrorKind::Unavailable => {
                if asks && self.breaker.unanswered(sent, patience) {
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
    table: RwLock<Table>,
    pool: Arc<Pool>,
    /// What all have of this machine's disk.
    disk: Option<Arc<Disk>>,
    spool: Option<Arc<Spool>>,
    /// For requests of the device, all mounts together. A device that sends more than it may waits in its write(2).
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Table {
    all: HashMap<MountId, Arc<Slot>>,
    /// The number of the next mount, and that which none may have.
    next: usize,
    end: usize,
    /// Which areas are in use.
    areas: [bool; AREAS as usize],
}

/// Why a mount is not added.
#[derive(Debug)]
pub(super) enum NotAdded {
    /// The store does not answer, or cannot be served.
    Refused(String),
    /// It takes a restart.
    NoRoom,
}

impl Mounts {
    /// Puts `stores` into service, without asking them anything.
    ///
    /// # Errors
    /// The first store that cannot be, with its path.
    pub fn new(stores: Vec<Mounted>, pool: &Arc<Pool>) -> Result<Mounts, (String, BackendError)> {
        let mut all = HashMap::new();
        let disk = stores.first().and_then(|store| store.options.disk.clone());
        let spool = stores.first().and_then(|store| store.options.spool.clone());
        for Mounted { id, path, backend, options } in stores {
            let mount = Mount::new(&backend, pool, &options).map_err(|error| (path.clone(), error))?;
            all.insert(id, Arc::new(Slot::new(path, mount, backend, options, None)));
        }
        let next = all.keys().max().map_or(1, |&last| usize::from(last) + 1);
        let room = Arc::new(Semaphore::new(Mounts::ROOM * all.len()));
        let table = RwLock::new(Table { all, next, end: next + ADDED_MAX, areas: [false; AREAS as usize] });
        Ok(Mounts { table, pool: Arc::clone(pool), disk, spool, room })
    }

    /// Requests of one mount that are taken from the device at once.
    const ROOM: usize = 2 * IN_FLIGHT_MAX;

    /// Waits until another request may be taken.
    pub fn room(&self) -> Arc<Semaphore> {
        Arc::clone(&self.room)
    }

    fn read<T>(&self, of: impl FnOnce(&Table) -> T) -> T {
        of(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, of: impl FnOnce(&mut Table) -> T) -> T {
        of(&mut self.table.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The mount of this number.
    pub fn get(&self, id: MountId) -> Option<Arc<Slot>> {
        self.read(|table| table.all.get(&id).map(Arc::clone))
    }

    /// All of them, but those that are to go, with their numbers.
    pub fn staying(&self) -> Vec<(MountId, Arc<Slot>)> {
        let staying = |table: &Table| {
            let all = table.all.iter().filter(|(_, slot)| !slot.leaving.load(Ordering::Relaxed));
            all.map(|(id, slot)| (*id, Arc::clone(slot))).collect()
        };
        self.read(staying)
    }

    /// Puts another store into service, if it answers. The result is what the device must be told, with `settings`.
    ///
    /// # Errors
    /// [`NotAdded`]
    pub async fn add(
        &self,
        path: &str,
        backend: &Backend,
        options: BrokerOptions,
        settings: Vec<u8>,
    ) -> Result<Change, NotAdded> {
        let free = |table: &Table| {
            let area = table.areas.iter().position(|used| !used)?;
            let id = (table.next < table.end).then(|| MountId::try_from(table.next).ok()).flatten()?;
            Some((id, u16::try_from(area).ok()?))
        };
        let (id, area) = self.read(free).ok_or(NotAdded::NoRoom)?;
        let options = BrokerOptions { disk: self.disk.clone(), spool: self.spool.clone(), ..options };
        let mount = Mount::new(backend, &self.pool, &options).map_err(|error| NotAdded::Refused(error.to_string()))?;
        let mount = Arc::new(mount);
        mount.serve(Op::Probe).await.map_err(|error| NotAdded::Refused(error.text))?;
        let slot = Slot::of(path.to_owned(), mount, backend.clone(), options, Some(area));
        // One task changes mounts, so this is still free.
        self.write(|table| {
            table.areas[usize::from(area)] = true;
            table.next += 1;
            table.all.insert(id, Arc::new(slot));
        });
        self.room.add_permits(Mounts::ROOM);
        Ok(Change::Mount { mount: id, area, settings })
    }

    /// This one is to go, once the device has stored what is dirty.
    pub fn leave(&self, id: MountId) {
        self.read(|table| table.all.get(&id).into_iter().for_each(|slot| slot.leaving.store(true, Ordering::Relaxed)));
    }

    /// The device has nothing left of a mount that was to go.
    pub fn left(&self, id: MountId) {
        let gone = self.write(|table| {
            let leaves = table.all.get(&id).is_some_and(|slot| slot.leaving.load(Ordering::Relaxed));
            let slot = leaves.then(|| table.all.remove(&id)).flatten()?;
            if let Some(used) = slot.area.and_then(|area| table.areas.get_mut(usize::from(area))) {
                *used = false;
            }
            Some(slot)
        });
        if let Some(slot) = gone {
            log::info!("{}: all is stored, and it is gone", slot.path);
        }
    }

    /// All mounts by their numbers, the lowest first.
    pub fn numbered(&self) -> Vec<(MountId, Arc<Slot>)> {
        let mut all: Vec<_> = self.read(|table| table.all.iter().map(|(id, slot)| (*id, Arc::clone(slot))).collect());
        all.sort_unstable_by_key(|(id, _)| *id);
        all
    }

    /// How long a request to whichever of them may take.
    pub fn request_timeout(&self) -> Duration {
        self.read(|table| table.all.values().map(|slot| slot.request_timeout()).max().unwrap_or_default())
    }

    /// The device is gone: nothing of what it sent in part is to stay.
    pub async fn abort_flows(&self) {
        let all: Vec<Arc<Slot>> = self.read(|table| table.all.values().map(Arc::clone).collect());
        join_all(all.iter().map(|slot| async { slot.mount().abort_flows().await })).await;
    }

    /// Waits until nothing is being written any more, to any store.
    pub async fn settle(&self) {
        let all: Vec<Arc<Slot>> = self.read(|table| table.all.values().map(Arc::clone).collect());
        join_all(all.iter().map(|slot| slot.settle())).await;
    }
}
