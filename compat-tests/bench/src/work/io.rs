//! Reading and writing an open file.

use ovfs_compat_tests::error::Error;
use ovfs_compat_tests::fuse::op;
use ovfs_compat_tests::memory::PAGE;
use ovfs_compat_tests::subject::Rng;

use super::{Done, Reply, Work, pattern};
use crate::lane::{Data, Request};

/// An open file whose contents follow [`pattern`].
#[derive(Clone, Copy, Debug)]
pub struct OpenFile {
    /// Its inode.
    pub nodeid: u64,
    /// The handle.
    pub fh: u64,
    /// Bytes in it.
    pub size: u64,
    /// Seed of its contents.
    pub seed: u64,
}

/// In which order blocks are visited.
#[derive(Clone, Debug)]
pub enum Order {
    /// Any block at any time, this often.
    Random {
        /// Source of chance.
        rng: Rng,
        /// Blocks still to visit.
        left: u64,
    },
    /// One after another from `next` up to `end`; with `wrap`, from the start again.
    Sequential {
        /// First byte of the next block.
        next: u64,
        /// Where it ends.
        end: u64,
        /// Start again at the end.
        wrap: bool,
    },
}

impl Order {
    /// Random blocks without end.
    pub fn random(seed: u64) -> Order {
        Order::Random { rng: Rng::new(seed), left: u64::MAX }
    }

    /// The whole of `0..size`, once.
    pub fn once(size: u64) -> Order {
        Order::Sequential { next: 0, end: size, wrap: false }
    }

    /// The whole of `0..size`, again and again.
    pub fn over_and_over(size: u64) -> Order {
        Order::Sequential { next: 0, end: size, wrap: true }
    }

    fn next(&mut self, block: u64, size: u64) -> Option<u64> {
        match self {
            Order::Random { rng, left } => {
                *left = left.checked_sub(1)?;
                Some(rng.below((size / block).max(1)) * block)
            }
            Order::Sequential { next, end, wrap } => {
                if *next >= *end {
                    if !*wrap {
                        return None;
                    }
                    *next = 0;
                }
                let at = *next;
                *next += block;
                Some(at)
            }
        }
    }
}

/// READ of one block after another.
#[derive(Debug)]
pub struct Reads {
    file: OpenFile,
    block: u32,
    order: Order,
    at: Vec<u64>,
}

impl Reads {
    /// Reads of `block` bytes for up to `depth` slots.
    pub fn new(file: OpenFile, block: u32, order: Order, depth: usize) -> Reads {
        Reads { file, block, order, at: vec![0; depth] }
    }
}

impl Work for Reads {
    fn next(&mut self, slot: usize, stopping: bool, _: &Data) -> Option<Request> {
        if stopping {
            return None;
        }
        let offset = self.order.next(self.block.into(), self.file.size)?;
        self.at[slot] = offset;
        let mut request = Request::new(op::READ, self.file.nodeid)
            .u64s(&[self.file.fh, offset])
            .u32s(&[self.block, 0])
            .u64s(&[0])
            .u32s(&[0, 0]);
        request.data_in = self.block;
        Some(request)
    }

    fn reply(&mut self, slot: usize, reply: &Reply) -> Result<Done, Error> {
        reply.ok("READ")?;
        let offset = self.at[slot];
        let want = u64::from(self.block).min(self.file.size - offset);
        if u64::from(reply.len) != want {
            return Err(Error::BadReply(format!("READ at {offset}: {} bytes instead of {want}", reply.len)));
        }
        for page in (0..want).step_by(PAGE as usize) {
            let (found, expected) = (reply.data.u64(page), pattern(self.file.seed, offset + page));
            if found != expected {
                let why = format!("READ at {}: wrong data: {found:#x} instead of {expected:#x}", offset + page);
                return Err(Error::BadReply(why));
            }
        }
        Ok(Done { ops: 1, bytes: want })
    }
}

/// WRITE of one block after another, always what belongs there.
#[derive(Debug)]
pub struct Writes {
    file: OpenFile,
    block: u32,
    order: Order,
}

impl Writes {
    /// Writes of `block` bytes.
    pub fn new(file: OpenFile, block: u32, order: Order) -> Writes {
        Writes { file, block, order }
    }
}

impl Work for Writes {
    fn next(&mut self, _: usize, stopping: bool, data: &Data) -> Option<Request> {
        if stopping {
            return None;
        }
        let offset = self.order.next(self.block.into(), self.file.size)?;
        // The words that reads look at; the rest of each page stays as it is.
        for page in (0..u64::from(self.block)).step_by(PAGE as usize) {
            data.set_u64(page, pattern(self.file.seed, offset + page));
        }
        let mut request = Request::new(op::WRITE, self.file.nodeid)
            .u64s(&[self.file.fh, offset])
            .u32s(&[self.block, 0])
            .u64s(&[0])
            .u32s(&[libc::O_RDWR.cast_unsigned(), 0])
            .reply(8);
        request.data_out = self.block;
        Some(request)
    }

    fn reply(&mut self, _: usize, reply: &Reply) -> Result<Done, Error> {
        reply.ok("WRITE")?;
        let written = reply.body.u32(0);
        if written != self.block {
            return Err(Error::BadReply(format!("WRITE: {written} bytes instead of {}", self.block)));
        }
        Ok(Done { ops: 1, bytes: written.into() })
    }
}
