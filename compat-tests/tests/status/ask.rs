//! Who may ask, whom, and what comes of asking the wrong one.

use std::os::unix::net::UnixListener;

use ovfs_compat_tests::daemon::patience;
use ovfs_compat_tests::launch::{Exit, Finished, Launch, Scratch, Which, binary};
use ovfs_compat_tests::rows::{Program, Stage};
use ovfs_compat_tests::stores::{Kind, TestStore};

use super::{Share, json, serve};

fn ask(args: &[&str]) -> Finished {
    Launch::new(binary(Which::Ovfs)).arg("status").args(args).run()
}

/// That this is refused, with one line.
fn refused(target: &str) -> String {
    let finished = ask(&["--total", target]);
    assert_eq!((finished.exit, finished.stdout.as_str()), (Exit::Code(1), ""), "{target}");
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    finished.stderr
}

#[test]
fn socket_and_both_processes_lead_to_the_same_daemon() {
    let store = TestStore::start(Kind::Fs);
    let share = serve(&store, &[]);
    let (broker, device) = (share.daemon.pid(), share.daemon.worker());
    for target in [share.socket(), broker.to_string(), device.to_string()] {
        let status = json(&target);
        assert_eq!((status["pid"].as_u64(), status["device_pid"].as_u64()), (Some(broker.into()), Some(device.into())));
    }
    let screen = ask(&[&share.socket()]);
    assert_eq!(screen.exit, Exit::Code(0), "{}", screen.stderr);
    assert!(screen.stdout.contains("/ (fs): up") && screen.stdout.contains("init"), "{}", screen.stdout);
    assert!(screen.stdout.lines().all(|line| line.len() <= 100), "{}", screen.stdout);
    let Share { mut daemon, scratch, .. } = share;
    daemon.signal(libc::SIGTERM);
    daemon.wait_exit(patience()).expect("it ends");
    let said = refused(&scratch.join("run/s").display().to_string());
    assert!(said.contains(&format!("there is no process {broker}, which ")), "{said}");
}

#[test]
fn watching_goes_on_until_it_is_interrupted() {
    let store = TestStore::start(Kind::Fs);
    let share = serve(&store, &[]);
    let watching = Launch::new(binary(Which::Ovfs)).args(["status", "--json", "--watch", &share.socket()]).start();
    let lines = super::until(|| watching.stdout().lines().count(), |lines| *lines >= 2);
    assert!(lines >= 2, "{}", watching.stderr());
    for line in watching.stdout().lines().take(2) {
        let status: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let interval = status["interval_seconds"].as_f64().expect("a number");
        assert!(interval >= 1.0 && interval < status["uptime_seconds"].as_f64().expect("a number"), "{status}");
    }
    watching.signal(libc::SIGINT);
    assert_eq!(watching.finish().exit, Exit::Signal(libc::SIGINT));
}

#[test]
fn daemon_with_an_inherited_socket_is_found_by_its_path() {
    let store = TestStore::start(Kind::Fs);
    let scratch = Scratch::new();
    let socket = scratch.join("run/s");
    let listener = UnixListener::bind(&socket).expect("bind");
    let launch = Launch::new(binary(Which::Ovfs)).args(["--fd=23", "--backend", &store.url()]).pass_fd(listener, 23);
    let mut daemon = launch.start();
    daemon.wait_ready();
    assert_eq!(json(&socket.display().to_string())["pid"].as_u64(), Some(daemon.pid().into()));
}

#[test]
fn directory_cannot_be_asked_and_says_so() {
    let scratch = Scratch::new();
    let launch = Launch::new(binary(Which::Ovfs)).arg("--socket-path").arg(scratch.join("run/s"));
    let mut daemon = launch.arg("--shared-dir").arg(scratch.join("sh")).start();
    daemon.wait_ready();
    for target in [daemon.pid().to_string(), daemon.worker().to_string(), scratch.join("run/s").display().to_string()] {
        let said = refused(&target);
        assert!(said.contains("shares a directory") && said.contains("only daemons with a backend"), "{said}");
    }
}

#[test]
fn wrong_targets_are_named() {
    assert_eq!(refused("/nonexistent/s"), "ovfs status: /nonexistent/s: No such file or directory (os error 2)\n");
    let said = refused(&std::process::id().to_string());
    assert_eq!(said, format!("ovfs status: process {} is not ovfs\n", std::process::id()));
    assert!(refused("4294967295").contains("there is no process 4294967295"));
    let usage = ask(&[]);
    assert_eq!(usage.exit, Exit::Code(2), "{}", usage.stderr);
    assert!(usage.stderr.contains("<SOCKET|PID>"), "{}", usage.stderr);
}

#[test]
fn another_user_is_refused() {
    // SAFETY: it only asks.
    if unsafe { libc::geteuid() } != 0 {
        return;
    }
    let store = TestStore::start(Kind::Fs);
    let share = serve(&store, &[]);
    let program = Program::find(Which::Ovfs);
    let stage = Stage::new(&program);
    let launch = Launch::new(stage.public_exe()).user(1000, 1000);
    let finished = launch.args(["status", "--total", &share.daemon.pid().to_string()]).run();
    assert_eq!(finished.exit, Exit::Code(1), "{}", finished.stdout);
    assert!(finished.stderr.contains("only root and the user 0 may ask"), "{}", finished.stderr);
}
