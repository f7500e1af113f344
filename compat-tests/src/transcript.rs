//! Two transcripts of one case compared, and the list of differences that are accepted.
//!
//! `accepted-differences.toml` has one `[[difference]]` table per line that may differ, with the exact text of both
//! sides and a reason. A difference that is not listed fails, and so does a listed one that no longer occurs.

use std::fmt::Write as _;

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

/// Parses the list: `[[difference]]` tables of `key = "value"` (with `\"` and `\\`) or `key = 'value'` lines, comments.
///
/// # Errors
/// The first line that is none of these, or a table without all five keys.
pub fn parse_accepted(text: &str) -> Result<Vec<Accepted>, String> {
    let mut list: Vec<Accepted> = Vec::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line == "[[difference]]" {
            list.push(Accepted::default());
            continue;
        }
        let bad = || format!("line {number} is not understood: {line}");
        let entry = list.last_mut().ok_or_else(bad)?;
        let (key, value) = line.split_once('=').ok_or_else(bad)?;
        let value = unquote(value.trim()).ok_or_else(bad)?;
        let field = match key.trim() {
            "case" => &mut entry.case,
            "step" => &mut entry.step,
            "virtiofsd" => &mut entry.virtiofsd,
            "ovfs" => &mut entry.ovfs,
            "reason" => &mut entry.reason,
            _ => return Err(bad()),
        };
        *field = value;
    }
    match list.iter().find(|e| [&e.case, &e.step, &e.virtiofsd, &e.ovfs, &e.reason].iter().any(|f| f.is_empty())) {
        Some(entry) => Err(format!("incomplete entry: {entry:?}")),
        None => Ok(list),
    }
}

fn unquote(value: &str) -> Option<String> {
    if let Some(literal) = value.strip_prefix('\'') {
        return literal.strip_suffix('\'').map(str::to_owned);
    }
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    let mut text = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                escaped @ ('"' | '\\') => text.push(escaped),
                _ => return None,
            },
            '"' => return None,
            _ => text.push(c),
        }
    }
    Some(text)
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
