//! A guest connected to a daemon, with its lanes.

use std::path::Path;
use std::time::Duration;

use ovfs_compat_tests::error::{Error, Fault};
use ovfs_compat_tests::frontend::Config;
use ovfs_compat_tests::fuse::{InitRequest, ROOT, init};
use ovfs_compat_tests::guest::Guest;

use crate::lane::{DATA_MAX, Lane, Outcome, Until, Wait};
use crate::process::Daemon;
use crate::usage;
use crate::work::Work;
use crate::work::io::OpenFile;

/// How a guest drives a daemon.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Request queues to use.
    pub queues: u32,
    /// Most requests in flight per queue.
    pub depth: usize,
    /// How completions are waited for.
    pub wait: Wait,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { queues: 1, depth: 32, wait: Wait::Event }
    }
}

/// A mounted device.
#[derive(Debug)]
pub struct Session {
    /// For everything that is not measured, or waits for a store in any case.
    pub guest: Guest,
    lanes: Vec<Lane>,
}

impl Session {
    /// Connects, sends INIT with what a Linux 6.1 guest offers, and makes the lanes.
    ///
    /// # Errors
    /// The device does not start.
    pub fn open(socket: &Path, shape: Shape) -> Result<Session, Fault> {
        let slot = DATA_MAX + (64 << 10);
        let share = (slot * shape.depth as u64 + (12 << 20)).next_multiple_of(1 << 20);
        let config = Config {
            memory: share * u64::from(shape.queues + 1),
            request_queues: shape.queues,
            queue_size: 1024,
            ..Config::default()
        };
        let mut guest = Guest::connect(socket, &config)?;
        let not_offered = init::SECURITY_CTX | init::CREATE_SUPP_GROUP | init::WRITEBACK_CACHE;
        guest.init(&InitRequest { flags: init::ALL & !not_offered, ..InitRequest::default() })?;
        let queues = guest.frontend.queues();
        let lanes: Result<Vec<Lane>, Error> =
            (1..queues).map(|queue| Lane::new(&mut guest.frontend, queue, shape.depth, shape.wait)).collect();
        Ok(Session { guest, lanes: lanes? })
    }

    /// Request queues in use.
    pub fn queues(&self) -> usize {
        self.lanes.len()
    }

    /// Runs one work per queue, each on a thread of its own when there are several.
    ///
    /// # Errors
    /// The first failure of any of them.
    ///
    /// # Panics
    /// With more works than queues.
    pub fn run(&mut self, works: &mut [&mut dyn Work], depth: usize, until: Until) -> Result<Outcome, Error> {
        assert!(works.len() <= self.lanes.len(), "more works than queues");
        if let [work] = works {
            return self.lanes[0].run(self.guest.frontend.queue(1), *work, depth, until);
        }
        let frontend = &mut self.guest.frontend;
        let queues: Vec<_> = (0..works.len()).map_while(|n| frontend.take_queue(n as u32 + 1)).collect();
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .lanes
                .iter_mut()
                .zip(queues)
                .zip(works.iter_mut())
                .map(|((lane, mut queue), work)| {
                    scope.spawn(move || {
                        let result = lane.run(&mut queue, *work, depth, until);
                        (queue, result)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("a lane's thread does not panic")).collect()
        });
        let mut joined: Option<Outcome> = None;
        let mut failure = None;
        for (queue, result) in results {
            self.guest.frontend.put_queue(queue);
            match result {
                Ok(outcome) => joined = Some(joined.map_or_else(|| outcome.clone(), |sum| sum.join(&outcome))),
                Err(error) => failure = Some(error),
            }
        }
        match (failure, joined) {
            (Some(error), _) => Err(error),
            (None, Some(outcome)) => Ok(outcome),
            (None, None) => Err(Error::Full),
        }
    }

    /// Runs one work on the first queue.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn one(&mut self, work: &mut dyn Work, depth: usize, until: Until) -> Result<Outcome, Error> {
        self.run(&mut [work], depth, until)
    }

    /// Looks a path up and opens it.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn open_file(&mut self, path: &str, flags: i32, seed: u64) -> Result<OpenFile, Fault> {
        let nodeid = self.guest.resolve(path)?;
        let size = self.guest.getattr(nodeid, None)?.attr.size;
        let fh = self.guest.open(nodeid, flags)?.fh;
        Ok(OpenFile { nodeid, fh, size, seed })
    }

    /// The inode of a directory, `""` being the root.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn dir(&mut self, path: &str) -> Result<u64, Fault> {
        if path.is_empty() { Ok(ROOT) } else { self.guest.resolve(path) }
    }
}

/// A run with what it cost the daemon.
#[derive(Clone, Debug)]
pub struct Metered {
    /// What was done.
    pub outcome: Outcome,
    /// Processor time of all processes of the daemon, and of a FUSE mount below it.
    pub cpu: Duration,
}

/// Runs `what` and meters these processes meanwhile.
///
/// # Errors
/// Those of `what`.
pub fn metered<E>(pids: &[u32], what: impl FnOnce() -> Result<Outcome, E>) -> Result<Metered, E> {
    let before = usage::cpu(pids);
    let outcome = what()?;
    Ok(Metered { outcome, cpu: usage::cpu(pids).saturating_sub(before) })
}

/// A daemon and its guest.
#[derive(Debug)]
pub struct Pair {
    /// Dropped first: a daemon that has lost its guest ends by itself.
    pub session: Session,
    /// The daemon.
    pub daemon: Daemon,
}
