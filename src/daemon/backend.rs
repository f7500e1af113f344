//! Serving stores: the parent becomes the broker, the child the device process, which keeps nothing: no file, no
//! capability, no network (in the namespace sandbox), no credential. They share a socket and the pool.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, OnceLock};

use futures::executor::block_on;
use log::error;
use serde::{Deserialize, Serialize};
use virtiofsd::passthrough;
use virtiofsd::sandbox::SandboxMode;

use super::finish::finish;
use super::reload::Reload;
use super::{ROOT, StartError, device_config};
use crate::broker::{self, Backend, BackendError, BrokerOptions, Disk, Eyes, MetricsListener, Mounted, Spool};
use crate::cache::Part;
use crate::cli::{BackendShare, Device, Setup, Stores};
use crate::device;
use crate::fs::FileSystem;
use crate::fuse::{Server, ServerOptions};
use crate::metrics::{Board, MountMeter, StoreMeter};
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
use crate::store::{ADDED_MAX, AREA_LEN, AREAS, Capabilities, Change, MountId, Pool, Remote, StoreClient};

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
    /// Where the device process counts.
    board: Arc<Board>,
    /// Where scrapers ask for what is counted.
    metrics: Option<MetricsListener>,
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
    /// Where it counts.
    board: Arc<Board>,
    /// Mounts can come and go.
    changing: bool,
}

/// What the device process is told of a mount that comes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MountSettings {
    path: String,
    config: objectfs::Config,
    readonly: bool,
}

impl MountSettings {
    /// Of the store at `path`.
    pub fn of(path: &str, share: &BackendShare) -> MountSettings {
        MountSettings { path: path.to_owned(), config: config(share), readonly: share.readonly }
    }
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
    let metrics = stores
        .root
        .metrics_listen
        .as_ref()
        .map(|addr| MetricsListener::bind(addr).map_err(|error| StartError::Metrics { addr: addr.clone(), error }));
    let metrics = metrics.transpose()?;
    if let Some(dir) = &stores.root.spool_dir {
        Spool::prepare(dir).map_err(|error| StartError::SpoolDir { dir: dir.clone(), error })?;
    }
    let (listener, place) = Endpoint::open(&setup.endpoint)?.split();
    limits::set_nofile(setup.rlimit_nofile, setup.device.thread_pool_size)?;
    let changing = reload.is_some();
    let at_start: usize = all(&stores).map(|(_, _, share)| share.cache_size).sum();
    // Memory that nobody has touched costs nothing.
    let len = at_start + if changing { usize::from(AREAS) * AREA_LEN } else { 0 };
    let pool = Arc::new(Pool::new(len).map_err(|error| StartError::Pool { len, error })?);
    let board = Arc::new(
        Board::new(stores.mounts.len() + 1 + if changing { ADDED_MAX } else { 0 }).map_err(StartError::Board)?,
    );
    let (broker_end, device_end) = UnixStream::pair().map_err(StartError::BrokerSocket)?;
    let environment = Environment::locate();
    let held = Held::hold()?;
    match sandbox::enter(&setup.sandbox, || ()).inspect_err(|_| place.remove())? {
        Role::Worker(_) => {
            held.release();
            drop((urls, reload, broker_end, place));
            if let Some(listener) = metrics {
                listener.close();
            }
            environment.forget();
            seccomp::no_new_privs()?;
            seccomp::enable(setup.seccomp, setup.log.syslog)?;
            caps::drop_all()?;
            let socket = device_end.into();
            serve_device(DeviceParts { stores, ids, pool, socket, listener, device: &setup.device, board, changing })?;
            Ok(0)
        }
        Role::Parent(child) => {
            drop((listener, device_end));
            let held = held.without_handlers();
            let socket = broker_end.into();
            let code = run_broker(BrokerParts { stores, urls, reload, pool, socket, child, held, board, metrics })?;
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
    let BrokerParts { stores, urls, reload, pool, socket, child, held, board, metrics } = parts;
    // One for all stores, as its size is.
    let disk = match &stores.root.cache_dir {
        Some((dir, max)) => {
            Some(Disk::open(dir, *max).map_err(|error| StartError::CacheDir { dir: dir.clone(), error })?)
        }
        None => None,
    };
    let spool = stores.root.spool_dir.as_ref().map(|dir| Arc::new(Spool::new(dir)));
    let mounted = all(&stores).map(|(id, path, share)| {
        let backend = parse(path, urls.get(usize::from(id)))?;
        let options = broker_options(path, share, disk.as_ref(), spool.as_ref());
        Ok(Mounted { id, path: path.to_owned(), backend, options })
    });
    let mounted = mounted.collect::<Result<Vec<_>, StartError>>()?;
    drop(urls);
    let flush_timeout = stores.root.flush_timeout;
    let configuration = reload.map(|reload| Box::new(reload) as Box<dyn broker::Configuration>);
    let eyes = Eyes { board, device_pid: child.pid().unsigned_abs(), metrics };
    let (release, wait) = (|| held.release(), move || child.wait());
    Ok(broker::run(mounted, pool, socket, flush_timeout, configuration, eyes, release, wait))
}

/// How the broker serves a store.
pub(super) fn broker_options(
    path: &str,
    share: &BackendShare,
    disk: Option<&Arc<Disk>>,
    spool: Option<&Arc<Spool>>,
) -> BrokerOptions {
    BrokerOptions {
        request_timeout: share.request_timeout,
        posix_metadata: share.posix_metadata,
        readonly: share.readonly,
        disk: disk.cloned(),
        meter: Arc::new(StoreMeter::new(path)),
        spool: spool.cloned(),
    }
}

/// Builds the file system and serves it.
fn serve_device(parts: DeviceParts<'_>) -> Result<(), StartError> {
    match parts.stores.mounts.is_empty() && !parts.changing {
        true => serve_fs(parts, one_store, |_, _, _| {}),
        false => {
            let (pool, ids, board) = (Arc::clone(&parts.pool), Arc::clone(&parts.ids), Arc::clone(&parts.board));
            let areas = all(&parts.stores).map(|(_, _, share)| share.cache_size).sum();
            serve_fs(parts, mounts, move |fs, client, change| {
                change_mounts(fs, client, change, (&pool, areas, &board), &ids);
            })
        }
    }
}

/// What is to be known to build a file system.
struct Building<'a> {
    client: Arc<StoreClient>,
    stores: &'a Stores,
    ids: Arc<Ids>,
    pool: Arc<Pool>,
    board: Arc<Board>,
}

/// One store is the share.
fn one_store(with: Building<'_>) -> Result<ObjectFs<Arc<StoreClient>>, StartError> {
    let Building { client, stores, ids, pool, board } = with;
    let remote = Remote::new(client, 0);
    let memory = Part::from(pool).counting(MountMeter::of(&board, 0, ROOT));
    let capabilities = probe(&remote, &stores.root)?;
    ObjectFs::with_ids(config(&stores.root), ids, remote, capabilities, memory).map_err(StartError::FileSystem)
}

/// Several stores. That in the root must answer; others are served once they do.
fn mounts(with: Building<'_>) -> Result<Mounts<Arc<StoreClient>>, StartError> {
    let Building { client, stores, ids, pool, board } = with;
    let mut specs = Vec::new();
    let mut start = 0;
    for (number, path, share) in all(stores) {
        let remote = Remote::new(Arc::clone(&client), number);
        let capabilities = (number == 0).then(|| probe(&remote, share)).transpose()?;
        let memory = Part::of(Arc::clone(&pool), start, share.cache_size);
        let memory = memory.counting(MountMeter::of(&board, usize::from(number), path));
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
    mut change: impl FnMut(&Arc<F>, &Arc<StoreClient>, Change) + Send + 'static,
) -> Result<(), StartError> {
    let DeviceParts { stores, ids, pool, socket, listener, device, board, changing: _ } = parts;
    // The broker may ask for a flush before there is a file system: then there is nothing to flush.
    let slot: Arc<OnceLock<Arc<F>>> = Arc::default();
    let to_flush = Arc::clone(&slot);
    let on_flush = move |deadline| to_flush.get().map_or(0, |fs| finish(fs, deadline));
    let timeout = all(&stores).map(|(_, _, share)| share.request_timeout).max().unwrap_or_default();
    let built: Arc<OnceLock<(Arc<F>, Arc<StoreClient>)>> = Arc::default();
    let to_change = Arc::clone(&built);
    let on_change = move |what| {
        let (fs, client) = to_change.wait();
        change(fs, client, what);
    };
    let client = StoreClient::start_changing(socket, timeout, on_flush, on_change).map_err(StartError::StoreClient)?;
    let with = Building { client: Arc::clone(&client), stores: &stores, ids, pool, board: Arc::clone(&board) };
    let fs = Arc::new(build(with)?);
    let _ = built.set((Arc::clone(&fs), client));
    // Nobody else sets it.
    let _ = slot.set(Arc::clone(&fs));
    let readonly = all(&stores).all(|(_, _, share)| share.readonly);
    let server = Arc::new(Server::new(Arc::clone(&fs), ServerOptions { readonly }).counting(board));
    // Requests that wait for the store wait without a thread; a pool would only add a hop to those that do not.
    let device = device::Config { thread_pool_size: 0, ..device_config(device) };
    release_code();
    device::serve(&device, server, None, &listener)?;
    let lost = finish(&fs, stores.root.flush_timeout);
    if lost > 0 {
        error!(target: TARGET, "{lost} bytes could not be stored and are lost");
        return Err(StartError::Lost);
    }
    Ok(())
}

/// Mounts come and go. `areas`: where in the pool the memory of those that come begins; `board`: where they count.
fn change_mounts(
    fs: &Arc<Mounts<Arc<StoreClient>>>,
    client: &Arc<StoreClient>,
    change: Change,
    (pool, areas, board): (&Arc<Pool>, usize, &Arc<Board>),
    ids: &Arc<Ids>,
) {
    match change {
        Change::Mount { mount, area, settings } => {
            let MountSettings { path, config, readonly } = match postcard::from_bytes(&settings) {
                Ok(settings) => settings,
                Err(error) => return error!(target: TARGET, "a mount that cannot be understood: {error}"),
            };
            let memory = Part::of(Arc::clone(pool), areas + usize::from(area) * AREA_LEN, AREA_LEN);
            let memory = memory.counting(MountMeter::of(board, usize::from(mount), &path));
            let remote = Remote::new(Arc::clone(client), mount);
            let (ids, name) = (Arc::clone(ids), path.clone());
            let spec = Spec { path, config, readonly, ids, remote, capabilities: None, memory };
            if let Err(error) = fs.add(mount, spec) {
                error!(target: TARGET, "{name}: it cannot be served: {error}");
            }
        }
        Change::Expiration { mount, time } => fs.set_expiration(mount, time),
        Change::Unmount { mount } => {
            fs.remove(mount);
            let (fs, client) = (Arc::clone(fs), Arc::clone(client));
            let thread = std::thread::Builder::new().name("mount-drain".into()).spawn(move || {
                fs.drain(mount);
                client.unmounted(mount);
            });
            if let Err(error) = thread {
                error!(target: TARGET, "mount {mount} cannot be taken away: {error}");
            }
        }
    }
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

pub(super) fn config(share: &BackendShare) -> objectfs::Config {
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
        block_size: share.cache_block_size,
        inodes_max: INODES_MAX,
        handles_max: HANDLES_MAX,
    }
}
