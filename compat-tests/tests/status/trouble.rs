//! What goes wrong is counted, and is a line in the log with the file and what happens next.

use ovfs_compat_tests::fuse::ROOT;
use ovfs_compat_tests::stores::{Kind, TestStore};

use super::{number, serve};

#[test]
fn full_memory_is_said_once() {
    let store = TestStore::start(Kind::Fs);
    let mut share = serve(&store, &["--cache-size", "16M"]);
    for name in ["a", "b"] {
        share.guest.write_file(name, &vec![7; 20 << 20]).expect("write");
    }
    let status = share.status();
    assert!(number(&status, "/mounts/0/pool/full") >= 2, "{status}");
    share.daemon.wait_stderr("\"a\": the memory for what is not stored yet (8 MiB) is full; writing goes on as");
    let stderr = share.daemon.stderr();
    assert_eq!(stderr.matches("for what is not stored yet").count(), 1, "{stderr}");
}

#[test]
fn conflict_names_the_file_and_where_the_guests_version_is() {
    let store = TestStore::start(Kind::Moto);
    store.put("f", &[1; 5000]);
    let mut share = serve(&store, &[]);
    let file = share.guest.lookup(ROOT, b"f").expect("it is there").nodeid;
    let open = share.guest.open(file, libc::O_RDWR).expect("open");
    // What it lies over is then in memory, and need not be there any more.
    share.guest.read(file, open.fh, 0, 5000).expect("read");
    share.guest.write(file, open.fh, 0, b"of the guest").expect("write");
    store.put("f", b"of somebody else");
    share.guest.flush(file, open.fh).expect_err("it has changed");
    share
        .daemon
        .wait_stderr("\"f\" was changed by somebody else; the guest's version (5000 bytes) is kept as \"f.conflict-");
    let status = share.status();
    assert_eq!(number(&status, "/mounts/0/conflicts"), 1, "{status}");
    assert_eq!(number(&status, "/mounts/0/dirty/bytes"), 0, "{status}");
}

#[test]
fn request_that_is_made_again_is_said_once_per_kind() {
    let mut store = TestStore::start(Kind::S3sFs);
    store.put("f", b"data");
    let mut share = serve(&store, &["--request-timeout", "3", "--cache", "never"]);
    store.stop_server();
    for name in ["a", "b", "c"] {
        share.guest.lookup(ROOT, name.as_bytes()).expect_err("nobody answers");
    }
    let said =
        |kind: &str| share.daemon.stderr().matches(&format!("a request ({kind}) failed and is made again in")).count();
    assert_eq!((said("head") + said("list") > 0, said("head") <= 1, said("list") <= 1), (true, true, true));
}
