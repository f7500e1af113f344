//! Stores to put behind `--backend`, and a look at them from outside, by means that share nothing with ovfs.
//!
//! | store | server | looked at from outside |
//! |---|---|---|
//! | [`Kind::Moto`] | `moto_server` (PyPI `moto[server]`) | HTTP |
//! | [`Kind::S3sFs`] | `s3s-fs` (cargo) | the directory that it keeps its objects in; signed HTTP for changes |
//! | [`Kind::Fs`] | none | the directory itself |
//! | [`Kind::Memory`] | none | not at all |
//! | [`Kind::Azurite`] | `azurite-blob` (npm) | HTTP with a shared access signature |
//! | [`Kind::FakeGcs`] | `fake-gcs-server` (in a wheel on PyPI) | plain HTTP: it checks no credentials |
//! | [`Kind::GcsModel`] | `gcs_model.py` beside this: a model of our own, no other server | plain HTTP |
//! | [`Kind::WsgiDav`] | `wsgidav` (PyPI) | the directory that it serves |
//! | [`Kind::NginxDav`] | `nginx` with its dav-ext module (Debian) | the directory that it serves |
//! | [`Kind::Sftp`] | `sshd` (Debian) with keys of its own | the directory that it serves |
//!
//! A store may stand behind a [`Meter`], which tells what passes between daemon and server.

mod azure;
mod files;
mod gcs;
mod http;
mod s3;
mod server;
pub mod table;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Child;

use tempfile::TempDir;

use crate::meter::Meter;
pub use server::free_port;

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
    /// A directory, through the broker's own code.
    Fs,
    /// OpenDAL's memory service, inside the broker.
    Memory,
    /// Azure Blob, as Azurite does it.
    Azurite,
    /// Google Cloud Storage, as fake-gcs-server does it: without conditions.
    FakeGcs,
    /// Google Cloud Storage, as its documentation has it: a model of our own.
    GcsModel,
    /// WebDAV, as WsgiDAV does it.
    WsgiDav,
    /// WebDAV, as nginx does it.
    NginxDav,
    /// SFTP, as OpenSSH does it.
    Sftp,
}

impl Kind {
    /// Those that need nothing but moto and s3s-fs.
    pub const ALL: [Kind; 4] = [Kind::Moto, Kind::S3sFs, Kind::Fs, Kind::Memory];
    /// Those of [`Kind::ALL`] that can be looked at from outside.
    pub const VISIBLE: [Kind; 3] = [Kind::Moto, Kind::S3sFs, Kind::Fs];
    /// Every one.
    pub const EVERY: [Kind; 10] = [
        Kind::Moto,
        Kind::S3sFs,
        Kind::Azurite,
        Kind::FakeGcs,
        Kind::GcsModel,
        Kind::WsgiDav,
        Kind::NginxDav,
        Kind::Sftp,
        Kind::Fs,
        Kind::Memory,
    ];

    /// What it is called in tables.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Moto => "s3-moto",
            Kind::S3sFs => "s3-s3s-fs",
            Kind::Azurite => "azblob-azurite",
            Kind::FakeGcs => "gcs-fake-gcs-server",
            Kind::GcsModel => "gcs-own-model",
            Kind::WsgiDav => "webdav-wsgidav",
            Kind::NginxDav => "webdav-nginx",
            Kind::Sftp => "sftp-openssh",
            Kind::Fs => "fs",
            Kind::Memory => "memory",
        }
    }

    /// Whether a directory without entries can be seen. s3s-fs makes a directory of a marker object and lists none.
    pub fn keeps_empty_dirs(self) -> bool {
        self != Kind::S3sFs
    }

    /// Whether others than the daemon can reach it.
    pub fn has_outside(self) -> bool {
        self != Kind::Memory
    }

    /// Whether whoever reads what is being replaced gets one version, with its own ETag, as from S3. s3s-fs puts an object
    /// in place before its ETag, goes by no If-Match in reads, and copies into the object that is read.
    pub fn replaces_at_once(self) -> bool {
        self != Kind::S3sFs
    }

    /// Whether its objects are files of a directory here.
    pub fn is_files(self) -> bool {
        matches!(self, Kind::S3sFs | Kind::Fs | Kind::WsgiDav | Kind::NginxDav | Kind::Sftp)
    }
}

/// A store, running.
#[derive(Debug)]
pub struct TestStore {
    kind: Kind,
    dir: TempDir,
    port: u16,
    server: Option<Child>,
    meter: Option<Meter>,
}

impl TestStore {
    /// Starts an empty store.
    ///
    /// # Panics
    /// When its server is not installed or does not start.
    pub fn start(kind: Kind) -> TestStore {
        TestStore::start_with(kind, false)
    }

    /// Starts an empty store, behind a [`Meter`] if it has a server.
    ///
    /// # Panics
    /// As [`TestStore::start`].
    pub fn start_metered(kind: Kind) -> TestStore {
        TestStore::start_with(kind, true)
    }

    fn start_with(kind: Kind, metered: bool) -> TestStore {
        let dir = tempfile::Builder::new().prefix("ovfs-store-").tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join(BUCKET)).expect("a directory in it");
        let mut store = TestStore { kind, dir, port: 0, server: None, meter: None };
        // Between finding a free port and listening on it, somebody else may take it.
        for _ in 0..PORTS_TRIED {
            store.port = free_port();
            store.meter = (metered && !matches!(kind, Kind::Fs | Kind::Memory)).then(|| Meter::before(store.port));
            if store.try_server().is_ok() && store.make_bucket().is_ok() {
                return store;
            }
            store.stop_server();
        }
        panic!("the store's server does not start; it said: {}", store.server_log());
    }

    /// Starts the server (again) on the same port; those that keep objects in memory start empty.
    ///
    /// # Panics
    /// When it does not answer in time.
    pub fn start_server(&mut self) {
        if let Err(error) = self.try_server() {
            panic!("the store's server does not start: {error}; it said: {}", self.server_log());
        }
    }

    fn try_server(&mut self) -> io::Result<()> {
        let reached_at = self.reached_at();
        if let Some(command) = server::command(self.kind, self.dir.path(), self.port, reached_at)? {
            self.server = Some(server::start(command, self.port, &self.dir.path().join("server.log"))?);
        }
        Ok(())
    }

    fn make_bucket(&self) -> io::Result<()> {
        match self.kind {
            Kind::Moto => s3::make_bucket(self.port, BUCKET),
            Kind::Azurite => azure::make_container(self.port, BUCKET),
            Kind::FakeGcs | Kind::GcsModel => gcs::make_bucket(self.port, BUCKET),
            Kind::S3sFs | Kind::Fs | Kind::Memory | Kind::WsgiDav | Kind::NginxDav | Kind::Sftp => Ok(()),
        }
    }

    /// What the server has written.
    pub fn server_log(&self) -> String {
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

    /// What passes between daemon and server, if it was started so.
    pub fn meter(&self) -> Option<&Meter> {
        self.meter.as_ref()
    }

    fn reached_at(&self) -> u16 {
        self.meter.as_ref().map_or(self.port, Meter::port)
    }

    /// What to give to `--backend`; credentials are in [`TestStore::env`].
    pub fn url(&self) -> String {
        self.url_through(self.reached_at())
    }

    /// The same, with the server reached through another port.
    pub fn url_through(&self, port: u16) -> String {
        match self.kind {
            Kind::Moto | Kind::S3sFs => {
                format!("s3://{BUCKET}?region=us-east-1&endpoint=http://127.0.0.1:{port}")
            }
            Kind::Azurite => format!("azblob://{BUCKET}?endpoint=http://127.0.0.1:{port}/{}", azure::ACCOUNT),
            Kind::FakeGcs | Kind::GcsModel => format!(
                "gcs://{BUCKET}?endpoint=http://127.0.0.1:{port}&skip_signature=true&disable_vm_metadata=true\
                 &disable_config_load=true"
            ),
            Kind::WsgiDav | Kind::NginxDav => format!("webdav://?endpoint=http://127.0.0.1:{port}"),
            Kind::Sftp => format!(
                "sftp://127.0.0.1:{port}{}?user={}&key={}&known_hosts_strategy=accept",
                self.root().display(),
                user_name(),
                self.dir.path().join("key").display()
            ),
            Kind::Fs => format!("fs://{}", self.root().display()),
            Kind::Memory => "memory://".into(),
        }
    }

    /// What a file of settings says of it after `type`, with credentials, its server reached through `port`.
    ///
    /// # Panics
    /// For kinds that no test has written down so yet.
    pub fn settings_through(&self, port: u16) -> String {
        match self.kind {
            Kind::Moto | Kind::S3sFs => format!(
                "type = \"s3\"\nbucket = \"{BUCKET}\"\nregion = \"us-east-1\"\nendpoint = \"http://127.0.0.1:{port}\"\n\
                 access_key_id = \"{ACCESS_KEY}\"\nsecret_access_key = \"{SECRET_KEY}\"\n"
            ),
            Kind::Azurite => format!(
                "type = \"azblob\"\ncontainer = \"{BUCKET}\"\nendpoint = \"http://127.0.0.1:{port}/{account}\"\n\
                 account_name = \"{account}\"\naccount_key = \"{key}\"\n",
                account = azure::ACCOUNT,
                key = azure::KEY
            ),
            Kind::Fs => format!("type = \"fs\"\nroot = \"{}\"\n", self.root().display()),
            kind => panic!("nobody has written down the settings of {}", kind.name()),
        }
    }

    /// Environment that ovfs needs for it.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        match self.kind {
            Kind::Moto | Kind::S3sFs => {
                vec![("AWS_ACCESS_KEY_ID", ACCESS_KEY.into()), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.into())]
            }
            Kind::Azurite => vec![
                ("AZURE_STORAGE_ACCOUNT_NAME", azure::ACCOUNT.into()),
                ("AZURE_STORAGE_ACCOUNT_KEY", azure::KEY.into()),
            ],
            // Where the sockets of its ssh go.
            Kind::Sftp => vec![("HOME", self.dir.path().display().to_string())],
            Kind::FakeGcs | Kind::GcsModel | Kind::WsgiDav | Kind::NginxDav | Kind::Fs | Kind::Memory => Vec::new(),
        }
    }

    /// The directory that holds the objects of a store of files.
    fn root(&self) -> PathBuf {
        self.dir.path().join(BUCKET)
    }

    /// A directory of this store's, for what a test keeps beside it.
    pub fn beside(&self) -> &Path {
        self.dir.path()
    }

    /// Puts an object from outside. Keys with a trailing slash make directories.
    ///
    /// # Errors
    /// The store takes no such object, or has no outside.
    pub fn try_put(&self, key: &str, data: &[u8]) -> io::Result<()> {
        match self.kind {
            Kind::Moto => s3::put(self.port, BUCKET, key, data),
            Kind::Azurite => azure::put(self.port, BUCKET, key, data),
            Kind::FakeGcs | Kind::GcsModel => gcs::put(self.port, BUCKET, key, data),
            // The server remembers the ETag of what it wrote, whatever becomes of the file.
            Kind::S3sFs if !key.contains('/') || self.root().join(key).is_file() => {
                s3::put(self.port, BUCKET, key, data)
            }
            Kind::S3sFs | Kind::Fs | Kind::WsgiDav | Kind::NginxDav | Kind::Sftp => files::put(&self.root(), key, data),
            Kind::Memory => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Puts an object from outside.
    ///
    /// # Panics
    /// When that fails, or for a store without an outside.
    pub fn put(&self, key: &str, data: &[u8]) {
        self.try_put(key, data).unwrap_or_else(|error| panic!("put {key:?} from outside: {error}"));
    }

    /// Reads an object from outside; `None`: there is none.
    ///
    /// # Panics
    /// When the store does not answer, or has no outside.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let got = match self.kind {
            Kind::Moto => s3::get(self.port, BUCKET, key),
            Kind::Azurite => azure::get(self.port, BUCKET, key),
            Kind::FakeGcs | Kind::GcsModel => gcs::get(self.port, BUCKET, key),
            Kind::S3sFs | Kind::Fs | Kind::WsgiDav | Kind::NginxDav | Kind::Sftp => files::get(&self.root(), key),
            Kind::Memory => Err(io::ErrorKind::Unsupported.into()),
        };
        got.unwrap_or_else(|error| panic!("get {key:?} from outside: {error}"))
    }

    /// Deletes an object from outside.
    ///
    /// # Panics
    /// As [`TestStore::put`].
    pub fn delete(&self, key: &str) {
        let deleted = match self.kind {
            Kind::Moto | Kind::S3sFs => s3::delete(self.port, BUCKET, key),
            Kind::Azurite => azure::delete(self.port, BUCKET, key),
            Kind::FakeGcs | Kind::GcsModel => gcs::delete(self.port, BUCKET, key),
            Kind::Fs | Kind::WsgiDav | Kind::NginxDav | Kind::Sftp => files::delete(&self.root(), key),
            Kind::Memory => Err(io::ErrorKind::Unsupported.into()),
        };
        deleted.unwrap_or_else(|error| panic!("delete {key:?} from outside: {error}"));
    }

    /// Keys of all objects, sorted, without directory markers.
    ///
    /// # Panics
    /// As [`TestStore::get`].
    pub fn keys(&self) -> Vec<String> {
        let keys = match self.kind {
            Kind::Moto => s3::keys(self.port, BUCKET),
            Kind::Azurite => azure::keys(self.port, BUCKET),
            Kind::FakeGcs | Kind::GcsModel => gcs::keys(self.port, BUCKET),
            Kind::S3sFs | Kind::Fs | Kind::WsgiDav | Kind::NginxDav | Kind::Sftp => Ok(files::keys(&self.root())),
            Kind::Memory => Err(io::ErrorKind::Unsupported.into()),
        };
        let mut keys = keys.unwrap_or_else(|error| panic!("list from outside: {error}"));
        keys.retain(|key| !key.ends_with('/'));
        keys.sort();
        keys
    }

    /// Directories that are there by themselves: markers, or directories of a store of files; with their slashes.
    ///
    /// # Panics
    /// As [`TestStore::get`].
    pub fn dirs(&self) -> Vec<String> {
        let keys = match self.kind {
            Kind::Moto => s3::keys(self.port, BUCKET),
            Kind::Azurite => azure::keys(self.port, BUCKET),
            Kind::FakeGcs | Kind::GcsModel => gcs::keys(self.port, BUCKET),
            Kind::S3sFs | Kind::Fs | Kind::WsgiDav | Kind::NginxDav | Kind::Sftp => Ok(files::dirs(&self.root())),
            Kind::Memory => Err(io::ErrorKind::Unsupported.into()),
        };
        let mut keys = keys.unwrap_or_else(|error| panic!("list from outside: {error}"));
        keys.retain(|key| key.ends_with('/'));
        keys.sort();
        keys
    }

    /// Which file an object is, for stores of files: it stays the same through a rename and a change in place.
    pub fn identity(&self, key: &str) -> Option<u64> {
        self.kind.is_files().then(|| files::identity(&self.root(), key)).flatten()
    }

    /// Gives an object of a store of files the time that another has.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn set_mtime(&self, key: &str, mtime: std::time::SystemTime) -> io::Result<()> {
        fs::File::options().write(true).open(self.root().join(key))?.set_modified(mtime)
    }

    /// When an object of a store of files was last modified.
    ///
    /// # Errors
    /// When there is none.
    pub fn mtime(&self, key: &str) -> io::Result<std::time::SystemTime> {
        fs::metadata(self.root().join(key))?.modified()
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        self.stop_server();
    }
}

/// The user that this test runs as.
fn user_name() -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    // SAFETY: takes nothing, cannot fail.
    let uid = unsafe { libc::getuid() }.to_string();
    let name =
        passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields.get(2) == Some(&&*uid));
    name.map_or_else(|| "root".to_owned(), |fields| fields[0].to_owned())
}
