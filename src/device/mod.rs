//! The vhost-user device: vrings, descriptor chains, queue workers, completions.
//!
//! A request's way: the front end hands over guest memory and vrings (`connection`, `control`); a kick wakes the queue's
//! worker, which takes a batch of chains out of the ring (`queue`), copies their descriptors (`message`), polls each
//! request's future once and publishes those that are ready together (`executor`). The others stay in the worker until
//! they are woken. This layer knows virtio and nothing of what a request means; what answers requests is behind
//! [`Serve`].
//!
//! A guest can break its own vring and nothing else: not the thread, not the other vrings, not the connection.

mod config_space;
mod connection;
mod control;
mod dirty_log;
mod event;
mod executor;
mod in_flight;
mod limiter;
mod message;
mod migration;
mod polling;
mod queue;
mod serve_fuse;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::executor::{ThreadPool, block_on};
use vhost::vhost_user::Error as ProtocolError;
use vhost_user_backend::Error as DaemonError;

use crate::fs::Migrate;
use config_space::ConfigSpace;
use control::{Control, Hooks};
use executor::Worker;
use migration::Migration;

pub use config_space::TAG_LEN_MAX;
pub use message::{GuestSink, GuestSource, MESSAGE_LEN_MAX};

/// Largest vring, in descriptors.
const QUEUE_SIZE_MAX: u16 = 32768;

/// Memory regions that a front end may add.
const MEMORY_SLOTS: u64 = 509;

/// How long the end of a connection waits for requests in flight. Their answers reach nobody any more.
const DISCONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// Lines that launchers wait for carry the program's name, as virtiofsd's do.
const LOG_TARGET: &str = "ovfs";

/// What answers the requests.
pub trait Serve: Send + Sync + 'static {
    /// Answers one request; returns how many bytes of `reply` were written (0: no reply is due, or none fits).
    /// The first poll must not block on anything that other requests wait for.
    fn serve(&self, request: GuestSource, reply: GuestSink) -> impl Future<Output = u32> + Send;

    /// Ends the guest's session (RESET_DEVICE); no request is in flight.
    fn reset(&self) -> impl Future<Output = ()> + Send;

    /// All vrings are stopped (pause, migration, shutdown of the guest) and no request is in flight: time to make
    /// durable what was acknowledged. Bounded by a deadline of its own; the front end waits.
    fn stopped(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// How the device presents itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The name by which the guest mounts, 1 to 36 bytes; without it the front end provides the configuration space.
    pub tag: Option<String>,
    /// Threads that requests are handed to; 0 serves them on their queue's own thread.
    pub thread_pool_size: usize,
    /// Request queues that a front end may use, 1 to 63; the hiprio queue comes on top.
    pub request_queues: u16,
    /// Request queues announced in the configuration space.
    pub announced_request_queues: u32,
    /// How long a queue under load is watched for the next request before the guest is asked for kicks; zero: never.
    pub poll: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config { tag: None, thread_pool_size: 0, request_queues: 8, announced_request_queues: 1, poll: Duration::ZERO }
    }
}

/// Why the device did not start. The texts are virtiofsd's.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Threads cannot have working directories of their own.
    #[error(
        "Error creating vhost-user backend: The unshare(CLONE_FS) syscall failed with '{0}'. If running in a \
         container please check that the container runtime seccomp policy allows unshare."
    )]
    UnshareCloneFs(#[source] io::Error),
    /// The threads of `thread_pool_size` cannot be made.
    #[error("Error creating vhost-user backend: CreateThreadPool({0:?})")]
    CreateThreadPool(#[source] io::Error),
    /// The vrings cannot be made.
    #[error("Error creating vhost-user backend: {0}")]
    CreateVring(#[source] virtio_queue::Error),
    /// No client can be accepted.
    #[error("Failed to start daemon: {0:?}")]
    Accept(DaemonError),
}

/// Serves one front end from its connection to its end, on this thread and one per queue in use.
///
/// Returns when the front end has gone and what was in flight is finished or given up; flushing is the caller's.
/// A connection that ends badly is logged, as virtiofsd does, and is no error.
///
/// # Errors
/// When the device cannot be set up or no client can be accepted.
pub fn serve<S: Serve>(
    config: &Config,
    server: Arc<S>,
    migrate: Option<Arc<dyn Migrate>>,
    listener: &UnixListener,
) -> Result<(), StartError> {
    // Each queue's thread does this; a container may refuse it, which must show now.
    unshare_fs().map_err(StartError::UnshareCloneFs)?;
    let control = Arc::new(Mutex::new(new_control(config, server, migrate)?));

    log::info!(target: LOG_TARGET, "Waiting for vhost-user socket connection...");
    let socket = connection::accept(listener)
        .map_err(|error| StartError::Accept(DaemonError::CreateBackendListener(ProtocolError::SocketError(error))))?;
    log::info!(target: LOG_TARGET, "Client connected, servicing requests");

    match connection::run(&socket, &control) {
        Ok(()) | Err(ProtocolError::Disconnected | ProtocolError::SocketBroken(_)) => {
            log::info!(target: LOG_TARGET, "Client disconnected, shutting down");
        }
        Err(error) => {
            log::error!(target: LOG_TARGET, "Waiting for daemon failed: {:?}", DaemonError::HandleRequest(error));
        }
    }
    let unfinished = control.lock().unwrap_or_else(PoisonError::into_inner).shut_down(DISCONNECT_PATIENCE);
    if unfinished > 0 {
        log::warn!("{unfinished} requests were not finished when the client had gone");
    }
    Ok(())
}

fn new_control<S: Serve>(
    config: &Config,
    server: Arc<S>,
    migrate: Option<Arc<dyn Migrate>>,
) -> Result<Control, StartError> {
    let pool = match config.thread_pool_size {
        0 => None,
        size => Some(new_pool(size).map_err(StartError::CreateThreadPool)?),
    };
    let hooks = Hooks {
        reset: hook(&server, |server| block_on(server.reset())),
        stopped: hook(&server, |server| block_on(server.stopped())),
    };
    let poll = config.poll;
    let spawn = move |ring: Arc<queue::Ring>| {
        // FORGET and its like, on queue 0, never wait behind data in the pool.
        let pool = if ring.index() == 0 { None } else { pool.clone() };
        let server = Arc::clone(&server);
        Worker::new(ring, pool, poll, move |request, reply| serve_one(Arc::clone(&server), request, reply))?.spawn()
    };
    Control::new(
        usize::from(config.request_queues.clamp(1, 63)) + 1,
        ConfigSpace::new(config.tag.as_deref(), config.announced_request_queues),
        Migration::new(migrate),
        Box::new(spawn),
        hooks,
    )
    .map_err(StartError::CreateVring)
}

/// Something to do on the thread of the control messages, which a panic must not end.
fn hook<S: Serve>(server: &Arc<S>, call: fn(&S)) -> Box<dyn Fn() + Send> {
    let server = Arc::clone(server);
    Box::new(move || {
        if catch_unwind(AssertUnwindSafe(|| call(&server))).is_err() {
            log::error!("Stopping or resetting the device panicked");
        }
    })
}

async fn serve_one<S: Serve>(server: Arc<S>, request: GuestSource, reply: GuestSink) -> u32 {
    server.serve(request, reply).await
}

/// Threads with working directories of their own, under the name of the thread that makes them.
fn new_pool(size: usize) -> io::Result<ThreadPool> {
    ThreadPool::builder()
        .pool_size(size)
        .after_start(|_| {
            if let Err(error) = unshare_fs() {
                log::error!("A pool thread shares its working directory: {error}");
            }
        })
        .create()
}

/// Gives this thread a working directory and a umask of its own: file systems change them around some calls.
fn unshare_fs() -> io::Result<()> {
    // SAFETY: unshare(2) takes no pointers; CLONE_FS changes only what this thread's path look-ups start from.
    match unsafe { libc::unshare(libc::CLONE_FS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
