//! Answers to bytes.
//!
//! A reply is a header and what follows it; the header goes out last, when its length is known. What these functions
//! return has the used length of the descriptor chain: exactly `fuse_out_header.len` (guests since Linux 7.1 compare
//! the two), or 0 when nothing could be said.

use std::time::Duration;

use super::ReplyBuffer;
use super::abi::{
    AttrOut, AttrWire, Dirent, EntryOut, Field, GetxattrOut, InitOut, Kstatfs, LseekOut, OpenOut, OutHeader, WriteOut,
};
use super::name;
use crate::fs::{Attr, DirEntry, DirSink, Entry, Errno, Opened, Sink, StatFs};

/// Bytes of the header that every reply begins with.
pub(super) const HEADER: usize = OutHeader::SIZE;
/// Longest structure behind a header: the entry and the handle that CREATE answers.
const FIXED_MAX: usize = EntryOut::SIZE + OpenOut::SIZE;

/// A reply that went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// The used length of the descriptor chain.
    pub len: u32,
    /// The reply is an errno.
    pub failed: bool,
}

/// What a request that succeeded comes to, READ and directories apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Empty,
    Entry(Entry),
    Created(Entry, Opened),
    Attr(Attr, Duration),
    Opened(Opened),
    /// Bytes written or copied.
    Count(u32),
    StatFs(StatFs),
    XattrSize(u32),
    Offset(u64),
    Init(InitOut),
    Data(Vec<u8>),
}

/// Sends `answer`. Data longer than the room becomes ERANGE.
pub(super) fn answer<W: Sink>(out: W, unique: u64, answer: &Answer) -> Sent {
    match answer {
        Answer::Empty => send(out, unique, 0, &[]),
        Answer::Entry(entry) => send(out, unique, 0, &entry_out(entry).to_bytes()),
        Answer::Created(entry, opened) => {
            let mut both = [0; FIXED_MAX];
            let mut room = both.as_mut_slice();
            entry_out(entry).put(&mut room);
            open_out(opened).put(&mut room);
            send(out, unique, 0, &both)
        }
        Answer::Attr(attr, timeout) => {
            let (attr_valid, attr_valid_nsec) = (timeout.as_secs(), timeout.subsec_nanos());
            send(out, unique, 0, &AttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr: attr_wire(attr) }.to_bytes())
        }
        Answer::Opened(opened) => send(out, unique, 0, &open_out(opened).to_bytes()),
        Answer::Count(size) => send(out, unique, 0, &WriteOut { size: *size, padding: 0 }.to_bytes()),
        Answer::StatFs(stat) => send(out, unique, 0, &kstatfs(stat).to_bytes()),
        Answer::XattrSize(size) => send(out, unique, 0, &GetxattrOut { size: *size, padding: 0 }.to_bytes()),
        Answer::Offset(offset) => send(out, unique, 0, &LseekOut { offset: *offset }.to_bytes()),
        Answer::Init(init) => send(out, unique, 0, &init.to_bytes()),
        Answer::Data(data) if data.len() > out.remaining().saturating_sub(HEADER) => error(out, unique, Errno::ERANGE),
        Answer::Data(data) => send(out, unique, 0, data),
    }
}

/// Sends a bare header with an error; 0 when not even that fits.
pub(super) fn error<W: Sink>(out: W, unique: u64, errno: Errno) -> Sent {
    send(out, unique, -errno.raw(), &[])
}

/// Sends the header of a reply whose `len` bytes of data stand behind it already.
pub(super) fn data_header<W: Sink>(out: W, unique: u64, len: usize) -> Sent {
    let Ok(len) = u32::try_from(HEADER + len) else { return error(out, unique, Errno::EIO) };
    put_header(out, OutHeader { len, error: 0, unique })
}

fn put_header<W: Sink>(mut out: W, header: OutHeader) -> Sent {
    match out.put(&header.to_bytes()) {
        Ok(()) => Sent { len: header.len, failed: false },
        Err(_) => Sent { len: 0, failed: true },
    }
}

/// Header and structure go out as one piece where they are short, which is one look-up in guest memory less.
fn send<W: Sink>(mut out: W, unique: u64, error: i32, body: &[u8]) -> Sent {
    let Ok(len) = u32::try_from(HEADER + body.len()) else { return Sent { len: 0, failed: true } };
    let header = OutHeader { len, error, unique };
    let mut piece = [0; HEADER + FIXED_MAX];
    let sent = match piece.get_mut(..HEADER + body.len()) {
        Some(piece) => {
            let (head, tail) = piece.split_at_mut(HEADER);
            head.copy_from_slice(&header.to_bytes());
            tail.copy_from_slice(body);
            out.put(piece)
        }
        None => out.put(&header.to_bytes()).and_then(|()| out.put(body)),
    };
    match sent {
        Ok(()) => Sent { len, failed: error != 0 },
        Err(_) => Sent { len: 0, failed: true },
    }
}

fn attr_wire(attr: &Attr) -> AttrWire {
    AttrWire {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        atimensec: attr.atimensec,
        mtimensec: attr.mtimensec,
        ctimensec: attr.ctimensec,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.blksize,
        flags: attr.flags,
    }
}

fn entry_out(entry: &Entry) -> EntryOut {
    EntryOut {
        nodeid: entry.nodeid.0,
        generation: entry.generation,
        entry_valid: entry.entry_timeout.as_secs(),
        attr_valid: entry.attr_timeout.as_secs(),
        entry_valid_nsec: entry.entry_timeout.subsec_nanos(),
        attr_valid_nsec: entry.attr_timeout.subsec_nanos(),
        attr: attr_wire(&entry.attr),
    }
}

fn open_out(opened: &Opened) -> OpenOut {
    OpenOut { fh: opened.handle.map_or(0, |handle| handle.0), open_flags: opened.flags, padding: 0 }
}

fn kstatfs(stat: &StatFs) -> Kstatfs {
    Kstatfs {
        blocks: stat.blocks,
        bfree: stat.bfree,
        bavail: stat.bavail,
        files: stat.files,
        ffree: stat.ffree,
        bsize: stat.bsize,
        namelen: stat.namelen,
        frsize: stat.frsize,
        padding: 0,
        spare: [0; 6],
    }
}

/// The longest entry: READDIRPLUS's, with a name of 255 bytes.
const RECORD_MAX: usize = EntryOut::SIZE + (Dirent::SIZE + name::NAME_MAX).next_multiple_of(8);

/// Bytes of one `fuse_dirent` with its name and padding.
fn dirent_len(name_len: usize) -> usize {
    (Dirent::SIZE + name_len).next_multiple_of(8)
}

/// Packs directory entries behind the header of a reply.
pub(super) struct DirPacker<W> {
    out: W,
    /// Bytes that may still be used: the guest's size, the room, whichever is less.
    room: usize,
    used: usize,
}

impl<W: ReplyBuffer> DirPacker<W> {
    /// Packs at most `size` bytes into `out`.
    pub(super) fn new(out: W, size: usize) -> DirPacker<W> {
        let room = size.min(out.remaining());
        DirPacker { out, room, used: 0 }
    }

    /// Bytes packed.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    fn pack(&mut self, dirent: &DirEntry<'_>, entry: Option<&Entry>) -> bool {
        if !name::is_listable(dirent.name) {
            // One such name would make the guest fail the whole listing. File systems hide them; this is the net.
            log::debug!("Hiding a directory entry whose name no guest accepts: {:?}", dirent.name.escape_ascii());
            return true;
        }
        let plus = if entry.is_some() { EntryOut::SIZE } else { 0 };
        let len = plus + dirent_len(dirent.name.len());
        let mut record = [0; RECORD_MAX];
        let (Some(record), true) = (record.get_mut(..len), len <= self.room) else { return false };
        let mut rest = &mut *record;
        if let Some(entry) = entry {
            entry_out(entry).put(&mut rest);
        }
        let namelen = dirent.name.len() as u32;
        Dirent { ino: dirent.ino, off: dirent.next_offset, namelen, kind: dirent.kind }.put(&mut rest);
        rest[..dirent.name.len()].copy_from_slice(dirent.name);
        if self.out.put(record).is_err() {
            self.room = 0;
            return false;
        }
        self.room -= len;
        self.used += len;
        true
    }
}

impl<W: ReplyBuffer> DirSink for DirPacker<W> {
    fn room(&self) -> usize {
        self.room
    }

    fn add(&mut self, entry: &DirEntry<'_>) -> bool {
        self.pack(entry, None)
    }

    fn fits_plus(&self, name_len: usize) -> bool {
        EntryOut::SIZE + dirent_len(name_len) <= self.room
    }

    fn add_plus(&mut self, name: &DirEntry<'_>, entry: &Entry) -> bool {
        self.pack(name, Some(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::NodeId;
    use crate::fuse::testing::VecReply;

    fn dirent(name: &[u8]) -> DirEntry<'_> {
        DirEntry { ino: 7, next_offset: 9, kind: 8, name }
    }

    fn entry() -> Entry {
        Entry {
            nodeid: NodeId(5),
            generation: 0,
            attr: Attr { ino: 7, mode: 0o100_644, ..Attr::default() },
            entry_timeout: Duration::from_millis(1500),
            attr_timeout: Duration::from_secs(2),
        }
    }

    #[test]
    fn entries_are_padded_to_eight_bytes_and_bounded_by_size() {
        let reply = VecReply::new(4096);
        let mut packer = DirPacker::new(reply.clone(), 24 + 8 + 24 + 16 + 7);
        assert!(packer.add(&dirent(b"abc")));
        assert!(packer.add(&dirent(b"123456789")));
        assert!(!packer.add(&dirent(b"x")), "7 bytes are left");
        assert_eq!(packer.used(), 72);
        let bytes = reply.bytes();
        assert_eq!(&bytes[24..32], b"abc\0\0\0\0\0");
        assert_eq!(bytes[16..20], 3u32.to_ne_bytes());
        assert_eq!(&bytes[56..72], b"123456789\0\0\0\0\0\0\0");
    }

    #[test]
    fn plus_entries_carry_attributes_first() {
        let reply = VecReply::new(160);
        let mut packer = DirPacker::new(reply.clone(), 4096);
        assert!(packer.fits_plus(8) && !packer.fits_plus(9));
        assert!(packer.add_plus(&dirent(b"12345678"), &entry()));
        assert!(!packer.add(&dirent(b"x")));
        let bytes = reply.bytes();
        assert_eq!(bytes[0..8], 5u64.to_ne_bytes());
        assert_eq!(bytes[16..24], 1u64.to_ne_bytes());
        assert_eq!(bytes[32..36], 500_000_000u32.to_ne_bytes());
        assert_eq!(bytes[128..136], 7u64.to_ne_bytes());
        assert_eq!(&bytes[152..160], b"12345678");
    }

    #[test]
    fn the_longest_name_fits_and_what_no_guest_accepts_is_hidden() {
        let reply = VecReply::new(4096);
        let mut packer = DirPacker::new(reply.clone(), 4096);
        assert!(packer.add_plus(&dirent(&[b'n'; 255]), &entry()));
        assert_eq!(packer.used(), RECORD_MAX);
        for hidden in [&[b'n'; 256][..], b"", b"a/b", b"a\0b"] {
            assert!(packer.add(&dirent(hidden)));
        }
        assert_eq!(packer.used(), RECORD_MAX);
    }

    #[test]
    fn used_length_is_the_headers() {
        let reply = VecReply::new(16 + 144);
        let opened = Opened { handle: None, flags: 1 };
        assert_eq!(answer(reply.clone(), 3, &Answer::Created(entry(), opened)), Sent { len: 160, failed: false });
        assert_eq!(reply.bytes()[..16], OutHeader { len: 160, error: 0, unique: 3 }.to_bytes());

        let reply = VecReply::new(20);
        assert_eq!(answer(reply.clone(), 3, &Answer::Data(vec![1; 5])), Sent { len: 16, failed: true });
        assert_eq!(reply.bytes()[..16], OutHeader { len: 16, error: -libc::ERANGE, unique: 3 }.to_bytes());
        assert_eq!(answer(VecReply::new(20), 3, &Answer::Data(vec![1; 4])).len, 20);
        assert_eq!(answer(VecReply::new(1016), 3, &Answer::Data(vec![1; 1000])).len, 1016);
        assert_eq!(error(VecReply::new(15), 3, Errno::EIO), Sent { len: 0, failed: true });
    }
}
