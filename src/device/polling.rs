//! How long a queue worker looks at its ring before it sleeps.
//!
//! A kick costs the guest an exit and the worker a wake-up; both are spared when the worker still looks at the ring as
//! the next request comes. That is worth processor time only while requests come quickly after each other. So a worker
//! looks after it has served something, never when it is idle; each time in vain halves how long it looks next time,
//! down to not at all; and looking begins again when a sleep turns out to have been so short that looking would have
//! caught its end. (KVM polls halted processors by the same rule.)

use std::time::{Duration, Instant};

/// The share of the longest look below which looking is given up.
const GIVE_UP: u32 = 8;

/// One worker's habit.
#[derive(Debug)]
pub(super) struct Polling {
    max: Duration,
    now: Duration,
    slept: Option<Instant>,
}

impl Polling {
    /// Looks for at most `max`; zero: never.
    pub(super) fn new(max: Duration) -> Polling {
        Polling { max, now: Duration::ZERO, slept: None }
    }

    /// How long to look now; `None`: not at all.
    pub(super) fn budget(&self) -> Option<Duration> {
        (!self.now.is_zero()).then_some(self.now)
    }

    /// A look has seen a request.
    pub(super) fn hit(&mut self) {
        self.now = self.max;
    }

    /// A look has seen nothing.
    pub(super) fn missed(&mut self) {
        self.now /= 2;
        if self.now < self.max / GIVE_UP {
            self.now = Duration::ZERO;
        }
    }

    /// The worker goes to sleep.
    pub(super) fn falls_asleep(&mut self) {
        self.slept = (!self.max.is_zero()).then(Instant::now);
    }

    /// The worker was woken.
    pub(super) fn wakes_up(&mut self) {
        if let Some(slept) = self.slept.take() {
            self.slept_for(slept.elapsed());
        }
    }

    fn slept_for(&mut self, time: Duration) {
        if time < self.max {
            self.now = self.max;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_micros(40);

    #[test]
    fn looking_begins_after_a_short_sleep_and_ends_after_looks_in_vain() {
        let mut polling = Polling::new(MAX);
        assert_eq!(polling.budget(), None);
        polling.slept_for(MAX);
        assert_eq!(polling.budget(), None, "a long sleep");
        polling.slept_for(MAX / 2);
        let mut looks = Vec::new();
        while let Some(budget) = polling.budget() {
            looks.push(budget);
            polling.missed();
        }
        assert_eq!(looks, [MAX, MAX / 2, MAX / 4, MAX / 8]);
        polling.slept_for(MAX / 2);
        polling.missed();
        polling.hit();
        assert_eq!(polling.budget(), Some(MAX));
    }

    #[test]
    fn zero_never_looks() {
        let mut polling = Polling::new(Duration::ZERO);
        polling.falls_asleep();
        polling.wakes_up();
        polling.slept_for(Duration::ZERO);
        assert_eq!(polling.budget(), None);
        polling.hit();
        assert_eq!(polling.budget(), None);
    }
}
