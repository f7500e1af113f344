//! The requests of one vring, from pop to publish, on one thread.
//!
//! Each request is a future. It is polled at once: what the caches can answer is ready then and is published with its
//! batch. What waits keeps its slot here; a waker puts the slot's number on a list and writes an eventfd in the same
//! epoll loop that hears the guest's kicks. So hundreds of requests wait at the cost of one thread, and a wake-up's
//! completions share one used-ring update.
//!
//! With a thread pool the futures run there instead and publish from its threads.
//!
//! What is done goes to the guest in pieces while the rest of a batch is served, so that both work at the same time: a
//! piece is a few completions or what a moment brought. The guest is asked for kicks only when the ring is empty and
//! nothing came while it was watched for a moment (`polling`), so a busy queue needs few of them.
//!
//! Slots, their wakers and their chains are used again: a request that is ready at once allocates nothing here.
//!
//! Invariants
//! (1) A slot's future is dropped before its completion is published: nothing touches guest memory that the guest got
//!     back.
//! (2) At most [`IN_FLIGHT_MAX`] requests of a vring are in flight; the rest stay in the ring.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::executor::ThreadPool;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::event::Event;
use super::message::{Chain, GuestSink, GuestSource};
use super::polling::Polling;
use super::queue::{Accepted, BATCH, Completion, Left, Ring, WhenEmpty};
use crate::fs::Errno;

/// Requests of one vring that may wait at the same time; what a guest offers beyond stays in the ring.
pub(super) const IN_FLIGHT_MAX: usize = 1024;

/// Slots and chains kept for the next request; those of a burst beyond are freed.
const SPARE_MAX: usize = 64;

/// Batches handled before the worker looks whether it is to end.
const BATCHES_PER_TURN: usize = 16;

/// Completions that go to the guest together while more requests of their batch are to be served.
const PIECE: usize = 16;

/// How long a completion waits for others to go with. Of requests that take longer each goes alone.
const PIECE_TIME: Duration = Duration::from_micros(20);

/// Looks at a ring between two looks at the clock.
const LOOKS: u32 = 16;

/// Epoll data of the worker's own event. Kick descriptors have numbers above, each another.
const WAKE: u64 = 0;

/// Set in the number of a kick descriptor that is edge-triggered.
const EDGE: u64 = 1 << 63;

/// The slots whose futures can go on, and the event that says so.
pub(super) struct Wakes {
    list: Mutex<Vec<usize>>,
    /// Whether there is something on the list.
    listed: AtomicBool,
    /// The worker sleeps, or is about to, and has to be told of what comes onto the list.
    asleep: AtomicBool,
    event: Event,
    /// The worker leaves requests in the ring until one of those in flight ends.
    full: AtomicBool,
    exit: AtomicBool,
    /// The kick descriptor that is listened to, and its epoll data.
    kick: Mutex<Option<(u64, Arc<File>)>>,
}

impl Wakes {
    fn new() -> io::Result<Wakes> {
        Ok(Wakes {
            list: Mutex::default(),
            listed: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            event: Event::new()?,
            full: AtomicBool::new(false),
            exit: AtomicBool::new(false),
            kick: Mutex::default(),
        })
    }

    /// Makes the worker look at its ring.
    pub(super) fn poke(&self) {
        self.event.raise();
    }

    fn kick(&self) -> MutexGuard<'_, Option<(u64, Arc<File>)>> {
        self.kick.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, slot: usize) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        self.listed.store(true, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.event.raise();
        }
    }

    fn take(&self, into: &mut Vec<usize>) {
        if self.listed.swap(false, Ordering::SeqCst) {
            std::mem::swap(&mut *self.list.lock().unwrap_or_else(PoisonError::into_inner), into);
        }
    }

    fn has_some(&self) -> bool {
        self.listed.load(Ordering::SeqCst)
    }

    /// The worker means to sleep; `false` when something has come onto the list, and it must not.
    fn fall_asleep(&self) -> bool {
        // Say so first, look again then: what comes in between must not be missed.
        self.asleep.store(true, Ordering::SeqCst);
        let may = !self.has_some();
        if !may {
            self.wake_up();
        }
        may
    }

    fn wake_up(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }
}

struct SlotWaker {
    slot: usize,
    listed: AtomicBool,
    wakes: Arc<Wakes>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.listed.swap(true, Ordering::AcqRel) {
            self.wakes.push(self.slot);
        }
    }
}

/// Room for one request. The box outlives its futures, so that the next one costs no allocation.
struct Slot<F> {
    future: Option<Pin<Box<Option<F>>>>,
    request: Option<(u16, Arc<Chain>)>,
    waker: Waker,
    wake: Arc<SlotWaker>,
}

struct Slots<F> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    wakes: Arc<Wakes>,
    /// Chains of finished requests.
    spare: Vec<Arc<Chain>>,
}

/// What a poll came to.
enum Polled {
    Pending,
    Done(Completion),
    /// The request panicked: what to complete it with.
    Panicked(Completion),
}

impl<F: Future<Output = u32>> Slots<F> {
    fn new(wakes: Arc<Wakes>) -> Slots<F> {
        Slots { slots: Vec::new(), free: Vec::new(), wakes, spare: Vec::new() }
    }

    /// Requests that wait.
    fn busy(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Starts a request: its future made, put into a slot and polled once.
    fn start(&mut self, head: u16, chain: Arc<Chain>, make: impl FnOnce() -> F) -> Polled {
        let index = self.free.pop().unwrap_or_else(|| {
            let wake = Arc::new(SlotWaker {
                slot: self.slots.len(),
                listed: AtomicBool::new(false),
                wakes: self.wakes.clone(),
            });
            self.slots.push(Slot { future: None, request: None, waker: Waker::from(wake.clone()), wake });
            self.slots.len() - 1
        });
        let Some(slot) = self.slots.get_mut(index) else { return Polled::Done((head, chain.refuse(Errno::EIO))) };
        slot.request = Some((head, chain));
        let made = catch_unwind(AssertUnwindSafe(|| match &mut slot.future {
            Some(place) => place.as_mut().set(Some(make())),
            None => slot.future = Some(Box::pin(Some(make()))),
        }));
        match made {
            Ok(()) => self.poll(index).unwrap_or(Polled::Pending),
            Err(_) => self.end(index, Err(())).unwrap_or(Polled::Pending),
        }
    }

    /// Polls a slot. `None`: it is empty, the wake-up came late.
    fn poll(&mut self, index: usize) -> Option<Polled> {
        let slot = self.slots.get_mut(index)?;
        slot.wake.listed.store(false, Ordering::Release);
        let future = slot.future.as_mut()?.as_mut().as_pin_mut()?;
        let waker = &slot.waker;
        match catch_unwind(AssertUnwindSafe(|| future.poll(&mut Context::from_waker(waker)))) {
            Ok(Poll::Pending) => Some(Polled::Pending),
            Ok(Poll::Ready(len)) => self.end(index, Ok(len)),
            Err(_) => self.end(index, Err(())),
        }
    }

    /// Drops a slot's future (invariant 1) and frees the slot.
    fn end(&mut self, index: usize, result: Result<u32, ()>) -> Option<Polled> {
        let slot = self.slots.get_mut(index)?;
        let (head, mut chain) = slot.request.take()?;
        if let Some(place) = &mut slot.future {
            // A destructor of a request that panicked may panic again.
            if catch_unwind(AssertUnwindSafe(|| place.as_mut().set(None))).is_err() {
                slot.future = None;
            }
        }
        if self.free.len() >= SPARE_MAX {
            slot.future = None;
        }
        self.free.push(index);
        let polled = match result {
            Ok(len) => Polled::Done((head, clamp(len, &chain))),
            Err(()) => Polled::Panicked((head, chain.refuse(Errno::EIO))),
        };
        if self.spare.len() < SPARE_MAX
            && let Some(unused) = Arc::get_mut(&mut chain)
        {
            unused.clear();
            self.spare.push(chain);
        }
        Some(polled)
    }
}

/// A used length that is no more than the guest offered room for.
fn clamp(len: u32, chain: &Chain) -> u32 {
    len.min(u32::try_from(chain.writable_len()).unwrap_or(u32::MAX))
}

/// The thread of one vring.
pub(super) struct Worker<F, M> {
    ring: Arc<Ring>,
    epoll: Arc<Epoll>,
    wakes: Arc<Wakes>,
    slots: Slots<F>,
    make: M,
    pool: Option<ThreadPool>,
    batch: Vec<Accepted>,
    done: Vec<Completion>,
    woken: Vec<usize>,
    polling: Polling,
    /// Something was served since the ring was watched last.
    has_served: bool,
    /// When something was published, or a batch begun.
    published: Instant,
}

/// What a worker does after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Takes the next turn.
    GoOn,
    /// Sleeps until there is a kick or a wake-up.
    Sleep,
}

/// The outside of a worker: what the control messages need of it.
pub(super) struct Lane {
    epoll: Arc<Epoll>,
    wakes: Arc<Wakes>,
    thread: Option<std::thread::JoinHandle<()>>,
    kicks: u64,
}

impl<F, M> Worker<F, M>
where
    F: Future<Output = u32> + Send + 'static,
    M: Fn(GuestSource, GuestSink) -> F + Send + 'static,
{
    /// A worker for `ring`; `make` starts a request, on `pool` if there is one. For at most `poll` the ring is watched
    /// before the guest is asked for kicks.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub(super) fn new(ring: Arc<Ring>, pool: Option<ThreadPool>, poll: Duration, make: M) -> io::Result<Worker<F, M>> {
        let epoll = Arc::new(Epoll::new()?);
        let wakes = Arc::new(Wakes::new()?);
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, WAKE);
        epoll.ctl(ControlOperation::Add, wakes.event.as_raw_fd(), event)?;
        Ok(Worker {
            ring,
            epoll,
            slots: Slots::new(wakes.clone()),
            wakes,
            make,
            pool,
            batch: Vec::with_capacity(BATCH),
            done: Vec::with_capacity(BATCH),
            woken: Vec::new(),
            polling: Polling::new(poll),
            has_served: false,
            published: Instant::now(),
        })
    }

    /// Starts the worker's thread; returns once the thread has its own working directory and umask.
    ///
    /// # Errors
    /// When no thread can be made, or unshare(CLONE_FS) is refused.
    pub(super) fn spawn(mut self) -> io::Result<Lane> {
        let (epoll, wakes) = (self.epoll.clone(), self.wakes.clone());
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("vring_worker".to_owned()).spawn(move || {
            let unshared = super::unshare_fs();
            let go_on = unshared.is_ok();
            if ready.send(unshared).is_ok() && go_on {
                self.run();
            }
        })?;
        started.recv().map_err(io::Error::other)??;
        Ok(Lane { epoll, wakes, thread: Some(thread), kicks: 0 })
    }

    fn run(&mut self) {
        let mut then = Then::Sleep;
        loop {
            if then == Then::Sleep
                && self.wakes.fall_asleep()
                && let Err(error) = self.sleep()
            {
                log::error!("Virtqueue {}: epoll failed: {error}", self.ring.index());
                return;
            }
            if self.wakes.exit.load(Ordering::Acquire) {
                return;
            }
            then = catch_unwind(AssertUnwindSafe(|| self.turn())).unwrap_or_else(|_| {
                self.ring.fail();
                Then::Sleep
            });
        }
    }

    /// Waits for a kick, a wake-up or the end.
    fn sleep(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 4];
        self.polling.falls_asleep();
        let count = match self.epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        self.wakes.wake_up();
        self.polling.wakes_up();
        for event in events.iter().take(count).filter(|event| event.data() != WAKE) {
            self.take_kick(event.data(), event.event_set());
        }
        Ok(())
    }

    /// Consumes a kick, unless its descriptor was replaced meanwhile: the new one may not be readable, and block. One
    /// that cannot be read is not listened to any more, or it would be reported for ever. An eventfd is edge-triggered
    /// and needs no reading.
    fn take_kick(&self, number: u64, events: EventSet) {
        let kick = self.wakes.kick().clone();
        let Some((_, kick)) = kick.filter(|(current, _)| *current == number) else { return };
        if number & EDGE != 0 && !events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            return;
        }
        let mut count = [0; 8];
        match (&*kick).read(&mut count) {
            Ok(n) if n > 0 => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            failed => {
                log::error!("Virtqueue {}: the kick descriptor is unusable: {failed:?}", self.ring.index());
                _ = self.epoll.ctl(ControlOperation::Delete, kick.as_raw_fd(), EpollEvent::default());
            }
        }
    }

    /// Goes on with what was woken, takes what the ring has, publishes what is done.
    pub(super) fn turn(&mut self) -> Then {
        for _ in 0..BATCHES_PER_TURN {
            self.has_served |= self.poll_woken();
            let watch = self.polling.budget().filter(|_| self.has_served);
            let when_empty = if watch.is_some() { WhenEmpty::Leave } else { WhenEmpty::Ask };
            let room = IN_FLIGHT_MAX.saturating_sub(self.waiting()).min(BATCH);
            let left = self.ring.pop(room, when_empty, &mut self.slots.spare, &mut self.batch);
            match (left, watch) {
                (Left::More, _) => {}
                (Left::Nothing, None) => return Then::Sleep,
                (Left::Nothing, Some(time)) => {
                    self.watch(time);
                    // Once: the next pop that finds nothing asks for kicks.
                    self.has_served = false;
                    continue;
                }
            }
            self.has_served |= !self.batch.is_empty();
            self.start_batch();
            if room == 0 {
                // Say so first, look again then: an end in between must not be missed.
                self.wakes.full.store(true, Ordering::SeqCst);
                if self.waiting() >= IN_FLIGHT_MAX {
                    return Then::Sleep;
                }
                self.wakes.full.store(false, Ordering::SeqCst);
            }
        }
        Then::GoOn
    }

    /// Looks at the empty ring for at most `time`, or until there is something to do.
    fn watch(&mut self, time: Duration) {
        let Some(watch) = self.ring.watch() else { return };
        let began = Instant::now();
        let is_hit = loop {
            if (0..LOOKS).any(|_| {
                std::hint::spin_loop();
                watch.has_more()
            }) || self.wakes.has_some()
            {
                break true;
            }
            if began.elapsed() >= time {
                break false;
            }
        };
        if is_hit { self.polling.hit() } else { self.polling.missed() }
    }

    fn waiting(&self) -> usize {
        if self.pool.is_some() { self.ring.in_flight().count() } else { self.slots.busy() }
    }

    /// Polls every slot on the wake list and publishes what came of it; whether there was one.
    fn poll_woken(&mut self) -> bool {
        let mut woken = std::mem::take(&mut self.woken);
        self.wakes.take(&mut woken);
        let are_some = !woken.is_empty();
        if are_some {
            self.published = Instant::now();
        }
        let mut slots = woken.drain(..);
        while let Some(index) = slots.next() {
            if let Some(polled) = self.slots.poll(index) {
                self.settle(polled, slots.len());
            }
        }
        drop(slots);
        self.woken = woken;
        self.ring.publish(&mut self.done);
        are_some
    }

    /// Serves the batch and publishes what is ready of it.
    fn start_batch(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        // Of one that comes alone nobody needs the time but who measures it.
        let mut arrived = None;
        if batch.len() > 1 {
            self.published = Instant::now();
            arrived = Some(self.published);
        }
        let mut requests = batch.drain(..);
        while let Some(Accepted { head, chain, fault }) = requests.next() {
            let polled = match fault {
                Some(fault) => Polled::Done((head, chain.refuse_fault(fault))),
                None => self.start(head, chain, arrived),
            };
            self.settle(polled, requests.len());
        }
        drop(requests);
        self.batch = batch;
        self.ring.publish(&mut self.done);
    }

    fn start(&mut self, head: u16, chain: Arc<Chain>, arrived: Option<Instant>) -> Polled {
        let (source, sink) = (GuestSource::new(chain.clone()).popped(arrived), GuestSink::new(chain.clone()));
        let Some(pool) = &self.pool else { return self.slots.start(head, chain, || (self.make)(source, sink)) };
        match catch_unwind(AssertUnwindSafe(|| (self.make)(source, sink))) {
            Ok(future) => {
                pool.spawn_ok(run_on_pool(self.ring.clone(), self.wakes.clone(), head, chain, future));
                Polled::Pending
            }
            Err(_) => Polled::Done((head, chain.refuse(Errno::EIO))),
        }
    }

    /// Notes what a poll came to. With `more` requests to follow, publishes when enough is done or time has passed.
    fn settle(&mut self, polled: Polled, more: usize) {
        match polled {
            Polled::Pending => {}
            Polled::Done(completion) => self.done.push(completion),
            Polled::Panicked(completion) => {
                self.ring.log_panic();
                self.done.push(completion);
            }
        }
        if more == 0 || self.done.is_empty() {
            return;
        }
        let is_piece = self.done.len() >= PIECE && self.ring.has_event_idx();
        if is_piece || self.published.elapsed() >= PIECE_TIME {
            self.ring.publish(&mut self.done);
            self.published = Instant::now();
        }
    }
}

/// Whether `file` is no pipe or socket, which would fill up if nobody read it: what is nothing else is an eventfd, whose
/// every write is an edge and which counts to 2^64.
fn is_eventfd(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.mode() & libc::S_IFMT == 0)
}

/// Runs one request to its end on a pool thread and publishes it from there.
async fn run_on_pool<F: Future<Output = u32>>(
    ring: Arc<Ring>,
    wakes: Arc<Wakes>,
    head: u16,
    chain: Arc<Chain>,
    future: F,
) {
    let len = match AssertUnwindSafe(future).catch_unwind().await {
        Ok(len) => clamp(len, &chain),
        Err(_) => {
            ring.log_panic();
            chain.refuse(Errno::EIO)
        }
    };
    drop(chain);
    ring.publish(&mut vec![(head, len)]);
    if wakes.full.swap(false, Ordering::SeqCst) {
        wakes.poke();
    }
}

impl Lane {
    /// Listens to `kick`, in place of what was listened to before, and has the worker look at the ring once.
    ///
    /// # Errors
    /// When epoll refuses the descriptor.
    pub(super) fn listen(&mut self, kick: Arc<File>) -> io::Result<()> {
        let listening = self.wakes.kick().as_ref().is_some_and(|(_, current)| Arc::ptr_eq(current, &kick));
        if !listening {
            self.unlisten();
            self.kicks += 1;
            let (number, events) = if is_eventfd(&kick) {
                (self.kicks | EDGE, EventSet::IN | EventSet::EDGE_TRIGGERED)
            } else {
                (self.kicks, EventSet::IN)
            };
            *self.wakes.kick() = Some((number, Arc::clone(&kick)));
            self.epoll.ctl(ControlOperation::Add, kick.as_raw_fd(), EpollEvent::new(events, number))?;
        }
        self.wakes.poke();
        Ok(())
    }

    /// Listens to no kick any more.
    pub(super) fn unlisten(&mut self) {
        let kick = self.wakes.kick().take();
        if let Some((_, kick)) = kick {
            // The worker may have given up on the descriptor before.
            _ = self.epoll.ctl(ControlOperation::Delete, kick.as_raw_fd(), EpollEvent::default());
        }
    }

    /// Ends the worker's thread. With `wait`, until it is gone.
    pub(super) fn end(&mut self, wait: bool) {
        self.unlisten();
        self.wakes.exit.store(true, Ordering::Release);
        self.wakes.poke();
        if let Some(thread) = self.thread.take()
            && wait
            && thread.join().is_err()
        {
            log::error!("A queue worker panicked");
        }
    }
}
