//! Servers that are not there, do not answer, or lead elsewhere.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Instant;

use super::*;

fn bed(port: u16, timeout: Duration) -> Bed {
    let url = format!(
        "s3://bucket?region=us-east-1&endpoint=http://127.0.0.1:{port}&access_key_id=CANARYKEY&secret_access_key=CANARYSECRET"
    );
    Bed::with_timeout(&url, timeout)
}

#[test]
fn a_silent_server_is_unavailable_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let bed = bed(listener.local_addr().unwrap().port(), Duration::from_secs(2));
    let start = Instant::now();
    let errors = [
        block_on(bed.remote.probe()).unwrap_err(),
        // From now on it is taken for gone.
        bed.stat("a").unwrap_err(),
        bed.read("a", None, 0, 10).unwrap_err(),
        bed.list("").unwrap_err(),
    ];
    for (at, e) in errors.into_iter().enumerate() {
        // Whoever comes later is not kept waiting.
        let kind = if at == 0 { StoreErrorKind::Unavailable } else { StoreErrorKind::Silent };
        assert_eq!(e.kind, kind, "{e}");
        assert!(!e.text.contains("CANARY"), "{e}");
    }
    assert!(start.elapsed() < Duration::from_secs(4 * 2 + 2), "{:?}", start.elapsed());
}

#[test]
fn a_closed_port_is_unavailable() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let bed = bed(port, Duration::from_secs(5));
    for e in [bed.stat("a").unwrap_err(), bed.put_when("a", b"x", Condition::Any).unwrap_err()] {
        assert_eq!(e.kind, StoreErrorKind::Unavailable, "{e}");
    }
}

/// Serves `answer` to everything, and counts.
fn serve(answer: String) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 8192];
            let _ = stream.read(&mut request);
            counted.fetch_add(1, Ordering::Relaxed);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (port, count)
}

#[test]
fn a_redirect_is_not_followed() {
    let (canary, asked) = serve("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into());
    let (port, _) = serve(format!(
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:{canary}/x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ));
    let bed = bed(port, Duration::from_secs(5));
    let e = bed.stat("a").unwrap_err();
    assert_eq!(e.kind, StoreErrorKind::Io, "{e}");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[test]
fn a_server_that_refuses_is_told_apart_from_one_that_fails() {
    let body = "<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message></Error>";
    let answer = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    };
    let (port, _) = serve(answer("403 Forbidden", body));
    let e = block_on(bed(port, Duration::from_secs(5)).remote.probe()).unwrap_err();
    assert_eq!(e.kind, StoreErrorKind::PermissionDenied, "{e}");
    let body = "<Error><Code>NoSuchBucket</Code><Message>none</Message></Error>";
    let (port, _) = serve(answer("404 Not Found", body));
    let e = block_on(bed(port, Duration::from_secs(5)).remote.probe()).unwrap_err();
    assert_eq!(e.kind, StoreErrorKind::Io, "{e}");
    assert!(e.text.contains("NoSuchBucket"), "{e}");
    let (port, _) = serve(answer("503 Slow Down", ""));
    let e = block_on(bed(port, Duration::from_secs(5)).remote.probe()).unwrap_err();
    assert_eq!(e.kind, StoreErrorKind::Unavailable, "{e}");
}
