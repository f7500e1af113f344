//! What is at a path, found by one listing.
//!
//! A name can be an object, the start of others, or both. Of all keys that begin with the name, the object itself sorts first,
//! and what is below it comes soon after: only keys with `!` to `.` in the place of the slash stand between. So one listing of a
//! few keys answers both questions.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use opendal::Metadata;

use super::super::error::error;
use super::pages::{Next, Pages};
use super::{Remote, dir_path};
use crate::store::{Kind, LIST_PAGE_MAX, ListEntry, Meta, StoreError, StoreErrorKind};

/// Keys that are asked for, of a single name.
const KEYS: usize = 16;

/// For how long no more are asked for after an answer with many keys that were of no use.
const SPARING: Duration = Duration::from_secs(60);

/// What a listing has shown.
enum Seen {
    /// All there is to say.
    All(Option<Meta>),
    /// A directory, of which this is all.
    Whole(Meta, Vec<ListEntry>),
    /// This object, which a directory may hide: so many others stand between.
    Perhaps(Option<Metadata>),
    /// An object without its version.
    Vaguely,
}

/// The names of a directory, each once.
#[derive(Default)]
struct Names {
    entries: Vec<ListEntry>,
    at: HashMap<String, usize>,
    /// Of some object the version is missing.
    vague: bool,
}

/// Whether a listing says which version an object is.
fn tells_version(metadata: &Metadata) -> bool {
    metadata.etag().is_some_and(|etag| !etag.is_empty()) && metadata.last_modified().is_some()
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

    /// As [`Remote::stat`], with all names in a directory if there are few: as many keys are asked for as a page has, unless
    /// that was in vain lately.
    pub async fn look(&self, path: &str) -> Result<(Meta, Option<Vec<ListEntry>>), StoreError> {
        if !self.is_found_listed() || path.is_empty() || self.is_sparing() {
            return Ok((self.stat(path).await?, None));
        }
        let (found, below) = self.find_listed(path, LIST_PAGE_MAX).await?;
        let gone = || error(StoreErrorKind::NotFound, format!("stat '{path}': nothing is there"));
        found.map(|meta| (meta, below)).ok_or_else(gone)
    }

    fn is_sparing(&self) -> bool {
        let since = self.sparing.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < SPARING)
    }

    /// As [`Remote::find`], without details of files, and in one request instead of two at once; with another one where many
    /// names begin like this one. At most `keys` are asked for at once.
    pub(super) async fn find_listed(
        &self,
        path: &str,
        keys: usize,
    ) -> Result<(Option<Meta>, Option<Vec<ListEntry>>), StoreError> {
        match self.see(path, keys).await.map_err(|e| self.fail("list", path, &e))? {
            Seen::All(found) => Ok((found, None)),
            Seen::Whole(dir, below) => Ok((Some(dir), Some(below))),
            Seen::Perhaps(file) => {
                let dir = self.find_dir(path).await?;
                Ok((dir.or_else(|| file.map(|metadata| self.meta(&metadata))), None))
            }
            Seen::Vaguely => {
                // Not asked in this way again.
                self.vague.store(true, Ordering::Relaxed);
                Ok((self.find(path).await?, None))
            }
        }
    }

    /// As [`Remote::find_listed`] with as few keys as are needed.
    pub(super) async fn find_alone(&self, path: &str) -> Result<Option<Meta>, StoreError> {
        Ok(self.find_listed(path, KEYS).await?.0)
    }

    /// Adds the name that the key `rest` below `path` makes.
    fn add(&self, names: &mut Names, path: &str, rest: &str, metadata: &Metadata) {
        let below = dir_path(path);
        let (first, deeper) = rest.split_once('/').map_or((rest, None), |(first, deeper)| (first, Some(deeper)));
        let Some(name) = self.name_in(path, &below, &format!("{below}{first}")) else { return };
        let meta = match deeper {
            // The marker sorts before everything else below it.
            Some(deeper) => self.dir(Some(deeper.is_empty()), None),
            None => {
                names.vague |= !tells_version(metadata);
                self.meta(metadata)
            }
        };
        match names.at.get(&name) {
            Some(&at) if names.entries[at].meta.kind == Kind::File => names.entries[at].meta = meta,
            Some(_) => {}
            None => {
                names.at.insert(name.clone(), names.entries.len());
                names.entries.push(ListEntry { name, meta });
            }
        }
    }

    async fn see(&self, path: &str, keys: usize) -> opendal::Result<Seen> {
        let below = dir_path(path);
        let mut pages = Pages::of_keys(&self.ops, self.service.http, path, keys)?;
        let (mut file, mut dir) = (None, None);
        let mut names = Names::default();
        let mut others = 0;
        let whole = loop {
            let Some(entry) = pages.next().await? else { break true };
            if let Some(rest) = entry.path().strip_prefix(below.as_str()) {
                let marker = rest.is_empty();
                if dir.is_none() {
                    dir = Some(self.dir(Some(marker), super::seconds(entry.metadata())));
                }
                if keys <= KEYS {
                    break false;
                }
                if !marker {
                    self.add(&mut names, path, rest, entry.metadata());
                }
            } else if entry.path() == path {
                let metadata = entry.metadata().clone();
                if !tells_version(&metadata) {
                    return Ok(Seen::Vaguely);
                }
                file = Some(metadata);
            } else {
                others += 1;
            }
            if pages.peek().await? == Next::Page {
                if entry.path().starts_with(&below) {
                    break false;
                }
                if entry.path() > below.as_str() {
                    // All of the directory sorts before that.
                    break true;
                }
                self.spare(true);
                return Ok(Seen::Perhaps(file));
            }
        };
        if keys > KEYS {
            self.spare(others > KEYS || (dir.is_some() && !whole));
        }
        match dir {
            Some(dir) if whole && keys > KEYS && !names.vague => Ok(Seen::Whole(dir, names.entries)),
            Some(dir) => Ok(Seen::All(Some(dir))),
            None => Ok(Seen::All(file.map(|metadata| self.meta(&metadata)))),
        }
    }

    /// Notes whether many keys were asked for in vain.
    fn spare(&self, in_vain: bool) {
        if in_vain {
            *self.sparing.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }
}
