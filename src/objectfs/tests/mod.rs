//! The file system over a store in memory.

mod attributes;
mod conflicts;
mod contract;
mod copies;
mod deletions;
mod directories;
mod flow;
mod hits;
mod integrity;
mod long;
mod model;
mod requests;
mod writeback;

use std::sync::{Arc, Mutex};

use futures::executor::block_on;

use super::testing::{Bucket, Buffer, MemStore, Names, capabilities};
use super::*;
use crate::fs::flags::fopen;
use crate::store::StoreErrorKind;

const CTX: Context = Context { uid: 0, gid: 0, pid: 1, unique: 1 };
const RDWR: u32 = libc::O_RDWR as u32;

/// Waits for what comes of itself.
fn wait_for(what: &str, done: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

struct Fs {
    fs: ObjectFs<MemStore>,
    bucket: Arc<Mutex<Bucket>>,
}

impl Fs {
    fn with_pool(len: usize) -> Fs {
        Fs::with(len, CachePolicy::Never)
    }

    fn with(len: usize, cache: CachePolicy) -> Fs {
        Fs::with_config(len, capabilities(), |config| config.cache = cache)
    }

    fn with_config(len: usize, capabilities: Capabilities, change: impl FnOnce(&mut Config)) -> Fs {
        Fs::with_pages((len, 3), capabilities, change)
    }

    /// With so much memory, over a store whose listings have so many entries per page.
    fn with_pages((len, page): (usize, usize), capabilities: Capabilities, change: impl FnOnce(&mut Config)) -> Fs {
        let pool = Arc::new(Pool::new(len).expect("memfd"));
        let bucket = Arc::new(Mutex::new(Bucket { resumes: true, ..Bucket::default() }));
        let store = MemStore::new(Arc::clone(&pool), Arc::clone(&bucket), page);
        let mut config = testing::config();
        change(&mut config);
        let fs = ObjectFs::new(config, Remote::new(store, 0), capabilities, pool).expect("threads");
        block_on(fs.init(u64::MAX)).expect("init");
        Fs { fs, bucket }
    }

    fn new() -> Fs {
        Fs::with_pool(32 << 20)
    }

    fn bucket(&self) -> std::sync::MutexGuard<'_, Bucket> {
        self.bucket.lock().expect("bucket")
    }

    fn dir(&self, path: &str) -> Result<(NodeId, String)> {
        let mut at = NodeId::ROOT;
        let (dirs, name) = path.rsplit_once('/').unwrap_or(("", path));
        for part in dirs.split('/').filter(|part| !part.is_empty()) {
            at = block_on(self.fs.lookup(CTX, at, part.as_bytes()))?.nodeid;
        }
        Ok((at, name.to_owned()))
    }

    fn lookup(&self, path: &str) -> Result<Entry> {
        let (parent, name) = self.dir(path)?;
        block_on(self.fs.lookup(CTX, parent, name.as_bytes()))
    }

    fn create(&self, path: &str, flags: u32) -> Result<(NodeId, Handle)> {
        let (parent, name) = self.dir(path)?;
        let ext = Extensions::default();
        let (entry, opened) =
            block_on(self.fs.create(CTX, parent, name.as_bytes(), 0o644, RDWR | flags, 0, false, ext))?;
        Ok((entry.nodeid, opened.handle.expect("handle")))
    }

    fn open(&self, path: &str, flags: u32) -> Result<(NodeId, Handle)> {
        let nodeid = self.lookup(path)?.nodeid;
        Ok((nodeid, block_on(self.fs.open(CTX, nodeid, flags, false))?.handle.expect("handle")))
    }

    fn write_at(&self, file: (NodeId, Handle), offset: u64, data: &[u8]) -> Result<usize> {
        self.write_with(file, offset, data, RDWR)
    }

    fn write_with(&self, (nodeid, handle): (NodeId, Handle), offset: u64, data: &[u8], flags: u32) -> Result<usize> {
        let op = Write {
            nodeid,
            handle,
            offset,
            size: data.len() as u32,
            lock_owner: None,
            delayed: false,
            kill_priv: false,
            flags,
        };
        block_on(self.fs.write(CTX, op, &mut Buffer::of(data)))
    }

    fn read_at(&self, (nodeid, handle): (NodeId, Handle), offset: u64, size: u32) -> Result<Vec<u8>> {
        let mut out = Buffer::room(size as usize);
        let op = Read { nodeid, handle, offset, size, lock_owner: None, flags: 0 };
        let n = block_on(self.fs.read(CTX, op, &mut out))?;
        assert_eq!(n, out.bytes.len());
        Ok(out.bytes)
    }

    fn flush(&self, (nodeid, handle): (NodeId, Handle)) -> Result<()> {
        block_on(self.fs.flush(CTX, nodeid, handle, 0))
    }

    fn close(&self, file: (NodeId, Handle)) -> Result<()> {
        let flushed = self.flush(file);
        block_on(self.fs.release(CTX, file.0, file.1, 0, None, false)).ok();
        flushed
    }

    fn put(&self, path: &str, data: &[u8]) -> Result<()> {
        let file = self.create(path, libc::O_TRUNC as u32)?;
        self.write_at(file, 0, data)?;
        self.close(file)
    }

    fn get(&self, path: &str) -> Result<Vec<u8>> {
        let file = self.open(path, 0)?;
        let data = self.read_at(file, 0, 1 << 20);
        self.close(file)?;
        data
    }

    fn rename(&self, from: &str, to: &str, flags: u32) -> Result<()> {
        let (old, old_name) = self.dir(from)?;
        let (new, new_name) = self.dir(to)?;
        block_on(self.fs.rename(CTX, old, old_name.as_bytes(), new, new_name.as_bytes(), flags))
    }

    fn unlink(&self, path: &str) -> Result<()> {
        let (parent, name) = self.dir(path)?;
        block_on(self.fs.unlink(CTX, parent, name.as_bytes()))
    }

    fn mkdir(&self, path: &str) -> Result<NodeId> {
        let (parent, name) = self.dir(path)?;
        let ext = Extensions::default();
        Ok(block_on(self.fs.mkdir(CTX, parent, name.as_bytes(), 0o755, 0, ext))?.nodeid)
    }

    fn rmdir(&self, path: &str) -> Result<()> {
        let (parent, name) = self.dir(path)?;
        block_on(self.fs.rmdir(CTX, parent, name.as_bytes()))
    }

    fn truncate(&self, nodeid: NodeId, handle: Option<Handle>, size: u64) -> Result<()> {
        let change = SetAttr { handle, size: Some(size), ..SetAttr::default() };
        block_on(self.fs.setattr(CTX, nodeid, change)).map(drop)
    }

    fn list(&self, path: &str, plus: bool, at_once: usize) -> Vec<String> {
        let nodeid = if path.is_empty() { NodeId::ROOT } else { self.lookup(path).expect("dir").nodeid };
        let handle = block_on(self.fs.opendir(CTX, nodeid, 0)).expect("opendir").handle.expect("handle");
        let (mut offset, mut names) = (0, Vec::new());
        loop {
            let mut out = Names::new(at_once);
            if plus {
                block_on(self.fs.readdirplus(CTX, nodeid, handle, offset, &mut out)).expect("readdirplus");
            } else {
                block_on(self.fs.readdir(CTX, nodeid, handle, offset, &mut out)).expect("readdir");
            }
            let Some(last) = out.names.last() else { break };
            offset = last.1;
            names.extend(out.names.into_iter().map(|(name, ..)| name));
        }
        block_on(self.fs.releasedir(CTX, nodeid, handle, 0)).expect("releasedir");
        names.retain(|name| name != "." && name != "..");
        names.sort();
        names
    }

    fn object(&self, path: &str) -> Option<Vec<u8>> {
        self.bucket().objects.get(path).map(|object| object.bytes.clone())
    }
}

#[test]
fn a_file_is_in_the_store_when_close_returns() {
    let fs = Fs::new();
    let file = fs.create("f", 0).expect("create");
    fs.write_at(file, 0, b"hello").expect("write");
    assert_eq!(fs.object("f"), None);
    assert_eq!(fs.read_at(file, 1, 100).as_deref(), Ok(&b"ello"[..]));
    fs.close(file).expect("close");
    assert_eq!(fs.object("f").as_deref(), Some(&b"hello"[..]));
    assert_eq!(fs.get("f").as_deref(), Ok(&b"hello"[..]));
}

#[test]
fn an_empty_file_is_an_empty_object() {
    let fs = Fs::new();
    let file = fs.create("f", 0).expect("create");
    assert_eq!(fs.list("", true, 10), ["f"]);
    fs.close(file).expect("close");
    assert_eq!(fs.object("f").as_deref(), Some(&b""[..]));
    assert_eq!(fs.get("f").as_deref(), Ok(&b""[..]));
}

#[test]
fn what_another_program_writes_is_seen_at_the_next_open() {
    let fs = Fs::new();
    fs.put("f", b"old").expect("put");
    let held = fs.open("f", 0).expect("open");
    fs.bucket().put("f", b"newer");
    assert_eq!(fs.get("f").as_deref(), Ok(&b"newer"[..]));
    assert_eq!(fs.read_at(held, 0, 10), Err(Errno::ESTALE), "one handle never shows two versions");
    fs.bucket().objects.remove("f");
    assert_eq!(fs.lookup("f").err(), Some(Errno::ENOENT));
}

#[test]
fn the_guest_keeps_cached_pages_only_of_the_version_it_opened_last() {
    let fs = Fs::with(32 << 20, CachePolicy::Auto);
    fs.bucket().put("f", b"one");
    let nodeid = fs.lookup("f").expect("lookup").nodeid;
    let open = || block_on(fs.fs.open(CTX, nodeid, 0, false)).expect("open").flags & fopen::KEEP_CACHE != 0;
    assert!(!open(), "nothing is known of what the guest has");
    assert!(open(), "the same version again");
    fs.bucket().put("f", b"two");
    // The change is seen by a question for attributes first; the open after it finds nothing new.
    block_on(fs.fs.core.revalidate(&fs.fs.core.inode(nodeid).expect("inode"))).expect("revalidate");
    assert!(!open(), "pages of the old version go");
    assert!(open());
}

#[test]
fn what_happens_to_other_names_does_not_hold_up_a_lookup() {
    let fs = Fs::new();
    fs.bucket().put("d/there", b"x");
    fs.put("d/other", b"x").expect("put");
    let dir = fs.lookup("d").expect("lookup").nodeid;
    fs.bucket().log.clear();
    let mut lookup = Box::pin(fs.fs.lookup(CTX, dir, b"there"));
    assert!(block_on(async { futures::poll!(&mut lookup) }).is_pending());
    fs.create("d/new", 0).expect("create");
    fs.unlink("d/other").expect("unlink");
    fs.bucket().log.clear();
    block_on(lookup).expect("found");
    assert_eq!(fs.bucket().log, ["stat"], "asked once");
}

#[test]
fn a_lookup_follows_a_directory_that_is_renamed_meanwhile() {
    let fs = Fs::new();
    fs.bucket().put("d/f", b"x");
    let dir = fs.lookup("d").expect("lookup").nodeid;
    let mut lookup = Box::pin(fs.fs.lookup(CTX, dir, b"f"));
    assert!(block_on(async { futures::poll!(&mut lookup) }).is_pending());
    fs.rename("d", "e", 0).expect("rename");
    let entry = block_on(lookup).expect("found where it is now");
    assert_eq!(entry.attr.size, 1);
}

#[test]
fn a_write_over_a_version_that_somebody_replaced_is_told_and_harms_nothing() {
    let fs = Fs::new();
    fs.put("f", b"0123456789").expect("put");
    let file = fs.open("f", RDWR).expect("open");
    fs.write_at(file, 3, b"xx").expect("write");
    fs.bucket().put("f", b"theirs");
    assert_eq!(fs.flush(file), Err(Errno::ESTALE));
    assert_eq!(fs.object("f").as_deref(), Some(&b"theirs"[..]));
}

#[test]
fn a_change_in_the_middle_keeps_the_rest() {
    let fs = Fs::new();
    let mut expect: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
    fs.bucket().put("f", &expect);
    let file = fs.open("f", RDWR).expect("open");
    fs.write_at(file, 1_234_567, b"middle").expect("write");
    fs.write_at(file, 4_000_000, b"beyond").expect("write");
    fs.close(file).expect("close");
    expect[1_234_567..1_234_573].copy_from_slice(b"middle");
    expect.resize(4_000_000, 0);
    expect.extend_from_slice(b"beyond");
    assert!(fs.object("f") == Some(expect));
}

#[test]
fn truncation_by_path_reaches_the_store_at_once() {
    let fs = Fs::new();
    fs.put("f", b"0123456789").expect("put");
    let nodeid = fs.lookup("f").expect("lookup").nodeid;
    fs.truncate(nodeid, None, 4).expect("truncate");
    assert_eq!(fs.object("f").as_deref(), Some(&b"0123"[..]));
    fs.truncate(nodeid, None, 6).expect("truncate");
    assert_eq!(fs.object("f").as_deref(), Some(&b"0123\0\0"[..]));
}

#[test]
fn an_unlinked_open_file_stays_whole_in_memory() {
    let fs = Fs::new();
    fs.put("f", b"0123456789").expect("put");
    let file = fs.open("f", RDWR).expect("open");
    fs.unlink("f").expect("unlink");
    assert!(fs.bucket().objects.is_empty());
    assert_eq!(fs.read_at(file, 0, 100).as_deref(), Ok(&b"0123456789"[..]));
    fs.write_at(file, 10, b"more").expect("write");
    assert_eq!(fs.read_at(file, 8, 100).as_deref(), Ok(&b"89more"[..]));
    fs.put("f", b"another").expect("put");
    fs.close(file).expect("close");
    assert_eq!(fs.object("f").as_deref(), Some(&b"another"[..]));
}

#[test]
fn a_large_unlinked_open_file_stays_whole_in_a_hidden_object() {
    let fs = Fs::with_pool(16 << 20);
    let data: Vec<u8> = (0..5_000_000u32).map(|i| (i / 11) as u8).collect();
    fs.bucket().put("f", &data);
    let file = fs.open("f", RDWR).expect("open");
    fs.unlink("f").expect("unlink");
    assert_eq!(fs.lookup("f").err(), Some(Errno::ENOENT));
    assert!(fs.list("", true, 10).is_empty(), "the hidden object is not shown");
    assert!(fs.read_at(file, 4_000_000, 1000).expect("read") == data[4_000_000..4_001_000]);
    fs.write_at(file, 0, b"x").expect("write");
    assert_eq!(fs.read_at(file, 0, 1).as_deref(), Ok(&b"x"[..]));
    fs.close(file).expect("close");
    for _ in 0..1000 {
        if fs.bucket().objects.is_empty() {
            return;
        }
        std::thread::yield_now();
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("the hidden object stays behind");
}

#[test]
fn a_rename_over_an_open_file_keeps_the_old_handle_readable() {
    let fs = Fs::new();
    fs.put("a", b"new").expect("put");
    fs.put("b", b"old").expect("put");
    let held = fs.open("b", 0).expect("open");
    fs.rename("a", "b", 0).expect("rename");
    assert_eq!(fs.read_at(held, 0, 10).as_deref(), Ok(&b"old"[..]));
    assert_eq!(fs.get("b").as_deref(), Ok(&b"new"[..]));
    assert_eq!(fs.lookup("a").err(), Some(Errno::ENOENT));
    assert_eq!(fs.rename("b", "c", libc::RENAME_EXCHANGE), Err(Errno::EINVAL));
    fs.put("c", b"c").expect("put");
    assert_eq!(fs.rename("b", "c", libc::RENAME_NOREPLACE), Err(Errno::EEXIST));
}

#[test]
fn a_rename_before_the_upload_moves_no_data() {
    let fs = Fs::new();
    let file = fs.create("tmp", 0).expect("create");
    fs.write_at(file, 0, b"data").expect("write");
    fs.rename("tmp", "final", 0).expect("rename");
    assert!(fs.bucket().objects.is_empty());
    fs.close(file).expect("close");
    assert_eq!(fs.object("final").as_deref(), Some(&b"data"[..]));
    assert_eq!(fs.object("tmp"), None);
}

#[test]
fn open_and_dirty_files_follow_their_directory() {
    let fs = Fs::new();
    fs.mkdir("d").expect("mkdir");
    fs.put("d/f", b"0123456789").expect("put");
    let file = fs.open("d/f", RDWR).expect("open");
    fs.write_at(file, 2, b"xx").expect("write");
    let fresh = fs.create("d/g", 0).expect("create");
    fs.rename("d", "e", 0).expect("rename");
    assert_eq!(fs.read_at(file, 0, 10).as_deref(), Ok(&b"01xx456789"[..]));
    fs.close(file).expect("close");
    fs.close(fresh).expect("close");
    assert_eq!(fs.object("e/f").as_deref(), Some(&b"01xx456789"[..]));
    assert_eq!(fs.list("e", false, 2), ["f", "g"]);
    assert_eq!(fs.lookup("d").err(), Some(Errno::ENOENT));
    assert_eq!(fs.rename("e", "e/x", 0), Err(Errno::EINVAL));
}

#[test]
fn directories_stay_when_they_become_empty() {
    let fs = Fs::new();
    fs.bucket().put("only/prefix/f", b"x");
    assert_eq!(fs.rmdir("only"), Err(Errno::ENOTEMPTY));
    fs.unlink("only/prefix/f").expect("unlink");
    assert!(fs.lookup("only/prefix").is_ok());
    fs.rmdir("only/prefix").expect("rmdir");
    assert!(fs.lookup("only").is_ok());
    fs.rmdir("only").expect("rmdir");
    assert!(fs.bucket().objects.is_empty());
    fs.mkdir("d").expect("mkdir");
    assert_eq!(fs.mkdir("d").err(), Some(Errno::EEXIST));
    let file = fs.create("d/local", 0).expect("create");
    assert_eq!(fs.rmdir("d"), Err(Errno::ENOTEMPTY));
    fs.close(file).expect("close");
}

#[test]
fn listings_are_complete_over_many_pages_and_small_buffers() {
    let fs = Fs::new();
    let names: Vec<String> = (0..57).map(|i| format!("n{i:03}")).collect();
    for name in &names {
        fs.bucket().put(&format!("d/{name}"), b"x");
    }
    for (plus, at_once) in [(false, 1), (false, 10), (true, 1), (true, 7), (true, 1000)] {
        assert_eq!(fs.list("d", plus, at_once), names);
    }
}

#[test]
fn names_that_no_key_can_have_are_refused() {
    let fs = Fs::new();
    for name in ["trailing ", " leading"] {
        assert_eq!(fs.create(name, 0).err(), Some(Errno::EINVAL), "{name:?}");
        assert_eq!(fs.lookup(name).err(), Some(Errno::ENOENT), "{name:?}");
    }
    let bad = block_on(fs.fs.lookup(CTX, NodeId::ROOT, b"\xff\xfe"));
    assert_eq!(bad.err(), Some(Errno::ENOENT));
    let ext = Extensions::default();
    let bad = block_on(fs.fs.mkdir(CTX, NodeId::ROOT, b"\xff\xfe", 0o755, 0, ext));
    assert_eq!(bad.err(), Some(Errno::EILSEQ));
}

#[test]
fn a_failed_upload_is_told_and_tried_again_and_nothing_is_lost() {
    let fs = Fs::new();
    let file = fs.create("f", 0).expect("create");
    fs.write_at(file, 0, b"precious").expect("write");
    fs.bucket().fail.push(("compose", StoreErrorKind::Unavailable));
    assert_eq!(fs.flush(file), Err(Errno::ETIMEDOUT));
    assert_eq!(fs.read_at(file, 0, 100).as_deref(), Ok(&b"precious"[..]));
    fs.write_at(file, 8, b"!").expect("write");
    fs.close(file).expect("close");
    assert_eq!(fs.object("f").as_deref(), Some(&b"precious!"[..]));
}

#[test]
fn files_larger_than_the_pool_can_be_written_and_read() {
    let fs = Fs::with_pool(8 << 20);
    let file = fs.create("big", 0).expect("create");
    let chunk = |i: u64| -> Vec<u8> { (0..1 << 20).map(|j| (i * 31 + j / 4096) as u8).collect() };
    for i in 0..40 {
        fs.write_at(file, i << 20, &chunk(i)).expect("write");
    }
    for i in (0..40).rev() {
        assert!(fs.read_at(file, i << 20, 1 << 20).expect("read") == chunk(i), "chunk {i}");
    }
    fs.close(file).expect("close");
    assert_eq!(fs.object("big").map(|o| o.len()), Some(40 << 20));
}

#[test]
fn forget_and_the_end_of_the_session_free_everything() {
    let fs = Fs::new();
    for i in 0..100 {
        fs.put(&format!("f{i}"), b"x").expect("put");
    }
    assert!(fs.fs.core.tree().len() > 100);
    block_on(fs.fs.destroy());
    assert_eq!(fs.fs.core.tree().len(), 1);
}

#[test]
fn exclusive_creation_refuses_what_is_there_and_what_comes_meanwhile() {
    let fs = Fs::new();
    fs.put("f", b"x").expect("put");
    assert_eq!(fs.create("f", libc::O_EXCL as u32).err(), Some(Errno::EEXIST));
    let file = fs.create("g", libc::O_EXCL as u32).expect("create");
    fs.bucket().put("g", b"theirs");
    assert_eq!(fs.flush(file), Err(Errno::EEXIST));
    assert_eq!(fs.object("g").as_deref(), Some(&b"theirs"[..]));
}

#[test]
fn reading_asks_for_each_byte_once_and_random_reads_for_little() {
    let fs = Fs::new();
    fs.bucket().put("f", &vec![7; 3 << 20]);
    let file = fs.open("f", 0).expect("open");
    for offset in (0..3 << 20).step_by(128 << 10) {
        assert_eq!(fs.read_at(file, offset, 128 << 10).expect("read").len(), 128 << 10);
    }
    fs.close(file).expect("close");
    assert_eq!(fs.bucket().read, 3 << 20);
    let reads = fs.bucket().log.iter().filter(|op| **op == "read").count();
    assert!(reads <= 10, "{reads}");
    fs.bucket().put("g", &vec![7; 9 << 20]);
    let file = fs.open("g", 0).expect("open");
    for offset in [7 << 20, 5 << 20, 1 << 20, 3 << 20] {
        assert_eq!(fs.read_at(file, offset + 123, 4096).expect("read").len(), 4096);
    }
    assert_eq!(fs.bucket().read, (3 << 20) + 4 * (64 << 10));
}
