//! What a test needs around a daemon: a shared directory with a world outside it, and a source of repeatable chance.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::guest::Guest;

/// A directory `share` to be shared, beside things that a guest must never reach.
#[derive(Debug)]
pub struct Share {
    root: TempDir,
}

impl Share {
    /// A fresh empty share; outside it lie `canary` and `outside/secret`.
    pub fn new() -> Share {
        Share::build().expect("a temporary directory can be filled")
    }

    fn build() -> io::Result<Share> {
        let root = tempfile::Builder::new().prefix("ovfs-share-").tempdir()?;
        fs::create_dir(root.path().join("share"))?;
        fs::create_dir(root.path().join("outside"))?;
        fs::write(root.path().join("outside/secret"), "never to be seen by the guest")?;
        fs::write(root.path().join("canary"), "untouched")?;
        Ok(Share { root })
    }

    /// The shared directory.
    pub fn path(&self) -> PathBuf {
        self.root.path().join("share")
    }

    /// The directory around it.
    pub fn surroundings(&self) -> &Path {
        self.root.path()
    }

    /// A path below the shared directory.
    pub fn join(&self, path: &str) -> PathBuf {
        self.path().join(path)
    }

    /// Starts `bin` on it.
    ///
    /// # Panics
    /// When the daemon does not start: a test cannot go on.
    pub fn serve<S: AsRef<str>>(&self, bin: &Path, args: &[S]) -> Daemon {
        let share = self.path();
        let mut all = vec!["--shared-dir", share.to_str().expect("temporary paths are UTF-8")];
        all.extend(args.iter().map(AsRef::as_ref));
        Daemon::spawn(bin, &all).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts `bin` on it and mounts it.
    ///
    /// # Panics
    /// When either fails.
    pub fn mount<S: AsRef<str>>(&self, bin: &Path, args: &[S]) -> (Daemon, Guest) {
        let daemon = self.serve(bin, args);
        let guest = Guest::mount(&daemon.socket());
        (daemon, guest)
    }
}

impl Default for Share {
    fn default() -> Self {
        Share::new()
    }
}

/// Repeatable random numbers (xorshift64*).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator; equal seeds give equal sequences.
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next_u64() >> 16) % bound
    }

    /// One of `items`.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next_u64() as u8).collect()
    }

    /// Puts `items` into another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
}

/// Makes each named function `fn(&Path)` two tests: `virtiofsd::name` and `ovfs::name`, given that binary.
#[macro_export]
macro_rules! on_both_daemons {
    ($($name:ident)*) => {
        mod virtiofsd {
            $(#[test] fn $name() { super::$name(&$crate::daemon::virtiofsd_bin()) })*
        }
        mod ovfs {
            $(#[test] fn $name() { super::$name(&$crate::daemon::ovfs_bin()) })*
        }
    };
}
