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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_listener::{Event, EventListener};

use super::block::{Block, Blocks};
use super::buddy::{BLOCK_MAX, BLOCK_MIN};

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
    shards: [Mutex<Shard>; SHARDS],
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
        let mut shard = self.cache.shard(self.content);
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
        CleanCache { shards: std::array::from_fn(|_| Mutex::default()), clock: Mutex::default() }
    }

    fn shard(&self, content: ContentId) -> MutexGuard<'_, Shard> {
        // Numbers are given one after the other.
        let index = usize::try_from(content.0 % SHARDS as u64).unwrap_or(0);
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clock(&self) -> MutexGuard<'_, VecDeque<(ContentId, u64)>> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops all that is here; what is being fetched comes still.
    pub fn clear(&self) {
        self.clock().clear();
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
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
        let mut shard = self.shard(content);
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
        let mut shard = self.shard(content);
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
    fn evict_one(&self) -> Option<()> {
        // Twice around: the first pass may do no more than forget who was looked at.
        let mut passes = 2 * self.clock().len();
        while passes > 0 {
            passes -= 1;
            let (content, start) = self.clock().pop_front()?;
            let mut shard = self.shard(content);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Pool;
    use futures::executor::block_on;
    use proptest::prelude::*;
    use std::cell::{Cell, RefCell};

    const ONE: ContentId = ContentId(1);

    fn blocks(len: usize) -> Arc<Blocks> {
        Blocks::new(Arc::new(Pool::new(len).expect("memfd")))
    }

    /// Fetches the block of 4096 bytes number `index`.
    async fn fetch(blocks: &Arc<Blocks>, cache: &CleanCache, index: u64) -> Result<Arc<Clean>, ()> {
        let place = (index * 4096, u64::MAX);
        cache
            .get_or_fetch(blocks, ONE, place, |_| index * 4096..(index + 1) * 4096, |_| async { Ok::<(), ()>(()) })
            .await
    }

    #[test]
    fn a_second_reader_finds_the_block() {
        let (blocks, cache) = (blocks(1 << 20), CleanCache::new());
        let fetches = Cell::new(0);
        for offset in [0, 17, 4095] {
            let clean = block_on(cache.get_or_fetch(
                &blocks,
                ONE,
                (offset, 5000),
                |_| 0..4096,
                |_| {
                    fetches.set(fetches.get() + 1);
                    async { Ok::<(), ()>(()) }
                },
            ));
            assert_eq!(clean.map(|c| (c.start, c.len)), Ok((0, 4096)));
        }
        assert_eq!(fetches.get(), 1);
        assert!(cache.get(ONE, 4096).is_none());
    }

    #[test]
    fn readers_of_overlapping_ranges_fetch_each_byte_once() {
        let (blocks, cache) = (blocks(1 << 20), CleanCache::new());
        let fetched = RefCell::new(Vec::new());
        let (answer, wait) = futures::channel::oneshot::channel::<()>();
        block_on(async {
            let first = cache.get_or_fetch(
                &blocks,
                ONE,
                (100, 1 << 20),
                |_| 0..8192,
                |memory| {
                    fetched.borrow_mut().push(memory.start..memory.end());
                    async {
                        wait.await.ok();
                        Ok::<(), ()>(())
                    }
                },
            );
            let second =
                cache.get_or_fetch(&blocks, ONE, (8000, 1 << 20), |_| unreachable!(), |_| async { Ok::<(), ()>(()) });
            let third = async {
                let beside = cache.get_or_fetch(
                    &blocks,
                    ONE,
                    (9000, 1 << 20),
                    |gap| {
                        assert_eq!(gap, 8192..1 << 20);
                        4096..12288
                    },
                    |memory| {
                        fetched.borrow_mut().push(memory.start..memory.end());
                        async { Ok::<(), ()>(()) }
                    },
                );
                let beside = beside.await;
                answer.send(()).ok();
                beside
            };
            let (a, b, c) = futures::join!(first, second, third);
            assert!(Arc::ptr_eq(&a.expect("ok"), &b.expect("ok")));
            assert_eq!(c.map(|c| c.start), Ok(8192));
        });
        assert_eq!(*fetched.borrow(), [0..8192, 8192..12288]);
    }

    #[test]
    fn a_failed_fetch_leaves_nothing_behind() {
        let (blocks, cache) = (blocks(1 << 20), CleanCache::new());
        let all = blocks.free_bytes();
        let failed = block_on(cache.get_or_fetch(&blocks, ONE, (0, 9), |gap| gap, |_| async { Err::<(), u8>(7) }));
        assert_eq!(failed.err(), Some(7));
        assert_eq!(blocks.free_bytes(), all);
        assert!(cache.get(ONE, 0).is_none());
        assert_eq!(cache.next_gap(ONE, 0..9), Some(0..9));
    }

    #[test]
    fn what_nobody_looked_at_makes_room() {
        let (blocks, cache) = (blocks(8 * 4096), CleanCache::new());
        for index in 0..8 {
            block_on(fetch(&blocks, &cache, index)).expect("ok");
        }
        assert_eq!(blocks.free_bytes(), 0);
        cache.get(ONE, 0);
        assert!(cache.try_take(&blocks, 4096).is_some());
        assert!(cache.get(ONE, 0).is_some());
        assert!(cache.get(ONE, 4096).is_none());
    }

    #[test]
    fn what_is_kept_for_later_outlives_what_was_looked_at() {
        let (blocks, cache) = (blocks(8 * 4096), CleanCache::new());
        for index in 0..8 {
            let clean = block_on(fetch(&blocks, &cache, index)).expect("ok");
            match index {
                0..4 => drop(cache.get(ONE, clean.start)),
                _ => clean.keep_for_later(),
            }
        }
        for index in 8..12 {
            block_on(fetch(&blocks, &cache, index)).expect("ok").keep_for_later();
        }
        let there: Vec<u64> = (0..12).filter(|index| cache.get(ONE, index * 4096).is_some()).collect();
        assert_eq!(there, (4..12).collect::<Vec<_>>());
    }

    #[test]
    fn gaps_lie_between_what_is_here() {
        let (blocks, cache) = (blocks(1 << 20), CleanCache::new());
        for index in [1, 2, 5] {
            block_on(fetch(&blocks, &cache, index)).expect("ok");
        }
        assert_eq!(cache.next_gap(ONE, 5000..40_000), Some(3 * 4096..5 * 4096));
        assert_eq!(cache.next_gap(ONE, 5 * 4096..40_000), Some(6 * 4096..40_000));
        assert_eq!(cache.next_gap(ONE, 4096..3 * 4096), None);
    }

    #[test]
    fn what_is_looked_at_all_the_time_goes_too_when_nothing_else_is_left() {
        let (blocks, cache) = (blocks(2 * 4096), CleanCache::new());
        for index in 0..100 {
            let clean = block_on(fetch(&blocks, &cache, index)).expect("ok");
            assert!(cache.get(ONE, clean.start).is_some());
        }
        let held = block_on(fetch(&blocks, &cache, 99)).expect("here");
        let other = block_on(fetch(&blocks, &cache, 98)).expect("here");
        assert!(cache.try_take(&blocks, 4096).is_none(), "both are being copied from");
        drop((held, other));
        assert!(cache.try_take(&blocks, 8192).is_some());
    }

    #[test]
    fn less_is_read_where_memory_is_short_or_in_pieces() {
        let (blocks, cache) = (blocks(8 * 4096), CleanCache::new());
        let held: Vec<_> = (0..8).filter_map(|_| blocks.take(4096)).collect();
        let in_pieces: Vec<_> = held.into_iter().step_by(2).collect();
        let ok = |_| async { Ok::<(), ()>(()) };
        let clean = block_on(cache.get_or_fetch(&blocks, ONE, (10_000, 1 << 20), |gap| gap, ok)).expect("ok");
        assert!(clean.start <= 10_000 && clean.end() > 10_000 && clean.len <= 4096, "{clean:?}");
        drop(in_pieces);
    }

    #[test]
    fn memory_that_the_store_may_still_write_is_not_given_out() {
        let (blocks, cache) = (blocks(1 << 20), CleanCache::new());
        let all = blocks.free_bytes();
        let kept = RefCell::new(None);
        let mut fetch = Box::pin(cache.get_or_fetch(
            &blocks,
            ONE,
            (0, 4096),
            |gap| gap,
            |memory| {
                *kept.borrow_mut() = Some(memory);
                std::future::pending::<Result<(), ()>>()
            },
        ));
        assert!(block_on(async { futures::poll!(&mut fetch) }).is_pending());
        drop(fetch);
        assert_eq!(blocks.free_bytes(), all - 4096);
        assert!(cache.get(ONE, 0).is_none());
        kept.take();
        assert_eq!(blocks.free_bytes(), all);
    }

    proptest! {
        /// Whatever is asked for is inside the answer, blocks do not overlap, and all memory comes back.
        #[test]
        fn blocks_cover_what_is_asked_for_without_overlap(
            steps in prop::collection::vec((0u64..3, 0u64..200_000, 0u64..70_000, 0u64..70_000), 1..200),
        ) {
            let (blocks, cache) = (blocks(32 * 4096), CleanCache::new());
            let all = blocks.free_bytes();
            for (content, offset, before, after) in steps {
                let id = ContentId(content * 16);
                let choose = |_: Range<u64>| offset.saturating_sub(before)..offset + after;
                let got = block_on(cache.get_or_fetch(&blocks, id, (offset, 200_000), choose, |_| async { Ok::<(), ()>(()) }));
                let clean = got.expect("ok");
                prop_assert!(clean.start <= offset && offset < clean.end() && clean.end() <= 200_000);
                drop(clean);
                for content in 0..3 {
                    let shard = cache.shard(ContentId(content * 16));
                    let mut end = 0;
                    for (&start, slot) in shard.contents.get(&ContentId(content * 16)).into_iter().flatten() {
                        prop_assert!(start >= end && slot.end() > start);
                        end = slot.end();
                    }
                }
            }
            while cache.evict_one().is_some() {}
            prop_assert_eq!(blocks.free_bytes(), all);
            prop_assert!(cache.clock().is_empty());
        }
    }
}
