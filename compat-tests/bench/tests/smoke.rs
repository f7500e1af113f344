//! What `ovfs-bench --smoke`, a stage of its own in `scripts/test`, leaves out: rings that are watched instead of notified;
//! and one group of each kind of share. Fails on wrong data, on an answer that is none, on a daemon that ended; never on
//! time.

use ovfs_bench::lane::Wait;
use ovfs_bench::record::Row;
use ovfs_bench::rows::{Failure, Settings, hot, local};

fn passes(rows: Result<Vec<Row>, Failure>, at_least: usize) {
    let rows = rows.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(rows.len() >= at_least, "{} rows", rows.len());
    for row in rows {
        for contender in &row.contenders {
            assert!(!contender.samples.is_empty(), "{}: nothing of {}", row.name, contender.label);
        }
    }
}

#[test]
fn local_rows_hold_right_data_when_polled() {
    passes(local::run(&Settings::smoke(Wait::Busy), Some("4 KiB")), 4);
}

#[test]
fn hot_rows_hold_right_data() {
    passes(hot::run(&Settings::smoke(Wait::Event), None), 4);
}
