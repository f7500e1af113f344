//! Mounts over stores in memory that fail and fall silent when told to.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::executor::block_on;
use futures::poll;

use super::*;
use crate::cache::Part;
use crate::objectfs::{CachePolicy, OnConflict, testing};
use crate::store::{
    Capabilities, Keep, Kind, ListEntry, Meta, Op, Pool, Remote, Reply, Segment, StoreError, StoreErrorKind,
};

/// What stands behind all mounts: objects by mount and path.
struct Double {
    pool: Arc<Pool>,
    objects: Mutex<BTreeMap<(MountId, String), Vec<u8>>>,
    /// Mounts that fail every request.
    down: Mutex<Vec<MountId>>,
    /// Mounts that never answer.
    silent: Mutex<Vec<MountId>>,
    /// Mounts that were asked something.
    asked: Mutex<Vec<MountId>>,
    posix: AtomicBool,
}

impl Double {
    fn new() -> Arc<Double> {
        let pool = Arc::new(Pool::new(64 << 20).expect("memfd"));
        Arc::new(Double {
            pool,
            objects: Mutex::default(),
            down: Mutex::default(),
            silent: Mutex::default(),
            asked: Mutex::default(),
            posix: AtomicBool::new(false),
        })
    }

    fn put(&self, mount: MountId, path: &str, bytes: &[u8]) {
        self.objects.lock().unwrap().insert((mount, path.into()), bytes.to_vec());
    }

    fn get(&self, mount: MountId, path: &str) -> Option<Vec<u8>> {
        self.objects.lock().unwrap().get(&(mount, path.into())).cloned()
    }

    fn capabilities(&self) -> Capabilities {
        let attributes = self.posix.load(Ordering::Relaxed);
        Capabilities { scheme: "double".into(), write: true, etag: true, attributes, ..Capabilities::default() }
    }

    fn meta(&self, mount: MountId, path: &str) -> Option<Meta> {
        let objects = self.objects.lock().unwrap();
        let dir = format!("{path}/");
        let blank = Meta { kind: Kind::Dir, size: 0, mtime_ns: None, etag: None, marker: None, details: None };
        if path.is_empty() || objects.keys().any(|(of, key)| *of == mount && key.starts_with(&dir)) {
            return Some(blank);
        }
        let bytes = objects.get(&(mount, path.to_owned()))?;
        let etag = Some(format!("\"{}-{}\"", bytes.len(), bytes.first().copied().unwrap_or_default()));
        Some(Meta { kind: Kind::File, size: bytes.len() as u64, etag, ..blank })
    }

    fn list(&self, mount: MountId, path: &str) -> Vec<ListEntry> {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let mut names: Vec<String> = Vec::new();
        for (of, key) in self.objects.lock().unwrap().keys() {
            if let (true, Some(rest)) = (*of == mount, key.strip_prefix(&prefix)) {
                let name = rest.split('/').next().unwrap_or_default().to_owned();
                if !name.is_empty() && !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        let entry = |name: String| {
            let meta = self.meta(mount, &format!("{prefix}{name}")).expect("it is there");
            ListEntry { name, meta }
        };
        names.into_iter().map(entry).collect()
    }

    fn answer(&self, mount: MountId, op: Op) -> Result<Reply, StoreError> {
        let fail = |kind| Err(StoreError { kind, text: "as told".into() });
        self.asked.lock().unwrap().push(mount);
        if self.down.lock().unwrap().contains(&mount) {
            return fail(StoreErrorKind::Io);
        }
        match op {
            Op::Probe => Ok(Reply::Capabilities(self.capabilities())),
            Op::Look { path } => {
                let meta = self.meta(mount, &path);
                let meta = meta.ok_or(StoreError { kind: StoreErrorKind::NotFound, text: path })?;
                Ok(Reply::Looked { meta, below: None })
            }
            Op::Stat { path } | Op::Tell { path, .. } => match self.meta(mount, &path) {
                Some(meta) => Ok(Reply::Meta(meta)),
                None => fail(StoreErrorKind::NotFound),
            },
            Op::List { path, .. } => Ok(Reply::Entries { entries: self.list(mount, &path), cursor: None, after: None }),
            Op::Read { path, offset, dest, .. } => match self.get(mount, &path) {
                Some(bytes) => {
                    let start = offset as usize;
                    assert!(self.pool.write(dest.offset, &bytes[start..start + dest.len as usize]));
                    Ok(Reply::Unit)
                }
                None => fail(StoreErrorKind::NotFound),
            },
            Op::Compose { path, segments, .. } => {
                let mut bytes = Vec::new();
                for segment in segments {
                    match segment {
                        Segment::Data(slice) => {
                            let mut part = vec![0; slice.len as usize];
                            assert!(self.pool.read(slice.offset, &mut part));
                            bytes.extend(part);
                        }
                        Segment::Zero { len } => bytes.extend(vec![0; len as usize]),
                        Segment::Copy { .. } => return fail(StoreErrorKind::Unsupported),
                    }
                }
                self.put(mount, &path, &bytes);
                Ok(Reply::Meta(self.meta(mount, &path).expect("just put")))
            }
            Op::Delete { path } => {
                self.objects.lock().unwrap().remove(&(mount, path));
                Ok(Reply::Unit)
            }
            _ => Ok(Reply::Unit),
        }
    }
}

impl Store for Arc<Double> {
    async fn perform(&self, mount: MountId, op: Op, _: Keep) -> Result<Reply, StoreError> {
        if self.silent.lock().unwrap().contains(&mount) {
            self.asked.lock().unwrap().push(mount);
            futures::future::pending::<()>().await;
        }
        self.answer(mount, op)
    }
}

fn config() -> Config {
    Config {
        cache: CachePolicy::Auto,
        killpriv_v2: true,
        on_conflict: OnConflict::KeepBoth,
        capacity: 1 << 30,
        inodes_max: 1000,
        handles_max: 100,
        ..testing::config()
    }
}

fn spec(store: &Arc<Double>, path: &str, number: MountId) -> Spec<Arc<Double>> {
    let memory = Part::of(Arc::clone(&store.pool), usize::from(number) * (16 << 20), 16 << 20);
    Spec {
        path: path.into(),
        config: config(),
        readonly: false,
        ids: Arc::default(),
        remote: Remote::new(Arc::clone(store), number),
        capabilities: (number == 0).then(|| store.capabilities()),
        memory,
    }
}

fn mounts(specs: Vec<Spec<Arc<Double>>>) -> Mounts<Arc<Double>> {
    Mounts::new(config(), Arc::default(), specs).expect("threads")
}

const CTX: Context = Context { uid: 0, gid: 0, pid: 1, unique: 1 };

/// Names with what stands behind them.
#[derive(Default)]
struct Names {
    seen: Vec<(String, u64, u64)>,
    cookies: Vec<u64>,
    most: Option<usize>,
}

impl Names {
    fn take(&mut self, entry: &DirEntry<'_>, nodeid: u64) -> bool {
        if self.most.is_some_and(|most| self.seen.len() >= most) {
            return false;
        }
        self.seen.push((String::from_utf8_lossy(entry.name).into_owned(), entry.ino, nodeid));
        self.cookies.push(entry.next_offset);
        true
    }
}

impl DirSink for Names {
    fn add(&mut self, entry: &DirEntry<'_>) -> bool {
        self.take(entry, 0)
    }

    fn fits_plus(&self, _: usize) -> bool {
        self.most.is_none_or(|most| self.seen.len() < most)
    }

    fn add_plus(&mut self, name: &DirEntry<'_>, entry: &Entry) -> bool {
        self.take(name, entry.nodeid.0)
    }
}

type Fs = Mounts<Arc<Double>>;

fn names(fs: &Fs, dir: NodeId, plus: bool, at_once: usize) -> Vec<(String, u64, u64)> {
    let handle = block_on(fs.opendir(CTX, dir, 0)).unwrap().handle.unwrap_or(Handle(0));
    let mut all = Vec::new();
    let mut offset = 0;
    loop {
        let mut out = Names { most: Some(at_once), ..Names::default() };
        block_on(async {
            match plus {
                true => fs.readdirplus(CTX, dir, handle, offset, &mut out).await,
                false => fs.readdir(CTX, dir, handle, offset, &mut out).await,
            }
        })
        .unwrap();
        let Some(last) = out.cookies.last() else { break };
        offset = *last;
        all.extend(out.seen);
    }
    block_on(fs.releasedir(CTX, dir, handle, 0)).unwrap();
    all
}

fn only_names(fs: &Fs, dir: NodeId) -> Vec<String> {
    names(fs, dir, false, 100).into_iter().map(|(name, ..)| name).collect()
}

fn find(fs: &Fs, path: &str) -> Result<Entry> {
    let mut entry = None;
    let mut at = NodeId::ROOT;
    for name in path.split('/') {
        let found = block_on(fs.lookup(CTX, at, name.as_bytes()))?;
        at = found.nodeid;
        entry = Some(found);
    }
    entry.ok_or(Errno::ENOENT)
}

fn read(fs: &Fs, path: &str) -> Result<Vec<u8>> {
    let nodeid = find(fs, path)?.nodeid;
    let handle = block_on(fs.open(CTX, nodeid, 0, false))?.handle.unwrap();
    let mut out = crate::objectfs::testing::Buffer::room(4096);
    let op = Read { nodeid, handle, offset: 0, size: 4096, lock_owner: None, flags: 0 };
    block_on(fs.read(CTX, op, &mut out))?;
    block_on(fs.release(CTX, nodeid, handle, 0, None, false))?;
    Ok(out.bytes)
}

fn write(fs: &Fs, parent: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let parent = if parent.is_empty() { NodeId::ROOT } else { find(fs, parent)?.nodeid };
    let flags = libc::O_WRONLY as u32;
    let created = fs.create(CTX, parent, name.as_bytes(), 0o644, flags, 0, false, Extensions::default());
    let (entry, opened) = block_on(created)?;
    let handle = opened.handle.unwrap();
    let size = bytes.len() as u32;
    let op = Write {
        nodeid: entry.nodeid,
        handle,
        offset: 0,
        size,
        lock_owner: None,
        delayed: false,
        kill_priv: false,
        flags,
    };
    block_on(fs.write(CTX, op, &mut crate::objectfs::testing::Buffer::of(bytes)))?;
    block_on(fs.flush(CTX, entry.nodeid, handle, 0))?;
    block_on(fs.release(CTX, entry.nodeid, handle, flags, None, false))
}

/// Waits until a mount has been refused or served.
fn settle(fs: &Fs, path: &str) {
    let _ = find(fs, &format!("{path}/x"));
}

#[test]
fn stores_are_directories_of_one_share() {
    let store = Double::new();
    store.put(0, "top", b"root");
    store.put(0, "a/hidden", b"below the mount");
    store.put(1, "f", b"one");
    store.put(2, "f", b"two");
    let fs = mounts(vec![spec(&store, "/", 0), spec(&store, "/a", 1), spec(&store, "/d/b", 2)]);
    for (path, bytes) in [("top", &b"root"[..]), ("a/f", b"one"), ("d/b/f", b"two")] {
        assert_eq!(read(&fs, path).as_deref(), Ok(bytes), "{path}");
    }
    assert_eq!(find(&fs, "a/hidden").err(), Some(Errno::ENOENT));
    write(&fs, "d/b", "new", b"written").unwrap();
    assert_eq!(store.get(2, "new").as_deref(), Some(&b"written"[..]));
    assert_eq!(only_names(&fs, NodeId::ROOT), [".", "..", "a", "d", "top"]);
    let mut inos: Vec<u64> =
        ["top", "a", "a/f", "d", "d/b", "d/b/f"].map(|path| find(&fs, path).unwrap().attr.ino).into();
    inos.push(1);
    inos.sort_unstable();
    inos.dedup();
    assert_eq!(inos.len(), 7, "inode numbers are unique");
    let entry = find(&fs, "d/b/f").unwrap();
    assert_eq!(entry.attr.ino, entry.nodeid.0);
}

#[test]
fn root_shows_each_mount_once_in_pieces_too_and_forgets_what_it_hides() {
    let store = Double::new();
    for name in ["a/x", "b", "c", "e/y"] {
        store.put(0, name, b"0");
    }
    let fs = mounts(vec![spec(&store, "/", 0), spec(&store, "/a", 1), spec(&store, "/e/m", 2)]);
    for plus in [false, true] {
        for at_once in 1..8 {
            let seen = names(&fs, NodeId::ROOT, plus, at_once);
            let only: Vec<&str> = seen.iter().map(|(name, ..)| name.as_str()).collect();
            assert_eq!(only, [".", "..", "a", "e", "b", "c"], "{plus} {at_once}");
            if plus {
                assert!(seen[2..].iter().all(|(_, ino, nodeid)| ino == nodeid && *nodeid != 0), "{seen:?}");
            }
        }
    }
    let a = find(&fs, "a").unwrap().nodeid;
    let inside = names(&fs, a, true, 100);
    assert_eq!(inside, [(".".into(), a.0, 0), ("..".into(), 1, 0)]);
    let m = find(&fs, "e/m").unwrap().nodeid;
    assert_eq!(names(&fs, m, false, 1)[1].1, find(&fs, "e").unwrap().nodeid.0);
}

#[test]
fn deeper_listings_have_the_mounts_numbers() {
    let store = Double::new();
    store.put(1, "dir/f", b"0");
    store.put(2, "dir/f", b"0");
    let fs = mounts(vec![spec(&store, "/one", 1), spec(&store, "/two", 2)]);
    let mut inos = Vec::new();
    for mount in ["one", "two"] {
        let entry = find(&fs, &format!("{mount}/dir")).unwrap();
        for plus in [false, true] {
            let seen = names(&fs, entry.nodeid, plus, 100);
            assert_eq!(seen[0].1, entry.nodeid.0);
            assert_eq!(seen[1].1, find(&fs, mount).unwrap().nodeid.0);
            inos.push(seen[2].1);
        }
    }
    inos.sort_unstable();
    inos.dedup();
    assert_eq!(inos.len(), 4, "hashed and real numbers of two mounts");
}

#[test]
fn synthetic_directories_cannot_be_changed_and_mount_points_stay() {
    let store = Double::new();
    store.put(1, "f", b"0");
    store.put(2, "f", b"0");
    let fs = mounts(vec![spec(&store, "/d/a", 1), spec(&store, "/d/b", 2)]);
    let d = find(&fs, "d").unwrap();
    let (a, b) = (find(&fs, "d/a").unwrap().nodeid, find(&fs, "d/b").unwrap().nodeid);
    assert_eq!(d.attr.mode, libc::S_IFDIR | 0o555);
    for dir in [NodeId::ROOT, d.nodeid] {
        assert_eq!(block_on(fs.mkdir(CTX, dir, b"n", 0o755, 0, Extensions::default())).err(), Some(Errno::EROFS));
        let created = fs.create(CTX, dir, b"n", 0o644, libc::O_WRONLY as u32, 0, false, Extensions::default());
        assert_eq!(block_on(created).err(), Some(Errno::EROFS));
        assert_eq!(block_on(fs.unlink(CTX, dir, b"n")), Err(Errno::EROFS));
        assert_eq!(block_on(fs.lookup(CTX, dir, b"n")).err(), Some(Errno::ENOENT));
        assert_eq!(block_on(fs.access(CTX, dir, libc::W_OK as u32)), Err(Errno::EROFS));
        assert_eq!(block_on(fs.access(CTX, dir, libc::R_OK as u32)), Ok(()));
        assert_eq!(
            block_on(fs.setattr(CTX, dir, SetAttr { mode: Some(0), ..SetAttr::default() })).err(),
            Some(Errno::EROFS)
        );
    }
    assert_eq!(block_on(fs.unlink(CTX, d.nodeid, b"a")), Err(Errno::EBUSY));
    assert_eq!(block_on(fs.rmdir(CTX, NodeId::ROOT, b"d")), Err(Errno::EBUSY));
    assert_eq!(block_on(fs.rename(CTX, d.nodeid, b"a", d.nodeid, b"z", 0)), Err(Errno::EBUSY));
    assert_eq!(block_on(fs.rename(CTX, a, b"f", d.nodeid, b"b", 0)), Err(Errno::EBUSY));
    assert_eq!(block_on(fs.rename(CTX, a, b"f", d.nodeid, b"z", 0)), Err(Errno::EROFS));
    assert_eq!(block_on(fs.rename(CTX, a, b"f", b, b"g", 0)), Err(Errno::EXDEV));
    let f = find(&fs, "d/a/f").unwrap().nodeid;
    assert_eq!(block_on(fs.link(CTX, f, b, b"g")).err(), Some(Errno::EXDEV));
    assert_eq!(block_on(fs.link(CTX, f, a, b"g")).err(), Some(Errno::EPERM));
    let mkdir = fs.mkdir(CTX, d.nodeid, b"a", 0o755, 0, Extensions::default());
    assert_eq!(block_on(mkdir).err(), Some(Errno::EEXIST), "as mkdir -p expects");
}

#[test]
fn copies_and_handles_stay_in_their_mount() {
    let store = Double::new();
    store.put(1, "f", b"0");
    store.put(2, "f", b"0");
    let fs = mounts(vec![spec(&store, "/a", 1), spec(&store, "/b", 2)]);
    let open = |path: &str| {
        let nodeid = find(&fs, path).unwrap().nodeid;
        let handle = block_on(fs.open(CTX, nodeid, libc::O_RDWR as u32, false)).unwrap().handle.unwrap();
        FileAt { nodeid, handle, offset: 0 }
    };
    let (a, b) = (open("a/f"), open("b/f"));
    assert_ne!(a.handle, b.handle);
    assert_eq!(block_on(fs.copy_file_range(CTX, a, b, 1, 0)), Err(Errno::EXDEV));
    let mixed = FileAt { handle: b.handle, ..a };
    assert_eq!(block_on(fs.lseek(CTX, mixed, libc::SEEK_DATA as u32)), Err(Errno::EBADF));
    assert_eq!(block_on(fs.getattr(CTX, a.nodeid, Some(b.handle))).err(), Some(Errno::EBADF));
    assert!(block_on(fs.getattr(CTX, a.nodeid, Some(a.handle))).is_ok());
    assert_eq!(block_on(fs.getattr(CTX, NodeId(a.nodeid.0 + (9 << 48)), None)).err(), Some(Errno::EBADF));
}

#[test]
fn forgotten_nodes_are_forgotten_in_their_own_mount() {
    let store = Double::new();
    store.put(1, "f", b"0");
    let fs = mounts(vec![spec(&store, "/", 0), spec(&store, "/a", 1)]);
    let f = find(&fs, "a/f").unwrap().nodeid;
    fs.forget(NodeId(inner(f.0)), 1);
    assert!(block_on(fs.getattr(CTX, f, None)).is_ok());
    fs.forget(f, 1);
    assert_eq!(block_on(fs.getattr(CTX, f, None)).err(), Some(Errno::EBADF));
    let a = find(&fs, "a").unwrap().nodeid;
    fs.forget(a, 99);
    assert!(block_on(fs.getattr(CTX, a, None)).is_ok(), "the root of a mount stays");
}

#[test]
fn readonly_mount_refuses_changes_beside_one_that_takes_them() {
    let store = Double::new();
    store.put(1, "f", b"old");
    let fs = mounts(vec![Spec { readonly: true, ..spec(&store, "/ro", 1) }, spec(&store, "/rw", 2)]);
    assert_eq!(write(&fs, "ro", "new", b"x"), Err(Errno::EROFS));
    let ro = find(&fs, "ro").unwrap().nodeid;
    let f = find(&fs, "ro/f").unwrap().nodeid;
    assert_eq!(block_on(fs.open(CTX, f, libc::O_WRONLY as u32, false)).err(), Some(Errno::EROFS));
    assert_eq!(block_on(fs.unlink(CTX, ro, b"f")), Err(Errno::EROFS));
    assert_eq!(block_on(fs.rename(CTX, ro, b"f", ro, b"g", 0)), Err(Errno::EROFS));
    assert_eq!(block_on(fs.access(CTX, f, libc::W_OK as u32)), Err(Errno::EROFS));
    let created = fs.create(CTX, ro, b"f", 0o644, libc::O_CREAT as u32, 0, false, Extensions::default());
    assert!(block_on(created).is_ok(), "what is there can be opened for reading");
    assert_eq!(read(&fs, "ro/f").as_deref(), Ok(&b"old"[..]));
    assert_eq!(write(&fs, "rw", "new", b"x"), Ok(()));
}

#[test]
fn looking_at_the_root_asks_no_store_but_its_own() {
    let store = Double::new();
    store.silent.lock().unwrap().extend([1, 2]);
    let fs = mounts(vec![spec(&store, "/", 0), spec(&store, "/a", 1), spec(&store, "/d/b", 2)]);
    assert_eq!(only_names(&fs, NodeId::ROOT), [".", "..", "a", "d"]);
    names(&fs, NodeId::ROOT, true, 100);
    for path in ["a", "d", "d/b"] {
        let entry = find(&fs, path).unwrap();
        assert_eq!(block_on(fs.getattr(CTX, entry.nodeid, None)).unwrap().0.mode & libc::S_IFMT, libc::S_IFDIR);
        block_on(fs.statfs(CTX, entry.nodeid)).unwrap();
    }
    // The probe of each is all that they were asked.
    let asked = store.asked.lock().unwrap().iter().filter(|mount| **mount != 0).count();
    assert!(asked <= 2, "{asked}");
}

#[test]
fn mount_that_is_down_has_errnos_and_its_neighbours_none() {
    let store = Double::new();
    store.put(1, "f", b"one");
    store.put(2, "f", b"two");
    store.down.lock().unwrap().push(1);
    let fs = mounts(vec![spec(&store, "/a", 1), spec(&store, "/b", 2)]);
    assert_eq!(read(&fs, "a/f"), Err(Errno::EIO));
    assert_eq!(write(&fs, "a", "g", b"x"), Err(Errno::EIO));
    assert_eq!(read(&fs, "b/f").as_deref(), Ok(&b"two"[..]));
    assert_eq!(block_on(fs.flush_all(Duration::from_secs(1))), 0);
    store.down.lock().unwrap().clear();
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while read(&fs, "a/f").is_err() && std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(read(&fs, "a/f").as_deref(), Ok(&b"one"[..]), "it is asked again");
}

#[test]
fn mount_that_is_silent_keeps_nobody_waiting_but_its_own() {
    let store = Double::new();
    store.put(2, "f", b"two");
    store.silent.lock().unwrap().push(1);
    let fs = mounts(vec![spec(&store, "/a", 1), spec(&store, "/b", 2)]);
    let a = find(&fs, "a").unwrap().nodeid;
    block_on(async {
        let mut waits = Box::pin(fs.lookup(CTX, a, b"f"));
        assert!(poll!(&mut waits).is_pending());
        assert!(poll!(&mut waits).is_pending());
    });
    assert_eq!(read(&fs, "b/f").as_deref(), Ok(&b"two"[..]));
    assert!(block_on(fs.init(u64::MAX)).is_ok());
    assert_eq!(block_on(fs.syncfs(CTX, NodeId::ROOT)), Ok(()));
}

#[test]
fn store_without_what_its_mount_needs_is_refused() {
    let store = Double::new();
    let posix = Config { posix: true, xattr: true, ..config() };
    let fs = mounts(vec![Spec { config: posix, ..spec(&store, "/a", 1) }]);
    settle(&fs, "a");
    assert_eq!(find(&fs, "a/f").err(), Some(Errno::EIO));
}

#[test]
fn flags_are_those_that_all_can_bear() {
    let store = Double::new();
    store.posix.store(true, Ordering::Relaxed);
    let kill = init::HANDLE_KILLPRIV_V2;
    let posix = Config { posix: true, xattr: true, ..config() };
    let plain = mounts(vec![spec(&store, "/a", 1), spec(&store, "/b", 2)]);
    assert_ne!(block_on(plain.init(u64::MAX)).unwrap() & kill, 0);
    let a = find(&plain, "a").unwrap().nodeid;
    assert_eq!(block_on(plain.getxattr(CTX, a, b"user.x", 0)).err(), Some(Errno::ENOSYS));
    let mixed = mounts(vec![spec(&store, "/a", 1), Spec { config: posix, ..spec(&store, "/b", 2) }]);
    let flags = block_on(mixed.init(u64::MAX)).unwrap();
    assert_eq!(flags & kill, 0);
    assert_ne!(flags & init::DO_READDIRPLUS, 0);
    for nodeid in [NodeId::ROOT, find(&mixed, "a").unwrap().nodeid] {
        let asked = block_on(mixed.getxattr(CTX, nodeid, b"user.x", 0));
        assert_eq!(asked.err(), Some(Errno::EOPNOTSUPP), "ENOSYS would end the asking in all mounts");
    }
}

#[test]
fn each_mount_has_its_own_size_and_attributes() {
    let store = Double::new();
    let mut small = spec(&store, "/a", 1);
    small.config = Config { capacity: 1 << 20, uid: 7, dir_mode: 0o700, ..config() };
    let fs = mounts(vec![small, spec(&store, "/b", 2)]);
    let blocks = |path: &str| block_on(fs.statfs(CTX, find(&fs, path).unwrap().nodeid)).unwrap().blocks;
    assert_eq!((blocks("a"), blocks("b")), (256, 1 << 18));
    assert_eq!(block_on(fs.statfs(CTX, NodeId::ROOT)).unwrap().blocks, 1 << 18);
    settle(&fs, "a");
    let attr = find(&fs, "a").unwrap().attr;
    assert_eq!((attr.uid, attr.mode), (7, libc::S_IFDIR | 0o700));
}

#[test]
fn mount_that_comes_is_found_beside_the_others_whose_numbers_stay() {
    let store = Double::new();
    store.put(1, "f", b"one");
    store.put(2, "f", b"two");
    let fs = mounts(vec![spec(&store, "/d/a", 1)]);
    let d = find(&fs, "d").unwrap().nodeid;
    assert_eq!(only_names(&fs, d), [".", "..", "a"]);
    fs.add(2, spec(&store, "/d/b", 2)).unwrap();
    assert_eq!(find(&fs, "d").unwrap().nodeid, d);
    assert_eq!(only_names(&fs, d), [".", "..", "a", "b"]);
    assert_eq!(read(&fs, "d/b/f").as_deref(), Ok(&b"two"[..]));
    assert_eq!(read(&fs, "d/a/f").as_deref(), Ok(&b"one"[..]));
    assert!(fs.add(2, spec(&store, "/c", 2)).is_err(), "a number is used once");
    fs.set_expiration(2, Duration::from_secs(77));
    assert_eq!(find(&fs, "d/b/f").unwrap().attr_timeout, Duration::from_secs(77));
    assert_ne!(find(&fs, "d/a/f").unwrap().attr_timeout, Duration::from_secs(77));
}

#[test]
fn mount_that_goes_is_found_no_more_stores_what_is_dirty_and_is_stale_then() {
    let store = Double::new();
    store.put(1, "f", b"one");
    store.put(2, "f", b"two");
    let fs = mounts(vec![spec(&store, "/a", 1), spec(&store, "/d/b", 2)]);
    let b = find(&fs, "d/b").unwrap().nodeid;
    let flags = libc::O_RDWR as u32;
    let f = find(&fs, "d/b/f").unwrap().nodeid;
    let created = fs.create(CTX, b, b"open", 0o644, flags, 0, false, Extensions::default());
    let (entry, opened) = block_on(created).unwrap();
    let (nodeid, handle) = (entry.nodeid, opened.handle.unwrap());
    let write = |offset: u64| {
        let op = Write { nodeid, handle, offset, size: 5, lock_owner: None, delayed: false, kill_priv: false, flags };
        block_on(fs.write(CTX, op, &mut crate::objectfs::testing::Buffer::of(b"dirty")))
    };
    write(0).unwrap();
    assert_eq!(store.get(2, "open"), None);
    assert!(fs.remove(2) && !fs.remove(9));
    for path in ["d", "d/b", "d/b/f"] {
        assert_eq!(find(&fs, path).err(), Some(Errno::ENOENT), "{path}");
    }
    assert_eq!(block_on(fs.lookup(CTX, b, b"f")).err(), Some(Errno::ENOENT));
    assert_eq!(block_on(fs.open(CTX, f, 0, false)).err(), Some(Errno::ENOENT));
    assert_eq!(write(5), Ok(5), "what is open works until all is stored");
    fs.drain(2);
    assert_eq!(store.get(2, "open").as_deref(), Some(&b"dirtydirty"[..]));
    assert_eq!(write(10), Err(Errno::ESTALE));
    let op = Read { nodeid, handle, offset: 0, size: 9, lock_owner: None, flags: 0 };
    let mut out = crate::objectfs::testing::Buffer::room(16);
    assert_eq!(block_on(fs.read(CTX, op, &mut out)), Err(Errno::ESTALE));
    assert_eq!(block_on(fs.getattr(CTX, b, None)).err(), Some(Errno::ESTALE));
    assert_eq!(block_on(fs.flush(CTX, nodeid, handle, 0)), Err(Errno::ESTALE));
    fs.forget(nodeid, 1);
    assert_eq!(read(&fs, "a/f").as_deref(), Ok(&b"one"[..]));
    assert_eq!(only_names(&fs, NodeId::ROOT), [".", "..", "a"]);
    fs.add(3, spec(&store, "/d/b", 3)).unwrap();
    assert_eq!(only_names(&fs, find(&fs, "d/b").unwrap().nodeid), [".", ".."], "another mount in its place");
}

#[test]
fn mount_that_goes_waits_for_its_store() {
    let store = Double::new();
    let fs = Arc::new(mounts(vec![spec(&store, "/a", 1)]));
    let a = find(&fs, "a").unwrap().nodeid;
    settle(&fs, "a");
    let flags = libc::O_WRONLY as u32;
    let (entry, opened) = block_on(fs.create(CTX, a, b"n", 0o644, flags, 0, false, Extensions::default())).unwrap();
    let (nodeid, handle) = (entry.nodeid, opened.handle.unwrap());
    let op = Write { nodeid, handle, offset: 0, size: 1, lock_owner: None, delayed: false, kill_priv: false, flags };
    block_on(fs.write(CTX, op, &mut crate::objectfs::testing::Buffer::of(b"x"))).unwrap();
    store.down.lock().unwrap().push(1);
    fs.remove(1);
    let draining = Arc::clone(&fs);
    let thread = std::thread::spawn(move || draining.drain(1));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!thread.is_finished());
    store.down.lock().unwrap().clear();
    thread.join().unwrap();
    assert_eq!(store.get(1, "n").as_deref(), Some(&b"x"[..]));
}
