//! What a hostile guest puts into its ring: the rows R1 to R14 of the probe table.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::message::{DESCRIPTORS_MAX, GuestSink, GuestSource};
use super::driver::{BUFFERS, END, Guest, INDIRECT, NEXT, WRITE, raised};
use crate::fs::{Sink, Source};

/// Offers head 0 and returns what came back: the length, and whether the server saw the request.
fn outcome(guest: &mut Guest) -> (Vec<(u32, u32)>, usize) {
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    guest.offer(0);
    let mut worker = guest.worker(move |_: GuestSource, _: GuestSink| {
        count.fetch_add(1, Ordering::Relaxed);
        async { 16 }
    });
    worker.turn();
    // The ring goes on: a good request is answered after the bad one.
    let used = guest.used();
    let at = BUFFERS + 0x10_0000;
    guest.chain(8, &[(at, 40, 0), (at + 0x1000, 16, WRITE)]);
    guest.offer(8);
    worker.turn();
    assert_eq!(guest.used(), [(8, 16)]);
    assert!(!guest.ring.is_broken());
    assert_eq!(guest.ring.in_flight().count(), 0);
    (used, served.load(Ordering::Relaxed) - 1)
}

fn errno_at(guest: &Guest, addr: u64) -> (u32, i32, u64) {
    let reply = guest.get(addr, 16);
    (
        u32::from_le_bytes(reply[..4].try_into().unwrap()),
        i32::from_le_bytes(reply[4..8].try_into().unwrap()),
        u64::from_le_bytes(reply[8..].try_into().unwrap()),
    )
}

/// A `fuse_in_header` with unique 7 at `addr`.
fn header(guest: &Guest, addr: u64) {
    guest.put(addr, &[40, 0, 0, 0, 3, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn r1_descriptor_outside_memory() {
    for addr in [END, END - 8, u64::MAX - 7, 1 << 63] {
        let mut guest = Guest::new(16, true);
        header(&guest, BUFFERS);
        guest.chain(0, &[(BUFFERS, 40, 0), (BUFFERS + 0x1000, 16, WRITE), (addr, 64, WRITE)]);
        assert_eq!(outcome(&mut guest), (vec![(0, 16)], 0), "address {addr:#x}");
        assert_eq!(errno_at(&guest, BUFFERS + 0x1000), (16, -libc::EIO, 7));

        let mut guest = Guest::new(16, true);
        guest.chain(0, &[(addr, 40, 0)]);
        assert_eq!(outcome(&mut guest), (vec![(0, 0)], 0), "no room for an answer");
    }
}

#[test]
fn r2_chain_that_loops() {
    let mut guest = Guest::new(16, true);
    guest.describe(0, (BUFFERS, 40, NEXT), 0);
    assert_eq!(outcome(&mut guest), (vec![(0, 0)], 0));
    assert_eq!(guest.ring.malformed(), 1);
}

#[test]
fn r2_chain_longer_than_any_request() {
    let mut guest = Guest::new(4096, true);
    let count = u16::try_from(DESCRIPTORS_MAX).unwrap();
    header(&guest, BUFFERS);
    guest.describe(0, (BUFFERS, 40, NEXT), 10);
    for index in 10..10 + count {
        guest.describe(index, (BUFFERS + 0x1000, 16, WRITE | NEXT), index + 1);
    }
    guest.describe(10 + count, (BUFFERS + 0x1000, 16, WRITE), 0);
    assert_eq!(outcome(&mut guest), (vec![(0, 16)], 0));
}

#[test]
fn r3_head_beyond_the_ring_is_skipped() {
    let mut guest = Guest::new(16, true);
    let mut worker = guest.worker(async |_, _| 0);
    guest.offer(16);
    guest.offer(0xffff);
    worker.turn();
    assert_eq!(guest.used(), [], "it cannot be completed");
    guest.request(3, b"good", 16);
    worker.turn();
    assert_eq!(guest.used(), [(6, 0)]);
    assert_eq!(guest.ring.malformed(), 2);
}

#[test]
fn r3_next_beyond_the_ring() {
    let mut guest = Guest::new(16, true);
    header(&guest, BUFFERS);
    guest.describe(0, (BUFFERS, 40, NEXT), 1);
    guest.describe(1, (BUFFERS + 0x1000, 80, WRITE | NEXT), 16);
    assert_eq!(outcome(&mut guest), (vec![(0, 16)], 0));
    assert_eq!(errno_at(&guest, BUFFERS + 0x1000), (16, -libc::EIO, 7));
}

#[test]
fn r4_chain_of_nothing() {
    let mut guest = Guest::new(16, true);
    guest.chain(0, &[(BUFFERS, 0, 0)]);
    let served = outcome(&mut guest);
    assert_eq!(served.0.len(), 1, "an empty request is the server's to judge");
}

#[test]
fn r5_nested_indirect_table() {
    let mut guest = Guest::new(16, true);
    guest.describe_at(BUFFERS, 0, (BUFFERS + 0x1000, 16, INDIRECT), 0);
    guest.describe(0, (BUFFERS, 16, INDIRECT), 0);
    assert_eq!(outcome(&mut guest), (vec![(0, 0)], 0));
}

#[test]
fn r6_to_r8_bad_indirect_tables() {
    for (addr, len) in [(BUFFERS, 17), (BUFFERS, u32::MAX), (BUFFERS, 0), (END, 32), (u64::MAX, 32)] {
        let mut guest = Guest::new(16, true);
        guest.describe(0, (addr, len, INDIRECT), 0);
        assert_eq!(outcome(&mut guest), (vec![(0, 0)], 0), "{addr:#x} {len}");
        assert_eq!(guest.ring.malformed(), 1);
    }
}

#[test]
fn r9_one_head_many_times() {
    let mut guest = Guest::new(256, true);
    let mut worker = guest.worker(async |_, mut reply: GuestSink| {
        reply.put(b"reply").unwrap();
        5
    });
    guest.chain(0, &[(BUFFERS, 8, 0), (BUFFERS + 64, 64, WRITE)]);
    for _ in 0..256 {
        guest.offer(0);
    }
    worker.turn();
    assert_eq!(guest.used(), [(0, 5); 256]);
}

#[test]
fn r10_avail_index_that_jumps_stops_the_ring_alone() {
    let mut guest = Guest::new(16, true);
    let mut worker = guest.worker(async |_, _| 0);
    guest.set_avail_idx(20_000);
    worker.turn();
    worker.turn();
    assert!(guest.ring.is_broken());
    assert_eq!(raised(&guest.err), 1, "the front end is told once");
    assert_eq!(guest.used(), []);
    // The driver resets and starts the ring again.
    guest.set_avail_idx(0);
    guest.ring.set_started(false);
    guest.ring.set_started(true);
    guest.request(1, b"good", 16);
    worker.turn();
    assert_eq!(guest.used(), [(2, 0)]);
}

#[test]
fn r10_rings_outside_memory_stop() {
    use vhost_user_backend::VringT;
    for (avail, used) in [(END, 0x20_0000), (END - 4, 0x20_0000), (0x10_0000, END), (0x10_0000, END - 4)] {
        let mut guest = Guest::new(16, false);
        guest.ring.vring().set_queue_info(0x1000, avail, used).unwrap();
        guest.request(0, b"request", 16);
        if avail == END - 4 {
            guest.put(END - 2, &1_u16.to_le_bytes());
        }
        let mut worker = guest.worker(async |_, _| 0);
        worker.turn();
        worker.turn();
        assert!(guest.ring.is_broken(), "{avail:#x} {used:#x}");
        assert_eq!(guest.ring.in_flight().count(), 0);
    }
}

#[test]
fn r12_overlapping_writable_descriptors() {
    let mut guest = Guest::new(512, true);
    let mut descriptors = vec![(BUFFERS, 40, 0)];
    descriptors.extend((0..255).map(|_| (BUFFERS, 32 << 20, WRITE)));
    guest.chain(0, &descriptors);
    guest.offer(0);
    let mut worker = guest.worker(async |_, reply: GuestSink| u32::try_from(reply.remaining()).unwrap());
    worker.turn();
    assert_eq!(guest.used().len(), 1);
}

#[test]
fn r13_readable_after_writable() {
    let mut guest = Guest::new(16, true);
    guest.chain(0, &[(BUFFERS, 40, WRITE), (BUFFERS + 0x1000, 80, 0)]);
    assert_eq!(outcome(&mut guest), (vec![(0, 16)], 0));
    assert_eq!(errno_at(&guest, BUFFERS).1, -libc::EINVAL);
}

#[test]
fn r14_descriptors_rewritten_after_the_pop_change_nothing() {
    let mut guest = Guest::new(16, true);
    let (go, wait) = futures::channel::oneshot::channel::<()>();
    let wait = std::sync::Mutex::new(Some(wait));
    let mut worker = guest.worker(move |mut request: GuestSource, mut reply: GuestSink| {
        let wait = wait.lock().unwrap().take().unwrap();
        async move {
            wait.await.unwrap();
            let mut data = [0; 4];
            request.take(&mut data).unwrap();
            reply.put(&data).unwrap();
            4
        }
    });
    let reply = guest.request(0, b"true", 16);
    worker.turn();
    guest.describe(0, (END, 4, NEXT | WRITE), 9);
    guest.describe(1, (BUFFERS + 0x9000, u32::MAX, 0), 0);
    go.send(()).unwrap();
    worker.turn();
    assert_eq!(guest.used(), [(0, 4)]);
    assert_eq!(guest.get(reply, 4), b"true");
}

#[test]
fn random_rings_never_hang_or_panic() {
    let seed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1;
    println!("seed {seed}");
    let mut state = seed;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..300 {
        let mut guest = Guest::new(64, random() % 2 == 0);
        let mut worker = guest.worker(async |mut request: GuestSource, mut reply: GuestSink| {
            let mut data = vec![0; request.remaining().min(4096)];
            request.take(&mut data).unwrap();
            let len = reply.remaining().min(data.len());
            reply.put(&data[..len]).unwrap();
            u32::try_from(len).unwrap()
        });
        for index in 0..64 {
            let addr = if random() % 4 == 0 { random() } else { BUFFERS + random() % 0x1000 };
            let len = if random() % 4 == 0 { random() as u32 } else { (random() % 0x100) as u32 };
            guest.describe(index, (addr, len, (random() % 8) as u16), (random() % 70) as u16);
        }
        for _ in 0..random() % 64 {
            guest.offer((random() % 66) as u16);
        }
        if random() % 8 == 0 {
            guest.set_avail_idx(random() as u16);
        }
        worker.turn();
        assert_eq!(guest.ring.in_flight().count(), 0);
    }
}
