//! Writing: into memory, which is bounded; when too much of it is dirty, the writer first brings some to the store.

use std::collections::HashSet;
use std::sync::Arc;

use super::core::Core;
use super::handles::OpenFile;
use super::inode::Inode;
use crate::cache::Block;
use crate::cache::extents::{EXTENT_BLOCK_MAX, Step};
use crate::fs::{Errno, FileAt, NodeId, Result, Source, Write};
use crate::store::Store;

/// Most dirty runs of one file; with more, its upload would not fit one message.
const EXTENTS_MAX: usize = 32_768;

/// Most bytes that one COPY_FILE_RANGE copies; the guest asks again for the rest.
const COPY_MAX: u64 = 8 << 20;

impl<S: Store> Core<S> {
    fn writable(&self, nodeid: crate::fs::NodeId, handle: crate::fs::Handle) -> Result<Arc<OpenFile>> {
        let file = self.handles.file(nodeid, handle)?;
        if file.writable { Ok(file) } else { Err(Errno::EBADF) }
    }

    /// FUSE_WRITE.
    pub(super) async fn write(&self, op: Write, data: &mut impl Source) -> Result<usize> {
        let file = self.writable(op.nodeid, op.handle)?;
        let append = file.append && !op.delayed;
        let offset = if append { file.inode.state().content.size() } else { op.offset };
        let len = op.size as usize;
        self.write_at(&file, offset, len, data).await?;
        if op.flags as i32 & (libc::O_SYNC | libc::O_DSYNC) != 0 && !op.delayed {
            self.upload(&file.inode).await?;
        }
        Ok(len)
    }

    async fn write_at(&self, file: &OpenFile, offset: u64, len: usize, data: &mut impl Source) -> Result<()> {
        let end = offset.checked_add(len as u64).filter(|&end| end <= i64::MAX as u64).ok_or(Errno::EFBIG)?;
        if self.capabilities.size_max.is_some_and(|max| end > max) {
            return Err(Errno::EFBIG);
        }
        if file.inode.state().content.extents() >= EXTENTS_MAX {
            self.upload(&file.inode).await?;
        }
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let step = {
                let mut state = file.inode.state();
                if state.content.lineage() != file.lineage {
                    return Err(Errno::ESTALE);
                }
                let step = state.content.store(at, len - done, data)?;
                if matches!(step, Step::Stored(_)) {
                    state.touch();
                }
                step
            };
            match step {
                Step::Stored(n) => done += n,
                Step::NeedBlock { len, block_len } => {
                    let block = self.dirty_block(&file.inode, block_len).await?;
                    let mut state = file.inode.state();
                    done += state.content.add(at, len, block, data)?;
                    state.touch();
                }
            }
        }
        Ok(())
    }

    /// Memory for `len` bytes that are about to be dirty. When too much is dirty already, brings this file to the store first,
    /// or another one.
    ///
    /// # Errors
    /// What the store says of this file's upload, or of another's that cannot be told from trouble with the store: there is no room to
    /// keep more. ENOSPC: files that the store refuses for good hold the memory until they are closed.
    pub(super) async fn dirty_block(&self, inode: &Arc<Inode>, len: usize) -> Result<Block> {
        let mut refused = HashSet::new();
        loop {
            let freed = self.blocks.freed();
            if self.blocks.dirty_bytes() + len <= self.dirty_max()
                && let Some(block) = self.clean.try_take(&self.blocks, len)
            {
                return Ok(block);
            }
            if inode.state().content.is_dirty() {
                self.upload_even_unlinked(inode).await?;
            } else if let Some(other) = self.dirtiest(inode, &refused) {
                match self.upload_even_unlinked(&other).await {
                    Err(error) if error == Errno::ESTALE || other.state().refused.is_some() => {
                        refused.insert(other.id);
                    }
                    answer => answer?,
                }
            } else if refused.is_empty() {
                freed.await;
            } else {
                return Err(Errno::ENOSPC);
            }
        }
    }

    /// Another file that is dirty, and not one of `refused`: the one with most dirty runs.
    fn dirtiest(&self, than: &Arc<Inode>, refused: &HashSet<NodeId>) -> Option<Arc<Inode>> {
        let other = |inode: &&Arc<Inode>| inode.id != than.id && !refused.contains(&inode.id);
        let candidates: Vec<Arc<Inode>> = self.tree().inodes().filter(other).cloned().collect();
        candidates
            .into_iter()
            .filter(|inode| inode.state().content.is_dirty())
            .max_by_key(|inode| inode.state().content.extents())
    }

    /// FUSE_FALLOCATE: mode 0 makes the file at least so long; with KEEP_SIZE there is nothing to reserve; PUNCH_HOLE and ZERO_RANGE
    /// write zeros.
    pub(super) async fn fallocate(&self, at: FileAt, length: u64, mode: u32) -> Result<()> {
        const KEEP_SIZE: u32 = libc::FALLOC_FL_KEEP_SIZE as u32;
        const PUNCH_HOLE: u32 = libc::FALLOC_FL_PUNCH_HOLE as u32;
        const ZERO_RANGE: u32 = libc::FALLOC_FL_ZERO_RANGE as u32;
        let file = self.writable(at.nodeid, at.handle)?;
        let end = at.offset.checked_add(length).filter(|&end| end <= i64::MAX as u64).ok_or(Errno::EFBIG)?;
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        if file.lineage != file.inode.state().content.lineage() {
            return Err(Errno::ESTALE);
        }
        if self.capabilities.size_max.is_some_and(|max| end > max) {
            return Err(Errno::EFBIG);
        }
        if !matches!(mode & !KEEP_SIZE, 0 | ZERO_RANGE) && mode != PUNCH_HOLE | KEEP_SIZE {
            return Err(Errno::EOPNOTSUPP);
        }
        if mode & (PUNCH_HOLE | ZERO_RANGE) != 0 {
            let visible = end.min(file.inode.state().content.size());
            let mut from = at.offset;
            while from < visible {
                let len = usize::try_from(visible - from).unwrap_or(usize::MAX).min(EXTENT_BLOCK_MAX);
                let mut block = Some(self.dirty_block(&file.inode, len).await?);
                let mut state = file.inode.state();
                if !state.content.zero(from, from + len as u64, |_| block.take()) {
                    return Err(Errno::EIO);
                }
                from += len as u64;
            }
        }
        let mut state = file.inode.state();
        if mode & KEEP_SIZE == 0 && end > state.content.size() {
            state.content.truncate(end);
        }
        state.touch();
        Ok(())
    }

    /// FUSE_COPY_FILE_RANGE: through our memory, without the guest's.
    pub(super) async fn copy_file_range(&self, from: FileAt, to: FileAt, len: u64) -> Result<usize> {
        let source = self.handles.file(from.nodeid, from.handle)?;
        let target = self.writable(to.nodeid, to.handle)?;
        let size = source.inode.state().content.size();
        let len = len.min(COPY_MAX).min(size.saturating_sub(from.offset));
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
