//! The FUSE server behind the device.

use std::future::Future;
use std::time::Duration;

use super::{GuestSink, GuestSource, Serve};
use crate::fs::FileSystem;
use crate::fuse::Server;

/// How long a pause, a migration or a reboot of the guest waits for acknowledged data to reach the store.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

impl<F: FileSystem> Serve for Server<F> {
    fn serve(&self, request: GuestSource, reply: GuestSink) -> impl Future<Output = u32> + Send {
        Server::serve(self, request, reply)
    }

    fn reset(&self) -> impl Future<Output = ()> + Send {
        Server::reset(self)
    }

    async fn stopped(&self) {
        let left = self.fs().flush_all(STOP_PATIENCE).await;
        if left > 0 {
            log::error!("The device stopped with {left} bytes that are not in the store yet; they are kept");
        }
    }
}
