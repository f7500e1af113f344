//! ovfs-semantics(7): every statement names tests that exist.
//!
//! A name is that of a test function, or `job:NAME` for a job of the guests. That they pass is for the test run to say.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use ovfs_compat_tests::stores::Kind;
use ovfs_compat_tests::stores::table::{Level, Table};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page() -> String {
    std::fs::read_to_string(root().join("man/ovfs-semantics.7")).unwrap()
}

/// All files below `dir` that end like that.
fn files(dir: &Path, suffix: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("target") {
                files(&path, suffix, found);
            }
        } else if path.to_string_lossy().ends_with(suffix) {
            found.push(path);
        }
    }
}

/// The functions of a source file that run as tests: those right after `#[test]`, and those that a table of tests names.
fn tests_of(source: &str, tests: &mut BTreeSet<String>) {
    let mut next_is_test = false;
    for line in source.lines().map(str::trim) {
        if line == "#[test]" {
            next_is_test = true;
        } else if next_is_test && let Some(rest) = line.strip_prefix("fn ") {
            tests.insert(rest.split(['(', '<']).next().unwrap_or_default().to_owned());
            next_is_test = false;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            next_is_test = false;
        }
    }
}

fn tests() -> BTreeSet<String> {
    let (mut sources, mut jobs, mut tests) = (Vec::new(), Vec::new(), BTreeSet::new());
    files(&root().join("src"), ".rs", &mut sources);
    files(&root().join("compat-tests/src"), ".rs", &mut sources);
    files(&root().join("compat-tests/tests"), ".rs", &mut sources);
    for suffix in [".sh", ".py"] {
        files(&root().join("compat-tests/guests/jobs"), suffix, &mut jobs);
    }
    for path in sources {
        tests_of(&std::fs::read_to_string(&path).unwrap(), &mut tests);
    }
    for path in jobs {
        tests.insert(format!("job:{}", path.file_stem().unwrap().to_string_lossy()));
    }
    tests
}

#[test]
fn every_test_that_the_page_names_exists() {
    let (page, tests) = (page(), tests());
    let named: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix(".Te ")).flat_map(str::split_whitespace).collect();
    assert!(named.len() > 80, "the page names tests: {}", named.len());
    let missing: Vec<&&str> = named.iter().filter(|name| !tests.contains(**name)).collect();
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}

#[test]
fn every_statement_of_the_page_names_a_test() {
    let page = page();
    let body = page.split(".SH NAMES AND DIRECTORIES").nth(1).unwrap().split(".SH ERRORS").next().unwrap();
    for statement in body.split("\n.IP \\(bu 2\n").skip(1) {
        let statement = statement.split("\n.S").next().unwrap();
        assert!(statement.lines().any(|line| line.starts_with(".Te ")), "no test is named here:\n{statement}");
    }
}

/// The table of stores as the page has it: a row for each case, a letter for each store.
fn table() -> String {
    let table = Table::parse(&std::fs::read_to_string(Table::path()).unwrap()).unwrap();
    let mut page = String::from("Stores:\n");
    for (number, kind) in Kind::EVERY.iter().enumerate() {
        let end = if number + 1 == Kind::EVERY.len() { '.' } else { ';' };
        writeln!(page, ".B {}\n{}{end}", number + 1, kind.name().replace('-', "\\-")).unwrap();
    }
    page += ".PP\n.TS\n";
    writeln!(page, "lb{}\nl{}.", " cb".repeat(Kind::EVERY.len()), " c".repeat(Kind::EVERY.len())).unwrap();
    let numbers: Vec<String> = (1..=Kind::EVERY.len()).map(|number| number.to_string()).collect();
    writeln!(page, "case\t{}", numbers.join("\t")).unwrap();
    for case in table.cases() {
        let letters: Vec<&str> = Kind::EVERY
            .iter()
            .map(|kind| match table.get(case, kind.name()).map(|verdict| verdict.level) {
                Some(Level::Full) => "F",
                Some(Level::Emulated) => "E",
                Some(Level::Refused) => "R",
                Some(Level::Wrong) => "W",
                _ => "\\-",
            })
            .collect();
        writeln!(page, "{}\t{}", case.replace('_', " "), letters.join("\t")).unwrap();
    }
    page + ".TE\n"
}

#[test]
fn the_page_has_the_table_of_stores() {
    let (start, end) = (".\\\" stores\n", ".\\\" end of stores\n");
    let page = page();
    let (before, rest) = page.split_once(start).unwrap();
    let (quoted, after) = rest.split_once(end).unwrap();
    let table = table();
    if std::env::var_os("OVFS_UPDATE_EXPECTED").is_some() {
        std::fs::write(root().join("man/ovfs-semantics.7"), format!("{before}{start}{table}{end}{after}")).unwrap();
    } else {
        assert!(quoted == table, "the table is out of date; OVFS_UPDATE_EXPECTED=1 writes it:\n{table}");
    }
}
