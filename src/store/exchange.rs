//! Requests in flight, and the futures that wait for them: the machinery of `store::client`.

use std::any::Any;
use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::frame;
use super::path::check_name;
use super::protocol::*;

/// Most requests of one mount in flight; more wait. Each mount has as many, so that a store which does not answer fills
/// nobody's room but its own.
pub const IN_FLIGHT_MAX: usize = 1024;

/// How long after the broker's own deadline a silent broker is given up.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// The longest that a broker can claim to need.
const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(86_400);

/// What a request keeps alive until its reply; see the head of `store::client`.
pub type Keep = Box<dyn Any + Send>;

/// What the threads and futures of one connection share.
pub(super) struct Shared {
    /// For writing whole frames; the reader has its own descriptor.
    sock: Mutex<File>,
    state: Mutex<State>,
    /// Tells the watcher that the first request is on its way, or that all is over.
    watch: Condvar,
    /// In milliseconds.
    request_timeout: AtomicU64,
}

#[derive(Default)]
struct State {
    next_id: u64,
    requests: HashMap<u64, Request>,
    lanes: HashMap<MountId, Lane>,
    /// Why no reply will ever come.
    closed: Option<StoreError>,
}

/// What one mount has under way.
#[derive(Default)]
struct Lane {
    /// Requests without the broker's reply, whether or not anybody waits for it.
    unanswered: usize,
    /// Futures that wait for room.
    queue: Vec<Waker>,
}

impl State {
    fn unanswered(&self) -> usize {
        self.lanes.values().map(|lane| lane.unanswered).sum()
    }

    /// A request of `mount` has its reply, or never was one. Who waited for room can be woken.
    fn answered(&mut self, mount: MountId) -> Vec<Waker> {
        let Some(lane) = self.lanes.get_mut(&mount) else { return Vec::new() };
        lane.unanswered = lane.unanswered.saturating_sub(1);
        std::mem::take(&mut lane.queue)
    }
}

struct Request {
    mount: MountId,
    expects: Expects,
    /// `None`: only the reply ends it (uploads may take their time; the broker bounds their steps).
    deadline: Option<Instant>,
    slot: Slot,
    /// The broker has replied, or is gone.
    replied: bool,
    /// Only ever dropped, when the reply is there; `None` from then on.
    _keep: Option<Keep>,
}

enum Slot {
    Waiting(Option<Waker>),
    Done(Result<Reply, StoreError>),
    /// The future is gone, or has its (late) answer.
    Abandoned,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Expects {
    Unit,
    Meta,
    Looked,
    Entries,
    Capabilities,
}

impl Expects {
    fn of(op: &Op) -> Expects {
        match op {
            Op::Probe => Expects::Capabilities,
            Op::List { .. } => Expects::Entries,
            Op::Look { .. } => Expects::Looked,
            Op::Stat { .. }
            | Op::Tell { .. }
            | Op::Compose { .. }
            | Op::FlowEnd { .. }
            | Op::Copy { .. }
            | Op::RenameFile { .. } => Expects::Meta,
            Op::ListEnd { .. }
            | Op::Read { .. }
            | Op::FlowBegin { .. }
            | Op::FlowSend { .. }
            | Op::FlowAbort { .. }
            | Op::Delete { .. }
            | Op::DeleteMany { .. }
            | Op::CreateDir { .. }
            | Op::RemoveDir { .. }
            | Op::RenameDir { .. }
            | Op::Spool { .. } => Expects::Unit,
        }
    }

    /// The reply, if it is one that the request can have.
    fn check(self, result: Result<Reply, StoreError>) -> Result<Reply, StoreError> {
        let reply = result?;
        let sound = match (self, &reply) {
            (Expects::Unit, Reply::Unit) | (Expects::Capabilities, Reply::Capabilities(_)) => true,
            (Expects::Meta, Reply::Meta(meta)) => sound(meta),
            (Expects::Entries, Reply::Entries { entries, after, .. }) => {
                let name = |after: &String| check_name(after.strip_suffix('/').unwrap_or(after).as_bytes()).is_ok();
                are_sound(entries) && after.as_ref().is_none_or(name)
            }
            (Expects::Looked, Reply::Looked { meta, below }) => {
                sound(meta) && below.as_ref().is_none_or(|below| meta.kind == Kind::Dir && are_sound(below))
            }
            _ => false,
        };
        if sound {
            Ok(reply)
        } else {
            Err(error(StoreErrorKind::Protocol, "the broker's reply is not one to the request"))
        }
    }
}

fn are_sound(entries: &[ListEntry]) -> bool {
    entries.len() <= LIST_PAGE_MAX && entries.iter().all(|e| sound(&e.meta) && check_name(e.name.as_bytes()).is_ok())
}

fn sound(meta: &Meta) -> bool {
    i64::try_from(meta.size).is_ok()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn error(kind: StoreErrorKind, text: impl Into<String>) -> StoreError {
    StoreError { kind, text: text.into() }
}

/// Takes a lock whose holder may have panicked; every critical section here leaves the state whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn new(sock: File, request_timeout: Duration) -> Shared {
        Shared {
            sock: Mutex::new(sock),
            state: Mutex::new(State { next_id: 1, ..State::default() }),
            watch: Condvar::new(),
            request_timeout: AtomicU64::new(millis(request_timeout)),
        }
    }

    /// The broker's own deadline is another from now on.
    pub fn set_request_timeout(&self, request_timeout: Duration) {
        self.request_timeout.store(millis(request_timeout.min(REQUEST_TIMEOUT_MAX)), Ordering::Relaxed);
    }

    /// How many requests have no reply yet.
    pub fn in_flight(&self) -> usize {
        lock(&self.state).unanswered()
    }

    /// Ends the connection, for which the reader waits.
    pub fn shut_down(&self) {
        let sock = lock(&self.sock);
        // SAFETY: plain shutdown(2) on an open descriptor.
        unsafe { libc::shutdown(sock.as_raw_fd(), libc::SHUT_RDWR) };
    }

    /// Sends a message, whole.
    pub fn send(&self, message: &ToBroker) -> Result<(), StoreError> {
        let frame = frame::encode(message).map_err(|e| error(StoreErrorKind::Protocol, e.to_string()))?;
        // One write per frame where the socket takes it, so frames of several threads never mix.
        lock(&self.sock)
            .write_all(&frame)
            .map_err(|e| error(StoreErrorKind::Unavailable, format!("the broker cannot be reached: {e}")))
    }

    /// Ends everything that is in flight, and whatever comes later, with `why`.
    pub fn close(&self, why: StoreError) {
        let mut dropped = Vec::new();
        let mut wake = Vec::new();
        let mut state = lock(&self.state);
        let why = state.closed.get_or_insert(why).clone();
        let waiting = state.lanes.drain().flat_map(|(_, lane)| lane.queue).collect::<Vec<_>>();
        state.requests.retain(|_, request| {
            dropped.push(request._keep.take());
            request.replied = true;
            match std::mem::replace(&mut request.slot, Slot::Done(Err(why.clone()))) {
                Slot::Waiting(waker) => {
                    wake.extend(waker);
                    true
                }
                Slot::Done(result) => {
                    request.slot = Slot::Done(result);
                    true
                }
                Slot::Abandoned => false,
            }
        });
        wake.extend(waiting);
        drop(state);
        self.watch.notify_all();
        // Outside the lock: both run foreign code.
        drop(dropped);
        wake.into_iter().for_each(Waker::wake);
    }

    /// Reads replies until the end of the connection; the reader thread's whole life.
    pub fn read(&self, mut from: File, flush: mpsc::Sender<Duration>, changes: mpsc::Sender<Change>) {
        let mut body = Vec::new();
        let why = loop {
            match frame::read(&mut from, &mut body) {
                Ok(Some(ToDevice::Done { id, result })) => self.done(id, result),
                Ok(Some(ToDevice::RequestTimeout { ms })) => self.set_request_timeout(Duration::from_millis(ms)),
                Ok(Some(ToDevice::Flush { deadline_ms })) => {
                    // The flush thread ends only with this sender.
                    let _ = flush.send(Duration::from_millis(deadline_ms.into()));
                }
                Ok(Some(ToDevice::Change(change))) => {
                    // As with that one.
                    let _ = changes.send(change);
                }
                Ok(None) => break error(StoreErrorKind::Unavailable, "the broker is gone"),
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    log::error!("the broker broke the protocol, its connection is given up: {e}");
                    break error(StoreErrorKind::Protocol, format!("the broker broke the protocol: {e}"));
                }
                Err(e) => break error(StoreErrorKind::Unavailable, format!("the broker is gone: {e}")),
            }
        };
        self.close(why);
    }

    fn done(&self, id: u64, result: Result<Reply, StoreError>) {
        let mut state = lock(&self.state);
        let Some(request) = state.requests.get_mut(&id).filter(|r| !r.replied) else {
            drop(state);
            log::error!("the broker replied to a request that there is not, number {id}");
            return;
        };
        request.replied = true;
        let mount = request.mount;
        let keep = request._keep.take();
        let result = request.expects.check(result);
        let mut wake = match std::mem::replace(&mut request.slot, Slot::Abandoned) {
            Slot::Waiting(waker) => {
                request.slot = Slot::Done(result);
                waker
            }
            // The watcher answered before; that stands.
            Slot::Done(first) => {
                request.slot = Slot::Done(first);
                None
            }
            Slot::Abandoned => {
                state.requests.remove(&id);
                None
            }
        };
        let queue = state.answered(mount);
        drop(state);
        drop(keep);
        if let Some(waker) = wake.take() {
            waker.wake();
        }
        queue.into_iter().for_each(Waker::wake);
    }

    /// Answers for a broker that is there but silent, so that nothing waits for ever. The request itself, and what it
    /// keeps, stays until the broker replies or is gone.
    pub fn watch(&self) {
        let mut state = lock(&self.state);
        while state.closed.is_none() {
            let now = Instant::now();
            let mut next = None::<Instant>;
            let mut wake = Vec::new();
            for request in state.requests.values_mut() {
                let (Some(deadline), Slot::Waiting(waker)) = (request.deadline, &mut request.slot) else { continue };
                if deadline <= now {
                    wake.extend(waker.take());
                    let text = "the broker has not replied in time";
                    request.slot = Slot::Done(Err(error(StoreErrorKind::Unavailable, text)));
                } else {
                    next = Some(next.map_or(deadline, |n| n.min(deadline)));
                }
            }
            if !wake.is_empty() {
                drop(state);
                wake.into_iter().for_each(Waker::wake);
                state = lock(&self.state);
                continue;
            }
            state = match next {
                // A little later than the earliest, so that a burst is handled at once.
                Some(at) => {
                    let pause = at.saturating_duration_since(now) + Duration::from_millis(100);
                    self.watch.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.watch.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.request_timeout.load(Ordering::Relaxed))
    }

    fn deadline(&self, op: &Op) -> Option<Instant> {
        match op {
            Op::Compose { .. }
            | Op::FlowBegin { .. }
            | Op::FlowSend { .. }
            | Op::FlowEnd { .. }
            | Op::FlowAbort { .. }
            | Op::Copy { .. }
            | Op::RenameFile { .. }
            | Op::RenameDir { .. }
            | Op::Spool { .. } => None,
            _ => Some(Instant::now() + self.request_timeout() * 2 + GRACE),
        }
    }
}

/// One request, from waiting for room to its reply.
pub(super) struct Call<'a> {
    shared: &'a Shared,
    stage: Stage,
}

enum Stage {
    Queued { mount: MountId, op: Op, keep: Keep },
    Sent { id: u64 },
    Over,
}

impl<'a> Call<'a> {
    pub fn new(shared: &'a Shared, mount: MountId, op: Op, keep: Keep) -> Call<'a> {
        Call { shared, stage: Stage::Queued { mount, op, keep } }
    }

    /// Enters the request, if there is room, and sends it.
    fn start(&mut self, cx: &mut Context<'_>) -> Poll<Result<Reply, StoreError>> {
        let mut state = lock(&self.shared.state);
        if let Some(why) = &state.closed {
            let why = why.clone();
            drop(state);
            self.stage = Stage::Over;
            return Poll::Ready(Err(why));
        }
        let first = state.unanswered() == 0;
        let Stage::Queued { mount, .. } = self.stage else {
            return Poll::Ready(Err(error(StoreErrorKind::Protocol, "a store request polled after its end")));
        };
        let lane = state.lanes.entry(mount).or_default();
        if lane.unanswered >= IN_FLIGHT_MAX {
            if !lane.queue.iter().any(|w| w.will_wake(cx.waker())) {
                lane.queue.push(cx.waker().clone());
            }
            return Poll::Pending;
        }
        lane.unanswered += 1;
        let Stage::Queued { mount, op, keep } = std::mem::replace(&mut self.stage, Stage::Over) else {
            return Poll::Ready(Err(error(StoreErrorKind::Protocol, "a store request polled after its end")));
        };
        let id = state.next_id;
        state.next_id += 1;
        let request = Request {
            mount,
            expects: Expects::of(&op),
            deadline: self.shared.deadline(&op),
            slot: Slot::Waiting(Some(cx.waker().clone())),
            replied: false,
            _keep: Some(keep),
        };
        state.requests.insert(id, request);
        drop(state);
        if first {
            self.shared.watch.notify_all();
        }
        match self.shared.send(&ToBroker::Request { id, mount, op }) {
            Ok(()) => {
                self.stage = Stage::Sent { id };
                Poll::Pending
            }
            Err(why) => {
                // Too long, or the broker is gone: either way it has not got the whole request.
                let mut state = lock(&self.shared.state);
                let request = state.requests.remove(&id);
                // Unless the reader saw the end of the connection first, and counted it off.
                let queue = match &request {
                    Some(r) if !r.replied => state.answered(r.mount),
                    _ => Vec::new(),
                };
                drop(state);
                drop(request);
                queue.into_iter().for_each(Waker::wake);
                Poll::Ready(Err(why))
            }
        }
    }
}

impl Future for Call<'_> {
    type Output = Result<Reply, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let id = match self.stage {
            Stage::Queued { .. } => return self.start(cx),
            Stage::Sent { id } => id,
            Stage::Over => return Poll::Ready(Err(error(StoreErrorKind::Protocol, "polled after its end"))),
        };
        let mut state = lock(&self.shared.state);
        let Some(request) = state.requests.get_mut(&id) else {
            drop(state);
            self.stage = Stage::Over;
            return Poll::Ready(Err(error(StoreErrorKind::Protocol, "a request without an entry")));
        };
        match std::mem::replace(&mut request.slot, Slot::Abandoned) {
            Slot::Done(result) => {
                // Answered for the broker by the watcher, the entry stays until its reply.
                if request.replied {
                    state.requests.remove(&id);
                }
                drop(state);
                self.stage = Stage::Over;
                Poll::Ready(result)
            }
            Slot::Waiting(waker) => {
                let waker = waker.filter(|w| w.will_wake(cx.waker())).unwrap_or_else(|| cx.waker().clone());
                request.slot = Slot::Waiting(Some(waker));
                Poll::Pending
            }
            Slot::Abandoned => {
                drop(state);
                self.stage = Stage::Over;
                Poll::Ready(Err(error(StoreErrorKind::Protocol, "a request whose answer was taken")))
            }
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let Stage::Sent { id } = self.stage else { return };
        let mut state = lock(&self.shared.state);
        let Some(request) = state.requests.get_mut(&id) else { return };
        let gone = match std::mem::replace(&mut request.slot, Slot::Abandoned) {
            Slot::Done(_) if request.replied => state.requests.remove(&id),
            _ => None,
        };
        drop(state);
        drop(gone);
    }
}
