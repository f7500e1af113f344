//! What POSIX programs keep of a file, as the file system itself keeps it.
//!
//! Only extended attributes of the name space `user` are told and changed: the others (security.capability, ACLs) give
//! rights on this machine, which are no guest's business.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::error::{error, os};
use super::confine::check;
use super::opened::Opened;
use super::status::{Stat, fstat};
use crate::store::{Attributes, Details, StoreError, StoreErrorKind};

/// Most bytes of names and values that are told of one file. The file system may take less.
pub(super) const XATTRS_MAX: usize = 256 << 10;

/// Longest value in bytes, and longest list of names: the kernel's limits.
const VALUE_MAX: usize = 64 << 10;

/// Longest name in bytes: the kernel's limit.
const NAME_MAX: usize = 255;

/// fchmodat2(2), on every architecture but a few, which then have no such call and take the other way.
const FCHMODAT2: libc::c_long = 452;

const USER: &str = "user.";

/// The attributes that `stat` and `xattrs` make.
pub(super) fn details(stat: &Stat, xattrs: Option<BTreeMap<String, Vec<u8>>>) -> Box<Details> {
    let attributes = Attributes {
        mode: Some(stat.mode),
        uid: Some(stat.uid),
        gid: Some(stat.gid),
        atime_ns: Some(stat.atime_ns),
        mtime_ns: Some(stat.mtime_ns),
        ctime_ns: Some(stat.ctime_ns),
        xattrs,
    };
    Box::new(Details { attributes, ..Details::default() })
}

/// The file type that `attributes` tell; `None`: none.
///
/// # Errors
/// Protocol: one that this store never makes, or what can be no attribute at all.
pub(super) fn told_type(attributes: &Attributes) -> Result<Option<u32>, StoreError> {
    let refuse = |why: &str| Err(error(StoreErrorKind::Protocol, format!("attributes against the rules: {why}")));
    // (uid_t) -1 means "as it is" to chown(2).
    if attributes.uid == Some(u32::MAX) || attributes.gid == Some(u32::MAX) {
        return refuse("an owner that nobody can be");
    }
    let Some(mode) = attributes.mode else { return Ok(None) };
    if mode & !(libc::S_IFMT | 0o7777) != 0 {
        return refuse("an impossible mode");
    }
    match mode & libc::S_IFMT {
        0 => Ok(None),
        told @ (libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK | libc::S_IFIFO | libc::S_IFSOCK) => Ok(Some(told)),
        _ => refuse("a type that is never made"),
    }
}

/// The user's extended attributes of `object`; `None` if they cannot be read, or are too many to be told.
///
/// # Errors
/// flistxattr(2)'s and fgetxattr(2)'s.
pub(super) fn xattrs(object: &Opened) -> io::Result<Option<BTreeMap<String, Vec<u8>>>> {
    if !has_xattrs(&object.stat) {
        return Ok(Some(BTreeMap::new()));
    }
    let Some(file) = &object.file else { return Ok(None) };
    match read_xattrs(file) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Some(BTreeMap::new())),
        other => other,
    }
}

/// Whether the kernel lets files of this type have any.
fn has_xattrs(stat: &Stat) -> bool {
    stat.is_regular() || stat.is_dir()
}

fn read_xattrs(file: &File) -> io::Result<Option<BTreeMap<String, Vec<u8>>>> {
    let mut all = BTreeMap::new();
    let mut total = 0;
    for name in names(file)? {
        // What is not text cannot be told, and is never touched.
        let Ok(text) = name.to_str() else { continue };
        let Some(value) = get(file, &name)? else { continue };
        total += text.len() + value.len();
        if total > XATTRS_MAX {
            return Ok(None);
        }
        all.insert(text.to_owned(), value);
    }
    Ok(Some(all))
}

/// The names that belong to users.
fn names(file: &File) -> io::Result<Vec<CString>> {
    // Few files have any at all.
    let mut small = [0u8; 256];
    let mut large = Vec::new();
    let list = match list(file, &mut small) {
        Ok(len) => &small[..len],
        Err(e) if e.raw_os_error() == Some(libc::ERANGE) => {
            large.resize(VALUE_MAX, 0);
            let len = list(file, &mut large)?;
            &large[..len]
        }
        Err(e) => return Err(e),
    };
    let names = list.split_inclusive(|&b| b == 0).filter(|name| name.starts_with(USER.as_bytes()));
    Ok(names.filter_map(|name| CStr::from_bytes_with_nul(name).ok()).map(CStr::to_owned).collect())
}

fn list(file: &File, names: &mut [u8]) -> io::Result<usize> {
    // SAFETY: an open descriptor and a buffer of the given length.
    let len = unsafe { libc::flistxattr(file.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

/// The value of `name`; `None`: gone.
fn get(file: &File, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; VALUE_MAX];
    // SAFETY: an open descriptor, a C string and a buffer of the given length.
    let len = unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match usize::try_from(len) {
        Ok(len) => {
            value.truncate(len);
            value.shrink_to_fit();
            Ok(Some(value))
        }
        Err(_) => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENODATA) => Ok(None),
            e => Err(e),
        },
    }
}

fn set(file: &File, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: an open descriptor, a C string and so many bytes.
    let set = unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    check(set).map(drop)
}

fn remove(file: &File, name: &CStr) -> io::Result<()> {
    // SAFETY: an open descriptor and a C string.
    match check(unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) }) {
        Err(e) if e.raw_os_error() != Some(libc::ENODATA) => Err(e),
        _ => Ok(()),
    }
}

/// Copies the extended attributes that belong to users, as far as the target takes them.
pub(super) fn copy_xattrs(from: &File, to: &File) {
    let copied = names(from).map(|names| {
        for name in names {
            let kept = get(from, &name).and_then(|value| value.map_or(Ok(()), |value| set(to, &name, &value)));
            if let Err(e) = kept {
                log::debug!("an attribute of a rewritten file is lost: {e}");
            }
        }
    });
    if let Err(e) = copied
        && e.raw_os_error() != Some(libc::EOPNOTSUPP)
    {
        log::debug!("the attributes of a rewritten file are lost: {e}");
    }
}

/// Gives `object` the mode, the owner and the extended attributes that are `wanted`; those come first, being the most likely to fail.
///
/// An owner that this process may not give is not given, which `refused` has logged once; then the set-user-ID and
/// set-group-ID bits are not either, since they would stand for an owner that nobody asked for.
pub(super) fn apply(what: &str, object: &Opened, wanted: &Attributes, refused: &AtomicBool) -> Result<(), StoreError> {
    let fail = |e: io::Error| os(what, &e);
    let first = wanted.xattrs.as_ref().map_or(Ok(()), |wanted| match_xattrs(what, object, wanted));
    // The mode may be what forbids it.
    let again = first.as_ref().is_err_and(|e| e.kind == StoreErrorKind::PermissionDenied) && wanted.mode.is_some();
    if !again {
        first?;
    }
    own(object, wanted.uid, wanted.gid, refused).map_err(fail)?;
    if let Some(mode) = wanted.mode {
        let now = fstat(&object.fd).map_err(fail)?;
        let mut mode = mode & 0o7777;
        if wanted.uid.is_some_and(|uid| uid != now.uid) {
            mode &= !libc::S_ISUID;
        }
        if wanted.gid.is_some_and(|gid| gid != now.gid) && !now.is_dir() {
            mode &= !libc::S_ISGID;
        }
        if !now.is_link() && mode != now.permissions() {
            allow(object, mode).map_err(fail)?;
        }
    }
    match &wanted.xattrs {
        Some(wanted) if again => match_xattrs(what, object, wanted),
        _ => Ok(()),
    }
}

/// Gives `object` the times that are `wanted`; the time of the last change of attributes is the kernel's alone.
pub(super) fn apply_times(object: &Opened, wanted: &Attributes) -> io::Result<()> {
    let now = fstat(&object.fd)?;
    let time = |wanted: Option<i64>, now: i64| match wanted.filter(|ns| *ns != now) {
        Some(ns) => libc::timespec { tv_sec: ns.div_euclid(1_000_000_000), tv_nsec: ns.rem_euclid(1_000_000_000) },
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
    };
    let times = [time(wanted.atime_ns, now.atime_ns), time(wanted.mtime_ns, now.mtime_ns)];
    if times.iter().all(|time| time.tv_nsec == libc::UTIME_OMIT) {
        return Ok(());
    }
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: an open descriptor, a C string and two times.
    check(unsafe { libc::utimensat(object.fd.as_raw_fd(), c"".as_ptr(), times.as_ptr(), flags) }).map(drop)
}

/// Gives the directory `dir` back the modification time that it had: a file in it was replaced, which to the guest is a write.
pub(super) fn keep_mtime(dir: &impl AsRawFd, before: &Stat) {
    let omit = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
    let ns = before.mtime_ns;
    let mtime = libc::timespec { tv_sec: ns.div_euclid(1_000_000_000), tv_nsec: ns.rem_euclid(1_000_000_000) };
    let times = [omit, mtime];
    // SAFETY: an open descriptor and two times.
    if let Err(e) = check(unsafe { libc::futimens(dir.as_raw_fd(), times.as_ptr()) }) {
        log::debug!("a directory gets the time of a file replaced in it: {e}");
    }
}

/// chown(2), as far as we may.
pub(super) fn own(object: &Opened, uid: Option<u32>, gid: Option<u32>, refused: &AtomicBool) -> io::Result<()> {
    let now = fstat(&object.fd)?;
    let (uid, gid) = (uid.filter(|uid| *uid != now.uid), gid.filter(|gid| *gid != now.gid));
    if (uid, gid) == (None, None) {
        return Ok(());
    }
    let keep = u32::MAX;
    let chown = |uid: u32, gid: u32| {
        let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: an open descriptor and a C string.
        check(unsafe { libc::fchownat(object.fd.as_raw_fd(), c"".as_ptr(), uid, gid, flags) }).map(drop)
    };
    // EINVAL: an owner that our user namespace does not know.
    let forbidden = |e: &io::Error| matches!(e.raw_os_error(), Some(libc::EPERM | libc::EINVAL));
    match chown(uid.unwrap_or(keep), gid.unwrap_or(keep)) {
        Err(e) if forbidden(&e) => {
            let before = refused.swap(true, Ordering::Relaxed);
            let level = if before { log::Level::Debug } else { log::Level::Warn };
            log::log!(level, "a file keeps the owner that this process has, or can give (logged once): {e}");
            match (uid, gid) {
                (Some(_), Some(gid)) => chown(keep, gid).or_else(|e| if forbidden(&e) { Ok(()) } else { Err(e) }),
                _ => Ok(()),
            }
        }
        other => other,
    }
}

/// chmod(2).
pub(super) fn allow(object: &Opened, mode: u32) -> io::Result<()> {
    if let Some(file) = &object.file {
        // SAFETY: an open descriptor.
        return check(unsafe { libc::fchmod(file.as_raw_fd(), mode) }).map(drop);
    }
    let fd = object.fd.as_raw_fd();
    // SAFETY: an open descriptor and a C string.
    let done = unsafe { libc::syscall(FCHMODAT2, fd, c"".as_ptr(), mode, libc::AT_EMPTY_PATH) };
    if done == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // Before Linux 6.6. The name leads to the very inode that is open.
        e if e.raw_os_error() == Some(libc::ENOSYS) => {
            let name = CString::new(format!("/proc/self/fd/{fd}"))?;
            // SAFETY: a C string.
            check(unsafe { libc::chmod(name.as_ptr(), mode) }).map(drop)
        }
        e => Err(e),
    }
}

/// Makes the extended attributes of `object` those that are `wanted`. After an error they are as they were, as far as possible.
pub(super) fn match_xattrs(what: &str, object: &Opened, wanted: &BTreeMap<String, Vec<u8>>) -> Result<(), StoreError> {
    let refuse = |kind, why: &str| Err(error(kind, format!("{what}: {why}")));
    let mut total = 0;
    for (name, value) in wanted {
        total += name.len() + value.len();
        match name.strip_prefix(USER) {
            None => return refuse(StoreErrorKind::Unsupported, "an extended attribute that is not the user's"),
            Some(rest) if rest.is_empty() || name.len() > NAME_MAX || name.contains('\0') => {
                return refuse(StoreErrorKind::InvalidName, "an extended attribute with an impossible name");
            }
            Some(_) if value.len() > VALUE_MAX || total > XATTRS_MAX => {
                return refuse(StoreErrorKind::AttributesTooLarge, "too many bytes of extended attributes");
            }
            Some(_) => {}
        }
    }
    if !has_xattrs(&object.stat) {
        return match wanted.is_empty() {
            true => Ok(()),
            false => refuse(StoreErrorKind::Unsupported, "only files and directories have extended attributes"),
        };
    }
    let fail = |e: io::Error| match e.raw_os_error() {
        // ENOSPC is the inode's room here, which is what runs out first.
        Some(libc::ENOSPC | libc::E2BIG | libc::ERANGE) => {
            error(StoreErrorKind::AttributesTooLarge, format!("{what}: extended attributes: {e}"))
        }
        _ => os(&format!("{what}: extended attributes"), &e),
    };
    let file = match object.file() {
        Ok(file) => file,
        Err(_) if wanted.is_empty() => return Ok(()),
        Err(e) => return Err(fail(e)),
    };
    let before = match read_xattrs(file) {
        Ok(Some(before)) => before,
        // Nobody was told of them, so nobody can have meant that they should go.
        Ok(None) => return refuse(StoreErrorKind::AttributesTooLarge, "it has too many extended attributes already"),
        Err(e) if wanted.is_empty() && e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
        Err(e) => return Err(fail(e)),
    };
    change(file, &before, wanted).map_err(|e| {
        let now = read_xattrs(file).ok().flatten();
        if let Err(e) = now.map_or(Ok(()), |now| change(file, &now, &before)) {
            log::warn!("{what}: extended attributes stay half changed: {e}");
        }
        fail(e)
    })
}

fn change(file: &File, now: &BTreeMap<String, Vec<u8>>, wanted: &BTreeMap<String, Vec<u8>>) -> io::Result<()> {
    for name in now.keys().filter(|name| !wanted.contains_key(*name)) {
        remove(file, &CString::new(name.as_str())?)?;
    }
    for (name, value) in wanted.iter().filter(|(name, value)| now.get(*name) != Some(value)) {
        set(file, &CString::new(name.as_str())?, value)?;
    }
    Ok(())
}
