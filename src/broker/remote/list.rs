//! Listings, page by page.
//!
//! What a store lists is foreign text: names that no file system can hold, or that OpenDAL would write as others, are
//! hidden, counted, and mentioned in the log once per mount.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::Ordering;

use super::super::error::error;
use super::super::services::Upload;
use super::pages::{Next, Pages};
use super::{RESERVED, Remote, dir_path};
use crate::store::path::{check_name, check_path, join};
use crate::store::{LIST_PAGE_MAX, ListEntry, Reply, StoreError, StoreErrorKind};

/// Most names of a listing that are remembered to find a directory and a file of one name, where the store does not sort; past it
/// both may show.
const REMEMBERED_MAX: usize = 200_000;

/// A listing under way.
pub(super) struct Listing {
    pages: Pages,
    sent: Sent,
    /// Whether the store has said anything at all about the directory.
    exists: bool,
    /// The greatest name sent, a directory's with its slash.
    greatest: String,
    /// The name to go on after, which the store may list again.
    skip: Option<String>,
}

impl std::fmt::Debug for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listing").field("sent", &self.sent.names.len()).finish_non_exhaustive()
    }
}

/// Names sent, to find a directory that comes pages after a file of its name.
#[derive(Default)]
struct Sent {
    hasher: RandomState,
    /// Hashes of the names; with the name where the store sorts.
    names: HashMap<u64, Option<Box<str>>>,
}

impl Sent {
    /// Notes that `name` is sent. False: it was before.
    fn add(&mut self, name: &str, sorted: bool) -> bool {
        let hash = self.hasher.hash_one(name);
        if self.names.contains_key(&hash) {
            return false;
        }
        if self.names.len() < REMEMBERED_MAX {
            self.names.insert(hash, sorted.then(|| name.into()));
        }
        true
    }

    /// Forgets the names that cannot come again, because all up to the key `greatest` has come.
    fn forget_past(&mut self, greatest: &str) {
        let comes = |name: &str| name.bytes().chain([b'/']).gt(greatest.bytes());
        self.names.retain(|_, name| name.as_deref().is_none_or(comes));
    }
}

/// How a page ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The listing is over.
    Last,
    /// All names up to the greatest were told.
    Clean,
    /// Anywhere.
    Within,
}

impl Remote {
    /// The next page of `path`: with the cursor 0 the first one, or the first after the name `after`.
    pub async fn list(&self, path: &str, cursor: u64, after: Option<&str>) -> Result<Reply, StoreError> {
        let mut listing = match cursor {
            0 => self.open_listing(path, after).await?,
            _ => self.listings.take(cursor, path).ok_or_else(|| {
                error(StoreErrorKind::Stale, format!("list '{path}': the cursor {cursor} is no more"))
            })?,
        };
        let (entries, end) = self.page(path, &mut listing).await?;
        if entries.is_empty() && end == End::Last && !listing.exists && !path.is_empty() && after.is_none() {
            self.demand_dir(path, &format!("list '{path}'")).await?;
        }
        let resumes = end == End::Clean && Pages::resume(&self.can) && !listing.greatest.is_empty();
        if end == End::Clean && self.sorts() {
            listing.sent.forget_past(&listing.greatest);
        }
        let after = resumes.then(|| listing.greatest.clone());
        let cursor = (end != End::Last).then(|| self.listings.put(path, listing));
        Ok(Reply::Entries { entries, cursor, after })
    }

    /// Forgets a cursor.
    pub fn list_end(&self, cursor: u64) {
        self.listings.end(cursor);
    }

    async fn open_listing(&self, path: &str, after: Option<&str>) -> Result<Listing, StoreError> {
        if self.service.scheme == "webdav" && !path.is_empty() {
            // Asked to list a file, servers answer with the file, and OpenDAL calls it an entry of itself.
            self.demand_dir(path, &format!("list '{path}'")).await?;
        }
        if after.is_some() && !Pages::resume(&self.can) {
            let text = format!("list '{path}': not from the middle");
            return Err(error(StoreErrorKind::Unsupported, text));
        }
        let key = after.map(|after| join(path, after));
        let pages = Pages::open(&self.ops, self.service.http, &dir_path(path), key);
        let greatest = after.unwrap_or_default().to_owned();
        let skip = after.map(|after| after.trim_end_matches('/').to_owned());
        let pages = pages.map_err(|e| self.fail("list", path, &e))?;
        Ok(Listing { pages, sent: Sent::default(), exists: false, greatest, skip })
    }

    /// Whether pages come in the order of the keys' bytes. Buckets of S3 that cannot list recursively do not sort.
    fn sorts(&self) -> bool {
        self.service.http && !self.service.real_dirs && self.can.list_with_recursive
    }

    /// A page of the store's, or as much of it as one of ours takes; never an empty one before the last.
    async fn page(&self, path: &str, listing: &mut Listing) -> Result<(Vec<ListEntry>, End), StoreError> {
        let dir = dir_path(path);
        let below = if path.is_empty() { "" } else { dir.as_str() };
        let mut page: Vec<ListEntry> = Vec::new();
        let mut at: HashMap<String, usize> = HashMap::new();
        let failed = |e: opendal::Error| self.fail("list", path, &e);
        loop {
            if !page.is_empty() {
                match listing.pages.peek().await.map_err(failed)? {
                    Next::End => return Ok((page, End::Last)),
                    Next::Page => return Ok((page, End::Clean)),
                    Next::Here if page.len() >= LIST_PAGE_MAX => return Ok((page, End::Within)),
                    Next::Here => {}
                }
            }
            let next = listing.pages.next().await.map_err(failed)?;
            let Some(entry) = next else { return Ok((page, End::Last)) };
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
            if is_dir && listing.skip.as_ref() == Some(&name) {
                continue;
            }
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
                let key = &entry.path()[below.len()..];
                if key > listing.greatest.as_str() {
                    key.clone_into(&mut listing.greatest);
                }
                if let Some(&index) = at.get(&name) {
                    if is_dir {
                        page[index].meta = meta;
                    }
                    continue;
                }
                if !listing.sent.add(&name, self.sorts()) {
                    continue;
                }
                at.insert(name.clone(), page.len());
            }
            page.push(ListEntry { name, meta });
        }
    }

    /// The name of the entry `full` of the directory `path`, if it can be shown.
    pub(super) fn name_in(&self, path: &str, below: &str, full: &str) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_remembered_as_long_as_a_directory_of_it_may_come() {
        let mut sent = Sent::default();
        for name in ["a", "b", "b-", "b-1", "b.", "c"] {
            assert!(sent.add(name, true), "{name}");
        }
        sent.forget_past("b.");
        let mut kept: Vec<&str> = sent.names.values().flatten().map(|name| &**name).collect();
        kept.sort_unstable();
        // Of those that have come, only `b/` and what begins with the last one sort after it.
        assert_eq!(kept, ["b", "b.", "c"]);
        assert!(!sent.add("b", true) && sent.add("a", true));
        let mut unsorted = Sent::default();
        assert!(unsorted.add("a", false));
        unsorted.forget_past("z");
        assert!(!unsorted.add("a", false));
    }
}
