//! Which reads of a handle follow each other, and how far ahead of them to fetch.
//!
//! A handle may be read by several streams at once (threads, or the columns of a table), so some are told apart. A stream
//! earns its window: it opens at the second read that follows on, and grows with what was read while the reader still has
//! to wait, so it comes to be worth the store's bandwidth and distance, and no more. Ahead of the reader the window is always
//! full: whenever there is room for another request, it is sent. A read elsewhere begins another stream and fetches only
//! what it asks for; reads that leave out most of what lies between them are no stream.

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

/// A window where memory is short.
const WINDOW_LEAST: u64 = 64 << 10;

/// Largest window: at 100 Gbit/s and 10 ms as much as is on its way.
const WINDOW_MAX: u64 = 128 << 20;

/// How many times what was read of a stream is fetched ahead at most: what a reader that ends early costs.
const GROWTH: u64 = 4;

/// Of this many bytes between the first and the last read, a stream has read one at least.
const SPARSE: u64 = 4;

/// What the first read of a file fetches, if the file is not small.
const FIRST: u64 = 256 << 10;

/// Longest request of a stream: long enough that a store's bandwidth counts, not its latency; a block of the pool.
const REQUEST_MAX: u64 = 4 << 20;

/// Objects up to this length are read whole.
pub const SMALL: u64 = 1 << 20;

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// Where it began.
    start: u64,
    /// Bytes read since.
    read: u64,
    /// Where the next read is expected.
    next: u64,
    /// How far ahead of `next` to fetch.
    window: u64,
    /// What lies before is here or on its way.
    ahead: u64,
}

impl Stream {
    /// Whether it is worth to fetch what lies between its reads.
    fn is_dense(&self) -> bool {
        self.read.saturating_mul(SPARSE) >= self.next.saturating_sub(self.start)
    }

    /// Widens the window for a reader that had to wait, as far as it has earned and `most` allows.
    fn widen(&mut self, late: bool, most: u64) {
        if late || self.window == 0 {
            let earned = self.read.saturating_mul(GROWTH).max(WINDOW_FIRST);
            self.window = self.window.max(earned);
        }
        self.window = self.window.min(most);
    }

    /// What is to be fetched to fill the window, of an object of `size` bytes: whole requests, but for the last.
    fn refill(&mut self, size: u64) -> Option<(Range<u64>, u64)> {
        let each = request(self.window);
        let goal = self.next.saturating_add(self.window);
        let until = if goal >= size { size } else { goal / each * each };
        let from = self.ahead.max(self.next);
        if from >= until {
            return None;
        }
        self.ahead = until;
        Some((from..until, each))
    }
}

/// The streams of one handle.
#[derive(Debug)]
pub struct Streams {
    /// The most recent one last.
    streams: Mutex<Vec<Stream>>,
    /// Handles that have a window open, of all: they share the memory.
    open: Arc<AtomicUsize>,
    counted: std::sync::atomic::AtomicBool,
    /// What a read that belongs to no stream fetches: this much around it, aligned.
    block: u64,
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
    /// None yet. `open` counts the handles that read ahead. A read at random fetches `block` bytes around itself.
    pub fn new(open: Arc<AtomicUsize>, block: u64) -> Streams {
        Streams {
            streams: Mutex::default(),
            open,
            counted: std::sync::atomic::AtomicBool::new(false),
            block: block.max(1),
        }
    }

    /// Notes a read of `len` bytes at `offset` of an object of `size` bytes; all streams together may have `memory` bytes
    /// ahead. `late`: the reader has to wait for the first byte.
    pub fn read(&self, offset: u64, len: u64, size: u64, memory: u64, late: bool) -> Plan {
        if size <= SMALL {
            return Plan { now: 0..size, ahead: None };
        }
        let end = (offset + len).min(size);
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(index) = streams.iter().rposition(|s| s.next.abs_diff(offset) <= SLACK) else {
            if streams.len() >= STREAMS_MAX {
                streams.remove(0);
            }
            streams.push(Stream { start: offset, read: end.saturating_sub(offset), next: end, window: 0, ahead: end });
            let now = match offset {
                0 => 0..FIRST.max(end).min(size),
                _ => self.around(offset, end, size),
            };
            return Plan { now, ahead: None };
        };
        let mut stream = streams.remove(index);
        stream.start = stream.start.min(offset);
        stream.read = stream.read.saturating_add(end.saturating_sub(offset));
        let mut ahead = None;
        let onward = end > stream.next;
        stream.next = stream.next.max(end);
        let dense = stream.is_dense();
        if onward && dense {
            let share = memory / self.counted() as u64;
            stream.widen(late, WINDOW_MAX.min(share).max(WINDOW_LEAST));
            ahead = stream.refill(size);
        }
        let now = match dense {
            true => offset..(offset + request(stream.window)).max(end).min(size),
            false => self.around(offset, end, size),
        };
        streams.push(stream);
        Plan { now, ahead }
    }

    /// A little more than `offset..end`.
    fn around(&self, offset: u64, end: u64, size: u64) -> Range<u64> {
        offset / self.block * self.block..end.next_multiple_of(self.block).min(size)
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

/// Length of the requests that fetch a window: several at once, and of none yet the first one.
fn request(window: u64) -> u64 {
    match window {
        0 => FIRST,
        _ => (window / 4).clamp(2 * FIRST, REQUEST_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MEMORY: u64 = 64 << 20;
    const KIB: u64 = 1 << 10;
    const RANDOM: u64 = 64 << 10;

    fn streams() -> Streams {
        Streams::new(Arc::default(), RANDOM)
    }

    /// Reads `count` times `len` bytes, the next `step` bytes on; returns what was fetched ahead, a request each.
    fn run(streams: &Streams, len: u64, step: i64, count: u64, late: bool) -> Vec<Range<u64>> {
        let mut fetched = Vec::new();
        let start = if step < 0 { GIB - len } else { 0 };
        for n in 0..count as i64 {
            let offset = (start as i64 + n * step) as u64;
            if let Some((range, each)) = streams.read(offset, len, GIB, MEMORY, late).ahead {
                let mut at = range.start;
                while at < range.end {
                    let until = ((at / each + 1) * each).min(range.end);
                    fetched.push(at..until);
                    at = until;
                }
            }
        }
        fetched
    }

    #[test]
    fn a_small_object_is_read_whole() {
        assert_eq!(streams().read(1000, 10, 5000, MEMORY, true), Plan { now: 0..5000, ahead: None });
    }

    #[test]
    fn random_reads_fetch_little_and_nothing_ahead() {
        let streams = streams();
        for n in 1..200u64 {
            let offset = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % GIB / 4096 * 4096;
            let plan = streams.read(offset, 4096, GIB, MEMORY, true);
            assert!(plan.now.contains(&offset) && plan.now.end - plan.now.start <= 2 * RANDOM, "{plan:?}");
            assert_eq!(plan.ahead, None);
        }
    }

    #[test]
    fn reads_backward_and_in_strides_fetch_little_and_nothing_ahead() {
        for step in [-(64 << 10), -(1 << 20), 100 << 10, 300 << 10, 1 << 20] {
            let streams = streams();
            assert_eq!(run(&streams, 4096, step, 300, true), [], "{step}");
            for n in 300..600 {
                let offset = if step < 0 { GIB as i64 - 4096 } else { 0 } + n * step;
                let plan = streams.read(offset as u64, 4096, GIB, MEMORY, true);
                assert!(plan.now.end - plan.now.start <= 2 * RANDOM, "{step}: {plan:?}");
            }
        }
    }

    #[test]
    fn a_stream_fetches_every_byte_once_in_whole_requests_and_keeps_its_window_full() {
        let streams = streams();
        let (len, mut fetched, mut odd) = (128 * KIB, 0, 0);
        for n in 0..GIB / len {
            let offset = n * len;
            let plan = streams.read(offset, len, GIB, MEMORY, true);
            if let Some((ahead, each)) = plan.ahead {
                assert!(ahead.start >= fetched && ahead.start >= offset, "{ahead:?} after {fetched}");
                assert!(ahead.end - offset <= MEMORY + len && each <= REQUEST_MAX);
                fetched = ahead.end;
                odd += u64::from((ahead.end - ahead.start) % REQUEST_MAX != 0);
            }
            if offset > MEMORY && fetched < GIB {
                assert!(fetched - offset > MEMORY - REQUEST_MAX, "{} ahead at {offset}", fetched - offset);
            }
        }
        assert_eq!(fetched, GIB);
        // Requests that are short for the sake of a quick beginning.
        assert!(odd < 40, "{odd}");
    }

    #[test]
    fn a_gibibyte_costs_few_more_requests_than_it_has_blocks() {
        let fetched = run(&streams(), 1 << 20, 1 << 20, 1024, true);
        assert!(fetched.windows(2).all(|pair| pair[0].end == pair[1].start), "{fetched:?}");
        assert!(fetched.len() as u64 <= GIB / REQUEST_MAX + 16, "{}", fetched.len());
    }

    #[test]
    fn a_window_grows_only_for_a_reader_that_waits_and_with_what_it_has_read() {
        let patient = streams();
        run(&patient, 128 * KIB, 128 << 10, 400, false);
        assert_eq!(patient.streams.lock().unwrap()[0].window, WINDOW_FIRST);
        let early = run(&streams(), 128 * KIB, 128 << 10, 8, true);
        assert!(early.last().expect("some").end <= (8 << 17) * (GROWTH + 1), "{early:?}");
        let late = streams();
        run(&late, 128 * KIB, 128 << 10, 200, true);
        assert_eq!(late.streams.lock().unwrap()[0].window, MEMORY);
    }

    #[test]
    fn requests_that_overtake_each_other_are_one_stream() {
        let streams = streams();
        streams.read(0, 128 << 10, GIB, MEMORY, true);
        for n in [2u64, 1, 4, 3, 6, 5] {
            streams.read(n * (128 << 10), 128 << 10, GIB, MEMORY, true);
        }
        assert_eq!(streams.streams.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_seek_begins_anew() {
        let streams = streams();
        run(&streams, 128 * KIB, 128 << 10, 400, true);
        let plan = streams.read(700 << 20, 4096, GIB, MEMORY, true);
        assert_eq!(plan, Plan { now: 700 << 20..(700 << 20) + RANDOM, ahead: None });
    }

    #[test]
    fn a_read_at_random_fetches_the_blocks_that_it_lies_in() {
        for block in [4 << 10, 16 << 10, 64 << 10, 4 << 20] {
            let streams = Streams::new(Arc::default(), block);
            for (offset, len) in [(700 << 20, 4096), ((300 << 20) + 5000, 9000), (GIB - 10, 10)] {
                let now = streams.read(offset, len, GIB, MEMORY, true).now;
                assert_eq!((now.start % block, now.end % block), (0, 0), "{now:?} in blocks of {block}");
                assert!(now.start <= offset && offset + len <= now.end);
                assert!(offset - now.start < block && now.end - (offset + len) < block, "{now:?} in blocks of {block}");
            }
        }
    }

    #[test]
    fn several_streams_in_one_handle_each_have_a_window() {
        let streams = streams();
        let mut ahead = [0u64; 4];
        for n in 0..64u64 {
            for (which, sum) in ahead.iter_mut().enumerate() {
                let offset = which as u64 * (200 << 20) + n * (128 << 10);
                if let Some((range, _)) = streams.read(offset, 128 << 10, GIB, MEMORY, true).ahead {
                    *sum += range.end - range.start;
                }
            }
        }
        assert!(ahead.iter().all(|&sum| sum >= 8 << 20), "{ahead:?}");
    }

    #[test]
    fn readers_share_the_memory() {
        let open: Arc<AtomicUsize> = Arc::default();
        let all: Vec<Streams> = (0..16).map(|_| Streams::new(Arc::clone(&open), RANDOM)).collect();
        for n in 0..400u64 {
            for streams in &all {
                streams.read(n * (128 << 10), 128 << 10, GIB, MEMORY, true);
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
            let plan = streams.read(n * (128 << 10), 128 << 10, size, MEMORY, true);
            assert!(plan.now.end <= size);
            assert!(plan.ahead.is_none_or(|(range, _)| range.end <= size && range.start < range.end));
        }
    }
}
