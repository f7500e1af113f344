//! Making room in the disk cache.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The part of the room (one in so many) that may be written between two sweeps, and that a sweep frees beyond need.
pub const SLACK: u64 = 16;

/// Bytes in a unit of st_blocks.
const UNIT: u64 = 512;

/// Removes the files that were used least lately while all take more than `max` bytes.
///
/// # Errors
/// Those of reading the directory itself. What cannot be removed stays; others may be at it too.
pub fn sweep(dir: &Path, max: u64) -> io::Result<()> {
    let mut files = Vec::new();
    let mut sum = 0;
    for above in std::fs::read_dir(dir)?.flatten().filter(|entry| is_ours(&entry.file_name(), 2)) {
        let Ok(entries) = std::fs::read_dir(above.path()) else { continue };
        for entry in entries.flatten().filter(|entry| is_ours(&entry.file_name(), 62)) {
            let Ok(found) = entry.metadata() else { continue };
            let bytes = found.blocks() * UNIT;
            sum += bytes;
            files.push(((found.mtime(), found.mtime_nsec()), bytes, entry.path()));
        }
    }
    if sum <= max {
        return Ok(());
    }
    files.sort_unstable();
    let goal = max - max / SLACK;
    for (_, bytes, path) in files {
        if sum <= goal {
            break;
        }
        sum -= remove(&path, bytes);
    }
    Ok(())
}

/// Whether a name is one that we give: nothing else is ever touched.
fn is_ours(name: &std::ffi::OsStr, len: usize) -> bool {
    name.len() == len && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit)
}

fn remove(path: &PathBuf, bytes: u64) -> u64 {
    match std::fs::remove_file(path) {
        Ok(()) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => bytes,
        Err(e) => {
            log::debug!("{path:?} stays in the disk cache: {e}");
            0
        }
    }
}
