//! Reads that memory answers: at once, with nothing allocated; and how many of them there are per second.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::time::Instant;

use futures::FutureExt;

use super::*;

/// The system's allocator, which counts what each thread asks of it.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // While a thread ends, nobody asks any more.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: all is done by the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const PAGE: usize = 4096;

/// A guest's page.
struct Guest {
    page: [u8; PAGE],
    len: usize,
}

impl Guest {
    fn new() -> Guest {
        Guest { page: [0; PAGE], len: 0 }
    }
}

impl Sink for Guest {
    fn remaining(&self) -> usize {
        PAGE - self.len
    }
    fn put(&mut self, data: &[u8]) -> io::Result<()> {
        let to = self.page.get_mut(self.len..self.len + data.len()).ok_or(io::ErrorKind::WriteZero)?;
        to.copy_from_slice(data);
        self.len += data.len();
        Ok(())
    }
    fn put_zeros(&mut self, len: usize) -> io::Result<()> {
        self.put(&vec![0; len])
    }
    fn put_from_file(&mut self, _: &File, _: usize, _: u64, _: i32) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Reads a page that is in memory: the answer is there at the first poll.
fn hit(fs: &Fs, (nodeid, handle): (NodeId, Handle), page: u64, guest: &mut Guest) {
    guest.len = 0;
    let op = Read { nodeid, handle, offset: page * PAGE as u64, size: PAGE as u32, lock_owner: None, flags: 0 };
    let read = fs.fs.read(CTX, op, guest).now_or_never();
    assert!(matches!(read, Some(Ok(PAGE))), "page {page}: {read:?}");
}

/// A file of so many pages, each of which begins with its number, that the store has and memory as well.
fn warm(fs: &Fs, name: &str, pages: u64) -> (NodeId, Handle) {
    let mut bytes = vec![0; pages as usize * PAGE];
    for (number, page) in (0u64..).zip(bytes.chunks_mut(PAGE)) {
        page[..8].copy_from_slice(&number.to_le_bytes());
    }
    fs.bucket().put(name, &bytes);
    let file = fs.open(name, 0).expect("open");
    let mut at = 0;
    while at < bytes.len() {
        at += fs.read_at(file, at as u64, 1 << 20).expect("read").len();
    }
    file
}

fn next(random: &mut u64) -> u64 {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *random >> 33
}

/// Nanoseconds of processor that this thread has used, and how often it waited for something.
fn usage() -> (i64, i64) {
    // SAFETY: all zeros is a value of it, and getrusage(2) fills it.
    let used = unsafe {
        let mut used: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &raw mut used);
        used
    };
    let nanos = |time: libc::timeval| time.tv_sec * 1_000_000_000 + time.tv_usec * 1000;
    (nanos(used.ru_utime) + nanos(used.ru_stime), used.ru_nvcsw)
}

#[test]
fn a_hit_is_answered_at_once_and_allocates_nothing() {
    const PAGES: u64 = 512;
    let fs = Fs::with_pool(32 << 20);
    let file = warm(&fs, "file", PAGES);
    let (mut guest, mut random) = (Guest::new(), 1);
    let mut read = |times: u64| {
        let before = ALLOCATIONS.get();
        for _ in 0..times {
            let page = next(&mut random) % PAGES;
            hit(&fs, file, page, &mut guest);
            assert_eq!(guest.page[..8], page.to_le_bytes());
        }
        ALLOCATIONS.get() - before
    };
    let asked = fs.bucket().log.len();
    // The first reads may begin streams and grow tables.
    read(100);
    assert_eq!(read(1000), 0, "allocations");
    assert_eq!(fs.bucket().log.len(), asked, "the store is not asked");
}

/// `cargo test --release --lib -- --ignored --nocapture hits_per_second`
#[test]
#[ignore = "a measurement"]
fn hits_per_second() {
    const PAGES: u64 = 16 << 10;
    const READS: u64 = 2_000_000;
    let fs = Fs::with_pool(512 << 20);
    let files = [warm(&fs, "a", PAGES), warm(&fs, "b", PAGES)];
    let again = fs.open("a", 0).expect("open");
    let run = |name: &str, handles: &[(NodeId, Handle)]| {
        let began = Instant::now();
        let (mut nanos, mut waits) = (0, 0);
        std::thread::scope(|scope| {
            let threads = (1u64..).zip(handles).map(|(thread, &file)| {
                let fs = &fs;
                scope.spawn(move || {
                    let (mut guest, mut random) = (Guest::new(), thread);
                    let before = usage();
                    (0..READS).for_each(|_| hit(fs, file, next(&mut random) % PAGES, &mut guest));
                    let after = usage();
                    (after.0 - before.0, after.1 - before.1)
                })
            });
            for thread in threads.collect::<Vec<_>>() {
                let used = thread.join().expect("no panic");
                nanos += used.0;
                waits += used.1;
            }
        });
        let reads = handles.len() as f64 * READS as f64;
        let rate = reads / began.elapsed().as_secs_f64();
        let (each, waits) = (nanos as f64 / reads, waits as f64 / reads * 1e6);
        println!(
            "{name:<28} {:>6.0} thousand hits/s, {each:>5.0} ns of processor each, {waits:>7.1} waits per million",
            rate / 1e3
        );
        rate
    };
    for _ in 0..3 {
        let one = run("one thread", &files[..1]);
        for (name, handles) in [
            ("two threads, a file each", files),
            ("two threads, a handle each", [files[0], again]),
            ("two threads, one handle", [files[0], files[0]]),
        ] {
            println!("{:>42.2} times one thread", run(name, &handles) / one);
        }
    }
}
