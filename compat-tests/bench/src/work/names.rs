//! Looking up, creating, removing, listing; and whole small files.

use ovfs_compat_tests::error::Error;
use ovfs_compat_tests::fuse::op;
use ovfs_compat_tests::subject::Rng;

use super::{Done, Reply, Work, pattern};
use crate::lane::{Data, Request};

/// Bytes of `fuse_entry_out`, `fuse_attr_out`, `fuse_open_out`.
const ENTRY: u32 = 128;
const ATTR: u32 = 104;
const OPENED: u32 = 16;
/// Bytes of `fuse_dirent` before its name.
const DIRENT: u64 = 24;

/// `prefix`, then `number` in eight digits, then NUL, without allocating.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    bytes: [u8; 24],
    len: usize,
}

impl Name {
    /// The name.
    ///
    /// # Panics
    /// When the prefix has more than 15 bytes.
    pub fn new(prefix: &str, mut number: u64) -> Name {
        let mut bytes = [0; 24];
        let start = prefix.len();
        assert!(start <= 15, "the prefix {prefix} is too long");
        bytes[..start].copy_from_slice(prefix.as_bytes());
        for digit in bytes[start..start + 8].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        Name { bytes, len: start + 8 }
    }

    /// With its NUL.
    pub fn terminated(&self) -> &[u8] {
        &self.bytes[..=self.len]
    }

    /// As text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes[..self.len]).into_owned()
    }
}

/// GETATTR or LOOKUP of random files of one directory.
#[derive(Debug)]
pub struct Stats {
    dir: u64,
    prefix: String,
    nodes: Vec<u64>,
    by_name: bool,
    rng: Rng,
}

impl Stats {
    /// Of the files whose inodes are `nodes` and whose names are `prefix` and their number there.
    pub fn new(dir: u64, prefix: &str, nodes: Vec<u64>, by_name: bool, seed: u64) -> Stats {
        Stats { dir, prefix: prefix.to_owned(), nodes, by_name, rng: Rng::new(seed) }
    }
}

impl Work for Stats {
    fn next(&mut self, _: usize, stopping: bool, _: &Data) -> Option<Request> {
        if stopping {
            return None;
        }
        let n = self.rng.below(self.nodes.len() as u64);
        Some(if self.by_name {
            let name = Name::new(&self.prefix, n);
            Request::new(op::LOOKUP, self.dir).bytes(name.terminated()).reply(ENTRY)
        } else {
            Request::new(op::GETATTR, self.nodes[n as usize]).u32s(&[0, 0]).u64s(&[0]).reply(ATTR)
        })
    }

    fn reply(&mut self, _: usize, reply: &Reply) -> Result<Done, Error> {
        reply.ok("stat")?;
        let want = if self.by_name { ENTRY } else { ATTR };
        if reply.len != want {
            return Err(Error::BadReply(format!("stat: {} bytes instead of {want}", reply.len)));
        }
        Ok(Done { ops: 1, bytes: 0 })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Rest,
    Create,
    Write,
    Flush,
    Release,
    Unlink,
    Forget,
}

#[derive(Clone, Copy, Debug)]
struct File {
    step: Step,
    number: u64,
    nodeid: u64,
    fh: u64,
}

/// Files made one after another: CREATE, WRITE unless empty, FLUSH, RELEASE, UNLINK unless kept, FORGET. Each is one
/// operation.
#[derive(Debug)]
pub struct Files {
    dir: u64,
    prefix: String,
    size: u32,
    keep: bool,
    next: u64,
    end: u64,
    files: Vec<File>,
}

impl Files {
    /// Empty files, each removed again.
    pub fn made_and_removed(dir: u64, prefix: &str, first: u64, depth: usize) -> Files {
        Files::new(dir, prefix, 0, false, (first, u64::MAX), depth)
    }

    /// Files of `size` bytes (at most a mebibyte) numbered `range.0..range.1`.
    pub fn kept(dir: u64, prefix: &str, size: u32, range: (u64, u64), depth: usize) -> Files {
        Files::new(dir, prefix, size, true, range, depth)
    }

    fn new(dir: u64, prefix: &str, size: u32, keep: bool, (next, end): (u64, u64), depth: usize) -> Files {
        let rest = File { step: Step::Rest, number: 0, nodeid: 0, fh: 0 };
        Files { dir, prefix: prefix.to_owned(), size, keep, next, end, files: vec![rest; depth] }
    }

    /// The number of the next file that would be made.
    pub fn next_number(&self) -> u64 {
        self.next
    }
}

impl Work for Files {
    fn next(&mut self, slot: usize, stopping: bool, data: &Data) -> Option<Request> {
        let file = &mut self.files[slot];
        file.step = match file.step {
            Step::Rest | Step::Forget if stopping || self.next >= self.end => {
                file.step = Step::Rest;
                return None;
            }
            Step::Rest | Step::Forget => {
                file.number = self.next;
                self.next += 1;
                Step::Create
            }
            Step::Create if self.size > 0 => Step::Write,
            Step::Create | Step::Write => Step::Flush,
            Step::Flush => Step::Release,
            Step::Release if !self.keep => Step::Unlink,
            Step::Release | Step::Unlink => Step::Forget,
        };
        let name = Name::new(&self.prefix, file.number);
        Some(match file.step {
            Step::Rest | Step::Create => {
                let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
                let mode = libc::S_IFREG | 0o644;
                let request = Request::new(op::CREATE, self.dir).u32s(&[flags.cast_unsigned(), mode, 0, 0]);
                request.bytes(name.terminated()).reply(ENTRY + OPENED)
            }
            Step::Write => {
                for page in (0..u64::from(self.size)).step_by(4096) {
                    data.set_u64(page, pattern(file.number, page));
                }
                let request = Request::new(op::WRITE, file.nodeid).u64s(&[file.fh, 0]).u32s(&[self.size, 0]);
                let mut request = request.u64s(&[0]).u32s(&[libc::O_RDWR.cast_unsigned(), 0]).reply(8);
                request.data_out = self.size;
                request
            }
            Step::Flush => Request::new(op::FLUSH, file.nodeid).u64s(&[file.fh, 0, 0]),
            Step::Release => Request::new(op::RELEASE, file.nodeid).u64s(&[file.fh, 0, 0]),
            Step::Unlink => Request::new(op::UNLINK, self.dir).bytes(name.terminated()),
            Step::Forget => {
                let mut request = Request::new(op::FORGET, file.nodeid).u64s(&[1]);
                request.reply = None;
                request
            }
        })
    }

    fn reply(&mut self, slot: usize, reply: &Reply) -> Result<Done, Error> {
        let file = &mut self.files[slot];
        let step = file.step;
        if reply.errno != 0 {
            reply.ok(&format!("{step:?} of file {}", file.number))?;
        }
        Ok(match step {
            Step::Create => {
                file.nodeid = reply.body.u64(0);
                file.fh = reply.body.u64(ENTRY.into());
                Done::default()
            }
            Step::Write if reply.body.u32(0) != self.size => {
                return Err(Error::BadReply(format!("WRITE of file {}: short", file.number)));
            }
            Step::Write => Done { ops: 0, bytes: self.size.into() },
            Step::Forget => Done { ops: 1, bytes: 0 },
            Step::Rest | Step::Flush | Step::Release | Step::Unlink => Done::default(),
        })
    }
}

/// Whole small files read one after another: OPEN, READ, FLUSH, RELEASE. Each is one operation.
#[derive(Debug)]
pub struct SmallReads {
    /// Inode, size, seed.
    files: Vec<(u64, u32, u64)>,
    next: usize,
    at: Vec<(u32, usize, u64)>,
}

impl SmallReads {
    /// Of `files`: inode, size up to a mebibyte, seed of the contents.
    pub fn new(files: Vec<(u64, u32, u64)>, depth: usize) -> SmallReads {
        SmallReads { files, next: 0, at: vec![(0, 0, 0); depth] }
    }
}

impl Work for SmallReads {
    fn next(&mut self, slot: usize, stopping: bool, _: &Data) -> Option<Request> {
        let (opcode, n, fh) = &mut self.at[slot];
        *opcode = match *opcode {
            op::OPEN => op::READ,
            op::READ => op::FLUSH,
            op::FLUSH => op::RELEASE,
            _ if stopping || self.next >= self.files.len() => {
                *opcode = 0;
                return None;
            }
            _ => {
                *n = self.next;
                self.next += 1;
                op::OPEN
            }
        };
        let (nodeid, size, _) = self.files[*n];
        let request = Request::new(*opcode, nodeid);
        Some(match *opcode {
            op::OPEN => request.u32s(&[libc::O_RDONLY.cast_unsigned(), 0]).reply(OPENED),
            op::READ => {
                let block = size.next_multiple_of(4096);
                let mut request = request.u64s(&[*fh, 0]).u32s(&[block, 0]).u64s(&[0]).u32s(&[0, 0]);
                request.data_in = block;
                request
            }
            _ => request.u64s(&[*fh, 0, 0]),
        })
    }

    fn reply(&mut self, slot: usize, reply: &Reply) -> Result<Done, Error> {
        let (opcode, n, fh) = &mut self.at[slot];
        reply.ok("reading a small file")?;
        let (_, size, seed) = self.files[*n];
        match *opcode {
            op::OPEN => *fh = reply.body.u64(0),
            op::READ => {
                if reply.len != size || reply.data.u64(0) != pattern(seed, 0) {
                    return Err(Error::BadReply(format!("small file {n}: wrong data ({} bytes)", reply.len)));
                }
                return Ok(Done { ops: 0, bytes: size.into() });
            }
            op::RELEASE => return Ok(Done { ops: 1, bytes: 0 }),
            _ => {}
        }
        Ok(Done::default())
    }
}

/// READDIRPLUS from the first entry to the last, a handle per slot; each entry is an operation.
#[derive(Debug)]
pub struct Listing {
    dir: u64,
    size: u32,
    again: bool,
    at: Vec<Position>,
    /// Inode and size of every entry of the first pass of slot 0, when they are wanted.
    pub seen: Option<Vec<(u64, u64)>>,
}

#[derive(Clone, Copy, Debug)]
struct Position {
    fh: u64,
    offset: u64,
    over: bool,
}

impl Listing {
    /// Through `handles`, one per slot, in replies of up to `size` bytes; `again`: without end.
    pub fn new(dir: u64, handles: &[u64], size: u32, again: bool) -> Listing {
        let at = handles.iter().map(|&fh| Position { fh, offset: 0, over: false }).collect();
        Listing { dir, size, again, at, seen: None }
    }
}

impl Work for Listing {
    fn next(&mut self, slot: usize, stopping: bool, _: &Data) -> Option<Request> {
        let at = &mut self.at[slot];
        if stopping {
            return None;
        }
        if at.over {
            if !self.again {
                return None;
            }
            (at.offset, at.over) = (0, false);
        }
        let request = Request::new(op::READDIRPLUS, self.dir).u64s(&[at.fh, at.offset]);
        let mut request = request.u32s(&[self.size, 0]).u64s(&[0]).u32s(&[0, 0]);
        request.data_in = self.size;
        Some(request)
    }

    fn reply(&mut self, slot: usize, reply: &Reply) -> Result<Done, Error> {
        reply.ok("READDIRPLUS")?;
        let at = &mut self.at[slot];
        let (mut from, len, mut entries) = (0u64, u64::from(reply.len), 0);
        at.over = len == 0;
        while from + u64::from(ENTRY) + DIRENT <= len {
            let dirent = from + u64::from(ENTRY);
            let (nodeid, size) = (reply.data.u64(from), reply.data.u64(from + 48));
            at.offset = reply.data.u64(dirent + 8);
            let name_len = u64::from(reply.data.u32(dirent + 16));
            from = dirent + (DIRENT + name_len).next_multiple_of(8);
            // `.` and `..` come without a node.
            if nodeid != 0 {
                entries += 1;
                if let (Some(seen), 0) = (&mut self.seen, slot) {
                    seen.push((nodeid, size));
                }
            }
        }
        if from != len {
            return Err(Error::BadReply(format!("READDIRPLUS: a record ends at {from} of {len} bytes")));
        }
        Ok(Done { ops: entries, bytes: 0 })
    }
}
