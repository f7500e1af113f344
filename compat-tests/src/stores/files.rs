//! A store whose objects are files of a directory here.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Puts a file in place at once, as an object is; a name with a slash at its end makes a directory.
pub(super) fn put(root: &Path, key: &str, data: &[u8]) -> io::Result<()> {
    let path = root.join(key);
    if key.ends_with('/') {
        return fs::create_dir_all(path);
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Beside the root: on the same file system, and in nobody's sight.
    let beside = root.parent().unwrap_or(root).join(format!("put-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    fs::write(&beside, data)?;
    fs::rename(beside, path)
}

/// Reads a file.
pub(super) fn get(root: &Path, key: &str) -> io::Result<Option<Vec<u8>>> {
    match fs::read(root.join(key)) {
        Ok(data) => Ok(Some(data)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Deletes a file, or with a slash at the end of its name a directory.
pub(super) fn delete(root: &Path, key: &str) -> io::Result<()> {
    if key.ends_with('/') { fs::remove_dir(root.join(key)) } else { fs::remove_file(root.join(key)) }
}

/// Which file it is, whatever its name.
pub(super) fn identity(root: &Path, key: &str) -> Option<u64> {
    fs::metadata(root.join(key)).ok().map(|meta| meta.ino())
}

/// All files.
pub(super) fn keys(root: &Path) -> Vec<String> {
    let mut keys = Vec::new();
    walk(root.to_path_buf(), "", &mut keys);
    keys
}

/// All directories, with a slash.
pub(super) fn dirs(root: &Path) -> Vec<String> {
    let (mut found, mut left) = (Vec::new(), vec![String::new()]);
    while let Some(dir) = left.pop() {
        let Ok(entries) = fs::read_dir(root.join(&dir)) else { continue };
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_own(&name) {
                left.push(format!("{dir}{name}/"));
                found.push(format!("{dir}{name}/"));
            }
        }
    }
    found
}

/// What servers and the broker keep for themselves.
fn is_own(name: &str) -> bool {
    [".tmp", ".metadata", ".upload", ".ovfs"].iter().any(|own| name.starts_with(own))
}

fn walk(dir: PathBuf, prefix: &str, keys: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_own(&name) {
            continue;
        }
        let key = format!("{prefix}{name}");
        if entry.path().is_dir() {
            walk(entry.path(), &format!("{key}/"), keys);
        } else {
            keys.push(key);
        }
    }
}
