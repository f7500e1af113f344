//! The FUSE protocol: bytes to operations, answers to bytes.

use std::io;

use crate::fs::Sink;

/// The writable part of a request's descriptor chain.
pub trait ReplyBuffer: Sink + Sized {
    /// Splits the buffer: `self` keeps the first `len` bytes (where the reply's header goes, last), the result is the rest.
    ///
    /// # Errors
    /// When fewer than `len` bytes remain.
    fn split_at(&mut self, len: usize) -> io::Result<Self>;
}
