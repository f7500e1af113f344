//! Reading: from memory where it is, else a block from the store, of the version that the handle opened.

use std::ops::Range;
use std::sync::Arc;

use futures::future::BoxFuture;

use super::content::{BaseObject, Layer};
use super::core::Core;
use super::handles::OpenFile;
use super::inode::Inode;
use super::lookup::gone;
use crate::cache::Clean;
use crate::cache::buddy::BLOCK_MAX;
use crate::fs::{Errno, FileAt, Read, Result, Sink};
use crate::store::{Store, StoreErrorKind};

/// Times that a read looks again because we ourselves replaced the object while it was being fetched.
const AGAIN_MAX: u32 = 16;

/// A piece of a file, ready to be copied out.
enum Piece {
    Memory(crate::cache::Extent),
    Block { clean: Arc<Clean>, start: usize, len: usize },
    Zero(usize),
}

impl Piece {
    /// At most `len` bytes of `clean` from byte `offset` of the file on.
    ///
    /// # Errors
    /// EIO: it has none there.
    fn of(clean: Arc<Clean>, offset: u64, len: usize) -> Result<Piece> {
        let start = offset.checked_sub(clean.start).and_then(|start| usize::try_from(start).ok()).ok_or(Errno::EIO)?;
        match len.min(clean.len.saturating_sub(start)) {
            0 => Err(Errno::EIO),
            len => Ok(Piece::Block { clean, start, len }),
        }
    }

    fn len(&self) -> usize {
        match self {
            Piece::Memory(extent) => extent.len,
            Piece::Block { len, .. } | Piece::Zero(len) => *len,
        }
    }
}

impl<S: Store> Core<S> {
    /// FUSE_READ.
    pub(super) async fn read(&self, op: Read, out: &mut impl Sink) -> Result<usize> {
        let file = self.handles.file(op.nodeid, op.handle)?;
        if !file.readable {
            return Err(Errno::EBADF);
        }
        self.read_file(&file, op, out).await
    }

    /// Reads from an open file, whatever its handle's number.
    pub(super) async fn read_file(&self, file: &OpenFile, op: Read, out: &mut impl Sink) -> Result<usize> {
        let wanted = (op.size as usize).min(out.remaining());
        let mut done = 0;
        while done < wanted {
            let piece = self.piece(file, op.offset + done as u64, wanted - done).await;
            // It is read by its handle: what has lost its name is stale, not absent.
            let piece = piece.map_err(|errno| if errno == Errno::ENOENT { Errno::ESTALE } else { errno });
            let Some(piece) = piece? else { break };
            done += match piece {
                Piece::Memory(extent) => {
                    extent.block.put(extent.start, extent.len, out)?;
                    extent.len
                }
                Piece::Block { clean, start, len } => {
                    clean.block.put(start, len, out)?;
                    len
                }
                Piece::Zero(len) => {
                    out.put_zeros(len)?;
                    len
                }
            };
        }
        Ok(done)
    }

    /// The bytes from `offset` on, at most `len`, as many as lie together; `None` at the end of the file.
    async fn piece(&self, file: &OpenFile, offset: u64, len: usize) -> Result<Option<Piece>> {
        let mut again = AGAIN_MAX;
        loop {
            let found = {
                let state = file.inode.state();
                if state.content.lineage() != file.lineage {
                    return Err(Errno::ESTALE);
                }
                match state.content.at(offset, len) {
                    None => return Ok(None),
                    Some(Layer::Memory(extent)) => {
                        self.meter().hit(extent.len);
                        return Ok(Some(Piece::Memory(extent)));
                    }
                    Some(Layer::Zero(len)) => return Ok(Some(Piece::Zero(len))),
                    Some(Layer::Sent) => None,
                    Some(Layer::Base(len)) => {
                        let base = state.content.base().ok_or(Errno::EIO)?;
                        Some((base.id, base.version.size, len))
                    }
                }
            };
            let Some((id, size, len)) = found else {
                // Nobody can read it there before it is an object.
                drop(file.inode.upload.lock().await);
                continue;
            };
            let here = self.clean.get(id, offset);
            let plan = file.streams.read(offset, len as u64, size, self.ahead_max(), here.is_none());
            let ahead = plan.ahead.filter(|(range, _)| self.clean.next_gap(id, range.clone()).is_some());
            // Of which version, only the store is to be told: a hit needs no copy of it.
            let base = match here.is_none() || ahead.is_some() {
                true => file.inode.state().content.base().filter(|base| base.id == id).cloned(),
                false => None,
            };
            if let (Some(base), Some((range, each))) = (&base, ahead) {
                self.read_ahead(&file.inode, base, range, each);
            }
            if let Some(clean) = here {
                let piece = Piece::of(clean, offset, len)?;
                self.meter().hit(piece.len());
                return Ok(Some(piece));
            }
            // Somebody may have replaced it just now.
            let Some(base) = base else { continue };
            match self.block(&file.inode, &base, offset, plan.now).await {
                Ok(clean) => {
                    let piece = Piece::of(clean, offset, len)?;
                    self.meter().miss(piece.len());
                    return Ok(Some(piece));
                }
                // The object was moved, or replaced by somebody else: look again, once. Or we replaced it.
                Err(Errno::ESTALE) if again > 0 => {
                    again -= 1;
                    let (same, moved, saving) = {
                        let state = file.inode.state();
                        (state.content.base() == Some(&base), state.moved, state.saving)
                    };
                    if saving || (same && file.inode.upload.try_lock().is_none()) {
                        // An upload is under way, or its attributes are being stored: the store may have the new version
                        // already, and we are yet to hear of it.
                        drop(file.inode.upload.lock().await);
                    } else if moved {
                        again = 0;
                        self.rebase_moved(&file.inode).await?;
                    } else if same {
                        again = 0;
                        match self.revalidate(&file.inode).await {
                            Err(Errno::ENOENT) => return Err(Errno::ESTALE),
                            other => other?,
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The block of the base object of `inode` that holds byte `offset`; of what is not here, as much of `wanted` as lies
    /// around it is fetched in one request.
    ///
    /// # Errors
    /// ESTALE: the object is no longer that version, or no longer there.
    pub(super) fn block<'a>(
        &'a self,
        inode: &'a Arc<Inode>,
        base: &'a BaseObject,
        offset: u64,
        wanted: Range<u64>,
    ) -> BoxFuture<'a, Result<Arc<Clean>>> {
        Box::pin(async move {
            let fetch = |memory: Arc<Clean>| async move {
                let (start, dest) = (memory.start, memory.block.slice(0, memory.len));
                let path = self.object_path(inode)?;
                let version = Some(base.version.clone());
                self.remote.read(path, version, start, dest, memory).await.map_err(|error| match error.kind {
                    StoreErrorKind::VersionMismatch => Errno::ESTALE,
                    _ if gone(&error) => Errno::ESTALE,
                    _ => Errno::from(error),
                })
            };
            let choose = |_| {
                let start = wanted.start.max((offset + 1).saturating_sub(BLOCK_MAX as u64));
                start..wanted.end.min(start + BLOCK_MAX as u64)
            };
            self.clean.get_or_fetch(&self.blocks, base.id, (offset, base.version.size), choose, fetch).await
        })
    }

    /// Where the object of `inode` is: at its path, or hidden if the file was unlinked while open.
    ///
    /// # Errors
    /// ESTALE: it is nowhere any more.
    pub(super) fn object_path(&self, inode: &Inode) -> Result<String> {
        let tree = self.tree();
        if let Some(hidden) = &inode.state().hidden {
            return Ok(hidden.clone());
        }
        tree.path(inode.id).map_err(|_| Errno::ESTALE)
    }

    /// Most bytes that may be fetched ahead of all readers together: half of what writers leave, so that what is read
    /// ahead drives out nothing that was read ahead.
    fn ahead_max(&self) -> u64 {
        (self.blocks.len().saturating_sub(self.blocks.dirty_bytes()) / 2) as u64
    }

    /// Fetches `range` for later reads, in requests of `each` bytes that begin at multiples of it.
    fn read_ahead(&self, inode: &Arc<Inode>, base: &BaseObject, range: Range<u64>, each: u64) {
        let mut at = range.start;
        while let Some(gap) = self.clean.next_gap(base.id, at..range.end) {
            let until = (gap.start / each + 1).saturating_mul(each).min(gap.end);
            let wanted = gap.start..until;
            let (inode, base) = (Arc::clone(inode), base.clone());
            // At once, so that nobody else asks for the same bytes meanwhile.
            self.begin(|core| async move {
                // Whoever reads the block meets the same error and reports it.
                if let Ok(clean) = core.block(&inode, &base, wanted.start, wanted).await {
                    clean.keep_for_later();
                }
            });
            at = until;
        }
    }

    /// FUSE_LSEEK: every byte of a file counts as data, as far as its end.
    pub(super) fn lseek(&self, at: FileAt, whence: u32) -> Result<u64> {
        let file = self.handles.file(at.nodeid, at.handle)?;
        let size = file.inode.state().content.size();
        match i32::try_from(whence) {
            Ok(libc::SEEK_SET) => Ok(at.offset),
            Ok(libc::SEEK_END) => size.checked_add(at.offset).ok_or(Errno::EOVERFLOW),
            Ok(libc::SEEK_DATA) if at.offset < size => Ok(at.offset),
            Ok(libc::SEEK_HOLE) if at.offset < size => Ok(size),
            Ok(libc::SEEK_DATA | libc::SEEK_HOLE) => Err(Errno::ENXIO),
            _ => Err(Errno::EINVAL),
        }
    }
}
