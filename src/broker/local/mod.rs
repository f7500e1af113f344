//! The service `fs`: a directory of this machine.
//!
//! It is served by system calls, not by OpenDAL's service, which follows symbolic links out of its root, loses modes,
//! creates what is missing and cannot rename onto nothing only. What a guest sees is the same: files and directories; where the
//! mount keeps POSIX attributes also symbolic links, FIFOs and sockets, with the attributes that the file system has of each.
//! Nothing here ever follows a link, and nothing opens what is special. All of it blocks, so all of it runs on tokio's
//! threads for that.

mod attributes;
mod compose;
mod confine;
mod exclusive;
mod opened;
mod reserved;
mod status;
mod temporary;
#[cfg(test)]
mod tests;

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use self::attributes::{XATTRS_MAX, apply, apply_times, details, told_type, xattrs};
use self::confine::{DirStream, Root, is_nothing, mkdir_in, rename_in, unlink_in};
use self::exclusive::Exclusive;
use self::opened::{Opened, Purpose};
use self::reserved::{UNLINKED_AGE, check_dir, check_object, is_reserved, sweep_aside};
use self::status::{Stat, fstat, stat_in};
use self::temporary::Temporary;
use super::cursors::Cursors;
use super::error::{error, os};
use super::remote::{TEMPORARY, same_version};
use super::run::BrokerOptions;
use super::url::{Backend, BackendError};
use crate::store::path::{check_name, check_path, join};
use crate::store::{
    Attributes, Capabilities, Condition, LIST_PAGE_MAX, ListEntry, Meta, Pool, Reply, Slice, StoreError, StoreErrorKind,
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
    /// Attributes are told and changed, and special files shown.
    posix: bool,
    /// That owners cannot be given was logged.
    owner_refused: AtomicBool,
    /// Made when the first file is written.
    temporary: Mutex<Option<Arc<Temporary>>>,
}

impl Local {
    /// Opens the root, and unless `options` forbid changes has unlinked files removed that were left behind in it.
    ///
    /// # Errors
    /// [`BackendError::Refused`] with open(2)'s reason.
    pub fn new(backend: &Backend, pool: &Arc<Pool>, options: &BrokerOptions) -> Result<Local, BackendError> {
        let path = backend.config.get("root").map_or("/", String::as_str);
        let refused = |e| BackendError::Refused { scheme: backend.service.scheme, why: format!("'{path}': {e}") };
        let root = Root::open(path).map_err(refused)?;
        if !options.readonly {
            sweep_aside(root.open_below("", libc::O_RDONLY | libc::O_DIRECTORY).map_err(refused)?, UNLINKED_AGE);
        }
        Ok(Local {
            root,
            pool: Arc::clone(pool),
            listings: Cursors::default(),
            hidden: AtomicU64::new(0),
            posix: options.posix_metadata,
            owner_refused: AtomicBool::new(false),
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
            flows: None,
            rename: true,
            etag: true,
            write_if_match: false,
            write_if_absent: true,
            real_dirs: true,
            attributes: self.posix,
            attributes_listed: self.posix,
            xattrs_max: if self.posix { XATTRS_MAX } else { 0 },
            cached_here: false,
            size_max: None,
        })
    }

    /// What is at `path`.
    pub fn stat(&self, path: &str) -> Result<Meta, StoreError> {
        let fail = |e: io::Error| os(&format!("stat '{path}'"), &e);
        let nothing = || error(StoreErrorKind::NotFound, format!("stat '{path}': nothing is there"));
        if is_reserved(path) {
            return Err(nothing());
        }
        if !self.posix {
            let stat = self.root.stat(path).map_err(fail)?.filter(|stat| self.shown(stat));
            return stat.map(|stat| self.meta(&stat)).ok_or_else(nothing);
        }
        match Opened::at(self.root.fd(), path, Purpose::Read) {
            Ok(opened) if self.shown(&opened.stat) => self.tell(&opened).map_err(fail),
            Ok(_) => Err(nothing()),
            Err(e) if is_nothing(&e) => Err(nothing()),
            Err(e) => Err(fail(e)),
        }
    }

    /// Whether guests are told of it: never of a device.
    fn shown(&self, stat: &Stat) -> bool {
        match stat.file_type() {
            libc::S_IFREG | libc::S_IFDIR => true,
            libc::S_IFLNK | libc::S_IFIFO | libc::S_IFSOCK => self.posix,
            _ => false,
        }
    }

    /// What listings tell.
    fn meta(&self, stat: &Stat) -> Meta {
        Meta { details: self.posix.then(|| details(stat, None)), ..stat.meta() }
    }

    /// All that is known of it now.
    fn tell(&self, opened: &Opened) -> io::Result<Meta> {
        let stat = fstat(&opened.fd)?;
        let told = if self.posix { Some(details(&stat, xattrs(opened)?)) } else { None };
        Ok(Meta { details: told, ..stat.meta() })
    }

    /// The next page of `path`.
    pub fn list(&self, path: &str, cursor: u64) -> Result<Reply, StoreError> {
        let fail = |e: io::Error| os(&format!("list '{path}'"), &e);
        if is_reserved(path) {
            return Err(fail(io::Error::from_raw_os_error(libc::ENOENT)));
        }
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
                return Ok(Reply::Entries { entries, cursor: None, after: None });
            };
            entries.extend(self.entry(path, &stream, name).map_err(fail)?);
        }
        Ok(Reply::Entries { entries, cursor: Some(self.listings.put(path, stream)), after: None })
    }

    fn entry(&self, path: &str, dir: &DirStream, name: CString) -> io::Result<Option<ListEntry>> {
        let own = |name: &str| name.starts_with(TEMPORARY) || (path.is_empty() && is_reserved(name));
        if name.to_str().is_ok_and(own) {
            return Ok(None);
        }
        // Gone meanwhile, or nothing that is told.
        let Some(stat) = stat_in(dir, &name)?.filter(|stat| self.shown(stat)) else { return Ok(None) };
        match check_name(name.as_bytes()) {
            Ok(name) if check_path(&join(path, name)).is_ok() => {
                Ok(Some(ListEntry { name: name.to_owned(), meta: self.meta(&stat) }))
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

    /// What is at `path`, if it can have content: no directory.
    fn open(&self, path: &str) -> io::Result<Opened> {
        let opened = Opened::at(self.root.fd(), path, Purpose::Read)?;
        match &opened.stat {
            stat if stat.is_dir() => Err(io::Error::from_raw_os_error(libc::EISDIR)),
            stat if !self.shown(stat) => Err(io::Error::from_raw_os_error(libc::ENOENT)),
            _ => Ok(opened),
        }
    }

    /// Fills `dest` with the file's bytes from `offset` on, or the target's if it is a symbolic link. FIFOs and sockets have no
    /// content (InvalidName).
    pub fn read(
        &self,
        path: &str,
        version: Option<&crate::store::Version>,
        offset: u64,
        dest: Slice,
    ) -> Result<(), StoreError> {
        check_object(path)?;
        let what = || format!("read '{path}'");
        let fail = |e: io::Error| os(&what(), &e);
        let changed = || error(StoreErrorKind::VersionMismatch, format!("{}: it has changed", what()));
        let opened = self.open(path).map_err(fail)?;
        let before = opened.stat;
        if version.is_some_and(|v| !same_version(&before.meta(), v)) {
            return Err(changed());
        }
        if !before.is_regular() && !before.is_link() {
            let why = "a FIFO or socket has no content";
            return Err(error(StoreErrorKind::InvalidName, format!("{}: {why}", what())));
        }
        // SAFETY: the device leaves the slice alone until the reply, which comes after this function.
        let dest = unsafe { self.pool.bytes_mut(dest) };
        let dest =
            dest.ok_or_else(|| error(StoreErrorKind::Protocol, format!("{}: a slice outside the pool", what())))?;
        match opened.read_exact_at(dest, offset) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && version.is_some() => return Err(changed()),
            Err(e) => return Err(fail(e)),
        }
        let after = fstat(&opened.fd).map_err(fail)?;
        if version.is_some() && after.version() != before.version() { Err(changed()) } else { Ok(()) }
    }

    /// Deletes the file `path`; a missing one is fine.
    pub fn delete(&self, path: &str) -> Result<(), StoreError> {
        check_object(path)?;
        let deleted = self.root.parent(path).and_then(|(dir, name)| {
            let _exclusive = Exclusive::of(&dir)?;
            match stat_in(&dir, &name)? {
                Some(stat) if stat.is_dir() => Err(io::Error::from_raw_os_error(libc::EISDIR)),
                Some(stat) if self.shown(&stat) => unlink_in(&dir, &name, false),
                _ => Ok(()),
            }
        });
        match deleted {
            Err(e) if !is_nothing(&e) => Err(os(&format!("delete '{path}'"), &e)),
            _ => Ok(()),
        }
    }

    /// Deletes the files `paths`, every one that can be; missing ones are fine.
    ///
    /// # Errors
    /// The first one's that cannot be deleted.
    pub fn delete_many(&self, paths: &[String]) -> Result<(), StoreError> {
        let mut result = Ok(());
        for path in paths {
            // In this order: every path gets its turn.
            result = result.and(self.delete(path));
        }
        result
    }

    /// Makes the directory `path`; one that is there is fine, and gets the attributes as a new one does.
    pub fn create_dir(&self, path: &str, attributes: Option<&Attributes>) -> Result<(), StoreError> {
        check_dir(path)?;
        let what = format!("create directory '{path}'");
        let fail = |e: io::Error| os(&what, &e);
        let attributes = attributes.filter(|_| self.posix);
        if attributes.map(told_type).transpose()?.flatten().is_some_and(|told| told != libc::S_IFDIR) {
            return Err(error(StoreErrorKind::Protocol, format!("{what}: with the attributes of a file")));
        }
        let (dir, name) = self.root.parent(path).map_err(fail)?;
        // Never open to more than it shall be.
        let mode = if attributes.is_some_and(|told| told.mode.is_some()) { 0o700 } else { DIR_MODE };
        let made = match mkdir_in(&dir, &name, mode) {
            Ok(()) => true,
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => match stat_in(&dir, &name).map_err(fail)? {
                Some(stat) if stat.is_dir() => false,
                _ => return Err(fail(e)),
            },
            Err(e) => return Err(fail(e)),
        };
        let Some(attributes) = attributes else { return Ok(()) };
        let given = self.give(&what, &dir, last(path), attributes);
        if given.is_err()
            && made
            && let Err(e) = unlink_in(&dir, &name, true)
        {
            log::debug!("{what}: it stays without its attributes: {e}");
        }
        given
    }

    fn give(&self, what: &str, dir: &OwnedFd, name: &str, attributes: &Attributes) -> Result<(), StoreError> {
        let fail = |e: io::Error| os(what, &e);
        let object = Opened::at(dir, name, Purpose::Change).map_err(fail)?;
        if !object.stat.is_dir() {
            return Err(fail(io::Error::from_raw_os_error(libc::ENOTDIR)));
        }
        apply(what, &object, attributes, &self.owner_refused)?;
        apply_times(&object, attributes).map_err(fail)?;
        object.file.as_ref().map_or(Ok(()), std::fs::File::sync_all).map_err(fail)
    }

    /// Removes the directory `path` if it is empty.
    pub fn remove_dir(&self, path: &str) -> Result<(), StoreError> {
        check_dir(path)?;
        let removed = self.root.parent(path).and_then(|(dir, name)| match stat_in(&dir, &name)? {
            Some(stat) if !self.shown(&stat) => Err(io::Error::from_raw_os_error(libc::ENOENT)),
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
        version: Option<&crate::store::Version>,
    ) -> Result<Meta, StoreError> {
        check_object(from)?;
        check_object(to)?;
        let fail = |e: io::Error| os(&format!("rename '{from}' to '{to}'"), &e);
        let (from_dir, from_name) = self.root.parent(from).map_err(fail)?;
        let (to_dir, to_name) = self.root.parent(to).map_err(fail)?;
        let _exclusive = Exclusive::of_both(&from_dir, &to_dir).map_err(fail)?;
        let source = match stat_in(&from_dir, &from_name).map_err(fail)?.filter(|stat| self.shown(stat)) {
            Some(stat) if stat.is_dir() => return Err(fail(io::Error::from_raw_os_error(libc::EISDIR))),
            Some(stat) => stat,
            None => return Err(fail(io::Error::from_raw_os_error(libc::ENOENT))),
        };
        demand_version(from, &source.meta(), version)?;
        if from == to {
            return self.stat_object(to);
        }
        // What is renamed is told, not what somebody else has put at the new name by then.
        let renamed = self.open(from).map_err(fail)?;
        let target = stat_in(&to_dir, &to_name).map_err(fail)?;
        self.check_target(to, target.as_ref(), when)?;
        let no_replace = target.is_none();
        match rename_in((&from_dir, &from_name), (&to_dir, &to_name), no_replace) {
            // Somebody was faster, and may be replaced.
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) && *when == Condition::Any => {
                rename_in((&from_dir, &from_name), (&to_dir, &to_name), false).map_err(fail)?;
            }
            other => other.map_err(fail)?,
        }
        // Two names of one inode: rename(2) then does nothing.
        if target.is_some_and(|target| target.is_same(&source)) {
            unlink_in(&from_dir, &from_name, false).map_err(fail)?;
        }
        self.tell(&renamed).map_err(fail)
    }

    /// Renames a directory onto nothing, or onto an empty directory.
    pub fn rename_dir(&self, from: &str, to: &str) -> Result<(), StoreError> {
        check_dir(from)?;
        check_dir(to)?;
        let fail = |e: io::Error| match e.raw_os_error() {
            Some(libc::EINVAL) => error(StoreErrorKind::InvalidName, format!("rename '{from}' to '{to}': into itself")),
            _ => os(&format!("rename directory '{from}' to '{to}'"), &e),
        };
        let (from_dir, from_name) = self.root.parent(from).map_err(fail)?;
        match stat_in(&from_dir, &from_name).map_err(fail)?.filter(|stat| self.shown(stat)) {
            Some(stat) if stat.is_dir() => {}
            Some(_) => return Err(fail(io::Error::from_raw_os_error(libc::ENOTDIR))),
            None => return Err(fail(io::Error::from_raw_os_error(libc::ENOENT))),
        }
        let (to_dir, to_name) = self.root.parent(to).map_err(fail)?;
        rename_in((&from_dir, &from_name), (&to_dir, &to_name), false).map_err(fail)
    }

    /// As [`Local::stat`], of names that nobody else is told as well.
    fn stat_object(&self, path: &str) -> Result<Meta, StoreError> {
        let opened = self.open(path).and_then(|opened| self.tell(&opened));
        opened.map_err(|e| os(&format!("stat '{path}'"), &e))
    }

    /// Whether `when` lets `target` be replaced by a file.
    fn check_target(&self, path: &str, target: Option<&Stat>, when: &Condition) -> Result<(), StoreError> {
        let refuse = |kind, why: &str| Err(error(kind, format!("'{path}' {why}")));
        match (target, when) {
            (Some(stat), _) if stat.is_dir() => refuse(StoreErrorKind::IsDir, "is a directory"),
            (Some(stat), _) if !self.shown(stat) => refuse(StoreErrorKind::Exists, "is nothing that can be replaced"),
            (Some(_), Condition::IfAbsent) => refuse(StoreErrorKind::Exists, "exists"),
            (Some(stat), Condition::IfVersion(version)) if !same_version(&stat.meta(), version) => {
                refuse(StoreErrorKind::VersionMismatch, "has changed")
            }
            (None, Condition::IfVersion(_)) => refuse(StoreErrorKind::VersionMismatch, "is gone"),
            _ => Ok(()),
        }
    }
}

/// The last component of `path`.
fn last(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Refuses a file that is not of `version`.
fn demand_version(path: &str, meta: &Meta, version: Option<&crate::store::Version>) -> Result<(), StoreError> {
    if version.is_some_and(|version| !same_version(meta, version)) {
        return Err(error(StoreErrorKind::VersionMismatch, format!("'{path}' is not the version any more")));
    }
    Ok(())
}
