//! From bytes to a typed operation. The one place that trusts nothing.
//!
//! Whatever the bytes, this ends in an operation or an errno: no index, no arithmetic that could overflow, no
//! allocation by a number that the guest merely claims. What comes out keeps the promises of `crate::fs`: names are
//! single components, offsets and lengths stay below 2^63, nanoseconds below 10^9, sizes within the request.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::abi::{
    AccessIn, BatchForgetIn, CopyFileRangeIn, CreateIn, FallocateIn, Field, FlushIn, ForgetIn, FsyncIn, GetattrIn,
    GetxattrIn, InHeader, InitIn, LinkIn, LseekIn, MkdirIn, MknodIn, Opcode, OpenIn, ReadIn, ReleaseIn, Rename2In,
    RenameIn, SetattrIn, SetxattrExt, SetxattrIn, WriteIn,
};
use super::flags::{self, init, setattr};
use super::session::{Hello, Terms};
use super::{extension, name};
use crate::fs::{Errno, Extensions, FileAt, Handle, NodeId, Read, Result, SetAttr, SetTime, Write};

/// Nanoseconds in a second.
const NANOS: u32 = 1_000_000_000;
/// The most bytes of one COPY_FILE_RANGE: Linux's MAX_RW_COUNT. The reply's count has 32 bits.
const COPY_MAX: u64 = 0x7fff_f000;
/// The rename flags that are handed on; others are dropped.
const RENAME_FLAGS: u32 = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;

/// One request, checked. Names borrow from the request's body.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the methods of `FileSystem`")]
pub enum Operation<'a> {
    Lookup { name: &'a [u8] },
    Forget { nlookup: u64 },
    BatchForget { count: u32 },
    Getattr { handle: Option<Handle> },
    Setattr { change: SetAttr },
    Readlink,
    Symlink { name: &'a [u8], target: &'a [u8], ext: Extensions },
    Mknod { name: &'a [u8], mode: u32, rdev: u32, umask: u32, ext: Extensions },
    Mkdir { name: &'a [u8], mode: u32, umask: u32, ext: Extensions },
    Unlink { name: &'a [u8] },
    Rmdir { name: &'a [u8] },
    Rename { name: &'a [u8], new_parent: NodeId, new_name: &'a [u8], flags: u32 },
    Link { inode: NodeId, name: &'a [u8] },
    Open { flags: u32, kill_priv: bool },
    Create { name: &'a [u8], mode: u32, flags: u32, umask: u32, kill_priv: bool, ext: Extensions },
    Read(Read),
    Write(Write),
    Statfs,
    Flush { handle: Handle, lock_owner: u64 },
    Fsync { handle: Handle, datasync: bool },
    Release { handle: Handle, flags: u32, lock_owner: Option<u64>, flock_unlock: bool },
    Setxattr { name: &'a [u8], value: &'a [u8], flags: u32, extra: u32 },
    Getxattr { name: &'a [u8], size: u32 },
    Listxattr { size: u32 },
    Removexattr { name: &'a [u8] },
    Init(Hello),
    Opendir { flags: u32 },
    Readdir { handle: Handle, offset: u64, size: u32 },
    Readdirplus { handle: Handle, offset: u64, size: u32 },
    Fsyncdir { handle: Handle, datasync: bool },
    Releasedir { handle: Handle, flags: u32 },
    Access { mask: u32 },
    Fallocate { at: FileAt, length: u64, mode: u32 },
    Lseek { at: FileAt, whence: u32 },
    CopyFileRange { from: FileAt, to: FileAt, len: u64, flags: u64 },
    Syncfs,
    Interrupt,
    Destroy,
}

/// How many of the `payload` bytes behind the header to read before [`operation`]; the rest is data (WRITE), items
/// (BATCH_FORGET) or nothing that means anything.
pub fn body_len(opcode: Opcode, payload: usize) -> usize {
    let fixed = match opcode {
        Opcode::Write => WriteIn::SIZE,
        Opcode::BatchForget => BatchForgetIn::SIZE,
        Opcode::Forget => ForgetIn::SIZE,
        Opcode::Getattr => GetattrIn::SIZE,
        Opcode::Setattr => SetattrIn::SIZE,
        Opcode::Open | Opcode::Opendir => OpenIn::SIZE,
        Opcode::Read | Opcode::Readdir | Opcode::Readdirplus => ReadIn::SIZE,
        Opcode::Release | Opcode::Releasedir => ReleaseIn::SIZE,
        Opcode::Fsync | Opcode::Fsyncdir => FsyncIn::SIZE,
        Opcode::Flush => FlushIn::SIZE,
        Opcode::Listxattr => GetxattrIn::SIZE,
        Opcode::Init => InitIn::SIZE.saturating_add(u32::SIZE),
        Opcode::Access => AccessIn::SIZE,
        Opcode::Fallocate => FallocateIn::SIZE,
        Opcode::Lseek => LseekIn::SIZE,
        Opcode::CopyFileRange => CopyFileRangeIn::SIZE,
        Opcode::Readlink | Opcode::Statfs | Opcode::Syncfs | Opcode::Interrupt | Opcode::Destroy => 0,
        Opcode::Lookup
        | Opcode::Symlink
        | Opcode::Mknod
        | Opcode::Mkdir
        | Opcode::Unlink
        | Opcode::Rmdir
        | Opcode::Rename
        | Opcode::Rename2
        | Opcode::Link
        | Opcode::Create
        | Opcode::Setxattr
        | Opcode::Getxattr
        | Opcode::Removexattr => payload,
        _ => 0,
    };
    fixed.min(payload)
}

/// Types the request whose header is `header`. `payload` counts all bytes behind the header, `body` holds the first
/// [`body_len`] of them.
///
/// # Errors
/// EINVAL: too short, or a number that no guest kernel sends. Those of [`name`]. EFBIG, EOVERFLOW, ENXIO: numbers out
/// of range, as fallocate(2), copy_file_range(2) and lseek(2) say. ENOMEM: an attribute buffer above 1 MiB.
/// ENOSYS: an opcode that the server does not serve.
pub fn operation<'a>(
    header: &InHeader,
    opcode: Opcode,
    terms: Terms,
    payload: usize,
    body: &'a [u8],
) -> Result<Operation<'a>> {
    let nodeid = NodeId(header.nodeid);
    let rest = body;
    Ok(match opcode {
        Opcode::Lookup => Operation::Lookup { name: name::whole(rest)? },
        Opcode::Unlink => Operation::Unlink { name: name::whole(rest)? },
        Opcode::Rmdir => Operation::Rmdir { name: name::whole(rest)? },
        Opcode::Removexattr => Operation::Removexattr { name: name::whole_xattr(rest)? },
        Opcode::Readlink => Operation::Readlink,
        Opcode::Statfs => Operation::Statfs,
        Opcode::Syncfs => Operation::Syncfs,
        Opcode::Interrupt => Operation::Interrupt,
        Opcode::Destroy => Operation::Destroy,
        Opcode::Forget => Operation::Forget { nlookup: only::<ForgetIn>(rest)?.nlookup },
        Opcode::BatchForget => Operation::BatchForget { count: only::<BatchForgetIn>(rest)?.count },
        Opcode::Access => Operation::Access { mask: only::<AccessIn>(rest)?.mask },
        Opcode::Opendir => Operation::Opendir { flags: only::<OpenIn>(rest)?.flags },
        Opcode::Symlink | Opcode::Mknod | Opcode::Mkdir | Opcode::Create => creation(opcode, terms, rest)?,
        Opcode::Rename | Opcode::Rename2 | Opcode::Link => naming(opcode, rest)?,
        Opcode::Setxattr => set_xattr(terms, rest)?,
        Opcode::Getxattr => {
            let (GetxattrIn { size, .. }, rest) = first(rest)?;
            Operation::Getxattr { name: name::whole_xattr(rest)?, size: xattr_size(size)? }
        }
        Opcode::Listxattr => Operation::Listxattr { size: xattr_size(only::<GetxattrIn>(rest)?.size)? },
        Opcode::Getattr => {
            let GetattrIn { getattr_flags, fh, .. } = only(rest)?;
            Operation::Getattr { handle: (getattr_flags & flags::GETATTR_FH != 0).then_some(Handle(fh)) }
        }
        Opcode::Setattr => Operation::Setattr { change: change(&only(rest)?)? },
        Opcode::Open => {
            let OpenIn { flags, open_flags } = only(rest)?;
            Operation::Open { flags, kill_priv: open_flags & flags::OPEN_KILL_SUIDGID != 0 }
        }
        Opcode::Read => Operation::Read(read(nodeid, &only(rest)?)),
        Opcode::Write => Operation::Write(write(nodeid, payload, &only(rest)?)?),
        Opcode::Readdir | Opcode::Readdirplus => {
            let ReadIn { fh, offset, size, .. } = only(rest)?;
            let handle = Handle(fh);
            match opcode {
                Opcode::Readdir => Operation::Readdir { handle, offset, size },
                _ => Operation::Readdirplus { handle, offset, size },
            }
        }
        Opcode::Flush => {
            let FlushIn { fh, lock_owner, .. } = only(rest)?;
            Operation::Flush { handle: Handle(fh), lock_owner }
        }
        Opcode::Fsync | Opcode::Fsyncdir => {
            let FsyncIn { fh, fsync_flags, .. } = only(rest)?;
            let (handle, datasync) = (Handle(fh), fsync_flags & flags::FSYNC_FDATASYNC != 0);
            match opcode {
                Opcode::Fsync => Operation::Fsync { handle, datasync },
                _ => Operation::Fsyncdir { handle, datasync },
            }
        }
        Opcode::Release | Opcode::Releasedir => release(opcode, &only(rest)?),
        Opcode::Init => Operation::Init(hello(rest)?),
        Opcode::Fallocate => fallocate(nodeid, &only(rest)?)?,
        Opcode::Lseek => seek(nodeid, &only(rest)?)?,
        Opcode::CopyFileRange => copy(nodeid, &only(rest)?)?,
        _ => return Err(Errno::ENOSYS),
    })
}

/// The structure at the front of `bytes`, and what follows it.
fn first<T: Field>(mut bytes: &[u8]) -> Result<(T, &[u8])> {
    let value = T::take(&mut bytes).ok_or(Errno::EINVAL)?;
    Ok((value, bytes))
}

/// The structure at the front of `bytes`; guests of later versions may append to it.
fn only<T: Field>(bytes: &[u8]) -> Result<T> {
    first(bytes).map(|(value, _)| value)
}

/// A signed offset, which is what every system call behind us takes.
fn is_offset(offset: u64) -> bool {
    i64::try_from(offset).is_ok()
}

/// Whether the range ends below 2^63.
fn is_range(offset: u64, len: u64) -> bool {
    offset.checked_add(len).is_some_and(is_offset)
}

fn creation(opcode: Opcode, terms: Terms, body: &[u8]) -> Result<Operation<'_>> {
    Ok(match opcode {
        Opcode::Symlink => {
            let (name, rest) = name::split(body)?;
            let (target, rest) = name::split_target(rest)?;
            Operation::Symlink { name, target, ext: extension::parse(terms, rest)? }
        }
        Opcode::Mknod => {
            let (MknodIn { mode, rdev, umask, .. }, rest) = first(body)?;
            let (name, rest) = name::split(rest)?;
            Operation::Mknod { name, mode, rdev, umask, ext: extension::parse(terms, rest)? }
        }
        Opcode::Mkdir => {
            let (MkdirIn { mode, umask }, rest) = first(body)?;
            let (name, rest) = name::split(rest)?;
            Operation::Mkdir { name, mode, umask, ext: extension::parse(terms, rest)? }
        }
        _ => {
            let (CreateIn { flags, mode, umask, open_flags }, rest) = first(body)?;
            let (name, rest) = name::split(rest)?;
            let kill_priv = open_flags & flags::OPEN_KILL_SUIDGID != 0;
            Operation::Create { name, mode, flags, umask, kill_priv, ext: extension::parse(terms, rest)? }
        }
    })
}

fn naming(opcode: Opcode, body: &[u8]) -> Result<Operation<'_>> {
    let (new_parent, flags, rest) = match opcode {
        Opcode::Link => {
            let (LinkIn { oldnodeid }, rest) = first(body)?;
            return Ok(Operation::Link { inode: NodeId(oldnodeid), name: name::whole(rest)? });
        }
        Opcode::Rename2 => {
            let (Rename2In { newdir, flags, .. }, rest) = first(body)?;
            (newdir, flags & RENAME_FLAGS, rest)
        }
        _ => {
            let (RenameIn { newdir }, rest) = first(body)?;
            (newdir, 0, rest)
        }
    };
    let (name, rest) = name::split(rest)?;
    Ok(Operation::Rename { name, new_parent: NodeId(new_parent), new_name: name::whole(rest)?, flags })
}

fn set_xattr(terms: Terms, body: &[u8]) -> Result<Operation<'_>> {
    let short = |body| {
        let (SetxattrIn { size, flags }, rest) = first(body)?;
        xattr_value(size, flags, 0, rest)
    };
    let long = |body| {
        let (SetxattrIn { size, flags }, rest) = first(body)?;
        let (SetxattrExt { setxattr_flags, .. }, rest) = first(rest)?;
        xattr_value(size, flags, setxattr_flags, rest)
    };
    if terms.is_assumed() {
        // The short form's name cannot begin with the zeros and small numbers that the long form has there, and the
        // size must fit: at most one of the two makes sense.
        long(body).or_else(|_| short(body))
    } else if terms.has(init::SETXATTR_EXT) {
        long(body)
    } else {
        short(body)
    }
}

fn xattr_value(size: u32, flags: u32, extra: u32, rest: &[u8]) -> Result<Operation<'_>> {
    let (name, value) = name::split_xattr(rest)?;
    if u32::try_from(value.len()) != Ok(size) {
        return Err(Errno::EINVAL);
    }
    Ok(Operation::Setxattr { name, value, flags, extra })
}

/// Room for an attribute or a list of names, clamped to what Linux knows as their most (64 KiB).
fn xattr_size(size: u32) -> Result<u32> {
    const ACCEPTED_MAX: u32 = 1 << 20;
    const XATTR_SIZE_MAX: u32 = 65536;
    if size > ACCEPTED_MAX { Err(Errno::ENOMEM) } else { Ok(size.min(XATTR_SIZE_MAX)) }
}

fn change(wire: &SetattrIn) -> Result<SetAttr> {
    let has = |bit| wire.valid & bit != 0;
    let time = |set, now, seconds, nanos| match (has(set), has(now)) {
        (false, _) => Ok(None),
        (true, true) => Ok(Some(SetTime::Now)),
        (true, false) if nanos < NANOS => Ok(Some(SetTime::At(seconds, nanos))),
        (true, false) => Err(Errno::EINVAL),
    };
    if has(setattr::SIZE) && !is_offset(wire.size) || has(setattr::CTIME) && wire.ctimensec >= NANOS {
        return Err(Errno::EINVAL);
    }
    Ok(SetAttr {
        handle: has(setattr::FH).then_some(Handle(wire.fh)),
        size: has(setattr::SIZE).then_some(wire.size),
        atime: time(setattr::ATIME, setattr::ATIME_NOW, wire.atime, wire.atimensec)?,
        mtime: time(setattr::MTIME, setattr::MTIME_NOW, wire.mtime, wire.mtimensec)?,
        ctime: has(setattr::CTIME).then_some((wire.ctime, wire.ctimensec)),
        mode: has(setattr::MODE).then_some(wire.mode & 0o7777),
        uid: has(setattr::UID).then_some(wire.uid),
        gid: has(setattr::GID).then_some(wire.gid),
        lock_owner: has(setattr::LOCKOWNER).then_some(wire.lock_owner),
        kill_suid_gid: has(setattr::KILL_SUIDGID),
    })
}

/// The range is checked by the server, which knows the room for the reply.
fn read(nodeid: NodeId, wire: &ReadIn) -> Read {
    Read {
        nodeid,
        handle: Handle(wire.fh),
        offset: wire.offset,
        size: wire.size,
        lock_owner: (wire.read_flags & flags::READ_LOCKOWNER != 0).then_some(wire.lock_owner),
        flags: wire.flags,
    }
}

/// Narrows a READ to `room` bytes of reply.
///
/// # Errors
/// EINVAL: it begins or ends at or beyond 2^63.
pub fn clamp_read(op: Read, room: usize) -> Result<Read> {
    let size = op.size.min(u32::try_from(room).unwrap_or(u32::MAX));
    if is_range(op.offset, u64::from(size)) { Ok(Read { size, ..op }) } else { Err(Errno::EINVAL) }
}

fn write(nodeid: NodeId, payload: usize, wire: &WriteIn) -> Result<Write> {
    let data = payload.checked_sub(WriteIn::SIZE).ok_or(Errno::EINVAL)?;
    let is_there = usize::try_from(wire.size).is_ok_and(|size| size <= data);
    if !is_there || !is_range(wire.offset, u64::from(wire.size)) {
        return Err(Errno::EINVAL);
    }
    let has = |bit| wire.write_flags & bit != 0;
    Ok(Write {
        nodeid,
        handle: Handle(wire.fh),
        offset: wire.offset,
        size: wire.size,
        lock_owner: has(flags::WRITE_LOCKOWNER).then_some(wire.lock_owner),
        delayed: has(flags::WRITE_CACHE),
        kill_priv: has(flags::WRITE_KILL_SUIDGID),
        flags: wire.flags,
    })
}

fn release(opcode: Opcode, wire: &ReleaseIn) -> Operation<'static> {
    let (handle, flags) = (Handle(wire.fh), wire.flags);
    if opcode == Opcode::Releasedir {
        return Operation::Releasedir { handle, flags };
    }
    let flock_unlock = wire.release_flags & flags::RELEASE_FLOCK_UNLOCK != 0;
    let is_owned = flock_unlock || wire.release_flags & flags::RELEASE_FLUSH != 0;
    Operation::Release { handle, flags, lock_owner: is_owned.then_some(wire.lock_owner), flock_unlock }
}

/// Tolerates a guest that sets INIT_EXT and sends the short structure.
fn hello(body: &[u8]) -> Result<Hello> {
    let (init, mut rest) = first::<InitIn>(body)?;
    let is_extended = u64::from(init.flags) & init::INIT_EXT != 0;
    let flags2 = is_extended.then(|| u32::take(&mut rest)).flatten().unwrap_or(0);
    Ok(Hello { init, flags2 })
}

fn fallocate(nodeid: NodeId, wire: &FallocateIn) -> Result<Operation<'static>> {
    let FallocateIn { fh, offset, length, mode, .. } = *wire;
    if !is_offset(offset) || !is_offset(length) || length == 0 {
        return Err(Errno::EINVAL);
    }
    if !is_range(offset, length) {
        return Err(Errno::EFBIG);
    }
    Ok(Operation::Fallocate { at: FileAt { nodeid, handle: Handle(fh), offset }, length, mode })
}

fn seek(nodeid: NodeId, wire: &LseekIn) -> Result<Operation<'static>> {
    const SET: u32 = libc::SEEK_SET.cast_unsigned();
    const END: u32 = libc::SEEK_END.cast_unsigned();
    const DATA: u32 = libc::SEEK_DATA.cast_unsigned();
    const HOLE: u32 = libc::SEEK_HOLE.cast_unsigned();
    let LseekIn { fh, offset, whence, .. } = *wire;
    match whence {
        SET..=END if !is_offset(offset) => Err(Errno::EINVAL),
        DATA | HOLE if !is_offset(offset) => Err(Errno::ENXIO),
        SET..=HOLE => Ok(Operation::Lseek { at: FileAt { nodeid, handle: Handle(fh), offset }, whence }),
        _ => Err(Errno::EINVAL),
    }
}

fn copy(nodeid: NodeId, wire: &CopyFileRangeIn) -> Result<Operation<'static>> {
    let CopyFileRangeIn { fh_in, off_in, nodeid_out, fh_out, off_out, len, flags } = *wire;
    if flags != 0 || !is_offset(off_in) || !is_offset(off_out) {
        return Err(Errno::EINVAL);
    }
    let len = len.min(COPY_MAX);
    if !is_range(off_in, len) || !is_range(off_out, len) {
        return Err(Errno::EOVERFLOW);
    }
    let from = FileAt { nodeid, handle: Handle(fh_in), offset: off_in };
    let to = FileAt { nodeid: NodeId(nodeid_out), handle: Handle(fh_out), offset: off_out };
    Ok(Operation::CopyFileRange { from, to, len, flags })
}
