//! Flag bits that a file system and its server agree on, under the names of `include/uapi/linux/fuse.h` without their
//! `FUSE_`.

use super::Errno;

/// Bits of FUSE_INIT: `flags` | `flags2` << 32.
pub mod init {
    /// Reads of one file may overlap.
    pub const ASYNC_READ: u64 = 1 << 0;
    /// OPEN with O_TRUNC truncates.
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    /// Writes may be longer than 4 KiB.
    pub const BIG_WRITES: u64 = 1 << 5;
    /// The guest leaves the umask to the file system.
    pub const DONT_MASK: u64 = 1 << 6;
    /// IOCTL on directories.
    pub const HAS_IOCTL_DIR: u64 = 1 << 11;
    /// The guest drops cached pages when size or modification time changed.
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    /// READDIRPLUS is there.
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    /// The guest chooses between READDIR and READDIRPLUS.
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    /// Direct reads and writes of one file may overlap.
    pub const ASYNC_DIO: u64 = 1 << 15;
    /// The guest's page cache collects writes.
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    /// OPEN may answer ENOSYS and need not be asked again.
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    /// LOOKUP and READDIR of one directory may overlap.
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    /// POSIX access control lists.
    pub const POSIX_ACL: u64 = 1 << 20;
    /// `max_pages` of the reply counts.
    pub const MAX_PAGES: u64 = 1 << 22;
    /// READLINK's answers may be cached.
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    /// OPENDIR may answer ENOSYS and need not be asked again.
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    /// FUSE_ATTR_SUBMOUNT is understood.
    pub const SUBMOUNTS: u64 = 1 << 27;
    /// The file system drops set-user-id and set-group-id when told.
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// SETXATTR carries a second pair of flags.
    pub const SETXATTR_EXT: u64 = 1 << 29;
    /// `flags2` counts.
    pub const INIT_EXT: u64 = 1 << 30;
    /// Requests that create carry a security context.
    pub const SECURITY_CTX: u64 = 1 << 32;
    /// Requests that create carry a supplementary group.
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    /// Files with FOPEN_DIRECT_IO can be mapped shared.
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    /// Mounts with mapped ids.
    pub const ALLOW_IDMAP: u64 = 1 << 40;

    /// What the server answers to whatever file system, where the guest offers it.
    pub const BASE: u64 = ASYNC_READ
        | ATOMIC_O_TRUNC
        | BIG_WRITES
        | HAS_IOCTL_DIR
        | AUTO_INVAL_DATA
        | ASYNC_DIO
        | PARALLEL_DIROPS
        | MAX_PAGES
        | SUBMOUNTS
        | INIT_EXT
        | CREATE_SUPP_GROUP
        | ALLOW_IDMAP;

    /// What a file system may add. Every other bit needs something that the server does not do (locks, mappings,
    /// notifications, other transports) and is never answered.
    pub const OPTIONAL: u64 = DONT_MASK
        | DO_READDIRPLUS
        | READDIRPLUS_AUTO
        | WRITEBACK_CACHE
        | NO_OPEN_SUPPORT
        | POSIX_ACL
        | CACHE_SYMLINKS
        | NO_OPENDIR_SUPPORT
        | HANDLE_KILLPRIV_V2
        | SETXATTR_EXT
        | SECURITY_CTX
        | DIRECT_IO_ALLOW_MMAP;
}

/// Bits that OPEN, OPENDIR and CREATE answer (`fuse_open_out.open_flags`).
pub mod fopen {
    /// Bypass the guest's page cache.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// Keep what the guest's page cache holds of the file.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// No seeking.
    pub const NONSEEKABLE: u32 = 1 << 2;
    /// The directory's listing may be cached.
    pub const CACHE_DIR: u32 = 1 << 3;
    /// No position at all.
    pub const STREAM: u32 = 1 << 4;
    /// No FLUSH on close, unless WRITEBACK_CACHE.
    pub const NOFLUSH: u32 = 1 << 5;
    /// Direct writes may overlap.
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// Flags of open(2) that mean nothing once a name is resolved; Linux guests keep them to themselves.
pub const CREATION_FLAGS: u32 = (libc::O_CREAT | libc::O_EXCL | libc::O_NOCTTY).cast_unsigned();

/// Why open flags do not go with a read-only file system, in virtiofsd's order.
pub fn refused_readonly(flags: u32) -> Option<Errno> {
    let flags = flags.cast_signed();
    let has = |bits| flags & bits == bits;
    if has(libc::O_PATH) {
        None
    } else if flags & libc::O_ACCMODE != libc::O_RDONLY || has(libc::O_EXCL) {
        Some(Errno::EROFS)
    } else if has(libc::O_TMPFILE) || has(libc::O_TRUNC) {
        Some(Errno::EINVAL)
    } else {
        None
    }
}
