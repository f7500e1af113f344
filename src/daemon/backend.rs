//! Serving a store: the parent becomes the broker, the child the device process, which keeps nothing: no file, no
//! capability, no network (in the namespace sandbox), no credential. They share a socket and the pool.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use virtiofsd::sandbox::SandboxMode;

use super::StartError;
use crate::cli::{BackendShare, Device, Setup};
use crate::process::isolated;
use crate::process::sandbox::{self, Child, Role};
use crate::process::secrets::{Environment, SecretUrl};
use crate::process::signals::Held;
use crate::process::socket::Endpoint;
use crate::process::{caps, limits, seccomp};
use crate::store::Pool;

/// What the broker works with.
#[derive(Debug)]
struct BrokerParts {
    /// The URL, with its secrets.
    url: SecretUrl,
    /// Timeouts and limits.
    share: BackendShare,
    /// Shared with the device process.
    pool: Arc<Pool>,
    /// The other end is the device process's.
    socket: OwnedFd,
    /// The device process. The broker ends when it does, with its exit code.
    child: Child,
    /// Readable once SIGTERM or SIGHUP has come: have the device flush within `share.flush_timeout`, then end with
    /// code 1.
    ending: OwnedFd,
}

/// What the device process works with.
#[derive(Debug)]
struct DeviceParts<'a> {
    /// Cache, timeouts and limits. (Its URL is the visible one.)
    share: BackendShare,
    /// Shared with the broker.
    pool: Arc<Pool>,
    /// The other end is the broker's.
    socket: OwnedFd,
    /// Where the front end connects.
    listener: UnixListener,
    /// The device's shape.
    device: &'a Device,
}

/// Serves until the client has gone; returns the exit code.
pub(super) fn run(share: BackendShare, url: SecretUrl, setup: &Setup) -> Result<i32, StartError> {
    // Before the socket appears, and where it leaves no trace that the device process could inherit.
    isolated::run(|| check_backend(&url))?;
    let (listener, place) = Endpoint::open(&setup.endpoint)?.split();
    limits::set_nofile(setup.rlimit_nofile, setup.device.thread_pool_size)?;
    let len = share.cache_size;
    let pool = Arc::new(Pool::new(len).map_err(|error| StartError::Pool { len, error })?);
    let (broker_end, device_end) = UnixStream::pair().map_err(StartError::BrokerSocket)?;
    let environment = Environment::locate();
    let held = Held::hold()?;
    match sandbox::enter(&setup.sandbox).inspect_err(|_| place.remove())? {
        Role::Worker(_) => {
            held.release();
            drop((url, broker_end, place));
            environment.forget();
            seccomp::no_new_privs()?;
            seccomp::enable(setup.seccomp, setup.log.syslog)?;
            caps::drop_all()?;
            let socket = device_end.into();
            serve_objectfs(DeviceParts { share, pool, socket, listener, device: &setup.device })?;
            Ok(0)
        }
        Role::Parent(child) => {
            drop((listener, device_end));
            let ending = held.into_descriptor()?;
            let code = run_broker(BrokerParts { url, share, pool, socket: broker_end.into(), child, ending })?;
            if code == 0 && setup.sandbox.mode == SandboxMode::None {
                place.remove();
            }
            Ok(code)
        }
    }
}

/// Refuses a URL that names no store that we could serve, in one line.
fn check_backend(url: &SecretUrl) -> Result<(), StartError> {
    url.expose().map(drop).ok_or(StartError::NotBuilt("the broker, for a URL that is not UTF-8"))
}

/// Parses the URL again, for good, and does the device process's store requests until that ends. Returns the exit code.
fn run_broker(parts: BrokerParts) -> Result<i32, StartError> {
    // Until the broker is there: end as the child ends, for want of anything to do.
    let BrokerParts { url, share, pool, socket, child, ending } = parts;
    drop((url, share, pool, socket, ending));
    Ok(child.wait())
}

/// Builds the object file system, says that we are ready, accepts one client and serves it until it disconnects.
fn serve_objectfs(parts: DeviceParts<'_>) -> Result<(), StartError> {
    let DeviceParts { share, pool, socket, listener, device } = parts;
    drop((share, pool, socket, listener, device));
    Err(StartError::NotBuilt("the object file system"))
}
