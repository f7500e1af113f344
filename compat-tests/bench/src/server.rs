//! What every store of the benchmarks has: a distance, a rate per connection, and counts of what it was asked.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

use crate::http::Head;

/// Kinds of S3 request, in the order of the counters.
pub const KINDS: [&str; 12] =
    ["GET", "HEAD", "LIST", "PUT", "COPY", "begin", "part", "part copy", "complete", "DELETE", "delete many", "other"];

/// How far away a store is. Can be changed while it runs.
#[derive(Debug, Default)]
pub struct Distance {
    latency_us: AtomicU64,
    rate: AtomicU64,
}

impl Distance {
    /// Delays the first byte of every response by `latency`, counted from the end of its request, and lets `rate` bytes
    /// a second pass each way on each connection (0: any number).
    pub fn set(&self, latency: Duration, rate: u64) {
        self.latency_us.store(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.rate.store(rate, Ordering::Relaxed);
    }

    /// The delay.
    pub fn latency(&self) -> Duration {
        Duration::from_micros(self.latency_us.load(Ordering::Relaxed))
    }

    /// The rate.
    pub fn rate(&self) -> u64 {
        self.rate.load(Ordering::Relaxed)
    }
}

/// What a store was asked.
#[derive(Debug, Default)]
pub struct Counters {
    kinds: [AtomicU64; KINDS.len()],
    up: AtomicU64,
    down: AtomicU64,
    connections: AtomicU64,
}

/// Counts at one moment, or between two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// By [`KINDS`].
    pub kinds: [u64; KINDS.len()],
    /// Bytes of request bodies.
    pub up: u64,
    /// Bytes of response bodies.
    pub down: u64,
    /// Connections made.
    pub connections: u64,
}

impl Counters {
    /// Counts a request.
    pub fn request(&self, head: &Head) {
        self.kinds[kind(head)].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes of a request's body.
    pub fn up(&self, bytes: usize) {
        self.up.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts bytes of a response's body.
    pub fn down(&self, bytes: usize) {
        self.down.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a connection.
    pub fn connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts now.
    pub fn now(&self) -> Counts {
        Counts {
            kinds: std::array::from_fn(|n| self.kinds[n].load(Ordering::Relaxed)),
            up: self.up.load(Ordering::Relaxed),
            down: self.down.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
        }
    }
}

impl Counts {
    /// What came since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Counts) -> Counts {
        Counts {
            kinds: std::array::from_fn(|n| self.kinds[n] - earlier.kinds[n]),
            up: self.up - earlier.up,
            down: self.down - earlier.down,
            connections: self.connections - earlier.connections,
        }
    }

    /// Requests of all kinds.
    pub fn total(&self) -> u64 {
        self.kinds.iter().sum()
    }

    /// The kinds that occurred, then the mebibytes each way.
    pub fn list(&self) -> Vec<(String, u64)> {
        let kinds = KINDS.iter().zip(self.kinds).filter(|(_, n)| *n > 0).map(|(kind, n)| ((*kind).to_owned(), n));
        kinds.chain([("KiB up".to_owned(), self.up >> 10), ("KiB down".to_owned(), self.down >> 10)]).collect()
    }
}

fn kind(head: &Head) -> usize {
    let (path, query) = head.target().split_once('?').unwrap_or((head.target(), ""));
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    let copies = head.get("x-amz-copy-source").is_some();
    // `/bucket` and `/bucket/` are the bucket itself.
    let is_bucket = path.trim_matches('/').find('/').is_none();
    let name = match head.method() {
        "GET" if is_bucket && !has("location") => "LIST",
        "GET" => "GET",
        "HEAD" => "HEAD",
        "PUT" if has("partNumber") => {
            if copies {
                "part copy"
            } else {
                "part"
            }
        }
        "PUT" => {
            if copies {
                "COPY"
            } else {
                "PUT"
            }
        }
        "POST" if has("uploads") => "begin",
        "POST" if has("uploadId") => "complete",
        "POST" if has("delete") => "delete many",
        "DELETE" => "DELETE",
        _ => "other",
    };
    KINDS.iter().position(|kind| *kind == name).unwrap_or(KINDS.len() - 1)
}

/// A listening server with threads of its own.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// How far away it seems.
    pub distance: Arc<Distance>,
    /// What it was asked.
    pub counters: Arc<Counters>,
    runtime: Option<Runtime>,
}

impl Server {
    /// Listens on a free port of the loopback and serves each connection by `serve`.
    ///
    /// # Errors
    /// The host refuses the socket or the threads.
    pub fn start<F, Fut>(name: &str, serve: F) -> io::Result<Server>
    where
        F: Fn(TcpStream, Arc<Distance>, Arc<Counters>) -> Fut + Send + 'static,
        Fut: Future<Output = io::Result<()>> + Send + 'static,
    {
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build()?;
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (distance, counters) = (Arc::<Distance>::default(), Arc::<Counters>::default());
        let (far, counted) = (distance.clone(), counters.clone());
        let listener = runtime.block_on(async { tokio::net::TcpListener::from_std(listener) })?;
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.connection();
                // A connection that breaks is its client's affair.
                tokio::spawn(serve(stream, far.clone(), counted.clone()));
            }
        });
        Ok(Server { address, distance, counters, runtime: Some(runtime) })
    }

    /// As an S3 client names it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        let of = |start: &str, copy: bool| {
            let copied = if copy { "x-amz-copy-source: /b/k\r\n" } else { "" };
            KINDS[kind(&Head::parse(format!("{start}\r\n{copied}").as_bytes()).unwrap())]
        };
        assert_eq!(of("GET /b/?list-type=2&prefix=a%2F HTTP/1.1", false), "LIST");
        assert_eq!(of("GET /b/k HTTP/1.1", false), "GET");
        assert_eq!(of("PUT /b/k?partNumber=1&uploadId=x HTTP/1.1", true), "part copy");
        assert_eq!(of("PUT /b/k HTTP/1.1", true), "COPY");
        assert_eq!(of("POST /b/k?uploads HTTP/1.1", false), "begin");
        assert_eq!(of("POST /b/k?uploadId=x HTTP/1.1", false), "complete");
        assert_eq!(of("POST /b?delete HTTP/1.1", false), "delete many");
    }
}
