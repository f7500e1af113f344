//! A file of the disk cache: blocks of one version of one object.
//!
//! A header, a table with one checksum per block (0: it is not here), and the blocks where they are in the object; what is
//! not here is a hole. Several processes write to it at once; all write the same. A block counts only if its checksum is
//! right, so the order in which things reach the disk does not matter.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crc_fast::{CrcAlgorithm, checksum};

/// Length of a block in bytes.
const BLOCK: u64 = 64 << 10;

const MAGIC: &[u8; 16] = b"ovfs disk cache1";

/// Where the table begins, and a multiple of which the data begins at.
const PAGE: u64 = 4096;

/// How old the time of a file may be that is in use: it says when that was last.
const USED_EVERY: Duration = Duration::from_secs(60);

/// An open file.
#[derive(Debug)]
pub struct Object {
    file: File,
    /// Length of the object.
    size: u64,
}

/// A lock on blocks; gone when it is dropped.
#[derive(Debug)]
pub struct Lock<'a> {
    object: &'a Object,
    ranges: Vec<libc::flock>,
}

impl Object {
    /// Opens or makes the file for an object of `size` bytes.
    ///
    /// # Errors
    /// open(2)'s and write(2)'s.
    pub fn open(path: &Path, size: u64) -> io::Result<Object> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = match options.open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let above = path.parent().unwrap_or(Path::new("/"));
                std::fs::DirBuilder::new().mode(0o700).recursive(true).create(above)?;
                options.open(path)?
            }
            other => other?,
        };
        let object = Object { file, size };
        let found = object.file.metadata()?;
        let mut header = [0; MAGIC.len() + 8];
        let valid = found.len() == object.end()
            && object.file.read_exact_at(&mut header, 0).is_ok()
            && header == object.header();
        if !valid {
            // Everybody who finds it unfinished writes the same.
            object.file.set_len(object.end())?;
            object.file.write_all_at(&object.header(), 0)?;
        } else if found.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > USED_EVERY)) {
            object.file.set_modified(SystemTime::now())?;
        }
        Ok(object)
    }

    fn header(&self) -> [u8; MAGIC.len() + 8] {
        let mut header = [0; MAGIC.len() + 8];
        header[..MAGIC.len()].copy_from_slice(MAGIC);
        header[MAGIC.len()..].copy_from_slice(&self.size.to_le_bytes());
        header
    }

    fn data(&self) -> u64 {
        (PAGE + self.size.div_ceil(BLOCK) * 8).next_multiple_of(PAGE)
    }

    fn end(&self) -> u64 {
        self.data() + self.size
    }

    /// Length of the block with this number.
    fn block_len(&self, block: u64) -> usize {
        usize::try_from(BLOCK.min(self.size.saturating_sub(block * BLOCK))).unwrap_or(0)
    }

    /// The checksums of the blocks from `first` to `last`; none where the file cannot be read.
    fn table(&self, first: u64, last: u64) -> Vec<u64> {
        let count = usize::try_from(last - first + 1).unwrap_or(0);
        let mut bytes = vec![0; count * 8];
        if self.file.read_exact_at(&mut bytes, PAGE + first * 8).is_err() {
            return vec![0; count];
        }
        bytes.chunks_exact(8).map(|sum| sum.try_into().map_or(0, u64::from_le_bytes)).collect()
    }

    /// Fills `out` with the object's bytes from `at` on; returns which of them are not here.
    pub fn read(&self, at: u64, out: &mut [u8]) -> Vec<(u64, u32)> {
        let end = at + out.len() as u64;
        if out.is_empty() || end > self.size {
            return Vec::new();
        }
        let (first, last) = (at / BLOCK, (end - 1) / BLOCK);
        let sums = self.table(first, last);
        let mut missing = Vec::new();
        let mut scratch = Vec::new();
        for (block, sum) in (first..=last).zip(sums) {
            let (start, len) = (block * BLOCK, self.block_len(block));
            let (from, until) = (start.max(at), (start + len as u64).min(end));
            let place = (from - at) as usize..(until - at) as usize;
            let whole = until - from == len as u64;
            let here = sum != 0 && {
                let bytes = if whole {
                    &mut out[place.clone()]
                } else {
                    scratch.resize(len, 0);
                    &mut scratch[..]
                };
                self.file.read_exact_at(bytes, self.data() + start).is_ok() && sum_of(bytes) == sum
            };
            if !here {
                missing.push((from, (until - from) as u32));
            } else if !whole {
                let skip = (from - start) as usize;
                out[place.clone()].copy_from_slice(&scratch[skip..skip + place.len()]);
            }
        }
        missing
    }

    /// Keeps the whole blocks in `bytes`, which are the object's from `at` on. Returns how many bytes that was.
    ///
    /// # Errors
    /// write(2)'s.
    pub fn write(&self, at: u64, bytes: &[u8]) -> io::Result<u64> {
        let end = at + bytes.len() as u64;
        let mut written = 0;
        let mut block = at.div_ceil(BLOCK);
        while block * BLOCK < end {
            let (start, len) = (block * BLOCK, self.block_len(block));
            if len == 0 || start + len as u64 > end {
                break;
            }
            let from = (start - at) as usize;
            let bytes = &bytes[from..from + len];
            self.file.write_all_at(bytes, self.data() + start)?;
            self.file.write_all_at(&sum_of(bytes).to_le_bytes(), PAGE + block * 8)?;
            written += len as u64;
            block += 1;
        }
        Ok(written)
    }

    /// Locks the blocks that `ranges` touch.
    ///
    /// # Errors
    /// Somebody else holds one of them.
    pub fn lock(&self, ranges: &[(u64, u32)]) -> io::Result<Option<Lock<'_>>> {
        let mut lock = Lock { object: self, ranges: Vec::new() };
        for &(at, len) in ranges {
            let (first, last) = (at / BLOCK, (at + u64::from(len).max(1) - 1) / BLOCK);
            // SAFETY: plain data for which zeros are valid.
            let mut range: libc::flock = unsafe { std::mem::zeroed() };
            range.l_type = libc::F_WRLCK as libc::c_short;
            range.l_whence = libc::SEEK_SET as libc::c_short;
            range.l_start = (PAGE + first * 8) as libc::off_t;
            range.l_len = ((last - first + 1) * 8) as libc::off_t;
            // SAFETY: an open descriptor and a struct that outlives the call.
            if unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } != 0 {
                let e = io::Error::last_os_error();
                return match e.raw_os_error() {
                    Some(libc::EAGAIN | libc::EACCES) => Err(e),
                    // A file system without locks: everybody fetches for itself.
                    _ => Ok(None),
                };
            }
            lock.ranges.push(range);
        }
        Ok(Some(lock))
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        for range in &mut self.ranges {
            range.l_type = libc::F_UNLCK as libc::c_short;
            // SAFETY: as in `lock`. It cannot fail in a way that matters: closing the file gives the lock back.
            unsafe { libc::fcntl(self.object.file.as_raw_fd(), libc::F_OFD_SETLK, &raw const *range) };
        }
    }
}

/// Joins ranges that touch each other; they come in order.
pub fn runs(ranges: Vec<(u64, u32)>) -> Vec<(u64, u32)> {
    let mut joined: Vec<(u64, u32)> = Vec::new();
    for (at, len) in ranges {
        match joined.last_mut() {
            Some((start, sum)) if *start + u64::from(*sum) == at => *sum = sum.saturating_add(len),
            _ => joined.push((at, len)),
        }
    }
    joined
}

/// A checksum that is never 0, which stands for none.
fn sum_of(bytes: &[u8]) -> u64 {
    checksum(CrcAlgorithm::Crc64Nvme, bytes).max(1)
}
