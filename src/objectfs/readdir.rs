//! Reading directories. A handle knows which name stood where (`scan`), so that cookies stay valid while entries come and go; a
//! listing carries attributes, so that `ls -l` asks for nothing else; attributes that the mount keeps and the store does not list are
//! asked for name by name, those of a reply at once.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;

use futures::future::join_all;

use super::attributes::type_of;
use super::core::{CachePolicy, Core};
use super::handles::OpenDir;
use super::inode::Inode;
use super::listings::{JUST_NOW, TRUST_MAX};
use super::lookup::{dirent_type, gone};
use super::scan::{Again, Found, Listed, Next, Scan};
use super::tree::Tree;
use crate::fs::flags::fopen;
use crate::fs::{DirEntry, DirSink, Entry, Errno, Handle, NodeId, Opened, Result};
use crate::store::{Kind, ListEntry, Meta, Page, Store, StoreErrorKind};

/// `.` and `..` come before the names.
const DOTS: u64 = 2;

/// Most names whose attributes are asked for at once.
const TOLD_AT_ONCE: usize = 32;

/// Length of a READDIRPLUS entry in bytes, without its name.
const ENTRY_LEN: usize = 152;

/// Most requests for one page that is listed again, into which many names have come.
const AGAIN_MAX: usize = 8;

impl<S: Store> Core<S> {
    /// FUSE_OPENDIR.
    pub(super) async fn opendir(&self, nodeid: NodeId) -> Result<Opened> {
        let inode = self.inode(nodeid)?;
        inode.dir()?;
        let fresh = self.is_fresh(inode.state().asked);
        if !fresh {
            self.revalidate(&inode).await?;
        }
        let scan = async_lock::Mutex::new(self.come_along(&inode));
        let handle = self.handles.open_dir(OpenDir { inode, scan })?;
        let flags = match self.config.cache {
            CachePolicy::Never | CachePolicy::Auto => 0,
            CachePolicy::Metadata | CachePolicy::Always => fopen::CACHE_DIR | fopen::KEEP_CACHE,
        };
        Ok(Opened { handle: Some(handle), flags })
    }

    /// The names of a directory that came along with the lookup of just now, which belongs to the same opendir(3).
    fn come_along(&self, inode: &Arc<Inode>) -> Scan {
        let mut scan = Scan::default();
        let asked = {
            let mut state = inode.state();
            let just_now = state.looked_up.take().is_some_and(|at| at.elapsed() < JUST_NOW);
            state.asked.filter(|&asked| just_now && self.is_fresh(Some(asked)))
        };
        if let Some(asked) = asked
            && let Some(names) = self.listings.whole(inode.id, asked)
        {
            let names = names.into_iter().map(|(name, meta)| Listed::of_store(name, meta, asked));
            scan.push(names.collect(), None, Next::End);
            self.add_local(inode.id, &mut scan);
            scan.ready = Some(asked);
        }
        scan
    }

    /// FUSE_RELEASEDIR.
    pub(super) async fn releasedir(&self, nodeid: NodeId, handle: Handle) -> Result<()> {
        let dir = self.handles.dir(nodeid, handle)?;
        self.handles.close_dir(handle);
        self.end_scan(&mut *dir.scan.lock().await);
        Ok(())
    }

    /// Nobody goes on with the listing.
    fn end_scan(&self, scan: &mut Scan) {
        if let Next::At(cursor, _) = *scan.next() {
            self.end_listing(cursor);
        }
        *scan = Scan::default();
    }

    fn end_listing(&self, cursor: u64) {
        self.spawn(|core| async move {
            // It would end by itself.
            let _ = core.remote.list_end(cursor).await;
        });
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
        let mut scan = dir.scan.lock().await;
        let ready = scan.ready.take().is_some_and(|asked| {
            let fresh = self.is_fresh(Some(asked)) && asked.elapsed() < TRUST_MAX;
            fresh && self.listings.is_as_listed(nodeid, asked)
        });
        if offset == 0 && *scan.next() != Next::Start && !ready {
            // rewinddir(3): the directory as it is now.
            self.end_scan(&mut scan);
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
            if index >= scan.len() {
                if *scan.next() == Next::End {
                    return Ok(());
                }
                self.next_page(&dir, &mut scan).await?;
                continue;
            }
            if let Found::Elsewhere(page, again) = scan.find(index) {
                self.list_again(&dir, &mut scan, page, again).await?;
            }
            let Some((first, names)) = scan.page(index) else { return Err(Errno::EIO) };
            at += 1;
            if plus && self.config.posix && index >= told {
                told = first + self.tell(&dir, names, index - first, out.room()).await;
            }
            // Without one: it is gone.
            if let Some(Some(listed)) = names.get(index - first)
                && !self.pack(&dir, listed, at, plus, out)
            {
                return Ok(());
            }
        }
    }

    fn next_page<'a>(&'a self, dir: &'a OpenDir, scan: &'a mut Scan) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let path = self.tree().path(dir.inode.id)?;
            let (cursor, from) = match scan.next() {
                Next::At(cursor, from) => (*cursor, from.clone()),
                Next::Start | Next::End => (0, None),
            };
            let mut begun = self.begin_listing(dir.inode.id);
            let page = match self.remote.page(path.clone(), cursor, None).await {
                // Nobody went on with it for long.
                Err(error) if error.kind == StoreErrorKind::Stale && from.is_some() => {
                    begun = self.begin_listing(dir.inode.id);
                    self.remote.page(path, 0, from.clone()).await
                }
                other => other,
            };
            let page = match page {
                // Others emptied it, but it has files that the store does not have yet.
                Err(error) if gone(&error) && self.tree().is_local(&dir.inode) => {
                    Page { entries: Vec::new(), cursor: None, after: None }
                }
                other => other?,
            };
            let (asked, deleted) = (begun.at, begun.deleted.clone());
            if cursor == 0 && page.cursor.is_none() {
                self.note_listing(dir.inode.id, begun, &page.entries);
            }
            // What begins or ends anywhere cannot be listed again; nor can a directory of one page, which is kept.
            let (begins, ends) = (cursor == 0 || from.is_some(), page.after.is_some() || page.cursor.is_none());
            let resumes = from.is_some() || page.after.is_some();
            let again = (begins && ends && resumes).then(|| Again { from, until: page.after.clone() });
            let next = page.cursor.map_or(Next::End, |cursor| Next::At(cursor, page.after));
            let last = next == Next::End;
            let names = self.legal(dir.inode.id, page.entries, asked, deleted);
            scan.push(names, again, next);
            if last {
                self.add_local(dir.inode.id, scan);
            }
            Ok(())
        })
    }

    /// The names of a page that the guest may see.
    fn legal(&self, dir: NodeId, entries: Vec<ListEntry>, asked: Instant, mut deleted: HashSet<String>) -> Vec<Listed> {
        deleted.extend(self.deletions.below(dir));
        let legal =
            |entry: &ListEntry| Self::new_name(dir, entry.name.as_bytes()).is_ok() && !deleted.contains(&entry.name);
        let entries = entries.into_iter().filter(legal);
        entries.map(|entry| Listed::of_store(entry.name, entry.meta, asked)).collect()
    }

    /// Brings back a page that is not kept, as it is now.
    fn list_again<'a>(
        &'a self,
        dir: &'a OpenDir,
        scan: &'a mut Scan,
        page: usize,
        again: Option<Again>,
    ) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let Some(Again { mut from, until }) = again else {
                log::error!("a directory of a store that cannot list from a name on is too large to be read backwards");
                return Err(Errno::EIO);
            };
            let path = self.tree().path(dir.inode.id)?;
            let mut names = Vec::new();
            for _ in 0..AGAIN_MAX {
                let begun = self.begin_listing(dir.inode.id);
                let listed = self.remote.page(path.clone(), 0, from).await?;
                if let Some(cursor) = listed.cursor {
                    self.end_listing(cursor);
                }
                names.extend(self.legal(dir.inode.id, listed.entries, begun.at, begun.deleted));
                // More came into it than a page takes.
                from = listed.after.filter(|after| until.as_ref().is_none_or(|until| after < until));
                if listed.cursor.is_none() || from.is_none() {
                    break;
                }
            }
            scan.refill(page, names);
            Ok(())
        })
    }

    /// Adds what the store does not have yet: files, and the directories that only such files keep alive.
    fn add_local(&self, dir: NodeId, scan: &mut Scan) {
        let tree = self.tree();
        let mut local: HashMap<String, Arc<Inode>> = tree.children(dir).into_iter().collect();
        local.retain(|_, inode| inode.kind == Kind::Dir || inode.state().is_local());
        if local.is_empty() {
            return;
        }
        scan.remove_listed(&mut local);
        if scan.forgets() {
            // Of so many names not all are remembered: only what no store can have told.
            local.retain(|_, inode| {
                let state = inode.state();
                inode.kind == Kind::File && state.content.base().is_none() && !state.shadows
            });
        }
        local.retain(|_, inode| tree.is_local(inode));
        let names = local.into_iter().map(|(name, inode)| {
            let state = inode.state();
            let meta = Meta {
                kind: inode.kind,
                size: state.content.size(),
                mtime_ns: Some(state.mtime_ns),
                etag: None,
                marker: None,
                details: None,
            };
            Listed::of_memory(name, meta)
        });
        scan.push(names.collect(), None, Next::End);
    }

    /// Asks for the attributes of the names from `index` on that fit into `room` bytes of a reply, as far as the listing did
    /// not tell them and we do not know them. Returns up to which name everything was asked.
    fn tell<'a>(
        &'a self,
        dir: &'a OpenDir,
        names: &'a mut [Option<Listed>],
        index: usize,
        room: usize,
    ) -> BoxFuture<'a, usize> {
        Box::pin(async move {
            let (mut end, mut len) = (index, 0);
            while end < names.len() && end - index < TOLD_AT_ONCE && (end == index || len < room) {
                len += names[end].as_ref().map_or(0, |listed| ENTRY_LEN + listed.name.len());
                end += 1;
            }
            let wanted: Vec<(usize, String, Kind)> = {
                let tree = self.tree();
                let listed = (index..end).filter_map(|at| Some((at, names[at].as_ref()?)));
                let wanted = listed.filter(|(_, listed)| self.is_untold(&tree, dir.inode.id, listed));
                let path = |listed: &Listed| tree.path_of(dir.inode.id, &listed.name).ok();
                wanted.filter_map(|(at, listed)| Some((at, path(listed)?, listed.meta.kind))).collect()
            };
            let asked = Instant::now();
            let answers = join_all(wanted.iter().map(|(_, path, kind)| self.tell_one(path, *kind))).await;
            for ((at, path, _), answer) in wanted.into_iter().zip(answers) {
                let Some(listed) = &mut names[at] else { continue };
                match answer {
                    Ok(meta) => (listed.meta, listed.told) = (meta, Some(asked)),
                    // One name's trouble is not the listing's; who looks it up is told.
                    Err(error) => {
                        log::debug!("the attributes of {path:?} are not listed: {error}");
                        listed.unknown = true;
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
