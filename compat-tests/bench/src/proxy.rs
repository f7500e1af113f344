//! A proxy in front of any S3 server: it puts a distance between the two and counts.
//!
//! Heads pass unchanged (they are signed), but for `Expect: 100-continue`, which is answered here. Bodies pass at the
//! connection's rate; chunked ones are cut anew.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use crate::http::{Body, Conn, Pace};
use crate::server::{Counters, Distance, Server};

/// Starts a proxy to the server at `upstream`.
///
/// # Errors
/// The host refuses the socket or the threads.
pub fn start(upstream: SocketAddr) -> io::Result<Server> {
    Server::start("proxy", move |stream, distance, counters| serve(stream, upstream, distance, counters))
}

async fn serve(
    stream: TcpStream,
    upstream: SocketAddr,
    distance: Arc<Distance>,
    counters: Arc<Counters>,
) -> io::Result<()> {
    let mut client = Conn::new(stream, false)?;
    let mut server = Conn::new(TcpStream::connect(upstream).await?, true)?;
    while let Some(request) = client.head().await? {
        counters.request(&request);
        if request.get("expect").is_some() {
            client.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let sent = async {
            server.stream.write_all(&request.without("expect")).await?;
            let mut body = request.request_body();
            pass(&mut client, &mut server.stream, &mut body, distance.rate(), |n| counters.up(n)).await
        };
        // A server that has heard enough may answer and hang up before the end: its answer counts.
        let whole = sent.await.is_ok();
        let arrived = Instant::now();
        let response = loop {
            match server.head().await? {
                Some(head) if head.status() == 100 => {}
                Some(head) => break head,
                None => return Ok(()),
            }
        };
        sleep_until(arrived + distance.latency()).await;
        client.stream.write_all(&response.without("")).await?;
        let mut body = response.response_body(request.method());
        let to_end = body == Body::ToEnd;
        pass(&mut server, &mut client.stream, &mut body, distance.rate(), |n| counters.down(n)).await?;
        if to_end || !whole || response.closes() || request.closes() {
            break;
        }
    }
    client.stream.shutdown().await
}

async fn pass(
    from: &mut Conn,
    to: &mut TcpStream,
    body: &mut Body,
    rate: u64,
    count: impl Fn(usize),
) -> io::Result<()> {
    let chunked = matches!(body, Body::Chunked { .. });
    let mut pace = Pace::new(rate);
    loop {
        let piece = from.piece(body).await?;
        if piece.is_empty() {
            break;
        }
        count(piece.len());
        if chunked {
            to.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
        }
        pace.send(to, piece).await?;
        if chunked {
            to.write_all(b"\r\n").await?;
        }
    }
    if chunked {
        to.write_all(b"0\r\n\r\n").await?;
    }
    Ok(())
}
