//! What a process writes, kept as it comes: a daemon must never wait for a test that does not read.

use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Everything that came out of a pipe, read by a thread of its own.
pub(super) struct Capture {
    shared: Arc<(Mutex<Captured>, Condvar)>,
}

#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    ended: bool,
}

impl Capture {
    pub(super) fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let shared = Arc::new((Mutex::new(Captured::default()), Condvar::new()));
        let writer = Arc::clone(&shared);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = match pipe.read(&mut buffer) {
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => 0,
                };
                let mut captured = lock(&writer.0);
                captured.bytes.extend_from_slice(&buffer[..count]);
                captured.ended = count == 0;
                writer.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        Self { shared }
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&lock(&self.shared.0).bytes).into_owned()
    }

    /// True once the text is there; false at the end of the pipe or of the time.
    pub(super) fn wait_for(&self, text: &str, timeout: Duration) -> bool {
        let has = |captured: &Captured| captured.bytes.windows(text.len()).any(|window| window == text.as_bytes());
        let (captured, condition) = &*self.shared;
        let waiting = |captured: &mut Captured| !captured.ended && !has(captured);
        let result = condition.wait_timeout_while(lock(captured), timeout, waiting);
        has(&result.unwrap_or_else(PoisonError::into_inner).0)
    }

    pub(super) fn wait_end(&self, timeout: Duration) {
        let (captured, condition) = &*self.shared;
        let result = condition.wait_timeout_while(lock(captured), timeout, |captured| !captured.ended);
        drop(result.unwrap_or_else(PoisonError::into_inner));
    }
}

fn lock(captured: &Mutex<Captured>) -> MutexGuard<'_, Captured> {
    captured.lock().unwrap_or_else(PoisonError::into_inner)
}
