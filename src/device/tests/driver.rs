//! A guest driver of one vring, in the guest memory of a test.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost_user_backend::VringT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::executor::Worker;
use super::super::message::{GuestSink, GuestSource, Memory};
use super::super::queue::{AtomicMemory, Ring};

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

const DESCRIPTORS: u64 = 0x1000;
const AVAIL: u64 = 0x10_0000;
const USED: u64 = 0x20_0000;
/// Where tests put their buffers.
pub(super) const BUFFERS: u64 = 0x40_0000;
/// Where the second memory region begins.
pub(super) const SECOND_REGION: u64 = 0x200_0000;
/// Where the guest's memory ends.
pub(super) const END: u64 = 0x400_0000;

/// A vring, its driver and its memory.
pub(super) struct Guest {
    pub(super) ring: Arc<Ring>,
    memory: AtomicMemory,
    size: u16,
    avail: u16,
    seen: u16,
    pub(super) kick: File,
    pub(super) call: File,
    pub(super) err: File,
}

pub(super) fn event() -> File {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    // SAFETY: `into_raw_fd` hands over the only owner.
    unsafe { File::from_raw_fd(event.into_raw_fd()) }
}

/// How often an eventfd was raised since it was last asked.
pub(super) fn raised(mut event: &File) -> u64 {
    let mut count = [0; 8];
    event.read_exact(&mut count).map_or(0, |()| u64::from_ne_bytes(count))
}

/// The used index.
pub(super) fn used_index(memory: &Memory) -> u16 {
    memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap()
}

/// EVENT_IDX: kick when the available index of a ring of `size` entries passes this.
pub(super) fn avail_event(memory: &Memory, size: u16) -> u16 {
    memory.read_obj::<u16>(GuestAddress(USED + 4 + u64::from(size) * 8)).unwrap()
}

impl Guest {
    pub(super) fn new(size: u16, event_idx: bool) -> Guest {
        let half = usize::try_from(SECOND_REGION).unwrap();
        let memory = Memory::from_ranges(&[(GuestAddress(0), half), (GuestAddress(SECOND_REGION), half)]).unwrap();
        let memory = AtomicMemory::new(memory);
        let ring = Arc::new(Ring::new(1, memory.clone(), 32768).unwrap());
        let (kick, call, err) = (event(), event(), event());
        let vring = ring.vring();
        vring.set_queue_size(size);
        vring.set_queue_info(DESCRIPTORS, AVAIL, USED).unwrap();
        vring.set_queue_event_idx(event_idx);
        vring.set_call(Some(call.try_clone().unwrap()));
        vring.set_enabled(true);
        ring.set_err(Some(err.try_clone().unwrap()));
        ring.set_kick(Some(kick.try_clone().unwrap()));
        ring.set_started(true);
        Guest { ring, memory, size, avail: 0, seen: 0, kick, call, err }
    }

    pub(super) fn memory(&self) -> Arc<Memory> {
        self.memory.memory().into_inner()
    }

    pub(super) fn worker<F>(
        &self,
        make: impl Fn(GuestSource, GuestSink) -> F + Send + 'static,
    ) -> Worker<F, impl Fn(GuestSource, GuestSink) -> F + Send + 'static>
    where
        F: Future<Output = u32> + Send + 'static,
    {
        Worker::new(self.ring.clone(), None, Duration::ZERO, make).unwrap()
    }

    pub(super) fn put(&self, addr: u64, data: &[u8]) {
        self.memory().write_slice(data, GuestAddress(addr)).unwrap();
    }

    pub(super) fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory().read_slice(&mut data, GuestAddress(addr)).unwrap();
        data
    }

    fn put_u16(&self, addr: u64, value: u16) {
        self.put(addr, &value.to_le_bytes());
    }

    fn get_u16(&self, addr: u64) -> u16 {
        self.memory().read_obj::<u16>(GuestAddress(addr)).unwrap()
    }

    /// Writes descriptor `index` of the table at `table`.
    pub(super) fn describe_at(&self, table: u64, index: u16, (addr, len, flags): (u64, u32, u16), next: u16) {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&addr.to_le_bytes());
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&next.to_le_bytes());
        self.put(table + u64::from(index) * 16, &bytes);
    }

    pub(super) fn describe(&self, index: u16, descriptor: (u64, u32, u16), next: u16) {
        self.describe_at(DESCRIPTORS, index, descriptor, next);
    }

    /// Writes a chain of consecutive descriptors from `first` on.
    pub(super) fn chain(&self, first: u16, descriptors: &[(u64, u32, u16)]) {
        for (n, &(addr, len, flags)) in descriptors.iter().enumerate() {
            let index = first + u16::try_from(n).unwrap();
            let more = if n + 1 < descriptors.len() { NEXT } else { 0 };
            self.describe(index, (addr, len, flags | more), index + 1);
        }
    }

    /// A request of `request` bytes with room for a reply, in its own 64 KiB of memory: descriptors `2 * n` and
    /// `2 * n + 1`. Returns where the reply goes.
    pub(super) fn request(&mut self, n: u16, request: &[u8], room: u32) -> u64 {
        let at = BUFFERS + u64::from(n) * 0x1_0000;
        self.put(at, request);
        let len = u32::try_from(request.len()).unwrap();
        if room == 0 {
            self.chain(n * 2, &[(at, len, 0)]);
        } else {
            self.chain(n * 2, &[(at, len, 0), (at + 0x8000, room, WRITE)]);
        }
        self.offer(n * 2);
        at + 0x8000
    }

    /// Puts a head into the available ring.
    pub(super) fn offer(&mut self, head: u16) {
        self.put_u16(AVAIL + 4 + u64::from(self.avail % self.size) * 2, head);
        self.avail = self.avail.wrapping_add(1);
        self.set_avail_idx(self.avail);
    }

    pub(super) fn set_avail_idx(&self, idx: u16) {
        self.put_u16(AVAIL + 2, idx);
    }

    pub(super) fn set_avail_flags(&self, flags: u16) {
        self.put_u16(AVAIL, flags);
    }

    /// EVENT_IDX: interrupt when the used index passes this.
    pub(super) fn set_used_event(&self, idx: u16) {
        self.put_u16(AVAIL + 4 + u64::from(self.size) * 2, idx);
    }

    /// EVENT_IDX: kick when the available index passes this.
    pub(super) fn avail_event(&self) -> u16 {
        avail_event(&self.memory(), self.size)
    }

    pub(super) fn used_flags(&self) -> u16 {
        self.get_u16(USED)
    }

    /// Completions since the last call: head and length.
    pub(super) fn used(&mut self) -> Vec<(u32, u32)> {
        let idx = self.get_u16(USED + 2);
        let mut used = Vec::new();
        while self.seen != idx {
            let entry = self.get(USED + 4 + u64::from(self.seen % self.size) * 8, 8);
            let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
            used.push((word(0), word(4)));
            self.seen = self.seen.wrapping_add(1);
        }
        used
    }

    /// Waits for `count` completions.
    pub(super) fn wait_used(&mut self, count: usize) -> Vec<(u32, u32)> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut used = self.used();
        while used.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} completions", used.len());
            std::thread::yield_now();
            used.extend(self.used());
        }
        used
    }
}
