//! What waits a moment before it is brought to the store, because more of the same may follow.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

use super::core::Core;
use crate::fs::NodeId;
use crate::store::Store;

/// How long one waits that the store did not take.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// How often the thread that waits looks while anything waits, at least.
const TICK: Duration = Duration::from_millis(250);

/// Inodes that wait. Its lock is taken last.
#[derive(Debug)]
pub struct DueList {
    /// How long an inode waits after it was noted last, and after it was noted first.
    quiet: Duration,
    longest: Duration,
    state: Mutex<Waiting>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    inodes: HashMap<NodeId, Due>,
    stopped: bool,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    at: Instant,
    latest: Instant,
}

impl DueList {
    /// An empty list on which an inode waits until it was left alone for `quiet`, but not for more than `longest`.
    pub fn new(quiet: Duration, longest: Duration) -> DueList {
        DueList { quiet, longest, state: Mutex::default(), wake: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something of `id` has changed.
    pub fn note(&self, id: NodeId) {
        let now = Instant::now();
        let mut state = self.state();
        let due = state.inodes.entry(id).or_insert(Due { at: now, latest: now + self.longest });
        due.at = (now + self.quiet).min(due.latest);
        drop(state);
        self.wake.notify_one();
    }

    /// The store did not take what changed of `id`.
    pub fn again(&self, id: NodeId) {
        let at = Instant::now() + AGAIN_AFTER;
        self.state().inodes.insert(id, Due { at, latest: at });
        self.wake.notify_one();
    }

    /// Waits until some are due, and hands them out. `None`: it is over.
    pub fn due(&self) -> Option<HashSet<NodeId>> {
        let mut state = self.state();
        loop {
            if state.stopped {
                return None;
            }
            let now = Instant::now();
            let due: HashSet<NodeId> =
                state.inodes.iter().filter(|(_, due)| due.at <= now).map(|(id, _)| *id).collect();
            if !due.is_empty() {
                state.inodes.retain(|id, _| !due.contains(id));
                return Some(due);
            }
            state = if state.inodes.is_empty() {
                let empty = |waiting: &mut Waiting| waiting.inodes.is_empty() && !waiting.stopped;
                self.wake.wait_while(state, empty).unwrap_or_else(PoisonError::into_inner)
            } else {
                let tick = TICK.min(self.quiet / 2).max(Duration::from_millis(1));
                let running = |waiting: &mut Waiting| !waiting.stopped;
                self.wake.wait_timeout_while(state, tick, running).unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }

    /// Nothing is due any more; who waits is told.
    pub fn stop(&self) {
        self.state().stopped = true;
        self.wake.notify_all();
    }
}

/// A thread that does `work` on what is due. It ends when this is dropped, or with the file system.
#[derive(Debug)]
pub struct Follower(Arc<DueList>);

impl Follower {
    /// Starts it, with this name.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start<S: Store>(
        name: &str,
        core: &Arc<Core<S>>,
        list: &Arc<DueList>,
        work: fn(&Core<S>, HashSet<NodeId>) -> BoxFuture<'_, ()>,
    ) -> std::io::Result<Follower> {
        let (core, waiting): (Weak<Core<S>>, _) = (Arc::downgrade(core), Arc::clone(list));
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Some(due) = waiting.due() {
                let Some(core) = core.upgrade() else { return };
                futures::executor::block_on(work(&core, due));
            }
        })?;
        Ok(Follower(Arc::clone(list)))
    }

    /// Lets the thread end.
    pub fn stop(&self) {
        self.0.stop();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_waits_for_others_but_not_for_ever() {
        let (quiet, longest) = (Duration::from_secs(1), Duration::from_secs(2));
        let list = DueList::new(quiet, longest);
        list.note(NodeId(7));
        let first = list.state().inodes[&NodeId(7)];
        assert_eq!(first.latest - first.at, longest - quiet);
        list.state().inodes.insert(NodeId(7), Due { at: first.at, latest: Instant::now() });
        list.note(NodeId(7));
        assert_eq!(list.due(), Some(HashSet::from([NodeId(7)])));
        assert!(list.state().inodes.is_empty());
        list.stop();
        assert_eq!(list.due(), None);
    }
}
