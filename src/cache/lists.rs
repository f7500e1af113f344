//! Free blocks at hand: of each size class a few, given out and taken back without a lock. Behind them is the buddy
//! allocator. Knows no memory, only numbers, and keeps them in memory of its own.
//!
//! A list is an array of slots and two sets of them, each one word: `full` and `vacant`. A slot is in one of them, or it
//! belongs to the thread that took it out, which reads or writes it and puts it into the other. No slot is linked to
//! another, so none can be mistaken for what it was before (ABA), and a thread that is stopped half-way holds up no other.
//!
//! Invariants
//! (1) Who takes a slot out of a set has it alone until it puts it into the other.
//! (2) A list holds no more than its slots: what finds none vacant goes to the buddy allocator.
//! (3) Whatever a thread did with a block before it gave it back, has happened for the thread that takes it.

use super::buddy::{self, ORDER_MAX};
use super::sync::{AtomicU64, Ordering};

/// Blocks of one class at hand at most: the bits of a word.
const SLOTS_MAX: usize = 64;

/// Of the whole pool a class has this part at hand at most.
const SHARE: usize = 8;

/// A few free blocks of one class.
#[derive(Debug)]
#[repr(align(128))]
struct List {
    full: AtomicU64,
    vacant: AtomicU64,
    slots: Box<[AtomicU64]>,
}

/// Takes one number out of `set`.
fn take_one(set: &AtomicU64) -> Option<usize> {
    let mut seen = set.load(Ordering::Relaxed);
    while seen != 0 {
        // Acquire: whoever put the slot here is done with it.
        match set.compare_exchange_weak(seen, seen & (seen - 1), Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return Some(seen.trailing_zeros() as usize),
            Err(now) => seen = now,
        }
    }
    None
}

/// Puts a number into `set`, which it is not in.
fn put_one(set: &AtomicU64, number: usize) {
    // Release: whoever takes it out sees what was done to the slot, and to the block.
    let before = set.fetch_or(1 << number, Ordering::Release);
    debug_assert_eq!(before & (1 << number), 0, "a slot is put back once");
}

impl List {
    fn new(slots: usize) -> List {
        let slots: Box<[AtomicU64]> = (0..slots.min(SLOTS_MAX)).map(|_| AtomicU64::new(0)).collect();
        let vacant = 1u64.checked_shl(slots.len() as u32).unwrap_or(0).wrapping_sub(1);
        List { full: AtomicU64::new(0), vacant: AtomicU64::new(vacant), slots }
    }

    fn pop(&self) -> Option<u64> {
        let number = take_one(&self.full)?;
        let offset = self.slots.get(number)?.load(Ordering::Relaxed);
        put_one(&self.vacant, number);
        Some(offset)
    }

    fn push(&self, offset: u64) -> bool {
        let Some(number) = take_one(&self.vacant) else { return false };
        let Some(slot) = self.slots.get(number) else { return false };
        slot.store(offset, Ordering::Relaxed);
        put_one(&self.full, number);
        true
    }

    fn count(&self) -> usize {
        self.full.load(Ordering::Relaxed).count_ones() as usize
    }
}

/// Free blocks of all classes at hand.
#[derive(Debug)]
pub struct FreeLists {
    /// By order.
    lists: Vec<List>,
}

impl FreeLists {
    /// Empty lists for a pool of `len` bytes.
    pub fn new(len: usize) -> FreeLists {
        FreeLists { lists: (0..=ORDER_MAX).map(|order| List::new(len / SHARE / buddy::len_of(order))).collect() }
    }

    /// Takes a block of `order`, if one is at hand.
    pub fn take(&self, order: u8) -> Option<u64> {
        self.lists.get(usize::from(order))?.pop()
    }

    /// Keeps a free block at hand; false: there is no room, it is still the caller's.
    pub fn give(&self, offset: u64, order: u8) -> bool {
        self.lists.get(usize::from(order)).is_some_and(|list| list.push(offset))
    }

    /// Takes all that is at hand, as offset and order. Ends even while others go on giving.
    pub fn drain(&self, mut to: impl FnMut(u64, u8)) {
        for (order, list) in (0..=ORDER_MAX).zip(&self.lists) {
            for _ in 0..list.slots.len() {
                match list.pop() {
                    Some(offset) => to(offset, order),
                    None => break,
                }
            }
        }
    }

    /// Bytes at hand.
    pub fn bytes(&self) -> usize {
        (0..=ORDER_MAX).zip(&self.lists).map(|(order, list)| list.count() * buddy::len_of(order)).sum()
    }
}
