//! What the device process and the broker say to each other.
//!
//! One `SOCK_STREAM` socketpair. Each message is a little-endian `u32` length and that many bytes of postcard: from the
//! device a [`ToBroker`], from the broker a [`ToDevice`]. File data never passes here: it moves through the pool
//! (`store::pool`), and messages name places in it ([`Slice`]).
//!
//! Neither end trusts the other: the broker checks every path and every slice, the device every reply.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longest message in bytes; a longer one ends the connection.
pub const MESSAGE_MAX: u32 = 4 << 20;

/// Most entries in one [`Reply::Entries`].
pub const LIST_PAGE_MAX: usize = 1000;

/// Most [`Base`]s of one [`Op::Compose`].
pub const BASES_MAX: usize = 8;

/// Most mounts that can be added while the daemon runs.
pub const ADDED_MAX: usize = 256;

/// Most mounts that were added and have memory at once: each has one of so many areas behind the memory of those that were there
/// at the start.
pub const AREAS: u16 = 16;

/// Length of an area in bytes.
pub const AREA_LEN: usize = 16 << 20;
/// Most objects that a mount sends piece by piece at once.
pub const FLOWS_MAX: usize = 64;

/// Most pieces of one of them: S3 takes 10,000 parts, and some may be ranges of what stands there already.
pub const FLOW_PIECES_MAX: u32 = 7_500;

/// Number of a mount (a store in the share); 0 is the one in the root, and the only one of a plain `--backend`.
pub type MountId = u16;

/// A place in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// First byte, from the start of the pool.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
}

/// Device to broker.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToBroker {
    /// Do this; answer with the same `id`.
    Request {
        /// Chosen by the device, unique among those in flight.
        id: u64,
        /// Which store.
        mount: MountId,
        /// What to do.
        op: Op,
    },
    /// The flush asked for by [`ToDevice::Flush`] is over; so many bytes could not be stored.
    Flushed {
        /// Bytes acknowledged to the guest that are not in the store.
        bytes_lost: u64,
    },
    /// Nothing of this mount, which was to be taken away ([`Change::Unmount`]), is left: neither data nor a request.
    Unmounted {
        /// Which.
        mount: MountId,
    },
}

/// What changes of the mounts while the daemon runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Another one, which has a number that none had before.
    Mount {
        /// Its number.
        mount: MountId,
        /// Which of the [`AREAS`] is its memory.
        area: u16,
        /// How the guest sees it: between those who made the configuration and those who build a file system of it.
        settings: Vec<u8>,
    },
    /// This one is to be taken away. What is dirty is stored first; then [`ToBroker::Unmounted`].
    Unmount {
        /// Its number.
        mount: MountId,
    },
    /// How long its names and attributes may be trusted, under the policy that has such a time.
    Expiration {
        /// Its number.
        mount: MountId,
        /// That time.
        time: std::time::Duration,
    },
}

/// Broker to device.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToDevice {
    /// The answer to the request `id`.
    Done {
        /// The request's number.
        id: u64,
        /// What came of it.
        result: Result<Reply, StoreError>,
    },
    /// The daemon is to end (SIGTERM): flush what is dirty within `deadline_ms`, then say [`ToBroker::Flushed`].
    Flush {
        /// Milliseconds that are left.
        deadline_ms: u32,
    },
    /// From now on the broker answers within this time, on whichever mount it takes longest.
    RequestTimeout {
        /// Milliseconds.
        ms: u64,
    },
    /// The mounts change. (Only where the settings can change.)
    Change(Change),
}

/// The store's operations. Paths are relative to the mount: components joined by `/`, none at either end, `""` for the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// What can this store do? → [`Reply::Capabilities`]
    Probe,
    /// What is at `path`: file, directory (marker or only a prefix) or nothing (NotFound)? A directory hides a file of the
    /// same name. → [`Reply::Meta`], of a file without details where they would take another request
    Stat { path: String },
    /// As [`Op::Stat`]; and all names in the directory that it may be, if the same request tells them. → [`Reply::Looked`]
    Look { path: String },
    /// What a listing does not tell of `path`, of which it has just told that it is of this kind: nothing else is asked, so a
    /// file that has become a directory may be told as before. → [`Reply::Meta`] with details
    Tell { path: String, kind: Kind },
    /// The next page of the directory `path`. `cursor` 0 starts, at the first name or with those that follow `after`, which an
    /// earlier page has given; other cursors come from the page before and end after the last page, [`Op::ListEnd`] or a
    /// minute of disuse (Stale). → [`Reply::Entries`]
    List { path: String, cursor: u64, after: Option<String> },
    /// Forgets a cursor early. → [`Reply::Unit`]
    ListEnd { cursor: u64 },
    /// Reads `dest.len` bytes at `offset` of the object into the pool, all of them or an error; the caller knows the size. With
    /// `version`, answers VersionMismatch if the object is no longer that one. → [`Reply::Unit`]
    Read { path: String, version: Option<Version>, offset: u64, dest: Slice },
    /// Makes `path` the concatenation of `segments`, atomically where the store can. Without `attributes` those of the object
    /// that stood there, or of the first base, stay. → [`Reply::Meta`] of the new object
    Compose {
        path: String,
        bases: Vec<Base>,
        when: Condition,
        segments: Vec<Segment>,
        attributes: Option<Box<Attributes>>,
    },
    /// Keeps what `path` is to become on the broker's own disk, for the next start to bring it to the store: the concatenation
    /// of `segments`, of which those that are copied come from the version `base` of `path` itself. (Unsupported: there is no
    /// place for such things.) → [`Reply::Unit`]
    Spool { path: String, base: Option<Version>, segments: Vec<Segment>, attributes: Option<Box<Attributes>> },
    /// Begins to make `path` of the whole `base` and of the pieces that follow, as [`Op::Compose`] would of all of them at once;
    /// nothing is seen before [`Op::FlowEnd`]. `flow` is a number of the device's choice. → [`Reply::Unit`]
    FlowBegin { flow: u64, path: String, base: Option<Base>, when: Condition, attributes: Option<Box<Attributes>> },
    /// Sends the piece `number`, counted from 0, of at least 5 MiB unless it is the last; several may be under way, in any
    /// order. Answered when the store has it and the slices are free, the last perhaps only after the end. → [`Reply::Unit`]
    FlowSend { flow: u64, number: u32, data: Vec<Slice> },
    /// Puts the object together of so many pieces. Whatever the answer, the flow is over. → [`Reply::Meta`] of the new object
    FlowEnd { flow: u64, pieces: u32 },
    /// Gives the object up; nothing of it stays. → [`Reply::Unit`]
    FlowAbort { flow: u64 },
    /// Deletes the object `path`; a missing one is fine. → [`Reply::Unit`]
    Delete { path: String },
    /// Deletes objects, in batches where the store takes them; missing ones are fine. After an error nobody knows which of
    /// them are gone. At most [`LIST_PAGE_MAX`]. → [`Reply::Unit`]
    DeleteMany { paths: Vec<String> },
    /// Creates the directory `path` so that it stays while empty; one that is there is fine. With `attributes`, it has
    /// these from then on. → [`Reply::Unit`]
    CreateDir { path: String, attributes: Option<Box<Attributes>> },
    /// Deletes the directory `path` if it is empty (else NotEmpty; NotFound if there is none). → [`Reply::Unit`]
    RemoveDir { path: String },
    /// Copies an object inside the store; an existing target is replaced. With `version`, answers VersionMismatch if the object
    /// is no longer that one. → [`Reply::Meta`] of the target
    Copy { from: String, to: String, version: Option<Version> },
    /// Renames an object; an existing target is replaced, unless `when` says IfAbsent (Exists). `version` as with
    /// [`Op::Copy`]. → [`Reply::Meta`] of the target
    RenameFile { from: String, to: String, when: Condition, version: Option<Version> },
    /// Renames a directory with all below it; `to` must not exist or be an empty directory. → [`Reply::Unit`]
    RenameDir { from: String, to: String },
}

impl Op {
    /// Whether it goes on until it has truly ended, because half of it may be done.
    pub fn writes(&self) -> bool {
        match self {
            Op::Compose { .. }
            | Op::FlowBegin { .. }
            | Op::FlowSend { .. }
            | Op::FlowEnd { .. }
            | Op::FlowAbort { .. }
            | Op::Copy { .. }
            | Op::RenameFile { .. }
            | Op::RenameDir { .. }
            | Op::DeleteMany { .. }
            | Op::Spool { .. } => true,
            Op::Probe
            | Op::Stat { .. }
            | Op::Look { .. }
            | Op::Tell { .. }
            | Op::List { .. }
            | Op::ListEnd { .. }
            | Op::Read { .. }
            | Op::Delete { .. }
            | Op::CreateDir { .. }
            | Op::RemoveDir { .. } => false,
        }
    }
}

/// Which state of an object: what the store says of it. Two equal versions hold the same bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The ETag with its quotes, where the store has one.
    pub etag: Option<String>,
    /// Length in bytes.
    pub size: u64,
    /// Last modification in nanoseconds since the epoch, where there is no ETag; whole seconds on many stores.
    pub mtime_ns: Option<i64>,
}

/// An object that [`Segment::Copy`] copies from, and the version that the copied ranges must be of (else VersionMismatch).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Often the composed path itself.
    pub path: String,
    /// Its version.
    pub version: Version,
}

/// When a write may replace what stands there. Stores that know no conditions get a check just before the write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// Always.
    Any,
    /// Only if nothing is there (Exists otherwise).
    IfAbsent,
    /// Only if this version is there (VersionMismatch otherwise).
    IfVersion(Version),
}

/// A piece of an object to be composed. Zero-length pieces do not occur.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Segment {
    /// A range of the base of this number.
    Copy { base: u8, offset: u64, len: u64 },
    /// Bytes in the pool; they do not change until the reply.
    Data(Slice),
    /// Zero bytes.
    Zero { len: u64 },
}

/// File or directory; a store holds nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// An object.
    File,
    /// A marker or a prefix.
    Dir,
}

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// File or directory.
    pub kind: Kind,
    /// Length in bytes; 0 for directories.
    pub size: u64,
    /// Last modification, nanoseconds since the epoch, where the store says; truncated to whole seconds where the
    /// store's answers differ in precision.
    pub mtime_ns: Option<i64>,
    /// ETag with its quotes, where the store says (some say it on stat but not in listings).
    pub etag: Option<String>,
    /// For directories: whether a marker of its own exists, so that it stays when its last entry goes. `None`: not known.
    pub marker: Option<bool>,
    /// What only a question for this very name tells; `None`: not asked (listings of most stores).
    pub details: Option<Box<Details>>,
}

/// What a store says of an object beside its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// What POSIX programs keep of a file. Empty unless the mount keeps such attributes.
    pub attributes: Attributes,
    /// Content-Type.
    pub content_type: Option<String>,
    /// Identifier of this version of the object, on stores that keep old ones.
    pub version_id: Option<String>,
}

/// What a POSIX file system knows of a file and most stores do not; kept in the object's own user metadata, in the
/// convention of s3fs, or by the file system itself. Whatever is `None` has the mount's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// `st_mode`: file type and permissions (inode(7)). Types: directory, regular file, symbolic link (its target is the
    /// content), FIFO, socket; 0: not told.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time, nanoseconds since the epoch.
    pub atime_ns: Option<i64>,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: Option<i64>,
    /// Time of the last change of content or attributes, nanoseconds since the epoch.
    pub ctime_ns: Option<i64>,
    /// Extended attributes by their full names (`user.…`). `None`: not told (listings); where attributes are set, those
    /// that are there stay.
    pub xattrs: Option<BTreeMap<String, Vec<u8>>>,
}

impl Meta {
    /// The version that this describes.
    pub fn version(&self) -> Version {
        Version {
            etag: self.etag.clone(),
            size: self.size,
            mtime_ns: if self.etag.is_some() { None } else { self.mtime_ns },
        }
    }
}

/// A name in a listing; names are single components, valid by `fs`'s rules and UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEntry {
    /// The last component.
    pub name: String,
    /// What is known of it.
    pub meta: Meta,
}

/// The answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Unit,
    /// Of a name.
    Meta(Meta),
    /// Of a name, and all names below it if they have come along, as in a page.
    Looked { meta: Meta, below: Option<Vec<ListEntry>> },
    /// A page: directories and files once each (a directory hides a file of its name), unsorted. `cursor` `None`: the last page.
    /// `after`: that all names up to this one have come, by the order of their bytes, so that what follows can be listed again;
    /// a directory's ends with a slash. `None`: the store cannot do that.
    Entries { entries: Vec<ListEntry>, cursor: Option<u64>, after: Option<String> },
    /// Of the store.
    Capabilities(Capabilities),
}

/// What a store can do, after masking claims that are known to be wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// OpenDAL's scheme.
    pub scheme: String,
    /// Objects can be written.
    pub write: bool,
    /// Composing copies unchanged ranges inside the store.
    pub copy_ranges: bool,
    /// Objects can be sent piece by piece ([`Op::FlowBegin`]), going on from those that have at least so many bytes.
    pub flows: Option<u64>,
    /// Rename is one request, not copy and delete.
    pub rename: bool,
    /// ETags are reported.
    pub etag: bool,
    /// Writes can be made conditional on the old version.
    pub write_if_match: bool,
    /// Writes can be made conditional on absence.
    pub write_if_absent: bool,
    /// Directories exist without entries and without a marker object (fs, webdav, sftp).
    pub real_dirs: bool,
    /// [`Attributes`] are kept, because the mount was told to.
    pub attributes: bool,
    /// Listings tell the attributes, so that nothing else need be asked.
    pub attributes_listed: bool,
    /// Most bytes of names and values that the extended attributes of one file may have, as they are stored.
    pub xattrs_max: usize,
    /// Reads of a version may be answered without a question to the store, so they say nothing of what stands there.
    pub cached_here: bool,
    /// Longest object, if there is a limit of the store or of this daemon for it.
    pub size_max: Option<u64>,
}

/// Why an operation failed. The text is for the log; it names no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{kind:?}: {text}")]
pub struct StoreError {
    /// The class, which decides the errno (`objectfs::errno`).
    pub kind: StoreErrorKind,
    /// Cause, with operation and path.
    pub text: String,
}

/// Classes of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StoreErrorKind {
    /// There is no such object or directory.
    NotFound,
    /// Something is there already.
    Exists,
    /// A directory where a file was needed.
    IsDir,
    /// A file where a directory was needed.
    NotDir,
    /// The directory has entries.
    NotEmpty,
    /// The object is no longer the version asked for.
    VersionMismatch,
    /// The credentials do not allow it.
    PermissionDenied,
    /// The store cannot do it.
    Unsupported,
    /// The name cannot be told to the store without changing it.
    InvalidName,
    /// Too long for this store.
    TooLarge,
    /// More attributes than the store keeps of one object.
    AttributesTooLarge,
    /// The object is in an archive (a Glacier class) and must be restored first.
    Archived,
    /// The mount is read-only.
    ReadOnly,
    /// No room left in the store.
    NoSpace,
    /// A list cursor that is no more.
    Stale,
    /// No answer within the deadline, or the store cannot be reached.
    Unavailable,
    /// Not sent: the store is taken for gone until it answers a question in the background.
    Silent,
    /// A slice outside the pool, a path with forbidden components: the device's fault.
    Protocol,
    /// Everything else.
    Io,
}
