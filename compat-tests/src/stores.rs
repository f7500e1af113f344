//! Stores to put behind `--backend`, and a look at them from outside, by means that share nothing with ovfs.
//!
//! | store | server | looked at from outside |
//! |---|---|---|
//! | [`Kind::Moto`] | `moto_server` (PyPI `moto[server]`) | plain HTTP: it checks no signatures |
//! | [`Kind::S3sFs`] | `s3s-fs` (cargo) | the directory that it keeps its objects in |
//! | [`Kind::Fs`] | none | the directory itself |
//! | [`Kind::Memory`] | none | not at all |

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::launch::installed;

/// The access key of every S3 server here.
pub const ACCESS_KEY: &str = "ovfs-test-key";
/// Its secret.
pub const SECRET_KEY: &str = "ovfs-test-secret";
const BUCKET: &str = "bucket";
/// Ports to try before a server counts as broken.
const PORTS_TRIED: u32 = 5;

/// Kinds of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// S3, as moto does it.
    Moto,
    /// S3, as s3s-fs does it.
    S3sFs,
    /// A directory, through OpenDAL.
    Fs,
    /// OpenDAL's memory service, inside the broker.
    Memory,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [Kind::Moto, Kind::S3sFs, Kind::Fs, Kind::Memory];
    /// Those that can be looked at from outside.
    pub const VISIBLE: [Kind; 3] = [Kind::Moto, Kind::S3sFs, Kind::Fs];

    /// Whether a directory without entries can be seen. s3s-fs makes a directory of a marker object and lists none.
    pub fn keeps_empty_dirs(self) -> bool {
        self != Kind::S3sFs
    }
}

/// A store, running.
#[derive(Debug)]
pub struct TestStore {
    kind: Kind,
    dir: TempDir,
    port: u16,
    server: Option<Child>,
}

impl TestStore {
    /// Starts an empty store.
    ///
    /// # Panics
    /// When its server is not installed or does not start.
    pub fn start(kind: Kind) -> TestStore {
        let dir = tempfile::Builder::new().prefix("ovfs-store-").tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join(BUCKET)).expect("a directory in it");
        let mut store = TestStore { kind, dir, port: 0, server: None };
        // Between finding a free port and listening on it, somebody else may take it.
        for _ in 0..PORTS_TRIED {
            store.port = free_port();
            if store.try_server().is_ok() && store.make_bucket().is_ok() {
                return store;
            }
            store.stop_server();
        }
        panic!("the store's server does not start; it said: {}", store.server_log());
    }

    /// Starts the server (again) on the same port; moto starts empty, s3s-fs with what it had.
    ///
    /// # Panics
    /// When it does not answer in time.
    pub fn start_server(&mut self) {
        if let Err(error) = self.try_server() {
            panic!("the store's server does not start: {error}; it said: {}", self.server_log());
        }
    }

    fn try_server(&mut self) -> io::Result<()> {
        let port = self.port.to_string();
        let mut command = match self.kind {
            Kind::Moto => {
                let mut command = Command::new(server("moto_server", "pip install 'moto[server]'"));
                command.args(["-H", "127.0.0.1", "-p", &port]);
                command
            }
            Kind::S3sFs => {
                let program = server("s3s-fs", "cargo install s3s-fs --version 0.14.1 --features binary --locked");
                let mut command = Command::new(program);
                command.args(["--host", "127.0.0.1", "--port", &port]);
                command.args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]).arg(self.dir.path());
                command
            }
            Kind::Fs | Kind::Memory => return Ok(()),
        };
        let log = fs::File::create(self.dir.path().join("server.log"))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let server = self.server.insert(child);
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = server.try_wait()? {
                return Err(io::Error::other(format!("it ended with {status}")));
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn make_bucket(&self) -> io::Result<()> {
        if self.kind != Kind::Moto {
            return Ok(());
        }
        match self.http("PUT", "", b"")?.status {
            200 => Ok(()),
            status => Err(io::Error::other(format!("making a bucket answers {status}"))),
        }
    }

    fn server_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default()
    }

    /// Kills the server.
    pub fn stop_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().ok();
            server.wait().ok();
        }
    }

    /// What kind it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What to give to `--backend`; credentials are in [`TestStore::env`].
    pub fn url(&self) -> String {
        self.url_through(self.port)
    }

    /// The same, with the server reached through another port.
    pub fn url_through(&self, port: u16) -> String {
        match self.kind {
            Kind::Moto | Kind::S3sFs => {
                format!("s3://{BUCKET}?region=us-east-1&endpoint=http://127.0.0.1:{port}")
            }
            Kind::Fs => format!("fs://{}", self.bucket_dir().display()),
            Kind::Memory => "memory://".into(),
        }
    }

    /// Environment that ovfs needs for it.
    pub fn env(&self) -> Vec<(&'static str, &'static str)> {
        match self.kind {
            Kind::Moto | Kind::S3sFs => {
                vec![("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)]
            }
            Kind::Fs | Kind::Memory => Vec::new(),
        }
    }

    fn bucket_dir(&self) -> PathBuf {
        self.dir.path().join(BUCKET)
    }

    /// Puts an object from outside. Keys with a trailing slash make directories.
    ///
    /// # Panics
    /// When that fails, or for a store without an outside.
    pub fn put(&self, key: &str, data: &[u8]) {
        match self.kind {
            Kind::Moto => {
                let answer = self.http("PUT", key, data).expect("moto takes an object");
                assert_eq!(answer.status, 200, "put {key:?}: {answer:?}");
            }
            Kind::S3sFs | Kind::Fs => {
                let path = self.bucket_dir().join(key);
                let parent = if key.ends_with('/') { path.as_path() } else { path.parent().expect("a parent") };
                fs::create_dir_all(parent).expect("directories");
                if !key.ends_with('/') {
                    fs::write(path, data).expect("a file");
                }
            }
            Kind::Memory => panic!("nothing can be put there from outside"),
        }
    }

    /// Reads an object from outside; `None`: there is none.
    ///
    /// # Panics
    /// When the store does not answer, or has no outside.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        match self.kind {
            Kind::Moto => {
                let answer = self.http("GET", key, b"").expect("moto answers");
                (answer.status == 200).then_some(answer.body)
            }
            Kind::S3sFs | Kind::Fs => fs::read(self.bucket_dir().join(key)).ok(),
            Kind::Memory => panic!("nothing can be seen there from outside"),
        }
    }

    /// Deletes an object from outside.
    ///
    /// # Panics
    /// As [`TestStore::put`].
    pub fn delete(&self, key: &str) {
        match self.kind {
            Kind::Moto => drop(self.http("DELETE", key, b"").expect("moto answers")),
            Kind::S3sFs | Kind::Fs => fs::remove_file(self.bucket_dir().join(key)).expect("it is there"),
            Kind::Memory => panic!("nothing can be deleted there from outside"),
        }
    }

    /// Keys of all objects, sorted, without directory markers.
    ///
    /// # Panics
    /// As [`TestStore::get`].
    pub fn keys(&self) -> Vec<String> {
        let mut keys = match self.kind {
            Kind::Moto => self.listed_keys(),
            Kind::S3sFs | Kind::Fs => {
                let mut keys = Vec::new();
                walk(&self.bucket_dir(), "", &mut keys);
                keys
            }
            Kind::Memory => panic!("nothing can be seen there from outside"),
        };
        keys.retain(|key| !key.ends_with('/'));
        keys.sort();
        keys
    }

    fn listed_keys(&self) -> Vec<String> {
        let mut keys = Vec::new();
        let mut after = String::new();
        loop {
            let query = format!("?list-type=2&max-keys=1000&start-after={after}");
            let answer = self.http("GET", &query, b"").expect("moto lists");
            let text = String::from_utf8(answer.body).expect("XML is UTF-8");
            let page: Vec<String> = text
                .split("<Key>")
                .skip(1)
                .filter_map(|rest| rest.split("</Key>").next())
                .map(|key| key.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
                .collect();
            let Some(last) = page.last() else { return keys };
            after = last.replace('/', "%2F").replace(' ', "%20");
            keys.extend(page);
        }
    }

    fn http(&self, method: &str, key: &str, body: &[u8]) -> io::Result<Answer> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let target =
            if key.starts_with('?') { format!("/{BUCKET}{key}") } else { format!("/{BUCKET}/{}", encode(key)) };
        let target = if key.is_empty() { format!("/{BUCKET}") } else { target };
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: AWS {ACCESS_KEY}:unchecked\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut raw = Vec::new();
        stream.read_to_end(&mut raw)?;
        Answer::parse(&raw).ok_or_else(|| io::Error::other("not an HTTP answer"))
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        self.stop_server();
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Answer {
    fn parse(raw: &[u8]) -> Option<Answer> {
        let end = raw.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&raw[..end]).into_owned();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let body = &raw[end + 4..];
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        Some(Answer { status, body: if chunked { dechunk(body)? } else { body.to_vec() } })
    }
}

fn dechunk(mut raw: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = raw.windows(2).position(|w| w == b"\r\n")?;
        let len = usize::from_str_radix(std::str::from_utf8(&raw[..line]).ok()?.trim(), 16).ok()?;
        if len == 0 {
            return Some(body);
        }
        body.extend_from_slice(raw.get(line + 2..line + 2 + len)?);
        raw = raw.get(line + 4 + len..)?;
    }
}

fn encode(key: &str) -> String {
    use std::fmt::Write;
    key.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            out.push(byte.into());
        } else {
            write!(out, "%{byte:02X}").expect("a string takes everything");
        }
        out
    })
}

fn walk(dir: &std::path::Path, prefix: &str, keys: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // What the servers keep for themselves.
        if name.starts_with(".tmp")
            || name.starts_with(".metadata")
            || name.starts_with(".upload")
            || name.starts_with(".ovfs")
        {
            continue;
        }
        let key = format!("{prefix}{name}");
        if entry.path().is_dir() {
            walk(&entry.path(), &format!("{key}/"), keys);
        } else {
            keys.push(key);
        }
    }
}

fn server(name: &str, install: &str) -> PathBuf {
    installed(name).unwrap_or_else(|| panic!("{name} is not installed: {install}"))
}

/// A TCP port that nobody listens on, below those that the kernel gives to outgoing connections: whoever asks again and
/// again whether a server listens on one of those ends up connected to itself.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    use std::hash::{BuildHasher, Hasher};
    (0..1000)
        .map(|_| 12_000 + (std::hash::RandomState::new().build_hasher().finish() % 20_000) as u16)
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .expect("a free port")
}
