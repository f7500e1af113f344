//! Writing: an object put together from ranges of another, data in the pool and zeros.
//!
//! OpenDAL's writers are used by three rules. The first error ends a writer: it is aborted, and nothing is tried on it
//! again, for what it had taken may be gone. It is never cancelled midway, so uploads have no deadline over all, only
//! one per request. And its chunk size stays unset, for with one it mixes up copied ranges and our own bytes.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use opendal::options::{ReadOptions, ReaderOptions, WriteOptions};
use opendal::{Buffer, BytesRange, Metadata, Writer};
use tokio::sync::SemaphorePermit;

use super::super::error::error;
use super::super::gate::guarded;
use super::super::operator::noting_retries;
use super::super::services::Upload;
use super::conditions::Kept;
use super::metadata::{self, UserMetadata};
use super::plan::{self, Piece, Step};
use super::{ONE_SHOT_MAX, Remote, STREAM_BUDGET, TEMPORARY, same_version, strong, to_remember};
use crate::store::pool::PoolBytes;
use crate::store::{Attributes, Base, Condition, Details, Kind, Meta, Segment, Slice, StoreError, StoreErrorKind};

/// Requests of one upload that run side by side.
const CONCURRENT: usize = 16;

/// How ranges that pass through us are read: so many bytes per request, so many requests ahead.
const FETCH: usize = 8 << 20;
const FETCH_AHEAD: usize = 3;

/// What an upload of which part of it is read from the store takes of the budget at most, in MiB.
const STREAM_SHARE: u64 = 64;

/// Zeros to send.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// A compose under way.
pub(super) struct Job<'a> {
    pub path: &'a str,
    pub bases: &'a [Base],
    pub when: &'a Condition,
    pub segments: &'a [Segment],
    /// `None`: as they were.
    pub attributes: Option<&'a Attributes>,
    pub total: u64,
    pub donor: Donor,
}

/// Whose headers and metadata the new object keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Donor {
    /// The object's that stood there; if none did, the first base's.
    Target,
    /// The first base's in any case.
    FirstBase,
}

/// What was found out before an upload.
pub(super) struct Prepared {
    pub options: WriteOptions,
    /// What stood there, as far as it was asked for.
    pub before: Option<Meta>,
    /// The new object's.
    user: UserMetadata,
    /// The store does not check the condition itself, at least not at the end of an upload in parts.
    pub guard: bool,
}

impl Job<'_> {
    /// The one base that the object is to be the same as.
    fn whole(&self) -> Option<&Base> {
        match (self.bases, self.segments) {
            ([base], [Segment::Copy { base: 0, offset: 0, len }]) if *len == base.version.size => Some(base),
            _ => None,
        }
    }
}

impl Remote {
    /// Makes `path` the concatenation of `segments`, of `total` bytes in all; checked by the caller.
    pub async fn compose(
        &self,
        path: &str,
        bases: &[Base],
        when: &Condition,
        segments: &[Segment],
        attributes: Option<&Attributes>,
        total: u64,
    ) -> Result<Meta, StoreError> {
        let attributes = attributes.filter(|_| self.posix);
        let job = Job { path, bases, when, segments, attributes, total, donor: Donor::Target };
        if !self.can.write {
            return Err(error(StoreErrorKind::Unsupported, format!("write '{path}': the store is read-only")));
        }
        let base = job.whole().filter(|base| base.path != path && attributes.is_none() && self.copies_whole(total));
        if let Some(base) = base {
            let source = self.base_now(&job, base).await?;
            let copied = self.copy_object(&base.path, &source, path, when).await?;
            self.verify(&base.path, &base.version, None).await.map_err(lost_base)?;
            return Ok(copied);
        }
        self.put_together(&job).await
    }

    /// A compose by an upload.
    pub(super) async fn put_together(&self, job: &Job<'_>) -> Result<Meta, StoreError> {
        let most = match self.service.upload {
            Upload::OneShot => ONE_SHOT_MAX,
            _ => plan::TOTAL_MAX.min(self.can.write_total_max_size.map_or(u64::MAX, |n| n as u64)),
        };
        if job.total > most {
            let text = format!("write '{}': {} bytes, and the store takes {most}", job.path, job.total);
            return Err(error(StoreErrorKind::TooLarge, text));
        }
        let prepared = self.prepare(job).await?;
        let (result, retried) = noting_retries(self.upload(job, &prepared)).await;
        match result {
            Ok(metadata) => Ok(self.describe(job, &prepared, &metadata).await),
            Err(e) => {
                let e = self.named_by_condition(job, e).await;
                // The echo of a success? Its first answer may have been lost.
                let echo = retried
                    && matches!(
                        e.kind,
                        StoreErrorKind::VersionMismatch
                            | StoreErrorKind::Exists
                            | StoreErrorKind::NotFound
                            | StoreErrorKind::PermissionDenied
                            | StoreErrorKind::Io
                    );
                match echo {
                    true => self.landed(job, &prepared).await.ok_or(e),
                    false => Err(e),
                }
            }
        }
    }

    /// What the store says of the base, which must be of its version.
    async fn base_now(&self, job: &Job<'_>, base: &Base) -> Result<Metadata, StoreError> {
        match self.head(&base.path).await? {
            Some(metadata) if same_version(&self.meta(&metadata), &base.version) => Ok(metadata),
            _ => {
                let text = format!("write '{}': '{}' is not the version any more", job.path, base.path);
                Err(error(StoreErrorKind::VersionMismatch, text))
            }
        }
    }

    /// Checks the bases and the condition, and gathers what the new object is to be written with.
    pub(super) async fn prepare(&self, job: &Job<'_>) -> Result<Prepared, StoreError> {
        let bases = futures::future::try_join_all(job.bases.iter().map(|base| self.base_now(job, base))).await?;
        let own = job.bases.iter().position(|base| base.path == job.path);
        let mut target = own.and_then(|n| bases.get(n)).cloned();
        let stood_there = own.is_none() && *job.when != Condition::IfAbsent && job.donor == Donor::Target;
        if stood_there {
            target = self.head(job.path).await?;
        }
        let mut options = WriteOptions { concurrent: CONCURRENT, ..WriteOptions::default() };
        let guard = self.set_condition(job, &mut options, &mut target).await?;
        let donor = match job.donor {
            Donor::Target => target.as_ref().or(bases.first()),
            Donor::FirstBase => bases.first(),
        };
        let mut user = UserMetadata::default();
        if let Some(donor) = donor {
            keep_headers(&mut options, donor);
            user = self.user_metadata(donor);
        }
        let special = job.attributes.and_then(|a| a.mode).map(|mode| mode & libc::S_IFMT);
        options.content_type = match special {
            Some(libc::S_IFLNK | libc::S_IFIFO | libc::S_IFSOCK) => None,
            _ => options.content_type.or_else(|| mime_guess::from_path(job.path).first_raw().map(str::to_owned)),
        };
        options.content_type.get_or_insert_with(|| "application/octet-stream".to_owned());
        if job.whole().is_none() && job.total > 0 {
            user = user.without_digests();
        }
        if let Some(attributes) = job.attributes {
            user = self.with_attributes(user, attributes, job.path)?;
        }
        if self.service.scheme == "gcs" && job.total > plan::SINGLE_MAX {
            // One request is JSON, several have headers.
            user = user.for_headers();
        }
        match self.service.upload {
            Upload::Memory => {
                options.cache_control = Some(to_remember(self.generation.fetch_add(1, Ordering::Relaxed), &user));
            }
            _ if user.is_empty() => {}
            _ => options.user_metadata = Some(user.clone().into_pairs().collect()),
        }
        Ok(Prepared { options, before: target.map(|metadata| self.meta(&metadata)), user, guard })
    }

    /// Has the store check the condition, or checks it here, and tells whether that must be done again at the end.
    /// `target`: what stands there, if it was asked for, and as soon as it is.
    async fn set_condition(
        &self,
        job: &Job<'_>,
        options: &mut WriteOptions,
        target: &mut Option<Metadata>,
    ) -> Result<bool, StoreError> {
        let native = self.service.upload != Upload::InPlace;
        // Conditions on the last request of an upload in parts are another matter, which few servers know.
        let in_parts = self.service.upload == Upload::Parts && job.total > plan::SINGLE_MAX;
        match job.when {
            Condition::Any => Ok(false),
            Condition::IfAbsent => {
                let kept = match native && self.can.write_with_if_not_exists {
                    true => self.conditions().await.if_absent,
                    false => Kept::No,
                };
                options.if_not_exists = kept != Kept::No;
                if kept != Kept::Yes && self.head(job.path).await?.is_some() {
                    return Err(error(StoreErrorKind::Exists, format!("write '{}': it exists", job.path)));
                }
                Ok(in_parts)
            }
            Condition::IfVersion(version) => {
                let gone = || {
                    let text = format!("write '{}': what stands there is not the version any more", job.path);
                    error(StoreErrorKind::VersionMismatch, text)
                };
                let kept = match native && self.can.write_with_if_match {
                    true => self.conditions().await.if_match,
                    false => Kept::No,
                };
                options.if_match = strong(version).filter(|_| kept != Kept::No);
                if target.is_none() && job.donor == Donor::FirstBase {
                    *target = self.head(job.path).await?;
                }
                let metadata = target.as_ref().ok_or_else(gone)?;
                if !same_version(&self.meta(metadata), version) {
                    return Err(gone());
                }
                if options.if_match.is_none() && native && self.can.write_with_if_version_match {
                    options.if_version_match = metadata.version().map(str::to_owned);
                    return Ok(in_parts);
                }
                // Ranges that pass through us take their time.
                Ok(in_parts || (options.if_match.is_none() && !job.bases.is_empty()))
            }
        }
    }

    async fn upload(&self, job: &Job<'_>, prepared: &Prepared) -> Result<Metadata, StoreError> {
        let native = self.can.write_can_copy_from && self.service.upload == Upload::Parts;
        let steps = plan::plan(job.segments, job.total, native);
        let fetched = plan::fetched(&steps);
        let _room = self.room(job, fetched).await?;
        match self.service.upload {
            Upload::OneShot => self.upload_at_once(job, prepared, steps).await,
            Upload::Parts | Upload::Memory => self.upload_parts(job, job.path, prepared, steps).await,
            Upload::InPlace => {
                let temporary = format!("{TEMPORARY}/{}", unique());
                let metadata = match self.upload_parts(job, &temporary, prepared, steps).await {
                    Ok(metadata) => metadata,
                    Err(e) => return Err(self.discard(&temporary, e).await),
                };
                // Once more, now that the upload has taken its time.
                let put = async {
                    self.check_target(job.path, job.when).await?;
                    self.rename_over(&temporary, job.path).await
                };
                match put.await {
                    Ok(()) => Ok(metadata),
                    Err(e) => Err(self.discard(&temporary, e).await),
                }
            }
        }
    }

    /// Room for what passes through us, given back on drop.
    async fn room(&self, job: &Job<'_>, fetched: u64) -> Result<Option<SemaphorePermit<'_>>, StoreError> {
        if fetched == 0 {
            return Ok(None);
        }
        let most = if self.service.upload == Upload::OneShot { STREAM_BUDGET >> 20 } else { STREAM_SHARE };
        let mebibytes = fetched.div_ceil(1 << 20).min(most);
        let permits = self.streams.acquire_many(u32::try_from(mebibytes).unwrap_or(u32::MAX)).await;
        permits.map(Some).map_err(|_| error(StoreErrorKind::Unavailable, format!("write '{}': ending", job.path)))
    }

    async fn upload_parts(
        &self,
        job: &Job<'_>,
        path: &str,
        prepared: &Prepared,
        steps: Vec<Step>,
    ) -> Result<Metadata, StoreError> {
        let writer = self.ops.write.writer_options(path, prepared.options.clone()).await;
        let mut writer = writer.map_err(|e| self.fail("write", job.path, &e))?;
        // The bases, for servers that ignore the condition on copied ranges and stores that have none; and the target.
        let check = async |copied: bool| {
            for base in job.bases.iter().filter(|_| copied) {
                self.verify(&base.path, &base.version, None).await.map_err(lost_base)?;
            }
            if prepared.guard && path == job.path { self.check_target(path, job.when).await } else { Ok(()) }
        };
        // What has no last request to wait before is checked when everything is handed over.
        let at_last = self.service.upload == Upload::Parts;
        let filled = async {
            let mut parts =
                Parts { writer: &mut writer, pending: Vec::new(), len: 0, part: plan::part_size(job.total) };
            let mut copied = false;
            for step in steps {
                match step {
                    Step::Send(pieces) => copied |= self.send(job, &mut parts, pieces).await?,
                    Step::Copy { base, offset, len } => {
                        parts.flush().await.map_err(|e| self.fail("write", job.path, &e))?;
                        self.copy_inside(job, parts.writer, base, offset, len).await?;
                        copied = true;
                    }
                }
            }
            parts.flush().await.map_err(|e| self.fail("write", job.path, &e))?;
            if !at_last {
                check(copied).await?;
            }
            Ok(copied)
        };
        let result = match filled.await {
            Ok(copied) => {
                let close = async { writer.close().await.map_err(|e| self.fail("write", job.path, &e)) };
                match at_last && (copied || prepared.guard) {
                    // Only then are all copies made: until now they may be under way.
                    true => guarded(close, || check(copied)).await,
                    false => close.await,
                }
            }
            Err(e) => Err(e),
        };
        if result.is_err() {
            self.abort_writer(job.path, &mut writer).await;
        }
        result
    }

    async fn upload_at_once(
        &self,
        job: &Job<'_>,
        prepared: &Prepared,
        steps: Vec<Step>,
    ) -> Result<Metadata, StoreError> {
        let mut whole = Vec::new();
        let mut copied = false;
        for step in steps {
            let Step::Send(pieces) = step else { continue };
            for piece in pieces {
                match piece {
                    Piece::Pool(slice) => whole.push(self.pool_bytes(job, slice)?),
                    Piece::Zero(len) => whole.extend(zeros(len)),
                    Piece::Fetch { base, offset, len } => {
                        copied = true;
                        let mut stream = self.fetch(job, base, offset, len).await?;
                        while let Some(buffer) = stream.try_next().await? {
                            whole.extend(buffer);
                        }
                    }
                }
            }
        }
        for base in job.bases.iter().filter(|_| copied) {
            self.verify(&base.path, &base.version, None).await.map_err(lost_base)?;
        }
        let whole = Buffer::from(whole);
        debug_assert_eq!(whole.len() as u64, job.total);
        if prepared.guard {
            self.check_target(job.path, job.when).await?;
        }
        let options = prepared.options.clone();
        self.ops.write.write_options(job.path, whole, options).await.map_err(|e| self.fail("write", job.path, &e))
    }

    /// Sends `pieces`; tells whether any of them came from the base.
    async fn send(&self, job: &Job<'_>, parts: &mut Parts<'_>, pieces: Vec<Piece>) -> Result<bool, StoreError> {
        let fail = |e: opendal::Error| self.fail("write", job.path, &e);
        let mut copied = false;
        for piece in pieces {
            match piece {
                Piece::Pool(slice) => parts.push(self.pool_bytes(job, slice)?).await.map_err(fail)?,
                Piece::Zero(len) => {
                    for bytes in zeros(len) {
                        parts.push(bytes).await.map_err(fail)?;
                    }
                }
                Piece::Fetch { base, offset, len } => {
                    copied = true;
                    let mut stream = self.fetch(job, base, offset, len).await?;
                    while let Some(buffer) = stream.try_next().await? {
                        for bytes in buffer {
                            parts.push(bytes).await.map_err(fail)?;
                        }
                    }
                }
            }
        }
        Ok(copied)
    }

    fn pool_bytes(&self, job: &Job<'_>, slice: Slice) -> Result<Bytes, StoreError> {
        // SAFETY: the device promises not to write these bytes until the reply, and the reply comes after the writer is
        // closed or aborted.
        let bytes = unsafe { PoolBytes::new(&self.pool, slice) };
        let bytes = bytes.ok_or_else(|| {
            error(StoreErrorKind::Protocol, format!("write '{}': a slice outside the pool", job.path))
        })?;
        // `memory` would keep the very bytes that the device uses for something else next.
        let keeps = self.service.upload == Upload::Memory;
        Ok(if keeps { Bytes::copy_from_slice(bytes.as_ref()) } else { Bytes::from_owner(bytes) })
    }

    pub(super) async fn copy_inside(
        &self,
        job: &Job<'_>,
        writer: &mut Writer,
        base: u8,
        offset: u64,
        len: u64,
    ) -> Result<(), StoreError> {
        let base = self.base(job, base)?;
        let range = BytesRange::new(offset, Some(len));
        let options = ReadOptions { range, if_match: strong(&base.version), ..ReadOptions::default() };
        let copy = writer.copy_from_options(&base.path, options).await;
        copy.map_err(|e| lost_base(self.fail("copy a range of", &base.path, &e)))
    }

    /// The base's bytes from `offset` on, of its version, as a stream that ends after exactly `len` of them.
    async fn fetch(
        &self,
        job: &Job<'_>,
        base: u8,
        offset: u64,
        len: u64,
    ) -> Result<BoxStream<'_, Result<Buffer, StoreError>>, StoreError> {
        let base = self.base(job, base)?;
        let path = base.path.clone();
        let options = ReaderOptions {
            if_match: strong(&base.version).filter(|_| self.can.read_with_if_match),
            content_length_hint: Some(base.version.size),
            chunk: Some(FETCH),
            concurrent: FETCH_AHEAD,
            ..ReaderOptions::default()
        };
        let fail = move |e: opendal::Error| lost_base(self.fail("read", &path, &e));
        let reader = self.ops.ask.reader_options(&base.path, options).await.map_err(&fail)?;
        let stream = reader.into_stream(offset..offset + len).await.map_err(&fail)?;
        Ok(stream.map_err(fail).boxed())
    }

    fn base<'a>(&self, job: &Job<'a>, number: u8) -> Result<&'a Base, StoreError> {
        let path = job.path;
        job.bases
            .get(usize::from(number))
            .ok_or_else(|| error(StoreErrorKind::Protocol, format!("write '{path}': a copied range without base")))
    }

    /// A failed condition, in the words of the condition. One on a base, which a store may tell late, is told apart by asking.
    pub(super) async fn named_by_condition(&self, job: &Job<'_>, mut e: StoreError) -> StoreError {
        if e.kind == StoreErrorKind::VersionMismatch && *job.when == Condition::IfAbsent {
            let asked = job.bases.iter().map(|base| self.base_now(job, base));
            if futures::future::join_all(asked).await.iter().all(Result::is_ok) {
                e.kind = StoreErrorKind::Exists;
            }
        }
        e
    }

    /// What a stat of the new object says; with what the upload itself said where the store has changed since or does not
    /// answer.
    pub(super) async fn describe(&self, job: &Job<'_>, prepared: &Prepared, uploaded: &Metadata) -> Meta {
        let mut known = self.meta(uploaded);
        known.kind = Kind::File;
        known.size = job.total;
        // The end of an upload in several requests has an ETag of its own there, which nothing else tells again.
        if self.service.scheme == "gcs" && job.total > plan::SINGLE_MAX {
            known.etag = None;
        }
        let enough = known.etag.is_some() || (known.mtime_ns.is_some() && !self.service.etag);
        // What was renamed into place may have got another time there.
        if !enough || self.service.upload == Upload::InPlace {
            let now = self.head(job.path).await.ok().flatten().map(|metadata| self.detailed(&metadata));
            let ours = now.filter(|now| now.size == job.total && (known.etag.is_none() || now.etag == known.etag));
            if let Some(now) = ours {
                return now;
            }
        }
        known.details = Some(Box::new(Details {
            attributes: match self.posix {
                true => metadata::decode(&prepared.user, Kind::File, job.total),
                false => Attributes::default(),
            },
            content_type: prepared.options.content_type.clone(),
            version_id: uploaded.version().filter(|v| !v.is_empty()).map(str::to_owned),
        }));
        known
    }

    /// Whether an upload that was refused after being repeated is there all the same: the right length, another
    /// version than before or the new metadata, and our data where data of ours should be.
    async fn landed(&self, job: &Job<'_>, prepared: &Prepared) -> Option<Meta> {
        let there = self.head(job.path).await.ok()??;
        let now = self.detailed(&there);
        let ours = job.attributes.is_some() && self.user_metadata(&there) == prepared.user;
        let old = match job.when {
            Condition::IfVersion(version) => same_version(&now, version),
            _ => prepared.before.as_ref().is_some_and(|b| b.version() == now.version()),
        };
        if (old && !ours) || now.size != job.total {
            return None;
        }
        let mut at = 0;
        for segment in job.segments {
            let len = match segment {
                Segment::Copy { len, .. } | Segment::Zero { len } => *len,
                Segment::Data(slice) => {
                    let sent = self.pool_bytes(job, *slice).ok()?;
                    let reader = self.ops.ask.reader(job.path).await.ok()?;
                    let there = reader.read(at..at + u64::from(slice.len)).await.ok()?;
                    if there.to_bytes() != sent {
                        return None;
                    }
                    slice.len.into()
                }
            };
            at += len;
        }
        log::info!("'{}' was stored, though the store's last answer was a refusal", job.path);
        Some(now)
    }
}

/// Gathers bytes into pieces worth a request.
struct Parts<'a> {
    writer: &'a mut Writer,
    pending: Vec<Bytes>,
    len: u64,
    part: u64,
}

impl Parts<'_> {
    async fn push(&mut self, mut bytes: Bytes) -> opendal::Result<()> {
        while !bytes.is_empty() {
            let room = usize::try_from(self.part - self.len).unwrap_or(usize::MAX);
            let next = bytes.split_to(bytes.len().min(room));
            self.len += next.len() as u64;
            self.pending.push(next);
            if self.len >= self.part {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> opendal::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.len = 0;
        self.writer.write(Buffer::from(std::mem::take(&mut self.pending))).await
    }
}

fn zeros(len: u64) -> impl Iterator<Item = Bytes> {
    let piece = ZEROS.len() as u64;
    (0..len.div_ceil(piece)).map(move |n| {
        let this = piece.min(len - n * piece);
        Bytes::from_static(&ZEROS).slice(..usize::try_from(this).unwrap_or(ZEROS.len()))
    })
}

/// What other programs have said of the object in its headers stays true of its next version.
pub(super) fn keep_headers(options: &mut WriteOptions, of: &Metadata) {
    let text = |value: Option<&str>| value.filter(|v| !v.is_empty()).map(str::to_owned);
    if let Some(content_type) = text(of.content_type()) {
        options.content_type = Some(content_type);
    }
    options.cache_control = text(of.cache_control());
    options.content_disposition = text(of.content_disposition());
    options.content_encoding = text(of.content_encoding());
}

/// A base that is gone is not the version asked for.
pub(super) fn lost_base(mut e: StoreError) -> StoreError {
    if e.kind == StoreErrorKind::NotFound {
        e.kind = StoreErrorKind::VersionMismatch;
    }
    e
}

/// A name that nothing else has.
pub(in crate::broker) fn unique() -> String {
    use std::hash::{BuildHasher, Hasher};
    use std::sync::atomic::AtomicU64;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Keys from the system's random source, once per process and again for each.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{}-{random:016x}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
