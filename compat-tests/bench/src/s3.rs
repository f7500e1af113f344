//! An S3 server that keeps its objects in memory: so cheap that a client's own cost shows.
//!
//! What S3 clients here use: GET with ranges, HEAD, PUT, COPY, multipart uploads with copied parts, DELETE one and many,
//! both ListObjects; `If-Match` and `If-None-Match` everywhere. Signatures are not checked. ETags are no MD5 and look
//! like those of multipart uploads, so nobody takes them for one. Bytes that are copied are shared, not moved.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use crate::dates::{http, iso};
use crate::http::{Conn, Head, Pace};
use crate::process::S3;
use crate::server::{Counters, Distance, Server};
use crate::work;

/// Name of the one bucket.
pub const BUCKET: &str = "bench";
/// Most keys in one answer.
const KEYS_MAX: usize = 1000;

/// One object. Its data is a row of shared pieces.
#[derive(Clone, Debug, Default)]
struct Object {
    pieces: Vec<Bytes>,
    size: u64,
    etag: String,
    modified: u64,
    headers: Vec<(String, String)>,
}

impl Object {
    fn range(&self, start: u64, end: u64) -> Vec<Bytes> {
        let mut at = 0;
        let mut out = Vec::new();
        for piece in &self.pieces {
            let len = piece.len() as u64;
            let (from, to) = (start.max(at), end.min(at + len));
            if from < to {
                out.push(piece.slice((from - at) as usize..(to - at) as usize));
            }
            at += len;
        }
        out
    }
}

#[derive(Debug, Default)]
struct Upload {
    key: String,
    headers: Vec<(String, String)>,
    parts: BTreeMap<u32, Vec<Bytes>>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: HashMap<String, Upload>,
}

#[derive(Debug, Default)]
struct Store {
    state: Mutex<State>,
    serial: AtomicU64,
}

impl Store {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn object(&self, pieces: Vec<Bytes>, headers: Vec<(String, String)>) -> Object {
        let size = pieces.iter().map(|piece| piece.len() as u64).sum();
        let modified = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        Object { pieces, size, etag: format!("\"{:032x}-1\"", self.next()), modified, headers }
    }
}

/// A running server.
#[derive(Debug)]
pub struct MemoryS3 {
    /// Its distance and counters.
    pub server: Server,
    store: Arc<Store>,
}

impl MemoryS3 {
    /// Starts an empty one.
    ///
    /// # Errors
    /// The host refuses the socket or the threads.
    pub fn start() -> io::Result<MemoryS3> {
        let store = Arc::<Store>::default();
        let shared = store.clone();
        let server =
            Server::start("s3", move |stream, distance, counters| serve(stream, shared.clone(), distance, counters))?;
        Ok(MemoryS3 { server, store })
    }

    /// How to reach it.
    pub fn access(&self) -> S3 {
        S3 {
            endpoint: self.server.endpoint(),
            bucket: BUCKET.into(),
            access_key: "bench-key".into(),
            secret_key: "bench-secret".into(),
        }
    }

    /// Puts an object of `size` bytes that follows [`work::pattern`].
    pub fn put_pattern(&self, key: &str, seed: u64, size: u64) {
        const PIECE: u64 = 8 << 20;
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < size {
            let mut piece = vec![0; (size - at).min(PIECE) as usize];
            work::fill(seed, at, &mut piece);
            at += piece.len() as u64;
            pieces.push(Bytes::from(piece));
        }
        let object = self.store.object(pieces, Vec::new());
        self.store.state().objects.insert(key.to_owned(), object);
    }

    /// Makes `to` an object with the data of `from`, without moving any.
    pub fn copy(&self, from: &str, to: &str) {
        let mut state = self.store.state();
        if let Some(pieces) = state.objects.get(from).map(|object| object.pieces.clone()) {
            state.objects.insert(to.to_owned(), self.store.object(pieces, Vec::new()));
        }
    }

    /// An object's data; `None`: there is none.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let object = self.store.state().objects.get(key).cloned()?;
        Some(object.pieces.concat())
    }

    /// An object's size; `None`: there is none.
    pub fn size(&self, key: &str) -> Option<u64> {
        self.store.state().objects.get(key).map(|object| object.size)
    }

    /// Eight bytes of an object.
    pub fn word(&self, key: &str, at: u64) -> Option<u64> {
        let bytes = self.store.state().objects.get(key)?.range(at, at + 8).concat();
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    /// Looks at every page of an object: whether its first word is what [`work::pattern`] says.
    pub fn follows_pattern(&self, key: &str, seed: u64, size: u64) -> bool {
        let Some(object) = self.store.state().objects.get(key).cloned() else { return false };
        object.size == size
            && (0..size).step_by(4096).all(|at| {
                let word = object.range(at, (at + 8).min(size)).concat();
                word == work::pattern(seed, at).to_le_bytes()[..word.len()]
            })
    }

    /// Deletes everything below `prefix`.
    pub fn clear(&self, prefix: &str) {
        self.store.state().objects.retain(|key, _| !key.starts_with(prefix));
    }

    /// Number of objects below `prefix`.
    pub fn count(&self, prefix: &str) -> usize {
        let state = self.store.state();
        let from = (Bound::Included(prefix), Bound::Unbounded);
        state.objects.range::<str, _>(from).take_while(|(key, _)| key.starts_with(prefix)).count()
    }
}

/// A response: what stands in its head, and its data.
#[derive(Debug, Default)]
struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    /// Of the body, which a response to HEAD announces and does not send.
    len: u64,
    body: Vec<Bytes>,
}

impl Response {
    fn empty(status: u16) -> Response {
        Response { status, ..Response::default() }
    }

    fn xml(text: String) -> Response {
        let text = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>{text}");
        let headers = vec![("Content-Type".to_owned(), "application/xml".to_owned())];
        Response { status: 200, headers, len: text.len() as u64, body: vec![Bytes::from(text)] }
    }

    fn error(status: u16, code: &str) -> Response {
        let text = format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>");
        Response { status, ..Response::xml(text) }
    }

    fn with(mut self, name: &str, value: &str) -> Response {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

async fn serve(
    stream: TcpStream,
    store: Arc<Store>,
    distance: Arc<Distance>,
    counters: Arc<Counters>,
) -> io::Result<()> {
    let mut conn = Conn::new(stream, false)?;
    while let Some(request) = conn.head().await? {
        counters.request(&request);
        if request.get("expect").is_some() {
            conn.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let mut left = request.request_body();
        let mut body = Vec::with_capacity(request.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0));
        let mut pace = Pace::new(distance.rate());
        loop {
            let piece = conn.piece(&mut left).await?;
            if piece.is_empty() {
                break;
            }
            body.extend_from_slice(piece);
            let len = piece.len();
            counters.up(len);
            pace.pass(len).await;
        }
        let arrived = Instant::now();
        let response = answer(&store, &request, body);
        sleep_until(arrived + distance.latency()).await;
        let mut head = format!("HTTP/1.1 {} -\r\nContent-Length: {}\r\n", response.status, response.len);
        for (name, value) in &response.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        head += "\r\n";
        let mut pace = Pace::new(distance.rate());
        // A small body goes with its head.
        let mut first = head.into_bytes();
        let mut pieces = response.body.iter();
        if response.len <= 8 << 10 {
            pieces.by_ref().for_each(|piece| first.extend_from_slice(piece));
        }
        conn.stream.write_all(&first).await?;
        for piece in pieces {
            pace.send(&mut conn.stream, piece).await?;
        }
        counters.down(response.body.iter().map(Bytes::len).sum());
        if request.closes() {
            break;
        }
    }
    conn.stream.shutdown().await
}

fn answer(store: &Store, request: &Head, body: Vec<u8>) -> Response {
    let (path, query) = request.target().split_once('?').unwrap_or((request.target(), ""));
    let path = decode(path);
    let query: HashMap<String, String> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect();
    let (bucket, key) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_matches('/'), ""));
    if bucket != BUCKET {
        return if bucket.is_empty() { buckets() } else { Response::error(404, "NoSuchBucket") };
    }
    match (request.method(), key.is_empty()) {
        ("GET", true) if query.contains_key("location") => {
            Response::xml("<LocationConstraint>us-east-1</LocationConstraint>".into())
        }
        ("GET", true) if query.contains_key("uploads") => Response::xml("<ListMultipartUploadsResult/>".into()),
        ("GET", true) => list(store, &query),
        ("HEAD" | "PUT", true) => Response::empty(200),
        ("POST", true) if query.contains_key("delete") => delete_many(store, &body),
        ("GET" | "HEAD", false) => read(store, key, request),
        ("PUT", false) => put(store, key, request, &query, body),
        ("POST", false) if query.contains_key("uploads") => begin(store, key, request),
        ("POST", false) => complete(store, key, request, &query, &body),
        ("DELETE", false) => delete(store, key, request, &query),
        _ => Response::error(501, "NotImplemented"),
    }
}

fn buckets() -> Response {
    Response::xml(format!(
        "<ListAllMyBucketsResult><Buckets><Bucket><Name>{BUCKET}</Name></Bucket></Buckets></ListAllMyBucketsResult>"
    ))
}

fn read(store: &Store, key: &str, request: &Head) -> Response {
    let state = store.state();
    let Some(object) = state.objects.get(key) else { return Response::error(404, "NoSuchKey") };
    if let Some(refused) = conditions(request, Some(object), true) {
        return refused;
    }
    let range = request.get("range").and_then(|range| range_of(range, object.size));
    let (start, end) = range.unwrap_or((0, object.size));
    if request.get("range").is_some() && start >= end && object.size > 0 {
        return Response::error(416, "InvalidRange");
    }
    let mut response = Response::empty(if range.is_some() { 206 } else { 200 })
        .with("ETag", &object.etag)
        .with("Last-Modified", &http(object.modified))
        .with("Accept-Ranges", "bytes");
    if range.is_some() {
        response = response.with("Content-Range", &format!("bytes {start}-{}/{}", end - 1, object.size));
    }
    response.headers.extend(object.headers.iter().cloned());
    response.len = end - start;
    if request.method() == "GET" {
        response.body = object.range(start, end);
    }
    response
}

fn put(store: &Store, key: &str, request: &Head, query: &HashMap<String, String>, body: Vec<u8>) -> Response {
    let mut pieces = vec![Bytes::from(if is_signed_in_chunks(request) { unsign(&body) } else { body })];
    let mut state = store.state();
    let mut headers = kept(request);
    let copied = request.get("x-amz-copy-source").map(decode);
    if let Some(source) = &copied {
        let source = source.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
        let Some(object) = state.objects.get(source) else { return Response::error(404, "NoSuchKey") };
        if request.get("x-amz-copy-source-if-match").is_some_and(|etag| !matches(etag, &object.etag)) {
            return Response::error(412, "PreconditionFailed");
        }
        let range = request.get("x-amz-copy-source-range").and_then(|range| range_of(range, object.size));
        let (start, end) = range.unwrap_or((0, object.size));
        pieces = object.range(start, end);
        if request.get("x-amz-metadata-directive") != Some("REPLACE") {
            headers.clone_from(&object.headers);
        }
    }
    let result = |etag: &str| {
        let text = format!("<LastModified>2000-01-01T00:00:00.000Z</LastModified><ETag>{etag}</ETag>");
        Response::xml(format!("<CopyObjectResult>{text}</CopyObjectResult>"))
    };
    if let Some(upload) = query.get("uploadId") {
        let number = query.get("partNumber").and_then(|number| number.parse().ok()).unwrap_or(0);
        let Some(upload) = state.uploads.get_mut(upload) else { return Response::error(404, "NoSuchUpload") };
        upload.parts.insert(number, pieces);
        let etag = format!("\"{:032x}\"", store.next());
        return if copied.is_some() { result(&etag) } else { Response::empty(200).with("ETag", &etag) };
    }
    if let Some(refused) = conditions(request, state.objects.get(key), false) {
        return refused;
    }
    let object = store.object(pieces, headers);
    let etag = object.etag.clone();
    state.objects.insert(key.to_owned(), object);
    if copied.is_some() { result(&etag) } else { Response::empty(200).with("ETag", &etag) }
}

fn begin(store: &Store, key: &str, request: &Head) -> Response {
    let id = format!("upload-{}", store.next());
    let upload = Upload { key: key.to_owned(), headers: kept(request), parts: BTreeMap::new() };
    store.state().uploads.insert(id.clone(), upload);
    Response::xml(format!(
        "<InitiateMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{}</Key><UploadId>{id}</UploadId>\
         </InitiateMultipartUploadResult>",
        escape(key)
    ))
}

fn complete(store: &Store, key: &str, request: &Head, query: &HashMap<String, String>, body: &[u8]) -> Response {
    let mut state = store.state();
    if let Some(refused) = conditions(request, state.objects.get(key), false) {
        return refused;
    }
    let id = query.get("uploadId").map_or("", String::as_str);
    let Some(upload) = state.uploads.remove(id).filter(|upload| upload.key == key) else {
        return Response::error(404, "NoSuchUpload");
    };
    let text = String::from_utf8_lossy(body);
    let mut pieces = Vec::new();
    for number in between(&text, "<PartNumber>", "</PartNumber>") {
        match number.trim().parse().ok().and_then(|number: u32| upload.parts.get(&number)) {
            Some(part) => pieces.extend(part.iter().cloned()),
            None => return Response::error(400, "InvalidPart"),
        }
    }
    let object = store.object(pieces, upload.headers);
    let etag = object.etag.clone();
    state.objects.insert(key.to_owned(), object);
    Response::xml(format!(
        "<CompleteMultipartUploadResult><Bucket>{BUCKET}</Bucket><Key>{}</Key><ETag>{}</ETag>\
         </CompleteMultipartUploadResult>",
        escape(key),
        escape(&etag)
    ))
}

fn delete(store: &Store, key: &str, request: &Head, query: &HashMap<String, String>) -> Response {
    let mut state = store.state();
    if let Some(id) = query.get("uploadId") {
        state.uploads.remove(id);
    } else if let Some(refused) = conditions(request, state.objects.get(key), false) {
        return refused;
    } else {
        state.objects.remove(key);
    }
    Response::empty(204)
}

fn delete_many(store: &Store, body: &[u8]) -> Response {
    let text = String::from_utf8_lossy(body);
    let mut state = store.state();
    let mut out = String::from("<DeleteResult>");
    for key in between(&text, "<Key>", "</Key>") {
        state.objects.remove(&unescape(key));
        let _ = write!(out, "<Deleted><Key>{key}</Key></Deleted>");
    }
    Response::xml(out + "</DeleteResult>")
}

fn list(store: &Store, query: &HashMap<String, String>) -> Response {
    let get = |name: &str| query.get(name).map_or("", String::as_str);
    let (prefix, delimiter, v2) = (get("prefix"), get("delimiter"), get("list-type") == "2");
    let most = query.get("max-keys").and_then(|n| n.parse().ok()).unwrap_or(KEYS_MAX).min(KEYS_MAX);
    let token = get("continuation-token");
    let after = if !v2 {
        get("marker")
    } else if token.is_empty() {
        get("start-after")
    } else {
        token
    };
    let written = |text: &str| if get("encoding-type") == "url" { encode(text) } else { escape(text) };
    let state = store.state();
    let (mut out, mut count, mut last, mut more) = (String::new(), 0, String::new(), false);
    // Everything below a common prefix that was named last has been told.
    let mut from = match after {
        group if !delimiter.is_empty() && group.len() > prefix.len() && group.ends_with(delimiter) => {
            Bound::Included(format!("{group}\u{10ffff}"))
        }
        "" => Bound::Included(prefix.to_owned()),
        key => Bound::Excluded(key.to_owned()),
    };
    while let Some((key, object)) = state.objects.range((from, Bound::Unbounded)).next() {
        if !key.starts_with(prefix) {
            if key.as_str() < prefix {
                from = Bound::Included(prefix.to_owned());
                continue;
            }
            break;
        }
        if count == most {
            more = true;
            break;
        }
        let group = (!delimiter.is_empty()).then(|| key[prefix.len()..].find(delimiter)).flatten();
        if let Some(end) = group {
            let group = &key[..prefix.len() + end + delimiter.len()];
            let _ = write!(out, "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", written(group));
            group.clone_into(&mut last);
            from = Bound::Included(format!("{group}\u{10ffff}"));
        } else {
            let _ = write!(
                out,
                "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>{}</ETag><Size>{}</Size>\
                 <StorageClass>STANDARD</StorageClass></Contents>",
                written(key),
                iso(object.modified),
                escape(&object.etag),
                object.size
            );
            key.clone_into(&mut last);
            from = Bound::Excluded(key.clone());
        }
        count += 1;
    }
    let mut head = format!(
        "<Name>{BUCKET}</Name><Prefix>{}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>{most}</MaxKeys>\
         <IsTruncated>{more}</IsTruncated>",
        written(prefix)
    );
    if !get("encoding-type").is_empty() {
        head += "<EncodingType>url</EncodingType>";
    }
    if more {
        let name = if v2 { "NextContinuationToken" } else { "NextMarker" };
        let _ = write!(head, "<{name}>{}</{name}>", if v2 { escape(&last) } else { written(&last) });
    }
    Response::xml(format!("<ListBucketResult>{head}{out}</ListBucketResult>"))
}

/// What speaks against a request, by its conditional headers.
fn conditions(request: &Head, object: Option<&Object>, reading: bool) -> Option<Response> {
    let is = |etags: &str| object.is_some_and(|object| matches(etags, &object.etag));
    if request.get("if-match").is_some_and(|etags| !is(etags)) {
        let missing = object.is_none() && !reading;
        return Some(if missing {
            Response::error(404, "NoSuchKey")
        } else {
            Response::error(412, "PreconditionFailed")
        });
    }
    if request.get("if-none-match").is_some_and(is) {
        return Some(if reading { Response::empty(304) } else { Response::error(412, "PreconditionFailed") });
    }
    None
}

fn matches(wanted: &str, etag: &str) -> bool {
    wanted.split(',').any(|one| one.trim() == "*" || one.trim().trim_matches('"') == etag.trim_matches('"'))
}

/// `bytes=a-b`, `bytes=a-`, `bytes=-n` as a half-open range.
fn range_of(text: &str, size: u64) -> Option<(u64, u64)> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    if from.is_empty() {
        return Some((size.saturating_sub(to.parse().ok()?), size));
    }
    let end = if to.is_empty() { size } else { to.parse::<u64>().ok()?.saturating_add(1).min(size) };
    Some((from.parse().ok()?, end))
}

/// Headers that belong to an object.
fn kept(request: &Head) -> Vec<(String, String)> {
    let is_kept = |name: &str| name.starts_with("x-amz-meta-") || name == "content-type" || name == "cache-control";
    request.headers.iter().filter(|(name, _)| is_kept(name)).cloned().collect()
}

fn is_signed_in_chunks(request: &Head) -> bool {
    request.get("x-amz-content-sha256").is_some_and(|value| value.starts_with("STREAMING-"))
}

/// The data of an `aws-chunked` body.
fn unsign(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len());
    while let Some(end) = body.windows(2).position(|pair| pair == b"\r\n") {
        let line = String::from_utf8_lossy(&body[..end]).into_owned();
        let len = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16).unwrap_or(0);
        let Some(chunk) = body.get(end + 2..end + 2 + len).filter(|chunk| !chunk.is_empty()) else { break };
        out.extend_from_slice(chunk);
        body = body.get(end + 4 + len..).unwrap_or_default();
    }
    out
}

fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(open).skip(1).filter_map(move |rest| rest.split(close).next())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#39;", "'").replace("&amp;", "&")
}

fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            out.push(byte.into());
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            out.push(byte);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(range_of("bytes=2-4", 10), Some((2, 5)));
        assert_eq!(range_of("bytes=2-", 10), Some((2, 10)));
        assert_eq!(range_of("bytes=-3", 10), Some((7, 10)));
        let object = Object { pieces: vec!["abc".into(), "defg".into()], size: 7, ..Object::default() };
        assert_eq!(object.range(2, 5).concat(), b"cde");
    }

    #[test]
    fn listing_goes_on_behind_keys_and_groups() {
        let store = Store::default();
        for key in ["a", "d/1", "d/2", "e", "f/1"] {
            store.state().objects.insert(key.into(), store.object(Vec::new(), Vec::new()));
        }
        let ask = |pairs: &[(&str, &str)]| {
            let query = pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            String::from_utf8(list(&store, &query).body.concat()).unwrap()
        };
        let page = ask(&[("list-type", "2"), ("delimiter", "/"), ("max-keys", "2")]);
        assert_eq!(between(&page, "<Key>", "</Key>").collect::<Vec<_>>(), ["a"]);
        assert_eq!(between(&page, "<NextContinuationToken>", "<").collect::<Vec<_>>(), ["d/"]);
        let page = ask(&[("list-type", "2"), ("delimiter", "/"), ("continuation-token", "d/")]);
        assert_eq!(between(&page, "<Key>", "</Key>").collect::<Vec<_>>(), ["e"]);
        assert!(page.contains("<CommonPrefixes><Prefix>f/</Prefix>") && page.contains("<IsTruncated>false"));
    }
}
