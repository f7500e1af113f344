//! copy_file_range(2): by the store where it is worth it.

use super::*;

fn fs() -> Fs {
    let capabilities = Capabilities { copy_ranges: true, ..capabilities() };
    Fs::with_config(16 << 20, capabilities, |_| ())
}

fn copy(fs: &Fs, from: (NodeId, Handle), offset: u64, to: (NodeId, Handle), at: u64, len: u64) -> Result<usize> {
    let place = |(nodeid, handle), offset| FileAt { nodeid, handle, offset };
    block_on(fs.fs.copy_file_range(CTX, place(from, offset), place(to, at), len, 0))
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + seed) / 7) as u8).collect()
}

#[test]
fn a_whole_file_is_copied_without_reading_it() {
    let fs = fs();
    let data = bytes(20 << 20, 1);
    fs.bucket().put("from", &data);
    let (from, to) = (fs.open("from", 0).expect("open"), fs.create("to", 0).expect("create"));
    assert_eq!(copy(&fs, from, 0, to, 0, u64::from(u32::MAX)), Ok(data.len()));
    fs.close(to).expect("close");
    fs.close(from).expect("close");
    assert!(fs.object("to") == Some(data));
    let log = fs.bucket().log.clone();
    assert!(!log.contains(&"read"), "{log:?}");
    assert_eq!(log.iter().filter(|op| **op == "compose").count(), 1);
}

#[test]
fn a_range_lands_in_the_middle_of_what_is_there_and_what_is_dirty() {
    let fs = fs();
    let (source, mut expect) = (bytes(6 << 20, 2), bytes(5 << 20, 3));
    fs.bucket().put("from", &source);
    fs.bucket().put("to", &expect);
    let (from, to) = (fs.open("from", 0).expect("open"), fs.open("to", RDWR).expect("open"));
    fs.write_at(to, 100, b"before").expect("write");
    fs.write_at(to, (2 << 20) + 5, b"under").expect("write");
    assert_eq!(copy(&fs, from, 1000, to, 2 << 20, 2 << 20), Ok(2 << 20));
    fs.write_at(to, (3 << 20) + 5, b"over").expect("write");
    expect[100..106].copy_from_slice(b"before");
    expect[2 << 20..4 << 20].copy_from_slice(&source[1000..1000 + (2 << 20)]);
    expect[(3 << 20) + 5..(3 << 20) + 9].copy_from_slice(b"over");
    assert!(fs.read_at(to, 0, 5 << 20).expect("read") == expect);
    fs.close(to).expect("close");
    assert!(fs.object("to") == Some(expect));
}

#[test]
fn what_the_source_has_not_stored_yet_is_stored_first() {
    let fs = fs();
    let data = bytes(2 << 20, 4);
    let (from, to) = (fs.create("from", 0).expect("create"), fs.create("to", 0).expect("create"));
    for (n, part) in data.chunks(1 << 20).enumerate() {
        fs.write_at(from, (n << 20) as u64, part).expect("write");
    }
    assert_eq!(copy(&fs, from, 0, to, 0, 1 << 30), Ok(data.len()));
    assert!(fs.object("from").as_ref() == Some(&data));
    assert!(fs.object("to") == Some(data));
}

#[test]
fn a_copy_of_what_somebody_replaced_is_stale_and_changes_nothing() {
    let fs = fs();
    fs.bucket().put("from", &bytes(2 << 20, 5));
    fs.put("to", b"as it was").expect("put");
    let (from, to) = (fs.open("from", 0).expect("open"), fs.open("to", RDWR).expect("open"));
    fs.bucket().put("from", &bytes(2 << 20, 6));
    assert_eq!(copy(&fs, from, 0, to, 0, 2 << 20), Err(Errno::ESTALE));
    fs.close(to).expect("close");
    assert_eq!(fs.object("to").as_deref(), Some(&b"as it was"[..]));
}

#[test]
fn short_ranges_and_stores_that_do_not_copy_go_through_memory() {
    let plain = Fs::with_pool(32 << 20);
    for (fs, len) in [(&fs(), 1000), (&plain, 3 << 20)] {
        let data = bytes(len, 7);
        fs.bucket().put("from", &data);
        let (from, to) = (fs.open("from", 0).expect("open"), fs.create("to", 0).expect("create"));
        assert_eq!(copy(fs, from, 0, to, 0, len as u64), Ok(len));
        fs.close(to).expect("close");
        assert!(fs.object("to") == Some(data));
        assert!(fs.bucket().log.contains(&"read"));
    }
}
