//! What is at a path, found by one listing.
//!
//! A name can be an object, the start of others, or both. Of all keys that begin with the name, the object itself sorts first,
//! and what is below it comes soon after: only keys with `!` to `.` in the place of the slash stand between. So one listing of a
//! few keys answers both questions.

use std::sync::atomic::Ordering;

use opendal::Metadata;

use super::pages::{Next, Pages};
use super::{Remote, dir_path};
use crate::store::{Meta, StoreError};

/// Keys that are asked for.
const KEYS: usize = 16;

/// What a listing has shown.
enum Seen {
    /// All there is to say.
    All(Option<Meta>),
    /// This object, which a directory may hide: so many others stand between.
    Perhaps(Option<Metadata>),
    /// An object without its version.
    Vaguely,
}

impl Remote {
    /// Whether [`Remote::find_listed`] can tell.
    pub(super) fn is_found_listed(&self) -> bool {
        self.service.lists_versions
            && !self.posix
            && self.can.list_with_recursive
            && Pages::resume(&self.can)
            && !self.vague.load(Ordering::Relaxed)
    }

    /// As [`Remote::find`], without details of files, and in one request instead of two at once; with another one where many
    /// names begin like this one.
    pub(super) async fn find_listed(&self, path: &str) -> Result<Option<Meta>, StoreError> {
        match self.see(path).await.map_err(|e| self.fail("list", path, &e))? {
            Seen::All(found) => Ok(found),
            Seen::Perhaps(file) => {
                let dir = self.find_dir(path).await?;
                Ok(dir.or_else(|| file.map(|metadata| self.meta(&metadata))))
            }
            Seen::Vaguely => {
                // Not asked in this way again.
                self.vague.store(true, Ordering::Relaxed);
                self.find(path).await
            }
        }
    }

    async fn see(&self, path: &str) -> opendal::Result<Seen> {
        let dir = dir_path(path);
        let mut pages = Pages::of_keys(&self.ops, self.service.http, path, KEYS)?;
        let mut file = None;
        loop {
            let Some(entry) = pages.next().await? else { break };
            if entry.path().starts_with(&dir) {
                let marker = entry.path() == dir;
                return Ok(Seen::All(Some(self.dir(Some(marker), super::seconds(entry.metadata())))));
            }
            if entry.path() == path {
                let metadata = entry.metadata().clone();
                if metadata.etag().is_none_or(str::is_empty) || metadata.last_modified().is_none() {
                    return Ok(Seen::Vaguely);
                }
                file = Some(metadata);
            }
            if pages.peek().await? == Next::Page {
                if entry.path() > dir.as_str() {
                    break;
                }
                return Ok(Seen::Perhaps(file));
            }
        }
        Ok(Seen::All(file.map(|metadata| self.meta(&metadata))))
    }
}
