//! Two transcripts of one case compared, and the list of differences that are accepted.
//!
//! `accepted-differences.toml` has one `[[difference]]` table per line that may differ, with the exact text of both
//! sides and a reason. A difference that is not listed fails, and so does a listed one that no longer occurs.

use std::fmt::Write as _;

use toml_edit::{DocumentMut, Item, Table};

use crate::script::Line;

/// The list as it is in the source tree.
pub const ACCEPTED: &str = include_str!("../accepted-differences.toml");

/// One accepted difference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Name of the case.
    pub case: String,
    /// The step.
    pub step: String,
    /// What virtiofsd answers.
    pub virtiofsd: String,
    /// What ovfs answers.
    pub ovfs: String,
    /// Why that is right.
    pub reason: String,
}

/// Parses the list.
///
/// # Errors
/// What is wrong with it: not TOML, an unknown key, a missing or empty one.
pub fn parse_accepted(text: &str) -> Result<Vec<Accepted>, String> {
    let document: DocumentMut = text.parse().map_err(|error| format!("{error}"))?;
    if let Some((key, _)) = document.iter().find(|(key, _)| *key != "difference") {
        return Err(format!("unknown key {key}"));
    }
    let Some(tables) = document.get("difference") else { return Ok(Vec::new()) };
    let tables = tables.as_array_of_tables().ok_or("`difference` has to be [[difference]]")?;
    tables.iter().map(entry).collect()
}

fn entry(table: &Table) -> Result<Accepted, String> {
    const KEYS: [&str; 5] = ["case", "step", "virtiofsd", "ovfs", "reason"];
    if let Some((key, _)) = table.iter().find(|(key, _)| !KEYS.contains(key)) {
        return Err(format!("unknown key {key} in {table:?}"));
    }
    let text = |key: &str| {
        let value = table.get(key).and_then(Item::as_str).filter(|value| !value.is_empty());
        value.map(str::to_owned).ok_or_else(|| format!("no {key} in {table:?}"))
    };
    let [case, step, virtiofsd, ovfs, reason] = KEYS;
    Ok(Accepted {
        case: text(case)?,
        step: text(step)?,
        virtiofsd: text(virtiofsd)?,
        ovfs: text(ovfs)?,
        reason: text(reason)?,
    })
}

/// Compares two transcripts of `case`. `used` counts how often each accepted difference occurred.
///
/// # Errors
/// A report of every unexpected difference.
pub fn compare(
    case: &str,
    virtiofsd: &[Line],
    ovfs: &[Line],
    accepted: &[Accepted],
    used: &mut [usize],
) -> Result<(), String> {
    assert_eq!(accepted.len(), used.len());
    let mut report = String::new();
    for at in 0..virtiofsd.len().max(ovfs.len()) {
        let (left, right) = (virtiofsd.get(at), ovfs.get(at));
        if left == right {
            continue;
        }
        let known = left.zip(right).filter(|(l, r)| l.step == r.step).and_then(|(l, r)| {
            accepted
                .iter()
                .position(|a| a.case == case && a.step == l.step && a.virtiofsd == l.outcome && a.ovfs == r.outcome)
        });
        if let Some(known) = known {
            used[known] += 1;
            continue;
        }
        let show = |line: Option<&Line>| line.map_or("(nothing)".into(), |l| format!("{}: {}", l.step, l.outcome));
        let _ = writeln!(report, "{case}, line {at}:\n  virtiofsd  {}\n  ovfs       {}", show(left), show(right));
        // Steps that no longer line up make everything after them differ.
        if left.zip(right).is_none_or(|(l, r)| l.step != r.step) {
            break;
        }
    }
    if report.is_empty() { Ok(()) } else { Err(report) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: &str, outcome: &str) -> Line {
        Line { step: step.into(), outcome: outcome.into() }
    }

    #[test]
    fn the_list_in_the_tree_is_well_formed() {
        parse_accepted(ACCEPTED).unwrap();
    }

    #[test]
    fn only_listed_differences_pass() {
        let text =
            "[[difference]]\ncase = \"c\"\nstep = 's'\nvirtiofsd = \"a \\\"b\\\"\"\novfs = \"b\"\nreason = \"r\"\n";
        let accepted = parse_accepted(text).unwrap();
        let mut used = [0];
        let (left, right) = ([line("s", "a \"b\"")], [line("s", "b")]);
        assert_eq!(compare("c", &left, &right, &accepted, &mut used), Ok(()));
        assert_eq!(used, [1]);
        assert!(compare("other", &left, &right, &accepted, &mut used).is_err());
        assert!(compare("c", &left, &[line("s", "c")], &accepted, &mut used).is_err());
        assert!(compare("c", &left, &[], &accepted, &mut used).is_err());
    }

    #[test]
    fn broken_lists_are_refused() {
        assert!(parse_accepted("case = \"c\"").is_err());
        assert!(parse_accepted("[[difference]]\ncase = \"c\"").is_err());
        assert!(parse_accepted("[[difference]]\ncase = c").is_err());
    }
}
