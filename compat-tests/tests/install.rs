//! scripts/install: what it puts where, and that it takes all of it away again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ovfs_compat_tests::launch::{Which, binary};

fn install(destination: &Path, args: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/install");
    let mut command = Command::new(script);
    command.env("DESTDIR", destination).arg("--binary").arg(binary(Which::Ovfs)).args(args);
    command.output().expect("bash is there")
}

/// All files below `dir`, with their permissions.
fn files(dir: &Path) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).expect("a directory") {
            let entry = entry.expect("an entry");
            let metadata = entry.metadata().expect("its metadata");
            if metadata.is_dir() {
                open.push(entry.path());
            } else {
                let path = entry.path().strip_prefix(dir).expect("below it").to_owned();
                found.push((path, metadata.permissions().mode() & 0o7777));
            }
        }
    }
    found.sort();
    found
}

fn installs(prefix: &str, priority: &str, descriptor: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let args = ["--prefix", prefix, "--priority", priority];
    for _ in 0..2 {
        let output = install(dir.path(), &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let inside = |path: &str| PathBuf::from(format!("{}/{path}", prefix.trim_start_matches('/')));
    let mut expected = vec![
        (inside("bin/ovfs"), 0o755),
        (inside("share/man/man1/ovfs.1"), 0o644),
        (inside("share/man/man5/ovfs.toml.5"), 0o644),
        (inside("share/man/man7/ovfs-semantics.7"), 0o644),
        (PathBuf::from(descriptor), 0o644),
    ];
    expected.sort();
    assert_eq!(files(dir.path()), expected);
    let text = fs::read_to_string(dir.path().join(descriptor)).expect("the descriptor");
    let described: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(described["binary"], format!("{prefix}/bin/ovfs"));
    let version = Command::new(dir.path().join(inside("bin/ovfs"))).arg("--version").output().expect("it runs");
    assert!(version.status.success());
    let output = install(dir.path(), &[&args[..], &["--uninstall"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(files(dir.path()), []);
}

#[test]
fn everything_goes_below_the_prefix_and_away_again() {
    installs("/usr", "60", "usr/share/qemu/vhost-user/60-ovfs.json");
}

#[test]
fn libvirt_finds_the_descriptor_of_another_prefix() {
    installs("/opt/of us", "50", "etc/qemu/vhost-user/50-ovfs.json");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    for (args, named) in [
        (&["--prefix", "usr"][..], "--prefix usr"),
        (&["--priority", "first"][..], "--priority first"),
        (&["--binary", "/nowhere"][..], "--binary /nowhere"),
        (&["--prefix"][..], "--prefix needs a value"),
        (&["--prefixes", "/usr"][..], "--prefixes"),
    ] {
        let output = install(dir.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.lines().next().is_some_and(|line| line.contains(named)), "{said}");
        assert_eq!(files(dir.path()), []);
    }
}
