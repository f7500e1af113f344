//! What is in files.

use ovfs_compat_tests::fuse::{ROOT, fattr};
use ovfs_compat_tests::guest::SetAttr;

use crate::stage::{Outcome, Stage, demand, emulated, full, pattern};

/// Large enough that what is copied inside a store and what is sent can be told apart.
const LARGE: usize = 24 << 20;

pub fn a_file_is_created_and_read_back(s: &mut Stage) -> Outcome {
    for (name, len) in [("one", 1), ("page", 4096), ("odd", 1_048_577), ("many", 7 << 20)] {
        let (path, data) = (s.path(name), pattern(len, 7));
        s.guest().write_file(&path, &data)?;
        demand(s.guest().stat(&path)?.size == len as u64, "stat tells another size")?;
        s.expect(&path, &data)?;
    }
    full()
}

pub fn an_empty_file_is_an_object(s: &mut Stage) -> Outcome {
    let path = s.path("f");
    s.guest().write_file(&path, b"")?;
    demand(s.guest().stat(&path)?.size == 0, "it has a size")?;
    s.expect(&path, b"")?;
    full()
}

pub fn a_file_is_overwritten(s: &mut Stage) -> Outcome {
    let path = s.path("f");
    s.guest().write_file(&path, &pattern(300_000, 1))?;
    s.guest().write_file(&path, b"short")?;
    s.expect(&path, b"short")?;
    let data = pattern(200_000, 2);
    s.guest().write_file(&path, &data)?;
    s.expect(&path, &data)?;
    full()
}

pub fn a_write_in_the_middle_changes_it_alone(s: &mut Stage) -> Outcome {
    let (path, mut data) = (s.path("f"), pattern(300_000, 3));
    s.guest().write_file(&path, &data)?;
    let node = s.guest().resolve(&path)?;
    let file = s.guest().open(node, libc::O_RDWR)?;
    let before = s.before(&path);
    for at in [5usize, 4096, 150_001, 299_990] {
        data[at..at + 9].copy_from_slice(b"a change.");
        s.guest().write(node, file.fh, at as u64, b"a change.")?;
    }
    s.guest().flush(node, file.fh)?;
    s.guest().release(node, file.fh)?;
    s.expect(&path, &data)?;
    s.how_changed(before, &path, data.len())
}

pub fn an_append_lands_at_the_end(s: &mut Stage) -> Outcome {
    let (path, mut data) = (s.path("f"), pattern(10_000, 4));
    s.guest().write_file(&path, &data)?;
    for round in 0..3u8 {
        let node = s.guest().resolve(&path)?;
        let file = s.guest().open(node, libc::O_WRONLY | libc::O_APPEND)?;
        let size = s.guest().getattr(node, None)?.attr.size;
        s.guest().write(node, file.fh, size, &[b'0' + round; 100])?;
        s.guest().flush(node, file.fh)?;
        s.guest().release(node, file.fh)?;
        data.extend_from_slice(&[b'0' + round; 100]);
    }
    s.expect(&path, &data)?;
    full()
}

pub fn a_file_is_truncated_by_its_path(s: &mut Stage) -> Outcome {
    let (path, mut data) = (s.path("f"), pattern(100_000, 5));
    s.guest().write_file(&path, &data)?;
    for size in [50_000usize, 70_001, 0, 10] {
        s.guest().truncate(&path, size as u64)?;
        data.resize(size, 0);
        demand(s.guest().stat(&path)?.size == size as u64, "stat tells another size")?;
        s.expect(&path, &data)?;
    }
    full()
}

pub fn an_open_file_is_truncated(s: &mut Stage) -> Outcome {
    let (path, mut data) = (s.path("f"), pattern(100_000, 6));
    s.guest().write_file(&path, &data)?;
    let node = s.guest().resolve(&path)?;
    let file = s.guest().open(node, libc::O_RDWR)?;
    s.guest().write(node, file.fh, 90_000, b"soon gone")?;
    for size in [40_000usize, 60_000] {
        s.guest()
            .setattr(node, &SetAttr { valid: fattr::SIZE | fattr::FH, fh: file.fh, ..SetAttr::size(size as u64) })?;
        data.resize(size, 0);
    }
    demand(s.guest().read_to_end(node, file.fh)? == data, "the handle shows something else")?;
    s.guest().flush(node, file.fh)?;
    s.guest().release(node, file.fh)?;
    s.expect(&path, &data)?;
    full()
}

pub fn a_sparse_write_leaves_zeros(s: &mut Stage) -> Outcome {
    const HOLE: usize = 8 << 20;
    let path = s.path("f");
    let (entry, file) = s.guest().create(ROOT, path.as_bytes(), libc::O_RDWR, 0o644)?;
    let before = s.before(&path);
    s.guest().write(entry.nodeid, file.fh, HOLE as u64, b"end")?;
    s.guest().flush(entry.nodeid, file.fh)?;
    s.guest().release(entry.nodeid, file.fh)?;
    let mut data = vec![0; HOLE];
    data.extend_from_slice(b"end");
    s.expect(&path, &data)?;
    if s.sent(before) > HOLE as u64 / 2 { emulated("the zeros are sent and stored") } else { full() }
}

pub fn a_large_file_is_written_in_pieces_and_changed_in_the_middle(s: &mut Stage) -> Outcome {
    let (path, mut data) = (s.path("f"), pattern(LARGE, 8));
    let (entry, file) = s.guest().create(ROOT, path.as_bytes(), libc::O_RDWR, 0o644)?;
    let node = entry.nodeid;
    for (n, piece) in data.chunks(1 << 20).enumerate() {
        s.guest().write_all(node, file.fh, (n as u64) << 20, piece)?;
        if n % 8 == 7 {
            s.guest().fsync(node, file.fh, false)?;
            let so_far = (n + 1) << 20;
            s.expect_outside(&path, Some(&data[..so_far]))?;
        }
    }
    s.guest().flush(node, file.fh)?;
    s.guest().release(node, file.fh)?;
    s.expect(&path, &data)?;

    let file = s.guest().open(node, libc::O_RDWR)?;
    let before = s.before(&path);
    const AT: usize = LARGE / 4 * 3 + 1;
    data[AT..][..13].copy_from_slice(b"in the middle");
    s.guest().write(node, file.fh, AT as u64, b"in the middle")?;
    s.guest().fsync(node, file.fh, false)?;
    let verdict = s.how_changed(before, &path, LARGE);
    s.guest().flush(node, file.fh)?;
    s.guest().release(node, file.fh)?;
    s.expect(&path, &data)?;
    verdict
}

pub fn a_large_file_is_appended_to(s: &mut Stage) -> Outcome {
    let (path, mut data) = (s.path("f"), pattern(LARGE, 9));
    s.large_file(&path, &data)?;
    let node = s.guest().resolve(&path)?;
    let file = s.guest().open(node, libc::O_WRONLY | libc::O_APPEND)?;
    let before = s.before(&path);
    s.guest().write(node, file.fh, LARGE as u64, b"at the end")?;
    s.guest().flush(node, file.fh)?;
    s.guest().release(node, file.fh)?;
    let verdict = s.how_changed(before, &path, LARGE);
    data.extend_from_slice(b"at the end");
    s.expect(&path, &data)?;
    verdict
}

pub fn copy_file_range_copies_a_large_file(s: &mut Stage) -> Outcome {
    let (from, to, data) = (s.path("from"), s.path("to"), pattern(LARGE, 10));
    s.large_file(&from, &data)?;
    let from_node = s.guest().resolve(&from)?;
    let from_file = s.guest().open(from_node, libc::O_RDONLY)?;
    let (entry, to_file) = s.guest().create(ROOT, to.as_bytes(), libc::O_RDWR, 0o644)?;
    let before = s.before(&to);
    let mut done = 0;
    while done < LARGE as u64 {
        let (source, target) = ((from_node, from_file.fh, done), (entry.nodeid, to_file.fh, done));
        let n = s.guest().copy_file_range(source, target, LARGE as u64 - done, 0)?;
        demand(n > 0, "it copies nothing")?;
        done += u64::from(n);
    }
    s.guest().flush(entry.nodeid, to_file.fh)?;
    s.guest().release(entry.nodeid, to_file.fh)?;
    s.guest().release(from_node, from_file.fh)?;
    let sent = s.sent(before);
    s.expect(&to, &data)?;
    if sent > LARGE as u64 / 2 { emulated("the data passes through the daemon") } else { full() }
}

pub fn an_unlinked_open_file_stays_readable(s: &mut Stage) -> Outcome {
    let (path, data) = (s.path("f"), pattern(3 << 20, 11));
    s.guest().write_file(&path, &data)?;
    let node = s.guest().resolve(&path)?;
    let file = s.guest().open(node, libc::O_RDWR)?;
    s.guest().remove_file(&path)?;
    demand(!s.guest().exists(&path)?, "its name is still there")?;
    s.expect_outside(&path, None)?;
    demand(s.guest().read_to_end(node, file.fh)? == data, "the handle shows something else")?;
    s.guest().write(node, file.fh, 10, b"still here")?;
    demand(s.guest().read(node, file.fh, 10, 10)? == b"still here", "the handle forgets what was written")?;
    s.guest().write_file(&path, b"another")?;
    s.guest().flush(node, file.fh)?;
    s.guest().release(node, file.fh)?;
    s.expect(&path, b"another")?;
    full()
}
