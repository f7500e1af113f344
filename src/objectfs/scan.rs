//! What an open directory has told of its names, so that a place in it stays the place that it was, in bounded memory.
//!
//! A place is the number of a name. Names are kept whole in the pages that are read just now; of all others, the hash, and per
//! page the name after which the store lists it again. A page that is listed again is fitted to the hashes: each name gets the
//! number that it had, what came meanwhile gets none, and what went leaves a gap. Where the store cannot list from a name on,
//! names are kept, but nothing else of them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use crate::store::{Kind, Meta};

/// Most pages that are kept with all that was listed.
const HELD_MAX: usize = 3;

/// Most names of which the hash is kept, in 16 MiB. Those beyond are found again by counting, if nothing changes before them in
/// their page.
const HASHES_MAX: usize = 2 << 20;

/// Most bytes of names that are kept where the store cannot list them again.
const PACKED_MAX: usize = 32 << 20;

/// A name as a listing shows it.
#[derive(Debug)]
pub struct Listed {
    pub name: String,
    pub meta: Meta,
    /// When it was asked for; `None`: the store does not have it yet, or only the name was kept.
    pub asked: Option<Instant>,
    /// When the store was asked for what the listing does not tell, if it was.
    pub told: Option<Instant>,
    /// It had no answer.
    pub unknown: bool,
}

impl Listed {
    /// As the store listed it.
    pub fn of_store(name: String, meta: Meta, asked: Instant) -> Listed {
        Listed { name, meta, asked: Some(asked), told: None, unknown: false }
    }

    /// As `meta` says, of which the store is not the source.
    pub fn of_memory(name: String, meta: Meta) -> Listed {
        Listed { name, meta, asked: None, told: None, unknown: false }
    }
}

/// How the store lists a page again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Again {
    /// After this name; `None`: from the beginning.
    pub from: Option<String>,
    /// Up to this one; `None`: to the end.
    pub until: Option<String>,
}

/// Where the next page comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Next {
    /// Nothing was asked yet.
    #[default]
    Start,
    /// From here, or after that name.
    At(u64, Option<String>),
    /// There is none.
    End,
}

#[derive(Debug)]
struct Page {
    /// Number of its first name.
    first: usize,
    again: Option<Again>,
    packed: Option<Packed>,
}

/// The names of a page; one that is gone is `None`.
#[derive(Debug)]
struct Held {
    page: usize,
    names: Vec<Option<Listed>>,
}

/// Names without anything else, end to end.
#[derive(Debug, Default)]
struct Packed {
    text: Box<str>,
    /// Where each ends, and whether it is a directory.
    ends: Box<[(u32, bool)]>,
}

impl Packed {
    fn new(names: &[Option<Listed>]) -> Packed {
        let mut text = String::new();
        let ends = names.iter().map(|listed| {
            let is_dir = listed.as_ref().is_some_and(|listed| {
                text.push_str(&listed.name);
                listed.meta.kind == Kind::Dir
            });
            (u32::try_from(text.len()).unwrap_or(u32::MAX), is_dir)
        });
        let ends = ends.collect();
        Packed { text: text.into(), ends }
    }

    fn bytes(&self) -> usize {
        self.text.len() + size_of_val(&*self.ends)
    }

    fn names(&self) -> Vec<Option<Listed>> {
        let mut start = 0;
        let names = self.ends.iter().map(|&(end, is_dir)| {
            let name = self.text.get(start..end as usize).filter(|name| !name.is_empty())?.to_owned();
            start = end as usize;
            let kind = if is_dir { Kind::Dir } else { Kind::File };
            let meta = Meta { kind, size: 0, mtime_ns: None, etag: None, marker: None, details: None };
            Some(Listed::of_memory(name, meta))
        });
        names.collect()
    }
}

/// What was listed so far.
#[derive(Debug, Default)]
pub struct Scan {
    pages: Vec<Page>,
    held: VecDeque<Held>,
    hashes: Vec<u64>,
    hasher: RandomState,
    len: usize,
    /// Bytes of all that is packed.
    packed: usize,
    next: Next,
    /// Nothing of it was read yet: it came along with the lookup before the opendir(3), which asked at this moment.
    pub ready: Option<Instant>,
}

/// Where a name is to be found.
#[derive(Debug)]
pub enum Found {
    /// In the page of this number, which begins with the name of that number, and has to be listed again in this way. `None`:
    /// nobody knows it any more.
    Elsewhere(usize, Option<Again>),
    /// Here.
    Here,
}

impl Scan {
    /// How many names there are so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where the next page comes from.
    pub fn next(&self) -> &Next {
        &self.next
    }

    /// Takes in a page, after which comes what `next` says.
    pub fn push(&mut self, names: Vec<Listed>, again: Option<Again>, next: Next) {
        self.next = next;
        if names.is_empty() {
            return;
        }
        let more = names.len().min(HASHES_MAX.saturating_sub(self.len));
        let wanted = self.hashes.len() + more;
        if wanted > self.hashes.capacity() {
            let room = (2 * self.hashes.capacity()).clamp(wanted, HASHES_MAX);
            self.hashes.reserve_exact(room - self.hashes.len());
        }
        let hashes = names.iter().take(more).map(|listed| self.hasher.hash_one(&listed.name));
        self.hashes.extend(hashes);
        let page = self.pages.len();
        self.pages.push(Page { first: self.len, again, packed: None });
        self.len += names.len();
        self.hold(page, names.into_iter().map(Some).collect());
    }

    /// Takes from `names` what was listed, as far as that is remembered.
    pub fn remove_listed<T>(&self, names: &mut HashMap<String, T>) {
        let hashes: HashMap<u64, String> =
            names.keys().map(|name| (self.hasher.hash_one(name), name.clone())).collect();
        for name in self.hashes.iter().filter_map(|hash| hashes.get(hash)) {
            names.remove(name);
        }
        let held: HashSet<&str> =
            self.held.iter().flat_map(|held| held.names.iter().flatten()).map(|n| &*n.name).collect();
        names.retain(|name, _| !held.contains(&**name));
    }

    /// Whether of some names not even the hash is known.
    pub fn forgets(&self) -> bool {
        self.len > self.hashes.len()
    }

    fn page_of(&self, index: usize) -> usize {
        self.pages.partition_point(|page| page.first <= index).saturating_sub(1)
    }

    fn end_of(&self, page: usize) -> usize {
        self.pages.get(page + 1).map_or(self.len, |next| next.first)
    }

    /// Where the name of this number is.
    pub fn find(&mut self, index: usize) -> Found {
        let page = self.page_of(index);
        if self.held.iter().any(|held| held.page == page) {
            return Found::Here;
        }
        let Some(known) = self.pages.get(page) else { return Found::Elsewhere(page, None) };
        if let Some(packed) = &known.packed {
            let names = packed.names();
            self.hold(page, names);
            return Found::Here;
        }
        Found::Elsewhere(page, known.again.clone())
    }

    /// The names of the held page that has the name of this number, the first one's number, and where in the page it is.
    pub fn page(&mut self, index: usize) -> Option<(usize, &mut [Option<Listed>])> {
        let page = self.page_of(index);
        let first = self.pages.get(page)?.first;
        let held = self.held.iter_mut().find(|held| held.page == page)?;
        Some((first, &mut held.names))
    }

    /// Takes in what a page has now: the names that it had get their places.
    pub fn refill(&mut self, page: usize, names: Vec<Listed>) {
        let Some(first) = self.pages.get(page).map(|page| page.first) else { return };
        let len = self.end_of(page) - first;
        let refilled = match self.hashes.get(first..first + len) {
            Some(hashes) => {
                let mut now: HashMap<u64, Listed> =
                    names.into_iter().map(|listed| (self.hasher.hash_one(&listed.name), listed)).collect();
                hashes.iter().map(|hash| now.remove(hash)).collect()
            }
            None => names.into_iter().map(Some).chain(std::iter::repeat_with(|| None)).take(len).collect(),
        };
        self.hold(page, refilled);
    }

    fn hold(&mut self, page: usize, names: Vec<Option<Listed>>) {
        self.held.push_back(Held { page, names });
        while self.held.len() > HELD_MAX
            && let Some(old) = self.held.pop_front()
            && let Some(page) = self.pages.get_mut(old.page)
        {
            if page.again.is_none() && page.packed.is_none() {
                let packed = Packed::new(&old.names);
                if self.packed + packed.bytes() <= PACKED_MAX {
                    self.packed += packed.bytes();
                    page.packed = Some(packed);
                }
            }
        }
    }

    /// Bytes of all that is kept, but for the pages that are read just now.
    #[cfg(test)]
    pub fn kept_bytes(&self) -> usize {
        let again =
            |again: &Again| again.from.as_ref().map_or(0, String::len) + again.until.as_ref().map_or(0, String::len);
        let pages = self.pages.iter().map(|page| size_of::<Page>() + page.again.as_ref().map_or(0, again));
        self.hashes.capacity() * size_of::<u64>() + self.packed + pages.sum::<usize>()
    }

    /// Names that are kept whole.
    #[cfg(test)]
    pub fn held_names(&self) -> usize {
        self.held.iter().map(|held| held.names.len()).sum()
    }
}
