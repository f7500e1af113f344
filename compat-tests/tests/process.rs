//! Rows B01–B40: files, log, signals, sandbox, lifetime; Y rows: more of the same from outside the list.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use ovfs_compat_tests::launch::{Daemon, EXIT_TIMEOUT, is_alive, kill};
use ovfs_compat_tests::rows::{Facts, Row, Stage, inspect, text};

const NO_ARGS: [&str; 0] = [];
const SANDBOXES: [&str; 3] = ["namespace", "chroot", "none"];

fn exit(daemon: &mut Daemon) -> String {
    daemon.wait_exit(EXIT_TIMEOUT).map_or_else(|error| error.to_string(), |exit| exit.to_string())
}

/// The pid file's text, the daemon's own pid written as `PID`.
fn pid_text(stage: &Stage<'_>, daemon: &Daemon) -> String {
    let text = fs::read_to_string(stage.path("run/s.pid")).unwrap_or_else(|error| error.to_string());
    text.replace(&daemon.pid().to_string(), "PID")
}

/// Starts, connects, sends a signal to the parent; its end, its worker's, and what is left.
fn signalled(stage: &Stage<'_>, args: &[&str], signal: libc::c_int) -> Facts {
    let daemon = stage.ready(stage.basic(args));
    let worker = daemon.worker();
    daemon.signal(signal);
    let mut facts = Facts::new();
    facts.put_finished("", stage, &daemon.finish());
    facts.put("worker gone", inspect::gone(worker));
    stage.put_files(&mut facts, "");
    facts
}

#[test]
fn b01_modes_and_pid_file() {
    let row = Row::new("B01").is("socket", "socket 700 0:0").is("pid file", "file 600 0:0").is("pid", "PID\n");
    row.check(|stage| {
        let daemon = stage.ready(stage.basic(NO_ARGS));
        let mut facts = Facts::new();
        stage.put_files(&mut facts, "");
        facts.put("pid", pid_text(stage, &daemon));
        facts
    });
}

#[test]
fn b02_socket_group() {
    let (name, gid) = inspect::some_group();
    Row::new("B02").is("socket", format!("socket 770 0:{gid}")).is("rc", 0).check(|stage| {
        let daemon = stage.ready(stage.basic(["--socket-group", &name]));
        let mut files = Facts::new();
        stage.put_files(&mut files, "");
        let mut facts = stage.serve(daemon);
        facts.put("socket", files.get("socket")).put("pid file", files.get("pid file"));
        facts
    });
}

#[test]
fn b03_umask_does_not_matter() {
    Row::new("B03").is("0 socket", "socket 700 0:0").is("777 socket", "socket 700 0:0").check(|stage| {
        let mut facts = Facts::new();
        for mask in [0, 0o022, 0o777] {
            let mut daemon = stage.ready(stage.basic(NO_ARGS).umask(mask));
            stage.put_files(&mut facts, &format!("{mask:o} "));
            drop(stage.connect(&mut daemon));
            facts.put(format!("{mask:o} rc"), exit(&mut daemon));
            fs::remove_file(stage.path("run/s.pid")).expect("remove the pid file");
        }
        facts
    });
}

#[test]
fn b04_whatever_is_at_the_path_is_replaced() {
    Row::new("B04").is("file socket", "socket 700 0:0").is("link target", "file 644 0:0").check(|stage| {
        let mut facts = Facts::new();
        fs::write(stage.socket(), "stale").expect("write a file");
        let daemon = stage.ready(stage.basic(NO_ARGS));
        facts.put("file socket", inspect::file(&stage.socket()));
        facts.put("file rc", stage.serve(daemon).get("rc"));
        fs::remove_file(stage.socket()).expect("remove the socket");
        symlink("../sh/f", stage.socket()).expect("make a link");
        let daemon = stage.ready(stage.basic(NO_ARGS));
        facts.put("link socket", inspect::file(&stage.socket()));
        facts.put("link target", inspect::file(&stage.path("sh/f")));
        facts.put("link rc", stage.serve(daemon).get("rc"));
        facts
    });
}

#[test]
fn b05_a_second_daemon_is_refused() {
    let row = Row::new("B05").is("rc", 1).has("stderr", "Resource temporarily unavailable (os error 11)");
    row.is("first rc", 0).check(|stage| {
        let daemon = stage.ready(stage.basic(NO_ARGS));
        let mut facts = stage.ended(stage.basic(NO_ARGS));
        facts.put("pid", pid_text(stage, &daemon));
        facts.put("first rc", stage.serve(daemon).get("rc"));
        facts
    });
}

#[test]
fn b06_a_stale_pid_file_is_reused() {
    Row::new("B06").is("pid", "PID\n").is("pid file", "file 644 0:0").check(|stage| {
        fs::write(stage.path("run/s.pid"), "1").expect("write a file");
        let daemon = stage.ready(stage.basic(NO_ARGS));
        let mut facts = Facts::new();
        facts.put("pid", pid_text(stage, &daemon));
        facts.put("pid file", inspect::file(&stage.path("run/s.pid")));
        facts
    });
}

#[test]
fn b07_the_readiness_line() {
    let row = Row::new("B07").is("line", "[TIME INFO  NAME] Waiting for vhost-user socket connection...");
    row.is("header", "[0000-00-00T00:00:00Z INFO  NAME]").check(|stage| {
        let daemon = stage.ready(stage.basic(NO_ARGS));
        let stderr = daemon.stderr();
        let line = stderr.lines().find(|line| line.contains("Waiting for")).unwrap_or_default();
        let header = line.split_inclusive(']').next().unwrap_or_default();
        let shape: String = header.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        let mut facts = Facts::new();
        facts.put("line", stage.normal(line)).put("header", stage.normal(&shape));
        facts.put("all", stage.normal(&stderr));
        facts
    });
}

#[test]
fn b08_rust_log_beats_the_log_level() {
    Row::new("B08").is("ERROR stderr", "").is("ERROR rc", 0).is("debug has DEBUG", true).check(|stage| {
        let mut facts = Facts::new();
        for (filter, level) in [("ERROR", "debug"), ("debug", "off"), ("off", "info"), ("bogus", "info"), ("", "info")]
        {
            let run = stage.serve(stage.basic(["--log-level", level]).env("RUST_LOG", filter).start());
            facts.put(format!("{filter} rc"), run.get("rc"));
            if filter == "debug" {
                facts.put("debug has DEBUG", run.get("stderr").contains("DEBUG"));
                facts.put("debug has INFO", run.get("stderr").contains("INFO"));
            } else {
                facts.put(format!("{filter} stderr"), run.get("stderr"));
            }
        }
        facts
    });
}

#[test]
fn b09_disconnect_ends_well() {
    let row = Row::new("B09").is("rc", 0).has("stderr", "Client connected, servicing requests");
    row.has("stderr", "Client disconnected, shutting down")
        .check(|stage| stage.serve(stage.ready(stage.basic(NO_ARGS))));
}

#[test]
fn b10_left_over_files() {
    let row = Row::new("B10").is("namespace 0 socket", "socket 700 0:0").is("none 0 socket", "absent");
    row.is("none 0 pid file", "file 600 0:0").check(|stage| {
        let mut facts = Facts::new();
        for sandbox in SANDBOXES {
            for signal in [0, libc::SIGTERM, libc::SIGINT, libc::SIGKILL] {
                let mut daemon = stage.ready(stage.basic(["--sandbox", sandbox]));
                let worker = daemon.worker();
                match signal {
                    0 => drop(stage.connect(&mut daemon)),
                    signal => daemon.signal(signal),
                }
                facts.put(format!("{sandbox} {signal} rc"), exit(&mut daemon));
                facts.put(format!("{sandbox} {signal} worker gone"), inspect::gone(worker));
                stage.put_files(&mut facts, &format!("{sandbox} {signal} "));
            }
        }
        facts
    });
}

#[test]
fn b11_term_and_hup_end_with_one() {
    for signal in [libc::SIGTERM, libc::SIGHUP] {
        for sandbox in SANDBOXES {
            let row = Row::new("B11").is("rc", 1).is("worker gone", true);
            row.check(|stage| signalled(stage, &["--sandbox", sandbox], signal));
        }
    }
}

#[test]
fn b12_the_worker_follows_a_killed_parent() {
    let row = Row::new("B12").is("rc", "signal 9").is("worker gone", true);
    row.check(|stage| signalled(stage, &[], libc::SIGKILL));
}

#[test]
fn b19_threads() {
    let row = Row::new("B19").has("0", "vring_worker").has("4", "vring_worker");
    row.check(|stage| {
        let mut facts = Facts::new();
        for pool in ["0", "4"] {
            let mut daemon = stage.ready(stage.basic(["--thread-pool-size", pool]));
            let (mut guest, _) = stage.connect(&mut daemon);
            guest.start_queues().expect("start the queues");
            guest.init().expect("INIT");
            let names = inspect::threads(daemon.worker()).join(", ");
            facts.put(pool, stage.normal(&names));
            drop(guest);
            facts.put(format!("{pool} rc"), exit(&mut daemon));
        }
        facts
    });
}

#[test]
fn b20_a_listening_descriptor() {
    let row = Row::new("B20").is("rc", 0).is("pid file", "absent").is("socket", "socket 755 0:0");
    row.check(|stage| {
        let listener = stage.listener();
        ovfs_compat_tests::launch::set_mode(&stage.socket(), 0o755);
        let daemon = stage.ready(stage.launch(["--shared-dir", "sh", "--fd", "3"]).pass_fd(listener, 3).umask(0o022));
        let mut files = Facts::new();
        stage.put_files(&mut files, "");
        let umask = inspect::status(daemon.worker(), "Umask");
        let mut facts = stage.serve(daemon);
        facts.put("socket", files.get("socket")).put("pid file", files.get("pid file")).put("umask", umask);
        facts
    });
}

#[test]
fn b21_a_connected_descriptor() {
    Row::new("B21").is("rc", 1).has("stderr", "code: 22").check(|stage| {
        let (ours, theirs) = UnixStream::pair().expect("make a pair");
        let facts =
            stage.ended(stage.launch(["--shared-dir", "sh", "--fd", "3", "--rlimit-nofile", "0"]).pass_fd(theirs, 3));
        drop(ours);
        facts
    });
}

#[test]
fn b22_a_closed_descriptor() {
    let row = Row::new("B22").is("rc", 1).has("stderr", "Bad file descriptor").has("stderr", "Waiting for");
    row.check(|stage| stage.ended(stage.launch(["--shared-dir", "sh", "--fd", "77", "--rlimit-nofile", "0"])));
}

#[test]
fn b23_a_second_client_is_never_answered() {
    Row::new("B23").is("connects", true).is("answered", false).is("first rc", 0).check(|stage| {
        let mut daemon = stage.ready(stage.basic(NO_ARGS));
        let (guest, _) = stage.connect(&mut daemon);
        let mut facts = Facts::new();
        let second = UnixStream::connect(stage.socket());
        facts.put("connects", second.is_ok());
        let answered = second.is_ok_and(|mut second| {
            second.set_read_timeout(Some(Duration::from_millis(300))).expect("set a time-out");
            // GET_FEATURES.
            let asked = second.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).is_ok();
            asked && second.read(&mut [0; 20]).is_ok_and(|count| count > 0)
        });
        facts.put("answered", answered);
        drop(guest);
        facts.put("first rc", exit(&mut daemon));
        facts
    });
}

#[test]
fn b24_garbage() {
    Row::new("B24").is("http rc", 0).has("http stderr", "HandleRequest(").check(|stage| {
        let mut facts = Facts::new();
        let runs: [(&str, &[u8]); 4] =
            [("http", b"GET / HTTP/1.0\r\n\r\n"), ("short", b"\x01\0\0\0"), ("zero", &[0; 12]), ("nothing", b"")];
        for (name, bytes) in runs {
            let daemon = stage.ready(stage.basic(NO_ARGS));
            let mut client = UnixStream::connect(stage.socket()).expect("connect");
            client.write_all(bytes).expect("send");
            drop(client);
            facts.put_finished(&format!("{name} "), stage, &daemon.finish());
            stage.put_files(&mut facts, &format!("{name} "));
        }
        facts
    });
}

/// Runs the rest of the command with a `/dev` of its own in which `/dev/log` is the socket `log`.
const WITH_DEV_LOG: &str = r#"set -e
mkdir dev; mount -t tmpfs none dev
for node in /dev/*; do
    name=${node#/dev/}
    if [ "$name" = log ]; then continue
    elif [ -L "$node" ]; then cp -P "$node" "dev/$name"
    elif [ -d "$node" ]; then mkdir "dev/$name"; mount --rbind "$node" "dev/$name"
    else : > "dev/$name"; mount --bind "$node" "dev/$name"
    fi
done
: > dev/log; mount --bind log dev/log; mount --move dev /dev
exec "$@""#;

#[test]
fn b25_syslog() {
    let row = Row::new("B25").is("stderr", "").is("rc", 0).is("tags are the parent's", true);
    row.has("datagrams", "<14>TIME NAME[PID]: Waiting for vhost-user socket connection...").check(|stage| {
        let log = UnixDatagram::bind(stage.path("log")).expect("bind");
        log.set_read_timeout(Some(ovfs_compat_tests::launch::START_TIMEOUT)).expect("set a time-out");
        let launch = stage.basic(["--syslog"]).through(["unshare", "-m", "sh", "-c", WITH_DEV_LOG, "sh"]);
        let mut daemon = launch.start();
        let pid = daemon.pid();
        let mut lines = Vec::new();
        let mut tagged = true;
        let mut receive = |until: &str| {
            let mut buffer = [0; 4096];
            loop {
                let Ok(count) = log.recv(&mut buffer) else {
                    lines.push(format!("no {until:?}"));
                    return;
                };
                let (line, tag) = text::datagram(&String::from_utf8_lossy(&buffer[..count]));
                tagged &= tag == Some(pid);
                let last = line.contains(until);
                lines.push(stage.normal(&line));
                if last {
                    return;
                }
            }
        };
        receive("Waiting for");
        drop(stage.connect(&mut daemon));
        receive("Client disconnected");
        let mut facts = Facts::new();
        facts.put_finished("", stage, &daemon.finish());
        facts.put("datagrams", lines.join("\n")).put("tags are the parent's", tagged);
        facts
    });
}

#[test]
fn b30_log_off() {
    Row::new("B30")
        .is("stderr", "")
        .is("stdout", "")
        .is("rc", 0)
        .check(|stage| stage.serve(stage.basic(["--log-level", "off"]).start()));
}

#[test]
fn b32_other_signals() {
    let row =
        Row::new("B32").is("pipe alive", true).is("10 rc", "signal 10").is("2 rc", "signal 2").is("6 rc", "signal 6");
    row.check(|stage| {
        let mut facts = Facts::new();
        let mut daemon = stage.ready(stage.basic(NO_ARGS));
        for pid in [daemon.pid(), daemon.worker()] {
            kill(pid, libc::SIGPIPE);
        }
        drop(stage.connect(&mut daemon));
        facts.put("pipe alive", exit(&mut daemon) == "0");
        for signal in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGINT, libc::SIGQUIT, libc::SIGALRM, libc::SIGABRT] {
            let run = signalled(stage, &[], signal);
            facts.put(format!("{signal} rc"), run.get("rc"));
            facts.put(format!("{signal} worker gone"), run.get("worker gone"));
        }
        facts
    });
}

#[test]
fn b33_start_time() {
    // The best of several: a busy machine is not the daemon's doing.
    Row::new("B33").is("socket below 200 ms", true).is("ready below 1 s", true).check(|stage| {
        let (mut socket, mut ready) = (Duration::MAX, Duration::MAX);
        for _ in 0..20 {
            let mut daemon = stage.basic(NO_ARGS).start();
            daemon.wait_socket(&stage.socket());
            socket = socket.min(daemon.age());
            daemon.wait_ready();
            ready = ready.min(daemon.age());
            drop(daemon);
            for file in ["run/s", "run/s.pid"] {
                fs::remove_file(stage.path(file)).expect("remove a left-over file");
            }
            if socket < Duration::from_millis(200) && ready < Duration::from_secs(1) {
                break;
            }
        }
        let mut facts = Facts::new();
        facts.put("socket below 200 ms", socket < Duration::from_millis(200));
        facts.put("ready below 1 s", ready < Duration::from_secs(1));
        facts
    });
}

#[test]
fn b34_a_killed_worker() {
    let row = Row::new("B34").is("rc", 247).has("stderr", "Child process terminated by signal 9");
    row.check(|stage| {
        let daemon = stage.ready(stage.basic(NO_ARGS));
        kill(daemon.worker(), libc::SIGKILL);
        let mut facts = Facts::new();
        facts.put_finished("", stage, &daemon.finish());
        stage.put_files(&mut facts, "");
        facts
    });
}

#[test]
fn b35_a_file_as_directory() {
    let row = Row::new("B35").is("rc", 1).has("stderr", "ChdirNewRoot");
    row.check(|stage| stage.ended(stage.launch(["--shared-dir", "sh/f", "--socket-path", "run/s"])));
}

#[test]
fn b36_a_longer_stale_pid_file() {
    Row::new("B36").is("begins with the pid", true).is("rest", "0123456789\n").check(|stage| {
        let filler = "0123456789\n";
        let mut daemon = stage.basic(NO_ARGS).start();
        daemon.wait_ready();
        let length = daemon.pid().to_string().len() + 1;
        drop(daemon);
        fs::write(stage.path("run/s.pid"), format!("{}{filler}", "x".repeat(length))).expect("write a file");
        // Ids of one machine grow, so the next one may have a digit more: then the filler is eaten by one.
        let daemon = stage.ready(stage.basic(NO_ARGS));
        let text = fs::read_to_string(stage.path("run/s.pid")).expect("read the pid file");
        let pid = format!("{}\n", daemon.pid());
        let mut facts = Facts::new();
        facts.put("begins with the pid", text.starts_with(&pid));
        let rest = text.strip_prefix(&pid).unwrap_or(&text);
        let eaten = filler.len().saturating_sub(pid.len() - length);
        facts.put("rest", if rest.len() == eaten && filler.ends_with(rest) { filler } else { rest });
        facts
    });
}

#[test]
fn y07_a_worker_is_told_to_die_with_its_parent_even_when_stopped() {
    Row::new("Y07").is("worker gone", true).check(|stage| {
        let mut daemon = stage.ready(stage.basic(NO_ARGS));
        let worker = daemon.worker();
        kill(worker, libc::SIGTERM);
        let mut facts = Facts::new();
        facts.put("rc", exit(&mut daemon)).put("worker gone", !is_alive(worker) || inspect::gone(worker));
        facts
    });
}

#[test]
fn y08_a_full_pipe_on_standard_error_does_not_stop_the_daemon() {
    // libvirt's log pipe is non-blocking: lines are lost, the daemon is not.
    Row::new("Y08").is("rc", 0).check(|stage| {
        let (read, mut write) = std::io::pipe().expect("make a pipe");
        // SAFETY: the descriptor is open; the call takes numbers only and its result is checked.
        let done = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        assert_eq!(done, 0, "make the pipe non-blocking");
        while write.write(&[b'x'; 65536]).is_ok() {}
        let mut daemon = stage.basic(NO_ARGS).pass_fd(write, 2).start();
        drop(stage.connect(&mut daemon));
        let mut facts = Facts::new();
        facts.put("rc", exit(&mut daemon));
        drop(read);
        facts
    });
}
