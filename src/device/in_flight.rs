//! How many accepted requests of a vring are not yet in its used ring.
//!
//! Invariants
//! (1) The count rises only under the vring lock while the vring is started and enabled.
//! (2) It falls only after the completions are in the used ring.
//! Hence, once a vring is stopped (under that lock) and [`InFlight::drain`] has returned, nothing can be published any
//! more.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The count and those who wait for it to reach 0.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    count: Mutex<usize>,
    idle: Condvar,
}

impl InFlight {
    /// Adds `n` accepted requests. Call under the vring lock.
    pub(super) fn accept(&self, n: usize) {
        if n > 0 {
            *self.count.lock().unwrap_or_else(PoisonError::into_inner) += n;
        }
    }

    /// Takes off `n` published requests.
    pub(super) fn finish(&self, n: usize) {
        if n == 0 {
            return;
        }
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = count.saturating_sub(n);
        if *count == 0 {
            self.idle.notify_all();
        }
    }

    /// Accepted and not yet published.
    pub(super) fn count(&self) -> usize {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing is in flight. Every `every`, calls `report` with what is left.
    pub(super) fn drain(&self, every: Duration, mut report: impl FnMut(usize)) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count > 0 {
            let (guard, timeout) = self.idle.wait_timeout(count, every).unwrap_or_else(PoisonError::into_inner);
            count = guard;
            if timeout.timed_out() && *count > 0 {
                report(*count);
            }
        }
    }

    /// Waits until nothing is in flight, at most until `deadline`. Returns what is left.
    pub(super) fn drain_until(&self, deadline: Instant) -> usize {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count > 0 {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { break };
            count = self.idle.wait_timeout(count, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *count
    }
}
