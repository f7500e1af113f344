//! Write-back: with [`super::Config::writeback_delay`] closing a file does not wait for the store. What was written is uploaded once
//! the file was left alone for that time, many files at once; fsync(2), syncfs(2), memory that runs short and the end of a
//! session do not wait. What the store refuses is logged, tried again, and told to whoever syncs or closes the file next.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::core::Core;
use super::due::DueList;
use super::inode::Inode;
use super::upload::UPLOADS_AT_ONCE;
use crate::fs::{NodeId, Result};
use crate::store::Store;

/// How many times the delay a file waits at most that is closed again and again.
const LONGEST: u32 = 4;

/// The list of closed files for a delay.
pub fn list(delay: Duration) -> DueList {
    DueList::new(delay, delay.saturating_mul(LONGEST))
}

/// The thread that uploads them.
#[derive(Debug)]
pub struct WriteBack(Arc<DueList>);

impl WriteBack {
    /// Starts it. It ends when this is dropped, or with the file system.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start<S: Store>(core: &Arc<Core<S>>) -> std::io::Result<WriteBack> {
        let closed = Arc::clone(&core.closed_files);
        let core: Weak<Core<S>> = Arc::downgrade(core);
        let writeback = WriteBack(Arc::clone(&closed));
        std::thread::Builder::new().name("ovfs-writeback".into()).spawn(move || {
            while let Some(due) = closed.due() {
                let Some(core) = core.upgrade() else { return };
                futures::executor::block_on(core.write_back(due));
            }
        })?;
        Ok(writeback)
    }
}

impl Drop for WriteBack {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl<S: Store> Core<S> {
    /// A file that may have been written is closed.
    ///
    /// # Errors
    /// What the store says of it; with write-back, what it said since this was last told.
    pub(super) async fn store_closed(&self, inode: &Arc<Inode>) -> Result<()> {
        if self.config.writeback_delay.is_zero() {
            return self.upload(inode).await;
        }
        let dirty = {
            let mut state = inode.state();
            if let Some(errno) = state.lost.take().or_else(|| state.unreported.take()) {
                return Err(errno);
            }
            !state.unlinked && state.content.is_dirty()
        };
        if dirty {
            self.closed_files.note(inode.id);
        }
        Ok(())
    }

    /// Uploads what is due.
    async fn write_back(&self, due: HashSet<NodeId>) {
        let mut running = FuturesUnordered::new();
        for id in due {
            let Ok(inode) = self.tree().inode(id) else { continue };
            if running.len() >= UPLOADS_AT_ONCE {
                let _: Option<()> = running.next().await;
            }
            running.push(async move {
                let Err(errno) = self.upload(&inode).await else {
                    inode.state().stored_late();
                    return;
                };
                // It is logged already.
                inode.state().unreported = Some(errno);
                if inode.state().refused.is_some() {
                    self.give_up_refused(&inode);
                } else {
                    self.closed_files.again(id);
                }
            });
        }
        while running.next().await.is_some() {}
    }
}
