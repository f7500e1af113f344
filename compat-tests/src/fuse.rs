//! FUSE constants and structures, protocol 7.38, from `include/uapi/linux/fuse.h`.
//!
//! Requests are put together byte by byte with [`Body`], replies taken apart with [`Fields`].

use crate::error::{Answer, Error, Fault};

/// Nodeid of the root.
pub const ROOT: u64 = 1;

/// Opcodes.
#[allow(missing_docs, reason = "the names are the protocol's")]
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const NOTIFY_REPLY: u32 = 41;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SETUPMAPPING: u32 = 48;
    pub const REMOVEMAPPING: u32 = 49;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
}

/// INIT flags, both words joined.
#[allow(missing_docs, reason = "the names are the protocol's")]
pub mod init {
    pub const DONT_MASK: u64 = 1 << 6;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const SUBMOUNTS: u64 = 1 << 27;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const SECURITY_CTX: u64 = 1 << 32;
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    /// Everything a guest can offer, without the reserved bit 31.
    pub const ALL: u64 = !(1 << 31);
}

/// SETATTR `valid` bits.
#[allow(missing_docs, reason = "the names are the protocol's")]
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// WRITE flag: the data comes from the guest's page cache.
pub const WRITE_CACHE: u32 = 1;
/// WRITE flag: drop set-user-id and set-group-id bits.
pub const WRITE_KILL_SUIDGID: u32 = 4;
/// Attribute flag: the inode is the root of a submount.
pub const ATTR_SUBMOUNT: u32 = 1;

/// A request's argument, little endian.
#[derive(Clone, Debug, Default)]
pub struct Body(pub Vec<u8>);

impl Body {
    /// An empty argument.
    pub fn new() -> Body {
        Body::default()
    }

    /// Appends 32-bit fields.
    pub fn u32s(mut self, values: &[u32]) -> Body {
        values.iter().for_each(|v| self.0.extend_from_slice(&v.to_le_bytes()));
        self
    }

    /// Appends 64-bit fields.
    pub fn u64s(mut self, values: &[u64]) -> Body {
        values.iter().for_each(|v| self.0.extend_from_slice(&v.to_le_bytes()));
        self
    }

    /// Appends bytes as they are.
    pub fn bytes(mut self, bytes: &[u8]) -> Body {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends a NUL-terminated name.
    pub fn name(self, name: &[u8]) -> Body {
        self.bytes(name).bytes(&[0])
    }

    /// Appends zeros up to a multiple of eight bytes.
    pub fn pad8(mut self) -> Body {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }
}

/// The 40-byte `fuse_in_header`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InHeader {
    /// Length of the whole request.
    pub len: u32,
    /// Opcode.
    pub opcode: u32,
    /// Number of the request.
    pub unique: u64,
    /// The inode it is about.
    pub nodeid: u64,
    /// Caller's user id.
    pub uid: u32,
    /// Caller's group id.
    pub gid: u32,
    /// Caller's process id.
    pub pid: u32,
    /// Length of the extensions in units of 8 bytes.
    pub total_extlen: u16,
}

impl InHeader {
    /// The bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        Body::new()
            .u32s(&[self.len, self.opcode])
            .u64s(&[self.unique, self.nodeid])
            .u32s(&[self.uid, self.gid, self.pid])
            .bytes(&self.total_extlen.to_le_bytes())
            .bytes(&[0, 0])
            .0
    }
}

/// Reads a reply front to back.
#[derive(Debug)]
pub struct Fields<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Fields<'a> {
    /// A reader over the payload of a reply to `what`.
    pub fn of(bytes: &'a [u8], what: &'static str) -> Fields<'a> {
        Fields { bytes, what }
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize) -> Answer<&'a [u8]> {
        let Some((head, rest)) = self.bytes.split_at_checked(n) else {
            let why = format!("{}: payload ends {} bytes early", self.what, n - self.bytes.len());
            return Err(Fault::Device(Error::BadReply(why)));
        };
        self.bytes = rest;
        Ok(head)
    }

    /// The next 16-bit field.
    pub fn u16(&mut self) -> Answer<u16> {
        let b = self.take(2)?;
        Ok(u16::from_le_bytes([b[0], b[1]]))
    }

    /// The next 32-bit field.
    pub fn u32(&mut self) -> Answer<u32> {
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// The next 64-bit field.
    pub fn u64(&mut self) -> Answer<u64> {
        Ok(u64::from(self.u32()?) | u64::from(self.u32()?) << 32)
    }

    /// Whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Fails if bytes are left: a reply has exactly the length of its structure.
    pub fn end(self) -> Answer<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let why = format!("{}: {} bytes too many", self.what, self.bytes.len());
        Err(Fault::Device(Error::BadReply(why)))
    }
}

/// `struct fuse_attr`.
#[allow(missing_docs, reason = "the names are the protocol's")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: i64,
    pub mtime: i64,
    pub ctime: i64,
    pub atimensec: u32,
    pub mtimensec: u32,
    pub ctimensec: u32,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub blksize: u32,
    pub flags: u32,
}

impl Attr {
    fn read(f: &mut Fields) -> Answer<Attr> {
        Ok(Attr {
            ino: f.u64()?,
            size: f.u64()?,
            blocks: f.u64()?,
            atime: f.u64()?.cast_signed(),
            mtime: f.u64()?.cast_signed(),
            ctime: f.u64()?.cast_signed(),
            atimensec: f.u32()?,
            mtimensec: f.u32()?,
            ctimensec: f.u32()?,
            mode: f.u32()?,
            nlink: f.u32()?,
            uid: f.u32()?,
            gid: f.u32()?,
            rdev: f.u32()?,
            blksize: f.u32()?,
            flags: f.u32()?,
        })
    }

    /// The type bits of the mode.
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }
}

/// `struct fuse_entry_out`; timeouts in nanoseconds.
#[allow(missing_docs, reason = "the names are the protocol's")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub nodeid: u64,
    pub generation: u64,
    pub entry_timeout_ns: u128,
    pub attr_timeout_ns: u128,
    pub attr: Attr,
}

impl Entry {
    /// Reads one entry.
    pub fn read(f: &mut Fields) -> Answer<Entry> {
        let (nodeid, generation, entry_s, attr_s) = (f.u64()?, f.u64()?, f.u64()?, f.u64()?);
        let (entry_ns, attr_ns) = (f.u32()?, f.u32()?);
        Ok(Entry {
            nodeid,
            generation,
            entry_timeout_ns: nanoseconds(entry_s, entry_ns),
            attr_timeout_ns: nanoseconds(attr_s, attr_ns),
            attr: Attr::read(f)?,
        })
    }
}

fn nanoseconds(seconds: u64, nanoseconds: u32) -> u128 {
    u128::from(seconds) * 1_000_000_000 + u128::from(nanoseconds)
}

/// `struct fuse_attr_out`.
#[allow(missing_docs, reason = "the names are the protocol's")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttrOut {
    pub attr_timeout_ns: u128,
    pub attr: Attr,
}

impl AttrOut {
    /// Reads the reply to GETATTR and SETATTR.
    pub fn read(f: &mut Fields) -> Answer<AttrOut> {
        let (seconds, ns) = (f.u64()?, f.u32()?);
        f.u32()?;
        Ok(AttrOut { attr_timeout_ns: nanoseconds(seconds, ns), attr: Attr::read(f)? })
    }
}

/// `struct fuse_open_out`.
#[allow(missing_docs, reason = "the names are the protocol's")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    pub fh: u64,
    pub flags: u32,
}

impl Opened {
    /// Reads the reply to OPEN and OPENDIR, or the tail of that to CREATE.
    pub fn read(f: &mut Fields) -> Answer<Opened> {
        let opened = Opened { fh: f.u64()?, flags: f.u32()? };
        f.u32()?;
        Ok(opened)
    }
}

/// `struct fuse_kstatfs`.
#[allow(missing_docs, reason = "the names are the protocol's")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statfs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
}

impl Statfs {
    /// Reads the reply to STATFS.
    pub fn read(f: &mut Fields) -> Answer<Statfs> {
        let statfs = Statfs {
            blocks: f.u64()?,
            bfree: f.u64()?,
            bavail: f.u64()?,
            files: f.u64()?,
            ffree: f.u64()?,
            bsize: f.u32()?,
            namelen: f.u32()?,
            frsize: f.u32()?,
        };
        f.take(28)?;
        Ok(statfs)
    }
}

/// What a guest says in INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitRequest {
    /// Protocol major version.
    pub major: u32,
    /// Protocol minor version.
    pub minor: u32,
    /// Read-ahead wanted, in bytes.
    pub max_readahead: u32,
    /// Flags, both words joined.
    pub flags: u64,
    /// Send only the 16 bytes that protocols before 7.36 had.
    pub short: bool,
}

impl Default for InitRequest {
    fn default() -> Self {
        InitRequest { major: 7, minor: 38, max_readahead: 128 << 10, flags: init::ALL, short: false }
    }
}

impl InitRequest {
    /// The bytes on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let low = Body::new().u32s(&[self.major, self.minor, self.max_readahead, self.flags as u32]);
        if self.short { low.0 } else { low.u32s(&[(self.flags >> 32) as u32]).bytes(&[0; 44]).0 }
    }
}

/// `struct fuse_init_out`.
#[allow(missing_docs, reason = "the names are the protocol's")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InitReply {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: u64,
    pub max_background: u16,
    pub congestion_threshold: u16,
    pub max_write: u32,
    pub time_gran: u32,
    pub max_pages: u16,
    pub map_alignment: u16,
    pub max_stack_depth: u32,
    pub len: usize,
}

impl InitReply {
    /// Reads the reply to INIT; the bare version answer of a version mismatch has only the first two fields.
    pub fn read(bytes: &[u8]) -> Answer<InitReply> {
        let mut f = Fields::of(bytes, "INIT");
        let mut reply = InitReply { major: f.u32()?, minor: f.u32()?, len: bytes.len(), ..InitReply::default() };
        if f.is_empty() {
            return Ok(reply);
        }
        reply.max_readahead = f.u32()?;
        reply.flags = f.u32()?.into();
        reply.max_background = f.u16()?;
        reply.congestion_threshold = f.u16()?;
        reply.max_write = f.u32()?;
        if f.is_empty() {
            return Ok(reply);
        }
        reply.time_gran = f.u32()?;
        reply.max_pages = f.u16()?;
        reply.map_alignment = f.u16()?;
        reply.flags |= u64::from(f.u32()?) << 32;
        reply.max_stack_depth = f.u32()?;
        Ok(reply)
    }
}

/// One directory entry; `entry` is set by READDIRPLUS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Inode number.
    pub ino: u64,
    /// Where the next read goes on after this entry.
    pub offset: u64,
    /// `DT_*`.
    pub kind: u32,
    /// The name.
    pub name: Vec<u8>,
    /// Node and attributes.
    pub entry: Option<Entry>,
}

/// Takes a READDIR (or READDIRPLUS) payload apart; every record must be whole and padded to eight bytes.
pub fn dir_entries(bytes: &[u8], plus: bool) -> Answer<Vec<DirEntry>> {
    let mut f = Fields::of(bytes, "READDIR");
    let mut entries = Vec::new();
    while !f.is_empty() {
        let entry = if plus { Some(Entry::read(&mut f)?) } else { None };
        let (ino, offset) = (f.u64()?, f.u64()?);
        let (namelen, kind) = (f.u32()? as usize, f.u32()?);
        let name = f.take(namelen)?.to_vec();
        f.take((24 + namelen).next_multiple_of(8) - 24 - namelen)?;
        entries.push(DirEntry { ino, offset, kind, name, entry });
    }
    Ok(entries)
}
