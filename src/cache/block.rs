//! Blocks: owned pieces of the pool. A [`Block`] is exclusive memory until it is dropped.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_listener::{Event, EventListener};

use super::buddy::{self, Buddy};
use crate::fs::{Sink, Source};
use crate::store::{Pool, Slice};

/// The pool with its free list.
#[derive(Debug)]
pub struct Blocks {
    pool: Arc<Pool>,
    free: Mutex<Buddy>,
    /// Notified whenever a block is freed.
    freed: Event,
    /// Capacity of all blocks marked dirty.
    dirty: AtomicUsize,
}

impl Blocks {
    /// All of `pool`, free.
    pub fn new(pool: Arc<Pool>) -> Arc<Blocks> {
        let free = Mutex::new(Buddy::new(pool.len()));
        Arc::new(Blocks { pool, free, freed: Event::new(), dirty: AtomicUsize::new(0) })
    }

    fn free(&self) -> MutexGuard<'_, Buddy> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block of at least `len` bytes, if one is free.
    pub fn take(self: &Arc<Blocks>, len: usize) -> Option<Block> {
        let order = buddy::order_for(len)?;
        let offset = self.free().take(order)?;
        Some(Block { owner: Arc::clone(self), offset, order, dirty: AtomicBool::new(false) })
    }

    /// Resolves at the next block that is freed after this call.
    pub fn freed(&self) -> EventListener {
        self.freed.listen()
    }

    /// Bytes in free blocks.
    pub fn free_bytes(&self) -> usize {
        self.free().free_bytes()
    }

    /// Bytes in blocks that hold what the store does not have yet.
    pub fn dirty_bytes(&self) -> usize {
        self.dirty.load(Ordering::Relaxed)
    }

    /// Length of the pool in bytes.
    pub fn len(&self) -> usize {
        self.pool.len()
    }

    /// Whether the pool has no bytes.
    pub fn is_empty(&self) -> bool {
        self.pool.is_empty()
    }
}

/// Exclusive memory in the pool, given back on drop.
#[derive(Debug)]
pub struct Block {
    owner: Arc<Blocks>,
    offset: u64,
    order: u8,
    dirty: AtomicBool,
}

impl Block {
    /// How many bytes it holds.
    pub fn capacity(&self) -> usize {
        buddy::len_of(self.order)
    }

    /// Counts the block as dirty, until it is dropped or [`Block::mark_clean`].
    pub fn mark_dirty(&self) {
        if !self.dirty.swap(true, Ordering::Relaxed) {
            self.owner.dirty.fetch_add(self.capacity(), Ordering::Relaxed);
        }
    }

    /// The store has its bytes now.
    pub fn mark_clean(&self) {
        if self.dirty.swap(false, Ordering::Relaxed) {
            self.owner.dirty.fetch_sub(self.capacity(), Ordering::Relaxed);
        }
    }

    /// Where `start..start + len` of it lies in the pool; clamped to the block.
    pub fn slice(&self, start: usize, len: usize) -> Slice {
        let start = start.min(self.capacity());
        let len = len.min(self.capacity() - start);
        Slice { offset: self.offset + start as u64, len: len as u32 }
    }

    /// Fills `start..start + len` from a request's data.
    ///
    /// # Errors
    /// When `data` is too short or the guest's memory is gone.
    pub fn fill(&mut self, start: usize, len: usize, data: &mut impl Source) -> std::io::Result<()> {
        // SAFETY: the range lies in this block, which only we hold (`&mut self`), and no store operation names it:
        // blocks that are being uploaded are shared immutably (`Arc`).
        let room = unsafe { self.owner.pool.bytes_mut(self.slice(start, len)) };
        data.take(room.unwrap_or_default())
    }

    /// Fills `start..start + len` with zeros.
    pub fn zero(&mut self, start: usize, len: usize) {
        // SAFETY: as in `fill`.
        if let Some(room) = unsafe { self.owner.pool.bytes_mut(self.slice(start, len)) } {
            room.fill(0);
        }
    }

    /// Copies `data` to `start`.
    pub fn write(&mut self, start: usize, data: &[u8]) {
        let to = self.slice(start, data.len());
        self.owner.pool.write(to.offset, &data[..to.len as usize]);
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
        unsafe { self.owner.pool.bytes(self.slice(start, len)) }.unwrap_or_default()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.mark_clean();
        self.owner.free().give(self.offset, self.order);
        self.owner.freed.notify(usize::MAX);
    }
}
