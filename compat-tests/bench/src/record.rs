//! What was measured: written to a file per group, so that a report can be made of several runs.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::session::Metered;
use crate::stats;

/// One figure of one round.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// The figure, in the row's unit.
    pub value: f64,
    /// Processor time of the daemon, in seconds.
    pub cpu_s: f64,
    /// FUSE requests.
    pub requests: u64,
    /// File data moved, in bytes.
    pub bytes: u64,
    /// Half of the requests took at most this many microseconds.
    pub p50_us: f64,
    /// 99 % of them.
    pub p99_us: f64,
    /// Notifications to the daemon per request.
    pub kicks: f64,
    /// Notifications from it per request.
    pub calls: f64,
    /// Requests to the store, by kind.
    #[serde(default)]
    pub store: Vec<(String, u64)>,
}

impl Sample {
    /// A bare figure.
    pub fn of(value: f64) -> Sample {
        Sample { value, ..Sample::default() }
    }

    /// A run's figure: operations a second, or mebibytes a second.
    pub fn rate(run: &Metered, unit: Unit) -> Sample {
        let (outcome, seconds) = (&run.outcome, run.outcome.time.as_secs_f64().max(1e-9));
        let requests = outcome.requests.max(1) as f64;
        let value = match unit {
            Unit::Mib => outcome.bytes as f64 / f64::from(1 << 20) / seconds,
            Unit::Ops => outcome.ops as f64 / seconds,
            _ => seconds,
        };
        Sample {
            value,
            cpu_s: run.cpu.as_secs_f64(),
            requests: outcome.requests,
            bytes: outcome.bytes,
            p50_us: outcome.latency.quantile(0.5).as_secs_f64() * 1e6,
            p99_us: outcome.latency.quantile(0.99).as_secs_f64() * 1e6,
            kicks: outcome.kicks as f64 / requests,
            calls: outcome.calls as f64 / requests,
            store: Vec::new(),
        }
    }
}

/// What a row's figures are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Operations a second.
    Ops,
    /// Mebibytes a second.
    Mib,
    /// Seconds for the whole: less is better.
    Seconds,
    /// Milliseconds per operation: less is better.
    Ms,
    /// Requests to the store: less is better.
    Requests,
    /// Mebibytes of memory: less is better.
    Memory,
}

impl Unit {
    /// As the report writes it.
    pub fn text(self) -> &'static str {
        match self {
            Unit::Ops => "ops/s",
            Unit::Mib => "MiB/s",
            Unit::Seconds => "s",
            Unit::Ms => "ms",
            Unit::Requests => "requests",
            Unit::Memory => "MiB",
        }
    }

    /// Whether a greater figure is the better one.
    pub fn more_is_better(self) -> bool {
        matches!(self, Unit::Ops | Unit::Mib)
    }
}

/// All rounds of one contender.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Contender {
    /// Who.
    pub label: String,
    /// Round by round.
    pub samples: Vec<Sample>,
    /// Why there are none, or fewer.
    #[serde(default)]
    pub failure: Option<String>,
}

impl Contender {
    /// Its figures.
    pub fn values(&self) -> Vec<f64> {
        self.samples.iter().map(|sample| sample.value).collect()
    }
}

/// Who is compared with whom, and what is hoped for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// The one looked at.
    pub of: String,
    /// The one beside it; with several, the best of them counts.
    pub against: Vec<String>,
    /// The ratio aimed at: at least this for rates, at most for costs that are compared by `at_most`.
    pub target: Option<f64>,
    /// The target bounds the plain quotient from above (memory, requests, start time).
    #[serde(default)]
    pub at_most: bool,
}

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// What is done.
    pub name: String,
    /// Unit of the figures.
    pub unit: Unit,
    /// Everybody's figures.
    pub contenders: Vec<Contender>,
    /// What to conclude from them.
    pub comparisons: Vec<Comparison>,
}

/// A comparison's outcome.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Median over the rounds.
    pub median: f64,
    /// Least and greatest of all rounds.
    pub range: (f64, f64),
}

impl Row {
    /// A row without figures.
    pub fn new(name: impl Into<String>, unit: Unit) -> Row {
        Row { name: name.into(), unit, contenders: Vec::new(), comparisons: Vec::new() }
    }

    /// Adds a figure.
    pub fn add(&mut self, label: &str, sample: Sample) {
        self.contender(label).samples.push(sample);
    }

    /// Notes why somebody has no figure.
    pub fn fail(&mut self, label: &str, why: &str) {
        self.contender(label).failure = Some(why.to_owned());
    }

    fn contender(&mut self, label: &str) -> &mut Contender {
        if let Some(at) = self.contenders.iter().position(|c| c.label == label) {
            return &mut self.contenders[at];
        }
        self.contenders.push(Contender { label: label.into(), samples: Vec::new(), failure: None });
        let last = self.contenders.len() - 1;
        &mut self.contenders[last]
    }

    /// Compares; rates and times so that more than 1 is better.
    #[must_use]
    pub fn compare(mut self, of: &str, against: &[&str], target: Option<f64>) -> Row {
        let against = against.iter().map(|&label| label.to_owned()).collect();
        self.comparisons.push(Comparison { of: of.into(), against, target, at_most: false });
        self
    }

    /// Compares a cost, which must be at most `target` times the other.
    #[must_use]
    pub fn bound(mut self, of: &str, against: &[&str], target: f64) -> Row {
        let against = against.iter().map(|&label| label.to_owned()).collect();
        self.comparisons.push(Comparison { of: of.into(), against, target: Some(target), at_most: true });
        self
    }

    /// The figures of a contender that has some.
    pub fn figures(&self, label: &str) -> Option<&Contender> {
        self.contenders.iter().find(|c| c.label == label && !c.samples.is_empty())
    }

    /// Which of the others counts: the one with the best median.
    pub fn rival(&self, comparison: &Comparison) -> Option<&Contender> {
        let others = comparison.against.iter().filter_map(|label| self.figures(label));
        let key = |c: &&Contender| stats::median(&c.values());
        if self.unit.more_is_better() {
            others.max_by(|a, b| key(a).total_cmp(&key(b)))
        } else {
            others.min_by(|a, b| key(a).total_cmp(&key(b)))
        }
    }

    /// What a comparison came to.
    pub fn ratio(&self, comparison: &Comparison) -> Option<Ratio> {
        let (ours, theirs) = (self.figures(&comparison.of)?.values(), self.rival(comparison)?.values());
        let ratios = if self.unit.more_is_better() || comparison.at_most {
            stats::ratios(&ours, &theirs)
        } else {
            stats::ratios(&theirs, &ours)
        };
        (!ratios.is_empty()).then(|| Ratio { median: stats::median(&ratios), range: stats::range(&ratios) })
    }

    /// Whether a comparison came to what is aimed at; `None` without a target or without figures.
    pub fn is_met(&self, comparison: &Comparison) -> Option<bool> {
        let (target, ratio) = (comparison.target?, self.ratio(comparison)?.median);
        Some(if comparison.at_most { ratio <= target } else { ratio >= target })
    }
}

/// The rows of one group and under which circumstances they were taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Group {
    /// Its title.
    pub title: String,
    /// What a reader has to know.
    pub about: String,
    /// The command that measured it.
    pub command: String,
    /// When, as seconds since 1970.
    pub taken: u64,
    /// Load averages of one minute at the beginning and the end.
    pub load: (f64, f64),
    /// Seconds it took.
    pub took_s: f64,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Group {
    /// Writes it to `dir/NAME.json`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn save(&self, dir: &Path, name: &str) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::write(dir.join(format!("{name}.json")), serde_json::to_string_pretty(self)?)
    }

    /// Reads what [`Group::save`] wrote.
    ///
    /// # Errors
    /// There is none, or it is something else.
    pub fn load(dir: &Path, name: &str) -> io::Result<Group> {
        Ok(serde_json::from_str(&fs::read_to_string(dir.join(format!("{name}.json")))?)?)
    }
}

/// The load average of the last minute.
pub fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_say_how_much_better_and_bounds_how_much_costlier() {
        let mut row = Row::new("time", Unit::Seconds).compare("a", &["b", "c"], Some(2.0)).bound("a", &["b"], 2.0);
        for (label, value) in [("a", 2.0), ("b", 3.0), ("c", 5.0)] {
            row.add(label, Sample::of(value));
        }
        assert_eq!(row.ratio(&row.comparisons[0]).map(|r| r.median), Some(1.5), "the best rival is b");
        assert_eq!(row.ratio(&row.comparisons[1]).map(|r| r.median), Some(2.0 / 3.0));
    }
}
