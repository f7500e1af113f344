//! Where what goes wrong becomes an errno. Nowhere else.

use std::sync::LazyLock;

use crate::fs::Errno;
use crate::process::throttle::Throttle;
use crate::store::path::NameError;
use crate::store::{StoreError, StoreErrorKind};

/// Lines of the log per minute about trouble with stores.
static SAID: LazyLock<Throttle> = LazyLock::new(|| Throttle::several(10));

impl From<StoreErrorKind> for Errno {
    fn from(kind: StoreErrorKind) -> Errno {
        match kind {
            StoreErrorKind::NotFound => Errno::ENOENT,
            StoreErrorKind::Exists => Errno::EEXIST,
            StoreErrorKind::IsDir => Errno::EISDIR,
            StoreErrorKind::NotDir => Errno::ENOTDIR,
            StoreErrorKind::NotEmpty => Errno::ENOTEMPTY,
            StoreErrorKind::VersionMismatch | StoreErrorKind::Stale => Errno::ESTALE,
            StoreErrorKind::PermissionDenied => Errno::EACCES,
            StoreErrorKind::Unsupported => Errno::EOPNOTSUPP,
            StoreErrorKind::InvalidName => Errno::EINVAL,
            StoreErrorKind::TooLarge => Errno::EFBIG,
            StoreErrorKind::NoSpace | StoreErrorKind::AttributesTooLarge => Errno::ENOSPC,
            StoreErrorKind::ReadOnly => Errno::EROFS,
            StoreErrorKind::Unavailable | StoreErrorKind::Silent => Errno::ETIMEDOUT,
            StoreErrorKind::Protocol | StoreErrorKind::Io | StoreErrorKind::Archived => Errno::EIO,
        }
    }
}

impl From<StoreError> for Errno {
    /// The errno of the class. What a program may run into every day is logged for debugging only, trouble with the
    /// store as a warning.
    fn from(error: StoreError) -> Errno {
        match error.kind {
            StoreErrorKind::PermissionDenied
            | StoreErrorKind::Unavailable
            | StoreErrorKind::Protocol
            | StoreErrorKind::Io
            | StoreErrorKind::Archived
            | StoreErrorKind::NoSpace => SAID.warn(format_args!("store: {error}")),
            _ => log::debug!("store: {error}"),
        }
        error.kind.into()
    }
}

impl From<NameError> for Errno {
    fn from(error: NameError) -> Errno {
        match error {
            NameError::TooLong => Errno::ENAMETOOLONG,
            NameError::NotUtf8 => Errno::EILSEQ,
            NameError::NotAComponent | NameError::Rewritten => Errno::EINVAL,
        }
    }
}
