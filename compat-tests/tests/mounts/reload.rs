//! Settings that change while a guest works: keys, endpoints and timeouts of stores, in every way in which files are replaced.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ovfs_compat_tests::daemon::patience;
use ovfs_compat_tests::fuse::{ROOT, op};
use ovfs_compat_tests::gate::Gate;
use ovfs_compat_tests::guest::Call;
use ovfs_compat_tests::launch::{Daemon, Exit, Scratch, installed};
use ovfs_compat_tests::stores::{Kind, TestStore, free_port};

use super::{errno, guest, launch, s3, write};

pub(super) const IN_FORCE: &str = "new settings of the store are in force";
const STAYS: &str = "the settings before stay in force";

/// Keys rotated under load.
pub(super) const ROTATIONS: usize = 20;

/// A server that takes one pair of keys and checks signatures. Several can serve one directory.
pub(super) struct Server {
    process: Child,
    pub(super) port: u16,
    access: String,
    secret: String,
}

impl Server {
    fn start(dir: &Path, number: usize) -> Server {
        let (access, secret) = keys(number);
        Server::with_keys(dir, access, secret)
    }

    pub(super) fn with_keys(dir: &Path, access: String, secret: String) -> Server {
        let port = free_port();
        let mut command = Command::new(installed("s3s-fs").expect("s3s-fs is installed"));
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--access-key", &access, "--secret-key", &secret]).arg(dir);
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("s3s-fs starts");
        let end = Instant::now() + patience();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < end, "s3s-fs listens");
            thread::sleep(Duration::from_millis(20));
        }
        Server { process, port, access, secret }
    }

    /// What a file says of it.
    fn section(&self) -> String {
        self.section_through(self.port)
    }

    /// The same, if it is reached at another port.
    pub(super) fn section_through(&self, port: u16) -> String {
        section(port, &self.access, &self.secret, "bucket")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn keys(number: usize) -> (String, String) {
    (format!("access-{number}"), format!("secret-{number}"))
}

fn section(port: u16, access: &str, secret: &str, bucket: &str) -> String {
    format!(
        "[storage_settings]\ntype = \"s3\"\nbucket = \"{bucket}\"\nregion = \"us-east-1\"\n\
         endpoint = \"http://127.0.0.1:{port}\"\naccess_key_id = \"{access}\"\nsecret_access_key = \"{secret}\"\n"
    )
}

/// How often the log says something.
pub(super) fn count(daemon: &Daemon, text: &str) -> usize {
    daemon.stderr().lines().filter(|line| line.contains(text)).count()
}

pub(super) fn wait_count(daemon: &Daemon, text: &str, wanted: usize) {
    let end = Instant::now() + patience();
    while count(daemon, text) < wanted {
        assert!(Instant::now() < end, "{text:?} is not said {wanted} times: {}", daemon.stderr());
        thread::sleep(Duration::from_millis(50));
    }
}

pub(super) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251 + seed) as u8).collect()
}

/// A file of settings, behind links as Kubernetes has them.
pub(super) struct Settings<'a> {
    pub(super) dir: &'a Path,
    pub(super) generation: usize,
}

impl Settings<'_> {
    pub(super) fn file(&self) -> std::path::PathBuf {
        self.dir.join("ovfs.toml")
    }

    /// `ovfs.toml` → `..data/ovfs.toml`, and `..data` is replaced by another link.
    fn swap(&mut self, text: &str) {
        self.generation += 1;
        let name = format!("..generation-{}", self.generation);
        fs::create_dir(self.dir.join(&name)).expect("make a directory");
        write(&self.dir.join(&name).join("ovfs.toml"), text);
        symlink(&name, self.dir.join("..data-next")).expect("make a link");
        fs::rename(self.dir.join("..data-next"), self.dir.join("..data")).expect("replace the link");
        if !self.file().is_symlink() {
            fs::remove_file(self.file()).ok();
            symlink("..data/ovfs.toml", self.file()).expect("make a link");
        }
    }

    /// A new file takes the place of the old.
    fn rename(&self, text: &str) {
        let next = self.dir.join("next");
        write(&next, text);
        fs::rename(next, self.file()).expect("replace the file");
    }

    pub(super) fn put(&mut self, way: usize, text: &str) {
        match way % 3 {
            0 => write(&self.file(), text),
            1 => self.rename(text),
            _ => self.swap(text),
        }
    }
}

#[test]
fn keys_rotate_under_load_without_a_failed_request_or_a_lost_byte() {
    let scratch = Scratch::new();
    let objects = scratch.join("objects");
    fs::create_dir_all(objects.join("bucket")).expect("make the bucket");
    let mut servers: Vec<Server> = (0..3).map(|number| Server::start(&objects, number)).collect();
    let etc = scratch.join("etc");
    fs::create_dir(&etc).expect("make a directory");
    let mut settings = Settings { dir: &etc, generation: 0 };
    settings.put(0, &servers[0].section());
    let socket = scratch.join("run/s");
    let mut daemon = launch(&settings.file(), &socket).start();
    let mut guest = guest(&mut daemon, &socket);
    let mut written = Vec::new();
    for rotation in 1..=ROTATIONS {
        settings.put(rotation, &servers[rotation % servers.len()].section());
        let end = Instant::now() + patience();
        let mut after = 0;
        // Some more once the new ones are in force.
        while after < 2 {
            after += usize::from(count(&daemon, IN_FORCE) >= rotation);
            let (name, len) =
                (format!("file-{}", written.len()), if after == 1 && rotation % 4 == 0 { 24 << 20 } else { 1 << 20 });
            let bytes = pattern(len, written.len());
            guest.write_file(&name, &bytes).expect("write");
            assert!(guest.read_file(&name).expect("read") == bytes, "{name}");
            written.push((name, len));
            if written.len() % 8 == 0 {
                assert_eq!(guest.list("").expect("list").len(), written.len());
            }
            assert!(Instant::now() < end, "rotation {rotation}: {}", daemon.stderr());
        }
    }
    // Those whose keys are out of use can go.
    let last = servers.swap_remove(ROTATIONS % 3);
    drop(servers);
    guest.write_file("last", b"with the last keys").expect("write");
    assert_eq!(guest.list("").expect("list").len(), written.len() + 1);
    for (seed, (name, len)) in written.iter().enumerate() {
        assert!(fs::read(objects.join("bucket").join(name)).expect("it is stored") == pattern(*len, seed), "{name}");
        assert!(guest.read_file(name).expect("read") == pattern(*len, seed), "{name}");
    }
    drop(last);
    drop(guest);
    let finished = daemon.finish();
    assert_eq!(finished.exit, Exit::Code(0), "{}", finished.stderr);
    for number in 0..3 {
        assert!(!finished.stderr.contains(&keys(number).1), "{}", finished.stderr);
    }
    let warnings = finished.stderr.lines().filter(|line| line.contains("WARN") && line.contains("stay")).count();
    assert_eq!(warnings, 0, "{}", finished.stderr);
}

#[test]
fn settings_that_cannot_be_leave_the_old_in_force_and_say_so_once() {
    let scratch = Scratch::new();
    let objects = scratch.join("objects");
    fs::create_dir_all(objects.join("bucket")).expect("make the bucket");
    let server = Server::start(&objects, 1);
    let (file, socket) = (scratch.join("ovfs.toml"), scratch.join("run/s"));
    write(&file, &server.section());
    let mut daemon = launch(&file, &socket).start();
    let mut guest = guest(&mut daemon, &socket);
    let mut check = |name: &str| {
        guest.write_file(name, name.as_bytes()).expect("write");
        assert_eq!(guest.read_file(name).expect("read"), name.as_bytes());
    };

    write(&file, "[storage_settings\n");
    wait_count(&daemon, STAYS, 1);
    assert!(daemon.stderr().contains("ovfs.toml:1:"), "{}", daemon.stderr());
    check("broken");

    write(&file, &section(server.port, "access-1", "of-somebody-else", "bucket"));
    wait_count(&daemon, STAYS, 2);
    thread::sleep(Duration::from_secs(6));
    assert_eq!(count(&daemon, STAYS), 2, "{}", daemon.stderr());
    assert!(!daemon.stderr().contains("of-somebody-else"), "{}", daemon.stderr());
    check("refused");

    write(&file, &section(server.port, "access-1", "secret-1", "other-bucket"));
    daemon.wait_stderr("/: another store takes a restart; it stays as it was");
    check("other");

    write(&file, &format!("[options]\ncache_size = \"48M\"\nuid = 7\n{}", server.section()));
    daemon.wait_stderr("changed settings that take a restart to be in force: cache-size, uid");
    check("same");
    write(&file, &format!("{}[[mounts]]\npath = \"/new\"\ntype = \"memory\"\n", server.section()));
    daemon.wait_stderr("/new: it is mounted");
    check("added");
    assert_eq!((count(&daemon, IN_FORCE), count(&daemon, STAYS)), (0, 2), "{}", daemon.stderr());
}

#[test]
fn sighup_reads_the_file_again_and_ends_nothing() {
    let files = TestStore::start(Kind::Fs);
    files.put("f", b"here");
    let scratch = Scratch::new();
    let (file, socket) = (scratch.join("ovfs.toml"), scratch.join("run/s"));
    write(&file, &super::local("/", &files, ""));
    let mut daemon = launch(&file, &socket).start();
    let mut guest = guest(&mut daemon, &socket);
    for _ in 0..3 {
        daemon.signal(libc::SIGHUP);
        assert_eq!(guest.read_file("f").expect("read"), b"here");
    }
    write(&file, "[");
    wait_count(&daemon, STAYS, 1);
    daemon.signal(libc::SIGHUP);
    wait_count(&daemon, STAYS, 2);
    assert_eq!(guest.read_file("f").expect("read"), b"here");
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.finish().exit, Exit::Code(1));
}

#[test]
fn secret_in_a_file_of_its_own_is_followed() {
    let scratch = Scratch::new();
    let objects = scratch.join("objects");
    fs::create_dir_all(objects.join("bucket")).expect("make the bucket");
    let server = Server::start(&objects, 1);
    let (file, socket, secret) = (scratch.join("ovfs.toml"), scratch.join("run/s"), scratch.join("secret"));
    write(&secret, "secret-1\n");
    write(&file, &section(server.port, "access-1", &format!("file:{}", secret.display()), "bucket"));
    let mut daemon = launch(&file, &socket).start();
    let mut guest = guest(&mut daemon, &socket);
    write(&secret, "wrong");
    wait_count(&daemon, STAYS, 1);
    guest.write_file("f", b"with the old one").expect("write");
}

#[test]
fn timeout_of_one_mount_changes_while_its_store_is_silent() {
    let store = TestStore::start(Kind::S3sFs);
    let gate = Gate::before(store.port());
    let scratch = Scratch::new();
    let (file, socket) = (scratch.join("ovfs.toml"), scratch.join("run/s"));
    write(&file, &s3("/m", gate.port(), "request_timeout = \"40s\""));
    let mut daemon = launch(&file, &socket).start();
    let mut guest = guest(&mut daemon, &socket);
    assert!(guest.list("m").expect("list").is_empty());
    write(&file, &s3("/m", gate.port(), "request_timeout = \"2s\""));
    wait_count(&daemon, "/m: new settings of the store are in force", 1);
    gate.shut();
    let begun = Instant::now();
    assert_eq!(errno(guest.read_file("m/f")), libc::ETIMEDOUT);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    gate.open();
}

#[test]
fn upload_under_way_ends_where_it_began() {
    let scratch = Scratch::new();
    let objects = scratch.join("objects");
    fs::create_dir_all(objects.join("bucket")).expect("make the bucket");
    let servers = [Server::start(&objects, 0), Server::start(&objects, 1)];
    let gate = Gate::before(servers[0].port);
    let (file, socket) = (scratch.join("ovfs.toml"), scratch.join("run/s"));
    write(&file, &section(gate.port(), "access-0", "secret-0", "bucket"));
    let mut daemon = launch(&file, &socket).start();
    let mut guest = guest(&mut daemon, &socket);
    let (entry, opened) = guest.create(ROOT, b"slow", libc::O_WRONLY, 0o644).expect("create");
    let bytes = pattern(3 << 20, 5);
    guest.write_all(entry.nodeid, opened.fh, 0, &bytes).expect("write");
    gate.shut();
    let mut arg = opened.fh.to_le_bytes().to_vec();
    arg.extend([0; 16]);
    let call = Call { opcode: op::FLUSH, nodeid: entry.nodeid, args: vec![&arg], reply: Some(0), ..Call::default() };
    let flush = guest.submit(&call).expect("submit");
    thread::sleep(Duration::from_millis(300));
    write(&file, &servers[1].section());
    wait_count(&daemon, IN_FORCE, 1);
    guest.write_file("fast", b"by the new way").expect("write");
    assert!(!objects.join("bucket/slow").exists());
    gate.open();
    guest.wait(flush).expect("the old way works still");
    assert!(fs::read(objects.join("bucket/slow")).expect("it is stored") == bytes);
    assert_eq!(fs::read(objects.join("bucket/fast")).expect("it is stored"), b"by the new way");
}
