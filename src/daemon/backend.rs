//! Serving stores: the parent becomes the broker, the child the device process, which keeps nothing: no file, no
//! capability, no network (in the namespace sandbox), no credential. They share a socket and the pool.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, OnceLock};

use futures::executor::block_on;
use log::error;
use virtiofsd::passthrough;
use virtiofsd::sandbox::SandboxMode;

use super::reload::Reload;
use super::{ROOT, StartError, device_config};
use crate::broker::{self, Backend, BackendError, BrokerOptions, Disk, Mounted};
use crate::cache::Part;
use crate::cli::{BackendShare, Device, Setup, Stores};
use crate::device;
use crate::fs::FileSystem;
use crate::fuse::{Server, ServerOptions};
use crate::mounts::{MOUNTS_MAX, Mounts, Spec};
use crate::objectfs::{self, Ids, ObjectFs};
use crate::process::isolated;
use crate::process::log::TARGET;
use crate::process::memory::release_code;
use crate::process::sandbox::{self, Child, Role};
use crate::process::secrets::{Environment, SecretUrl};
use crate::process::signals::Held;
use crate::process::socket::Endpoint;
use crate::process::{caps, limits, seccomp};
use crate::store::{Capabilities, MountId, Pool, Remote, StoreClient};

/// Inodes that a guest may know at once; some hundred bytes each.
const INODES_MAX: usize = 1 << 20;

/// Files, and directories, that a guest may have open at once.
const HANDLES_MAX: usize = 1 << 16;

/// What the broker works with.
#[derive(Debug)]
struct BrokerParts {
    /// All stores, with their timeouts and limits.
    stores: Stores,
    /// The URLs, with their secrets: the root's, then the mounts'.
    urls: Vec<Option<SecretUrl>>,
    /// The files that all this stands in.
    reload: Option<Reload>,
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
    /// Cache, timeouts and limits. (URLs are the visible ones.)
    stores: Stores,
    /// How owners differ between guest and store.
    ids: Arc<Ids>,
    /// Shared with the broker.
    pool: Arc<Pool>,
    /// The other end is the broker's.
    socket: OwnedFd,
    /// Where the front end connects.
    listener: UnixListener,
    /// The device's shape.
    device: &'a Device,
}

/// Serves until the client has gone; returns the exit code. `urls` are the root's, if it is a store, and those of the mounts.
/// `reload` is for the broker, if there are files that it can follow.
pub(super) fn run(
    stores: Stores,
    urls: Vec<Option<SecretUrl>>,
    setup: &Setup,
    reload: Option<Reload>,
) -> Result<i32, StartError> {
    let (uids, gids) = (stores.root.translate_uid.clone(), stores.root.translate_gid.clone());
    let ids = Arc::new(Ids::new(uids, gids).map_err(StartError::FileSystem)?);
    // Before the socket appears, and where it leaves no trace that the device process could inherit.
    isolated::run(|| check(&stores, &urls))?;
    if let Some((dir, _)) = &stores.root.cache_dir {
        Disk::prepare(dir).map_err(|error| StartError::CacheDir { dir: dir.clone(), error })?;
    }
    let (listener, place) = Endpoint::open(&setup.endpoint)?.split();
    limits::set_nofile(setup.rlimit_nofile, setup.device.thread_pool_size)?;
    let len = all(&stores).map(|(_, _, share)| share.cache_size).sum();
    let pool = Arc::new(Pool::new(len).map_err(|error| StartError::Pool { len, error })?);
    let (broker_end, device_end) = UnixStream::pair().map_err(StartError::BrokerSocket)?;
    let environment = Environment::locate();
    let held = Held::hold()?;
    match sandbox::enter(&setup.sandbox, || ()).inspect_err(|_| place.remove())? {
        Role::Worker(_) => {
            held.release();
            drop((urls, reload, broker_end, place));
            environment.forget();
            seccomp::no_new_privs()?;
            seccomp::enable(setup.seccomp, setup.log.syslog)?;
            caps::drop_all()?;
            let socket = device_end.into();
            serve_device(DeviceParts { stores, ids, pool, socket, listener, device: &setup.device })?;
            Ok(0)
        }
        Role::Parent(child) => {
            drop((listener, device_end));
            let held = held.without_handlers();
            let code = run_broker(BrokerParts { stores, urls, reload, pool, socket: broker_end.into(), child, held })?;
            if code == 0 && setup.sandbox.mode == SandboxMode::None {
                place.remove();
            }
            Ok(code)
        }
    }
}

/// The stores: number, path, and settings. The root is number 0, whether or not there is a store in it.
fn all(stores: &Stores) -> impl Iterator<Item = (MountId, &str, &BackendShare)> {
    let root = stores.root.url.as_ref().map(|_| (ROOT, &stores.root));
    let mounts = stores.mounts.iter().map(|(path, share)| (path.as_str(), share));
    // More than there are numbers are refused before (`check`).
    let numbered = (1..).zip(mounts).map(|(number, (path, share))| (number, path, share));
    root.into_iter().map(|(path, share)| (0, path, share)).chain(numbered)
}

/// Refuses what names no stores that we could serve, in one line.
fn check(stores: &Stores, urls: &[Option<SecretUrl>]) -> Result<(), StartError> {
    if stores.mounts.len() >= MOUNTS_MAX {
        return Err(StartError::TooManyMounts(stores.mounts.len()));
    }
    for (number, path, share) in all(stores) {
        let backend = parse(path, urls.get(usize::from(number)))?;
        if share.posix_metadata {
            backend.check_attributes().map_err(|error| in_path(path, error))?;
        }
    }
    Ok(())
}

fn parse(path: &str, url: Option<&Option<SecretUrl>>) -> Result<Backend, StartError> {
    let text = url.and_then(|url| url.as_ref()?.expose()).ok_or(StartError::UrlNotUtf8)?;
    Backend::parse(text).map_err(|error| in_path(path, error))
}

fn in_path(path: &str, error: BackendError) -> StartError {
    match path {
        ROOT => StartError::Url(error),
        path => StartError::MountUrl { path: path.to_owned(), error },
    }
}

/// Parses the URLs again, for good, and does the device process's store requests until that ends. Returns the exit code.
fn run_broker(parts: BrokerParts) -> Result<i32, StartError> {
    let BrokerParts { stores, urls, reload, pool, socket, child, held } = parts;
    // One for all stores, as its size is.
    let disk = match &stores.root.cache_dir {
        Some((dir, max)) => {
            Some(Disk::open(dir, *max).map_err(|error| StartError::CacheDir { dir: dir.clone(), error })?)
        }
        None => None,
    };
    let mounted = all(&stores).map(|(id, path, share)| {
        let backend = parse(path, urls.get(usize::from(id)))?;
        Ok(Mounted { id, path: path.to_owned(), backend, options: broker_options(share, disk.as_ref()) })
    });
    let mounted = mounted.collect::<Result<Vec<_>, StartError>>()?;
    drop(urls);
    let flush_timeout = stores.root.flush_timeout;
    let configuration = reload.map(|reload| reload.of(&stores));
    Ok(broker::run(mounted, pool, socket, flush_timeout, configuration, || held.release(), move || child.wait()))
}

/// How the broker serves a store.
fn broker_options(share: &BackendShare, disk: Option<&Arc<Disk>>) -> BrokerOptions {
    BrokerOptions {
        request_timeout: share.request_timeout,
        posix_metadata: share.posix_metadata,
        readonly: share.readonly,
        disk: disk.cloned(),
    }
}

/// Builds the file system and serves it.
fn serve_device(parts: DeviceParts<'_>) -> Result<(), StartError> {
    match parts.stores.mounts.is_empty() {
        true => serve_fs(parts, one_store),
        false => serve_fs(parts, mounts),
    }
}

/// What is to be known to build a file system.
struct Building<'a> {
    client: Arc<StoreClient>,
    stores: &'a Stores,
    ids: Arc<Ids>,
    pool: Arc<Pool>,
}

/// One store is the share.
fn one_store(with: Building<'_>) -> Result<ObjectFs<Arc<StoreClient>>, StartError> {
    let Building { client, stores, ids, pool } = with;
    let remote = Remote::new(client, 0);
    let capabilities = probe(&remote, &stores.root)?;
    ObjectFs::with_ids(config(&stores.root), ids, remote, capabilities, pool).map_err(StartError::FileSystem)
}

/// Several stores. That in the root must answer; others are served once they do.
fn mounts(with: Building<'_>) -> Result<Mounts<Arc<StoreClient>>, StartError> {
    let Building { client, stores, ids, pool } = with;
    let mut specs = Vec::new();
    let mut start = 0;
    for (number, path, share) in all(stores) {
        let remote = Remote::new(Arc::clone(&client), number);
        let capabilities = (number == 0).then(|| probe(&remote, share)).transpose()?;
        let memory = Part::of(Arc::clone(&pool), start, share.cache_size);
        start += share.cache_size;
        specs.push(Spec {
            path: path.to_owned(),
            config: config(share),
            readonly: share.readonly,
            ids: Arc::clone(&ids),
            remote,
            capabilities,
            memory,
        });
    }
    Mounts::new(config(&stores.root), ids, specs).map_err(StartError::FileSystem)
}

/// Has a file system built, says that we are ready, accepts one client and serves it until it disconnects.
fn serve_fs<F: FileSystem>(
    parts: DeviceParts<'_>,
    build: impl FnOnce(Building<'_>) -> Result<F, StartError>,
) -> Result<(), StartError> {
    let DeviceParts { stores, ids, pool, socket, listener, device } = parts;
    // The broker may ask for a flush before there is a file system: then there is nothing to flush.
    let slot: Arc<OnceLock<Arc<F>>> = Arc::default();
    let to_flush = Arc::clone(&slot);
    let on_flush = move |deadline| to_flush.get().map_or(0, |fs| block_on(fs.flush_all(deadline)));
    let timeout = all(&stores).map(|(_, _, share)| share.request_timeout).max().unwrap_or_default();
    let client = StoreClient::start(socket, timeout, on_flush).map_err(StartError::StoreClient)?;
    let fs = Arc::new(build(Building { client, stores: &stores, ids, pool })?);
    // Nobody else sets it.
    let _ = slot.set(Arc::clone(&fs));
    let readonly = all(&stores).all(|(_, _, share)| share.readonly);
    let server = Arc::new(Server::new(Arc::clone(&fs), ServerOptions { readonly }));
    // Requests that wait for the store wait without a thread; a pool would only add a hop to those that do not.
    let device = device::Config { thread_pool_size: 0, ..device_config(device) };
    release_code();
    device::serve(&device, server, None, &listener)?;
    let lost = block_on(fs.flush_all(stores.root.flush_timeout));
    if lost > 0 {
        error!(target: TARGET, "{lost} bytes could not be stored and are lost");
        return Err(StartError::Lost);
    }
    Ok(())
}

/// Asks what the store can do. One that refuses us, or cannot be reached, ends the start.
fn probe(remote: &Remote<Arc<StoreClient>>, share: &BackendShare) -> Result<Capabilities, StartError> {
    let capabilities = block_on(remote.probe()).map_err(StartError::Store)?;
    match share.posix_metadata && !capabilities.attributes {
        true => Err(StartError::NoAttributes(capabilities.scheme)),
        false => Ok(capabilities),
    }
}

/// How the guest sees the store.
/// Length of the first pieces in which a long file goes to the store: at 90 MiB/s a tenth of a second each, and more than the
/// 5 MiB that S3 asks for.
const PIECE: u64 = 8 << 20;

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
        dirty_ratio: share.cache_dirty_ratio,
        piece: PIECE,
        inodes_max: INODES_MAX,
        handles_max: HANDLES_MAX,
    }
}
