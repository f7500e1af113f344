//! Open files and directories, by the number that the guest holds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::inode::Inode;
use super::scan::Scan;
use super::stream::Streams;
use crate::fs::{Errno, Handle, NodeId, Result};
use crate::metrics::MountMeter;

/// An open file.
#[derive(Debug)]
pub struct OpenFile {
    /// Which.
    pub inode: Arc<Inode>,
    /// Lineage of the bytes when it was opened; another one since then means ESTALE.
    pub lineage: u64,
    /// It may be read.
    pub readable: bool,
    /// It may be written.
    pub writable: bool,
    /// Writes go to the end.
    pub append: bool,
    /// How it is read.
    pub streams: Streams,
}

/// An open directory.
#[derive(Debug)]
pub struct OpenDir {
    /// Which.
    pub inode: Arc<Inode>,
    /// Its names, as far as they were asked for.
    pub scan: async_lock::Mutex<Scan>,
}

#[derive(Debug, Default)]
struct Tables {
    files: HashMap<Handle, Arc<OpenFile>>,
    dirs: HashMap<Handle, Arc<OpenDir>>,
}

/// All of them.
#[derive(Debug)]
pub struct Handles {
    /// Every request of an open file reads them, from any queue.
    tables: RwLock<Tables>,
    next: AtomicU64,
    limit: usize,
    meter: MountMeter,
}

impl Handles {
    /// Room for `limit` files and as many directories, which `meter` counts.
    pub fn new(limit: usize, meter: MountMeter) -> Handles {
        Handles { tables: RwLock::default(), next: AtomicU64::new(1), limit, meter }
    }

    fn count(&self, tables: &Tables) {
        self.meter.files.store(tables.files.len() as u64, Ordering::Relaxed);
        self.meter.dirs.store(tables.dirs.len() as u64, Ordering::Relaxed);
    }

    fn tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn tables_mut(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn number(&self) -> Handle {
        Handle(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Opens a file.
    ///
    /// # Errors
    /// ENFILE: too many are open.
    pub fn open_file(&self, file: OpenFile) -> Result<Handle> {
        let mut tables = self.tables_mut();
        if tables.files.len() >= self.limit {
            return Err(Errno::ENFILE);
        }
        let handle = self.number();
        tables.files.insert(handle, Arc::new(file));
        self.count(&tables);
        Ok(handle)
    }

    /// Opens a directory.
    ///
    /// # Errors
    /// ENFILE: too many are open.
    pub fn open_dir(&self, dir: OpenDir) -> Result<Handle> {
        let mut tables = self.tables_mut();
        if tables.dirs.len() >= self.limit {
            return Err(Errno::ENFILE);
        }
        let handle = self.number();
        tables.dirs.insert(handle, Arc::new(dir));
        self.count(&tables);
        Ok(handle)
    }

    /// The open file `handle` of `nodeid`.
    ///
    /// # Errors
    /// EBADF: there is none, or it is of another inode.
    pub fn file(&self, nodeid: NodeId, handle: Handle) -> Result<Arc<OpenFile>> {
        let tables = self.tables();
        let file = tables.files.get(&handle).filter(|file| file.inode.id == nodeid);
        file.cloned().ok_or(Errno::EBADF)
    }

    /// The open directory `handle` of `nodeid`.
    ///
    /// # Errors
    /// EBADF: there is none, or it is of another inode.
    pub fn dir(&self, nodeid: NodeId, handle: Handle) -> Result<Arc<OpenDir>> {
        let tables = self.tables();
        let dir = tables.dirs.get(&handle).filter(|dir| dir.inode.id == nodeid);
        dir.cloned().ok_or(Errno::EBADF)
    }

    /// Closes a file.
    pub fn close_file(&self, handle: Handle) {
        let mut tables = self.tables_mut();
        let file = tables.files.remove(&handle);
        self.count(&tables);
        drop(tables);
        drop(file);
    }

    /// Closes a directory.
    pub fn close_dir(&self, handle: Handle) {
        let mut tables = self.tables_mut();
        let dir = tables.dirs.remove(&handle);
        self.count(&tables);
        drop(tables);
        drop(dir);
    }

    /// Closes everything; returns the files that were open.
    pub fn close_all(&self) -> Vec<Arc<OpenFile>> {
        let mut tables = self.tables_mut();
        tables.dirs.clear();
        let files = tables.files.drain().map(|(_, file)| file).collect();
        self.count(&tables);
        files
    }
}
