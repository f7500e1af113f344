//! `--metrics-listen`, read by a client of our own.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use ovfs_compat_tests::daemon::patience;
use ovfs_compat_tests::launch::{Exit, Launch, Scratch, Which, binary};
use ovfs_compat_tests::stores::{Kind, TestStore, free_port};

use super::{number, serve, until};

/// A request and its answer: status line and headers, and the body.
fn http(mut stream: impl Read + Write, request: &str) -> (String, String) {
    write!(stream, "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("receive");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {answer}"));
    (head.to_lowercase(), body.to_owned())
}

fn tcp(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    stream.set_read_timeout(Some(patience())).expect("a timeout");
    stream
}

/// The samples by name and labels, as they stand there.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').and_then(|(name, value)| Some((name, value.parse().ok()?))).expect(line))
        .collect()
}

#[test]
fn metrics_are_what_status_says() {
    let store = TestStore::start(Kind::Moto);
    store.put("f", &vec![3; 300_000]);
    let port = free_port();
    let mut share = serve(&store, &["--metrics-listen", &format!("127.0.0.1:{port}")]);
    for n in 0..20 {
        share.guest.write_file(&format!("new-{n}"), b"data").expect("write");
        share.guest.read_file("f").expect("read");
    }
    let requests = |status: &serde_json::Value| number(status, "/mounts/0/store/count");
    // What is found out about the store at the start may still be under way.
    let (status, _) = until(|| (share.status(), share.status()), |(one, other)| requests(one) == requests(other));
    let (head, body) = http(tcp(port), "GET /metrics");
    assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    let samples = samples(&body);
    let ops = status["requests"]["by_op"].as_object().expect("an object");
    assert!(ops.contains_key("create") && ops.contains_key("read"), "{status}");
    for (op, counts) in ops {
        for (name, field) in [("requests_total", "count"), ("request_errors_total", "errors")] {
            let told = samples[format!("ovfs_fuse_{name}{{op=\"{op}\"}}").as_str()];
            assert_eq!(told, counts[field].as_f64().expect("a number"), "{op} {name}");
        }
        let all = samples[format!("ovfs_fuse_request_duration_seconds_bucket{{op=\"{op}\",le=\"+Inf\"}}").as_str()];
        assert_eq!(all, counts["count"].as_f64().expect("a number"), "{op}");
    }
    let mount = &status["mounts"][0];
    let kinds = mount["store"]["by_kind"].as_object().expect("an object");
    assert!(kinds.contains_key("put") && kinds.contains_key("get"), "{mount}");
    for (kind, counts) in kinds {
        let cost = counts["cost"].as_str().expect("a class");
        let name = format!("ovfs_store_requests_total{{mount=\"/\",kind=\"{kind}\",cost=\"{cost}\"}}");
        assert_eq!(samples[name.as_str()], counts["count"].as_f64().expect("a number"), "{kind}");
    }
    for (name, pointer) in [
        ("ovfs_cache_hit_bytes_total", "/cache/hit_bytes"),
        ("ovfs_cache_miss_bytes_total", "/cache/miss_bytes"),
        ("ovfs_dirty_bytes", "/dirty/bytes"),
        ("ovfs_nodeids", "/nodeids"),
        ("ovfs_open_files", "/open_files"),
        ("ovfs_pool_bytes", "/pool/bytes"),
        ("ovfs_store_sent_bytes_total", "/store/sent_bytes"),
        ("ovfs_store_received_bytes_total", "/store/received_bytes"),
    ] {
        assert_eq!(samples[format!("{name}{{mount=\"/\"}}").as_str()], number(mount, pointer) as f64, "{name}");
    }
    assert_eq!(samples["ovfs_store_up{mount=\"/\"}"], 1.0);
}

#[test]
fn other_questions_are_refused_and_many_are_answered_on_one_connection() {
    let store = TestStore::start(Kind::Fs);
    let port = free_port();
    let _share = serve(&store, &["--metrics-listen", &format!("127.0.0.1:{port}")]);
    assert!(http(tcp(port), "GET /").0.starts_with("http/1.1 404 "));
    let (head, _) = http(tcp(port), "POST /metrics");
    assert!(head.starts_with("http/1.1 405 ") && head.contains("allow: get, head"), "{head}");
    let (head, body) = http(tcp(port), "HEAD /metrics");
    assert!(head.starts_with("http/1.1 200 ") && body.is_empty(), "{head}");
    let mut stream = tcp(port);
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("send");
    let (head, body) = http(stream, "GET /metrics");
    assert!(head.starts_with("http/1.1 200 ") && body.matches("HTTP/1.1 200 OK").count() == 1, "{body}");
    let mut stream = tcp(port);
    stream.write_all(b"\x16\x03\x01 nonsense\r\n\r\n").expect("send");
    let mut answer = Vec::new();
    // It may be told, or just be left.
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    assert!(http(tcp(port), "GET /metrics").0.starts_with("http/1.1 200 "));
}

#[test]
fn socket_with_a_path_replaces_an_abandoned_one_and_goes_at_the_end() {
    let store = TestStore::start(Kind::Fs);
    let scratch = Scratch::new();
    let path = scratch.join("metrics");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
    let mut share = serve(&store, &["--metrics-listen", &format!("unix:{}", path.display())]);
    let (head, body) = http(UnixStream::connect(&path).expect("connect"), "GET /metrics");
    assert!(head.starts_with("http/1.1 200 ") && body.contains("ovfs_uptime_seconds "), "{head}");
    share.daemon.signal(libc::SIGTERM);
    share.daemon.wait_exit(patience()).expect("it ends");
    assert!(!path.exists());
}

#[test]
fn address_that_cannot_be_had_is_one_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("an address").to_string();
    let scratch = Scratch::new();
    let run = |share: &[&str], addr: &str| {
        let launch = Launch::new(binary(Which::Ovfs)).args(["--metrics-listen", addr]).args(share);
        launch.arg("--socket-path").arg(scratch.join("run/s")).run()
    };
    let finished = run(&["--backend", "memory://"], &addr);
    assert_eq!(finished.exit, Exit::Code(1));
    let errors: Vec<&str> = finished.stderr.lines().filter(|line| line.contains("ERROR")).collect();
    assert!(
        errors.len() == 1 && errors[0].contains(&format!("--metrics-listen {addr}: Address already in use")),
        "{errors:?}"
    );
    assert!(!scratch.join("run/s").exists());
    let finished = run(&["--backend", "memory://"], "localhost");
    assert_eq!(finished.exit, Exit::Code(2));
    assert!(
        finished.stderr.contains("'--metrics-listen <ADDRESS>': expected IP:PORT or unix:PATH"),
        "{}",
        finished.stderr
    );
    let finished = run(&["--shared-dir", "/tmp"], "127.0.0.1:0");
    assert_eq!(finished.exit, Exit::Code(1));
    assert!(finished.stderr.contains("--metrics-listen is about a store: it needs --backend"), "{}", finished.stderr);
}
