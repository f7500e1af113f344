//! A store reached through OpenDAL. One file per operation; here is what they share: how paths, metadata and versions of
//! OpenDAL and of ours correspond.
//!
//! A path `x` is the object `x`; the directory is `x/`, which may be an object of its own (the marker), a real directory,
//! or only the start of other names. Trailing slashes are ours to add: nothing the device says contains one.

mod compose;
mod conditions;
mod delete;
mod dir;
mod flow;
mod list;
mod marker;
mod metadata;
mod pages;
mod plan;
mod read;
mod rename;
mod seen;
mod stat;
mod sweep;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use opendal::{Capability, Metadata};
use tokio::sync::Semaphore;

pub(super) use self::compose::unique;
use self::conditions::Conditions;
use self::list::Listing;
use self::metadata::{Twins, UserMetadata};
use super::BrokerOptions;
use super::cursors::Cursors;
use super::disk::Shelf;
use super::error::{Cleaner, error};
use super::operator::{self, Operators};
use super::services::{Keeps, Service, Upload};
use super::url::{Backend, BackendError};
use crate::metrics::StoreMeter;
use crate::store::{Attributes, Capabilities, Details, Kind, Meta, Pool, StoreError, StoreErrorKind, Version};

/// How the names in the root begin that are this daemon's own; hidden from the device.
pub(super) const RESERVED: &str = ".ovfs-";

/// Where objects wait under another name until they are whole, on stores that show unfinished ones.
pub(super) const TEMPORARY: &str = ".ovfs-tmp";

/// How the names begin under which the device keeps what was unlinked while open.
pub(super) const UNLINKED: &str = ".ovfs-unlinked-";

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
    /// Each goes on as it began.
    listings: Arc<Cursors<Listing>>,
    /// One permit per MiB of [`STREAM_BUDGET`].
    streams: Arc<Semaphore>,
    /// Names in listings that cannot be shown.
    hidden: AtomicU64,
    /// The background work at the start is under way or done.
    begun: AtomicBool,
    conditions: Arc<Conditions>,
    /// [`Attributes`] are kept in user metadata.
    posix: bool,
    readonly: bool,
    /// How long anybody waits for an answer.
    patience: Duration,
    /// Stands for an ETag on `memory`.
    generation: AtomicU64,
    /// Its listings have shown an object without its version.
    vague: AtomicBool,
    /// Since when it is not asked for many keys at once that may be of no use.
    sparing: Mutex<Option<Instant>>,
    /// Blocks of its objects on this machine's disk.
    shelf: Option<Shelf>,
    /// Where what is under way is counted.
    meter: Arc<StoreMeter>,
    /// What is sent piece by piece; each goes on as it began.
    flows: Arc<flow::Flows>,
}

impl Remote {
    /// Builds the operators; asks nothing of the store.
    ///
    /// # Errors
    /// [`BackendError::Refused`]
    pub fn new(backend: &Backend, pool: &Arc<Pool>, options: &BrokerOptions) -> Result<Remote, BackendError> {
        let cleaner = Arc::new(Cleaner::new(backend.secrets()));
        let ops = operator::build(backend, options.request_timeout, &cleaner, &options.meter)?;
        let can = ops.ask.info().capability();
        let keeps = matches!(backend.service.keeps, Keeps::Metadata { .. });
        Ok(Remote {
            ops,
            can,
            service: backend.service,
            cleaner,
            pool: Arc::clone(pool),
            listings: Arc::default(),
            streams: Arc::new(Semaphore::new((STREAM_BUDGET >> 20) as usize)),
            hidden: AtomicU64::new(0),
            begun: AtomicBool::new(false),
            conditions: Arc::default(),
            posix: options.posix_metadata && keeps,
            readonly: options.readonly,
            patience: options.request_timeout,
            generation: AtomicU64::new(1),
            vague: AtomicBool::new(false),
            sparing: Mutex::default(),
            meter: Arc::clone(&options.meter),
            flows: Arc::default(),
            shelf: options.disk.as_ref().map(|disk| Shelf::new(Arc::clone(disk), backend, pool)),
        })
    }

    /// The same store, reached in another way; listings go on. `same_place`: what was found out about it still holds.
    ///
    /// # Errors
    /// As [`Remote::new`].
    pub fn succeed(
        &self,
        backend: &Backend,
        pool: &Arc<Pool>,
        options: &BrokerOptions,
        same_place: bool,
    ) -> Result<Remote, BackendError> {
        let mut next = Remote::new(backend, pool, options)?;
        next.listings = Arc::clone(&self.listings);
        next.streams = Arc::clone(&self.streams);
        next.flows = Arc::clone(&self.flows);
        if same_place {
            next.conditions = Arc::clone(&self.conditions);
            next.begun = AtomicBool::new(self.begun.load(Ordering::Relaxed));
        }
        Ok(next)
    }

    /// Reached with the same keys as `next` from now on, what is under way included.
    pub fn follow(&self, next: &Remote) {
        self.ops.follow(&next.ops);
    }

    /// Whether the store answers and lets us in, and what it can do. The first time, what is to be found out or done at the
    /// start begins, in the background.
    pub async fn probe(self: &Arc<Self>) -> Result<Capabilities, StoreError> {
        self.first_entry("/").await.map_err(|e| self.fail("list", "", &e))?;
        if !self.readonly && self.can.write && !self.begun.swap(true, Ordering::Relaxed) {
            self.probe_conditions();
            let store = Arc::clone(self);
            tokio::spawn(async move { store.sweep().await });
        }
        let upload = self.service.upload;
        Ok(Capabilities {
            scheme: self.service.scheme.into(),
            write: self.can.write,
            copy_ranges: self.can.write_can_copy_from && upload == Upload::Parts,
            flows: self.flows_can_be().then_some(flow::BASE_MIN),
            rename: self.can.rename,
            etag: self.service.etag,
            write_if_match: self.can.write_with_if_match && upload != Upload::InPlace,
            write_if_absent: self.can.write_with_if_not_exists && upload != Upload::InPlace,
            real_dirs: self.service.real_dirs,
            attributes: self.posix,
            attributes_listed: self.lists_attributes(),
            xattrs_max: match self.service.keeps {
                Keeps::Metadata { most, longest, .. } if self.posix => {
                    most.saturating_sub(metadata::ROOM_BESIDE_XATTRS).min(longest)
                }
                _ => 0,
            },
            cached_here: self.shelf.is_some(),
            size_max: match upload {
                Upload::OneShot => Some(ONE_SHOT_MAX),
                _ => self.can.write_total_max_size.map(|n| n as u64),
            },
        })
    }

    /// Whether listings tell [`Attributes`].
    fn lists_attributes(&self) -> bool {
        self.posix && matches!(self.service.keeps, Keeps::Metadata { listed: true, .. })
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
            Upload::Memory => of.cache_control().and_then(remembered).map(|(etag, at, _)| (etag, at)).unzip(),
            _ if self.service.etag => (of.etag().filter(|e| !e.is_empty()).map(|e| self.quoted(e)), seconds(of)),
            _ => (None, seconds(of)),
        };
        Meta { kind: Kind::File, size: of.content_length(), mtime_ns, etag, marker: None, details: None }
    }

    /// As [`Remote::meta`], with what an answer about this very object tells beside.
    fn detailed(&self, of: &Metadata) -> Meta {
        let mut meta = self.meta(of);
        meta.details = Some(Box::new(self.details(of, meta.kind, meta.size)));
        meta
    }

    fn details(&self, of: &Metadata, kind: Kind, size: u64) -> Details {
        Details {
            attributes: match self.posix {
                true => metadata::decode(&self.user_metadata(of), kind, size),
                false => Attributes::default(),
            },
            content_type: of.content_type().filter(|t| !t.is_empty()).map(str::to_owned),
            version_id: of.version().filter(|v| !v.is_empty()).map(str::to_owned),
        }
    }

    /// The user metadata of an object or a marker.
    fn user_metadata(&self, of: &Metadata) -> UserMetadata {
        match self.service.upload {
            Upload::Memory => of.cache_control().and_then(remembered).map(|(_, _, user)| user).unwrap_or_default(),
            _ => of.user_metadata().into_iter().flatten().collect(),
        }
    }

    /// `user` with `attributes`, if the store takes as much.
    fn with_attributes(
        &self,
        user: UserMetadata,
        attributes: &Attributes,
        path: &str,
    ) -> Result<UserMetadata, StoreError> {
        let user = metadata::encode(user, attributes, Twins::of(self.service.scheme));
        if let Keeps::Metadata { most, longest, .. } = self.service.keeps
            && (user.size() > most || user.longest() > longest)
        {
            let text = format!(
                "write '{path}': {} bytes of metadata ({} in one value), and the store takes {most} ({longest})",
                user.size(),
                user.longest()
            );
            return Err(error(StoreErrorKind::AttributesTooLarge, text));
        }
        Ok(user)
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

/// What `memory` keeps of a version and as user metadata: OpenDAL's service has neither, nor ETag or time, but gives
/// Cache-Control back.
fn to_remember(generation: u64, user: &UserMetadata) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{generation}@{}?{}", now.as_secs(), user.to_line())
}

fn remembered(text: &str) -> Option<(String, i64, UserMetadata)> {
    let (generation, rest) = text.split_once('@')?;
    let (at, user) = rest.split_once('?')?;
    let at = at.parse::<i64>().ok()?.checked_mul(1_000_000_000)?;
    Some((format!("\"{generation}\""), at, UserMetadata::from_line(user)))
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
    fn memory_remembers_generation_time_and_metadata() {
        let user: UserMetadata = [("mode", "33188"), ("odd?key", "a=b&c@d ?")].into_iter().collect();
        let (etag, mtime, now) = remembered(&to_remember(7, &user)).unwrap();
        assert_eq!((etag.as_str(), now), ("\"7\"", user));
        assert!(mtime > 1_700_000_000_000_000_000);
        assert_eq!(remembered("no-cache"), None);
    }
}
