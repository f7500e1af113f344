//! A log line per minute, however often its cause comes: a guest must not fill the host's disk.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Milliseconds between two lines.
const PAUSE_MS: u64 = 60_000;

/// Lets one line through per minute and counts the rest.
pub(super) struct Throttle {
    start: Instant,
    /// Milliseconds after `start` from which the next line may go out.
    open_ms: AtomicU64,
    suppressed: AtomicU64,
}

impl Throttle {
    pub(super) fn new() -> Throttle {
        Throttle { start: Instant::now(), open_ms: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// Warns, or counts. Every call shows at debug level.
    pub(super) fn warn(&self, text: impl Display) {
        self.log(log::Level::Warn, text);
    }

    /// As [`Throttle::warn`], at another level.
    pub(super) fn log(&self, level: log::Level, text: impl Display) {
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
        let open = self.open_ms.load(Ordering::Relaxed);
        let is_mine = now_ms >= open
            && self
                .open_ms
                .compare_exchange(open, now_ms.saturating_add(PAUSE_MS), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_mine {
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
}
