//! Two writers of one object: what becomes of what the guest wrote on top of a version that is no longer there.
//!
//! A store that knows conditions refuses such an upload, so nothing of the other writer is lost. Here is decided what
//! happens to ours ([`OnConflict`]). Whoever asked for the upload gets ESTALE (EEXIST if the file was created with O_EXCL),
//! unless ours replaced theirs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::future::BoxFuture;

use super::content::Upload;
use super::core::{Core, OnConflict};
use super::inode::Inode;
use crate::cache::Clean;
use crate::fs::Errno;
use crate::store::beside::beside;
use crate::store::{Condition, Kind, Segment, Store, StoreError, StoreErrorKind};

/// An upload that needs nothing of its base from the store.
struct Standalone {
    upload: Upload,
    segments: Vec<Segment>,
    /// Owns the clean blocks among the segments.
    blocks: Vec<Arc<Clean>>,
}

/// Whether an upload failed because the object is not what the guest's bytes lie over.
pub(super) fn is_conflict(error: &StoreError) -> bool {
    matches!(error.kind, StoreErrorKind::VersionMismatch | StoreErrorKind::Exists | StoreErrorKind::NotFound)
}

impl<S: Store> Core<S> {
    /// Deals with an upload of `inode` to `path` that the store refused with `error`. The content is rolled back; the
    /// caller holds the inode's upload lock. `None`: it cannot be dealt with, the file stays dirty.
    ///
    /// # Errors
    /// `Some(Err)`: what the guest is to be told; what it wrote is safe under another name.
    pub(super) fn resolve_conflict<'a>(
        &'a self,
        inode: &'a Arc<Inode>,
        path: &'a str,
        error: &'a StoreError,
    ) -> BoxFuture<'a, Option<Result<(), Errno>>> {
        Box::pin(async move {
            self.meter().conflicts.fetch_add(1, Ordering::Relaxed);
            if self.config.on_conflict == OnConflict::Fail {
                return None;
            }
            let Some(ours) = self.standalone(inode) else {
                self.say(format_args!(
                    "{path:?} was changed by somebody else, and parts of what the guest's changes lie over are gone with the old version"
                ));
                return None;
            };
            match self.config.on_conflict {
                OnConflict::Fail => None,
                OnConflict::Overwrite => self.overwrite(inode, path, ours).await,
                OnConflict::KeepBoth => self.keep_both(inode, path, ours, error).await,
            }
        })
    }

    fn say(&self, text: fmt::Arguments<'_>) {
        self.meter().said().conflicts.warn(format_args!("{}{text}", self.meter().place()));
    }

    async fn overwrite(&self, inode: &Arc<Inode>, path: &str, ours: Standalone) -> Option<Result<(), Errno>> {
        let Standalone { upload, segments, blocks } = ours;
        let keep = (upload.keep, blocks);
        let sent = inode.state().outgoing(inode, self.config.posix);
        let attributes = sent.attributes.clone();
        match self.remote.compose(path, Vec::new(), Condition::Any, segments, attributes, keep).await {
            Ok(meta) if meta.kind == Kind::File && meta.size == upload.size => {
                self.say(format_args!(
                    "{path:?} was changed by somebody else; the guest's version has replaced theirs"
                ));
                let id = self.tree().content_id();
                let mut state = inode.state();
                state.content.commit(meta.version(), id);
                state.committed(&meta);
                state.posix.arrived(&sent);
                Some(Ok(()))
            }
            answer => {
                inode.state().content.roll_back();
                log::debug!("{path:?}: overwriting somebody else's version failed: {answer:?}");
                None
            }
        }
    }

    async fn keep_both(
        &self,
        inode: &Arc<Inode>,
        path: &str,
        ours: Standalone,
        error: &StoreError,
    ) -> Option<Result<(), Errno>> {
        let Standalone { upload, segments, blocks } = ours;
        let beside = beside(path);
        let keep = (upload.keep, blocks);
        let attributes = inode.state().outgoing(inode, self.config.posix).attributes;
        match self.remote.compose(beside.as_str(), Vec::new(), Condition::IfAbsent, segments, attributes, keep).await {
            Ok(meta) if meta.kind == Kind::File && meta.size == upload.size => {
                self.say(format_args!(
                    "{path:?} was changed by somebody else; the guest's version ({} bytes) is kept as {beside:?}",
                    meta.size
                ));
                self.listings.outdate_all();
                let mut state = inode.state();
                state.content.abandon();
                state.posix.give_up();
                state.asked = None;
                state.own_mtime = false;
                state.exclusive = false;
                state.shadows = false;
                state.refused = None;
                Some(Err(if error.kind == StoreErrorKind::Exists { Errno::EEXIST } else { Errno::ESTALE }))
            }
            answer => {
                inode.state().content.roll_back();
                log::debug!("{beside:?} could not be stored: {answer:?}");
                None
            }
        }
    }

    /// Freezes what `inode` is made of, with what it needs of its base taken from memory. `None`: not all of that is there.
    fn standalone(&self, inode: &Inode) -> Option<Standalone> {
        let mut state = inode.state();
        let base = state.content.base().cloned();
        let upload = state.content.begin_upload()?;
        let mut blocks = Vec::new();
        let mut segments = Vec::new();
        for segment in &upload.segments {
            let Segment::Copy { offset, len, .. } = *segment else {
                segments.push(segment.clone());
                continue;
            };
            let (mut at, end) = (offset, offset + len);
            while at < end {
                let known = base.as_ref().and_then(|base| self.clean.get(base.id, at));
                let Some(clean) = known else {
                    state.content.roll_back();
                    return None;
                };
                let start = usize::try_from(at - clean.start).unwrap_or(0);
                let left = usize::try_from(end - at).unwrap_or(usize::MAX);
                let len = clean.len.saturating_sub(start).min(left);
                if len == 0 {
                    state.content.roll_back();
                    return None;
                }
                segments.push(Segment::Data(clean.block.slice(start, len)));
                at += len as u64;
                blocks.push(clean);
            }
        }
        Some(Standalone { upload, segments, blocks })
    }
}
