//! A report as text, for a terminal of eighty columns. What stores say is shown without control characters.

use std::fmt::{self, Display, Write};

use super::report::{Counts, Mount, OfKind, Report};

/// Bytes in a unit that reads well.
struct Bytes(u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut unit) = (self.0 as f64, "B");
        for next in ["KiB", "MiB", "GiB", "TiB"] {
            if value < 1024.0 {
                break;
            }
            (value, unit) = (value / 1024.0, next);
        }
        match unit {
            "B" => write!(f, "{} B", self.0),
            unit => write!(f, "{value:.1} {unit}"),
        }
    }
}

/// Seconds in a unit that reads well; a dash for none.
struct Seconds(Option<f64>);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            None => "-".to_owned(),
            Some(s) if s < 0.001 => format!("{:.0} us", s * 1e6),
            Some(s) if s < 1.0 => format!("{:.1} ms", s * 1e3),
            Some(s) if s < 120.0 => format!("{s:.1} s"),
            Some(s) if s < 7200.0 => format!("{:.0} min", s / 60.0),
            Some(s) => format!("{:.1} h", s / 3600.0),
        };
        f.pad(&text)
    }
}

/// Text of others on one line.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Calls come first that come most often.
fn ranked<'a, T>(all: impl IntoIterator<Item = (&'a str, T)>, counts: impl Fn(&T) -> &Counts) -> Vec<(&'a str, T)> {
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_by(|(_, a), (_, b)| {
        let (a, b) = (counts(a), counts(b));
        b.per_second.total_cmp(&a.per_second).then(b.count.cmp(&a.count))
    });
    all
}

fn counts(out: &mut String, name: &str, of: &Counts) -> fmt::Result {
    let (p50, p99) = (Seconds(of.p50_seconds), Seconds(of.p99_seconds));
    write!(out, "{name:<16}{:>10.1}{:>12}{:>9}{p50:>10}{p99:>10}", of.per_second, of.count, of.errors)
}

fn mount(out: &mut String, mount: &Mount) -> fmt::Result {
    let health = &mount.health;
    let state = match health.state {
        "failing" => format!("FAILING for {}", Seconds(health.failing_seconds)),
        "up" => format!("up, answered {} ago", Seconds(health.last_answer_seconds)),
        state => state.to_owned(),
    };
    writeln!(out, "\n{} ({}): {state}", plain(&mount.path), mount.scheme)?;
    if let Some(error) = &health.last_error {
        writeln!(out, "  error    {} ago: {}", Seconds(health.last_error_seconds), plain(error))?;
    }
    let cache = &mount.cache;
    let ratio = cache.hit_ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.1} %", ratio * 100.0));
    let (hits, misses) = (Bytes(cache.hit_bytes), Bytes(cache.miss_bytes));
    writeln!(out, "  cache    {ratio} hits; in all {hits} from memory, {misses} from the store")?;
    let pool = &mount.pool;
    write!(out, "  pool     {} of {} used", Bytes(pool.used_bytes), Bytes(pool.bytes))?;
    let used: Vec<String> = pool
        .by_class
        .iter()
        .filter(|(_, used)| **used > 0)
        .map(|(class, used)| format!("{}x{}", used / class.max(&1), class_name(*class)))
        .collect();
    let (open, close) = if used.is_empty() { ("", "") } else { (" (", ")") };
    writeln!(out, "{open}{}{close}, full {} times", used.join(" "), pool.full)?;
    let (dirty, uploads) = (&mount.dirty, &mount.uploads);
    writeln!(
        out,
        "  dirty    {}, oldest {}; {} uploads of {} in flight, oldest {}; {} waiting",
        Bytes(dirty.bytes),
        Seconds(dirty.oldest_seconds),
        uploads.in_flight,
        Bytes(uploads.bytes),
        Seconds(uploads.oldest_seconds),
        uploads.waiting
    )?;
    writeln!(
        out,
        "  inodes   {} nodeids, {} files and {} directories open, {} conflicts",
        mount.nodeids, mount.open_files, mount.open_dirs, mount.conflicts
    )?;
    let store = &mount.store;
    writeln!(
        out,
        "  store    {} sent, {} received; class A {}, class B {}, free {}",
        Bytes(store.sent_bytes),
        Bytes(store.received_bytes),
        store.by_cost.get("A").unwrap_or(&0),
        store.by_cost.get("B").unwrap_or(&0),
        store.by_cost.get("free").unwrap_or(&0)
    )?;
    if store.by_kind.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "  {:<14}{:>10}{:>12}{:>9}{:>10}{:>10}{:>9}  cost",
        "", "/s", "all", "errors", "p50", "p99", "again"
    )?;
    for (name, OfKind { counts: of, retries, cost }) in
        ranked(store.by_kind.iter().map(|(name, of)| (*name, of)), |of| &of.counts)
    {
        counts(out, &format!("  {name}"), of)?;
        writeln!(out, "{retries:>9}  {cost}")?;
    }
    Ok(())
}

/// The size of a block, short.
fn class_name(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{}M", bytes >> 20) } else { format!("{}K", bytes >> 10) }
}

fn all(out: &mut String, report: &Report) -> fmt::Result {
    let requests = &report.requests;
    writeln!(
        out,
        "ovfs {} (device process {}), up {}; {:.1} requests/s, {} in all, {} errors; over {}",
        report.pid,
        report.device_pid,
        Seconds(Some(report.uptime_seconds)),
        requests.per_second,
        requests.count,
        requests.errors,
        Seconds(Some(report.interval_seconds))
    )?;
    writeln!(out, "\n{:<16}{:>10}{:>12}{:>9}{:>10}{:>10}", "requests", "/s", "all", "errors", "p50", "p99")?;
    for (name, of) in ranked(requests.by_op.iter().map(|(name, of)| (name.as_str(), of)), |of| *of) {
        counts(out, name, of)?;
        writeln!(out)?;
    }
    report.mounts.iter().try_for_each(|each| mount(out, each))?;
    if let Some(disk) = &report.disk {
        let (hits, misses) = (Bytes(disk.hit_bytes), Bytes(disk.miss_bytes));
        writeln!(out, "\ndisk tier: {hits} read from it, {misses} fetched for it")?;
    }
    Ok(())
}

/// The text.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = all(&mut out, report);
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{Health, Kind, MountSnapshot, Snapshot, StoreMeter};

    #[test]
    fn numbers_read_well() {
        let bytes = [0, 1023, 1024, 3 << 20, 5 << 40].map(|n| Bytes(n).to_string());
        assert_eq!(bytes, ["0 B", "1023 B", "1.0 KiB", "3.0 MiB", "5.0 TiB"]);
        let times = [0.00001, 0.0123, 1.5, 600.0, 36_000.0].map(|s| Seconds(Some(s)).to_string());
        assert_eq!(times, ["10 us", "12.3 ms", "1.5 s", "10 min", "10.0 h"]);
    }

    #[test]
    fn store_that_fails_is_seen_and_cannot_write_to_the_terminal() {
        let meter = StoreMeter::default();
        meter.request(Kind::Get, Duration::from_millis(2), true);
        let error = (Duration::from_secs(1), "no \u{1b}[2J".to_owned());
        let health = Health { answer: None, failing: Some(Duration::from_secs(5)), error: Some(error) };
        let used_bytes = [4096; 11];
        let mount = MountSnapshot {
            path: "/a".into(),
            scheme: "s3".into(),
            health,
            used_bytes,
            store: meter.counts(),
            ..MountSnapshot::default()
        };
        let text = render(&Report::new(&Snapshot { mounts: vec![mount], ..Snapshot::default() }, None));
        assert!(text.contains("/a (s3): FAILING for 5.0 s") && text.contains("1.0 s ago: no ?[2J"), "{text}");
        assert!(
            text.contains("1x4K") && text.lines().any(|line| line.starts_with("  get ") && line.ends_with(" B")),
            "{text}"
        );
    }
}
