//! Reading the directories that mounts begin in: their own names first, then those of the store, but for the hidden ones.
//!
//! Cookies: 1 and 2 are after `.` and `..`, the next after each of the directory's own names, and those of the store are
//! as many higher than the store has them.

use std::time::Duration;

use super::numbers::{outer, outer_node};
use super::points::Point;
use crate::fs::{Attr, DirEntry, DirSink, Entry, NodeId};
use crate::store::MountId;

/// Cookies of `.` and `..`, with the store as here.
pub(super) const DOTS: u64 = 2;

/// What a store lists, as the guest is to see it.
pub(super) struct Overlay<'a, D> {
    pub out: &'a mut D,
    pub mount: MountId,
    /// The directory, if mounts begin in it.
    pub point: Option<&'a Point>,
    /// How much higher cookies are.
    pub shift: u64,
    /// Nodeids (the mount's) of hidden names that were counted as looked up.
    pub hidden: Vec<NodeId>,
}

impl<'a, D: DirSink> Overlay<'a, D> {
    fn hides(&self, name: &[u8]) -> bool {
        self.point.is_some_and(|point| point.hides(name))
    }

    fn outer<'n>(&self, entry: &DirEntry<'n>) -> DirEntry<'n> {
        DirEntry { ino: outer(self.mount, entry.ino), next_offset: entry.next_offset + self.shift, ..*entry }
    }
}

impl<D: DirSink> DirSink for Overlay<'_, D> {
    fn room(&self) -> usize {
        self.out.room()
    }

    fn add(&mut self, entry: &DirEntry<'_>) -> bool {
        self.hides(entry.name) || self.out.add(&self.outer(entry))
    }

    fn fits_plus(&self, name_len: usize) -> bool {
        self.out.fits_plus(name_len)
    }

    fn add_plus(&mut self, name: &DirEntry<'_>, entry: &Entry) -> bool {
        if self.hides(name.name) {
            if entry.nodeid.0 != 0 {
                self.hidden.push(entry.nodeid);
            }
            return true;
        }
        let seen = outer_entry(self.mount, *entry);
        self.out.add_plus(&self.outer(name), &seen)
    }
}

/// Takes nothing: what a listing is begun anew with.
pub(super) struct Nothing;

impl DirSink for Nothing {
    fn add(&mut self, _: &DirEntry<'_>) -> bool {
        false
    }

    fn fits_plus(&self, _: usize) -> bool {
        false
    }

    fn add_plus(&mut self, _: &DirEntry<'_>, _: &Entry) -> bool {
        false
    }
}

/// Attributes as the guest sees them.
pub(super) fn outer_attr(mount: MountId, attr: Attr) -> Attr {
    Attr { ino: outer(mount, attr.ino), ..attr }
}

/// An answer to a lookup as the guest sees it.
pub(super) fn outer_entry(mount: MountId, entry: Entry) -> Entry {
    Entry { nodeid: outer_node(mount, entry.nodeid), attr: outer_attr(mount, entry.attr), ..entry }
}

/// The READDIRPLUS part of `.` and `..`.
pub(super) fn dot(ino: u64) -> Entry {
    Entry {
        nodeid: NodeId(0),
        generation: 0,
        attr: Attr { ino, mode: libc::S_IFDIR, ..Attr::default() },
        entry_timeout: Duration::ZERO,
        attr_timeout: Duration::ZERO,
    }
}
