//! Reading directories. A handle keeps the names that it has listed, so that cookies stay valid while entries come and go; a
//! listing carries attributes, so that `ls -l` asks for nothing else; attributes that the mount keeps and the store does not list are
//! asked for name by name, those of a reply at once.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;

use futures::future::join_all;

use super::attributes::type_of;
use super::core::{CachePolicy, Core};
use super::handles::OpenDir;
use super::inode::Inode;
use super::lookup::{dirent_type, gone};
use super::tree::Tree;
use crate::fs::flags::fopen;
use crate::fs::{DirEntry, DirSink, Entry, Errno, Handle, NodeId, Opened, Result};
use crate::store::{Kind, Meta, Store};

/// `.` and `..` come before the names.
const DOTS: u64 = 2;

/// Most names whose attributes are asked for at once.
const TOLD_AT_ONCE: usize = 32;

/// Length of a READDIRPLUS entry in bytes, without its name.
const ENTRY_LEN: usize = 152;

/// Most names before the place that is read of which more is kept than the name.
const BEHIND: usize = 1000;

/// What a directory handle has listed so far: names alone far behind the place that is read, then all that was listed of them.
#[derive(Debug, Default)]
pub struct Listing {
    packed: Packed,
    names: VecDeque<Listed>,
    /// Cursor of the next page; `None` when there is none.
    cursor: Option<u64>,
    started: bool,
}

/// Names without anything else, end to end: a million of them take some tens of megabytes.
#[derive(Debug, Default)]
struct Packed {
    text: String,
    /// Where each ends, and whether it is a directory.
    ends: Vec<(usize, bool)>,
}

impl Packed {
    fn push(&mut self, listed: &Listed) {
        self.text.push_str(&listed.name);
        self.ends.push((self.text.len(), listed.meta.kind == Kind::Dir));
    }

    /// The name with that number, as one that nothing more is known of.
    fn get(&self, index: usize) -> Option<Listed> {
        let &(end, is_dir) = self.ends.get(index)?;
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).map_or(0, |&(end, _)| end);
        let kind = if is_dir { Kind::Dir } else { Kind::File };
        let meta = Meta { kind, size: 0, mtime_ns: None, etag: None, marker: None, details: None };
        let name = self.text.get(start..end)?.to_owned();
        Some(Listed { name, meta, asked: None, told: None, unknown: false })
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|&(end, _)| end));
        starts.zip(&self.ends).filter_map(|(start, &(end, _))| self.text.get(start..end))
    }
}

impl Listing {
    fn len(&self) -> usize {
        self.packed.ends.len() + self.names.len()
    }

    /// Keeps only the names of what lies far behind `index`.
    fn pack_behind(&mut self, index: usize) {
        while self.packed.ends.len() + BEHIND < index
            && let Some(listed) = self.names.pop_front()
        {
            self.packed.push(&listed);
        }
    }
}

#[derive(Debug)]
struct Listed {
    name: String,
    meta: Meta,
    /// When it was asked for; `None`: the store does not have it yet.
    asked: Option<Instant>,
    /// When the store was asked for what the listing does not tell, if it was.
    told: Option<Instant>,
    /// It had no answer.
    unknown: bool,
}

impl<S: Store> Core<S> {
    /// FUSE_OPENDIR.
    pub(super) async fn opendir(&self, nodeid: NodeId) -> Result<Opened> {
        let inode = self.inode(nodeid)?;
        inode.dir()?;
        let fresh = self.is_fresh(inode.state().asked);
        if !fresh {
            self.revalidate(&inode).await?;
        }
        let handle = self.handles.open_dir(OpenDir { inode, listing: async_lock::Mutex::default() })?;
        let flags = match self.config.cache {
            CachePolicy::Never | CachePolicy::Auto => 0,
            CachePolicy::Metadata | CachePolicy::Always => fopen::CACHE_DIR | fopen::KEEP_CACHE,
        };
        Ok(Opened { handle: Some(handle), flags })
    }

    /// FUSE_RELEASEDIR.
    pub(super) async fn releasedir(&self, nodeid: NodeId, handle: Handle) -> Result<()> {
        let dir = self.handles.dir(nodeid, handle)?;
        self.handles.close_dir(handle);
        let cursor = dir.listing.lock().await.cursor.take();
        if let Some(cursor) = cursor {
            self.spawn(|core| async move {
                // It would end by itself.
                let _ = core.remote.list_end(cursor).await;
            });
        }
        Ok(())
    }

    /// FUSE_READDIR and, with `plus`, FUSE_READDIRPLUS.
    pub(super) async fn readdir(
        &self,
        nodeid: NodeId,
        handle: Handle,
        offset: u64,
        plus: bool,
        out: &mut impl DirSink,
    ) -> Result<()> {
        let dir = self.handles.dir(nodeid, handle)?;
        let mut listing = dir.listing.lock().await;
        if offset == 0 && listing.started {
            // rewinddir(3): the directory as it is now.
            *listing = Listing::default();
        }
        let mut at = offset;
        while at < DOTS {
            let (name, ino): (&[u8], u64) =
                if at == 0 { (b".", nodeid.0) } else { (b"..", self.tree().parent(nodeid).0) };
            at += 1;
            let entry = DirEntry { ino, next_offset: at, kind: dirent_type(libc::S_IFDIR), name };
            let fits = if plus { out.add_plus(&entry, &self.no_entry(ino, libc::S_IFDIR)) } else { out.add(&entry) };
            if !fits {
                return Ok(());
            }
        }
        let mut told = 0;
        loop {
            let index = usize::try_from(at - DOTS).map_err(|_| Errno::EINVAL)?;
            if index >= listing.len() {
                if listing.started && listing.cursor.is_none() {
                    return Ok(());
                }
                listing.pack_behind(index);
                self.next_page(&dir, &mut listing).await?;
                continue;
            }
            at += 1;
            let packed = listing.packed.ends.len();
            let fits = match index.checked_sub(packed) {
                None => {
                    let Some(listed) = listing.packed.get(index) else { return Err(Errno::EIO) };
                    self.pack(&dir, &listed, at, plus, out)
                }
                Some(index) => {
                    let names = listing.names.make_contiguous();
                    if plus && self.config.posix && packed + index >= told {
                        told = packed + self.tell(&dir, names, index, out.room()).await;
                    }
                    self.pack(&dir, &names[index], at, plus, out)
                }
            };
            if !fits {
                return Ok(());
            }
        }
    }

    fn next_page<'a>(&'a self, dir: &'a OpenDir, listing: &'a mut Listing) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let path = self.tree().path(dir.inode.id)?;
            let begun = self.begin_listing(dir.inode.id);
            let asked = begun.at;
            let mut gone_since = begun.deleted.clone();
            let (entries, cursor) = match self.remote.list(path.clone(), listing.cursor.unwrap_or(0)).await {
                // Others emptied it, but it has files that the store does not have yet.
                Err(error) if gone(&error) && self.tree().is_local(&dir.inode) => (Vec::new(), None),
                other => other?,
            };
            if listing.cursor.is_none() && cursor.is_none_or(|cursor| cursor == 0) {
                self.note_listing(dir.inode.id, begun, &entries);
            }
            gone_since.extend(self.deletions.below(dir.inode.id));
            for entry in entries {
                let legal = Self::new_name(dir.inode.id, entry.name.as_bytes()).is_ok();
                if legal && !gone_since.contains(&entry.name) {
                    listing.names.push_back(Listed {
                        name: entry.name,
                        meta: entry.meta,
                        asked: Some(asked),
                        told: None,
                        unknown: false,
                    });
                }
            }
            listing.started = true;
            listing.cursor = cursor.filter(|&cursor| cursor != 0);
            if listing.cursor.is_none() {
                self.add_local(dir, listing);
            }
            Ok(())
        })
    }

    /// Adds what the store does not have yet: files, and the directories that only such files keep alive.
    fn add_local(&self, dir: &OpenDir, listing: &mut Listing) {
        let tree = self.tree();
        let mut local: HashMap<String, Arc<Inode>> = tree.children(dir.inode.id).into_iter().collect();
        local.retain(|_, inode| inode.kind == Kind::Dir || inode.state().is_local());
        if local.is_empty() {
            return;
        }
        let listed = listing.packed.iter().chain(listing.names.iter().map(|listed| listed.name.as_str()));
        listed.for_each(|name| drop(local.remove(name)));
        for (name, inode) in local {
            if !tree.is_local(&inode) {
                continue;
            }
            let state = inode.state();
            let meta = Meta {
                kind: inode.kind,
                size: state.content.size(),
                mtime_ns: Some(state.mtime_ns),
                etag: None,
                marker: None,
                details: None,
            };
            listing.names.push_back(Listed { name, meta, asked: None, told: None, unknown: false });
        }
    }

    /// Asks for the attributes of the names from `index` on that fit into `room` bytes of a reply, as far as the listing did
    /// not tell them and we do not know them. Returns up to which name everything was asked.
    fn tell<'a>(
        &'a self,
        dir: &'a OpenDir,
        names: &'a mut [Listed],
        index: usize,
        room: usize,
    ) -> BoxFuture<'a, usize> {
        Box::pin(async move {
            let (mut end, mut len) = (index, 0);
            while end < names.len() && end - index < TOLD_AT_ONCE && (end == index || len < room) {
                len += ENTRY_LEN + names[end].name.len();
                end += 1;
            }
            let wanted: Vec<(usize, String, Kind)> = {
                let tree = self.tree();
                let wanted = (index..end).filter(|&at| self.is_untold(&tree, dir.inode.id, &names[at]));
                let path = |at: usize| tree.path_of(dir.inode.id, &names[at].name).ok();
                wanted.filter_map(|at| Some((at, path(at)?, names[at].meta.kind))).collect()
            };
            let asked = Instant::now();
            let answers = join_all(wanted.iter().map(|(_, path, kind)| self.tell_one(path, *kind))).await;
            for ((at, path, _), answer) in wanted.into_iter().zip(answers) {
                match answer {
                    Ok(meta) => (names[at].meta, names[at].told) = (meta, Some(asked)),
                    // One name's trouble is not the listing's; who looks it up is told.
                    Err(error) => {
                        log::debug!("the attributes of {path:?} are not listed: {error}");
                        names[at].unknown = true;
                    }
                }
            }
            end
        })
    }

    /// Whether the attributes of a name are in neither the listing nor our memory.
    fn is_untold(&self, tree: &Tree, parent: NodeId, listed: &Listed) -> bool {
        let known = || {
            tree.child(parent, &listed.name).is_some_and(|inode| {
                let state = inode.state();
                inode.kind == listed.meta.kind && self.knows(&state) && state.agrees(&listed.meta)
            })
        };
        listed.asked.is_some() && listed.meta.details.is_none() && !listed.unknown && !known()
    }

    /// The file type of a name, 0 if it is not known.
    fn listed_type(&self, listed: &Listed) -> u32 {
        let default = if self.config.posix { 0 } else { libc::S_IFREG };
        type_of(&listed.meta).unwrap_or(default)
    }

    /// Packs one name. False: it does not fit.
    fn pack(&self, dir: &OpenDir, listed: &Listed, next_offset: u64, plus: bool, out: &mut impl DirSink) -> bool {
        let name = listed.name.as_bytes();
        let parent = dir.inode.id;
        if !plus {
            let known = self.tree().child(parent, &listed.name);
            let (ino, file_type) = match known.filter(|inode| inode.is(&listed.meta)) {
                Some(inode) => (inode.id.0, inode.file_type),
                None => (stand_in_ino(parent, &listed.name), self.listed_type(listed)),
            };
            return out.add(&DirEntry { ino, next_offset, kind: dirent_type(file_type), name });
        }
        if !out.fits_plus(name.len()) {
            return false;
        }
        let inode = {
            let mut tree = self.tree();
            let known = tree.child(parent, &listed.name);
            let inode = match (listed.asked, known) {
                (None, known) => known,
                // What is known is fresh, or there was no answer (`tell`).
                (Some(_), known) if self.config.posix && listed.meta.details.is_none() => {
                    known.filter(|_| !listed.unknown)
                }
                // Changed or removed through us since the listing was asked for: the name alone is told, not what it was.
                (Some(asked), None) if !self.listings.vouches(parent, &listed.name, listed.told.unwrap_or(asked)) => {
                    None
                }
                (Some(asked), None) if tree.removed_since(parent, &listed.name, asked) => None,
                (Some(asked), _) => tree.adopt(parent, &listed.name, &listed.meta, listed.told.unwrap_or(asked)).ok(),
            };
            if let Some(inode) = &inode {
                tree.remember(inode.id);
            }
            inode
        };
        let (entry, ino, file_type) = match &inode {
            Some(inode) => (self.entry(inode), inode.id.0, inode.file_type),
            None => {
                let (ino, file_type) = (stand_in_ino(parent, &listed.name), self.listed_type(listed));
                (self.no_entry(ino, file_type), ino, file_type)
            }
        };
        let fits = out.add_plus(&DirEntry { ino, next_offset, kind: dirent_type(file_type), name }, &entry);
        if let Some(inode) = inode.filter(|_| !fits) {
            self.tree().forget(inode.id, 1);
        }
        fits
    }

    /// The entry part of a READDIRPLUS name that is not looked up.
    fn no_entry(&self, ino: u64, file_type: u32) -> Entry {
        Entry {
            nodeid: NodeId(0),
            generation: 0,
            attr: crate::fs::Attr { ino, mode: file_type, ..Default::default() },
            entry_timeout: std::time::Duration::ZERO,
            attr_timeout: std::time::Duration::ZERO,
        }
    }
}

/// An inode number for a name that has no nodeid yet: stable, and far from the numbers of nodeids.
fn stand_in_ino(parent: NodeId, name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (parent.0, name).hash(&mut hasher);
    hasher.finish() | 1 << 63
}
