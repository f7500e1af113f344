//! The nouns of the file-system interface: numbers with a meaning of their own, attributes, entries.

use std::time::Duration;

/// The number by which the guest kernel names an inode (FUSE `nodeid`); alive while its lookup count is above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the share, FUSE_ROOT_ID; never forgotten.
    pub const ROOT: NodeId = NodeId(1);
}

/// The number by which the guest kernel names an open file or directory (FUSE `fh`), from open to release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u64);

/// Who asks: the fields of `fuse_in_header` that a file system may need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Effective (file-system) user id of the calling process, as the guest numbers it.
    pub uid: u32,
    /// Effective (file-system) group id of the calling process, as the guest numbers it.
    pub gid: u32,
    /// Thread group id of the calling process inside the guest; 0 for requests of the kernel itself.
    pub pid: u32,
    /// The request's `unique`, for log lines.
    pub unique: u64,
}

/// What the guest sends along with requests that create something (FUSE_SECURITY_CTX, FUSE_CREATE_SUPP_GROUP).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// Security context to store on the new inode: attribute name (without NUL) and value.
    pub security: Option<(Vec<u8>, Vec<u8>)>,
    /// Supplementary groups that matter for the new inode.
    pub groups: Vec<u32>,
}

/// Attributes of an inode: `struct fuse_attr`, field by field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    /// Inode number shown to programs (`st_ino`).
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// Access time, seconds since the epoch.
    pub atime: i64,
    /// Modification time, seconds since the epoch.
    pub mtime: i64,
    /// Change time, seconds since the epoch.
    pub ctime: i64,
    /// Nanoseconds of `atime`.
    pub atimensec: u32,
    /// Nanoseconds of `mtime`.
    pub mtimensec: u32,
    /// Nanoseconds of `ctime`.
    pub ctimensec: u32,
    /// File type and permission bits (`st_mode`).
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u32,
    /// Preferred block size for I/O.
    pub blksize: u32,
    /// FUSE_ATTR_* flags (bit 0: submount).
    pub flags: u32,
}

/// The answer to LOOKUP and to everything that creates a name; it raises the inode's lookup count by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The inode; `NodeId(0)` makes a negative entry that the guest may cache for `entry_timeout`.
    pub nodeid: NodeId,
    /// Generation of the nodeid; 0 here, since nodeids are never used twice.
    pub generation: u64,
    /// The attributes.
    pub attr: Attr,
    /// How long the guest may trust the name.
    pub entry_timeout: Duration,
    /// How long the guest may trust the attributes.
    pub attr_timeout: Duration,
}

/// The answer to OPEN, OPENDIR and (with an [`Entry`]) CREATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The handle; `None` answers `fh` 0.
    pub handle: Option<Handle>,
    /// FOPEN_* flags.
    pub flags: u32,
}

/// A change asked for by SETATTR (`struct fuse_setattr_in`). `None` leaves a field alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Handle through which the change is made, if any.
    pub handle: Option<Handle>,
    /// New length in bytes.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
    /// New change time: seconds and nanoseconds.
    pub ctime: Option<(i64, u32)>,
    /// New permission bits.
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// FATTR_LOCKOWNER's value.
    pub lock_owner: Option<u64>,
    /// Drop set-user-id and set-group-id (FATTR_KILL_SUIDGID).
    pub kill_suid_gid: bool,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The daemon's current time.
    Now,
    /// Seconds and nanoseconds since the epoch.
    At(i64, u32),
}

/// The fields of READ (`struct fuse_read_in`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The inode.
    pub nodeid: NodeId,
    /// The open file.
    pub handle: Handle,
    /// First byte. The server refuses offsets of 2^63 and more before any file system sees them.
    pub offset: u64,
    /// Bytes wanted; already clamped to the room in the reply.
    pub size: u32,
    /// Lock owner, if the guest sent one.
    pub lock_owner: Option<u64>,
    /// Open flags of the guest's file.
    pub flags: u32,
}

/// The fields of WRITE (`struct fuse_write_in`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// The inode.
    pub nodeid: NodeId,
    /// The open file.
    pub handle: Handle,
    /// First byte; `offset + size` is checked to stay below 2^63.
    pub offset: u64,
    /// Bytes that follow; checked to be there.
    pub size: u32,
    /// Lock owner, if the guest sent one.
    pub lock_owner: Option<u64>,
    /// The write comes from the guest's page cache (FUSE_WRITE_CACHE).
    pub delayed: bool,
    /// Drop set-user-id and set-group-id (FUSE_WRITE_KILL_SUIDGID).
    pub kill_priv: bool,
    /// Open flags of the guest's file.
    pub flags: u32,
}

/// Where in which open file, for FALLOCATE, LSEEK and COPY_FILE_RANGE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileAt {
    /// The inode.
    pub nodeid: NodeId,
    /// The open file.
    pub handle: Handle,
    /// Byte offset, below 2^63.
    pub offset: u64,
}

/// One name in a directory, as READDIR packs it (`struct fuse_dirent`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Inode number (`d_ino`).
    pub ino: u64,
    /// Cookie of the *next* entry: what the guest sends to go on after this one.
    pub next_offset: u64,
    /// DT_* constant.
    pub kind: u32,
    /// The name, without NUL.
    pub name: &'a [u8],
}

/// The answer to GETXATTR and LISTXATTR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XattrReply {
    /// The bytes: the value, or names each ended by NUL.
    Data(Vec<u8>),
    /// How many bytes there are; the answer when the guest asked with size 0.
    Size(u32),
}

/// The answer to STATFS (`struct fuse_kstatfs`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Blocks of `frsize` in all.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for ordinary users.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Optimal transfer size in bytes.
    pub bsize: u32,
    /// Longest name in bytes.
    pub namelen: u32,
    /// Fragment size in bytes.
    pub frsize: u32,
}
