//! The broker's life: from the forks to the exit code.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::disk::Disk;
use super::error::error;
use super::mounts::{Mounted, Mounts, Slot};
use super::reload::{self, Configuration};
use crate::store::client::IN_FLIGHT_MAX;
use crate::store::frame::{self, HEADER};
use crate::store::{Op, Pool, Reply, StoreError, StoreErrorKind, ToBroker, ToDevice};

/// Threads that drive requests; each is a few milliseconds of work at most, the rest is waiting.
const THREADS: usize = 2;

/// Most threads for each store that wait in system calls: for a directory's files, and for names of hosts. A store whose
/// calls hang must not take those of the others.
const BLOCKING_THREADS: usize = 512;

/// How long the end waits for what is still under way.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// How the broker works.
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// Every request that does not write is answered within this time. Each step of those that write fails after it, or after a
    /// minute if that is longer (a part of an upload takes its time), and is tried three times at most.
    pub request_timeout: Duration,
    /// Keep [`crate::store::Attributes`] with the objects.
    pub posix_metadata: bool,
    /// Refuse what would change the store.
    pub readonly: bool,
    /// Where blocks of what was read are kept for later, and for other daemons.
    pub disk: Option<Arc<Disk>>,
}

/// Serves `stores` to the device process at the other end of `sock`, until that process ends or a signal (SIGTERM, SIGHUP,
/// SIGINT) asks for the end. Call it after the forks: it starts threads.
///
/// With a `configuration`, settings follow it, and SIGHUP does not end anything but has it read at once.
///
/// `handles_signals` is called on this thread once the signals are taken care of; before, they must be held back.
///
/// `device_process` waits for the device process and returns the exit code to end with; it runs on a thread of its own.
///
/// Returns the exit code: the device process's, or 1 after a signal (with what is dirty stored before, as far as
/// `flush_timeout` allowed; what was lost is in the log) or when a store cannot be put into service. The device process
/// may still be there then; ending it is the caller's business.
pub fn run(
    stores: Vec<Mounted>,
    pool: Arc<Pool>,
    sock: OwnedFd,
    flush_timeout: Duration,
    configuration: Option<Box<dyn Configuration>>,
    handles_signals: impl FnOnce(),
    device_process: impl FnOnce() -> i32 + Send + 'static,
) -> i32 {
    let (asked, stop) = mpsc::channel(2);
    let signals = Some((asked, handles_signals));
    run_until(stores, &pool, sock, flush_timeout, configuration, device_process, signals, stop)
}

/// As [`run`], until `stop` says why; with `signals`, signals say it there, once what stands beside the sender was called.
#[allow(clippy::too_many_arguments, reason = "each is handed through once")]
pub(super) fn run_until(
    stores: Vec<Mounted>,
    pool: &Arc<Pool>,
    sock: OwnedFd,
    flush_timeout: Duration,
    configuration: Option<Box<dyn Configuration>>,
    device_process: impl FnOnce() -> i32 + Send + 'static,
    signals: Option<(mpsc::Sender<&'static str>, impl FnOnce())>,
    stop: mpsc::Receiver<&'static str>,
) -> i32 {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(BLOCKING_THREADS.saturating_mul(stores.len().max(1)))
        .thread_name("broker")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => {
            log::error!("the broker cannot start: {e}");
            return 1;
        }
    };
    let (reread, rereads) = watch::channel(());
    let served = async {
        if let Some((asked, handles_signals)) = signals {
            let mut signals = Signals::new(configuration.is_some().then_some(reread))?;
            handles_signals();
            tokio::spawn(async move { while asked.send(signals.next().await).await.is_ok() {} });
        }
        let configuration = configuration.map(|configuration| (configuration, rereads));
        serve(stores, pool, sock, flush_timeout, configuration, device_process, stop).await
    };
    let code = runtime.block_on(served).unwrap_or_else(|e| {
        log::error!("the broker cannot serve: {e}");
        1
    });
    // What is still under way belongs to nobody any more; it gets a moment to take its temporary files away.
    runtime.shutdown_timeout(LAST_MOMENT);
    code
}

async fn serve(
    stores: Vec<Mounted>,
    pool: &Arc<Pool>,
    sock: OwnedFd,
    flush_timeout: Duration,
    configuration: Option<(Box<dyn Configuration>, watch::Receiver<()>)>,
    device_process: impl FnOnce() -> i32 + Send + 'static,
    mut stop: mpsc::Receiver<&'static str>,
) -> io::Result<i32> {
    let mounts = Mounts::new(stores, pool).map_err(|(path, error)| io::Error::other(format!("{path}: {error}")))?;
    let mounts = Arc::new(mounts);
    let sock = StdUnixStream::from(sock);
    sock.set_nonblocking(true)?;
    let (from_device, mut to_device) = UnixStream::from_std(sock)?.into_split();
    let (exited, mut exit) = oneshot::channel();
    std::thread::Builder::new().name("broker-wait".into()).spawn(move || {
        // Nobody listens if a signal was faster.
        let _ = exited.send(device_process());
    })?;

    let (replies, mut outgoing) = mpsc::channel::<Vec<u8>>(IN_FLIGHT_MAX);
    tokio::spawn(async move {
        while let Some(frame) = outgoing.recv().await {
            if let Err(e) = to_device.write_all(&frame).await {
                log::debug!("the device process does not listen any more: {e}");
                return;
            }
        }
    });
    if let Some((configuration, rereads)) = configuration {
        tokio::spawn(reload::follow(configuration, Arc::clone(&mounts), rereads, replies.clone()));
    }
    let (flushed, mut flushes) = mpsc::channel(1);
    let receiver = Receiver { mounts: Arc::clone(&mounts), replies: replies.clone(), flushed };
    tokio::spawn(async move {
        match receiver.receive(from_device).await {
            Ok(()) => log::debug!("the device process has closed the connection"),
            Err(e) => log::error!("the device process broke the protocol, its connection is given up: {e}"),
        }
    });

    tokio::select! {
        code = &mut exit => {
            // What was handed over completely is still stored: it lies in the pool.
            if timeout(flush_timeout, mounts.settle()).await.is_err() {
                log::error!("the device process is gone, and uploads of its data did not end in time");
            }
            // A moment, as for temporary files.
            let _ = timeout(LAST_MOMENT, mounts.abort_flows()).await;
            Ok(code.unwrap_or(1))
        }
        Some(name) = stop.recv() => {
            log::info!("{name}: ending, {} s at most for data that is not stored yet", flush_timeout.as_secs_f32());
            let deadline_ms = u32::try_from(flush_timeout.as_millis()).unwrap_or(u32::MAX);
            let asked = match frame::encode(&ToDevice::Flush { deadline_ms }) {
                Ok(frame) => replies.send(frame).await.is_ok(),
                Err(_) => false,
            };
            tokio::select! {
                bytes_lost = flushes.recv(), if asked => match bytes_lost {
                    Some(0) => log::info!("all data is stored"),
                    Some(bytes_lost) => log::error!("{bytes_lost} bytes could not be stored and are lost"),
                    None => log::error!("the device process cannot say whether all data is stored"),
                },
                _ = &mut exit => log::info!("the device process has ended"),
                () = tokio::time::sleep(flush_timeout) => {
                    log::error!("data could not be stored within {} s and is lost", flush_timeout.as_secs_f32());
                }
                Some(name) = stop.recv() => log::error!("{name} again: ending at once, data may be lost"),
            }
            Ok(1)
        }
    }
}

struct Signals {
    /// Told of SIGHUP, if that does not end the daemon.
    reread: Option<watch::Sender<()>>,
    term: Signal,
    hup: Signal,
    int: Signal,
}

impl Signals {
    fn new(reread: Option<watch::Sender<()>>) -> io::Result<Signals> {
        Ok(Signals {
            reread,
            term: signal(SignalKind::terminate())?,
            hup: signal(SignalKind::hangup())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.term.recv() => return "SIGTERM",
                _ = self.hup.recv() => match &self.reread {
                    // Nobody listens if the end is near.
                    Some(reread) => drop(reread.send(())),
                    None => return "SIGHUP",
                },
                _ = self.int.recv() => return "SIGINT",
            }
        }
    }
}

/// The end that hears the device.
struct Receiver {
    mounts: Arc<Mounts>,
    replies: mpsc::Sender<Vec<u8>>,
    flushed: mpsc::Sender<u64>,
}

impl Receiver {
    async fn receive(self, mut from: OwnedReadHalf) -> io::Result<()> {
        // A device that sends more than it may waits in its write(2).
        let room = Arc::new(Semaphore::new(2 * IN_FLIGHT_MAX * self.mounts.len()));
        let mut body = Vec::new();
        loop {
            let mut header = [0; HEADER];
            match from.read_exact(&mut header).await {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(e) => return Err(e),
            }
            body.resize(frame::body_len(header)?, 0);
            from.read_exact(&mut body).await?;
            match frame::decode(&body)? {
                ToBroker::Flushed { bytes_lost } => {
                    // One is enough; nobody waits for a second.
                    let _ = self.flushed.try_send(bytes_lost);
                }
                ToBroker::Request { id, mount, op } => {
                    let Ok(turn) = Arc::clone(&room).acquire_owned().await else { return Ok(()) };
                    let known = self.mounts.get(mount);
                    let replies = self.replies.clone();
                    tokio::spawn(async move {
                        let result = answer(known, op).await;
                        let frame = frame::encode(&ToDevice::Done { id, result }).or_else(|e| {
                            let result = Err(error(StoreErrorKind::Io, format!("the answer cannot be sent: {e}")));
                            frame::encode(&ToDevice::Done { id, result })
                        });
                        if let Ok(frame) = frame {
                            // Fails only when the device is gone.
                            let _ = replies.send(frame).await;
                        }
                        drop(turn);
                    });
                }
            }
        }
    }
}

/// The answer to a request; there always is one.
async fn answer(slot: Option<Arc<Slot>>, op: Op) -> Result<Reply, StoreError> {
    let Some(slot) = slot else {
        return Err(error(StoreErrorKind::Protocol, "there is no such mount"));
    };
    // Other stores than the root's are asked until they answer; who asks says so, once.
    let again = matches!(op, Op::Probe) && !slot.is_root();
    let result = AssertUnwindSafe(slot.mount().serve(op)).catch_unwind().await;
    let result = result.unwrap_or_else(|_| Err(error(StoreErrorKind::Io, "the operation failed inside the broker")));
    if let Err(e) = &result {
        let level = match e.kind {
            StoreErrorKind::NotFound
            | StoreErrorKind::Exists
            | StoreErrorKind::IsDir
            | StoreErrorKind::NotDir
            | StoreErrorKind::NotEmpty
            | StoreErrorKind::VersionMismatch
            | StoreErrorKind::InvalidName
            | StoreErrorKind::AttributesTooLarge
            | StoreErrorKind::ReadOnly
            | StoreErrorKind::Stale => log::Level::Debug,
            _ if again => log::Level::Debug,
            _ => log::Level::Warn,
        };
        match slot.is_root() {
            true => log::log!(level, "{e}"),
            false => log::log!(level, "{}: {e}", slot.path),
        }
    }
    result
}
