//! Long files go to the store in pieces while they are written, and are whole whatever comes between.

use super::*;

const PIECE: usize = 64 << 10;
const POOL: usize = 4 << 20;

fn flowing() -> Capabilities {
    Capabilities { flows: Some(2 * PIECE as u64), ..capabilities() }
}

fn fs() -> Fs {
    with(|_| {})
}

fn with(change: impl FnOnce(&mut Config)) -> Fs {
    Fs::with_pages((POOL, 1000), flowing(), change)
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed | 1;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        x = x.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        x.to_le_bytes()
    });
    words.take(len).collect()
}

fn write_all(fs: &Fs, file: (NodeId, Handle), offset: usize, data: &[u8]) -> Result<()> {
    for (n, chunk) in data.chunks(32 << 10).enumerate() {
        fs.write_at(file, (offset + n * (32 << 10)) as u64, chunk)?;
    }
    Ok(())
}

fn fsync(fs: &Fs, file: (NodeId, Handle)) -> Result<()> {
    block_on(fs.fs.fsync(CTX, file.0, file.1, false))
}

fn truncate(fs: &Fs, file: (NodeId, Handle), size: u64) -> Result<()> {
    fs.truncate(file.0, Some(file.1), size)
}

fn whole(fs: &Fs, name: &str, data: &[u8]) {
    assert!(fs.object(name).is_some_and(|object| object == data), "{name} is not what was written");
    assert!(fs.bucket().flows.is_empty(), "nothing is left of its pieces");
}

/// Waits until the store has taken pieces of a file that nobody has ended yet.
fn wait_for_pieces(fs: &Fs) {
    wait_for("pieces are sent", || fs.count("flow_send") >= 4);
}

/// A file that is being sent, with what was written.
fn half_written(fs: &Fs, name: &str) -> ((NodeId, Handle), Vec<u8>) {
    let data = bytes(7, 1 << 20);
    let file = fs.create(name, 0).expect("create");
    fs.forget_log();
    write_all(fs, file, 0, &data).expect("write");
    wait_for_pieces(fs);
    (file, data)
}

#[test]
fn a_file_longer_than_the_memory_is_sent_once_and_put_together_once() {
    let fs = fs();
    let data = bytes(1, 4 * POOL + 12_345);
    let file = fs.create("f", 0).expect("create");
    fs.forget_log();
    write_all(&fs, file, 0, &data).expect("write");
    fs.close(file).expect("close");
    whole(&fs, "f", &data);
    assert_eq!(fs.bucket().sent, data.len() as u64);
    assert!(fs.count("flow_send") > 8 && fs.count("flow_abort") == 0, "{:?}", fs.bucket().log);
}

#[test]
fn a_file_created_with_o_excl_is_sent_in_pieces_after_its_first_upload() {
    let fs = fs();
    let data = bytes(2, 2 * POOL);
    let file = fs.create("f", libc::O_EXCL as u32).expect("create");
    fs.forget_log();
    write_all(&fs, file, 0, &data).expect("write");
    fs.close(file).expect("close");
    whole(&fs, "f", &data);
    assert!(fs.count("compose") >= 1 && fs.count("flow_begin") >= 1, "{:?}", fs.bucket().log);
}

#[test]
fn what_is_appended_to_a_long_object_is_sent_in_pieces() {
    let fs = fs();
    let mut data = bytes(3, POOL);
    fs.bucket().put("f", &data);
    let file = fs.open("f", RDWR).expect("open");
    let more = bytes(4, POOL);
    fs.forget_log();
    write_all(&fs, file, data.len(), &more).expect("write");
    fs.close(file).expect("close");
    data.extend_from_slice(&more);
    whole(&fs, "f", &data);
    assert!(fs.count("flow_begin") >= 1 && fs.bucket().read == 0);
}

#[test]
fn what_was_sent_is_read_back_from_the_store() {
    let fs = fs();
    let (file, data) = half_written(&fs, "f");
    assert_eq!(fs.read_at(file, 0, 4096).as_deref(), Ok(&data[..4096]));
    fs.close(file).expect("close");
    whole(&fs, "f", &data);
}

#[test]
fn what_was_sent_can_be_written_again_and_cut_off() {
    let fs = fs();
    let (file, mut data) = half_written(&fs, "f");
    fs.write_at(file, 10, b"again").expect("write");
    data[10..15].copy_from_slice(b"again");
    truncate(&fs, file, 300_000).expect("truncate");
    truncate(&fs, file, 400_000).expect("truncate");
    data.truncate(300_000);
    data.resize(400_000, 0);
    fs.close(file).expect("close");
    whole(&fs, "f", &data);
}

#[test]
fn fsync_ends_it_and_writing_goes_on() {
    let fs = fs();
    let (file, mut data) = half_written(&fs, "f");
    fsync(&fs, file).expect("fsync");
    whole(&fs, "f", &data);
    let more = bytes(9, 1 << 20);
    write_all(&fs, file, data.len(), &more).expect("write");
    data.extend_from_slice(&more);
    fs.close(file).expect("close");
    whole(&fs, "f", &data);
}

#[test]
fn names_change_and_go_in_the_midst_of_it() {
    let fs = fs();
    fs.mkdir("d").expect("mkdir");
    let (file, data) = half_written(&fs, "d/f");
    fs.rename("d", "e", 0).expect("rename the directory");
    assert!(fs.bucket().flows.is_empty());
    fs.rename("e/f", "g", 0).expect("rename the file");
    assert_eq!(fs.read_at(file, 500_000, 100).as_deref(), Ok(&data[500_000..500_100]));
    fs.close(file).expect("close");
    whole(&fs, "g", &data);
    let (file, data) = half_written(&fs, "h");
    fs.unlink("h").expect("unlink");
    assert_eq!(fs.object("h"), None);
    assert_eq!(fs.read_at(file, 1000, 100).as_deref(), Ok(&data[1000..1100]));
    fs.close(file).expect("close");
    assert!(fs.bucket().flows.is_empty());
}

#[test]
fn a_store_that_refuses_is_told_of_and_nothing_stays_there() {
    for op in ["flow_begin", "flow_send", "flow_end"] {
        for kind in [StoreErrorKind::Unavailable, StoreErrorKind::VersionMismatch, StoreErrorKind::Io] {
            let fs = fs();
            let data = bytes(5, 2 * POOL);
            let file = fs.create("f", 0).expect("create");
            fs.bucket().fail.push((op, kind));
            let written = write_all(&fs, file, 0, &data);
            let closed = fs.flush(file);
            if written.is_ok() && closed.is_ok() {
                whole(&fs, "f", &data);
            } else {
                // Pieces that were memory already are lost with their upload; the guest knows.
                assert_ne!(op, "flow_begin", "nothing was sent yet");
                assert!(fs.object("f").is_none_or(|object| object.len() < data.len()), "{op} {kind:?}");
            }
            block_on(fs.fs.release(CTX, file.0, file.1, 0, None, false)).ok();
            assert!(fs.bucket().flows.is_empty(), "{op} {kind:?}");
            // The file system goes on.
            fs.put("f", b"new").expect("put");
            whole(&fs, "f", b"new");
        }
    }
}

#[test]
fn whoever_closes_the_file_later_is_told_of_a_loss() {
    for delay in [Duration::ZERO, Duration::from_secs(3600)] {
        let fs = with(|config| config.writeback_delay = delay);
        let file = fs.create("f", 0).expect("create");
        let data = bytes(5, 3 * POOL);
        write_all(&fs, file, 0, &data).expect("write");
        fs.bucket().fail.push(("flow_end", StoreErrorKind::Io));
        // Somebody else has it put together and is told nothing: nothing was asked of this file.
        fs.mkdir("d").expect("mkdir");
        fs.rename("d", "e", 0).expect("rename");
        match fs.flush(file) {
            // Only if the last of it was under way, and what was sent before not in memory.
            Ok(()) => {
                fsync(&fs, file).expect("fsync");
                whole(&fs, "f", &data);
            }
            told => {
                assert_eq!(told, Err(Errno::EIO), "{delay:?}");
                assert_eq!(fs.flush(file), Ok(()), "once");
                assert!(fs.write_at(file, 0, b"more").is_err());
            }
        }
    }
}

#[test]
fn somebody_elses_object_is_not_replaced() {
    let fs = fs();
    let data = bytes(6, POOL);
    fs.bucket().put("f", &data);
    let file = fs.open("f", RDWR).expect("open");
    write_all(&fs, file, data.len(), &data[..1 << 20]).expect("write");
    wait_for_pieces(&fs);
    fs.bucket().put("f", b"theirs");
    assert_eq!(fs.close(file), Err(Errno::ESTALE));
    whole(&fs, "f", b"theirs");
}

#[test]
fn whatever_is_done_between_the_file_is_what_was_written() {
    for seed in 0..60u64 {
        let fs = fs();
        let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = |n: u64| {
            x = x.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(99);
            (x >> 33) % n
        };
        let file = fs.create("f", if seed % 3 == 0 { libc::O_EXCL as u32 } else { 0 }).expect("create");
        let mut model: Vec<u8> = Vec::new();
        for step in 0..120 {
            let len = 1 + random(100_000) as usize;
            match random(20) {
                0 => fsync(&fs, file).expect("fsync"),
                1 => {
                    let size = random(model.len() as u64 * 5 / 4 + 1);
                    truncate(&fs, file, size).expect("truncate");
                    model.resize(size as usize, 0);
                }
                2..=4 => {
                    let at = random(model.len() as u64 + 1) as usize;
                    let read = fs.read_at(file, at as u64, 50_000).expect("read");
                    assert!(read == model[at..model.len().min(at + 50_000)], "seed {seed} step {step}");
                }
                5 => {
                    let at = random(model.len() as u64 + 1) as usize;
                    let data = bytes(step, len);
                    write_all(&fs, file, at, &data).expect("write");
                    model.resize(model.len().max(at + len), 0);
                    model[at..at + len].copy_from_slice(&data);
                }
                _ => {
                    let data = bytes(step + 1000, len);
                    write_all(&fs, file, model.len(), &data).expect("write");
                    model.extend_from_slice(&data);
                }
            }
        }
        fs.close(file).expect("close");
        whole(&fs, "f", &model);
    }
}

#[test]
fn what_only_the_store_has_in_pieces_is_not_kept_as_a_shorter_file() {
    let fs = fs();
    let (file, data) = half_written(&fs, "f");
    let kept = |fs: &Fs| block_on(fs.fs.keep_unstored()).into_iter().next().and_then(|file| file.lost);
    assert_eq!(kept(&fs), None);
    assert_eq!(fs.object("spooled f").as_deref(), Some(&data[..]));
    wait_for("memory is given up", || fs.fs.core.release_sent());
    assert!(kept(&fs).is_some_and(|why| why.contains("pieces")));
    fs.close(file).expect("close");
    whole(&fs, "f", &data);
}

#[test]
fn what_is_appended_is_not_seen_without_what_was_changed_before_it() {
    let fs = fs();
    let before = bytes(5, 4 * PIECE);
    fs.bucket().put("f", &before);
    fs.mkdir("d").expect("mkdir");
    let file = fs.open("f", RDWR).expect("open");
    fs.write_at(file, 0, b"first").expect("write");
    let mut after = before.clone();
    after[..5].copy_from_slice(b"first");
    let more = bytes(6, 8 * PIECE);
    write_all(&fs, file, after.len(), &more).expect("write");
    after.extend_from_slice(&more);
    // It waits for whatever is being sent.
    fs.rename("d", "e", 0).expect("rename");
    assert!(fs.object("f").is_some_and(|object| object == before || object == after));
    fs.close(file).expect("close");
    whole(&fs, "f", &after);
}
