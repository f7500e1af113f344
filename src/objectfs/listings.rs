//! Directories known by a listing. A listing tells of a whole directory for the price of one request, so while it is fresh the
//! names in it need no question of their own; and where the guest asks for many names of a directory one by one, a listing
//! is asked for instead. A name that is not in it is asked for all the same: somebody may have just made it, and whoever opens
//! it must see that.
//!
//! Only a hint: what the guest itself did since to a name outdates what a listing said of it ([`Listings::outdate`], and the
//! tree's own memory of what was placed and removed when).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::core::Core;
use crate::fs::NodeId;
use crate::store::{ListEntry, Meta, Store};

/// Within this time after the store's answer to a lookup an open belongs to the same open(2), which begins with the lookup.
pub const JUST_NOW: Duration = Duration::from_millis(2);

/// How long a listing may speak for a directory, whatever the cache policy says.
pub const TRUST_MAX: Duration = Duration::from_secs(1);

/// Questions for names of one directory that are asked one by one before a listing takes their place.
const BURST_AFTER: u32 = 4;

/// Most names of a directory that is listed at once when one of them is asked for again: the answer is hardly longer than one about
/// a single name.
const FEW: usize = 16;

/// A pause that ends a burst.
const BURST_PAUSE: Duration = Duration::from_secs(1);

/// For how long a directory that did not fit into one page of a listing is not listed again for this purpose.
const LARGE_FOR: Duration = Duration::from_secs(60);

/// Most directories that are remembered, and most of them with a listing, which takes up to a page.
const DIRS_MAX: usize = 1024;
const LISTED_MAX: usize = 32;

/// Most outdated names that a directory remembers beside its listing.
const NAMES_MAX: usize = 1024;

/// What listings told.
#[derive(Debug, Default)]
pub struct Listings {
    dirs: Mutex<HashMap<NodeId, Dir>>,
}

#[derive(Debug)]
struct Dir {
    /// When the listing was asked for, if there is one, and what it said.
    asked: Option<Instant>,
    names: HashMap<String, Meta>,
    /// Since when changes are noted.
    since: Instant,
    /// Names that the guest changed since, and when.
    outdated: HashMap<String, Instant>,
    /// Questions so far that followed each other closely, and the last one.
    questions: u32,
    last: Instant,
    /// It was found to be too large.
    large: Option<Instant>,
    /// Held while it is listed.
    listing: Arc<async_lock::Mutex<()>>,
}

impl Dir {
    fn new(now: Instant) -> Dir {
        Dir {
            asked: None,
            names: HashMap::new(),
            since: now,
            outdated: HashMap::new(),
            questions: 0,
            last: now,
            large: None,
            listing: Arc::default(),
        }
    }

    fn is_as_listed(&self, asked: Instant) -> bool {
        self.asked == Some(asked) && self.outdated.is_empty() && self.since <= asked
    }
}

impl Listings {
    fn dirs(&self) -> MutexGuard<'_, HashMap<NodeId, Dir>> {
        self.dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a listing of `dir` that `is_fresh` says of `name`, and when it was asked for.
    fn answer(&self, dir: NodeId, name: &str, is_fresh: impl Fn(Instant) -> bool) -> Option<(Meta, Instant)> {
        let dirs = self.dirs();
        let dir = dirs.get(&dir)?;
        let asked = dir.asked.filter(|&asked| is_fresh(asked) && !dir.outdated.contains_key(name))?;
        Some((dir.names.get(name)?.clone(), asked))
    }

    /// Whether there is a listing of `dir` that `is_fresh`.
    fn is_listed(&self, dir: NodeId, is_fresh: impl Fn(Instant) -> bool) -> bool {
        self.dirs().get(&dir).and_then(|dir| dir.asked).is_some_and(is_fresh)
    }

    /// All of `dir`, by the listing that was asked for at `asked`, if the guest has changed nothing since.
    pub fn whole(&self, dir: NodeId, asked: Instant) -> Option<Vec<(String, Meta)>> {
        let dirs = self.dirs();
        let dir = dirs.get(&dir).filter(|dir| dir.is_as_listed(asked))?;
        Some(dir.names.iter().map(|(name, meta)| (name.clone(), meta.clone())).collect())
    }

    /// Whether [`Listings::whole`] would give the same again.
    pub fn is_as_listed(&self, dir: NodeId, asked: Instant) -> bool {
        self.dirs().get(&dir).is_some_and(|dir| dir.is_as_listed(asked))
    }

    /// The record of `dir`, in place of the one that was used least lately if there are many.
    fn record(dirs: &mut HashMap<NodeId, Dir>, dir: NodeId, now: Instant) -> &mut Dir {
        if dirs.len() >= DIRS_MAX && !dirs.contains_key(&dir) {
            let oldest = dirs.iter().min_by_key(|(_, dir)| dir.last).map(|(id, _)| *id);
            oldest.and_then(|oldest| dirs.remove(&oldest));
        }
        dirs.entry(dir).or_insert_with(|| Dir::new(now))
    }

    /// Counts a question for `name` in `dir`. With many, or where `name` was one of few that the last listing told, gives what is to
    /// be held while the directory is listed instead.
    fn question(&self, dir: NodeId, name: &str) -> Option<Arc<async_lock::Mutex<()>>> {
        let now = Instant::now();
        let mut dirs = self.dirs();
        let dir = Self::record(&mut dirs, dir, now);
        if now.duration_since(std::mem::replace(&mut dir.last, now)) > BURST_PAUSE {
            dir.questions = 0;
        }
        dir.questions = dir.questions.saturating_add(1);
        let small = dir.large.is_none_or(|at| at.elapsed() > LARGE_FOR);
        let one_of_few = dir.names.len() <= FEW && dir.names.contains_key(name) && !dir.outdated.contains_key(name);
        (small && (one_of_few || dir.questions > BURST_AFTER)).then(|| Arc::clone(&dir.listing))
    }

    /// All of `dir`, as asked for at `asked`.
    fn told<'a>(&self, dir: NodeId, asked: Asked, entries: impl Iterator<Item = (&'a str, &'a Meta)>) {
        let Asked { at: asked, deleted } = asked;
        let names = entries.map(|(name, meta)| (name.to_owned(), meta.clone())).collect();
        let mut dirs = self.dirs();
        let dir = Self::record(&mut dirs, dir, asked);
        if dir.asked.is_none_or(|before| before < asked) {
            dir.asked = Some(asked);
            dir.names = names;
            dir.outdated.retain(|_, at| *at >= asked);
            dir.since = dir.since.max(asked);
            dir.outdated.extend(deleted.into_iter().map(|name| (name, asked)));
            Self::shrink(&mut dirs);
        }
    }

    /// Lets the oldest listing go if there are many.
    fn shrink(dirs: &mut HashMap<NodeId, Dir>) {
        let listed = dirs.values_mut().filter(|dir| dir.asked.is_some());
        let mut listed: Vec<&mut Dir> = listed.collect();
        if listed.len() > LISTED_MAX
            && let Some(oldest) = listed.iter_mut().min_by_key(|dir| dir.asked)
        {
            oldest.asked = None;
            oldest.names = HashMap::new();
        }
    }

    /// `dir` is about to be listed: what changes from now on is noted.
    fn begin(&self, dir: NodeId) {
        let now = Instant::now();
        Self::record(&mut self.dirs(), dir, now);
    }

    /// `dir` has more names than fit into a page.
    pub fn is_large(&self, dir: NodeId) {
        let now = Instant::now();
        let mut dirs = self.dirs();
        let dir = Self::record(&mut dirs, dir, now);
        dir.large = Some(now);
    }

    /// What was said of `name` in `dir` until now is out of date.
    pub fn outdate(&self, dir: NodeId, name: &str) {
        if let Some(record) = self.dirs().get_mut(&dir) {
            record.outdated.insert(name.to_owned(), Instant::now());
            if record.outdated.len() > NAMES_MAX {
                record.asked = None;
                record.since = Instant::now();
                record.names.clear();
                record.outdated.clear();
            }
        }
    }

    /// Whether what a listing of `dir` said of `name`, asked for at `asked`, is newer than all that the guest changed.
    pub fn vouches(&self, dir: NodeId, name: &str, asked: Instant) -> bool {
        self.dirs().get(&dir).is_some_and(|record| {
            record.since <= asked && record.outdated.get(name).is_none_or(|changed| *changed < asked)
        })
    }

    /// What was said of anything is out of date.
    pub fn outdate_all(&self) {
        self.dirs().clear();
    }
}

/// The moment at which a directory is listed.
#[derive(Debug)]
pub struct Asked {
    /// Just before the question.
    pub at: Instant,
    /// Names whose deletion was pending then: the listing may still have them.
    pub deleted: HashSet<String>,
}

impl<S: Store> Core<S> {
    /// To be called just before `dir` is listed.
    pub(super) fn begin_listing(&self, dir: NodeId) -> Asked {
        self.listings.begin(dir);
        Asked { deleted: self.deletions.below(dir), at: Instant::now() }
    }

    /// What is known of `name` in the directory `parent`, which has `path`, without a question for it alone; by a listing if many
    /// such questions come.
    pub(super) async fn listed(&self, parent: NodeId, path: &str, name: &str) -> Option<(Meta, Instant)> {
        // A directory of its own is asked about as fast as a listing.
        if self.timeout().is_zero() || self.capabilities.real_dirs {
            return None;
        }
        let is_fresh = |asked: Instant| self.is_fresh(Some(asked)) && asked.elapsed() < TRUST_MAX;
        let answer = || self.listings.answer(parent, name, is_fresh);
        if let Some(known) = answer() {
            return Some(known);
        }
        let lock = self.listings.question(parent, name)?;
        let _one_at_a_time = lock.lock().await;
        if self.listings.is_listed(parent, is_fresh) {
            return answer();
        }
        let asked = self.begin_listing(parent);
        let (entries, cursor) = self.remote.list(path.to_owned(), 0).await.ok()?;
        match cursor.filter(|&cursor| cursor != 0) {
            Some(cursor) => {
                // It would end by itself.
                let _ = self.remote.list_end(cursor).await;
                self.listings.is_large(parent);
            }
            None => self.note_listing(parent, asked, &entries),
        }
        answer()
    }

    /// Remembers a listing of all of `dir`.
    pub(super) fn note_listing(&self, dir: NodeId, asked: Asked, entries: &[ListEntry]) {
        let entries = entries.iter().filter(|entry| Self::new_name(dir, entry.name.as_bytes()).is_ok());
        self.listings.told(dir, asked, entries.map(|entry| (entry.name.as_str(), &entry.meta)));
    }
}
