//! Rows: one script, two programs, the same facts.
//!
//! A row runs its script once against virtiofsd and once against ovfs, each in a scratch directory of its own. The
//! script returns `Facts`: named, normalised observations. Two things are then checked:
//!
//! (1) what the row says about virtiofsd holds (`is`, `has`): a script that no longer provokes what it is about fails,
//!     instead of finding two programs equal in doing nothing;
//! (2) every fact is equal on both sides, except what `accepted-rows.toml` lists, and that differs exactly as listed:
//!     an accepted difference that is gone, or has changed, fails.
//!
//! When both programs are the same one (`OVFS_BIN` naming virtiofsd, to check the rows themselves) the list is ignored.

pub mod accepted;
pub mod inspect;
pub mod stage;
pub mod text;

pub use stage::{Program, Stage};

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::OnceLock;

use crate::launch::{Finished, Which};
use accepted::Accepted;

/// The value of a fact that only the other program shows.
pub const ABSENT: &str = "(absent)";

/// Named observations of one program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts(BTreeMap<String, String>);

impl Facts {
    /// No facts yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one fact.
    ///
    /// # Panics
    /// When the name was used before: the first observation would vanish.
    pub fn put(&mut self, name: impl Into<String>, value: impl ToString) -> &mut Self {
        let name = name.into();
        let previous = self.0.insert(name.clone(), value.to_string());
        assert!(previous.is_none(), "fact {name:?} observed twice");
        self
    }

    /// Adds the end of a process: `rc`, `stdout`, `stderr` and clap's usage line apart from the rest (`usage`).
    pub fn put_finished(&mut self, prefix: &str, stage: &Stage<'_>, finished: &Finished) -> &mut Self {
        let (usage, stderr) = text::split_usage(&stage.normal(&finished.stderr));
        self.put(format!("{prefix}rc"), finished.exit);
        self.put(format!("{prefix}stdout"), stage.normal(&finished.stdout));
        self.put(format!("{prefix}stderr"), stderr);
        if let Some(usage) = usage {
            self.put(format!("{prefix}usage"), usage);
        }
        self
    }

    /// The value of a fact.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or(ABSENT, String::as_str)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

enum Claim {
    Is(String, String),
    Has(String, String),
}

impl Claim {
    fn broken_by(&self, facts: &Facts) -> Option<String> {
        match self {
            Self::Is(name, want) if facts.get(name) != want => {
                Some(format!("{name} should be {want:?} but is {:?}", facts.get(name)))
            }
            Self::Has(name, want) if !facts.get(name).contains(want) => {
                Some(format!("{name} should contain {want:?} but is {:?}", facts.get(name)))
            }
            _ => None,
        }
    }
}

/// A row of the compatibility list.
#[must_use = "a row does nothing until it is checked"]
pub struct Row {
    id: &'static str,
    claims: Vec<Claim>,
}

impl Row {
    /// A row by its id.
    pub fn new(id: &'static str) -> Self {
        Self { id, claims: Vec::new() }
    }

    /// Claims that virtiofsd shows this fact with exactly this value.
    pub fn is(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.claims.push(Claim::Is(name.into(), value.to_string()));
        self
    }

    /// Claims that virtiofsd shows this fact with this text in it.
    pub fn has(mut self, name: impl Into<String>, text: impl ToString) -> Self {
        self.claims.push(Claim::Has(name.into(), text.to_string()));
        self
    }

    /// Runs the script against both programs and compares.
    ///
    /// # Panics
    /// On every difference that is not accepted, and every accepted one that is not there.
    pub fn check(self, script: impl Fn(&Stage<'_>) -> Facts) {
        let programs = programs();
        let reference = script(&Stage::new(&programs.virtiofsd));
        let broken: Vec<String> = self.claims.iter().filter_map(|claim| claim.broken_by(&reference)).collect();
        assert!(broken.is_empty(), "{}: virtiofsd is not as the list says:\n{}", self.id, broken.join("\n"));
        let candidate = script(&Stage::new(&programs.ovfs));
        let accepted = if programs.same() { &[] } else { accepted::list() };
        let report = compare(self.id, &reference, &candidate, accepted);
        assert!(report.is_empty(), "{}: ovfs differs from virtiofsd\n{report}", self.id);
    }
}

/// Differences that are not accepted, and accepted ones that are not there; empty when all is well.
fn compare(id: &str, reference: &Facts, candidate: &Facts, accepted: &[Accepted]) -> String {
    let mut report = String::new();
    let mut names: Vec<&str> = reference.names().chain(candidate.names()).collect();
    names.extend(accepted.iter().filter(|entry| entry.applies_to(id)).map(|entry| entry.fact.as_str()));
    names.sort_unstable();
    names.dedup();
    for name in names {
        let (want, got) = (reference.get(name), candidate.get(name));
        let entry = accepted.iter().find(|entry| entry.applies_to(id) && entry.fact == name);
        let verdict = match entry {
            Some(entry) if entry.virtiofsd == want && entry.ovfs == got => continue,
            None if want == got => continue,
            Some(_) if want == got => "accepted as different, but equal: remove it from accepted-rows.toml",
            Some(_) => "differs otherwise than accepted-rows.toml says",
            None => "differs",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(report, "- {name}: {verdict}\n  virtiofsd: {want:?}\n  ovfs:      {got:?}");
    }
    report
}

/// The two programs.
pub struct Programs {
    /// The reference.
    pub virtiofsd: Program,
    /// The program under test.
    pub ovfs: Program,
}

impl Programs {
    fn same(&self) -> bool {
        (&self.virtiofsd.name, &self.virtiofsd.version) == (&self.ovfs.name, &self.ovfs.version)
    }
}

/// Finds both programs, once per test executable.
///
/// # Panics
/// When one is missing or does not answer `--version`; when the reference is not 1.14.0.
pub fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let programs = Programs { virtiofsd: Program::find(Which::Virtiofsd), ovfs: Program::find(Which::Ovfs) };
        assert_eq!(programs.virtiofsd.version, "1.14.0", "the reference has to be virtiofsd 1.14.0");
        programs
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(pairs: &[(&str, &str)]) -> Facts {
        let mut facts = Facts::new();
        for (name, value) in pairs {
            facts.put(*name, value);
        }
        facts
    }

    fn accepted(virtiofsd: &str, ovfs: &str) -> Vec<Accepted> {
        let text = format!(
            "[[accepted]]\nrows = [\"A01\"]\nfact = \"rc\"\nvirtiofsd = \"{virtiofsd}\"\novfs = \"{ovfs}\"\nreason = \"r\"\n"
        );
        accepted::parse(&text).expect("valid list")
    }

    #[test]
    fn equal_facts_are_fine() {
        assert_eq!(compare("A01", &facts(&[("rc", "1")]), &facts(&[("rc", "1")]), &[]), "");
    }

    #[test]
    fn a_difference_or_a_missing_fact_is_reported() {
        assert!(compare("A01", &facts(&[("rc", "1")]), &facts(&[("rc", "2")]), &[]).contains("rc: differs"));
        assert!(compare("A01", &facts(&[("rc", "1")]), &facts(&[]), &[]).contains(ABSENT));
    }

    #[test]
    fn an_accepted_difference_has_to_be_exactly_that() {
        let one = facts(&[("rc", "1")]);
        let two = facts(&[("rc", "2")]);
        assert_eq!(compare("A01", &one, &two, &accepted("1", "2")), "");
        assert!(compare("A01", &one, &two, &accepted("1", "3")).contains("otherwise"));
        assert!(compare("A01", &one, &one, &accepted("1", "2")).contains("remove it"));
        assert!(compare("A02", &one, &two, &accepted("1", "2")).contains("rc: differs"));
    }
}
