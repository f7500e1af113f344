//! The counters that the device process writes and the broker reads: one anonymous mapping, made before the fork.
//!
//! Layout, version 2, all 64-bit counters that begin at zero: [`SHARDS`] times the requests of each opcode, then the
//! mounts in the order of their numbers. Both processes are one program, so the layout never meets another version of
//! itself; the version is for whoever looks at the memory from outside.
//!
//! Each queue's thread counts requests, and what it read of each mount, in a shard of its own, so that no two contend for a cache line as long as there
//! are no more threads than shards.

use std::cell::Cell;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::histogram::{Histogram, Spread};
use super::mount::MountCounts;

/// Version of the layout.
pub const LAYOUT: u64 = 2;

/// "ovfs" and "eyes" in ASCII.
const MAGIC: u64 = u64::from_be_bytes(*b"ovfseyes");

/// Threads that count side by side.
pub(super) const SHARDS: usize = 8;

/// Opcodes that are told apart: their numbers; 0 stands for all others.
pub const OPCODES: usize = 64;

/// Requests of one opcode.
#[repr(C, align(128))]
#[derive(Debug)]
struct Opcode {
    /// Those that ended in an errno.
    errors: AtomicU64,
    took: Histogram,
}

#[repr(C, align(4096))]
#[derive(Debug)]
struct Head {
    magic: AtomicU64,
    version: AtomicU64,
    shards: [[Opcode; OPCODES]; SHARDS],
}

/// The mapping.
#[derive(Debug)]
pub struct Board {
    base: NonNull<u8>,
    len: usize,
    mounts: usize,
    start: Instant,
}

// SAFETY: the mapping lives as long as the struct and holds nothing but atomics.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

/// Requests of one opcode, summed up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Those that ended in an errno.
    pub errors: u64,
    /// How long they took, from the moment they were taken from the ring.
    pub took: Spread,
}

pub(super) fn since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
}

impl Board {
    /// An empty board with room for `mounts` mounts. Make it before the fork.
    ///
    /// # Errors
    /// mmap(2)'s.
    pub fn new(mounts: usize) -> io::Result<Board> {
        let len = size_of::<MountCounts>().checked_mul(mounts).and_then(|len| len.checked_add(size_of::<Head>()));
        let len = len.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // SAFETY: a fresh shared mapping that belongs to no file; the result is checked.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(addr.cast::<u8>()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        let board = Board { base, len, mounts, start: Instant::now() };
        board.head().magic.store(MAGIC, Ordering::Relaxed);
        board.head().version.store(LAYOUT, Ordering::Relaxed);
        Ok(board)
    }

    fn head(&self) -> &Head {
        // SAFETY: the mapping is page-aligned and begins with a `Head`, of which every bit pattern is one.
        unsafe { self.base.cast::<Head>().as_ref() }
    }

    /// The counters of mount number `mount`; `None`: there is no such mount.
    pub fn mount(&self, mount: usize) -> Option<&MountCounts> {
        if mount >= self.mounts {
            return None;
        }
        let at = size_of::<Head>() + mount * size_of::<MountCounts>();
        // SAFETY: `new` made room for so many behind the head, whose size is a multiple of their alignment; every bit
        // pattern is one.
        Some(unsafe { self.base.add(at).cast::<MountCounts>().as_ref() })
    }

    /// Nanoseconds since the board was made, at least 1: the same clock in both processes.
    pub fn now(&self) -> u64 {
        since(self.start)
    }

    /// Counts a request that is answered, `took` after it was taken from the ring.
    pub fn record(&self, opcode: u32, failed: bool, took: Duration) {
        let known = usize::try_from(opcode).ok().filter(|opcode| *opcode < OPCODES);
        if let Some(opcode) = self.head().shards.get(shard()).and_then(|shard| shard.get(known.unwrap_or(0))) {
            opcode.took.record(took);
            if failed {
                opcode.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// What was counted of `opcode`; 0 stands for those that have no number of their own.
    pub fn requests(&self, opcode: usize) -> Requests {
        let mut sum = Requests::default();
        for shard in self.head().shards.iter().filter_map(|shard| shard.get(opcode)) {
            sum.errors = sum.errors.saturating_add(shard.errors.load(Ordering::Relaxed));
            shard.took.add_to(&mut sum.took);
        }
        sum
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; no reference outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The shard of this thread.
pub(super) fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    MINE.with(|mine| {
        if mine.get() == usize::MAX {
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
        }
        mine.get()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::MountMeter;

    #[test]
    fn layout_is_as_its_version_says() {
        assert_eq!((align_of::<Head>(), size_of::<Head>() % align_of::<MountCounts>()), (4096, 0));
        assert_eq!(size_of::<Opcode>(), 2176);
        assert_eq!(size_of::<Head>(), 4096 * (2176 * OPCODES * SHARDS + 128).div_ceil(4096));
        assert_eq!(size_of::<MountCounts>(), 384 + 128 * SHARDS);
        let board = Board::new(1).expect("memory");
        let head = board.head();
        assert_eq!(head.magic.load(Ordering::Relaxed).to_be_bytes(), *b"ovfseyes");
        assert_eq!(head.version.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn what_threads_count_is_summed_up() {
        let board = Arc::new(Board::new(0).expect("memory"));
        let threads = (0..2 * SHARDS as u32).map(|n| {
            let board = Arc::clone(&board);
            std::thread::spawn(move || (0..100).for_each(|_| board.record(15, n == 0, Duration::from_micros(n.into()))))
        });
        threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().expect("no panic"));
        board.record(4096, false, Duration::ZERO);
        board.record(u32::MAX, true, Duration::ZERO);
        let (read, other) = (board.requests(15), board.requests(0));
        assert_eq!((read.errors, read.took.count()), (100, 1600));
        assert_eq!((other.errors, other.took.count()), (1, 2));
        assert_eq!(board.requests(16), Requests::default());
        assert_eq!(board.requests(OPCODES), Requests::default());
    }

    #[test]
    fn nonsense_on_the_board_is_shown_and_harms_nobody() {
        use crate::metrics::report::Report;
        use crate::metrics::{MountSnapshot, Snapshot, ops, prometheus, screen};
        for byte in [0xff, 0x7f, 0x80, 0x01] {
            let board = Board::new(1).expect("memory");
            // SAFETY: so many bytes are mapped there, and nothing else uses them now.
            unsafe { std::ptr::write_bytes(board.base.as_ptr(), byte, board.len) };
            let mut mount = MountSnapshot { path: "/".into(), ..MountSnapshot::default() };
            mount.count(board.mount(0).expect("one mount"), board.now());
            let snapshot = Snapshot { ops: ops(&board), mounts: vec![mount], ..Snapshot::default() };
            for before in [None, Some(&Snapshot::default()), Some(&snapshot)] {
                let report = Report::new(&snapshot, before);
                assert!(!screen::render(&report).is_empty());
                assert!(serde_json::to_string(&report).is_ok());
            }
            assert!(prometheus::render(&snapshot).ends_with('\n'));
        }
    }

    /// `cargo test --release --lib metrics::board -- --ignored --nocapture`
    #[test]
    #[ignore = "it measures: what counting adds to a request"]
    fn cost_of_counting_a_request() {
        let board = Arc::new(Board::new(1).expect("memory"));
        const REQUESTS: u32 = 5_000_000;
        for threads in [1, 2, 8] {
            let begun = Instant::now();
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    let board = Arc::clone(&board);
                    std::thread::spawn(move || {
                        for n in 0..REQUESTS {
                            let began = Instant::now();
                            board.record(std::hint::black_box(15 + n % 2), false, began.elapsed());
                        }
                    })
                })
                .collect();
            workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
            let each = begun.elapsed().as_secs_f64() * 1e9 / f64::from(REQUESTS);
            println!(
                "{threads} threads: {each:.1} ns of time for each round of one request per thread, two looks at the clock included"
            );
        }
        let begun = Instant::now();
        (0..REQUESTS)
            .for_each(|n| board.record(std::hint::black_box(15 + n % 2), false, Duration::from_nanos(n.into())));
        println!("without the clock: {:.1} ns", begun.elapsed().as_secs_f64() * 1e9 / f64::from(REQUESTS));
    }

    #[test]
    fn child_process_counts_for_its_parent() {
        let board = Arc::new(Board::new(2).expect("memory"));
        assert!(board.mount(2).is_none());
        // SAFETY: the child calls nothing but atomics and _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            board.record(1, false, Duration::from_millis(1));
            MountMeter::of(&board, 1, "/x").hit(4096);
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        crate::process::sandbox::reap(pid);
        assert_eq!(board.requests(1).took.count(), 1);
        let counts = |mount: usize| {
            let mount = board.mount(mount).expect("two mounts");
            (mount.read(|reads| &reads.hits), mount.read(|reads| &reads.hit_bytes))
        };
        assert_eq!((counts(0), counts(1)), ((0, 0), (1, 4096)));
    }
}
