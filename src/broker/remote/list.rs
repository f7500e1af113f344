//! Listings, page by page.
//!
//! What a store lists is foreign text: names that no file system can hold, or that OpenDAL would write as others, are
//! hidden, counted, and mentioned in the log once per mount.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::Ordering;

use futures::TryStreamExt;
use opendal::options::ListOptions;

use super::super::error::error;
use super::super::services::Upload;
use super::{RESERVED, Remote, dir_path};
use crate::store::path::{check_name, check_path, join};
use crate::store::{Kind, LIST_PAGE_MAX, ListEntry, Reply, StoreError, StoreErrorKind};

/// Most names of a listing that are remembered to find a directory and a file of one name; past it both may show.
const REMEMBERED_MAX: usize = 200_000;

/// A listing under way.
pub(super) struct Listing {
    lister: opendal::Lister,
    /// Hashes of the names sent, for finding the same name again pages later.
    sent: HashMap<u64, Kind>,
    hasher: RandomState,
    /// Whether the store has said anything at all about the directory.
    exists: bool,
}

impl std::fmt::Debug for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listing").field("sent", &self.sent.len()).finish_non_exhaustive()
    }
}

impl Remote {
    /// The next page of `path`.
    pub async fn list(&self, path: &str, cursor: u64) -> Result<Reply, StoreError> {
        let mut listing = match cursor {
            0 => self.open_listing(path).await?,
            _ => self.listings.take(cursor, path).ok_or_else(|| {
                error(StoreErrorKind::Stale, format!("list '{path}': the cursor {cursor} is no more"))
            })?,
        };
        let (entries, more) = self.page(path, &mut listing).await?;
        if entries.is_empty() && !more && !listing.exists && !path.is_empty() {
            self.demand_dir(path, &format!("list '{path}'")).await?;
        }
        let cursor = more.then(|| self.listings.put(path, listing));
        Ok(Reply::Entries { entries, cursor })
    }

    /// Forgets a cursor.
    pub fn list_end(&self, cursor: u64) {
        self.listings.end(cursor);
    }

    async fn open_listing(&self, path: &str) -> Result<Listing, StoreError> {
        if self.service.scheme == "webdav" && !path.is_empty() {
            // Asked to list a file, servers answer with the file, and OpenDAL calls it an entry of itself.
            self.demand_dir(path, &format!("list '{path}'")).await?;
        }
        let options = ListOptions { limit: Some(LIST_PAGE_MAX), ..ListOptions::default() };
        let lister =
            self.ops.ask.lister_options(&dir_path(path), options).await.map_err(|e| self.fail("list", path, &e))?;
        Ok(Listing { lister, sent: HashMap::new(), hasher: RandomState::new(), exists: false })
    }

    /// A full page and whether more may follow.
    async fn page(&self, path: &str, listing: &mut Listing) -> Result<(Vec<ListEntry>, bool), StoreError> {
        let dir = dir_path(path);
        let below = if path.is_empty() { "" } else { dir.as_str() };
        let mut page: Vec<ListEntry> = Vec::new();
        let mut at: HashMap<String, usize> = HashMap::new();
        while page.len() < LIST_PAGE_MAX {
            let next = listing.lister.try_next().await.map_err(|e| self.fail("list", path, &e))?;
            let Some(entry) = next else { return Ok((page, false)) };
            if entry.path() == dir || entry.path() == below {
                // A marker; but servers with real directories answer so for a file, too.
                listing.exists |= !self.service.real_dirs;
                continue;
            }
            if !entry.path().starts_with(below) {
                continue;
            }
            listing.exists = true;
            let Some(name) = self.name_in(path, below, entry.path()) else { continue };
            let is_dir = entry.metadata().is_dir() || entry.path().ends_with('/');
            let mut meta = if is_dir {
                self.dir(self.service.real_dirs.then_some(true), super::seconds(entry.metadata()))
            } else {
                self.meta(entry.metadata())
            };
            if self.service.upload == Upload::Memory {
                // Its listings carry no metadata; asking again costs a look into a map.
                meta = match is_dir {
                    true if self.posix => self.dir_with_details(&join(path, &name), meta).await?,
                    true => meta,
                    false => match self.head(entry.path()).await? {
                        Some(known) if self.posix => self.detailed(&known),
                        Some(known) => self.meta(&known),
                        None => continue,
                    },
                };
            } else if !is_dir && self.lists_attributes() {
                meta = self.detailed(entry.metadata());
            }
            if !self.service.real_dirs {
                if let Some(&index) = at.get(&name) {
                    if is_dir {
                        page[index].meta = meta;
                    }
                    continue;
                }
                let hash = listing.hasher.hash_one(&name);
                if listing.sent.contains_key(&hash) {
                    continue;
                }
                if listing.sent.len() < REMEMBERED_MAX {
                    listing.sent.insert(hash, meta.kind);
                }
                at.insert(name.clone(), page.len());
            }
            page.push(ListEntry { name, meta });
        }
        Ok((page, true))
    }

    /// The name of the entry `full` of the directory `path`, if it can be shown.
    fn name_in(&self, path: &str, below: &str, full: &str) -> Option<String> {
        let rest = full.strip_prefix(below)?;
        let name = rest.strip_suffix('/').unwrap_or(rest);
        if path.is_empty() && name.starts_with(RESERVED) {
            return None;
        }
        let fine = check_name(name.as_bytes()).is_ok() && check_path(&join(path, name)).is_ok();
        if !fine {
            let before = self.hidden.fetch_add(1, Ordering::Relaxed);
            let level = if before == 0 { log::Level::Warn } else { log::Level::Debug };
            log::log!(level, "a name in '{path}' cannot be shown in a file system and is hidden: {name:?}");
        }
        fine.then(|| name.to_owned())
    }
}
