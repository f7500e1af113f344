//! The manual page, the README and the vhost-user descriptor say what the program says, no more and no less.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Flags of ovfs that virtiofsd does not have: those that the README must list.
const OURS: [&str; 24] = [
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
    "--writeback-delay",
    "--cache-dirty-ratio",
    "--cache-block-size",
    "--cache-dir",
    "--cache-disk-size",
    "--metrics-listen",
    "--spool-dir",
    "--on-conflict",
    "--config-file",
    "--config-dir",
    "--print-config",
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

/// Flags that a file of settings cannot set: what is for the command line alone, and old names of others.
const WITHOUT_KEY: [&str; 7] =
    ["--help", "--version", "--print-capabilities", "--print-config", "--config-file", "--config-dir", "--socket"];

/// The keys of the flags that `--help` describes.
fn keys_of_help() -> BTreeSet<String> {
    let long = flags_of_help().into_iter().filter(|flag| !WITHOUT_KEY.contains(&flag.as_str()));
    long.filter_map(|flag| flag.strip_prefix("--").map(|name| name.replace('-', "_"))).collect()
}

/// The keys that the page about the file describes, by section: the first words of the lines after `.TP`.
fn keys_of_page() -> BTreeMap<String, BTreeSet<String>> {
    let text = read("man/ovfs.toml.5");
    let mut keys: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut section = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(heading) = line.strip_prefix(".SS ").or_else(|| line.strip_prefix(".SH ")) {
            section = heading.starts_with('[').then(|| heading.to_owned());
        } else if let (".TP", Some(section)) = (line, &section) {
            let key = lines.next().and_then(|tag| tag.strip_prefix(".BR ")).and_then(|tag| tag.split(' ').next());
            let key = key.unwrap_or_else(|| panic!("no key after .TP in {section}")).to_owned();
            assert!(keys.entry(section.clone()).or_default().insert(key.clone()), "{key} twice in {section}");
        }
    }
    keys
}

/// The keys that the page lists between a comment of this word and the next.
fn listed_in_page(word: &str) -> BTreeSet<String> {
    let text = read("man/ovfs.toml.5");
    let list = text.split(&format!(".\\\" {word}\n")).nth(1).and_then(|rest| rest.split(".\\\" end\n").next());
    let lines = list.unwrap_or_else(|| panic!("no list {word:?}")).lines();
    lines.filter_map(|line| line.strip_prefix(".BR ")?.split(' ').next().map(str::to_owned)).collect()
}

/// Whether the program knows a key of a section of its files.
fn program_knows(section: &str, key: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f.toml");
    let own = match section {
        "[[shares]]" => "shared_dir = \"/x\"\ntype = \"memory\"\n",
        "[[mounts]]" => "path = \"/x\"\ntype = \"memory\"\n",
        "[storage_settings]" => "type = \"memory\"\n",
        _ => "",
    };
    std::fs::write(&file, format!("{section}\n{own}{key} = \"x\"\n")).unwrap();
    let output = Command::new(ovfs()).arg("--print-config").arg("--config-file").arg(&file).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    !said.contains(": unknown key") && !said.contains(": unknown section") && !said.contains(": stands in [")
}

#[test]
fn page_about_the_file_describes_every_key_and_no_other() {
    let page = keys_of_page();
    for (section, keys) in &page {
        for key in keys {
            assert!(program_knows(section, key), "{section} {key} is not known");
        }
        assert!(!program_knows(section, "no_such_key"), "{section}");
    }
    let flags = keys_of_help();
    let described: BTreeSet<String> = page["[options]"].union(&page["[socket_settings]"]).cloned().collect();
    assert_eq!(described, flags);
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<BTreeSet<_>>();
    let printed = output("--print-config");
    let cache = printed.split("[cache_settings]\n").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap();
    let cache: BTreeSet<String> = cache.lines().filter_map(|line| Some(line.split_once(" = ")?.0.to_owned())).collect();
    assert_eq!(page["[cache_settings]"], cache);
    assert_eq!(page["[storage_settings]"], words(&["type"]));
    for (section, own) in [("[[shares]]", "shared_dir"), ("[[mounts]]", "path")] {
        assert_eq!(page[section], words(&[own, "type", "cache_expiration_time"]));
        let known: BTreeSet<String> =
            flags.iter().filter(|key| *key != own && program_knows(section, key)).cloned().collect();
        let expected = match own {
            "path" => listed_in_page("only"),
            _ => page["[options]"].difference(&listed_in_page("except")).cloned().collect(),
        };
        assert_eq!(known, expected, "{section}");
    }
}

#[test]
fn every_section_of_the_page_is_one_of_the_program() {
    let sections: BTreeSet<String> = keys_of_page().into_keys().collect();
    let expected =
        ["[socket_settings]", "[cache_settings]", "[storage_settings]", "[options]", "[[shares]]", "[[mounts]]"];
    assert_eq!(sections, expected.map(str::to_owned).into());
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
