//! Many files go at once.

use super::*;

const MANY: usize = 300;

/// A directory with many files, of which the first few are removed, so that a burst is under way.
fn burst() -> (Fs, NodeId) {
    let fs = Fs::with(32 << 20, CachePolicy::Auto);
    fs.mkdir("d").expect("mkdir");
    for n in 0..MANY {
        fs.bucket().put(&format!("d/{n}"), b"x");
    }
    fs.list("d", true, 1000);
    for n in 0..10 {
        fs.unlink(&format!("d/{n}")).expect("unlink");
    }
    let dir = fs.lookup("d").expect("lookup").nodeid;
    (fs, dir)
}

fn count(fs: &Fs, op: &str) -> usize {
    fs.bucket().log.iter().filter(|done| **done == op).count()
}

fn fsync_dir(fs: &Fs, dir: NodeId) -> Result<()> {
    let handle = block_on(fs.fs.opendir(CTX, dir, 0)).expect("opendir").handle.expect("handle");
    block_on(fs.fs.fsyncdir(CTX, dir, handle, false))
}

#[test]
fn a_directory_is_emptied_in_batches() {
    let (fs, _) = burst();
    let before = count(&fs, "delete_many");
    let slow = block_on(fs.fs.core.deletions.hold());
    for n in 10..MANY {
        fs.unlink(&format!("d/{n}")).expect("unlink");
    }
    drop(slow);
    fs.rmdir("d").expect("rmdir waits for the deletions");
    assert!(fs.bucket().objects.is_empty(), "{:?}", fs.bucket().objects.keys());
    assert_eq!(count(&fs, "delete"), 4);
    assert!(count(&fs, "delete_many") <= before + 2);
}

#[test]
fn a_removed_name_is_gone_at_once_and_can_be_taken_again() {
    let (fs, dir) = burst();
    for n in 10..MANY {
        let path = format!("d/{n}");
        fs.unlink(&path).expect("unlink");
        assert_eq!(fs.lookup(&path).err(), Some(Errno::ENOENT));
        if n % 10 == 0 {
            fs.put(&path, b"again").expect("put");
        }
    }
    let names = fs.list("d", true, 1000);
    assert_eq!(names.len(), MANY / 10 - 1);
    fsync_dir(&fs, dir).expect("fsync");
    let left: Vec<_> = fs.bucket().objects.iter().filter(|(_, o)| o.bytes == b"again").map(|o| o.0.clone()).collect();
    assert_eq!(left.len(), MANY / 10 - 1);
    assert_eq!(fs.bucket().objects.len(), left.len() + 1, "and the marker");
    fs.unlink("d/20").expect("unlink");
    fs.rename("d/30", "d/20", 0).expect("rename over a name that was just removed");
    fsync_dir(&fs, dir).expect("fsync");
    assert_eq!(fs.object("d/20").as_deref(), Some(&b"again"[..]));
    assert_eq!(fs.object("d/30"), None);
}

#[test]
fn the_first_deletions_tell_what_the_store_refuses() {
    let fs = Fs::new();
    fs.put("f", b"x").expect("put");
    fs.bucket().fail.push(("delete", StoreErrorKind::PermissionDenied));
    assert_eq!(fs.unlink("f"), Err(Errno::EACCES));
    assert_eq!(fs.get("f").as_deref(), Ok(&b"x"[..]));
}

#[test]
fn what_a_batch_could_not_delete_is_there_again_and_is_told() {
    let (fs, dir) = burst();
    fsync_dir(&fs, dir).expect("nothing is pending any more");
    let slow = block_on(fs.fs.core.deletions.hold());
    fs.bucket().fail = vec![("delete_many", StoreErrorKind::Io), ("delete", StoreErrorKind::PermissionDenied)];
    for n in 10..20 {
        fs.unlink(&format!("d/{n}")).expect("unlink");
    }
    drop(slow);
    assert_eq!(fsync_dir(&fs, dir), Err(Errno::EACCES));
    assert_eq!(fsync_dir(&fs, dir), Ok(()), "told once");
    assert_eq!(fs.list("d", false, 1000).len(), MANY - 19);
}

#[test]
fn everything_is_deleted_when_the_session_ends() {
    let (fs, _) = burst();
    for n in 10..MANY {
        fs.unlink(&format!("d/{n}")).expect("unlink");
    }
    block_on(fs.fs.destroy());
    assert_eq!(fs.bucket().objects.len(), 1, "the marker");
}
