//! SIGTERM and SIGHUP.
//!
//! A daemon that serves a directory ends at once with code 1, as virtiofsd does: nothing of it is unwritten. The broker
//! lets the device process write back first; it takes the signals over once it runs.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use libc::{c_int, c_void, siginfo_t};
use thiserror::Error;
use vmm_sys_util::signal::register_signal_handler;

const ENDING: [c_int; 2] = [libc::SIGHUP, libc::SIGTERM];

/// Why the signals are not handled.
#[derive(Debug, Error)]
pub enum SignalError {
    /// A handler could not be set.
    #[error("Setting signal handlers: {0}")]
    Handler(vmm_sys_util::errno::Error),
    /// The signals could not be held back.
    #[error("Holding back signals: {0}")]
    Hold(io::Error),
}

extern "C" fn end_now(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: _exit(2) is allowed in a signal handler.
    unsafe { libc::_exit(1) };
}

/// From now on the two signals end the process with code 1, without further ado.
///
/// # Errors
/// sigaction(2)'s.
pub fn end_at_once() -> Result<(), SignalError> {
    ENDING.iter().try_for_each(|&signal| register_signal_handler(signal, end_now)).map_err(SignalError::Handler)
}

/// The two signals, held back from the moment of [`hold`](Held::hold), so that none is lost across a fork.
#[derive(Debug)]
pub struct Held {
    before: libc::sigset_t,
}

impl Held {
    /// Holds the signals back in this thread and its future children.
    ///
    /// # Errors
    /// sigprocmask(2)'s.
    pub fn hold() -> Result<Held, SignalError> {
        let mut set = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises `set`; sigaddset takes valid signal numbers; pthread_sigmask initialises
        // `before` when it returns 0, and nothing is read from either otherwise.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in ENDING {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr()) {
                0 => Ok(Held { before: before.assume_init() }),
                errno => Err(SignalError::Hold(io::Error::from_raw_os_error(errno))),
            }
        }
    }

    /// Lets go of the handlers that end the process at once: whoever handles the signals next is alone with them.
    pub fn without_handlers(self) -> Held {
        for signal in ENDING {
            // SAFETY: SIG_DFL is a valid disposition; the signals are held back, so none arrives before its new handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        self
    }

    /// Lets the signals through again, those that came meanwhile first.
    pub fn release(self) {
        // SAFETY: `before` is the mask that `hold` got from the kernel.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
    }
}
