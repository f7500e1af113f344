//! Which parts of the pool are free: a buddy allocator over offsets. Knows no memory, only numbers.
//!
//! Invariants
//! (1) A block of order `k` is `BLOCK_MIN << k` bytes long and aligned to its length.
//! (2) Free blocks never overlap each other or an allocated one; two free buddies of an order below the top do not
//!     exist side by side: they are merged.
//! (3) `free_bytes` is the sum of all free blocks.

use std::collections::BTreeSet;

/// Smallest block in bytes: a page.
pub const BLOCK_MIN: usize = 4096;

/// Largest order: 4 MiB blocks.
pub const ORDER_MAX: u8 = 10;

/// Largest block in bytes.
pub const BLOCK_MAX: usize = BLOCK_MIN << ORDER_MAX;

/// Length in bytes of a block of `order`.
pub fn len_of(order: u8) -> usize {
    BLOCK_MIN << order
}

/// The smallest order whose blocks hold `len` bytes; `None` above [`BLOCK_MAX`].
pub fn order_for(len: usize) -> Option<u8> {
    (0..=ORDER_MAX).find(|&order| len_of(order) >= len)
}

/// The free blocks of a pool.
#[derive(Debug)]
pub struct Buddy {
    /// Free blocks by order: their offsets.
    free: Vec<BTreeSet<u64>>,
    free_bytes: usize,
}

impl Buddy {
    /// A pool of `len` bytes, all free. The part that is no multiple of [`BLOCK_MIN`] is never used.
    pub fn new(len: usize) -> Buddy {
        let mut buddy = Buddy { free: vec![BTreeSet::new(); usize::from(ORDER_MAX) + 1], free_bytes: 0 };
        let mut offset = 0;
        while let Some(order) = (0..=ORDER_MAX).rev().find(|&k| offset % len_of(k) == 0 && len - offset >= len_of(k)) {
            buddy.free[usize::from(order)].insert(offset as u64);
            buddy.free_bytes += len_of(order);
            offset += len_of(order);
        }
        buddy
    }

    /// Takes a block of `order`: the lowest that fits, splitting larger ones. `None`: none is left.
    pub fn take(&mut self, order: u8) -> Option<u64> {
        let from = (order..=ORDER_MAX).find(|&k| !self.free[usize::from(k)].is_empty())?;
        let offset = self.free[usize::from(from)].pop_first()?;
        for k in (order..from).rev() {
            self.free[usize::from(k)].insert(offset + len_of(k) as u64);
        }
        self.free_bytes -= len_of(order);
        Some(offset)
    }

    /// Gives back a block that [`Buddy::take`] gave.
    pub fn give(&mut self, offset: u64, order: u8) {
        self.free_bytes += len_of(order);
        let (mut offset, mut order) = (offset, order);
        while order < ORDER_MAX {
            let buddy = offset ^ len_of(order) as u64;
            if !self.free[usize::from(order)].remove(&buddy) {
                break;
            }
            offset = offset.min(buddy);
            order += 1;
        }
        let fresh = self.free[usize::from(order)].insert(offset);
        debug_assert!(fresh, "a block is given back once");
    }

    /// Takes all free blocks that begin in `range`, as offset and order.
    pub fn take_within(&mut self, range: std::ops::Range<u64>) -> Vec<(u64, u8)> {
        let mut taken = Vec::new();
        for order in 0..=ORDER_MAX {
            let free = &mut self.free[usize::from(order)];
            while let Some(&offset) = free.range(range.clone()).next() {
                free.remove(&offset);
                taken.push((offset, order));
                self.free_bytes -= len_of(order);
            }
        }
        taken
    }

    /// Bytes in free blocks.
    pub fn free_bytes(&self) -> usize {
        self.free_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn orders_hold_what_they_are_asked_to() {
        assert_eq!(order_for(1), Some(0));
        assert_eq!(order_for(4096), Some(0));
        assert_eq!(order_for(4097), Some(1));
        assert_eq!(order_for(BLOCK_MAX), Some(ORDER_MAX));
        assert_eq!(order_for(BLOCK_MAX + 1), None);
    }

    #[test]
    fn an_odd_length_is_used_to_the_page() {
        let len = BLOCK_MAX + 3 * BLOCK_MIN + 17;
        assert_eq!(Buddy::new(len).free_bytes(), BLOCK_MAX + 3 * BLOCK_MIN);
    }

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_come_back(steps in prop::collection::vec((any::<bool>(), 0u8..=ORDER_MAX, any::<usize>()), 1..400)) {
            let len = 4 * BLOCK_MAX;
            let mut buddy = Buddy::new(len);
            let mut held: Vec<(u64, u8)> = Vec::new();
            for (take, order, pick) in steps {
                if take {
                    if let Some(offset) = buddy.take(order) {
                        let end = offset + len_of(order) as u64;
                        prop_assert_eq!(offset % len_of(order) as u64, 0);
                        prop_assert!(end <= len as u64);
                        for &(o, k) in &held {
                            prop_assert!(end <= o || o + len_of(k) as u64 <= offset, "overlap");
                        }
                        held.push((offset, order));
                    }
                } else if !held.is_empty() {
                    let (offset, order) = held.swap_remove(pick % held.len());
                    buddy.give(offset, order);
                }
                let used: usize = held.iter().map(|&(_, k)| len_of(k)).sum();
                prop_assert_eq!(buddy.free_bytes(), len - used);
            }
            for (offset, order) in held {
                buddy.give(offset, order);
            }
            for _ in 0..4 {
                prop_assert!(buddy.take(ORDER_MAX).is_some(), "everything merged back");
            }
        }
    }
}
