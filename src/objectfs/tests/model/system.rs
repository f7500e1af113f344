//! What the contract is about: a file system over a store, seen from the guest, from the store and from fate.
//!
//! Paths are walked by whoever drives it; here are single requests, as FUSE has them. Errors are positive errno values.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::step::When;

/// What an operation comes to.
pub type Answer<T> = std::result::Result<T, i32>;

/// Objects by their keys, markers of directories with their slash, without anything of ovfs's own.
pub type Bucket = BTreeMap<String, Rc<Vec<u8>>>;

/// The root's node.
pub const ROOT: u64 = 1;

/// What a lookup tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Number for further requests.
    pub node: u64,
    /// A directory, or else a file.
    pub dir: bool,
    /// Length in bytes.
    pub size: u64,
    /// Modification time in seconds.
    pub mtime: i64,
}

/// A directory entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Cookie of the entry after it.
    pub next: u64,
    /// What READDIRPLUS said of it: node 0 if nothing.
    pub found: Option<Found>,
}

/// How a system differs from others in what it can do.
#[derive(Debug, Clone, Copy)]
pub struct Traits {
    /// Names are trusted until [`System::expire`]; else never.
    pub cached: bool,
    /// An object and objects below its name can be in the store at once, and directories need no object.
    pub flat: bool,
    /// The store can be made to fail, and retries can be provoked.
    pub faults: bool,
}

/// The system under test.
#[allow(missing_docs, reason = "the names are FUSE's")]
pub trait System {
    fn traits(&self) -> Traits;

    fn lookup(&mut self, parent: u64, name: &str) -> Answer<Found>;
    fn forget(&mut self, node: u64, lookups: u64);
    fn getattr(&mut self, node: u64) -> Answer<Found>;
    fn set_mtime(&mut self, node: u64, seconds: i64) -> Answer<Found>;
    fn truncate(&mut self, node: u64, handle: Option<u64>, size: u64) -> Answer<Found>;
    fn create(&mut self, parent: u64, name: &str, flags: i32) -> Answer<(Found, u64)>;
    fn mknod(&mut self, parent: u64, name: &str) -> Answer<Found>;
    fn mkdir(&mut self, parent: u64, name: &str) -> Answer<Found>;
    fn unlink(&mut self, parent: u64, name: &str) -> Answer<()>;
    fn rmdir(&mut self, parent: u64, name: &str) -> Answer<()>;
    fn rename(&mut self, from: (u64, &str), to: (u64, &str), noreplace: bool) -> Answer<()>;
    fn open(&mut self, node: u64, flags: i32) -> Answer<u64>;
    fn read(&mut self, node: u64, handle: u64, offset: u64, len: usize) -> Answer<Vec<u8>>;
    fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8], flags: i32) -> Answer<usize>;
    fn allocate(&mut self, node: u64, handle: u64, mode: i32, offset: u64, len: u64) -> Answer<()>;
    fn copy(&mut self, from: (u64, u64, u64), to: (u64, u64, u64), len: u64) -> Answer<u64>;
    fn seek(&mut self, node: u64, handle: u64, offset: u64, whence: i32) -> Answer<u64>;
    fn flush(&mut self, node: u64, handle: u64) -> Answer<()>;
    fn fsync(&mut self, node: u64, handle: u64) -> Answer<()>;
    fn release(&mut self, node: u64, handle: u64) -> Answer<()>;
    fn opendir(&mut self, node: u64) -> Answer<u64>;
    fn readdir(&mut self, node: u64, handle: u64, offset: u64, count: usize, plus: bool) -> Answer<Vec<Listed>>;
    fn releasedir(&mut self, node: u64, handle: u64) -> Answer<()>;
    fn syncfs(&mut self) -> Answer<()>;

    /// What the store holds.
    fn bucket(&mut self) -> Bucket;
    /// Another program puts an object.
    fn put(&mut self, key: &str, bytes: &[u8]);
    /// Another program deletes an object.
    fn delete(&mut self, key: &str);

    /// The time of the cache policy passes.
    fn expire(&mut self);
    /// Failed uploads are tried again.
    fn retry(&mut self);
    /// The session ends in order and another begins; says how many bytes could not be stored.
    fn remount(&mut self) -> u64;
    /// The daemon is gone at once, and another starts.
    fn crash(&mut self);
    /// A store operation fails once, with the error number `kind` of a few.
    fn fail(&mut self, operation: &'static str, when: When, kind: usize);
    /// Whether a failure that was asked for has happened; those that have not are called off.
    fn failed(&mut self) -> bool;
}
