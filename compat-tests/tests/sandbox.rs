//! Rows of B about confinement: names, namespaces, capabilities, users, mounts, limits; Y rows: more of the same.

use std::fs;
use std::time::{Duration, Instant};

use ovfs_compat_tests::launch::{EXIT_TIMEOUT, Finished, READY};
use ovfs_compat_tests::minivu::{Connection, ROOT};
use ovfs_compat_tests::rows::{Facts, Row, Stage, inspect};

const NO_ARGS: [&str; 0] = [];
/// The file capabilities of a root worker, without and with DAC_READ_SEARCH dropped.
const CAPS: &str = "00000000880000df";
const CAPS_WITHOUT_HANDLES: &str = "00000000880000db";
/// A daemon's confinement with these arguments, while it waits for its client.
fn confinement(stage: &Stage<'_>, args: &[&str]) -> Facts {
    let daemon = stage.ready(stage.basic(args));
    let mut facts = Facts::new();
    inspect::put_processes(&mut facts, &daemon);
    facts
}

#[test]
fn b13_names_of_both_processes() {
    let row = Row::new("B13").is("own parent", "NAME").is("own worker", "NAME");
    row.is("linked parent", "virtiofsd").is("linked worker", "virtiofsd").check(|stage| {
        let mut facts = Facts::new();
        let daemon = stage.ready(stage.basic(NO_ARGS));
        facts.put("own parent", stage.normal(&inspect::proc_file(daemon.pid(), "comm")));
        facts.put("own worker", stage.normal(&inspect::proc_file(daemon.worker(), "comm")));
        drop(daemon);
        let daemon = stage.ready(stage.basic_as(&stage.linked_as("virtiofsd"), NO_ARGS));
        for (name, pid) in [("parent", daemon.pid()), ("worker", daemon.worker())] {
            facts.put(format!("linked {name}"), inspect::proc_file(pid, "comm"));
            let words = inspect::proc_file(pid, "cmdline").replace('\0', " ");
            facts.put(
                format!("linked {name} cmdline"),
                words.replace(&*stage.scratch.path().to_string_lossy(), "SCRATCH"),
            );
        }
        facts
    });
}

#[test]
fn b14_namespaces() {
    // The parent made the mount and network namespaces that the worker lives in.
    let parent = "cgroup shared, ipc shared, mnt own, net own, pid shared, user shared, uts shared";
    let row = Row::new("B14").is("parent namespaces", parent).is("processes", 2);
    let own = "cgroup shared, ipc shared, mnt own, net own, pid own, user shared, uts shared";
    row.is("worker namespaces", own).check(|stage| {
        let daemon = stage.ready(stage.basic(NO_ARGS));
        let mut facts = Facts::new();
        inspect::put_processes(&mut facts, &daemon);
        facts.put("parent namespaces", inspect::namespaces(daemon.pid()));
        facts
    });
}

#[test]
fn b15_capabilities() {
    let row = Row::new("B15").is("worker CapEff", CAPS).is("worker CapPrm", CAPS).is("worker NoNewPrivs", 1);
    let row = row.is("worker CapBnd", "0".repeat(16)).is("worker Seccomp", 2).is("parent CapEff", "0".repeat(16));
    row.check(|stage| {
        let mut daemon = stage.ready(stage.basic(NO_ARGS));
        let mut facts = Facts::new();
        inspect::put_processes(&mut facts, &daemon);
        // The same once a guest is served.
        let (guest, _) = stage.connect(&mut daemon);
        guest.start_queues().expect("start the queues");
        for key in ["CapEff", "CapPrm", "CapBnd", "CapInh", "Seccomp"] {
            facts.put(format!("serving {key}"), inspect::status(daemon.worker(), key));
        }
        facts
    });
}

#[test]
fn b16_no_file_handles_no_dac_read_search() {
    let row = Row::new("B16").is("worker CapEff", CAPS_WITHOUT_HANDLES).is("worker CapPrm", CAPS_WITHOUT_HANDLES);
    row.check(|stage| confinement(stage, &["--inode-file-handles=never"]));
}

#[test]
fn b17_modcaps() {
    let row = Row::new("B17").is("less CapEff", "00000000000000df").is("more CapEff", "00000000882000df");
    row.check(|stage| {
        let mut facts = Facts::new();
        let runs: [(&str, &[&str]); 3] = [
            ("less", &["--modcaps=-mknod:-setfcap"]),
            ("more", &["--modcaps=+sys_admin"]),
            ("both", &["--inode-file-handles=never", "--modcaps=-CHOWN:+chown:-fowner"]),
        ];
        for (name, args) in runs {
            let run = confinement(stage, args);
            for key in ["CapEff", "CapPrm", "CapBnd", "CapInh"] {
                facts.put(format!("{name} {key}"), run.get(&format!("worker {key}")));
            }
        }
        facts
    });
}

#[test]
fn b18_seccomp_actions() {
    let row = Row::new("B18").is("none", "0").is("kill", "2").is("log", "2").is("trap", "2");
    row.check(|stage| {
        let mut facts = Facts::new();
        for action in ["none", "kill", "log", "trap"] {
            let run = confinement(stage, &["--seccomp", action]);
            facts.put(action, run.get("worker Seccomp"));
            facts.put(format!("{action} NoNewPrivs"), run.get("worker NoNewPrivs"));
        }
        facts
    });
}

/// As user and group 1000, with these arguments.
fn unprivileged(stage: &Stage<'_>, args: &[&str]) -> Facts {
    let daemon = stage.ready(stage.basic_as(&stage.public_exe(), args).user(1000, 1000));
    let worker = daemon.worker();
    let mut maps = Facts::new();
    for name in ["uid_map", "gid_map", "setgroups"] {
        let words: Vec<String> = inspect::proc_file(worker, name).split_whitespace().map(str::to_owned).collect();
        maps.put(name, words.join(" "));
    }
    stage.put_files(&mut maps, "ready ");
    maps.put("parent namespaces", inspect::namespaces(daemon.pid()));
    let mut facts = stage.serve(daemon);
    for name in ["uid_map", "gid_map", "setgroups", "ready socket", "ready pid file", "parent namespaces"] {
        facts.put(name, maps.get(name));
    }
    facts
}

#[test]
fn b26_an_ordinary_user() {
    let row = Row::new("B26").is("rc", 0).is("uid_map", "1000 1000 1").is("setgroups", "deny");
    let row = row.has("stderr", "File handles do not appear safe to use").is("ready socket", "socket 700 1000:1000");
    row.check(|stage| unprivileged(stage, &[]));
}

#[test]
fn b27_an_ordinary_user_cannot_chroot() {
    Row::new("B27")
        .is("rc", 1)
        .has("stderr", "can only be used by root")
        .check(|stage| stage.ended(stage.basic_as(&stage.public_exe(), ["--sandbox", "chroot"]).user(1000, 1000)));
}

#[test]
fn b28_an_ordinary_user_cannot_insist_on_file_handles() {
    Row::new("B28").is("rc", 1).check(|stage| {
        stage.ended(stage.basic_as(&stage.public_exe(), ["--inode-file-handles=mandatory"]).user(1000, 1000))
    });
}

#[test]
fn y01_an_ordinary_user_who_is_root_inside() {
    let row = Row::new("Y01").is("rc", 0).is("uid_map", "0 1000 1").is("gid_map", "0 1000 1");
    row.check(|stage| unprivileged(stage, &["--uid-map", ":0:1000:1:", "--gid-map", "|0|1000|1|"]));
}

#[test]
fn y02_an_ordinary_user_without_a_sandbox() {
    Row::new("Y02").is("rc", 0).is("processes", 1).check(|stage| unprivileged(stage, &["--sandbox", "none"]));
}

#[test]
fn y03_an_ordinary_user_with_ranges_needs_newuidmap() {
    Row::new("Y03").check(|stage| {
        let args = ["--uid-map", ":0:1000:1:", "--uid-map", ":1:100000:65536:"];
        // Whether the machine grants the range is its business: both programs have to ask the same way.
        let attempt = || {
            let mut daemon = stage.basic_as(&stage.public_exe(), args).user(1000, 1000).start();
            let deadline = Instant::now() + EXIT_TIMEOUT;
            while daemon.try_exit().is_none() && Instant::now() < deadline {
                // The socket alone says nothing: it is there before the ranges are asked for.
                if daemon.stderr().contains(READY) {
                    drop(Connection::open(&stage.socket()));
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            daemon.finish()
        };
        // virtiofsd sometimes ends before it has said why.
        let says_why = |finished: &Finished| finished.stderr.contains(READY) || finished.stderr.contains("ERROR");
        let finished = (0..10).map(|_| attempt()).find(says_why).expect("one attempt says why it ended");
        let mut facts = Facts::new();
        facts.put_finished("", stage, &finished);
        facts
    });
}

#[test]
fn y04_an_ordinary_user_cannot_use_a_foreign_group_or_unreadable_things() {
    Row::new("Y04").has("group stderr", "Couldn't set up the group").is("modcaps rc", 0).check(|stage| {
        let exe = stage.public_exe();
        let (group, _) = inspect::some_group();
        let mut facts = Facts::new();
        let run = stage.basic_as(&exe, ["--socket-group", &group]).user(1000, 1000).run();
        facts.put_finished("group ", stage, &run);
        let daemon = stage.ready(stage.basic_as(&exe, ["--modcaps=nonsense"]).user(1000, 1000));
        facts.put("modcaps rc", stage.serve(daemon).get("rc"));
        fs::create_dir(stage.path("closed")).expect("make a folder");
        ovfs_compat_tests::launch::set_mode(&stage.path("closed"), 0o700);
        let args = ["--shared-dir", "sh", "--socket-path", "closed/s"];
        let run =
            ovfs_compat_tests::launch::Launch::new(&exe).cwd(stage.scratch.path()).args(args).user(1000, 1000).run();
        facts.put_finished("closed ", stage, &run);
        facts
    });
}

/// Runs the rest of the command over a shared `sh`; a line written to the pipe `go` mounts something on `sh/late`.
const WITH_LATE_MOUNT: &str = r#"set -e
mount --bind sh sh; mount --make-shared sh; mkfifo go
( ( read line < go; mount -t tmpfs none sh/late; echo late > sh/late/g; : > mounted ) & )
exec "$@""#;

#[test]
fn b29_later_mounts_appear_and_are_flagged() {
    let row = Row::new("B29").is("mounted", true).is("late flags", 1).is("plain flags", 0);
    row.is("inside", "mode 100644, open flags 0x0, \"late\\n\"").check(|stage| {
        for name in ["sh/late", "sh/plain"] {
            fs::create_dir(stage.path(name)).expect("make a folder");
        }
        let launch = stage.basic(NO_ARGS).through(["unshare", "-m", "sh", "-c", WITH_LATE_MOUNT, "sh"]);
        let mut daemon = stage.ready(launch);
        fs::write(stage.path("go"), "go\n").expect("ask for the mount");
        let deadline = Instant::now() + EXIT_TIMEOUT;
        while !stage.path("mounted").exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut facts = Facts::new();
        facts.put("mounted", stage.path("mounted").exists());
        let (mut guest, _) = stage.connect(&mut daemon);
        guest.start_queues().expect("start the queues");
        guest.init().expect("INIT");
        let late = guest.lookup(ROOT, "late").expect("look a mount point up");
        facts.put("late flags", late.flags);
        facts.put("plain flags", guest.lookup(ROOT, "plain").expect("look a folder up").flags);
        facts.put("inside", inspect::read_of(&mut guest, late.nodeid, "g"));
        facts
    });
}

#[test]
fn b31_sharing_the_root() {
    Row::new("B31").is("rc", 0).is("etc mode", "40755").check(|stage| {
        let mut daemon = stage.ready(stage.launch(["--shared-dir", "/", "--socket-path", "run/s"]));
        let (mut guest, _) = stage.connect(&mut daemon);
        guest.start_queues().expect("start the queues");
        guest.init().expect("INIT");
        let mut facts = Facts::new();
        // `..` is another matter: differential.rs and hostile.rs have it.
        for name in ["etc", "proc"] {
            let entry = guest.lookup(ROOT, name);
            facts.put(
                format!("{name} mode"),
                entry.as_ref().map_or("none".to_owned(), |entry| format!("{:o}", entry.mode)),
            );
            facts.put(format!("{name} flags"), entry.map_or(0, |entry| entry.flags));
        }
        inspect::put_processes(&mut facts, &daemon);
        drop(guest);
        facts.put_finished("", stage, &daemon.finish());
        facts
    });
}

#[test]
fn b37_groups() {
    Row::new("B37").is("worker", "").check(|stage| {
        let daemon = stage.ready(stage.basic(NO_ARGS).groups(&[1, 2, 3]));
        let mut facts = Facts::new();
        facts.put("worker", inspect::status(daemon.worker(), "Groups"));
        facts.put("parent", inspect::status(daemon.pid(), "Groups"));
        facts
    });
}

#[test]
fn b38_network() {
    Row::new("B38").is("worker", "lo").check(|stage| {
        let daemon = stage.ready(stage.basic(NO_ARGS));
        let mut facts = Facts::new();
        facts.put("worker", inspect::interfaces(daemon.worker()).join(" "));
        facts
    });
}

/// Confinement, root directory and service of a sandbox mode.
fn sandboxed(stage: &Stage<'_>, mode: &str) -> Facts {
    let daemon = stage.ready(stage.basic(["--sandbox", mode]));
    let root = fs::read_dir(format!("/proc/{}/root", daemon.worker())).expect("read the root directory");
    let mut names: Vec<String> = root.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let limit = inspect::open_files_limit(daemon.worker());
    let mut facts = stage.serve(daemon);
    facts.put("root directory", names.join(" ")).put("limit", limit);
    facts
}

#[test]
fn b39_chroot() {
    let row = Row::new("B39").is("rc", 0).is("processes", 1).is("root directory", "f");
    let row = row.is("worker namespaces", inspect::namespaces(std::process::id()));
    row.is("parent CapEff", CAPS).check(|stage| sandboxed(stage, "chroot"));
}

#[test]
fn b40_none() {
    let row = Row::new("B40").is("rc", 0).is("processes", 1).is("socket left", false);
    let row = row.is("worker namespaces", inspect::namespaces(std::process::id()));
    row.is("parent CapEff", CAPS).check(|stage| sandboxed(stage, "none"));
}

#[test]
fn y05_limits_of_open_files() {
    let row = Row::new("Y05").is("asked", "2000 2000").is("kept", "700 900");
    row.check(|stage| {
        let mut facts = Facts::new();
        let runs: [(&str, &[&str], (u64, u64)); 4] = [
            ("asked", &["--rlimit-nofile", "2000"], (1024, 4096)),
            ("kept", &["--rlimit-nofile", "0"], (700, 900)),
            ("default", &[], (1024, 4096)),
            ("few", &["--rlimit-nofile", "700"], (1024, 4096)),
        ];
        for (name, args, (soft, hard)) in runs {
            let daemon = stage.ready(stage.basic(args).nofile(soft, hard));
            facts.put(name, inspect::open_files_limit(daemon.worker()));
            facts.put(format!("{name} stderr"), stage.normal(&daemon.stderr()));
        }
        let launch = stage.basic(["--rlimit-nofile", "5000"]).nofile(1024, 4096);
        let launch = launch.through(["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource", "--"]);
        facts.put_finished("above ", stage, &launch.run());
        facts
    });
}

#[test]
fn y06_the_root_directory_and_what_else_a_worker_sees() {
    let row = Row::new("Y06").is("root directory", "f").is("rc", 0);
    row.check(|stage| sandboxed(stage, "namespace"));
}
