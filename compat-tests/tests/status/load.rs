//! Loads of known size, and what is told of them.

use std::collections::BTreeMap;

use ovfs_compat_tests::fuse::ROOT;
use ovfs_compat_tests::meter::Mark;
use ovfs_compat_tests::stores::{Kind, TestStore};
use serde_json::Value;

use super::{Share, number, serve, until};

const READS: u64 = 400;
const READ_LEN: u32 = 4096;
const GETATTRS: u64 = 150;
const CREATES: u64 = 25;
const MISSING: u64 = 40;

/// Does what the constants say, on a file `f` that is long enough.
fn load(share: &mut Share) {
    let guest = &mut share.guest;
    let file = guest.lookup(ROOT, b"f").expect("it is there").nodeid;
    let open = guest.open(file, libc::O_RDONLY).expect("open");
    for n in 0..READS {
        let data = guest.read(file, open.fh, n * u64::from(READ_LEN), READ_LEN).expect("read");
        assert_eq!(data.len(), READ_LEN as usize);
    }
    for _ in 0..GETATTRS {
        guest.getattr(file, None).expect("getattr");
    }
    for n in 0..CREATES {
        let name = format!("new-{n}");
        let (entry, open) = guest.create(ROOT, name.as_bytes(), libc::O_WRONLY, 0o644).expect("create");
        guest.write(entry.nodeid, open.fh, 0, &[7; 1000]).expect("write");
        guest.flush(entry.nodeid, open.fh).expect("flush");
        guest.release(entry.nodeid, open.fh).expect("release");
    }
    for n in 0..MISSING {
        guest.lookup(ROOT, format!("missing-{n}").as_bytes()).expect_err("it is not there");
    }
}

fn check_requests(status: &Value) {
    for (op, count, errors) in [
        ("init", 1, 0),
        ("lookup", 1 + MISSING, MISSING),
        ("open", 1, 0),
        ("read", READS, 0),
        ("getattr", GETATTRS, 0),
        ("create", CREATES, 0),
        ("write", CREATES, 0),
        ("flush", CREATES, 0),
        ("release", CREATES, 0),
    ] {
        let counts = &status["requests"]["by_op"][op];
        assert_eq!((number(counts, "/count"), number(counts, "/errors")), (count, errors), "{op}: {status}");
        let quantile = |name: &str| counts[name].as_f64().unwrap_or_else(|| panic!("{op} {name}: {status}"));
        let (p50, p99) = (quantile("p50_seconds"), quantile("p99_seconds"));
        assert!(p50 > 0.0 && p50 <= p99, "{op}: {p50} {p99}");
    }
    let all = 1 + 1 + MISSING + 1 + READS + GETATTRS + 4 * CREATES;
    assert_eq!(number(status, "/requests/count"), all, "{status}");
}

/// Requests to the store by their methods, as the daemon counts them.
fn methods(status: &Value) -> BTreeMap<&'static str, u64> {
    let of = |kinds: &[&str]| {
        kinds.iter().map(|kind| number(status, &format!("/mounts/0/store/by_kind/{kind}/count"))).sum::<u64>()
    };
    BTreeMap::from([
        ("GET", of(&["get", "list"])),
        ("HEAD", of(&["head"])),
        ("PUT", of(&["put", "part", "copy"])),
        ("POST", of(&["multipart"])),
        ("DELETE", of(&["delete"])),
    ])
}

/// The same, as the relay has seen them.
fn seen(store: &TestStore, mark: Mark) -> BTreeMap<&'static str, u64> {
    let mut seen = BTreeMap::from(["GET", "HEAD", "PUT", "POST", "DELETE"].map(|method| (method, 0)));
    for method in store.meter().expect("asked for").since(mark).methods {
        *seen.entry(method).or_default() += 1;
    }
    seen
}

#[test]
fn counts_are_those_of_the_load() {
    let store = TestStore::start_metered(Kind::Moto);
    let content = vec![1; (READS * u64::from(READ_LEN)) as usize];
    store.put("f", &content);
    let mark = store.meter().expect("asked for").mark();
    let mut share = serve(&store, &[]);
    load(&mut share);
    // The last answer's request may be counted a moment after the answer was passed on.
    let status = until(|| share.status(), |status| methods(status) == seen(&store, mark));
    check_requests(&status);
    assert_eq!(methods(&status), seen(&store, mark), "{status}");
    let mount = &status["mounts"][0];
    assert_eq!((mount["path"].as_str(), mount["type"].as_str()), (Some("/"), Some("s3")));
    assert_eq!(mount["health"]["state"].as_str(), Some("up"), "{mount}");
    let cache = &mount["cache"];
    assert_eq!(number(cache, "/hit_bytes") + number(cache, "/miss_bytes"), content.len() as u64, "{cache}");
    assert_eq!(number(cache, "/hits") + number(cache, "/misses"), READS, "{cache}");
    assert!(number(cache, "/misses") > 0 && number(cache, "/misses") < READS / 10, "{cache}");
    assert_eq!(number(mount, "/store/received_bytes"), content.len() as u64);
    // Finding out what conditions the store keeps takes a few bytes more.
    let sent = number(mount, "/store/sent_bytes");
    assert!((CREATES * 1000..CREATES * 1010).contains(&sent), "{mount}");
    assert_eq!((number(mount, "/nodeids"), number(mount, "/open_files")), (1 + 1 + CREATES, 1), "{mount}");
    assert_eq!((number(mount, "/dirty/bytes"), number(mount, "/uploads/in_flight")), (0, 0), "{mount}");
    let (used, bytes) = (number(mount, "/pool/used_bytes"), number(mount, "/pool/bytes"));
    assert!(used >= content.len() as u64 && used <= bytes && bytes == 256 << 20, "{mount}");
    let cost = |class: &str| number(mount, &format!("/store/by_cost/{class}"));
    assert_eq!(cost("A") + cost("B") + cost("free"), number(mount, "/store/count"));
}

#[test]
fn counts_of_a_directory_are_those_of_its_operations() {
    let store = TestStore::start(Kind::Fs);
    store.put("f", &vec![1; (READS * u64::from(READ_LEN)) as usize]);
    let mut share = serve(&store, &[]);
    load(&mut share);
    let status = share.status();
    check_requests(&status);
    let kind = |kind: &str| number(&status, &format!("/mounts/0/store/by_kind/{kind}/count"));
    assert_eq!(kind("put"), CREATES, "{status}");
    assert!(kind("get") > 0 && kind("head") > MISSING && kind("list") >= 1, "{status}");
}

#[test]
fn what_is_dirty_has_an_age_and_a_held_upload_is_in_flight() {
    let store = TestStore::start_metered(Kind::Moto);
    let meter = store.meter().expect("asked for");
    let mut share = serve(&store, &["--writeback-delay", "3600000"]);
    let (entry, open) = share.guest.create(ROOT, b"late", libc::O_WRONLY, 0o644).expect("create");
    share.guest.write(entry.nodeid, open.fh, 0, &[7; 5000]).expect("write");
    let dirty = |status: &Value| number(status, "/mounts/0/dirty/bytes");
    let age = |status: &Value| status["mounts"][0]["dirty"]["oldest_seconds"].as_f64();
    let (first, second) = (share.status(), share.status());
    assert!(dirty(&first) >= 5000 && dirty(&first) == dirty(&second), "{first}");
    assert!(age(&first) > Some(0.0) && age(&second) > age(&first), "{first} {second}");
    meter.hold_next_upload();
    let socket = share.socket();
    let status = std::thread::scope(|scope| {
        let guest = &mut share.guest;
        let synced = scope.spawn(move || guest.fsync(entry.nodeid, open.fh, false));
        assert!(meter.wait_held(ovfs_compat_tests::daemon::patience()), "an upload comes");
        let status = super::json(&socket);
        meter.let_go();
        synced.join().expect("no panic").expect("fsync");
        status
    });
    let uploads = &status["mounts"][0]["uploads"];
    assert_eq!((number(uploads, "/in_flight"), number(uploads, "/bytes")), (1, 5000), "{status}");
    assert!(uploads["oldest_seconds"].as_f64() > Some(0.0), "{status}");
    let status = until(|| share.status(), |status| number(status, "/mounts/0/uploads/in_flight") == 0);
    assert_eq!((dirty(&status), age(&status)), (0, None), "{status}");
}

#[test]
fn store_that_is_down_fails_until_it_answers() {
    let mut store = TestStore::start(Kind::S3sFs);
    store.put("f", b"data");
    let mut share = serve(&store, &["--request-timeout", "2", "--cache", "never"]);
    let state = |status: &Value| status["mounts"][0]["health"]["state"].as_str().map(str::to_owned);
    assert_eq!(state(&share.status()).as_deref(), Some("up"));
    store.stop_server();
    share.guest.lookup(ROOT, b"f").expect_err("nobody answers");
    let status = share.status();
    assert_eq!(state(&status).as_deref(), Some("failing"), "{status}");
    let health = &status["mounts"][0]["health"];
    assert!(health["failing_seconds"].is_number() && health["last_error"].is_string(), "{health}");
    assert!(number(&status, "/mounts/0/store/errors") > 0, "{status}");
    assert!(number(&status, "/mounts/0/store/retries") > 0, "{status}");
    store.start_server();
    let answers = until(|| share.guest.lookup(ROOT, b"f").is_ok(), |answers| *answers);
    assert!(answers, "it is there again");
    let status = share.status();
    assert_eq!(state(&status).as_deref(), Some("up"), "{status}");
    assert!(status["mounts"][0]["health"]["failing_seconds"].is_null(), "{status}");
}
