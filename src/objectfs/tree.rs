//! Names: which nodeid has which parent and which name. The one place that knows paths.
//!
//! Invariants
//! (1) A node with a place is in its parent's `children` under that name, and the other way round.
//! (2) A node stays while the guest holds lookups on it, while it has children, while it is open, and while the store
//!     lacks some of its bytes or attributes; the root stays for ever.
//! (3) nodeids are never used twice.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::attributes::Birth;
use super::due::DueList;
use super::inode::Inode;
use super::listings::Listings;
use crate::cache::ContentId;
use crate::fs::{Errno, NodeId, Result};
use crate::metrics::MountMeter;
use crate::store::path::{NAME_MAX, PATH_MAX};
use crate::store::{Attributes, Details, Kind, Meta};

/// Start of the names under which the objects of unlinked open files are kept.
pub const HIDDEN_PREFIX: &str = ".ovfs-unlinked-";

/// Start of the names in the root that are ours: nobody sees or makes them.
const RESERVED_PREFIX: &str = ".ovfs-";

/// Whether the name is one of ours.
pub fn is_reserved(parent: NodeId, name: &str) -> bool {
    parent == NodeId::ROOT && name.starts_with(RESERVED_PREFIX)
}

#[derive(Debug)]
struct Node {
    inode: Arc<Inode>,
    /// Parent and name; `None` for the root and for what was unlinked.
    place: Option<(NodeId, String)>,
    children: HashMap<String, NodeId>,
    nlookup: u64,
    /// When it got its name: a store that was asked before may not have it yet.
    placed: Instant,
    /// Names below that were removed through us, and when: a store that was asked before may still have them.
    removed: HashMap<String, Instant>,
    /// When names were last dropped from `removed`, for it is bounded: what was asked before is not known any more.
    removed_dropped: Option<Instant>,
}

/// Most removed names that a directory remembers.
const REMOVED_MAX: usize = 4096;

/// All nodes.
#[derive(Debug)]
pub struct Tree {
    nodes: HashMap<NodeId, Node>,
    next_id: u64,
    next_content: u64,
    /// Modification time of directories of which the store knows none.
    start_ns: i64,
    limit: usize,
    /// Where directories are noted whose changed times the store is to keep.
    pending: Arc<DueList>,
    /// What listings told, which changes of names outdate.
    listings: Arc<Listings>,
    meter: MountMeter,
}

impl Tree {
    /// Only the root, with room for `limit` nodes, which `meter` counts.
    pub fn new(start_ns: i64, limit: usize, meter: MountMeter) -> Tree {
        let mut tree = Tree {
            nodes: HashMap::new(),
            next_id: 2,
            next_content: 1,
            start_ns,
            limit,
            pending: Arc::new(super::save::list()),
            listings: Arc::default(),
            meter,
        };
        // It has no object that could keep attributes: those that are set last as long as this.
        let attributes = Attributes { xattrs: Some(BTreeMap::new()), ..Attributes::default() };
        let details = Some(Box::new(Details { attributes, ..Details::default() }));
        let meta = Meta { kind: Kind::Dir, size: 0, mtime_ns: None, etag: None, marker: Some(true), details };
        let root = Inode::of_store(NodeId::ROOT, &meta, Instant::now(), ContentId(0), start_ns);
        tree.nodes.insert(NodeId::ROOT, Node::new(root, None));
        tree.count();
        tree
    }

    fn count(&self) {
        self.meter.nodeids.store(self.nodes.len() as u64, Ordering::Relaxed);
    }

    /// The inodes whose changed attributes wait to be stored.
    pub fn pending(&self) -> Arc<DueList> {
        Arc::clone(&self.pending)
    }

    /// What listings told.
    pub fn listings(&self) -> Arc<Listings> {
        Arc::clone(&self.listings)
    }

    /// A number for bytes that had none yet.
    pub fn content_id(&mut self) -> ContentId {
        self.next_content += 1;
        ContentId(self.next_content)
    }

    fn node(&self, id: NodeId) -> Result<&Node> {
        self.nodes.get(&id).ok_or(Errno::EBADF)
    }

    fn node_mut(&mut self, id: NodeId) -> Result<&mut Node> {
        self.nodes.get_mut(&id).ok_or(Errno::EBADF)
    }

    /// The inode behind `id`.
    ///
    /// # Errors
    /// EBADF: the guest does not hold such a nodeid.
    pub fn inode(&self, id: NodeId) -> Result<Arc<Inode>> {
        Ok(Arc::clone(&self.node(id)?.inode))
    }

    /// How many nodes there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// All inodes.
    pub fn inodes(&self) -> impl Iterator<Item = &Arc<Inode>> {
        self.nodes.values().map(|node| &node.inode)
    }

    /// The path of `id`, `""` for the root.
    ///
    /// # Errors
    /// EBADF: unknown. ENOENT: unlinked, or below something unlinked.
    pub fn path(&self, id: NodeId) -> Result<String> {
        let mut names: Vec<&str> = Vec::new();
        let mut at = id;
        while at != NodeId::ROOT {
            let (parent, name) = self.node(at)?.place.as_ref().ok_or(Errno::ENOENT)?;
            names.push(name);
            at = *parent;
        }
        names.reverse();
        Ok(names.join("/"))
    }

    /// The path that `name` below `parent` has.
    ///
    /// # Errors
    /// As [`Tree::path`]; ENOTDIR; ENAMETOOLONG: longer than a key can be.
    pub fn path_of(&self, parent: NodeId, name: &str) -> Result<String> {
        self.node(parent)?.inode.dir()?;
        let path = crate::store::path::join(&self.path(parent)?, name);
        if path.len() > PATH_MAX || name.len() > NAME_MAX { Err(Errno::ENAMETOOLONG) } else { Ok(path) }
    }

    /// The node called `name` below `parent`, if it is known.
    pub fn child(&self, parent: NodeId, name: &str) -> Option<Arc<Inode>> {
        let id = self.nodes.get(&parent)?.children.get(name)?;
        Some(Arc::clone(&self.nodes.get(id)?.inode))
    }

    /// The known nodes below `parent`.
    pub fn children(&self, parent: NodeId) -> Vec<(String, Arc<Inode>)> {
        let Some(node) = self.nodes.get(&parent) else { return Vec::new() };
        let inode = |id: &NodeId| self.nodes.get(id).map(|child| Arc::clone(&child.inode));
        node.children.iter().filter_map(|(name, id)| Some((name.clone(), inode(id)?))).collect()
    }

    /// The parent of `id`: itself for the root and for what was unlinked.
    pub fn parent(&self, id: NodeId) -> NodeId {
        self.nodes.get(&id).and_then(|node| node.place.as_ref()).map_or(id, |(parent, _)| *parent)
    }

    /// Whether `name` below `parent` was removed through us after `asked`, or may have been.
    pub fn removed_since(&self, parent: NodeId, name: &str, asked: Instant) -> bool {
        self.nodes.get(&parent).is_some_and(|node| {
            let at = node.removed.get(name).copied().max(node.removed_dropped);
            at.is_some_and(|at| at >= asked)
        })
    }

    /// Whether `id` got its name after `asked`.
    pub fn placed_since(&self, id: NodeId, asked: Instant) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.placed >= asked)
    }

    /// Whether `inode` came to its name, or its object (of a directory, one below) into the store, after the store was asked: then it
    /// could not know.
    pub fn made_since(&self, inode: &Inode, asked: Instant) -> bool {
        let committed = |inode: &Inode| inode.state().committed.is_some_and(|at| at >= asked);
        let below = || inode.kind == Kind::Dir && self.below(inode.id).iter().any(|inode| committed(inode));
        self.placed_since(inode.id, asked) || committed(inode) || below()
    }

    /// Notes that `name` below `parent` is no more.
    pub fn mark_removed(&mut self, parent: NodeId, name: String) {
        self.listings.outdate(parent, &name);
        if let Some(node) = self.nodes.get_mut(&parent) {
            let now = Instant::now();
            if node.removed.len() >= REMOVED_MAX {
                node.removed.clear();
                node.removed_dropped = Some(now);
            }
            node.removed.insert(name, now);
        }
    }

    /// Notes that names below `parent` change through us: its modification time is now.
    pub fn mark_changed(&self, parent: NodeId) {
        if let Some(node) = self.nodes.get(&parent) {
            let mut state = node.inode.state();
            state.touch();
            if state.posix.mtime_kept && !state.unlinked {
                let now = state.mtime_ns;
                state.posix.change(now);
                self.pending.note(parent);
            }
        }
    }

    fn place(
        &mut self,
        parent: NodeId,
        name: &str,
        make: impl FnOnce(&mut Tree, NodeId) -> Inode,
    ) -> Result<Arc<Inode>> {
        if self.nodes.len() >= self.limit {
            return Err(Errno::ENOMEM);
        }
        self.node(parent)?.inode.dir()?;
        let id = NodeId(self.next_id);
        self.next_id += 1;
        let node = Node::new(make(self, id), Some((parent, name.to_owned())));
        let inode = Arc::clone(&node.inode);
        self.nodes.insert(id, node);
        self.count();
        self.node_mut(parent)?.children.insert(name.to_owned(), id);
        Ok(inode)
    }

    /// Takes in what the store said of `name` below `parent` when asked at `asked`: updates the node that is there, or puts
    /// one there. A node of another kind or type loses its name, unless it is known from later than that.
    ///
    /// # Errors
    /// EBADF: `parent` is gone. ENOMEM: too many nodes.
    pub fn adopt(&mut self, parent: NodeId, name: &str, meta: &Meta, asked: Instant) -> Result<Arc<Inode>> {
        if let Some(inode) = self.child(parent, name) {
            if inode.is(meta) {
                let fresh = self.content_id();
                let mut state = inode.state();
                state.observe(inode.kind, meta, asked, || fresh);
                state.stands(asked);
                drop(state);
                return Ok(inode);
            }
            let later = inode.state().named_since(asked) || self.made_since(&inode, asked);
            if later || self.is_local(&inode) {
                if !later && inode.kind == Kind::Dir {
                    // It is there for what the guest keeps in it, and has no object of its own.
                    inode.state().absent(asked);
                }
                return Ok(inode);
            }
            self.detach(inode.id);
        }
        let start_ns = self.start_ns;
        self.place(parent, name, |tree, id| {
            let content = tree.content_id();
            Inode::of_store(id, meta, asked, content, start_ns)
        })
    }

    /// Puts a new, empty file at `name` below `parent`, which must be free.
    ///
    /// # Errors
    /// EEXIST; EBADF: `parent` is gone; ENOMEM: too many nodes.
    pub fn create(&mut self, parent: NodeId, name: &str, exclusive: bool, birth: Birth) -> Result<Arc<Inode>> {
        if self.child(parent, name).is_some() {
            return Err(Errno::EEXIST);
        }
        let inode = self.place(parent, name, |_, id| Inode::new_file(id, exclusive, birth))?;
        self.listings.outdate(parent, name);
        self.mark_changed(parent);
        Ok(inode)
    }

    /// Takes the name from a node, and from all below it; their numbers and their handles stay.
    pub fn detach(&mut self, id: NodeId) {
        for inode in self.below(id) {
            self.detach_one(inode.id);
        }
        self.detach_one(id);
    }

    fn detach_one(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        {
            let mut state = node.inode.state();
            state.unlinked = true;
            if state.open == 0 {
                state.let_go();
            }
        }
        if let Some((parent, name)) = node.place.take() {
            if let Some(above) = self.nodes.get_mut(&parent)
                && above.children.get(&name) == Some(&id)
            {
                above.children.remove(&name);
            }
            self.mark_removed(parent, name);
        }
        self.reap(id);
    }

    /// Moves a node to `name` below `parent`; whatever has that name loses it.
    ///
    /// # Errors
    /// EBADF: the node or `parent` is gone.
    pub fn rename(&mut self, id: NodeId, parent: NodeId, name: &str) -> Result<()> {
        if let Some(old) = self.child(parent, name).filter(|old| old.id != id) {
            self.detach(old.id);
        }
        self.node(parent)?;
        let node = self.node_mut(id)?;
        node.placed = Instant::now();
        let old = node.place.replace((parent, name.to_owned()));
        if let Some((old_parent, old_name)) = &old
            && let Some(node) = self.nodes.get_mut(old_parent)
        {
            node.children.remove(old_name);
        }
        self.node_mut(parent)?.children.insert(name.to_owned(), id);
        self.mark_changed(parent);
        if self.node(id)?.inode.kind == Kind::Dir {
            // What is below may have other versions now.
            self.listings.outdate_all();
        }
        self.listings.outdate(parent, name);
        if let Some((old_parent, old_name)) = old {
            self.mark_removed(old_parent, old_name);
            self.mark_changed(old_parent);
            self.reap(old_parent);
        }
        Ok(())
    }

    /// Whether `id` is `ancestor` or lies below it.
    pub fn is_below(&self, id: NodeId, ancestor: NodeId) -> bool {
        let mut at = id;
        loop {
            if at == ancestor {
                return true;
            }
            match self.nodes.get(&at).and_then(|node| node.place.as_ref()) {
                Some((parent, _)) => at = *parent,
                None => return false,
            }
        }
    }

    /// Whether what the guest did to `inode`, or to something below it, is more recent than anything that the store can say: a
    /// directory stays while it holds files that the store does not have yet.
    pub fn is_local(&self, inode: &Inode) -> bool {
        let dirty = |inode: &Arc<Inode>| {
            let state = inode.state();
            state.content.is_dirty() && !state.unlinked
        };
        inode.state().is_local() || (inode.kind == Kind::Dir && self.below(inode.id).iter().any(dirty))
    }

    /// All inodes below `id`, without itself.
    pub fn below(&self, id: NodeId) -> Vec<Arc<Inode>> {
        let mut found = Vec::new();
        let mut dirs = vec![id];
        while let Some(dir) = dirs.pop() {
            let Some(node) = self.nodes.get(&dir) else { continue };
            for child in node.children.values() {
                if let Some(node) = self.nodes.get(child) {
                    found.push(Arc::clone(&node.inode));
                    dirs.push(*child);
                }
            }
        }
        found
    }

    /// The guest learnt of `id` once more. False: it has just forgotten it for good, so it must not be told that number again.
    pub fn remember(&mut self, id: NodeId) -> bool {
        let node = self.nodes.get_mut(&id);
        node.map(|node| node.nlookup = node.nlookup.saturating_add(1)).is_some()
    }

    /// The guest forgets `id` so many times; more than it ever learnt is as much as that.
    pub fn forget(&mut self, id: NodeId, nlookup: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.nlookup = node.nlookup.saturating_sub(nlookup);
            self.reap(id);
        }
    }

    /// Forgets all lookups: the session is over.
    pub fn forget_all(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in ids {
            self.forget(id, u64::MAX);
        }
    }

    /// Removes `id` if nothing holds it, and then its parents likewise.
    pub fn reap(&mut self, id: NodeId) {
        let mut at = id;
        while let Some(node) = self.nodes.get(&at) {
            if at == NodeId::ROOT || node.nlookup > 0 || !node.children.is_empty() {
                return;
            }
            let state = node.inode.state();
            let dirty = state.content.is_dirty() || state.attributes_dirty() || state.saving;
            if state.open > 0 || (dirty && !state.unlinked) {
                return;
            }
            let ours = state.committed.is_some();
            drop(state);
            let Some(node) = self.nodes.remove(&at) else { return };
            self.count();
            let Some((parent, name)) = node.place else { return };
            if ours {
                // Nobody else remembers that it is newer than a listing.
                self.listings.outdate(parent, &name);
            }
            if let Some(above) = self.nodes.get_mut(&parent) {
                above.children.remove(&name);
            }
            at = parent;
        }
    }
}

impl Node {
    fn new(inode: Inode, place: Option<(NodeId, String)>) -> Node {
        Node {
            inode: Arc::new(inode),
            place,
            children: HashMap::new(),
            nlookup: 0,
            placed: Instant::now(),
            removed: HashMap::new(),
            removed_dropped: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> Meta {
        Meta { kind: Kind::Dir, size: 0, mtime_ns: None, etag: None, marker: Some(true), details: None }
    }

    fn file(etag: &str) -> Meta {
        Meta { kind: Kind::File, size: 3, mtime_ns: Some(1), etag: Some(etag.into()), marker: None, details: None }
    }

    #[test]
    fn a_rename_of_a_directory_moves_all_paths_below() {
        let mut tree = Tree::new(0, 100, MountMeter::default());
        let a = tree.adopt(NodeId::ROOT, "a", &dir(), Instant::now()).expect("a");
        let b = tree.adopt(a.id, "b", &dir(), Instant::now()).expect("b");
        let f = tree.adopt(b.id, "f", &file("1"), Instant::now()).expect("f");
        assert_eq!(tree.path(f.id).as_deref(), Ok("a/b/f"));
        tree.rename(a.id, NodeId::ROOT, "z").expect("rename");
        assert_eq!(tree.path(f.id).as_deref(), Ok("z/b/f"));
        assert!(tree.is_below(f.id, a.id));
        assert_eq!(tree.below(a.id).len(), 2);
    }

    #[test]
    fn nodes_go_when_nothing_holds_them_and_take_their_parents_along() {
        let mut tree = Tree::new(0, 100, MountMeter::default());
        let a = tree.adopt(NodeId::ROOT, "a", &dir(), Instant::now()).expect("a");
        let f = tree.adopt(a.id, "f", &file("1"), Instant::now()).expect("f");
        tree.remember(f.id);
        tree.remember(f.id);
        tree.forget(a.id, 5);
        assert_eq!(tree.len(), 3);
        tree.forget(f.id, 1);
        assert_eq!(tree.len(), 3);
        tree.forget(f.id, u64::MAX);
        assert_eq!(tree.len(), 1);
        tree.forget(NodeId::ROOT, u64::MAX);
        assert!(tree.inode(NodeId::ROOT).is_ok());
        assert_eq!(tree.inode(f.id).err(), Some(Errno::EBADF));
        assert!(!tree.remember(f.id));
    }

    #[test]
    fn another_version_gets_new_bytes_and_another_kind_a_new_number() {
        let mut tree = Tree::new(0, 100, MountMeter::default());
        let f = tree.adopt(NodeId::ROOT, "f", &file("1"), Instant::now()).expect("f");
        let before = (f.state().content.lineage(), f.id);
        tree.adopt(NodeId::ROOT, "f", &file("1"), Instant::now()).expect("same");
        assert_eq!((f.state().content.lineage(), f.id), before);
        let g = tree.adopt(NodeId::ROOT, "f", &file("2"), Instant::now()).expect("other");
        assert_eq!(g.id, f.id);
        assert_eq!(f.state().content.lineage(), before.0 + 1);
        tree.remember(f.id);
        let d = tree.adopt(NodeId::ROOT, "f", &dir(), Instant::now()).expect("dir");
        assert_ne!(d.id, f.id);
        assert_eq!(tree.path(f.id), Err(Errno::ENOENT));
    }

    #[test]
    fn the_number_of_nodes_has_a_bound() {
        let mut tree = Tree::new(0, 2, MountMeter::default());
        tree.adopt(NodeId::ROOT, "a", &file("1"), Instant::now()).expect("fits");
        assert_eq!(tree.adopt(NodeId::ROOT, "b", &file("1"), Instant::now()).err(), Some(Errno::ENOMEM));
    }
}
