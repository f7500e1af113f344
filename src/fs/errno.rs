//! The one error that a request can end in.

use std::fmt;
use std::io;

/// A Linux error number. Replies carry it negated; it is never 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

/// What a request comes to.
pub type Result<T, E = Errno> = std::result::Result<T, E>;

macro_rules! errnos {
    ($($name:ident),* $(,)?) => {
        impl Errno {
            $(
                #[doc = concat!("errno(3) `", stringify!($name), "`.")]
                pub const $name: Errno = Errno(libc::$name);
            )*
        }
        impl fmt::Debug for Errno {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $(libc::$name => f.write_str(stringify!($name)),)*
                    other => write!(f, "errno {other}"),
                }
            }
        }
    };
}

errnos!(
    EPERM,
    ENOENT,
    EIO,
    ENXIO,
    E2BIG,
    EBADF,
    EAGAIN,
    ENOMEM,
    EACCES,
    EBUSY,
    EEXIST,
    EXDEV,
    ENODEV,
    ENOTDIR,
    ELOOP,
    EISDIR,
    EINVAL,
    ENFILE,
    EMFILE,
    EFBIG,
    ENOSPC,
    ESPIPE,
    EROFS,
    EMLINK,
    ERANGE,
    ENAMETOOLONG,
    ENOSYS,
    ENOTEMPTY,
    ENODATA,
    EPROTO,
    EOVERFLOW,
    EILSEQ,
    EOPNOTSUPP,
    ESTALE,
    ETIMEDOUT,
    EREMOTEIO,
);

impl Errno {
    /// From a raw number, as `io::Error` carries it. Anything that is no error number becomes EIO.
    pub fn from_raw(raw: i32) -> Errno {
        if (1..=4095).contains(&raw) { Errno(raw) } else { Errno::EIO }
    }

    /// The positive number.
    pub fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Errno {}

impl From<io::Error> for Errno {
    /// The operating system's number; an error without one (a short guest buffer, say) is EIO.
    fn from(error: io::Error) -> Errno {
        error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
    }
}
