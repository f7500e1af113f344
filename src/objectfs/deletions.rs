//! Deleting many objects, as `rm -r` does: names go at once, objects in batches.
//!
//! The first deletions of a burst wait for the store, so that a store that refuses says so where it is asked. Those after
//! them are noted and sent together, as many as have come while the batch before was under way; there is no timer. A name
//! with a deletion pending does not exist: lookups do not ask the store, listings leave it out, and whatever makes
//! something of that name waits until the deletion is done. What a batch could not delete is there again, and the next
//! removal, fsync(2) of a directory or syncfs(2) tells the errno.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

use super::core::Core;
use crate::fs::{Errno, NodeId, Result};
use crate::store::{LIST_PAGE_MAX, Store};

/// Deletions that wait for the store before a burst is taken for one.
const BURST_AFTER: u32 = 4;

/// A pause that ends a burst.
const BURST_PAUSE: Duration = Duration::from_secs(1);

/// Most deletions that may be pending; more wait.
const PENDING_MAX: usize = 4 * LIST_PAGE_MAX;

/// Deletions that the guest was told of and the store was not.
#[derive(Debug, Default)]
pub struct Deletions {
    state: Mutex<State>,
    /// Held while a batch is under way.
    sending: async_lock::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    pending: HashMap<String, Name>,
    /// A task that empties `pending` is under way.
    draining: bool,
    /// Deletions so far that followed each other closely.
    burst: u32,
    last: Option<Instant>,
    /// What the guest has not been told yet.
    error: Option<Errno>,
}

#[derive(Debug, Clone)]
struct Name {
    parent: NodeId,
    name: String,
}

impl Deletions {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is pending.
    pub fn is_empty(&self) -> bool {
        self.state().pending.is_empty()
    }

    /// Whether the object at `path` is about to be deleted.
    pub fn contains(&self, path: &str) -> bool {
        self.state().pending.contains_key(path)
    }

    /// Names in `dir` whose objects are about to be deleted.
    pub fn below(&self, dir: NodeId) -> HashSet<String> {
        let state = self.state();
        state.pending.values().filter(|name| name.parent == dir).map(|name| name.name.clone()).collect()
    }

    /// Lets no batch start while the result lives: a store that takes its time.
    #[cfg(test)]
    pub async fn hold(&self) -> async_lock::MutexGuard<'_, ()> {
        self.sending.lock().await
    }

    /// Counts a deletion. True: it belongs to a burst.
    fn is_burst(&self) -> bool {
        let mut state = self.state();
        let now = Instant::now();
        if state.last.replace(now).is_none_or(|last| now.duration_since(last) > BURST_PAUSE) {
            state.burst = 0;
        }
        state.burst = state.burst.saturating_add(1);
        state.burst > BURST_AFTER
    }

    /// What went wrong since this was last asked.
    ///
    /// # Errors
    /// What the store said.
    fn error(&self) -> Result<()> {
        self.state().error.take().map_or(Ok(()), Err)
    }
}

impl<S: Store> Core<S> {
    /// Deletes the object at `path`, which is `name` below `parent`: now, or soon when many go.
    ///
    /// # Errors
    /// What the store says, of this object or of one before it.
    pub(super) async fn delete_object(&self, path: String, parent: NodeId, name: &str) -> Result<()> {
        self.deletions.error()?;
        if !self.deletions.is_burst() {
            return Ok(self.remote.delete(path).await?);
        }
        while self.deletions.state().pending.len() >= PENDING_MAX {
            self.send_deletions().await;
        }
        let start = {
            let mut state = self.deletions.state();
            state.pending.insert(path, Name { parent, name: name.to_owned() });
            !std::mem::replace(&mut state.draining, true)
        };
        if start {
            self.spawn(|core| async move {
                while core.deletions_left() {
                    core.send_deletions().await;
                }
            });
        }
        Ok(())
    }

    /// Whether there is work for the task that empties what is pending; it ends otherwise.
    fn deletions_left(&self) -> bool {
        let mut state = self.deletions.state();
        state.draining = !state.pending.is_empty();
        state.draining
    }

    /// Waits until no deletion of `path` is pending.
    pub(super) async fn settle(&self, path: &str) {
        while self.deletions.contains(path) {
            self.send_deletions().await;
        }
    }

    /// Waits until no deletion is pending.
    ///
    /// # Errors
    /// What the store said of one since this was last asked.
    pub(super) async fn settle_all(&self) -> Result<()> {
        while !self.deletions.is_empty() {
            self.send_deletions().await;
        }
        self.deletions.error()
    }

    /// Sends a batch, after the one that is under way.
    fn send_deletions<'a>(&'a self) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let _one_at_a_time = self.deletions.sending.lock().await;
            let batch: Vec<(String, Name)> = {
                let state = self.deletions.state();
                state.pending.iter().take(LIST_PAGE_MAX).map(|(path, name)| (path.clone(), name.clone())).collect()
            };
            if batch.is_empty() {
                return;
            }
            let paths = batch.iter().map(|(path, _)| path.clone()).collect();
            let mut failed = None;
            if let Err(error) = self.remote.delete_many(paths).await {
                log::debug!("a batch of {} deletions failed, each is tried alone: {error}", batch.len());
                for (path, _) in &batch {
                    if let Err(error) = self.remote.delete(path.clone()).await {
                        log::error!("{path:?} was removed by the guest and is still in the store: {error}");
                        failed = Some(Errno::from(error));
                    }
                }
            }
            {
                // Who asked the store before now may have been told of what is gone.
                let mut tree = self.tree();
                for (_, name) in &batch {
                    tree.mark_removed(name.parent, name.name.clone());
                }
            }
            let mut state = self.deletions.state();
            for (path, _) in &batch {
                state.pending.remove(path);
            }
            if failed.is_some() {
                state.error = failed;
                state.burst = 0;
            }
        })
    }
}
