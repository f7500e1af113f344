//! Names in the root that are this program's own: nobody is shown or makes them, and of those that stand for unlinked open
//! files the abandoned ones are removed at the start.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::error::error;
use super::confine::{DirStream, unlink_in};
use super::status::stat_in;
use crate::store::{StoreError, StoreErrorKind};

/// Start of all names that are reserved in the root.
const RESERVED: &str = ".ovfs-";

/// Start of the names of unlinked files that are still open, which the device process makes.
const UNLINKED: &str = ".ovfs-unlinked-";

/// How long a file of that kind lies untouched before it is taken for abandoned: the instance that made it has crashed, or it
/// would have removed it. Reading counts as a touch where the file system keeps the time of it.
pub(super) const UNLINKED_AGE: Duration = Duration::from_secs(24 * 3600);

/// Whether `path` is, or is below, a reserved name.
pub(super) fn is_reserved(path: &str) -> bool {
    path.starts_with(RESERVED)
}

/// Refuses what cannot be an object's path.
pub(super) fn check_object(path: &str) -> Result<(), StoreError> {
    if path.starts_with(UNLINKED) && !path.contains('/') { Ok(()) } else { check_dir(path) }
}

/// Refuses what cannot be a directory's path.
pub(super) fn check_dir(path: &str) -> Result<(), StoreError> {
    if is_reserved(path) {
        return Err(error(StoreErrorKind::InvalidName, format!("the name {path:?} cannot be used: it is reserved")));
    }
    Ok(())
}

/// Removes, on a thread of its own, the files of unlinked names in `root` that nobody has touched for `age`.
pub(super) fn sweep_aside(root: OwnedFd, age: Duration) {
    let sweeper = std::thread::Builder::new().name("broker-sweep".into()).spawn(move || match sweep(root, age) {
        Ok(0) => {}
        Ok(count) => log::info!("removed {count} files that were unlinked while open and left behind"),
        Err(e) => log::warn!("cannot look for unlinked files that were left behind: {e}"),
    });
    if let Err(e) = sweeper {
        log::warn!("cannot look for unlinked files that were left behind: {e}");
    }
}

fn sweep(root: OwnedFd, age: Duration) -> io::Result<usize> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let oldest = i64::try_from(now.saturating_sub(age).as_nanos()).unwrap_or(i64::MAX);
    let mut names = DirStream::new(root)?;
    let mut count = 0;
    while let Some(name) = names.next_name()? {
        if !name.to_bytes().starts_with(UNLINKED.as_bytes()) {
            continue;
        }
        let Some(stat) = stat_in(&names, &name)?.filter(|stat| !stat.is_dir()) else { continue };
        // The renaming that made the name is a change of attributes; the content may be years old.
        if stat.mtime_ns.max(stat.ctime_ns).max(stat.atime_ns) >= oldest {
            continue;
        }
        match unlink_in(&names, &name, false) {
            Ok(()) => count += 1,
            Err(e) => log::debug!("{name:?} stays: {e}"),
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_unlinked_names_are_swept_and_only_old_ones() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["kept", ".ovfs-other", ".ovfs-unlinked-1", ".ovfs-unlinked-2"] {
            fs::write(at(name), "x").unwrap();
        }
        fs::create_dir(at(".ovfs-unlinked-dir")).unwrap();
        fs::create_dir(at("deep")).unwrap();
        fs::write(at("deep/.ovfs-unlinked-3"), "x").unwrap();
        std::os::unix::fs::symlink("kept", at(".ovfs-unlinked-link")).unwrap();
        // What has only an old time of its content was renamed lately.
        let ancient = fs::FileTimes::new().set_modified(UNIX_EPOCH).set_accessed(UNIX_EPOCH);
        fs::File::options().write(true).open(at(".ovfs-unlinked-1")).unwrap().set_times(ancient).unwrap();
        let root = || OwnedFd::from(fs::File::open(dir.path()).unwrap());
        assert_eq!(sweep(root(), UNLINKED_AGE).unwrap(), 0);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(sweep(root(), Duration::ZERO).unwrap(), 3);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
        assert!(at("kept").exists() && at(".ovfs-other").exists() && at("deep/.ovfs-unlinked-3").exists());
    }

    #[test]
    fn reserved_is_the_root_only() {
        assert!(check_object(".ovfs-unlinked-00").is_ok());
        for bad in [".ovfs-x", ".ovfs-unlinked-00/x", ".ovfs-tmp/x"] {
            assert!(check_object(bad).is_err(), "{bad}");
        }
        for fine in ["", "a/.ovfs-x", ".ovfs", "ovfs-x"] {
            assert!(check_object(fine).is_ok() && check_dir(fine).is_ok() && !is_reserved(fine), "{fine}");
        }
        assert!(check_dir(".ovfs-unlinked-00").is_err());
    }
}
