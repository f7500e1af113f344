//! From flags to decisions. Everything that defaults, implications and cross checks decide is decided here and typed;
//! after this no other module looks at a flag.
//!
//! Errors here are run-time errors in virtiofsd's order (one log line each, exit code 1), not usage errors.

use std::ffi::CString;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use log::LevelFilter;
use thiserror::Error;
use virtiofsd::idmap::{GidMap, UidMap};
use virtiofsd::passthrough::{self, CachePolicy, InodeFileHandlesMode, MigrationMode, NegotiationMode};
use virtiofsd::sandbox::SandboxMode;
use virtiofsd::seccomp::SeccompAction;
use virtiofsd::soft_idmap::cmdline::IdMap;

use super::listen::MetricsAddr;
use super::mounts;
use super::options::{CACHE_SIZE_MIN, FileHandles, Options};
use crate::objectfs::OnConflict;

/// Memory is divided in pieces of this many bytes.
const PAGE: usize = 4096;

/// Why no plan follows from the flags.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// `-o` without `source` stands in for `--shared-dir` on the command line only.
    #[error("missing \"--shared-dir\" or \"-o source\" option")]
    NoShare,
    /// The shared directory is neither a directory nor a file (which the sandbox refuses later).
    #[error("{0} does not exist")]
    ShareMissing(String),
    /// `--migration-confirm-paths` with file handles.
    #[error("Cannot use --migration-confirm-paths with --migration-mode=file-handles (because it is unnecessary)")]
    ConfirmPaths,
    /// `--migration-verify-handles` with file handles.
    #[error("Cannot use --migration-verify-handles with --migration-mode=file-handles (because it is unnecessary)")]
    VerifyHandles,
    /// Access control lists name ids that ovfs would have to translate.
    #[error(
        "Cannot use --translate-uid or --translate-gid with --posix-acl={0}, \
         translating UIDs/GIDs would break posix ACLs"
    )]
    TranslationBreaksAcl(NegotiationMode),
    /// A flag that only a store gives a meaning.
    #[error("{0} is about a store: it needs --backend")]
    NeedsBackend(&'static str),
    /// Stores keep no access control lists.
    #[error("--posix-acl={0} cannot be used with --backend: a store keeps no access control lists")]
    AclInStore(NegotiationMode),
    /// Memory is divided among the stores, and each needs some.
    #[error("--cache-size: {stores} stores need at least {}M, {}M each", (*stores as u64 * CACHE_SIZE_MIN) >> 20, CACHE_SIZE_MIN >> 20)]
    CacheShare {
        /// How many there are.
        stores: usize,
    },
    /// A path that no system call takes.
    #[error("Invalid file name '{0}': it contains a NUL byte")]
    Nul(String),
}

/// Where and how much to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPlan {
    /// Lowest level to log, unless `RUST_LOG` says otherwise.
    pub level: LevelFilter,
    /// To syslog instead of standard error.
    pub syslog: bool,
}

impl LogPlan {
    /// The part of the plan that must stand before anything else can be complained about.
    pub fn new(options: &Options) -> LogPlan {
        let level = if options.compat_debug { LevelFilter::Debug } else { options.log_level };
        LogPlan { level, syslog: options.syslog }
    }
}

/// A host directory, shared by virtiofsd's own file system.
#[derive(Debug)]
pub struct HostDir {
    /// As given, relative to the directory that the daemon was started in.
    pub path: String,
    /// Refuse changes.
    pub readonly: bool,
    /// Everything that flags decide; what the sandbox and the descriptor limit decide is still missing
    /// (`root_dir`, `mountinfo_prefix`, the two descriptors of /proc, `guest_fd_limit`).
    pub config: passthrough::Config,
    /// `--modcaps`, unread: virtiofsd reads it only for root, and late.
    pub modcaps: Option<String>,
}

/// Stores, shared by the object file system.
#[derive(Clone, Debug)]
pub struct Stores {
    /// What is at the root of the share.
    pub root: BackendShare,
    /// Stores below it, by their paths; each once, none is the root.
    pub mounts: Vec<(String, BackendShare)>,
}

/// A store, shared by the object file system.
#[derive(Clone, Debug)]
pub struct BackendShare {
    /// The URL as it is visible on the command line: without its secrets. `None`: there is no store, only directories that
    /// lead to others.
    pub url: Option<String>,
    /// Bytes of the shared pool that are this store's own.
    pub cache_size: usize,
    /// Whether file data is cached across opens, and by whom.
    pub cache_policy: CachePolicy,
    /// How long names and attributes may be trusted under `Auto`, if not one second.
    pub cache_expiration: Option<Duration>,
    /// Shared memory maps under `Never` and `Metadata`.
    pub allow_mmap: bool,
    /// Offer READDIRPLUS.
    pub readdirplus: bool,
    /// Guest-side write-back.
    pub writeback: bool,
    /// Leave dropping set-user-id bits to the guest's announcements.
    pub killpriv_v2: bool,
    /// Keep owners, modes, times, extended attributes and file types in the store.
    pub posix_metadata: bool,
    /// Extended attributes can be asked for.
    pub xattr: bool,
    /// Owner of what has none in the store.
    pub uid: u32,
    /// Group of what has none in the store.
    pub gid: u32,
    /// Permissions of files that have none in the store.
    pub file_mode: u32,
    /// Permissions of directories that have none in the store.
    pub dir_mode: u32,
    /// How user ids differ between guest and store.
    pub translate_uid: Vec<IdMap>,
    /// How group ids differ between guest and store.
    pub translate_gid: Vec<IdMap>,
    /// What statfs(2) calls the size of the file system, in bytes.
    pub capacity: u64,
    /// How much of `cache_size` may hold what is not yet stored, in percent.
    pub cache_dirty_ratio: u32,
    /// What a read at random fetches around itself, in bytes: a power of two.
    pub cache_block_size: u64,
    /// Where blocks of what was read are kept, and how many bytes of them.
    pub cache_dir: Option<(PathBuf, u64)>,
    /// Where metrics are served.
    pub metrics_listen: Option<MetricsAddr>,
    /// Where what could not be stored at the end is kept.
    pub spool_dir: Option<PathBuf>,
    /// How long a closed file may wait before it is uploaded; zero: closing waits for the store.
    pub writeback_delay: Duration,
    /// What becomes of files that others changed meanwhile.
    pub on_conflict: OnConflict,
    /// Refuse changes.
    pub readonly: bool,
    /// Deadline of a request that waits for the store.
    pub request_timeout: Duration,
    /// Bound of the flush at the end.
    pub flush_timeout: Duration,
}

/// What is shared.
#[derive(Debug)]
pub enum Share {
    /// A directory of the host.
    HostDir(Box<HostDir>),
    /// One store or several.
    Backend(Box<Stores>),
}

/// Where the front end connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointPlan {
    /// An inherited descriptor, said to be a listening socket.
    Inherited(RawFd),
    /// A socket to be created, with its pid file.
    Path {
        /// The socket's path.
        path: PathBuf,
        /// The group that may connect beside the owner.
        group: Option<CString>,
        /// Given by the deprecated `--socket`.
        deprecated: bool,
    },
}

/// How the device process is confined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxPlan {
    /// By which means.
    pub mode: SandboxMode,
    /// The directory that stays in reach; `None`: nothing does, and there are two processes in every mode.
    pub shared_dir: Option<CString>,
    /// Ranges of the user namespace; empty: one's own id.
    pub uid_map: Vec<UidMap>,
    /// As `uid_map`, for groups.
    pub gid_map: Vec<GidMap>,
}

/// The device's shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The tag of the configuration space, if there is to be one.
    pub tag: Option<String>,
    /// Threads beside the queues' own.
    pub thread_pool_size: usize,
    /// Request queues that the configuration space announces.
    pub num_request_queues: u16,
    /// How long a busy queue is watched for the next request.
    pub poll: Duration,
}

/// The process around the share.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where the front end connects.
    pub endpoint: EndpointPlan,
    /// How the device process is confined.
    pub sandbox: SandboxPlan,
    /// What befalls a system call outside the list.
    pub seccomp: SeccompAction,
    /// The limit of open descriptors; `None`: the default, 0: as it is.
    pub rlimit_nofile: Option<u64>,
    /// The device's shape.
    pub device: Device,
    /// Logging, again: the filter of system calls depends on it.
    pub log: LogPlan,
}

/// All that the flags decide.
#[derive(Debug)]
pub struct Plan {
    /// What is shared.
    pub share: Share,
    /// By what process.
    pub setup: Setup,
}

/// Refuses a share that is not there. A store needs no directory.
///
/// # Errors
/// [`PlanError::NoShare`], [`PlanError::ShareMissing`].
pub fn check_shared_dir(options: &Options) -> Result<(), PlanError> {
    if has_store(options) {
        return Ok(());
    }
    let dir = options.shared_dir.as_ref().ok_or(PlanError::NoShare)?;
    let path = Path::new(dir);
    if path.is_dir() || path.is_file() { Ok(()) } else { Err(PlanError::ShareMissing(dir.clone())) }
}

fn has_store(options: &Options) -> bool {
    options.backend.is_some() || !options.mounts.is_empty()
}

/// What to tell the user about deprecated flags, in virtiofsd's order. (That about `--socket` follows later, when the
/// socket is made.)
pub fn deprecations(options: &Options) -> Vec<&'static str> {
    let mut warnings = Vec::new();
    if options.compat_foreground {
        warnings.push("Use of deprecated flag '-f': This flag has no effect, please remove it");
    }
    if options.compat_debug {
        warnings.push("Use of deprecated flag '-d': Please use the '--log-level debug' option instead");
    }
    if options.compat_options.is_some() {
        warnings.push(
            "Use of deprecated option format '-o': Please specify options without it \
             (e.g., '--cache auto' instead of '-o cache=auto')",
        );
    }
    if options.inode_file_handles == FileHandles::Fallback {
        warnings.push("Use of deprecated value 'fallback' for '--inode-file-handles': Please use 'prefer' instead");
    }
    warnings
}

impl Plan {
    /// Decides.
    ///
    /// # Errors
    /// All that is wrong, in the order in which it is to be reported.
    pub fn new(options: Options) -> Result<Plan, Vec<PlanError>> {
        let log = LogPlan::new(&options);
        let endpoint = endpoint(&options).map_err(|error| vec![error])?;
        let device = Device {
            tag: options.tag.clone(),
            thread_pool_size: options.thread_pool_size,
            num_request_queues: options.num_request_queues,
            poll: Duration::from_micros(options.poll_us.into()),
        };
        let (mode, seccomp, rlimit_nofile) = (options.sandbox, options.seccomp, options.rlimit_nofile);
        let (share, sandbox) = if has_store(&options) {
            let sandbox = SandboxPlan { mode, shared_dir: None, uid_map: Vec::new(), gid_map: Vec::new() };
            (Share::Backend(Box::new(stores(&options)?)), sandbox)
        } else {
            host_dir(options, mode)?
        };
        Ok(Plan { share, setup: Setup { endpoint, sandbox, seccomp, rlimit_nofile, device, log } })
    }
}

fn endpoint(options: &Options) -> Result<EndpointPlan, PlanError> {
    if let Some(fd) = options.fd {
        return Ok(EndpointPlan::Inherited(fd));
    }
    // The parser has made sure that one of the three is there.
    let path = options.socket_path.as_ref().or(options.socket.as_ref()).map(PathBuf::from).unwrap_or_default();
    let group = options.socket_group.clone().map(c_string).transpose()?;
    Ok(EndpointPlan::Path { path, group, deprecated: options.socket_path.is_none() })
}

fn c_string(text: String) -> Result<CString, PlanError> {
    CString::new(text.as_str()).map_err(|_| PlanError::Nul(text))
}

/// How long the guest may trust names and attributes.
fn metadata_timeout(options: &Options) -> Duration {
    match options.cache {
        CachePolicy::Never => Duration::ZERO,
        CachePolicy::Auto => options.cache_expiration.unwrap_or(Duration::from_secs(1)),
        CachePolicy::Metadata | CachePolicy::Always => Duration::from_secs(24 * 60 * 60),
    }
}

fn readdirplus(options: &Options) -> bool {
    !matches!(options.cache, CachePolicy::Never) && !options.no_readdirplus
}

/// All stores. Each has an equal part of the memory for itself, so that none can take the others'.
fn stores(options: &Options) -> Result<Stores, Vec<PlanError>> {
    let mut root = backend(options, options.backend.clone())?;
    let mount = |mount| mounts::share(options, mount).map(|share| (mount.path.clone(), share));
    let mut mounts = options.mounts.iter().map(mount).collect::<Result<Vec<_>, _>>()?;
    let stores = mounts.len() + usize::from(root.url.is_some());
    let part = root.cache_size / stores;
    let part = part - part % PAGE;
    if options.cache_size < CACHE_SIZE_MIN.saturating_mul(stores as u64) {
        return Err(vec![PlanError::CacheShare { stores }]);
    }
    root.cache_size = if root.url.is_some() { part } else { 0 };
    mounts.iter_mut().for_each(|(_, share)| share.cache_size = part);
    Ok(Stores { root, mounts })
}

pub(super) fn backend(options: &Options, url: Option<String>) -> Result<BackendShare, Vec<PlanError>> {
    if options.posix_acl != NegotiationMode::Never {
        return Err(vec![PlanError::AclInStore(options.posix_acl)]);
    }
    let permissions = |mode: Option<u32>, default: u32| mode.unwrap_or(default) & !options.umask.unwrap_or(0);
    Ok(BackendShare {
        url,
        // The parser has made sure that it fits.
        cache_size: usize::try_from(options.cache_size).unwrap_or(usize::MAX),
        cache_policy: options.cache.clone(),
        cache_expiration: options.cache_expiration,
        allow_mmap: options.allow_mmap,
        readdirplus: readdirplus(options),
        writeback: options.writeback,
        killpriv_v2: options.killpriv_v2,
        posix_metadata: options.posix_metadata,
        xattr: options.xattr || options.posix_metadata,
        uid: options.uid.unwrap_or(0),
        gid: options.gid.unwrap_or(0),
        file_mode: permissions(options.file_mode, 0o644),
        dir_mode: permissions(options.dir_mode, 0o755),
        translate_uid: within_ids(options.translate_uid.clone()),
        translate_gid: within_ids(options.translate_gid.clone()),
        capacity: options.capacity.unwrap_or(1 << 50),
        cache_dirty_ratio: options.cache_dirty_ratio.unwrap_or(50),
        cache_block_size: options.cache_block_size.unwrap_or(64 << 10),
        cache_dir: options.cache_dir.clone().map(|dir| (dir.into(), options.cache_disk_size.unwrap_or(10 << 30))),
        metrics_listen: options.metrics_listen.clone(),
        spool_dir: options.spool_dir.clone().map(PathBuf::from),
        writeback_delay: Duration::from_millis(options.writeback_delay.unwrap_or(0).into()),
        on_conflict: options.on_conflict.unwrap_or(OnConflict::KeepBoth),
        readonly: options.readonly,
        request_timeout: Duration::from_secs(options.request_timeout.into()),
        flush_timeout: Duration::from_secs(options.flush_timeout.into()),
    })
}

/// Cuts ranges of forbidden ids off before the last number, which is no id; launchers name ranges up to it, and the crate
/// adds without looking.
fn within_ids(maps: Vec<IdMap>) -> Vec<IdMap> {
    let cut = |map| match map {
        IdMap::ForbidGuest { from_guest, count } => {
            IdMap::ForbidGuest { from_guest, count: count.min(u32::MAX - from_guest) }
        }
        other => other,
    };
    maps.into_iter().map(cut).collect()
}

/// Whether a flag was given.
type IsGiven = fn(&Options) -> bool;

/// Flags that only a store gives a meaning; refused for a directory.
pub(super) const ABOUT_STORES: [(&str, IsGiven); 15] = [
    ("--posix-metadata", |options| options.posix_metadata),
    ("--uid", |options| options.uid.is_some()),
    ("--gid", |options| options.gid.is_some()),
    ("--file-mode", |options| options.file_mode.is_some()),
    ("--dir-mode", |options| options.dir_mode.is_some()),
    ("--umask", |options| options.umask.is_some()),
    ("--capacity", |options| options.capacity.is_some()),
    ("--writeback-delay", |options| options.writeback_delay.is_some()),
    ("--cache-dirty-ratio", |options| options.cache_dirty_ratio.is_some()),
    ("--cache-block-size", |options| options.cache_block_size.is_some()),
    ("--cache-dir", |options| options.cache_dir.is_some()),
    ("--cache-disk-size", |options| options.cache_disk_size.is_some()),
    ("--metrics-listen", |options| options.metrics_listen.is_some()),
    ("--spool-dir", |options| options.spool_dir.is_some()),
    ("--on-conflict", |options| options.on_conflict.is_some()),
];

/// What contradicts itself in the flags of a directory.
fn contradictions(options: &Options) -> Vec<PlanError> {
    let for_stores = ABOUT_STORES.into_iter().filter(|(_, is_given)| is_given(options));
    let mut errors: Vec<PlanError> = for_stores.map(|(flag, _)| PlanError::NeedsBackend(flag)).collect();
    if options.migration_mode == MigrationMode::FileHandles {
        if options.migration_confirm_paths {
            errors.push(PlanError::ConfirmPaths);
        }
        if options.migration_verify_handles {
            errors.push(PlanError::VerifyHandles);
        }
    }
    let translates = !options.translate_uid.is_empty() || !options.translate_gid.is_empty();
    if errors.is_empty() && options.posix_acl != NegotiationMode::Never && translates {
        errors.push(PlanError::TranslationBreaksAcl(options.posix_acl));
    }
    errors
}

fn host_dir(options: Options, mode: SandboxMode) -> Result<(Share, SandboxPlan), Vec<PlanError>> {
    let path = options.shared_dir.clone().ok_or_else(|| vec![PlanError::NoShare])?;
    let errors = contradictions(&options);
    if !errors.is_empty() {
        return Err(errors);
    }
    let timeout = metadata_timeout(&options);
    let config = passthrough::Config {
        entry_timeout: timeout,
        attr_timeout: timeout,
        cache_policy: options.cache.clone(),
        xattr: options.xattr
            || options.xattrmap.is_some()
            || options.posix_acl != NegotiationMode::Never
            || options.security_label != NegotiationMode::Never,
        announce_submounts: !options.no_announce_submounts,
        inode_file_handles: InodeFileHandlesMode::from(options.inode_file_handles),
        readdirplus: readdirplus(&options),
        writeback: options.writeback,
        allow_direct_io: options.allow_direct_io,
        killpriv_v2: options.killpriv_v2,
        security_label: options.security_label,
        posix_acl: options.posix_acl,
        clean_noatime: !options.preserve_noatime,
        allow_mmap: options.allow_mmap,
        migration_on_error: options.migration_on_error,
        migration_verify_handles: options.migration_verify_handles,
        migration_confirm_paths: options.migration_confirm_paths,
        migration_mode: options.migration_mode,
        uid_map: Some(within_ids(options.translate_uid)),
        gid_map: Some(within_ids(options.translate_gid)),
        xattrmap: options.xattrmap,
        ..passthrough::Config::default()
    };
    let sandbox = SandboxPlan {
        mode,
        shared_dir: Some(c_string(path.clone()).map_err(|error| vec![error])?),
        uid_map: options.uid_map,
        gid_map: options.gid_map,
    };
    let share = HostDir { path, readonly: options.readonly, config, modcaps: options.modcaps };
    Ok((Share::HostDir(Box::new(share)), sandbox))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Options {
        let args = std::iter::once("ovfs").chain(line.split_whitespace()).map(Into::into);
        super::super::parse(args).unwrap()
    }

    fn plan(line: &str) -> Result<Plan, Vec<String>> {
        Plan::new(options(line)).map_err(|errors| errors.iter().map(ToString::to_string).collect())
    }

    fn config(line: &str) -> passthrough::Config {
        match plan(&format!("--socket-path s --shared-dir d {line}")).unwrap().share {
            Share::HostDir(dir) => dir.config,
            Share::Backend(_) => panic!("a directory was asked for"),
        }
    }

    #[test]
    fn cache_policy_decides_timeouts_and_readdirplus() {
        for (line, seconds, readdirplus) in [
            ("", 1, true),
            ("--cache ALWAYS", 86400, true),
            ("--cache metadata --no-readdirplus", 86400, false),
            ("--cache never", 0, false),
        ] {
            let config = config(line);
            assert_eq!(config.entry_timeout, Duration::from_secs(seconds), "{line}");
            assert_eq!(config.attr_timeout, config.entry_timeout, "{line}");
            assert_eq!(config.readdirplus, readdirplus, "{line}");
        }
    }

    #[test]
    fn attributes_follow_from_maps_lists_and_labels() {
        assert!(!config("").xattr);
        for line in ["--xattr", "--posix-acl", "--posix-acl=auto", "--security-label=auto", "--xattrmap :map::user.:"] {
            assert!(config(line).xattr, "{line}");
        }
    }

    #[test]
    fn later_flag_of_a_pair_wins() {
        assert!(config("").announce_submounts && !config("").killpriv_v2 && config("").clean_noatime);
        assert!(!config("--announce-submounts --no-announce-submounts").announce_submounts);
        assert!(config("--no-announce-submounts --announce-submounts").announce_submounts);
        assert!(config("--no-killpriv-v2 --killpriv-v2").killpriv_v2);
        assert!(!config("--killpriv-v2 --no-killpriv-v2").killpriv_v2);
        assert_eq!(config("--inode-file-handles=fallback").inode_file_handles, InodeFileHandlesMode::Prefer);
    }

    #[test]
    fn contradictions_are_refused_for_a_directory_only() {
        let base = "--socket-path s --shared-dir d";
        let migration = "--migration-mode file-handles --migration-confirm-paths --migration-verify-handles";
        let translation = "--posix-acl --translate-uid map:0:1:1";
        assert_eq!(plan(&format!("{base} {migration}")).unwrap_err().len(), 2);
        let errors = plan(&format!("{base} {translation}")).unwrap_err();
        assert_eq!(
            errors,
            ["Cannot use --translate-uid or --translate-gid with --posix-acl=always, \
              translating UIDs/GIDs would break posix ACLs"]
        );
        let migration = format!("{base} --backend memory:/// {migration} --uid-map :0:1:1:");
        assert!(plan(&format!("{migration} --translate-uid map:0:1:1")).is_ok());
        assert_eq!(
            plan(&format!("{migration} {translation}")).unwrap_err(),
            ["--posix-acl=always cannot be used with --backend: a store keeps no access control lists"]
        );
        assert_eq!(plan("--socket-path s -o xattr").unwrap_err(), ["missing \"--shared-dir\" or \"-o source\" option"]);
    }

    #[test]
    fn backend_needs_no_directory_and_carries_its_limits() {
        let plan =
            plan("run/s s3://b --cache-size 32M --request-timeout 5 --num-request-queues 4 --poll-us 7 --sandbox NONE")
                .unwrap();
        assert_eq!((plan.setup.sandbox.mode, plan.setup.sandbox.shared_dir), (SandboxMode::None, None));
        assert_eq!((plan.setup.device.num_request_queues, plan.setup.device.poll), (4, Duration::from_micros(7)));
        let Share::Backend(stores) = plan.share else { panic!("a store was asked for") };
        let share = stores.root;
        assert_eq!((share.url.as_deref(), share.cache_size), (Some("s3://b"), 32 << 20));
        assert_eq!((share.request_timeout.as_secs(), share.flush_timeout.as_secs()), (5, 30));
        assert!(check_shared_dir(&options("--backend fs:///x --shared-dir /does/not/exist --fd 3")).is_ok());
    }

    fn backend_share(line: &str) -> BackendShare {
        match plan(&format!("s fs:/x {line}")).unwrap().share {
            Share::Backend(stores) => stores.root,
            Share::HostDir(_) => panic!("a store was asked for"),
        }
    }

    #[test]
    fn attributes_of_a_store_have_defaults_and_the_umask_is_taken_off() {
        let share = backend_share("");
        assert_eq!((share.uid, share.gid, share.file_mode, share.dir_mode), (0, 0, 0o644, 0o755));
        assert_eq!((share.capacity, share.on_conflict), (1 << 50, OnConflict::KeepBoth));
        assert!(!share.posix_metadata && !share.xattr && backend_share("--xattr").xattr);
        let share = backend_share("--uid 7 --gid 8 --file-mode 0666 --dir-mode 2777 --umask 027 --posix-metadata");
        assert_eq!((share.uid, share.gid, share.file_mode, share.dir_mode), (7, 8, 0o640, 0o2750));
        assert!(share.posix_metadata && share.xattr);
        let share = backend_share("--capacity 2T --on-conflict overwrite");
        assert_eq!((share.capacity, share.on_conflict), (2 << 40, OnConflict::Overwrite));
    }

    #[test]
    fn flags_about_a_store_are_refused_for_a_directory() {
        for flag in [
            "--posix-metadata",
            "--uid=0",
            "--gid=0",
            "--file-mode=644",
            "--dir-mode=755",
            "--umask=0",
            "--capacity=1P",
            "--writeback-delay=1",
            "--cache-dirty-ratio=20",
            "--cache-block-size=64K",
            "--cache-dir=/nonexistent",
            "--metrics-listen=127.0.0.1:0",
            "--spool-dir=/nonexistent",
            "--on-conflict=fail",
        ] {
            let errors = plan(&format!("--socket-path s --shared-dir d {flag}")).unwrap_err();
            let name = flag.split('=').next().unwrap();
            assert_eq!(errors, [format!("{name} is about a store: it needs --backend")]);
        }
    }

    #[test]
    fn bounds_of_our_own_flags() {
        for line in [
            "--cache-size 15M",
            "--num-request-queues 0",
            "--num-request-queues 65",
            "--poll-us x",
            "--poll-us 1001",
            "--request-timeout 0",
            "--uid -1",
            "--uid 4294967295",
            "--gid root",
            "--file-mode 0800",
            "--file-mode 17777",
            "--dir-mode +755",
            "--umask 7000",
            "--capacity 4095",
            "--capacity 1E",
            "--writeback-delay 3600001",
            "--writeback-delay 1s",
            "--cache-dirty-ratio 4",
            "--cache-dirty-ratio 91",
            "--cache-block-size 2K",
            "--cache-block-size 96K",
            "--cache-block-size 8M",
            "--cache-disk-size 1M",
            "--metrics-listen localhost",
            "--on-conflict Fail",
        ] {
            let args = ["ovfs", "s", "fs:/x"].into_iter().chain(line.split_whitespace()).map(Into::into);
            let error = super::super::parse(args).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            let flag = line.split(' ').next().unwrap();
            assert!(error.to_string().lines().next().unwrap().contains(flag), "{error}");
        }
    }

    #[test]
    fn second_socket_flag_wins_and_the_first_is_deprecated() {
        let path = |line: &str| match plan(&format!("--shared-dir d {line}")).unwrap().setup.endpoint {
            EndpointPlan::Path { path, deprecated, .. } => (path, deprecated),
            EndpointPlan::Inherited(fd) => panic!("descriptor {fd}"),
        };
        assert_eq!(path("--socket a --socket-path b"), (PathBuf::from("b"), false));
        assert_eq!(path("--socket a"), (PathBuf::from("a"), true));
    }

    #[test]
    fn warnings_come_in_order() {
        let all = options("--socket-path s -o source=d -d -f --inode-file-handles=fallback");
        let warnings = deprecations(&all);
        let words: Vec<&str> = warnings.iter().filter_map(|text| text.split('\'').nth(1)).collect();
        assert_eq!(words, ["-f", "-d", "-o", "fallback"]);
        assert_eq!(LogPlan::new(&all).level, LevelFilter::Debug);
    }
}
