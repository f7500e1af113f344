//! A store with a daemon and a guest on it, and the words in which cases speak of them.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::time::Duration;

use ovfs_compat_tests::error::{Answer, Error, Fault, errno_name};
use ovfs_compat_tests::fuse::{Body, op};
use ovfs_compat_tests::guest::{Call, Guest};
use ovfs_compat_tests::meter::{Mark, Traffic};
use ovfs_compat_tests::mounted::Mounted;
use ovfs_compat_tests::stores::table::{Level, Verdict};
use ovfs_compat_tests::stores::{Kind, TestStore};

/// Why a case has no verdict of its own.
#[derive(Debug)]
pub enum Trouble {
    /// The guest got an errno, or no proper reply, where it should not have.
    Fault(Fault),
    /// What was found is not what the contract says.
    Wrong(String),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Trouble {
        Trouble::Fault(fault)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Fault(Fault::Device(error))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Fault(Fault::Errno(errno)) => write!(f, "an unexpected {}", errno_name(*errno)),
            Trouble::Fault(fault) => fault.fmt(f),
            Trouble::Wrong(text) => f.write_str(text),
        }
    }
}

/// How much of a server's log is shown when a case goes wrong.
const SERVER_LINES: usize = 30;

/// What came of a case.
pub type Outcome = Result<Verdict, Trouble>;

fn verdict(level: Level, reason: impl Into<String>) -> Outcome {
    Ok(Verdict { level, reason: reason.into() })
}

/// As on a disk.
pub fn full() -> Outcome {
    verdict(Level::Full, "")
}

/// As on a disk, and something to know.
pub fn full_but(reason: impl Into<String>) -> Outcome {
    verdict(Level::Full, reason)
}

/// Brought about by other means.
pub fn emulated(reason: impl Into<String>) -> Outcome {
    verdict(Level::Emulated, reason)
}

/// Not to be had.
pub fn refused(reason: impl Into<String>) -> Outcome {
    verdict(Level::Refused, reason)
}

/// No question here.
pub fn not_applicable(reason: impl Into<String>) -> Outcome {
    verdict(Level::None, reason)
}

/// Ends the case, unless `holds`.
pub fn demand(holds: bool, otherwise: impl Into<String>) -> Result<(), Trouble> {
    if holds { Ok(()) } else { Err(Trouble::Wrong(otherwise.into())) }
}

/// The errno of an answer that should have one.
pub fn errno<T>(answer: Answer<T>, of: &str) -> Result<i32, Trouble> {
    match answer {
        Err(Fault::Errno(errno)) => Ok(errno),
        Err(fault) => Err(fault.into()),
        Ok(_) => Err(Trouble::Wrong(format!("{of} succeeds"))),
    }
}

/// What stores without an outside answer to cases about it.
pub const NO_OUTSIDE: &str = "nobody else can reach it";

/// What of the cost of an operation can be seen from here.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    mark: Option<Mark>,
    identity: Option<u64>,
}

/// A store, a daemon and a guest.
pub struct Stage {
    /// The store.
    pub store: TestStore,
    mount: Option<Mounted>,
    case: &'static str,
}

impl Stage {
    /// An empty store of this kind and a daemon on it.
    pub fn new(kind: Kind) -> Stage {
        quiet_panics();
        let store = TestStore::start_metered(kind);
        let mount = Mounted::new(&store, &[]);
        Stage { store, mount: Some(mount), case: "" }
    }

    /// Runs a case. Whatever goes wrong in it is its verdict, and the next case gets a new daemon.
    pub fn run(&mut self, name: &'static str, case: fn(&mut Stage) -> Outcome) -> Verdict {
        self.case = name;
        let wrong = |reason: String| Verdict { level: Level::Wrong, reason };
        let outcome = catch_unwind(AssertUnwindSafe(|| case(self)));
        let verdict = match outcome {
            Ok(Ok(verdict)) => return verdict,
            Ok(Err(trouble)) => wrong(trouble.to_string()),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default();
                wrong(format!("panicked: {}", text.lines().next().unwrap_or_default()))
            }
        };
        if let Some(meter) = self.store.meter() {
            meter.let_go();
        }
        if let Some(mount) = self.mount.take() {
            let log = self.store.server_log();
            let last = log.lines().rev().take(SERVER_LINES).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>();
            eprintln!(
                "{} {name}: {verdict}\nthe daemon said:\n{}\nthe server said last:\n{}\n",
                self.kind().name(),
                mount.daemon.stderr(),
                last.join("\n")
            );
            mount.kill();
        }
        verdict
    }

    /// The daemon and its guest.
    pub fn mount(&mut self) -> &mut Mounted {
        self.mount.get_or_insert_with(|| Mounted::new(&self.store, &[]))
    }

    /// The guest.
    pub fn guest(&mut self) -> &mut Guest {
        &mut self.mount().guest
    }

    /// What kind of store it is.
    pub fn kind(&self) -> Kind {
        self.store.kind()
    }

    /// Ends the daemon as the guest's unmounting does, and starts another.
    pub fn remount(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.end();
        }
        self.mount();
    }

    /// Kills the daemon, and starts another.
    pub fn crash(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.kill();
        }
        self.mount();
    }

    /// A name in the root that only this case uses.
    pub fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.case)
    }

    /// Demands that a file holds `data`, for the guest and for whoever looks at the store.
    pub fn expect(&mut self, path: &str, data: &[u8]) -> Result<(), Trouble> {
        let got = self.guest().read_file(path)?;
        demand(got == data, "the guest reads something else")?;
        self.expect_outside(path, Some(data))
    }

    /// Demands what whoever looks at the store finds.
    pub fn expect_outside(&self, path: &str, data: Option<&[u8]>) -> Result<(), Trouble> {
        if !self.kind().has_outside() {
            return Ok(());
        }
        match (self.store.get(path), data) {
            (None, Some(_)) => Err(Trouble::Wrong("the store does not have it".into())),
            (Some(_), None) => Err(Trouble::Wrong("the store still has it".into())),
            (got, _) => demand(got.as_deref() == data, "the store has something else"),
        }
    }

    /// A large file of the guest's, put from outside where that is quicker.
    pub fn large_file(&mut self, path: &str, data: &[u8]) -> Result<(), Trouble> {
        if self.kind().has_outside() {
            self.store.put(path, data);
        } else {
            self.guest().write_file(path, data)?;
        }
        Ok(())
    }

    /// What a guest and others find after a conflict over `path` that the guest was told of by `errno`: theirs is there, and ours
    /// beside it or not.
    pub fn conflict(&self, path: &str, theirs: &[u8], ours: &[u8], errno: i32) -> Outcome {
        self.expect_outside(path, Some(theirs))?;
        let beside = format!("{path}.conflict-");
        let kept = self
            .store
            .keys()
            .iter()
            .any(|key| key.starts_with(&beside) && self.store.get(key).as_deref() == Some(ours));
        let ours = if kept { "is kept beside it" } else { "is gone" };
        full_but(format!("close says {}, theirs stays, ours {ours}", errno_name(errno)))
    }

    /// Before an operation on `path` whose cost matters.
    pub fn before(&self, path: &str) -> Before {
        Before { mark: self.store.meter().map(|meter| meter.mark()), identity: self.store.identity(path) }
    }

    fn traffic(&self, before: Before) -> Option<Traffic> {
        Some(self.store.meter()?.since(before.mark?))
    }

    /// How a part of a file of `size` bytes was changed.
    pub fn how_changed(&self, before: Before, path: &str, size: usize) -> Outcome {
        match self.traffic(before) {
            Some(traffic) if traffic.sent > size as u64 / 2 => emulated("the whole object is sent again"),
            Some(_) => emulated("a new object, its unchanged ranges copied inside the store"),
            None if before.identity != self.store.identity(path) => emulated("a new file takes the place of the old"),
            None => full(),
        }
    }

    /// How files were renamed, `path` being one of them by its new name.
    pub fn how_renamed(&self, before: Before, path: &str) -> Outcome {
        let traffic = self.traffic(before);
        let moves = traffic.as_ref().map_or(0, |t| t.methods.iter().filter(|method| **method == "MOVE").count());
        match &traffic {
            // A server may refuse the whole first.
            _ if moves > 2 => emulated("each file is moved; not atomic"),
            _ if before.identity.is_some() && before.identity == self.store.identity(path) => full(),
            Some(_) if moves > 0 => full(),
            _ if !self.kind().has_outside() => full(),
            _ => emulated("copied inside the store, then deleted; not atomic"),
        }
    }

    /// Flushes a handle, and lets `meanwhile` happen in the store while the upload is on its way to it.
    pub fn race_flush(&mut self, node: u64, fh: u64, meanwhile: impl FnOnce(&TestStore)) -> Result<Race, Trouble> {
        const UPLOAD_COMES: Duration = Duration::from_secs(60);
        // Encrypted, nobody sees what is an upload.
        if self.store.meter().is_none() || self.kind() == Kind::Sftp {
            return Ok(Race::Impossible);
        }
        self.mount();
        let (Some(mount), Some(meter)) = (&mut self.mount, self.store.meter()) else { return Ok(Race::Impossible) };
        meter.hold_next_upload();
        let arg = Body::new().u64s(&[fh, 0, 0]).0;
        let call = Call { opcode: op::FLUSH, nodeid: node, args: vec![&arg], reply: Some(0), ..Call::default() };
        let ticket = mount.guest.submit(&call)?;
        let held = meter.wait_held(UPLOAD_COMES);
        if held {
            meanwhile(&self.store);
        }
        meter.let_go();
        let answer = mount.guest.wait(ticket).map(drop);
        demand(held, "no upload comes")?;
        Ok(Race::Answered(answer))
    }

    /// Bytes that the daemon sent; 0 where that cannot be seen.
    pub fn sent(&self, before: Before) -> u64 {
        self.traffic(before).map_or(0, |traffic| traffic.sent)
    }
}

/// What came of a race that a case arranged.
#[derive(Debug)]
pub enum Race {
    /// The operation's answer; the outside came in while its upload was on its way.
    Answered(Answer<()>),
    /// Uploads to this store cannot be held back.
    Impossible,
}

/// Cases that panic are verdicts; their reports would drown those of the test.
fn quiet_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let in_case =
                std::thread::current().name().is_some_and(|name| Kind::EVERY.iter().any(|k| k.name() == name));
            if !in_case {
                usual(info);
            }
        }));
    });
}

/// Bytes that differ everywhere.
pub fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    (0..len.div_ceil(4)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}
