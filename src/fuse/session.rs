//! The state between INIT and DESTROY: whether there is a session, and what was agreed for it.
//!
//! Invariants
//! (1) Only one INIT at a time works on the file system; while it does, there is no session.
//! (2) The flags in force are a subset of what the guest offered in the INIT that began the session.

use std::sync::atomic::{AtomicU64, Ordering};

use super::abi::{InitIn, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION, MIN_KERNEL_MINOR_VERSION};
use super::flags::init;
use crate::fs::{Errno, Result};

/// The largest WRITE and READ in bytes (`fuse_init_out.max_write`).
pub const MAX_WRITE: u32 = 1 << 20;
/// Room for headers in a request of the largest WRITE.
const HEADER_ROOM: u32 = 4096;
/// The longest request in bytes; `fuse_in_header.len` above it is answered with ENOMEM.
pub const MAX_MESSAGE: u32 = MAX_WRITE + HEADER_ROOM;

/// Set while a session lives. The low bits are the INIT flags in force; the protocol is far from using these.
const LIVE: u64 = 1 << 63;
/// Set while an INIT is under way.
const STARTING: u64 = 1 << 62;
/// Set when the session came by migration from a source that did not tell its flags.
const ASSUMED: u64 = 1 << 61;

/// What was agreed with the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms(u64);

impl Terms {
    /// Terms as an INIT with this answer leaves them.
    pub fn agreed(flags: u64) -> Terms {
        Terms(LIVE | flags)
    }

    /// The terms of a session whose INIT this process has not seen.
    pub fn assumed() -> Terms {
        Terms(LIVE | ASSUMED)
    }

    /// Whether all bits of `flag` are in force.
    pub fn has(self, flag: u64) -> bool {
        self.0 & flag == flag
    }

    /// The flags are not known: both forms of a request that a flag decides must be understood.
    pub fn is_assumed(self) -> bool {
        self.0 & ASSUMED != 0
    }
}

/// The session of one server.
pub(super) struct Session(AtomicU64);

impl Session {
    pub(super) fn new() -> Session {
        Session(AtomicU64::new(0))
    }

    /// The terms in force; `None` before INIT and after DESTROY.
    pub(super) fn terms(&self) -> Option<Terms> {
        let state = self.0.load(Ordering::Acquire);
        (state & LIVE != 0).then_some(Terms(state))
    }

    /// Ends the session before, if any, and begins to start a new one.
    ///
    /// # Errors
    /// EAGAIN: another INIT is under way.
    pub(super) fn start(&self) -> Result<Starting<'_>> {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| (state != STARTING).then_some(STARTING))
            .map_err(|_| Errno::EAGAIN)?;
        Ok(Starting(self))
    }

    /// Takes a migrated session as begun.
    pub(super) fn assume(&self) {
        self.0.store(Terms::assumed().0, Ordering::Release);
    }

    /// Ends the session. `false` when there was none.
    pub(super) fn end(&self) -> bool {
        self.0.swap(0, Ordering::AcqRel) & LIVE != 0
    }
}

/// An INIT under way; dropped without [`Starting::commit`], it leaves no session behind.
pub(super) struct Starting<'a>(&'a Session);

impl Starting<'_> {
    /// Opens the session. A DESTROY that came meanwhile wins.
    pub(super) fn commit(self, flags: u64) {
        let _ = self.0.0.compare_exchange(STARTING, Terms::agreed(flags).0, Ordering::AcqRel, Ordering::Relaxed);
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        let _ = self.0.0.compare_exchange(STARTING, 0, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// What an INIT asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The structure that every version sends.
    pub init: InitIn,
    /// The upper half of the flags; 0 unless INIT_EXT is among the lower ones.
    pub flags2: u32,
}

/// How to go on with an INIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// The guest speaks a later major version: name ours and wait for another INIT.
    NameVersion(InitOut),
    /// Ask the file system what it wants of these flags.
    Negotiate(u64),
}

/// Judges the version of an INIT.
///
/// # Errors
/// EPROTO: the guest is older than 7.27.
pub(super) fn greet(hello: &Hello) -> Result<Greeting> {
    let InitIn { major, minor, flags, .. } = hello.init;
    if major > KERNEL_VERSION {
        let out = InitOut { major: KERNEL_VERSION, minor: KERNEL_MINOR_VERSION, ..InitOut::default() };
        return Ok(Greeting::NameVersion(out));
    }
    if major < KERNEL_VERSION || minor < MIN_KERNEL_MINOR_VERSION {
        return Err(Errno::EPROTO);
    }
    Ok(Greeting::Negotiate(u64::from(flags) | u64::from(hello.flags2) << 32))
}

/// The flags in force, from those that the guest `offered` and those that the file system `wanted`.
pub(super) fn agree(offered: u64, wanted: u64) -> u64 {
    offered & (init::BASE | wanted & init::OPTIONAL)
}

/// The answer to an INIT that succeeded.
pub(super) fn welcome(max_readahead: u32, flags: u64) -> InitOut {
    InitOut {
        major: KERNEL_VERSION,
        minor: KERNEL_MINOR_VERSION,
        max_readahead,
        flags: flags as u32,
        max_background: u16::MAX,
        congestion_threshold: u16::MAX / 4 * 3,
        max_write: MAX_WRITE,
        time_gran: 1,
        max_pages: u16::try_from(u64::from(MAX_WRITE).div_ceil(page_size())).unwrap_or(u16::MAX),
        map_alignment: 0,
        flags2: (flags >> 32) as u32,
        unused: [0; 7],
    }
}

/// Bytes in a page of this machine, which is the guest's too.
fn page_size() -> u64 {
    // SAFETY: sysconf(3) takes a number, touches no memory of ours, and any result is checked below.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(major: u32, minor: u32, flags: u32, flags2: u32) -> Hello {
        Hello { init: InitIn { major, minor, max_readahead: 0x2_0000, flags }, flags2 }
    }

    #[test]
    fn versions() {
        assert_eq!(greet(&hello(7, 26, 0, 0)), Err(Errno::EPROTO));
        assert_eq!(greet(&hello(6, 99, 0, 0)), Err(Errno::EPROTO));
        assert_eq!(greet(&hello(7, 27, 5, 1)), Ok(Greeting::Negotiate(0x1_0000_0005)));
        for major in [8, 99, u32::MAX] {
            let Ok(Greeting::NameVersion(out)) = greet(&hello(major, 0, u32::MAX, 0)) else { panic!("refused") };
            assert_eq!(out, InitOut { major: 7, minor: 38, ..InitOut::default() });
        }
    }

    #[test]
    fn flags_in_force_are_a_subset_of_the_offered() {
        for offered in [0, u64::MAX, init::BASE, 0xf0f0_f0f0_f0f0_f0f0, init::WRITEBACK_CACHE] {
            for wanted in [0, u64::MAX, init::WRITEBACK_CACHE | init::POSIX_ACL] {
                let agreed = agree(offered, wanted);
                assert_eq!(agreed & !offered, 0);
                assert_eq!(agreed & !(init::BASE | init::OPTIONAL), 0);
            }
        }
        assert_eq!(agree(u64::MAX, init::DO_READDIRPLUS | init::READDIRPLUS_AUTO), 0x104_4844_f829);
    }

    #[test]
    fn limits_are_virtiofsds() {
        let out = welcome(0x2_0000, 0x104_4844_f829);
        assert_eq!((out.max_background, out.congestion_threshold, out.max_write), (65535, 49149, 1 << 20));
        assert_eq!((out.flags, out.flags2, out.max_readahead, out.time_gran), (0x4844_f829, 0x104, 0x2_0000, 1));
        assert_eq!(u64::from(out.max_pages) * page_size(), 1 << 20);
    }

    #[test]
    fn one_init_at_a_time() {
        let session = Session::new();
        assert_eq!(session.terms(), None);
        let first = session.start().unwrap();
        assert_eq!(session.start().err(), Some(Errno::EAGAIN));
        assert_eq!(session.terms(), None);
        first.commit(init::ASYNC_READ);
        assert!(session.terms().unwrap().has(init::ASYNC_READ));

        drop(session.start().unwrap());
        assert_eq!(session.terms(), None, "an INIT that failed leaves no session");
        session.assume();
        assert!(session.terms().unwrap().is_assumed());
        assert!(session.end());
        assert!(!session.end());
    }
}
