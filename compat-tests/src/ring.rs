//! A split virtqueue as its driver sees it (VIRTIO 1.3, 2.7).
//!
//! The layout is ours to choose: descriptor table, available ring and used ring lie apart, with unrelated bytes between
//! them, so that a device which computes one from another or writes past an end is noticed ([`Ring::check_guards`]).

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::memory::Region;

/// Descriptor continues in `next`.
pub const DESC_NEXT: u16 = 1;
/// Descriptor is for the device to write.
pub const DESC_WRITE: u16 = 2;
/// Descriptor points to a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;

const GUARD: u64 = 64;
const GUARD_BYTE: u8 = 0xe5;

/// One entry of a descriptor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// `DESC_*` bits.
    pub flags: u16,
    /// Index of the next descriptor, when `DESC_NEXT` is set.
    pub next: u16,
}

impl Descriptor {
    /// The 16 bytes in guest memory.
    pub fn encode(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.addr.to_le_bytes());
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        out[12..14].copy_from_slice(&self.flags.to_le_bytes());
        out[14..].copy_from_slice(&self.next.to_le_bytes());
        out
    }
}

/// A split ring in guest memory.
#[derive(Debug)]
pub struct Ring {
    region: Arc<Region>,
    size: u16,
    event_idx: bool,
    desc: u64,
    avail: u64,
    used: u64,
    avail_idx: u16,
    /// Available index at the last notification decision.
    notified_idx: u16,
    used_idx: u16,
}

impl Ring {
    /// Bytes that a ring of `size` entries occupies, guards included, from a page boundary.
    pub fn footprint(size: u16) -> u64 {
        let layout = Layout::of(0, size);
        (layout.used + used_len(size) + GUARD).next_multiple_of(4096)
    }

    /// An empty ring of `size` entries at page-aligned `start`, with indices starting at `base`.
    pub fn new(region: Arc<Region>, start: u64, size: u16, event_idx: bool, base: u16) -> Ring {
        let Layout { desc, avail, used } = Layout::of(start, size);
        region.fill(start, Self::footprint(size), GUARD_BYTE);
        region.fill(desc, 16 * u64::from(size), 0);
        region.fill(avail, avail_len(size), 0);
        region.fill(used, used_len(size), 0);
        let ring =
            Ring { region, size, event_idx, desc, avail, used, avail_idx: base, notified_idx: base, used_idx: base };
        ring.region.store_u16(avail + 2, base);
        ring.region.store_u16(used + 2, base);
        // As a device that has seen everything up to `base` would have left it: kick at the next entry.
        ring.region.store_u16(used + 4 + 8 * u64::from(size), base);
        ring.ask_for_notification();
        ring
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Guest-physical address of the descriptor table.
    pub fn desc_addr(&self) -> u64 {
        self.desc
    }

    /// Guest-physical address of the available ring.
    pub fn avail_addr(&self) -> u64 {
        self.avail
    }

    /// Guest-physical address of the used ring.
    pub fn used_addr(&self) -> u64 {
        self.used
    }

    /// Where the next available entry goes.
    pub fn avail_idx(&self) -> u16 {
        self.avail_idx
    }

    /// The next used entry to be read.
    pub fn used_idx(&self) -> u16 {
        self.used_idx
    }

    /// The used index as the device has published it.
    pub fn device_used_idx(&self) -> u16 {
        self.region.load_u16(self.used + 2)
    }

    /// Writes one entry of the descriptor table.
    pub fn set_descriptor(&self, index: u16, descriptor: &Descriptor) {
        self.region.write(self.desc + 16 * u64::from(index), &descriptor.encode());
    }

    /// Puts a chain into the available ring without showing it to the device yet. Any `head` is written as it is.
    pub fn push(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        self.region.store_u16(self.avail + 4 + 2 * slot, head);
        self.avail_idx = self.avail_idx.wrapping_add(1);
    }

    /// Shows everything pushed to the device; true if the device wants to be kicked for it.
    pub fn publish(&mut self) -> bool {
        self.region.store_u16(self.avail + 2, self.avail_idx);
        fence(Ordering::SeqCst);
        let (old, new) = (self.notified_idx, self.avail_idx);
        self.notified_idx = new;
        if self.event_idx {
            let event = self.region.load_u16(self.used + 4 + 8 * u64::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.region.load_u16(self.used) & 1 == 0
        }
    }

    /// Writes any value as the available index, as a broken driver would.
    pub fn force_avail_idx(&mut self, index: u16) {
        self.region.store_u16(self.avail + 2, index);
    }

    /// Takes the next used entry: (id, written length).
    pub fn pop_used(&mut self) -> Option<(u32, u32)> {
        if self.device_used_idx() == self.used_idx {
            return None;
        }
        let slot = u64::from(self.used_idx % self.size);
        let bytes = self.region.bytes(self.used + 4 + 8 * slot, 8);
        self.used_idx = self.used_idx.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Some((word(0), word(4)))
    }

    /// Asks the device to notify at the next used entry; afterwards the used index must be looked at once more.
    pub fn ask_for_notification(&self) {
        if self.event_idx {
            self.region.store_u16(self.avail + 4 + 2 * u64::from(self.size), self.used_idx);
        } else {
            self.region.store_u16(self.avail, 0);
        }
        fence(Ordering::SeqCst);
    }

    /// Panics if the device wrote outside the used ring.
    pub fn check_guards(&self) {
        let check = |from: u64, to: u64, what: &str| {
            let bytes = self.region.bytes(from, (to - from) as usize);
            assert!(bytes.iter().all(|&b| b == GUARD_BYTE), "the device wrote {what}");
        };
        check(self.desc + 16 * u64::from(self.size), self.avail, "behind the descriptor table");
        check(self.avail + avail_len(self.size), self.used, "between the available and the used ring");
        check(self.used + used_len(self.size), self.used + used_len(self.size) + GUARD, "behind the used ring");
    }
}

struct Layout {
    desc: u64,
    avail: u64,
    used: u64,
}

impl Layout {
    fn of(start: u64, size: u16) -> Layout {
        let desc = start;
        let avail = (desc + 16 * u64::from(size) + GUARD).next_multiple_of(2) + 2;
        let used = (avail + avail_len(size) + GUARD).next_multiple_of(4) + 4;
        Layout { desc, avail, used }
    }
}

fn avail_len(size: u16) -> u64 {
    6 + 2 * u64::from(size)
}

fn used_len(size: u16) -> u64 {
    6 + 8 * u64::from(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0x10_0000;

    fn ring(event_idx: bool, base: u16) -> Ring {
        let region = Region::new(START, Ring::footprint(8)).unwrap();
        Ring::new(region, START, 8, event_idx, base)
    }

    #[test]
    fn kicks_follow_the_devices_wish_across_the_wrap_of_the_index() {
        let mut with_event = ring(true, 65_534);
        let event = with_event.used_addr() + 4 + 8 * 8;
        for asked in [65_534, 65_535, 0] {
            with_event.region.store_u16(event, asked);
            with_event.push(0);
            assert!(with_event.publish(), "kicked at {asked}");
            with_event.push(1);
            assert!(!with_event.publish(), "not kicked behind {asked}");
            with_event.avail_idx = asked.wrapping_add(1);
            with_event.notified_idx = with_event.avail_idx;
        }
        let mut with_flag = ring(false, 0);
        with_flag.push(0);
        assert!(with_flag.publish());
        with_flag.region.store_u16(with_flag.used_addr(), 1);
        with_flag.push(0);
        assert!(!with_flag.publish());
    }

    #[test]
    fn used_entries_are_taken_once_and_in_order() {
        let mut ring = ring(true, 65_535);
        assert_eq!(ring.pop_used(), None);
        for (slot, id) in [(7u64, 3u32), (0, 5)] {
            let entry = [id.to_le_bytes(), (id * 10).to_le_bytes()].concat();
            ring.region.write(ring.used_addr() + 4 + 8 * slot, &entry);
        }
        ring.region.store_u16(ring.used_addr() + 2, 1);
        assert_eq!(ring.pop_used(), Some((3, 30)));
        assert_eq!(ring.pop_used(), Some((5, 50)));
        assert_eq!(ring.pop_used(), None);
    }

    #[test]
    #[should_panic(expected = "behind the used ring")]
    fn a_write_behind_the_used_ring_is_noticed() {
        let ring = ring(true, 0);
        ring.region.write(ring.used_addr() + used_len(8), &[0]);
        ring.check_guards();
    }
}
