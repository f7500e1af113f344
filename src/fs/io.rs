//! Guest buffers as a file system sees them: somewhere to put a reply's data, somewhere to take a request's data from.

use std::fs::File;
use std::io;
use std::time::Instant;

use super::types::{DirEntry, Entry};

/// Where READ puts its data. Bytes land in the guest's descriptors in order.
pub trait Sink: Send {
    /// Bytes that still fit.
    fn remaining(&self) -> usize;

    /// Appends all of `data`.
    ///
    /// # Errors
    /// When `data` is longer than [`Sink::remaining`], or the guest's memory is gone.
    fn put(&mut self, data: &[u8]) -> io::Result<()>;

    /// Appends `len` zero bytes.
    ///
    /// # Errors
    /// As [`Sink::put`].
    fn put_zeros(&mut self, len: usize) -> io::Result<()>;

    /// Appends up to `len` bytes of `file` from `offset` with preadv2(2), without a copy in between; goes on
    /// until `len` bytes, end of file or a full sink. `flags` are RWF_* flags. Returns the count.
    ///
    /// # Errors
    /// The system call's error.
    fn put_from_file(&mut self, file: &File, len: usize, offset: u64, flags: i32) -> io::Result<usize>;
}

/// Where WRITE takes its data from.
pub trait Source: Send {
    /// When the request was taken from its queue, where that is known.
    fn arrived(&self) -> Option<Instant> {
        None
    }

    /// Bytes not taken yet.
    fn remaining(&self) -> usize;

    /// Fills all of `buf` with the next bytes.
    ///
    /// # Errors
    /// When fewer than `buf.len()` remain, or the guest's memory is gone.
    fn take(&mut self, buf: &mut [u8]) -> io::Result<()>;

    /// Writes up to `len` of the next bytes to `file` at `offset` with pwritev2(2), without a copy in between; goes
    /// on until `len` bytes or a write of 0. `flags` are RWF_* flags. Returns the count.
    ///
    /// # Errors
    /// The system call's error.
    fn take_to_file(&mut self, file: &File, len: usize, offset: u64, flags: i32) -> io::Result<usize>;
}

/// Where READDIR and READDIRPLUS put their entries.
pub trait DirSink: Send {
    /// Bytes that are left for entries: a hint for how much of a directory to fetch.
    fn room(&self) -> usize {
        4096
    }

    /// Packs a name for READDIR. `false`: it does not fit, stop here.
    fn add(&mut self, entry: &DirEntry<'_>) -> bool;

    /// Whether a name of `name_len` bytes would fit as a READDIRPLUS entry. Ask before raising a lookup count.
    fn fits_plus(&self, name_len: usize) -> bool;

    /// Packs a name with its attributes for READDIRPLUS. `false`: it does not fit; the lookup count that
    /// `entry` stands for was then not handed to the guest.
    fn add_plus(&mut self, name: &DirEntry<'_>, entry: &Entry) -> bool;
}
