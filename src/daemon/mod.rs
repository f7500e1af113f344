//! The start order, from the arguments to the exit code.
//!
//! It reads as it runs: name and secrets, flags, files of settings, log, signals, checks and plan here; socket, limits, sandbox (forks),
//! filter, capabilities, file system and device in `host_dir` or `backend`, whichever the plan names. No thread may
//! exist before the fork, and nothing is decided here: that was `cli::plan`.

mod backend;
mod configuration;
mod finish;
mod host_dir;
mod reload;

use std::env;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::panic;
use std::path::PathBuf;
use std::process::ExitCode;

use log::{error, info, warn};
use thiserror::Error;

use self::reload::Reload;
use crate::cli::{self, BackendShare, Given, Line, LogPlan, Options, Plan, PlanError, Share, capabilities, plan};
use crate::config::{self, Settings};
use crate::process::caps::CapsError;
use crate::process::isolated::CheckError;
use crate::process::limits::LimitError;
use crate::process::log::{self as logging, TARGET};
use crate::process::sandbox::SandboxError;
use crate::process::seccomp::SeccompError;
use crate::process::secrets::Vault;
use crate::process::signals::SignalError;
use crate::process::socket::SocketError;
use crate::process::{comm, signals};
use crate::status;

/// Why the daemon does not run. Each is logged as one line, and the exit code is 1.
#[derive(Debug, Error)]
enum StartError {
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Plan(Vec<PlanError>),
    #[error(transparent)]
    Signal(#[from] SignalError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error(transparent)]
    Caps(#[from] CapsError),
    #[error(transparent)]
    Backend(#[from] CheckError),
    #[error("Failed to create internal filesystem representation: {0}")]
    FileSystem(io::Error),
    #[error("Error creating the cache of {len} bytes: {error}")]
    Pool { len: usize, error: io::Error },
    #[error("Error creating the counters: {0}")]
    Board(io::Error),
    #[error("Error creating the broker's socket: {0}")]
    BrokerSocket(io::Error),
    #[error(transparent)]
    Device(#[from] crate::device::StartError),
    #[error("--backend: the URL is not UTF-8")]
    UrlNotUtf8,
    #[error("--backend: {0}")]
    Url(#[from] crate::broker::BackendError),
    #[error("{0} stores in one share are too many")]
    TooManyMounts(usize),
    #[error("{path}: {error}")]
    MountUrl { path: String, error: crate::broker::BackendError },
    #[error("Error connecting to the broker: {0}")]
    StoreClient(io::Error),
    #[error("The store cannot be served: {}", .0.text)]
    Store(crate::store::StoreError),
    #[error("--posix-metadata: {0} keeps no attributes with its files")]
    NoAttributes(String),
    #[error("--cache-dir '{}': {error}", dir.display())]
    CacheDir { dir: PathBuf, error: io::Error },
    #[error("--metrics-listen {addr}: {error}")]
    Metrics { addr: cli::MetricsAddr, error: io::Error },
    #[error("--spool-dir '{}': {error}", dir.display())]
    SpoolDir { dir: PathBuf, error: io::Error },
    #[error("Ending with data that is not stored")]
    Lost,
}

impl From<PlanError> for StartError {
    fn from(error: PlanError) -> StartError {
        StartError::Plan(vec![error])
    }
}

/// The path of the root.
const ROOT: &str = "/";

/// The exit code for what a user said wrong.
const USAGE: u8 = 2;

/// The whole program. Ends the process itself only where clap answers (usage errors, help, version).
pub fn main() -> ExitCode {
    if status::is_meant(env::args_os().skip(1)) {
        return status::main(env::args_os().skip(2));
    }
    let program = comm::adopt(env::args_os().next().as_deref());
    let vault = Vault::fill(|arg| cli::takes_value(OsStr::from_bytes(arg)));
    let given = Given::read(env::args_os()).unwrap_or_else(|error| error.exit());
    let settings = match configuration::read(&given) {
        Ok(settings) => settings,
        Err(error) => {
            // A file is refused as a flag would be. Nobody is left to tell if that cannot be written.
            let _ = writeln!(io::stderr(), "{error}");
            return ExitCode::from(USAGE);
        }
    };
    let line = complete(given.clone(), &settings).unwrap_or_else(|error| error.exit());
    let printed = if line.options.print_capabilities {
        Some(capabilities::print(io::stdout().lock()))
    } else if line.options.print_config {
        Some(config::print(io::stdout().lock(), &line, &settings))
    } else {
        None
    };
    if let Some(printed) = printed {
        return if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let reload = Reload::new(configuration::sources(&given), given, &settings, &line);
    let options = line.options;
    logging::init(LogPlan::new(&options), program);
    // One line and no backtrace: that would make system calls which the filter answers with the end of the process.
    panic::set_hook(Box::new(|what| error!(target: TARGET, "{what}")));
    match start(options, settings, vault, reload) {
        // Only the low eight bits reach whoever waits: -9 becomes 247.
        Ok(code) => ExitCode::from((code & 0xff) as u8),
        Err(error) => {
            error.to_string().lines().for_each(|line| error!(target: TARGET, "{line}"));
            ExitCode::FAILURE
        }
    }
}

/// The command line, with what files add to it.
fn complete(given: Given, settings: &Settings) -> Result<Line, clap::Error> {
    let own_cache = given.says("cache");
    let backend = settings.store.as_ref().map(|store| store.visible.clone());
    let mut line = given.complete(&settings.presets(), backend, settings.mount_args())?;
    // The time belongs to the policy that it was said of.
    line.options.cache_expiration = settings.cache_expiration.filter(|_| !own_cache);
    Ok(line)
}

fn start(options: Options, settings: Settings, mut vault: Vault, reload: Option<Reload>) -> Result<i32, StartError> {
    signals::end_at_once()?;
    for file in &settings.exposed {
        warn!(target: TARGET, "{}: everybody on this host can read the secrets in it", file.display());
    }
    if let Some(share) = &settings.share {
        info!(target: TARGET, "{}: the [[shares]] entry at {} applies", share.shared_dir.display(), share.place);
    }
    if let Some(store) = settings.store {
        vault.keep(ROOT, &store.visible, store.url);
    }
    for mount in settings.mounts {
        vault.keep(&mount.path, &mount.store.visible, mount.store.url);
    }
    plan::check_shared_dir(&options)?;
    for warning in plan::deprecations(&options) {
        warn!(target: TARGET, "{warning}");
    }
    let Plan { share, setup } = Plan::new(options).map_err(StartError::Plan)?;
    match share {
        Share::HostDir(dir) => host_dir::run(*dir, &setup),
        Share::Backend(stores) => {
            let mut take = |path: &str, share: &BackendShare| share.url.as_ref().map(|url| vault.take(path, url));
            let urls = std::iter::once((ROOT, &stores.root))
                .chain(stores.mounts.iter().map(|(path, share)| (path.as_str(), share)))
                .map(|(path, share)| take(path, share))
                .collect();
            // What nobody asked for is nobody's to keep.
            drop(vault);
            backend::run(*stores, urls, &setup, reload)
        }
    }
}

/// The device's shape, as the flags have it.
fn device_config(device: &cli::Device) -> crate::device::Config {
    let default = crate::device::Config::default();
    crate::device::Config {
        tag: device.tag.clone(),
        thread_pool_size: device.thread_pool_size,
        request_queues: default.request_queues.max(device.num_request_queues),
        announced_request_queues: device.num_request_queues.into(),
        poll: device.poll,
    }
}
