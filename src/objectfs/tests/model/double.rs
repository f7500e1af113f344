//! The file system over the store double, as the model drives it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context as Polling, Poll};
use std::time::{Duration, Instant};

use super::step::When;
use super::system::{Answer, Bucket as Objects, Found, Listed, System, Traits};
use crate::fs::{
    Attr, Context, Entry, Errno, Extensions, FileAt, FileSystem, Handle, NodeId, Read, SetAttr, SetTime, Write,
};
use crate::objectfs::testing::{self, Bucket, Buffer, MemStore, Names, capabilities};
use crate::objectfs::tree::HIDDEN_PREFIX;
use crate::objectfs::{CachePolicy, Config, ObjectFs};
use crate::store::{Pool, Remote, StoreErrorKind};

/// Entries that a page of the store's listings has.
const PAGE: usize = 3;
/// How long one operation may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(20);
/// Length of the pieces in which long files are sent.
const PIECE: u64 = 4096;
/// How the store fails.
const KINDS: [StoreErrorKind; 4] =
    [StoreErrorKind::Io, StoreErrorKind::Unavailable, StoreErrorKind::PermissionDenied, StoreErrorKind::NoSpace];
const CTX: Context = Context { uid: 0, gid: 0, pid: 1, unique: 1 };

/// A file system over a store in memory.
pub struct Double {
    fs: ObjectFs<MemStore>,
    bucket: Arc<Mutex<Bucket>>,
    cache: CachePolicy,
    pool: usize,
    /// Failures asked for.
    pending: usize,
    /// The objects as last seen, with their ETags, so that only what changed is copied.
    seen: BTreeMap<String, (u64, Rc<Vec<u8>>)>,
}

/// Runs a future to its end, with no thread asleep.
///
/// # Panics
/// When it does not end.
fn drive<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut polling = Polling::from_waker(futures::task::noop_waker_ref());
    let began = Instant::now();
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut polling) {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "an operation hangs");
        std::thread::yield_now();
    }
}

fn answer<T>(future: impl Future<Output = Result<T, Errno>>) -> Answer<T> {
    drive(future).map_err(Errno::raw)
}

/// A store that takes long files in pieces.
fn flowing() -> crate::store::Capabilities {
    crate::store::Capabilities { flows: Some(PIECE), ..capabilities() }
}

fn mounted(cache: CachePolicy, pool: usize, bucket: &Arc<Mutex<Bucket>>) -> ObjectFs<MemStore> {
    let pool = Arc::new(Pool::new(pool).expect("memfd"));
    let store = MemStore::new(Arc::clone(&pool), Arc::clone(bucket), PAGE);
    let config = Config { cache, piece: PIECE, ..testing::config() };
    let fs = ObjectFs::new(config, Remote::new(store, 0), flowing(), pool).expect("threads");
    drive(fs.init(u64::MAX)).expect("init");
    fs
}

impl Double {
    /// An empty one, with `pool` bytes of memory for file data.
    pub fn new(cache: CachePolicy, pool: usize) -> Double {
        let bucket = Arc::new(Mutex::new(Bucket { resumes: true, ..Bucket::default() }));
        let fs = mounted(cache, pool, &bucket);
        Double { fs, bucket, cache, pool, pending: 0, seen: BTreeMap::new() }
    }

    fn objects(&self) -> std::sync::MutexGuard<'_, Bucket> {
        self.bucket.lock().expect("no panics in the bucket")
    }
}

fn found(node: NodeId, attr: &Attr) -> Found {
    Found { node: node.0, dir: attr.mode & libc::S_IFMT == libc::S_IFDIR, size: attr.size, mtime: attr.mtime }
}

fn entry(entry: &Entry) -> Found {
    found(entry.nodeid, &entry.attr)
}

impl System for Double {
    fn traits(&self) -> Traits {
        Traits { cached: self.cache != CachePolicy::Never, flat: true, faults: true }
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Answer<Found> {
        answer(self.fs.lookup(CTX, NodeId(parent), name.as_bytes())).map(|e| entry(&e))
    }

    fn forget(&mut self, node: u64, lookups: u64) {
        self.fs.forget(NodeId(node), lookups);
    }

    fn getattr(&mut self, node: u64) -> Answer<Found> {
        answer(self.fs.getattr(CTX, NodeId(node), None)).map(|(attr, _)| found(NodeId(node), &attr))
    }

    fn set_mtime(&mut self, node: u64, seconds: i64) -> Answer<Found> {
        let change = SetAttr { mtime: Some(SetTime::At(seconds, 0)), ..SetAttr::default() };
        answer(self.fs.setattr(CTX, NodeId(node), change)).map(|(attr, _)| found(NodeId(node), &attr))
    }

    fn truncate(&mut self, node: u64, handle: Option<u64>, size: u64) -> Answer<Found> {
        let change = SetAttr { handle: handle.map(Handle), size: Some(size), ..SetAttr::default() };
        answer(self.fs.setattr(CTX, NodeId(node), change)).map(|(attr, _)| found(NodeId(node), &attr))
    }

    fn create(&mut self, parent: u64, name: &str, flags: i32) -> Answer<(Found, u64)> {
        let (parent, flags) = (NodeId(parent), flags.cast_unsigned());
        let created = self.fs.create(CTX, parent, name.as_bytes(), 0o644, flags, 0, false, Extensions::default());
        answer(created).map(|(made, opened)| (entry(&made), opened.handle.map_or(0, |handle| handle.0)))
    }

    fn mknod(&mut self, parent: u64, name: &str) -> Answer<Found> {
        let mode = libc::S_IFREG | 0o644;
        let made = self.fs.mknod(CTX, NodeId(parent), name.as_bytes(), mode, 0, 0, Extensions::default());
        answer(made).map(|e| entry(&e))
    }

    fn mkdir(&mut self, parent: u64, name: &str) -> Answer<Found> {
        let made = self.fs.mkdir(CTX, NodeId(parent), name.as_bytes(), 0o755, 0, Extensions::default());
        answer(made).map(|e| entry(&e))
    }

    fn unlink(&mut self, parent: u64, name: &str) -> Answer<()> {
        answer(self.fs.unlink(CTX, NodeId(parent), name.as_bytes()))?;
        // Many go in batches, later; here each is waited for.
        answer(self.fs.core.settle_all())
    }

    fn rmdir(&mut self, parent: u64, name: &str) -> Answer<()> {
        answer(self.fs.rmdir(CTX, NodeId(parent), name.as_bytes()))
    }

    fn rename(&mut self, from: (u64, &str), to: (u64, &str), noreplace: bool) -> Answer<()> {
        let flags = if noreplace { libc::RENAME_NOREPLACE } else { 0 };
        answer(self.fs.rename(CTX, NodeId(from.0), from.1.as_bytes(), NodeId(to.0), to.1.as_bytes(), flags))
    }

    fn open(&mut self, node: u64, flags: i32) -> Answer<u64> {
        let opened = answer(self.fs.open(CTX, NodeId(node), flags.cast_unsigned(), false))?;
        Ok(opened.handle.map_or(0, |handle| handle.0))
    }

    fn read(&mut self, node: u64, handle: u64, offset: u64, len: usize) -> Answer<Vec<u8>> {
        let mut out = Buffer::room(len);
        let size = u32::try_from(len).unwrap_or(u32::MAX);
        let op = Read { nodeid: NodeId(node), handle: Handle(handle), offset, size, lock_owner: None, flags: 0 };
        let n = answer(self.fs.read(CTX, op, &mut out))?;
        assert_eq!(n, out.bytes.len(), "a read says how much it gave");
        Ok(out.bytes)
    }

    fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8], flags: i32) -> Answer<usize> {
        let op = Write {
            nodeid: NodeId(node),
            handle: Handle(handle),
            offset,
            size: u32::try_from(data.len()).unwrap_or(u32::MAX),
            lock_owner: None,
            delayed: false,
            kill_priv: false,
            flags: flags.cast_unsigned(),
        };
        answer(self.fs.write(CTX, op, &mut Buffer::of(data)))
    }

    fn allocate(&mut self, node: u64, handle: u64, mode: i32, offset: u64, len: u64) -> Answer<()> {
        let at = FileAt { nodeid: NodeId(node), handle: Handle(handle), offset };
        answer(self.fs.fallocate(CTX, at, len, mode.cast_unsigned()))
    }

    fn copy(&mut self, from: (u64, u64, u64), to: (u64, u64, u64), len: u64) -> Answer<u64> {
        let at = |(node, handle, offset)| FileAt { nodeid: NodeId(node), handle: Handle(handle), offset };
        answer(self.fs.copy_file_range(CTX, at(from), at(to), len, 0)).map(|n| n as u64)
    }

    fn seek(&mut self, node: u64, handle: u64, offset: u64, whence: i32) -> Answer<u64> {
        let at = FileAt { nodeid: NodeId(node), handle: Handle(handle), offset };
        answer(self.fs.lseek(CTX, at, whence.cast_unsigned()))
    }

    fn flush(&mut self, node: u64, handle: u64) -> Answer<()> {
        answer(self.fs.flush(CTX, NodeId(node), Handle(handle), 0))
    }

    fn fsync(&mut self, node: u64, handle: u64) -> Answer<()> {
        answer(self.fs.fsync(CTX, NodeId(node), Handle(handle), false))
    }

    fn release(&mut self, node: u64, handle: u64) -> Answer<()> {
        answer(self.fs.release(CTX, NodeId(node), Handle(handle), 0, None, false))
    }

    fn opendir(&mut self, node: u64) -> Answer<u64> {
        answer(self.fs.opendir(CTX, NodeId(node), 0)).map(|opened| opened.handle.map_or(0, |handle| handle.0))
    }

    fn readdir(&mut self, node: u64, handle: u64, offset: u64, count: usize, plus: bool) -> Answer<Vec<Listed>> {
        let mut out = Names::new(count);
        let (node, handle) = (NodeId(node), Handle(handle));
        if plus {
            answer(self.fs.readdirplus(CTX, node, handle, offset, &mut out))?;
        } else {
            answer(self.fs.readdir(CTX, node, handle, offset, &mut out))?;
        }
        let listed = |(name, next, told): (String, u64, Option<Entry>)| Listed {
            name,
            next,
            found: told.map(|told| entry(&told)),
        };
        Ok(out.names.into_iter().map(listed).collect())
    }

    fn releasedir(&mut self, node: u64, handle: u64) -> Answer<()> {
        answer(self.fs.releasedir(CTX, NodeId(node), Handle(handle), 0))
    }

    fn syncfs(&mut self) -> Answer<()> {
        answer(self.fs.syncfs(CTX, NodeId::ROOT))
    }

    fn bucket(&mut self) -> Objects {
        // What goes on by itself comes to rest first, so that every change is of the step that made it.
        let began = Instant::now();
        while !self.fs.core.sending_rests() {
            assert!(began.elapsed() < PATIENCE, "a file is sent for ever");
            std::thread::yield_now();
        }
        let bucket = Arc::clone(&self.bucket);
        let bucket = bucket.lock().expect("no panics in the bucket");
        self.seen.retain(|key, _| bucket.objects.contains_key(key));
        for (key, object) in &bucket.objects {
            if !key.starts_with(HIDDEN_PREFIX) && self.seen.get(key).is_none_or(|(etag, _)| *etag != object.etag) {
                self.seen.insert(key.clone(), (object.etag, Rc::new(object.bytes.clone())));
            }
        }
        self.seen.iter().map(|(key, (_, bytes))| (key.clone(), Rc::clone(bytes))).collect()
    }

    fn put(&mut self, key: &str, bytes: &[u8]) {
        self.objects().put(key, bytes);
    }

    fn delete(&mut self, key: &str) {
        self.objects().objects.remove(key);
    }

    fn expire(&mut self) {
        self.fs.core.expire();
    }

    fn retry(&mut self) {
        drive(self.fs.core.retry());
    }

    fn remount(&mut self) -> u64 {
        let left = drive(self.fs.flush_all(PATIENCE));
        drive(self.fs.destroy());
        self.crash();
        left
    }

    fn crash(&mut self) {
        self.fs = mounted(self.cache, self.pool, &self.bucket);
    }

    fn fail(&mut self, operation: &'static str, when: When, kind: usize) {
        let failure = (operation, KINDS[kind]);
        let mut bucket = self.objects();
        match when {
            When::Before => bucket.fail.push(failure),
            When::After => bucket.fail_after.push(failure),
        }
        drop(bucket);
        self.pending += 1;
    }

    fn failed(&mut self) -> bool {
        let mut bucket = self.objects();
        let left = bucket.fail.len() + bucket.fail_after.len();
        bucket.fail.clear();
        bucket.fail_after.clear();
        drop(bucket);
        std::mem::take(&mut self.pending) > left
    }
}
