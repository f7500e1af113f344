//! Copying between files (copy_file_range(2), cp(1)) without the guest's memory: long ranges by the store itself.

use super::attributes::Outgoing;

use super::core::Core;
use super::handles::OpenFile;
use crate::cache::extents::EXTENT_BLOCK_MAX;
use crate::fs::{Errno, FileAt, Result, Source};
use crate::store::{Base, Condition, Kind, Meta, Store, StoreErrorKind};
use futures::future::BoxFuture;

/// Most bytes that one COPY_FILE_RANGE copies through our memory; the guest asks again for the rest.
const COPY_MAX: u64 = 8 << 20;

/// Fewest bytes that the store is asked to copy: below, its requests cost more than the bytes.
const INSIDE_MIN: u64 = 1 << 20;

impl<S: Store> Core<S> {
    /// FUSE_COPY_FILE_RANGE: long ranges by the store, from object to object; else through our memory, without the guest's.
    pub(super) async fn copy_file_range(&self, from: FileAt, to: FileAt, len: u64) -> Result<usize> {
        let source = self.handles.file(from.nodeid, from.handle)?;
        let target = self.writable(to.nodeid, to.handle)?;
        let size = source.inode.state().content.size();
        let left = size.saturating_sub(from.offset);
        if len.min(left) >= INSIDE_MIN && self.copy_inside(&source, from.offset, &target, to.offset, len).await? {
            return usize::try_from(len.min(left)).map_err(|_| Errno::EOVERFLOW);
        }
        let len = len.min(COPY_MAX).min(left);
        if source.inode.id == target.inode.id && from.offset < to.offset + len && to.offset < from.offset + len {
            return Err(Errno::EINVAL);
        }
        let mut done: u64 = 0;
        while done < len {
            let mut piece = Copied::with_room(usize::try_from(len - done).unwrap_or(usize::MAX).min(EXTENT_BLOCK_MAX));
            let read = crate::fs::Read {
                nodeid: from.nodeid,
                handle: from.handle,
                offset: from.offset + done,
                size: u32::try_from(piece.room).unwrap_or(u32::MAX),
                lock_owner: None,
                flags: 0,
            };
            let n = self.read(read, &mut piece).await?;
            if n == 0 {
                break;
            }
            self.write_at(&target, to.offset + done, n, &mut piece).await?;
            done += n as u64;
        }
        usize::try_from(done).map_err(|_| Errno::EOVERFLOW)
    }

    /// Lets the store copy `len` bytes of `source` (or as many as there are) from `offset` on into `target` at `to`, which
    /// uploads both files. False: it cannot be done like that, and nothing has changed.
    fn copy_inside<'a>(
        &'a self,
        source: &'a OpenFile,
        offset: u64,
        target: &'a OpenFile,
        to: u64,
        len: u64,
    ) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let (from, into) = (&source.inode, &target.inode);
            if !self.capabilities.copy_ranges || from.id == into.id {
                return Ok(false);
            }
            self.upload(from).await?;
            let _paths_stay = self.renaming.read().await;
            let _one_at_a_time = into.upload.lock().await;
            if into.state().moved && into.state().content.needs_base() {
                self.rebase_moved(into).await?;
            }
            if from.state().moved {
                self.rebase_moved(from).await?;
            }
            let base = {
                let state = from.state();
                if state.content.lineage() != source.lineage {
                    return Err(Errno::ESTALE);
                }
                state.content.base().filter(|_| !state.content.is_dirty()).cloned()
            };
            let Some(base) = base else { return Ok(false) };
            let len = len.min(base.version.size.saturating_sub(offset));
            let end = to.checked_add(len).filter(|&end| end <= i64::MAX as u64).ok_or(Errno::EFBIG)?;
            if self.capabilities.size_max.is_some_and(|max| end > max) {
                return Err(Errno::EFBIG);
            }
            let other = Base { path: self.object_path(from)?, version: base.version };
            let path = {
                let tree = self.tree();
                if len == 0 || into.state().unlinked {
                    return Ok(false);
                }
                tree.path(into.id)?
            };
            self.settle(&path).await;
            let (upload, when, sent) = {
                let mut state = into.state();
                if state.content.lineage() != target.lineage {
                    return Err(Errno::ESTALE);
                }
                let Some(upload) = state.content.begin_copy(to, offset, len) else { return Ok(false) };
                let when = match &upload.base {
                    Some(version) => Condition::IfVersion(version.clone()),
                    None if state.exclusive => Condition::IfAbsent,
                    None => Condition::Any,
                };
                // Before the copy, for the store is told the time of it.
                state.touch();
                (upload, when, state.outgoing(into, self.config.posix))
            };
            let own = upload.base.map(|version| Base { path: path.clone(), version });
            let bases = own.into_iter().chain([other]).collect();
            match self
                .remote
                .compose(path.clone(), bases, when, upload.segments, sent.attributes.clone(), upload.keep)
                .await
            {
                Ok(meta) if meta.kind == Kind::File && meta.size == upload.size => {
                    self.copied(target, &meta, &sent);
                    Ok(true)
                }
                answer => {
                    into.state().content.roll_back();
                    match answer {
                        Ok(meta) => {
                            log::error!("{path:?}: the store has {} bytes where {} were sent", meta.size, upload.size);
                            Err(Errno::EIO)
                        }
                        // The other way meets the same trouble and tells it apart.
                        Err(error)
                            if matches!(
                                error.kind,
                                StoreErrorKind::VersionMismatch
                                    | StoreErrorKind::NotFound
                                    | StoreErrorKind::Exists
                                    | StoreErrorKind::Unsupported
                            ) =>
                        {
                            log::debug!("{path:?}: the store does not copy: {error}");
                            Ok(false)
                        }
                        Err(error) => Err(error.into()),
                    }
                }
            }
        })
    }

    fn copied(&self, target: &OpenFile, meta: &Meta, sent: &Outgoing) {
        let id = self.tree().content_id();
        let mut state = target.inode.state();
        state.content.commit(meta.version(), id);
        state.committed(meta);
        state.posix.arrived(sent);
    }
}

/// Bytes on their way from one file to another.
struct Copied {
    bytes: Vec<u8>,
    taken: usize,
    room: usize,
}

impl Copied {
    fn with_room(room: usize) -> Copied {
        Copied { bytes: Vec::with_capacity(room), taken: 0, room }
    }
}

impl crate::fs::Sink for Copied {
    fn remaining(&self) -> usize {
        self.room - self.bytes.len()
    }

    fn put(&mut self, data: &[u8]) -> std::io::Result<()> {
        if data.len() > crate::fs::Sink::remaining(self) {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    fn put_zeros(&mut self, len: usize) -> std::io::Result<()> {
        if len > crate::fs::Sink::remaining(self) {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        self.bytes.resize(self.bytes.len() + len, 0);
        Ok(())
    }

    fn put_from_file(&mut self, _: &std::fs::File, _: usize, _: u64, _: i32) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

impl Source for Copied {
    fn remaining(&self) -> usize {
        self.bytes.len() - self.taken
    }

    fn take(&mut self, buf: &mut [u8]) -> std::io::Result<()> {
        let end = self.taken + buf.len();
        let from = self.bytes.get(self.taken..end).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(from);
        self.taken = end;
        Ok(())
    }

    fn take_to_file(&mut self, _: &std::fs::File, _: usize, _: u64, _: i32) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}
