//! Durations by size: each power of two is cut into eight, so that a quantile is off by a sixteenth at most.
//!
//! A duration is counted in units of 64 ns. Below eight units (512 ns) each unit has a bucket of its own; the last bucket
//! holds whatever is longer than some eighteen minutes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How many buckets there are.
pub const BUCKETS: usize = 256;

/// A unit is so many bits of nanoseconds.
const UNIT_BITS: u32 = 6;

/// Buckets of each power of two, as bits.
const SUB_BITS: u32 = 3;
const SUBS: u64 = 1 << SUB_BITS;

/// Counters in memory that may be shared between processes.
#[repr(C)]
#[derive(Debug)]
pub struct Histogram {
    /// Sum of all durations in nanoseconds.
    nanos: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { nanos: AtomicU64::new(0), buckets: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

fn nanos(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
}

/// The bucket of a duration in nanoseconds.
fn bucket(nanos: u64) -> usize {
    let units = nanos >> UNIT_BITS;
    let index = if units < SUBS {
        units
    } else {
        let power = units.ilog2() - SUB_BITS;
        SUBS * (u64::from(power) + 1) + ((units >> power) & (SUBS - 1))
    };
    usize::try_from(index).unwrap_or(usize::MAX).min(BUCKETS - 1)
}

/// The shortest duration of a bucket, in nanoseconds.
fn floor(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let units = match bucket / SUBS {
        0 => bucket,
        group => (SUBS + bucket % SUBS) << (group - 1),
    };
    units << UNIT_BITS
}

impl Histogram {
    /// Counts one.
    pub fn record(&self, took: Duration) {
        let nanos = nanos(took);
        if let Some(bucket) = self.buckets.get(bucket(nanos)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Adds what it holds to `sum`.
    pub fn add_to(&self, sum: &mut Spread) {
        sum.nanos = sum.nanos.saturating_add(self.nanos.load(Ordering::Relaxed));
        for (at, bucket) in self.buckets.iter().enumerate() {
            sum.add(at, bucket.load(Ordering::Relaxed));
        }
    }

    /// What it holds.
    pub fn spread(&self) -> Spread {
        let mut sum = Spread::default();
        self.add_to(&mut sum);
        sum
    }
}

/// What a histogram held at some moment, or between two.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Spread {
    /// Sum of all durations in nanoseconds.
    pub nanos: u64,
    /// Buckets that are not empty, in order, and how much is in them.
    buckets: Vec<(u16, u64)>,
}

impl Spread {
    fn add(&mut self, bucket: usize, count: u64) {
        let (Ok(bucket), true) = (u16::try_from(bucket), count > 0) else { return };
        match self.buckets.binary_search_by_key(&bucket, |(at, _)| *at) {
            Ok(at) => self.buckets[at].1 = self.buckets[at].1.saturating_add(count),
            Err(at) => self.buckets.insert(at, (bucket, count)),
        }
    }

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// What came since `before`.
    pub fn since(&self, before: &Spread) -> Spread {
        let of = |bucket: u16| {
            let at = before.buckets.binary_search_by_key(&bucket, |(at, _)| *at);
            at.map_or(0, |at| before.buckets[at].1)
        };
        let buckets = self.buckets.iter().map(|&(bucket, count)| (bucket, count.saturating_sub(of(bucket))));
        Spread {
            nanos: self.nanos.saturating_sub(before.nanos),
            buckets: buckets.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// The duration that `share` (0 to 1) of all do not exceed: the middle of its bucket. `None`: there are none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        // The precision of a float does for a rank.
        let rank = ((count as f64 * share).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0u64;
        let (bucket, _) = self.buckets.iter().find(|(_, count)| {
            seen = seen.saturating_add(*count);
            seen >= rank
        })?;
        let bucket = usize::from(*bucket);
        let (low, high) = (floor(bucket), floor(bucket + 1));
        Some(Duration::from_nanos(low + (high - low) / 2))
    }

    /// How many durations are shorter than `limit`, as far as buckets tell: those whose bucket ends there or before.
    pub fn below(&self, limit: Duration) -> u64 {
        let limit = nanos(limit);
        let within = self.buckets.iter().filter(|(bucket, _)| floor(usize::from(*bucket) + 1) <= limit);
        within.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_are_in_order_without_gaps() {
        for at in 0..BUCKETS {
            assert_eq!(bucket(floor(at)), at);
            assert!(floor(at + 1) > floor(at), "{at}");
            if at + 1 < BUCKETS {
                assert_eq!(bucket(floor(at + 1) - 1), at);
            }
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert!(Duration::from_nanos(floor(BUCKETS - 1)) > Duration::from_secs(15 * 60));
    }

    #[test]
    fn what_came_between_two_moments_is_told() {
        let histogram = Histogram::default();
        assert_eq!(histogram.spread().quantile(0.5), None);
        histogram.record(Duration::from_millis(5));
        let before = histogram.spread();
        (0..99).for_each(|_| histogram.record(Duration::from_micros(10)));
        histogram.record(Duration::from_secs(1));
        let between = histogram.spread().since(&before);
        assert_eq!((between.count(), between.nanos), (100, 99 * 10_000 + 1_000_000_000));
        let near = |share: f64, micros: f64| {
            let told = between.quantile(share).expect("not empty").as_secs_f64() * 1e6;
            assert!((told / micros - 1.0).abs() < 0.07, "{told} {micros}");
        };
        near(0.5, 10.0);
        near(0.99, 10.0);
        near(0.995, 1e6);
        assert_eq!(between.below(Duration::from_millis(1)), 99);
        assert_eq!(between.below(Duration::from_secs(2)), 100);
    }

    proptest! {
        #[test]
        fn a_duration_is_told_to_a_sixteenth(took in 512u64..1 << 40) {
            let histogram = Histogram::default();
            histogram.record(Duration::from_nanos(took));
            let told = histogram.spread().quantile(0.99).expect("not empty").as_nanos() as f64;
            prop_assert!((told / took as f64 - 1.0).abs() <= 1.0 / 16.0, "{} {}", told, took);
        }
    }
}
