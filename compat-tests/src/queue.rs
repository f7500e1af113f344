//! Requests and their completions over one virtqueue.
//!
//! A request is submitted and gives a [`Token`]; tokens are waited for in any order, and any number may be in flight.
//! Each queue owns its ring, its eventfds and its part of guest memory, so queues can move to threads of their own.
//!
//! What is checked of every completion: the used id names a chain in flight; the used length does not exceed the
//! chain's writable bytes; the ring's surroundings are untouched when the queue ends. [`Completion::reply`] adds the
//! rules of Linux 7.1 (`virtio_fs_verify_response`): used length equals `out_header.len`, is at least 16, `unique` is
//! echoed, the error lies in -511..=0 and an error reply is a bare header.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::memory::{Arena, PAGE, Region};
use crate::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor, Ring};
use crate::vhost_user::wait_events;

/// How a request is laid out in descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Use one indirect descriptor for chains of more than one, as Linux does when the feature is negotiated.
    pub indirect: bool,
    /// Cut data into page-sized descriptors, as Linux does for file data.
    pub pages: bool,
    /// Put everything readable into one descriptor and everything writable into another.
    pub merged: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { indirect: true, pages: true, merged: false }
    }
}

/// A submitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(u64);

/// What the device did with a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// What was asked, for messages.
    pub what: String,
    /// The length in the used ring.
    pub used: u32,
    /// The first `used` bytes of the writable part.
    pub bytes: Vec<u8>,
}

impl Completion {
    /// Checks the reply to request `unique` and returns its errno (0: success) and payload.
    pub fn reply(self, unique: u64) -> Result<(i32, Vec<u8>), Error> {
        let bad = |why: String| Err(Error::BadReply(format!("{}: {why}", self.what)));
        if self.bytes.len() < 16 {
            return bad(format!("used length {} is shorter than a reply header", self.used));
        }
        let (header, payload) = self.bytes.split_at(16);
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (len, error) = (word(0), word(4) as i32);
        let echoed = u64::from(word(8)) | u64::from(word(12)) << 32;
        if len != self.used {
            return bad(format!("out_header.len {len} is not the used length {}", self.used));
        }
        if echoed != unique {
            return bad(format!("unique {echoed} instead of {unique}"));
        }
        if !(-511..=0).contains(&error) {
            return bad(format!("error {error} is not a negative errno"));
        }
        if error != 0 && !payload.is_empty() {
            return bad(format!("error {error} with {} bytes of payload", payload.len()));
        }
        Ok((-error, payload.to_vec()))
    }
}

#[derive(Debug)]
struct InFlight {
    token: Token,
    what: String,
    descriptors: Vec<u16>,
    buffers: Vec<(u64, u64)>,
    writable: Vec<(u64, u32)>,
}

/// One virtqueue and the driver's state for it.
#[derive(Debug)]
pub struct Queue {
    index: u32,
    ring: Ring,
    region: Arc<Region>,
    arena: Arena,
    shape: Shape,
    kick: File,
    call: File,
    err: File,
    /// Our own handle of the control socket: it hangs up when the daemon goes away.
    control: OwnedFd,
    timeout: Duration,
    free: Vec<u16>,
    in_flight: HashMap<u16, InFlight>,
    done: HashMap<Token, Completion>,
    next_token: u64,
    kicks: u64,
    calls: u64,
}

impl Queue {
    /// A queue over `ring`, allocating buffers from `arena` in `region`.
    pub fn new(
        index: u32,
        ring: Ring,
        region: Arc<Region>,
        arena: Arena,
        shape: Shape,
        control: BorrowedFd,
        timeout: Duration,
    ) -> io::Result<Queue> {
        let free = (0..ring.size()).rev().collect();
        Ok(Queue {
            index,
            ring,
            region,
            arena,
            shape,
            kick: eventfd()?,
            call: eventfd()?,
            err: eventfd()?,
            control: control.try_clone_to_owned()?,
            timeout,
            free,
            in_flight: HashMap::new(),
            done: HashMap::new(),
            next_token: 0,
            kicks: 0,
            calls: 0,
        })
    }

    /// Number of the queue on the device; 0 is the high-priority queue.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The ring, to look at or to break.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }

    /// The region the ring and the buffers lie in.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The descriptor the device is kicked with.
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// The descriptor the device notifies us with.
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// The descriptor the device reports a broken ring with.
    pub fn err_fd(&self) -> BorrowedFd<'_> {
        self.err.as_fd()
    }

    /// Whether the device has reported the ring broken since the last look.
    pub fn err_signalled(&mut self) -> bool {
        self.err.read_exact(&mut [0; 8]).is_ok()
    }

    /// Requests that the device has not completed.
    pub fn pending(&self) -> usize {
        self.in_flight.len()
    }

    /// Kicks sent and notifications received.
    pub fn notifications(&self) -> (u64, u64) {
        (self.kicks, self.calls)
    }

    /// How further requests are laid out.
    pub fn set_shape(&mut self, shape: Shape) {
        self.shape = shape;
    }

    /// How long one wait may take.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Guest memory for a test's own use; never given back.
    pub fn alloc(&mut self, len: u64) -> Result<u64, Error> {
        self.arena.alloc(len, PAGE).ok_or(Error::Full)
    }

    /// Submits a request whose readable part is `parts` and whose reply may take `reply_len` bytes, and kicks.
    ///
    /// # Errors
    /// [`Error::Full`] when the ring or the memory is; complete something first.
    pub fn submit(&mut self, what: &str, parts: &[&[u8]], reply_len: u32) -> Result<Token, Error> {
        let token = self.stage(what, parts, reply_len)?;
        self.kick_if_wanted()?;
        Ok(token)
    }

    /// As [`Queue::submit`], without showing the request to the device: [`Queue::kick_if_wanted`] shows all staged ones.
    pub fn stage(&mut self, what: &str, parts: &[&[u8]], reply_len: u32) -> Result<Token, Error> {
        let mut segments: Vec<(u64, u32, bool)> = Vec::new();
        let mut buffers = Vec::new();
        let merged_part;
        let merged_parts;
        let parts = if self.shape.merged {
            merged_part = parts.concat();
            merged_parts = [merged_part.as_slice()];
            &merged_parts
        } else {
            parts
        };
        let staged = self.place(parts, reply_len, &mut segments, &mut buffers).and_then(|()| {
            let writable = segments.iter().filter(|s| s.2).map(|s| (s.0, s.1)).collect();
            self.link(&segments, &mut buffers).map(|(head, descriptors)| (head, descriptors, writable))
        });
        match staged {
            Ok((head, descriptors, writable)) => {
                let token = self.token();
                let flight = InFlight { token, what: what.to_owned(), descriptors, buffers, writable };
                self.in_flight.insert(head, flight);
                self.ring.push(head);
                Ok(token)
            }
            Err(error) => {
                for (at, len) in buffers {
                    self.arena.release(at, len);
                }
                Err(error)
            }
        }
    }

    /// Submits a chain of the caller's own descriptors: `flags` and `next` are taken as they are, and entry 0 of
    /// `table` goes to ring entry `head`, entry 1 to `head + 1`, and so on. The caller's memory stays the caller's.
    pub fn submit_raw(&mut self, what: &str, head: u16, table: &[Descriptor]) -> Result<Token, Error> {
        let token = self.token();
        let mut descriptors = Vec::new();
        let mut writable = Vec::new();
        for (index, descriptor) in (head..).zip(table) {
            self.ring.set_descriptor(index, descriptor);
            self.free.retain(|&free| free != index);
            descriptors.push(index);
            if descriptor.flags & DESC_WRITE != 0 {
                writable.push((descriptor.addr, descriptor.len));
            }
        }
        self.in_flight
            .insert(head, InFlight { token, what: what.to_owned(), descriptors, buffers: Vec::new(), writable });
        self.ring.push(head);
        self.kick_if_wanted()?;
        Ok(token)
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    /// Copies the request into guest memory and reserves the reply.
    fn place(
        &mut self,
        parts: &[&[u8]],
        reply_len: u32,
        segments: &mut Vec<(u64, u32, bool)>,
        buffers: &mut Vec<(u64, u64)>,
    ) -> Result<(), Error> {
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let at = self.reserve(part.len() as u64, buffers)?;
            self.region.write(at, part);
            self.cut(at, part.len() as u32, false, segments);
        }
        if reply_len == 0 {
            return Ok(());
        }
        if self.shape.merged || reply_len <= 16 {
            let at = self.reserve(reply_len.into(), buffers)?;
            self.cut(at, reply_len, true, segments);
        } else {
            let header = self.reserve(16, buffers)?;
            segments.push((header, 16, true));
            let at = self.reserve((reply_len - 16).into(), buffers)?;
            self.cut(at, reply_len - 16, true, segments);
        }
        Ok(())
    }

    fn reserve(&mut self, len: u64, buffers: &mut Vec<(u64, u64)>) -> Result<u64, Error> {
        let align = if len >= PAGE { PAGE } else { 16 };
        let at = self.arena.alloc(len, align).ok_or(Error::Full)?;
        buffers.push((at, len));
        Ok(at)
    }

    fn cut(&self, at: u64, len: u32, write: bool, segments: &mut Vec<(u64, u32, bool)>) {
        let step = if self.shape.pages && !self.shape.merged { PAGE as u32 } else { len };
        let mut done = 0;
        while done < len {
            let piece = step.min(len - done);
            segments.push((at + u64::from(done), piece, write));
            done += piece;
        }
    }

    /// Writes the descriptors of a chain; the head and the ring entries it takes.
    fn link(&mut self, segments: &[(u64, u32, bool)], buffers: &mut Vec<(u64, u64)>) -> Result<(u16, Vec<u16>), Error> {
        let count = segments.len();
        let describe = |n: usize, next: u16| {
            let (addr, len, write) = segments[n];
            let more = n + 1 < count;
            let flags = if write { DESC_WRITE } else { 0 } | if more { DESC_NEXT } else { 0 };
            Descriptor { addr, len, flags, next: if more { next } else { 0 } }
        };
        if self.shape.indirect && count > 1 {
            let len = 16 * count as u64;
            let table = self.reserve(len, buffers)?;
            let head = self.free.pop().ok_or(Error::Full)?;
            for n in 0..count {
                self.region.write(table + 16 * n as u64, &describe(n, n as u16 + 1).encode());
            }
            let entry = Descriptor { addr: table, len: len as u32, flags: DESC_INDIRECT, next: 0 };
            self.ring.set_descriptor(head, &entry);
            return Ok((head, vec![head]));
        }
        if self.free.len() < count || count == 0 {
            return Err(Error::Full);
        }
        let indices = self.free.split_off(self.free.len() - count);
        for (n, &index) in indices.iter().enumerate() {
            let next = indices.get(n + 1).copied().unwrap_or(0);
            self.ring.set_descriptor(index, &describe(n, next));
        }
        Ok((indices[0], indices))
    }

    /// Shows staged requests to the device and kicks it if it asks for that.
    pub fn kick_if_wanted(&mut self) -> Result<(), Error> {
        if self.ring.publish() { self.kick() } else { Ok(()) }
    }

    /// Kicks the device whether it wants it or not.
    pub fn kick(&mut self) -> Result<(), Error> {
        self.kicks += 1;
        Ok(self.kick.write_all(&1u64.to_ne_bytes())?)
    }

    /// Takes everything the device has completed so far.
    pub fn reap(&mut self) -> Result<(), Error> {
        while let Some((id, used)) = self.ring.pop_used() {
            let flight = u16::try_from(id).ok().and_then(|head| self.in_flight.remove(&head));
            let Some(flight) = flight else {
                return Err(Error::BadReply(format!("used entry for chain {id}, which is not in flight")));
            };
            let bytes = self.collect(&flight, used)?;
            self.free.extend(flight.descriptors.iter().rev());
            for (at, len) in flight.buffers {
                self.arena.release(at, len);
            }
            self.done.insert(flight.token, Completion { what: flight.what, used, bytes });
        }
        Ok(())
    }

    fn collect(&self, flight: &InFlight, used: u32) -> Result<Vec<u8>, Error> {
        let capacity: u64 = flight.writable.iter().map(|&(_, len)| u64::from(len)).sum();
        if u64::from(used) > capacity {
            return Err(Error::BadReply(format!("{}: used length {used} of {capacity} bytes", flight.what)));
        }
        let mut left = used as usize;
        let mut bytes = Vec::with_capacity(left);
        for &(at, len) in &flight.writable {
            let piece = left.min(len as usize);
            if piece == 0 {
                break;
            }
            let start = bytes.len();
            bytes.resize(start + piece, 0);
            self.region.read(at, &mut bytes[start..]);
            left -= piece;
        }
        Ok(bytes)
    }

    /// Waits for one request.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Disconnected`] when the daemon is gone, [`Error::BadReply`].
    pub fn wait(&mut self, token: Token) -> Result<Completion, Error> {
        let deadline = Instant::now() + self.timeout;
        loop {
            self.reap()?;
            if let Some(done) = self.done.remove(&token) {
                return Ok(done);
            }
            let what = self.in_flight.values().find(|f| f.token == token).map(|f| f.what.clone());
            let Some(what) = what else { return Err(Error::BadReply(format!("{token:?} was never submitted"))) };
            self.sleep(deadline, &what)?;
        }
    }

    /// Waits for whichever request is completed first.
    pub fn wait_any(&mut self) -> Result<(Token, Completion), Error> {
        let deadline = Instant::now() + self.timeout;
        loop {
            self.reap()?;
            if let Some(&token) = self.done.keys().next()
                && let Some(done) = self.done.remove(&token)
            {
                return Ok((token, done));
            }
            self.sleep(deadline, "any request")?;
        }
    }

    /// Waits for `count` used entries and returns them as they are (id, length), for chains the caller pushed itself.
    pub fn wait_used(&mut self, count: usize) -> Result<Vec<(u32, u32)>, Error> {
        let deadline = Instant::now() + self.timeout;
        let mut entries = Vec::new();
        while entries.len() < count {
            match self.ring.pop_used() {
                Some(entry) => entries.push(entry),
                None => self.sleep(deadline, "used entries")?,
            }
        }
        Ok(entries)
    }

    /// Sleeps until the device notifies us or is gone.
    fn sleep(&mut self, deadline: Instant, what: &str) -> Result<(), Error> {
        self.ring.ask_for_notification();
        if self.ring.device_used_idx() != self.ring.used_idx() {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = wait_events(&[(self.call.as_raw_fd(), libc::POLLIN), (self.control.as_raw_fd(), 0)], left)?;
        if ready[0] {
            // A spurious wake-up leaves nothing to read; the caller looks at the ring in any case.
            if self.call.read_exact(&mut [0; 8]).is_ok() {
                self.calls += 1;
            }
            return Ok(());
        }
        if self.ring.device_used_idx() != self.ring.used_idx() {
            let why = "completed without notifying";
            return if ready[1] { Ok(()) } else { Err(Error::BadReply(format!("{what}: {why}"))) };
        }
        if ready[1] {
            return Err(Error::Disconnected(format!("waiting for {what}")));
        }
        Err(Error::Timeout { what: what.to_owned(), after: self.timeout })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.ring.check_guards();
        }
    }
}

/// A non-blocking eventfd.
pub fn eventfd() -> io::Result<File> {
    // SAFETY: no pointers are involved.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just created and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}
