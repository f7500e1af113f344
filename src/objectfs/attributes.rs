//! What a POSIX file system knows of a file beside its bytes: what the store said, and what the guest changed since.
//!
//! Pure state, no I/O; `save` brings changes to the store. Owners are numbered as in the store (`ids`). Without
//! [`super::Config::posix`] nothing here is ever changed, and every inode shows the mount's defaults.
//!
//! Invariants
//! (1) What the guest changed is not replaced by what the store says until the store has it.
//! (2) `revision` grows with every change; `stored` is the one that the store has.

use std::collections::BTreeMap;
use std::time::Instant;

use super::inode::{Inode, State, now_ns};
use crate::store::{Attributes, Details, Kind, Meta};

/// Permission bits of a mode: all that chmod(2) sets.
pub const PERMISSIONS: u32 = 0o7777;

/// A part of an inode's state. Times of access and modification are in [`State`] itself.
#[derive(Debug, Default)]
pub struct Posix {
    /// Permission bits; `None`: the mount's default.
    pub mode: Option<u32>,
    /// Owner; `None`: the mount's default.
    pub uid: Option<u32>,
    /// Group; `None`: the mount's default.
    pub gid: Option<u32>,
    /// Time of the last change of anything, in nanoseconds since the epoch.
    pub ctime_ns: i64,
    /// Extended attributes by their full names; `None`: the store did not tell.
    pub xattrs: Option<BTreeMap<String, Vec<u8>>>,
    /// The store keeps a modification time of ours, which must not grow older than the file.
    pub mtime_kept: bool,
    /// What the fields above say was told by the store, or set by us.
    pub known: bool,
    /// When the store was last asked about them, if its answer may still be used.
    pub asked: Option<Instant>,
    /// What else the store said of the object as it is; `None`: not asked since it changed.
    pub object: Option<Object>,
    revision: u64,
    stored: u64,
}

/// What a store says of an object, for whoever wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object {
    /// Content-Type.
    pub content_type: Option<String>,
    /// Version identifier.
    pub version_id: Option<String>,
}

/// What a new inode begins with.
#[derive(Clone, Copy, Debug)]
pub struct Birth {
    /// S_IFMT bits.
    pub file_type: u32,
    /// Permissions, owner and group in the store's numbers; `None`: the mount keeps none.
    pub owned: Option<Owned>,
}

/// Permissions and owners.
#[derive(Clone, Copy, Debug)]
pub struct Owned {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Birth {
    /// The attributes that the store is to keep of what is born now.
    pub fn attributes(&self) -> Option<Attributes> {
        let now = now_ns();
        self.owned.map(|owned| Attributes {
            mode: Some(self.file_type | owned.mode),
            uid: Some(owned.uid),
            gid: Some(owned.gid),
            atime_ns: Some(now),
            mtime_ns: Some(now),
            ctime_ns: Some(now),
            xattrs: Some(BTreeMap::new()),
        })
    }
}

/// The file type (S_IFMT bits) of what `meta` describes; `None`: it does not tell. Device nodes and types that do not exist are
/// regular files: what the store holds is bytes.
pub fn type_of(meta: &Meta) -> Option<u32> {
    if meta.kind == Kind::Dir {
        return Some(libc::S_IFDIR);
    }
    let mode = meta.details.as_ref()?.attributes.mode.unwrap_or(0);
    Some(match mode & libc::S_IFMT {
        special @ (libc::S_IFLNK | libc::S_IFIFO | libc::S_IFSOCK) => special,
        _ => libc::S_IFREG,
    })
}

/// What is on its way to the store, and how to note its arrival.
#[derive(Debug)]
pub struct Outgoing {
    /// The attributes; `None`: those that are there stay.
    pub attributes: Option<Box<Attributes>>,
    revision: u64,
}

impl Posix {
    /// Nothing known but a time.
    pub fn new(ctime_ns: i64) -> Posix {
        Posix { ctime_ns, ..Posix::default() }
    }

    /// Whether the store lacks a change.
    pub fn is_dirty(&self) -> bool {
        self.revision != self.stored
    }

    /// As a new inode has them, before the store knows of it.
    pub fn born(&mut self, birth: Birth) {
        let Some(owned) = birth.owned else { return };
        (self.mode, self.uid, self.gid) = (Some(owned.mode), Some(owned.uid), Some(owned.gid));
        self.xattrs = Some(BTreeMap::new());
        self.known = true;
    }

    /// The guest changed something, at `ctime_ns`.
    pub fn change(&mut self, ctime_ns: i64) {
        self.ctime_ns = ctime_ns;
        self.revision += 1;
    }

    /// The store has what `sent` carried. What changed since is still to be sent.
    pub fn arrived(&mut self, sent: &Outgoing) {
        self.stored = self.stored.max(sent.revision);
        self.mtime_kept |= sent.attributes.as_ref().is_some_and(|attributes| attributes.mtime_ns.is_some());
    }

    /// The store will never have what was changed; it is to be asked what there is.
    pub fn give_up(&mut self) {
        self.stored = self.revision;
        self.asked = None;
        self.known = false;
    }

    /// The object changed by our doing: this is what is said of it now, if anything.
    pub fn object_is(&mut self, meta: &Meta) {
        self.object = meta.details.as_deref().map(Object::from);
    }
}

impl From<&Details> for Object {
    fn from(details: &Details) -> Object {
        Object { content_type: details.content_type.clone(), version_id: details.version_id.clone() }
    }
}

impl State {
    /// Whether the store lacks a change of the attributes of what still has a name.
    pub fn attributes_dirty(&self) -> bool {
        self.posix.is_dirty() && !self.unlinked
    }

    /// Takes in what the store said of an object beside its bytes.
    pub fn told(&mut self, details: &Details, asked: Instant) {
        self.posix.object = Some(details.into());
        self.posix.asked = Some(asked);
        let Attributes { mode, uid, gid, atime_ns, mtime_ns, ctime_ns, xattrs } = &details.attributes;
        if self.posix.is_dirty() {
            if self.posix.xattrs.is_none() {
                // What was not known was not changed either.
                self.posix.xattrs.clone_from(xattrs);
            }
            return;
        }
        self.posix.known = true;
        self.posix.mode = mode.map(|mode| mode & PERMISSIONS);
        (self.posix.uid, self.posix.gid) = (*uid, *gid);
        if xattrs.is_some() {
            self.posix.xattrs.clone_from(xattrs);
        }
        self.posix.mtime_kept = mtime_ns.is_some();
        self.mtime_ns = mtime_ns.unwrap_or(self.mtime_ns);
        self.atime_ns = atime_ns.unwrap_or(self.atime_ns);
        self.posix.ctime_ns = ctime_ns.unwrap_or(self.mtime_ns);
    }

    /// What the store is to keep of `inode`, whose state this is. Nothing if the mount keeps nothing, or if we do not know
    /// what is there.
    pub fn outgoing(&self, inode: &Inode, posix: bool) -> Outgoing {
        let attributes = (posix && self.posix.known).then(|| {
            // An object with neither mode nor owner of its own keeps the mount's defaults, whatever they will be.
            let mode = self.posix.mode.map(|mode| inode.file_type | mode);
            Box::new(Attributes {
                mode: mode.or_else(|| (inode.file_type != libc::S_IFREG).then_some(inode.file_type | 0o777)),
                uid: self.posix.uid,
                gid: self.posix.gid,
                atime_ns: Some(self.atime_ns),
                mtime_ns: Some(self.mtime_ns),
                ctime_ns: Some(self.posix.ctime_ns),
                xattrs: self.posix.xattrs.clone(),
            })
        });
        Outgoing { attributes, revision: self.posix.revision }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(kind: Kind, mode: Option<u32>) -> Meta {
        let attributes = Attributes { mode, ..Attributes::default() };
        let details = Some(Box::new(Details { attributes, ..Details::default() }));
        Meta { kind, size: 0, mtime_ns: None, etag: None, marker: None, details }
    }

    #[test]
    fn the_store_says_what_is_a_directory_and_the_mode_what_else_is_special() {
        assert_eq!(type_of(&meta(Kind::Dir, Some(libc::S_IFLNK | 0o777))), Some(libc::S_IFDIR));
        for (mode, expected) in [
            (Some(libc::S_IFLNK | 0o777), libc::S_IFLNK),
            (Some(libc::S_IFIFO), libc::S_IFIFO),
            (Some(libc::S_IFSOCK), libc::S_IFSOCK),
            (Some(libc::S_IFCHR | 0o600), libc::S_IFREG),
            (Some(libc::S_IFBLK), libc::S_IFREG),
            (Some(libc::S_IFDIR | 0o755), libc::S_IFREG),
            (Some(0o644), libc::S_IFREG),
            (Some(u32::MAX), libc::S_IFREG),
            (None, libc::S_IFREG),
        ] {
            assert_eq!(type_of(&meta(Kind::File, mode)), Some(expected), "{mode:?}");
        }
        assert_eq!(type_of(&Meta { details: None, ..meta(Kind::File, None) }), None);
    }

    #[test]
    fn a_change_during_a_transfer_is_still_to_be_sent() {
        let mut posix = Posix { known: true, ..Posix::default() };
        posix.change(1);
        let sent = Outgoing { attributes: None, revision: posix.revision };
        posix.change(2);
        posix.arrived(&sent);
        assert!(posix.is_dirty());
        posix.arrived(&Outgoing { attributes: None, revision: posix.revision });
        assert!(!posix.is_dirty());
        posix.arrived(&sent);
        assert!(!posix.is_dirty(), "an older answer takes nothing back");
    }
}
