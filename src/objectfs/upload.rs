//! Bringing files to the store. One mechanism for everything that a guest can do to bytes: compose the new object of
//! ranges of the old one and of what is dirty.
//!
//! An upload that fails leaves the file dirty; whoever asked for it gets the errno, and the retrier tries again until
//! the store takes it or it is clear that it never will.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::conflict::is_conflict;
use super::content::Snapshot;
use super::core::Core;
use super::inode::Inode;
use super::lookup::gone;
use super::tree::HIDDEN_PREFIX;
use crate::cache::{Clean, Extent};
use crate::fs::{Errno, Result, Unstored};
use crate::store::{Base, Condition, Kind, Store, StoreError, StoreErrorKind};

/// Uploads that a flush of everything runs at once.
pub(super) const UPLOADS_AT_ONCE: usize = 16;

/// How long the retrier sleeps between two rounds.
const RETRY_EVERY: Duration = Duration::from_secs(5);

impl<S: Store> Core<S> {
    /// Makes the store have what the guest wrote to `inode`, and what it set of its attributes. Unlinked files have no one to be written for.
    ///
    /// # Errors
    /// What the store says; ESTALE when somebody else changed the object since (nothing of theirs is overwritten).
    pub(super) async fn upload(&self, inode: &Arc<Inode>) -> Result<()> {
        {
            let mut state = inode.state();
            if let Some(errno) = state.lost.take() {
                return Err(errno);
            }
            if state.unlinked || !(state.content.is_dirty() || state.attributes_dirty()) {
                return Ok(());
            }
        }
        self.upload_even_unlinked(inode).await?;
        inode.state().lost.take().map_or(Ok(()), Err)
    }

    /// As [`Core::upload`], with a hidden object for an unlinked file: memory is needed.
    ///
    /// # Errors
    /// As [`Core::upload`].
    pub(super) fn upload_even_unlinked<'a>(&'a self, inode: &'a Arc<Inode>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let _paths_stay = self.renaming.read().await;
            let _one_at_a_time = inode.upload.lock().await;
            let result = self.compose(inode).await;
            if result.is_ok() {
                self.tree().reap(inode.id);
            }
            result
        })
    }

    /// The upload itself; the caller holds `renaming` and the inode's upload lock.
    pub(super) async fn compose(&self, inode: &Arc<Inode>) -> Result<()> {
        if !inode.state().content.is_dirty() {
            return self.save_attributes(inode).await;
        }
        if inode.state().moved && inode.state().content.needs_base() {
            self.rebase_moved(inode).await?;
        }
        let (path, hidden) = self.upload_path(inode)?;
        self.settle(&path).await;
        let (upload, when, base, sent) = {
            let mut state = inode.state();
            let exclusive = state.exclusive;
            let Some(upload) = state.content.begin_upload() else { return Ok(()) };
            let when = match &upload.base {
                // The base of a hidden object's first version lies elsewhere and nobody else writes it.
                Some(version) if !hidden => Condition::IfVersion(version.clone()),
                _ if exclusive => Condition::IfAbsent,
                _ => Condition::Any,
            };
            let base = upload.base.clone().map(|version| Base { path: path.clone(), version });
            (upload, when, base, state.outgoing(inode, self.config.posix))
        };
        let answer = self
            .remote
            .compose(
                path.clone(),
                base.into_iter().collect(),
                when,
                upload.segments,
                sent.attributes.clone(),
                upload.keep,
            )
            .await;
        let meta = match answer {
            Ok(meta) if meta.kind == Kind::File && meta.size == upload.size => meta,
            Ok(meta) => {
                self.retry_wanted.store(true, Ordering::Relaxed);
                inode.state().content.roll_back();
                let place = self.meter().place();
                log::error!("{place}{path:?}: the store has {} bytes where {} were sent", meta.size, upload.size);
                return Err(Errno::EIO);
            }
            Err(error) => {
                if !hidden && is_conflict(&error) {
                    inode.state().content.roll_back();
                    if let Some(resolved) = self.resolve_conflict(inode, &path, &error).await {
                        return resolved;
                    }
                }
                return Err(self.upload_failed(inode, &path, error));
            }
        };
        let id = self.tree().content_id();
        let whole = {
            let mut state = inode.state();
            let whole = state.content.commit(meta.version(), id);
            state.committed(&meta);
            state.posix.arrived(&sent);
            whole
        };
        if let Some(whole) = whole {
            self.keep_clean(id, whole);
        }
        Ok(())
    }

    fn upload_failed(&self, inode: &Inode, path: &str, error: StoreError) -> Errno {
        let for_good = matches!(
            error.kind,
            StoreErrorKind::VersionMismatch
                | StoreErrorKind::Exists
                | StoreErrorKind::IsDir
                | StoreErrorKind::NotDir
                | StoreErrorKind::NotFound
                | StoreErrorKind::InvalidName
                | StoreErrorKind::TooLarge
                | StoreErrorKind::Unsupported
        );
        // The name of the file is no news to the guest: an object that is gone is a changed one.
        let errno = match error.kind {
            StoreErrorKind::NotFound => Errno::ESTALE,
            _ => error.kind.into(),
        };
        self.retry_wanted.store(true, Ordering::Relaxed);
        let mut state = inode.state();
        state.content.roll_back();
        let (place, said) = (self.meter().place(), self.meter().said());
        if for_good {
            if state.refused.replace(errno).is_none() {
                let text = format_args!(
                    "{place}{path:?} cannot be written to the store: {error}; the guest was told {errno}, what it wrote is dropped \
                     when the file is closed"
                );
                said.refusals.log(log::Level::Error, text);
            }
        } else {
            let seconds = RETRY_EVERY.as_secs();
            said.retries.warn(format_args!(
                "{place}{path:?} could not be written to the store yet: {error}; the guest was told {errno}, the file is kept and will be \
                 tried again within {seconds} s"
            ));
        }
        errno
    }

    /// Where the object of `inode` goes, and whether that is a hidden name.
    fn upload_path(&self, inode: &Inode) -> Result<(String, bool)> {
        let tree = self.tree();
        let mut state = inode.state();
        if !state.unlinked {
            drop(state);
            return Ok((tree.path(inode.id)?, false));
        }
        if state.hidden.is_none() && state.content.needs_base() {
            return Err(Errno::ESTALE);
        }
        let path = state.hidden.get_or_insert_with(hidden_name);
        Ok((path.clone(), true))
    }

    /// Finds out the version that the object has since a directory above was renamed.
    ///
    /// # Errors
    /// ESTALE: the object is not what was moved there.
    pub(super) fn rebase_moved<'a>(&'a self, inode: &'a Arc<Inode>) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let path = self.tree().path(inode.id)?;
            let meta = match self.remote.stat(path).await {
                Err(error) if gone(&error) => return Err(Errno::ESTALE),
                other => other?,
            };
            let mut state = inode.state();
            let expected = state.content.base().map(|base| base.version.size);
            if meta.kind != Kind::File || expected != Some(meta.size) {
                return Err(Errno::ESTALE);
            }
            state.content.rebase(meta.version());
            state.moved = false;
            Ok(())
        })
    }

    /// The memory of a whole small object stays, as clean.
    fn keep_clean(&self, id: crate::cache::ContentId, whole: Extent) {
        if whole.len == 0 {
            return;
        }
        if let Ok(block) = Arc::try_unwrap(whole.block) {
            block.mark_clean();
            self.clean.insert(id, Arc::new(Clean::new(0, block, whole.len)));
        }
    }

    /// All files that the store lacks something of.
    fn dirty_files(&self) -> Vec<Arc<Inode>> {
        let inodes: Vec<Arc<Inode>> = self.tree().inodes().cloned().collect();
        inodes
            .into_iter()
            .filter(|inode| {
                let state = inode.state();
                state.content.is_dirty() && !state.unlinked
            })
            .collect()
    }

    /// Uploads everything, several files at once, starting none after `deadline`. Returns how many bytes of files are not stored.
    pub(super) async fn upload_all(&self, deadline: Duration) -> (u64, Option<Errno>) {
        let end = Instant::now() + deadline;
        let mut running = FuturesUnordered::new();
        let mut first_error = None;
        for inode in self.dirty_files() {
            if Instant::now() >= end {
                break;
            }
            if running.len() >= UPLOADS_AT_ONCE
                && let Some(Err(error)) = running.next().await
            {
                first_error.get_or_insert(error);
            }
            running.push(async move { self.upload(&inode).await });
        }
        while let Some(result) = running.next().await {
            if let Err(error) = result {
                first_error.get_or_insert(error);
            }
        }
        if let Err(error) = self.save_all(end).await {
            first_error.get_or_insert(error);
        }
        if let Err(error) = self.settle_all().await {
            first_error.get_or_insert(error);
        }
        let left: u64 = self.dirty_files().iter().map(|inode| inode.state().content.size()).sum();
        (left, first_error)
    }

    /// Bytes of files that the store lacks something of and has not refused for good.
    pub(super) fn unstored(&self) -> u64 {
        let files = self.dirty_files();
        let open = files.iter().filter(|inode| inode.state().refused.is_none());
        open.map(|inode| inode.state().content.size().max(1)).sum()
    }

    /// Has what is not stored kept by the broker. Uploads may be under way: whatever becomes of them, this is kept.
    pub(super) async fn keep_unstored(&self) -> Vec<Unstored> {
        let mut all = Vec::new();
        for inode in self.dirty_files() {
            let path = self.tree().path(inode.id).unwrap_or_default();
            let (snapshot, size, attributes) = {
                let state = inode.state();
                let attributes = state.outgoing(&inode, self.config.posix).attributes;
                (state.content.snapshot(), state.content.size(), attributes)
            };
            let lost = match snapshot {
                Some(Snapshot { segments, base, keep }) => {
                    let kept = self.remote.spool(path.clone(), base, segments, attributes, keep).await;
                    kept.err().map(|error| error.text)
                }
                None => Some("the store has taken pieces of it, and has not put them together".to_owned()),
            };
            all.push(Unstored { path, size, lost });
        }
        all
    }

    /// Gives up what the store has refused for good.
    pub(super) fn drop_refused(&self) {
        self.dirty_files().iter().for_each(|inode| self.give_up_refused(inode));
    }

    /// What the guest wrote to `inode` is given up, if the store refuses it for good and nobody can write it any more: what stands in the
    /// store is seen again.
    pub(super) fn give_up_refused(&self, inode: &Arc<Inode>) {
        let (errno, size) = {
            let state = inode.state();
            let Some(errno) = state.refused.filter(|_| state.writers == 0 && !state.unlinked) else { return };
            (errno, state.content.size())
        };
        let path = self.tree().path(inode.id).unwrap_or_default();
        let place = self.meter().place();
        log::error!("{place}{path:?}: {size} bytes are dropped, the store refuses them ({errno})");
        self.tree().detach(inode.id);
    }

    /// One round of the retrier: files that nobody has open any more and that the store did not take.
    pub(super) async fn retry(&self) {
        if !self.retry_wanted.swap(false, Ordering::Relaxed) {
            return;
        }
        for inode in self.dirty_files() {
            let refused = {
                let state = inode.state();
                if state.writers > 0 {
                    // Its close is the next try; if that fails too, we are asked again.
                    continue;
                }
                state.refused
            };
            if refused.is_some() {
                self.give_up_refused(&inode);
            } else {
                // Logged there; the next round comes.
                let _ = self.upload(&inode).await;
            }
        }
    }
}

/// A new name for the object of an unlinked open file: one that nobody sees, in the root of the mount.
pub(super) fn hidden_name() -> String {
    use std::hash::{BuildHasher, Hasher};
    let random = || std::hash::RandomState::new().build_hasher().finish();
    format!("{HIDDEN_PREFIX}{:016x}{:016x}", random(), random())
}

/// The thread that tries failed uploads again, and gives memory back that is not needed.
#[derive(Debug)]
pub struct Retrier {
    stop: Arc<(Mutex<bool>, Condvar)>,
    stopped: AtomicBool,
}

impl Retrier {
    /// Starts it. It ends with [`Retrier::stop`] or with the file system.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start<S: Store>(core: Weak<Core<S>>) -> std::io::Result<Retrier> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let seen = Arc::clone(&stop);
        std::thread::Builder::new().name("ovfs-retry".into()).spawn(move || {
            loop {
                let stopped = seen.0.lock().unwrap_or_else(PoisonError::into_inner);
                let waited = seen.1.wait_timeout_while(stopped, RETRY_EVERY, |stopped| !*stopped);
                let (stopped, _) = waited.unwrap_or_else(PoisonError::into_inner);
                if *stopped {
                    return;
                }
                drop(stopped);
                let Some(core) = core.upgrade() else { return };
                core.blocks.give_back_if_idle();
                futures::executor::block_on(core.retry());
            }
        })?;
        Ok(Retrier { stop, stopped: AtomicBool::new(false) })
    }

    /// Lets the thread end.
    pub fn stop(&self) {
        if !self.stopped.swap(true, Ordering::Relaxed) {
            *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.stop.1.notify_all();
        }
    }
}

impl Drop for Retrier {
    fn drop(&mut self) {
        self.stop();
    }
}
