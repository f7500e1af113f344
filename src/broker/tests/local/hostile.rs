use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::*;

/// Another process, at work in the directory until it is dropped.
struct Racer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Racer {
    fn start(mut step: impl FnMut() + Send + 'static) -> Racer {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                step();
            }
        });
        Racer { stop, thread: Some(thread) }
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Lets two names change places; without one of them nothing happens.
fn exchange(a: &Path, b: &Path) {
    let (a, b) = (c_path(a), c_path(b));
    // SAFETY: C strings.
    unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            a.as_ptr(),
            libc::AT_FDCWD,
            b.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
}

/// What nobody may change.
fn state(path: &Path) -> (Vec<u8>, u32, u32, i64, i64, Option<Vec<u8>>, u64) {
    let meta = fs::metadata(path).unwrap();
    let content = if meta.is_dir() { vec![] } else { fs::read(path).unwrap() };
    (content, meta.mode(), meta.uid(), meta.mtime(), meta.mtime_nsec(), xattr(path, "user.a"), meta.nlink())
}

#[test]
fn fs_follows_no_link_that_is_planted_under_way_whatever_it_does() {
    let outside = tempfile::tempdir().unwrap();
    let away: PathBuf = outside.path().join("d");
    fs::create_dir(&away).unwrap();
    for name in ["f", "new", "sub"] {
        fs::write(away.join(name), "CANARY").unwrap();
    }
    let watched = ["", "f", "new", "sub"].map(|name| away.join(name));
    let before = watched.each_ref().map(|path| state(path));
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/f"), "inside").unwrap();
    let bed = posix(dir.path());
    let racer = Racer::start(move || {
        let _ = symlink(&away, root.join("d-aside"));
        exchange(&root.join("d"), &root.join("d-aside"));
        let _ = fs::remove_file(root.join("f-aside"));
        let _ = symlink(away.join("f"), root.join("f-aside"));
        exchange(&root.join("f"), &root.join("f-aside"));
    });
    let set = Attributes {
        uid: is_root().then_some(99),
        mtime_ns: Some(1),
        xattrs: Some([("user.a".to_owned(), b"1".to_vec())].into()),
        ..attributes(0o4777)
    };
    let dest = bed.room(6);
    let (mut changed, mut read) = (0, 0);
    let start = Instant::now();
    while (changed < 20 || read < 20 || start.elapsed() < Duration::from_secs(4))
        && start.elapsed() < Duration::from_secs(60)
    {
        let _ = bed.put_when("f", b"inside", Condition::Any);
        for path in ["f", "d/f", "d/sub", "d"] {
            if let Ok(old) = bed.stat(path)
                && bed.change(path, &old, &set).is_ok()
            {
                changed += 1;
            }
            let _ = bed.mkdir_with(path, &Attributes { mode: Some(libc::S_IFDIR | 0o777), ..set.clone() });
            // A link has the length of its target, which is another.
            if bed
                .stat(path)
                .is_ok_and(|meta| told(&meta).mode.is_some_and(|mode| mode & libc::S_IFMT == libc::S_IFREG))
                && block_on(bed.remote.read(path, None, 0, dest, ())).is_ok()
            {
                let mut bytes = [0; 6];
                bed.pool.read(dest.offset, &mut bytes);
                assert_ne!(&bytes, b"CANARY");
                read += 1;
            }
        }
        let _ = bed.make("d/new", b"x", Condition::Any, &set);
        let _ = bed.make("d/link", b"x", Condition::Any, &attributes(libc::S_IFLNK | 0o777));
        for (from, to) in [("d/f", "d/copy"), ("f", "d/copy"), ("d/f", "copy")] {
            if block_on(bed.remote.copy(from, to, None)).is_ok()
                && let Ok(meta) = bed.stat(to)
                && meta.size == 6
                && let Ok(bytes) = bed.read(to, Some(meta.version()), 0, 6)
            {
                assert_ne!(bytes, b"CANARY");
            }
        }
        let _ = bed.rename("d/new", "moved", Condition::Any);
        let _ = bed.rename("moved", "d/sub", Condition::Any);
        let _ = bed.rename("d/sub", "d/new", Condition::Any);
        let _ = bed.list("d");
        let _ = block_on(bed.remote.delete_many(vec!["d/new".into(), "d/copy".into(), "d/link".into()]));
        let _ = bed.delete("d/sub");
        let _ = bed.rmdir("d/sub");
        // Perhaps it is the link that is moved, which then is put away.
        let _ = bed.rename_dir("d", "e");
        let _ = bed.rename_dir("e", "d");
        let _ = bed.delete("e");
        if bed.kind("d").is_err() {
            let _ = bed.rename_dir("d-aside", "d");
        }
    }
    drop(racer);
    assert!(changed >= 20 && read >= 20, "{changed} changes, {read} reads");
    let after = watched.each_ref().map(|path| state(path));
    assert_eq!(after, before, "a link was followed");
    assert_eq!(fs::read_dir(outside.path().join("d")).unwrap().count(), 3);
}

#[test]
fn fs_is_not_held_up_by_a_fifo_in_place_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    mkfifo(&root.join("aside"));
    for bed in [posix(dir.path()), Bed::with_timeout(&url(dir.path()), Duration::from_secs(10))] {
        bed.put("f", b"inside");
        let racer = {
            let root = root.clone();
            Racer::start(move || exchange(&root.join("f"), &root.join("aside")))
        };
        let start = Instant::now();
        let mut done = 0;
        let fine = |e: &StoreError| assert_ne!(e.kind, StoreErrorKind::Unavailable, "{e}");
        let dest = bed.room(6);
        for n in 0..600 {
            for version in [None, bed.stat("f").ok().map(|meta| meta.version())] {
                match block_on(bed.remote.read("f", version, 0, dest, ())) {
                    Ok(()) => done += 1,
                    Err(e) => fine(&e),
                }
            }
            let Ok(old) = bed.stat("f") else { continue };
            let _ = bed.change("f", &old, &attributes(0o600 | (n % 2))).map_err(|e| fine(&e));
            let _ = block_on(bed.remote.copy("f", "g", None)).map_err(|e| fine(&e));
            if old.size == 6 {
                let _ =
                    bed.rewrite("f", &old, vec![Segment::Copy { base: 0, offset: 0, len: 6 }]).map_err(|e| fine(&e));
            }
        }
        drop(racer);
        assert!(done > 0 && start.elapsed() < Duration::from_secs(60), "{done} in {:?}", start.elapsed());
        let aside = root.join("aside").symlink_metadata().unwrap();
        if aside.is_file() {
            exchange(&root.join("f"), &root.join("aside"));
        }
        let _ = bed.delete("g");
    }
}

#[test]
fn fs_lists_a_huge_directory_with_attributes() {
    const COUNT: usize = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let at = |n: usize| dir.path().join(format!("{n:0>200}"));
    for n in 0..COUNT {
        match n % 10 {
            0 => symlink("target", at(n)).unwrap(),
            1 => mkfifo(&at(n)),
            2 => fs::create_dir(at(n)).unwrap(),
            _ => fs::write(at(n), "").unwrap(),
        }
    }
    let bed = posix(dir.path());
    let (first, cursor) = block_on(bed.remote.list("", 0)).unwrap();
    assert_eq!(first.len(), LIST_PAGE_MAX);
    block_on(bed.remote.list_end(cursor.unwrap())).unwrap();
    let mut all = bed.pages("");
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(all.len(), COUNT);
    for (n, entry) in all.iter().enumerate() {
        let want = [libc::S_IFLNK, libc::S_IFIFO, libc::S_IFDIR].get(n % 10).copied().unwrap_or(libc::S_IFREG);
        let told = told(&entry.meta);
        assert_eq!((told.mode.unwrap() & libc::S_IFMT, &told.xattrs), (want, &None), "{}", entry.name);
    }
}
