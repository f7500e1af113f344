//! What the broker counts of one mount's store.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::histogram::Histogram;
use super::snapshot::{Health, KindCounts, StoreCounts, UploadCounts};

/// Kinds of requests to a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Reading an object, or a range of it.
    Get,
    /// Asking about an object.
    Head,
    /// A page of a listing.
    List,
    /// Writing an object in one request, or a directory.
    Put,
    /// A part of an upload.
    Part,
    /// The beginning and the end of an upload in parts.
    Multipart,
    /// Copying inside the store.
    Copy,
    /// Removing, of an object or of what was uploaded in parts.
    Delete,
    /// Anything else: renames, properties, tokens.
    Other,
}

/// What a request probably costs, as stores bill them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cost {
    /// Writing and listing.
    A,
    /// Reading.
    B,
    /// Nothing.
    Free,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Kind; 9] = [
        Kind::Get,
        Kind::Head,
        Kind::List,
        Kind::Put,
        Kind::Part,
        Kind::Multipart,
        Kind::Copy,
        Kind::Delete,
        Kind::Other,
    ];

    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Get => "get",
            Kind::Head => "head",
            Kind::List => "list",
            Kind::Put => "put",
            Kind::Part => "part",
            Kind::Multipart => "multipart",
            Kind::Copy => "copy",
            Kind::Delete => "delete",
            Kind::Other => "other",
        }
    }

    /// The class in which Amazon, Google and their likes bill it; an estimate.
    pub fn cost(self) -> Cost {
        match self {
            Kind::List | Kind::Put | Kind::Part | Kind::Multipart | Kind::Copy => Cost::A,
            Kind::Get | Kind::Head => Cost::B,
            Kind::Delete | Kind::Other => Cost::Free,
        }
    }
}

impl Cost {
    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Cost::A => "A",
            Cost::B => "B",
            Cost::Free => "free",
        }
    }
}

#[derive(Debug, Default)]
struct OfKind {
    errors: AtomicU64,
    retries: AtomicU64,
    took: Histogram,
}

/// An upload under way.
#[derive(Debug)]
struct Running {
    path: String,
    bytes: u64,
    since: Instant,
    /// It was said in the log that it takes long, so many times.
    told: u32,
}

/// What was heard of the store.
#[derive(Debug, Default)]
struct Heard {
    /// When it last did what it was asked to.
    answer: Option<Instant>,
    /// Since when it has done nothing of the kind.
    failing: Option<Instant>,
    error: Option<(Instant, String)>,
}

/// The counters of one mount's store. They outlive changes of how it is reached.
#[derive(Debug, Default)]
pub struct StoreMeter {
    /// Where the mount is in the share.
    path: String,
    kinds: [OfKind; Kind::ALL.len()],
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    /// Uploads that wait for their turn.
    waiting: AtomicU64,
    uploads: Mutex<(u64, BTreeMap<u64, Running>)>,
    heard: Mutex<Heard>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StoreMeter {
    /// Of the mount at `path`.
    pub fn new(path: &str) -> StoreMeter {
        StoreMeter { path: path.to_owned(), ..StoreMeter::default() }
    }

    /// What lines of the log about the mount begin with: nothing for the root.
    pub fn place(&self) -> String {
        match self.path.as_str() {
            "" | "/" => String::new(),
            path => format!("{path}: "),
        }
    }

    fn kind(&self, kind: Kind) -> &OfKind {
        // `ALL` has them in the order of their numbers.
        &self.kinds[kind as usize]
    }

    /// A request came to its end; `failed`: without what it was to bring.
    pub fn request(&self, kind: Kind, took: Duration, failed: bool) {
        let counters = self.kind(kind);
        counters.took.record(took);
        if failed {
            counters.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request is made once more.
    pub fn retry(&self, kind: Kind) {
        self.kind(kind).retries.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of content that went to the store.
    pub fn sent(&self, bytes: u64) {
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of content that came from it.
    pub fn received(&self, bytes: u64) {
        self.received_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The store did what it was asked to, or said why it would not.
    pub fn answered(&self) {
        let mut heard = lock(&self.heard);
        heard.answer = Some(Instant::now());
        heard.failing = None;
    }

    /// It did not; `why` has no secrets.
    pub fn failed(&self, why: &str) {
        let now = Instant::now();
        let mut heard = lock(&self.heard);
        heard.failing.get_or_insert(now);
        heard.error = Some((now, why.to_owned()));
    }

    /// An upload waits for its turn until the result is dropped.
    pub fn waiting(self: &Arc<Self>) -> impl Drop + use<> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(Arc::clone(self))
    }

    /// An upload of `bytes` bytes is under way until the result is dropped.
    pub fn upload(self: &Arc<Self>, path: &str, bytes: u64) -> Upload {
        let mut uploads = lock(&self.uploads);
        let id = uploads.0;
        uploads.0 += 1;
        uploads.1.insert(id, Running { path: path.to_owned(), bytes, since: Instant::now(), told: 0 });
        Upload { meter: Arc::clone(self), id }
    }

    /// Uploads that have taken `patience`, or twice, four times as long, since this was asked last: path, bytes, and
    /// for how long they are under way.
    pub fn slow(&self, patience: Duration) -> Vec<(String, u64, Duration)> {
        let mut uploads = lock(&self.uploads);
        let slow = uploads.1.values_mut().filter_map(|upload| {
            let took = upload.since.elapsed();
            let due = took >= patience.saturating_mul(1 << upload.told.min(16));
            due.then(|| {
                upload.told += 1;
                (upload.path.clone(), upload.bytes, took)
            })
        });
        slow.collect()
    }

    /// What was counted so far.
    pub fn counts(&self) -> StoreCounts {
        let kinds = Kind::ALL.map(|kind| {
            let counters = self.kind(kind);
            KindCounts {
                errors: counters.errors.load(Ordering::Relaxed),
                retries: counters.retries.load(Ordering::Relaxed),
                took: counters.took.spread(),
            }
        });
        StoreCounts {
            kinds: kinds.into(),
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
        }
    }

    /// The uploads under way.
    pub fn uploads(&self) -> UploadCounts {
        let uploads = lock(&self.uploads);
        UploadCounts {
            in_flight: uploads.1.len() as u64,
            waiting: self.waiting.load(Ordering::Relaxed),
            bytes: uploads.1.values().fold(0, |sum, upload| sum.saturating_add(upload.bytes)),
            oldest: uploads.1.values().map(|upload| upload.since.elapsed()).max(),
        }
    }

    /// What was heard of the store.
    pub fn health(&self) -> Health {
        let heard = lock(&self.heard);
        Health {
            answer: heard.answer.map(|at| at.elapsed()),
            failing: heard.failing.map(|at| at.elapsed()),
            error: heard.error.as_ref().map(|(at, text)| (at.elapsed(), text.clone())),
        }
    }
}

struct Waiting(Arc<StoreMeter>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Stands for an upload under way.
#[derive(Debug)]
pub struct Upload {
    meter: Arc<StoreMeter>,
    id: u64,
}

impl Drop for Upload {
    fn drop(&mut self) {
        lock(&self.meter.uploads).1.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_counted_apart() {
        for (at, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
        }
        let meter = StoreMeter::default();
        meter.request(Kind::Get, Duration::from_millis(1), false);
        meter.request(Kind::Get, Duration::from_millis(1), true);
        meter.retry(Kind::Put);
        let counts = meter.counts();
        let of = |kind: Kind| (counts.kinds[kind as usize].took.count(), counts.kinds[kind as usize].errors);
        assert_eq!((of(Kind::Get), of(Kind::Put)), ((2, 1), (0, 0)));
        assert_eq!(counts.kinds[Kind::Put as usize].retries, 1);
    }

    #[test]
    fn store_fails_until_it_answers() {
        let meter = StoreMeter::default();
        assert!(meter.health().answer.is_none() && meter.health().failing.is_none());
        meter.failed("no");
        meter.failed("still no");
        let health = meter.health();
        assert!(health.failing > health.error.as_ref().map(|(at, _)| *at), "since the first");
        assert_eq!(health.error.map(|(_, text)| text).as_deref(), Some("still no"));
        meter.answered();
        let health = meter.health();
        assert!(health.answer.is_some() && health.failing.is_none() && health.error.is_some());
    }

    #[test]
    fn slow_upload_is_told_again_after_twice_the_time() {
        let meter = Arc::new(StoreMeter::default());
        let waiting = meter.waiting();
        let upload = meter.upload("a", 7);
        assert_eq!((meter.uploads().in_flight, meter.uploads().waiting, meter.uploads().bytes), (1, 1, 7));
        assert_eq!(meter.slow(Duration::from_secs(60)), Vec::new());
        assert_eq!(meter.slow(Duration::ZERO).len(), 1);
        assert_eq!(meter.slow(Duration::from_secs(60)), Vec::new());
        drop((upload, waiting));
        assert_eq!((meter.uploads().in_flight, meter.uploads().waiting), (0, 0));
        assert_eq!(meter.slow(Duration::ZERO), Vec::new());
    }
}
