//! Write-back: closing does not wait, and nothing is lost for that.

use super::*;

/// Long enough that nothing is due within a test.
const NEVER: Duration = Duration::from_secs(3600);

fn fs(delay: Duration) -> Fs {
    Fs::with_config(32 << 20, capabilities(), |config| {
        config.cache = CachePolicy::Auto;
        config.writeback_delay = delay;
    })
}

#[test]
fn closed_files_reach_the_store_a_while_later() {
    let fs = fs(Duration::from_millis(50));
    for number in 0..100 {
        fs.put(&format!("f{number}"), b"content").expect("put");
    }
    assert_eq!(fs.get("f7").as_deref(), Ok(&b"content"[..]));
    wait_for("all are uploaded", || (0..100).all(|n| fs.object(&format!("f{n}")).as_deref() == Some(&b"content"[..])));
}

#[test]
fn fsync_syncfs_and_the_end_of_a_session_do_not_wait() {
    let fs = fs(NEVER);
    let file = fs.create("f", 0).expect("create");
    fs.write_at(file, 0, b"content").expect("write");
    block_on(fs.fs.fsync(CTX, file.0, file.1, false)).expect("fsync");
    assert_eq!(fs.object("f").as_deref(), Some(&b"content"[..]));
    fs.close(file).expect("close");
    fs.put("g", b"other").expect("put");
    assert_eq!(fs.object("g"), None);
    block_on(fs.fs.syncfs(CTX, NodeId::ROOT)).expect("syncfs");
    assert_eq!(fs.object("g").as_deref(), Some(&b"other"[..]));
    fs.put("h", b"third").expect("put");
    block_on(fs.fs.destroy());
    assert_eq!(fs.object("h").as_deref(), Some(&b"third"[..]));
}

#[test]
fn what_is_removed_or_renamed_before_its_upload_costs_none() {
    let fs = fs(NEVER);
    fs.put("f", b"content").expect("put");
    fs.unlink("f").expect("unlink");
    fs.put("temporary", b"content").expect("put");
    fs.rename("temporary", "g", 0).expect("rename");
    block_on(fs.fs.syncfs(CTX, NodeId::ROOT)).expect("syncfs");
    assert_eq!((fs.object("f"), fs.object("temporary")), (None, None));
    assert_eq!(fs.object("g").as_deref(), Some(&b"content"[..]));
    assert_eq!((fs.count("compose"), fs.count("delete"), fs.count("rename_file")), (1, 0, 0));
}

#[test]
fn memory_that_runs_short_does_not_wait() {
    let fs = fs(NEVER);
    let data = vec![7; 1 << 20];
    for number in 0..40 {
        fs.put(&format!("f{number}"), &data).expect("put");
    }
    assert!((0..40).filter(|n| fs.object(&format!("f{n}")).is_some()).count() >= 20);
    block_on(fs.fs.syncfs(CTX, NodeId::ROOT)).expect("syncfs");
    assert!((0..40).all(|n| fs.object(&format!("f{n}")).as_deref() == Some(&data[..])));
}

#[test]
fn what_the_store_refuses_in_the_background_is_told_to_the_next_sync() {
    let fs = fs(Duration::from_millis(20));
    fs.bucket().put("f", b"theirs");
    let file = fs.open("f", RDWR).expect("open");
    fs.write_at(file, 2, b"XX").expect("write");
    fs.bucket().put("f", b"THEIRS");
    fs.flush(file).expect("closing does not wait");
    let inode = fs.fs.core.inode(file.0).expect("inode");
    wait_for("the conflict is found", || inode.state().unreported.is_some());
    assert_eq!(block_on(fs.fs.fsync(CTX, file.0, file.1, false)), Err(Errno::ESTALE));
    assert_eq!(fs.object("f").as_deref(), Some(&b"THEIRS"[..]));
}

#[test]
fn what_is_not_stored_is_kept_as_the_guest_sees_it_even_during_an_upload() {
    let fs = fs(NEVER);
    fs.bucket().put("old", &[b'o'; 100]);
    let old = fs.open("old", libc::O_RDWR as u32).expect("open");
    fs.write_at(old, 10, b"first").expect("write");
    {
        // It has begun, and never comes to its end.
        let mut upload = Box::pin(fs.fs.fsync(CTX, old.0, old.1, false));
        block_on(async { assert!(futures::poll!(&mut upload).is_pending()) });
        fs.write_at(old, 12, b"SECOND").expect("write");
        fs.put("new", b"whole").expect("put");
        fs.put("gone", b"unlinked").expect("put");
        fs.unlink("gone").expect("unlink");
        assert_eq!(fs.fs.unstored(), 105);
        let mut kept = block_on(fs.fs.keep_unstored());
        kept.sort_by(|a, b| a.path.cmp(&b.path));
        let unstored = |path: &str, size| Unstored { path: path.into(), size, lost: None };
        assert_eq!(kept, [unstored("new", 5), unstored("old", 100)]);
    }
    let mut wanted = [b'o'; 100];
    wanted[10..18].copy_from_slice(b"fiSECOND");
    assert_eq!(fs.object("spooled old").as_deref(), Some(&wanted[..]));
    assert_eq!(fs.object("spooled new").as_deref(), Some(&b"whole"[..]));
    fs.bucket().fail.push(("spool", StoreErrorKind::NoSpace));
    let lost = block_on(fs.fs.keep_unstored());
    assert_eq!(lost.iter().filter(|file| file.lost.is_some()).count(), 1);
}
