//! What could not be stored in time, kept on this machine's disk until the next start.
//!
//! A file there (`entry`) is written whole or not at all, and taken away only after its store has it (`bring`). What cannot be
//! brought to its store is left and named: a file that is damaged, or one whose other half is gone from the store.

mod bring;
mod entry;

use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) use self::bring::bring_all;
use self::entry::{Description, FORMAT, summary};
use super::disk::Disk;
use super::error::os;
use crate::store::{Attributes, Pool, Segment, StoreError, Version};

/// How the names of kept files end.
const SUFFIX: &str = ".spool";

/// The directory.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    kept: AtomicU64,
}

/// A file to be kept.
pub(super) struct ToKeep<'a> {
    /// The store, as it shows itself.
    pub store: &'a str,
    /// Where it is in the share.
    pub mount: &'a str,
    pub path: &'a str,
    pub base: Option<Version>,
    pub segments: &'a [Segment],
    pub attributes: Option<Box<Attributes>>,
}

impl Spool {
    /// The directory `dir`.
    pub fn new(dir: &Path) -> Spool {
        Spool { dir: dir.to_owned(), kept: AtomicU64::new(0) }
    }

    /// Makes the directory if it is not there, and sees whether it can be used: it must be this user's, and nobody else's to write.
    ///
    /// # Errors
    /// The file system's.
    pub fn prepare(dir: &Path) -> io::Result<()> {
        Disk::prepare(dir)
    }

    /// Files that were kept since the start.
    pub(super) fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }

    /// Keeps a file: when this returns, the disk has it.
    ///
    /// # Errors
    /// The file system's.
    pub(super) fn keep(&self, what: ToKeep<'_>, pool: &Pool) -> Result<(), StoreError> {
        let ToKeep { store, mount, path, base, segments, attributes } = what;
        let fail = |e: io::Error| os(&format!("keep '{path}' in {}", self.dir.display()), &e);
        let (ranges, data, sha256) = summary(segments, pool).map_err(fail)?;
        let size = ranges.iter().map(|range| range.len()).sum();
        let (store, mount) = (store.to_owned(), mount.to_owned());
        let description = Description {
            format: FORMAT,
            store,
            mount,
            path: path.to_owned(),
            size,
            base,
            attributes,
            ranges,
            data,
            sha256,
        };
        let name = self.keep_as(&description, segments, pool).map_err(fail)?;
        self.kept.fetch_add(1, Ordering::Relaxed);
        log::warn!("'{path}': {size} bytes are not stored yet; they are kept as {}", self.dir.join(name).display());
        Ok(())
    }

    fn keep_as(&self, description: &Description, segments: &[Segment], pool: &Pool) -> io::Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let random = std::hash::RandomState::new().build_hasher().finish();
        let name = format!("{now:014}-{random:016x}{SUFFIX}");
        let unfinished = self.dir.join(format!(".{name}"));
        let written = entry::write(&unfinished, description, segments, pool)
            .and_then(|()| fs::rename(&unfinished, self.dir.join(&name)))
            .and_then(|()| File::open(&self.dir)?.sync_all());
        if written.is_err() {
            // Half of it helps nobody.
            let _ = fs::remove_file(&unfinished);
        }
        written.map(|()| name)
    }

    /// All kept files, oldest first.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|name| name.ends_with(SUFFIX) && !name.starts_with('.')) else {
                continue;
            };
            files.push(self.dir.join(name));
        }
        files.sort();
        Ok(files)
    }

    /// Takes a kept file away, for its store has it.
    fn remove(&self, file: &Path) -> io::Result<()> {
        fs::remove_file(file)?;
        File::open(&self.dir)?.sync_all()
    }
}
