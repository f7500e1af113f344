//! A store in memory that fails, waits and changes when told to, and guest buffers made of vectors.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::{CachePolicy, Config, OnConflict};
use crate::fs::{DirEntry, DirSink, Entry, Sink, Source};
use crate::store::{
    Attributes, Base, Capabilities, Condition, Details, Keep, Kind, ListEntry, Meta, MountId, Op, Pool, Reply, Segment,
    Slice, Store, StoreError, StoreErrorKind, Version,
};

/// What most tests start from.
pub fn config() -> Config {
    Config {
        cache: CachePolicy::Never,
        expiration: None,
        readdirplus: true,
        writeback: false,
        allow_mmap: false,
        killpriv_v2: false,
        uid: 0,
        gid: 0,
        file_mode: 0o644,
        dir_mode: 0o755,
        posix: false,
        xattr: false,
        on_conflict: OnConflict::Fail,
        capacity: 1 << 50,
        writeback_delay: Duration::ZERO,
        dirty_ratio: 50,
        piece: 64 << 10,
        block_size: 64 << 10,
        inodes_max: 10_000,
        handles_max: 1_000,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub attributes: Attributes,
    pub bytes: Vec<u8>,
    pub etag: u64,
}

#[derive(Default)]
pub struct Bucket {
    pub objects: BTreeMap<String, Object>,
    pub next_etag: u64,
    /// The next operations fail like this; others wait for none.
    pub fail: Vec<(&'static str, StoreErrorKind)>,
    /// The next operations do their work and then fail like this: the answer is lost on the way.
    pub fail_after: Vec<(&'static str, StoreErrorKind)>,
    /// The answers of this operation come so many polls after it was done.
    pub late: Option<(&'static str, u32)>,
    /// Operations fail now and then.
    pub faults: Option<Faults>,
    /// Where listings go on: after these names.
    pub cursors: Vec<String>,
    /// They can go on after any name.
    pub resumes: bool,
    /// Names of the operations so far.
    pub log: Vec<&'static str>,
    /// Objects that are sent piece by piece.
    pub flows: BTreeMap<u64, Flow>,
    /// Bytes read so far.
    pub read: u64,
    /// Bytes sent so far.
    pub sent: u64,
}

/// An object that is sent piece by piece.
pub struct Flow {
    path: String,
    base: Option<Base>,
    when: Condition,
    attributes: Option<Attributes>,
    pieces: BTreeMap<u32, Vec<u8>>,
}

/// Operations that fail, one in so many, each time another.
pub struct Faults {
    one_in: u64,
    random: u64,
    /// How many did, by name.
    pub failed: BTreeMap<&'static str, u64>,
}

impl Faults {
    pub fn new(one_in: u64) -> Faults {
        Faults { one_in, random: 1, failed: BTreeMap::new() }
    }

    /// How the next operation fails, if it does.
    fn next(&mut self, name: &'static str) -> Option<StoreErrorKind> {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let random = self.random >> 33;
        if !random.is_multiple_of(self.one_in) {
            return None;
        }
        *self.failed.entry(name).or_default() += 1;
        let kinds = [StoreErrorKind::Unavailable, StoreErrorKind::Io, StoreErrorKind::Silent];
        kinds.get((random / self.one_in % 3) as usize).copied()
    }
}

impl Bucket {
    pub fn put(&mut self, path: &str, bytes: &[u8]) {
        self.put_with(path, bytes, Attributes::default());
    }

    pub fn put_with(&mut self, path: &str, bytes: &[u8], attributes: Attributes) {
        self.next_etag += 1;
        self.objects.insert(path.into(), Object { attributes, bytes: bytes.into(), etag: self.next_etag });
    }

    fn meta(&self, path: &str) -> Option<Meta> {
        let marker = format!("{path}/");
        if path.is_empty() || self.objects.range(marker.clone()..).next().is_some_and(|(k, _)| k.starts_with(&marker)) {
            let marker = self.objects.get(&marker);
            let details = marker.map(|object| Box::new(object.details()));
            let has_marker = path.is_empty() || marker.is_some();
            return Some(Meta {
                kind: Kind::Dir,
                size: 0,
                mtime_ns: None,
                etag: None,
                marker: Some(has_marker),
                details,
            });
        }
        self.object_meta(path)
    }

    /// Of the object, even if a directory hides it.
    fn object_meta(&self, path: &str) -> Option<Meta> {
        let object = self.objects.get(path)?;
        Some(Meta {
            kind: Kind::File,
            size: object.bytes.len() as u64,
            mtime_ns: Some(object.etag as i64 * 1_000_000_000),
            etag: Some(format!("\"{}\"", object.etag)),
            marker: None,
            details: Some(Box::new(object.details())),
        })
    }
}

impl Object {
    fn details(&self) -> Details {
        Details { attributes: self.attributes.clone(), ..Details::default() }
    }
}

pub struct MemStore {
    pub pool: Arc<Pool>,
    bucket: Arc<Mutex<Bucket>>,
    page: usize,
}

type Answer<T> = Result<T, StoreErrorKind>;

impl MemStore {
    pub fn new(pool: Arc<Pool>, bucket: Arc<Mutex<Bucket>>, page: usize) -> MemStore {
        MemStore { pool, bucket, page }
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().expect("no panics in the bucket")
    }

    fn check<'a>(bucket: &'a Bucket, path: &str, version: &Version) -> Answer<&'a Object> {
        let object = bucket.objects.get(path).ok_or(StoreErrorKind::NotFound)?;
        let matches = version.etag.as_deref() == Some(&format!("\"{}\"", object.etag));
        if matches { Ok(object) } else { Err(StoreErrorKind::VersionMismatch) }
    }

    fn read(&self, bucket: &mut Bucket, path: &str, version: &Version, offset: u64, dest: Slice) -> Answer<Reply> {
        let object = Self::check(bucket, path, version)?;
        let end = offset as usize + dest.len as usize;
        let bytes = object.bytes.get(offset as usize..end).ok_or(StoreErrorKind::Io)?;
        assert!(self.pool.write(dest.offset, bytes), "slice inside the pool");
        bucket.read += u64::from(dest.len);
        Ok(Reply::Unit)
    }

    fn compose(
        &self,
        bucket: &mut Bucket,
        path: &str,
        bases: &[Base],
        when: &Condition,
        segments: &[Segment],
        attributes: Option<&Attributes>,
    ) -> Answer<Reply> {
        match when {
            Condition::Any => {}
            Condition::IfAbsent if bucket.objects.contains_key(path) => return Err(StoreErrorKind::Exists),
            Condition::IfAbsent => {}
            Condition::IfVersion(version) => {
                Self::check(bucket, path, version)?;
            }
        }
        let olds =
            bases.iter().map(|base| Self::check(bucket, &base.path, &base.version)).collect::<Answer<Vec<_>>>()?;
        let (mut bytes, mut sent) = (Vec::new(), 0);
        for segment in segments {
            match *segment {
                Segment::Copy { base, offset, len } => {
                    let old = &olds[usize::from(base)].bytes;
                    bytes.extend_from_slice(&old[offset as usize..(offset + len) as usize]);
                }
                Segment::Data(slice) => {
                    sent += u64::from(slice.len);
                    let start = bytes.len();
                    bytes.resize(start + slice.len as usize, 0);
                    assert!(self.pool.read(slice.offset, &mut bytes[start..]), "slice inside the pool");
                }
                Segment::Zero { len } => bytes.resize(bytes.len() + len as usize, 0),
            }
        }
        let kept = bucket.objects.get(path).or(olds.first().copied()).map(|object| object.attributes.clone());
        let attributes = attributes.cloned().or(kept).unwrap_or_default();
        bucket.sent += sent;
        bucket.put_with(path, &bytes, attributes);
        Ok(Reply::Meta(bucket.object_meta(path).expect("just put")))
    }

    fn list(&self, bucket: &mut Bucket, path: &str, cursor: u64, after: Option<&str>) -> Answer<Reply> {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let at = cursor.checked_sub(1).map(|at| bucket.cursors[at as usize].clone());
        let after = at.or(after.map(str::to_owned));
        // As they sort: a directory with its slash. It hides a file of its name.
        let mut names: BTreeSet<String> = BTreeSet::new();
        for key in bucket.objects.keys().filter(|k| k.starts_with(&prefix) && k.len() > prefix.len()) {
            let rest = &key[prefix.len()..];
            names.insert(rest.find('/').map_or(rest, |slash| &rest[..=slash]).to_owned());
        }
        let dirs: HashSet<String> = names.iter().filter_map(|name| name.strip_suffix('/').map(str::to_owned)).collect();
        names.retain(|name| !dirs.contains(name) && after.as_ref().is_none_or(|after| name > after));
        let names = Vec::from_iter(names);
        let end = self.page.min(names.len());
        let cursor = (end < names.len()).then(|| {
            bucket.cursors.push(names[end - 1].clone());
            bucket.cursors.len() as u64
        });
        let entries = names[..end]
            .iter()
            .map(|name| {
                let name = name.trim_end_matches('/');
                let meta = Meta { details: None, ..bucket.meta(&format!("{prefix}{name}")).expect("listed") };
                ListEntry { name: name.to_owned(), meta }
            })
            .collect();
        let after = cursor.filter(|_| bucket.resumes).map(|_| names[end - 1].clone());
        Ok(Reply::Entries { entries, cursor, after })
    }

    fn rename_dir(bucket: &mut Bucket, from: &str, to: &str) -> Answer<Reply> {
        let (old, new) = (format!("{from}/"), format!("{to}/"));
        if bucket.meta(from).ok_or(StoreErrorKind::NotFound)?.kind != Kind::Dir
            || bucket.meta(to).is_some_and(|meta| meta.kind != Kind::Dir)
        {
            return Err(StoreErrorKind::NotDir);
        }
        if bucket.objects.keys().any(|k| k.starts_with(&new) && *k != new) {
            return Err(StoreErrorKind::NotEmpty);
        }
        let keys: Vec<String> = bucket.objects.keys().filter(|k| k.starts_with(&old)).cloned().collect();
        for key in keys {
            if let Some(object) = bucket.objects.remove(&key) {
                // A copy gets an ETag of its own, as a multipart object's does.
                bucket.put_with(&format!("{new}{}", &key[old.len()..]), &object.bytes, object.attributes);
            }
        }
        Ok(Reply::Unit)
    }

    fn name(op: &Op) -> &'static str {
        match op {
            Op::Probe => "probe",
            Op::Stat { .. } | Op::Look { .. } => "stat",
            Op::Tell { .. } => "tell",
            Op::List { .. } => "list",
            Op::ListEnd { .. } => "list_end",
            Op::Read { .. } => "read",
            Op::Compose { .. } => "compose",
            Op::FlowBegin { .. } => "flow_begin",
            Op::FlowSend { .. } => "flow_send",
            Op::FlowEnd { .. } => "flow_end",
            Op::FlowAbort { .. } => "flow_abort",
            Op::Delete { .. } => "delete",
            Op::DeleteMany { .. } => "delete_many",
            Op::CreateDir { .. } => "create_dir",
            Op::RemoveDir { .. } => "remove_dir",
            Op::Copy { .. } => "copy",
            Op::RenameFile { .. } => "rename_file",
            Op::RenameDir { .. } => "rename_dir",
            Op::Spool { .. } => "spool",
        }
    }

    fn answer(&self, op: &Op) -> Answer<Reply> {
        let (mut bucket, name) = (self.bucket(), Self::name(op));
        bucket.log.push(name);
        if let Some(at) = bucket.fail.iter().position(|(op, _)| *op == name) {
            if let Op::FlowEnd { flow, .. } | Op::FlowSend { flow, .. } = op {
                bucket.flows.remove(flow);
            }
            return Err(bucket.fail.remove(at).1);
        }
        if let Some(kind) = bucket.faults.as_mut().and_then(|faults| faults.next(name)) {
            if let Op::Read { dest, .. } = op {
                // As much as came before the connection broke.
                let half = vec![0xee; dest.len as usize / 2];
                assert!(self.pool.write(dest.offset, &half), "slice inside the pool");
            }
            return Err(kind);
        }
        let answer = self.work(&mut bucket, op);
        match bucket.fail_after.iter().position(|(op, _)| *op == name) {
            Some(at) => Err(bucket.fail_after.remove(at).1),
            None => answer,
        }
    }

    /// Whether all is there that `op` needs: the pieces of what is to be put together, unless one of them failed.
    fn is_ready(&self, op: &Op) -> bool {
        let Op::FlowEnd { flow, pieces } = op else { return true };
        self.bucket().flows.get(flow).is_none_or(|flow| flow.pieces.len() >= *pieces as usize)
    }

    fn work(&self, bucket: &mut Bucket, op: &Op) -> Answer<Reply> {
        match op {
            Op::Probe => Ok(Reply::Capabilities(capabilities())),
            Op::Look { path } => {
                let meta = bucket.meta(path).ok_or(StoreErrorKind::NotFound)?;
                let dir = format!("{path}/");
                let few = bucket.objects.range(dir.clone()..).take_while(|(key, _)| key.starts_with(&dir)).count()
                    <= self.page;
                let mut below = None;
                if meta.kind == Kind::Dir
                    && few
                    && let Reply::Entries { entries, cursor: None, .. } = self.list(bucket, path, 0, None)?
                {
                    below = Some(entries);
                }
                Ok(Reply::Looked { meta, below })
            }
            // As of S3: one question, of the object's key.
            Op::Tell { path, kind: Kind::File } => {
                bucket.object_meta(path).map(Reply::Meta).ok_or(StoreErrorKind::NotFound)
            }
            Op::Stat { path } | Op::Tell { path, .. } => {
                bucket.meta(path).map(Reply::Meta).ok_or(StoreErrorKind::NotFound)
            }
            Op::List { path, cursor, after } => self.list(bucket, path, *cursor, after.as_deref()),
            Op::ListEnd { .. } => Ok(Reply::Unit),
            Op::Read { path, version, offset, dest } => {
                self.read(bucket, path, version.as_ref().expect("reads are pinned"), *offset, *dest)
            }
            Op::Compose { path, bases, when, segments, attributes } => {
                self.compose(bucket, path, bases, when, segments, attributes.as_deref())
            }
            Op::FlowBegin { flow, path, base, when, attributes } => {
                if let Some(base) = base {
                    Self::check(bucket, &base.path, &base.version)?;
                }
                let (path, base, when) = (path.clone(), base.clone(), when.clone());
                let attributes = attributes.as_deref().cloned();
                let pieces = BTreeMap::new();
                bucket.flows.insert(*flow, Flow { path, base, when, attributes, pieces });
                Ok(Reply::Unit)
            }
            Op::FlowSend { flow, number, data } => {
                let mut piece = Vec::new();
                for slice in data {
                    let start = piece.len();
                    piece.resize(start + slice.len as usize, 0);
                    assert!(self.pool.read(slice.offset, &mut piece[start..]), "slice inside the pool");
                }
                bucket.sent += piece.len() as u64;
                let flow = bucket.flows.get_mut(flow).ok_or(StoreErrorKind::Protocol)?;
                assert!(flow.pieces.insert(*number, piece).is_none(), "a piece twice");
                Ok(Reply::Unit)
            }
            Op::FlowEnd { flow, pieces } => {
                let flow = bucket.flows.remove(flow).ok_or(StoreErrorKind::Protocol)?;
                assert!(flow.pieces.keys().copied().eq(0..*pieces), "all pieces, each once");
                match &flow.when {
                    Condition::Any => {}
                    Condition::IfAbsent if bucket.objects.contains_key(&flow.path) => {
                        return Err(StoreErrorKind::Exists);
                    }
                    Condition::IfAbsent => {}
                    Condition::IfVersion(version) => drop(Self::check(bucket, &flow.path, version)?),
                }
                let mut bytes = match &flow.base {
                    Some(base) => Self::check(bucket, &base.path, &base.version)?.bytes.clone(),
                    None => Vec::new(),
                };
                flow.pieces.values().for_each(|piece| bytes.extend_from_slice(piece));
                let kept = bucket.objects.get(&flow.path).map(|object| object.attributes.clone());
                bucket.put_with(&flow.path, &bytes, flow.attributes.or(kept).unwrap_or_default());
                Ok(Reply::Meta(bucket.object_meta(&flow.path).expect("just put")))
            }
            Op::FlowAbort { flow } => {
                bucket.flows.remove(flow);
                Ok(Reply::Unit)
            }
            Op::Delete { path } => {
                bucket.objects.remove(path);
                Ok(Reply::Unit)
            }
            Op::DeleteMany { paths } => {
                for path in paths {
                    bucket.objects.remove(path);
                }
                Ok(Reply::Unit)
            }
            Op::CreateDir { path, attributes } => {
                let marker = format!("{path}/");
                let kept = bucket.objects.get(&marker).map(|object| object.attributes.clone());
                let attributes = attributes.as_deref().cloned().or(kept).unwrap_or_default();
                bucket.put_with(&marker, b"", attributes);
                Ok(Reply::Unit)
            }
            Op::RemoveDir { path } => {
                let marker = format!("{path}/");
                if bucket.objects.keys().any(|k| k.starts_with(&marker) && *k != marker) {
                    return Err(StoreErrorKind::NotEmpty);
                }
                bucket.objects.remove(&marker).map(|_| Reply::Unit).ok_or(StoreErrorKind::NotFound)
            }
            Op::Copy { from, to, version } => {
                if let Some(version) = version {
                    Self::check(bucket, from, version)?;
                }
                let object = bucket.objects.get(from).cloned().ok_or(StoreErrorKind::NotFound)?;
                bucket.put_with(to, &object.bytes, object.attributes);
                Ok(Reply::Meta(bucket.object_meta(to).expect("just put")))
            }
            Op::RenameFile { from, to, when, version } => {
                if let Some(version) = version {
                    Self::check(bucket, from, version)?;
                }
                if *when == Condition::IfAbsent && bucket.objects.contains_key(to) {
                    return Err(StoreErrorKind::Exists);
                }
                let object = bucket.objects.remove(from).ok_or(StoreErrorKind::NotFound)?;
                bucket.put_with(to, &object.bytes, object.attributes);
                Ok(Reply::Meta(bucket.object_meta(to).expect("just put")))
            }
            Op::RenameDir { from, to } => Self::rename_dir(bucket, from, to),
            Op::Spool { path, base, segments, attributes } => {
                // Where the next start would put it.
                let bases: Vec<Base> =
                    base.iter().map(|version| Base { path: path.clone(), version: version.clone() }).collect();
                let to = format!("spooled {path}");
                self.compose(bucket, &to, &bases, &Condition::Any, segments, attributes.as_deref()).map(|_| Reply::Unit)
            }
        }
    }
}

pub fn capabilities() -> Capabilities {
    Capabilities { scheme: "double".into(), write: true, etag: true, ..Capabilities::default() }
}

impl Store for MemStore {
    async fn perform(&self, _: MountId, op: Op, _keep: Keep) -> Result<Reply, StoreError> {
        // Every call waits once, as a real store does.
        let mut waited = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut waited, true) && self.is_ready(&op) {
                return std::task::Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await;
        let answer = self.answer(&op);
        let late = self.bucket().late.filter(|(name, _)| *name == Self::name(&op));
        let mut polls = late.map_or(0, |(_, polls)| polls);
        std::future::poll_fn(|cx| {
            if polls == 0 {
                return std::task::Poll::Ready(());
            }
            polls -= 1;
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        })
        .await;
        answer.map_err(|kind| StoreError { kind, text: format!("{op:?}") })
    }
}

/// A reply's room, or a request's data.
#[derive(Default)]
pub struct Buffer {
    pub bytes: Vec<u8>,
    pub taken: usize,
    pub room: usize,
}

impl Buffer {
    pub fn room(room: usize) -> Buffer {
        Buffer { room, ..Buffer::default() }
    }

    pub fn of(bytes: &[u8]) -> Buffer {
        Buffer { bytes: bytes.into(), ..Buffer::default() }
    }
}

impl Sink for Buffer {
    fn remaining(&self) -> usize {
        self.room - self.bytes.len()
    }
    fn put(&mut self, data: &[u8]) -> io::Result<()> {
        assert!(self.bytes.len() + data.len() <= self.room, "reply overflows");
        self.bytes.extend_from_slice(data);
        Ok(())
    }
    fn put_zeros(&mut self, len: usize) -> io::Result<()> {
        self.put(&vec![0; len])
    }
    fn put_from_file(&mut self, _: &File, _: usize, _: u64, _: i32) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Source for Buffer {
    fn remaining(&self) -> usize {
        self.bytes.len() - self.taken
    }
    fn take(&mut self, buf: &mut [u8]) -> io::Result<()> {
        let end = self.taken + buf.len();
        buf.copy_from_slice(self.bytes.get(self.taken..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        self.taken = end;
        Ok(())
    }
    fn take_to_file(&mut self, _: &File, _: usize, _: u64, _: i32) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Directory entries, `limit` of them.
pub struct Names {
    pub names: Vec<(String, u64, Option<Entry>)>,
    pub limit: usize,
}

impl Names {
    pub fn new(limit: usize) -> Names {
        Names { names: Vec::new(), limit }
    }
}

impl DirSink for Names {
    fn add(&mut self, entry: &DirEntry<'_>) -> bool {
        let fits = self.names.len() < self.limit;
        if fits {
            let name = String::from_utf8(entry.name.to_vec()).expect("UTF-8");
            self.names.push((name, entry.next_offset, None));
        }
        fits
    }
    fn fits_plus(&self, _: usize) -> bool {
        self.names.len() < self.limit
    }
    fn add_plus(&mut self, name: &DirEntry<'_>, entry: &Entry) -> bool {
        let fits = self.add(name);
        if let Some(last) = self.names.last_mut().filter(|_| fits) {
            last.2 = Some(*entry);
        }
        fits
    }
}
