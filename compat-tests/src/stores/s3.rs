//! Requests to an S3 server that checks no signatures.

use std::io;

use super::ACCESS_KEY;
use super::http::{Answer, elements, encode, send};

fn request(port: u16, method: &str, target: &str, body: &[u8]) -> io::Result<Answer> {
    send(port, method, target, &[("Authorization", &format!("AWS {ACCESS_KEY}:unchecked"))], body)
}

fn object(bucket: &str, key: &str) -> String {
    format!("/{bucket}/{}", encode(key, b"/"))
}

/// Makes a bucket.
pub(super) fn make_bucket(port: u16, bucket: &str) -> io::Result<()> {
    request(port, "PUT", &format!("/{bucket}"), b"")?.ok().map(drop)
}

/// Puts an object.
pub(super) fn put(port: u16, bucket: &str, key: &str, data: &[u8]) -> io::Result<()> {
    request(port, "PUT", &object(bucket, key), data)?.ok().map(drop)
}

/// Reads an object.
pub(super) fn get(port: u16, bucket: &str, key: &str) -> io::Result<Option<Vec<u8>>> {
    request(port, "GET", &object(bucket, key), b"")?.found()
}

/// Deletes an object.
pub(super) fn delete(port: u16, bucket: &str, key: &str) -> io::Result<()> {
    request(port, "DELETE", &object(bucket, key), b"")?.ok().map(drop)
}

/// All names.
pub(super) fn keys(port: u16, bucket: &str) -> io::Result<Vec<String>> {
    let mut keys: Vec<String> = Vec::new();
    loop {
        let after = keys.last().map(|last| encode(last, b"")).unwrap_or_default();
        let target = format!("/{bucket}?list-type=2&max-keys=1000&start-after={after}");
        let page = elements(&request(port, "GET", &target, b"")?.text()?, "Key");
        if page.is_empty() {
            return Ok(keys);
        }
        keys.extend(page);
    }
}
