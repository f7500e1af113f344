//! A snapshot in Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};
use std::time::Duration;

use super::histogram::Spread;
use super::snapshot::{KindCounts, MountSnapshot, Snapshot};
use super::store::Kind;

/// The format's media type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of a histogram's buckets: powers of two of a nanosecond, which are bounds of our own buckets, too. From
/// 4 us by factors of four to 69 s.
const BOUNDS: std::ops::RangeInclusive<u32> = 6..=18;

fn bounds() -> impl Iterator<Item = Duration> {
    BOUNDS.map(|power| Duration::from_nanos(1 << (2 * power)))
}

/// Label names and values.
type Labels<'a> = &'a [(&'a str, &'a str)];

#[derive(Default)]
struct Text(String);

impl Text {
    /// The head of a family; its samples follow.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail, here as below.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: impl Display) {
        self.0.push_str(name);
        for (at, (label, value)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"{}\"", if at == 0 { '{' } else { ',' }, escaped(value));
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn histogram(&mut self, name: &str, labels: Labels<'_>, spread: &Spread) {
        let mut bucket = |le: &str, count: u64| {
            let labels: Vec<_> = labels.iter().copied().chain([("le", le)]).collect();
            self.sample(&format!("{name}_bucket"), &labels, count);
        };
        for bound in bounds() {
            bucket(&bound.as_secs_f64().to_string(), spread.below(bound));
        }
        bucket("+Inf", spread.count());
        self.sample(&format!("{name}_sum"), labels, Duration::from_nanos(spread.nanos).as_secs_f64());
        self.sample(&format!("{name}_count"), labels, spread.count());
    }

    /// One value for each mount; none where there is none.
    fn each<V: Display>(
        &mut self,
        snapshot: &Snapshot,
        (name, kind, help): (&str, &str, &str),
        value: impl Fn(&MountSnapshot) -> Option<V>,
    ) {
        self.family(name, kind, help);
        for mount in &snapshot.mounts {
            if let Some(value) = value(mount) {
                self.sample(name, &[("mount", &mount.path)], value);
            }
        }
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The kinds of requests of which there were some.
fn kinds(mount: &MountSnapshot) -> impl Iterator<Item = (Kind, &KindCounts)> {
    let all = Kind::ALL.into_iter().zip(&mount.store.kinds);
    all.filter(|(_, counts)| counts.took.count() > 0 || counts.retries > 0)
}

/// The text.
pub fn render(snapshot: &Snapshot) -> String {
    let mut text = Text::default();
    text.family("ovfs_build_info", "gauge", "Always 1; the version is a label.");
    text.sample("ovfs_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.family("ovfs_uptime_seconds", "gauge", "Time since the start.");
    text.sample("ovfs_uptime_seconds", &[], snapshot.uptime.as_secs_f64());
    requests(&mut text, snapshot);
    gauges(&mut text, snapshot);
    counters(&mut text, snapshot);
    store(&mut text, snapshot);
    if let Some(disk) = &snapshot.disk {
        text.family("ovfs_disk_hit_bytes_total", "counter", "Bytes read from the disk tier.");
        text.sample("ovfs_disk_hit_bytes_total", &[], disk.hit_bytes);
        text.family("ovfs_disk_miss_bytes_total", "counter", "Bytes fetched because the disk tier lacked them.");
        text.sample("ovfs_disk_miss_bytes_total", &[], disk.miss_bytes);
    }
    text.0
}

fn requests(text: &mut Text, snapshot: &Snapshot) {
    text.family("ovfs_fuse_requests_total", "counter", "Requests of the guest that were answered.");
    for op in &snapshot.ops {
        text.sample("ovfs_fuse_requests_total", &[("op", &op.op)], op.took.count());
    }
    text.family("ovfs_fuse_request_errors_total", "counter", "Those of them that ended in an errno.");
    for op in &snapshot.ops {
        text.sample("ovfs_fuse_request_errors_total", &[("op", &op.op)], op.errors);
    }
    let name = "ovfs_fuse_request_duration_seconds";
    text.family(name, "histogram", "Time from a request's being taken from the ring to its answer.");
    for op in &snapshot.ops {
        text.histogram(name, &[("op", &op.op)], &op.took);
    }
}

fn gauges(text: &mut Text, all: &Snapshot) {
    let seconds = |time: Option<Duration>| Some(time.unwrap_or_default().as_secs_f64());
    text.each(all, ("ovfs_store_up", "gauge", "1: the store answers; 0: it fails; none: it was not asked."), |mount| {
        match (mount.health.failing, mount.health.answer) {
            (Some(_), _) => Some(0),
            (None, Some(_)) => Some(1),
            (None, None) => None,
        }
    });
    text.each(all, ("ovfs_pool_bytes", "gauge", "Memory for file data."), |mount| Some(mount.pool_bytes));
    text.family("ovfs_pool_used_bytes", "gauge", "Memory in use, by the size of its blocks in bytes.");
    for mount in &all.mounts {
        for (order, used) in mount.used_bytes.iter().enumerate() {
            let class = (4096u64 << order).to_string();
            text.sample("ovfs_pool_used_bytes", &[("mount", &mount.path), ("class", &class)], used);
        }
    }
    let help = "Memory that holds what is not stored yet.";
    text.each(all, ("ovfs_dirty_bytes", "gauge", help), |mount| Some(mount.dirty_bytes));
    let help = "How long the oldest data that is not stored yet has been waiting; 0: there is none.";
    text.each(all, ("ovfs_dirty_oldest_seconds", "gauge", help), |mount| seconds(mount.dirty_age));
    let help = "Files that are being uploaded.";
    text.each(all, ("ovfs_uploads_in_flight", "gauge", help), |mount| Some(mount.uploads.in_flight));
    let help = "Files that wait for their turn to be uploaded.";
    text.each(all, ("ovfs_uploads_waiting", "gauge", help), |mount| Some(mount.uploads.waiting));
    let help = "How long the oldest upload has been under way; 0: there is none.";
    text.each(all, ("ovfs_upload_oldest_seconds", "gauge", help), |mount| seconds(mount.uploads.oldest));
    text.each(all, ("ovfs_nodeids", "gauge", "Files and directories that the guest knows."), |mount| {
        Some(mount.nodeids)
    });
    text.each(all, ("ovfs_open_files", "gauge", "Open files."), |mount| Some(mount.files));
    text.each(all, ("ovfs_open_dirs", "gauge", "Open directories."), |mount| Some(mount.dirs));
}

fn counters(text: &mut Text, all: &Snapshot) {
    let name = "ovfs_pool_blocks_taken_total";
    text.family(
        name,
        "counter",
        "Blocks of memory taken; from: list, without a lock; cut, where free memory is split.",
    );
    for mount in &all.mounts {
        for (order, (listed, cut)) in mount.taken_listed.iter().zip(&mount.taken_cut).enumerate() {
            let class = (4096u64 << order).to_string();
            for (from, count) in [("list", listed), ("cut", cut)] {
                text.sample(name, &[("mount", &mount.path), ("class", &class), ("from", from)], count);
            }
        }
    }
    let help = "Pieces of reads that were answered from memory.";
    text.each(all, ("ovfs_cache_hits_total", "counter", help), |mount| Some(mount.hits));
    let help = "Pieces of reads that waited for the store.";
    text.each(all, ("ovfs_cache_misses_total", "counter", help), |mount| Some(mount.misses));
    let help = "Bytes that were read from memory.";
    text.each(all, ("ovfs_cache_hit_bytes_total", "counter", help), |mount| Some(mount.hit_bytes));
    let help = "Bytes whose reading waited for the store.";
    text.each(all, ("ovfs_cache_miss_bytes_total", "counter", help), |mount| Some(mount.miss_bytes));
    let help = "Times that somebody waited because the memory was full.";
    text.each(all, ("ovfs_pool_full_total", "counter", help), |mount| Some(mount.full));
    let help = "Files that were changed here and in the store at once.";
    text.each(all, ("ovfs_conflicts_total", "counter", help), |mount| Some(mount.conflicts));
    let help = "Bytes of content sent to the store.";
    text.each(all, ("ovfs_store_sent_bytes_total", "counter", help), |mount| Some(mount.store.sent_bytes));
    let help = "Bytes of content received from the store.";
    text.each(all, ("ovfs_store_received_bytes_total", "counter", help), |mount| Some(mount.store.received_bytes));
}

fn store(text: &mut Text, all: &Snapshot) {
    let each = || all.mounts.iter().flat_map(|mount| kinds(mount).map(move |(kind, counts)| (mount, kind, counts)));
    let name = "ovfs_store_requests_total";
    text.family(name, "counter", "Requests to the store; cost is the class in which they are probably billed.");
    for (mount, kind, counts) in each() {
        let labels = [("mount", mount.path.as_str()), ("kind", kind.name()), ("cost", kind.cost().name())];
        text.sample(name, &labels, counts.took.count());
    }
    let name = "ovfs_store_request_errors_total";
    text.family(name, "counter", "Requests to the store that failed.");
    for (mount, kind, counts) in each() {
        text.sample(name, &[("mount", &mount.path), ("kind", kind.name())], counts.errors);
    }
    let name = "ovfs_store_request_retries_total";
    text.family(name, "counter", "Requests to the store that were made once more; of uploads all are kind put.");
    for (mount, kind, counts) in each() {
        text.sample(name, &[("mount", &mount.path), ("kind", kind.name())], counts.retries);
    }
    let name = "ovfs_store_request_duration_seconds";
    text.family(name, "histogram", "Time from sending a request to the head of the store's answer.");
    for (mount, kind, counts) in each() {
        text.histogram(name, &[("mount", &mount.path), ("kind", kind.name())], &counts.took);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::metrics::{DiskCounts, Health, Histogram, OpCounts, StoreMeter};

    /// Reads labels as the format has them; the rest of the line behind the brace.
    fn labels(mut rest: &str) -> (Vec<(String, String)>, &str) {
        let mut labels = Vec::new();
        loop {
            let (name, after) = rest.split_once("=\"").expect("a label");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{name}");
            let (mut value, mut chars) = (String::new(), after.char_indices());
            let end = loop {
                match chars.next().expect("the value ends") {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next().expect("something is escaped").1 {
                        'n' => value.push('\n'),
                        c @ ('\\' | '"') => value.push(c),
                        c => panic!("\\{c} is no escape"),
                    },
                    (_, c) => value.push(c),
                }
            };
            labels.push((name.to_owned(), value));
            let after = &after[end + 1..];
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None => return (labels, after.strip_prefix('}').expect("the labels end")),
            }
        }
    }

    /// A strict reader: every sample belongs to the family before it, families come once, counters end in `_total`.
    fn parse(text: &str) -> BTreeMap<(String, Vec<(String, String)>), f64> {
        assert!(text.ends_with('\n'));
        let (mut samples, mut families) = (BTreeMap::new(), Vec::new());
        let (mut lines, mut current) = (text.lines().peekable(), (String::new(), String::new()));
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("help");
                let kind =
                    lines.next().and_then(|line| line.strip_prefix("# TYPE ")?.strip_prefix(name)?.strip_prefix(' '));
                let kind = kind.expect("the type follows").to_owned();
                assert!(!families.contains(&name.to_owned()) && !help.is_empty(), "{name}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                assert!(name.starts_with("ovfs_"), "{name}");
                families.push(name.to_owned());
                current = (name.to_owned(), kind);
                continue;
            }
            let at = line.find(['{', ' ']).expect("a value");
            let (name, rest) = line.split_at(at);
            let (labels, rest) = rest.strip_prefix('{').map_or_else(|| (Vec::new(), rest), labels);
            let value: f64 = rest.strip_prefix(' ').expect("one space").parse().expect("a number");
            let suffix = name.strip_prefix(current.0.as_str()).expect("of the family");
            let is_histogram = current.1 == "histogram";
            assert_eq!(is_histogram, ["_bucket", "_sum", "_count"].contains(&suffix), "{line}");
            assert!(is_histogram || suffix.is_empty(), "{line}");
            assert!(samples.insert((name.to_owned(), labels), value).is_none(), "{line} is there twice");
        }
        samples
    }

    #[test]
    fn text_is_well_formed_and_says_what_was_counted() {
        let took = Histogram::default();
        [3, 100, 100, 20_000].into_iter().for_each(|micros| took.record(Duration::from_micros(micros)));
        let meter = StoreMeter::new("/");
        meter.request(Kind::Get, Duration::from_millis(2), true);
        meter.retry(Kind::List, Duration::ZERO, "no answer");
        meter.answered();
        let odd = "/a\"b\\c\nd";
        let mount = |path: &str, health: Health| MountSnapshot {
            path: path.into(),
            store: meter.counts(),
            health,
            dirty_age: Some(Duration::from_millis(1500)),
            taken_listed: [3; 11],
            taken_cut: [4; 11],
            ..MountSnapshot::default()
        };
        let failing = Health { failing: Some(Duration::ZERO), ..Health::default() };
        let snapshot = Snapshot {
            ops: vec![OpCounts { op: "read".into(), errors: 1, took: took.spread() }],
            mounts: vec![mount("/", meter.health()), mount(odd, failing), mount("/new", Health::default())],
            disk: Some(DiskCounts { hit_bytes: 7, miss_bytes: 8 }),
            ..Snapshot::default()
        };
        let samples = parse(&render(&snapshot));
        let get = |name: &str, labels: &[(&str, &str)]| {
            let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            samples.get(&(name.to_owned(), labels)).copied()
        };
        assert_eq!(get("ovfs_fuse_requests_total", &[("op", "read")]), Some(4.0));
        let bucket = |le: &str| get("ovfs_fuse_request_duration_seconds_bucket", &[("op", "read"), ("le", le)]);
        let buckets = ["0.000004096", "0.000016384", "0.000262144", "0.067108864", "+Inf"].map(bucket);
        assert_eq!(buckets, [Some(1.0), Some(1.0), Some(3.0), Some(4.0), Some(4.0)]);
        assert_eq!(get("ovfs_fuse_request_duration_seconds_sum", &[("op", "read")]), Some(0.020_203));
        assert_eq!(get("ovfs_store_up", &[("mount", "/")]), Some(1.0));
        assert_eq!(get("ovfs_store_up", &[("mount", odd)]), Some(0.0));
        assert_eq!(get("ovfs_store_up", &[("mount", "/new")]), None);
        assert_eq!(get("ovfs_dirty_oldest_seconds", &[("mount", "/")]), Some(1.5));
        let of_class = |from| [("mount", "/"), ("class", "4194304"), ("from", from)];
        assert_eq!(get("ovfs_pool_blocks_taken_total", &of_class("list")), Some(3.0));
        assert_eq!(get("ovfs_pool_blocks_taken_total", &of_class("cut")), Some(4.0));
        let of_get = [("mount", "/"), ("kind", "get"), ("cost", "B")];
        assert_eq!(get("ovfs_store_requests_total", &of_get), Some(1.0));
        assert_eq!(get("ovfs_store_request_errors_total", &of_get[..2]), Some(1.0));
        assert_eq!(get("ovfs_store_request_retries_total", &[("mount", "/"), ("kind", "list")]), Some(1.0));
        assert_eq!(get("ovfs_disk_hit_bytes_total", &[]), Some(7.0));
    }
}
