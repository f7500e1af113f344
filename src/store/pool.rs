//! The pool: one memfd that both processes map. File data crosses from one to the other in it, never in messages.
//!
//! This is the bare memory; who owns which part of it is the device's business (`cache::blocks`). The broker only
//! follows [`Slice`]s, and checks each one's bounds.
//!
//! No huge pages are asked for. With them a copy of 4 KiB from a random place costs a quarter less, of 1 MiB nothing less;
//! but the first use of memory costs four times as much, at each use after it was given back, and a block of 4 KiB takes
//! 2 MiB. Where the machine's administrator wants them (`shmem_enabled`), the kernel uses them unasked.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::protocol::Slice;

/// A shared mapping of the pool's memfd. Pages never touched cost nothing.
#[derive(Debug)]
pub struct Pool {
    base: NonNull<u8>,
    len: usize,
    fd: OwnedFd,
}

// SAFETY: the mapping lives as long as the struct and is plain memory; access goes through methods that state who
// may touch what.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// A new, empty pool of `len` bytes, rounded up to whole pages. The memfd is close-on-exec and sealed against
    /// resizing, so no mapping of it can fault.
    ///
    /// # Errors
    /// memfd_create(2)'s, ftruncate(2)'s, mmap(2)'s.
    pub fn new(len: usize) -> io::Result<Pool> {
        let len = len.next_multiple_of(4096);
        // SAFETY: the name is a C string; the result is checked.
        let fd = unsafe { libc::memfd_create(c"ovfs-pool".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: memfd_create just gave us this descriptor.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len as u64)?;
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: plain fcntl on an open descriptor.
        if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Pool::map(file.into(), len)
    }

    fn map(fd: OwnedFd, len: usize) -> io::Result<Pool> {
        // SAFETY: a fresh shared mapping of `len` bytes of a memfd of that length; the result is checked.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                0,
            )
        };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(addr.cast::<u8>()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        Ok(Pool { base, len, fd })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the pool has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `slice` lies inside the pool.
    pub fn contains(&self, slice: Slice) -> bool {
        slice.offset.checked_add(u64::from(slice.len)).is_some_and(|end| end <= self.len as u64)
    }

    fn at(&self, offset: u64, len: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset).ok()?;
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `offset` was just checked to lie inside the mapping.
        Some(unsafe { self.base.as_ptr().add(offset) })
    }

    /// Copies `data` into the pool at `offset`. Returns false, with nothing copied, if it does not lie inside.
    pub fn write(&self, offset: u64, data: &[u8]) -> bool {
        let Some(to) = self.at(offset, data.len()) else { return false };
        // SAFETY: `to` starts `data.len()` bytes inside the mapping; `data` is ours and no part of it.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
        true
    }

    /// Copies from the pool at `offset` into `out`. Returns false, with nothing copied, if it does not lie inside.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        let Some(from) = self.at(offset, out.len()) else { return false };
        // SAFETY: as in `write`, the other way.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        true
    }

    /// The bytes of `slice`, or `None` if it lies outside.
    ///
    /// # Safety
    /// For the life of the result nobody, in either process, writes these bytes.
    pub unsafe fn bytes(&self, slice: Slice) -> Option<&[u8]> {
        let from = self.at(slice.offset, slice.len as usize)?;
        // SAFETY: inside the mapping; unchanging by this function's contract.
        Some(unsafe { std::slice::from_raw_parts(from, slice.len as usize) })
    }

    /// The bytes of `slice` for writing, or `None` if it lies outside.
    ///
    /// # Safety
    /// For the life of the result nobody else, in either process, reads or writes these bytes.
    #[allow(clippy::mut_from_ref, reason = "shared memory; exclusivity is this function's contract")]
    pub unsafe fn bytes_mut(&self, slice: Slice) -> Option<&mut [u8]> {
        let from = self.at(slice.offset, slice.len as usize)?;
        // SAFETY: inside the mapping; exclusive by this function's contract.
        Some(unsafe { std::slice::from_raw_parts_mut(from, slice.len as usize) })
    }

    /// Gives the memory of `offset..offset + len` (whole pages) back to the kernel; it reads as zeros afterwards.
    pub fn discard(&self, offset: u64, len: usize) {
        if let Some(addr) = self.at(offset, len) {
            // SAFETY: inside the mapping; MADV_REMOVE punches a hole into the memfd. A failure only keeps the memory.
            unsafe { libc::madvise(addr.cast(), len, libc::MADV_REMOVE) };
        }
    }

    /// The memfd.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `map` mapped; no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Read-only bytes of a pool that keep the mapping alive: what the broker hands to OpenDAL without copying.
#[derive(Debug)]
pub struct PoolBytes {
    pool: Arc<Pool>,
    slice: Slice,
}

impl PoolBytes {
    /// The bytes of `slice`, or `None` if it lies outside.
    ///
    /// # Safety
    /// Until the result is dropped nobody, in either process, writes these bytes. (The device promises it from sending
    /// a request until its reply. A device that breaks the promise harms nobody but the object it writes.)
    pub unsafe fn new(pool: &Arc<Pool>, slice: Slice) -> Option<PoolBytes> {
        pool.contains(slice).then(|| PoolBytes { pool: Arc::clone(pool), slice })
    }
}

impl AsRef<[u8]> for PoolBytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the caller of `new` promised that nobody writes; the bounds were checked there.
        unsafe { self.pool.bytes(self.slice) }.unwrap_or_default()
    }
}
