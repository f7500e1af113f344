//! Deleting objects.

use futures::FutureExt;

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
        let batches = self.can.delete_max_size.is_some_and(|most| most > 1) && !self.service.real_dirs;
        if batches {
            let deleted = self.ops.ask.delete_iter(paths.iter().map(String::as_str)).await;
            return deleted.map_err(|e| self.fail("delete with others", paths.first().map_or("", |p| p), &e));
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
}
