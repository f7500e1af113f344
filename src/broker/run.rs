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
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::disk::Disk;
use super::error::error;
use super::eyes::Eyes;
use super::mounts::{Mounted, Mounts, Slot};
use super::reload::{self, Configuration, News};
use super::requests::{Verdict, verdict};
use super::spool::{self, Spool};
use crate::metrics::StoreMeter;
use crate::store::client::IN_FLIGHT_MAX;
use crate::store::frame::{self, HEADER};
use crate::store::{AREAS, Op, Pool, Reply, StoreError, StoreErrorKind, ToBroker, ToDevice};

/// Threads that drive requests; each is a few milliseconds of work at most, the rest is waiting.
const THREADS: usize = 2;

/// Most threads for each store that wait in system calls: for a directory's files, and for names of hosts. A store whose
/// calls hang must not take those of the others.
const BLOCKING_THREADS: usize = 512;

/// How much longer than it was told the device may take to say that the time is over.
const GRACE: Duration = Duration::from_secs(2);

/// How long the disk may take for what is kept at the end.
const SPOOL_TIME: Duration = Duration::from_secs(120);

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
    /// Where what goes to the store is counted.
    pub meter: Arc<StoreMeter>,
    /// Where what could not be stored in time is kept until the next start.
    pub spool: Option<Arc<Spool>>,
}

/// Serves `stores` to the device process at the other end of `sock`, until that process ends or a signal (SIGTERM, SIGHUP,
/// SIGINT) asks for the end. Call it after the forks: it starts threads.
///
/// With a `configuration`, settings follow it, and SIGHUP does not end anything but has it read at once.
///
/// `handles_signals` is called on this thread once the signals are taken care of; before, they must be held back.
///
/// `eyes` shows what is counted.
///
/// `device_process` waits for the device process and returns the exit code to end with; it runs on a thread of its own.
///
/// Returns the exit code: the device process's, or 1 after a signal (with what is dirty stored before, as far as
/// `flush_timeout` allowed; what was lost is in the log) or when a store cannot be put into service. The device process
/// may still be there then; ending it is the caller's business.
#[allow(clippy::too_many_arguments, reason = "each is handed through once")]
pub fn run(
    stores: Vec<Mounted>,
    pool: Arc<Pool>,
    sock: OwnedFd,
    flush_timeout: Duration,
    configuration: Option<Box<dyn Configuration>>,
    eyes: Eyes,
    handles_signals: impl FnOnce(),
    device_process: impl FnOnce() -> i32 + Send + 'static,
) -> i32 {
    let (asked, stop) = mpsc::channel(2);
    let signals = Some((asked, handles_signals));
    run_until(stores, &pool, sock, flush_timeout, configuration, Some(eyes), device_process, signals, stop)
}

/// As [`run`], until `stop` says why; with `signals`, signals say it there, once what stands beside the sender was called.
#[allow(clippy::too_many_arguments, reason = "each is handed through once")]
pub(super) fn run_until(
    stores: Vec<Mounted>,
    pool: &Arc<Pool>,
    sock: OwnedFd,
    flush_timeout: Duration,
    configuration: Option<Box<dyn Configuration>>,
    eyes: Option<Eyes>,
    device_process: impl FnOnce() -> i32 + Send + 'static,
    signals: Option<(mpsc::Sender<&'static str>, impl FnOnce())>,
    stop: mpsc::Receiver<&'static str>,
) -> i32 {
    let most_added = if configuration.is_some() { usize::from(AREAS) } else { 0 };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(BLOCKING_THREADS.saturating_mul(stores.len().max(1) + most_added))
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
        serve(stores, pool, sock, flush_timeout, configuration, eyes, device_process, stop).await
    };
    let code = runtime.block_on(served).unwrap_or_else(|e| {
        log::error!("the broker cannot serve: {e}");
        1
    });
    // What is still under way belongs to nobody any more; it gets a moment to take its temporary files away.
    runtime.shutdown_timeout(LAST_MOMENT);
    code
}

#[allow(clippy::too_many_arguments, reason = "each is handed through once")]
async fn serve(
    stores: Vec<Mounted>,
    pool: &Arc<Pool>,
    sock: OwnedFd,
    flush_timeout: Duration,
    configuration: Option<(Box<dyn Configuration>, watch::Receiver<()>)>,
    eyes: Option<Eyes>,
    device_process: impl FnOnce() -> i32 + Send + 'static,
    mut stop: mpsc::Receiver<&'static str>,
) -> io::Result<i32> {
    let spool = stores.first().and_then(|store| store.options.spool.clone());
    let mounts = Mounts::new(stores, pool).map_err(|(path, error)| io::Error::other(format!("{path}: {error}")))?;
    let mounts = Arc::new(mounts);
    if let Some(eyes) = eyes {
        eyes.open(&mounts);
    }
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
    let news = configuration.map(|(configuration, rereads)| {
        let news = Arc::<News>::default();
        let follow = reload::follow(configuration, Arc::clone(&mounts), rereads, replies.clone(), Arc::clone(&news));
        tokio::spawn(follow);
        news
    });
    if let Some(spool) = &spool {
        tokio::spawn(spool::bring_all(Arc::clone(spool), Arc::clone(&mounts)));
    }
    let (flushed, mut flushes) = mpsc::channel(1);
    let receiver = Receiver { mounts: Arc::clone(&mounts), replies: replies.clone(), flushed, news };
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
            // The device keeps to that time by itself; what is to be kept here is written after it.
            let patience = flush_timeout + if spool.is_some() { SPOOL_TIME } else { GRACE };
            tokio::select! {
                bytes_lost = flushes.recv(), if asked => match bytes_lost {
                    Some(0) if spool.as_ref().is_some_and(|spool| spool.kept() > 0) => {
                        log::warn!("what is not stored is kept, and is stored when the daemon is started again");
                    }
                    Some(0) => log::info!("all data is stored"),
                    Some(bytes_lost) => log::error!("{bytes_lost} bytes could not be stored and are lost"),
                    None => log::error!("the device process cannot say whether all data is stored"),
                },
                _ = &mut exit => log::info!("the device process has ended"),
                () = tokio::time::sleep(patience) => {
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
    news: Option<Arc<News>>,
}

impl Receiver {
    async fn receive(self, mut from: OwnedReadHalf) -> io::Result<()> {
        let room = self.mounts.room();
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
                ToBroker::Unmounted { mount } => self.mounts.left(mount),
                ToBroker::Request { id, mount, op } => {
                    let Ok(turn) = Arc::clone(&room).acquire_owned().await else { return Ok(()) };
                    let known = self.mounts.get(mount);
                    let replies = self.replies.clone();
                    let news = self.news.clone();
                    tokio::spawn(async move {
                        let result = answer(known, op, news).await;
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

/// How often a request is sent anew because there are other settings than those that it was refused with.
const SETTINGS_TRIED: usize = 5;

/// What a store says to `op`. A store that refuses us is asked again if there are other keys for it by now.
async fn ask(slot: &Arc<Slot>, op: Op, news: Option<&News>) -> Result<Reply, StoreError> {
    if matches!(op, Op::Spool { .. }) {
        return slot.keep(op).await;
    }
    let Some(news) = news else { return slot.serve(&slot.mount(), op).await };
    for _ in 1..SETTINGS_TRIED {
        let mount = slot.mount();
        match slot.serve(&mount, op.clone()).await {
            Err(e) if e.kind == StoreErrorKind::PermissionDenied => {
                news.settled().await;
                if Arc::ptr_eq(&mount, &slot.mount()) {
                    return Err(e);
                }
                log::debug!("{}: tried again with the new settings: {e}", slot.path);
            }
            result => return result,
        }
    }
    slot.serve(&slot.mount(), op).await
}

/// The answer to a request; there always is one.
async fn answer(slot: Option<Arc<Slot>>, op: Op, news: Option<Arc<News>>) -> Result<Reply, StoreError> {
    let Some(slot) = slot else {
        return Err(error(StoreErrorKind::Protocol, "there is no such mount"));
    };
    // Other stores than the root's are asked until they answer; who asks says so, once.
    let again = matches!(op, Op::Probe) && !slot.is_root();
    let maybe_unasked =
        matches!(op, Op::ListEnd { .. } | Op::Spool { .. }) || (matches!(op, Op::Read { .. }) && slot.disk().is_some());
    let result = AssertUnwindSafe(ask(&slot, op, news.as_deref())).catch_unwind().await;
    let result = result.unwrap_or_else(|_| Err(error(StoreErrorKind::Io, "the operation failed inside the broker")));
    let verdict = match &result {
        Ok(_) if maybe_unasked => Verdict::Unasked,
        Ok(_) => Verdict::Well,
        Err(e) => verdict(e.kind),
    };
    match (verdict, &result) {
        (Verdict::Well, _) => slot.meter().answered(),
        (Verdict::Ill, Err(e)) => slot.meter().failed(&e.text),
        _ => {}
    }
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
            | StoreErrorKind::Stale
            | StoreErrorKind::Silent => log::Level::Debug,
            _ if again || slot.is_gone() => log::Level::Debug,
            _ => log::Level::Warn,
        };
        match (level, slot.is_root()) {
            (log::Level::Warn, _) => slot.meter().say_failed(e),
            (_, true) => log::log!(level, "{e}"),
            (_, false) => log::log!(level, "{}: {e}", slot.path),
        }
    }
    result
}
