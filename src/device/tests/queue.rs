//! Popping, publishing, notifying.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::executor::Worker;
use super::super::message::GuestSource;
use super::super::queue::{Left, Ring, WhenEmpty};
use super::driver::{BUFFERS, Guest, INDIRECT, NEXT, WRITE, avail_event, raised, used_index};
use crate::fs::Source;

const NO_INTERRUPT: u16 = 1;

fn pop(ring: &Ring, room: usize) -> (Left, usize) {
    let mut out = Vec::new();
    let left = ring.pop(room, WhenEmpty::Ask, &mut Vec::new(), &mut out);
    (left, out.len())
}

#[test]
fn a_batch_is_one_notification() {
    let mut guest = Guest::new(256, true);
    for n in 0..60 {
        guest.request(n, b"request", 32);
    }
    let mut worker = guest.worker(async |_, _| 16);
    worker.turn();
    assert_eq!(guest.used().len(), 60);
    assert_eq!(raised(&guest.call), 1);
}

/// How many completions the guest sees as each request of a batch is served.
fn seen_while_served(event_idx: bool, count: u16, time: Duration) -> Vec<u16> {
    let mut guest = Guest::new(256, event_idx);
    for n in 0..count {
        guest.request(n, b"request", 32);
    }
    let (memory, seen) = (guest.memory(), Arc::new(Mutex::new(Vec::new())));
    let notes = seen.clone();
    let mut worker = guest.worker(move |_, _| {
        notes.lock().unwrap().push(used_index(&memory));
        let began = Instant::now();
        while began.elapsed() < time {
            std::hint::spin_loop();
        }
        async { 16 }
    });
    worker.turn();
    assert_eq!(guest.used().len(), usize::from(count));
    seen.lock().unwrap().clone()
}

#[test]
fn completions_reach_the_guest_in_pieces_while_the_rest_is_served() {
    let seen = seen_while_served(true, 60, Duration::ZERO);
    assert!(seen.iter().zip(0..).all(|(&seen, n)| seen <= n && n - seen <= 16), "{seen:?}");
}

#[test]
fn slow_requests_reach_the_guest_one_by_one() {
    for event_idx in [false, true] {
        let seen = seen_while_served(event_idx, 20, Duration::from_millis(1));
        assert_eq!(seen, (0..20).collect::<Vec<_>>(), "event_idx {event_idx}");
    }
}

#[test]
fn a_busy_queue_asks_for_no_kick() {
    let mut guest = Guest::new(16, true);
    guest.request(0, b"request", 32);
    let (asked, memory) = (Arc::new(Mutex::new(Vec::new())), guest.memory());
    let notes = asked.clone();
    let mut worker = guest.worker(move |_, _| {
        notes.lock().unwrap().push(avail_event(&memory, 16));
        async { 16 }
    });
    worker.turn();
    assert_eq!(guest.avail_event(), 1);
    guest.request(1, b"request", 32);
    guest.request(2, b"request", 32);
    worker.turn();
    assert_eq!(*asked.lock().unwrap(), [0, 1, 1], "as before while it is worked on");
    assert_eq!(guest.avail_event(), 3);
}

#[test]
fn a_queue_that_was_just_busy_is_watched_for_its_next_request() {
    let mut guest = Guest::new(16, true);
    let worker = Worker::new(guest.ring.clone(), None, Duration::from_secs(5), |_, _| async { 16 }).unwrap();
    guest.request(0, b"request", 32);
    // The first sleep ends at once, which is what makes the worker watch.
    let mut lane = worker.spawn().unwrap();
    lane.listen(guest.ring.kick().unwrap()).unwrap();
    guest.wait_used(1);
    for n in 1..4 {
        guest.request(n, b"request", 32);
        guest.wait_used(1);
    }
    assert_eq!(guest.avail_event(), 0, "nobody was asked to kick");
    guest.ring.set_started(false);
    lane.end(false);
}

#[test]
fn without_event_idx_the_guest_can_switch_interrupts_off() {
    let mut guest = Guest::new(16, false);
    let mut worker = guest.worker(async |_, _| 0);
    guest.set_avail_flags(NO_INTERRUPT);
    guest.request(0, b"request", 32);
    worker.turn();
    assert_eq!(guest.used(), [(0, 0)]);
    assert_eq!(raised(&guest.call), 0);
    guest.set_avail_flags(0);
    guest.request(1, b"request", 32);
    worker.turn();
    assert_eq!(raised(&guest.call), 1);
}

#[test]
fn event_idx_says_when_to_interrupt_and_when_to_kick() {
    let mut guest = Guest::new(16, true);
    let mut worker = guest.worker(async |_, _| 0);
    guest.set_used_event(2);
    for n in 0..2 {
        guest.request(n, b"request", 32);
        worker.turn();
        assert_eq!(raised(&guest.call), 0, "request {n}");
    }
    guest.request(2, b"request", 32);
    worker.turn();
    assert_eq!(raised(&guest.call), 1);
    assert_eq!(guest.avail_event(), 3, "the guest is to kick at its next request");
}

#[test]
fn kicks_are_off_while_requests_are_left_and_on_when_the_ring_is_empty() {
    let mut guest = Guest::new(16, false);
    for n in 0..3 {
        guest.request(n, b"request", 32);
    }
    assert_eq!(pop(&guest.ring, 2), (Left::More, 2));
    assert_eq!(guest.used_flags(), 1);
    assert_eq!(pop(&guest.ring, 2), (Left::More, 1));
    assert_eq!(guest.used_flags(), 1, "still being worked on");
    assert_eq!(pop(&guest.ring, 2), (Left::Nothing, 0));
    assert_eq!(guest.used_flags(), 0);
}

#[test]
fn a_ring_that_is_stopped_or_disabled_gives_nothing() {
    use vhost_user_backend::VringT;
    let mut guest = Guest::new(16, true);
    guest.request(0, b"request", 32);
    guest.ring.set_started(false);
    assert_eq!(pop(&guest.ring, 8), (Left::Nothing, 0));
    guest.ring.set_started(true);
    guest.ring.vring().set_enabled(false);
    assert_eq!(pop(&guest.ring, 8), (Left::Nothing, 0));
    guest.ring.vring().set_enabled(true);
    assert_eq!(pop(&guest.ring, 8), (Left::More, 1));
}

#[test]
fn indirect_descriptors_are_followed() {
    let mut guest = Guest::new(16, true);
    let table = BUFFERS;
    guest.put(BUFFERS + 0x1000, b"indirect");
    guest.describe_at(table, 0, (BUFFERS + 0x1000, 3, NEXT), 2);
    guest.describe_at(table, 2, (BUFFERS + 0x1003, 5, NEXT), 1);
    guest.describe_at(table, 1, (BUFFERS + 0x2000, 64, WRITE), 0);
    guest.describe(5, (table, 48, INDIRECT), 0);
    guest.offer(5);
    let mut worker = guest.worker(async |mut request: GuestSource, _| {
        let mut data = [0; 8];
        request.take(&mut data).unwrap();
        assert_eq!(&data, b"indirect");
        33
    });
    worker.turn();
    assert_eq!(guest.used(), [(5, 33)]);
}

#[test]
fn the_ring_wraps_around_for_ever() {
    let mut guest = Guest::new(4, true);
    let mut worker = guest.worker(async |_, _| 7);
    for round in 0..70_000_u32 {
        guest.offer(0);
        if round == 0 {
            guest.chain(0, &[(BUFFERS, 8, 0), (BUFFERS + 64, 64, WRITE)]);
        }
        worker.turn();
        assert_eq!(guest.used(), [(0, 7)], "round {round}");
    }
}
