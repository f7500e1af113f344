//! Two writers of one object.

use super::*;

fn with(on_conflict: OnConflict) -> Fs {
    Fs::with_config(32 << 20, capabilities(), |config| config.on_conflict = on_conflict)
}

/// What stands under the name that a conflict gave the guest's version of `path`.
fn beside(fs: &Fs, path: &str) -> Vec<Vec<u8>> {
    let start = format!("{path}.conflict-");
    let bucket = fs.bucket();
    bucket.objects.iter().filter(|(key, _)| key.starts_with(&start)).map(|(_, object)| object.bytes.clone()).collect()
}

#[test]
fn both_versions_are_kept_and_the_writer_is_told() {
    let fs = with(OnConflict::KeepBoth);
    fs.put("f", b"0123456789").expect("put");
    let file = fs.open("f", RDWR).expect("open");
    fs.read_at(file, 0, 10).expect("read");
    fs.write_at(file, 3, b"xx").expect("write");
    fs.bucket().put("f", b"theirs");
    assert_eq!(fs.flush(file), Err(Errno::ESTALE));
    assert_eq!(fs.object("f").as_deref(), Some(&b"theirs"[..]));
    assert_eq!(beside(&fs, "f"), [b"012xx56789"]);
    assert_eq!(fs.write_at(file, 0, b"more"), Err(Errno::ESTALE));
    assert_eq!(fs.read_at(file, 0, 1), Err(Errno::ESTALE));
    assert_eq!(fs.close(file), Ok(()));
    assert_eq!(fs.get("f").as_deref(), Ok(&b"theirs"[..]));
    assert_eq!(fs.list("", true, 100).len(), 2);
}

#[test]
fn a_file_created_exclusively_twice_is_kept_twice() {
    let fs = with(OnConflict::KeepBoth);
    let file = fs.create("f", libc::O_EXCL as u32).expect("create");
    fs.write_at(file, 0, b"ours").expect("write");
    fs.bucket().put("f", b"theirs");
    assert_eq!(fs.flush(file), Err(Errno::EEXIST));
    assert_eq!(fs.object("f").as_deref(), Some(&b"theirs"[..]));
    assert_eq!(beside(&fs, "f"), [b"ours"]);
    fs.close(file).expect("nothing is left to store");
}

#[test]
fn an_object_deleted_under_a_writer_stays_deleted_and_the_bytes_are_kept_beside() {
    let fs = with(OnConflict::KeepBoth);
    fs.put("d", b"0123456789").expect("put");
    let file = fs.open("d", RDWR).expect("open");
    fs.read_at(file, 0, 10).expect("read");
    fs.write_at(file, 10, b"!").expect("write");
    fs.bucket().objects.remove("d");
    assert_eq!(fs.flush(file), Err(Errno::ESTALE));
    assert_eq!(fs.object("d"), None);
    assert_eq!(beside(&fs, "d"), [b"0123456789!"]);
    fs.close(file).expect("nothing is left to store");
    assert_eq!(fs.lookup("d").err(), Some(Errno::ENOENT));
}

#[test]
fn ours_replaces_theirs_when_told_to() {
    let fs = with(OnConflict::Overwrite);
    fs.put("f", b"0123456789").expect("put");
    let file = fs.open("f", RDWR).expect("open");
    fs.read_at(file, 0, 10).expect("read");
    fs.write_at(file, 3, b"xx").expect("write");
    fs.bucket().put("f", b"theirs");
    assert_eq!(fs.close(file), Ok(()));
    assert_eq!(fs.object("f").as_deref(), Some(&b"012xx56789"[..]));
}

#[test]
fn what_is_gone_with_the_old_version_is_not_made_up() {
    for on_conflict in [OnConflict::KeepBoth, OnConflict::Overwrite] {
        let fs = with(on_conflict);
        fs.bucket().put("f", &[7; 3 << 20]);
        let file = fs.open("f", RDWR).expect("open");
        fs.write_at(file, 10, b"xx").expect("write");
        fs.bucket().put("f", b"theirs");
        assert_eq!(fs.flush(file), Err(Errno::ESTALE));
        assert_eq!(fs.object("f").as_deref(), Some(&b"theirs"[..]));
        assert!(beside(&fs, "f").is_empty());
    }
}

#[test]
fn a_copy_that_cannot_be_stored_leaves_the_file_as_it_is() {
    let fs = with(OnConflict::KeepBoth);
    fs.put("f", b"0123").expect("put");
    let file = fs.open("f", RDWR).expect("open");
    fs.read_at(file, 0, 4).expect("read");
    fs.write_at(file, 0, b"x").expect("write");
    fs.bucket().put("f", b"theirs");
    fs.bucket().fail = vec![("compose", StoreErrorKind::VersionMismatch), ("compose", StoreErrorKind::Io)];
    assert_eq!(fs.flush(file), Err(Errno::ESTALE));
    assert_eq!(fs.read_at(file, 0, 4).as_deref(), Ok(&b"x123"[..]));
    assert_eq!(fs.flush(file), Err(Errno::ESTALE));
    assert_eq!(beside(&fs, "f"), [b"x123"]);
}

#[test]
fn a_rename_takes_what_somebody_else_put_there_and_mixes_nothing() {
    let fs = Fs::with(32 << 20, CachePolicy::Always);
    fs.put("f", b"0123456789").expect("put");
    let file = fs.open("f", 0).expect("open");
    fs.read_at(file, 0, 10).expect("read");
    fs.bucket().put("f", b"theirs, longer than ours");
    fs.rename("f", "g", 0).expect("rename");
    assert_eq!(fs.object("g").as_deref(), Some(&b"theirs, longer than ours"[..]));
    assert_eq!(fs.read_at(file, 0, 10), Err(Errno::ESTALE));
    assert_eq!(fs.get("g").as_deref(), Ok(&b"theirs, longer than ours"[..]));
}

#[test]
fn a_rename_of_changes_over_a_version_that_is_gone_is_stale() {
    let fs = Fs::new();
    fs.put("f", b"0123456789").expect("put");
    let file = fs.open("f", RDWR).expect("open");
    fs.write_at(file, 3, b"xx").expect("write");
    fs.bucket().put("f", b"theirs");
    assert_eq!(fs.rename("f", "g", 0), Err(Errno::ESTALE));
    assert_eq!(fs.object("f").as_deref(), Some(&b"theirs"[..]));
    assert_eq!(fs.object("g"), None);
}

#[test]
fn an_open_file_that_somebody_replaced_and_the_guest_unlinked_is_stale() {
    let fs = Fs::with_config(1 << 20, capabilities(), |_| ());
    fs.bucket().put("f", &[1; 900_000]);
    let file = fs.open("f", 0).expect("open");
    fs.bucket().put("f", &[2; 900_000]);
    fs.unlink("f").expect("unlink");
    assert_eq!(fs.object("f"), None);
    assert_eq!(fs.read_at(file, 0, 10), Err(Errno::ESTALE));
}
