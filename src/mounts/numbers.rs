//! Telling the numbers of mounts apart. A nodeid, a handle and an inode number carry the mount's number in their bits 48
//! to 62; those of the root (mount 0) are what they are.
//!
//! A file system counts its nodeids and handles up from 1 and uses none twice, so 48 bits last for years at a million a
//! second. Inode numbers for names without nodeid are hashes with bit 63 set; what the mount's number takes from those
//! leaves 48 bits of hash.

use crate::fs::{Errno, Handle, NodeId, Result};
use crate::store::MountId;

const SHIFT: u32 = 48;

/// The bits that are the mount's.
const MASK: u64 = 0x7fff << SHIFT;

/// Stands for no mount: directories that only lead to some.
pub(super) const NOWHERE: MountId = 0x7fff;

/// Most mounts of one share, the root counted.
pub const MOUNTS_MAX: usize = NOWHERE as usize;

/// Whose number it is.
pub(super) fn mount_of(number: u64) -> MountId {
    // Fifteen bits always fit.
    ((number & MASK) >> SHIFT) as MountId
}

/// The number as its mount knows it.
pub(super) fn inner(number: u64) -> u64 {
    number & !MASK
}

/// The number `inner` of `mount` as the guest knows it.
pub(super) fn outer(mount: MountId, number: u64) -> u64 {
    inner(number) | u64::from(mount) << SHIFT & MASK
}

/// A nodeid as the guest knows it; 0, which names nothing, stays.
pub(super) fn outer_node(mount: MountId, nodeid: NodeId) -> NodeId {
    if nodeid.0 == 0 { nodeid } else { NodeId(outer(mount, nodeid.0)) }
}

/// A handle as `mount` knows it.
///
/// # Errors
/// EBADF: it is another mount's.
pub(super) fn inner_handle(mount: MountId, handle: Handle) -> Result<Handle> {
    if mount_of(handle.0) == mount { Ok(Handle(inner(handle.0))) } else { Err(Errno::EBADF) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_differ() {
        for number in [1, 2, 0xffff_ffff_ffff, 1 << 63 | 7, 1 << 63 | 0xffff_ffff_ffff] {
            for mount in [0, 1, 2, 0x7ffe, NOWHERE] {
                let seen = outer(mount, number);
                assert_eq!((mount_of(seen), inner(seen)), (mount, number));
            }
            assert_eq!(outer(0, number), number);
        }
        assert_eq!(mount_of(outer(3, u64::MAX)), 3, "a hash is cut");
        assert_eq!(outer_node(5, NodeId(0)), NodeId(0));
        assert_eq!(inner_handle(2, Handle(outer(2, 9))), Ok(Handle(9)));
        assert_eq!(inner_handle(1, Handle(outer(2, 9))), Err(Errno::EBADF));
    }
}
