//! The page made of the records: one table per group, a plot of its ratios, every figure beneath.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use crate::dates::date;
use crate::explained::Explained;
use crate::record::{Comparison, Contender, Group, Ratio, Row};
use crate::stats::{median, range, short};

/// Writes the report and its plots beside it.
///
/// # Errors
/// The file system refuses.
pub fn write(groups: &[Group], explained: &Explained, path: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new(".")).join("plots");
    fs::create_dir_all(&dir)?;
    let mut page = head();
    for (n, group) in groups.iter().enumerate() {
        let plot = format!("{:02}.svg", n + 1);
        fs::write(dir.join(&plot), draw(group))?;
        section(&mut page, group, explained, &plot);
    }
    page += "## All figures\n\nMedian of all rounds, with the least and the greatest. CPU is the processor time of the \
             daemon (and of the FUSE mount below it) in a round; µs are the latency of single requests; \
             CPU s/GiB is that time per GiB of file data; kicks and calls are notifications per request, to the daemon and from it.\n";
    for group in groups {
        details(&mut page, group);
    }
    fs::write(path, page)
}

fn head() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, m)| m);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "# Benchmarks\n\nWritten by `scripts/bench`; not to be edited by hand. Every ratio is the median over the rounds of \
         one run, in which the contenders take turns; in brackets the least and the greatest round. Above 1 ovfs is \
         better, but for rows whose target is an upper bound (`<=`). Absolute figures belong to the machine and its load \
         and are worth little elsewhere. `CPU per operation` is how many times the other's processor time per FUSE request is \
         ovfs's: above 1 ovfs is thriftier, however busy the machine.\n\nMachine: {cpus} processors ({cpu}), {} GiB memory, Linux {}.\n\n",
        kib >> 20,
        kernel.trim()
    )
}

fn section(page: &mut String, group: &Group, explained: &Explained, plot: &str) {
    let _ = writeln!(page, "## {}\n\n{}\n", group.title, group.about);
    let _ = writeln!(
        page,
        "`{}`: {:.0} s; {}; load average {} at the beginning, {} at the end.\n",
        group.command,
        group.took_s,
        date(group.taken),
        short(group.load.0),
        short(group.load.1)
    );
    page.push_str("| work | ovfs | beside | its figure | ratio | target | | CPU per operation |\n|---|---|---|---|---|---|---|---|\n");
    for row in &group.rows {
        for comparison in &row.comparisons {
            line(page, row, comparison);
        }
        if row.comparisons.is_empty() {
            let figures: Vec<String> =
                row.contenders.iter().map(|c| format!("{}: {}", c.label, figure(row, &c.label))).collect();
            let _ = writeln!(page, "| {} | {} | | | | | | |", row.name, figures.join("; "));
        }
    }
    let missed: Vec<(&Row, &Comparison)> = group
        .rows
        .iter()
        .flat_map(|row| row.comparisons.iter().map(move |comparison| (row, comparison)))
        .filter(|(row, comparison)| row.is_met(comparison) == Some(false))
        .collect();
    if !missed.is_empty() {
        page.push_str("\nWhere the time goes in what is missed:\n\n");
    }
    for (row, comparison) in missed {
        let beside = row.rival(comparison).map_or("", |rival| rival.label.as_str());
        let why = explained.why(row, comparison).unwrap_or("not explained yet.");
        let _ = writeln!(page, "- *{}* ({} beside {beside}): {why}", row.name, comparison.of);
    }
    let _ = writeln!(page, "\n![ratios](plots/{plot})\n");
}

fn line(page: &mut String, row: &Row, comparison: &Comparison) {
    let ours = figure(row, &comparison.of);
    let of = if comparison.of == "ovfs" { String::new() } else { format!(" ({})", comparison.of) };
    let (rival, theirs) = match row.rival(comparison) {
        Some(rival) => (rival.label.clone(), figure(row, &rival.label)),
        None => (comparison.against.join(", "), "none".into()),
    };
    let ratio = row.ratio(comparison);
    let bound = if comparison.at_most { "<=" } else { ">=" };
    let target = comparison.target.map_or(String::new(), |target| format!("{bound} {}", short(target)));
    let _ = writeln!(
        page,
        "| {}{of} | {ours} | {rival} | {theirs} | {} | {target} | {} | {} |",
        row.name,
        ratio.map_or("-".into(), |r| format!("**{}** [{}, {}]", short(r.median), short(r.range.0), short(r.range.1))),
        verdict(row, comparison),
        row.rival(comparison)
            .and_then(|rival| thrift(row.figures(&comparison.of)?, rival))
            .map_or(String::new(), short)
    );
}

/// How many times the rival's processor time per operation is ours: what is left of a comparison on a busy machine.
fn thrift(ours: &Contender, theirs: &Contender) -> Option<f64> {
    let cost = |contender: &Contender| {
        let (cpu, work) = contender.samples.iter().fold((0.0, 0), |(cpu, work), s| (cpu + s.cpu_s, work + s.requests));
        (cpu > 0.0 && work > 0).then(|| cpu / work as f64)
    };
    Some(cost(theirs)? / cost(ours)?)
}

fn verdict(row: &Row, comparison: &Comparison) -> &'static str {
    match row.is_met(comparison) {
        Some(true) => "met",
        Some(false) => "missed",
        None => "",
    }
}

fn figure(row: &Row, label: &str) -> String {
    match row.contenders.iter().find(|c| c.label == label) {
        Some(c) if !c.samples.is_empty() => format!("{} {}", short(median(&c.values())), row.unit.text()),
        Some(c) => format!("failed: {}", c.failure.as_deref().unwrap_or("no figure")),
        None => "not measured".into(),
    }
}

fn details(page: &mut String, group: &Group) {
    let _ = writeln!(page, "\n### {}\n", group.title);
    page.push_str(
        "| work | who | figure | range | CPU | CPU s/GiB | p50 µs | p99 µs | kicks | calls | store requests |\n",
    );
    page.push_str("|---|---|---|---|---|---|---|---|---|---|---|\n");
    for row in &group.rows {
        for contender in &row.contenders {
            let values = contender.values();
            let (low, high) = range(&values);
            let of = |field: fn(&crate::record::Sample) -> f64| {
                short(median(&contender.samples.iter().map(field).collect::<Vec<_>>()))
            };
            let store = contender.samples.last().map_or(String::new(), |sample| {
                sample.store.iter().map(|(kind, n)| format!("{n} {kind}")).collect::<Vec<_>>().join(", ")
            });
            if let (Some(why), true) = (&contender.failure, values.is_empty()) {
                let _ = writeln!(page, "| {} | {} | failed: {why} | | | | | | | | |", row.name, contender.label);
                continue;
            }
            let _ = writeln!(
                page,
                "| {} | {} | {} {} | {} to {} | {} | {} | {} | {} | {} | {} | {store} |",
                row.name,
                contender.label,
                short(median(&values)),
                row.unit.text(),
                short(low),
                short(high),
                of(|s| s.cpu_s),
                per_gib(contender).map_or(String::new(), short),
                of(|s| s.p50_us),
                of(|s| s.p99_us),
                of(|s| s.kicks),
                of(|s| s.calls),
            );
        }
    }
}

/// Processor time per gibibyte of file data, where enough was moved for it to mean something.
fn per_gib(contender: &Contender) -> Option<f64> {
    const ENOUGH: u64 = 32 << 20;
    let (cpu, bytes) = contender.samples.iter().fold((0.0, 0), |(cpu, bytes), s| (cpu + s.cpu_s, bytes + s.bytes));
    (bytes >= ENOUGH && cpu > 0.0).then(|| cpu / (bytes as f64 / f64::from(1 << 30)))
}

/// Bars of the ratios on a logarithmic axis, the targets as ticks.
fn draw(group: &Group) -> String {
    const LABELS: f64 = 430.0;
    const WIDTH: f64 = 470.0;
    const LINE: f64 = 20.0;
    let bars: Vec<(String, Ratio, Option<f64>)> = group
        .rows
        .iter()
        .flat_map(|row| row.comparisons.iter().map(move |c| (row, c)))
        .filter_map(|(row, c)| {
            let of = if c.of == "ovfs" { String::new() } else { format!(" ({})", c.of) };
            let bound = if c.at_most { " (less is better)" } else { "" };
            row.ratio(c).map(|ratio| (format!("{}{of}{bound}", row.name), ratio, c.target))
        })
        .collect();
    let limit =
        bars.iter().map(|(_, r, _)| r.median.max(1.0 / r.median.max(1e-3))).fold(4.0, f64::max).min(1000.0).log2();
    let x = |ratio: f64| LABELS + WIDTH * ((ratio.max(1e-3).log2() / limit).clamp(-1.0, 1.0) + 1.0) / 2.0;
    let height = LINE * (bars.len() as f64 + 1.5);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"960\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"960\" height=\"{height}\" fill=\"white\"/>\n"
    );
    let one = x(1.0);
    for (n, (name, ratio, target)) in bars.iter().enumerate() {
        let y = LINE * (n as f64 + 0.3);
        let (from, to) = (one.min(x(ratio.median)), one.max(x(ratio.median)));
        let (low, high, middle) = (x(ratio.range.0), x(ratio.range.1), y + 7.0);
        let name = name.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>\
             <rect x=\"{from:.1}\" y=\"{y}\" width=\"{:.1}\" height=\"14\" fill=\"#6aa3d8\"/>\
             <line x1=\"{low:.1}\" x2=\"{high:.1}\" y1=\"{middle}\" y2=\"{middle}\" stroke=\"#345\"/>\
             <text x=\"{}\" y=\"{}\">{}</text>",
            LABELS - 6.0,
            y + 11.0,
            (to - from).max(1.0),
            LABELS + WIDTH + 8.0,
            y + 11.0,
            short(ratio.median)
        );
        if let Some(target) = target {
            let at = x(*target);
            let _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{y}\" y2=\"{}\" stroke=\"#c33\" stroke-width=\"2\"/>",
                y + 14.0
            );
        }
    }
    let _ = writeln!(
        svg,
        "<line x1=\"{one}\" x2=\"{one}\" y1=\"0\" y2=\"{height}\" stroke=\"black\"/>\
         <text x=\"{one}\" y=\"{}\" text-anchor=\"middle\">1 (red: target)</text>\n</svg>",
        height - 6.0
    );
    svg
}
