//! Popping, publishing, notifying.

use super::super::queue::{Left, Ring};
use super::driver::{BUFFERS, Guest, INDIRECT, NEXT, WRITE, raised};
use crate::fs::Source;

use super::super::message::GuestSource;

const NO_INTERRUPT: u16 = 1;

fn pop(ring: &Ring, room: usize) -> (Left, usize) {
    let mut out = Vec::new();
    let left = ring.pop(room, &mut Vec::new(), &mut out);
    (left, out.len())
}

#[test]
fn a_batch_is_one_notification() {
    for event_idx in [false, true] {
        let mut guest = Guest::new(256, event_idx);
        for n in 0..60 {
            guest.request(n, b"request", 32);
        }
        let mut worker = guest.worker(async |_, _| 16);
        worker.turn();
        assert_eq!(guest.used().len(), 60);
        assert_eq!(raised(&guest.call), 1, "event_idx {event_idx}");
    }
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
    assert_eq!(pop(&guest.ring, 2), (Left::Nothing, 1));
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
    assert_eq!(pop(&guest.ring, 8), (Left::Nothing, 1));
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
