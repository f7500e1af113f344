//! `ovfs status` and the metrics, held against what a guest and a relay in front of the store have counted themselves.

mod ask;
mod load;
mod metrics;
mod trouble;

use std::time::{Duration, Instant};

use ovfs_compat_tests::daemon::patience;
use ovfs_compat_tests::guest::Guest;
use ovfs_compat_tests::launch::{Daemon, Exit, Launch, Scratch, Which, binary};
use ovfs_compat_tests::mounted::Mounted;
use ovfs_compat_tests::stores::TestStore;
use serde_json::Value;

/// ovfs with one store, and a guest.
struct Share {
    guest: Guest,
    daemon: Daemon,
    scratch: Scratch,
}

impl Share {
    fn socket(&self) -> String {
        self.scratch.join("run/s").display().to_string()
    }

    /// What `ovfs status --json --total` says.
    fn status(&self) -> Value {
        json(&self.socket())
    }
}

fn serve(store: &TestStore, args: &[&str]) -> Share {
    let Mounted { guest, daemon, scratch } = Mounted::new(store, args);
    Share { guest, daemon, scratch }
}

fn json(target: &str) -> Value {
    let finished = Launch::new(binary(Which::Ovfs)).args(["status", "--json", "--total", target]).run();
    assert_eq!(finished.exit, Exit::Code(0), "{}", finished.stderr);
    assert_eq!(finished.stdout.lines().count(), 1, "{}", finished.stdout);
    serde_json::from_str(&finished.stdout).expect("JSON")
}

/// A number somewhere in a value; what is not there counts as 0.
fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).map_or(0, |number| number.as_u64().unwrap_or_else(|| panic!("{pointer}: {number}")))
}

/// Asks until `is` holds of the answer, which is then returned, or patience ends.
fn until<T>(mut ask: impl FnMut() -> T, is: impl Fn(&T) -> bool) -> T {
    let end = Instant::now() + patience();
    loop {
        let answer = ask();
        if is(&answer) || Instant::now() >= end {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
