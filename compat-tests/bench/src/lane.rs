//! A request queue driven at a fixed depth, without allocating while it runs.
//!
//! Every slot of a lane owns its piece of guest memory: request, reply, data pages and an indirect descriptor table. A
//! request is laid out as Linux lays it out: header, arguments, data in pages; reply header, reply, data in pages. The
//! table is rewritten only when the layout changes, so the measured loop costs a few copies of some ten bytes.
//!
//! Invariants
//! (1) Slot `n` uses descriptor `n` of the ring and nothing else; no request of the queue's own is in flight meanwhile.
//! (2) A reply that breaks a rule Linux relies on (used length, length, number) ends the run with an error.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ovfs_compat_tests::error::Error;
use ovfs_compat_tests::frontend::Frontend;
use ovfs_compat_tests::memory::{PAGE, Region};
use ovfs_compat_tests::queue::Queue;
use ovfs_compat_tests::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor};

use crate::work::{Reply, Work};

/// Largest data part of a request or reply.
pub const DATA_MAX: u64 = 1 << 20;
/// Bytes of arguments that a request may have.
pub const ARGS_MAX: usize = 320;
const HEADER: usize = 40;
const OUT_HEADER: u32 = 16;
/// How long the device may be silent with requests in flight.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a lane waits for completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Asks for a notification and sleeps until it comes.
    Event,
    /// Looks at the used ring until something is there.
    Busy,
}

/// One FUSE request, apart from its number and its place in memory.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Opcode.
    pub opcode: u32,
    /// The inode it is about.
    pub nodeid: u64,
    args: [u8; ARGS_MAX],
    args_len: usize,
    /// Bytes of data behind the arguments.
    pub data_out: u32,
    /// Most bytes of the reply's structure; `None`: the request has no reply at all.
    pub reply: Option<u32>,
    /// Most bytes of data behind it.
    pub data_in: u32,
}

impl Request {
    /// A request without arguments, answered by a bare header.
    pub fn new(opcode: u32, nodeid: u64) -> Request {
        Request { opcode, nodeid, args: [0; ARGS_MAX], args_len: 0, data_out: 0, reply: Some(0), data_in: 0 }
    }

    /// Appends bytes to the arguments.
    ///
    /// # Panics
    /// When they do not fit: a mistake of the workload.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Request {
        self.args[self.args_len..self.args_len + bytes.len()].copy_from_slice(bytes);
        self.args_len += bytes.len();
        self
    }

    /// Appends 32-bit fields.
    #[must_use]
    pub fn u32s(self, values: &[u32]) -> Request {
        values.iter().fold(self, |request, value| request.bytes(&value.to_le_bytes()))
    }

    /// Appends 64-bit fields.
    #[must_use]
    pub fn u64s(self, values: &[u64]) -> Request {
        values.iter().fold(self, |request, value| request.bytes(&value.to_le_bytes()))
    }

    /// Reserves `len` bytes for the reply's structure.
    #[must_use]
    pub fn reply(mut self, len: u32) -> Request {
        self.reply = Some(len);
        self
    }

    fn layout(&self) -> Layout {
        Layout { args: self.args_len, data_out: self.data_out, reply: self.reply, data_in: self.data_in }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    args: usize,
    data_out: u32,
    reply: Option<u32>,
    data_in: u32,
}

#[derive(Debug)]
struct Slot {
    /// Header and arguments; the reply's header and structure lie [`PAGE`] bytes behind, the data two pages behind.
    at: u64,
    table: u64,
    layout: Option<Layout>,
    unique: u64,
    descriptors: u32,
    submitted: Instant,
}

impl Slot {
    fn data(&self) -> u64 {
        self.at + 2 * PAGE
    }
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Operations as the workload counts them.
    pub ops: u64,
    /// Bytes of file data moved.
    pub bytes: u64,
    /// FUSE requests answered.
    pub requests: u64,
    /// Notifications sent to the device and received from it.
    pub kicks: u64,
    /// See `kicks`.
    pub calls: u64,
    /// From the first request to the last reply.
    pub time: Duration,
    /// Latency of single requests.
    pub latency: Histogram,
}

impl Outcome {
    /// Two lanes that ran side by side.
    pub fn join(mut self, other: &Outcome) -> Outcome {
        self.ops += other.ops;
        self.bytes += other.bytes;
        self.requests += other.requests;
        self.kicks += other.kicks;
        self.calls += other.calls;
        self.time = self.time.max(other.time);
        self.latency.join(&other.latency);
        self
    }
}

/// Counts of durations in classes of 1/8 of a power of two.
#[derive(Clone, Debug)]
pub struct Histogram([u32; 512]);

impl Default for Histogram {
    fn default() -> Self {
        Histogram([0; 512])
    }
}

impl Histogram {
    fn add(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(8);
        let power = 63 - ns.leading_zeros();
        let eighth = (ns >> (power - 3)) & 7;
        self.0[(power as usize * 8 + eighth as usize).min(511)] += 1;
    }

    fn join(&mut self, other: &Histogram) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a += b);
    }

    /// The duration that `share` of all stayed below, to 1/8.
    pub fn quantile(&self, share: f64) -> Duration {
        let total: u64 = self.0.iter().map(|&n| u64::from(n)).sum();
        let mut left = (total as f64 * share).ceil() as u64;
        for (class, &n) in self.0.iter().enumerate() {
            if u64::from(n) >= left && left > 0 {
                let (power, eighth) = (class / 8, class as u64 % 8);
                return Duration::from_nanos((8 + eighth + 1) << power.saturating_sub(3));
            }
            left = left.saturating_sub(n.into());
        }
        Duration::ZERO
    }
}

/// When a run ends. Whatever a slot has begun (a file created and not yet removed) is finished first.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// The workload has nothing left to do.
    Done,
    /// This much time has passed, or the workload has nothing left.
    Elapsed(Duration),
}

/// The guest memory and the counters of one queue.
#[derive(Debug)]
pub struct Lane {
    slots: Vec<Slot>,
    region: Arc<Region>,
    control: OwnedFd,
    unique: u64,
    wait: Wait,
}

impl Lane {
    /// Guest memory for `depth` requests on queue `index`.
    ///
    /// # Errors
    /// [`Error::Full`] when the queue's share of guest memory is too small.
    pub fn new(frontend: &mut Frontend, index: u32, depth: usize, wait: Wait) -> Result<Lane, Error> {
        let control = std::os::fd::AsFd::as_fd(frontend.control.socket()).try_clone_to_owned()?;
        let region = frontend.region().clone();
        let queue = frontend.queue(index);
        let mut slots = Vec::with_capacity(depth);
        let table = 16 * (4 + 2 * DATA_MAX / PAGE);
        for _ in 0..depth {
            let at = queue.alloc(2 * PAGE + DATA_MAX)?;
            let table = queue.alloc(table)?;
            slots.push(Slot { at, table, layout: None, unique: 0, descriptors: 0, submitted: Instant::now() });
        }
        // Numbers of different lanes never meet, and never those of the guest that the lanes belong to.
        let unique = (u64::from(index) + 1) << 48;
        Ok(Lane { slots, region, control, unique, wait })
    }

    /// Keeps `depth` requests of `work` in flight on `queue` until it is time to end, then waits for all of them.
    ///
    /// # Errors
    /// What the work makes of a reply, and everything that makes the device unusable.
    pub fn run(
        &mut self,
        queue: &mut Queue,
        work: &mut dyn Work,
        depth: usize,
        until: Until,
    ) -> Result<Outcome, Error> {
        let mut outcome = Outcome {
            ops: 0,
            bytes: 0,
            requests: 0,
            kicks: 0,
            calls: 0,
            time: Duration::ZERO,
            latency: Histogram::default(),
        };
        let began = Instant::now();
        let end = match until {
            Until::Done => None,
            Until::Elapsed(time) => Some(began + time),
        };
        let mut in_flight = 0;
        for slot in 0..depth.min(self.slots.len()) {
            in_flight += usize::from(self.next(queue, work, slot, false));
        }
        self.publish(queue, &mut outcome)?;
        let mut now = began;
        while in_flight > 0 {
            let mut stopping = end.is_some_and(|end| now >= end);
            while let Some((id, used)) = queue.ring().pop_used() {
                now = Instant::now();
                stopping |= end.is_some_and(|end| now >= end);
                let slot = id as usize;
                self.take(work, slot, used, now, &mut outcome)?;
                in_flight -= 1;
                in_flight += usize::from(self.next(queue, work, slot, stopping));
            }
            self.publish(queue, &mut outcome)?;
            if in_flight > 0 {
                self.sleep(queue, &mut outcome)?;
            }
        }
        outcome.time = began.elapsed();
        Ok(outcome)
    }

    fn publish(&self, queue: &mut Queue, outcome: &mut Outcome) -> Result<(), Error> {
        if queue.ring().publish() {
            outcome.kicks += 1;
            queue.kick()?;
        }
        Ok(())
    }

    /// Stages the slot's next request, if the work has one.
    fn next(&mut self, queue: &mut Queue, work: &mut dyn Work, n: usize, stopping: bool) -> bool {
        let (region, slot) = (&self.region, &mut self.slots[n]);
        let Some(request) = work.next(n, stopping, &Data { region, at: slot.data() }) else { return false };
        self.unique += 2;
        slot.unique = self.unique;
        let layout = request.layout();
        if slot.layout != Some(layout) {
            slot.descriptors = lay_out(region, slot, &layout);
            slot.layout = Some(layout);
        }
        let len = HEADER + request.args_len;
        let mut head = [0; HEADER + ARGS_MAX];
        head[..4].copy_from_slice(&((len as u32) + request.data_out).to_le_bytes());
        head[4..8].copy_from_slice(&request.opcode.to_le_bytes());
        head[8..16].copy_from_slice(&slot.unique.to_le_bytes());
        head[16..24].copy_from_slice(&request.nodeid.to_le_bytes());
        head[HEADER..len].copy_from_slice(&request.args[..request.args_len]);
        region.write(slot.at, &head[..len]);
        let entry = Descriptor { addr: slot.table, len: 16 * slot.descriptors, flags: DESC_INDIRECT, next: 0 };
        slot.submitted = Instant::now();
        queue.ring().set_descriptor(n as u16, &entry);
        queue.ring().push(n as u16);
        true
    }

    fn take(&self, work: &mut dyn Work, n: usize, used: u32, now: Instant, outcome: &mut Outcome) -> Result<(), Error> {
        let Some(slot) = self.slots.get(n) else {
            return Err(Error::BadReply(format!("used entry for chain {n}, which is not in flight")));
        };
        let layout = slot.layout.as_ref();
        let mut head = [0; 16];
        let mut errno = 0;
        if layout.is_some_and(|layout| layout.reply.is_some()) {
            self.region.read(slot.at + PAGE, &mut head);
            let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let (len, error) = (word(0), word(4).cast_signed());
            let unique = u64::from(word(8)) | u64::from(word(12)) << 32;
            if used < OUT_HEADER || len != used || unique != slot.unique || !(-511..=0).contains(&error) {
                return Err(Error::BadReply(format!(
                    "length {len}, used length {used}, error {error}, number {unique} instead of {}",
                    slot.unique
                )));
            }
            errno = -error;
        } else if used != 0 {
            return Err(Error::BadReply(format!("used length {used} without a reply")));
        }
        outcome.requests += 1;
        outcome.latency.add(now.saturating_duration_since(slot.submitted));
        let reply = Reply {
            errno,
            len: used.saturating_sub(OUT_HEADER),
            body: Data { region: &self.region, at: slot.at + PAGE + u64::from(OUT_HEADER) },
            data: Data { region: &self.region, at: slot.data() },
        };
        let done = work.reply(n, &reply)?;
        outcome.ops += done.ops;
        outcome.bytes += done.bytes;
        Ok(())
    }

    fn sleep(&self, queue: &mut Queue, outcome: &mut Outcome) -> Result<(), Error> {
        let began = Instant::now();
        if self.wait == Wait::Busy {
            let mut turns = 0u32;
            while queue.ring().device_used_idx() == queue.ring().used_idx() {
                std::hint::spin_loop();
                turns = turns.wrapping_add(1);
                if turns.is_multiple_of(1 << 20) && began.elapsed() > PATIENCE {
                    return Err(Error::Timeout { what: "a reply".into(), after: PATIENCE });
                }
            }
            return Ok(());
        }
        queue.ring().ask_for_notification();
        if queue.ring().device_used_idx() != queue.ring().used_idx() {
            return Ok(());
        }
        let call = queue.call_fd().as_raw_fd();
        let mut fds = [
            libc::pollfd { fd: call, events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: self.control.as_raw_fd(), events: 0, revents: 0 },
        ];
        // SAFETY: `fds` is an array of two pollfds that outlives the call.
        let n = unsafe { libc::poll(fds.as_mut_ptr(), 2, PATIENCE.as_millis() as libc::c_int) };
        if n < 0 {
            let error = std::io::Error::last_os_error();
            return if error.kind() == std::io::ErrorKind::Interrupted { Ok(()) } else { Err(error.into()) };
        }
        if n == 0 {
            return Err(Error::Timeout { what: "a reply".into(), after: PATIENCE });
        }
        if fds[0].revents != 0 {
            let mut count = [0u8; 8];
            // SAFETY: `count` is eight writable bytes; the descriptor is the queue's own and does not block.
            unsafe { libc::read(call, count.as_mut_ptr().cast(), 8) };
            outcome.calls += 1;
        } else if fds[1].revents != 0 {
            return Err(Error::Disconnected("requests are in flight".into()));
        }
        Ok(())
    }
}

/// Writes the slot's descriptor table; the number of its entries.
fn lay_out(region: &Region, slot: &Slot, layout: &Layout) -> u32 {
    let mut count = 0u64;
    let total = 1
        + u64::from(layout.args > 0)
        + u64::from(layout.data_out).div_ceil(PAGE)
        + layout.reply.map_or(0, |len| 1 + u64::from(len > 0))
        + u64::from(layout.data_in).div_ceil(PAGE);
    let mut add = |addr: u64, len: u32, write: bool| {
        let next = count + 1 < total;
        let flags = if write { DESC_WRITE } else { 0 } | if next { DESC_NEXT } else { 0 };
        let descriptor = Descriptor { addr, len, flags, next: if next { count as u16 + 1 } else { 0 } };
        region.write(slot.table + 16 * count, &descriptor.encode());
        count += 1;
    };
    add(slot.at, HEADER as u32, false);
    if layout.args > 0 {
        add(slot.at + HEADER as u64, layout.args as u32, false);
    }
    pages(slot.data(), layout.data_out, |at, len| add(at, len, false));
    if let Some(reply) = layout.reply {
        add(slot.at + PAGE, OUT_HEADER, true);
        if reply > 0 {
            add(slot.at + PAGE + u64::from(OUT_HEADER), reply, true);
        }
    }
    pages(slot.data(), layout.data_in, |at, len| add(at, len, true));
    count as u32
}

fn pages(at: u64, len: u32, mut each: impl FnMut(u64, u32)) {
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(PAGE as u32);
        each(at + u64::from(done), piece);
        done += piece;
    }
}

/// A piece of guest memory that a workload fills or looks at.
#[derive(Clone, Copy, Debug)]
pub struct Data<'a> {
    region: &'a Region,
    at: u64,
}

impl Data<'_> {
    /// The 64-bit number at `offset`.
    pub fn u64(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.region.read(self.at + offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// The 32-bit number at `offset`.
    pub fn u32(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.region.read(self.at + offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Sets the 64-bit number at `offset`.
    pub fn set_u64(&self, offset: u64, value: u64) {
        self.region.write(self.at + offset, &value.to_le_bytes());
    }

    /// Sets `bytes` at `offset`.
    pub fn set(&self, offset: u64, bytes: &[u8]) {
        self.region.write(self.at + offset, bytes);
    }
}
