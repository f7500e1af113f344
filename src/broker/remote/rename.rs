//! Copying and renaming. Stores without rename get copies first and deletions last, so that a failure never takes
//! the only copy.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, TryStreamExt};
use opendal::options::{CopyOptions, DeleteOptions, ListOptions};
use opendal::{ErrorKind, Metadata};

use super::super::error::{error, kind_of};
use super::super::operator::noting_retries;
use super::compose::{Donor, Job};
use super::{Remote, dir_path, same_version, strong};
use crate::store::path::check_path;
use crate::store::{Base, Condition, Kind, Meta, Segment, StoreError, StoreErrorKind, Version};

/// Longest object that S3 copies in one request; OpenDAL's way for longer ones loses their metadata.
const COPY_MAX: u64 = 5 << 30;

/// Longest object copied so where ranges can be copied side by side: one request would take longer than it may.
const COPY_WHOLE_MAX: u64 = 256 << 20;

/// Requests of one operation on many objects that run side by side.
pub(super) const CONCURRENT: usize = 32;

/// Most objects below a directory that is renamed by copying.
const RENAME_MAX: usize = 1_000_000;

impl Remote {
    /// Copies an object; an existing target is replaced.
    pub async fn copy(&self, from: &str, to: &str, version: Option<&Version>) -> Result<Meta, StoreError> {
        let source = self.find_version(from, version).await?;
        self.copy_object(from, &source, to, &Condition::Any).await
    }

    /// The file at `path`, if it is of `version`.
    async fn find_version(&self, path: &str, version: Option<&Version>) -> Result<Metadata, StoreError> {
        let metadata = self.find_file(path).await?;
        if version.is_some_and(|version| !same_version(&self.meta(&metadata), version)) {
            return Err(error(StoreErrorKind::VersionMismatch, format!("'{path}' is not the version any more")));
        }
        Ok(metadata)
    }

    /// The copy keeps what the source's headers and metadata say.
    pub(super) async fn copy_object(
        &self,
        from: &str,
        source: &Metadata,
        to: &str,
        when: &Condition,
    ) -> Result<Meta, StoreError> {
        let meta = self.meta(source);
        self.check_target(to, when).await?;
        if self.copies_whole(meta.size) {
            let if_match = match when {
                Condition::IfVersion(version) if self.can.copy_with_if_match => strong(version),
                _ => None,
            };
            let if_not_exists = *when == Condition::IfAbsent && self.can.copy_with_if_not_exists;
            let options = CopyOptions { if_match, if_not_exists, ..CopyOptions::default() };
            let (copied, retried) = noting_retries(self.ops.write.copy_options(from, to, options)).await;
            match copied {
                Ok(_) => return self.copied(to, &meta).await,
                // sftp servers without the extension.
                Err(e) if e.kind() == ErrorKind::Unsupported => {}
                Err(e) => {
                    let mut failed = self.fail("copy", from, &e);
                    if failed.kind == StoreErrorKind::VersionMismatch && *when == Condition::IfAbsent {
                        failed.kind = StoreErrorKind::Exists;
                    }
                    // The echo of a success? The target was not there before, or another; now it is our source's like.
                    if retried && matches!(failed.kind, StoreErrorKind::VersionMismatch | StoreErrorKind::Exists) {
                        let there = self.head(to).await?.map(|m| self.detailed(&m));
                        if let Some(there) =
                            there.filter(|t| t.size == meta.size && t.etag.is_some() && t.etag == meta.etag)
                        {
                            return Ok(there);
                        }
                    }
                    return Err(failed);
                }
            }
        }
        let base = Base { path: from.to_owned(), version: meta.version() };
        let whole = (meta.size > 0).then_some(Segment::Copy { base: 0, offset: 0, len: meta.size });
        let job = Job {
            path: to,
            bases: &[base],
            when,
            segments: whole.as_slice(),
            attributes: None,
            total: meta.size,
            donor: Donor::FirstBase,
        };
        self.put_together(&job).await
    }

    /// Whether `path` can be copied to another name in one request of the store's.
    pub(super) fn copies_whole(&self, size: u64) -> bool {
        let most = if self.can.write_can_copy_from { COPY_WHOLE_MAX } else { COPY_MAX };
        self.can.copy && size <= most
    }

    /// The copy, as the store sees it.
    async fn copied(&self, to: &str, source: &Meta) -> Result<Meta, StoreError> {
        match self.head(to).await?.map(|m| self.detailed(&m)) {
            Some(meta) if meta.size == source.size => Ok(meta),
            Some(_) => Err(error(StoreErrorKind::VersionMismatch, format!("copy to '{to}': it changed at once"))),
            None => Err(error(StoreErrorKind::Io, format!("copy to '{to}': it is not there"))),
        }
    }

    /// Whether `when` holds for `path`, for stores that do not check themselves.
    pub(super) async fn check_target(&self, path: &str, when: &Condition) -> Result<(), StoreError> {
        if *when == Condition::Any && !self.service.real_dirs {
            return Ok(());
        }
        let there = if self.service.real_dirs { self.find(path).await? } else { self.head_meta(path).await? };
        match (there, when) {
            (Some(meta), _) if meta.kind == Kind::Dir => {
                Err(error(StoreErrorKind::IsDir, format!("'{path}' is a directory")))
            }
            (Some(_), Condition::IfAbsent) => Err(error(StoreErrorKind::Exists, format!("'{path}' exists"))),
            (Some(meta), Condition::IfVersion(version)) if !same_version(&meta, version) => {
                Err(error(StoreErrorKind::VersionMismatch, format!("'{path}' has changed")))
            }
            (None, Condition::IfVersion(_)) => Err(error(StoreErrorKind::VersionMismatch, format!("'{path}' is gone"))),
            _ => Ok(()),
        }
    }

    /// Renames an object.
    pub async fn rename_file(
        &self,
        from: &str,
        to: &str,
        when: &Condition,
        version: Option<&Version>,
    ) -> Result<Meta, StoreError> {
        let source = self.find_version(from, version).await?;
        if from == to {
            return Ok(self.detailed(&source));
        }
        if self.can.rename {
            self.check_target(to, when).await?;
            self.rename_over(from, to).await?;
            return self.copied(to, &self.meta(&source)).await;
        }
        let was_absent = *when == Condition::IfAbsent || self.head(to).await?.is_none();
        let target = self.copy_object(from, &source, to, when).await?;
        match self.delete_version(from, &self.meta(&source)).await {
            Ok(()) => Ok(target),
            Err(e) => {
                // The old name stays; so the new one must go, if it was not somebody else's before.
                if was_absent && let Err(undo) = self.ops.ask.delete(to).await {
                    log::error!("'{from}' now exists as '{to}' too: {}", self.cleaner.clean(&undo.to_string()));
                }
                Err(e)
            }
        }
    }

    /// Deletes the object that was copied, if it still is that one, as far as the store can tell.
    async fn delete_version(&self, path: &str, meta: &Meta) -> Result<(), StoreError> {
        let if_match = strong(&meta.version()).filter(|_| self.can.delete_with_if_match);
        let conditional = if_match.is_some();
        let options = DeleteOptions { if_match, ..DeleteOptions::default() };
        let (deleted, retried) = noting_retries(self.ops.ask.delete_options(path, options)).await;
        match deleted {
            Ok(()) => Ok(()),
            Err(e) if conditional && retried && self.head(path).await.is_ok_and(|m| m.is_none()) => {
                log::debug!("'{path}' is gone, though the store's last answer was {}", e.kind());
                Ok(())
            }
            Err(e) => Err(self.fail("delete", path, &e)),
        }
    }

    /// The store's own rename of an object, onto an existing one or not.
    pub(super) async fn rename_over(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let (renamed, retried) = noting_retries(self.ops.write.rename(from, to)).await;
        let Err(e) = renamed else { return Ok(()) };
        if retried
            && e.kind() == ErrorKind::NotFound
            && self.head(from).await?.is_none()
            && self.head(to).await?.is_some()
        {
            return Ok(());
        }
        // Servers of sftp without posix-rename do not replace. The new content is safe under its other name meanwhile.
        let in_the_way = self.service.scheme == "sftp"
            && !matches!(kind_of(&e), StoreErrorKind::Unavailable | StoreErrorKind::NotFound)
            && self.head(to).await?.is_some_and(|m| m.is_file())
            && self.head(from).await?.is_some();
        if in_the_way {
            self.ops.ask.delete(to).await.map_err(|e| self.fail("replace", to, &e))?;
            return self.ops.write.rename(from, to).await.map_err(|e| self.fail("rename", from, &e));
        }
        Err(self.fail("rename", from, &e))
    }

    /// Removes an unfinished object, and hands the reason on.
    pub(super) async fn discard(&self, temporary: &str, why: StoreError) -> StoreError {
        if let Err(e) = self.ops.ask.delete(temporary).await {
            log::warn!("'{temporary}' stays in the store: {}", self.cleaner.clean(&e.to_string()));
        }
        why
    }

    /// Renames a directory with all below it onto nothing, or onto an empty directory.
    pub async fn rename_dir(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let what = || format!("rename directory '{from}' to '{to}'");
        if from == to {
            return Ok(());
        }
        if to.strip_prefix(from).is_some_and(|rest| rest.starts_with('/')) {
            return Err(error(StoreErrorKind::InvalidName, format!("{}: into itself", what())));
        }
        match self.find(from).await? {
            Some(meta) if meta.kind == Kind::Dir => {}
            Some(_) => return Err(error(StoreErrorKind::NotDir, format!("{}: it is a file", what()))),
            None => return Err(error(StoreErrorKind::NotFound, format!("{}: nothing is there", what()))),
        }
        match self.find(to).await? {
            None => {}
            Some(meta) if meta.kind == Kind::File => {
                return Err(error(StoreErrorKind::NotDir, format!("{}: a file is there", what())));
            }
            // Refuses if it is not empty.
            Some(_) => self.remove_dir(to).await?,
        }
        if self.can.rename && self.service.renames_dirs {
            // Without slashes: OpenDAL has no rename of directories, but passes on what is none by its name.
            let Err(e) = self.ops.write.rename(from, to).await else { return Ok(()) };
            let failed = self.fail("rename directory", from, &e);
            // nginx moves no collection by a name without a slash, and OpenDAL nothing by one that has it.
            let not_so = self.service.scheme == "webdav" && failed.kind == StoreErrorKind::Io;
            if !not_so || self.find(from).await?.is_none() || self.find(to).await?.is_some() {
                return Err(failed);
            }
            log::debug!("one by one: {}", failed.text);
        }
        self.move_tree(from, to).await
    }

    async fn move_tree(&self, from: &str, to: &str) -> Result<(), StoreError> {
        let tree = self.tree(from).await?;
        let target = |name: &str| format!("{to}{}", &name[from.len()..]);
        // Parents first where they are real; elsewhere they do not know of each other.
        let at_once = if self.service.real_dirs { 1 } else { CONCURRENT };
        let mut failed = None;
        let mut dirs = tree.dirs.iter();
        let make = || dirs.next().map(|dir| self.make_one(dir, target(dir)).boxed());
        side_by_side(at_once, make, |made| failed = failed.take().or(made.err())).await;
        let moves_one = self.can.rename;
        let mut done: Vec<(&str, Meta)> = Vec::new();
        if failed.is_none() {
            // What is under way when one fails still ends, to be undone with the rest; nothing new starts.
            let stop = AtomicBool::new(false);
            let mut files = tree.files.iter();
            let next = || {
                let file = files.next().filter(|_| !stop.load(Ordering::Relaxed))?;
                Some(self.move_one(file, target(file)).boxed())
            };
            let end = |moved: Result<_, StoreError>| match moved {
                Ok(moved) => done.push(moved),
                Err(e) => {
                    stop.store(true, Ordering::Relaxed);
                    failed.get_or_insert(e);
                }
            };
            side_by_side(CONCURRENT, next, end).await;
        }
        if let Some(e) = failed {
            self.undo(&tree, &done, target, moves_one).await;
            return Err(e);
        }
        if !moves_one {
            self.delete_copied(&done).await?;
        }
        if self.service.real_dirs {
            // Deepest first, so that each is empty by then.
            for dir in tree.dirs.iter().rev() {
                self.ops.ask.delete(dir).await.map_err(|e| self.fail("remove directory", dir, &e))?;
            }
            return Ok(());
        }
        self.delete_all(tree.dirs.into_iter().map(|dir| (dir, DeleteOptions::default())).collect()).await
    }

    /// A directory's own metadata goes with it.
    async fn make_one(&self, like: &str, dir: String) -> Result<(), StoreError> {
        if !self.service.real_dirs {
            return self.copy_marker(like, &dir).await;
        }
        self.ops.ask.create_dir(&dir).await.map_err(|e| self.fail("create directory", &dir, &e))
    }

    async fn move_one<'a>(&self, file: &'a str, target: String) -> Result<(&'a str, Meta), StoreError> {
        let source = self.find_file(file).await?;
        if self.can.rename {
            self.rename_over(file, &target).await?;
        } else {
            self.copy_object(file, &source, &target, &Condition::Any).await?;
        }
        Ok((file, self.meta(&source)))
    }

    /// Deletes what was copied, in batches where the store takes them, and only the versions that were copied where it can tell.
    async fn delete_copied(&self, copied: &[(&str, Meta)]) -> Result<(), StoreError> {
        if self.can.delete_max_size.is_none_or(|n| n < 2) {
            let mut result = Ok(());
            let mut left = copied.iter();
            let next = || left.next().map(|(file, meta)| self.delete_version(file, meta).boxed());
            side_by_side(CONCURRENT, next, |deleted| result = std::mem::replace(&mut result, Ok(())).and(deleted))
                .await;
            return result;
        }
        let mut deletions = Vec::with_capacity(copied.len());
        for (file, meta) in copied {
            let if_match = strong(&meta.version()).filter(|_| self.can.delete_with_if_match);
            deletions.push(((*file).to_owned(), DeleteOptions { if_match, ..DeleteOptions::default() }));
        }
        self.delete_all(deletions).await
    }

    /// Takes back the part of a tree that was moved, as far as it goes.
    async fn undo(&self, tree: &Tree, done: &[(&str, Meta)], target: impl Fn(&str) -> String, moves_one: bool) {
        let complain = |name: &str, e: &str| log::error!("a directory rename could not be undone at '{name}': {e}");
        for (file, _) in done {
            let copy = target(file);
            let undone = match moves_one {
                true => self.rename_over(&copy, file).await,
                false => self.ops.ask.delete(&copy).await.map_err(|e| self.fail("delete", &copy, &e)),
            };
            if let Err(e) = undone {
                complain(&copy, &e.text);
            }
        }
        for dir in tree.dirs.iter().rev() {
            let dir = target(dir);
            if let Err(e) = self.ops.ask.delete(&dir).await {
                complain(&dir, &self.cleaner.clean(&e.to_string()));
            }
        }
    }

    /// All below `dir`; refused if a name among it could not be told to the store again.
    async fn tree(&self, dir: &str) -> Result<Tree, StoreError> {
        let options = ListOptions { recursive: true, ..ListOptions::default() };
        let fail = |e: opendal::Error| self.fail("list", dir, &e);
        let top = dir_path(dir);
        let mut lister = self.ops.ask.lister_options(&top, options).await.map_err(fail)?;
        let mut tree = Tree::default();
        while let Some(entry) = lister.try_next().await.map_err(fail)? {
            let path = entry.path();
            let plain = path.strip_suffix('/').unwrap_or(path);
            if check_path(plain).is_err() || !path.starts_with(&top) {
                let text = format!("rename directory '{dir}': {path:?} below it has a name that cannot be kept");
                return Err(error(StoreErrorKind::InvalidName, text));
            }
            if path.ends_with('/') { &mut tree.dirs } else { &mut tree.files }.push(path.to_owned());
            if tree.files.len() + tree.dirs.len() > RENAME_MAX {
                let text = format!("rename directory '{dir}': more than {RENAME_MAX} objects are below it");
                return Err(error(StoreErrorKind::TooLarge, text));
            }
        }
        if self.service.real_dirs && !tree.dirs.contains(&top) {
            tree.dirs.push(top);
        }
        tree.dirs.sort_unstable();
        Ok(tree)
    }
}

/// Runs what `next` gives, so many side by side, and hands each result to `end`, until there is nothing left.
pub(super) async fn side_by_side<'a, T>(
    at_once: usize,
    mut next: impl FnMut() -> Option<BoxFuture<'a, T>> + Send,
    mut end: impl FnMut(T) + Send,
) where
    T: Send,
{
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < at_once
            && let Some(one) = next()
        {
            running.push(one);
        }
        match running.next().await {
            Some(result) => end(result),
            None => return,
        }
    }
}

/// What is below a directory, the directory itself (its marker) included.
#[derive(Debug, Default)]
struct Tree {
    files: Vec<String>,
    /// With their slashes, parents first.
    dirs: Vec<String>,
}
