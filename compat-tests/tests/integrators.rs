//! Rows E01–E20: the command lines of the programs that launch virtiofsd; F01–F02: discovery by libvirt.
//!
//! Each is started for real, as its launcher starts it (descriptor or path, user, environment, working directory), goes
//! through feature negotiation, INIT, a look-up and a read, and has to exit with 0 at disconnect.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use ovfs_compat_tests::launch::{Launch, READY};
use ovfs_compat_tests::rows::{Facts, Row, Stage, inspect, programs};

/// What reading `f` shows with a plain open.
const PLAIN: &str = "mode 100644, open flags 0x0, \"hello\\n\"";
const DIRECT: &str = "mode 100644, open flags 0x1, \"hello\\n\"";
const KEPT: &str = "mode 100644, open flags 0x2, \"hello\\n\"";

/// With a socket that the launcher made and passes as `number`.
fn by_descriptor(stage: &Stage<'_>, number: RawFd, args: &[&str]) -> Launch {
    let listener = stage.listener();
    stage.launch(args).arg(format!("--fd={number}")).pass_fd(listener, number)
}

/// Waits for readiness where the launcher's options let it show, then plays the VMM.
fn served(stage: &Stage<'_>, launch: Launch, silent: bool) -> Facts {
    let mut daemon = launch.start();
    if !silent {
        daemon.wait_ready();
    }
    stage.serve(daemon)
}

fn row(id: &'static str, file: &str) -> Row {
    Row::new(id).is("rc", 0).is("f", file).is("virtio features", "0x174000000").has("INIT", "7.38")
}

fn absolute(stage: &Stage<'_>, name: &str) -> String {
    stage.path(name).to_string_lossy().into_owned()
}

#[test]
fn e01_libvirt() {
    row("E01", PLAIN).is("pid file left", false).is("queues", 2).check(|stage| {
        let dir = absolute(stage, "sh");
        let mut daemon = stage.ready(by_descriptor(stage, 23, &["--shared-dir", &dir]));
        let (guest, offer) = stage.connect(&mut daemon);
        drop(guest);
        drop(daemon);
        fs::remove_file(stage.socket()).expect("remove the socket");
        let mut facts = served(stage, by_descriptor(stage, 23, &["--shared-dir", &dir]), false);
        facts.put("queues", offer.queue_count);
        facts
    });
}

#[test]
fn e02_libvirt_with_every_option() {
    row("E02", DIRECT).check(|stage| {
        let dir = absolute(stage, "sh");
        let args = ["--shared-dir", &dir, "--cache", "never", "--sandbox", "namespace", "--xattr"];
        let more = ["--thread-pool-size=4", "--rlimit-nofile=4096", "--log-level", "debug", "--readonly"];
        let args: Vec<&str> = args.into_iter().chain(more).collect();
        let launch = by_descriptor(stage, 29, &args);
        // The debug level names requests, which is nobody's interface: the other lines are compared.
        served(stage, launch.env("RUST_LOG", "info"), false)
    });
}

#[test]
fn e03_libvirt_before_separate_options() {
    row("E03", KEPT).has("stderr", "deprecated option format").check(|stage| {
        let options = format!("source={},cache=always,sandbox=chroot,xattr", absolute(stage, "sh"));
        served(stage, by_descriptor(stage, 23, &["-o", &options, "--thread-pool-size=2"]), false)
    });
}

#[test]
fn e04_libvirt_session() {
    row("E04", PLAIN).is("worker Uid", "1000 1000 1000 1000").check(|stage| {
        let listener = stage.listener();
        let launch = Launch::new(stage.public_exe()).cwd(stage.scratch.path()).user(1000, 1000);
        let args = ["--fd=23", "--shared-dir", &absolute(stage, "sh"), "--uid-map=:0:1000:1:", "--gid-map=:0:1000:1:"];
        served(stage, launch.args(args).pass_fd(listener, 23), false)
    });
}

#[test]
fn e05_kata_go() {
    row("E05", PLAIN).is("stderr", "").check(|stage| {
        let dir = format!("--shared-dir={}", absolute(stage, "sh"));
        let args = ["--syslog", "--cache=auto", &dir, "--thread-pool-size=1", "--announce-submounts"];
        served(stage, by_descriptor(stage, 3, &args), true)
    });
}

#[test]
fn e06_kata_runtime_rs() {
    row("E06", PLAIN).has("stderr", READY).check(|stage| {
        let (dir, socket) = (absolute(stage, "sh"), absolute(stage, "run/s"));
        let args = ["--socket-path", &socket, "--shared-dir", &dir, "--cache", "auto", "--thread-pool-size=1"];
        served(stage, stage.launch(args).args(["-o", "announce_submounts", "--xattr"]), false)
    });
}

#[test]
fn e07_incus_with_id_mapping() {
    row("E07", DIRECT).check(|stage| {
        let dir = format!("--shared-dir={}", absolute(stage, "sh"));
        let mut args = vec!["--cache=never".to_owned(), dir];
        for kind in ["uid", "gid"] {
            args.push(format!("--translate-{kind}=map:0:1000000:65536"));
            args.push(format!("--translate-{kind}=forbid-guest:65536:4294901759"));
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        served(stage, by_descriptor(stage, 3, &args), false)
    });
}

#[test]
fn e08_incus_without_id_mapping() {
    row("E08", DIRECT).check(|stage| {
        let dir = format!("--shared-dir={}", absolute(stage, "sh"));
        served(stage, by_descriptor(stage, 3, &["--cache=metadata", &dir, "--posix-acl=auto"]), false)
    });
}

#[test]
fn e09_lxd() {
    row("E09", PLAIN).check(|stage| {
        let dir = absolute(stage, "sh");
        let args = ["--shared-dir", &dir, "--cache", "auto", "--allow-direct-io", "--thread-pool-size", "2", "--xattr"];
        served(stage, by_descriptor(stage, 3, &args), false)
    });
}

#[test]
fn e10_virtme_ng() {
    let row = Row::new("E10").is("rc", 0).is("etc", "40755").is("probe rc", 0).is("probe names --readonly", true);
    row.is("pid", true).check(|stage| {
        let mut facts = Facts::new();
        facts.put("probe rc", stage.launch(["--version"]).run().exit);
        facts.put("probe names --readonly", stage.launch(["--help"]).run().stdout.contains("--readonly"));
        let socket = absolute(stage, "run/s");
        let args = ["--syslog", "--no-announce-submounts", "--posix-acl", "--readonly", "--socket-path", &socket];
        let more = ["--shared-dir", "/", "--sandbox", "none", "--cache", "always"];
        let mut daemon = stage.launch(args).args(more).start();
        let (mut guest, _) = stage.connect(&mut daemon);
        let pid = fs::read_to_string(stage.path("run/s.pid")).unwrap_or_default();
        facts.put("pid", pid.trim() == daemon.pid().to_string());
        guest.start_queues().expect("start the queues");
        facts.put("INIT", guest.init().map_or_else(|error| error.to_string(), |reply| inspect::init_reply(&reply)));
        let entry = guest.lookup(1, "etc");
        facts.put("etc", entry.map_or_else(|error| error.to_string(), |entry| format!("{:o}", entry.mode)));
        drop(guest);
        facts.put_finished("", stage, &daemon.finish());
        facts
    });
}

#[test]
fn e11_systemd_vmspawn() {
    row("E11", PLAIN).is("worker CapEff", "00000000800000df").is("stderr", "").check(|stage| {
        let dir = absolute(stage, "sh");
        let args = ["--shared-dir", &dir, "--xattr", "--fd", "5", "--no-announce-submounts", "--log-level=error"];
        let more =
            ["--modcaps=-mknod", "--translate-uid", "map:0:100000:65536", "--translate-gid", "map:0:100000:65536"];
        let listener = stage.listener();
        served(stage, stage.launch(args).args(more).pass_fd(listener, 5), true)
    });
}

#[test]
fn e12_mkosi() {
    row("E12", PLAIN).is("processes", 1).is("stderr", "").check(|stage| {
        let dir = absolute(stage, "sh");
        let args = ["--shared-dir", &dir, "--xattr", "--no-announce-submounts", "--sandbox=chroot"];
        let more = ["--inode-file-handles=prefer", "--log-level=error", "--modcaps=-mknod", "--security-label"];
        let args: Vec<&str> = args.into_iter().chain(more).collect();
        served(stage, by_descriptor(stage, 4, &args), true)
    });
}

#[test]
fn e13_proxmox() {
    row("E13", KEPT).is("stderr", "").check(|stage| {
        let dir = format!("--shared-dir={}", absolute(stage, "sh"));
        let args = [&dir, "--xattr", "--posix-acl", "--announce-submounts", "--allow-direct-io", "--cache=always"];
        let args: Vec<&str> = args.into_iter().chain(["--inode-file-handles=prefer", "--syslog"]).collect();
        served(stage, by_descriptor(stage, 8, &args), true)
    });
}

/// Podman and coreos-assembler: the share is the working directory, errors only, polling for the socket.
fn in_working_directory(stage: &Stage<'_>, extra: &[&str]) -> Launch {
    let socket = absolute(stage, "run/s");
    let args = ["--sandbox", "none", "--socket-path", &socket, "--shared-dir", ".", "--seccomp=none"];
    Launch::new(&stage.program.exe).cwd(stage.path("sh")).args(args).args(extra).env("RUST_LOG", "ERROR")
}

#[test]
fn e14_podman_machine() {
    row("E14", PLAIN)
        .is("parent Seccomp", 0)
        .is("stderr", "")
        .check(|stage| served(stage, in_working_directory(stage, &[]), true));
}

#[test]
fn e15_coreos_assembler() {
    row("E15", PLAIN)
        .is("parent CapEff", "00000000000000df")
        .is("stderr", "")
        .check(|stage| served(stage, in_working_directory(stage, &["--modcaps=-mknod:-setfcap"]), true));
}

#[test]
fn e16_lima() {
    row("E16", PLAIN).is("processes", 2).check(|stage| {
        let (dir, socket) = (absolute(stage, "sh"), absolute(stage, "run/s"));
        let launch = Launch::new(stage.public_exe()).cwd(stage.scratch.path()).user(1000, 1000);
        served(stage, launch.args(["--socket-path", &socket, "--shared-dir", &dir]), false)
    });
}

#[test]
fn e17_kubevirt() {
    row("E17", PLAIN).is("processes", 1).check(|stage| {
        let (dir, socket) = (absolute(stage, "sh"), absolute(stage, "run/s"));
        let launch = Launch::new(stage.public_exe()).cwd(stage.scratch.path()).user(107, 107);
        let args = [format!("--socket-path={socket}"), format!("--shared-dir={dir}")];
        let more = ["--sandbox=none", "--cache=auto", "--migration-on-error=guest-error"];
        let last = ["--migration-mode=find-paths", "--translate-uid=host:107:0:1"];
        served(stage, launch.args(args).args(more).args(last), false)
    });
}

#[test]
fn e18_microvm_nix() {
    row("E18", PLAIN).has("protocol features", "0x8a62b").check(|stage| {
        let args = [format!("--socket-path={}", absolute(stage, "run/s")), "--socket-group=daemon".to_owned()];
        let more = [format!("--shared-dir={}", absolute(stage, "sh")), "--rlimit-nofile".to_owned(), "4096".to_owned()];
        let rest = ["--thread-pool-size", "2", "--posix-acl", "--xattr", "--cache=auto", "--inode-file-handles=prefer"];
        served(stage, stage.launch(args).args(more).args(rest).args(["--tag=ro-store", "--readonly"]), false)
    });
}

#[test]
fn e19_cloud_hypervisor() {
    row("E19", DIRECT).is("second rc", 0).check(|stage| {
        let (dir, socket) = (absolute(stage, "sh"), absolute(stage, "run/s"));
        let args = ["--shared-dir", &dir, "--socket-path", &socket, "--cache", "never", "--tag", "myfs"];
        let mut facts = served(stage, stage.launch(args), false);
        let args = [format!("--socket-path={socket}"), format!("--shared-dir={dir}"), "--cache=never".to_owned()];
        let launch = stage.launch(["--log-level", "debug"]).args(args).arg("--thread-pool-size=4");
        let second = served(stage, launch, false);
        for fact in ["rc", "INIT", "f", "protocol features"] {
            facts.put(format!("second {fact}"), second.get(fact));
        }
        facts
    });
}

#[test]
fn e20_readme_and_tangram() {
    row("E20", PLAIN).is("tangram rc", 0).is("tangram f", KEPT).is("mapped rc", 0).check(|stage| {
        let socket = format!("--socket-path={}", absolute(stage, "run/s"));
        let dir = absolute(stage, "sh");
        let args = [&socket, "--shared-dir", &dir, "--inode-file-handles=mandatory"];
        let mut facts = served(stage, stage.launch(args), false);
        fs::remove_file(stage.socket()).expect("remove the socket");
        let args = ["--shared-dir", &dir, "--sandbox", "none", "--cache", "always", "--inode-file-handles=never"];
        let more = ["--xattr", "--log-level", "warn", "--no-announce-submounts", "--preserve-noatime"];
        let args: Vec<&str> = args.into_iter().chain(more).collect();
        let tangram = served(stage, by_descriptor(stage, 6, &args), true);
        if stage.socket().exists() {
            fs::remove_file(stage.socket()).expect("remove the socket");
        }
        // `unshare -r --map-auto` of the README, with the map that needs no helper program.
        let args = [&socket, "--shared-dir", &dir, "--sandbox", "chroot"];
        let launch = stage.launch(args).through(["unshare", "-r", "--"]);
        let mapped = served(stage, launch, false);
        for (name, run) in [("tangram", tangram), ("mapped", mapped)] {
            for fact in ["rc", "INIT", "f", "stderr", "parent CapEff", "parent Seccomp"] {
                facts.put(format!("{name} {fact}"), run.get(fact));
            }
        }
        facts
    });
}

fn features(text: &str) -> BTreeSet<String> {
    let value: serde_json::Value = serde_json::from_str(text).expect("valid JSON");
    assert_eq!(value["type"], "fs");
    let features = value["features"].as_array().expect("an array of features");
    features.iter().map(|feature| feature.as_str().expect("a word").to_owned()).collect()
}

/// The vhost-user discovery file that this repository ships.
fn discovery_file() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut folders: Vec<PathBuf> = ["scripts", "man"].iter().map(|name| root.join(name)).collect();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "json")
                && fs::read_to_string(&path).is_ok_and(|text| text.contains("\"fs\"") && text.contains("\"binary\""))
            {
                return path;
            }
        }
    }
    panic!("no vhost-user discovery file (NN-ovfs.json) below scripts/");
}

#[test]
fn f01_discovery_file() {
    // virtiofsd's own file is not part of its package on every machine: the rule itself is checked, on ours.
    let id = "F01";
    let path = discovery_file();
    let text = fs::read_to_string(&path).expect("read the discovery file");
    let value: serde_json::Value = serde_json::from_str(&text).expect("valid JSON");
    assert_eq!(value["type"], "fs", "{id}");
    let binary = value["binary"].as_str().expect("a path");
    assert!(binary.starts_with('/'), "{id}: {binary} is not absolute");
    assert_eq!(Path::new(binary).file_name().and_then(|name| name.to_str()), Some("ovfs"), "{id}");
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    let number = name.split('-').next().unwrap_or_default();
    assert!(number.len() == 2 && number.parse::<u8>().is_ok(), "{id}: {name} needs a two-digit priority");
}

#[test]
fn f02_discovery_features_are_the_capabilities() {
    let id = "F02";
    let answer = Launch::new(&programs().ovfs.exe).arg("--print-capabilities").run();
    let file = fs::read_to_string(discovery_file()).expect("read the discovery file");
    assert_eq!(features(&answer.stdout), features(&file), "{id}");
}
