//! The end, with data that is not stored yet: it is stored as far as time allows, with a word on how that goes; what is left is kept
//! elsewhere if there is a place for it, and named if it is lost.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use futures::executor::block_on;
use log::{error, info};

use crate::fs::{FileSystem, Unstored};
use crate::process::log::TARGET;

/// How often it is said how far it is.
const PROGRESS: Duration = Duration::from_secs(3);

/// How long after the store did not take it something is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Stores what is dirty, for at most `time`. Returns how many bytes are lost; each file that is, is in the log.
pub(super) fn finish<F: FileSystem>(fs: &Arc<F>, time: Duration) -> u64 {
    let begun = Instant::now();
    let end = begun + time;
    let at_first = fs.unstored();
    let (done, is_done) = mpsc::channel();
    let flushing = Arc::clone(fs);
    let flush = std::thread::Builder::new().name("last-flush".into()).spawn(move || {
        loop {
            let left = block_on(flushing.flush_all(end.saturating_duration_since(Instant::now())));
            // What the store has refused for good is not worth another try.
            let again = left > 0 && flushing.unstored() > 0 && Instant::now() + AGAIN < end;
            if !again {
                // Nobody listens once the time is over.
                let _ = done.send(());
                return;
            }
            std::thread::park_timeout(AGAIN);
        }
    });
    if let Err(e) = flush {
        error!(target: TARGET, "nothing more can be stored, for there is no thread for it: {e}");
    }
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match is_done.recv_timeout(PROGRESS.min(left)) {
            Err(RecvTimeoutError::Timeout) if Instant::now() < end => {
                info!(target: TARGET, "{}", progress(at_first, fs.unstored(), begun.elapsed(), end - Instant::now()));
            }
            _ => break,
        }
    }
    let mut lost = 0;
    for Unstored { path, size, lost: why } in block_on(fs.keep_unstored()) {
        if let Some(why) = why {
            error!(target: TARGET, "'{path}': {size} bytes could not be stored and are lost: {why}");
            lost += size.max(1);
        }
    }
    lost
}

/// How far it is.
fn progress(at_first: u64, left: u64, took: Duration, time: Duration) -> String {
    let stored = at_first.saturating_sub(left) as f64;
    let rate = stored / took.as_secs_f64().max(0.001) / f64::from(1 << 20);
    format!(
        "{left} bytes are still to be stored, {rate:.1} MiB are stored in a second; {} s are left for it",
        time.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_what_is_left_and_how_fast_it_goes() {
        let seconds = Duration::from_secs;
        assert_eq!(
            progress(30 << 20, 10 << 20, seconds(4), seconds(26)),
            "10485760 bytes are still to be stored, 5.0 MiB are stored in a second; 26 s are left for it"
        );
        assert!(progress(0, 5, seconds(0), seconds(1)).contains(" 0.0 MiB"), "written meanwhile");
    }
}
