//! What is at a path: both halves of the question at once.

use std::pin::pin;

use futures::TryStreamExt;
use futures::future::{Either, select};
use opendal::options::ListOptions;
use opendal::{Entry, ErrorKind, Metadata};

use super::super::error::{error, kind_of};
use super::{Remote, dir_path};
use crate::store::{Kind, Meta, StoreError, StoreErrorKind};

impl Remote {
    /// What is at `path`; a directory hides a file of the same name. With its details, unless those of a file take another
    /// request.
    pub async fn stat(&self, path: &str) -> Result<Meta, StoreError> {
        let markers = self.posix && !self.service.real_dirs && !path.is_empty();
        let listed = self.is_found_listed() && !path.is_empty();
        let found = match markers {
            true => self.find_with_marker(path).await,
            false if listed => self.find_alone(path).await,
            false => self.find(path).await,
        };
        let mut meta =
            found?.ok_or_else(|| error(StoreErrorKind::NotFound, format!("stat '{path}': nothing is there")))?;
        if meta.kind == Kind::Dir || !listed {
            meta.details.get_or_insert_default();
        }
        Ok(meta)
    }

    /// What a listing does not tell of `path`, which is of this kind: in one request.
    pub async fn tell(&self, path: &str, kind: Kind) -> Result<Meta, StoreError> {
        match kind {
            Kind::File => {
                let metadata = self.head(path).await?;
                let gone = || error(StoreErrorKind::NotFound, format!("stat '{path}': nothing is there"));
                metadata.map(|metadata| self.detailed(&metadata)).ok_or_else(gone)
            }
            Kind::Dir if self.posix && !self.service.real_dirs => {
                self.dir_with_details(path, self.dir(None, None)).await
            }
            Kind::Dir => self.stat(path).await,
        }
    }

    /// As [`Remote::find`], with what the marker of a directory tells. All questions are asked at once.
    async fn find_with_marker(&self, path: &str) -> Result<Option<Meta>, StoreError> {
        let (found, marker) = (pin!(self.find(path)), pin!(self.head_marker(path)));
        let (found, marker) = match select(found, marker).await {
            Either::Left((Ok(Some(meta)), marker)) if meta.kind == Kind::Dir => (meta, marker.await),
            Either::Left((found, _)) => return found,
            Either::Right((marker, found)) => match found.await? {
                Some(meta) if meta.kind == Kind::Dir => (meta, marker),
                other => return Ok(other),
            },
        };
        self.with_marker(found, marker).map(Some)
    }

    /// The directory `path`, of which `meta` is known, with what its marker tells.
    pub(super) async fn dir_with_details(&self, path: &str, meta: Meta) -> Result<Meta, StoreError> {
        let marker = self.head_marker(path).await;
        self.with_marker(meta, marker)
    }

    fn with_marker(&self, mut dir: Meta, marker: Result<Option<Metadata>, StoreError>) -> Result<Meta, StoreError> {
        let marker = match marker {
            Ok(marker) => marker,
            // Whoever takes these attributes for all there are writes them back later.
            Err(e) if dir.marker != Some(false) => return Err(e),
            Err(_) => None,
        };
        if dir.marker.is_none() {
            dir.marker = Some(marker.is_some());
        }
        dir.details = Some(Box::new(marker.map(|m| self.details(&m, Kind::Dir, 0)).unwrap_or_default()));
        Ok(dir)
    }

    /// As [`Remote::stat`], with nothing as `None`.
    pub async fn find(&self, path: &str) -> Result<Option<Meta>, StoreError> {
        if path.is_empty() {
            return Ok(Some(self.dir(Some(true), None)));
        }
        if self.service.real_dirs {
            return self.find_real(path).await;
        }
        // A listing that fails says nothing about the object, but without it the object may be hidden.
        let (file, dir) = (pin!(self.head(path)), pin!(self.find_dir(path)));
        let (file, dir) = match select(file, dir).await {
            Either::Left((file, dir)) => (file, dir.await?),
            // Nobody needs to know of an object that is hidden.
            Either::Right((Ok(Some(dir)), _)) => return Ok(Some(dir)),
            Either::Right((dir, file)) => (file.await, dir?),
        };
        match dir {
            Some(dir) => Ok(Some(dir)),
            None => Ok(file?.map(|metadata| self.detailed(&metadata))),
        }
    }

    async fn find_real(&self, path: &str) -> Result<Option<Meta>, StoreError> {
        let first = match self.ops.ask.stat(path).await {
            Ok(metadata) => return Ok(Some(self.detailed(&metadata))),
            Err(e) => e,
        };
        if kind_of(&first) == StoreErrorKind::Unavailable {
            return Err(self.fail("stat", path, &first));
        }
        // Some servers know a directory only by its name with the slash.
        match self.ops.ask.stat(&dir_path(path)).await {
            Ok(metadata) if metadata.is_dir() => Ok(Some(self.detailed(&metadata))),
            Ok(_) => Ok(None),
            Err(e) if e.kind() == ErrorKind::NotFound && first.kind() == ErrorKind::NotFound => Ok(None),
            Err(_) => Err(self.fail("stat", path, &first)),
        }
    }

    /// The object `path` alone.
    pub(super) async fn head(&self, path: &str) -> Result<Option<Metadata>, StoreError> {
        let first = match self.ops.ask_once.stat(path).await {
            Err(e) if e.kind() == ErrorKind::Unexpected && self.is_not_listed(path).await => return Ok(None),
            Err(e) if e.is_temporary() => self.ops.ask.stat(path).await,
            other => other,
        };
        match first {
            Ok(metadata) => Ok(Some(metadata)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.fail("stat", path, &e)),
        }
    }

    /// A second opinion where a store fails to answer for one name: s3s-fs does for the remains of a directory. True only if a
    /// listing succeeds and the object is not in it.
    pub(super) async fn is_not_listed(&self, path: &str) -> bool {
        // Of all names that begin with `path`, the object itself sorts first.
        self.can.list_with_limit
            && self.first_entry(path).await.is_ok_and(|first| first.is_none_or(|entry| entry.path() != path))
    }

    /// The object `path` alone, in our words.
    pub(super) async fn head_meta(&self, path: &str) -> Result<Option<Meta>, StoreError> {
        Ok(self.head(path).await?.map(|m| self.meta(&m)))
    }

    /// The directory `path` alone, where directories are what their entries make them.
    pub(super) async fn find_dir(&self, path: &str) -> Result<Option<Meta>, StoreError> {
        let dir = dir_path(path);
        let entry = self.first_entry(&dir).await.map_err(|e| self.fail("list", path, &e))?;
        Ok(entry.map(|entry| {
            // The marker sorts before everything below it, so a listing of one entry shows it if there is one.
            let marker = match entry.path() == dir {
                true => Some(true),
                false if self.can.list_with_limit => Some(false),
                false => None,
            };
            self.dir(marker, super::seconds(entry.metadata()))
        }))
    }

    /// The first entry at or below `dir`, which ends with a slash; without one, the first whose path begins like that.
    pub(super) async fn first_entry(&self, dir: &str) -> opendal::Result<Option<Entry>> {
        let options = ListOptions { limit: Some(1), ..ListOptions::default() };
        self.ops.ask.lister_options(dir, options).await?.try_next().await
    }

    /// The file at `path`: NotFound or IsDir if it is something else.
    pub(super) async fn find_file(&self, path: &str) -> Result<Metadata, StoreError> {
        let is_dir = || Err(error(StoreErrorKind::IsDir, format!("'{path}' is a directory")));
        match self.head(path).await {
            Ok(Some(metadata)) if metadata.is_file() => Ok(metadata),
            Ok(Some(_)) => is_dir(),
            // Some servers have an error of their own for asking for a directory as a file.
            other => match self.find(path).await {
                Ok(Some(meta)) if meta.kind == Kind::Dir => is_dir(),
                _ => {
                    other?;
                    Err(error(StoreErrorKind::NotFound, format!("'{path}' does not exist")))
                }
            },
        }
    }
}
