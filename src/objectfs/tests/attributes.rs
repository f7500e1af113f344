//! Attributes that the store keeps: whose they are, when they reach it, and what must not be disturbed by that.

use std::time::Instant;

use super::*;
use crate::fs::flags::init;
use crate::fs::{DirEntry, SetTime};
use crate::store::{Attributes, Kind, Meta};

const ALICE: Context = Context { uid: 1000, gid: 100, pid: 1, unique: 1 };
const BOB: Context = Context { uid: 2000, gid: 200, pid: 2, unique: 2 };
const SECOND: i64 = 1_000_000_000;

/// Longer than a change waits for others.
const PATIENCE: Duration = Duration::from_secs(8);

fn config() -> Config {
    Config {
        cache: CachePolicy::Auto,
        expiration: None,
        readdirplus: true,
        writeback: false,
        allow_mmap: false,
        killpriv_v2: true,
        uid: 7,
        gid: 8,
        file_mode: 0o640,
        dir_mode: 0o750,
        posix: true,
        xattr: true,
        on_conflict: OnConflict::Fail,
        capacity: 1 << 50,
        writeback_delay: Duration::ZERO,
        dirty_ratio: 50,
        piece: 64 << 10,
        inodes_max: 10_000,
        handles_max: 1_000,
    }
}

fn keeps() -> Capabilities {
    Capabilities { attributes: true, xattrs_max: 1024, ..capabilities() }
}

/// Another mount of the same bucket.
fn mount(bucket: &Arc<Mutex<Bucket>>, config: Config, capabilities: Capabilities, ids: Ids) -> Fs {
    let pool = Arc::new(Pool::new(32 << 20).expect("memfd"));
    let store = MemStore::new(Arc::clone(&pool), Arc::clone(bucket), 100);
    let fs = ObjectFs::with_ids(config, Arc::new(ids), Remote::new(store, 0), capabilities, pool).expect("threads");
    block_on(fs.init(u64::MAX)).expect("init");
    Fs { fs, bucket: Arc::clone(bucket) }
}

fn posix() -> Fs {
    mount(&Arc::default(), config(), keeps(), Ids::default())
}

impl Fs {
    fn again(&self) -> Fs {
        mount(&self.bucket, config(), keeps(), Ids::default())
    }

    fn again_plain(&self) -> Fs {
        mount(&self.bucket, Config { posix: false, ..config() }, capabilities(), Ids::default())
    }

    fn attr(&self, path: &str) -> Attr {
        self.lookup(path).expect("lookup").attr
    }

    fn kept(&self, key: &str) -> Attributes {
        self.bucket().objects.get(key).unwrap_or_else(|| panic!("{key} is not there")).attributes.clone()
    }

    /// How many operations of this name there were since this was last asked.
    pub(super) fn count(&self, op: &str) -> usize {
        self.bucket().log.iter().filter(|name| **name == op).count()
    }

    pub(super) fn forget_log(&self) {
        self.bucket().log.clear();
    }

    fn setattr(&self, path: &str, change: SetAttr) -> Result<Attr> {
        let nodeid = self.lookup(path)?.nodeid;
        block_on(self.fs.setattr(CTX, nodeid, change)).map(|(attr, _)| attr)
    }

    fn chmod(&self, path: &str, mode: u32) -> Attr {
        self.setattr(path, SetAttr { mode: Some(mode), ..SetAttr::default() }).expect("chmod")
    }

    fn chown(&self, path: &str, uid: u32, gid: u32) -> Attr {
        self.setattr(path, SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() }).expect("chown")
    }

    fn utimens(&self, path: &str, seconds: i64, nanos: u32) -> Attr {
        let time = Some(SetTime::At(seconds, nanos));
        self.setattr(path, SetAttr { atime: time, mtime: time, ..SetAttr::default() }).expect("utimensat")
    }

    fn create_as(&self, ctx: Context, path: &str, mode: u32) -> Result<(NodeId, Handle)> {
        let (parent, name) = self.dir(path)?;
        let made = self.fs.create(ctx, parent, name.as_bytes(), mode, RDWR, 0o022, false, Extensions::default());
        let (entry, opened) = block_on(made)?;
        Ok((entry.nodeid, opened.handle.expect("handle")))
    }

    fn mkdir_as(&self, ctx: Context, path: &str, mode: u32) -> Result<Entry> {
        let (parent, name) = self.dir(path)?;
        block_on(self.fs.mkdir(ctx, parent, name.as_bytes(), mode, 0o022, Extensions::default()))
    }

    fn mknod(&self, path: &str, mode: u32) -> Result<Entry> {
        let (parent, name) = self.dir(path)?;
        block_on(self.fs.mknod(ALICE, parent, name.as_bytes(), mode, 0, 0o022, Extensions::default()))
    }

    fn symlink(&self, path: &str, target: &[u8]) -> Result<Entry> {
        let (parent, name) = self.dir(path)?;
        block_on(self.fs.symlink(ALICE, parent, name.as_bytes(), target, Extensions::default()))
    }

    fn readlink(&self, path: &str) -> Result<Vec<u8>> {
        let nodeid = self.lookup(path)?.nodeid;
        block_on(self.fs.readlink(CTX, nodeid))
    }

    fn fsync(&self, path: &str) -> Result<()> {
        let nodeid = self.lookup(path)?.nodeid;
        let handle = block_on(self.fs.open(CTX, nodeid, 0, false))?.handle.expect("handle");
        let synced = block_on(self.fs.fsync(CTX, nodeid, handle, false));
        block_on(self.fs.release(CTX, nodeid, handle, 0, None, false)).expect("release");
        synced
    }

    fn fsyncdir(&self, path: &str) -> Result<()> {
        let nodeid = self.lookup(path)?.nodeid;
        let handle = block_on(self.fs.opendir(CTX, nodeid, 0))?.handle.expect("handle");
        let synced = block_on(self.fs.fsyncdir(CTX, nodeid, handle, false));
        block_on(self.fs.releasedir(CTX, nodeid, handle, 0)).expect("releasedir");
        synced
    }

    fn set_xattr(&self, path: &str, name: &str, value: &[u8], flags: i32) -> Result<()> {
        let nodeid = self.lookup(path)?.nodeid;
        block_on(self.fs.setxattr(CTX, nodeid, name.as_bytes(), value, flags as u32, 0))
    }

    fn xattr(&self, path: &str, name: &str) -> Result<Vec<u8>> {
        let nodeid = self.lookup(path)?.nodeid;
        match block_on(self.fs.getxattr(CTX, nodeid, name.as_bytes(), 65_536))? {
            XattrReply::Data(data) => Ok(data),
            XattrReply::Size(size) => panic!("{size} bytes, of a get with room"),
        }
    }

    fn xattrs(&self, path: &str) -> Result<String> {
        let nodeid = self.lookup(path)?.nodeid;
        match block_on(self.fs.listxattr(CTX, nodeid, 65_536))? {
            XattrReply::Data(data) => Ok(String::from_utf8(data).expect("UTF-8")),
            XattrReply::Size(size) => panic!("{size} bytes, of a list with room"),
        }
    }

    fn remove_xattr(&self, path: &str, name: &str) -> Result<()> {
        let nodeid = self.lookup(path)?.nodeid;
        block_on(self.fs.removexattr(CTX, nodeid, name.as_bytes()))
    }

    /// Entries with their types, and the attributes of READDIRPLUS.
    fn entries(&self, path: &str, plus: bool) -> Vec<(String, u32, Option<Entry>)> {
        let nodeid = if path.is_empty() { NodeId::ROOT } else { self.lookup(path).expect("dir").nodeid };
        let handle = block_on(self.fs.opendir(CTX, nodeid, 0)).expect("opendir").handle.expect("handle");
        let mut out = Types::default();
        if plus {
            block_on(self.fs.readdirplus(CTX, nodeid, handle, 0, &mut out)).expect("readdirplus");
        } else {
            block_on(self.fs.readdir(CTX, nodeid, handle, 0, &mut out)).expect("readdir");
        }
        block_on(self.fs.releasedir(CTX, nodeid, handle, 0)).expect("releasedir");
        let mut entries = out.0;
        entries.retain(|(name, ..)| name != "." && name != "..");
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries
    }
}

#[derive(Default)]
struct Types(Vec<(String, u32, Option<Entry>)>);

impl DirSink for Types {
    fn room(&self) -> usize {
        1 << 20
    }
    fn add(&mut self, entry: &DirEntry<'_>) -> bool {
        self.0.push((String::from_utf8(entry.name.to_vec()).expect("UTF-8"), entry.kind, None));
        true
    }
    fn fits_plus(&self, _: usize) -> bool {
        true
    }
    fn add_plus(&mut self, name: &DirEntry<'_>, entry: &Entry) -> bool {
        self.0.push((String::from_utf8(name.name.to_vec()).expect("UTF-8"), name.kind, Some(*entry)));
        true
    }
}

/// Waits until `done`, as long as a change may take to reach the store.
fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn owned(mode: u32, uid: u32, gid: u32) -> Attributes {
    Attributes { mode: Some(mode), uid: Some(uid), gid: Some(gid), xattrs: Some([].into()), ..Attributes::default() }
}

#[test]
fn new_files_belong_to_who_made_them() {
    let fs = posix();
    let before = now();
    let file = fs.create_as(ALICE, "f", 0o666).expect("create");
    fs.write_at(file, 0, b"hello").expect("write");
    fs.close(file).expect("close");
    let attr = fs.attr("f");
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.size), (libc::S_IFREG | 0o644, 1000, 100, 5));
    let kept = fs.kept("f");
    assert_eq!((kept.mode, kept.uid, kept.gid), (Some(libc::S_IFREG | 0o644), Some(1000), Some(100)));
    assert!(kept.mtime_ns.is_some_and(|at| at >= before) && kept.ctime_ns >= kept.mtime_ns, "{kept:?}");
    assert_eq!(fs.count("compose"), 1, "attributes come with the bytes");
    let again = fs.again().attr("f");
    assert_eq!((again.mode, again.uid, again.mtime, again.mtimensec), (attr.mode, 1000, attr.mtime, attr.mtimensec));
}

fn now() -> i64 {
    super::super::inode::now_ns()
}

#[test]
fn what_has_no_metadata_has_the_defaults() {
    let fs = posix();
    fs.bucket().put("f", b"x");
    fs.bucket().put("d/f", b"x");
    let (file, dir) = (fs.attr("f"), fs.attr("d"));
    assert_eq!((file.mode, file.uid, file.gid), (libc::S_IFREG | 0o640, 7, 8));
    assert_eq!((dir.mode, dir.uid, dir.gid), (libc::S_IFDIR | 0o750, 7, 8));
    // Writing to it gives it times, and no owner that nobody asked for.
    fs.put("f", b"y").expect("write");
    let kept = fs.kept("f");
    assert_eq!((kept.mode, kept.uid, kept.gid), (None, None, None));
    assert!(kept.mtime_ns.is_some());
}

#[test]
fn without_posix_metadata_modes_and_owners_are_fixed() {
    let config = Config { posix: false, xattr: false, ..config() };
    let rules = |rule: &str| vec![rule.parse().expect("a rule")];
    let ids = Ids::new(rules("map:100:7:1"), Vec::new()).expect("rules");
    let fs = mount(&Arc::default(), config, capabilities(), ids);
    fs.put("f", b"x").expect("put");
    fs.bucket().put_with("g", b"x", owned(libc::S_IFLNK | 0o777, 1, 1));
    assert_eq!(fs.kept("f"), Attributes::default());
    let attr = fs.chmod("f", 0o600);
    assert_eq!((attr.mode, attr.uid, attr.gid), (libc::S_IFREG | 0o640, 100, 8), "the store's 7 is the guest's 100");
    assert_eq!(fs.chown("f", 5, 5).uid, 100);
    assert_eq!(fs.attr("g").mode, libc::S_IFREG | 0o640);
    assert_eq!(fs.set_xattr("f", "user.a", b"1", 0), Err(Errno::ENOSYS));
    assert_eq!(fs.entries("", false)[0].1, u32::from(libc::DT_REG), "every object is a file");
    block_on(fs.fs.flush_all(Duration::from_secs(5)));
    assert_eq!(fs.count("compose"), 1, "only the bytes of f");
}

fn plain() -> Fs {
    mount(&Arc::default(), Config { posix: false, ..config() }, capabilities(), Ids::default())
}

#[test]
fn without_posix_metadata_times_are_kept_in_memory() {
    let fs = plain();
    fs.put("f", b"x").expect("put");
    let attr = fs.utimens("f", 1_000, 5);
    assert_eq!((attr.mtime, attr.mtimensec, attr.atime), (1_000, 5, 1_000));
    fs.forget_log();
    assert_eq!((fs.attr("f").mtime, fs.again_plain().attr("f").mtime == 1_000), (1_000, false));
    block_on(fs.fs.flush_all(Duration::from_secs(5)));
    assert_eq!(fs.count("compose"), 0);
    assert_eq!(fs.kept("f"), Attributes::default());
}

#[test]
fn without_posix_metadata_special_files_are_refused() {
    let fs = plain();
    assert_eq!(fs.symlink("l", b"f").err(), Some(Errno::EPERM));
    for special in [libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR, libc::S_IFBLK] {
        assert_eq!(fs.mknod("p", special | 0o644).err(), Some(Errno::EPERM));
    }
    fs.mknod("f", libc::S_IFREG | 0o644).expect("a file");
    assert_eq!(fs.readlink("f"), Err(Errno::EINVAL));
}

#[test]
fn attribute_changes_are_stored_together_and_soon() {
    let fs = posix();
    fs.put("f", b"0123456789").expect("put");
    fs.mkdir_as(ALICE, "d", 0o755).expect("mkdir");
    fs.forget_log();
    let asked = Instant::now();
    fs.utimens("f", 1_000_000, 123_456_789);
    fs.chown("f", 1, 2);
    fs.chmod("f", 0o4711);
    fs.chmod("d", 0o711);
    assert_eq!(fs.count("compose"), 0, "changes wait for others");
    wait_until("the file's attributes are stored", || fs.kept("f").uid == Some(1));
    wait_until("the directory's attributes are stored", || fs.kept("d/").mode == Some(libc::S_IFDIR | 0o711));
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    let kept = fs.kept("f");
    assert_eq!((kept.mode, kept.gid), (Some(libc::S_IFREG | 0o4711), Some(2)));
    assert_eq!(kept.mtime_ns, Some(1_000_000 * SECOND + 123_456_789));
    assert_eq!(fs.object("f").as_deref(), Some(&b"0123456789"[..]));
    assert_eq!((fs.count("compose"), fs.count("create_dir")), (1, 1), "one request each");
    let again = fs.again();
    let attr = again.attr("f");
    assert_eq!((attr.mode, attr.uid, attr.mtime, attr.mtimensec), (libc::S_IFREG | 0o4711, 1, 1_000_000, 123_456_789));
    assert_eq!(again.attr("d").mode, libc::S_IFDIR | 0o711);
}

#[test]
fn a_file_that_changes_all_the_time_is_stored_all_the_same() {
    let fs = posix();
    fs.put("f", b"x").expect("put");
    let start = Instant::now();
    let mut mode = 0;
    while fs.kept("f").mode == Some(libc::S_IFREG | 0o644) {
        assert!(start.elapsed() < PATIENCE, "the last change comes too late");
        mode = (mode + 1) % 0o1000;
        fs.chmod("f", if mode == 0o644 { 0 } else { mode });
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn fsync_stores_attributes() {
    let fs = posix();
    for name in ["a", "b", "c", "d", "e"] {
        fs.put(name, b"x").expect("put");
    }
    fs.mkdir_as(ALICE, "dir", 0o755).expect("mkdir");
    fs.chmod("a", 0o600);
    fs.fsync("a").expect("fsync");
    assert_eq!(fs.kept("a").mode, Some(libc::S_IFREG | 0o600));
    let b = fs.open("b", RDWR).expect("open");
    fs.chmod("b", 0o600);
    fs.close(b).expect("close");
    assert_eq!(fs.kept("b").mode, Some(libc::S_IFREG | 0o600));
    fs.chmod("c", 0o600);
    block_on(fs.fs.syncfs(CTX, NodeId::ROOT)).expect("syncfs");
    assert_eq!(fs.kept("c").mode, Some(libc::S_IFREG | 0o600));
    fs.chmod("d", 0o600);
    assert_eq!(block_on(fs.fs.flush_all(Duration::from_secs(5))), 0);
    assert_eq!(fs.kept("d").mode, Some(libc::S_IFREG | 0o600));
    fs.chmod("dir", 0o700);
    fs.fsyncdir("dir").expect("fsyncdir");
    assert_eq!(fs.kept("dir/").mode, Some(libc::S_IFDIR | 0o700));
    fs.chmod("e", 0o600);
    block_on(fs.fs.destroy());
    assert_eq!(fs.kept("e").mode, Some(libc::S_IFREG | 0o600));
}

#[test]
fn a_crash_loses_at_most_what_was_not_synced() {
    let fs = posix();
    fs.put("f", b"bytes").expect("put");
    fs.chmod("f", 0o600);
    fs.fsync("f").expect("fsync");
    fs.chmod("f", 0o666);
    fs.utimens("f", 5, 0);
    let bucket = Arc::clone(&fs.bucket);
    drop(fs);
    std::thread::sleep(Duration::from_millis(2500));
    let fs = mount(&bucket, config(), keeps(), Ids::default());
    assert_eq!(fs.attr("f").mode, libc::S_IFREG | 0o600);
    assert_eq!(fs.get("f").as_deref(), Ok(&b"bytes"[..]));
}

#[test]
fn storing_attributes_disturbs_no_reader_and_fetches_nothing_again() {
    let fs = posix();
    let data: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
    fs.bucket().put("f", &data);
    let file = fs.open("f", 0).expect("open");
    assert_eq!(fs.read_at(file, 0, 4096).as_deref(), Ok(&data[..4096]));
    assert_eq!(fs.read_at(file, 1 << 20, 4096).as_deref(), Ok(&data[1 << 20..][..4096]));
    fs.read_at(file, 2 << 20, 4096).expect("read");
    fs.forget_log();
    fs.chmod("f", 0o600);
    fs.fsync("f").expect("fsync");
    assert_eq!(fs.count("compose"), 1);
    assert_eq!(fs.read_at(file, 0, 4096).as_deref(), Ok(&data[..4096]));
    assert_eq!(fs.read_at(file, 2 << 20, 100).as_deref(), Ok(&data[2 << 20..][..100]));
    assert_eq!(fs.count("read"), 0, "the cached blocks are the same bytes");
    let opened = block_on(fs.fs.open(CTX, file.0, 0, false)).expect("open");
    assert_eq!(opened.flags & fopen::KEEP_CACHE, fopen::KEEP_CACHE, "so are the guest's pages");
    // What is not cached yet is read at the new version.
    fs.bucket().put("g", &data);
    let file = fs.open("g", 0).expect("open");
    fs.chmod("g", 0o600);
    fs.fsync("g").expect("fsync");
    assert_eq!(fs.read_at(file, 1 << 20, 4096).as_deref(), Ok(&data[1 << 20..][..4096]));
}

#[test]
fn writing_while_attributes_are_dirty_sends_both_at_once() {
    let fs = posix();
    fs.put("f", b"old").expect("put");
    fs.forget_log();
    let file = fs.open("f", RDWR).expect("open");
    fs.write_at(file, 0, b"new").expect("write");
    fs.chmod("f", 0o600);
    let written = fs.attr("f");
    std::thread::sleep(Duration::from_millis(1700));
    assert_eq!(fs.count("compose"), 0, "a file that is being written waits for its close");
    fs.close(file).expect("close");
    assert_eq!(fs.count("compose"), 1);
    assert_eq!(fs.kept("f").mode, Some(libc::S_IFREG | 0o600));
    let kept = fs.kept("f").mtime_ns.expect("mtime");
    assert_eq!(kept.div_euclid(SECOND), written.mtime, "the time of the write, not of the close");
    assert_eq!(kept.rem_euclid(SECOND), i64::from(written.mtimensec));
}

#[test]
fn utimens_before_close_is_what_the_store_keeps() {
    let fs = posix();
    let file = fs.create_as(ALICE, "f", 0o644).expect("create");
    fs.write_at(file, 0, b"x").expect("write");
    let change = SetAttr { handle: Some(file.1), mtime: Some(SetTime::At(77, 7)), ..SetAttr::default() };
    block_on(fs.fs.setattr(ALICE, file.0, change)).expect("futimens");
    fs.close(file).expect("close");
    assert_eq!(fs.kept("f").mtime_ns, Some(77 * SECOND + 7));
    let before = now();
    fs.setattr("f", SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() }).expect("touch");
    fs.fsync("f").expect("fsync");
    assert!(fs.kept("f").mtime_ns.is_some_and(|at| at >= before));
}

#[test]
fn truncation_and_changes_of_any_kind_move_the_change_time() {
    let fs = posix();
    fs.put("f", b"0123456789").expect("put");
    fs.utimens("f", 50, 0);
    let ctime = |attr: Attr| attr.ctime * SECOND + i64::from(attr.ctimensec);
    let first = ctime(fs.attr("f"));
    assert!(first > 50 * SECOND, "utimensat(2) changes the change time to now");
    let nodeid = fs.lookup("f").expect("f").nodeid;
    fs.truncate(nodeid, None, 10).expect("truncate to the same length");
    let attr = fs.attr("f");
    assert!(attr.mtime > 50 && ctime(attr) > first);
    let second = ctime(attr);
    assert!(ctime(fs.chmod("f", 0o600)) > second);
    let third = ctime(fs.attr("f"));
    fs.set_xattr("f", "user.a", b"1", 0).expect("setxattr");
    assert!(ctime(fs.attr("f")) > third);
    fs.truncate(nodeid, None, 3).expect("truncate");
    assert_eq!(fs.object("f").as_deref(), Some(&b"012"[..]), "nobody has it open, so it is stored at once");
    assert_eq!(fs.kept("f").mode, Some(libc::S_IFREG | 0o600));
}

#[test]
fn a_rename_takes_changed_attributes_along_in_one_copy() {
    let fs = posix();
    fs.put(".tmp", b"data").expect("put");
    fs.utimens(".tmp", 99, 0);
    fs.chmod(".tmp", 0o600);
    fs.forget_log();
    fs.rename(".tmp", "f", 0).expect("rename");
    assert_eq!((fs.count("compose"), fs.count("delete"), fs.count("rename_file")), (1, 1, 0));
    assert_eq!(fs.object(".tmp"), None);
    assert_eq!(fs.object("f").as_deref(), Some(&b"data"[..]));
    assert_eq!((fs.kept("f").mode, fs.kept("f").mtime_ns), (Some(libc::S_IFREG | 0o600), Some(99 * SECOND)));
    assert_eq!(fs.get("f").as_deref(), Ok(&b"data"[..]));
    // A clean file is renamed as ever, and keeps what it has.
    fs.rename("f", "g", 0).expect("rename");
    assert_eq!(fs.count("rename_file"), 1);
    assert_eq!((fs.attr("g").mode, fs.attr("g").mtime), (libc::S_IFREG | 0o600, 99));
    // NOREPLACE holds for the copy as well.
    fs.put("h", b"other").expect("put");
    fs.chmod("g", 0o601);
    fs.bucket().put("theirs", b"theirs");
    assert_eq!(fs.rename("g", "theirs", libc::RENAME_NOREPLACE), Err(Errno::EEXIST));
    fs.rename("g", "h", 0).expect("rename over a file");
    assert_eq!((fs.object("h").as_deref(), fs.attr("h").mode), (Some(&b"data"[..]), libc::S_IFREG | 0o601));
}

#[test]
fn where_renaming_is_cheap_the_attributes_follow_the_file() {
    let fs = mount(&Arc::default(), config(), Capabilities { rename: true, ..keeps() }, Ids::default());
    fs.put("a", b"data").expect("put");
    fs.chmod("a", 0o600);
    fs.forget_log();
    fs.rename("a", "b", 0).expect("rename");
    assert_eq!((fs.count("rename_file"), fs.count("compose")), (1, 1));
    assert_eq!(fs.kept("b").mode, Some(libc::S_IFREG | 0o600));
    // Empty files are safe either way.
    fs.put("empty", b"").expect("put");
    fs.chmod("empty", 0o600);
    fs.rename("empty", "void", 0).expect("rename");
    assert_eq!(fs.kept("void").mode, Some(libc::S_IFREG | 0o600));
    assert_eq!(fs.object("empty"), None);
}

#[test]
fn a_rename_of_a_directory_takes_changed_attributes_along() {
    let fs = posix();
    fs.mkdir_as(ALICE, "a", 0o755).expect("mkdir");
    fs.put("a/f", b"x").expect("put");
    fs.chmod("a", 0o700);
    fs.chmod("a/f", 0o600);
    fs.rename("a", "b", 0).expect("rename");
    assert_eq!(fs.kept("b/").mode, Some(libc::S_IFDIR | 0o700));
    fs.fsync("b/f").expect("fsync");
    assert_eq!(fs.kept("b/f").mode, Some(libc::S_IFREG | 0o600));
    assert_eq!(fs.object("a/"), None);
    assert_eq!(fs.object("a/f"), None);
}

#[test]
fn what_others_set_is_seen_though_the_version_stays() {
    let fs = mount(&Arc::default(), Config { cache: CachePolicy::Never, ..config() }, keeps(), Ids::default());
    fs.put("f", b"x").expect("put");
    let file = fs.open("f", 0).expect("open");
    fs.read_at(file, 0, 1).expect("read");
    fs.bucket().objects.get_mut("f").expect("f").attributes = owned(libc::S_IFREG | 0o440, 3, 4);
    let attr = fs.attr("f");
    assert_eq!((attr.mode, attr.uid, attr.gid), (libc::S_IFREG | 0o440, 3, 4));
    assert_eq!(fs.read_at(file, 0, 1).as_deref(), Ok(&b"x"[..]), "the bytes are the same version");
    // Ours, until they are stored, are more recent than anything that the store says.
    fs.chmod("f", 0o600);
    fs.bucket().objects.get_mut("f").expect("f").attributes = owned(libc::S_IFREG | 0o444, 5, 6);
    assert_eq!(fs.attr("f").mode, libc::S_IFREG | 0o600);
    fs.fsync("f").expect("fsync");
    assert_eq!(fs.kept("f").mode, Some(libc::S_IFREG | 0o600));
}

#[test]
fn attributes_are_given_to_what_somebody_else_has_written_meanwhile() {
    let fs = posix();
    fs.put("f", b"ours").expect("put");
    fs.chmod("f", 0o600);
    fs.bucket().put("f", b"theirs, and longer");
    block_on(fs.fs.syncfs(CTX, NodeId::ROOT)).expect("syncfs");
    assert_eq!(fs.object("f").as_deref(), Some(&b"theirs, and longer"[..]), "no byte of theirs is lost");
    assert_eq!(fs.kept("f").mode, Some(libc::S_IFREG | 0o600));
    assert_eq!(fs.get("f").as_deref(), Ok(&b"theirs, and longer"[..]));
    // And if it was deleted, it stays so.
    fs.chmod("f", 0o644);
    fs.bucket().objects.remove("f");
    assert_eq!(block_on(fs.fs.syncfs(CTX, NodeId::ROOT)), Err(Errno::ESTALE));
    assert_eq!(fs.object("f"), None);
    assert_eq!(block_on(fs.fs.syncfs(CTX, NodeId::ROOT)), Ok(()));
}

#[test]
fn a_store_that_fails_is_asked_again_and_one_that_refuses_is_not() {
    let fs = posix();
    fs.put("f", b"x").expect("put");
    fs.chmod("f", 0o600);
    fs.bucket().fail.push(("compose", StoreErrorKind::Unavailable));
    assert_eq!(fs.fsync("f"), Err(Errno::ETIMEDOUT));
    assert_eq!(fs.attr("f").mode, libc::S_IFREG | 0o600);
    fs.fsync("f").expect("the next try");
    assert_eq!(fs.kept("f").mode, Some(libc::S_IFREG | 0o600));
    fs.chmod("f", 0o666);
    fs.bucket().fail.push(("compose", StoreErrorKind::AttributesTooLarge));
    assert_eq!(fs.fsync("f"), Err(Errno::ENOSPC));
    fs.forget_log();
    fs.fsync("f").expect("nothing is left to do");
    assert_eq!(fs.count("compose"), 0);
    assert_eq!(fs.attr("f").mode, libc::S_IFREG | 0o600, "what the store has is what is shown");
}

#[test]
fn a_failed_change_is_tried_again_by_itself() {
    let fs = posix();
    fs.put("f", b"x").expect("put");
    fs.bucket().fail.push(("compose", StoreErrorKind::Unavailable));
    fs.chmod("f", 0o600);
    let start = Instant::now();
    while fs.kept("f").mode != Some(libc::S_IFREG | 0o600) {
        assert!(start.elapsed() < Duration::from_secs(15), "it is not tried again");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn attributes_of_directories_are_kept_on_the_marker() {
    let fs = posix();
    fs.mkdir_as(ALICE, "d", 0o755).expect("mkdir");
    let made = fs.kept("d/").mtime_ns.expect("a time");
    fs.put("d/f", b"x").expect("put");
    fs.utimens("d/f", 11, 0);
    fs.utimens("d", 22, 33);
    wait_until("stored", || fs.kept("d/").mtime_ns == Some(22 * SECOND + 33));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(fs.kept("d/").mtime_ns, Some(22 * SECOND + 33));
    assert_eq!((fs.attr("d").mtime, fs.attr("d").mtimensec), (22, 33));
    assert_eq!(fs.again().attr("d").mtime, 22);
    // A new entry makes it now again, in the store too.
    fs.put("d/g", b"x").expect("put");
    assert!(fs.attr("d").mtime * SECOND > made - SECOND);
    fs.fsyncdir("d").expect("fsyncdir");
    assert!(fs.kept("d/").mtime_ns.is_some_and(|at| at > made));
}

#[test]
fn a_removed_directory_does_not_come_back_with_its_attributes() {
    let fs = posix();
    fs.mkdir_as(ALICE, "d", 0o755).expect("mkdir");
    fs.put("d/f", b"x").expect("put");
    fs.chmod("d", 0o700);
    fs.unlink("d/f").expect("unlink");
    fs.rmdir("d").expect("rmdir");
    fs.mkdir_as(ALICE, "e", 0o755).expect("mkdir");
    fs.chmod("e", 0o700);
    fs.bucket().objects.remove("e/");
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(fs.object("d/"), None);
    assert_eq!(fs.object("d/f"), None);
}

#[test]
fn a_set_group_id_directory_hands_its_group_down() {
    let fs = posix();
    fs.mkdir_as(ALICE, "d", 0o755).expect("mkdir");
    fs.chown("d", 1000, 555);
    fs.chmod("d", 0o2775);
    let file = fs.create_as(BOB, "d/f", 0o644).expect("create");
    fs.close(file).expect("close");
    let dir = fs.mkdir_as(BOB, "d/sub", 0o777).expect("mkdir").attr;
    assert_eq!((fs.attr("d/f").uid, fs.attr("d/f").gid, fs.attr("d/f").mode), (2000, 555, libc::S_IFREG | 0o644));
    assert_eq!((dir.gid, dir.mode), (555, libc::S_IFDIR | 0o2755));
    assert_eq!(fs.kept("d/sub/").mode, Some(libc::S_IFDIR | 0o2755));
    let plain = fs.mkdir_as(BOB, "p", 0o777).expect("mkdir").attr;
    assert_eq!((plain.gid, plain.mode), (200, libc::S_IFDIR | 0o755));
}

#[test]
fn symbolic_links_are_objects_with_their_target() {
    let fs = posix();
    let entry = fs.symlink("l", b"../some/where").expect("symlink");
    assert_eq!((entry.attr.mode, entry.attr.size, entry.attr.uid), (libc::S_IFLNK | 0o777, 13, 1000));
    assert_eq!(fs.object("l").as_deref(), Some(&b"../some/where"[..]), "stored when symlink(2) returns");
    assert_eq!(fs.kept("l").mode, Some(libc::S_IFLNK | 0o777));
    assert_eq!(fs.readlink("l").as_deref(), Ok(&b"../some/where"[..]));
    let again = fs.again();
    assert_eq!(again.attr("l").mode, libc::S_IFLNK | 0o777);
    assert_eq!(again.readlink("l").as_deref(), Ok(&b"../some/where"[..]));
    assert_eq!(fs.symlink("l", b"x").err(), Some(Errno::EEXIST));
    let long = vec![b'x'; 4095];
    fs.symlink("long", &long).expect("symlink");
    assert_eq!(again.readlink("long").as_deref(), Ok(&long[..]));
    assert_eq!(fs.symlink("longer", &vec![b'x'; 4096]).err(), Some(Errno::ENAMETOOLONG));
    // It is renamed, replaced and removed as a file is.
    fs.rename("l", "m", 0).expect("rename");
    assert_eq!(fs.readlink("m").as_deref(), Ok(&b"../some/where"[..]));
    fs.put("f", b"x").expect("put");
    fs.rename("f", "m", 0).expect("rename over a link");
    assert_eq!((fs.attr("m").mode & libc::S_IFMT, fs.readlink("m")), (libc::S_IFREG, Err(Errno::EINVAL)));
    fs.unlink("long").expect("unlink");
    assert_eq!(fs.object("long"), None);
    // The owner of a link can be changed.
    fs.symlink("n", b"t").expect("symlink");
    fs.chown("n", 5, 6);
    fs.rename("n", "o", 0).expect("rename");
    assert_eq!((fs.kept("o").uid, fs.kept("o").mode), (Some(5), Some(libc::S_IFLNK | 0o777)));
}

#[test]
fn targets_that_cannot_be_are_errors() {
    let fs = posix();
    let link = owned(libc::S_IFLNK | 0o777, 0, 0);
    fs.bucket().put_with("nul", b"a\0b", link.clone());
    fs.bucket().put_with("long", &vec![b'x'; 5000], link.clone());
    fs.bucket().put_with("empty", b"", link);
    for name in ["nul", "long", "empty"] {
        assert_eq!(fs.readlink(name), Err(Errno::EIO), "{name}");
    }
}

#[test]
fn fifos_and_sockets_are_empty_objects() {
    let fs = posix();
    let fifo = fs.mknod("p", libc::S_IFIFO | 0o666).expect("mknod");
    assert_eq!((fifo.attr.mode, fifo.attr.size, fifo.attr.uid), (libc::S_IFIFO | 0o644, 0, 1000));
    fs.mknod("s", libc::S_IFSOCK | 0o777).expect("mknod");
    fs.mknod("f", libc::S_IFREG | 0o600).expect("mknod");
    assert_eq!((fs.object("p"), fs.kept("p").mode), (Some(Vec::new()), Some(libc::S_IFIFO | 0o644)));
    for device in [libc::S_IFCHR, libc::S_IFBLK] {
        assert_eq!(fs.mknod("dev", device | 0o600).err(), Some(Errno::EPERM));
    }
    assert_eq!(fs.mknod("p", libc::S_IFIFO).err(), Some(Errno::EEXIST));
    let again = fs.again();
    assert_eq!(again.attr("s").mode, libc::S_IFSOCK | 0o755);
    fs.symlink("l", b"f").expect("symlink");
    for (name, errno) in [("p", Errno::EINVAL), ("s", Errno::EINVAL), ("l", Errno::ELOOP)] {
        let nodeid = fs.lookup(name).expect("lookup").nodeid;
        assert_eq!(block_on(fs.fs.open(CTX, nodeid, RDWR, false)).err(), Some(errno), "{name}");
        assert_eq!(fs.truncate(nodeid, None, 1), Err(errno), "{name}");
        assert_eq!(fs.create(name, 0).err(), Some(errno), "{name}");
    }
    fs.chmod("p", 0o600);
    fs.rename("p", "q", 0).expect("rename");
    assert_eq!(fs.kept("q").mode, Some(libc::S_IFIFO | 0o600));
    fs.unlink("s").expect("unlink");
    assert_eq!(fs.object("s"), None);
}

#[test]
fn a_failed_symlink_leaves_nothing() {
    let fs = posix();
    fs.bucket().fail.push(("compose", StoreErrorKind::NoSpace));
    assert_eq!(fs.symlink("l", b"t").err(), Some(Errno::ENOSPC));
    assert_eq!(fs.lookup("l").err(), Some(Errno::ENOENT));
    fs.symlink("l", b"t").expect("the next try");
}

#[test]
fn a_name_whose_type_changes_is_another_inode() {
    let fs = mount(&Arc::default(), Config { cache: CachePolicy::Never, ..config() }, keeps(), Ids::default());
    fs.bucket().put_with("x", b"target", owned(libc::S_IFREG | 0o644, 0, 0));
    let file = fs.lookup("x").expect("a file");
    fs.bucket().put_with("x", b"target", owned(libc::S_IFLNK | 0o777, 0, 0));
    assert_eq!(block_on(fs.fs.getattr(CTX, file.nodeid, None)).err(), Some(Errno::ENOENT));
    let link = fs.lookup("x").expect("a link");
    assert_ne!(link.nodeid, file.nodeid);
    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    // What no guest may have is a plain file, and what the store calls a directory is one.
    fs.bucket().put_with("dev", b"", owned(libc::S_IFBLK | 0o600, 0, 0));
    assert_eq!(fs.attr("dev").mode, libc::S_IFREG | 0o600);
    fs.bucket().put_with("d/", b"", owned(libc::S_IFREG | 0o700, 1, 1));
    assert_eq!((fs.attr("d").mode, fs.attr("d").uid), (libc::S_IFDIR | 0o700, 1));
}

#[test]
fn listings_ask_only_for_what_is_not_known() {
    let fs = posix();
    for i in 0..40 {
        fs.bucket().put_with(&format!("f{i:02}"), b"x", owned(libc::S_IFREG | 0o600, i, 0));
    }
    fs.bucket().put_with("l", b"t", owned(libc::S_IFLNK | 0o777, 0, 0));
    let plain = fs.entries("", false);
    assert_eq!(fs.count("tell"), 0, "names alone cost nothing");
    assert!(plain.iter().all(|(_, kind, _)| *kind == u32::from(libc::DT_UNKNOWN)), "{plain:?}");
    let plus = fs.entries("", true);
    assert_eq!((plus.len(), fs.count("tell"), fs.count("stat")), (41, 41, 0));
    for (i, (name, kind, entry)) in plus.iter().take(40).enumerate() {
        let entry = entry.expect("an entry");
        assert_eq!((entry.attr.mode, entry.attr.uid as usize), (libc::S_IFREG | 0o600, i), "{name}");
        assert_eq!(*kind, u32::from(libc::DT_REG));
        assert_ne!(entry.nodeid, NodeId(0));
    }
    assert_eq!(plus[40].1, u32::from(libc::DT_LNK));
    let again = fs.entries("", true);
    assert_eq!(again.len(), 41);
    assert_eq!(fs.count("tell"), 41, "what was just told is not asked again");
    assert_eq!(fs.entries("", false)[40].1, u32::from(libc::DT_LNK), "known types are told");
}

#[test]
fn a_listing_does_not_fail_with_one_of_its_names() {
    let fs = posix();
    for name in ["a", "b", "c"] {
        fs.bucket().put_with(name, b"x", owned(libc::S_IFREG | 0o600, 1, 1));
    }
    fs.bucket().fail.push(("tell", StoreErrorKind::Unavailable));
    let entries = fs.entries("", true);
    assert_eq!(entries.len(), 3);
    let unknown: Vec<_> = entries.iter().filter(|(_, _, entry)| entry.is_some_and(|e| e.nodeid == NodeId(0))).collect();
    assert_eq!(unknown.len(), 1, "{entries:?}");
    assert_eq!(unknown[0].1, u32::from(libc::DT_UNKNOWN));
    assert!(fs.entries("", true).iter().all(|(_, _, entry)| entry.is_some_and(|e| e.nodeid != NodeId(0))));
}

#[test]
fn user_xattrs_are_kept() {
    let fs = posix();
    fs.put("f", b"x").expect("put");
    fs.set_xattr("f", "user.a", b"1", 0).expect("set");
    fs.set_xattr("f", "user.b", &[0, 255, 7], libc::XATTR_CREATE).expect("create");
    assert_eq!(fs.set_xattr("f", "user.a", b"2", libc::XATTR_CREATE), Err(Errno::EEXIST));
    assert_eq!(fs.set_xattr("f", "user.c", b"2", libc::XATTR_REPLACE), Err(Errno::ENODATA));
    fs.set_xattr("f", "user.a", b"22", libc::XATTR_REPLACE).expect("replace");
    assert_eq!(fs.xattrs("f").as_deref(), Ok("user.a\0user.b\0"));
    assert_eq!(fs.xattr("f", "user.a").as_deref(), Ok(&b"22"[..]));
    assert_eq!(fs.xattr("f", "user.none"), Err(Errno::ENODATA));
    let nodeid = fs.lookup("f").expect("f").nodeid;
    assert_eq!(block_on(fs.fs.getxattr(CTX, nodeid, b"user.a", 0)), Ok(XattrReply::Size(2)));
    assert_eq!(block_on(fs.fs.getxattr(CTX, nodeid, b"user.a", 1)), Err(Errno::ERANGE));
    assert_eq!(block_on(fs.fs.listxattr(CTX, nodeid, 0)), Ok(XattrReply::Size(14)));
    assert_eq!(block_on(fs.fs.listxattr(CTX, nodeid, 13)), Err(Errno::ERANGE));
    fs.fsync("f").expect("fsync");
    let kept = fs.kept("f").xattrs.expect("told");
    assert_eq!(kept.get("user.b").map(Vec::as_slice), Some(&[0, 255, 7][..]));
    assert_eq!(fs.again().xattr("f", "user.a").as_deref(), Ok(&b"22"[..]));
    fs.remove_xattr("f", "user.a").expect("remove");
    assert_eq!(fs.remove_xattr("f", "user.a"), Err(Errno::ENODATA));
    fs.rename("f", "g", 0).expect("rename");
    assert_eq!(fs.again().xattrs("g").as_deref(), Ok("user.b\0"));
    fs.mkdir_as(ALICE, "d", 0o755).expect("mkdir");
    fs.set_xattr("d", "user.dir", b"yes", 0).expect("set");
    fs.fsyncdir("d").expect("fsyncdir");
    assert_eq!(fs.again().xattr("d", "user.dir").as_deref(), Ok(&b"yes"[..]));
    // A change of the mode of what only a listing told keeps them.
    let other = fs.again();
    other.entries("", true);
    other.chmod("g", 0o600);
    other.fsync("g").expect("fsync");
    assert_eq!(fs.kept("g").xattrs.expect("told").len(), 1);
}

#[test]
fn xattrs_have_a_limit() {
    let fs = posix();
    fs.put("f", b"x").expect("put");
    assert_eq!(fs.set_xattr("f", &format!("user.{}", "n".repeat(251)), b"", 0), Err(Errno::ERANGE));
    assert_eq!(fs.set_xattr("f", "user.a", &vec![0; 65_537], 0), Err(Errno::E2BIG));
    assert_eq!(fs.set_xattr("f", "user.a", &[0; 900], 0), Err(Errno::ENOSPC), "as it is stored it is longer");
    fs.set_xattr("f", "user.a", &[0; 600], 0).expect("fits");
    assert_eq!(fs.set_xattr("f", "user.b", &[0; 600], 0), Err(Errno::ENOSPC));
    fs.set_xattr("f", "user.a", &[1; 600], 0).expect("in the place of the old value");
    assert_eq!(fs.set_xattr("f", "user.a", b"", 4), Err(Errno::EINVAL));
    for name in ["trusted.a", "security.selinux", "system.posix_acl_access"] {
        assert_eq!(fs.set_xattr("f", name, b"1", 0), Err(Errno::EOPNOTSUPP), "{name}");
    }
    assert_eq!(fs.set_xattr("f", "user.", b"1", 0), Err(Errno::EINVAL));
    assert_eq!(fs.xattr("f", "security.capability"), Err(Errno::ENODATA));
    assert_eq!(fs.xattr("f", "system.posix_acl_access"), Err(Errno::EOPNOTSUPP));
    assert_eq!(fs.xattr("f", "trusted.x"), Err(Errno::ENODATA));
    let fs = mount(&fs.bucket, Config { posix: false, ..config() }, capabilities(), Ids::default());
    assert_eq!(fs.set_xattr("f", "user.a", b"1", 0), Err(Errno::EOPNOTSUPP));
    assert_eq!(fs.xattr("f", "user.a"), Err(Errno::ENODATA));
    assert_eq!(fs.xattrs("f").as_deref(), Ok(""));
}

#[test]
fn read_only_xattrs_tell_what_the_store_says() {
    let fs = plain();
    fs.put("f", b"x").expect("put");
    let etag = fs.bucket().objects["f"].etag;
    assert_eq!(fs.xattr("f", "ovfs.etag"), Ok(format!("\"{etag}\"").into_bytes()));
    assert_eq!(fs.xattr("f", "ovfs.version"), Err(Errno::ENODATA));
    assert_eq!(fs.xattr("f", "ovfs.content-type"), Err(Errno::ENODATA));
    assert_eq!(fs.xattr("f", "ovfs.else"), Err(Errno::ENODATA));
    assert_eq!(fs.xattrs("f").as_deref(), Ok(""), "they are listed nowhere");
    assert_eq!(fs.set_xattr("f", "ovfs.etag", b"1", 0), Err(Errno::EPERM));
    assert_eq!(fs.remove_xattr("f", "ovfs.etag"), Err(Errno::EPERM));
    fs.mkdir("d").expect("mkdir");
    assert_eq!(fs.xattr("d", "ovfs.etag"), Err(Errno::ENODATA));
    // What is being written has none yet.
    let file = fs.open("f", RDWR).expect("open");
    fs.write_at(file, 0, b"y").expect("write");
    assert_eq!(fs.xattr("f", "ovfs.etag"), Err(Errno::ENODATA));
    fs.close(file).expect("close");
    assert_ne!(fs.xattr("f", "ovfs.etag"), Ok(format!("\"{etag}\"").into_bytes()));
}

#[test]
fn content_type_and_version_are_those_that_the_store_tells() {
    use super::super::attributes::Object;
    let fs = posix();
    fs.put("f", b"x").expect("put");
    let inode = fs.fs.core.inode(fs.lookup("f").expect("f").nodeid).expect("inode");
    let object = Object { content_type: Some("text/plain".into()), version_id: Some("v7".into()) };
    inode.state().posix.object = Some(object);
    assert_eq!(fs.xattr("f", "ovfs.content-type").as_deref(), Ok(&b"text/plain"[..]));
    assert_eq!(fs.xattr("f", "ovfs.version").as_deref(), Ok(&b"v7"[..]));
    let meta = Meta { kind: Kind::File, size: 1, mtime_ns: None, etag: None, marker: None, details: None };
    inode.state().posix.object_is(&meta);
    fs.forget_log();
    assert_eq!(fs.xattr("f", "ovfs.version"), Err(Errno::ENODATA));
    assert_eq!(fs.count("tell"), 1, "the store is asked for what is not known");
}

#[test]
fn ids_are_translated_on_their_way_to_the_store() {
    let rules = || ["map:0:100000:5000", "forbid-guest:9000:10"].map(|rule| rule.parse().expect("a rule")).to_vec();
    let ids = Ids::new(rules(), rules()).expect("rules");
    let fs = mount(&Arc::default(), config(), keeps(), ids);
    let file = fs.create_as(ALICE, "f", 0o644).expect("create");
    fs.close(file).expect("close");
    assert_eq!((fs.kept("f").uid, fs.kept("f").gid), (Some(101_000), Some(100_100)));
    assert_eq!((fs.attr("f").uid, fs.attr("f").gid), (1000, 100));
    fs.chown("f", 3, 7777);
    fs.fsync("f").expect("fsync");
    assert_eq!((fs.kept("f").uid, fs.kept("f").gid), (Some(100_003), Some(7777)));
    let forbidden = Context { uid: 9001, ..ALICE };
    assert_eq!(fs.create_as(forbidden, "g", 0o644).err(), Some(Errno::EIO));
    assert_eq!(fs.mkdir_as(forbidden, "g", 0o755).err(), Some(Errno::EIO));
    let change = SetAttr { uid: Some(9001), mode: Some(0o600), ..SetAttr::default() };
    assert_eq!(fs.setattr("f", change), Err(Errno::EIO));
    assert_eq!(fs.attr("f").mode, libc::S_IFREG | 0o644, "what is refused changes nothing");
}

#[test]
fn access_goes_by_owner_group_and_others() {
    let fs = posix();
    let file = fs.create_as(ALICE, "f", 0o640).expect("create");
    fs.close(file).expect("close");
    let nodeid = fs.lookup("f").expect("f").nodeid;
    let may = |ctx: Context, mask: i32| block_on(fs.fs.access(ctx, nodeid, mask as u32)).is_ok();
    let (read, write, run) = (libc::R_OK, libc::W_OK, libc::X_OK);
    assert!(may(ALICE, read | write) && !may(ALICE, run));
    let member = Context { uid: 5, gid: 100, ..BOB };
    assert!(may(member, read) && !may(member, write));
    assert!(!may(BOB, read) && may(BOB, libc::F_OK));
    assert!(may(CTX, read | write) && !may(CTX, run), "root may all but run what nobody may");
    fs.chmod("f", 0o001);
    assert!(may(CTX, run) && may(BOB, run) && !may(ALICE, run));
}

#[test]
fn set_user_id_bits_are_the_guests_business_where_modes_are_kept() {
    let fs = posix();
    let flags = block_on(fs.fs.init(u64::MAX)).expect("init");
    assert_eq!(flags & init::HANDLE_KILLPRIV_V2, 0);
    let fs = mount(&Arc::default(), Config { posix: false, ..config() }, capabilities(), Ids::default());
    let flags = block_on(fs.fs.init(u64::MAX)).expect("init");
    assert_ne!(flags & init::HANDLE_KILLPRIV_V2, 0);
}

#[test]
fn a_copy_inside_the_store_keeps_the_targets_attributes() {
    let fs = mount(&Arc::default(), config(), Capabilities { copy_ranges: true, ..keeps() }, Ids::default());
    fs.put("a", &vec![7; 3 << 20]).expect("put");
    let to = fs.create_as(ALICE, "b", 0o600).expect("create");
    let from = fs.open("a", 0).expect("open");
    fs.forget_log();
    let at = |(nodeid, handle): (NodeId, Handle)| FileAt { nodeid, handle, offset: 0 };
    let n = block_on(fs.fs.copy_file_range(CTX, at(from), at(to), 3 << 20, 0)).expect("copy");
    assert_eq!(n, 3 << 20);
    let kept = fs.kept("b");
    assert_eq!((kept.mode, kept.uid), (Some(libc::S_IFREG | 0o600), Some(1000)));
    fs.close(to).expect("close");
    assert_eq!((fs.count("compose"), fs.count("read")), (1, 0));
}

#[test]
fn what_is_kept_of_both_sides_of_a_conflict_keeps_its_owner() {
    let fs = mount(&Arc::default(), Config { on_conflict: OnConflict::KeepBoth, ..config() }, keeps(), Ids::default());
    let file = fs.create_as(ALICE, "f", 0o600).expect("create");
    fs.write_at(file, 0, b"first").expect("write");
    fs.flush(file).expect("flush");
    assert_eq!(fs.read_at(file, 0, 5).as_deref(), Ok(&b"first"[..]));
    fs.write_at(file, 0, b"our").expect("write");
    fs.bucket().put_with("f", b"theirs", owned(libc::S_IFREG | 0o444, 9, 9));
    assert_eq!(fs.close(file), Err(Errno::ESTALE));
    let beside = fs.bucket().objects.keys().find(|key| key.starts_with("f.conflict-")).cloned().expect("ours");
    assert_eq!((fs.kept(&beside).uid, fs.kept(&beside).mode), (Some(1000), Some(libc::S_IFREG | 0o600)));
    assert_eq!((fs.attr("f").uid, fs.attr("f").mode), (9, libc::S_IFREG | 0o444));
}

#[test]
fn what_is_set_on_the_root_lasts_as_long_as_the_mount() {
    let fs = posix();
    let change = SetAttr { mode: Some(0o700), uid: Some(5), ..SetAttr::default() };
    let (attr, _) = block_on(fs.fs.setattr(CTX, NodeId::ROOT, change)).expect("chmod");
    assert_eq!((attr.mode, attr.uid), (libc::S_IFDIR | 0o700, 5));
    block_on(fs.fs.setxattr(CTX, NodeId::ROOT, b"user.a", b"1", 0, 0)).expect("setxattr");
    fs.put("f", b"x").expect("put");
    assert_eq!(block_on(fs.fs.getattr(CTX, NodeId::ROOT, None)).expect("getattr").0.mode, libc::S_IFDIR | 0o700);
    assert_eq!(block_on(fs.fs.getxattr(CTX, NodeId::ROOT, b"user.a", 9)), Ok(XattrReply::Data(b"1".to_vec())));
    assert_eq!(block_on(fs.fs.flush_all(Duration::from_secs(5))), 0);
    assert_eq!(fs.count("create_dir"), 0);
}

#[test]
fn a_name_that_is_being_deleted_is_not_listed_with_its_attributes() {
    let fs = posix();
    for i in 0..8 {
        fs.put(&format!("f{i}"), b"x").expect("put");
    }
    let nodeid = NodeId::ROOT;
    let handle = block_on(fs.fs.opendir(CTX, nodeid, 0)).expect("opendir").handle.expect("handle");
    let mut first = Names::new(3);
    block_on(fs.fs.readdirplus(CTX, nodeid, handle, 0, &mut first)).expect("readdirplus");
    let _held = block_on(fs.fs.core.deletions.hold());
    for i in 0..8 {
        fs.unlink(&format!("f{i}")).expect("unlink");
    }
    let mut rest = Types::default();
    block_on(fs.fs.readdirplus(CTX, nodeid, handle, 3, &mut rest)).expect("readdirplus");
    assert!(rest.0.iter().all(|(_, _, entry)| entry.is_some_and(|e| e.nodeid == NodeId(0))), "{:?}", rest.0);
    assert_eq!(fs.lookup("f7").err(), Some(Errno::ENOENT));
}
