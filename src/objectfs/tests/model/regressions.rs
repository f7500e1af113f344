//! Sequences that once went wrong, under the name of what was wrong.

use super::step::{Access, PATHS, Step};
use super::{AMPLE, run};
use crate::objectfs::CachePolicy;

/// Index of a path.
fn p(path: &str) -> usize {
    PATHS.iter().position(|known| *known == path).expect("a path of the model")
}

fn create(path: &str) -> Step {
    Step::Create { path: p(path), access: Access::ReadWrite, exclusive: false, truncate: false, append: false }
}

fn write(file: usize, offset: u64, len: usize) -> Step {
    Step::Write { file, offset, len, sync: false }
}

fn rename(from: &str, to: &str) -> Step {
    Step::Rename { from: p(from), to: p(to), noreplace: false }
}

#[test]
fn a_dirty_file_is_read_after_its_directory_moved() {
    let steps = [
        Step::Mkdir { path: p("d") },
        create("d/a"),
        write(0, 3_000, 3_429),
        Step::Close { file: 0 },
        create("d/a"),
        write(0, 0, 1),
        rename("d", "e"),
        Step::Read { file: 0, offset: 0, len: 2 },
    ];
    run(CachePolicy::Never, AMPLE, &steps).expect("as the contract says");
}

#[test]
fn a_name_taken_by_an_unfinished_file_is_removed_with_it() {
    let steps = [create("a"), Step::Close { file: 0 }, create("b"), rename("b", "a"), Step::Unlink { path: p("a") }];
    run(CachePolicy::Never, AMPLE, &steps).expect("as the contract says");
}

#[test]
fn an_unlinked_file_keeps_no_bytes_that_truncation_cut_off() {
    let steps = [
        create("a"),
        write(0, 24_896, 2_284),
        Step::Close { file: 0 },
        create("a"),
        Step::Truncate { file: 0, size: 1 },
        write(0, 27_180, 1),
        Step::Unlink { path: p("a") },
        Step::Read { file: 0, offset: 22_819, len: 2_094 },
    ];
    run(CachePolicy::Never, AMPLE, &steps).expect("as the contract says");
}

fn open(path: &str) -> Step {
    Step::Open { path: p(path), access: Access::ReadOnly, truncate: false, append: false }
}

fn put(path: &str, len: usize) -> Step {
    Step::Put { path: p(path), len }
}

#[test]
fn a_file_that_is_open_for_reading_replaces_nothing_after_a_rename_over_it_failed() {
    let steps = [
        put("e/a", 0),
        put("e/s", 0),
        Step::Mknod { path: p("a") },
        open("e/s"),
        Step::Delete { path: p("a") },
        Step::Create { path: p("a"), access: Access::ReadOnly, exclusive: true, truncate: false, append: false },
        put("e/s", 1),
        rename("a", "e/s"),
    ];
    run(CachePolicy::Always, AMPLE, &steps).expect("as the contract says");
}

#[test]
fn a_directory_that_hides_an_open_file_of_its_name_stays_when_its_last_entry_goes() {
    let steps = [
        put("e/a", 0),
        rename("e", "b"),
        Step::Create { path: p("e"), access: Access::WriteOnly, exclusive: false, truncate: true, append: false },
        put("e/s/a", 0),
        Step::SyncFs,
        rename("e/s", "b"),
    ];
    run(CachePolicy::Never, AMPLE, &steps).expect("as the contract says");
}
