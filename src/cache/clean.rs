//! Clean blocks: what was read from the store, kept until memory is needed for something else.
//!
//! The bytes of one state of a file ([`ContentId`]) are covered by blocks of any length: 64 KiB of a random read and
//! 4 MiB of a stream live side by side.
//!
//! Invariants
//! (1) A block never changes after it was read; another version of the object is another [`ContentId`].
//! (2) Blocks of one content, ready or being fetched, do not overlap: one fetch per byte is under way at any time, others
//!     wait for it (single flight).
//! (3) A block that was not looked at since eviction last passed it goes before one that was (the clock algorithm); a
//!     block being copied out lives on by its `Arc`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use event_listener::{Event, EventListener};

use super::block::{Block, Blocks};
use super::buddy::{BLOCK_MAX, BLOCK_MIN};
use super::sync::{AtomicBool, Mutex, MutexGuard, Ordering, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Locks that the contents are spread over.
const SHARDS: usize = 16;

/// Stands for one state of one file's bytes; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentId(pub u64);

/// A clean block and how much of it holds data.
#[derive(Debug)]
pub struct Clean {
    /// Where in the file its first byte lies.
    pub start: u64,
    /// The memory.
    pub block: Block,
    /// Bytes of data in it.
    pub len: usize,
    /// Somebody looked at it since the hand of the clock passed.
    used: AtomicBool,
}

impl Clean {
    /// The first `len` bytes of `block` are the file's from byte `start` on.
    pub fn new(start: u64, block: Block, len: usize) -> Clean {
        Clean { start, block, len, used: AtomicBool::new(false) }
    }

    /// Offset of the byte after its last.
    pub fn end(&self) -> u64 {
        self.start + self.len as u64
    }

    /// Nobody has looked at it yet, but somebody is about to: the hand of the clock spares it once.
    pub fn keep_for_later(&self) {
        self.used.store(true, Ordering::Relaxed);
    }
}

enum Slot {
    Ready(Arc<Clean>),
    Fetching { end: u64, event: Arc<Event> },
}

impl Slot {
    fn end(&self) -> u64 {
        match self {
            Slot::Ready(clean) => clean.end(),
            Slot::Fetching { end, .. } => *end,
        }
    }
}

/// The blocks of one content by their first byte.
type Slots = BTreeMap<u64, Slot>;

#[derive(Default)]
struct Shard {
    contents: HashMap<ContentId, Slots>,
}

impl Shard {
    /// The slot over `offset`, or the range around it that nothing covers, within `..end`.
    fn find(&self, content: ContentId, offset: u64, end: u64) -> Result<&Slot, Range<u64>> {
        let Some(slots) = self.contents.get(&content) else { return Err(0..end) };
        let before = slots.range(..=offset).next_back().map(|(_, slot)| slot);
        match before {
            Some(slot) if slot.end() > offset => Ok(slot),
            _ => {
                let next = slots.range(offset..).next().map_or(end, |(&start, _)| start);
                Err(before.map_or(0, Slot::end)..next.min(end))
            }
        }
    }

    fn remove(&mut self, content: ContentId, start: u64) -> Option<Slot> {
        let slots = self.contents.get_mut(&content)?;
        let slot = slots.remove(&start);
        if slots.is_empty() {
            self.contents.remove(&content);
        }
        slot
    }
}

/// All clean blocks.
pub struct CleanCache {
    /// Readers of what is here lock one for reading, so that queues with hits in one file do not wait for each other.
    shards: [RwLock<Shard>; SHARDS],
    /// Ready blocks in the order in which the hand of the clock passes them. Locked after a shard, or alone.
    clock: Mutex<VecDeque<(ContentId, u64)>>,
}

impl std::fmt::Debug for CleanCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CleanCache").finish_non_exhaustive()
    }
}

/// Undoes a fetch that did not come to its end.
struct Fetch<'a> {
    cache: &'a CleanCache,
    content: ContentId,
    start: u64,
    event: Arc<Event>,
}

/// What became of a question for a block.
enum Reserved<'a> {
    Here(Arc<Clean>),
    OnItsWay(EventListener),
    Ours(Range<u64>, Fetch<'a>),
}

impl Drop for Fetch<'_> {
    fn drop(&mut self) {
        let mut shard = self.cache.shard_mut(self.content);
        let slot = shard.contents.get(&self.content).and_then(|slots| slots.get(&self.start));
        if matches!(slot, Some(Slot::Fetching { event, .. }) if Arc::ptr_eq(event, &self.event)) {
            shard.remove(self.content, self.start);
        }
        drop(shard);
        self.event.notify(usize::MAX);
    }
}

impl CleanCache {
    /// An empty cache.
    pub fn new() -> CleanCache {
        CleanCache { shards: std::array::from_fn(|_| RwLock::default()), clock: Mutex::default() }
    }

    fn of(&self, content: ContentId) -> &RwLock<Shard> {
        // Numbers are given one after the other.
        &self.shards[usize::try_from(content.0 % SHARDS as u64).unwrap_or(0)]
    }

    fn shard(&self, content: ContentId) -> RwLockReadGuard<'_, Shard> {
        self.of(content).read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To put something in or take it out.
    fn shard_mut(&self, content: ContentId) -> RwLockWriteGuard<'_, Shard> {
        self.of(content).write().unwrap_or_else(PoisonError::into_inner)
    }

    fn clock(&self) -> MutexGuard<'_, VecDeque<(ContentId, u64)>> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops all that is here; what is being fetched comes still.
    pub fn clear(&self) {
        self.clock().clear();
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.contents.retain(|_, slots| {
                slots.retain(|_, slot| matches!(slot, Slot::Fetching { .. }));
                !slots.is_empty()
            });
        }
    }

    /// The block that holds byte `offset`, if it is here.
    pub fn get(&self, content: ContentId, offset: u64) -> Option<Arc<Clean>> {
        match self.shard(content).find(content, offset, u64::MAX) {
            Ok(Slot::Ready(clean)) => {
                // Most hits find it set, and a store would take the line away from other processors.
                if !clean.used.load(Ordering::Relaxed) {
                    clean.used.store(true, Ordering::Relaxed);
                }
                Some(Arc::clone(clean))
            }
            _ => None,
        }
    }

    /// The first part of `within` that is neither here nor on its way; `None`: all of it is.
    pub fn next_gap(&self, content: ContentId, within: Range<u64>) -> Option<Range<u64>> {
        let shard = self.shard(content);
        let mut at = within.start;
        while at < within.end {
            match shard.find(content, at, within.end) {
                Ok(slot) => at = slot.end(),
                Err(gap) => return Some(at..gap.end),
            }
        }
        None
    }

    /// The block that holds byte `offset` of a content of `size` bytes, read by `fetch` if it is not here. `choose` says
    /// what to read: it is given the gap around the byte and returns a part of it with the byte inside; where so much
    /// memory is not to be had in one piece, less is read. Of several callers one fetches. `fetch` holds on to the
    /// memory as long as anybody may write there.
    ///
    /// # Errors
    /// What `fetch` says; those who waited for a failed fetch try their own.
    pub async fn get_or_fetch<E, Fut: Future<Output = Result<(), E>>>(
        &self,
        blocks: &Arc<Blocks>,
        content: ContentId,
        (offset, size): (u64, u64),
        choose: impl Fn(Range<u64>) -> Range<u64>,
        fetch: impl FnOnce(Arc<Clean>) -> Fut,
    ) -> Result<Arc<Clean>, E> {
        let mut most = BLOCK_MAX as u64;
        let (range, _unless_finished, block) = loop {
            match self.reserve(content, (offset, size), most, &choose) {
                Reserved::Here(clean) => return Ok(clean),
                Reserved::OnItsWay(wait) => wait.await,
                Reserved::Ours(range, fetch) => {
                    let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
                    if let Some(block) = self.try_take(blocks, len) {
                        break (range, fetch, block);
                    }
                    if len <= BLOCK_MIN {
                        blocks.meter().full.fetch_add(1, Ordering::Relaxed);
                        break (range, fetch, self.take(blocks, len).await);
                    }
                    most = (len / 4).max(BLOCK_MIN) as u64;
                }
            }
        };
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let clean = Arc::new(Clean::new(range.start, block, len));
        fetch(Arc::clone(&clean)).await?;
        self.put(content, Arc::clone(&clean));
        Ok(clean)
    }

    /// The block that holds byte `offset`, or who fetches it: another, or we, at most `most` bytes.
    fn reserve(
        &self,
        content: ContentId,
        (offset, size): (u64, u64),
        most: u64,
        choose: impl Fn(Range<u64>) -> Range<u64>,
    ) -> Reserved<'_> {
        if let Some(clean) = self.get(content, offset) {
            return Reserved::Here(clean);
        }
        let mut shard = self.shard_mut(content);
        let gap = match shard.find(content, offset, size) {
            Ok(Slot::Ready(clean)) => return Reserved::Here(Arc::clone(clean)),
            Ok(Slot::Fetching { event, .. }) => return Reserved::OnItsWay(event.listen()),
            Err(gap) => gap,
        };
        let range = shorter(within(&gap, offset, choose(gap.clone())), offset, most);
        let event = Arc::new(Event::new());
        let slot = Slot::Fetching { end: range.end, event: Arc::clone(&event) };
        shard.contents.entry(content).or_default().insert(range.start, slot);
        let fetch = Fetch { cache: self, content, start: range.start, event };
        Reserved::Ours(range, fetch)
    }

    /// Puts a block here whose bytes the store is known to hold, unless some of them are here already.
    pub fn insert(&self, content: ContentId, clean: Arc<Clean>) {
        let free = {
            let shard = self.shard(content);
            shard.find(content, clean.start, u64::MAX).is_err_and(|gap| gap.end >= clean.end())
        };
        // Only the maker of a content inserts into it, and before anybody can read it.
        if free {
            self.put(content, clean);
        }
    }

    fn put(&self, content: ContentId, clean: Arc<Clean>) {
        let start = clean.start;
        let mut shard = self.shard_mut(content);
        shard.contents.entry(content).or_default().insert(start, Slot::Ready(clean));
        self.clock().push_back((content, start));
    }

    /// A block of at least `len` bytes, evicting clean blocks for it, else waiting until one is freed.
    pub async fn take(&self, blocks: &Arc<Blocks>, len: usize) -> Block {
        loop {
            let freed: EventListener = blocks.freed();
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

    /// Drops the next block under the hand of the clock that nobody has looked at and nobody is copying from. `None`: there is
    /// none.
    pub(super) fn evict_one(&self) -> Option<()> {
        // Twice around: the first pass may do no more than forget who was looked at.
        let mut passes = 2 * self.clock().len();
        while passes > 0 {
            passes -= 1;
            let (content, start) = self.clock().pop_front()?;
            let mut shard = self.shard_mut(content);
            let slot = shard.contents.get(&content).and_then(|slots| slots.get(&start));
            match slot {
                Some(Slot::Ready(clean)) => {
                    if clean.used.swap(false, Ordering::Relaxed) || Arc::strong_count(clean) > 1 {
                        self.clock().push_back((content, start));
                        continue;
                    }
                    let gone = shard.remove(content, start);
                    drop(shard);
                    drop(gone);
                    return Some(());
                }
                // What the clock names is ready, and only we remove it.
                _ => continue,
            }
        }
        None
    }
}

#[cfg(test)]
impl CleanCache {
    /// What is here or on its way of a content, in order.
    pub(super) fn ranges(&self, content: ContentId) -> Vec<Range<u64>> {
        let shard = self.shard(content);
        let slots = shard.contents.get(&content).into_iter().flatten();
        slots.map(|(&start, slot)| start..slot.end()).collect()
    }

    /// How many blocks the hand of the clock passes.
    pub(super) fn count(&self) -> usize {
        self.clock().len()
    }
}

/// `chosen`, with the byte `offset` inside and cut to `gap`.
fn within(gap: &Range<u64>, offset: u64, chosen: Range<u64>) -> Range<u64> {
    let start = chosen.start.clamp(gap.start, offset);
    let end = chosen.end.clamp(offset + 1, gap.end.max(offset + 1));
    start..end
}

/// A part of `range` of at most `most` bytes with the byte `offset` inside.
fn shorter(range: Range<u64>, offset: u64, most: u64) -> Range<u64> {
    if range.end - range.start <= most {
        return range;
    }
    let start = (offset / BLOCK_MIN as u64 * BLOCK_MIN as u64).max(range.start);
    start..range.end.min(start + most)
}

impl Default for CleanCache {
    fn default() -> CleanCache {
        CleanCache::new()
    }
}
