//! `--metrics-listen`: HTTP/1.1, for `GET /metrics` and nothing else.
//!
//! Whoever reaches the address may ask; what is told names mounts and counts, no file and no secret.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use super::eyes::Observer;
use crate::cli::MetricsAddr;
use crate::metrics::prometheus;

/// Connections at once; others wait.
const CONNECTIONS: usize = 16;

/// How long a connection may be idle, or take for the head of a request.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest head of a request, in bytes.
const HEAD_MAX: usize = 16 << 10;

/// What a scraper asks for.
const PATH: &str = "/metrics";

/// A socket that listens for scrapers. The broker's own: another process that inherited it closes it
/// ([`MetricsListener::close`]).
#[derive(Debug)]
pub struct MetricsListener {
    socket: Socket,
    /// To be removed at the end.
    path: Option<PathBuf>,
}

#[derive(Debug)]
enum Socket {
    Inet(StdTcpListener),
    Unix(StdUnixListener),
    Taken,
}

impl MetricsListener {
    /// Listens at `addr`. A socket at that path that nobody listens to any more is replaced.
    ///
    /// # Errors
    /// bind(2)'s and listen(2)'s.
    pub fn bind(addr: &MetricsAddr) -> io::Result<MetricsListener> {
        Ok(match addr {
            MetricsAddr::Inet(addr) => {
                MetricsListener { socket: Socket::Inet(StdTcpListener::bind(addr)?), path: None }
            }
            MetricsAddr::Unix(path) => {
                remove_abandoned(path);
                MetricsListener { socket: Socket::Unix(StdUnixListener::bind(path)?), path: Some(path.clone()) }
            }
        })
    }

    /// Closes it in this process, and leaves it to the other one.
    pub fn close(mut self) {
        self.path = None;
    }

    /// Serves scrapers until the end of the runtime.
    ///
    /// # Errors
    /// When the socket cannot be handed to the runtime.
    pub(super) fn serve(mut self, observer: Arc<Observer>) -> io::Result<()> {
        match std::mem::replace(&mut self.socket, Socket::Taken) {
            Socket::Inet(socket) => {
                socket.set_nonblocking(true)?;
                let listener = TcpListener::from_std(socket)?;
                tokio::spawn(serve(observer, self, async move || listener.accept().await.map(|(stream, _)| stream)));
            }
            Socket::Unix(socket) => {
                socket.set_nonblocking(true)?;
                let listener = UnixListener::from_std(socket)?;
                tokio::spawn(serve(observer, self, async move || listener.accept().await.map(|(stream, _)| stream)));
            }
            Socket::Taken => {}
        }
        Ok(())
    }
}

impl Drop for MetricsListener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // It may be gone already.
            let _ = fs::remove_file(path);
        }
    }
}

fn remove_abandoned(path: &Path) {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let refuses = || StdUnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
    if is_socket && refuses() {
        // If that fails, so will bind(2).
        let _ = fs::remove_file(path);
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    observer: Arc<Observer>,
    _path: MetricsListener,
    accept: impl AsyncFn() -> io::Result<S>,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(turn) = Arc::clone(&room).acquire_owned().await else { return };
        match accept().await {
            Ok(stream) => drop(tokio::spawn(connection(stream, Arc::clone(&observer), turn))),
            Err(e) => {
                log::debug!("--metrics-listen: {e}");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    observer: Arc<Observer>,
    _turn: OwnedSemaphorePermit,
) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let answer = answer(&request, &observer);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(HEAD_MAX);
    if let Err(e) = http.serve_connection(TokioIo::new(stream), service).await {
        log::debug!("--metrics-listen: {e}");
    }
}

fn answer<B>(request: &Request<B>, observer: &Observer) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    };
    match (request.uri().path(), request.method()) {
        (PATH, &Method::GET | &Method::HEAD) => {
            let mut response = plain(StatusCode::OK, prometheus::render(&observer.snapshot()));
            response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(prometheus::CONTENT_TYPE));
            response
        }
        (PATH, _) => {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
            response.headers_mut().insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
            response
        }
        _ => plain(StatusCode::NOT_FOUND, format!("there is only {PATH}\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abandoned_socket_is_replaced_and_others_are_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("m");
        drop(StdUnixListener::bind(&path).expect("bind"));
        let addr = MetricsAddr::Unix(path.clone());
        let first = MetricsListener::bind(&addr).expect("it was abandoned");
        assert_eq!(MetricsListener::bind(&addr).expect_err("in use").kind(), io::ErrorKind::AddrInUse);
        first.close();
        assert!(path.exists(), "it is another process's");
        drop(MetricsListener::bind(&addr).expect("it is abandoned again"));
        assert!(!path.exists());
        fs::write(&path, b"data").expect("write");
        assert!(MetricsListener::bind(&addr).is_err() && path.exists());
    }
}
