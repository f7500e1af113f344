//! Directories.

use std::time::Duration;

use ovfs_compat_tests::error::errno_name;
use ovfs_compat_tests::fuse::ROOT;
use ovfs_compat_tests::stores::Kind;

use crate::stage::{NO_OUTSIDE, Outcome, Stage, demand, emulated, errno, full, not_applicable, refused};

pub fn rmdir_of_a_full_directory_is_enotempty(s: &mut Stage) -> Outcome {
    let dir = s.path("d");
    let file = format!("{dir}/f");
    if s.kind().keeps_empty_dirs() {
        s.guest().mkdir(ROOT, dir.as_bytes(), 0o755)?;
    } else {
        s.store.put(&file, b"here to make the directory");
    }
    s.guest().write_file(&file, b"in the way")?;
    let got = errno(s.guest().remove_dir(&dir), "rmdir")?;
    demand(got == libc::ENOTEMPTY, errno_name(got))?;
    s.expect(&file, b"in the way")?;
    s.guest().remove_file(&file)?;
    // A server without empty directories has done it by itself.
    if s.kind().keeps_empty_dirs() {
        s.guest().remove_dir(&dir)?;
        demand(!s.guest().exists(&dir)?, "it is still there")?;
    }
    full()
}

pub fn rmdir_sees_an_entry_from_outside(s: &mut Stage) -> Outcome {
    if !s.kind().has_outside() {
        return not_applicable(NO_OUTSIDE);
    }
    let dir = s.path("d");
    s.guest().mkdir(ROOT, dir.as_bytes(), 0o755)?;
    if s.kind().keeps_empty_dirs() {
        demand(s.guest().list(&dir)?.is_empty(), "a new directory has entries")?;
    }
    let file = format!("{dir}/theirs");
    s.store.put(&file, b"theirs");
    let got = errno(s.guest().remove_dir(&dir), "rmdir")?;
    demand(got == libc::ENOTEMPTY, errno_name(got))?;
    s.expect(&file, b"theirs")?;
    full()
}

pub fn an_empty_directory_survives_a_remount(s: &mut Stage) -> Outcome {
    if s.kind() == Kind::Memory {
        return not_applicable("what is in memory ends with the daemon");
    }
    let dir = s.path("d");
    s.guest().mkdir(ROOT, dir.as_bytes(), 0o755)?;
    let got = errno(s.guest().mkdir(ROOT, dir.as_bytes(), 0o755), "a second mkdir")?;
    demand(got == libc::EEXIST, errno_name(got))?;
    s.remount();
    if !s.guest().exists(&dir)? {
        return refused("it is gone: the server shows no directory without entries");
    }
    demand(s.guest().list("")?.contains(&dir), "it is there, but not listed")?;
    demand(s.guest().list(&dir)?.is_empty(), "it has entries")?;
    s.guest().remove_dir(&dir)?;
    demand(!s.guest().exists(&dir)?, "it cannot be removed")?;
    full()
}

pub fn a_prefix_is_a_directory(s: &mut Stage) -> Outcome {
    if !s.kind().has_outside() {
        return not_applicable(NO_OUTSIDE);
    }
    let dir = s.path("only");
    s.store.put(&format!("{dir}/a/prefix/f"), b"deep");
    demand(s.guest().stat(&format!("{dir}/a"))?.is_dir(), "it is no directory")?;
    demand(s.guest().list("")?.contains(&dir), "it is not listed")?;
    demand(s.guest().list(&format!("{dir}/a"))? == ["prefix"], "its entries are others")?;
    s.expect(&format!("{dir}/a/prefix/f"), b"deep")?;
    s.guest().write_file(&format!("{dir}/a/beside"), b"new")?;
    s.expect(&format!("{dir}/a/beside"), b"new")?;
    s.guest().remove_file(&format!("{dir}/a/prefix/f"))?;
    // Longer than names are trusted.
    std::thread::sleep(Duration::from_millis(1500));
    if s.guest().exists(&format!("{dir}/a/prefix"))? { full() } else { emulated("it goes with its last entry") }
}

pub fn a_directory_of_2500_is_listed_once_each(s: &mut Stage) -> Outcome {
    const COUNT: usize = 2500;
    let dir = s.path("many");
    let names: Vec<String> = (0..COUNT).map(|i| format!("n{i:05}")).collect();
    if s.kind().has_outside() {
        for name in &names {
            s.store.put(&format!("{dir}/{name}"), b"x");
        }
    } else {
        s.guest().mkdir(ROOT, dir.as_bytes(), 0o755)?;
        for name in &names {
            s.guest().write_file(&format!("{dir}/{name}"), b"x")?;
        }
    }
    let node = s.guest().resolve(&dir)?;
    for plus in [false, true] {
        let entries = s.guest().entries(node, plus, 4096)?;
        let mut found: Vec<String> =
            entries.into_iter().map(|e| String::from_utf8_lossy(&e.name).into_owned()).collect();
        found.sort();
        demand(found == names, format!("{} names are listed", found.len()))?;
    }
    full()
}
