//! Which reads of a handle follow each other, and how far ahead of them to fetch.
//!
//! A handle may be read by several streams at once (threads, or the columns of a table), so some are told apart. A stream
//! earns its window: it opens at the second read that follows on, and doubles while the reader comes up to the middle of
//! what was fetched ahead. A read elsewhere begins another stream and fetches only what it asks for.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Streams of one handle that are told apart.
const STREAMS_MAX: usize = 8;

/// How far from its expected place a read may begin and still belong to a stream: requests of one reader overtake each
/// other.
const SLACK: u64 = 512 << 10;

/// A window at its opening.
const WINDOW_FIRST: u64 = 1 << 20;

/// Largest window: at 100 Gbit/s and 5 ms as much as is on its way.
const WINDOW_MAX: u64 = 64 << 20;

/// What a read that belongs to no stream fetches: this much around it, aligned.
const RANDOM: u64 = 64 << 10;

/// What the first read of a file fetches, if the file is not small.
const FIRST: u64 = 256 << 10;

/// Longest request of a stream: long enough that a store's bandwidth counts, not its latency; a block of the pool.
const REQUEST_MAX: u64 = 4 << 20;

/// Objects up to this length are read whole.
pub const SMALL: u64 = 1 << 20;

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// Where the next read is expected.
    next: u64,
    /// How far ahead of `next` to fetch.
    window: u64,
    /// What lies before is here or on its way.
    ahead: u64,
}

/// The streams of one handle.
#[derive(Debug)]
pub struct Streams {
    /// The most recent one last.
    streams: Mutex<Vec<Stream>>,
    /// Handles that have a window open, of all: they share the memory.
    open: Arc<AtomicUsize>,
    counted: std::sync::atomic::AtomicBool,
}

/// What a read means for fetching.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to fetch at once if the read's first byte is not here.
    pub now: Range<u64>,
    /// What to fetch for later reads, in requests of this length.
    pub ahead: Option<(Range<u64>, u64)>,
}

impl Streams {
    /// None yet. `open` counts the handles that read ahead.
    pub fn new(open: Arc<AtomicUsize>) -> Streams {
        Streams { streams: Mutex::default(), open, counted: std::sync::atomic::AtomicBool::new(false) }
    }

    /// Notes a read of `len` bytes at `offset` of an object of `size` bytes; all streams together may have `memory` bytes
    /// ahead.
    pub fn read(&self, offset: u64, len: u64, size: u64, memory: u64) -> Plan {
        if size <= SMALL {
            return Plan { now: 0..size, ahead: None };
        }
        let end = (offset + len).min(size);
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(index) = streams.iter().rposition(|s| s.next.abs_diff(offset) <= SLACK) else {
            if streams.len() >= STREAMS_MAX {
                streams.remove(0);
            }
            streams.push(Stream { next: end, window: 0, ahead: end });
            let now = match offset {
                0 => 0..FIRST.max(end).min(size),
                _ => offset / RANDOM * RANDOM..end.next_multiple_of(RANDOM).min(size),
            };
            return Plan { now, ahead: None };
        };
        let mut stream = streams.remove(index);
        let mut ahead = None;
        if end > stream.next {
            stream.next = end;
            let share = memory / self.counted() as u64;
            let most = WINDOW_MAX.min(share).max(RANDOM);
            if stream.window == 0 || stream.next + stream.window / 2 >= stream.ahead {
                stream.window = (stream.window * 2).clamp(WINDOW_FIRST.min(most), most);
                let from = stream.ahead.max(stream.next);
                let until = (stream.next + stream.window).min(size);
                if from < until {
                    ahead = Some((from..until, request(stream.window)));
                    stream.ahead = until;
                }
            }
        }
        streams.push(stream);
        Plan { now: offset..(offset + request(stream.window)).max(end).min(size), ahead }
    }

    /// Counts this handle among those that read ahead; returns how many do.
    fn counted(&self) -> usize {
        if !self.counted.swap(true, Ordering::Relaxed) {
            self.open.fetch_add(1, Ordering::Relaxed);
        }
        self.open.load(Ordering::Relaxed).max(1)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        if *self.counted.get_mut() {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Length of the requests that fetch a window: several at once.
fn request(window: u64) -> u64 {
    (window / 4).clamp(FIRST, REQUEST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MEMORY: u64 = 64 << 20;

    fn streams() -> Streams {
        Streams::new(Arc::default())
    }

    #[test]
    fn a_small_object_is_read_whole() {
        assert_eq!(streams().read(1000, 10, 5000, MEMORY), Plan { now: 0..5000, ahead: None });
    }

    #[test]
    fn random_reads_fetch_little_and_nothing_ahead() {
        let streams = streams();
        for n in 1..200u64 {
            let offset = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % GIB / 4096 * 4096;
            let plan = streams.read(offset, 4096, GIB, MEMORY);
            assert!(plan.now.contains(&offset) && plan.now.end - plan.now.start <= 2 * RANDOM, "{plan:?}");
            assert_eq!(plan.ahead, None);
        }
    }

    #[test]
    fn a_stream_doubles_its_window_and_fetches_every_byte_once() {
        let streams = streams();
        let (mut fetched, mut largest) = (0, 0);
        for n in 0..2048u64 {
            let offset = n * (128 << 10);
            let plan = streams.read(offset, 128 << 10, GIB, MEMORY);
            if let Some((ahead, each)) = plan.ahead {
                assert!(ahead.start >= fetched && ahead.start >= offset, "{ahead:?} after {fetched}");
                assert!(ahead.end - offset <= WINDOW_MAX + (128 << 10) && each <= REQUEST_MAX);
                fetched = ahead.end;
                largest = largest.max(ahead.end - ahead.start);
            }
        }
        assert!(largest >= WINDOW_MAX / 4, "{largest}");
    }

    #[test]
    fn requests_that_overtake_each_other_are_one_stream() {
        let streams = streams();
        streams.read(0, 128 << 10, GIB, MEMORY);
        for n in [2u64, 1, 4, 3, 6, 5] {
            streams.read(n * (128 << 10), 128 << 10, GIB, MEMORY);
        }
        assert_eq!(streams.streams.lock().unwrap().len(), 1);
    }

    #[test]
    fn several_streams_in_one_handle_each_have_a_window() {
        let streams = streams();
        let mut ahead = [0u64; 4];
        for n in 0..64u64 {
            for (which, sum) in ahead.iter_mut().enumerate() {
                let offset = which as u64 * (200 << 20) + n * (128 << 10);
                if let Some((range, _)) = streams.read(offset, 128 << 10, GIB, MEMORY).ahead {
                    *sum += range.end - range.start;
                }
            }
        }
        assert!(ahead.iter().all(|&sum| sum >= 8 << 20), "{ahead:?}");
    }

    #[test]
    fn readers_share_the_memory() {
        let open: Arc<AtomicUsize> = Arc::default();
        let all: Vec<Streams> = (0..16).map(|_| Streams::new(Arc::clone(&open))).collect();
        for n in 0..400u64 {
            for streams in &all {
                streams.read(n * (128 << 10), 128 << 10, GIB, MEMORY);
            }
        }
        for streams in &all {
            assert!(streams.streams.lock().unwrap()[0].window <= MEMORY / 16);
        }
        drop(all);
        assert_eq!(open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_end_of_the_object_is_the_end_of_all_windows() {
        let streams = streams();
        let size = (3 << 20) + 17;
        for n in 0..25u64 {
            let plan = streams.read(n * (128 << 10), 128 << 10, size, MEMORY);
            assert!(plan.now.end <= size);
            assert!(plan.ahead.is_none_or(|(range, _)| range.end <= size && range.start < range.end));
        }
    }
}
