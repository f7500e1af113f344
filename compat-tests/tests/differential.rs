//! The same scripts on the real virtiofsd and on ovfs without a backend, every reply compared.
//!
//! Differences that are accepted stand in `accepted-differences.toml`, each with its reason; an entry that no longer
//! occurs fails too.

use ovfs_compat_tests::cases;
use ovfs_compat_tests::daemon::{ovfs_bin, virtiofsd_bin};
use ovfs_compat_tests::script::{Case, Script};
use ovfs_compat_tests::transcript::{ACCEPTED, Accepted, compare, parse_accepted};

/// Runs some cases on both and reports every unexpected difference; how often each accepted one occurred.
fn run(cases: &[Case]) {
    let accepted = parse_accepted(ACCEPTED).unwrap();
    let mut used = vec![0; accepted.len()];
    let mut report = String::new();
    for case in cases {
        let expected = Script::run(&virtiofsd_bin(), case);
        let actual = Script::run(&ovfs_bin(), case);
        if let Err(differences) = compare(&case.name, &expected, &actual, &accepted, &mut used) {
            report += &differences;
        }
    }
    let of_these = |entry: &Accepted| cases.iter().any(|case| case.name == entry.case);
    for (entry, _) in accepted.iter().zip(&used).filter(|(entry, count)| **count == 0 && of_these(entry)) {
        report += &format!("accepted difference no longer occurs: {entry:?}\n");
    }
    assert!(report.is_empty(), "\n{report}");
}

#[test]
fn session() {
    run(&cases::session::cases());
}

#[test]
fn names() {
    run(&cases::names::cases());
}

#[test]
fn files() {
    run(&cases::files::cases());
}

#[test]
fn every_option() {
    run(&cases::tour::cases());
}

#[test]
fn random_operations() {
    run(&cases::random::cases());
}

#[test]
fn accepted_differences_name_cases_that_exist() {
    let cases = cases::all();
    for entry in parse_accepted(ACCEPTED).unwrap() {
        assert!(cases.iter().any(|case| case.name == entry.case), "no case {}", entry.case);
    }
    let mut names: Vec<_> = cases.iter().map(|case| &case.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), cases.len(), "case names are unique");
}
