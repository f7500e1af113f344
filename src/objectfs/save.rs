//! Bringing changed attributes to the store: with the file's bytes where these are uploaded anyway (`upload`), else by
//! composing the object anew of all of itself, which changes no byte: what is cached of it stays, and whoever reads it
//! goes on.
//!
//! A change waits a moment for others, because programs that copy files set one attribute after the other. Until the store
//! has it, a crash loses it; fsync(2), close(2) after writing, rename(2), syncfs(2) and the end of a session do not wait.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::attributes::Outgoing;
use super::conflict::is_conflict;
use super::core::Core;
use super::due::DueList;
use super::inode::{Inode, State};
use crate::fs::{Errno, NodeId, Result};
use crate::store::{Base, Condition, Kind, Meta, Segment, Store, StoreError, StoreErrorKind};

/// How long a change waits for others of the same inode.
const QUIET: Duration = Duration::from_secs(1);

/// How long the first change waits at most, however many follow.
const LONGEST: Duration = Duration::from_secs(2);

/// Requests of one round that run at once.
const AT_ONCE: usize = 16;

/// How often somebody else may change an object under us before we give up for now.
const RACES_MAX: u32 = 4;

/// The list of inodes whose changed attributes wait to be stored.
pub fn list() -> DueList {
    DueList::new(QUIET, LONGEST)
}

impl<S: Store> Core<S> {
    /// The guest changed attributes of `inode`, whose state this is, at `ctime_ns`. The root has no object that could keep them.
    pub(super) fn attributes_changed(&self, inode: &Inode, state: &mut State, ctime_ns: i64) {
        if inode.id == NodeId::ROOT || state.unlinked {
            state.posix.ctime_ns = ctime_ns;
            return;
        }
        state.posix.change(ctime_ns);
        self.pending.note(inode.id);
    }

    /// Stores what is due. Files that are being written wait for their upload.
    pub(super) fn save_due(&self, due: HashSet<NodeId>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let inodes: Vec<Arc<Inode>> = {
                let tree = self.tree();
                due.iter().filter_map(|id| tree.inode(*id).ok()).collect()
            };
            // Logged there, and tried again.
            let _ = self.save_several(inodes, None).await;
        })
    }

    /// Stores all changed attributes, starting nothing after `end`.
    ///
    /// # Errors
    /// What the store says of one.
    pub(super) async fn save_all(&self, end: Instant) -> Result<()> {
        let inodes: Vec<Arc<Inode>> = self.tree().inodes().cloned().collect();
        self.save_several(inodes, Some(end)).await
    }

    /// Files first: where directories are real, storing a file changes the times of the directory that it is in.
    fn save_several<'a>(&'a self, mut inodes: Vec<Arc<Inode>>, end: Option<Instant>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            inodes.retain(|inode| {
                let state = inode.state();
                state.attributes_dirty() && !state.content.is_dirty()
            });
            let (files, dirs): (Vec<_>, Vec<_>) = inodes.into_iter().partition(|inode| inode.kind == Kind::File);
            let mut result = Ok(());
            for inodes in [files, dirs] {
                let mut running = FuturesUnordered::new();
                for inode in inodes {
                    if end.is_some_and(|end| Instant::now() >= end) {
                        break;
                    }
                    if running.len() >= AT_ONCE
                        && let Some(saved) = running.next().await
                    {
                        result = result.and(saved);
                    }
                    running.push(async move { self.upload(&inode).await });
                }
                while let Some(saved) = running.next().await {
                    result = result.and(saved);
                }
            }
            result
        })
    }

    /// Stores the changed attributes of `inode`, whose content is clean. The caller holds `renaming` and the inode's upload
    /// lock.
    ///
    /// # Errors
    /// What the store says; ESTALE: the object is gone.
    pub(super) fn save_attributes<'a>(&'a self, inode: &'a Arc<Inode>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            for _ in 0..RACES_MAX {
                if !inode.state().attributes_dirty() {
                    return Ok(());
                }
                let path = self.tree().path(inode.id)?;
                if inode.kind == Kind::File && inode.state().moved {
                    self.rebase_moved(inode).await?;
                }
                let answer = match inode.kind {
                    Kind::File => self.save_file(inode, &path).await,
                    Kind::Dir => self.save_dir(inode, &path).await,
                };
                match answer {
                    Ok(()) => return Ok(()),
                    // Somebody else's version: it gets our attributes all the same.
                    Err(error) if is_conflict(&error) => match self.revalidate(inode).await {
                        Err(Errno::ENOENT) => return Err(Errno::ESTALE),
                        other => other?,
                    },
                    Err(error) => return Err(self.not_saved(inode, &path, &error)),
                }
            }
            self.pending.again(inode.id);
            Err(Errno::ESTALE)
        })
    }

    async fn save_file(&self, inode: &Arc<Inode>, path: &str) -> Result<(), StoreError> {
        let Some((base, sent)) = self.begin_save(inode, path) else { return Ok(()) };
        let answer = self.compose_whole(inode, path, base.clone(), Condition::IfVersion(base.version), &sent).await;
        answer.map(drop)
    }

    /// What to send for a clean file, if anything; from then on the store's word on it does not count, until [`Core::compose_whole`] is
    /// done.
    pub(super) fn begin_save(&self, inode: &Inode, path: &str) -> Option<(Base, Outgoing)> {
        let mut state = inode.state();
        if !state.attributes_dirty() || state.content.is_dirty() {
            return None;
        }
        let version = state.content.base()?.version.clone();
        let sent = state.outgoing(inode, true);
        state.saving = true;
        Some((Base { path: path.to_owned(), version }, sent))
    }

    /// Makes `path` all of `base` with other attributes, and takes that for the object of `inode`.
    pub(super) async fn compose_whole(
        &self,
        inode: &Arc<Inode>,
        path: &str,
        base: Base,
        when: Condition,
        sent: &Outgoing,
    ) -> Result<Meta, StoreError> {
        let size = base.version.size;
        let segments = match size {
            0 => Vec::new(),
            len => vec![Segment::Copy { base: 0, offset: 0, len }],
        };
        let answer = self.remote.compose(path, vec![base], when, segments, sent.attributes.clone(), ()).await;
        let answer = answer.and_then(|meta| match meta {
            Meta { kind: Kind::File, size: now, .. } if now == size => Ok(meta),
            other => Err(StoreError {
                kind: StoreErrorKind::Io,
                text: format!("{path:?} has {} bytes after a change of its attributes, not {size}", other.size),
            }),
        });
        let mut state = inode.state();
        state.saving = false;
        if let Ok(meta) = &answer {
            state.content.rebase(meta.version());
            state.committed(meta);
            state.posix.arrived(sent);
        }
        answer
    }

    async fn save_dir(&self, inode: &Arc<Inode>, path: &str) -> Result<(), StoreError> {
        if !self.is_fresh(inode.state().asked) {
            // A directory that somebody else removed is not to come back.
            let meta = self.stat(path.to_owned()).await?;
            if meta.kind != Kind::Dir {
                return Err(StoreError { kind: StoreErrorKind::NotFound, text: format!("{path:?} is a file now") });
            }
        }
        let sent = inode.state().outgoing(inode, true);
        self.remote.create_dir(path, sent.attributes.clone()).await?;
        inode.state().dir_stored(&sent);
        Ok(())
    }

    /// What becomes of changes that the store did not take: they are tried again, or given up where that is in vain.
    fn not_saved(&self, inode: &Inode, path: &str, error: &StoreError) -> Errno {
        let errno = Errno::from(error.kind);
        let later = matches!(
            error.kind,
            StoreErrorKind::Unavailable
                | StoreErrorKind::Silent
                | StoreErrorKind::Io
                | StoreErrorKind::NoSpace
                | StoreErrorKind::PermissionDenied
                | StoreErrorKind::Stale
        );
        if later {
            let (place, said) = (self.meter().place(), self.meter().said());
            said.retries.warn(format_args!(
                "{place}attributes of {path:?} could not be stored yet: {error}; will be tried again"
            ));
            self.pending.again(inode.id);
        } else {
            let (place, said) = (self.meter().place(), self.meter().said());
            let text = format_args!("{place}attributes of {path:?} cannot be stored and stay as they were: {error}");
            said.refusals.log(log::Level::Error, text);
            inode.state().posix.give_up();
        }
        errno
    }
}

impl State {
    /// A directory has the attributes that were `sent`, and thus a marker.
    pub(super) fn dir_stored(&mut self, sent: &Outgoing) {
        let now = Instant::now();
        self.marker = Some(true);
        self.committed = Some(now);
        self.asked = Some(now);
        self.posix.asked = Some(now);
        self.posix.arrived(sent);
    }
}
