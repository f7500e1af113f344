//! The manual page, the README and the vhost-user descriptor say what the program says, no more and no less.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Flags of ovfs that virtiofsd does not have: those that the README must list.
const OURS: [&str; 14] = [
    "--backend",
    "--cache-size",
    "--num-request-queues",
    "--poll-us",
    "--request-timeout",
    "--flush-timeout",
    "--posix-metadata",
    "--uid",
    "--gid",
    "--file-mode",
    "--dir-mode",
    "--umask",
    "--capacity",
    "--on-conflict",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The program that was built with the tests, or the one that `OVFS_BIN` names.
fn ovfs() -> PathBuf {
    if let Some(path) = std::env::var_os("OVFS_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    profile.join("ovfs")
}

fn output(argument: &str) -> String {
    let program = ovfs();
    let output =
        Command::new(&program).arg(argument).output().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(output.status.success(), "{argument}: {:?}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// `--flag` or `-f` at the start of `text`, without what follows.
fn flag(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(text.len());
    let flag = &text[..end];
    let name = flag.trim_start_matches('-');
    (flag.starts_with('-') && !name.is_empty()).then_some(flag)
}

/// The flags that `--help` describes: those that begin a line, with a short one before the long one or alone.
fn flags_of_help() -> BTreeSet<String> {
    let mut flags = BTreeSet::new();
    for line in output("--help").lines() {
        let indent = line.len() - line.trim_start().len();
        // A list item in a text is a dash and a space, and is indented further.
        if indent > 6 {
            continue;
        }
        for word in line.trim_start().split(", ") {
            match flag(word) {
                Some(name) => flags.insert(name.to_owned()),
                None => break,
            };
        }
    }
    flags
}

/// The flags that the manual page describes: those of the lines after `.TP`.
fn flags_of_manual() -> BTreeSet<String> {
    let text = read("man/ovfs.1").replace("\\-", "-");
    let mut flags = BTreeSet::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line != ".TP" {
            continue;
        }
        let Some(tag) = lines.next() else { break };
        for word in tag.split([' ', '"', ',']).skip(1) {
            flags.extend(flag(word).map(str::to_owned));
        }
    }
    flags
}

#[test]
fn manual_describes_every_flag_and_no_other() {
    assert_eq!(flags_of_manual(), flags_of_help());
}

#[test]
fn readme_lists_our_flags_with_their_defaults() {
    let readme = read("README.md");
    let table = readme.split("<!-- flags -->").nth(1).and_then(|rest| rest.split("<!-- end of flags -->").next());
    let table = table.expect("the README's table of flags");
    let mut listed = BTreeSet::new();
    let help = output("--help");
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = flag(cells[1].trim_matches('`')).expect(row);
        listed.insert(name);
        // A flag with a value, or one without at the end of its line.
        let begins = |end: &str| help.split(&format!("      {name}{end}")).nth(1);
        let described = begins(" <").or_else(|| begins("\n")).unwrap_or_else(|| panic!("{name} is not in --help"));
        let described = described.split("\n      --").next().unwrap_or_default();
        let default = format!("[default: {}]", cells[2]);
        assert!(cells[2].is_empty() || described.contains(&default), "{name}: --help does not say {default}");
    }
    assert_eq!(listed, BTreeSet::from(OURS));
}

#[test]
fn readme_names_no_flag_of_ovfs_that_does_not_exist() {
    let known = flags_of_help();
    let readme = read("README.md");
    for line in readme.lines() {
        let Some(start) = line.find("ovfs --") else { continue };
        let words = line[start..].split_whitespace().take_while(|word| *word != "|" && *word != "&");
        for word in words.filter_map(|word| flag(word.trim_matches('`'))).filter(|word| word.starts_with("--")) {
            assert!(known.contains(word), "{word} in: {line}");
        }
    }
}

#[test]
fn options_without_meaning_for_a_store_are_the_same_in_manual_and_help() {
    let marked_in_help: BTreeSet<String> = output("--help")
        .split("\n      --")
        .skip(1)
        // A heading and a short flag may follow within the part: only the first paragraphs belong to this flag.
        .filter(|part| part.split("\n  -").next().is_some_and(|part| part.contains("[directory]")))
        .filter_map(|part| flag(&format!("--{part}")).map(str::to_owned))
        .collect();
    let manual = read("man/ovfs.1").replace("\\-", "-");
    let marked_in_manual: BTreeSet<String> = manual
        .split(".TP\n")
        .skip(1)
        .filter(|part| part.contains("\n.RI [ directory ]\n"))
        .filter_map(|part| part.split([' ', '"', ',']).find_map(|word| flag(word.trim())).map(str::to_owned))
        .collect();
    assert_eq!(marked_in_manual, marked_in_help);
}

#[test]
fn descriptor_names_the_capabilities_of_the_program() {
    let descriptor: serde_json::Value = serde_json::from_str(&read("scripts/50-ovfs.json")).unwrap();
    let printed: serde_json::Value = serde_json::from_str(&output("--print-capabilities")).unwrap();
    assert_eq!(descriptor["features"], printed["features"]);
    assert_eq!(descriptor["type"], printed["type"]);
    let binary = descriptor["binary"].as_str().unwrap();
    assert!(binary.starts_with('/') && binary.ends_with("/ovfs"), "{binary}");
}
