//! Blocks: owned pieces of the pool. A [`Block`] is exclusive memory until it is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use event_listener::{Event, EventListener};

use super::buddy::{self, BLOCK_MAX, BLOCK_MIN, Buddy};
use super::lists::FreeLists;
use super::sync::{AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering};
use super::warm::Warm;
use crate::fs::{Sink, Source};
use crate::metrics::MountMeter;
use crate::store::{Pool, Slice};

/// A part of the pool: what one mount has for itself.
#[derive(Clone, Debug)]
pub struct Part {
    pool: Arc<Pool>,
    start: usize,
    len: usize,
    meter: MountMeter,
}

impl Part {
    /// `len` bytes from `start` on, both cut down to whole pages and to what there is.
    pub fn of(pool: Arc<Pool>, start: usize, len: usize) -> Part {
        let pages = |bytes: usize| bytes - bytes % BLOCK_MIN;
        let start = pages(start.min(pool.len()));
        let len = pages(len.min(pool.len() - start));
        Part { pool, start, len, meter: MountMeter::default() }
    }

    /// Counts on `meter` what becomes of it.
    #[must_use]
    pub fn counting(self, meter: MountMeter) -> Part {
        Part { meter, ..self }
    }

    /// Where the mount counts.
    pub fn meter(&self) -> &MountMeter {
        &self.meter
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl From<Arc<Pool>> for Part {
    fn from(pool: Arc<Pool>) -> Part {
        let len = pool.len();
        Part::of(pool, 0, len)
    }
}

/// A part of the pool with what is free of it.
#[derive(Debug)]
pub struct Blocks {
    part: Part,
    /// Free blocks at hand. What is in them is taken and given without a lock.
    lists: FreeLists,
    /// All other free blocks.
    buddy: Mutex<Buddy>,
    /// Where blocks were freed whose memory the kernel has not got back.
    warm: Warm,
    /// How many blocks had been taken when somebody last asked whether all is quiet.
    taken_before: AtomicU64,
    /// Notified whenever a block is freed.
    freed: Event,
    /// Capacity of all blocks marked dirty.
    dirty: AtomicUsize,
    /// The blocks marked dirty, in that order, and when they were.
    since: Mutex<Marks>,
}

/// When blocks became dirty.
#[derive(Debug, Default)]
struct Marks {
    last: u64,
    times: BTreeMap<u64, u64>,
}

impl Blocks {
    /// All of `part`, free.
    pub fn new(part: impl Into<Part>) -> Arc<Blocks> {
        let part = part.into();
        part.meter.pool_bytes.store(part.len as u64, Ordering::Relaxed);
        Arc::new(Blocks {
            lists: FreeLists::new(part.len),
            buddy: Mutex::new(Buddy::new(part.len)),
            warm: Warm::new(part.len),
            part,
            taken_before: AtomicU64::new(0),
            freed: Event::new(),
            dirty: AtomicUsize::new(0),
            since: Mutex::default(),
        })
    }

    fn buddy(&self) -> MutexGuard<'_, Buddy> {
        self.buddy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that is at hand goes back to where it is merged.
    fn flush(&self, buddy: &mut Buddy) {
        self.lists.drain(|offset, order| buddy.give(offset, order));
    }

    /// A block of at least `len` bytes, if one is free.
    pub fn take(self: &Arc<Blocks>, len: usize) -> Option<Block> {
        let order = buddy::order_for(len)?;
        let (offset, listed) = match self.lists.take(order) {
            Some(offset) => (offset, true),
            None => (self.take_slowly(order)?, false),
        };
        self.part.meter.taken(order, buddy::len_of(order), listed);
        Some(Block { owner: Arc::clone(self), offset, order, mark: AtomicU64::new(0) })
    }

    /// As [`Blocks::take`], of what is not at hand.
    #[cold]
    fn take_slowly(&self, order: u8) -> Option<u64> {
        let mut buddy = self.buddy();
        buddy.take(order).or_else(|| {
            self.flush(&mut buddy);
            buddy.take(order)
        })
    }

    /// Resolves at the next block that is freed after this call.
    pub fn freed(&self) -> EventListener {
        self.freed.listen()
    }

    /// Wakes those who wait for a block, though none was freed: there may be another way to one.
    pub fn wake(&self) {
        self.freed.notify(usize::MAX);
    }

    /// Bytes in free blocks.
    pub fn free_bytes(&self) -> usize {
        // Under the lock, so that nothing is on its way from the one to the other.
        let buddy = self.buddy();
        buddy.free_bytes() + self.lists.bytes()
    }

    /// Gives the memory of free blocks back to the kernel, unless a block was taken since the last call. Returns how many
    /// bytes of it there may have been. Whoever takes a block meanwhile may find fewer free ones for a moment. One thread
    /// at a time may call it.
    pub fn give_back_if_idle(&self) -> usize {
        let taken = self.part.meter.taken_so_far();
        if self.taken_before.swap(taken, Ordering::Relaxed) != taken {
            return 0;
        }
        let (mut given, mut from) = (0, 0);
        while let Some(start) = self.warm.take_from(from) {
            from = start + BLOCK_MAX as u64;
            let mut buddy = self.buddy();
            self.flush(&mut buddy);
            let blocks = buddy.take_within(start..from);
            drop(buddy);
            for &(offset, order) in &blocks {
                self.part.pool.discard(self.part.start as u64 + offset, buddy::len_of(order));
                given += buddy::len_of(order);
            }
            let mut buddy = self.buddy();
            blocks.into_iter().for_each(|(offset, order)| buddy.give(offset, order));
            drop(buddy);
            self.freed.notify(usize::MAX);
        }
        given
    }

    /// Bytes in blocks that hold what the store does not have yet.
    pub fn dirty_bytes(&self) -> usize {
        self.dirty.load(Ordering::Relaxed)
    }

    /// `len` more bytes are dirty from now on; the number under which that is noted, at least 1.
    fn mark(&self, len: usize) -> u64 {
        let dirty = self.dirty.fetch_add(len, Ordering::Relaxed) + len;
        self.part.meter.dirty_bytes.store(dirty as u64, Ordering::Relaxed);
        let now = self.part.meter.now();
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.last += 1;
        let mark = since.last;
        since.times.insert(mark, now);
        self.tell_oldest(&since);
        mark
    }

    /// What is noted under `mark` is not dirty any more.
    fn unmark(&self, mark: u64, len: usize) {
        let dirty = self.dirty.fetch_sub(len, Ordering::Relaxed).saturating_sub(len);
        self.part.meter.dirty_bytes.store(dirty as u64, Ordering::Relaxed);
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.times.remove(&mark);
        self.tell_oldest(&since);
    }

    fn tell_oldest(&self, since: &Marks) {
        let oldest = since.times.first_key_value().map_or(0, |(_, at)| *at);
        self.part.meter.dirty_since.store(oldest, Ordering::Relaxed);
    }

    /// Where the mount counts.
    pub fn meter(&self) -> &MountMeter {
        &self.part.meter
    }

    /// Length of all blocks together, in bytes.
    pub fn len(&self) -> usize {
        self.part.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.part.is_empty()
    }
}

/// Exclusive memory in the pool, given back on drop.
#[derive(Debug)]
pub struct Block {
    owner: Arc<Blocks>,
    /// From the start of the owner's part.
    offset: u64,
    order: u8,
    /// Number under which it is noted as dirty; 0: it is not.
    mark: AtomicU64,
}

impl Block {
    /// How many bytes it holds.
    pub fn capacity(&self) -> usize {
        buddy::len_of(self.order)
    }

    /// Counts the block as dirty, until it is dropped or [`Block::mark_clean`].
    pub fn mark_dirty(&self) {
        if self.mark.load(Ordering::Relaxed) != 0 {
            return;
        }
        let mark = self.owner.mark(self.capacity());
        if self.mark.compare_exchange(0, mark, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            self.owner.unmark(mark, self.capacity());
        }
    }

    /// The store has its bytes now.
    pub fn mark_clean(&self) {
        match self.mark.swap(0, Ordering::Relaxed) {
            0 => {}
            mark => self.owner.unmark(mark, self.capacity()),
        }
    }

    /// Where `start..start + len` of it lies in the pool; clamped to the block.
    pub fn slice(&self, start: usize, len: usize) -> Slice {
        let start = start.min(self.capacity());
        let len = len.min(self.capacity() - start);
        Slice { offset: self.owner.part.start as u64 + self.offset + start as u64, len: len as u32 }
    }

    /// Fills `start..start + len` from a request's data.
    ///
    /// # Errors
    /// When `data` is too short or the guest's memory is gone.
    pub fn fill(&mut self, start: usize, len: usize, data: &mut impl Source) -> std::io::Result<()> {
        // SAFETY: the range lies in this block, which only we hold (`&mut self`), and no store operation names it:
        // blocks that are being uploaded are shared immutably (`Arc`).
        let room = unsafe { self.owner.part.pool.bytes_mut(self.slice(start, len)) };
        data.take(room.unwrap_or_default())
    }

    /// Fills `start..start + len` with zeros.
    pub fn zero(&mut self, start: usize, len: usize) {
        // SAFETY: as in `fill`.
        if let Some(room) = unsafe { self.owner.part.pool.bytes_mut(self.slice(start, len)) } {
            room.fill(0);
        }
    }

    /// Copies `data` to `start`.
    pub fn write(&mut self, start: usize, data: &[u8]) {
        let to = self.slice(start, data.len());
        self.owner.part.pool.write(to.offset, &data[..to.len as usize]);
    }

    /// Puts `start..start + len` into a reply.
    ///
    /// # Errors
    /// As [`Sink::put`].
    pub fn put(&self, start: usize, len: usize, out: &mut impl Sink) -> std::io::Result<()> {
        out.put(self.bytes(start, len))
    }

    /// The bytes `start..start + len`.
    pub fn bytes(&self, start: usize, len: usize) -> &[u8] {
        // SAFETY: nobody writes a block that is borrowed: writing takes `&mut self`, and the broker writes only blocks
        // of reads in flight, which are not handed out before the reply.
        unsafe { self.owner.part.pool.bytes(self.slice(start, len)) }.unwrap_or_default()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.mark_clean();
        self.owner.part.meter.given(self.order, self.capacity());
        if !self.owner.lists.give(self.offset, self.order) {
            self.owner.buddy().give(self.offset, self.order);
        }
        self.owner.warm.insert(self.offset);
        self.owner.freed.notify(usize::MAX);
    }
}
