//! Guest memory: memfd-backed regions that the daemon maps too, and an allocator for buffers inside one.
//!
//! The daemon reads and writes the same pages while we do, so no Rust reference to them is ever made: bytes are copied
//! in and out through raw pointers, ring indices are loaded and stored atomically.
//!
//! Guest-physical addresses start well above zero and differ from the mapping's address, so that a daemon which mixes
//! up the two address spaces fails at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// Bytes of a guest page.
pub const PAGE: u64 = 4096;

/// A piece of guest-physical address space backed by a memfd.
#[derive(Debug)]
pub struct Region {
    file: File,
    base: NonNull<u8>,
    gpa: u64,
    size: u64,
}

// SAFETY: the mapping lives as long as the region and is only accessed by copies through raw pointers and by atomics.
unsafe impl Send for Region {}
// SAFETY: as above; concurrent copies can tear bytes, which is what guest memory is like, and never form references.
unsafe impl Sync for Region {}

impl Region {
    /// Makes `size` bytes (whole pages) of zeroed guest memory at guest-physical address `gpa`.
    pub fn new(gpa: u64, size: u64) -> io::Result<Arc<Region>> {
        let file = memfd(size)?;
        let len = usize::try_from(size).map_err(io::Error::other)?;
        // SAFETY: a fresh shared mapping of a descriptor we own, at an address of the kernel's choice.
        let ptr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if ptr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(ptr.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Arc::new(Region { file, base, gpa, size }))
    }

    /// First guest-physical address.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The memfd behind the region.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where `gpa` is mapped in this process: the "user address" of vhost-user messages.
    pub fn user_addr(&self, gpa: u64) -> u64 {
        self.at(gpa, 0) as u64
    }

    /// Pointer to `len` bytes at `gpa`; a range outside the region is a mistake of the test and panics.
    fn at(&self, gpa: u64, len: u64) -> *mut u8 {
        let offset = gpa.checked_sub(self.gpa).filter(|o| o.checked_add(len).is_some_and(|end| end <= self.size));
        let Some(offset) = offset else { panic!("{gpa:#x}+{len} is outside the guest memory region") };
        // SAFETY: the offset was just checked to lie inside the mapping.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }

    /// Copies guest memory into `buf`.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) {
        let from = self.at(gpa, buf.len() as u64);
        // SAFETY: `at` checked the range; `buf` is ours alone and cannot overlap the mapping.
        unsafe { std::ptr::copy_nonoverlapping(from, buf.as_mut_ptr(), buf.len()) }
    }

    /// Copies `bytes` into guest memory.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        let to = self.at(gpa, bytes.len() as u64);
        // SAFETY: `at` checked the range; `bytes` cannot overlap the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    /// Sets `len` bytes at `gpa` to `byte`.
    pub fn fill(&self, gpa: u64, len: u64, byte: u8) {
        let to = self.at(gpa, len);
        // SAFETY: `at` checked the range.
        unsafe { std::ptr::write_bytes(to, byte, len as usize) }
    }

    /// `len` bytes at `gpa`.
    pub fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.read(gpa, &mut buf);
        buf
    }

    fn atomic_u16(&self, gpa: u64) -> &AtomicU16 {
        let ptr = self.at(gpa, 2);
        assert!(ptr.cast::<u16>().is_aligned(), "ring index at {gpa:#x} is not aligned");
        // SAFETY: in range and aligned; both sides access ring indices atomically; the mapping outlives `self`.
        unsafe { AtomicU16::from_ptr(ptr.cast()) }
    }

    /// Loads a ring index with acquire ordering.
    pub fn load_u16(&self, gpa: u64) -> u16 {
        u16::from_le(self.atomic_u16(gpa).load(Ordering::Acquire))
    }

    /// Stores a ring index with release ordering.
    pub fn store_u16(&self, gpa: u64, value: u16) {
        self.atomic_u16(gpa).store(value.to_le(), Ordering::Release);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; no pointer into it is handed out.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.size as usize) };
    }
}

/// A memfd of `size` bytes.
pub fn memfd(size: u64) -> io::Result<File> {
    // SAFETY: a NUL-terminated name and valid flags.
    let fd = unsafe { libc::memfd_create(c"guest-memory".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just created and nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

/// First-fit allocator over a range of guest-physical addresses.
#[derive(Debug)]
pub struct Arena {
    free: BTreeMap<u64, u64>,
}

impl Arena {
    /// An allocator over `len` bytes at `start`.
    pub fn new(start: u64, len: u64) -> Arena {
        Arena { free: BTreeMap::from([(start, len)]) }
    }

    /// `len` bytes aligned to `align` (a power of two), or `None` when no hole is large enough.
    pub fn alloc(&mut self, len: u64, align: u64) -> Option<u64> {
        let len = len.max(1).next_multiple_of(16);
        let (start, size, at) = self.free.iter().find_map(|(start, size)| {
            let at = start.next_multiple_of(align);
            (at + len <= start + size).then_some((*start, *size, at))
        })?;
        self.free.remove(&start);
        if at > start {
            self.free.insert(start, at - start);
        }
        if at + len < start + size {
            self.free.insert(at + len, start + size - at - len);
        }
        Some(at)
    }

    /// Gives back what `alloc` returned for the same `len`.
    pub fn release(&mut self, at: u64, len: u64) {
        let mut start = at;
        let mut size = len.max(1).next_multiple_of(16);
        if let Some((&before, &before_len)) = self.free.range(..start).next_back() {
            assert!(before + before_len <= start, "double release of guest memory at {at:#x}");
            if before + before_len == start {
                self.free.remove(&before);
                start = before;
                size += before_len;
            }
        }
        if let Some(after_len) = self.free.remove(&(start + size)) {
            size += after_len;
        }
        self.free.insert(start, size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arena_reuses_and_merges_what_is_released() {
        let mut arena = Arena::new(0x1000, 0x3000);
        let a = arena.alloc(0x1000, PAGE).unwrap();
        let b = arena.alloc(0x1000, PAGE).unwrap();
        let c = arena.alloc(0x1000, PAGE).unwrap();
        assert_eq!(arena.alloc(1, 1), None);
        arena.release(a, 0x1000);
        arena.release(c, 0x1000);
        assert_eq!(arena.alloc(0x2000, 1), None);
        arena.release(b, 0x1000);
        assert_eq!(arena.alloc(0x3000, 1), Some(0x1000));
    }

    #[test]
    fn region_copies_in_and_out() {
        let region = Region::new(0x4000_0000, 2 * PAGE).unwrap();
        region.write(0x4000_0ffe, b"across");
        assert_eq!(region.bytes(0x4000_0ffe, 6), b"across");
        region.store_u16(0x4000_0010, 0xabcd);
        assert_eq!(region.load_u16(0x4000_0010), 0xabcd);
    }
}
