//! Supplementary groups: a root process that will act for any user must not carry its starter's.

use std::fs;
use std::io;
use std::path::Path;
use std::ptr;

use log::warn;
use virtiofsd::sandbox::Error as Cause;

use super::TARGET;

/// Drops them if this process can change its ids.
pub(super) fn drop_supplementary() -> Result<(), Cause> {
    let needed = must_drop().unwrap_or_else(|error| {
        let error = Cause::DropSupplementalGroups(error);
        warn!(
            target: TARGET,
            "Failed to determine whether supplemental groups must be dropped: {error}; \
             defaulting to trying to drop supplemental groups"
        );
        true
    });
    if !needed {
        return Ok(());
    }
    // SAFETY: with a size of 0 nothing is stored.
    match unsafe { libc::getgroups(0, ptr::null_mut()) } {
        0 => Ok(()),
        // SAFETY: an empty list is not read.
        1.. if unsafe { libc::setgroups(0, ptr::null()) } == 0 => Ok(()),
        1.. => Err(Cause::DropSupplementalGroups(io::Error::last_os_error())),
        _ => Err(Cause::GetSupplementalGroups(io::Error::last_os_error())),
    }
}

/// Not for ordinary users, nor for the root of a user namespace that holds one id alone and may not set groups: neither
/// can become anyone else, and the kernel would refuse.
fn must_drop() -> io::Result<bool> {
    // SAFETY: no arguments, no effects.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(false);
    }
    if !Path::new("/proc/self/ns/user").exists() {
        return Ok(true);
    }
    let read = |name| fs::read_to_string(Path::new("/proc/self").join(name));
    Ok(can_change_ids(&read("uid_map")?, &read("gid_map")?, &read("setgroups")?))
}

fn can_change_ids(uid_map: &str, gid_map: &str, setgroups: &str) -> bool {
    let holds_one = |map: &str| map.split_whitespace().skip(2).eq(["1"]);
    setgroups.trim() != "deny" || !holds_one(uid_map) || !holds_one(gid_map)
}

#[cfg(test)]
mod tests {
    use super::can_change_ids;

    #[test]
    fn only_a_namespace_of_one_id_may_keep_its_groups() {
        let (one, all) = ("         0       1000          1\n", "         0          0 4294967295\n");
        assert!(!can_change_ids(one, one, "deny\n"));
        assert!(can_change_ids(one, one, "allow\n"));
        assert!(can_change_ids(all, all, "allow\n"));
        assert!(can_change_ids(one, all, "deny\n"));
        assert!(can_change_ids("0 1000 1\n1 100000 65536\n", one, "deny\n"));
        assert!(can_change_ids("0 1000 1\n1 5000 1\n", one, "deny\n"));
    }
}
