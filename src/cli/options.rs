//! Every flag, as clap reads it. The names, value names, conflicts and defaults are virtiofsd 1.14's, because launchers
//! and their tests depend on them; the last group is ours.
//!
//! The doc comments are the help texts. What a value means together with others is decided in `plan`.

use std::os::fd::RawFd;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use log::LevelFilter;
use virtiofsd::idmap::{GidMap, UidMap};
use virtiofsd::passthrough::xattrmap::XattrMap;
use virtiofsd::passthrough::{CachePolicy, InodeFileHandlesMode, MigrationMode, MigrationOnError, NegotiationMode};
use virtiofsd::sandbox::SandboxMode;
use virtiofsd::seccomp::SeccompAction;
use virtiofsd::soft_idmap::cmdline::IdMap;
use virtiofsd::vhost_user::MAX_TAG_LEN;

use super::listen::{MetricsAddr, parse_metrics_addr};
use super::mounts::{BackendArg, MountArg, parse_backend};
use super::size::parse_size;
use crate::cache::buddy::{BLOCK_MAX, BLOCK_MIN};
use crate::objectfs::OnConflict;

/// Most request queues that the configuration space may announce.
pub const REQUEST_QUEUES_MAX: u16 = 63;

/// Most microseconds of `--poll-us`: a queue that is stopped waits for its worker at most so long.
pub const POLL_US_MAX: u32 = 1000;

/// `--poll-us` unless given.
pub const DEFAULT_POLL_US: u32 = 0;

/// Smallest `--cache-size`: room for one block of the largest size class per queue and for a read-ahead.
pub const CACHE_SIZE_MIN: u64 = 16 << 20;

/// Smallest `--cache-disk-size`.
pub const DISK_SIZE_MIN: u64 = 64 << 20;

/// Smallest `--capacity`: one block of a file system.
pub const CAPACITY_MIN: u64 = 4096;

/// Largest user or group id; the number after it means "none" to system calls.
const ID_MAX: i64 = u32::MAX as i64 - 1;

const SOCKET: &str = "Socket";
const FILE_SYSTEM: &str = "File system";
const CACHING: &str = "Caching";
const SECURITY: &str = "Security";
const IDS: &str = "User and group ids";
const MIGRATION: &str = "Migration";
const LOGGING: &str = "Logging";
const BACKEND: &str = "Backend";
const CONFIGURATION: &str = "Configuration";
const DEPRECATED: &str = "Deprecated";

/// What `--inode-file-handles` may say. [`InodeFileHandlesMode`] and the deprecated word for one of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileHandles {
    /// Descriptors only.
    Never,
    /// The old word for `Prefer`.
    Fallback,
    /// File handles where the host file system has them.
    Prefer,
    /// File handles or an error.
    Mandatory,
}

impl FromStr for FileHandles {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<FileHandles, &'static str> {
        Ok(match text {
            "never" => FileHandles::Never,
            "fallback" => FileHandles::Fallback,
            "prefer" => FileHandles::Prefer,
            "mandatory" => FileHandles::Mandatory,
            _ => return Err("invalid inode file handles mode"),
        })
    }
}

impl From<FileHandles> for InodeFileHandlesMode {
    fn from(mode: FileHandles) -> InodeFileHandlesMode {
        match mode {
            FileHandles::Never => InodeFileHandlesMode::Never,
            FileHandles::Fallback | FileHandles::Prefer => InodeFileHandlesMode::Prefer,
            FileHandles::Mandatory => InodeFileHandlesMode::Mandatory,
        }
    }
}

fn parse_seccomp(text: &str) -> Result<SeccompAction, &'static str> {
    Ok(match text {
        "none" => SeccompAction::Allow,
        "kill" => SeccompAction::Kill,
        "log" => SeccompAction::Log,
        "trap" => SeccompAction::Trap,
        _ => return Err("Matching variant not found"),
    })
}

fn parse_tag(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_TAG_LEN {
        return Err(format!("The tag may not be empty or longer than {MAX_TAG_LEN} bytes (encoded as UTF-8)."));
    }
    Ok(text.to_owned())
}

fn parse_capacity(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    if size < CAPACITY_MIN { Err(format!("a file system needs at least {CAPACITY_MIN} bytes")) } else { Ok(size) }
}

/// Permission bits, as chmod(1) takes them in octal, none but those of `all`.
fn parse_bits(text: &str, all: u32) -> Result<u32, String> {
    let octal = !text.is_empty() && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let bits = u32::from_str_radix(text, 8).ok().filter(|bits| octal && bits & !all == 0);
    bits.ok_or_else(|| format!("expected an octal number from 0 to {all:o}"))
}

fn parse_on_conflict(text: &str) -> Result<OnConflict, &'static str> {
    Ok(match text {
        "fail" => OnConflict::Fail,
        "overwrite" => OnConflict::Overwrite,
        "keep-both" => OnConflict::KeepBoth,
        _ => return Err("expected: fail, overwrite, keep-both"),
    })
}

fn parse_disk_size(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    if size < DISK_SIZE_MIN {
        Err(format!("the disk cache needs at least {} MiB", DISK_SIZE_MIN >> 20))
    } else {
        Ok(size)
    }
}

fn parse_block_size(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    if size.is_power_of_two() && (BLOCK_MIN as u64..=BLOCK_MAX as u64).contains(&size) {
        Ok(size)
    } else {
        Err("expected a power of two from 4K to 4M".to_owned())
    }
}

fn parse_cache_size(text: &str) -> Result<u64, String> {
    let size = parse_size(text)?;
    if size < CACHE_SIZE_MIN {
        return Err(format!("the cache needs at least {} MiB", CACHE_SIZE_MIN >> 20));
    }
    usize::try_from(size).map(|_| size).map_err(|_| format!("'{text}' is more than this machine can address"))
}

/// The flags.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "ovfs",
    version,
    about = "Share a host directory, or any storage that Apache OpenDAL reaches, with a virtual machine over virtio-fs.",
    long_about = "Share a host directory, or any storage that Apache OpenDAL reaches, with a virtual machine over \
                  virtio-fs.\n\n\
                  A directory:  ovfs --shared-dir <SHARED_DIR> --socket-path <SOCKET_PATH>\n\
                  A store:      ovfs --backend <URL> --socket-path <SOCKET_PATH>\n\
                  In short:     ovfs <SOCKET_PATH> <URL>\n\n\
                  Options marked [directory] have no meaning for a store: with --backend they are accepted and do \
                  nothing.",
    after_help = "The guest mounts the share with: mount -t virtiofs <TAG> <DIRECTORY>",
    args_override_self = true,
    arg_required_else_help = true,
    override_usage = "ovfs --shared-dir <SHARED_DIR> --socket-path <SOCKET_PATH> [OPTIONS]"
)]
pub struct Options {
    /// Directory of the host to share
    ///
    /// With --backend it may be left out, and need not exist.
    #[arg(long, help_heading = FILE_SYSTEM)]
    pub shared_dir: Option<String>,

    /// Name under which the device offers itself to the guest
    ///
    /// Turns on the vhost-user protocol feature CONFIG. Most hypervisors configure the tag on their own side and need
    /// no tag here; QEMU 7.1 to 8.0 crashes when it is given one.
    #[arg(long, value_parser = parse_tag, help_heading = SOCKET)]
    pub tag: Option<String>,

    /// Same as --socket-path [deprecated]
    #[arg(long, help_heading = DEPRECATED)]
    pub socket: Option<String>,

    /// Where to create the vhost-user socket; whatever is there already is replaced
    #[arg(long = "socket-path", help_heading = SOCKET)]
    pub socket_path: Option<String>,

    /// Group that may connect to the socket
    #[arg(long = "socket-group", conflicts_with_all = ["fd", "print_capabilities"], help_heading = SOCKET)]
    pub socket_group: Option<String>,

    /// Number of an inherited descriptor, a listening socket, to use instead of a path
    #[arg(long, conflicts_with_all = ["socket_path", "socket"], help_heading = SOCKET)]
    pub fd: Option<RawFd>,

    /// Threads that handle requests; 0 handles them in the thread that takes them from the queue [directory]
    #[arg(long, default_value = "0", help_heading = FILE_SYSTEM)]
    pub thread_pool_size: usize,

    /// Let the guest use extended attributes
    ///
    /// With --backend, the guest's own (user.*) need --posix-metadata; without it there are only ovfs.etag,
    /// ovfs.version and ovfs.content-type, which tell what the store says of a file.
    #[arg(long, help_heading = FILE_SYSTEM)]
    pub xattr: bool,

    /// Let the guest use POSIX access control lists; implies --xattr
    ///
    /// A store keeps none: with --backend only "never" is accepted.
    #[arg(
        long,
        require_equals = true,
        default_value = "never",
        default_missing_value = "always",
        num_args = 0..=1,
        value_name = "never|auto|always",
        help_heading = FILE_SYSTEM
    )]
    pub posix_acl: NegotiationMode,

    /// Rules that rename extended attributes between guest and host, as :map::user.virtiofs.:; implies --xattr
    /// [directory]
    #[arg(long, value_parser = |text: &str| XattrMap::try_from(text), help_heading = FILE_SYSTEM)]
    pub xattrmap: Option<XattrMap>,

    /// How to confine the process that talks to the guest (namespace, chroot, none)
    ///
    /// - namespace: its own process, mount and network namespaces (and user namespace, unless started by root), with
    ///   nothing but the shared directory in reach.
    ///
    /// - chroot: the shared directory as its root; for root only.
    ///
    /// - none: no confinement.
    ///
    /// With --backend this process sees an empty directory in place of the shared one and has no capability; the store
    /// is reached by a second process outside.
    #[arg(long, default_value = "namespace", help_heading = SECURITY)]
    pub sandbox: SandboxMode,

    /// Refuse everything that would change the share
    #[arg(long, help_heading = FILE_SYSTEM)]
    pub readonly: bool,

    /// What befalls the process on a system call that it should not need (none, kill, log, trap)
    #[arg(long, value_parser = parse_seccomp, default_value = "kill", help_heading = SECURITY)]
    pub seccomp: SeccompAction,

    /// Show the guest which directories are mount points of the host [default] [directory]
    #[arg(long, help_heading = FILE_SYSTEM)]
    pub announce_submounts: bool,

    /// Hide from the guest which directories are mount points of the host [directory]
    #[arg(long, overrides_with("announce_submounts"), help_heading = FILE_SYSTEM)]
    pub no_announce_submounts: bool,

    /// Whether to remember inodes by file handle instead of by open descriptor (never, prefer, mandatory) [directory]
    ///
    /// - never: by O_PATH descriptors alone.
    ///
    /// - prefer: by file handles, and by descriptors where the host's file system has no handles. "fallback" is a
    ///   deprecated word for this.
    ///
    /// - mandatory: by file handles alone.
    ///
    /// File handles spare descriptors, and let go of files that the guest has closed, as NFS wants it.
    #[arg(long, require_equals = true, default_value = "prefer", help_heading = FILE_SYSTEM)]
    pub inode_file_handles: FileHandles,

    /// How long the guest may trust what it has read (auto, always, never, metadata)
    #[arg(long, default_value = "auto", help_heading = CACHING)]
    pub cache: CachePolicy,

    /// Allow shared memory maps of files under --cache=metadata and --cache=never
    ///
    /// Only sound while nobody else writes to the share.
    #[arg(long, help_heading = CACHING)]
    pub allow_mmap: bool,

    /// Do not offer READDIRPLUS, which reads a directory and its entries' attributes in one request
    #[arg(long, help_heading = CACHING)]
    pub no_readdirplus: bool,

    /// Let the guest gather writes in its page cache
    #[arg(long, help_heading = CACHING)]
    pub writeback: bool,

    /// Open files with O_DIRECT where the guest does [directory]
    #[arg(long, help_heading = CACHING)]
    pub allow_direct_io: bool,

    /// Print what this program can do, as the vhost-user.json conventions ask, and exit
    #[arg(long = "print-capabilities")]
    pub print_capabilities: bool,

    /// Capabilities to keep or to give up beside the default ones, as --modcaps=+sys_admin:-chown [directory]
    #[arg(long, help_heading = SECURITY)]
    pub modcaps: Option<String>,

    /// What to log (error, warn, info, debug, trace, off); the environment variable RUST_LOG has precedence
    #[arg(long = "log-level", default_value = "info", help_heading = LOGGING)]
    pub log_level: LevelFilter,

    /// Log to syslog [default: stderr]
    #[arg(long, help_heading = LOGGING)]
    pub syslog: bool,

    /// Most open descriptors; 0 leaves the limit as it is
    /// [default: min(1000000, '/proc/sys/fs/nr_open')]
    #[arg(long = "rlimit-nofile", help_heading = SECURITY)]
    pub rlimit_nofile: Option<u64>,

    /// Options as the virtiofsd written in C took them [deprecated]
    #[arg(short = 'o', help_heading = DEPRECATED)]
    pub compat_options: Option<Vec<String>>,

    /// Same as --log-level debug [deprecated]
    #[arg(short = 'd', help_heading = DEPRECATED)]
    pub compat_debug: bool,

    /// Do not offer HANDLE_KILLPRIV_V2 [default] [directory]
    #[arg(long = "no-killpriv-v2", help_heading = FILE_SYSTEM)]
    pub no_killpriv_v2: bool,

    /// Offer HANDLE_KILLPRIV_V2: clear set-user-id bits on this side of a write [directory]
    #[arg(long, overrides_with("no_killpriv_v2"), help_heading = FILE_SYSTEM)]
    pub killpriv_v2: bool,

    /// Nothing [deprecated]
    #[arg(short = 'f', help_heading = DEPRECATED)]
    pub compat_foreground: bool,

    /// Store the SELinux label that the guest sends with a new file; implies --xattr [directory]
    #[arg(
        long = "security-label",
        require_equals = true,
        default_value = "never",
        default_missing_value = "always",
        num_args = 0..=1,
        value_name = "never|auto|always",
        help_heading = SECURITY
    )]
    pub security_label: NegotiationMode,

    /// A range of user ids of the sandbox's user namespace, as :namespace_uid:host_uid:count: [directory]
    ///
    /// Only for ordinary users with --sandbox=namespace. :0:100000:65536: makes the host's users 100000 to 165535 the
    /// namespace's users 0 to 65535. May be given several times. The kernel does this mapping, not ovfs (see
    /// --translate-uid); ranges other than one's own id need newuidmap(1).
    #[arg(long, help_heading = IDS)]
    pub uid_map: Vec<UidMap>,

    /// A range of group ids of the sandbox's user namespace, as :namespace_gid:host_gid:count: [directory]
    ///
    /// As --uid-map, for groups.
    #[arg(long, help_heading = IDS)]
    pub gid_map: Vec<GidMap>,

    /// How a range of user ids is translated between guest and host, as <type>:<source base>:<target base>:<count>
    ///
    /// With --backend the host's ids are those kept in the store, or --uid.
    ///
    /// - guest: a range of the guest's ids, one to one, to the host's
    ///
    /// - host: a range of the host's ids, one to one, to the guest's
    ///
    /// - map: both, as map:<guest base>:<host base>:<count>
    ///
    /// - squash-guest: a range of the guest's ids, all to one id of the host
    ///
    /// - squash-host: a range of the host's ids, all to one id of the guest
    ///
    /// - forbid-guest: a range of the guest's ids, as forbid-guest:<base>:<count>, that may own nothing
    ///
    /// May be given several times. Done by ovfs itself, without a user namespace; excludes --posix-acl.
    #[arg(long, help_heading = IDS)]
    pub translate_uid: Vec<IdMap>,

    /// As --translate-uid, for groups
    #[arg(long, help_heading = IDS)]
    pub translate_gid: Vec<IdMap>,

    /// Open files with O_NOATIME where the guest does, which fails without the privilege to do so [directory]
    #[arg(long = "preserve-noatime", help_heading = CACHING)]
    pub preserve_noatime: bool,

    /// How the source of a live migration describes its inodes (find-paths, file-handles) [directory]
    ///
    /// - find-paths: by their paths below the shared directory, asked from /proc/self/fd or searched for.
    ///
    /// - file-handles: by file handles; both sides must share the same directory of the same file system, and the
    ///   destination must be allowed to open handles.
    #[arg(long = "migration-mode", default_value = "find-paths", help_heading = MIGRATION)]
    pub migration_mode: MigrationMode,

    /// What the destination of a live migration does about an inode that it cannot open (abort, guest-error)
    /// [directory]
    ///
    /// - abort: fail the migration.
    ///
    /// - guest-error: go on; the guest gets an error from that inode.
    #[arg(long = "migration-on-error", default_value = "abort", help_heading = MIGRATION)]
    pub migration_on_error: MigrationOnError,

    /// Send a file handle with every path, for the destination to check that it found the same inode [directory]
    ///
    /// For the source, with --migration-mode=find-paths. Both sides must share the same directory of the same file
    /// system.
    #[arg(long = "migration-verify-handles", help_heading = MIGRATION)]
    pub migration_verify_handles: bool,

    /// Check every path once more before the destination takes over [directory]
    ///
    /// For the source, with --migration-mode=find-paths. Lengthens the time for which the guest stands still.
    #[arg(long = "migration-confirm-paths", help_heading = MIGRATION)]
    pub migration_confirm_paths: bool,

    /// Storage to share instead of a directory, as s3://bucket/prefix?region=eu-west-1 or fs:///srv/data
    ///
    /// The scheme is the name of an OpenDAL service; the query sets what that service can be told. Secrets are better
    /// kept in the environment or in the service's own files; those in the URL are overwritten in this process's
    /// visible command line.
    ///
    /// May be given several times, as /PATH=URL: that store is a directory of the share. What stands at the root then is
    /// the store without a path, or nothing but those directories.
    #[arg(long = "backend", value_name = "URL", value_parser = parse_backend, help_heading = BACKEND)]
    pub backends: Vec<BackendArg>,

    /// The store in the root: the last of `backends` that has no path, or what a file says.
    #[arg(skip)]
    pub backend: Option<String>,

    /// The other stores.
    #[arg(skip)]
    pub mounts: Vec<MountArg>,

    /// Memory for the store's data, a hard bound; with K, M, G or T for powers of 1024, at least 16M
    #[arg(long, value_name = "BYTES", value_parser = parse_cache_size, default_value = "256M", help_heading = BACKEND)]
    pub cache_size: u64,

    /// Request queues that the device announces to the guest
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=i64::from(REQUEST_QUEUES_MAX)),
        default_value = "1",
        help_heading = SOCKET
    )]
    pub num_request_queues: u16,

    /// Microseconds for which a busy queue is watched for the next request before the guest is asked to notify
    ///
    /// Spares the guest notifications and the wait for a thread to wake up, at the price of processor time. Only while
    /// requests follow each other that quickly; an idle queue is never watched. 0 turns it off.
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(..=i64::from(POLL_US_MAX)),
        default_value_t = DEFAULT_POLL_US,
        help_heading = SOCKET
    )]
    pub poll_us: u32,

    /// Seconds after which a request that waits for the store ends in an error
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(1..=86400),
        default_value = "60",
        help_heading = BACKEND
    )]
    pub request_timeout: u32,

    /// Most seconds to spend on storing unwritten data when the daemon is told to end or the guest disconnects
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(0..=86400),
        default_value = "30",
        help_heading = BACKEND
    )]
    pub flush_timeout: u32,

    /// Keep owners, modes, times, extended attributes, symbolic links, named pipes and sockets in the store
    ///
    /// Kept with the objects, as s3fs keeps them, or by the file system behind the backend. Listing a directory with
    /// its attributes then costs a request for each name on most stores. Implies --xattr.
    #[arg(long, help_heading = BACKEND)]
    pub posix_metadata: bool,

    /// Owner of files; with --posix-metadata, of those of which the store knows none [default: 0]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=ID_MAX), allow_negative_numbers = true, help_heading = BACKEND)]
    pub uid: Option<u32>,

    /// Group of files; with --posix-metadata, of those of which the store knows none [default: 0]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=ID_MAX), allow_negative_numbers = true, help_heading = BACKEND)]
    pub gid: Option<u32>,

    /// Permissions of files; with --posix-metadata, of those of which the store knows none [default: 0644]
    #[arg(long, value_name = "OCTAL", value_parser = |text: &str| parse_bits(text, 0o7777), help_heading = BACKEND)]
    pub file_mode: Option<u32>,

    /// Permissions of directories; with --posix-metadata, of those of which the store knows none [default: 0755]
    #[arg(long, value_name = "OCTAL", value_parser = |text: &str| parse_bits(text, 0o7777), help_heading = BACKEND)]
    pub dir_mode: Option<u32>,

    /// Permissions to take off --file-mode and --dir-mode [default: 0]
    #[arg(long, value_name = "OCTAL", value_parser = |text: &str| parse_bits(text, 0o777), help_heading = BACKEND)]
    pub umask: Option<u32>,

    /// Size of the file system as the guest's df(1) shows it; with K, M, G, T or P for powers of 1024 [default: 1P]
    #[arg(long, value_name = "BYTES", value_parser = parse_capacity, help_heading = BACKEND)]
    pub capacity: Option<u64>,

    /// Milliseconds after which a closed file is uploaded, in the background; 0: close(2) waits for the store [default: 0]
    ///
    /// A crash of this program loses what was closed but neither uploaded nor synced. fsync(2), syncfs(2) and a stop by SIGTERM
    /// do not wait.
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u32).range(..=3_600_000),
        help_heading = BACKEND)]
    pub writeback_delay: Option<u32>,

    /// Percent of --cache-size that what is not yet stored may take; writers then wait for the store [default: 50]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(5..=90), help_heading = BACKEND)]
    pub cache_dirty_ratio: Option<u32>,

    /// How much is fetched around a read at random: a power of two, 4K to 4M [default: 64K]
    ///
    /// Small files are fetched whole and what is read from front to back in longer pieces, whatever it is.
    #[arg(long, value_name = "BYTES", value_parser = parse_block_size, help_heading = BACKEND)]
    pub cache_block_size: Option<u64>,

    /// Directory on this machine's disk for blocks of what was read from the store [default: none]
    ///
    /// All ovfs daemons of one user may share it, and then fetch what several guests read only once. It may be deleted at any time.
    #[arg(long, value_name = "PATH", help_heading = BACKEND)]
    pub cache_dir: Option<String>,

    /// About how much --cache-dir may hold; with K, M, G, T or P for powers of 1024 [default: 10G]
    #[arg(long, value_name = "BYTES", value_parser = parse_disk_size, requires = "cache_dir", help_heading = BACKEND)]
    pub cache_disk_size: Option<u64>,

    /// Serve Prometheus metrics at this address, for GET /metrics: IP:PORT or unix:PATH [default: none]
    #[arg(long, value_name = "ADDRESS", value_parser = parse_metrics_addr, help_heading = BACKEND)]
    pub metrics_listen: Option<MetricsAddr>,

    /// Directory on this machine's disk where what could not be stored in time at the end is kept [default: none]
    ///
    /// The next start with the same directory and the same store brings it there, unless somebody else has changed the file meanwhile:
    /// then it is stored beside it. Without such a directory it is lost.
    #[arg(long, value_name = "PATH", help_heading = BACKEND)]
    pub spool_dir: Option<String>,

    /// What becomes of a file that was changed here and in the store at once (fail, overwrite, keep-both)
    /// [default: keep-both]
    ///
    /// - fail: the store's stays; close(2) and fsync(2) fail with ESTALE, and what was written here is dropped.
    ///
    /// - overwrite: what was written here replaces the store's.
    ///
    /// - keep-both: the store's stays, what was written here is stored beside it under another name; close(2) and
    ///   fsync(2) fail with ESTALE.
    #[arg(long, value_name = "ACTION", value_parser = parse_on_conflict, help_heading = BACKEND)]
    pub on_conflict: Option<OnConflict>,

    /// File with settings, in TOML; what the command line says has precedence
    #[arg(long, value_name = "FILE", help_heading = CONFIGURATION)]
    pub config_file: Option<String>,

    /// Directory with settings for every ovfs of this host: ovfs.toml and conf.d/*.toml [default: /etc/ovfs]
    ///
    /// Its [[shares]] entries turn shared directories into stores. --config-file has precedence over it. Only the
    /// default directory may be missing.
    #[arg(long, value_name = "DIR", help_heading = CONFIGURATION)]
    pub config_dir: Option<String>,

    /// Print the settings in effect, as a configuration file without its secrets, and exit
    #[arg(long, help_heading = CONFIGURATION)]
    pub print_config: bool,

    /// How long names and attributes may be trusted under `CachePolicy::Auto`, if not one second. Has no flag.
    #[arg(skip)]
    pub cache_expiration: Option<Duration>,
}
