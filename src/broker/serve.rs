//! One mount: checks what the device asks, keeps each kind of work to its share, and ends each request in time.
//!
//! The device is not trusted: it parses what a guest sends. Paths, slices and lengths are held against the rules before
//! anything acts on them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::BrokerOptions;
use super::error::error;
use super::local::Local;
use super::operator::noting_retries;
use super::remote::{RESERVED, Remote, TEMPORARY, UNLINKED};
use super::requests::{Verdict, kind_of_op, verdict};
use super::services::Shares;
use super::spool::{Spool, ToKeep};
use super::url::{Backend, BackendError};
use crate::metrics::StoreMeter;
use crate::store::path::{NameError, check_name, check_path};
use crate::store::{BASES_MAX, Base, LIST_PAGE_MAX, Op, Pool, Reply, Segment, StoreError, StoreErrorKind};

/// A write waits for its turn this many times the request timeout: those before it may be large.
const WRITE_PATIENCE: u32 = 4;

#[derive(Debug)]
enum Store {
    Local(Arc<Local>),
    Remote(Arc<Remote>),
}

/// A store in service.
#[derive(Debug)]
pub(super) struct Mount {
    store: Store,
    pool: Arc<Pool>,
    readonly: bool,
    request_timeout: Duration,
    meter: Arc<StoreMeter>,
    /// Requests are counted where they are sent; else operations are, here.
    http: bool,
    shares: Shares,
    quick: Semaphore,
    reads: Semaphore,
    writes: Semaphore,
}

impl Mount {
    /// Puts `backend` into service, without asking the store anything.
    ///
    /// # Errors
    /// [`BackendError::Refused`]
    pub fn new(backend: &Backend, pool: &Arc<Pool>, options: &BrokerOptions) -> Result<Mount, BackendError> {
        let store = match backend.service.local {
            true => Store::Local(Arc::new(Local::new(backend, pool, options)?)),
            false => Store::Remote(Arc::new(Remote::new(backend, pool, options)?)),
        };
        let shares = backend.service.shares;
        Ok(Mount {
            store,
            pool: Arc::clone(pool),
            readonly: options.readonly,
            request_timeout: options.request_timeout,
            meter: Arc::clone(&options.meter),
            http: backend.service.http,
            shares,
            quick: Semaphore::new(shares.quick),
            reads: Semaphore::new(shares.reads),
            writes: Semaphore::new(shares.writes),
        })
    }

    /// The same store, reached as `backend` says from now on. What is under way here is not touched. `same_place`: what was
    /// found out about the store still holds.
    ///
    /// # Errors
    /// As [`Mount::new`].
    pub fn succeed(&self, backend: &Backend, options: &BrokerOptions, same_place: bool) -> Result<Mount, BackendError> {
        let store = match &self.store {
            Store::Local(local) => Store::Local(Arc::clone(local)),
            Store::Remote(remote) => Store::Remote(Arc::new(remote.succeed(backend, &self.pool, options, same_place)?)),
        };
        self.with(store, &self.pool, options)
    }

    /// The same store, with bytes in another pool.
    ///
    /// # Errors
    /// As [`Mount::new`].
    pub fn beside(&self, backend: &Backend, pool: &Arc<Pool>, options: &BrokerOptions) -> Result<Mount, BackendError> {
        let store = match &self.store {
            Store::Local(_) => Store::Local(Arc::new(Local::new(backend, pool, options)?)),
            Store::Remote(remote) => Store::Remote(Arc::new(remote.succeed(backend, pool, options, true)?)),
        };
        self.with(store, pool, options)
    }

    fn with(&self, store: Store, pool: &Arc<Pool>, options: &BrokerOptions) -> Result<Mount, BackendError> {
        Ok(Mount {
            store,
            pool: Arc::clone(pool),
            readonly: self.readonly,
            request_timeout: options.request_timeout,
            meter: Arc::clone(&self.meter),
            http: self.http,
            shares: self.shares,
            quick: Semaphore::new(self.shares.quick),
            reads: Semaphore::new(self.shares.reads),
            writes: Semaphore::new(self.shares.writes),
        })
    }

    /// What is under way here goes on with the keys of `next`, which leads to the same place.
    pub fn follow(&self, next: &Mount) {
        if let (Store::Remote(remote), Store::Remote(next)) = (&self.store, &next.store) {
            remote.follow(next);
        }
    }

    /// Does `op`. Reads and questions end within the request timeout; what writes ends when it has truly ended, since
    /// half of it may be done.
    pub async fn serve(&self, op: Op) -> Result<Reply, StoreError> {
        if self.readonly && changes(&op) {
            return Err(error(StoreErrorKind::ReadOnly, "the mount is read-only"));
        }
        let total = self.check(&op)?;
        match &op {
            Op::Compose { path, .. } => {
                let waiting = self.meter.waiting();
                let _turn = self.turn(&self.writes, self.request_timeout * WRITE_PATIENCE).await?;
                drop(waiting);
                let _upload = self.meter.upload(path, total);
                self.run(op, total).await
            }
            // They wait for each other, so they take no turns; the store has a bound for their number.
            Op::FlowBegin { .. } | Op::FlowSend { .. } | Op::FlowEnd { .. } | Op::FlowAbort { .. } => {
                self.run(op, total).await
            }
            _ if op.writes() => {
                let _turn = self.turn(&self.writes, self.request_timeout * WRITE_PATIENCE).await?;
                self.run(op, total).await
            }
            // A thread in the midst of a read cannot be stopped, and still fills the slice.
            Op::Read { .. } if matches!(self.store, Store::Local(_)) => {
                let _turn = self.turn(&self.reads, self.request_timeout).await?;
                self.run(op, total).await
            }
            _ => {
                let share = if matches!(op, Op::Read { .. }) { &self.reads } else { &self.quick };
                let work = async {
                    let _turn = self.turn(share, self.request_timeout).await?;
                    self.run(op, total).await
                };
                timeout(self.request_timeout, work).await.unwrap_or_else(|_| Err(self.late()))
            }
        }
    }

    async fn turn<'a>(&self, share: &'a Semaphore, patience: Duration) -> Result<SemaphorePermit<'a>, StoreError> {
        match timeout(patience, share.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(self.late()),
        }
    }

    fn late(&self) -> StoreError {
        let seconds = self.request_timeout.as_secs_f32();
        error(StoreErrorKind::Unavailable, format!("the store has not answered within {seconds} s"))
    }

    /// Has `spool` keep what is to be stored here. `store` and `at` name this store and where it is in the share.
    ///
    /// # Errors
    /// Protocol: the request is against the rules. The disk's.
    pub async fn keep(&self, spool: &Arc<Spool>, store: String, at: String, op: Op) -> Result<Reply, StoreError> {
        self.check(&op)?;
        let Op::Spool { path, base, segments, attributes } = op else {
            return Err(against_the_rules("nothing to be kept"));
        };
        let (spool, pool) = (Arc::clone(spool), Arc::clone(&self.pool));
        let kept = tokio::task::spawn_blocking(move || {
            let what = ToKeep { store: &store, mount: &at, path: &path, base, segments: &segments, attributes };
            spool.keep(what, &pool)
        });
        let failed = |e| error(StoreErrorKind::Io, format!("the operation failed inside the broker: {e}"));
        kept.await.map_err(failed)?.map(unit)
    }

    /// The device that sent objects piece by piece is gone: nothing of them is to stay.
    pub async fn abort_flows(&self) {
        if let Store::Remote(store) = &self.store {
            store.abort_flows().await;
        }
    }

    /// Waits until nothing is being written any more.
    pub async fn settle(&self) {
        // Fails only if the semaphore were closed, which nobody does.
        let _ = self.writes.acquire_many(self.shares.writes as u32).await;
    }

    async fn run(&self, op: Op, total: u64) -> Result<Reply, StoreError> {
        let Some(kind) = kind_of_op(&op).filter(|_| !self.http) else { return self.run_uncounted(op, total).await };
        let read = if let Op::Read { dest, .. } = &op { dest.len.into() } else { 0 };
        let began = Instant::now();
        let result = self.run_uncounted(op, total).await;
        self.meter.request(kind, began.elapsed(), result.as_ref().is_err_and(|e| verdict(e.kind) == Verdict::Ill));
        if result.is_ok() {
            self.meter.received(read);
            self.meter.sent(total);
        }
        result
    }

    async fn run_uncounted(&self, op: Op, total: u64) -> Result<Reply, StoreError> {
        match &self.store {
            Store::Remote(store) => noting_retries(remote(store, op, total)).await.0,
            Store::Local(store) => {
                let store = Arc::clone(store);
                tokio::task::spawn_blocking(move || local(&store, op)).await.unwrap_or_else(|e| {
                    Err(error(StoreErrorKind::Io, format!("the operation failed inside the broker: {e}")))
                })
            }
        }
    }

    /// Holds a request against the rules; the length of what is to be composed comes of it.
    fn check(&self, op: &Op) -> Result<u64, StoreError> {
        match op {
            Op::Probe | Op::ListEnd { .. } => {}
            Op::Stat { path } | Op::Look { path } | Op::Tell { path, .. } | Op::List { path, .. } => {
                self.check_path(path)?;
                if let Op::List { after: Some(after), .. } = op
                    && check_name(after.strip_suffix('/').unwrap_or(after).as_bytes()).is_err()
                {
                    return Err(against_the_rules("a name to go on after that no listing has"));
                }
                if self.is_own(path) {
                    // Nobody else can see it.
                    return Err(error(StoreErrorKind::NotFound, format!("'{path}': nothing is there")));
                }
            }
            Op::Read { path, offset, dest, .. } => {
                self.check_file(path)?;
                if !self.pool.contains(*dest) {
                    return Err(against_the_rules("a slice outside the pool"));
                }
                if offset.checked_add(dest.len.into()).is_none_or(|end| i64::try_from(end).is_err()) {
                    return Err(against_the_rules("an offset beyond all files"));
                }
            }
            Op::Spool { path, base, segments, .. } => {
                self.check_file(path)?;
                let base = base.clone().map(|version| Base { path: path.clone(), version });
                return self.check_segments(base.as_slice(), segments).map_err(against_the_rules);
            }
            Op::Compose { path, bases, segments, .. } => {
                self.check_file(path)?;
                if bases.len() > BASES_MAX {
                    return Err(against_the_rules("too many bases"));
                }
                for base in bases {
                    self.check_file(&base.path)?;
                }
                return self.check_segments(bases, segments).map_err(against_the_rules);
            }
            Op::FlowBegin { path, base, .. } => {
                self.check_file(path)?;
                if let Some(base) = base {
                    self.check_file(&base.path)?;
                }
            }
            Op::FlowSend { data, .. } => {
                if data.is_empty() || data.iter().any(|slice| slice.len == 0 || !self.pool.contains(*slice)) {
                    return Err(against_the_rules("a piece of nothing, or outside the pool"));
                }
            }
            Op::FlowEnd { .. } | Op::FlowAbort { .. } => {}
            Op::Delete { path } => self.check_file(path)?,
            Op::DeleteMany { paths } => {
                if paths.len() > LIST_PAGE_MAX {
                    return Err(against_the_rules("too many names at once"));
                }
                paths.iter().try_for_each(|path| self.check_file(path))?;
            }
            Op::Copy { from, to, .. } | Op::RenameFile { from, to, .. } => {
                self.check_file(from)?;
                self.check_file(to)?;
            }
            Op::CreateDir { path, .. } | Op::RemoveDir { path } => self.check_dir(path)?,
            Op::RenameDir { from, to } => {
                self.check_dir(from)?;
                self.check_dir(to)?;
            }
        }
        Ok(0)
    }

    /// The name of a file: any below the root but this daemon's own; and of those, what the device calls an unlinked file.
    fn check_file(&self, path: &str) -> Result<(), StoreError> {
        let unlinked = path.starts_with(UNLINKED) && !path.contains('/');
        if unlinked { self.check_path(path) } else { self.check_dir(path) }
    }

    fn check_dir(&self, path: &str) -> Result<(), StoreError> {
        if path.is_empty() {
            return Err(against_the_rules("the root cannot be that"));
        }
        self.check_path(path)?;
        match self.is_own(path) {
            true => Err(unusable(StoreErrorKind::InvalidName, path, "it is reserved")),
            false => Ok(()),
        }
    }

    fn check_path(&self, path: &str) -> Result<(), StoreError> {
        check_path(path).map_err(|e| match e {
            NameError::TooLong | NameError::Rewritten => unusable(StoreErrorKind::InvalidName, path, &e.to_string()),
            _ => unusable(StoreErrorKind::Protocol, path, &e.to_string()),
        })
    }

    /// Whether this daemon keeps the name for itself: some in the root, and in a local directory what is unfinished anywhere.
    fn is_own(&self, path: &str) -> bool {
        let local = matches!(self.store, Store::Local(_));
        path.starts_with(RESERVED) || (local && path.split('/').any(|name| name.starts_with(TEMPORARY)))
    }

    fn check_segments(&self, bases: &[Base], segments: &[Segment]) -> Result<u64, &'static str> {
        let mut total = 0u64;
        for segment in segments {
            let len = match *segment {
                Segment::Data(slice) if !self.pool.contains(slice) => return Err("a slice outside the pool"),
                Segment::Data(slice) => slice.len.into(),
                Segment::Zero { len } => len,
                Segment::Copy { base, offset, len } => match bases.get(usize::from(base)) {
                    None => return Err("a copied range without a base"),
                    Some(base) if offset.checked_add(len).is_none_or(|end| end > base.version.size) => {
                        return Err("a copied range beyond its base");
                    }
                    Some(_) => len,
                },
            };
            if len == 0 {
                return Err("an empty segment");
            }
            total = total.checked_add(len).filter(|t| i64::try_from(*t).is_ok()).ok_or("a file beyond all lengths")?;
        }
        Ok(total)
    }
}

fn against_the_rules(why: &str) -> StoreError {
    error(StoreErrorKind::Protocol, format!("a request against the rules: {why}"))
}

fn unusable(kind: StoreErrorKind, path: &str, why: &str) -> StoreError {
    error(kind, format!("the name {path:?} cannot be used: {why}"))
}

/// Whether `op` changes the store.
fn changes(op: &Op) -> bool {
    match op {
        Op::Probe
        | Op::Stat { .. }
        | Op::Look { .. }
        | Op::Tell { .. }
        | Op::List { .. }
        | Op::ListEnd { .. }
        | Op::Read { .. } => false,
        Op::Compose { .. }
        | Op::FlowBegin { .. }
        | Op::FlowSend { .. }
        | Op::FlowEnd { .. }
        | Op::FlowAbort { .. }
        | Op::Delete { .. }
        | Op::DeleteMany { .. }
        | Op::CreateDir { .. }
        | Op::RemoveDir { .. }
        | Op::Copy { .. }
        | Op::RenameFile { .. }
        | Op::RenameDir { .. }
        | Op::Spool { .. } => true,
    }
}

async fn remote(store: &Arc<Remote>, op: Op, total: u64) -> Result<Reply, StoreError> {
    Ok(match op {
        Op::Probe => Reply::Capabilities(store.probe().await?),
        Op::Stat { path } => Reply::Meta(store.stat(&path).await?),
        Op::Look { path } => {
            let (meta, below) = store.look(&path).await?;
            Reply::Looked { meta, below }
        }
        Op::Tell { path, kind } => Reply::Meta(store.tell(&path, kind).await?),
        Op::List { path, cursor, after } => store.list(&path, cursor, after.as_deref()).await?,
        Op::ListEnd { cursor } => {
            store.list_end(cursor);
            Reply::Unit
        }
        Op::Read { path, version, offset, dest } => unit(store.read(&path, version.as_ref(), offset, dest).await?),
        Op::Compose { path, bases, when, segments, attributes } => {
            Reply::Meta(store.compose(&path, &bases, &when, &segments, attributes.as_deref(), total).await?)
        }
        Op::FlowBegin { flow, path, base, when, attributes } => {
            unit(store.flow_begin(flow, &path, base.as_ref(), &when, attributes.as_deref()).await?)
        }
        Op::FlowSend { flow, number, data } => unit(store.flow_send(flow, number, &data).await?),
        Op::FlowEnd { flow, pieces } => Reply::Meta(store.flow_end(flow, pieces).await?),
        Op::FlowAbort { flow } => {
            store.flow_abort(flow).await;
            Reply::Unit
        }
        Op::Delete { path } => unit(store.delete(&path).await?),
        Op::DeleteMany { paths } => unit(store.delete_many(&paths).await?),
        Op::CreateDir { path, attributes } => unit(store.create_dir(&path, attributes.as_deref()).await?),
        Op::RemoveDir { path } => unit(store.remove_dir(&path).await?),
        Op::Copy { from, to, version } => Reply::Meta(store.copy(&from, &to, version.as_ref()).await?),
        Op::RenameFile { from, to, when, version } => {
            Reply::Meta(store.rename_file(&from, &to, &when, version.as_ref()).await?)
        }
        Op::RenameDir { from, to } => unit(store.rename_dir(&from, &to).await?),
        Op::Spool { .. } => return Err(against_the_rules("a store keeps nothing")),
    })
}

fn local(store: &Local, op: Op) -> Result<Reply, StoreError> {
    Ok(match op {
        Op::Probe => Reply::Capabilities(store.probe()?),
        Op::Stat { path } | Op::Tell { path, .. } => Reply::Meta(store.stat(&path)?),
        Op::Look { path } => Reply::Looked { meta: store.stat(&path)?, below: None },
        Op::List { after: Some(_), path, .. } => {
            return Err(error(StoreErrorKind::Unsupported, format!("list '{path}': not from the middle")));
        }
        Op::List { path, cursor, after: None } => store.list(&path, cursor)?,
        Op::ListEnd { cursor } => {
            store.list_end(cursor);
            Reply::Unit
        }
        Op::Read { path, version, offset, dest } => unit(store.read(&path, version.as_ref(), offset, dest)?),
        Op::Compose { path, bases, when, segments, attributes } => {
            Reply::Meta(store.compose(&path, &bases, &when, &segments, attributes.as_deref())?)
        }
        Op::FlowBegin { .. } | Op::FlowSend { .. } | Op::FlowEnd { .. } | Op::FlowAbort { .. } => {
            return Err(error(StoreErrorKind::Unsupported, "a directory takes nothing piece by piece"));
        }
        Op::Delete { path } => unit(store.delete(&path)?),
        Op::DeleteMany { paths } => unit(store.delete_many(&paths)?),
        Op::CreateDir { path, attributes } => unit(store.create_dir(&path, attributes.as_deref())?),
        Op::RemoveDir { path } => unit(store.remove_dir(&path)?),
        Op::Copy { from, to, version } => Reply::Meta(store.copy(&from, &to, version.as_ref())?),
        Op::RenameFile { from, to, when, version } => {
            Reply::Meta(store.rename_file(&from, &to, &when, version.as_ref())?)
        }
        Op::RenameDir { from, to } => unit(store.rename_dir(&from, &to)?),
        Op::Spool { .. } => return Err(against_the_rules("a store keeps nothing")),
    })
}

fn unit((): ()) -> Reply {
    Reply::Unit
}
