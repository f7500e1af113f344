//! What a lane does: endless or finite streams of FUSE requests, each reply checked.
//!
//! [`io`] reads and writes, [`names`] looks up, creates, removes and lists. File contents follow [`pattern`], so that
//! every page read tells whether it is the right one, whoever wrote it.

pub mod io;
pub mod names;

use ovfs_compat_tests::error::{Error, errno_name};

use crate::lane::{Data, Request};

/// A reply as a workload sees it.
#[derive(Debug)]
pub struct Reply<'a> {
    /// Positive errno, 0 for success.
    pub errno: i32,
    /// Bytes behind the reply's header.
    pub len: u32,
    /// The reply's structure.
    pub body: Data<'a>,
    /// The data behind it, when the request reserved pages for some.
    pub data: Data<'a>,
}

impl Reply<'_> {
    /// Fails unless the reply says success.
    ///
    /// # Errors
    /// [`Error::BadReply`] with the errno.
    pub fn ok(&self, what: &str) -> Result<(), Error> {
        if self.errno == 0 { Ok(()) } else { Err(Error::BadReply(format!("{what}: {}", errno_name(self.errno)))) }
    }
}

/// What a reply was worth.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Operations completed by it.
    pub ops: u64,
    /// File data moved.
    pub bytes: u64,
}

/// A source of requests. One request per slot is in flight at any time.
pub trait Work: Send {
    /// The slot's next request; `None` when it has none. With `stopping`, only what was begun is to be finished.
    fn next(&mut self, slot: usize, stopping: bool, data: &Data) -> Option<Request>;

    /// The reply to the slot's request.
    ///
    /// # Errors
    /// Whatever makes the run worthless: an errno, wrong data.
    fn reply(&mut self, slot: usize, reply: &Reply) -> Result<Done, Error>;
}

/// The eight bytes that every file of seed `seed` has at `offset`, a multiple of eight.
pub fn pattern(seed: u64, offset: u64) -> u64 {
    (offset ^ seed.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Fills `buf` with what a file of seed `seed` has at `offset`, a multiple of eight.
pub fn fill(seed: u64, offset: u64, buf: &mut [u8]) {
    for (n, word) in buf.chunks_mut(8).enumerate() {
        word.copy_from_slice(&pattern(seed, offset + 8 * n as u64).to_le_bytes()[..word.len()]);
    }
}
