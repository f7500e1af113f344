//! A store reached through OpenDAL. One file per operation; here is what they share: how paths, metadata and versions of
//! OpenDAL and of ours correspond.
//!
//! A path `x` is the object `x`; the directory is `x/`, which may be an object of its own (the marker), a real directory,
//! or only the start of other names. Trailing slashes are ours to add: nothing the device says contains one.

mod compose;
mod delete;
mod dir;
mod list;
mod plan;
mod read;
mod rename;
mod stat;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opendal::{Capability, Metadata};
use tokio::sync::Semaphore;

pub(super) use self::compose::unique;
use self::list::Listing;
use super::cursors::Cursors;
use super::error::Cleaner;
use super::operator::{self, Operators};
use super::services::{Service, Upload};
use super::url::{Backend, BackendError};
use crate::store::{Capabilities, Kind, Meta, Pool, StoreError, Version};

/// Where objects wait under another name until they are whole, on stores that show unfinished ones; hidden from the device.
pub(super) const TEMPORARY: &str = ".ovfs-tmp";

/// Bytes of objects that may be in this process at once on their way from the store to the store.
const STREAM_BUDGET: u64 = 256 << 20;

/// Longest object on services that take it in one request: all of it must be in memory.
const ONE_SHOT_MAX: u64 = STREAM_BUDGET;

/// A store behind OpenDAL.
#[derive(Debug)]
pub(super) struct Remote {
    ops: Operators,
    can: Capability,
    service: &'static Service,
    cleaner: Arc<Cleaner>,
    pool: Arc<Pool>,
    listings: Cursors<Listing>,
    /// One permit per MiB of [`STREAM_BUDGET`].
    streams: Semaphore,
    /// Names in listings that cannot be shown.
    hidden: AtomicU64,
    swept: AtomicBool,
    /// Stands for an ETag on `memory`.
    generation: AtomicU64,
}

impl Remote {
    /// Builds the operators; asks nothing of the store.
    ///
    /// # Errors
    /// [`BackendError::Refused`]
    pub fn new(backend: &Backend, pool: &Arc<Pool>, request_timeout: Duration) -> Result<Remote, BackendError> {
        let cleaner = Arc::new(Cleaner::new(backend.secrets()));
        let ops = operator::build(backend, request_timeout, &cleaner)?;
        let can = ops.ask.info().capability();
        Ok(Remote {
            ops,
            can,
            service: backend.service,
            cleaner,
            pool: Arc::clone(pool),
            listings: Cursors::default(),
            streams: Semaphore::new((STREAM_BUDGET >> 20) as usize),
            hidden: AtomicU64::new(0),
            swept: AtomicBool::new(false),
            generation: AtomicU64::new(1),
        })
    }

    /// Whether the store answers and lets us in, and what it can do.
    pub async fn probe(&self) -> Result<Capabilities, StoreError> {
        self.first_entry("/").await.map_err(|e| self.fail("list", "", &e))?;
        self.sweep().await;
        let upload = self.service.upload;
        Ok(Capabilities {
            scheme: self.service.scheme.into(),
            write: self.can.write,
            copy_ranges: self.can.write_can_copy_from && upload == Upload::Parts,
            rename: self.can.rename,
            etag: self.service.etag,
            write_if_match: self.can.write_with_if_match && upload != Upload::InPlace,
            write_if_absent: self.can.write_with_if_not_exists && upload != Upload::InPlace,
            real_dirs: self.service.real_dirs,
            attributes: false,
            attributes_listed: false,
            xattrs_max: 0,
            size_max: match upload {
                Upload::OneShot => Some(ONE_SHOT_MAX),
                _ => self.can.write_total_max_size.map(|n| n as u64),
            },
        })
    }

    fn fail(&self, what: &str, path: &str, e: &opendal::Error) -> StoreError {
        self.cleaner.convert(&format!("{what} '{path}'"), e)
    }

    /// What OpenDAL says of a name, in our words.
    fn meta(&self, of: &Metadata) -> Meta {
        if of.is_dir() {
            return self.dir(if self.service.real_dirs { Some(true) } else { None }, seconds(of));
        }
        let (etag, mtime_ns) = match self.service.upload {
            Upload::Memory => of.cache_control().and_then(remembered).unzip(),
            _ if self.service.etag => (of.etag().filter(|e| !e.is_empty()).map(|e| self.quoted(e)), seconds(of)),
            _ => (None, seconds(of)),
        };
        Meta { kind: Kind::File, size: of.content_length(), mtime_ns, etag, marker: None, details: None }
    }

    /// An ETag with its quotes, which some answers of some servers lack. Google's have none, and mean it; servers that
    /// imitate Google's put some around those in headers.
    fn quoted(&self, etag: &str) -> String {
        if self.service.scheme == "gcs" {
            return etag.trim_matches('"').to_owned();
        }
        let fine = etag.starts_with('"') || etag.starts_with("W/");
        if fine { etag.to_owned() } else { format!("\"{etag}\"") }
    }

    fn dir(&self, marker: Option<bool>, mtime_ns: Option<i64>) -> Meta {
        Meta { kind: Kind::Dir, size: 0, mtime_ns, etag: None, marker, details: None }
    }
}

/// Last modification in nanoseconds, cut to whole seconds: listings and HEADs of one object differ below.
fn seconds(of: &Metadata) -> Option<i64> {
    of.last_modified().and_then(|at| at.into_inner().as_second().checked_mul(1_000_000_000))
}

/// What `memory` keeps of a version: OpenDAL's service has neither ETag nor time, but gives Cache-Control back.
fn to_remember(generation: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{generation}@{}", now.as_secs())
}

fn remembered(text: &str) -> Option<(String, i64)> {
    let (generation, at) = text.split_once('@')?;
    Some((format!("\"{generation}\""), at.parse::<i64>().ok()?.checked_mul(1_000_000_000)?))
}

/// The directory's own path: with the slash that makes it one.
fn dir_path(path: &str) -> String {
    format!("{path}/")
}

/// Whether `meta` is of the version `version`; where one side knows less than the other, by what both know.
pub(super) fn same_version(meta: &Meta, version: &Version) -> bool {
    if meta.kind != Kind::File || meta.size != version.size {
        return false;
    }
    match (&meta.etag, &version.etag) {
        (Some(now), Some(then)) => now == then,
        // Some say the ETag on stat only; then the time, if it was kept, must do.
        _ => match (meta.mtime_ns, version.mtime_ns) {
            (Some(now), Some(then)) => now == then || now.div_euclid(1_000_000_000) * 1_000_000_000 == then,
            _ => true,
        },
    }
}

/// The ETag to demand with a request: weak ones never match by HTTP's rules.
fn strong(version: &Version) -> Option<String> {
    version.etag.clone().filter(|e| !e.starts_with("W/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_what_both_know() {
        let meta = |size, etag: Option<&str>, mtime_ns| Meta {
            kind: Kind::File,
            size,
            mtime_ns,
            etag: etag.map(Into::into),
            marker: None,
            details: None,
        };
        let version = |size, etag: Option<&str>, mtime_ns| Version { etag: etag.map(Into::into), size, mtime_ns };
        assert!(same_version(&meta(1, Some("\"a\""), Some(5)), &version(1, Some("\"a\""), None)));
        assert!(!same_version(&meta(1, Some("\"b\""), Some(5)), &version(1, Some("\"a\""), None)));
        assert!(!same_version(&meta(2, Some("\"a\""), None), &version(1, Some("\"a\""), None)));
        assert!(!same_version(&meta(1, None, Some(7_000_000_000)), &version(1, None, Some(5_000_000_000))));
        assert!(same_version(&meta(1, None, Some(5_600_000_000)), &version(1, None, Some(5_000_000_000))));
        assert!(same_version(&meta(1, Some("\"a\""), Some(5)), &version(1, None, Some(5))));
    }

    #[test]
    fn memory_remembers_generation_and_time() {
        let (etag, mtime) = remembered(&to_remember(7)).unwrap();
        assert_eq!(etag, "\"7\"");
        assert!(mtime > 1_700_000_000_000_000_000);
        assert_eq!(remembered("no-cache"), None);
    }
}
