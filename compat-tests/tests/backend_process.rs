//! ovfs with a backend: two processes, a device process that owns nothing, errors before the socket, secrets nowhere.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ovfs_compat_tests::launch::{Daemon, EXIT_TIMEOUT, Exit, Finished, Launch, READY, Which, installed, kill};
use ovfs_compat_tests::minivu::ROOT;
use ovfs_compat_tests::rows::{Program, Stage, inspect};

const NO_CAPS: &str = "0000000000000000";
const SANDBOXES: [&str; 3] = ["namespace", "chroot", "none"];
/// What a secret contains, in plain and in percent-encoded form alike.
const CANARY: &str = "cAnArY9f2c7e51";
/// A secret whose other characters need encoding in a URL.
const SECRET: &str = "k/cAnArY9f2c7e51+x";
const SECRET_IN_URL: &str = "k%2FcAnArY9f2c7e51%2Bx";

fn stage() -> Stage<'static> {
    static OVFS: OnceLock<Program> = OnceLock::new();
    Stage::new(OVFS.get_or_init(|| Program::find(Which::Ovfs)))
}

/// `--backend URL --socket-path run/s`, then more.
fn with_backend(stage: &Stage<'_>, url: &str, args: &[&str]) -> Launch {
    stage.launch(["--backend", url, "--socket-path", "run/s"]).args(args)
}

fn fs_url(stage: &Stage<'_>) -> String {
    format!("fs://?root={}", stage.path("sh").display())
}

/// Negotiates, reads `f` if there is one, hangs up: the text of the read and the end.
fn serve(stage: &Stage<'_>, mut daemon: Daemon) -> (String, Finished) {
    let (mut guest, _) = stage.connect(&mut daemon);
    guest.start_queues().expect("start the queues");
    guest.init().expect("INIT");
    let read = inspect::read_of(&mut guest, ROOT, "f");
    drop(guest);
    (read, daemon.finish())
}

fn assert_confined(daemon: &Daemon) {
    let device = daemon.worker();
    assert_ne!(device, daemon.pid(), "the device process is a process of its own");
    let own = "cgroup shared, ipc shared, mnt own, net own, pid own, user shared, uts shared";
    assert_eq!(inspect::namespaces(device), own);
    for (key, value) in [("Seccomp", "2"), ("NoNewPrivs", "1"), ("Groups", "")] {
        assert_eq!(inspect::status(device, key), value, "{key}");
    }
    for key in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(inspect::status(device, key), NO_CAPS, "{key}");
    }
    assert_eq!(inspect::interfaces(device), ["lo"]);
    let root = fs::read_dir(format!("/proc/{device}/root")).expect("read the root directory");
    let names: Vec<_> = root.flatten().map(|entry| entry.file_name()).collect();
    assert!(names.is_empty(), "the device process sees {names:?}");
}

#[test]
fn the_device_process_is_confined_and_owns_nothing() {
    for url in ["memory://", "fs://?root=sh"] {
        let stage = stage();
        let url = if url.starts_with("fs") { fs_url(&stage) } else { url.to_owned() };
        let mut daemon = stage.ready(with_backend(&stage, &url, &[]));
        assert_eq!(daemon.descendants().len(), 1, "{url}: two processes");
        assert_confined(&daemon);
        let (guest, offer) = stage.connect(&mut daemon);
        guest.start_queues().expect("start the queues");
        assert_eq!(offer.features, 0x1_7400_0000, "{url}");
        assert_confined(&daemon);
        drop(guest);
        assert_eq!(daemon.finish().exit, Exit::Code(0), "{url}");
    }
}

#[test]
fn the_broker_keeps_the_hosts_network_and_root() {
    let stage = stage();
    let daemon = stage.ready(with_backend(&stage, "memory://", &[]));
    let shared = inspect::namespaces(std::process::id());
    assert_eq!(inspect::namespaces(daemon.pid()).replace("mnt own", "mnt shared"), shared);
}

#[test]
fn a_directory_as_a_store_is_read_through_both_processes() {
    let stage = stage();
    for (url, sandbox) in SANDBOXES.into_iter().map(|sandbox| (fs_url(&stage), sandbox)) {
        let daemon = stage.ready(with_backend(&stage, &url, &["--sandbox", sandbox]));
        assert_eq!(daemon.descendants().len(), 1, "two processes with --sandbox {sandbox}");
        let (read, finished) = serve(&stage, daemon);
        assert!(read.contains("\"hello\\n\""), "--sandbox {sandbox}: {read}");
        assert_eq!(finished.exit, Exit::Code(0), "--sandbox {sandbox}: {}", finished.stderr);
    }
    let daemon = stage.ready(with_backend(&stage, &format!("fs://{}", stage.path("sh").display()), &[]));
    assert!(serve(&stage, daemon).0.contains("\"hello\\n\""), "the path form of the URL");
}

#[test]
fn an_empty_store_has_no_file() {
    let stage = stage();
    let (read, finished) = serve(&stage, stage.ready(with_backend(&stage, "memory://", &[])));
    assert!(read.starts_with("No such file"), "{read}");
    assert_eq!(finished.exit, Exit::Code(0), "{}", finished.stderr);
    assert!(finished.stderr.contains(READY) && finished.stderr.contains("Client disconnected"), "{}", finished.stderr);
}

#[test]
fn a_thread_pool_is_accepted_and_not_made() {
    let threads = |args: &[&str]| {
        let stage = stage();
        let daemon = stage.ready(with_backend(&stage, "memory://", args));
        fs::read_dir(format!("/proc/{}/task", daemon.worker())).expect("list threads").count()
    };
    assert_eq!(threads(&["--thread-pool-size", "16"]), threads(&[]));
}

#[test]
fn seccomp_none_is_honoured() {
    let stage = stage();
    let daemon = stage.ready(with_backend(&stage, "memory://", &["--seccomp", "none"]));
    assert_eq!(inspect::status(daemon.worker(), "Seccomp"), "0");
    assert_eq!(inspect::status(daemon.worker(), "CapEff"), NO_CAPS);
}

#[test]
fn an_ordinary_user_can_use_a_backend() {
    let stage = stage();
    let launch = Launch::new(stage.public_exe()).cwd(stage.scratch.path()).user(1000, 1000);
    let daemon = stage.ready(launch.args(["--backend", "memory://", "--socket-path", "run/s"]));
    let device = daemon.worker();
    assert_eq!(inspect::status(device, "CapEff"), NO_CAPS);
    assert_eq!(inspect::interfaces(device), ["lo"]);
    assert_eq!(serve(&stage, daemon).1.exit, Exit::Code(0));
}

#[test]
fn a_listening_descriptor_serves_a_backend_too() {
    let stage = stage();
    let listener = stage.listener();
    let daemon = stage.ready(stage.launch(["--fd", "7", "--backend", &fs_url(&stage)]).pass_fd(listener, 7));
    let (read, finished) = serve(&stage, daemon);
    assert!(read.contains("\"hello\\n\""), "{read}");
    assert_eq!(finished.exit, Exit::Code(0));
    assert!(!stage.path("run/s.pid").exists());
}

#[test]
fn files_are_made_as_virtiofsd_makes_them() {
    let stage = stage();
    let daemon = stage.ready(with_backend(&stage, "memory://", &[]).umask(0));
    assert_eq!(inspect::file(&stage.socket()), "socket 700 0:0");
    assert_eq!(inspect::file(&stage.path("run/s.pid")), "file 600 0:0");
    let pid = fs::read_to_string(stage.path("run/s.pid")).expect("read the pid file");
    assert_eq!(pid, format!("{}\n", daemon.pid()));
}

#[test]
fn names_follow_the_executable() {
    let stage = stage();
    let launch = Launch::new(stage.linked_as("virtiofsd")).cwd(stage.scratch.path());
    let daemon = stage.ready(launch.args(["--backend", "memory://", "--socket-path", "run/s"]));
    for pid in [daemon.pid(), daemon.worker()] {
        assert_eq!(inspect::proc_file(pid, "comm"), "virtiofsd");
    }
}

#[test]
fn the_short_form_is_a_socket_and_a_url() {
    let stage = stage();
    let (read, finished) = serve(&stage, stage.ready(stage.launch(["run/s", &fs_url(&stage)])));
    assert!(read.contains("\"hello\\n\""), "{read}");
    assert_eq!(finished.exit, Exit::Code(0));
    // Options may stand on either side of it.
    for args in [["--cache=never", "run/s", "memory://"], ["run/s", "memory://", "--cache=never"]] {
        assert_eq!(serve(&stage, stage.ready(stage.launch(args))).1.exit, Exit::Code(0), "{args:?}");
    }
}

#[test]
fn stray_positionals_are_refused() {
    let stage = stage();
    let lines: [(&[&str], &str); 4] = [
        // Three are not the short form, so the first one is already too many.
        (&["run/s", "memory://", "extra"], "'run/s'"),
        (&["extra"], "'extra'"),
        (&["--backend", "memory://", "--socket-path", "run/s", "extra"], "'extra'"),
        (&["--shared-dir", "sh", "--socket-path", "run/s", "extra"], "'extra'"),
    ];
    for (args, word) in lines {
        let finished = stage.launch(args).run();
        assert_eq!(finished.exit, Exit::Code(2), "{args:?}: {}", finished.stderr);
        let text = format!("error: unexpected argument {word} found");
        assert!(finished.stderr.contains(&text), "{args:?}: {}", finished.stderr);
        assert_nothing_left(&stage);
    }
}

#[test]
fn the_shared_directory_only_has_to_be_a_string() {
    let stage = stage();
    let daemon = stage.ready(with_backend(&stage, &fs_url(&stage), &["--shared-dir", "/no/such/directory"]));
    let (read, finished) = serve(&stage, daemon);
    assert!(read.contains("\"hello\\n\""), "{read}");
    assert_eq!(finished.exit, Exit::Code(0));
    let daemon = stage.ready(with_backend(&stage, "memory://", &["-o", "source=/no/such/directory,cache=none"]));
    assert_eq!(serve(&stage, daemon).1.exit, Exit::Code(0));
}

#[test]
fn options_without_a_meaning_are_accepted() {
    let stage = stage();
    let args = [
        "--xattr",
        "--announce-submounts",
        "--inode-file-handles=mandatory",
        "--posix-acl=never",
        "--security-label=auto",
        "--xattrmap=:map::user.virtiofs.:",
        "--thread-pool-size=4",
        "--modcaps=-mknod",
        "--translate-gid=map:0:1000:1",
        "--killpriv-v2",
        "--allow-direct-io",
        "--preserve-noatime",
        "--migration-mode=file-handles",
    ];
    let daemon = stage.ready(with_backend(&stage, &fs_url(&stage), &args));
    assert_confined(&daemon);
    let (read, finished) = serve(&stage, daemon);
    assert!(read.contains("\"hello\\n\""), "{read}");
    assert_eq!(finished.exit, Exit::Code(0), "{}", finished.stderr);
}

fn assert_nothing_left(stage: &Stage<'_>) {
    assert_eq!(inspect::file(&stage.socket()), "absent");
    assert_eq!(inspect::file(&stage.path("run/s.pid")), "absent");
}

/// One error line, or clap's one error paragraph.
fn error_lines(stderr: &str) -> Vec<&str> {
    stderr.lines().filter(|line| line.starts_with("error: ") || line.contains(" ERROR ")).collect()
}

#[test]
fn a_bad_url_is_one_error_before_the_socket() {
    // URL and the word that the error has to name.
    let urls = [
        ("nosuch://x", "nosuch"),
        ("not a url", "URL"),
        ("", "URL"),
        ("memory://?bogus_key=1", "bogus_key"),
        ("s3://bucket?region=r&bogus_key=1", "bogus_key"),
        ("s3://?region=us-east-1", "bucket"),
        ("s3://bucket", "region"),
        ("fs://", "root"),
        ("fs://?bogus_key=/x", "bogus_key"),
        ("redis://127.0.0.1:6379", "redis"),
        ("memcached://127.0.0.1:11211", "memcached"),
        ("etcd://127.0.0.1:2379", "etcd"),
        ("http://127.0.0.1:1/", "http"),
    ];
    for (url, word) in urls {
        let stage = stage();
        for launch in [with_backend(&stage, url, &[]), with_backend(&stage, url, &["--log-level", "trace"])] {
            let finished = launch.run();
            assert!(matches!(finished.exit, Exit::Code(1 | 2)), "{url:?}: rc {}", finished.exit);
            let errors = error_lines(&finished.stderr);
            assert_eq!(errors.len(), 1, "{url:?}: {}", finished.stderr);
            assert!(errors[0].contains(word), "{url:?} should name {word:?}: {}", errors[0]);
            assert!(!finished.stderr.contains("panicked"), "{url:?}: {}", finished.stderr);
            assert_eq!(finished.stdout, "", "{url:?}");
            assert_nothing_left(&stage);
        }
    }
}

#[test]
fn services_that_cannot_list_are_refused_with_that_reason() {
    for scheme in ["redis", "memcached", "tikv", "cloudflare-kv", "moka", "mongodb"] {
        let stage = stage();
        let finished = with_backend(&stage, &format!("{scheme}://127.0.0.1:1"), &[]).run();
        let errors = error_lines(&finished.stderr);
        assert_eq!(errors.len(), 1, "{scheme}: {}", finished.stderr);
        assert!(errors[0].contains(&format!("'{scheme}' cannot list")), "{}", errors[0]);
        assert_nothing_left(&stage);
    }
}

#[test]
fn term_ends_with_one_with_and_without_a_guest() {
    for connected in [false, true] {
        for sandbox in SANDBOXES {
            let stage = stage();
            let mut daemon = stage.ready(with_backend(&stage, "memory://", &["--sandbox", sandbox]));
            let device = daemon.worker();
            let guest = connected.then(|| stage.connect(&mut daemon));
            daemon.signal(libc::SIGTERM);
            let finished = daemon.finish();
            assert_eq!(finished.exit, Exit::Code(1), "{sandbox}, guest: {connected}: {}", finished.stderr);
            assert!(inspect::gone(device), "the device process stays");
            drop(guest);
        }
    }
}

#[test]
fn a_killed_device_process_is_reported() {
    let stage = stage();
    let daemon = stage.ready(with_backend(&stage, "memory://", &[]));
    kill(daemon.worker(), libc::SIGKILL);
    let finished = daemon.finish();
    assert_eq!(finished.exit, Exit::Code(247), "{}", finished.stderr);
    assert!(finished.stderr.contains("Child process terminated by signal 9"), "{}", finished.stderr);
}

#[test]
fn the_device_process_follows_a_killed_broker() {
    for sandbox in SANDBOXES {
        let stage = stage();
        let mut daemon = stage.ready(with_backend(&stage, "memory://", &["--sandbox", sandbox]));
        let device = daemon.worker();
        let guest = stage.connect(&mut daemon);
        daemon.signal(libc::SIGKILL);
        assert_eq!(daemon.wait_exit(EXIT_TIMEOUT).expect("an end"), Exit::Signal(9));
        assert!(inspect::gone(device), "the device process outlives its broker with --sandbox {sandbox}");
        drop(guest);
    }
}

/// A real S3 server that checks signatures, with one bucket and one file.
struct S3 {
    _server: Daemon,
    port: u16,
}

impl S3 {
    fn start(stage: &Stage<'_>) -> Self {
        let exe = installed("s3s-fs").unwrap_or_else(|| {
            panic!("no s3s-fs: run `cargo install --locked --version 0.14.1 --features binary s3s-fs`")
        });
        let root = stage.path("s3");
        fs::create_dir_all(root.join("bucket")).expect("make a bucket");
        fs::write(root.join("bucket/f"), "hello\n").expect("write an object");
        // Another process may take the port in between: try again then.
        for _ in 0..10 {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("find a port");
            let port = listener.local_addr().expect("an address").port();
            drop(listener);
            let args = ["--host", "127.0.0.1", "--access-key", "ours", "--secret-key", SECRET, "--port"];
            let mut server = Launch::new(&exe).args(args).arg(port.to_string()).arg(&root).start();
            let deadline = Instant::now() + EXIT_TIMEOUT;
            while server.try_exit().is_none() && Instant::now() < deadline {
                if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                    return Self { _server: server, port };
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        panic!("s3s-fs does not start");
    }

    fn url(&self, rest: &str) -> String {
        format!("s3://bucket?region=us-east-1&endpoint=http://127.0.0.1:{}{rest}", self.port)
    }

    fn url_with_secret(&self) -> String {
        self.url(&format!("&access_key_id=ours&secret_access_key={SECRET_IN_URL}"))
    }
}

fn assert_no_canary(what: &str, text: &str) {
    assert!(!text.contains(CANARY), "{what} shows the secret:\n{text}");
}

fn assert_no_canary_in_processes(daemon: &Daemon) {
    for pid in [vec![daemon.pid()], daemon.descendants()].concat() {
        let words = fs::read(format!("/proc/{pid}/cmdline")).expect("read a command line");
        assert!(!words.is_empty(), "the command line of {pid} is still there");
        assert_no_canary("a command line", &String::from_utf8_lossy(&words));
        assert_no_canary("a process name", &inspect::proc_file(pid, "comm"));
    }
}

#[test]
fn a_secret_in_the_url_is_seen_nowhere_while_serving() {
    let stage = stage();
    let s3 = S3::start(&stage);
    let url = s3.url_with_secret();
    let runs = [
        stage.launch(["--socket-path", "run/s", "--backend", &url]),
        stage.launch(["--socket-path", "run/s", &format!("--backend={url}"), "--log-level", "trace"]),
        stage.launch(["run/s", &url, "--log-level", "trace"]),
    ];
    for launch in runs {
        let mut daemon = stage.ready(launch);
        assert_no_canary_in_processes(&daemon);
        let (mut guest, _) = stage.connect(&mut daemon);
        guest.start_queues().expect("start the queues");
        guest.init().expect("INIT");
        let read = inspect::read_of(&mut guest, ROOT, "f");
        assert!(read.contains("\"hello\\n\""), "the secret works: {read}");
        assert_no_canary_in_processes(&daemon);
        assert_no_network_descriptor(&daemon);
        drop(guest);
        let finished = daemon.finish();
        assert_eq!(finished.exit, Exit::Code(0), "{}", finished.stderr);
        assert_no_canary("standard error", &finished.stderr);
        assert_no_canary("standard output", &finished.stdout);
    }
}

/// No descriptor of the device process is a socket of the host's network.
fn assert_no_network_descriptor(daemon: &Daemon) {
    let sockets: Vec<String> = fs::read_dir(format!("/proc/{}/fd", daemon.worker()))
        .expect("read the descriptors")
        .flatten()
        .filter_map(|entry| {
            fs::read_link(entry.path()).ok()?.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned)
        })
        .collect();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = inspect::proc_file(daemon.pid(), &format!("net/{table}"));
        let inodes = text.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().nth(9));
        for inode in inodes {
            assert!(!sockets.iter().any(|socket| socket == inode), "the device process holds a {table} socket");
        }
    }
}

/// What the design promises of the process that parses the guest's requests: it has no credential to give away.
fn assert_no_secret_in_device_memory(stage: &Stage<'_>, launch: Launch) {
    let mut daemon = stage.ready(launch);
    let assert_clean = |device: u32, when: &str| {
        assert!(!memory_holding(device, b"--socket-path").is_empty(), "the search finds what is there");
        let found = memory_holding(device, CANARY.as_bytes());
        assert!(found.is_empty(), "{when}, the secret is in the device process: {found:#?}");
    };
    assert_clean(daemon.worker(), "before a guest");
    let (mut guest, _) = stage.connect(&mut daemon);
    guest.start_queues().expect("start the queues");
    guest.init().expect("INIT");
    let read = inspect::read_of(&mut guest, ROOT, "f");
    assert!(read.contains("\"hello\\n\""), "the secret works: {read}");
    assert_clean(daemon.worker(), "with a guest");
}

#[test]
fn a_secret_from_the_url_is_not_in_the_device_process_memory() {
    let stage = stage();
    let s3 = S3::start(&stage);
    assert_no_secret_in_device_memory(&stage, with_backend(&stage, &s3.url_with_secret(), &[]));
}

#[test]
fn a_secret_from_the_environment_is_not_in_the_device_process_memory() {
    let stage = stage();
    let s3 = S3::start(&stage);
    let launch = with_backend(&stage, &s3.url(""), &[]);
    let launch = launch.env("AWS_ACCESS_KEY_ID", "ours").env("AWS_SECRET_ACCESS_KEY", SECRET);
    assert_no_secret_in_device_memory(&stage, launch);
}

#[test]
fn a_secret_from_a_file_of_settings_is_not_in_the_device_process_memory() {
    let stage = stage();
    let s3 = S3::start(&stage);
    let store = format!(
        "type = \"s3\"\nbucket = \"bucket\"\nregion = \"r\"\nendpoint = \"http://127.0.0.1:{}\"\n\
         access_key_id = \"ours\"\nsecret_access_key = \"{SECRET}\"\n",
        s3.port
    );
    // Of the two, one is served.
    let text = format!("[storage_settings]\n{store}[[shares]]\nshared_dir = \"/elsewhere\"\n{store}");
    fs::write(stage.path("ovfs.toml"), text).expect("write the file");
    let launch = stage.launch(["--config-file", "ovfs.toml", "--socket-path", "run/s"]);
    assert_no_secret_in_device_memory(&stage, launch);
}

#[test]
fn secrets_of_mounts_are_not_in_the_device_process_memory() {
    let stage = stage();
    let s3 = S3::start(&stage);
    let url = s3.url_with_secret();
    // Some are served, in the root and below it; of those for one place, only the last is.
    let (mount, superseded) = (format!("--backend=/a={url}"), format!("--backend=/a={url}&root=/old"));
    assert_no_secret_in_device_memory(&stage, with_backend(&stage, &url, &[&superseded, &mount, "--backend", &url]));
    let store = format!(
        "type = \"s3\"\nbucket = \"bucket\"\nregion = \"r\"\nendpoint = \"http://127.0.0.1:{}\"\n\
         access_key_id = \"ours\"\nsecret_access_key = \"{SECRET}\"\n",
        s3.port
    );
    let mounts = ["/a", "/b/c"].map(|path| format!("[[mounts]]\npath = \"{path}\"\n{store}")).concat();
    fs::write(stage.path("ovfs.toml"), format!("[storage_settings]\n{store}{mounts}")).expect("write the file");
    let launch = stage.launch(["--config-file", "ovfs.toml", "--socket-path", "run/s"]);
    assert_no_secret_in_device_memory(&stage, launch);
}

/// The mappings of a process that contain these bytes. Not the shared pool: it holds file data only.
fn memory_holding(pid: u32, needle: &[u8]) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("read the mappings");
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).expect("open the memory");
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|access| access.starts_with("rw-p"))) {
        let range = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let [from, to] = [range.0, range.1].map(|end| u64::from_str_radix(end, 16).expect("an address"));
        let mut at = from;
        while at < to {
            // Overlapping by the needle's length, so that no border hides it.
            let length = (to - at).min(1 << 20);
            let mut bytes = vec![0; usize::try_from(length).expect("a small piece")];
            let readable = memory.seek(SeekFrom::Start(at)).is_ok() && memory.read_exact(&mut bytes).is_ok();
            if readable && bytes.windows(needle.len()).any(|window| window == needle) {
                found.push(line.to_owned());
                break;
            }
            at += if length == 1 << 20 { length - needle.len() as u64 } else { length };
        }
    }
    found
}

#[test]
fn a_secret_is_in_no_error_of_a_start_that_fails() {
    let stage = stage();
    let s3 = S3::start(&stage);
    let secret = format!("access_key_id=ours&secret_access_key={SECRET_IN_URL}");
    let urls = [
        format!("s3://bucket?region=r&bogus_key=1&{secret}"),
        format!("s3://?region=r&{secret}"),
        format!("s3://bucket?{secret}"),
        format!("nosuch://x?{secret}"),
        format!("s3://bucket?region=r&endpoint=http://127.0.0.1:1&{secret}"),
        format!("webdav://user:{SECRET_IN_URL}@127.0.0.1:1/"),
        format!("webdav://?endpoint=http://127.0.0.1:1&username=u&password={SECRET_IN_URL}"),
        s3.url(&format!("&access_key_id=other&secret_access_key={SECRET_IN_URL}")),
        s3.url(&format!("&access_key_id=ours&secret_access_key={SECRET_IN_URL}wrong")),
    ];
    for url in &urls {
        let lines = [
            with_backend(&stage, url, &["--log-level", "trace"]),
            with_backend(&stage, url, &["--bogus"]),
            stage.launch(["run/s", url, "extra"]),
            with_backend(&stage, url, &["--socket-group", "nosuchgrp", "--log-level", "trace"]),
            stage.launch(["--socket-path", "nodir/s", "--log-level", "trace", "--backend", url]),
        ];
        for launch in lines {
            let mut daemon = launch.start();
            // A store that does not answer may delay the start or fail it: both are fine here.
            let deadline = Instant::now() + Duration::from_secs(3);
            while daemon.try_exit().is_none() && Instant::now() < deadline && !daemon.stderr().contains(READY) {
                std::thread::sleep(Duration::from_millis(5));
            }
            if daemon.try_exit().is_none() {
                assert_no_canary_in_processes(&daemon);
            }
            assert_no_canary("standard error", &daemon.stderr());
            assert_no_canary("standard output", &daemon.stdout());
        }
    }
}

#[test]
fn a_symbolic_link_does_not_lead_out_of_a_directory_store() {
    let stage = stage();
    let outside = stage.path("outside");
    fs::write(&outside, "secret\n").expect("write a file");
    for (name, target) in [("f2", Path::new("../outside")), ("f3", outside.as_path())] {
        std::os::unix::fs::symlink(target, stage.path("sh").join(name)).expect("make a link");
    }
    let mut daemon = stage.ready(with_backend(&stage, &fs_url(&stage), &[]));
    let (mut guest, _) = stage.connect(&mut daemon);
    guest.start_queues().expect("start the queues");
    guest.init().expect("INIT");
    for name in ["f2", "f3"] {
        let read = inspect::read_of(&mut guest, ROOT, name);
        assert!(!read.contains("secret"), "{name}: {read}");
    }
}
