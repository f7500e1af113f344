//! The FUSE protocol: bytes to operations, answers to bytes.
//!
//! [`Server`] takes the readable bytes of a descriptor chain and the room for its reply, asks a
//! [`FileSystem`](crate::fs::FileSystem), and says how many bytes of the reply count. It knows neither virtio nor
//! storage. A guest may send any bytes at any time: each request ends in exactly one reply or, where the protocol
//! has none, in none; nothing panics, loops or allocates by a number that the guest merely claims.
//!
//! A request's way: [`decode`] checks and types it, `server` dispatches it, `reply` packs the answer; `session` holds
//! what INIT agreed.

use std::io;

use crate::fs::Sink;

pub mod abi;
mod body;
pub mod decode;
mod extension;
pub mod flags;
pub mod name;
mod reply;
mod server;
pub mod session;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use server::{Server, ServerOptions};

/// The writable part of a request's descriptor chain.
pub trait ReplyBuffer: Sink + Sized {
    /// Splits the buffer: `self` keeps the first `len` bytes (where the reply's header goes, last), the result is the rest.
    ///
    /// # Errors
    /// When fewer than `len` bytes remain.
    fn split_at(&mut self, len: usize) -> io::Result<Self>;
}
