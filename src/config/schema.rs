//! Which keys each section takes. Those of stores are the broker's to know.

use crate::cli::flags::Flag;

/// All sections.
pub const SECTIONS: [&str; 6] =
    ["socket_settings", "cache_settings", "storage_settings", "options", "mounts", "shares"];

/// `[cache_settings]`.
pub const CACHE_KEYS: [&str; 4] =
    ["enabled_cache", "enabled_cache_write_back", "enabled_cache_expiration", "cache_expiration_time"];

/// What `[[shares]]` and `[[mounts]]` take beside options and a store.
const SHARE_KEYS: [&str; 3] = ["shared_dir", "type", "cache_expiration_time"];
const MOUNT_KEYS: [&str; 3] = ["path", "type", "cache_expiration_time"];

/// Options that choose the share or belong to its socket, so that no share can have its own.
const NOT_OF_SHARES: [&str; 5] = ["shared-dir", "backend", "socket-path", "socket-group", "fd"];

/// Options that each mount can have its own of.
const OF_MOUNTS: [&str; 11] = [
    "cache",
    "readonly",
    "uid",
    "gid",
    "file-mode",
    "dir-mode",
    "umask",
    "posix-metadata",
    "on-conflict",
    "writeback-delay",
    "request-timeout",
];

/// Whether a flag stands in `[socket_settings]`, where the oldest files have it, instead of `[options]`.
pub(super) fn is_of_socket(flag: &Flag) -> bool {
    flag.name == "socket-path"
}

/// Whether a share can have its own of a flag.
pub(super) fn is_of_share(flag: &Flag) -> bool {
    !NOT_OF_SHARES.contains(&flag.name.as_str())
}

/// Whether a mount can have its own of a flag.
pub(super) fn is_of_mount(flag: &Flag) -> bool {
    OF_MOUNTS.contains(&flag.name.as_str())
}

/// The keys of `[socket_settings]`.
pub fn socket_keys(flags: &[Flag]) -> Vec<String> {
    flags.iter().filter(|flag| is_of_socket(flag)).map(Flag::key).collect()
}

/// The keys of `[options]`.
pub fn option_keys(flags: &[Flag]) -> Vec<String> {
    flags.iter().filter(|flag| !is_of_socket(flag)).map(Flag::key).collect()
}

/// The keys of `[[shares]]`, without those of stores.
pub fn share_keys(flags: &[Flag]) -> Vec<String> {
    let options = flags.iter().filter(|flag| is_of_share(flag)).map(Flag::key);
    SHARE_KEYS.into_iter().map(str::to_owned).chain(options).collect()
}

/// The keys of `[[mounts]]`, without those of stores.
pub fn mount_keys(flags: &[Flag]) -> Vec<String> {
    let options = flags.iter().filter(|flag| is_of_mount(flag)).map(Flag::key);
    MOUNT_KEYS.into_iter().map(str::to_owned).chain(options).collect()
}
