//! Serving a store: the parent becomes the broker, the child the device process, which keeps nothing: no file, no
//! capability, no network (in the namespace sandbox), no credential. They share a socket and the pool.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, OnceLock};

use futures::executor::block_on;
use log::error;
use virtiofsd::passthrough;
use virtiofsd::sandbox::SandboxMode;

use super::{StartError, device_config};
use crate::broker::{self, Backend, BrokerOptions, Disk};
use crate::cli::{BackendShare, Device, Setup};
use crate::device;
use crate::fs::FileSystem;
use crate::fuse::{Server, ServerOptions};
use crate::objectfs::{self, Ids, ObjectFs};
use crate::process::isolated;
use crate::process::log::TARGET;
use crate::process::memory::release_code;
use crate::process::sandbox::{self, Child, Role};
use crate::process::secrets::{Environment, SecretUrl};
use crate::process::signals::Held;
use crate::process::socket::Endpoint;
use crate::process::{caps, limits, seccomp};
use crate::store::{Capabilities, Pool, Remote, StoreClient};

/// Inodes that a guest may know at once; some hundred bytes each.
const INODES_MAX: usize = 1 << 20;

/// Files, and directories, that a guest may have open at once.
const HANDLES_MAX: usize = 1 << 16;

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
    /// SIGTERM and SIGHUP, held back until the broker handles them.
    held: Held,
}

/// What the device process works with.
#[derive(Debug)]
struct DeviceParts<'a> {
    /// Cache, timeouts and limits. (Its URL is the visible one.)
    share: BackendShare,
    /// How owners differ between guest and store.
    ids: Ids,
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
    let ids = Ids::new(share.translate_uid.clone(), share.translate_gid.clone()).map_err(StartError::FileSystem)?;
    // Before the socket appears, and where it leaves no trace that the device process could inherit.
    isolated::run(|| check_backend(&url, share.posix_metadata))?;
    if let Some((dir, _)) = &share.cache_dir {
        Disk::prepare(dir).map_err(|error| StartError::CacheDir { dir: dir.clone(), error })?;
    }
    let (listener, place) = Endpoint::open(&setup.endpoint)?.split();
    limits::set_nofile(setup.rlimit_nofile, setup.device.thread_pool_size)?;
    let len = share.cache_size;
    let pool = Arc::new(Pool::new(len).map_err(|error| StartError::Pool { len, error })?);
    let (broker_end, device_end) = UnixStream::pair().map_err(StartError::BrokerSocket)?;
    let environment = Environment::locate();
    let held = Held::hold()?;
    match sandbox::enter(&setup.sandbox, || ()).inspect_err(|_| place.remove())? {
        Role::Worker(_) => {
            held.release();
            drop((url, broker_end, place));
            environment.forget();
            seccomp::no_new_privs()?;
            seccomp::enable(setup.seccomp, setup.log.syslog)?;
            caps::drop_all()?;
            let socket = device_end.into();
            serve_objectfs(DeviceParts { share, ids, pool, socket, listener, device: &setup.device })?;
            Ok(0)
        }
        Role::Parent(child) => {
            drop((listener, device_end));
            let held = held.without_handlers();
            let code = run_broker(BrokerParts { url, share, pool, socket: broker_end.into(), child, held })?;
            if code == 0 && setup.sandbox.mode == SandboxMode::None {
                place.remove();
            }
            Ok(code)
        }
    }
}

/// Refuses a URL that names no store that we could serve, in one line.
fn check_backend(url: &SecretUrl, posix_metadata: bool) -> Result<(), StartError> {
    let backend = parse(url)?;
    if posix_metadata {
        backend.check_attributes()?;
    }
    Ok(())
}

fn parse(url: &SecretUrl) -> Result<Backend, StartError> {
    let text = url.expose().ok_or(StartError::UrlNotUtf8)?;
    Ok(Backend::parse(text)?)
}

/// Parses the URL again, for good, and does the device process's store requests until that ends. Returns the exit code.
fn run_broker(parts: BrokerParts) -> Result<i32, StartError> {
    let BrokerParts { url, share, pool, socket, child, held } = parts;
    let backend = parse(&url)?;
    drop(url);
    let options = BrokerOptions {
        request_timeout: share.request_timeout,
        flush_timeout: share.flush_timeout,
        posix_metadata: share.posix_metadata,
        readonly: share.readonly,
        disk: match &share.cache_dir {
            Some((dir, max)) => {
                Some(Disk::open(dir, *max).map_err(|error| StartError::CacheDir { dir: dir.clone(), error })?)
            }
            None => None,
        },
    };
    Ok(broker::run(backend, pool, socket, options, || held.release(), move || child.wait()))
}

/// Builds the object file system, says that we are ready, accepts one client and serves it until it disconnects.
fn serve_objectfs(parts: DeviceParts<'_>) -> Result<(), StartError> {
    let DeviceParts { share, ids, pool, socket, listener, device } = parts;
    // The broker may ask for a flush before there is a file system: then there is nothing to flush.
    let slot: Arc<OnceLock<Arc<ObjectFs<Arc<StoreClient>>>>> = Arc::default();
    let to_flush = Arc::clone(&slot);
    let on_flush = move |deadline| to_flush.get().map_or(0, |fs| block_on(fs.flush_all(deadline)));
    let client = StoreClient::start(socket, share.request_timeout, on_flush).map_err(StartError::StoreClient)?;
    let remote = Remote::new(client, 0);
    let capabilities = probe(&remote)?;
    if share.posix_metadata && !capabilities.attributes {
        return Err(StartError::NoAttributes(capabilities.scheme));
    }
    let fs = ObjectFs::with_ids(config(&share), ids, remote, capabilities, pool).map_err(StartError::FileSystem)?;
    let fs = Arc::new(fs);
    // Nobody else sets it.
    let _ = slot.set(Arc::clone(&fs));
    let server = Arc::new(Server::new(Arc::clone(&fs), ServerOptions { readonly: share.readonly }));
    // Requests that wait for the store wait without a thread; a pool would only add a hop to those that do not.
    let device = device::Config { thread_pool_size: 0, ..device_config(device) };
    release_code();
    device::serve(&device, server, None, &listener)?;
    let lost = block_on(fs.flush_all(share.flush_timeout));
    if lost > 0 {
        error!(target: TARGET, "{lost} bytes could not be stored and are lost");
        return Err(StartError::Lost);
    }
    Ok(())
}

/// Asks what the store can do. One that refuses us, or cannot be reached, ends the start.
fn probe(remote: &Remote<Arc<StoreClient>>) -> Result<Capabilities, StartError> {
    block_on(remote.probe()).map_err(StartError::Store)
}

/// How the guest sees the store.
fn config(share: &BackendShare) -> objectfs::Config {
    objectfs::Config {
        cache: match share.cache_policy {
            passthrough::CachePolicy::Never => objectfs::CachePolicy::Never,
            passthrough::CachePolicy::Auto => objectfs::CachePolicy::Auto,
            passthrough::CachePolicy::Metadata => objectfs::CachePolicy::Metadata,
            passthrough::CachePolicy::Always => objectfs::CachePolicy::Always,
        },
        expiration: share.cache_expiration,
        readdirplus: share.readdirplus,
        writeback: share.writeback,
        allow_mmap: share.allow_mmap,
        killpriv_v2: share.killpriv_v2,
        uid: share.uid,
        gid: share.gid,
        file_mode: share.file_mode,
        dir_mode: share.dir_mode,
        posix: share.posix_metadata,
        xattr: share.xattr,
        on_conflict: share.on_conflict,
        capacity: share.capacity,
        writeback_delay: share.writeback_delay,
        inodes_max: INODES_MAX,
        handles_max: HANDLES_MAX,
    }
}
