//! The device process's end of the store socket.
//!
//! After start-up the device process may neither poll(2) nor sleep nor use the socket calls, so this end is plain: requests
//! are written with write(2) under a mutex, one thread reads replies and wakes the futures that wait for them, one
//! watches deadlines, one runs flushes. No runtime.
//!
//! **Who owns the pool's slices.** A request may name slices of the pool ([`Op::Read`], [`Op::Compose`]), and the broker works
//! with them until it replies, whether or not anybody still waits. So such a request takes a *keep*: any value that owns
//! those slices (a block guard, an `Arc` of the dirty extents). The client holds it until the reply arrives or the
//! broker is gone, and drops it then; dropping the future before drops only the waiting. As long as whoever recycles
//! slices does so when their owner is dropped, no slice is reused early.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use super::exchange::{Call, Shared, error};
pub use super::exchange::{IN_FLIGHT_MAX, Keep};
use super::protocol::*;

/// The device process's end of the store socket.
pub struct StoreClient {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for StoreClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreClient").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

impl StoreClient {
    /// Starts the threads `store-read`, `store-watch` and `store-flush`. Call it before the seccomp filter falls.
    ///
    /// `request_timeout` is the broker's own; a broker silent for twice as long and five seconds is given up, for requests
    /// that do not write. `on_flush` gets the time left and returns how many bytes could not be stored; it runs on
    /// its own thread when the daemon is to end.
    ///
    /// # Errors
    /// dup(2)'s and clone(2)'s.
    pub fn start(
        sock: OwnedFd,
        request_timeout: Duration,
        on_flush: impl FnMut(Duration) -> u64 + Send + 'static,
    ) -> io::Result<Arc<StoreClient>> {
        StoreClient::start_changing(sock, request_timeout, on_flush, |change| log::error!("unexpected: {change:?}"))
    }

    /// As [`StoreClient::start`], for mounts that can change: `on_change` is called on a thread of its own (`store-change`) with one
    /// change after the other.
    ///
    /// # Errors
    /// As [`StoreClient::start`].
    pub fn start_changing(
        sock: OwnedFd,
        request_timeout: Duration,
        mut on_flush: impl FnMut(Duration) -> u64 + Send + 'static,
        mut on_change: impl FnMut(Change) + Send + 'static,
    ) -> io::Result<Arc<StoreClient>> {
        let reader = File::from(sock.try_clone()?);
        let shared = Arc::new(Shared::new(File::from(sock), request_timeout));
        let (flush, flushes) = mpsc::channel::<Duration>();
        let (change, changes) = mpsc::channel::<Change>();
        let thread = |name: &str| std::thread::Builder::new().name(name.into());

        let with = Arc::clone(&shared);
        thread("store-flush").spawn(move || {
            for left in flushes {
                let bytes_lost = on_flush(left);
                if let Err(e) = with.send(&ToBroker::Flushed { bytes_lost }) {
                    log::error!("cannot tell the broker that the flush is over: {e}");
                }
            }
        })?;
        thread("store-change").spawn(move || changes.into_iter().for_each(&mut on_change))?;
        let with = Arc::clone(&shared);
        thread("store-watch").spawn(move || with.watch())?;
        let with = Arc::clone(&shared);
        thread("store-read").spawn(move || with.read(reader, flush, change))?;
        Ok(Arc::new(StoreClient { shared }))
    }

    /// Ends the connection, and with it the reader thread. It uses shutdown(2), so it is not for a process under the
    /// seccomp filter, whose connection ends with the process.
    pub fn disconnect(&self) {
        self.shared.close(error(StoreErrorKind::Unavailable, "the store client was disconnected"));
        self.shared.shut_down();
    }

    /// Tells the broker that nothing is left of `mount`.
    pub fn unmounted(&self, mount: MountId) {
        if let Err(e) = self.shared.send(&ToBroker::Unmounted { mount }) {
            log::debug!("nobody is left to be told of mount {mount}: {e}");
        }
    }

    /// How many requests have no reply yet, abandoned ones included.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight()
    }

    /// Sends `op` and waits for the reply, which is of the kind that `op`'s documentation names. `keep` lives until that is
    /// there; see the head of this module.
    ///
    /// # Errors
    /// The broker's; Unavailable if it is gone or silent; Protocol if its reply makes no sense.
    pub async fn call_keeping(&self, mount: MountId, op: Op, keep: Keep) -> Result<Reply, StoreError> {
        Call::new(&self.shared, mount, op, keep).await
    }
}

impl Drop for StoreClient {
    fn drop(&mut self) {
        self.shared.close(error(StoreErrorKind::Unavailable, "the store client was dropped"));
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
