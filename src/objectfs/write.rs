//! Writing: into memory, which is bounded; when too much of it is dirty, the writer first brings some to the store.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::core::Core;
use super::handles::OpenFile;
use super::inode::Inode;
use crate::cache::Block;
use crate::cache::extents::{EXTENT_BLOCK_MAX, Step};
use crate::fs::{Errno, FileAt, NodeId, Result, Source, Write};
use crate::store::Store;

/// Most dirty runs of one file; with more, its upload would not fit one message.
const EXTENTS_MAX: usize = 32_768;

impl<S: Store> Core<S> {
    pub(super) fn writable(&self, nodeid: crate::fs::NodeId, handle: crate::fs::Handle) -> Result<Arc<OpenFile>> {
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

    pub(super) async fn write_at(
        &self,
        file: &OpenFile,
        offset: u64,
        len: usize,
        data: &mut impl Source,
    ) -> Result<()> {
        let end = offset.checked_add(len as u64).filter(|&end| end <= i64::MAX as u64).ok_or(Errno::EFBIG)?;
        if self.capabilities.size_max.is_some_and(|max| end > max) {
            return Err(Errno::EFBIG);
        }
        if file.inode.state().content.extents() >= EXTENTS_MAX {
            self.upload(&file.inode).await?;
        }
        if offset < file.inode.state().content.size() {
            self.end_sending(&file.inode, offset, end).await;
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
                    if state.flowing {
                        self.go_on_sending(&file.inode, &mut state);
                    }
                }
                step
            };
            match step {
                Step::Stored(n) => done += n,
                Step::NeedBlock { len, block_len } => {
                    let block = self.dirty_block(&file.inode, block_len.min(self.dirty_max())).await?;
                    let mut state = file.inode.state();
                    if state.content.lineage() != file.lineage {
                        // What it would have gone behind was lost to somebody else while this waited for memory.
                        return Err(Errno::ESTALE);
                    }
                    done += state.content.add(at, len, block, data)?;
                    state.touch();
                    self.go_on_sending(&file.inode, &mut state);
                }
            }
        }
        Ok(())
    }

    /// Memory for `len` bytes, at most [`Core::dirty_max`], that are about to be dirty. When too much is dirty already, brings this
    /// file to the store first, or another one.
    ///
    /// # Errors
    /// What the store says of this file's upload, or of another's that cannot be told from trouble with the store: there is no room to
    /// keep more. ENOSPC: files that the store refuses for good hold the memory until they are closed.
    pub(super) async fn dirty_block(&self, inode: &Arc<Inode>, len: usize) -> Result<Block> {
        let mut refused = HashSet::new();
        let mut waits = false;
        loop {
            let freed = self.blocks.freed();
            if self.blocks.dirty_bytes() + len <= self.dirty_max()
                && let Some(block) = self.clean.try_take(&self.blocks, len)
            {
                return Ok(block);
            }
            let is_being_sent = self.is_being_sent(inode);
            if self.release_sent() {
                continue;
            }
            if !waits {
                waits = true;
                self.say_full(inode);
            }
            if is_being_sent {
                freed.await;
            } else if inode.upload.try_lock().is_none() {
                // The upload that is under way gives memory back; another after it would only have little to do.
                drop(inode.upload.lock().await);
            } else if inode.state().content.is_dirty() {
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

    /// Notes that a write to `inode` waits for memory.
    fn say_full(&self, inode: &Inode) {
        self.meter().full.fetch_add(1, Ordering::Relaxed);
        let (place, most) = (self.meter().place(), self.dirty_max() >> 20);
        let path = self.tree().path(inode.id).unwrap_or_default();
        let text = format_args!(
            "{place}{path:?}: the memory for what is not stored yet ({most} MiB) is full; writing goes on as the store takes some"
        );
        self.meter().said().full.log(log::Level::Info, text);
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
            self.end_sending(&file.inode, at.offset, end).await;
            let visible = end.min(file.inode.state().content.size());
            let mut from = at.offset;
            while from < visible {
                let len =
                    usize::try_from(visible - from).unwrap_or(usize::MAX).min(EXTENT_BLOCK_MAX).min(self.dirty_max());
                let mut block = Some(self.dirty_block(&file.inode, len).await?);
                let mut state = file.inode.state();
                if state.content.lineage() != file.lineage {
                    return Err(Errno::ESTALE);
                }
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
}
