//! What earlier runs left behind: unfinished objects, those that were unlinked while open, and those of probes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::TryStreamExt;

use super::super::services::Upload;
use super::{RESERVED, Remote, TEMPORARY, UNLINKED, conditions, dir_path};

/// How old such an object must be to be removed. Others that are at work now have younger ones.
pub(super) const AGE: Duration = Duration::from_secs(24 * 3600);

impl Remote {
    /// Removes what is old; what cannot be removed stays for the next run.
    pub(super) async fn sweep(&self) {
        let ours = |path: &str| path.starts_with(UNLINKED) || path.starts_with(conditions::PROBE);
        let swept = async {
            self.sweep_below(RESERVED, ours).await?;
            match self.service.upload {
                Upload::InPlace => self.sweep_below(&dir_path(TEMPORARY), |_| true).await,
                _ => Ok(()),
            }
        };
        if let Err(e) = swept.await {
            log::debug!("cannot remove what earlier runs left: {}", self.cleaner.clean(&e.to_string()));
        }
    }

    /// Removes the old ones among the objects whose paths begin like that and are `ours`.
    async fn sweep_below(&self, start: &str, ours: impl Fn(&str) -> bool) -> opendal::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let young = now.saturating_sub(AGE).as_nanos() as i128;
        let mut lister = self.ops.ask.lister(start).await?;
        while let Some(entry) = lister.try_next().await? {
            let old = super::seconds(entry.metadata()).is_some_and(|at| i128::from(at) < young);
            if old && !entry.path().ends_with('/') && ours(entry.path()) {
                match self.ops.ask.delete(entry.path()).await {
                    Ok(()) => log::info!("'{}' was left by an earlier run and is removed", entry.path()),
                    Err(e) => log::debug!("'{}' stays: {}", entry.path(), self.cleaner.clean(&e.to_string())),
                }
            }
        }
        Ok(())
    }
}
