//! Write-back: with [`super::Config::writeback_delay`] closing a file does not wait for the store. What was written is uploaded once
//! the file was left alone for that time, many files at once; fsync(2), syncfs(2), memory that runs short and the end of a
//! session do not wait. What the store refuses is logged, tried again, and told to whoever syncs or closes the file next.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{StreamExt, stream};

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
    pub(super) fn write_back(&self, due: HashSet<NodeId>) -> BoxFuture<'_, ()> {
        let one = async move |id| {
            let Ok(inode) = self.tree().inode(id) else { return };
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
        };
        Box::pin(stream::iter(due).for_each_concurrent(UPLOADS_AT_ONCE, one))
    }
}
