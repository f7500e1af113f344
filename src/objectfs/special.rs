//! What is a file to the store and something else to the guest: symbolic links, FIFOs and sockets. Only where the mount
//! keeps modes, for the mode is all that tells them apart; an inode's type never changes.
//!
//! A symbolic link is an object that holds its target. FIFOs and sockets are empty objects: what goes through them stays in
//! the guest.

use std::sync::Arc;

use super::core::Core;
use super::handles::OpenFile;
use super::inode::Inode;
use super::stream::Streams;
use crate::fs::{Context, Entry, Errno, NodeId, Read, Result, Sink};
use crate::store::Store;

/// Longest target of a symbolic link in bytes: PATH_MAX of the guest, without the NUL.
const TARGET_MAX: usize = 4095;

/// How often a link may change under its reader.
const RACES_MAX: u32 = 4;

impl<S: Store> Core<S> {
    /// FUSE_MKNOD: nobody will close the file, so the store gets it at once. Device nodes cannot be made.
    pub(super) async fn mknod(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        umask: u32,
    ) -> Result<Entry> {
        let file_type = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => libc::S_IFREG,
            special @ (libc::S_IFIFO | libc::S_IFSOCK) if self.config.posix => special,
            _ => return Err(Errno::EPERM),
        };
        let inode = self.make(ctx, parent, name, file_type, (mode, umask)).await?;
        self.finish(&inode).await
    }

    /// FUSE_SYMLINK: the store has it when this returns.
    pub(super) async fn symlink(&self, ctx: Context, parent: NodeId, name: &[u8], target: &[u8]) -> Result<Entry> {
        if !self.config.posix {
            return Err(Errno::EPERM);
        }
        if target.len() > TARGET_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        // The memory comes first: what there is of a link is all of it.
        let above = self.inode(parent)?;
        let mut block = self.dirty_block(&above, target.len()).await?;
        block.write(0, target);
        let inode = self.make(ctx, parent, name, libc::S_IFLNK, (0o777, 0)).await?;
        inode.state().content.fill(block, target.len());
        self.finish(&inode).await
    }

    /// A new file of any type, which the store does not have yet and the guest does not know.
    async fn make(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        file_type: u32,
        (mode, umask): (u32, u32),
    ) -> Result<Arc<Inode>> {
        let name = Self::new_name(parent, name)?;
        match self.resolve(parent, name).await {
            Ok(_) => return Err(Errno::EEXIST),
            Err(Errno::ENOENT) => {}
            Err(other) => return Err(other),
        }
        let birth = self.birth(ctx, parent, file_type, mode, umask)?;
        self.new_file(parent, name, true, birth)
    }

    /// Stores what was made, or takes it back.
    async fn finish(&self, inode: &Arc<Inode>) -> Result<Entry> {
        // Nobody holds it yet, and once it is stored nothing would keep it.
        self.tree().remember(inode.id);
        if let Err(error) = self.upload(inode).await {
            let mut tree = self.tree();
            tree.detach(inode.id);
            tree.forget(inode.id, 1);
            return Err(error);
        }
        Ok(self.entry(inode))
    }

    /// FUSE_READLINK.
    pub(super) async fn readlink(&self, nodeid: NodeId) -> Result<Vec<u8>> {
        let inode = self.inode(nodeid)?;
        if inode.file_type != libc::S_IFLNK {
            return Err(Errno::EINVAL);
        }
        let known = self.knows(&inode.state());
        if !known {
            self.revalidate(&inode).await?;
        }
        for _ in 0..RACES_MAX {
            match self.target(&inode).await {
                // Somebody else's newer link: that is as good.
                Err(Errno::ESTALE) => self.revalidate(&inode).await?,
                other => return other,
            }
        }
        Err(Errno::EIO)
    }

    async fn target(&self, inode: &Arc<Inode>) -> Result<Vec<u8>> {
        let (lineage, size) = {
            let state = inode.state();
            (state.content.lineage(), state.content.size())
        };
        let len = usize::try_from(size).ok().filter(|len| (1..=TARGET_MAX).contains(len)).ok_or(Errno::EIO)?;
        let file = OpenFile {
            inode: Arc::clone(inode),
            lineage,
            readable: true,
            writable: false,
            append: false,
            streams: Streams::new(Arc::clone(&self.reading_ahead), self.config.block_size),
        };
        let mut target = Target { bytes: Vec::with_capacity(len), len };
        let op = Read {
            nodeid: inode.id,
            handle: crate::fs::Handle(0),
            offset: 0,
            size: u32::try_from(len).unwrap_or(0),
            lock_owner: None,
            flags: 0,
        };
        self.read_file(&file, op, &mut target).await?;
        // A target with a NUL would be another one to the guest.
        if target.bytes.len() != len || target.bytes.contains(&0) {
            return Err(Errno::EIO);
        }
        Ok(target.bytes)
    }
}

/// Room for a target.
struct Target {
    bytes: Vec<u8>,
    len: usize,
}

impl Sink for Target {
    fn remaining(&self) -> usize {
        self.len.saturating_sub(self.bytes.len())
    }

    fn put(&mut self, data: &[u8]) -> std::io::Result<()> {
        if data.len() > self.remaining() {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    fn put_zeros(&mut self, len: usize) -> std::io::Result<()> {
        self.put(&vec![0; len])
    }

    fn put_from_file(&mut self, _: &std::fs::File, _: usize, _: u64, _: i32) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}
