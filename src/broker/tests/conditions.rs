//! Servers that do not mean what they say of conditional writes.

use std::time::Instant;

use super::faults::Proxy;
use super::s3::{Server, moto, url_at};
use super::*;

/// The store behind a proxy that does `edit` to each request, probed.
fn probed(edit: impl FnMut(String) -> String + Send + 'static) -> (Server, Proxy, Bed) {
    let server = moto();
    let proxy = Proxy::new(&server);
    proxy.edit(edit);
    let bed = Bed::with_timeout(&url_at(proxy.port, ""), Duration::from_secs(20));
    block_on(bed.remote.probe()).unwrap();
    let start = Instant::now();
    while proxy.count("DELETE /bucket/.ovfs-probe-") == 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "the store is not probed");
        std::thread::sleep(Duration::from_millis(20));
    }
    (server, proxy, bed)
}

/// Removes the headers whose names begin like this.
fn strip(names: &'static [&'static str]) -> impl FnMut(String) -> String + Send + 'static {
    move |head| {
        let kept = head.split_inclusive("\r\n").filter(|line| {
            let line = line.to_ascii_lowercase();
            !names.iter().any(|name| line.starts_with(name))
        });
        kept.collect()
    }
}

/// How many requests about `key` had the header.
fn sent(proxy: &Proxy, key: &str, header: &str) -> usize {
    let line = format!("PUT /bucket/{key}");
    let heads = proxy.heads();
    heads.iter().filter(|head| head.starts_with(&line) && head.to_ascii_lowercase().contains(header)).count()
}

fn conflicts_are_found(bed: &Bed) {
    let first = bed.put_when("c", b"one", Condition::IfAbsent).unwrap();
    let refused = bed.put_when("c", b"other", Condition::IfAbsent).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::Exists, "{refused}");
    bed.put_when("c", b"two", Condition::IfVersion(first.version())).unwrap();
    let refused = bed.put_when("c", b"lost", Condition::IfVersion(first.version())).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::VersionMismatch, "{refused}");
    assert_eq!(bed.get("c"), b"two");
}

#[test]
fn conditions_that_are_kept_are_used_and_the_probe_leaves_nothing() {
    let (_server, proxy, bed) = probed(|head| head);
    conflicts_are_found(&bed);
    assert!(sent(&proxy, "c", "if-none-match: *") > 0 && sent(&proxy, "c", "if-match: ") > 0);
    bed.delete("c").unwrap();
    let outer = Bed::with_timeout(&url_at(proxy.port, ""), Duration::from_secs(20));
    assert_eq!(outer.names(""), [""; 0]);
    let probes = proxy.heads().into_iter().filter(|h| h.starts_with("PUT /bucket/.ovfs-probe-")).count();
    assert_eq!(probes, 4);
}

#[test]
fn conditions_that_are_ignored_are_checked_before_the_write() {
    let (_server, proxy, bed) = probed(strip(&["if-match", "if-none-match"]));
    conflicts_are_found(&bed);
    assert_eq!(sent(&proxy, "c", "if-none-match"), 0);
    assert_eq!(sent(&proxy, "c", "if-match"), 0);
}

#[test]
fn one_ignored_condition_does_not_take_the_other_away() {
    let (_server, proxy, bed) = probed(strip(&["if-match"]));
    conflicts_are_found(&bed);
    assert!(sent(&proxy, "c", "if-none-match: *") > 0);
    assert_eq!(sent(&proxy, "c", "if-match"), 0);
}

#[test]
fn a_condition_that_refuses_the_right_version_is_not_used() {
    let wrong = |head: String| match head.starts_with("PUT ") {
        true => head.replace("if-match: \"", "if-match: \"0"),
        false => head,
    };
    let (_server, proxy, bed) = probed(wrong);
    conflicts_are_found(&bed);
    assert_eq!(sent(&proxy, "c", "if-match"), 0);
}

#[test]
fn a_large_upload_asks_again_before_its_last_request() {
    // moto ignores conditions there.
    let (server, proxy, bed) = probed(|head| head);
    let old = bed.put("big", b"old");
    let other = Bed::with_timeout(&url_at(server.port, ""), Duration::from_secs(20));
    let mut done = false;
    proxy.edit(move |head| {
        if !done && head.starts_with("PUT ") && head.contains("partNumber=2") {
            done = true;
            other.put("big", b"somebody else's");
        }
        head
    });
    let segments = noise(20 << 20, 1).chunks(1 << 20).map(|part| bed.data(part)).collect();
    let refused = bed.compose("big", &[], Condition::IfVersion(old.version()), segments, None).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::VersionMismatch, "{refused}");
    assert_eq!(bed.get("big"), b"somebody else's");
}

#[test]
fn a_store_that_cannot_be_probed_still_finds_conflicts() {
    // The probe's object cannot be written.
    let forbid = |head: String| match head.starts_with("PUT /bucket/.ovfs-probe-") {
        true => head.replacen("/bucket/", "/no-such-bucket/", 1),
        false => head,
    };
    let (_server, _proxy, bed) = probed(forbid);
    conflicts_are_found(&bed);
}
