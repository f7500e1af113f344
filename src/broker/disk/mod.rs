//! The second tier of the cache: blocks of objects in a directory of this machine (`--cache-dir`), for all ovfs daemons that name
//! the same one, so that many guests that read one object fetch it once.
//!
//! It holds nothing that cannot be fetched again, and may be deleted at any time, as a whole or in parts. A file of it is one version
//! of one object ([`object`]), named by a hash of the store, the path and the ETag; each block has a checksum, so a torn or
//! damaged one is only fetched anew. Whoever fetches blocks holds a lock on them in that file (fcntl(2)), and others wait for
//! what it fetches. When the files take more room than they may, those that were used least lately go ([`sweep`]).
//!
//! What is read from here was not asked of the store: whoever needs the newest version asks for that first.

mod object;
mod sweep;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use self::object::{Object, runs};
use super::url::Backend;
use crate::store::{Pool, Slice, StoreError, Version};

/// Keys of a service's configuration that say where its objects are.
const PLACE: [&str; 8] =
    ["account_name", "bucket", "container", "endpoint", "filesystem", "name_node", "region", "root"];

/// How long somebody else's fetch of the same blocks is waited for, and how often it is looked for.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(4);

/// A directory of blocks.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    /// Most bytes that the files may take.
    max: u64,
    /// Written since the last sweep.
    written: AtomicU64,
    sweeping: AtomicBool,
    /// Writing failed and was logged.
    trouble: AtomicBool,
    /// What this process read from here and what it had to fetch, in bytes.
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Disk {
    /// Opens or makes the directory, for files of `max` bytes in all.
    ///
    /// # Errors
    /// mkdir(2)'s; PermissionDenied: it belongs to another user, or others may write to it.
    pub fn open(dir: &Path, max: u64) -> io::Result<Arc<Disk>> {
        Disk::prepare(dir)?;
        let disk = Arc::new(Disk {
            dir: dir.to_owned(),
            max,
            written: AtomicU64::new(0),
            sweeping: AtomicBool::new(false),
            trouble: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        });
        disk.sweep();
        Ok(disk)
    }

    /// Makes the directory if it is not there, and sees whether it can be used.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn prepare(dir: &Path) -> io::Result<()> {
        std::fs::DirBuilder::new().mode(0o700).recursive(true).create(dir)?;
        let found = std::fs::symlink_metadata(dir)?;
        // SAFETY: always succeeds.
        let me = unsafe { libc::geteuid() };
        if !found.is_dir() || found.uid() != me || found.mode() & 0o022 != 0 {
            let why = "it must be a directory that belongs to this user and that nobody else may write to";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(())
    }

    /// What was read from here and what was not here, in bytes.
    pub fn counts(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    fn sweep(self: &Arc<Self>) {
        if self.sweeping.swap(true, Ordering::Relaxed) {
            return;
        }
        let disk = Arc::clone(self);
        let swept = std::thread::Builder::new().name("broker-sweep".into()).spawn(move || {
            if let Err(e) = sweep::sweep(&disk.dir, disk.max) {
                log::warn!("the disk cache in {:?} cannot be tidied: {e}", disk.dir);
            }
            disk.written.store(0, Ordering::Relaxed);
            disk.sweeping.store(false, Ordering::Relaxed);
        });
        if let Err(e) = swept {
            self.sweeping.store(false, Ordering::Relaxed);
            log::debug!("no thread to tidy the disk cache: {e}");
        }
    }

    fn wrote(self: &Arc<Self>, bytes: u64) {
        if self.written.fetch_add(bytes, Ordering::Relaxed) + bytes > self.max / sweep::SLACK {
            self.sweep();
        }
    }
}

/// A store's part of a [`Disk`].
#[derive(Debug)]
pub struct Shelf {
    disk: Arc<Disk>,
    place: String,
    pool: Arc<Pool>,
}

impl Shelf {
    /// The part of `disk` that belongs to `backend`.
    pub fn new(disk: Arc<Disk>, backend: &Backend, pool: &Arc<Pool>) -> Shelf {
        let place = PLACE.iter().filter_map(|key| Some(format!("{key}={}\n", backend.config.get(key)?)));
        let place = format!("{}\n{}", backend.service.scheme, place.collect::<String>());
        Shelf { disk, place, pool: Arc::clone(pool) }
    }

    /// Whether blocks of `version` may be here: only what an ETag names, and what leaves room for others.
    pub fn takes(&self, version: Option<&Version>) -> bool {
        version.is_some_and(|v| {
            v.etag.as_ref().is_some_and(|etag| !etag.starts_with("W/")) && v.size > 0 && v.size <= self.disk.max / 2
        })
    }

    fn path(&self, path: &str, version: &Version) -> PathBuf {
        let mut hash = Sha256::new();
        for part in [self.place.as_str(), path, version.etag.as_deref().unwrap_or_default()] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update(version.size.to_le_bytes());
        let name: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        self.disk.dir.join(&name[..2]).join(&name[2..])
    }

    /// Fills `dest` with the bytes of `version` of `path` from `offset` on: from here, and what is not here by `fetch`, which is
    /// given where it begins and the slice to fill. What is fetched as whole blocks stays.
    ///
    /// # Errors
    /// What `fetch` says. Trouble with the directory is none.
    pub async fn read<F: Future<Output = Result<(), StoreError>>>(
        &self,
        path: &str,
        version: &Version,
        (offset, dest): (u64, Slice),
        fetch: impl Fn(u64, Slice) -> F,
    ) -> Result<(), StoreError> {
        let file = self.path(path, version);
        let object = match tokio::task::block_in_place(|| Object::open(&file, version.size)) {
            Ok(object) => object,
            Err(e) => {
                self.log_trouble(&e);
                return fetch(offset, dest).await;
            }
        };
        let began = Instant::now();
        let mut missing = self.take(&object, offset, dest, &[(offset, dest.len)]);
        while !missing.is_empty() {
            let lock = match object.lock(&missing) {
                Ok(lock) => lock,
                // Somebody else fetches some of it. It may be here by then.
                Err(_) if began.elapsed() < PATIENCE => {
                    tokio::time::sleep(LOOK_EVERY).await;
                    missing = self.take(&object, offset, dest, &missing);
                    continue;
                }
                Err(_) => None,
            };
            // Whoever had the lock before may have fetched it just now.
            missing = self.take(&object, offset, dest, &missing);
            for &(at, len) in &missing {
                let part = Slice { offset: dest.offset + (at - offset), len };
                fetch(at, part).await?;
                self.disk.misses.fetch_add(len.into(), Ordering::Relaxed);
                self.put(&object, at, part);
            }
            drop(lock);
            break;
        }
        Ok(())
    }

    /// Fills what is here of `wanted` into `dest`, which begins at `offset`; returns what is not.
    fn take(&self, object: &Object, offset: u64, dest: Slice, wanted: &[(u64, u32)]) -> Vec<(u64, u32)> {
        tokio::task::block_in_place(|| {
            let mut missing = Vec::new();
            for &(at, len) in wanted {
                let part = Slice { offset: dest.offset + (at - offset), len };
                // SAFETY: the device leaves the slice alone until the reply, which comes after whoever awaits us.
                let Some(bytes) = (unsafe { self.pool.bytes_mut(part) }) else { continue };
                let here = object.read(at, bytes);
                let gone: u64 = here.iter().map(|&(_, len)| u64::from(len)).sum();
                self.disk.hits.fetch_add(u64::from(len) - gone, Ordering::Relaxed);
                missing.extend(here);
            }
            runs(missing)
        })
    }

    fn put(&self, object: &Object, at: u64, part: Slice) {
        tokio::task::block_in_place(|| {
            // SAFETY: as above: nobody else writes them.
            let Some(bytes) = (unsafe { self.pool.bytes(part) }) else { return };
            match object.write(at, bytes) {
                Ok(written) => self.disk.wrote(written),
                Err(e) => self.log_trouble(&e),
            }
        });
    }

    fn log_trouble(&self, e: &io::Error) {
        let level = if self.disk.trouble.swap(true, Ordering::Relaxed) { log::Level::Debug } else { log::Level::Warn };
        log::log!(level, "the disk cache in {:?} is of no use now: {e}", self.disk.dir);
        if e.raw_os_error() == Some(libc::ENOSPC) {
            self.disk.sweep();
        }
    }
}
