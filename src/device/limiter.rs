//! One log line per cause and period, however often a guest repeats itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two lines of one cause.
const PERIOD: Duration = Duration::from_secs(60);

/// Counts events of one cause and says which of them deserve a line.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    count: AtomicU64,
    last: Mutex<Option<(Instant, u64)>>,
}

impl Limiter {
    /// Counts one event. `Some(n)`: write a line now, it stands for `n` events since the one before.
    pub(super) fn hit(&self) -> Option<u64> {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let now = Instant::now();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some((at, _)) if now.duration_since(at) < PERIOD => None,
            previous => {
                *last = Some((now, count));
                Some(count.saturating_sub(previous.map_or(0, |(_, seen)| seen)))
            }
        }
    }

    /// Events so far.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}
