//! Rows A01–A47: the command line, its errors and its exit codes; X rows: more of the same from outside the list.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};

use ovfs_compat_tests::launch::{EXIT_TIMEOUT, Launch};
use ovfs_compat_tests::minivu::ROOT;
use ovfs_compat_tests::rows::{Facts, Row, Stage, inspect, text};

const BASIC: [&str; 4] = ["--shared-dir", "sh", "--socket-path", "run/s"];

/// Runs to the end and adds what lies in `run/` afterwards.
fn ended(stage: &Stage<'_>, launch: Launch) -> Facts {
    let mut facts = stage.ended(launch);
    facts.put("socket left", inspect::file(&stage.socket()));
    facts.put("pid file left", inspect::file(&stage.path("run/s.pid")));
    facts
}

/// A refused command line: exit code 2, a text on standard error, nothing else.
fn refused(id: &'static str, args: &[&str], text: &str) {
    let row = Row::new(id).is("rc", 2).is("stdout", "").has("stderr", text);
    row.is("socket left", "absent").is("pid file left", "absent").check(|stage| ended(stage, stage.launch(args)));
}

/// A start that fails: exit code 1 and a text on standard error.
fn failed(id: &'static str, args: &[&str], text: &str) {
    let row = Row::new(id).is("rc", 1).is("stdout", "").has("stderr", text);
    row.check(|stage| ended(stage, stage.launch(args)));
}

fn basic<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    BASIC.iter().chain(extra).copied().collect()
}

/// One fact per option, so that the list of accepted differences can name new ones one by one.
fn put_options(facts: &mut Facts, help: &str) {
    for (spec, default) in text::help_options(help) {
        facts.put(format!("option {spec}"), if default.is_empty() { "no default" } else { &default });
    }
}

#[test]
fn a01_no_arguments_is_help_on_standard_error() {
    let row = Row::new("A01").is("rc", 2).is("stdout", "").is("option --shared-dir <SHARED_DIR>", "no default");
    row.check(|stage| {
        let finished = stage.launch([""; 0]).run();
        let mut facts = Facts::new();
        facts.put("rc", finished.exit).put("stdout", stage.normal(&finished.stdout));
        facts.put("usage", text::split_usage(&stage.normal(&finished.stderr)).0.unwrap_or_default());
        put_options(&mut facts, &finished.stderr);
        facts
    });
}

#[test]
fn a02_version() {
    Row::new("A02").is("long rc", 0).is("long stdout", "NAME VERSION\n").is("short stdout", "NAME VERSION\n").check(
        |stage| {
            let mut facts = Facts::new();
            facts.put_finished("long ", stage, &stage.launch(["--version"]).run());
            facts.put_finished("short ", stage, &stage.launch(["-V"]).run());
            facts.put_finished("with more ", stage, &stage.launch(["--version", "--bogus"]).run());
            facts
        },
    );
}

fn help(stage: &Stage<'_>, args: &[&str]) -> Facts {
    let finished = stage.launch(args).run();
    let mut facts = Facts::new();
    facts.put("rc", finished.exit).put("stderr", stage.normal(&finished.stderr));
    facts.put("usage", text::split_usage(&stage.normal(&finished.stdout)).0.unwrap_or_default());
    facts.put("names --readonly", finished.stdout.contains("--readonly"));
    put_options(&mut facts, &finished.stdout);
    facts
}

#[test]
fn a03_help() {
    let row = Row::new("A03").is("rc", 0).is("stderr", "").is("names --readonly", true);
    row.is("option --cache <CACHE>", "[default: auto]").check(|stage| help(stage, &["--help"]));
}

#[test]
fn x01_short_help() {
    let row = Row::new("X01").is("rc", 0).is("names --readonly", true);
    row.is("option --cache <CACHE>", "[default: auto]").check(|stage| help(stage, &["-h"]));
}

#[test]
fn x02_help_wins_over_a_later_unknown_flag() {
    Row::new("X02").is("rc", 0).check(|stage| help(stage, &["--help", "--bogus"]));
}

#[test]
fn a04_capabilities() {
    let row = Row::new("A04").is("rc", 0).is("stderr", "").has("stdout", "\"separate-options\"");
    row.check(|stage| stage.ended(stage.launch(["--print-capabilities"])));
}

#[test]
fn a05_capabilities_beside_other_arguments() {
    Row::new("A05").is("rc", 0).is("stderr", "").has("stdout", "\"fs\"").check(|stage| {
        ended(stage, stage.launch(["--print-capabilities", "--shared-dir", "x", "--fd", "3", "--log-level", "trace"]))
    });
}

#[test]
fn a06_no_socket() {
    refused("A06", &["--shared-dir", "sh"], "--socket-path <SOCKET_PATH>");
}

#[test]
fn a07_no_directory() {
    refused("A07", &["--socket-path", "run/s"], "--shared-dir <SHARED_DIR>");
}

#[test]
fn a08_descriptor_and_path() {
    refused("A08", &["--shared-dir", "sh", "--fd", "3", "--socket-path", "run/s"], "cannot be used with");
}

#[test]
fn a09_descriptor_and_group() {
    refused("A09", &["--shared-dir", "sh", "--fd", "3", "--socket-group", "root"], "cannot be used with");
}

#[test]
fn a10_bad_cache() {
    refused("A10", &basic(&["--cache", "bogus"]), "invalid cache policy");
}

#[test]
fn a11_bad_sandbox() {
    refused("A11", &basic(&["--sandbox", "bogus"]), "Unknown sandbox mode");
}

#[test]
fn a12_seccomp_is_case_sensitive() {
    refused("A12", &basic(&["--seccomp", "KILL"]), "Matching variant not found");
}

#[test]
fn a13_file_handles_need_an_equal_sign() {
    refused("A13", &basic(&["--inode-file-handles", "never"]), "equal sign is needed");
}

#[test]
fn a14_bad_file_handles() {
    refused("A14", &basic(&["--inode-file-handles=bogus"]), "invalid inode file handles mode");
}

#[test]
fn a15_acl_value_apart() {
    refused("A15", &basic(&["--posix-acl", "always"]), "unexpected argument 'always' found");
}

#[test]
fn a16_bad_acl_value() {
    refused("A16", &basic(&["--posix-acl=bogus"]), "expected: never, auto, always");
}

#[test]
fn a17_bad_log_level() {
    refused("A17", &basic(&["--log-level", "bogus"]), "existing log level");
}

#[test]
fn a18_bad_integer() {
    refused("A18", &basic(&["--thread-pool-size", "x"]), "invalid digit found in string");
}

#[test]
fn a19_tag_length() {
    refused("A19", &basic(&["--tag", &"x".repeat(37)]), "longer than 36 bytes");
}

#[test]
fn a20_bad_xattrmap() {
    refused("A20", &basic(&["--xattrmap", ":map"]), "IncompleteRule");
}

#[test]
fn a21_bad_uid_map() {
    refused("A21", &basic(&["--uid-map", ":0:1:"]), "The map is empty or incorrect number of values");
}

#[test]
fn a22_bad_translation() {
    refused("A22", &basic(&["--translate-uid", "bogus:0:1:1"]), "Invalid ID map prefix bogus");
}

#[test]
fn a23_bad_migration_mode() {
    refused("A23", &basic(&["--migration-mode", "x"]), "invalid migration-mode value");
}

#[test]
fn a24_unknown_flag() {
    refused("A24", &basic(&["--bogus"]), "unexpected argument '--bogus' found");
}

#[test]
fn a25_abbreviation() {
    refused("A25", &["--shared-di", "sh", "--socket-path", "run/s"], "a similar argument exists: '--shared-dir'");
}

#[test]
fn a26_positional() {
    refused("A26", &basic(&["extra"]), "unexpected argument 'extra' found");
}

#[test]
fn a27_unknown_compat_words() {
    for word in ["bogus", "flock", "posix_lock", "timeout=5", "allow_root", "no_announce_submounts", "a=b=c", ""] {
        refused("A27", &basic(&["-o", word]), "Invalid compat argument");
    }
}

#[test]
fn a28_compat_cache_never() {
    refused("A28", &basic(&["-o", "cache=never"]), "Invalid compat value 'never' for '-o cache'");
}

#[test]
fn a29_compat_sandbox_none() {
    refused("A29", &basic(&["-o", "sandbox=none"]), "Invalid compat value 'none' for '-o sandbox'");
}

#[test]
fn a30_modcaps_without_an_equal_sign() {
    refused("A30", &basic(&["--modcaps", "-mknod"]), "error: ");
}

#[test]
fn a31_compat_options_without_a_source() {
    failed("A31", &["--socket-path", "run/s", "-o", "cache=auto"], "missing \"--shared-dir\" or \"-o source\" option");
}

#[test]
fn a32_directory_missing() {
    failed("A32", &["--shared-dir", "nope", "--socket-path", "run/s"], "nope does not exist");
}

#[test]
fn a33_socket_folder_missing() {
    failed("A33", &["--shared-dir", "sh", "--socket-path", "nodir/s"], "does not exist or is not a directory");
}

#[test]
fn a34_socket_path_is_a_directory() {
    failed("A34", &["--shared-dir", "sh", "--socket-path", "sh"], "Address already in use");
}

#[test]
fn a35_unknown_group() {
    failed("A35", &basic(&["--socket-group", "nosuchgrp"]), "Couldn't resolve the group name");
}

#[test]
fn a36_descriptor_limit_too_small() {
    failed("A36", &basic(&["--rlimit-nofile", "100"]), "must be at least 610");
}

#[test]
fn a37_uid_map_as_root() {
    failed("A37", &basic(&["--uid-map", ":0:1000:1:"]), "uid_map can only be used by unprivileged user");
}

#[test]
fn a38_unknown_capability() {
    failed("A38", &basic(&["--modcaps=+bogus"]), "invalid capability 'BOGUS'");
}

#[test]
fn a39_dropping_what_file_handles_need() {
    failed("A39", &basic(&["--modcaps=-dac_read_search"]), "can't disable DAC_READ_SEARCH");
}

#[test]
fn a40_acl_and_translation() {
    failed("A40", &basic(&["--posix-acl", "--translate-uid", "map:0:1:1"]), "would break posix ACLs");
}

#[test]
fn a41_confirm_paths_with_file_handles() {
    let args = basic(&["--migration-mode", "file-handles", "--migration-confirm-paths"]);
    failed("A41", &args, "Cannot use --migration-confirm-paths");
}

#[test]
fn a42_overlapping_translation() {
    let args = basic(&["--translate-uid", "guest:5:100:10", "--translate-uid", "guest:5:200:10"]);
    failed("A42", &args, "intersects previously added entry");
}

#[test]
fn a43_symbolic_link_as_directory() {
    // Without the sandbox it starts, but then the root is the link itself.
    let row = Row::new("A43").is("rc", 1).has("stderr", "BindMountSharedDir");
    row.is("without sandbox f", "Not a directory (os error 20)").check(|stage| {
        symlink("sh", stage.path("l")).expect("make a link");
        let mut facts = ended(stage, stage.launch(["--shared-dir", "l", "--socket-path", "run/s"]));
        let mut daemon =
            stage.ready(stage.launch(["--shared-dir", "l", "--socket-path", "run/s", "--sandbox", "none"]));
        facts.put("without sandbox f", first_read(stage, &mut daemon));
        facts
    });
}

fn first_read(stage: &Stage<'_>, daemon: &mut ovfs_compat_tests::launch::Daemon) -> String {
    let (mut guest, _) = stage.connect(daemon);
    guest.start_queues().expect("start the queues");
    guest.init().map_or_else(|error| error.to_string(), |_| inspect::read_of(&mut guest, ROOT, "f"))
}

#[test]
fn a44_the_last_of_a_repeated_flag_wins() {
    failed("A44", &basic(&["--shared-dir", "nope"]), "nope does not exist");
}

#[test]
fn a45_deprecated_words_start_and_warn_in_order() {
    Row::new("A45").is("rc", 0).is("f", "mode 100644, open flags 0x0, \"hello\\n\"").has("stderr", "'-f'").check(
        |stage| {
            let args = ["--inode-file-handles=fallback", "-o", "cache=auto", "--socket", "run/s", "-d", "-f"];
            // The debug level logs every request: keep what the warnings say.
            let daemon = stage.ready(stage.launch(["--shared-dir", "sh"]).args(args).env("RUST_LOG", "info"));
            stage.serve(daemon)
        },
    );
}

#[test]
fn x03_debug_flag_means_debug_level() {
    Row::new("X03").is("debug", true).check(|stage| {
        let mut daemon = stage.ready(stage.basic(["-d"]));
        let (guest, _) = stage.connect(&mut daemon);
        drop(guest);
        let finished = daemon.finish();
        let mut facts = Facts::new();
        facts.put("rc", finished.exit).put("debug", finished.stderr.contains(" DEBUG "));
        facts.put("trace", finished.stderr.contains(" TRACE "));
        facts
    });
}

#[test]
fn a46_compat_options_beat_long_flags() {
    let direct = "mode 100644, open flags 0x1, \"hello\\n\"";
    Row::new("A46").is("rc", 0).is("f", direct).is("after f", direct).check(|stage| {
        let mut facts = stage.serve(stage.ready(stage.basic(["--cache", "always", "-o", "cache=none"])));
        let second = stage.serve(stage.ready(stage.basic(["-o", "cache=none", "--cache", "always"])));
        facts.put("after f", second.get("f"));
        facts
    });
}

#[test]
fn a47_socket_path_beats_the_deprecated_socket() {
    Row::new("A47").is("rc", 0).is("old socket", "absent").check(|stage| {
        let daemon = stage.ready(stage.basic(["--socket", "run/old"]));
        let old = inspect::file(&stage.path("run/old"));
        let mut facts = stage.serve(daemon);
        facts.put("old socket", old);
        facts
    });
}

#[test]
fn x04_directories_that_are_none() {
    Row::new("X04").is("null rc", 1).has("null stderr", "does not exist").is("empty rc", 1).check(|stage| {
        symlink("nowhere", stage.path("dangling")).expect("make a link");
        let mut facts = Facts::new();
        for (name, dir) in [("null ", "/dev/null"), ("empty ", ""), ("dangling ", "dangling")] {
            let launch = stage.launch(["--shared-dir", dir, "--socket-path", "run/s"]);
            facts.put_finished(name, stage, &launch.run());
        }
        facts
    });
}

#[test]
fn x05_socket_paths_that_are_none() {
    Row::new("X05").has("empty stderr", "Invalid socket file name").has("long stderr", "SUN_LEN").check(|stage| {
        let long = format!("run/{}", "x".repeat(120));
        let mut facts = Facts::new();
        for (name, path) in [("empty ", ""), ("root ", "/"), ("long ", &long), ("file ", "sh/f/s")] {
            facts.put_finished(name, stage, &stage.launch(["--shared-dir", "sh", "--socket-path", path]).run());
        }
        facts
    });
}

#[test]
fn x06_pid_path_is_a_directory() {
    Row::new("X06").is("rc", 1).has("stderr", "Is a directory (os error 21)").check(|stage| {
        fs::create_dir(stage.path("run/s.pid")).expect("make a folder");
        ended(stage, stage.basic([""; 0]))
    });
}

#[test]
fn x07_more_usage_errors() {
    let rows: [(&[&str], &str); 22] = [
        (&["--fd", "x"], "invalid digit"),
        (&["--rlimit-nofile", "-1"], "error: "),
        (&["--tag", ""], "may not be empty"),
        (&["--print-capabilities", "--socket-group", "root"], "cannot be used with"),
        (&["--syslog=true"], "unexpected value 'true' for '--syslog' found"),
        (&["--migration-on-error", "x"], "invalid migration-on-error value"),
        (&["--uid-map", ":0:1000:1"], "delimiter"),
        (&["--uid-map", "0:1:2"], "error: "),
        (&["--gid-map", ""], "error: "),
        (&["--translate-uid", "map:0:1"], "Invalid ID map length (expected 3 elements, got 2 elements)"),
        (&["--translate-gid", "map::1:1"], "cannot parse integer from empty string"),
        (&["--security-label=x"], "expected: never, auto, always"),
        (&["--xattrmap", ""], "error: "),
        (&["--xattrmap", ":bogus:all:a:b:"], "error: "),
        (&["-o", "loglevel=x"], "Invalid compat value 'x' for '-o loglevel'"),
        (&["-o", "xattr,,xattr"], "Invalid compat argument '-o '"),
        (&["-o", "xattrmap=:map"], "error: "),
        (&["--", "extra"], "unexpected argument 'extra' found"),
        (&["--cache"], "a value is required"),
        (&["-x"], "unexpected argument '-x' found"),
        (&["-o", "source"], "Invalid compat argument"),
        (&["--thread-pool-size", "99999999999999999999999"], "error: "),
    ];
    for (args, text) in rows {
        refused("X07", &basic(args), text);
    }
}

#[test]
fn x08_more_start_errors() {
    let rows: [(&[&str], &str); 8] = [
        (&["--modcaps="], "empty modcap found"),
        (&["--modcaps=mknod"], "invalid modcap action"),
        (&["--modcaps=+"], "ERROR"),
        (&["--posix-acl=auto", "--translate-gid", "map:0:1:1"], "would break posix ACLs"),
        (&["--migration-mode", "file-handles", "--migration-verify-handles"], "Cannot use --migration-verify-handles"),
        (&["--rlimit-nofile", "18446744073709551615"], "cannot be increased above"),
        (&["--thread-pool-size", "5", "--rlimit-nofile", "610"], "must be at least 614"),
        (&["--translate-gid", "forbid-guest:0:10", "--translate-gid", "guest:5:200:10"], "intersects"),
    ];
    for (args, text) in rows {
        eprintln!("options: {args:?}");
        failed("X08", &basic(args), text);
    }
}

#[test]
fn x15_gid_map_as_root() {
    failed("X15", &basic(&["--gid-map", ":0:1000:1:"]), "gid_map can only be used by unprivileged user");
}

#[test]
fn x16_a_translation_up_to_the_last_id_starts() {
    Row::new("X16").is("rc", 0).check(|stage| {
        // 65536 + 4294901760 is 2^32: one more than a 32-bit number holds.
        let args = ["--translate-uid", "map:0:1000:65536", "--translate-uid", "forbid-guest:65536:4294901760"];
        stage.serve(stage.ready(stage.basic(args)))
    });
}

#[test]
fn x09_words_in_any_case_and_bundled_flags_start() {
    Row::new("X09").is("case rc", 0).is("bundle rc", 0).is("compat rc", 0).check(|stage| {
        let mut facts = Facts::new();
        let runs: [(&str, &[&str]); 4] = [
            ("case", &["--cache", "NEVER", "--sandbox", "NameSpace", "--log-level", "Info"]),
            ("bundle", &["-df", "-ocache=none"]),
            ("compat", &["-o", "xattr,no_xattr,readdirplus,no_readdirplus", "-o", "no_posix_lock,no_flock,writeback"]),
            ("last", &["--announce-submounts", "--no-announce-submounts", "--killpriv-v2", "--no-killpriv-v2"]),
        ];
        for (name, args) in runs {
            let run = stage.serve(stage.ready(stage.basic(args).env("RUST_LOG", "info")));
            for fact in ["rc", "INIT", "f", "stderr"] {
                facts.put(format!("{name} {fact}"), run.get(fact));
            }
        }
        facts
    });
}

#[test]
fn x10_capabilities_come_after_compat_options() {
    refused("X10", &["--print-capabilities", "-o", "bogus"], "Invalid compat argument");
}

#[test]
fn x11_options_that_only_have_to_start() {
    let runs: [(&str, &[&str]); 16] = [
        ("tag", &["--tag", "t"]),
        ("acl", &["--posix-acl"]),
        ("acl auto", &["--posix-acl=auto"]),
        ("label", &["--security-label=auto"]),
        ("xattrmap", &["--xattrmap", ":map::user.virtiofs.:"]),
        ("readonly", &["--readonly"]),
        ("writeback", &["--writeback"]),
        ("mmap", &["--allow-mmap", "--cache", "never"]),
        ("metadata", &["--cache", "metadata"]),
        ("always", &["--cache", "always"]),
        ("killpriv", &["--killpriv-v2"]),
        ("plain", &["--no-readdirplus", "--allow-direct-io", "--preserve-noatime"]),
        ("translate", &["--translate-uid", "map:0:1000:1", "--translate-gid", "squash-host:0:7:0"]),
        ("migration", &["--migration-on-error", "guest-error", "--migration-verify-handles"]),
        ("handles", &["--inode-file-handles=never"]),
        ("pool", &["--thread-pool-size", "4"]),
    ];
    for (name, args) in runs {
        eprintln!("options: {name}");
        Row::new("X11").is("rc", 0).check(|stage| stage.serve(stage.ready(stage.basic(args))));
    }
}

#[test]
fn x12_descriptors_that_are_no_listeners() {
    Row::new("X12").is("connected rc", 1).is("file rc", 1).is("bound rc", 1).check(|stage| {
        let mut facts = Facts::new();
        let args = ["--shared-dir", "sh", "--fd", "3", "--rlimit-nofile", "0"];
        let (ours, theirs) = UnixStream::pair().expect("make a pair");
        facts.put_finished("connected ", stage, &stage.launch(args).pass_fd(theirs, 3).run());
        drop(ours);
        let file = fs::File::open(stage.path("sh/f")).expect("open a file");
        facts.put_finished("file ", stage, &stage.launch(args).pass_fd(file, 3).run());
        let bound = std::os::unix::net::UnixDatagram::bind(stage.path("run/d")).expect("bind");
        facts.put_finished("bound ", stage, &stage.launch(args).pass_fd(bound, 3).run());
        facts
    });
}

#[test]
fn x13_another_programs_live_socket_is_replaced() {
    Row::new("X13").is("rc", 0).is("old client waits", true).check(|stage| {
        let old = UnixListener::bind(stage.socket()).expect("listen");
        let mut facts = stage.serve(stage.ready(stage.basic([""; 0])));
        old.set_nonblocking(true).expect("set non-blocking");
        facts.put("old client waits", old.accept().is_err());
        facts
    });
}

/// Every row of the list is in some test file, and the list of accepted differences names no other.
#[test]
fn every_row_is_there() {
    let sources = concat!(
        include_str!("cli.rs"),
        include_str!("process.rs"),
        include_str!("sandbox.rs"),
        include_str!("integrators.rs")
    );
    let here = |id: &str| sources.contains(&format!("\"{id}\""));
    for (letter, count) in [('A', 47), ('B', 40), ('E', 20), ('F', 2)] {
        for number in 1..=count {
            let id = format!("{letter}{number:02}");
            assert!(here(&id), "no test has row {id}");
        }
    }
    for entry in ovfs_compat_tests::rows::accepted::list() {
        assert!(entry.rows.iter().all(|id| here(id)), "an accepted difference of no row: {entry:?}");
    }
}

#[test]
fn x14_a_repeated_boolean_is_fine() {
    Row::new("X14").is("rc", 0).check(|stage| {
        let mut daemon = stage.ready(stage.basic(["--xattr", "--xattr", "--readonly", "--readonly"]));
        drop(stage.connect(&mut daemon));
        let mut facts = Facts::new();
        facts.put("rc", daemon.wait_exit(EXIT_TIMEOUT).map_or_else(|error| error.to_string(), |exit| exit.to_string()));
        facts
    });
}
