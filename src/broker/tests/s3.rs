//! Real S3 servers: moto (faithful, checks no signatures) and s3s-fs (checks signatures, differs in every corner). A
//! missing one is a failure that tells how to install it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;

/// A server of the test's own, ended with it.
pub(super) struct Server {
    child: Child,
    pub port: u16,
    _dir: Option<tempfile::TempDir>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Below the ports that the kernel gives to outgoing connections: whoever asks again and again whether a server listens on
/// one of those ends up connected to itself.
fn free_port() -> u16 {
    use std::hash::{BuildHasher, Hasher};
    (0..1000)
        .map(|_| 12_000 + (std::hash::RandomState::new().build_hasher().finish() % 20_000) as u16)
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("a free port")
}

/// The program `name`: from PATH, from where cargo installs, or from where `scripts/test` does. `install` is the command
/// that gets it.
fn program(name: &str, install: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    std::env::split_paths(&path)
        .chain(cargo_home.map(|home| home.join("bin")))
        .chain(["tools/bin", "venv/bin"].map(|dir| target.join(dir)))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: {install}"))
}

fn start(command: &mut Command, port: u16) -> Server {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let server = Server { child, port, _dir: None };
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "{name} does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    server
}

fn moto_on(port: u16) -> Server {
    let mut command = Command::new(program("moto_server", "pip install 'moto[server]'"));
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    let server = start(&mut command, port);
    put_raw(&server, "", b"");
    server
}

pub(super) fn moto() -> Server {
    moto_on(free_port())
}

pub(super) fn s3s() -> Server {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("bucket")).unwrap();
    let port = free_port();
    let install = "cargo install s3s-fs --version 0.14.1 --features binary --locked";
    let mut command = Command::new(program("s3s-fs", install));
    command.args(["--access-key", "KEY", "--secret-key", "SECRET", "--host", "127.0.0.1", "--port", &port.to_string()]);
    command.arg(dir.path());
    let mut server = start(&mut command, port);
    server._dir = Some(dir);
    server
}

/// Enough of a signature for moto.
const SIGNED: &str = "Authorization: AWS4-HMAC-SHA256 Credential=KEY/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

/// A request as no library would send it, and the whole answer; only for moto, which checks no signatures. `headers` end with
/// CR LF each.
pub(super) fn raw(server: &Server, method: &str, path: &str, headers: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let head = format!(
        "{method} /bucket{path} HTTP/1.1\r\nHost: s3.amazonaws.com\r\n{SIGNED}\r\n{headers}Content-Length: {}\r\nConnection: \
         close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

pub(super) fn put_raw(server: &Server, key: &str, body: &[u8]) {
    put_with(server, key, "", body);
}

pub(super) fn put_with(server: &Server, key: &str, headers: &str, body: &[u8]) {
    let answer = raw(server, "PUT", key, headers, body);
    assert!(answer.starts_with("HTTP/1.1 200"), "{key}: {answer}");
}

/// The headers of an object, in lower case.
pub(super) fn head(server: &Server, key: &str) -> String {
    raw(server, "HEAD", key, "", b"").to_ascii_lowercase()
}

pub(super) fn url(server: &Server, root: &str) -> String {
    url_at(server.port, root)
}

pub(super) fn url_at(port: u16, root: &str) -> String {
    format!(
        "s3://bucket{root}?region=us-east-1&endpoint=http://127.0.0.1:{port}&access_key_id=KEY&secret_access_key=SECRET"
    )
}

#[test]
fn moto_keeps_the_contract() {
    let server = moto();
    let bed = Bed::new(&url(&server, "/some/root"));
    let can = block_on(bed.remote.probe()).unwrap();
    assert!(can.copy_ranges && can.etag && can.write_if_match && can.write_if_absent && !can.rename);
    contract(&bed, Corners::default());
    reserved_names(&bed);
}

#[test]
fn s3s_keeps_the_contract() {
    let server = s3s();
    let bed = Bed::new(&url(&server, ""));
    block_on(bed.remote.probe()).unwrap();
    contract(&bed, Corners { no_markers: true, real_dirs: true, ..Corners::default() });
    reserved_names(&bed);
}

#[test]
fn five_thousand_entries_and_a_rename_of_them_all() {
    let server = moto();
    let bed = Bed::with_timeout(&url(&server, ""), Duration::from_secs(300));
    many(&bed, 2500);
    bed.rename_dir("many", "moved").unwrap();
    assert_eq!(bed.names("moved").len(), 2500);
    assert_eq!(bed.names(""), ["moved"]);
}

fn large_objects(bed: &Bed) {
    let mib = 1usize << 20;
    let copy = |offset: usize, len: usize| Segment::Copy { base: 0, offset: offset as u64, len: len as u64 };
    let mut want = noise(40 * mib, 9);
    let slices: Vec<_> = want.chunks(mib).map(|part| bed.data(part)).collect();
    let mut meta = block_on(bed.remote.compose("big", Vec::new(), Condition::IfAbsent, slices, None, ())).unwrap();
    assert_eq!(meta.size, want.len() as u64);
    assert_eq!(bed.get("big"), want);
    // A change in the middle: the store copies the rest.
    meta = bed
        .rewrite("big", &meta, vec![copy(0, 20 * mib + 1), bed.data(b"changed"), copy(20 * mib + 8, 20 * mib - 8)])
        .unwrap();
    want[20 * mib + 1..20 * mib + 8].copy_from_slice(b"changed");
    assert!(bed.get("big") == want);
    // An append, then a cut.
    meta = bed.rewrite("big", &meta, vec![copy(0, 40 * mib), bed.data(b"tail")]).unwrap();
    want.extend(b"tail");
    let end = bed.read("big", Some(meta.version()), 40 * mib as u64 - 4, 8).unwrap();
    assert_eq!(end, want[40 * mib - 4..]);
    meta = bed.rewrite("big", &meta, vec![copy(0, 17 * mib + 5)]).unwrap();
    want.truncate(17 * mib + 5);
    assert_eq!(meta.size, want.len() as u64);
    assert!(bed.get("big") == want);
    // A base that is gone is noticed, and nothing is replaced.
    let old = meta.clone();
    let now = bed.put("big", b"another");
    let refused = bed.rewrite("big", &old, vec![copy(0, 17 * mib), bed.data(b"x")]).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::VersionMismatch);
    assert_eq!(bed.stat("big").unwrap().version(), now.version());
}

#[test]
fn large_objects_on_moto() {
    let server = moto();
    large_objects(&Bed::with_timeout(&url(&server, ""), Duration::from_secs(60)));
}

#[test]
fn large_objects_on_s3s() {
    let server = s3s();
    large_objects(&Bed::with_timeout(&url(&server, ""), Duration::from_secs(60)));
}

#[test]
fn hostile_keys_are_hidden_and_touched_by_nothing() {
    let server = moto();
    for key in ["/root/fine", "/root/d/f", "/root/a%2F%2Fb", "/root/x/%2E%2E/y", "/root/sp%20", "/rootless"] {
        put_raw(&server, key, b"1");
    }
    put_raw(&server, &format!("/root/{}", "n".repeat(300)), b"1");
    put_raw(&server, "/root/both", b"file");
    put_raw(&server, "/root/both/below", b"1");
    let bed = Bed::new(&url(&server, "/root"));
    let want = [("a", Kind::Dir), ("both", Kind::Dir), ("d", Kind::Dir), ("fine", Kind::File), ("x", Kind::Dir)];
    assert_eq!(bed.list("").unwrap(), want.map(|(n, k)| (n.to_owned(), k)));
    assert_eq!(bed.names("a"), [""; 0]);
    assert_eq!(bed.names("x"), [""; 0]);
    assert_eq!(bed.kind("both"), Ok(Kind::Dir));
    // What cannot be shown is still there, so the directory is not empty, and cannot be moved without it.
    assert_eq!(bed.rmdir("a"), Err(StoreErrorKind::NotEmpty));
    assert_eq!(bed.rename_dir("x", "z"), Err(StoreErrorKind::InvalidName));
    assert_eq!(bed.kind("z"), Err(StoreErrorKind::NotFound));
    let outer = Bed::new(&url(&server, ""));
    assert_eq!(outer.names(""), ["root", "rootless"]);
}

#[test]
fn headers_of_others_survive_a_rewrite() {
    let server = moto();
    let bed = Bed::new(&url(&server, ""));
    put_with(&server, "/page", "Content-Type: text/x-special\r\nx-amz-meta-owner: somebody\r\n", b"abcd");
    let old = bed.stat("page").unwrap();
    bed.rewrite("page", &old, vec![Segment::Copy { base: 0, offset: 0, len: 4 }, bed.data(b"e")]).unwrap();
    bed.put("new.html", b"<p>");
    let page = head(&server, "/page");
    assert!(page.contains("content-type: text/x-special") && page.contains("x-amz-meta-owner: somebody"), "{page}");
    assert!(head(&server, "/new.html").contains("content-type: text/html"));
}

#[test]
fn a_server_that_goes_is_unavailable_and_one_that_comes_back_is_used_again() {
    let port = free_port();
    let server = moto_on(port);
    let bed = Bed::with_timeout(&url(&server, ""), Duration::from_secs(6));
    bed.put("f", b"x");
    drop(server);
    let start = Instant::now();
    for e in [
        bed.stat("f").unwrap_err(),
        bed.list("").unwrap_err(),
        bed.read("f", None, 0, 1).unwrap_err(),
        bed.put_when("f", b"y", Condition::Any).unwrap_err(),
    ] {
        assert_eq!(e.kind, StoreErrorKind::Unavailable, "{e}");
        assert!(!e.text.contains("SECRET"), "{e}");
    }
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    let _server = moto_on(port);
    bed.put("f", b"back");
    assert_eq!(bed.get("f"), b"back");
}

#[test]
fn a_wrong_secret_is_a_refusal() {
    let server = s3s();
    let bed = Bed::new(&url(&server, "").replace("=SECRET", "=WRONGCANARY"));
    let e = block_on(bed.remote.probe()).unwrap_err();
    assert_eq!(e.kind, StoreErrorKind::PermissionDenied, "{e}");
    assert!(!e.text.contains("CANARY"), "{e}");
}
