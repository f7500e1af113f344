//! The service `fs`: a directory of this machine.
//!
//! It is served by system calls, not by OpenDAL's service, which follows symbolic links out of its root, loses modes,
//! creates what is missing and cannot rename onto nothing only. What a guest sees is the same: files and directories.
//! All of it blocks, so all of it runs on tokio's threads for that.

mod compose;
mod confine;
mod temporary;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use self::confine::{DirStream, Root, fstat, is_dir, is_nothing, mkdir_in, rename_in, shown, stat_in, unlink_in};
use self::temporary::Temporary;
use super::cursors::Cursors;
use super::error::{error, os};
use super::remote::{TEMPORARY, same_version};
use super::url::{Backend, BackendError};
use crate::store::path::{check_name, check_path, join};
use crate::store::{
    Attributes, Capabilities, Condition, Kind, LIST_PAGE_MAX, ListEntry, Meta, Pool, Reply, Slice, StoreError,
    StoreErrorKind, Version,
};

/// Mode of new directories; what the guest sees is decided elsewhere.
const DIR_MODE: u32 = 0o755;

/// A directory of this machine.
#[derive(Debug)]
pub(super) struct Local {
    root: Root,
    pool: Arc<Pool>,
    listings: Cursors<DirStream>,
    hidden: AtomicU64,
    /// Made when the first file is written.
    temporary: Mutex<Option<Arc<Temporary>>>,
}

impl Local {
    /// Opens the root.
    ///
    /// # Errors
    /// [`BackendError::Refused`] with open(2)'s reason.
    pub fn new(backend: &Backend, pool: &Arc<Pool>) -> Result<Local, BackendError> {
        let path = backend.config.get("root").map_or("/", String::as_str);
        let root = Root::open(path)
            .map_err(|e| BackendError::Refused { scheme: backend.service.scheme, why: format!("'{path}': {e}") })?;
        Ok(Local {
            root,
            pool: Arc::clone(pool),
            listings: Cursors::default(),
            hidden: AtomicU64::new(0),
            temporary: Mutex::new(None),
        })
    }

    /// Whether the root can be read, and what a directory can do.
    pub fn probe(&self) -> Result<Capabilities, StoreError> {
        let root = self.root.open_below("", libc::O_RDONLY | libc::O_DIRECTORY).map_err(|e| os("open the root", &e))?;
        // SAFETY: statvfs is plain data for which zeros are valid.
        let mut system: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: an open descriptor and a struct to fill.
        let known = unsafe { libc::fstatvfs(std::os::fd::AsRawFd::as_raw_fd(&root), &raw mut system) } == 0;
        Ok(Capabilities {
            scheme: "fs".into(),
            write: !(known && system.f_flag & libc::ST_RDONLY != 0),
            copy_ranges: true,
            rename: true,
            etag: true,
            write_if_match: false,
            write_if_absent: true,
            real_dirs: true,
            attributes: false,
            attributes_listed: false,
            xattrs_max: 0,
            size_max: None,
        })
    }

    /// What is at `path`.
    pub fn stat(&self, path: &str) -> Result<Meta, StoreError> {
        let what = || format!("stat '{path}'");
        match self.root.stat(path).map_err(|e| os(&what(), &e))? {
            Some(stat) => Ok(meta(&stat)),
            None => Err(error(StoreErrorKind::NotFound, format!("{}: nothing is there", what()))),
        }
    }

    /// The next page of `path`.
    pub fn list(&self, path: &str, cursor: u64) -> Result<Reply, StoreError> {
        let fail = |e: io::Error| os(&format!("list '{path}'"), &e);
        let mut stream = match cursor {
            0 => {
                self.root.open_below(path, libc::O_RDONLY | libc::O_DIRECTORY).and_then(DirStream::new).map_err(fail)?
            }
            _ => self.listings.take(cursor, path).ok_or_else(|| {
                error(StoreErrorKind::Stale, format!("list '{path}': the cursor {cursor} is no more"))
            })?,
        };
        let mut entries = Vec::new();
        while entries.len() < LIST_PAGE_MAX {
            let Some(name) = stream.next_name().map_err(fail)? else {
                return Ok(Reply::Entries { entries, cursor: None });
            };
            entries.extend(self.entry(path, &stream, name).map_err(fail)?);
        }
        Ok(Reply::Entries { entries, cursor: Some(self.listings.put(path, stream)) })
    }

    fn entry(&self, path: &str, dir: &DirStream, name: CString) -> io::Result<Option<ListEntry>> {
        if name.as_bytes().starts_with(TEMPORARY.as_bytes()) {
            return Ok(None);
        }
        // Gone meanwhile, or no file and no directory.
        let Some(stat) = stat_in(dir, &name)?.filter(shown) else { return Ok(None) };
        match check_name(name.as_bytes()) {
            Ok(name) if check_path(&join(path, name)).is_ok() => {
                Ok(Some(ListEntry { name: name.to_owned(), meta: meta(&stat) }))
            }
            _ => {
                let before = self.hidden.fetch_add(1, Ordering::Relaxed);
                let level = if before == 0 { log::Level::Warn } else { log::Level::Debug };
                log::log!(level, "a name in '{path}' cannot be told to a guest and is hidden: {name:?}");
                Ok(None)
            }
        }
    }

    /// Forgets a cursor.
    pub fn list_end(&self, cursor: u64) {
        self.listings.end(cursor);
    }

    /// The file `path`, open for reading.
    fn open_file(&self, path: &str) -> io::Result<(File, Meta)> {
        // O_NONBLOCK: a FIFO must not hold a thread; it is then found to be no file.
        let file = File::from(self.root.open_below(path, libc::O_RDONLY | libc::O_NONBLOCK)?);
        let stat = fstat(&file)?;
        match () {
            () if is_dir(&stat) => Err(io::Error::from_raw_os_error(libc::EISDIR)),
            () if !shown(&stat) => Err(io::Error::from_raw_os_error(libc::ENOENT)),
            () => Ok((file, meta(&stat))),
        }
    }

    /// Fills `dest` with the file's bytes from `offset` on.
    pub fn read(&self, path: &str, version: Option<&Version>, offset: u64, dest: Slice) -> Result<(), StoreError> {
        let what = || format!("read '{path}'");
        let changed = || error(StoreErrorKind::VersionMismatch, format!("{}: it has changed", what()));
        let (file, before) = self.open_file(path).map_err(|e| os(&what(), &e))?;
        if version.is_some_and(|v| !same_version(&before, v)) {
            return Err(changed());
        }
        // SAFETY: the device leaves the slice alone until the reply, which comes after this function.
        let dest = unsafe { self.pool.bytes_mut(dest) };
        let dest =
            dest.ok_or_else(|| error(StoreErrorKind::Protocol, format!("{}: a slice outside the pool", what())))?;
        match file.read_exact_at(dest, offset) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && version.is_some() => return Err(changed()),
            Err(e) => return Err(os(&what(), &e)),
        }
        let after = fstat(&file).map(|s| meta(&s)).map_err(|e| os(&what(), &e))?;
        if version.is_some() && after != before { Err(changed()) } else { Ok(()) }
    }

    /// Deletes the file `path`; a missing one is fine.
    pub fn delete(&self, path: &str) -> Result<(), StoreError> {
        let deleted = self.root.parent(path).and_then(|(dir, name)| match stat_in(&dir, &name)? {
            Some(stat) if is_dir(&stat) => Err(io::Error::from_raw_os_error(libc::EISDIR)),
            Some(stat) if shown(&stat) => unlink_in(&dir, &name, false),
            _ => Ok(()),
        });
        match deleted {
            Err(e) if !is_nothing(&e) => Err(os(&format!("delete '{path}'"), &e)),
            _ => Ok(()),
        }
    }

    /// Makes the directory `path`; one that is there is fine.
    pub fn create_dir(&self, path: &str, _attributes: Option<&Attributes>) -> Result<(), StoreError> {
        let made = self.root.parent(path).and_then(|(dir, name)| match mkdir_in(&dir, &name, DIR_MODE) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) && stat_in(&dir, &name)?.is_some_and(|s| is_dir(&s)) => {
                Ok(())
            }
            other => other,
        });
        made.map_err(|e| os(&format!("create directory '{path}'"), &e))
    }

    /// Removes the directory `path` if it is empty.
    pub fn remove_dir(&self, path: &str) -> Result<(), StoreError> {
        let removed = self.root.parent(path).and_then(|(dir, name)| match stat_in(&dir, &name)?.filter(shown) {
            Some(_) => unlink_in(&dir, &name, true),
            None => Err(io::Error::from_raw_os_error(libc::ENOENT)),
        });
        removed.map_err(|e| os(&format!("remove directory '{path}'"), &e))
    }

    /// Renames a file.
    pub fn rename_file(
        &self,
        from: &str,
        to: &str,
        when: &Condition,
        version: Option<&Version>,
    ) -> Result<Meta, StoreError> {
        let fail = |e: io::Error| os(&format!("rename '{from}' to '{to}'"), &e);
        let (from_dir, from_name) = self.root.parent(from).map_err(fail)?;
        let source = match stat_in(&from_dir, &from_name).map_err(fail)?.filter(shown) {
            Some(stat) if is_dir(&stat) => return Err(fail(io::Error::from_raw_os_error(libc::EISDIR))),
            Some(stat) => stat,
            None => return Err(fail(io::Error::from_raw_os_error(libc::ENOENT))),
        };
        demand_version(from, &meta(&source), version)?;
        if from == to {
            return Ok(meta(&source));
        }
        let (to_dir, to_name) = self.root.parent(to).map_err(fail)?;
        let target = stat_in(&to_dir, &to_name).map_err(fail)?;
        check_target(to, target.as_ref(), when)?;
        let no_replace = target.is_none();
        match rename_in((&from_dir, &from_name), (&to_dir, &to_name), no_replace) {
            // Somebody was faster, and may be replaced.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) && *when == Condition::Any => {
                rename_in((&from_dir, &from_name), (&to_dir, &to_name), false).map_err(fail)?;
            }
            other => other.map_err(fail)?,
        }
        // Two names of one inode: rename(2) then does nothing.
        if target.is_some_and(|t| (t.st_dev, t.st_ino) == (source.st_dev, source.st_ino)) {
            unlink_in(&from_dir, &from_name, false).map_err(fail)?;
        }
        self.stat(to)
    }

    /// Renames a directory onto nothing, or onto an empty directory.
    pub fn rename_dir(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let fail = |e: io::Error| match e.raw_os_error() {
            Some(libc::EINVAL) => error(StoreErrorKind::InvalidName, format!("rename '{from}' to '{to}': into itself")),
            _ => os(&format!("rename directory '{from}' to '{to}'"), &e),
        };
        let (from_dir, from_name) = self.root.parent(from).map_err(fail)?;
        match stat_in(&from_dir, &from_name).map_err(fail)?.filter(shown) {
            Some(stat) if is_dir(&stat) => {}
            Some(_) => return Err(fail(io::Error::from_raw_os_error(libc::ENOTDIR))),
            None => return Err(fail(io::Error::from_raw_os_error(libc::ENOENT))),
        }
        let (to_dir, to_name) = self.root.parent(to).map_err(fail)?;
        rename_in((&from_dir, &from_name), (&to_dir, &to_name), false).map_err(fail)
    }
}

/// Refuses a file that is not of `version`.
fn demand_version(path: &str, meta: &Meta, version: Option<&Version>) -> Result<(), StoreError> {
    if version.is_some_and(|version| !same_version(meta, version)) {
        return Err(error(StoreErrorKind::VersionMismatch, format!("'{path}' is not the version any more")));
    }
    Ok(())
}

/// Whether `when` lets `target` be replaced by a file.
fn check_target(path: &str, target: Option<&libc::stat64>, when: &Condition) -> Result<(), StoreError> {
    let refuse = |kind, why: &str| Err(error(kind, format!("'{path}' {why}")));
    match (target, when) {
        (Some(stat), _) if is_dir(stat) => refuse(StoreErrorKind::IsDir, "is a directory"),
        (Some(stat), _) if !shown(stat) => refuse(StoreErrorKind::Exists, "is neither file nor directory"),
        (Some(_), Condition::IfAbsent) => refuse(StoreErrorKind::Exists, "exists"),
        (Some(stat), Condition::IfVersion(version)) if !same_version(&meta(stat), version) => {
            refuse(StoreErrorKind::VersionMismatch, "has changed")
        }
        (None, Condition::IfVersion(_)) => refuse(StoreErrorKind::VersionMismatch, "is gone"),
        _ => Ok(()),
    }
}

/// A file's state in our words. The ETag is inode and time: a clock tick is long enough for two writes, but the second one
/// made another inode.
fn meta(stat: &libc::stat64) -> Meta {
    let mtime = stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec);
    if is_dir(stat) {
        return Meta { kind: Kind::Dir, size: 0, mtime_ns: Some(mtime), etag: None, marker: Some(true), details: None };
    }
    Meta {
        kind: Kind::File,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: Some(mtime),
        etag: Some(format!("\"{:x}-{mtime:x}\"", stat.st_ino)),
        marker: None,
        details: None,
    }
}
