//! A whole daemon on a real store, as the model drives it.

use std::rc::Rc;

use ovfs_compat_tests::error::{Answer as Told, Fault};
use ovfs_compat_tests::fuse::{Attr, Entry, ROOT};
use ovfs_compat_tests::guest::{Guest, SetAttr};
use ovfs_compat_tests::launch::EXIT_TIMEOUT;
use ovfs_compat_tests::mounted::Mounted;
use ovfs_compat_tests::stores::{Kind, TestStore};

use super::step::When;
use super::system::{Answer, Bucket, Found, Listed, System, Traits};

/// Bytes of a reply per directory entry that is asked for: names here are one letter.
const ENTRY: u32 = 32;
/// The same with attributes.
const ENTRY_PLUS: u32 = 160;

/// A store for many sequences.
pub fn shared(kind: Kind) -> TestStore {
    TestStore::start(kind)
}

/// A daemon on an empty store.
pub struct Whole<'s> {
    store: &'s TestStore,
    mount: Option<Mounted>,
}

fn mounted(store: &TestStore) -> Mounted {
    Mounted::new(store, &["--cache", "never", "--on-conflict", "fail"])
}

impl<'s> Whole<'s> {
    pub fn new(store: &'s TestStore) -> Whole<'s> {
        for key in store.keys() {
            store.delete(&key);
        }
        for dir in store.dirs().iter().rev() {
            store.delete(dir);
        }
        Whole { store, mount: Some(mounted(store)) }
    }

    fn guest(&mut self) -> &mut Guest {
        &mut self.mount.as_mut().expect("mounted").guest
    }
}

/// # Panics
/// When there is no proper reply.
fn answer<T>(told: Told<T>) -> Answer<T> {
    told.map_err(|fault| match fault {
        Fault::Errno(errno) => errno,
        Fault::Device(error) => panic!("{error}"),
    })
}

fn found(node: u64, attr: &Attr) -> Found {
    Found { node, dir: attr.is_dir(), size: if attr.is_dir() { 0 } else { attr.size }, mtime: attr.mtime }
}

fn entry(entry: &Entry) -> Found {
    found(entry.nodeid, &entry.attr)
}

impl System for Whole<'_> {
    fn traits(&self) -> Traits {
        Traits { cached: false, flat: !self.store.kind().is_files(), faults: false }
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Answer<Found> {
        answer(self.guest().lookup(parent, name.as_bytes())).map(|e| entry(&e))
    }

    fn forget(&mut self, node: u64, lookups: u64) {
        self.guest().forget(node, lookups).expect("the device takes it");
    }

    fn getattr(&mut self, node: u64) -> Answer<Found> {
        answer(self.guest().getattr(node, None)).map(|out| found(node, &out.attr))
    }

    fn set_mtime(&mut self, node: u64, seconds: i64) -> Answer<Found> {
        let times = SetAttr::times((seconds, 0), (seconds, 0));
        answer(self.guest().setattr(node, &times)).map(|out| found(node, &out.attr))
    }

    fn truncate(&mut self, node: u64, handle: Option<u64>, size: u64) -> Answer<Found> {
        const FH: u32 = 1 << 6;
        let mut set = SetAttr::size(size);
        if let Some(handle) = handle {
            set.valid |= FH;
            set.fh = handle;
        }
        answer(self.guest().setattr(node, &set)).map(|out| found(node, &out.attr))
    }

    fn create(&mut self, parent: u64, name: &str, flags: i32) -> Answer<(Found, u64)> {
        let made = self.guest().create(parent, name.as_bytes(), flags | libc::O_CREAT, 0o644);
        answer(made).map(|(made, opened)| (entry(&made), opened.fh))
    }

    fn mknod(&mut self, parent: u64, name: &str) -> Answer<Found> {
        answer(self.guest().mknod(parent, name.as_bytes(), libc::S_IFREG | 0o644, 0, 0)).map(|e| entry(&e))
    }

    fn mkdir(&mut self, parent: u64, name: &str) -> Answer<Found> {
        answer(self.guest().mkdir(parent, name.as_bytes(), 0o755)).map(|e| entry(&e))
    }

    fn unlink(&mut self, parent: u64, name: &str) -> Answer<()> {
        answer(self.guest().unlink(parent, name.as_bytes()))?;
        // Many removals reach the store together; fsync(2) of a directory waits for them.
        let guest = self.guest();
        let dir = answer(guest.opendir(ROOT))?;
        let synced = guest.fsyncdir(ROOT, dir.fh, false);
        answer(guest.releasedir(ROOT, dir.fh))?;
        answer(synced)
    }

    fn rmdir(&mut self, parent: u64, name: &str) -> Answer<()> {
        answer(self.guest().rmdir(parent, name.as_bytes()))
    }

    fn rename(&mut self, from: (u64, &str), to: (u64, &str), noreplace: bool) -> Answer<()> {
        let flags = if noreplace { libc::RENAME_NOREPLACE } else { 0 };
        answer(self.guest().rename2(from.0, from.1.as_bytes(), to.0, to.1.as_bytes(), flags))
    }

    fn open(&mut self, node: u64, flags: i32) -> Answer<u64> {
        answer(self.guest().open(node, flags)).map(|opened| opened.fh)
    }

    fn read(&mut self, node: u64, handle: u64, offset: u64, len: usize) -> Answer<Vec<u8>> {
        answer(self.guest().read(node, handle, offset, u32::try_from(len).unwrap_or(u32::MAX)))
    }

    fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8], flags: i32) -> Answer<usize> {
        answer(self.guest().write_with(node, handle, offset, data, 0, flags)).map(|n| n as usize)
    }

    fn allocate(&mut self, node: u64, handle: u64, mode: i32, offset: u64, len: u64) -> Answer<()> {
        answer(self.guest().fallocate(node, handle, mode, offset, len))
    }

    fn copy(&mut self, from: (u64, u64, u64), to: (u64, u64, u64), len: u64) -> Answer<u64> {
        answer(self.guest().copy_file_range(from, to, len, 0)).map(u64::from)
    }

    fn seek(&mut self, node: u64, handle: u64, offset: u64, whence: i32) -> Answer<u64> {
        answer(self.guest().lseek(node, handle, offset, whence))
    }

    fn flush(&mut self, node: u64, handle: u64) -> Answer<()> {
        answer(self.guest().flush(node, handle))
    }

    fn fsync(&mut self, node: u64, handle: u64) -> Answer<()> {
        answer(self.guest().fsync(node, handle, false))
    }

    fn release(&mut self, node: u64, handle: u64) -> Answer<()> {
        answer(self.guest().release(node, handle))
    }

    fn opendir(&mut self, node: u64) -> Answer<u64> {
        answer(self.guest().opendir(node)).map(|opened| opened.fh)
    }

    fn readdir(&mut self, node: u64, handle: u64, offset: u64, count: usize, plus: bool) -> Answer<Vec<Listed>> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let page = if plus {
            self.guest().readdirplus(node, handle, offset, count * ENTRY_PLUS)
        } else {
            self.guest().readdir(node, handle, offset, count * ENTRY)
        };
        let listed = |e: ovfs_compat_tests::fuse::DirEntry| Listed {
            name: String::from_utf8_lossy(&e.name).into_owned(),
            next: e.offset,
            found: e.entry.map(|told| entry(&told)),
        };
        Ok(answer(page)?.into_iter().map(listed).collect())
    }

    fn releasedir(&mut self, node: u64, handle: u64) -> Answer<()> {
        answer(self.guest().releasedir(node, handle))
    }

    fn syncfs(&mut self) -> Answer<()> {
        answer(self.guest().syncfs(ROOT))
    }

    fn bucket(&mut self) -> Bucket {
        let store = self.store;
        let files = store.keys().into_iter().filter_map(|key| store.get(&key).map(|bytes| (key, Rc::new(bytes))));
        let dirs = store.dirs().into_iter().map(|dir| (dir, Rc::default()));
        files.chain(dirs).collect()
    }

    fn put(&mut self, key: &str, bytes: &[u8]) {
        self.store.put(key, bytes);
    }

    fn delete(&mut self, key: &str) {
        let there = self.store.keys().iter().chain(&self.store.dirs()).any(|known| known == key);
        if there {
            self.store.delete(key);
        }
    }

    fn expire(&mut self) {}

    fn retry(&mut self) {}

    fn remount(&mut self) -> u64 {
        self.mount.take().expect("mounted").end();
        self.mount = Some(mounted(self.store));
        0
    }

    fn crash(&mut self) {
        let mut killed = self.mount.take().expect("mounted");
        killed.daemon.signal(libc::SIGKILL);
        killed.daemon.wait_exit(EXIT_TIMEOUT).ok();
        drop(killed);
        self.mount = Some(mounted(self.store));
    }

    fn fail(&mut self, _: &'static str, _: When, _: usize) {}

    fn failed(&mut self) -> bool {
        false
    }
}
