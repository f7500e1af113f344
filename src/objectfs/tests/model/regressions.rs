//! Sequences that once went wrong, under the name of what was wrong.

use super::step::{Access, Allocate, PATHS, STORE_OPERATIONS, Step, When};
use super::{AMPLE, SCARCE, run};
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

fn open_both_ways(path: &str) -> Step {
    Step::Open { path: p(path), access: Access::ReadWrite, truncate: false, append: false }
}

fn delete(path: &str) -> Step {
    Step::Delete { path: p(path) }
}

fn fail(operation: &str, when: When) -> Step {
    let operation = STORE_OPERATIONS.iter().position(|known| *known == operation).expect("an operation of the store");
    Step::Fail { operation, when, kind: 0 }
}

fn holds(cache: CachePolicy, pool: usize, steps: &[Step]) {
    run(cache, pool, steps).expect("as the contract says");
}

#[test]
fn a_rename_over_an_open_file_that_fails_leaves_it_in_conflict_with_another_programs_version() {
    let steps = [
        put("d/a", 1),
        put("d/s", 2),
        Step::Rmdir { path: p("d/a") },
        rename("d/s", "e"),
        delete("d/a"),
        open("e"),
        Step::Read { file: 0, offset: 0, len: 1 },
        open_both_ways("e"),
        put("e", 1),
        write(1, 0, 1),
        rename("d/a", "e"),
        Step::Fsync { file: 1 },
    ];
    holds(CachePolicy::Always, AMPLE, &steps);
}

#[test]
fn a_large_file_that_a_failed_rename_did_not_replace_is_read_and_written_as_before() {
    let steps = [
        put("d/s/b", 1),
        Step::LookAtEverything,
        create("a"),
        write(0, 0, 11_260),
        Step::Flush { file: 0 },
        delete("d/s/b"),
        rename("d/s/b", "a"),
        Step::Read { file: 0, offset: 0, len: 20_000 },
        write(0, 5, 1),
        Step::Fsync { file: 0 },
    ];
    holds(CachePolicy::Always, SCARCE, &steps);
}

#[test]
fn an_unlink_that_fails_does_not_drop_what_was_written_over_a_version_that_is_gone() {
    let steps = [
        put("e/a", 1),
        create("e/a"),
        Step::Truncate { file: 0, size: 57 },
        delete("e/a"),
        fail("delete", When::Before),
        Step::Unlink { path: p("e/a") },
        Step::Expire,
        open("e/a"),
    ];
    holds(CachePolicy::Always, AMPLE, &steps);
}

#[test]
fn a_file_given_up_after_a_conflict_gives_its_memory_back_before_it_is_forgotten() {
    let steps = [
        Step::PutMarker { path: p("e") },
        create("e/a"),
        Step::Write { file: 0, offset: 0, len: 1, sync: true },
        put("e/a", 0),
        write(0, 1_588, 1),
        write(0, 1, 1),
        write(0, 123, 5_562),
        write(0, 3, 1),
        Step::Close { file: 0 },
        open_both_ways("e/a"),
        write(0, 0, 8_193),
    ];
    holds(CachePolicy::Always, SCARCE, &steps);
}

#[test]
fn a_write_of_more_than_memory_may_hold_of_it_goes_to_the_store_in_parts() {
    let mut steps = vec![create("e/a"), create("a"), create("b")];
    steps.extend([9_351, 7_131, 1_831, 9_218, 5_702].map(|len| Step::Write { file: 0, offset: 0, len, sync: false }));
    let whole = [create("a"), write(0, 0, 11_000), write(0, 11_000, 11_000), write(0, 22_000, 10_960), create("b")];
    holds(CachePolicy::Always, SCARCE, &[&whole[..], &[Step::CopyWhole { from: 0, to: 1 }]].concat());
    holds(CachePolicy::Always, SCARCE, &steps);
}

#[test]
fn a_directory_that_only_unfinished_files_keep_alive_is_listed() {
    let steps = [
        put("d/s/a", 1),
        create("d/s/b"),
        delete("d/s/a"),
        put("d/b", 1),
        create("d/a"),
        Step::List { path: p("d"), plus: true },
        Step::List { path: p("d"), plus: false },
    ];
    holds(CachePolicy::Never, AMPLE, &steps);
}

#[test]
fn a_listing_from_before_does_not_take_a_directory_away_that_was_found_since() {
    let steps = [
        put("e/s", 1),
        Step::OpenDir { path: p("e") },
        Step::ReadDir { dir: 0, count: 4, back: 0, plus: true },
        put("e/s/a", 1),
        open_both_ways("e/s/a"),
        Step::ReadDir { dir: 0, count: 1, back: 1, plus: true },
        Step::Write { file: 0, offset: 0, len: 1, sync: true },
    ];
    holds(CachePolicy::Never, AMPLE, &steps);
}

#[test]
fn a_directory_of_unfinished_files_is_not_renamed_over_one_that_is_not_empty() {
    let steps = [
        put("d/a", 1),
        Step::PutMarker { path: p("e/s/a") },
        create("d/s"),
        delete("d/a"),
        Step::Rename { from: p("d"), to: p("e"), noreplace: false },
    ];
    holds(CachePolicy::Never, AMPLE, &steps);
}

#[test]
fn a_file_in_a_directory_that_others_removed_is_as_one_that_others_removed() {
    let steps = [
        put("e/s", 1),
        open_both_ways("e/s"),
        delete("e/s"),
        open("e/s/a"),
        write(0, 0, 1),
        put("e/s", 1),
        open_both_ways("e/s"),
    ];
    holds(CachePolicy::Never, SCARCE, &steps);
}

#[test]
fn a_file_emptied_after_others_deleted_it_is_the_one_that_creating_opens() {
    let steps = [
        create("a"),
        write(0, 0, 1_032),
        Step::Flush { file: 0 },
        delete("a"),
        Step::Truncate { file: 0, size: 0 },
        create("a"),
        write(0, 0, 1),
        Step::Fsync { file: 0 },
    ];
    holds(CachePolicy::Always, AMPLE, &steps);
}

#[test]
fn a_file_whose_upload_was_not_acknowledged_says_so_when_it_is_closed() {
    let exclusive =
        Step::Create { path: p("d/s/b"), access: Access::ReadOnly, exclusive: true, truncate: false, append: false };
    let steps = [put("d/s/a", 1), exclusive, fail("compose", When::After), Step::SyncFs, Step::Close { file: 0 }];
    holds(CachePolicy::Always, SCARCE, &steps);
}

#[test]
fn a_file_sent_halfway_through_a_write_owes_others_nothing_of_the_rest() {
    let steps = [
        put("d/a", 1),
        create("d/b"),
        Step::Create { path: p("b"), access: Access::WriteOnly, exclusive: false, truncate: false, append: false },
        write(0, 1_695, 8_402),
        create("d/s"),
        write(2, 0, 5_232),
        write(0, 0, 1),
        write(1, 0, 5_441),
        put("b", 1),
        Step::Fsync { file: 1 },
    ];
    holds(CachePolicy::Always, SCARCE, &steps);
}

#[test]
fn a_new_file_over_an_object_of_the_same_bytes_moves_without_it() {
    let steps = [
        Step::Mknod { path: p("b") },
        put("d/a", 1),
        create("d/s"),
        rename("d/s", "b"),
        Step::Unlink { path: p("d/a") },
        rename("b", "d/a"),
    ];
    holds(CachePolicy::Never, AMPLE, &steps);
}

#[test]
fn a_file_that_others_made_a_directory_of_is_told_as_either_while_names_are_trusted() {
    let steps = [
        put("e/a", 0),
        Step::Create { path: p("d"), access: Access::WriteOnly, exclusive: false, truncate: false, append: false },
        put("d/a", 0),
        Step::Close { file: 0 },
        rename("e/a", "d"),
        Step::LookAtEverything,
    ];
    holds(CachePolicy::Always, AMPLE, &steps);
}

#[test]
fn a_listing_from_before_its_directory_moved_makes_no_open_file_stale() {
    let steps = [
        put("e/a", 0),
        Step::Mkdir { path: p("d") },
        Step::Open { path: p("e/a"), access: Access::WriteOnly, truncate: false, append: false },
        Step::OpenDir { path: p("e") },
        Step::ReadDir { dir: 0, count: 3, back: 0, plus: false },
        rename("e", "d/a"),
        Step::ReadDir { dir: 0, count: 2, back: 1, plus: true },
        write(0, 0, 1),
    ];
    run(CachePolicy::Always, AMPLE, &steps).expect("as the contract says");
}

#[test]
fn a_listing_from_before_an_upload_takes_away_no_directory_above_it() {
    let steps = [
        put("e/s/a", 0),
        Step::Expire,
        Step::Create { path: p("e/a"), access: Access::WriteOnly, exclusive: false, truncate: false, append: false },
        Step::Delete { path: p("e/s/a") },
        Step::Expire,
        Step::LookAtEverything,
        write(0, 0, 1),
        create("a"),
    ];
    run(CachePolicy::Always, AMPLE, &steps).expect("as the contract says");
}

#[test]
fn a_directory_that_got_its_marker_outlives_what_was_asked_before_it() {
    let steps = [
        put("d/s/b", 0),
        Step::Open { path: p("d/s/b"), access: Access::WriteOnly, truncate: false, append: false },
        write(0, 0, 1),
        Step::LookAtEverything,
        Step::Delete { path: p("d/s/b") },
        Step::Expire,
        Step::Unlink { path: p("d/s/b") },
        Step::Mkdir { path: p("d/a") },
    ];
    run(CachePolicy::Always, AMPLE, &steps).expect("as the contract says");
}

#[test]
fn a_listing_from_before_an_upload_does_not_bring_back_the_old_length() {
    let steps = [
        Step::Mkdir { path: p("d") },
        Step::OpenDir { path: p("d") },
        Step::Create { path: p("d/a"), access: Access::WriteOnly, exclusive: false, truncate: false, append: false },
        Step::SyncFs,
        write(0, 0, 1),
        Step::ReadDir { dir: 0, count: 3, back: 0, plus: false },
        Step::Close { file: 0 },
        Step::Forget,
        Step::ReadDir { dir: 0, count: 2, back: 1, plus: true },
        Step::LookAtEverything,
    ];
    run(CachePolicy::Always, AMPLE, &steps).expect("as the contract says");
}

#[test]
fn what_is_a_file_and_a_directory_may_be_seen_as_it_was_listed() {
    let steps = [
        put("e/s/a", 1),
        put("e", 0),
        Step::Open { path: p("e/s/a"), access: Access::WriteOnly, truncate: false, append: false },
        put("b", 0),
        write(0, 1, 1),
        Step::Delete { path: p("e/s/a") },
        Step::Expire,
        create("a"),
        create("b"),
        Step::TruncatePath { path: p("d"), size: 0 },
        Step::PutMarker { path: p("e/s") },
        Step::Close { file: 9 },
        create("a"),
        Step::Mkdir { path: p("e/a") },
    ];
    run(CachePolicy::Always, AMPLE, &steps).expect("as the contract says");
}

#[test]
fn a_change_that_is_none_of_what_nobody_can_tell_need_not_be_stored() {
    let create =
        |path, access| Step::Create { path: p(path), access, exclusive: false, truncate: false, append: false };
    let open = |path, access| Step::Open { path: p(path), access, truncate: false, append: false };
    let steps = [
        create("d", Access::ReadOnly),
        create("a", Access::ReadOnly),
        create("a", Access::ReadOnly),
        create("a", Access::ReadOnly),
        Step::Close { file: 0 },
        put("d/b", 0),
        Step::Close { file: 0 },
        put("d/s/a", 1),
        create("d", Access::ReadOnly),
        Step::Close { file: 0 },
        create("a", Access::WriteOnly),
        open("d/s/a", Access::ReadOnly),
        create("d", Access::ReadOnly),
        Step::Fail { operation: 8, when: When::Before, kind: 0 },
        rename("d/b", "d/s/a"),
        create("b", Access::ReadOnly),
        rename("b", "b"),
        Step::Close { file: 3 },
        open("d/s/a", Access::ReadOnly),
        Step::Close { file: 6 },
        Step::Copy { from: 2, from_offset: 0, to: 7, to_offset: 0, len: 1 },
        Step::Flush { file: 4 },
        Step::Allocate { file: 7, mode: Allocate::KeepSize, offset: 0, len: 1 },
        create("a", Access::ReadOnly),
        Step::Delete { path: p("a") },
    ];
    run(CachePolicy::Always, AMPLE, &steps).expect("as the contract says");
}

#[test]
fn a_directory_whose_marker_others_deleted_stays_when_its_unstored_file_goes() {
    let steps = [
        put("d/a", 0),
        Step::PutMarker { path: p("e/s") },
        create("e/s/a"),
        Step::DeleteMarker { path: p("e/s") },
        rename("e/s/a", "d/a"),
    ];
    run(CachePolicy::Never, AMPLE, &steps).expect("as the contract says");
}

#[test]
fn an_open_file_keeps_its_length_when_others_make_a_directory_of_its_name() {
    let steps = [
        put("e", 1),
        Step::Mknod { path: p("e") },
        put("e/a", 0),
        Step::Open { path: p("e"), access: Access::ReadOnly, truncate: false, append: false },
        Step::Expire,
        Step::StatOpen { file: 0 },
    ];
    run(CachePolicy::Always, AMPLE, &steps).expect("as the contract says");
}

#[test]
fn a_file_that_a_directory_hides_loses_its_name_when_that_is_seen() {
    let steps = [
        put("d/s", 0),
        create("a"),
        create("a"),
        Step::LookAtEverything,
        put("d/s/a", 0),
        Step::Open { path: p("d/s"), access: Access::WriteOnly, truncate: false, append: false },
        Step::Expire,
        Step::Create { path: p("d/s"), access: Access::ReadOnly, exclusive: false, truncate: false, append: false },
        write(2, 0, 1),
    ];
    run(CachePolicy::Always, AMPLE, &steps).expect("as the contract says");
}

#[test]
fn asking_for_an_open_file_does_not_prolong_the_trust_in_its_name() {
    let steps = [
        put("e", 0),
        Step::Open { path: p("e"), access: Access::ReadOnly, truncate: false, append: false },
        put("e/a", 0),
        Step::Expire,
        Step::StatOpen { file: 0 },
        Step::Unlink { path: p("e/a") },
    ];
    run(CachePolicy::Always, AMPLE, &steps).expect("as the contract says");
}

#[test]
fn a_file_that_a_directory_hides_loses_its_name_when_the_directory_is_listed() {
    let steps = [
        create("e/s"),
        put("e/a", 0),
        create("e/s"),
        write(0, 359, 282),
        Step::Remount,
        Step::OpenDir { path: p("e") },
        Step::Stat { path: p("e/s") },
        create("a"),
        put("e/s/a", 0),
        Step::Open { path: p("e/s"), access: Access::ReadWrite, truncate: false, append: false },
        Step::ReadDir { dir: 0, count: 4, back: 0, plus: true },
        Step::Copy { from: 1, from_offset: 0, to: 0, to_offset: 0, len: 1 },
    ];
    run(CachePolicy::Always, AMPLE, &steps).expect("as the contract says");
}

#[test]
fn a_file_that_is_renamed_to_what_a_directory_hides_may_be_seen_for_a_while() {
    let steps = [
        create("b"),
        Step::Close { file: 0 },
        create("d"),
        Step::Fsync { file: 0 },
        Step::TruncatePath { path: p("d"), size: 1 },
        put("d/a", 0),
        Step::Expire,
        rename("b", "d"),
        Step::LookAtEverything,
    ];
    holds(CachePolicy::Always, AMPLE, &steps);
}

#[test]
fn a_file_that_a_rename_brought_to_the_store_may_be_deleted_there() {
    let steps = [
        Step::PutMarker { path: p("e") },
        put("d/a", 0),
        create("a"),
        create("e/a"),
        write(1, 0, 8192),
        rename("e", "d/s"),
        delete("d/s/a"),
        Step::Fsync { file: 1 },
    ];
    holds(CachePolicy::Never, AMPLE, &steps);
}

#[test]
fn a_directory_whose_marker_others_took_from_beside_a_file_of_its_name_stays_for_the_guest() {
    let steps = [
        Step::PutMarker { path: p("e/s") },
        put("e/s", 0),
        create("e/s/a"),
        put("d/a", 0),
        Step::DeleteMarker { path: p("e/s") },
        rename("e/s/a", "d/a"),
    ];
    holds(CachePolicy::Never, AMPLE, &steps);
    holds(CachePolicy::Always, AMPLE, &steps);
}

#[test]
fn what_is_sent_in_pieces_does_not_replace_what_others_put_there() {
    let steps = [
        put("d/s/a", 0),
        Step::Create { path: p("d/s/b"), access: Access::WriteOnly, exclusive: false, truncate: false, append: true },
        write(0, 0, 4096),
        Step::Flush { file: 0 },
        write(0, 0, 8193),
        put("d/s/b", 0),
        write(0, 0, 1),
        create("a"),
        create("a"),
    ];
    holds(CachePolicy::Never, AMPLE, &steps);
    holds(CachePolicy::Never, SCARCE, &steps);
    holds(CachePolicy::Always, AMPLE, &steps);
    holds(CachePolicy::Always, SCARCE, &steps);
}

#[test]
fn an_open_file_that_a_directory_hides_and_that_moves_with_it_is_never_absent() {
    let steps = [
        put("d/s/a", 0),
        open_both_ways("d/s/a"),
        Step::PutMarker { path: p("d/s/a") },
        Step::Write { file: 0, offset: 120, len: 1497, sync: true },
        rename("d/s", "e"),
        open("e/a"),
        Step::Read { file: 0, offset: 0, len: 1 },
    ];
    holds(CachePolicy::Never, AMPLE, &steps);
}
