//! Requests to Azurite: signed by a shared access signature of the account that it has built in.
//!
//! Service reference: "Create an account SAS", "Blob service REST API".

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::http::{Answer, elements, encode, send};

/// Azurite's account.
pub const ACCOUNT: &str = "devstoreaccount1";
/// Its key, the same in every Azurite and printed in its manual.
pub const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

const VERSION: &str = "2021-12-02";
const EXPIRY: &str = "2099-01-01T00:00:00Z";

/// The query that allows everything in the account.
fn signature() -> String {
    let (permissions, services, types) = ("rwdlac", "b", "sco");
    let text = format!("{ACCOUNT}\n{permissions}\n{services}\n{types}\n\n{EXPIRY}\n\nhttps,http\n{VERSION}\n\n");
    let key = STANDARD.decode(KEY).expect("the key is base64");
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("HMAC takes keys of every length");
    mac.update(text.as_bytes());
    let sig = encode(&STANDARD.encode(mac.finalize().into_bytes()), b"");
    format!(
        "sv={VERSION}&ss={services}&srt={types}&sp={permissions}&se={}&spr=https,http&sig={sig}",
        encode(EXPIRY, b"")
    )
}

fn request(
    port: u16,
    method: &str,
    path: &str,
    query: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Answer> {
    let mut all = vec![("x-ms-version", VERSION)];
    all.extend_from_slice(headers);
    send(port, method, &format!("/{ACCOUNT}/{path}?{query}{}", signature()), &all, body)
}

/// Makes a container.
pub(super) fn make_container(port: u16, container: &str) -> io::Result<()> {
    request(port, "PUT", container, "restype=container&", &[], b"")?.ok().map(drop)
}

/// Puts a blob.
pub(super) fn put(port: u16, container: &str, key: &str, data: &[u8]) -> io::Result<()> {
    let path = format!("{container}/{}", encode(key, b"/"));
    request(port, "PUT", &path, "", &[("x-ms-blob-type", "BlockBlob")], data)?.ok().map(drop)
}

/// Reads a blob.
pub(super) fn get(port: u16, container: &str, key: &str) -> io::Result<Option<Vec<u8>>> {
    request(port, "GET", &format!("{container}/{}", encode(key, b"/")), "", &[], b"")?.found()
}

/// Deletes a blob.
pub(super) fn delete(port: u16, container: &str, key: &str) -> io::Result<()> {
    request(port, "DELETE", &format!("{container}/{}", encode(key, b"/")), "", &[], b"")?.ok().map(drop)
}

/// All names.
pub(super) fn keys(port: u16, container: &str) -> io::Result<Vec<String>> {
    let mut keys = Vec::new();
    let mut marker = String::new();
    loop {
        let query = format!("restype=container&comp=list&maxresults=1000&marker={}&", encode(&marker, b""));
        let text = request(port, "GET", container, &query, &[], b"")?.text()?;
        keys.extend(elements(&text, "Name"));
        match elements(&text, "NextMarker").pop().filter(|next| !next.is_empty()) {
            Some(next) => marker = next,
            None => return Ok(keys),
        }
    }
}
