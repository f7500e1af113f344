//! Clean blocks: what was read from the store, kept until memory is needed for something else.
//!
//! Invariants
//! (1) A block never changes after it was read; another version of the object is another [`ContentId`].
//! (2) One fetch per key is under way at any time; others wait for it (single flight).
//! (3) The least recently used block goes first; a block being copied out lives on by its `Arc`.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_listener::Event;

use super::block::{Block, Blocks};

/// Stands for one state of one file's bytes; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentId(pub u64);

/// A block's place: whose bytes, and which block of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Whose bytes.
    pub content: ContentId,
    /// Which block, counted from 0.
    pub index: u64,
}

/// A clean block and how much of it holds data.
#[derive(Debug)]
pub struct Clean {
    /// The memory.
    pub block: Block,
    /// Bytes of data in it.
    pub len: usize,
}

enum Slot {
    Ready { clean: Arc<Clean>, stamp: u64 },
    Fetching(Arc<Event>),
}

#[derive(Default)]
struct State {
    slots: HashMap<Key, Slot>,
    /// Ready slots, least recently used first.
    order: BTreeMap<u64, Key>,
    clock: u64,
}

impl State {
    fn touch(&mut self, key: Key) -> Option<Arc<Clean>> {
        self.clock += 1;
        let clock = self.clock;
        match self.slots.get_mut(&key)? {
            Slot::Ready { clean, stamp } => {
                self.order.remove(stamp);
                *stamp = clock;
                self.order.insert(clock, key);
                Some(Arc::clone(clean))
            }
            Slot::Fetching(_) => None,
        }
    }

    fn insert(&mut self, key: Key, clean: Arc<Clean>) {
        self.clock += 1;
        let stamp = self.clock;
        if let Some(Slot::Ready { stamp: old, .. }) = self.slots.insert(key, Slot::Ready { clean, stamp }) {
            self.order.remove(&old);
        }
        self.order.insert(stamp, key);
    }
}

/// All clean blocks.
pub struct CleanCache {
    state: Mutex<State>,
}

impl std::fmt::Debug for CleanCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CleanCache").finish_non_exhaustive()
    }
}

/// Undoes a fetch that did not come to its end.
struct Fetch<'a> {
    cache: &'a CleanCache,
    key: Key,
    event: Arc<Event>,
}

impl Drop for Fetch<'_> {
    fn drop(&mut self) {
        let mut state = self.cache.state();
        if matches!(state.slots.get(&self.key), Some(Slot::Fetching(event)) if Arc::ptr_eq(event, &self.event)) {
            state.slots.remove(&self.key);
        }
        drop(state);
        self.event.notify(usize::MAX);
    }
}

impl CleanCache {
    /// An empty cache.
    pub fn new() -> CleanCache {
        CleanCache { state: Mutex::new(State::default()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The block, if it is here.
    pub fn get(&self, key: Key) -> Option<Arc<Clean>> {
        self.state().touch(key)
    }

    /// Whether the block is here or on its way.
    pub fn contains(&self, key: Key) -> bool {
        self.state().slots.contains_key(&key)
    }

    /// The block; read by `fetch` into `len` fresh bytes if it is not here. Of several callers one fetches. `fetch` holds on
    /// to the memory as long as anybody may write there.
    ///
    /// # Errors
    /// What `fetch` says; those who waited for a failed fetch try their own.
    pub async fn get_or_fetch<E, Fut: Future<Output = Result<(), E>>>(
        &self,
        blocks: &Arc<Blocks>,
        key: Key,
        len: usize,
        fetch: impl FnOnce(Arc<Clean>) -> Fut,
    ) -> Result<Arc<Clean>, E> {
        let event = Arc::new(Event::new());
        loop {
            let wait = {
                let mut state = self.state();
                if let Some(clean) = state.touch(key) {
                    return Ok(clean);
                }
                match state.slots.get(&key) {
                    Some(Slot::Fetching(other)) => other.listen(),
                    _ => {
                        state.slots.insert(key, Slot::Fetching(Arc::clone(&event)));
                        break;
                    }
                }
            };
            wait.await;
        }
        let _unless_finished = Fetch { cache: self, key, event };
        let block = self.take(blocks, len).await;
        let clean = Arc::new(Clean { block, len });
        fetch(Arc::clone(&clean)).await?;
        self.state().insert(key, Arc::clone(&clean));
        Ok(clean)
    }

    /// Puts a block here whose bytes the store is known to hold.
    pub fn insert(&self, key: Key, clean: Arc<Clean>) {
        self.state().insert(key, clean);
    }

    /// Drops the block `key` if it is here.
    pub fn remove(&self, key: Key) {
        let mut state = self.state();
        if let Some(Slot::Ready { stamp, .. }) = state.slots.get(&key) {
            let stamp = *stamp;
            state.order.remove(&stamp);
            state.slots.remove(&key);
        }
    }

    /// A block of at least `len` bytes, evicting clean blocks for it, else waiting until one is freed.
    pub async fn take(&self, blocks: &Arc<Blocks>, len: usize) -> Block {
        loop {
            let freed = blocks.freed();
            if let Some(block) = self.try_take(blocks, len) {
                return block;
            }
            freed.await;
        }
    }

    /// A block of at least `len` bytes, evicting clean blocks for it; `None` if that is not enough.
    pub fn try_take(&self, blocks: &Arc<Blocks>, len: usize) -> Option<Block> {
        loop {
            if let Some(block) = blocks.take(len) {
                return Some(block);
            }
            self.evict_one()?;
        }
    }

    /// Drops the least recently used block that nobody is copying from.
    fn evict_one(&self) -> Option<()> {
        let mut state = self.state();
        let (stamp, key) = state.order.iter().find_map(|(&stamp, &key)| match state.slots.get(&key) {
            Some(Slot::Ready { clean, .. }) if Arc::strong_count(clean) == 1 => Some((stamp, key)),
            _ => None,
        })?;
        state.order.remove(&stamp);
        let gone = state.slots.remove(&key);
        drop(state);
        drop(gone);
        Some(())
    }
}

impl Default for CleanCache {
    fn default() -> CleanCache {
        CleanCache::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Pool;
    use futures::executor::block_on;
    use std::cell::Cell;

    fn blocks(len: usize) -> Arc<Blocks> {
        Blocks::new(Arc::new(Pool::new(len).expect("memfd")))
    }

    fn key(index: u64) -> Key {
        Key { content: ContentId(1), index }
    }

    #[test]
    fn a_second_reader_finds_the_block() {
        let (blocks, cache) = (blocks(1 << 20), CleanCache::new());
        let fetches = Cell::new(0);
        for _ in 0..3 {
            let clean = block_on(cache.get_or_fetch(&blocks, key(0), 4096, |_| {
                fetches.set(fetches.get() + 1);
                async { Ok::<(), ()>(()) }
            }));
            assert_eq!(clean.map(|c| c.len), Ok(4096));
        }
        assert_eq!(fetches.get(), 1);
    }

    #[test]
    fn two_readers_at_once_fetch_once() {
        let (blocks, cache) = (blocks(1 << 20), CleanCache::new());
        let fetches = Cell::new(0);
        let (answer, wait) = futures::channel::oneshot::channel::<()>();
        block_on(async {
            let first = cache.get_or_fetch(&blocks, key(0), 4096, |_| {
                fetches.set(fetches.get() + 1);
                async {
                    wait.await.ok();
                    Ok::<(), ()>(())
                }
            });
            let second = cache.get_or_fetch(&blocks, key(0), 4096, |_| {
                fetches.set(fetches.get() + 1);
                async { Ok::<(), ()>(()) }
            });
            let third = async {
                answer.send(()).ok();
            };
            let (a, b, ()) = futures::join!(first, second, third);
            assert!(Arc::ptr_eq(&a.expect("ok"), &b.expect("ok")));
        });
        assert_eq!(fetches.get(), 1);
    }

    #[test]
    fn a_failed_fetch_leaves_nothing_behind() {
        let (blocks, cache) = (blocks(1 << 20), CleanCache::new());
        let all = blocks.free_bytes();
        let failed = block_on(cache.get_or_fetch(&blocks, key(0), 4096, |_| async { Err::<(), u8>(7) }));
        assert_eq!(failed.err(), Some(7));
        assert_eq!(blocks.free_bytes(), all);
        assert!(cache.get(key(0)).is_none());
    }

    #[test]
    fn the_least_recently_used_block_makes_room() {
        let (blocks, cache) = (blocks(8 * 4096), CleanCache::new());
        for index in 0..8 {
            block_on(cache.get_or_fetch(&blocks, key(index), 4096, |_| async { Ok::<(), ()>(()) })).expect("ok");
        }
        assert_eq!(blocks.free_bytes(), 0);
        cache.get(key(0));
        assert!(cache.try_take(&blocks, 4096).is_some());
        assert!(cache.get(key(0)).is_some());
        assert!(cache.get(key(1)).is_none());
    }

    #[test]
    fn memory_that_the_store_may_still_write_is_not_given_out() {
        let (blocks, cache) = (blocks(1 << 20), CleanCache::new());
        let all = blocks.free_bytes();
        let kept = std::cell::RefCell::new(None);
        let mut fetch = Box::pin(cache.get_or_fetch(&blocks, key(0), 4096, |memory| {
            *kept.borrow_mut() = Some(memory);
            std::future::pending::<Result<(), ()>>()
        }));
        assert!(block_on(async { futures::poll!(&mut fetch) }).is_pending());
        drop(fetch);
        assert_eq!(blocks.free_bytes(), all - 4096);
        assert!(cache.get(key(0)).is_none());
        kept.take();
        assert_eq!(blocks.free_bytes(), all);
    }
}
