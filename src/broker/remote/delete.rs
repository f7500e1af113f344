//! Deleting objects.

use futures::FutureExt;
use opendal::ErrorKind;
use opendal::options::DeleteOptions;

use super::super::error::error;
use super::Remote;
use super::rename::{CONCURRENT, side_by_side};
use crate::store::{Kind, StoreError, StoreErrorKind};

impl Remote {
    /// Deletes the object `path`; a missing one is fine.
    pub async fn delete(&self, path: &str) -> Result<(), StoreError> {
        // A DELETE of a directory takes all of it on some servers.
        if self.service.real_dirs {
            match self.find(path).await? {
                None => return Ok(()),
                Some(meta) if meta.kind == Kind::Dir => {
                    return Err(error(StoreErrorKind::IsDir, format!("delete '{path}': it is a directory")));
                }
                Some(_) => {}
            }
        }
        self.ops.ask.delete(path).await.map_err(|e| self.fail("delete", path, &e))
    }

    /// Deletes the objects `paths`; missing ones are fine, and directories are never touched.
    pub async fn delete_many(&self, paths: &[String]) -> Result<(), StoreError> {
        if !self.service.real_dirs {
            let deletions = paths.iter().map(|path| (path.clone(), DeleteOptions::default())).collect();
            return self.delete_all(deletions).await;
        }
        let mut result = Ok(());
        let mut left = paths.iter();
        let next = || left.next().map(|path| self.delete(path).boxed());
        // All are tried; the first failure is told.
        let end = |deleted: Result<(), StoreError>| {
            if result.is_ok() {
                result = deleted;
            }
        };
        side_by_side(CONCURRENT, next, end).await;
        result
    }

    /// Deletes objects and markers; missing ones are fine. In batches where the store takes them; where it does not understand
    /// a batch, as S3's imitations often do not, one by one.
    pub(super) async fn delete_all(&self, deletions: Vec<(String, DeleteOptions)>) -> Result<(), StoreError> {
        if self.can.delete_max_size.is_some_and(|most| most > 1) {
            match self.ops.ask.delete_iter(deletions.clone()).await {
                Ok(()) => return Ok(()),
                Err(e) => {
                    let first = deletions.first().map_or("", |(path, _)| path);
                    let failed = self.fail("delete with others", first, &e);
                    if !matches!(failed.kind, StoreErrorKind::Io | StoreErrorKind::Unsupported) {
                        return Err(failed);
                    }
                    log::debug!("one by one, since the store refuses the batch: {}", failed.text);
                }
            }
        }
        let mut result = Ok(());
        let mut left = deletions.into_iter();
        let next = || left.next().map(|(path, options)| self.delete_one(path, options).boxed());
        let end = |deleted: Result<(), StoreError>| {
            if result.is_ok() {
                result = deleted;
            }
        };
        side_by_side(CONCURRENT, next, end).await;
        result
    }

    async fn delete_one(&self, path: String, options: DeleteOptions) -> Result<(), StoreError> {
        match self.ops.ask.delete_options(&path, options).await {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(self.fail("delete", &path, &e)),
            _ => Ok(()),
        }
    }
}
