//! Directories: made with a marker, or really; removed only when empty.

use futures::TryStreamExt;
use opendal::options::ListOptions;

use super::super::error::error;
use super::{Remote, dir_path};
use crate::store::{Attributes, Kind, StoreError, StoreErrorKind};

impl Remote {
    /// Makes `path` a directory that stays while empty; one that is there already gets its marker and is fine. The marker says
    /// `attributes` from then on, where attributes are kept.
    pub async fn create_dir(&self, path: &str, attributes: Option<&Attributes>) -> Result<(), StoreError> {
        let attributes = attributes.filter(|_| self.posix && !self.service.real_dirs);
        match self.find(path).await? {
            Some(meta) if meta.kind == Kind::File => {
                return Err(error(StoreErrorKind::Exists, format!("create directory '{path}': a file is there")));
            }
            Some(meta) if meta.marker == Some(true) && attributes.is_none() => return Ok(()),
            _ => {}
        }
        if let Some(attributes) = attributes {
            return self.write_marker(path, attributes).await;
        }
        self.ops.ask.create_dir(&dir_path(path)).await.map_err(|e| self.fail("create directory", path, &e))
    }

    /// Removes the directory `path` if nothing is in it, names that cannot be shown included.
    pub async fn remove_dir(&self, path: &str) -> Result<(), StoreError> {
        let dir = dir_path(path);
        let what = || format!("remove directory '{path}'");
        if self.service.real_dirs {
            self.demand_dir(path, &what()).await?;
        }
        let options = ListOptions { limit: Some(2), ..ListOptions::default() };
        let list = |e: opendal::Error| self.fail("list", path, &e);
        let mut lister = self.ops.ask.lister_options(&dir, options).await.map_err(list)?;
        let mut marker = false;
        while let Some(entry) = lister.try_next().await.map_err(list)? {
            if entry.path() == dir {
                marker = true;
            } else if entry.path().starts_with(&dir) {
                return Err(error(StoreErrorKind::NotEmpty, format!("{}: it has entries", what())));
            }
        }
        drop(lister);
        if !marker && !self.service.real_dirs {
            self.demand_dir(path, &what()).await?;
        }
        // The marker alone, by its own name: what came to be below it meanwhile stays.
        self.ops.ask.delete(&dir).await.map_err(|e| self.fail("remove directory", path, &e))
    }

    /// NotDir or NotFound, unless `path` is a directory.
    pub(super) async fn demand_dir(&self, path: &str, what: &str) -> Result<(), StoreError> {
        match self.find(path).await? {
            Some(meta) if meta.kind == Kind::Dir => Ok(()),
            Some(_) => Err(error(StoreErrorKind::NotDir, format!("{what}: it is a file"))),
            None => Err(error(StoreErrorKind::NotFound, format!("{what}: nothing is there"))),
        }
    }
}
