//! Writing a file: whole under another name, then renamed.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError};

use super::super::error::{error, os};
use super::super::remote::{TEMPORARY, same_version, unique};
use super::confine::{fstat, open_in, rename_in, stat_in, unlink_in};
use super::temporary::Temporary;
use super::{Local, check_target, demand_version, meta};
use crate::store::{Attributes, Base, Condition, Meta, Segment, StoreError, StoreErrorKind, Version};

/// Mode of new files; what the guest sees is decided elsewhere.
const FILE_MODE: u32 = 0o644;

/// Bytes copied at once where the kernel cannot copy between the two files.
const COPY_BUFFER: usize = 1 << 20;

/// A file in the making; removed unless it is published.
struct Draft {
    file: File,
    dir: OwnedFd,
    name: CString,
    published: bool,
    /// Keeps the directory.
    _temporary: Option<Arc<Temporary>>,
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published
            && let Err(e) = unlink_in(&self.dir, &self.name, false)
        {
            log::warn!("a temporary file stays: {:?}: {e}", self.name);
        }
    }
}

impl Local {
    /// Makes `path` the concatenation of `segments`.
    pub fn compose(
        &self,
        path: &str,
        bases: &[Base],
        when: &Condition,
        segments: &[Segment],
        attributes: Option<&Attributes>,
    ) -> Result<Meta, StoreError> {
        let fail = |e: io::Error| os(&format!("write '{path}'"), &e);
        let (parent, name) = self.root.parent(path).map_err(fail)?;
        let target = stat_in(&parent, &name).map_err(fail)?;
        check_target(path, target.as_ref(), when)?;
        let mut draft = self.draft(&parent).map_err(fail)?;
        let sources = bases.iter().map(|base| self.open_base(base)).collect::<Result<Vec<_>, _>>()?;
        self.fill(path, &draft.file, &sources, segments)?;
        for ((file, before), base) in sources.iter().zip(bases) {
            let after = fstat(file).map(|s| meta(&s)).map_err(fail)?;
            if after != *before {
                return Err(changed(base));
            }
        }
        let like = match (sources.first(), &target) {
            (_, Some(stat)) => Some(*stat),
            (Some((file, _)), None) => Some(fstat(file).map_err(fail)?),
            (None, None) => None,
        };
        dress(&draft.file, like.as_ref());
        if let Some((file, _)) = sources.first() {
            keep_attributes(file, &draft.file);
        }
        draft.file.sync_all().map_err(fail)?;
        let now = stat_in(&parent, &name).map_err(fail)?;
        check_target(path, now.as_ref(), when)?;
        let no_replace = *when == Condition::IfAbsent;
        rename_in((&draft.dir, &draft.name), (&parent, &name), no_replace).map_err(fail)?;
        draft.published = true;
        // The new name must survive a crash as the content does.
        File::from(parent).sync_all().map_err(fail)?;
        fstat(&draft.file).map(|s| meta(&s)).map_err(fail)
    }

    /// Copies a file; an existing target is replaced.
    pub fn copy(&self, from: &str, to: &str, version: Option<&Version>) -> Result<Meta, StoreError> {
        let (_, source) = self.open_file(from).map_err(|e| os(&format!("copy '{from}'"), &e))?;
        demand_version(from, &source, version)?;
        let len = source.size;
        let base = Base { path: from.to_owned(), version: source.version() };
        let whole = (len > 0).then_some(Segment::Copy { base: 0, offset: 0, len });
        self.compose(to, &[base], &Condition::Any, whole.as_slice(), None)
    }

    fn open_base(&self, base: &Base) -> Result<(File, Meta), StoreError> {
        match self.open_file(&base.path) {
            Ok((file, meta)) if same_version(&meta, &base.version) => Ok((file, meta)),
            Ok(_) => Err(changed(base)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Err(changed(base)),
            Err(e) => Err(os(&format!("copy ranges of '{}'", base.path), &e)),
        }
    }

    /// An empty file on the file system of `parent`, where it can be renamed into.
    fn draft(&self, parent: &OwnedFd) -> io::Result<Draft> {
        let device = fstat(parent)?.st_dev;
        let temporary = self.temporary()?;
        let (dir, name, keep) = if temporary.device == device {
            (temporary.dir().try_clone()?, unique(), Some(temporary))
        } else {
            // Another file system is mounted below the root.
            (parent.try_clone()?, format!("{TEMPORARY}-{}", unique()), None)
        };
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let file = File::from(open_in(dir.as_raw_fd(), &name, flags, 0o600)?);
        Ok(Draft { file, dir, name: CString::new(name)?, published: false, _temporary: keep })
    }

    fn temporary(&self) -> io::Result<Arc<Temporary>> {
        let mut made = self.temporary.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(temporary) = &*made {
            return Ok(Arc::clone(temporary));
        }
        let temporary = Arc::new(Temporary::new(&self.root)?);
        Ok(Arc::clone(made.insert(temporary)))
    }

    fn fill(&self, path: &str, draft: &File, sources: &[(File, Meta)], segments: &[Segment]) -> Result<(), StoreError> {
        let fail = |e: io::Error| match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                error(StoreErrorKind::VersionMismatch, format!("write '{path}': the base has become shorter"))
            }
            _ => os(&format!("write '{path}'"), &e),
        };
        let protocol = |why: &str| error(StoreErrorKind::Protocol, format!("write '{path}': {why}"));
        let mut at = 0u64;
        for segment in segments {
            at += match *segment {
                // Left out: a hole, which reads as zeros.
                Segment::Zero { len } => len,
                Segment::Data(slice) => {
                    // SAFETY: the device does not write these bytes until the reply, which comes after this function.
                    let data = unsafe { self.pool.bytes(slice) }.ok_or_else(|| protocol("a slice outside the pool"))?;
                    draft.write_all_at(data, at).map_err(fail)?;
                    slice.len.into()
                }
                Segment::Copy { base, offset, len } => {
                    let (source, _) =
                        sources.get(usize::from(base)).ok_or_else(|| protocol("a copied range without base"))?;
                    copy_range(source, offset, draft, at, len).map_err(fail)?;
                    len
                }
            };
        }
        draft.set_len(at).map_err(fail)
    }
}

fn changed(base: &Base) -> StoreError {
    error(StoreErrorKind::VersionMismatch, format!("'{}' is not the version any more", base.path))
}

/// Copies exactly `len` bytes, inside the kernel where it can (and then often without copying at all).
fn copy_range(from: &File, offset: u64, to: &File, at: u64, len: u64) -> io::Result<()> {
    let signed = |n: u64| i64::try_from(n).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG));
    let (mut from_at, mut to_at, mut left) = (signed(offset)?, signed(at)?, len);
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(1 << 30);
        // SAFETY: open descriptors and two offsets to update; the result is checked.
        let n = unsafe {
            libc::copy_file_range(from.as_raw_fd(), &raw mut from_at, to.as_raw_fd(), &raw mut to_at, want, 0)
        };
        if n > 0 {
            left -= n as u64;
            continue;
        }
        let e = if n == 0 { None } else { Some(io::Error::last_os_error()) };
        match e.as_ref().and_then(io::Error::raw_os_error) {
            Some(libc::EINTR) => {}
            // Some file systems answer 0 where they should refuse; the plain copy tells the end of the file for sure.
            None | Some(libc::EXDEV | libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM) => {
                return copy_plainly(from, from_at as u64, to, to_at as u64, left);
            }
            Some(_) => return Err(e.unwrap_or_else(io::Error::last_os_error)),
        }
    }
    Ok(())
}

fn copy_plainly(from: &File, mut offset: u64, to: &File, mut at: u64, mut left: u64) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BUFFER];
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(COPY_BUFFER);
        from.read_exact_at(&mut buffer[..part], offset)?;
        to.write_all_at(&buffer[..part], at)?;
        offset += part as u64;
        at += part as u64;
        left -= part as u64;
    }
    Ok(())
}

/// Mode and owner as they were, as far as we may; special bits do not outlive a change of the content.
fn dress(file: &File, like: Option<&libc::stat64>) {
    let mode = like.map_or(FILE_MODE, |stat| stat.st_mode & 0o777);
    if let Some(like) = like {
        // SAFETY: an open descriptor.
        if unsafe { libc::fchown(file.as_raw_fd(), like.st_uid, like.st_gid) } != 0 {
            log::debug!("the owner of a rewritten file changes: {}", io::Error::last_os_error());
        }
    }
    // SAFETY: an open descriptor.
    if unsafe { libc::fchmod(file.as_raw_fd(), mode) } != 0 {
        log::debug!("the mode of a rewritten file changes: {}", io::Error::last_os_error());
    }
}

/// Copies the extended attributes that belong to users.
fn keep_attributes(from: &File, to: &File) {
    let mut names = vec![0u8; 64 << 10];
    // SAFETY: an open descriptor and a buffer of the given length.
    let len = unsafe { libc::flistxattr(from.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(len).unwrap_or(0));
    let mut value = Vec::new();
    for name in names.split_inclusive(|&b| b == 0).filter(|n| n.starts_with(b"user.") && n.ends_with(b"\0")) {
        value.resize(64 << 10, 0u8);
        // SAFETY: an open descriptor, a C string and a buffer of the given length.
        let len =
            unsafe { libc::fgetxattr(from.as_raw_fd(), name.as_ptr().cast(), value.as_mut_ptr().cast(), value.len()) };
        let Ok(len) = usize::try_from(len) else { continue };
        // SAFETY: an open descriptor, a C string and so many bytes.
        let set = unsafe { libc::fsetxattr(to.as_raw_fd(), name.as_ptr().cast(), value.as_ptr().cast(), len, 0) };
        if set != 0 {
            log::debug!("an attribute of a rewritten file is lost: {}", io::Error::last_os_error());
        }
    }
}
