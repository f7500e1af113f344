//! Hits, misses, many of them, panics, draining, the thread pool.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::BoxFuture;

use super::super::executor::{IN_FLIGHT_MAX, Worker};
use super::super::message::{GuestSink, GuestSource};
use super::driver::{Guest, raised};
use crate::fs::{Sink, Source};

/// Requests that wait until the test lets them go.
#[derive(Clone, Default)]
struct Gate(Arc<Mutex<Vec<oneshot::Sender<()>>>>);

impl Gate {
    fn waiting(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn open(&self) {
        for go in self.0.lock().unwrap().drain(..) {
            go.send(()).unwrap();
        }
    }

    /// Echoes the request when the gate opens.
    fn echo(&self, mut request: GuestSource, mut reply: GuestSink) -> BoxFuture<'static, u32> {
        let (go, wait) = oneshot::channel();
        self.0.lock().unwrap().push(go);
        async move {
            wait.await.unwrap();
            let mut data = vec![0; request.remaining()];
            request.take(&mut data).unwrap();
            reply.put(&data).unwrap();
            u32::try_from(data.len()).unwrap()
        }
        .boxed()
    }
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_hit_is_in_the_used_ring_before_the_turn_ends() {
    let mut guest = Guest::new(16, true);
    let reply = guest.request(0, b"hello", 64);
    let mut worker = guest.worker(async |mut request: GuestSource, mut reply: GuestSink| {
        let mut data = [0; 5];
        request.take(&mut data).unwrap();
        reply.put(&data).unwrap();
        5
    });
    worker.turn();
    assert_eq!(guest.used(), [(0, 5)]);
    assert_eq!(guest.get(reply, 5), b"hello");
    assert_eq!(raised(&guest.call), 1);
}

#[test]
fn a_miss_is_published_when_it_is_woken() {
    let mut guest = Guest::new(16, true);
    let gate = Gate::default();
    let at_gate = gate.clone();
    let mut worker = guest.worker(move |request, reply| at_gate.echo(request, reply));
    let reply = guest.request(0, b"later", 64);
    worker.turn();
    assert_eq!(guest.used(), []);
    assert_eq!(guest.ring.in_flight().count(), 1);
    worker.turn();
    assert_eq!(guest.used(), []);
    gate.open();
    worker.turn();
    assert_eq!(guest.used(), [(0, 5)]);
    assert_eq!(guest.get(reply, 5), b"later");
    assert_eq!(guest.ring.in_flight().count(), 0);
}

#[test]
fn a_hit_overtakes_a_miss() {
    let mut guest = Guest::new(16, true);
    let gate = Gate::default();
    let at_gate = gate.clone();
    let mut worker =
        guest.worker(
            move |request: GuestSource, reply| {
                if request.remaining() == 4 { at_gate.echo(request, reply) } else { async { 1 }.boxed() }
            },
        );
    guest.request(0, b"miss", 64);
    guest.request(1, b"hit", 64);
    worker.turn();
    assert_eq!(guest.used(), [(2, 1)]);
    gate.open();
    worker.turn();
    assert_eq!(guest.used(), [(0, 4)]);
}

#[test]
fn five_hundred_misses_wait_on_one_thread() {
    let mut guest = Guest::new(1024, true);
    let gate = Gate::default();
    let at_gate = gate.clone();
    let mut lane = guest.worker(move |request, reply| at_gate.echo(request, reply)).spawn().unwrap();
    lane.listen(guest.ring.kick().unwrap()).unwrap();
    for n in 0..500 {
        guest.request(n, b"miss", 64);
    }
    (&guest.kick).write_all(&1_u64.to_ne_bytes()).unwrap();
    eventually("all wait", || gate.waiting() == 500);
    assert_eq!(guest.ring.in_flight().count(), 500);
    assert_eq!(guest.used(), []);
    gate.open();
    assert_eq!(guest.wait_used(500).len(), 500);
    guest.ring.in_flight().drain(Duration::from_secs(20), |left| panic!("{left} left"));
    lane.end(true);
}

#[test]
fn wake_ups_share_a_notification() {
    let mut guest = Guest::new(256, true);
    let gate = Gate::default();
    let at_gate = gate.clone();
    let mut worker = guest.worker(move |request, reply| at_gate.echo(request, reply));
    for n in 0..100 {
        guest.request(n, b"miss", 64);
    }
    worker.turn();
    gate.open();
    worker.turn();
    assert_eq!(guest.used().len(), 100);
    assert_eq!(raised(&guest.call), 1);
}

#[test]
fn what_exceeds_the_limit_stays_in_the_ring_until_there_is_room() {
    let mut guest = Guest::new(4096, true);
    let gate = Gate::default();
    let at_gate = gate.clone();
    let mut worker = guest.worker(move |request, reply| at_gate.echo(request, reply));
    guest.chain(0, &[(super::driver::BUFFERS, 4, 0), (super::driver::BUFFERS + 64, 64, super::driver::WRITE)]);
    for _ in 0..IN_FLIGHT_MAX + 100 {
        guest.offer(0);
    }
    for _ in 0..4 {
        worker.turn();
    }
    assert_eq!(gate.waiting(), IN_FLIGHT_MAX);
    gate.open();
    for _ in 0..4 {
        worker.turn();
    }
    assert_eq!(guest.used().len(), IN_FLIGHT_MAX);
    assert_eq!(gate.waiting(), 100);
    gate.open();
    worker.turn();
    assert_eq!(guest.used().len(), 100);
}

#[test]
fn a_panic_is_an_io_error_and_nothing_else() {
    for late in [false, true] {
        let mut guest = Guest::new(16, true);
        let (go, wait) = oneshot::channel::<()>();
        let wait = Mutex::new(Some(wait));
        let mut worker = guest.worker(move |request: GuestSource, _reply| {
            let wait = (request.remaining() == 16).then(|| wait.lock().unwrap().take().unwrap());
            async move {
                let Some(wait) = wait else { return 3 };
                if late {
                    wait.await.unwrap();
                }
                panic!("as the test wants it");
            }
        });
        let reply = guest.request(0, &[40, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0], 80);
        worker.turn();
        _ = go.send(());
        worker.turn();
        assert_eq!(guest.used(), [(0, 16)], "late {late}");
        let header = guest.get(reply, 16);
        assert_eq!(header[..4], 16_u32.to_le_bytes());
        assert_eq!(header[4..8], (-libc::EIO).to_le_bytes());
        assert_eq!(header[8..], 9_u64.to_le_bytes());
        guest.request(1, b"next", 80);
        worker.turn();
        assert_eq!(guest.used(), [(2, 3)], "the worker lives on");
    }
}

#[test]
fn a_panic_without_room_for_a_reply_is_length_0() {
    let mut guest = Guest::new(16, true);
    let mut worker = guest.worker(|_, _| -> BoxFuture<'static, u32> { panic!("as the test wants it") });
    guest.request(0, &[0; 48], 0);
    worker.turn();
    assert_eq!(guest.used(), [(0, 0)]);
}

#[test]
fn a_length_beyond_the_buffer_is_cut() {
    let mut guest = Guest::new(16, true);
    let mut worker = guest.worker(async |_, _| u32::MAX);
    guest.request(0, b"request", 20);
    worker.turn();
    assert_eq!(guest.used(), [(0, 20)]);
}

#[test]
fn memory_is_let_go_when_its_request_ends() {
    let mut guest = Guest::new(16, true);
    let gate = Gate::default();
    let at_gate = gate.clone();
    let mut worker = guest.worker(move |request, reply| at_gate.echo(request, reply));
    let before = Arc::strong_count(&guest.memory());
    for n in 0..3 {
        guest.request(n, b"miss", 64);
    }
    worker.turn();
    assert_eq!(Arc::strong_count(&guest.memory()), before + 3);
    gate.open();
    worker.turn();
    assert_eq!(Arc::strong_count(&guest.memory()), before, "a spare chain holds no memory map");
}

#[test]
fn draining_waits_for_what_was_accepted() {
    let mut guest = Guest::new(16, true);
    let gate = Gate::default();
    let at_gate = gate.clone();
    let mut lane = guest.worker(move |request, reply| at_gate.echo(request, reply)).spawn().unwrap();
    lane.listen(guest.ring.kick().unwrap()).unwrap();
    for n in 0..4 {
        guest.request(n, b"miss", 64);
    }
    (&guest.kick).write_all(&1_u64.to_ne_bytes()).unwrap();
    eventually("all wait", || gate.waiting() == 4);
    guest.ring.set_started(false);
    guest.request(4, b"late", 64);
    assert_eq!(guest.ring.in_flight().drain_until(Instant::now() + Duration::from_millis(20)), 4);
    let ring = guest.ring.clone();
    let drained = std::thread::spawn(move || ring.in_flight().drain(Duration::from_secs(20), |_| ()));
    gate.open();
    drained.join().unwrap();
    assert_eq!(guest.used().len(), 4, "published before the drain returned");
    assert_eq!(gate.waiting(), 0, "nothing is taken from a stopped ring");
    lane.end(true);
    assert_eq!(guest.used(), []);
}

#[test]
fn kicks_are_heard_over_and_over() {
    for event_idx in [false, true] {
        let mut guest = Guest::new(16, event_idx);
        let mut lane = guest.worker(async |_, _| 1).spawn().unwrap();
        lane.listen(guest.ring.kick().unwrap()).unwrap();
        for n in 0..200 {
            guest.request(n % 8, b"request", 16);
            (&guest.kick).write_all(&1_u64.to_ne_bytes()).unwrap();
            guest.wait_used(1);
        }
        lane.end(true);
    }
}

#[test]
fn an_unreadable_kick_descriptor_does_not_spin_or_kill_the_worker() {
    let mut guest = Guest::new(16, true);
    let mut lane = guest.worker(async |_, _| 1).spawn().unwrap();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let kick = std::fs::File::from(std::os::fd::OwnedFd::from(theirs));
    guest.ring.set_kick(Some(kick));
    lane.listen(guest.ring.kick().unwrap()).unwrap();
    drop(ours);
    guest.ring.set_kick(Some(guest.kick.try_clone().unwrap()));
    lane.listen(guest.ring.kick().unwrap()).unwrap();
    guest.request(0, b"request", 16);
    (&guest.kick).write_all(&1_u64.to_ne_bytes()).unwrap();
    guest.wait_used(1);
    lane.end(true);
}

#[test]
fn a_pool_serves_requests_side_by_side() {
    let mut guest = Guest::new(2048, true);
    let pool = super::super::new_pool(4).unwrap();
    let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counter, peak) = (inside.clone(), most.clone());
    let worker = Worker::new(guest.ring.clone(), Some(pool), Duration::ZERO, move |request: GuestSource, _reply| {
        let (inside, most) = (counter.clone(), peak.clone());
        async move {
            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            inside.fetch_sub(1, Ordering::SeqCst);
            assert!(request.remaining() != 41, "as the test wants it");
            2
        }
    });
    let mut lane = worker.unwrap().spawn().unwrap();
    lane.listen(guest.ring.kick().unwrap()).unwrap();
    for n in 0..100 {
        guest.request(n, &[1; 41][..if n == 50 { 41 } else { 40 }], 16);
        (&guest.kick).write_all(&1_u64.to_ne_bytes()).unwrap();
    }
    let used = guest.wait_used(100);
    assert_eq!(used.iter().filter(|(_, len)| *len == 2).count(), 99);
    assert!(used.contains(&(100, 16)), "the one that panicked is answered");
    assert!(most.load(Ordering::SeqCst) > 1, "more than one at a time");
    lane.end(true);
}

#[test]
fn a_pool_that_is_full_takes_the_rest_later() {
    let mut guest = Guest::new(4096, true);
    let pool = super::super::new_pool(2).unwrap();
    let worker =
        Worker::new(guest.ring.clone(), Some(pool), Duration::ZERO, |_: GuestSource, _: GuestSink| async { 1 });
    let mut lane = worker.unwrap().spawn().unwrap();
    guest.chain(0, &[(super::driver::BUFFERS, 4, 0), (super::driver::BUFFERS + 64, 64, super::driver::WRITE)]);
    for _ in 0..4096 {
        guest.offer(0);
    }
    lane.listen(guest.ring.kick().unwrap()).unwrap();
    assert_eq!(guest.wait_used(4096).len(), 4096);
    lane.end(true);
}
