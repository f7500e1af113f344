//! Starting the servers of stores.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{ACCESS_KEY, Kind, SECRET_KEY};
use crate::launch::installed;

/// How long a server may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The command that serves `dir` (the bucket is `dir/bucket`) on `port`; `None` for stores without a server.
/// `reached_at` is the port that clients will use.
///
/// # Panics
/// When the server is not installed.
pub(super) fn command(kind: Kind, dir: &Path, port: u16, reached_at: u16) -> io::Result<Option<Command>> {
    let port_text = port.to_string();
    let mut command = match kind {
        Kind::Fs | Kind::Memory => return Ok(None),
        Kind::Moto => {
            let mut command = Command::new(program("moto_server"));
            command.args(["-H", "127.0.0.1", "-p", &port_text]);
            command
        }
        Kind::S3sFs => {
            let mut command = Command::new(program("s3s-fs"));
            command.args(["--host", "127.0.0.1", "--port", &port_text]);
            command.args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]).arg(dir);
            command
        }
        Kind::Azurite => {
            let mut command = Command::new(program("azurite-blob"));
            command.args(["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--inMemoryPersistence"]);
            command.args(["--blobHost", "127.0.0.1", "--blobPort", &port_text]);
            command
        }
        Kind::FakeGcs => {
            let mut command = Command::new(program("fake-gcs-server"));
            let reached_at = format!("127.0.0.1:{reached_at}");
            command.args(["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", &port_text]);
            // Where it tells clients to send the pieces of an upload.
            command.args(["-external-url", &format!("http://{reached_at}"), "-public-host", &reached_at]);
            command.args(["-log-level", "error"]);
            command
        }
        Kind::GcsModel => {
            let mut command = Command::new(program("python3"));
            command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/stores/gcs_model.py"));
            command.args(["--port", &port_text]);
            command
        }
        Kind::WsgiDav => {
            let mut command = Command::new(program("wsgidav"));
            command.args(["--host=127.0.0.1", &format!("--port={port_text}"), "--auth=anonymous", "--no-config", "-q"]);
            command.arg(format!("--root={}", dir.join(super::BUCKET).display()));
            command
        }
        Kind::NginxDav => nginx(dir, port)?,
        Kind::Sftp => ssh_server(dir, port)?,
    };
    command.current_dir(dir);
    Ok(Some(command))
}

/// An nginx of our own, with nothing of the system's settings.
fn nginx(dir: &Path, port: u16) -> io::Result<Command> {
    let config = dir.join("nginx.conf");
    let here = dir.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|of| format!("  {of}_temp_path {here}/nginx-{of};\n"))
        .concat();
    fs::write(
        &config,
        format!(
            "load_module /usr/lib/nginx/modules/ngx_http_dav_ext_module.so;\n\
             daemon off;\nmaster_process off;\npid {here}/nginx.pid;\nerror_log stderr;\nevents {{}}\n\
             http {{\n  access_log off;\n  client_max_body_size 0;\n{temporary}\
             server {{\n    listen 127.0.0.1:{port};\n    root {here}/{bucket};\n    location / {{\n\
             dav_methods PUT DELETE MKCOL COPY MOVE;\n      dav_ext_methods PROPFIND OPTIONS;\n\
             create_full_put_path on;\n    }}\n  }}\n}}\n",
            bucket = super::BUCKET,
        ),
    )?;
    let mut command = Command::new(program("nginx"));
    command.args(["-e", "stderr", "-c"]).arg(config);
    Ok(command)
}

/// An OpenSSH server of our own: its keys and settings are in `dir`, and it lets in whoever has `dir/key`.
fn ssh_server(dir: &Path, port: u16) -> io::Result<Command> {
    for name in ["host-key", "key"] {
        if !dir.join(name).exists() {
            let mut keygen = Command::new(program("ssh-keygen"));
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(name));
            if !keygen.status()?.success() {
                return Err(io::Error::other("ssh-keygen makes no key"));
            }
        }
    }
    fs::copy(dir.join("key.pub"), dir.join("authorized_keys"))?;
    fs::set_permissions(dir.join("authorized_keys"), fs::Permissions::from_mode(0o600))?;
    // Where Debian's server wants to confine itself; its service makes it, and we do not go through the service.
    fs::create_dir_all("/run/sshd")?;
    let config = dir.join("sshd_config");
    let here = dir.display();
    fs::write(
        &config,
        format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {here}/host-key\nPidFile none\n\
             AuthorizedKeysFile {here}/authorized_keys\nStrictModes no\nPermitRootLogin prohibit-password\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nSubsystem sftp internal-sftp\n"
        ),
    )?;
    // It starts itself anew for each connection, so it must know where it is.
    let mut command = Command::new(program("sshd"));
    command.args(["-D", "-e", "-f"]).arg(config);
    Ok(command)
}

/// Starts `command` and waits until `port` is listened on.
///
/// # Errors
/// The server ended, or nobody listens in time.
pub(super) fn start(mut command: Command, port: u16, log: &Path) -> io::Result<Child> {
    let log = fs::File::create(log)?;
    let mut child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let ended = match child.try_wait()? {
            Some(status) => Some(io::Error::other(format!("it ended with {status}"))),
            None if Instant::now() > deadline => Some(io::ErrorKind::TimedOut.into()),
            None => None,
        };
        if let Some(error) = ended {
            child.kill().ok();
            child.wait().ok();
            return Err(error);
        }
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(child);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The server's executable: on the path, where system programs are, or where `scripts/test` installs it.
fn program(name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let dirs = ["venv/bin", "node/node_modules/.bin", "tools/bin"].map(|dir| target.join(dir));
    installed(name)
        .or_else(|| {
            let system = [PathBuf::from("/usr/sbin"), PathBuf::from("/usr/local/sbin")];
            dirs.into_iter().chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
        })
        .unwrap_or_else(|| panic!("{name} is not installed; `scripts/test cargo` installs all servers of these tests"))
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
