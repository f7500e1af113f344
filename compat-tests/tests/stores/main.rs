//! One suite, every store: the same cases through the whole daemon against each, and the table of what came of them.
//!
//! A case is a function with a telling name. It answers with a verdict: `full`, `emulated`, `refused`, `n/a` or `wrong`, and
//! one line why. The verdicts of all cases on all stores are the table `expected/stores.toml`, compared exactly:
//! what got worse fails, and so does what got better, until the table says so.
//!
//! `OVFS_UPDATE_EXPECTED=1` writes the table. `OVFS_STORES=fs,s3` and `OVFS_CASES=a_file,exclusive` (beginnings of names) run a
//! part of it.

mod attributes;
mod dirs;
mod files;
mod lasting;
mod names;
mod sharing;
mod stage;

use std::sync::Mutex;
use std::time::Instant;

use ovfs_compat_tests::stores::Kind;
use ovfs_compat_tests::stores::table::{Level, Table, Verdict};

use stage::{Outcome, Stage};

type Case = (&'static str, fn(&mut Stage) -> Outcome);

macro_rules! cases {
    ($($group:ident { $($name:ident)* })*) => {
        &[$($((stringify!($name), $group::$name)),*),*]
    };
}

const CASES: &[Case] = cases! {
    files {
        a_file_is_created_and_read_back an_empty_file_is_an_object a_file_is_overwritten a_write_in_the_middle_changes_it_alone
        an_append_lands_at_the_end a_file_is_truncated_by_its_path an_open_file_is_truncated
        a_sparse_write_leaves_zeros a_large_file_is_written_in_pieces_and_changed_in_the_middle
        a_large_file_is_appended_to copy_file_range_copies_a_large_file an_unlinked_open_file_stays_readable
    }
    names {
        exclusive_create_refuses_what_is_there exclusive_create_notices_a_writer_outside
        exclusive_create_is_atomic_against_a_writer_outside a_file_is_renamed a_file_is_renamed_over_another
        an_open_dirty_file_is_renamed a_directory_of_50_is_renamed names_that_no_file_system_can_hold_are_hidden
        a_directory_and_an_object_of_one_name
    }
    dirs {
        rmdir_of_a_full_directory_is_enotempty rmdir_sees_an_entry_from_outside an_empty_directory_survives_a_remount
        a_prefix_is_a_directory a_directory_of_2500_is_listed_once_each
    }
    sharing {
        a_change_outside_is_seen_at_the_next_open a_change_of_equal_size_and_time_is_seen_at_the_next_open
        an_open_file_replaced_outside_is_never_a_mix an_open_file_deleted_outside_is_no_other_file
        a_write_on_a_stale_base_is_a_conflict a_write_on_a_stale_base_is_a_conflict_even_in_a_race
        two_daemons_are_close_to_open
    }
    attributes {
        mtime_of_a_written_file_is_about_now utimens_sets_the_mtime chmod_and_chown_do_no_harm statfs_has_room
        symbolic_links hard_links fifos device_nodes user_xattrs posix_metadata_is_kept
    }
    lasting {
        what_was_closed_outlives_a_killed_daemon what_was_fsynced_outlives_a_killed_daemon
    }
};

const HEAD: &str = "\
What each store does with each case of compat-tests/tests/stores, found by that test and compared with it.
After a change that is meant: OVFS_UPDATE_EXPECTED=1 cargo test -p ovfs-compat-tests --test stores

full      as on a disk
emulated  the guest sees what it would see on a disk, or nearly; the reason says how, and what it costs
refused   an errno, or the daemon does not start
n/a       the question does not arise
wrong     something else than the contract says

gcs-fake-gcs-server is another's emulator: it ignores conditions on uploads, has no XML multipart uploads (so large new
files fail), and refuses OpenDAL's batches of deletions. gcs-own-model is a model of our own that has all that: it
shows what ovfs does with a server that does as Google documents, and no more than that.";

/// Whether `name` is meant by the environment variable `variable`, a list of beginnings of names.
fn wanted(variable: &str, name: &str) -> bool {
    std::env::var(variable).map_or(true, |list| list.split(',').any(|beginning| name.starts_with(beginning)))
}

type Found = Vec<(&'static str, Kind, Verdict)>;

/// What was found, and what the committed table says of the rest, in this suite's order.
fn merge(committed: &Table, found: &Found) -> Table {
    let mut table = Table::default();
    for (case, _) in CASES {
        for kind in Kind::EVERY {
            let new = found.iter().find(|(name, on, _)| name == case && *on == kind).map(|(_, _, verdict)| verdict);
            if let Some(verdict) = new.or_else(|| committed.get(case, kind.name())) {
                table.set(case, kind.name(), verdict.clone());
            }
        }
    }
    table
}

#[test]
fn every_store_does_what_the_table_says() {
    let text = std::fs::read_to_string(Table::path()).unwrap_or_default();
    let committed = Table::parse(&text).expect("the committed table");
    let update = std::env::var_os("OVFS_UPDATE_EXPECTED").is_some();
    let stores = Kind::EVERY.map(Kind::name);
    let found = Mutex::new(Found::new());
    let run = |kind: Kind| {
        let began = Instant::now();
        let mut stage = Stage::new(kind);
        for (name, case) in CASES.iter().filter(|(name, _)| wanted("OVFS_CASES", name)) {
            let began = Instant::now();
            let verdict = stage.run(name, *case);
            println!("{:20} {name}: {verdict} ({:.1} s)", kind.name(), began.elapsed().as_secs_f32());
            found.lock().expect("no panics here").push((*name, kind, verdict));
        }
        println!("{:20} took {:.1} s", kind.name(), began.elapsed().as_secs_f32());
        let found = found.lock().expect("no panics here");
        if update {
            std::fs::write(Table::path(), merge(&committed, &found).render(HEAD, &stores)).expect("it can be written");
        }
    };
    std::thread::scope(|scope| {
        for kind in Kind::EVERY.into_iter().filter(|kind| wanted("OVFS_STORES", kind.name())) {
            let run = &run;
            let thread = std::thread::Builder::new().name(kind.name().into());
            thread.spawn_scoped(scope, move || run(kind)).expect("a thread");
        }
    });
    let table = merge(&committed, &found.into_inner().expect("no panics here"));
    let differences = committed.differences(&table, &stores);
    assert!(
        update || differences.is_empty(),
        "{} cells differ from {} (OVFS_UPDATE_EXPECTED=1 writes it anew):\n{}",
        differences.len(),
        Table::path().display(),
        differences.join("\n")
    );
}

#[test]
fn the_table_has_every_case_on_every_store_and_nothing_wrong_without_a_reason() {
    let text = std::fs::read_to_string(Table::path()).expect("the table");
    let table = Table::parse(&text).expect("the committed table");
    let names: Vec<&str> = CASES.iter().map(|(name, _)| *name).collect();
    assert_eq!(table.cases(), names);
    for case in names {
        for kind in Kind::EVERY {
            let verdict = table.get(case, kind.name()).unwrap_or_else(|| panic!("no [{case}] {}", kind.name()));
            let plain = verdict.level == Level::Full;
            assert!(plain || !verdict.reason.is_empty(), "[{case}] {} says not why", kind.name());
        }
    }
}
