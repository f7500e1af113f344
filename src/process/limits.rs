//! The limit of open descriptors, and how many of them the guest may use up.

use log::warn;
use thiserror::Error;

use super::log::TARGET;

/// Descriptors that the daemon needs for itself: one for each of the 509 memory slots that the vhost-user back end
/// offers, and a hundred for everything else. virtiofsd reserves the same.
const RESERVED: u64 = 509 + 100;

/// Fewer than this for the guest is worth a warning; the number is virtiofsd's.
const FEW: u64 = 128;

/// Why the daemon cannot have the descriptors that it needs.
#[derive(Debug, Error)]
pub enum LimitError {
    /// The limit could not be read or set.
    #[error("Error increasing number of open files: {0}")]
    Set(String),
    /// The limit leaves less than the daemon itself needs.
    #[error("Maximum number of file descriptors too small: Limit is {limit}, must be at least {least}")]
    TooSmall {
        /// The limit in force.
        limit: u64,
        /// What the daemon needs.
        least: u64,
    },
}

/// Sets the limit of open descriptors to `nofile` (0: leave it; `None`: virtiofsd's default) and returns how many of them
/// are left for the guest.
///
/// # Errors
/// The limit cannot be set, or is too small for the daemon itself.
pub fn set_nofile(nofile: Option<u64>, thread_pool_size: usize) -> Result<u64, LimitError> {
    let limit = virtiofsd::limits::setup_rlimit_nofile(nofile).map_err(LimitError::Set)?;
    let left = left_for_guest(limit, thread_pool_size)?;
    if left < FEW {
        warn!(
            target: TARGET,
            "File descriptor count limit is very small, leaving only {left} file descriptors for the guest"
        );
    }
    Ok(left)
}

/// Each thread may open one descriptor before it is counted against the guest's share.
fn left_for_guest(limit: u64, thread_pool_size: usize) -> Result<u64, LimitError> {
    let least = RESERVED.saturating_add(thread_pool_size.max(1) as u64);
    limit.checked_sub(least).ok_or(LimitError::TooSmall { limit, least })
}

#[cfg(test)]
mod tests {
    use super::left_for_guest;

    #[test]
    fn reserve_grows_with_the_pool() {
        assert_eq!(left_for_guest(610, 0).unwrap(), 0);
        assert_eq!(left_for_guest(1000, 4).unwrap(), 387);
        let error = left_for_guest(100, 0).unwrap_err().to_string();
        assert_eq!(error, "Maximum number of file descriptors too small: Limit is 100, must be at least 610");
        assert!(left_for_guest(1 << 20, usize::MAX).is_err());
    }
}
