//! A request's guest memory: a descriptor chain copied out once, seen as [`Source`] and [`Sink`].
//!
//! A guest may rewrite descriptors at any time, so they are read once, when the chain is popped, and every range is
//! checked against one snapshot of the memory map that the chain then holds. What the ranges contain stays volatile:
//! callers copy a byte once and never look again.
//!
//! Invariants
//! (1) `ranges[..readable]` are device-readable, the rest device-writable; each lies inside one region of `memory`.
//! (2) `readable_len` and `writable_len` are the sums of their ranges and at most [`MESSAGE_LEN_MAX`].
//! (3) Nothing here keeps a pointer or a slice of guest memory between two calls.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use virtio_queue::desc::split::Descriptor;
use vm_memory::bitmap::{Bitmap, RefSlice};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice};

use super::dirty_log::DirtyLog;
use crate::fs::{Errno, Sink, Source};
use crate::fuse::ReplyBuffer;

/// Guest memory with a dirty-page log.
pub(super) type Memory = GuestMemoryMmap<DirtyLog>;

/// Bytes of one direction of a request that are looked at: 1 MiB of data, which is what FUSE_INIT grants, and room
/// for headers. What a guest offers beyond is left alone.
pub const MESSAGE_LEN_MAX: usize = (1 << 20) + 4096;

/// Descriptors of one chain that are walked. A request of 1 MiB in pages of 4 KiB needs 256 and a few.
pub(super) const DESCRIPTORS_MAX: usize = 1024;

/// Ranges handed to one preadv2/pwritev2 call; a request of 1 MiB in scattered pages needs one call and a bit.
const IOVECS: usize = 264;

/// `struct fuse_out_header`: length, error, unique.
const OUT_HEADER_LEN: usize = 16;

const ZEROS: [u8; 4096] = [0; 4096];

/// What is wrong with a descriptor chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// The chain has no descriptor that can be read.
    #[error("no readable descriptor table entry")]
    Empty,
    /// The chain promises a next descriptor that does not exist: bad index, bad indirect table, a loop.
    #[error("chain breaks off")]
    Broken,
    /// More than [`DESCRIPTORS_MAX`] descriptors.
    #[error("chain too long")]
    TooLong,
    /// A descriptor names memory that the guest does not have.
    #[error("descriptor outside guest memory")]
    OutsideMemory,
    /// A device-readable descriptor follows a device-writable one.
    #[error("readable descriptor after a writable one")]
    Order,
}

impl Fault {
    /// What a request with this fault ends in.
    fn errno(self) -> Errno {
        match self {
            Fault::Order => Errno::EINVAL,
            Fault::Empty | Fault::Broken | Fault::TooLong | Fault::OutsideMemory => Errno::EIO,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Range {
    addr: GuestAddress,
    len: usize,
}

/// A descriptor chain, copied out of the ring.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    memory: Option<Arc<Memory>>,
    ranges: Vec<Range>,
    readable: usize,
    readable_len: usize,
    writable_len: usize,
}

impl Chain {
    /// Copies `descriptors` out of the guest, keeping what is sound of them even when the rest is not.
    ///
    /// # Errors
    /// The first fault of the chain; [`Chain::refuse`] then answers with what was kept.
    pub(super) fn fill(
        &mut self,
        memory: &Arc<Memory>,
        descriptors: impl Iterator<Item = Descriptor>,
    ) -> Result<(), Fault> {
        self.clear();
        self.memory = Some(Arc::clone(memory));
        let mut fault = None;
        let mut more = false;
        let mut seen = 0_usize;
        for descriptor in descriptors {
            seen = seen.saturating_add(1);
            if seen > DESCRIPTORS_MAX {
                fault.get_or_insert(Fault::TooLong);
                break;
            }
            more = descriptor.has_next();
            let added = self.add(memory, descriptor.addr(), descriptor.len(), descriptor.is_write_only());
            if let Err(bad) = added {
                fault.get_or_insert(bad);
            }
            if self.writable_len == MESSAGE_LEN_MAX {
                // Nothing that may follow is looked at.
                more = false;
                break;
            }
        }
        if seen == 0 {
            fault = Some(Fault::Empty);
        } else if more && fault.is_none() {
            fault = Some(Fault::Broken);
        }
        fault.map_or(Ok(()), Err)
    }

    /// Forgets the chain, and the memory map with it; keeps the allocation.
    pub(super) fn clear(&mut self) {
        *self = Chain { ranges: std::mem::take(&mut self.ranges), ..Chain::default() };
        self.ranges.clear();
    }

    /// Bytes that a reply may have.
    pub(super) fn writable_len(&self) -> usize {
        self.writable_len
    }

    fn add(&mut self, memory: &Memory, addr: GuestAddress, len: u32, writable: bool) -> Result<(), Fault> {
        if !writable && self.readable < self.ranges.len() {
            return Err(Fault::Order);
        }
        let total = if writable { self.writable_len } else { self.readable_len };
        let mut addr = addr;
        let mut left = (len as usize).min(MESSAGE_LEN_MAX.saturating_sub(total));
        while left > 0 {
            let (region, offset) = memory.to_region_addr(addr).ok_or(Fault::OutsideMemory)?;
            let room = region.len().saturating_sub(offset.raw_value());
            let len = left.min(usize::try_from(room).unwrap_or(usize::MAX));
            self.push(addr, len, writable, offset.raw_value() != 0);
            left = left.saturating_sub(len);
            if left > 0 {
                addr = addr.checked_add(len as u64).ok_or(Fault::OutsideMemory)?;
            }
        }
        Ok(())
    }

    /// Appends a range, or lengthens the last one of the same direction when it ends where this one begins.
    fn push(&mut self, addr: GuestAddress, len: usize, writable: bool, same_region: bool) {
        let first_of_kind = if writable { self.ranges.len() == self.readable } else { self.readable == 0 };
        match self.ranges.last_mut() {
            Some(last) if !first_of_kind && same_region && last.addr.checked_add(last.len as u64) == Some(addr) => {
                last.len = last.len.saturating_add(len);
            }
            _ => {
                self.ranges.push(Range { addr, len });
                if !writable {
                    self.readable = self.readable.saturating_add(1);
                }
            }
        }
        let total = if writable { &mut self.writable_len } else { &mut self.readable_len };
        *total = total.saturating_add(len);
    }

    fn slice(&self, addr: GuestAddress, len: usize) -> io::Result<VolatileSlice<'_, RefSlice<'_, DirtyLog>>> {
        let memory = self.memory.as_ref().ok_or_else(gone)?;
        memory.get_slice(addr, len).map_err(|_| gone())
    }

    /// Answers the request with an error instead of serving it: bytes for the used ring. 0 when the guest left no room
    /// for an answer, which is also how requests without a reply look, or does not say to which request.
    pub(super) fn refuse(self: &Arc<Self>, errno: Errno) -> u32 {
        if self.writable_len < OUT_HEADER_LEN {
            return 0;
        }
        let mut start = [0; OUT_HEADER_LEN];
        // `struct fuse_in_header`: length, opcode, unique.
        let taken = GuestSource::new(Arc::clone(self)).take(&mut start);
        let Some(unique) = start.last_chunk::<8>().filter(|_| taken.is_ok()) else { return 0 };
        let mut header = Vec::with_capacity(OUT_HEADER_LEN);
        header.extend_from_slice(&16_u32.to_le_bytes());
        header.extend_from_slice(&errno.raw().wrapping_neg().to_le_bytes());
        header.extend_from_slice(unique);
        match GuestSink::new(Arc::clone(self)).put(&header) {
            Ok(()) => 16,
            Err(_) => 0,
        }
    }

    /// [`Chain::refuse`] with the error that fits `fault`.
    pub(super) fn refuse_fault(self: &Arc<Self>, fault: Fault) -> u32 {
        self.refuse(fault.errno())
    }
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::EFAULT)
}

/// A place in a chain, and how far a buffer goes from there.
#[derive(Debug)]
struct Cursor {
    chain: Arc<Chain>,
    range: usize,
    offset: usize,
    left: usize,
}

impl Cursor {
    /// The next contiguous piece of at most `max` bytes. `None` at the end of the buffer.
    fn piece(&self, max: usize) -> Option<(GuestAddress, usize)> {
        let range = self.chain.ranges.get(self.range)?;
        let len = range.len.saturating_sub(self.offset).min(self.left).min(max);
        let addr = range.addr.checked_add(self.offset as u64)?;
        (len > 0).then_some((addr, len))
    }

    /// Moves on by `len` bytes, at most to the end of the buffer.
    fn advance(&mut self, len: usize) {
        let mut len = len.min(self.left);
        self.left = self.left.saturating_sub(len);
        while let Some(range) = self.chain.ranges.get(self.range) {
            let here = range.len.saturating_sub(self.offset);
            if len < here {
                self.offset = self.offset.saturating_add(len);
                return;
            }
            len = len.saturating_sub(here);
            self.range = self.range.saturating_add(1);
            self.offset = 0;
        }
    }

    /// Calls `copy` with consecutive pieces of guest memory, `len` bytes in all.
    fn each(
        &mut self,
        len: usize,
        mut copy: impl FnMut(&VolatileSlice<'_, RefSlice<'_, DirtyLog>>, usize),
    ) -> io::Result<()> {
        if len > self.left {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let mut done = 0_usize;
        while done < len {
            let (addr, n) = self.piece(len.saturating_sub(done)).ok_or_else(gone)?;
            copy(&self.chain.slice(addr, n)?, done);
            self.advance(n);
            done = done.saturating_add(n);
        }
        Ok(())
    }

    /// Fills the first entries of `iovecs` with the next pieces, at most `len` bytes: how many entries.
    fn gather(&self, iovecs: &mut [MaybeUninit<libc::iovec>; IOVECS], len: usize) -> io::Result<libc::c_int> {
        let mut at = Cursor { chain: Arc::clone(&self.chain), ..*self };
        let mut left = len;
        let mut count = 0_i32;
        for iovec in iovecs.iter_mut() {
            let Some((addr, n)) = at.piece(left) else { break };
            let slice = at.chain.slice(addr, n)?;
            iovec.write(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: n });
            at.advance(n);
            left = left.saturating_sub(n);
            count = count.saturating_add(1);
        }
        Ok(count)
    }

    /// Moves up to `len` bytes between the buffer and `file` from `offset` on, one vectored call after the other:
    /// until `len`, a call that moves nothing, or an error; an error after some bytes is left to the next caller.
    fn transfer(&mut self, file: &File, len: usize, offset: u64, flags: i32, call: Vectored) -> io::Result<usize> {
        let mut iovecs = [const { MaybeUninit::<libc::iovec>::uninit() }; IOVECS];
        let len = len.min(self.left);
        let mut done = 0_usize;
        while done < len {
            let count = self.gather(&mut iovecs, len.saturating_sub(done))?;
            let at = offset
                .checked_add(done as u64)
                .and_then(|at| i64::try_from(at).ok())
                .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
            // SAFETY: `gather` has written the first `count` entries of `iovecs`; they name memory inside regions of the memory map that
            // `self.chain` holds, so they stay mapped during the call; the guest may write there at the same time,
            // which the kernel's copy tolerates, and no Rust reference to that memory exists; the file is open as
            // long as `file` lives.
            let n = unsafe { call(file.as_raw_fd(), iovecs.as_ptr().cast(), count, at, flags) };
            match usize::try_from(n) {
                Ok(0) => break,
                Ok(n) => {
                    self.mark(n)?;
                    done = done.saturating_add(n);
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    match error.kind() {
                        io::ErrorKind::Interrupted => {}
                        _ if done > 0 => break,
                        _ => return Err(error),
                    }
                }
            }
        }
        Ok(done)
    }

    /// Moves on by `len` bytes, logging those of the writable part as dirty.
    fn mark(&mut self, len: usize) -> io::Result<()> {
        if self.range < self.chain.readable {
            self.advance(len);
            return Ok(());
        }
        self.each(len, |slice, _| slice.bitmap().mark_dirty(0, slice.len()))
    }
}

/// preadv2(2) or pwritev2(2).
type Vectored =
    unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t, libc::c_int) -> libc::ssize_t;

/// The readable part of a request.
#[derive(Debug)]
pub struct GuestSource {
    cursor: Cursor,
    arrived: Option<Instant>,
}

impl GuestSource {
    pub(super) fn new(chain: Arc<Chain>) -> GuestSource {
        let left = chain.readable_len;
        GuestSource { cursor: Cursor { chain, range: 0, offset: 0, left }, arrived: None }
    }

    /// The chain was popped at `arrived`.
    pub(super) fn popped(self, arrived: Option<Instant>) -> GuestSource {
        GuestSource { arrived, ..self }
    }
}

impl Source for GuestSource {
    fn arrived(&self) -> Option<Instant> {
        self.arrived
    }

    fn remaining(&self) -> usize {
        self.cursor.left
    }

    fn take(&mut self, buf: &mut [u8]) -> io::Result<()> {
        self.cursor.each(buf.len(), |slice, at| {
            if let Some(rest) = buf.get_mut(at..) {
                slice.copy_to(rest);
            }
        })
    }

    fn take_to_file(&mut self, file: &File, len: usize, offset: u64, flags: i32) -> io::Result<usize> {
        self.cursor.transfer(file, len, offset, flags, libc::pwritev2)
    }
}

/// The writable part of a request.
#[derive(Debug)]
pub struct GuestSink {
    cursor: Cursor,
}

impl GuestSink {
    pub(super) fn new(chain: Arc<Chain>) -> GuestSink {
        let (range, left) = (chain.readable, chain.writable_len);
        GuestSink { cursor: Cursor { chain, range, offset: 0, left } }
    }
}

impl Sink for GuestSink {
    fn remaining(&self) -> usize {
        self.cursor.left
    }

    fn put(&mut self, data: &[u8]) -> io::Result<()> {
        self.cursor.each(data.len(), |slice, at| {
            if let Some(rest) = data.get(at..) {
                slice.copy_from(rest);
            }
        })
    }

    fn put_zeros(&mut self, len: usize) -> io::Result<()> {
        if len > self.cursor.left {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let mut left = len;
        while left > 0 {
            let n = left.min(ZEROS.len());
            self.cursor.each(n, |slice, at| {
                if let Some(rest) = ZEROS.get(at..) {
                    slice.copy_from(rest);
                }
            })?;
            left = left.saturating_sub(n);
        }
        Ok(())
    }

    fn put_from_file(&mut self, file: &File, len: usize, offset: u64, flags: i32) -> io::Result<usize> {
        self.cursor.transfer(file, len, offset, flags, libc::preadv2)
    }
}

impl ReplyBuffer for GuestSink {
    fn split_at(&mut self, len: usize) -> io::Result<GuestSink> {
        let Some(left) = self.cursor.left.checked_sub(len) else {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        };
        let mut rest = Cursor { chain: Arc::clone(&self.cursor.chain), ..self.cursor };
        rest.advance(len);
        debug_assert_eq!(rest.left, left);
        self.cursor.left = len;
        Ok(GuestSink { cursor: rest })
    }
}
