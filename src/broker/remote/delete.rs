//! Deleting objects.

use super::super::error::error;
use super::Remote;
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

    /// Deletes the objects `paths`; missing ones are fine.
    pub async fn delete_many(&self, paths: Vec<String>) -> Result<(), StoreError> {
        for path in &paths {
            self.delete(path).await?;
        }
        Ok(())
    }
}
