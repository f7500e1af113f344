//! What can go wrong between the front-end and a daemon, apart from what the file system answers.

use std::io;
use std::time::Duration;

/// The device or its control channel misbehaved, or is gone.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing came back in time.
    #[error("no answer to {what} within {after:?}")]
    Timeout {
        /// The request that was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// The daemon closed the vhost-user connection.
    #[error("the daemon closed the connection while {0}")]
    Disconnected(String),
    /// A vhost-user reply does not fit its request.
    #[error("vhost-user: {0}")]
    Protocol(String),
    /// The daemon answered a vhost-user message with a failure code.
    #[error("the daemon refused {request} with {code:#x}")]
    Refused {
        /// Name of the message.
        request: &'static str,
        /// The payload of its reply.
        code: u64,
    },
    /// A used-ring entry or FUSE reply breaks a rule that Linux guests rely on.
    #[error("bad reply: {0}")]
    BadReply(String),
    /// The ring has not enough free descriptors, or guest memory not enough free bytes.
    #[error("no room for another request")]
    Full,
    /// The operating system refused something on our side.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why a FUSE operation failed: the file system said so, or the device did not work.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The positive errno of the reply.
    #[error("{}", errno_name(*.0))]
    Errno(i32),
    /// No proper reply came.
    #[error(transparent)]
    Device(#[from] Error),
}

impl Fault {
    /// The errno of the reply, if there was a reply.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Fault::Errno(errno) => Some(*errno),
            Fault::Device(_) => None,
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Fault::Device(Error::Io(error))
    }
}

/// The result of a FUSE operation.
pub type Answer<T> = Result<T, Fault>;

/// The symbolic name of an errno, or its number.
pub fn errno_name(errno: i32) -> String {
    let name = match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::E2BIG => "E2BIG",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::EXDEV => "EXDEV",
        libc::ENODEV => "ENODEV",
        libc::ENOTDIR => "ENOTDIR",
        libc::EISDIR => "EISDIR",
        libc::EINVAL => "EINVAL",
        libc::ENFILE => "ENFILE",
        libc::EMFILE => "EMFILE",
        libc::ENOTTY => "ENOTTY",
        libc::EFBIG => "EFBIG",
        libc::ENOSPC => "ENOSPC",
        libc::ESPIPE => "ESPIPE",
        libc::EROFS => "EROFS",
        libc::EMLINK => "EMLINK",
        libc::ERANGE => "ERANGE",
        libc::ENAMETOOLONG => "ENAMETOOLONG",
        libc::ENOSYS => "ENOSYS",
        libc::ENOTEMPTY => "ENOTEMPTY",
        libc::ELOOP => "ELOOP",
        libc::ENODATA => "ENODATA",
        libc::EPROTO => "EPROTO",
        libc::EOVERFLOW => "EOVERFLOW",
        libc::EILSEQ => "EILSEQ",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ESTALE => "ESTALE",
        libc::EDQUOT => "EDQUOT",
        _ => return format!("errno {errno}"),
    };
    name.to_owned()
}
