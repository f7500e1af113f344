//! As much of HTTP/1.1 as a server or a proxy for object stores needs: heads, bodies by length and in chunks.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

/// Longest head.
const HEAD_MAX: usize = 64 << 10;
/// Bytes read from a socket at a time.
const READ: usize = 256 << 10;
/// Bytes sent at a time when the rate is limited.
const PACED: usize = 64 << 10;
/// How far a limited connection may catch up when a timer was late.
const LATE_MAX: Duration = Duration::from_millis(5);

/// A request's or response's first lines.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// The first line.
    pub start: String,
    /// Names in lower case, values as they came.
    pub headers: Vec<(String, String)>,
    raw: Vec<u8>,
}

impl Head {
    /// A head as it came, up to the empty line.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub(crate) fn parse(raw: &[u8]) -> io::Result<Head> {
        let text = std::str::from_utf8(raw).map_err(io::Error::other)?;
        let mut lines = text.split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Ok(Head { start, headers, raw: raw.to_vec() })
    }

    /// A header's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// The method of a request.
    pub fn method(&self) -> &str {
        self.start.split(' ').next().unwrap_or_default()
    }

    /// The target of a request.
    pub fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    /// The status of a response.
    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// Whether the sender ends the connection after this message.
    pub fn closes(&self) -> bool {
        self.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// The bytes on the wire, without the lines whose header is `name`.
    pub fn without(&self, name: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.raw.len() + 4);
        for line in self.raw.split_inclusive(|&byte| byte == b'\n') {
            let is_it = line.len() > name.len()
                && line[name.len()] == b':'
                && line[..name.len()].eq_ignore_ascii_case(name.as_bytes());
            if !is_it {
                out.extend_from_slice(line);
            }
        }
        out.extend_from_slice(b"\r\n");
        out
    }

    /// How a request's body is delimited.
    pub fn request_body(&self) -> Body {
        self.body().unwrap_or(Body::Length(0))
    }

    /// How the body of the response to a `method` request is delimited.
    pub fn response_body(&self, method: &str) -> Body {
        if method == "HEAD" || matches!(self.status(), 100..200 | 204 | 304) {
            return Body::Length(0);
        }
        self.body().unwrap_or(Body::ToEnd)
    }

    fn body(&self) -> Option<Body> {
        if self.get("transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().contains("chunked")) {
            return Some(Body::Chunked { left: 0, begun: false });
        }
        self.get("content-length").and_then(|len| len.parse().ok()).map(Body::Length)
    }
}

/// What is left of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes.
    Length(u64),
    /// `left` bytes of the chunk at hand.
    Chunked {
        /// Bytes of this chunk still to come.
        left: u64,
        /// Whether a chunk came before, whose line end is still to be read.
        begun: bool,
    },
    /// Everything until the connection ends.
    ToEnd,
    /// Nothing.
    Over,
}

/// A connection with what has been read ahead.
#[derive(Debug)]
pub struct Conn {
    /// The socket.
    pub stream: TcpStream,
    buf: Vec<u8>,
    at: usize,
    quick: bool,
}

impl Conn {
    /// Over a socket; `quick` acknowledges at once, which servers that send head and body apart wait for.
    pub fn new(stream: TcpStream, quick: bool) -> io::Result<Conn> {
        stream.set_nodelay(true)?;
        Ok(Conn { stream, buf: Vec::with_capacity(READ), at: 0, quick })
    }

    async fn more(&mut self) -> io::Result<bool> {
        if self.at == self.buf.len() {
            self.buf.clear();
            self.at = 0;
        }
        if self.quick {
            acknowledge_at_once(&self.stream);
        }
        self.buf.reserve(READ);
        Ok(self.stream.read_buf(&mut self.buf).await? > 0)
    }

    /// The next head; `None` when the connection ended between messages.
    ///
    /// # Errors
    /// It ended within one, or one is too long.
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        let mut searched = self.at;
        loop {
            if let Some(end) = find(&self.buf[searched..], b"\r\n\r\n") {
                let end = searched + end + 2;
                let head = Head::parse(&self.buf[self.at..end])?;
                self.at = end + 2;
                return Ok(Some(head));
            }
            let seen = self.buf.len() - self.at;
            if seen > HEAD_MAX {
                return Err(io::Error::other("the head of a message is too long"));
            }
            if !self.more().await? {
                return if seen == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            searched = self.at + seen.saturating_sub(3);
        }
    }

    /// The next piece of a body, empty at its end.
    ///
    /// # Errors
    /// The connection ended within it, or a chunk's length is none.
    pub async fn piece(&mut self, body: &mut Body) -> io::Result<&[u8]> {
        let most = match body {
            Body::Over | Body::Length(0) => return Ok(&[]),
            Body::Length(left) => *left,
            Body::ToEnd => u64::MAX,
            Body::Chunked { left: 0, begun } => {
                if *begun {
                    self.line().await?;
                }
                let line = self.line().await?;
                let digits = line.split(';').next().unwrap_or_default().trim();
                let len = u64::from_str_radix(digits, 16).map_err(io::Error::other)?;
                if len == 0 {
                    while !self.line().await?.is_empty() {}
                    *body = Body::Over;
                    return Ok(&[]);
                }
                *body = Body::Chunked { left: len, begun: true };
                len
            }
            Body::Chunked { left, .. } => *left,
        };
        if self.at == self.buf.len() && !self.more().await? {
            if *body == Body::ToEnd {
                *body = Body::Over;
                return Ok(&[]);
            }
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = most.min((self.buf.len() - self.at) as u64);
        match body {
            Body::Length(left) | Body::Chunked { left, .. } => *left -= len,
            Body::ToEnd | Body::Over => {}
        }
        let start = self.at;
        self.at += len as usize;
        Ok(&self.buf[start..self.at])
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = find(&self.buf[self.at..], b"\r\n") {
                let line = String::from_utf8_lossy(&self.buf[self.at..self.at + end]).into_owned();
                self.at += end + 2;
                return Ok(line);
            }
            if self.buf.len() - self.at > HEAD_MAX || !self.more().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn acknowledge_at_once(stream: &TcpStream) {
    use std::os::fd::AsRawFd;
    let one: libc::c_int = 1;
    // SAFETY: a live socket and a pointer to an int of the length given. A refusal costs only time.
    unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_QUICKACK,
            (&raw const one).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
}

/// The schedule of one direction of a connection.
#[derive(Debug)]
pub struct Pace {
    /// Bytes a second; 0: unlimited.
    rate: u64,
    due: Instant,
}

impl Pace {
    /// Of a message that begins now.
    pub fn new(rate: u64) -> Pace {
        Pace { rate, due: Instant::now() }
    }

    /// Waits until `len` further bytes have passed.
    pub async fn pass(&mut self, len: usize) {
        if self.rate == 0 {
            return;
        }
        let now = Instant::now();
        if self.due + LATE_MAX < now {
            self.due = now;
        }
        self.due += Duration::from_secs_f64(len as f64 / self.rate as f64);
        // Timers know milliseconds: short waits are put together.
        if self.due > now + Duration::from_millis(1) {
            sleep_until(self.due).await;
        }
    }

    /// Sends `bytes` at this pace.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn send(&mut self, stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
        if self.rate == 0 {
            return stream.write_all(bytes).await;
        }
        for piece in bytes.chunks(PACED) {
            stream.write_all(piece).await?;
            self.pass(piece.len()).await;
        }
        Ok(())
    }
}
