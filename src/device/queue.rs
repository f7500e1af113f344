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
use virtio_queue::{Error as QueueError, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic};

use super::in_flight::InFlight;
use super::limiter::Limiter;
use super::message::{Chain, Fault, Memory};

/// Chains taken per lock of the vring.
pub(super) const BATCH: usize = 64;

/// How often an empty ring that fills at once is looked at again under one lock.
const LOOKS_MAX: u32 = 4;

/// The memory map, replaced as a whole when the front end changes it.
pub(super) type AtomicMemory = GuestMemoryAtomic<Memory>;

type State = VringState<AtomicMemory>;

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
    /// More chains than there was room for.
    More,
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

    /// Moves up to `room` chains from the ring to `out`, using `spare` chains first, and counts them as in flight.
    /// When the ring is empty, asks the guest for kicks again, so that nothing added later is missed.
    pub(super) fn pop(&self, room: usize, spare: &mut Vec<Arc<Chain>>, out: &mut Vec<Accepted>) -> Left {
        let mut state = self.vring.get_mut();
        if !state.is_enabled() || !state.get_queue().ready() || self.is_broken() {
            return Left::Nothing;
        }
        let memory = self.memory.memory().into_inner();
        let before = out.len();
        // The guard outlives a panic inside, so the lock is not poisoned by one.
        let result = catch_unwind(AssertUnwindSafe(|| self.pop_locked(&mut state, &memory, room, spare, out)));
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
        spare: &mut Vec<Arc<Chain>>,
        out: &mut Vec<Accepted>,
    ) -> Result<Left, Broken> {
        let queue = state.get_queue_mut();
        queue.disable_notification(memory.deref())?;
        let mut room = room;
        let mut looks = 0;
        loop {
            let available = queue.avail_idx(memory.deref(), Ordering::Acquire)?.0.wrapping_sub(queue.next_avail());
            if available > queue.size() {
                return Err(Broken::AvailIndex(available));
            }
            if available == 0 {
                // Ask for kicks first, look again then: a chain added in between must not be missed.
                if !queue.enable_notification(memory.deref())? {
                    return Ok(Left::Nothing);
                }
                queue.disable_notification(memory.deref())?;
                looks += 1;
                if looks == LOOKS_MAX {
                    return Ok(Left::More);
                }
                continue;
            }
            if room == 0 {
                return Ok(Left::More);
            }
            let size = queue.size();
            let count = room.min(usize::from(available));
            let mut chains = queue.iter(memory.deref())?;
            for _ in 0..count {
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
            room -= count;
        }
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
