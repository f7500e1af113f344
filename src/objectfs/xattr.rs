//! Extended attributes: the guest's own (`user.*`), kept in the store where the mount keeps attributes, and three that tell
//! what the store says of a file (`ovfs.*`): these are for asking by name, and listed nowhere.
//!
//! A change goes the way of all attributes (`save`).

use std::sync::Arc;

use super::core::Core;
use super::inode::{Inode, now_ns};
use crate::fs::{Errno, NodeId, Result, XattrReply};
use crate::store::path::NAME_MAX;
use crate::store::{Kind, Store};

/// Start of the names that guests use.
const USER: &str = "user.";

/// Start of the names that are ours.
const OURS: &str = "ovfs.";

/// Start of the names of access control lists, which the kernel asks for by itself.
const ACL: &str = "system.posix_acl_";

/// Longest value of one attribute in bytes: XATTR_SIZE_MAX of Linux.
const VALUE_MAX: usize = 65_536;

/// Whose an attribute is.
enum Name<'a> {
    User(&'a str),
    Ours(&'a str),
    Acl,
    Other,
}

fn parse(name: &[u8]) -> Name<'_> {
    match std::str::from_utf8(name) {
        Ok(name) if name.len() > USER.len() && name.starts_with(USER) => Name::User(name),
        Ok(name) if name.starts_with(OURS) => Name::Ours(&name[OURS.len()..]),
        Ok(name) if name.starts_with(ACL) => Name::Acl,
        _ => Name::Other,
    }
}

/// A reply into `size` bytes of room; 0 asks how many there are.
fn reply(data: Vec<u8>, size: u32) -> Result<XattrReply> {
    let len = u32::try_from(data.len()).map_err(|_| Errno::E2BIG)?;
    match size {
        0 => Ok(XattrReply::Size(len)),
        _ if size < len => Err(Errno::ERANGE),
        _ => Ok(XattrReply::Data(data)),
    }
}

/// Bytes that an attribute takes where a file system keeps it.
fn native_len(name: &str, value: &[u8]) -> usize {
    name.len() + value.len()
}

/// Bytes that an attribute takes in an object's metadata: percent-encoded JSON with the value in base64. (Escapes that no name
/// needs count too much; the two braces are the one comma too many.)
fn metadata_len(name: &str, value: &[u8]) -> usize {
    /// Of one character of JSON that is not unreserved in URLs.
    const CODED: usize = 3;
    let name: usize = name
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => 1,
            b'"' | b'\\' => 2 * CODED,
            0..0x20 | 0x7f => CODED + 5,
            _ => CODED,
        })
        .sum();
    let value: usize = value
        .chunks(3)
        .map(|three| {
            let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
            let letters = (0..=three.len()).map(|at| if bits >> (18 - 6 * at) & 63 >= 62 { CODED } else { 1 });
            letters.sum::<usize>() + (3 - three.len()) * CODED
        })
        .sum();
    // Four quotation marks, a colon, a comma.
    name + value + 6 * CODED + CODED
}

impl<S: Store> Core<S> {
    fn xattrs_are_on(&self) -> Result<()> {
        if self.config.xattr { Ok(()) } else { Err(Errno::ENOSYS) }
    }

    /// The inode, with its attributes as fresh as a getattr would tell them, and with its extended attributes known.
    async fn with_xattrs(&self, nodeid: NodeId) -> Result<Arc<Inode>> {
        let inode = self.inode(nodeid)?;
        let known = {
            let state = inode.state();
            nodeid == NodeId::ROOT || state.unlinked || (state.posix.xattrs.is_some() && self.knows(&state))
        };
        if !known {
            self.revalidate(&inode).await?;
        }
        Ok(inode)
    }

    /// FUSE_GETXATTR.
    pub(super) async fn getxattr(&self, nodeid: NodeId, name: &[u8], size: u32) -> Result<XattrReply> {
        self.xattrs_are_on()?;
        match parse(name) {
            Name::User(_) if !self.config.posix => Err(Errno::ENODATA),
            Name::User(name) => {
                let inode = self.with_xattrs(nodeid).await?;
                let value = inode.state().posix.xattrs.as_ref().and_then(|xattrs| xattrs.get(name).cloned());
                reply(value.ok_or(Errno::ENODATA)?, size)
            }
            Name::Ours(what) => reply(self.told_of(nodeid, what).await?.into_bytes(), size),
            Name::Acl => Err(Errno::EOPNOTSUPP),
            Name::Other => Err(Errno::ENODATA),
        }
    }

    /// What the store says of a file.
    ///
    /// # Errors
    /// ENODATA: nothing of that kind.
    async fn told_of(&self, nodeid: NodeId, what: &str) -> Result<String> {
        let inode = self.inode(nodeid)?;
        if inode.kind != Kind::File || !matches!(what, "etag" | "version" | "content-type") {
            return Err(Errno::ENODATA);
        }
        let known = {
            let state = inode.state();
            let told = state.posix.object.is_some() || (what == "etag" && state.etag.is_some());
            state.is_local() || (told && self.knows(&state))
        };
        if !known {
            self.revalidate(&inode).await?;
        }
        let state = inode.state();
        let object = state.posix.object.as_ref().filter(|_| !state.is_local());
        let told = match what {
            // Of what is being written there is no version yet.
            _ if state.is_local() => None,
            "etag" => state.etag.clone(),
            "version" => object.and_then(|object| object.version_id.clone()),
            _ => object.and_then(|object| object.content_type.clone()),
        };
        told.ok_or(Errno::ENODATA)
    }

    /// FUSE_LISTXATTR: the guest's own.
    pub(super) async fn listxattr(&self, nodeid: NodeId, size: u32) -> Result<XattrReply> {
        self.xattrs_are_on()?;
        if !self.config.posix {
            return reply(Vec::new(), size);
        }
        let inode = self.with_xattrs(nodeid).await?;
        let mut names = Vec::new();
        if let Some(xattrs) = &inode.state().posix.xattrs {
            for name in xattrs.keys().filter(|name| name.starts_with(USER)) {
                names.extend_from_slice(name.as_bytes());
                names.push(0);
            }
        }
        reply(names, size)
    }

    /// The name of an attribute that may be changed.
    fn changeable<'a>(&self, name: &'a [u8]) -> Result<&'a str> {
        self.xattrs_are_on()?;
        match parse(name) {
            Name::Ours(_) => Err(Errno::EPERM),
            Name::User(name) if self.config.posix => Ok(name),
            // Not UTF-8: no name that an object's metadata could hold.
            Name::Other if self.config.posix && name.starts_with(USER.as_bytes()) => Err(Errno::EINVAL),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    /// FUSE_SETXATTR.
    pub(super) async fn setxattr(&self, nodeid: NodeId, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let name = self.changeable(name)?;
        let flags = i32::try_from(flags).unwrap_or(-1);
        if flags & !(libc::XATTR_CREATE | libc::XATTR_REPLACE) != 0 {
            return Err(Errno::EINVAL);
        }
        if name.len() > NAME_MAX {
            return Err(Errno::ERANGE);
        }
        if value.len() > VALUE_MAX {
            return Err(Errno::E2BIG);
        }
        let inode = self.with_xattrs(nodeid).await?;
        let mut state = inode.state();
        // The store does not tell what is there, so nothing can be added to it.
        let xattrs = state.posix.xattrs.as_mut().ok_or(Errno::EACCES)?;
        let old = xattrs.get(name);
        if flags & libc::XATTR_CREATE != 0 && old.is_some() {
            return Err(Errno::EEXIST);
        }
        if flags & libc::XATTR_REPLACE != 0 && old.is_none() {
            return Err(Errno::ENODATA);
        }
        if old.is_some_and(|old| old == value) {
            return Ok(());
        }
        let len = if self.capabilities.real_dirs { native_len } else { metadata_len };
        let others = xattrs.iter().filter(|(other, _)| *other != name);
        let others: usize = others.map(|(name, value)| len(name, value)).sum();
        if others + len(name, value) > self.capabilities.xattrs_max {
            return Err(Errno::ENOSPC);
        }
        xattrs.insert(name.to_owned(), value.to_owned());
        self.attributes_changed(&inode, &mut state, now_ns());
        Ok(())
    }

    /// FUSE_REMOVEXATTR.
    pub(super) async fn removexattr(&self, nodeid: NodeId, name: &[u8]) -> Result<()> {
        let name = self.changeable(name)?;
        let inode = self.with_xattrs(nodeid).await?;
        let mut state = inode.state();
        state.posix.xattrs.as_mut().and_then(|xattrs| xattrs.remove(name)).ok_or(Errno::ENODATA)?;
        self.attributes_changed(&inode, &mut state, now_ns());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_in_metadata_are_those_of_percent_encoded_json() {
        // %7B%22user.a%22%3A%22AA%3D%3D%22%7D
        assert!(metadata_len("user.a", &[0]) >= 35 && metadata_len("user.a", &[0]) <= 41);
        // 0xff 0xff 0xff is //// in base64.
        assert_eq!(metadata_len("user.a", &[0xff; 3]) - metadata_len("user.a", &[0; 3]), 8);
        assert_eq!(metadata_len("user.ä", &[]) - metadata_len("user.a", &[]), 5);
        assert_eq!(native_len("user.a", &[1, 2]), 8);
    }

    #[test]
    fn names_belong_to_the_guest_to_us_or_to_nobody() {
        assert!(matches!(parse(b"user.x"), Name::User("user.x")));
        assert!(matches!(parse(b"ovfs.etag"), Name::Ours("etag")));
        assert!(matches!(parse(b"system.posix_acl_default"), Name::Acl));
        for other in [&b"user."[..], b"trusted.x", b"security.selinux", b"user.\xff", b""] {
            assert!(matches!(parse(other), Name::Other), "{other:?}");
        }
    }
}
