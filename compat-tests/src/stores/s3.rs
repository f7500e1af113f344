//! Requests to an S3 server, signed: s3s-fs checks, moto does not.
//!
//! Reference: Amazon S3 API Reference, "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)".

use std::fmt::Write as _;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use super::http::{Answer, elements, encode, send};
use super::{ACCESS_KEY, SECRET_KEY};

const REGION: &str = "us-east-1";
const BODY: &str = "UNSIGNED-PAYLOAD";

/// How often a request is sent that the server answers with 500, and the pause between.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(50);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// `YYYYMMDDTHHMMSSZ`.
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Counted in eras of 400 years from the first of March of the year 0.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let date = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}{month:02}{date:02}T{:02}{:02}{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

/// A request; the pairs of `query` must be sorted and encoded. Repeated as every client of S3 does where the server trips
/// over requests at the same time (moto does).
fn request(port: u16, method: &str, path: &str, query: &str, body: &[u8]) -> io::Result<Answer> {
    for _ in 1..ATTEMPTS {
        let answer = request_once(port, method, path, query, body)?;
        if answer.status != 500 {
            return Ok(answer);
        }
        std::thread::sleep(PAUSE);
    }
    request_once(port, method, path, query, body)
}

fn request_once(port: u16, method: &str, path: &str, query: &str, body: &[u8]) -> io::Result<Answer> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    let at = timestamp(now.as_secs());
    let scope = format!("{}/{REGION}/s3/aws4_request", &at[..8]);
    let signed = "host;x-amz-content-sha256;x-amz-date";
    let canonical = format!(
        "{method}\n{path}\n{query}\nhost:127.0.0.1:{port}\nx-amz-content-sha256:{BODY}\nx-amz-date:{at}\n\n{signed}\n{BODY}"
    );
    let text = format!("AWS4-HMAC-SHA256\n{at}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let key = ["s3", "aws4_request"]
        .iter()
        .fold(mac(&mac(format!("AWS4{SECRET_KEY}").as_bytes(), &at[..8]), REGION), |key, part| mac(&key, part));
    let signature = hex(&mac(&key, &text));
    let authorization =
        format!("AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={signed}, Signature={signature}");
    let headers =
        [("Authorization", authorization.as_str()), ("x-amz-content-sha256", BODY), ("x-amz-date", at.as_str())];
    let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    send(port, method, &target, &headers, body)
}

fn object(bucket: &str, key: &str) -> String {
    format!("/{bucket}/{}", encode(key, b"/"))
}

/// Makes a bucket.
pub(super) fn make_bucket(port: u16, bucket: &str) -> io::Result<()> {
    request(port, "PUT", &format!("/{bucket}"), "", b"")?.ok().map(drop)
}

/// Puts an object.
pub(super) fn put(port: u16, bucket: &str, key: &str, data: &[u8]) -> io::Result<()> {
    request(port, "PUT", &object(bucket, key), "", data)?.ok().map(drop)
}

/// Reads an object.
pub(super) fn get(port: u16, bucket: &str, key: &str) -> io::Result<Option<Vec<u8>>> {
    request(port, "GET", &object(bucket, key), "", b"")?.found()
}

/// Deletes an object.
pub(super) fn delete(port: u16, bucket: &str, key: &str) -> io::Result<()> {
    request(port, "DELETE", &object(bucket, key), "", b"")?.ok().map(drop)
}

/// All names.
pub(super) fn keys(port: u16, bucket: &str) -> io::Result<Vec<String>> {
    let mut keys: Vec<String> = Vec::new();
    loop {
        let after = keys.last().map(|last| encode(last, b"")).unwrap_or_default();
        let query = format!("list-type=2&max-keys=1000&start-after={after}");
        let page = elements(&request(port, "GET", &format!("/{bucket}"), &query, b"")?.text()?, "Key");
        if page.is_empty() {
            return Ok(keys);
        }
        keys.extend(page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(timestamp(0), "19700101T000000Z");
        assert_eq!(timestamp(951_782_399), "20000228T235959Z");
        assert_eq!(timestamp(951_782_400), "20000229T000000Z");
        assert_eq!(timestamp(1_767_225_599), "20251231T235959Z");
    }
}
