//! What `ovfs status` tells: one snapshot, or what came between two.
//!
//! The names of the fields are for programs to rely on: new ones may come, none changes its meaning. Every `count` and
//! every sum of bytes is since the start of the daemon. Rates and percentiles are of the interval, and null where nothing
//! happened in it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::histogram::Spread;
use super::snapshot::{MountSnapshot, Snapshot};
use super::store::Kind;

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Version of this form.
    pub version: u32,
    /// The broker's process id, and the device process's.
    pub pid: u32,
    /// As `pid`.
    pub device_pid: u32,
    /// Since the start.
    pub uptime_seconds: f64,
    /// What rates and percentiles are of.
    pub interval_seconds: f64,
    /// What the guest asks.
    pub requests: Requests,
    /// The stores.
    pub mounts: Vec<Mount>,
    /// The disk tier, if there is one.
    pub disk: Option<Disk>,
}

/// The guest's requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Requests {
    /// All of them.
    pub count: u64,
    /// Those that ended in an errno.
    pub errors: u64,
    /// In the interval.
    pub per_second: f64,
    /// By opcode, those that there were.
    pub by_op: BTreeMap<String, Counts>,
}

/// Requests of one sort.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Counts {
    /// How many.
    pub count: u64,
    /// Those that failed.
    pub errors: u64,
    /// In the interval.
    pub per_second: f64,
    /// Half of them took no longer.
    pub p50_seconds: Option<f64>,
    /// Of a hundred one took longer.
    pub p99_seconds: Option<f64>,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mount {
    /// Where in the share.
    pub path: String,
    /// The scheme of the store's URL.
    #[serde(rename = "type")]
    pub scheme: String,
    /// How the store is.
    pub health: Health,
    /// What was read.
    pub cache: Cache,
    /// Its memory.
    pub pool: Pool,
    /// What is not stored yet.
    pub dirty: Dirty,
    /// What is being stored.
    pub uploads: Uploads,
    /// nodeids in use.
    pub nodeids: u64,
    /// Open files.
    pub open_files: u64,
    /// Open directories.
    pub open_dirs: u64,
    /// Files that were changed here and in the store at once.
    pub conflicts: u64,
    /// Requests to the store.
    pub store: Store,
}

/// How a store is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Health {
    /// `up`; `failing`: the last thing that it was asked for it did not do; `unknown`: it has not been asked.
    pub state: &'static str,
    /// For how long it fails.
    pub failing_seconds: Option<f64>,
    /// How long ago it last answered.
    pub last_answer_seconds: Option<f64>,
    /// How long ago it last failed.
    pub last_error_seconds: Option<f64>,
    /// With what.
    pub last_error: Option<String>,
}

/// What was read: pieces of reads that lie together in memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cache {
    /// Those that memory had.
    pub hits: u64,
    /// Those that waited for the store.
    pub misses: u64,
    /// Bytes of hits.
    pub hit_bytes: u64,
    /// Bytes of misses.
    pub miss_bytes: u64,
    /// Hits of all bytes, in the interval.
    pub hit_ratio: Option<f64>,
}

/// A mount's memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pool {
    /// All of it.
    pub bytes: u64,
    /// In use, for what is dirty and for what is kept.
    pub used_bytes: u64,
    /// In use, by the size of the blocks in bytes.
    pub by_class: BTreeMap<u64, u64>,
    /// Times that somebody waited because it was full.
    pub full: u64,
}

/// What is not stored yet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dirty {
    /// Bytes of memory that hold it.
    pub bytes: u64,
    /// How long the oldest has been waiting.
    pub oldest_seconds: Option<f64>,
}

/// What is being stored.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Uploads {
    /// Files, and pieces of long ones.
    pub in_flight: u64,
    /// Files that wait for their turn.
    pub waiting: u64,
    /// Bytes of the objects that come of those in flight.
    pub bytes: u64,
    /// How long the oldest has been in flight.
    pub oldest_seconds: Option<f64>,
}

/// Requests to a store.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Store {
    /// All of them.
    pub count: u64,
    /// Those that failed.
    pub errors: u64,
    /// Those that were made once more.
    pub retries: u64,
    /// Bytes of content that went there.
    pub sent_bytes: u64,
    /// Bytes of content that came from there.
    pub received_bytes: u64,
    /// How many are billed in which class, probably.
    pub by_cost: BTreeMap<&'static str, u64>,
    /// By kind, those that there were.
    pub by_kind: BTreeMap<&'static str, OfKind>,
}

/// Requests of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OfKind {
    /// As of the guest's requests.
    #[serde(flatten)]
    pub counts: Counts,
    /// Those that were made once more. Of uploads all are counted as `put`.
    pub retries: u64,
    /// The class in which they are billed, probably.
    pub cost: &'static str,
}

/// The disk tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Bytes read from there.
    pub hit_bytes: u64,
    /// Bytes fetched because they were not there.
    pub miss_bytes: u64,
}

/// What happened between two moments.
struct Interval<'a> {
    before: Option<&'a Snapshot>,
    length: Duration,
}

impl Interval<'_> {
    fn counts(&self, errors: u64, now: &Spread, before: Option<&Spread>) -> Counts {
        let between = before.map_or_else(|| now.clone(), |before| now.since(before));
        let quantile = |share| between.quantile(share).map(|took| took.as_secs_f64());
        Counts {
            count: now.count(),
            errors,
            per_second: self.rate(between.count()),
            p50_seconds: quantile(0.5),
            p99_seconds: quantile(0.99),
        }
    }

    fn rate(&self, count: u64) -> f64 {
        if self.length.is_zero() { 0.0 } else { count as f64 / self.length.as_secs_f64() }
    }

    fn mount(&self, now: &MountSnapshot) -> Mount {
        let before = self.before.and_then(|before| before.mounts.iter().find(|mount| mount.path == now.path));
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        let health = &now.health;
        let state = match (health.failing, health.answer) {
            (Some(_), _) => "failing",
            (None, Some(_)) => "up",
            (None, None) => "unknown",
        };
        let hits = now.hit_bytes.saturating_sub(before.map_or(0, |before| before.hit_bytes));
        let misses = now.miss_bytes.saturating_sub(before.map_or(0, |before| before.miss_bytes));
        let read = hits.saturating_add(misses);
        let by_class = now.used_bytes.iter().enumerate().map(|(order, used)| (4096u64 << order, *used));
        Mount {
            path: now.path.clone(),
            scheme: now.scheme.clone(),
            health: Health {
                state,
                failing_seconds: seconds(health.failing),
                last_answer_seconds: seconds(health.answer),
                last_error_seconds: health.error.as_ref().map(|(at, _)| at.as_secs_f64()),
                last_error: health.error.as_ref().map(|(_, text)| text.clone()),
            },
            cache: Cache {
                hits: now.hits,
                misses: now.misses,
                hit_bytes: now.hit_bytes,
                miss_bytes: now.miss_bytes,
                hit_ratio: (read > 0).then(|| hits as f64 / read as f64),
            },
            pool: Pool {
                bytes: now.pool_bytes,
                used_bytes: now.used_bytes.iter().fold(0, |sum, used| sum.saturating_add(*used)),
                by_class: by_class.collect(),
                full: now.full,
            },
            dirty: Dirty { bytes: now.dirty_bytes, oldest_seconds: seconds(now.dirty_age) },
            uploads: Uploads {
                in_flight: now.uploads.in_flight,
                waiting: now.uploads.waiting,
                bytes: now.uploads.bytes,
                oldest_seconds: seconds(now.uploads.oldest),
            },
            nodeids: now.nodeids,
            open_files: now.files,
            open_dirs: now.dirs,
            conflicts: now.conflicts,
            store: self.store(now, before),
        }
    }

    fn store(&self, now: &MountSnapshot, before: Option<&MountSnapshot>) -> Store {
        let (mut by_cost, mut by_kind) = (BTreeMap::from([("A", 0), ("B", 0), ("free", 0)]), BTreeMap::new());
        for (at, (kind, counts)) in Kind::ALL.into_iter().zip(&now.store.kinds).enumerate() {
            let before = before.and_then(|before| before.store.kinds.get(at)).map(|before| &before.took);
            let (retries, cost) = (counts.retries, kind.cost().name());
            let counts = self.counts(counts.errors, &counts.took, before);
            *by_cost.entry(cost).or_default() += counts.count;
            if counts.count > 0 || retries > 0 {
                by_kind.insert(kind.name(), OfKind { counts, retries, cost });
            }
        }
        let sum = |of: fn(&OfKind) -> u64| by_kind.values().map(of).fold(0, u64::saturating_add);
        Store {
            count: sum(|kind| kind.counts.count),
            errors: sum(|kind| kind.counts.errors),
            retries: sum(|kind| kind.retries),
            sent_bytes: now.store.sent_bytes,
            received_bytes: now.store.received_bytes,
            by_cost,
            by_kind,
        }
    }
}

impl Report {
    /// What came between `before` and `now`; without `before`, since the start.
    pub fn new(now: &Snapshot, before: Option<&Snapshot>) -> Report {
        let length = now.uptime.saturating_sub(before.map_or(Duration::ZERO, |before| before.uptime));
        let interval = Interval { before, length };
        let by_op: BTreeMap<String, Counts> = now
            .ops
            .iter()
            .map(|op| {
                let past = before.and_then(|before| before.ops.iter().find(|past| past.op == op.op));
                // What there was none of before began at zero.
                let none = Spread::default();
                let past = before.map(|_| past.map_or(&none, |past| &past.took));
                (op.op.clone(), interval.counts(op.errors, &op.took, past))
            })
            .collect();
        Report {
            version: now.version,
            pid: now.pid,
            device_pid: now.device_pid,
            uptime_seconds: now.uptime.as_secs_f64(),
            interval_seconds: length.as_secs_f64(),
            requests: Requests {
                count: by_op.values().map(|counts| counts.count).fold(0, u64::saturating_add),
                errors: by_op.values().map(|counts| counts.errors).fold(0, u64::saturating_add),
                per_second: by_op.values().fold(0.0, |sum, counts| sum + counts.per_second),
                by_op,
            },
            mounts: now.mounts.iter().map(|mount| interval.mount(mount)).collect(),
            disk: now.disk.as_ref().map(|disk| Disk { hit_bytes: disk.hit_bytes, miss_bytes: disk.miss_bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Histogram, MountCounts, OpCounts, StoreMeter};
    use std::sync::atomic::Ordering;

    fn spread(count: u64, micros: u64) -> Spread {
        let histogram = Histogram::default();
        (0..count).for_each(|_| histogram.record(Duration::from_micros(micros)));
        histogram.spread()
    }

    fn snapshot(seconds: u64, reads: u64, hit: usize, gets: u64) -> Snapshot {
        let (counts, meter) = (MountCounts::default(), StoreMeter::new("/"));
        counts.hit(hit);
        counts.miss(1000);
        counts.dirty_since.store(5, Ordering::Relaxed);
        (0..gets).for_each(|_| meter.request(Kind::Get, Duration::from_millis(3), false));
        meter.request(Kind::Put, Duration::from_millis(3), true);
        let mut mount =
            MountSnapshot { path: "/".into(), scheme: "s3".into(), store: meter.counts(), ..MountSnapshot::default() };
        mount.count(&counts, 2_000_000_005);
        Snapshot {
            version: 1,
            uptime: Duration::from_secs(seconds),
            ops: vec![OpCounts { op: "read".into(), errors: 1, took: spread(reads, 100) }],
            mounts: vec![mount],
            ..Snapshot::default()
        }
    }

    #[test]
    fn rates_are_of_the_interval_and_counts_of_all_time() {
        let (before, now) = (snapshot(10, 100, 1000, 5), snapshot(12, 300, 4000, 15));
        let report = Report::new(&now, Some(&before));
        let read = &report.requests.by_op["read"];
        assert_eq!((read.count, read.errors, read.per_second), (300, 1, 100.0));
        assert!((read.p99_seconds.expect("there were some") / 1e-4 - 1.0).abs() < 0.07);
        let mount = &report.mounts[0];
        assert_eq!(mount.cache.hit_ratio, Some(1.0));
        assert_eq!((mount.store.by_kind["get"].counts.count, mount.store.by_kind["get"].counts.per_second), (15, 5.0));
        assert_eq!((mount.store.by_cost["A"], mount.store.by_cost["B"], mount.store.errors), (1, 15, 1));
        assert_eq!(mount.store.by_kind["put"].counts.p50_seconds, None, "none in the interval");
        assert_eq!((mount.dirty.oldest_seconds, mount.health.state), (Some(2.0), "unknown"));
        let total = Report::new(&now, None);
        assert_eq!((total.requests.per_second, total.mounts[0].cache.hit_ratio), (25.0, Some(0.8)));
    }

    #[test]
    fn form_is_stable() {
        let report = serde_json::to_value(Report::new(&snapshot(2, 4, 3000, 1), None)).expect("it is plain data");
        let fields = |value: &serde_json::Value| {
            let keys = value.as_object().expect("an object").keys().map(String::as_str);
            keys.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(fields(&report), "device_pid disk interval_seconds mounts pid requests uptime_seconds version");
        assert_eq!(fields(&report["requests"]), "by_op count errors per_second");
        assert_eq!(fields(&report["requests"]["by_op"]["read"]), "count errors p50_seconds p99_seconds per_second");
        let mount = &report["mounts"][0];
        assert_eq!(
            fields(mount),
            "cache conflicts dirty health nodeids open_dirs open_files path pool store type uploads"
        );
        assert_eq!(fields(&mount["pool"]), "by_class bytes full used_bytes");
        assert_eq!(mount["pool"]["by_class"]["4194304"], 0);
        let get = &mount["store"]["by_kind"]["get"];
        assert_eq!(fields(get), "cost count errors p50_seconds p99_seconds per_second retries");
    }
}
