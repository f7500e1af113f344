//! A log line per minute, or a few, however often their cause comes: a guest must not fill the host's disk.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Milliseconds in which so many lines may go out.
const WINDOW_MS: u64 = 60_000;

/// Lets some lines through per minute and counts the rest.
#[derive(Debug)]
pub struct Throttle {
    start: Instant,
    /// Lines that may go out per window.
    most: u64,
    /// Milliseconds after `start` when the window ends.
    end_ms: AtomicU64,
    /// Lines asked for in this window.
    asked: AtomicU64,
    suppressed: AtomicU64,
}

impl Default for Throttle {
    fn default() -> Throttle {
        Throttle::new()
    }
}

impl Throttle {
    /// One line per minute.
    pub fn new() -> Throttle {
        Throttle::several(1)
    }

    /// `most` lines per minute.
    pub fn several(most: u64) -> Throttle {
        let (end_ms, asked, suppressed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Throttle { start: Instant::now(), most, end_ms, asked, suppressed }
    }

    /// Warns, or counts. Every call shows at debug level.
    pub fn warn(&self, text: impl Display) {
        self.log(log::Level::Warn, text);
    }

    /// As [`Throttle::warn`], at another level.
    pub fn log(&self, level: log::Level, text: impl Display) {
        match self.admit(self.now_ms()) {
            Some(0) => log::log!(level, "{text}"),
            Some(n) => log::log!(level, "{text} ({n} more like it since the last such line)"),
            None => log::debug!("{text}"),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// `Some(lines suppressed so far)` when a line may go out at `now_ms`.
    fn admit(&self, now_ms: u64) -> Option<u64> {
        let end = self.end_ms.load(Ordering::Relaxed);
        let next = now_ms.saturating_add(WINDOW_MS);
        if now_ms >= end && self.end_ms.compare_exchange(end, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.asked.store(0, Ordering::Relaxed);
        }
        if self.asked.fetch_add(1, Ordering::Relaxed) < self.most {
            Some(self.suppressed.swap(0, Ordering::Relaxed))
        } else {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_minute_with_a_count() {
        let throttle = Throttle::new();
        assert_eq!(throttle.admit(0), Some(0));
        assert_eq!(throttle.admit(1), None);
        assert_eq!(throttle.admit(59_999), None);
        assert_eq!(throttle.admit(60_000), Some(2));
        assert_eq!(throttle.admit(60_001), None);
    }

    #[test]
    fn several_lines_per_minute_if_so_wished() {
        let throttle = Throttle::several(2);
        let said: Vec<_> = [0, 0, 0, 59_999, 60_000, 60_001, 60_002].map(|ms| throttle.admit(ms)).into();
        assert_eq!(said, [Some(0), Some(0), None, None, Some(2), Some(0), None]);
    }
}
