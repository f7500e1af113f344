use std::sync::Mutex;

use super::*;
use crate::store::StoreErrorKind;

const LEN: usize = 1_000_000;

fn content() -> Vec<u8> {
    (0..LEN).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn version(etag: &str) -> Version {
    Version { etag: Some(etag.into()), size: LEN as u64, mtime_ns: None }
}

/// One daemon's view of the directory, and what it fetched.
struct Daemon {
    shelf: Shelf,
    pool: Arc<Pool>,
    fetched: Mutex<Vec<(u64, u32)>>,
    delay: Duration,
}

impl Daemon {
    fn new(dir: &Path, max: u64, url: &str) -> Daemon {
        let pool = Arc::new(Pool::new(4 << 20).unwrap());
        let disk = Disk::open(dir, max).unwrap();
        let shelf = Shelf::new(disk, &Backend::parse(url).unwrap(), &pool);
        Daemon { shelf, pool, fetched: Mutex::default(), delay: Duration::ZERO }
    }

    async fn read(&self, path: &str, etag: &str, offset: u64, len: u32) -> Result<Vec<u8>, StoreError> {
        let dest = Slice { offset: 4096, len };
        let fetch = |at: u64, part: Slice| async move {
            tokio::time::sleep(self.delay).await;
            self.fetched.lock().unwrap().push((at, part.len));
            let at = at as usize;
            assert!(self.pool.write(part.offset, &content()[at..at + part.len as usize]));
            Ok(())
        };
        self.shelf.read(path, &version(etag), (offset, dest), fetch).await?;
        let mut bytes = vec![0; len as usize];
        assert!(self.pool.read(dest.offset, &mut bytes));
        Ok(bytes)
    }

    async fn check(&self, path: &str, etag: &str, offset: u64, len: u32) {
        let bytes = self.read(path, etag, offset, len).await.unwrap();
        assert!(bytes == content()[offset as usize..][..len as usize], "{offset} {len}");
    }

    fn fetched(&self) -> u64 {
        std::mem::take(&mut *self.fetched.lock().unwrap()).iter().map(|&(_, len)| u64::from(len)).sum()
    }
}

const URL: &str = "s3://bucket/root?endpoint=http://127.0.0.1:1&region=us-east-1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_daemon_fetched_is_there_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let one = Daemon::new(dir.path(), 1 << 30, URL);
    one.check("a", "\"1\"", 0, LEN as u32).await;
    assert_eq!(one.fetched(), LEN as u64);
    let other = Daemon::new(dir.path(), 1 << 30, URL);
    for (offset, len) in [(0, LEN as u32), (5, 10), (65_530, 20), (LEN as u64 - 3, 3), (131_072, 65_536)] {
        other.check("a", "\"1\"", offset, len).await;
    }
    assert_eq!((other.fetched(), other.shelf.disk.counts().1), (0, 0));
    // Another version, another object, another bucket are others.
    other.check("a", "\"2\"", 0, 100).await;
    other.check("b", "\"1\"", 0, 100).await;
    let elsewhere = Daemon::new(dir.path(), 1 << 30, &URL.replace("bucket", "other"));
    elsewhere.check("a", "\"1\"", 0, 100).await;
    assert_eq!((other.fetched(), elsewhere.fetched()), (200, 100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_missing_is_fetched_and_only_whole_blocks_stay() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::new(dir.path(), 1 << 30, URL);
    daemon.check("a", "\"1\"", 65_536, 65_536).await;
    daemon.check("a", "\"1\"", 327_680, 1000).await;
    daemon.fetched();
    daemon.check("a", "\"1\"", 0, 400_000).await;
    assert_eq!(daemon.fetched(), 400_000 - 65_536);
    daemon.check("a", "\"1\"", 327_680, 65_536).await;
    assert_eq!(daemon.fetched(), 0);
    daemon.check("a", "\"1\"", 393_216, 65_536).await;
    assert_eq!(daemon.fetched(), 65_536, "the beginning of a block is no block");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_and_deletion_only_cost_a_fetch() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::new(dir.path(), 1 << 30, URL);
    daemon.check("a", "\"1\"", 0, LEN as u32).await;
    daemon.fetched();
    let path = daemon.shelf.path("a", &version("\"1\""));
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xff; 3], 8192 + 70_000).unwrap();
    daemon.check("a", "\"1\"", 0, LEN as u32).await;
    assert_eq!(daemon.fetched(), 65_536);
    // Cut off in the middle, as by a full disk or a crash.
    file.set_len(500_000).unwrap();
    daemon.check("a", "\"1\"", 0, LEN as u32).await;
    assert!(daemon.fetched() > 0);
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    daemon.check("a", "\"1\"", 0, LEN as u32).await;
    assert_eq!(daemon.fetched(), LEN as u64);
    daemon.check("a", "\"1\"", 0, LEN as u32).await;
    assert_eq!(daemon.fetched(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn daemons_that_read_the_same_at_once_fetch_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let daemons: Vec<Daemon> =
        (0..8).map(|_| Daemon { delay: Duration::from_millis(100), ..Daemon::new(dir.path(), 1 << 30, URL) }).collect();
    futures::future::join_all(daemons.iter().map(|daemon| daemon.check("a", "\"1\"", 0, LEN as u32))).await;
    assert_eq!(daemons.iter().map(Daemon::fetched).sum::<u64>(), LEN as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_that_fails_is_the_readers_error_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::new(dir.path(), 1 << 30, URL);
    let dest = Slice { offset: 0, len: 65_536 };
    let fail = |_, _| async { Err(super::super::error::error(StoreErrorKind::Unavailable, "down")) };
    let failed = daemon.shelf.read("a", &version("\"1\""), (0, dest), fail).await;
    assert_eq!(failed.unwrap_err().kind, StoreErrorKind::Unavailable);
    daemon.check("a", "\"1\"", 0, 65_536).await;
    assert_eq!(daemon.fetched(), 65_536);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_room_is_kept_and_what_was_used_last_stays() {
    let dir = tempfile::tempdir().unwrap();
    let max = 8 << 20;
    let daemon = Daemon::new(dir.path(), max, URL);
    for number in 0..20 {
        daemon.check(&format!("f{number}"), "\"1\"", 0, LEN as u32).await;
    }
    sweep::sweep(dir.path(), max).unwrap();
    let used = |name: &str| std::fs::metadata(daemon.shelf.path(name, &version("\"1\""))).is_ok();
    assert!(used("f19") && used("f18") && !used("f0") && !used("f1"));
    let sum: u64 = walk(dir.path());
    assert!(sum <= max && sum > max / 2, "{sum}");
    let large = Version { size: max, ..version("\"1\"") };
    assert!(!daemon.shelf.takes(Some(&large)) && !daemon.shelf.takes(None));
    assert!(!daemon.shelf.takes(Some(&version("W/\"1\""))));
}

fn walk(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    entries.map(|e| if e.path().is_dir() { walk(&e.path()) } else { e.metadata().unwrap().blocks() * 512 }).sum()
}

#[test]
fn a_directory_that_others_may_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(Disk::open(dir.path(), 1 << 30).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    let new = dir.path().join("a/b");
    Disk::open(&new, 1 << 30).unwrap();
    assert_eq!(std::fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o700);
}
