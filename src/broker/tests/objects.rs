//! Objects that are not as plain as files: archived, encoded, versioned; and what the daemon's own names mean in a bucket.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use super::faults::Proxy;
use super::s3::{head, moto, put_raw, put_with, raw, s3s, url, url_at};
use super::*;

#[test]
fn an_archived_object_is_listed_but_cannot_be_read() {
    let server = moto();
    put_with(&server, "/cold", "x-amz-storage-class: GLACIER\r\n", b"abcd");
    let bed = Bed::new(&url(&server, ""));
    let stat = bed.stat("cold").unwrap();
    assert_eq!((stat.kind, stat.size, bed.names("")), (Kind::File, 4, vec!["cold".to_owned()]));
    let refused = bed.read("cold", Some(stat.version()), 0, 4).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::Archived, "{refused}");
    assert!(refused.text.contains("must be restored") && refused.text.contains("'cold'"), "{refused}");
    let tail = vec![Segment::Copy { base: 0, offset: 0, len: 4 }, bed.data(b"e")];
    let refused = bed.rewrite("cold", &stat, tail).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::Archived, "{refused}");
    // To replace it needs nothing of it.
    bed.put("cold", b"warm");
    assert_eq!(bed.get("cold"), b"warm");
}

#[test]
fn an_encoded_object_is_shown_as_it_is_stored() {
    let server = moto();
    // `hello`, by gzip.
    let packed = b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xcb\x48\xcd\xc9\xc9\x07\0\x86\xa6\x10\x36\x05\0\0\0";
    put_with(&server, "/page", "Content-Encoding: gzip\r\nContent-Type: text/html\r\n", packed);
    for bed in [Bed::new(&url(&server, "")), Bed::posix(&url(&server, ""))] {
        let stat = bed.stat("page").unwrap();
        assert_eq!((stat.size, bed.get("page")), (25, packed.to_vec()));
        let keep = vec![Segment::Copy { base: 0, offset: 0, len: 24 }, bed.data(b"\0")];
        bed.rewrite("page", &stat, keep).unwrap();
        let said = head(&server, "/page");
        assert!(said.contains("content-encoding: gzip") && said.contains("text/html"), "{said}");
        assert_eq!(bed.get("page"), packed);
    }
}

#[test]
fn versions_have_names() {
    let server = moto();
    let on = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    assert!(raw(&server, "PUT", "?versioning", "", on).starts_with("HTTP/1.1 200"));
    let bed = Bed::new(&url(&server, ""));
    let name = |meta: &Meta| meta.details.as_ref().unwrap().version_id.clone().unwrap();
    let first = bed.put("f", b"1");
    let second = bed.put("f", b"2");
    assert_ne!(name(&first), name(&second));
    assert_eq!(name(&block_on(bed.remote.tell("f", Kind::File)).unwrap()), name(&second));
    assert_ne!(name(&bed.rename("f", "g", Condition::Any).unwrap()), name(&second));
}

#[test]
fn a_whole_object_is_copied_by_the_store() {
    let server = moto();
    let proxy = Proxy::new(&server);
    let bed = Bed::with_timeout(&url_at(proxy.port, ""), Duration::from_secs(20));
    let made = bed.put("from.txt", b"some text");
    proxy.forget();
    let whole = vec![Segment::Copy { base: 0, offset: 0, len: 9 }];
    let copied = bed.compose("to", &[("from.txt", &made)], Condition::IfAbsent, whole, None).unwrap();
    assert_eq!(copied.details.unwrap().content_type.as_deref(), Some("text/plain"));
    assert_eq!(proxy.count("GET /bucket/from.txt"), 0);
    assert!(proxy.heads().iter().any(|h| h.starts_with("PUT /bucket/to") && h.contains("x-amz-copy-source")));
    assert_eq!(bed.get("to"), b"some text");
}

fn large_objects_from_two_bases(bed: &Bed) {
    let mib = 1usize << 20;
    let (a, b) = (noise(40 * mib, 1), noise(30 * mib, 2));
    let put = |name: &str, bytes: &[u8]| {
        let segments = bytes.chunks(mib).map(|part| bed.data(part)).collect();
        bed.compose(name, &[], Condition::Any, segments, None).unwrap()
    };
    let (one, two) = (put("one", &a), put("two", &b));
    let copy = |base, offset: usize, len: usize| Segment::Copy { base, offset: offset as u64, len: len as u64 };
    let mixed = || vec![copy(0, 3, 20 * mib), bed.data(b"between"), copy(1, mib, 18 * mib), copy(0, 0, 5)];
    let bases = [("one", &one), ("two", &two)];
    bed.compose("mixed", &bases, Condition::IfAbsent, mixed(), None).unwrap();
    let want = [&a[3..3 + 20 * mib], b"between", &b[mib..19 * mib], &a[..5]].concat();
    assert!(bed.get("mixed") == want);
    put("two", b"another");
    let refused = bed.compose("mixed", &bases, Condition::Any, mixed(), None).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::VersionMismatch, "{refused}");
    assert!(bed.get("mixed") == want);
}

#[test]
fn large_objects_from_two_bases_on_moto() {
    let server = moto();
    large_objects_from_two_bases(&Bed::with_timeout(&url(&server, ""), Duration::from_secs(60)));
}

#[test]
fn large_objects_from_two_bases_on_s3s() {
    let server = s3s();
    large_objects_from_two_bases(&Bed::with_timeout(&url(&server, ""), Duration::from_secs(60)));
}

#[test]
fn a_base_that_changes_during_the_upload_is_noticed() {
    let server = moto();
    let proxy = Proxy::new(&server);
    let bed = Bed::with_timeout(&url_at(proxy.port, ""), Duration::from_secs(30));
    let text = noise(20 << 20, 1);
    let put = |name: &str| {
        let segments = text.chunks(1 << 20).map(|part| bed.data(part)).collect();
        bed.compose(name, &[], Condition::Any, segments, None).unwrap()
    };
    let (one, two) = (put("one"), put("two"));
    let other = Bed::with_timeout(&url(&server, ""), Duration::from_secs(30));
    let mut done = false;
    // moto ignores the condition on the source of a copied range.
    proxy.edit(move |head| {
        if !done && head.contains("x-amz-copy-source: ") && head.contains("one") {
            done = true;
            other.put("one", &vec![7; 20 << 20]);
        }
        head
    });
    let copy = |base| Segment::Copy { base, offset: 0, len: 20 << 20 };
    let bases = [("one", &one), ("two", &two)];
    let refused = bed.compose("both", &bases, Condition::IfAbsent, vec![copy(0), copy(1)], None).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::VersionMismatch, "{refused}");
    assert_eq!(bed.kind("both"), Err(StoreErrorKind::NotFound));
}

#[test]
fn deletions_go_in_batches() {
    let server = moto();
    let proxy = Proxy::new(&server);
    let bed = Bed::with_timeout(&url_at(proxy.port, ""), Duration::from_secs(60));
    for n in 0..30 {
        put_raw(&server, &format!("/d/{n:03}"), b"x");
    }
    let names = (0..1000).map(|n| format!("d/{n:03}")).collect();
    proxy.forget();
    block_on(bed.remote.delete_many(names)).unwrap();
    assert_eq!(
        (proxy.count("POST /bucket?delete") + proxy.count("POST /bucket/?delete"), proxy.count("DELETE ")),
        (1, 0)
    );
    assert_eq!(bed.kind("d"), Err(StoreErrorKind::NotFound));
    let too_many = (0..=LIST_PAGE_MAX).map(|n| n.to_string()).collect();
    assert_eq!(block_on(bed.remote.delete_many(too_many)).unwrap_err().kind, StoreErrorKind::Protocol);
}

#[test]
fn a_read_only_mount_sends_nothing_that_changes_the_store() {
    let server = moto();
    put_raw(&server, "/f", b"abcd");
    put_raw(&server, "/.ovfs-unlinked-old", b"left behind");
    let proxy = Proxy::new(&server);
    let options = BrokerOptions { readonly: true, posix_metadata: true, ..Bed::options(Duration::from_secs(20)) };
    let bed = Bed::with_options(&url_at(proxy.port, ""), options, |_| 0);
    block_on(bed.remote.probe()).unwrap();
    let stat = bed.stat("f").unwrap();
    assert_eq!((bed.get("f"), bed.names("")), (b"abcd".to_vec(), vec!["f".to_owned()]));
    proxy.forget();
    let refused = Err(StoreErrorKind::ReadOnly);
    let unit = |meta: Result<Meta, StoreError>| meta.map(drop).map_err(|e| e.kind);
    assert_eq!(unit(bed.put_when("f", b"x", Condition::Any)), refused);
    assert_eq!(unit(bed.rewrite("f", &stat, vec![])), refused);
    assert_eq!(bed.delete("f"), refused);
    assert_eq!(block_on(bed.remote.delete_many(vec!["f".into()])).map_err(|e| e.kind), refused);
    assert_eq!((bed.mkdir("d"), bed.rmdir("d"), bed.rename_dir("d", "e")), (refused, refused, refused));
    assert_eq!(bed.rename("f", "g", Condition::Any).map(drop), refused);
    assert_eq!(unit(block_on(bed.remote.copy("f", "g", None))), refused);
    assert_eq!(proxy.heads(), [""; 0]);
    assert!(head(&server, "/.ovfs-unlinked-old").contains(" 200 "));
}

#[test]
fn a_read_only_directory_is_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "abcd").unwrap();
    let options = BrokerOptions { readonly: true, ..Bed::options(Duration::from_secs(20)) };
    let bed = Bed::with_options(&format!("fs://{}", dir.path().display()), options, |_| 0);
    assert_eq!(bed.get("f"), b"abcd");
    assert_eq!(bed.put_when("f", b"x", Condition::Any).unwrap_err().kind, StoreErrorKind::ReadOnly);
    assert_eq!(bed.delete("f"), Err(StoreErrorKind::ReadOnly));
    assert_eq!(bed.mkdir("d"), Err(StoreErrorKind::ReadOnly));
    assert_eq!(bed.get("f"), b"abcd");
}

/// A bucket that holds these objects for ever; what was asked to be deleted goes to the list.
fn museum(objects: &[(&str, &str)]) -> (u16, Arc<Mutex<Vec<String>>>) {
    let contents: String = objects
        .iter()
        .map(|(key, at)| {
            format!(
                "<Contents><Key>{key}</Key><LastModified>{at}</LastModified><ETag>\"e\"</ETag><Size>1</Size></Contents>"
            )
        })
        .collect();
    let list = format!("<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let deleted = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&deleted);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = vec![0; 16 << 10];
            let n = stream.read(&mut request).unwrap_or(0);
            let text = String::from_utf8_lossy(&request[..n]).into_owned();
            let key = text.split(' ').nth(1).unwrap_or_default().to_owned();
            let body = if text.starts_with("GET ") { list.as_str() } else { "" };
            if text.starts_with("DELETE ") {
                seen.lock().unwrap().push(key);
            }
            let status = match text.split(' ').next() {
                Some("PUT") => "412 Precondition Failed",
                Some("DELETE") => "204 No Content",
                _ => "200 OK",
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        }
    });
    (port, deleted)
}

#[test]
fn what_earlier_runs_left_is_removed_once_it_is_old() {
    let now = opendal::raw::Timestamp::try_from(SystemTime::now()).unwrap().to_string();
    let (port, deleted) = museum(&[
        (".ovfs-probe-old", "2020-01-01T00:00:00.000Z"),
        (".ovfs-probe-new", &now),
        (".ovfs-unlinked-old", "2020-01-01T00:00:00.000Z"),
        (".ovfs-unlinked-new", &now),
        (".ovfs-something-else", "2020-01-01T00:00:00.000Z"),
        ("plain", "2020-01-01T00:00:00.000Z"),
    ]);
    let bed = Bed::with_timeout(&url_at(port, ""), Duration::from_secs(10));
    block_on(bed.remote.probe()).unwrap();
    let start = Instant::now();
    let olds = || {
        let mut keys = deleted.lock().unwrap().clone();
        keys.retain(|key| !key.contains(&format!("-{}-", std::process::id())));
        keys.sort();
        keys
    };
    while olds().len() < 2 && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(olds(), ["/bucket/.ovfs-probe-old", "/bucket/.ovfs-unlinked-old"]);
    assert_eq!(bed.names(""), ["plain"]);
    // Nothing of it on a read-only mount.
    deleted.lock().unwrap().clear();
    let options = BrokerOptions { readonly: true, ..Bed::options(Duration::from_secs(10)) };
    let bed = Bed::with_options(&url_at(port, ""), options, |_| 0);
    block_on(bed.remote.probe()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(deleted.lock().unwrap().as_slice(), [""; 0]);
}
