//! Writing a file: whole under another name, then renamed. Symbolic links, FIFOs and sockets are made the same way.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError};

use super::super::error::{error, os};
use super::super::remote::{TEMPORARY, same_version, unique};
use super::attributes::{allow, apply, apply_times, copy_xattrs, keep_mtime, match_xattrs, own, told_type, xattrs};
use super::confine::{LINK_MAX, is_nothing, mknod_in, open_in, rename_in, symlink_in, unlink_in};
use super::exclusive::Exclusive;
use super::opened::{Opened, Purpose};
use super::reserved::check_object;
use super::status::{Stat, fstat, stat_in};
use super::temporary::Temporary;
use super::{Local, last};
use crate::store::{Attributes, Base, Condition, Meta, Segment, StoreError, StoreErrorKind, Version};

/// Mode of new files where none is told; what the guest sees is decided elsewhere.
const FILE_MODE: u32 = 0o644;

/// Bytes copied at once where the kernel cannot copy between the two files.
const COPY_BUFFER: usize = 1 << 20;

/// Whose extended attributes a new file gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heritage {
    /// Of the file that stands there, else of the first base.
    Target,
    /// Of the first base.
    Base,
}

/// A file in the making; removed unless it is published.
struct Draft {
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
            && e.raw_os_error() != Some(libc::ENOENT)
        {
            log::warn!("a temporary file stays: {:?}: {e}", self.name);
        }
    }
}

impl Local {
    /// Makes `path` the concatenation of `segments`.
    ///
    /// What only gives the file at `path` other attributes is done to it where it stands.
    pub fn compose(
        &self,
        path: &str,
        bases: &[Base],
        when: &Condition,
        segments: &[Segment],
        attributes: Option<&Attributes>,
    ) -> Result<Meta, StoreError> {
        check_object(path)?;
        bases.iter().try_for_each(|base| check_object(&base.path))?;
        let told = attributes.map(told_type).transpose()?.flatten();
        match told {
            Some(libc::S_IFDIR) => {
                return Err(error(StoreErrorKind::Protocol, format!("write '{path}': a directory has no content")));
            }
            Some(told) if !self.posix && told != libc::S_IFREG => {
                return Err(error(StoreErrorKind::Unsupported, format!("write '{path}': special files are not kept")));
            }
            _ => {}
        }
        // Without them, what a file has stays.
        let attributes = attributes.filter(|_| self.posix);
        if let (Some(attributes), Some(base)) = (attributes, bases.first())
            && base.path == path
            && is_whole(base, segments)
            && let Some(meta) = self.change(path, base, when, attributes)?
        {
            return Ok(meta);
        }
        self.write(path, bases, when, segments, attributes, Heritage::Target)
    }

    /// Copies a file; an existing target is replaced. With attributes kept, the copy has all of them; a symbolic link is copied as such.
    pub fn copy(&self, from: &str, to: &str, version: Option<&Version>) -> Result<Meta, StoreError> {
        check_object(from)?;
        check_object(to)?;
        let fail = |e: io::Error| os(&format!("copy '{from}'"), &e);
        let source = self.open(from).map_err(fail)?;
        super::demand_version(from, &source.stat.meta(), version)?;
        let len = source.stat.size;
        let base = Base { path: from.to_owned(), version: source.stat.version() };
        let whole = (len > 0).then_some(Segment::Copy { base: 0, offset: 0, len });
        let attributes = match self.posix {
            true => Some(super::attributes::details(&source.stat, xattrs(&source).map_err(fail)?).attributes),
            false => None,
        };
        self.write(to, &[base], &Condition::Any, whole.as_slice(), attributes.as_ref(), Heritage::Base)
    }

    fn write(
        &self,
        path: &str,
        bases: &[Base],
        when: &Condition,
        segments: &[Segment],
        attributes: Option<&Attributes>,
        heritage: Heritage,
    ) -> Result<Meta, StoreError> {
        let what = format!("write '{path}'");
        let fail = |e: io::Error| os(&what, &e);
        let (parent, name) = self.root.parent(path).map_err(fail)?;
        let target = stat_in(&parent, &name).map_err(fail)?;
        self.check_target(path, target.as_ref(), when)?;
        let sources = bases.iter().map(|base| self.open_base(base)).collect::<Result<Vec<_>, _>>()?;
        let told = attributes.map(told_type).transpose()?.flatten();
        // Content of a special file makes a special file, which its base's version vouches for.
        let kind = told.or(sources.first().map(|source| source.stat.file_type())).unwrap_or(libc::S_IFREG);
        let like = target.or(sources.first().map(|source| source.stat));

        let mut draft = self.draft(&parent).map_err(fail)?;
        let made = match kind {
            libc::S_IFREG => {
                let made = draft.file().map_err(fail)?;
                self.fill(&what, made.file().map_err(fail)?, &sources, segments)?;
                made
            }
            libc::S_IFLNK => {
                let text = self.text(&what, &sources, segments)?;
                draft.special(|dir, name| symlink_in(&text, dir, name)).map_err(fail)?
            }
            _ if segments.is_empty() => draft.special(|dir, name| mknod_in(dir, name, kind | 0o600)).map_err(fail)?,
            _ => return Err(error(StoreErrorKind::InvalidName, format!("{what}: a FIFO or socket has no content"))),
        };
        for (source, base) in sources.iter().zip(bases) {
            if fstat(&source.fd).map_err(fail)?.version() != source.stat.version() {
                return Err(changed(base));
            }
        }
        // While the mode still lets us.
        if let Some(to) = &made.file {
            let stood = match target {
                Some(target) if heritage == Heritage::Target => self.open_same(path, &target, &sources),
                _ => None,
            };
            let from = stood.as_ref().or(sources.first()).and_then(|opened| opened.file.as_ref());
            from.into_iter().for_each(|from| copy_xattrs(from, to));
        }
        if let Some(wanted) = attributes.and_then(|attributes| attributes.xattrs.as_ref()) {
            match_xattrs(&what, &made, wanted)?;
        }
        dress(&made, like.as_ref());
        if let Some(attributes) = attributes {
            let rest = Attributes { xattrs: None, ..*attributes };
            apply(&what, &made, &rest, &self.owner_refused)?;
            apply_times(&made, attributes).map_err(fail)?;
        }
        if let Some(file) = &made.file {
            file.sync_all().map_err(fail)?;
        }
        let exclusive = Exclusive::of(&parent).map_err(fail)?;
        let now = stat_in(&parent, &name).map_err(fail)?;
        self.check_target(path, now.as_ref(), when)?;
        let no_replace = *when == Condition::IfAbsent;
        let above = fstat(&parent).map_err(fail)?;
        rename_in((&draft.dir, &draft.name), (&parent, &name), no_replace).map_err(fail)?;
        draft.published = true;
        if now.is_some() {
            keep_mtime(&parent, &above);
        }
        drop(exclusive);
        // The new name must survive a crash as the content does.
        File::from(parent).sync_all().map_err(fail)?;
        self.tell(&made).map_err(fail)
    }

    /// Gives the file at `path`, if it is `base`, other attributes. `None`: it is to become a file of another type.
    fn change(
        &self,
        path: &str,
        base: &Base,
        when: &Condition,
        attributes: &Attributes,
    ) -> Result<Option<Meta>, StoreError> {
        let what = format!("change '{path}'");
        let fail = |e: io::Error| os(&what, &e);
        let (parent, name) = self.root.parent(path).map_err(fail)?;
        let exclusive = Exclusive::of(&parent).map_err(fail)?;
        let object = match Opened::at(&parent, last(path), Purpose::Change) {
            Ok(object) => object,
            Err(e) if is_nothing(&e) => {
                self.check_target(path, None, when)?;
                return Err(changed(base));
            }
            Err(e) => return Err(fail(e)),
        };
        let before = object.stat;
        self.check_target(path, Some(&before), when)?;
        if !same_version(&before.meta(), &base.version) {
            return Err(changed(base));
        }
        if told_type(attributes)?.is_some_and(|told| told != before.file_type()) {
            return Ok(None);
        }
        apply(&what, &object, attributes, &self.owner_refused)?;
        // Somebody who writes meanwhile must not be hidden by a time that is set.
        if fstat(&object.fd).map_err(fail)?.version() != before.version() {
            return Err(changed(base));
        }
        apply_times(&object, attributes).map_err(fail)?;
        drop(exclusive);
        match &object.file {
            Some(file) => file.sync_all().map_err(fail)?,
            None => File::from(parent.try_clone().map_err(fail)?).sync_all().map_err(fail)?,
        }
        let now = fstat(&object.fd).map_err(fail)?;
        let stands = stat_in(&parent, &name).map_err(fail)?.is_some_and(|stat| stat.is_same(&now));
        let untouched = now.size == before.size && (attributes.mtime_ns.is_some() || now.mtime_ns == before.mtime_ns);
        if !(stands && untouched) {
            return Err(changed(base));
        }
        self.tell(&object).map(Some).map_err(fail)
    }

    fn open_base(&self, base: &Base) -> Result<Opened, StoreError> {
        let fail = |e: io::Error| os(&format!("copy ranges of '{}'", base.path), &e);
        match self.open(&base.path) {
            Ok(source) if !same_version(&source.stat.meta(), &base.version) => Err(changed(base)),
            Ok(source) if source.stat.is_regular() && source.file.is_none() => {
                Err(fail(io::Error::from_raw_os_error(libc::EACCES)))
            }
            Ok(source) => Ok(source),
            Err(e) if is_nothing(&e) => Err(changed(base)),
            Err(e) => Err(fail(e)),
        }
    }

    /// What stands at `path`, if it is `stat` still and no base.
    fn open_same(&self, path: &str, stat: &Stat, sources: &[Opened]) -> Option<Opened> {
        if sources.first().is_some_and(|source| source.stat.is_same(stat)) {
            return None;
        }
        self.open(path).ok().filter(|opened| opened.stat.is_same(stat))
    }

    /// A name on the file system of `parent`, from where a file can be renamed into it.
    fn draft(&self, parent: &OwnedFd) -> io::Result<Draft> {
        let device = fstat(parent)?.dev;
        let temporary = self.temporary()?;
        let (dir, name, keep) = if temporary.device == device {
            (temporary.dir().try_clone()?, unique(), Some(temporary))
        } else {
            // Another file system is mounted below the root.
            (parent.try_clone()?, format!("{TEMPORARY}-{}", unique()), None)
        };
        Ok(Draft { dir, name: CString::new(name)?, published: false, _temporary: keep })
    }

    fn temporary(&self) -> io::Result<Arc<Temporary>> {
        let mut made = self.temporary.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(temporary) = &*made {
            return Ok(Arc::clone(temporary));
        }
        let temporary = Arc::new(Temporary::new(&self.root)?);
        Ok(Arc::clone(made.insert(temporary)))
    }

    fn fill(&self, what: &str, draft: &File, sources: &[Opened], segments: &[Segment]) -> Result<(), StoreError> {
        let fail = |e: io::Error| failed(what, &e);
        let mut at = 0u64;
        for segment in segments {
            at += match *segment {
                // Left out: a hole, which reads as zeros.
                Segment::Zero { len } => len,
                Segment::Data(slice) => {
                    // SAFETY: the device does not write these bytes until the reply, which comes after this function.
                    let data = unsafe { self.pool.bytes(slice) }.ok_or_else(|| outside(what))?;
                    draft.write_all_at(data, at).map_err(fail)?;
                    slice.len.into()
                }
                Segment::Copy { base, offset, len } => {
                    let source = sources.get(usize::from(base)).ok_or_else(|| no_base(what))?;
                    match &source.file {
                        Some(file) => copy_range(file, offset, draft, at, len).map_err(fail)?,
                        None => {
                            let mut text = vec![0; text_len(len).ok_or_else(|| failed(what, &beyond()))?];
                            source.read_exact_at(&mut text, offset).map_err(fail)?;
                            draft.write_all_at(&text, at).map_err(fail)?;
                        }
                    }
                    len
                }
            };
        }
        draft.set_len(at).map_err(fail)
    }

    /// The target of a symbolic link that has `segments` as its content.
    fn text(&self, what: &str, sources: &[Opened], segments: &[Segment]) -> Result<CString, StoreError> {
        let refuse = |why: &str| error(StoreErrorKind::InvalidName, format!("{what}: the target {why}"));
        let mut text = Vec::new();
        for segment in segments {
            match *segment {
                Segment::Zero { .. } => return Err(refuse("has a NUL in it")),
                Segment::Data(slice) => {
                    text_len(slice.len.into()).ok_or_else(|| refuse("is too long"))?;
                    // SAFETY: the device does not write these bytes until the reply, which comes after this function.
                    text.extend_from_slice(unsafe { self.pool.bytes(slice) }.ok_or_else(|| outside(what))?);
                }
                Segment::Copy { base, offset, len } => {
                    let source = sources.get(usize::from(base)).ok_or_else(|| no_base(what))?;
                    let from = text.len();
                    text.resize(from + text_len(len).ok_or_else(|| refuse("is too long"))?, 0);
                    source.read_exact_at(&mut text[from..], offset).map_err(|e| failed(what, &e))?;
                }
            }
            if text.len() > LINK_MAX {
                return Err(refuse("is too long"));
            }
        }
        if text.is_empty() {
            return Err(refuse("is empty"));
        }
        CString::new(text).map_err(|_| refuse("has a NUL in it"))
    }
}

impl Draft {
    /// An empty regular file.
    fn file(&self) -> io::Result<Opened> {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let file = File::from(open_in(self.dir.as_raw_fd(), self.text()?, flags, 0o600)?);
        Ok(Opened { fd: file.try_clone()?.into(), stat: fstat(&file)?, file: Some(file) })
    }

    /// Whatever `make` makes of the name.
    fn special(&self, make: impl FnOnce(&OwnedFd, &CStr) -> io::Result<()>) -> io::Result<Opened> {
        make(&self.dir, &self.name)?;
        Opened::at(&self.dir, self.text()?, Purpose::Read)
    }

    fn text(&self) -> io::Result<&str> {
        self.name.to_str().map_err(io::Error::other)
    }
}

/// Whether `segments` are all of `base` and nothing else.
fn is_whole(base: &Base, segments: &[Segment]) -> bool {
    let mut at = 0;
    for segment in segments {
        match *segment {
            Segment::Copy { base: 0, offset, len } if offset == at => at += len,
            _ => return false,
        }
    }
    at == base.version.size
}

/// `len` if it can be that of a link's target.
fn text_len(len: u64) -> Option<usize> {
    usize::try_from(len).ok().filter(|len| *len <= LINK_MAX)
}

fn beyond() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

fn failed(what: &str, e: &io::Error) -> StoreError {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => {
            error(StoreErrorKind::VersionMismatch, format!("{what}: the base has become shorter"))
        }
        _ => os(what, e),
    }
}

fn outside(what: &str) -> StoreError {
    error(StoreErrorKind::Protocol, format!("{what}: a slice outside the pool"))
}

fn no_base(what: &str) -> StoreError {
    error(StoreErrorKind::Protocol, format!("{what}: a copied range without base"))
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
fn dress(made: &Opened, like: Option<&Stat>) {
    if let Some(like) = like
        && let Err(e) = own(made, Some(like.uid), Some(like.gid), &AtomicBool::new(true))
    {
        log::debug!("the owner of a rewritten file changes: {e}");
    }
    // A link's is always the same.
    let like = like.filter(|like| !like.is_link());
    if !made.stat.is_link()
        && let Err(e) = allow(made, like.map_or(FILE_MODE, |like| like.permissions() & 0o777))
    {
        log::debug!("the mode of a rewritten file changes: {e}");
    }
}
