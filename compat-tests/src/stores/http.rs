//! As much of an HTTP client as looking at a store from outside takes: one request per connection, nothing followed.

use std::fmt::Write as _;
use std::io::{self, Read, Write as _};
use std::net::TcpStream;
use std::time::Duration;

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server said.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    /// An error that shows the answer, unless it is one of success.
    pub fn ok(self) -> io::Result<Answer> {
        match self.status {
            200..300 => Ok(self),
            status => Err(io::Error::other(format!("{status}: {}", String::from_utf8_lossy(&self.body)))),
        }
    }

    /// `None`: there is no such thing.
    pub fn found(self) -> io::Result<Option<Vec<u8>>> {
        match self.status {
            404 => Ok(None),
            _ => self.ok().map(|answer| Some(answer.body)),
        }
    }

    /// The body as text.
    pub fn text(self) -> io::Result<String> {
        String::from_utf8(self.ok()?.body).map_err(|_| io::Error::other("an answer that is not UTF-8"))
    }

    fn parse(raw: &[u8]) -> Option<Answer> {
        let end = raw.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&raw[..end]).into_owned();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let body = &raw[end + 4..];
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        Some(Answer { status, body: if chunked { dechunk(body)? } else { body.to_vec() } })
    }
}

/// Sends one request to a server on the loopback interface.
///
/// # Errors
/// When there is no answer in time, or it is not HTTP.
pub(super) fn send(port: u16, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = format!(
        "{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw)?;
    Answer::parse(&raw).ok_or_else(|| io::Error::other("not an HTTP answer"))
}

fn dechunk(mut raw: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = raw.windows(2).position(|w| w == b"\r\n")?;
        let len = usize::from_str_radix(std::str::from_utf8(&raw[..line]).ok()?.trim(), 16).ok()?;
        if len == 0 {
            return Some(body);
        }
        body.extend_from_slice(raw.get(line + 2..line + 2 + len)?);
        raw = raw.get(line + 4 + len..)?;
    }
}

/// `text` for a URL; `keep` are the bytes that stand for themselves beside letters, digits and `-_.~`.
pub(super) fn encode(text: &str, keep: &[u8]) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || keep.contains(&byte) {
            out.push(byte.into());
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// The texts of all elements `tag` of an XML document, whatever is around them.
pub(super) fn elements(xml: &str, tag: &str) -> Vec<String> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    xml.split(&open)
        .skip(1)
        .filter_map(|rest| rest.split(&close).next())
        .map(|text| {
            text.replace("&lt;", "<")
                .replace("&gt;", ">")
                .replace("&quot;", "\"")
                .replace("&#39;", "'")
                .replace("&amp;", "&")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_whole_and_in_chunks() {
        let plain = Answer::parse(b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nab").unwrap();
        assert_eq!((plain.status, plain.body.as_slice()), (404, &b"ab"[..]));
        let raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(Answer::parse(raw).unwrap().body, b"abcd");
    }

    #[test]
    fn names_are_encoded_and_elements_found() {
        assert_eq!(encode("a b/ü", b"/"), "a%20b/%C3%BC");
        assert_eq!(encode("a/b", b""), "a%2Fb");
        assert_eq!(elements("<l><Key>a&amp;b</Key><Key>c</Key></l>", "Key"), ["a&b", "c"]);
    }
}
