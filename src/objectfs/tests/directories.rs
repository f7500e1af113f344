//! Reading large directories: what is kept of them, and that a place in one stays the place that it was.

use super::*;
use crate::store::{Keep, Kind, ListEntry, Meta, MountId, Op, Reply, Store, StoreError, StoreErrorKind};

/// An open directory of some file system.
struct Dir<'a, S: Store> {
    fs: &'a ObjectFs<S>,
    nodeid: NodeId,
    handle: Handle,
}

impl<'a, S: Store> Dir<'a, S> {
    fn open(fs: &'a ObjectFs<S>, name: &str) -> Dir<'a, S> {
        let nodeid = block_on(fs.lookup(CTX, NodeId::ROOT, name.as_bytes())).expect("dir").nodeid;
        let handle = block_on(fs.opendir(CTX, nodeid, 0)).expect("opendir").handle.expect("handle");
        Dir { fs, nodeid, handle }
    }

    /// Up to `count` names from a place on, and the place after each.
    fn try_read(&self, offset: u64, count: usize) -> Result<Vec<(String, u64)>> {
        let mut out = Names::new(count);
        block_on(self.fs.readdir(CTX, self.nodeid, self.handle, offset, &mut out))?;
        Ok(out.names.into_iter().map(|(name, next, _)| (name, next)).collect())
    }

    fn read(&self, offset: u64, count: usize) -> Vec<(String, u64)> {
        self.try_read(offset, count).expect("readdir")
    }

    /// Everything, in so many names at once.
    fn read_all(&self, at_once: usize) -> Vec<(String, u64)> {
        let mut all = Vec::new();
        let mut offset = 0;
        loop {
            let some = self.read(offset, at_once);
            let Some(last) = some.last() else { break };
            offset = last.1;
            all.extend(some);
        }
        all.drain(..2);
        all
    }

    fn scan<T>(&self, look: impl FnOnce(&crate::objectfs::scan::Scan) -> T) -> T {
        let dir = self.fs.core.handles.dir(self.nodeid, self.handle).expect("it is open");
        let scan = block_on(dir.scan.lock());
        look(&scan)
    }
}

fn large(count: usize, resumes: bool) -> (Fs, Vec<String>) {
    let fs = Fs::with_pages((32 << 20, 1000), capabilities(), |_| ());
    let names: Vec<String> = (0..count).map(|i| format!("n{i:05}")).collect();
    for name in &names {
        fs.bucket().put(&format!("d/{name}"), b"x");
    }
    fs.bucket().resumes = resumes;
    (fs, names)
}

#[test]
fn a_large_directory_is_read_to_its_end_and_again_from_any_place() {
    for resumes in [true, false] {
        let (fs, names) = large(7_000, resumes);
        assert_eq!(fs.list("d", true, 100), names);
        let dir = Dir::open(&fs.fs, "d");
        let all = dir.read_all(100);
        assert!(all.iter().map(|(name, _)| name).eq(&names));
        for place in [6_997, 0, 1, 17, 5_999, 3_000, 3_999, 6_998] {
            let again = dir.read(all[place].1, 3);
            assert_eq!(again, all[place + 1..(place + 4).min(7_000)], "{place}, {resumes}");
        }
    }
}

#[test]
fn a_place_far_behind_is_the_same_though_names_came_and_went() {
    let (fs, names) = large(7_000, true);
    let dir = Dir::open(&fs.fs, "d");
    let all = dir.read_all(1000);
    {
        let mut bucket = fs.bucket();
        for i in 1_000..1_500 {
            // As many come as go, and in other places.
            bucket.objects.remove(&format!("d/{}", names[i]));
            bucket.put(&format!("d/{}+{i}", names[i + 700]), b"new");
        }
    }
    let gone = |name: &str| ("n01000".."n01500").contains(&name);
    for place in [999, 1_250, 1_499, 1_600, 1_999] {
        let still: Vec<(String, u64)> =
            all[place + 1..].iter().filter(|(name, _)| !gone(name)).take(5).cloned().collect();
        assert_eq!(dir.read(all[place].1, 5), still, "{place}");
    }
    let to_the_end: usize = {
        let (mut offset, mut count) = (all[1_600].1, 0);
        while let Some((_, next)) = dir.read(offset, 1000).last().cloned() {
            count += dir.read(offset, 1000).len();
            offset = next;
        }
        count
    };
    assert_eq!(to_the_end, 7_000 - 1_601);
}

#[test]
fn a_listing_that_the_store_has_forgotten_goes_on_after_the_last_name() {
    let (fs, names) = large(5_000, true);
    let dir = Dir::open(&fs.fs, "d");
    let mut all = dir.read(0, 1002);
    fs.bucket().fail.push(("list", StoreErrorKind::Stale));
    while let Some((_, next)) = all.last().cloned() {
        let more = dir.read(next, 700);
        if more.is_empty() {
            break;
        }
        all.extend(more);
    }
    assert!(fs.bucket().fail.is_empty());
    assert!(all[2..].iter().map(|(name, _)| name).eq(&names));
}

#[test]
fn what_the_store_does_not_have_yet_comes_once_in_a_large_directory() {
    let (fs, names) = large(5_000, true);
    fs.bucket().put("d/n00001/below", b"x");
    let old = fs.open("d/n00007", RDWR).expect("open");
    fs.write_at(old, 0, b"changed").expect("write");
    let new = fs.create("d/a", 0).expect("create");
    let dir = Dir::open(&fs.fs, "d");
    let mut all: Vec<String> = dir.read_all(1000).into_iter().map(|(name, _)| name).collect();
    assert_eq!(all.pop().as_deref(), Some("a"));
    all.sort();
    assert_eq!(all, names);
    fs.close(old).expect("close");
    fs.close(new).expect("close");
}

/// A store with as many objects in each directory as wanted, none of which it keeps.
struct Endless {
    objects: u64,
    resumes: bool,
    lists: Arc<std::sync::atomic::AtomicU64>,
}

const PAGE: u64 = 1000;

fn object(number: u64) -> String {
    format!("object-{number:012}.with-a-name-of-some-length.parquet")
}

impl Endless {
    fn answer(&self, op: &Op) -> std::result::Result<Reply, StoreErrorKind> {
        let meta = |kind| Meta { kind, size: 1, mtime_ns: None, etag: None, marker: None, details: None };
        match op {
            Op::Stat { path } | Op::Tell { path, .. } if !path.contains('/') => Ok(Reply::Meta(meta(Kind::Dir))),
            Op::Look { .. } => Ok(Reply::Looked { meta: meta(Kind::Dir), below: None }),
            Op::List { cursor, after, .. } => {
                self.lists.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let number = |after: &String| after["object-".len()..][..12].parse::<u64>().expect("one of ours") + 1;
                let first = cursor.max(&after.as_ref().map_or(0, number)).to_owned();
                let end = (first + PAGE).min(self.objects);
                let entries = (first..end).map(|n| ListEntry { name: object(n), meta: meta(Kind::File) }).collect();
                let cursor = (end < self.objects).then_some(end);
                let after = cursor.filter(|_| self.resumes).map(|end| object(end - 1));
                Ok(Reply::Entries { entries, cursor, after })
            }
            Op::ListEnd { .. } => Ok(Reply::Unit),
            _ => Err(StoreErrorKind::Unsupported),
        }
    }
}

impl Store for Endless {
    async fn perform(&self, _: MountId, op: Op, _: Keep) -> std::result::Result<Reply, StoreError> {
        self.answer(&op).map_err(|kind| StoreError { kind, text: format!("{op:?}") })
    }
}

fn endless(objects: u64, resumes: bool) -> (ObjectFs<Endless>, Arc<std::sync::atomic::AtomicU64>) {
    let pool = Arc::new(Pool::new(1 << 20).expect("memfd"));
    let lists = Arc::default();
    let store = Endless { objects, resumes, lists: Arc::clone(&lists) };
    let fs = ObjectFs::new(testing::config(), Remote::new(store, 0), capabilities(), pool).expect("threads");
    block_on(fs.init(u64::MAX)).expect("init");
    (fs, lists)
}

#[test]
fn a_million_names_are_read_in_bounded_memory_and_again_from_any_place() {
    const MANY: u64 = 1_000_000;
    let (fs, lists) = endless(MANY, true);
    let dir = Dir::open(&fs, "d");
    let (mut offset, mut count, mut held) = (0, 0u64, 0);
    let mut places = Vec::new();
    loop {
        let names = dir.read(offset, 1000);
        let Some(last) = names.last() else { break };
        offset = last.1;
        for (name, next) in names.iter().filter(|(name, _)| !matches!(name.as_str(), "." | "..")) {
            assert_eq!(*name, object(count));
            if count % 77_777 == 0 {
                places.push((count, *next));
            }
            count += 1;
        }
        held = held.max(dir.scan(|scan| scan.held_names()));
    }
    assert_eq!(count, MANY);
    assert_eq!(lists.load(std::sync::atomic::Ordering::Relaxed), MANY / PAGE);
    // Three pages of names, eight bytes for each other one (a vector doubles), and a little per page.
    assert!(held <= 3 * PAGE as usize, "{held}");
    let kept = dir.scan(|scan| scan.kept_bytes());
    assert!(kept < 17 << 20, "{kept}");
    for (number, place) in places.into_iter().rev() {
        assert_eq!(dir.read(place, 1)[0].0, object(number + 1));
    }
}

#[test]
fn more_names_than_are_remembered_are_found_by_counting() {
    const MANY: u64 = 2_200_000;
    let (fs, _) = endless(MANY, true);
    let dir = Dir::open(&fs, "d");
    let mut offset = 0;
    while let Some((_, next)) = dir.read(offset, 4000).last() {
        offset = *next;
    }
    assert_eq!(offset, MANY + 2);
    let kept = dir.scan(|scan| scan.kept_bytes());
    assert!(kept < 18 << 20, "{kept}");
    for number in [2_150_123, 100_000, 2_199_998] {
        assert_eq!(dir.read(number + 2, 1)[0].0, object(number), "{number}");
    }
}

#[test]
fn where_names_have_to_be_kept_they_are_up_to_a_bound() {
    const MANY: u64 = 1_000_000;
    let (fs, _) = endless(MANY, false);
    let dir = Dir::open(&fs, "d");
    let mut offset = 0;
    while let Some((_, next)) = dir.read(offset, 4000).last() {
        offset = *next;
    }
    assert_eq!(offset, MANY + 2, "to read it forward costs none of that");
    let kept = dir.scan(|scan| scan.kept_bytes());
    assert!(kept < 50 << 20, "{kept}");
    assert_eq!(dir.read(2 + 4_321, 1)[0].0, object(4_321));
    assert_eq!(dir.try_read(2 + 950_000, 1), Err(Errno::EIO));
}
