//! The FUSE server behind the device.

use std::future::Future;

use super::{GuestSink, GuestSource, Serve};
use crate::fs::FileSystem;
use crate::fuse::Server;

impl<F: FileSystem> Serve for Server<F> {
    fn serve(&self, request: GuestSource, reply: GuestSink) -> impl Future<Output = u32> + Send {
        Server::serve(self, request, reply)
    }

    fn reset(&self) -> impl Future<Output = ()> + Send {
        Server::reset(self)
    }
}
