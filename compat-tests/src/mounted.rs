//! ovfs on the store of a test, with a guest.

use std::path::Path;

use crate::daemon::patience;
use crate::frontend::Config;
use crate::fuse::InitRequest;
use crate::guest::Guest;
use crate::launch::{Daemon, EXIT_TIMEOUT, Exit, Launch, Scratch, Which, binary};
use crate::stores::{Kind, TestStore};

/// A daemon with its guest. The store is somebody else's and outlives both.
pub struct Mounted {
    /// The guest.
    pub guest: Guest,
    /// Its daemon.
    pub daemon: Daemon,
    /// Where its socket is.
    pub scratch: Scratch,
}

impl Mounted {
    /// A daemon on `store`, with `args` besides.
    ///
    /// # Panics
    /// When it does not start.
    pub fn new(store: &TestStore, args: &[&str]) -> Mounted {
        Mounted::at(&store.url(), store, args)
    }

    /// The same, with the store reached at this URL.
    ///
    /// # Panics
    /// When it does not start.
    pub fn at(url: &str, store: &TestStore, args: &[&str]) -> Mounted {
        let scratch = Scratch::new();
        let mut daemon = launch_at(url, store, &scratch, args).start();
        let guest = guest(&mut daemon, &scratch.join("run/s"));
        Mounted { guest, daemon, scratch }
    }

    /// The guest goes, and the daemon ends as it does then. How, and what it said.
    ///
    /// # Panics
    /// When it does not end.
    pub fn end(self) -> (Exit, String) {
        let Mounted { guest, mut daemon, scratch: _scratch } = self;
        drop(guest);
        match daemon.wait_exit(EXIT_TIMEOUT * 2) {
            Ok(exit) => (exit, daemon.stderr()),
            Err(_) => panic!("the daemon does not end: {}", daemon.stderr()),
        }
    }

    /// The end of the daemon that nothing can prepare for.
    pub fn kill(self) {
        self.daemon.signal(libc::SIGKILL);
    }
}

/// The guest of a daemon that was started, through INIT.
///
/// # Panics
/// When the device does not start.
pub fn guest(daemon: &mut Daemon, socket: &Path) -> Guest {
    daemon.wait_ready();
    // A write that finds no memory waits for a whole upload, and the servers of these tests are slow.
    let config = Config { timeout: patience() * 4, ..Config::default() };
    let mut guest = Guest::connect(socket, &config).expect("the device starts");
    guest.init(&InitRequest::default()).expect("INIT succeeds");
    guest
}

/// A daemon on `store`, not started; its socket will be `run/s` in `scratch`.
pub fn launch(store: &TestStore, scratch: &Scratch, args: &[&str]) -> Launch {
    launch_at(&store.url(), store, scratch, args)
}

fn launch_at(url: &str, store: &TestStore, scratch: &Scratch, args: &[&str]) -> Launch {
    let mut launch = Launch::new(binary(Which::Ovfs)).arg("--socket-path").arg(scratch.join("run/s"));
    launch = launch.args(["--backend", url]).args(args).cwd(store.beside());
    for (name, value) in store.env() {
        launch = launch.env(name, value);
    }
    if store.kind() == Kind::Sftp {
        // ssh remembers every server that it accepts in the user's own directory: not in ours.
        launch = launch.through([
            "unshare",
            "--mount",
            "sh",
            "-c",
            "home=$(getent passwd \"$(id -u)\" | cut -d: -f6) && mkdir -p -m 700 \"$home/.ssh\" \
             && mount -t tmpfs none \"$home/.ssh\" && exec \"$@\"",
            "sh",
        ]);
    }
    launch
}
