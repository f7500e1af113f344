//! Settings that change while the daemon runs: noticed, read, tried, and only then in force.
//!
//! Files are looked at again and again rather than watched: that finds every way in which they are replaced (in place, by
//! renaming, by a symbolic link above them), on every file system, and it costs a few system calls. A file is read once it
//! looks the same twice, for it may be in the midst of being written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::BrokerOptions;
use super::mounts::{Changed, Mounts, NotAdded};
use super::url::Backend;
use crate::store::{Change, ToDevice, frame};

/// How often files are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// How long after settings that were refused they are tried again, at first and at most.
const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// How long whoever was refused by a store waits for settings that are being changed.
const NEWS: Duration = Duration::from_secs(20);

/// Whether the files say something else than what is in force: keys are often taken out of use in the moment in which
/// others are written down.
#[derive(Debug, Default)]
pub(super) struct News {
    look: Notify,
    seen: watch::Sender<Option<Seen>>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    /// When the files were looked at, or a little later.
    at: Instant,
    /// All that they said then has been tried.
    settled: bool,
}

impl News {
    /// Has the files looked at now, and waits until all that they say has been tried.
    pub async fn settled(&self) {
        let since = Instant::now();
        self.look.notify_one();
        let mut seen = self.seen.subscribe();
        let done = seen.wait_for(|seen| seen.is_some_and(|seen| seen.at >= since && seen.settled));
        // Whoever waited goes on either way.
        let _ = timeout(NEWS, done).await;
    }
}

/// Where settings come from. Its methods may block.
pub trait Configuration: Send + 'static {
    /// What the files look like, without reading them: another number, when one of them may say something else.
    fn look(&mut self) -> u64;

    /// Reads them: how each store is to be reached. What cannot change while the daemon runs it says in the log by itself.
    ///
    /// # Errors
    /// What is wrong, in one line without secrets.
    fn read(&mut self) -> Result<Vec<Wanted>, String>;
}

/// A store of the share, as it is to be.
#[derive(Debug)]
pub struct Wanted {
    /// Where.
    pub path: String,
    /// Its URL, taken apart; `None`: as before.
    pub backend: Option<Backend>,
    /// How it is to be served. Of one that is served already, only the timeout counts.
    pub options: BrokerOptions,
    /// How long names and attributes may be trusted, under the policy that has such a time.
    pub expiration: Duration,
    /// What the device is to know of it, if it is new.
    pub settings: Vec<u8>,
}

/// What a try came to.
enum Tried {
    Done,
    /// It is worth another, for this is what stands against it.
    Refused(String),
}

/// Keeps `mounts` as `configuration` says, for ever. A value in `asked` wants it read at once; `news` is kept up to date.
pub(super) async fn follow(
    mut configuration: Box<dyn Configuration>,
    mounts: Arc<Mounts>,
    mut asked: watch::Receiver<()>,
    to_device: mpsc::Sender<Vec<u8>>,
    news: Arc<News>,
) {
    // What was read at the start may be out of date already.
    let (mut read, mut before) = (None, None);
    let mut complaint: Option<String> = None;
    let (mut again, mut pause): (Option<Instant>, _) = (None, AGAIN);
    loop {
        let at_once = tokio::select! {
            () = sleep(LOOK) => false,
            () = news.look.notified() => false,
            changed = asked.changed() => match changed {
                Ok(()) => true,
                Err(_) => return,
            },
        };
        let at = Instant::now();
        let Ok((back, looks)) = spawn_blocking(move || {
            let looks = configuration.look();
            (configuration, looks)
        })
        .await
        else {
            return;
        };
        configuration = back;
        let changed = read != Some(looks) && before == Some(looks);
        before = Some(looks);
        let due = again.is_some_and(|at| at <= Instant::now());
        if !(at_once || changed || due) {
            news.seen.send_replace(Some(Seen { at, settled: read == Some(looks) }));
            continue;
        }
        if at_once || changed {
            pause = AGAIN;
        }
        let Ok((back, wanted)) = spawn_blocking(move || {
            let wanted = configuration.read();
            (configuration, wanted)
        })
        .await
        else {
            return;
        };
        configuration = back;
        read = Some(looks);
        let tried = match wanted {
            Ok(wanted) => apply(wanted, &mounts, &to_device, at_once || changed).await,
            Err(why) => Tried::Refused(why),
        };
        match tried {
            Tried::Done => (again, complaint) = (None, None),
            Tried::Refused(why) => {
                let news = at_once || (changed && complaint.as_ref() != Some(&why));
                let level = if news { log::Level::Warn } else { log::Level::Debug };
                log::log!(level, "the settings before stay in force: {why}");
                complaint = Some(why);
                again = Some(Instant::now() + pause);
                pause = (pause * 2).min(AGAIN_MAX);
            }
        }
        news.seen.send_replace(Some(Seen { at, settled: true }));
    }
}

async fn apply(wanted: Vec<Wanted>, mounts: &Mounts, to_device: &mpsc::Sender<Vec<u8>>, news: bool) -> Tried {
    let mut refused = Vec::new();
    let longest = wanted.iter().map(|wanted| wanted.options.request_timeout).max().unwrap_or_default();
    // The device waits longer before any store may take longer.
    tell(longest.max(mounts.request_timeout()), to_device).await;
    let level = if news { log::Level::Warn } else { log::Level::Debug };
    let staying = mounts.staying();
    for (mount, slot) in &staying {
        if !slot.is_root() && !wanted.iter().any(|wanted| wanted.path == slot.path) {
            mounts.leave(*mount);
            log::info!("{}: it is taken away once its store has all that is dirty", slot.path);
            change(Change::Unmount { mount: *mount }, to_device).await;
        }
    }
    for Wanted { path, backend, options, expiration, settings } in wanted {
        match staying.iter().find(|(_, slot)| slot.path == path) {
            Some((mount, slot)) => {
                match slot.change(backend.as_ref(), options.request_timeout).await {
                    Changed::Nothing => {}
                    Changed::Applied => log::info!("{path}: new settings of the store are in force"),
                    Changed::Refused(why) => refused.push(format!("{path}: {why}")),
                    Changed::OtherStore => {
                        log::log!(level, "{path}: another store takes a restart; it stays as it was")
                    }
                }
                if slot.expires(expiration) {
                    change(Change::Expiration { mount: *mount, time: expiration }, to_device).await;
                }
            }
            // What was no store cannot become one: whoever reads the file has said so.
            None if path == "/" => {}
            None => {
                let Some(backend) = backend else { continue };
                match mounts.add(&path, &backend, options, settings).await {
                    Ok(added) => {
                        change(added, to_device).await;
                        log::info!("{path}: it is mounted");
                    }
                    Err(NotAdded::Refused(why)) => refused.push(format!("{path} is not mounted: {why}")),
                    Err(NotAdded::NoRoom) => log::log!(level, "{path}: one more mount takes a restart"),
                }
            }
        }
    }
    tell(mounts.request_timeout(), to_device).await;
    if refused.is_empty() { Tried::Done } else { Tried::Refused(refused.join("; ")) }
}

async fn change(change: Change, to_device: &mpsc::Sender<Vec<u8>>) {
    if let Ok(frame) = frame::encode(&ToDevice::Change(change)) {
        // Fails only when the device is gone.
        let _ = to_device.send(frame).await;
    }
}

async fn tell(request_timeout: Duration, to_device: &mpsc::Sender<Vec<u8>>) {
    let ms = u64::try_from(request_timeout.as_millis()).unwrap_or(u64::MAX);
    if let Ok(frame) = frame::encode(&ToDevice::RequestTimeout { ms }) {
        // Fails only when the device is gone.
        let _ = to_device.send(frame).await;
    }
}
