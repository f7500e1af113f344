//! One vring: taking descriptor chains out of it, putting completions into it.
//!
//! The vring lock is held to pop a batch and to publish a batch, never while a request is served. A guest may write
//! anything into its rings: a bad chain is a bad request and gets an answer; a bad ring (its avail index jumps, an entry
//! cannot be read, the used ring cannot be written) is stopped, alone, until the front end starts it again.
//!
//! Invariants
//! (1) Every popped head is published exactly once, and counted in `in_flight` in between.
//! (2) Nothing is popped unless the vring is started, enabled and not broken.

use std::fs::File;
use std::io::Write;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vhost_user_backend::{VringMutex, VringState, VringT};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic};

use super::in_flight::InFlight;
use super::limiter::Limiter;
use super::message::{Chain, Fault, Memory};

/// Chains taken per lock of the vring.
pub(super) const BATCH: usize = 64;

/// The memory map, replaced as a whole when the front end changes it.
pub(super) type AtomicMemory = GuestMemoryAtomic<Memory>;

type State = VringState<AtomicMemory>;

/// Where the index lies in the available ring.
const AVAIL_INDEX: u64 = 2;

/// A request taken from a vring.
pub(super) struct Accepted {
    /// The head index, to complete it with. Not unique: a guest may offer one head many times.
    pub(super) head: u16,
    /// Its memory.
    pub(super) chain: Arc<Chain>,
    /// What is wrong with it.
    pub(super) fault: Option<Fault>,
}

/// A request's end: head index and bytes written.
pub(super) type Completion = (u16, u32);

/// What [`Ring::pop`] leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing, or nothing that may be taken: wait for a kick.
    Nothing,
    /// Perhaps more: look again. The guest was not asked for kicks.
    More,
}

/// What [`Ring::pop`] does with an empty ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhenEmpty {
    /// Asks for kicks, then looks once more, so that nothing added later is missed.
    Ask,
    /// Leaves the guest in the belief that the ring is being worked on: look again before you sleep.
    Leave,
}

/// An empty ring, to be looked at without its lock for a moment.
pub(super) struct Watch {
    memory: Arc<Memory>,
    index: GuestAddress,
    seen: u16,
}

impl Watch {
    /// Whether the guest has added a request, or the ring cannot be read any more.
    pub(super) fn has_more(&self) -> bool {
        let index = self.memory.load::<u16>(self.index, Ordering::Relaxed);
        index.map_or(true, |index| u16::from_le(index) != self.seen)
    }
}

/// Why a ring is stopped.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the available index moved by {0}, more than the ring holds")]
    AvailIndex(u16),
    #[error("an entry of the available ring cannot be read")]
    AvailEntry,
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error("the ring's code panicked")]
    Panic,
}

/// Faults of a guest, counted; each writes a line a minute at most.
#[derive(Debug, Default)]
pub(super) struct Faults {
    chains: Limiter,
    heads: Limiter,
    panics: Limiter,
}

/// A vring and what belongs to it.
pub(super) struct Ring {
    index: usize,
    vring: VringMutex<AtomicMemory>,
    memory: AtomicMemory,
    kick: Mutex<Option<Arc<File>>>,
    err: Mutex<Option<File>>,
    broken: AtomicBool,
    event_idx: AtomicBool,
    in_flight: InFlight,
    faults: Faults,
}

impl Ring {
    /// A vring that is neither started nor enabled.
    ///
    /// # Errors
    /// When `max_size` is no power of two up to 32768.
    pub(super) fn new(index: usize, memory: AtomicMemory, max_size: u16) -> Result<Ring, QueueError> {
        Ok(Ring {
            index,
            vring: VringMutex::new(memory.clone(), max_size)?,
            memory,
            kick: Mutex::default(),
            err: Mutex::default(),
            broken: AtomicBool::new(false),
            event_idx: AtomicBool::new(false),
            in_flight: InFlight::default(),
            faults: Faults::default(),
        })
    }

    /// The queue's number: 0 is hiprio.
    pub(super) fn index(&self) -> usize {
        self.index
    }

    /// The vring, for the control messages that set it up.
    pub(super) fn vring(&self) -> &VringMutex<AtomicMemory> {
        &self.vring
    }

    /// Requests taken and not completed.
    pub(super) fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    /// Starts or stops the vring. Starting clears what stopped a broken one.
    pub(super) fn set_started(&self, started: bool) {
        if started {
            self.mend();
        }
        self.vring.set_queue_ready(started);
    }

    /// Whether the vring is started.
    pub(super) fn is_started(&self) -> bool {
        self.vring.get_ref().get_queue().ready()
    }

    /// Puts a broken ring back into service: its driver begins anew.
    pub(super) fn mend(&self) {
        self.broken.store(false, Ordering::Release);
    }

    /// Whether the vring is started and enabled.
    pub(super) fn is_running(&self) -> bool {
        let state = self.vring.get_ref();
        state.is_enabled() && state.get_queue().ready()
    }

    /// Whether the guest broke the ring since it was started.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// The descriptor by which the guest says that there is something in the ring.
    pub(super) fn kick(&self) -> Option<Arc<File>> {
        self.kick.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the kick descriptor.
    pub(super) fn set_kick(&self, kick: Option<File>) {
        *self.kick.lock().unwrap_or_else(PoisonError::into_inner) = kick.map(Arc::new);
    }

    /// Replaces the descriptor that tells the front end of a broken ring.
    pub(super) fn set_err(&self, err: Option<File>) {
        *self.err.lock().unwrap_or_else(PoisonError::into_inner) = err;
    }

    /// Chains that were malformed, since the start.
    pub(super) fn malformed(&self) -> u64 {
        self.faults.chains.count().saturating_add(self.faults.heads.count())
    }

    /// Whether the guest said at the last [`Ring::pop`] that it picks the completions it wants to be told of
    /// (VIRTIO_F_EVENT_IDX): publishing in small pieces then costs it no more notifications than it asks for.
    pub(super) fn has_event_idx(&self) -> bool {
        self.event_idx.load(Ordering::Relaxed)
    }

    /// Moves up to `room` chains from the ring to `out`, using `spare` chains first, and counts them as in flight.
    /// While requests are taken and served the guest is asked for no kicks: only a pop that finds the ring empty asks.
    pub(super) fn pop(
        &self,
        room: usize,
        when_empty: WhenEmpty,
        spare: &mut Vec<Arc<Chain>>,
        out: &mut Vec<Accepted>,
    ) -> Left {
        let mut state = self.vring.get_mut();
        if !state.is_enabled() || !state.get_queue().ready() || self.is_broken() {
            return Left::Nothing;
        }
        let memory = self.memory.memory().into_inner();
        let before = out.len();
        // The guard outlives a panic inside, so the lock is not poisoned by one.
        let result =
            catch_unwind(AssertUnwindSafe(|| self.pop_locked(&mut state, &memory, room, when_empty, spare, out)));
        self.in_flight.accept(out.len().saturating_sub(before));
        drop(state);
        match result {
            Ok(Ok(left)) => left,
            Ok(Err(broken)) => self.stop(&broken),
            Err(_) => self.stop(&Broken::Panic),
        }
    }

    fn pop_locked(
        &self,
        state: &mut State,
        memory: &Arc<Memory>,
        room: usize,
        when_empty: WhenEmpty,
        spare: &mut Vec<Arc<Chain>>,
        out: &mut Vec<Accepted>,
    ) -> Result<Left, Broken> {
        let queue = state.get_queue_mut();
        self.event_idx.store(queue.event_idx_enabled(), Ordering::Relaxed);
        let mut count = available(queue, memory)?;
        if count == 0 {
            // Ask for kicks first, look again then: a chain added in between must not be missed.
            if when_empty == WhenEmpty::Leave || !queue.enable_notification(memory.deref())? {
                return Ok(Left::Nothing);
            }
            count = available(queue, memory)?;
        }
        // With VIRTIO_F_EVENT_IDX this does nothing: the guest kicks once when it passes the entry that was asked for.
        queue.disable_notification(memory.deref())?;
        let size = queue.size();
        let mut chains = queue.iter(memory.deref())?;
        for _ in 0..room.min(usize::from(count)) {
            let descriptors = chains.next().ok_or(Broken::AvailEntry)?;
            let head = descriptors.head_index();
            if head >= size {
                self.log_head(head, size);
                continue;
            }
            let mut chain = spare.pop().unwrap_or_default();
            let fault = Arc::make_mut(&mut chain).fill(memory, descriptors).err();
            if let Some(fault) = fault {
                self.log_chain(fault);
            }
            out.push(Accepted { head, chain, fault });
        }
        Ok(Left::More)
    }

    /// The ring as the last pop left it, to be watched for more. `None`: it is not running.
    pub(super) fn watch(&self) -> Option<Watch> {
        let state = self.vring.get_ref();
        let queue = state.get_queue();
        if !state.is_enabled() || !queue.ready() || self.is_broken() {
            return None;
        }
        let index = queue.avail_ring().checked_add(AVAIL_INDEX)?;
        let memory = self.memory.memory().into_inner();
        Some(Watch { memory, index: GuestAddress(index), seen: queue.next_avail() })
    }

    /// Puts `done` into the used ring, tells the guest at most once, and empties `done`.
    pub(super) fn publish(&self, done: &mut Vec<Completion>) {
        if done.is_empty() {
            return;
        }
        let mut state = self.vring.get_mut();
        let memory = self.memory.memory().into_inner();
        let result = catch_unwind(AssertUnwindSafe(|| publish_locked(&mut state, &memory, done)));
        drop(state);
        let count = done.len();
        done.clear();
        match result {
            Ok(Ok(())) => {}
            Ok(Err(broken)) => _ = self.stop(&broken),
            Err(_) => _ = self.stop(&Broken::Panic),
        }
        self.in_flight.finish(count);
    }

    /// Takes the ring out of service, says so once, and tells the front end.
    fn stop(&self, why: &Broken) -> Left {
        if !self.broken.swap(true, Ordering::AcqRel) {
            log::error!("Virtqueue {} is broken and stopped: {why}", self.index);
            let err = self.err.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(mut file) = err.as_ref()
                && let Err(error) = file.write_all(&1_u64.to_ne_bytes())
            {
                log::debug!("Virtqueue {}: cannot raise the error event: {error}", self.index);
            }
        }
        Left::Nothing
    }

    fn log_head(&self, head: u16, size: u16) {
        if let Some(n) = self.faults.heads.hit() {
            log::warn!("Virtqueue {}: skipped descriptor chain {head} of {size} ({n} such)", self.index);
        }
    }

    fn log_chain(&self, fault: Fault) {
        if let Some(n) = self.faults.chains.hit() {
            log::warn!("Virtqueue {}: malformed request: {fault} ({n} such)", self.index);
        }
    }

    /// Takes the ring out of service because its worker panicked.
    pub(super) fn fail(&self) {
        self.stop(&Broken::Panic);
    }

    /// Notes that serving a request panicked.
    pub(super) fn log_panic(&self) {
        if let Some(n) = self.faults.panics.hit() {
            log::error!("Virtqueue {}: a request panicked and was answered with EIO ({n} such)", self.index);
        }
    }
}

/// How many chains the guest offers.
fn available(queue: &Queue, memory: &Arc<Memory>) -> Result<u16, Broken> {
    let count = queue.avail_idx(memory.deref(), Ordering::Acquire)?.0.wrapping_sub(queue.next_avail());
    if count > queue.size() { Err(Broken::AvailIndex(count)) } else { Ok(count) }
}

fn publish_locked(state: &mut State, memory: &Memory, done: &[Completion]) -> Result<(), Broken> {
    let queue = state.get_queue_mut();
    for &(head, len) in done {
        queue.add_used(memory, head, len)?;
    }
    // Orders the used ring before what the guest says about interrupts.
    if !queue.needs_notification(memory)? {
        return Ok(());
    }
    if !queue.event_idx_enabled() {
        let flags: u16 = memory.read_obj(GuestAddress(queue.avail_ring())).map_err(QueueError::GuestMemory)?;
        if u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT != 0 {
            return Ok(());
        }
    }
    if let Err(error) = state.signal_used_queue() {
        log::debug!("Cannot signal a used ring: {error}");
    }
    Ok(())
}
