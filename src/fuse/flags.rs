//! The flag bits of the protocol, under the names of `include/uapi/linux/fuse.h` without their `FUSE_`.

pub use crate::fs::flags::{fopen, init};

/// Bits of `fuse_setattr_in.valid`.
pub mod setattr {
    /// `mode` counts.
    pub const MODE: u32 = 1 << 0;
    /// `uid` counts.
    pub const UID: u32 = 1 << 1;
    /// `gid` counts.
    pub const GID: u32 = 1 << 2;
    /// `size` counts.
    pub const SIZE: u32 = 1 << 3;
    /// `atime` counts.
    pub const ATIME: u32 = 1 << 4;
    /// `mtime` counts.
    pub const MTIME: u32 = 1 << 5;
    /// `fh` counts.
    pub const FH: u32 = 1 << 6;
    /// With ATIME: now.
    pub const ATIME_NOW: u32 = 1 << 7;
    /// With MTIME: now.
    pub const MTIME_NOW: u32 = 1 << 8;
    /// `lock_owner` counts.
    pub const LOCKOWNER: u32 = 1 << 9;
    /// `ctime` counts.
    pub const CTIME: u32 = 1 << 10;
    /// Drop set-user-id and set-group-id.
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// GETATTR: `fh` counts.
pub const GETATTR_FH: u32 = 1 << 0;
/// READ: `lock_owner` counts.
pub const READ_LOCKOWNER: u32 = 1 << 1;
/// WRITE: the data comes from the guest's page cache.
pub const WRITE_CACHE: u32 = 1 << 0;
/// WRITE: `lock_owner` counts.
pub const WRITE_LOCKOWNER: u32 = 1 << 1;
/// WRITE: drop set-user-id and set-group-id.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// OPEN, CREATE: drop set-user-id and set-group-id when truncating.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// RELEASE: flush, `lock_owner` counts.
pub const RELEASE_FLUSH: u32 = 1 << 0;
/// RELEASE: drop flock(2) locks, `lock_owner` counts.
pub const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// FSYNC, FSYNCDIR: data only.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;

#[cfg(test)]
mod tests {
    use super::init;

    #[test]
    fn default_flags_are_virtiofsds() {
        assert_eq!(init::BASE | init::DO_READDIRPLUS | init::READDIRPLUS_AUTO, 0x104_4844_f829);
        assert_eq!(init::BASE & init::OPTIONAL, 0);
    }
}
