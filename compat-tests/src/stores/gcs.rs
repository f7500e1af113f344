//! Requests to a server that speaks the JSON API of Google Cloud Storage and checks no credentials.

use std::io;

use serde_json::{Value, json};

use super::http::{encode, send};

fn object(bucket: &str, key: &str) -> String {
    format!("/storage/v1/b/{bucket}/o/{}", encode(key, b""))
}

/// Makes a bucket.
pub(super) fn make_bucket(port: u16, bucket: &str) -> io::Result<()> {
    let body = json!({ "name": bucket }).to_string();
    let headers = [("Content-Type", "application/json")];
    send(port, "POST", "/storage/v1/b?project=test", &headers, body.as_bytes())?.ok().map(drop)
}

/// Puts an object.
pub(super) fn put(port: u16, bucket: &str, key: &str, data: &[u8]) -> io::Result<()> {
    let target = format!("/upload/storage/v1/b/{bucket}/o?uploadType=media&name={}", encode(key, b""));
    send(port, "POST", &target, &[("Content-Type", "application/octet-stream")], data)?.ok().map(drop)
}

/// Reads an object.
pub(super) fn get(port: u16, bucket: &str, key: &str) -> io::Result<Option<Vec<u8>>> {
    send(port, "GET", &format!("{}?alt=media", object(bucket, key)), &[], b"")?.found()
}

/// Deletes an object.
pub(super) fn delete(port: u16, bucket: &str, key: &str) -> io::Result<()> {
    send(port, "DELETE", &object(bucket, key), &[], b"")?.ok().map(drop)
}

/// All names.
pub(super) fn keys(port: u16, bucket: &str) -> io::Result<Vec<String>> {
    let mut keys = Vec::new();
    let mut token = String::new();
    loop {
        let target = format!("/storage/v1/b/{bucket}/o?pageToken={}", encode(&token, b""));
        let page: Value = serde_json::from_str(&send(port, "GET", &target, &[], b"")?.text()?)?;
        let items = page["items"].as_array().into_iter().flatten();
        keys.extend(items.filter_map(|item| item["name"].as_str().map(str::to_owned)));
        match page["nextPageToken"].as_str().filter(|next| !next.is_empty()) {
            Some(next) => token = next.to_owned(),
            None => return Ok(keys),
        }
    }
}
