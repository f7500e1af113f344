//! The dirty-page log of live migration.
//!
//! While the front end migrates a guest it must learn of every page that the device writes. It hands over one bitmap
//! for the whole guest-physical address space (SET_LOG_BASE); each memory region sets its bits there, one per 4 KiB.
//! Slices of guest memory borrow their region's log, so that an access without migration costs one relaxed load and
//! shares no counter between queue workers.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use vm_memory::bitmap::{Bitmap, RefSlice, WithBitmapSlice};
use vm_memory::mmap::NewBitmap;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Guest bytes per bit of the log, as the vhost-user protocol fixes it.
const PAGE_LEN: u64 = 4096;

/// The bitmap shared with the front end.
#[derive(Debug)]
pub(super) struct LogMemory {
    map: MmapRegion<()>,
}

impl LogMemory {
    /// Maps `len` bytes of `file` from `offset`.
    ///
    /// # Errors
    /// When the range is not inside the file or cannot be mapped.
    pub(super) fn map(file: File, offset: u64, len: u64) -> io::Result<LogMemory> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let map = MmapRegion::from_file(FileOffset::new(file, offset), len).map_err(io::Error::other)?;
        Ok(LogMemory { map })
    }

    /// Whether the log has a bit for the guest-physical address `last`.
    pub(super) fn covers(&self, last: u64) -> bool {
        usize::try_from(last / PAGE_LEN / 8).is_ok_and(|byte| byte < self.map.size())
    }

    fn set(&self, page: u64) {
        let Ok(byte) = usize::try_from(page / 8) else { return };
        if let Ok(cell) = self.map.get_atomic_ref::<AtomicU8>(byte) {
            cell.fetch_or(1 << (page % 8), Ordering::Relaxed);
        }
    }

    fn is_set(&self, page: u64) -> bool {
        let Ok(byte) = usize::try_from(page / 8) else { return false };
        self.map
            .get_atomic_ref::<AtomicU8>(byte)
            .is_ok_and(|cell| cell.load(Ordering::Relaxed) & (1 << (page % 8)) != 0)
    }
}

/// Where one memory region reports its writes; silent until [`DirtyLog::start`].
#[derive(Debug, Default)]
pub(super) struct DirtyLog {
    active: AtomicBool,
    target: RwLock<Option<Target>>,
}

#[derive(Debug)]
struct Target {
    log: Arc<LogMemory>,
    base: u64,
}

impl DirtyLog {
    /// Logs from now on into `log`; `base` is the region's guest-physical start.
    pub(super) fn start(&self, log: Arc<LogMemory>, base: u64) {
        *self.target.write().unwrap_or_else(PoisonError::into_inner) = Some(Target { log, base });
        self.active.store(true, Ordering::SeqCst);
    }

    /// Stops logging and lets go of the bitmap.
    pub(super) fn stop(&self) {
        self.active.store(false, Ordering::SeqCst);
        *self.target.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Bitmap for DirtyLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if !self.active.load(Ordering::Relaxed) || len == 0 {
            return;
        }
        let target = self.target.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = target.as_ref() {
            let first = target.base.saturating_add(offset as u64);
            let last = first.saturating_add(len as u64 - 1);
            for page in first / PAGE_LEN..=last / PAGE_LEN {
                target.log.set(page);
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let target = self.target.read().unwrap_or_else(PoisonError::into_inner);
        target.as_ref().is_some_and(|target| target.log.is_set(target.base.saturating_add(offset as u64) / PAGE_LEN))
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, DirtyLog> {
        RefSlice::new(self, offset)
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyLog {
    type S = RefSlice<'a, DirtyLog>;
}

impl NewBitmap for DirtyLog {
    fn with_len(_len: usize) -> DirtyLog {
        DirtyLog::default()
    }
}
