//! Reading: one ranged GET, straight into the pool, of exactly one version.

use futures::TryStreamExt;
use opendal::options::ReaderOptions;

use super::super::error::{error, kind_of};
use super::{Remote, same_version, strong};
use crate::store::{Slice, StoreError, StoreErrorKind, Version};

impl Remote {
    /// Fills `dest` with the object's bytes from `offset` on, from this machine's disk where they are there.
    pub async fn read(
        &self,
        path: &str,
        version: Option<&Version>,
        offset: u64,
        dest: Slice,
    ) -> Result<(), StoreError> {
        match (&self.shelf, version) {
            (Some(shelf), Some(named)) if shelf.takes(version) && offset + u64::from(dest.len) <= named.size => {
                shelf.read(path, named, (offset, dest), |at, part| self.fetch_range(path, version, at, part)).await
            }
            _ => self.fetch_range(path, version, offset, dest).await,
        }
    }

    async fn fetch_range(
        &self,
        path: &str,
        version: Option<&Version>,
        offset: u64,
        dest: Slice,
    ) -> Result<(), StoreError> {
        let range = match offset.checked_add(dest.len.into()) {
            Some(end) if version.is_none_or(|v| end <= v.size) => offset..end,
            _ => return Err(error(StoreErrorKind::Protocol, format!("read '{path}': beyond the end of its version"))),
        };
        if range.is_empty() {
            return Ok(());
        }
        let fail = |e: &opendal::Error| {
            let mut failed = self.fail("read", path, e);
            // Shorter than its version: it is another one by now.
            if version.is_some() && (e.kind() == opendal::ErrorKind::RangeNotSatisfied || is_short(e)) {
                failed.kind = StoreErrorKind::VersionMismatch;
            } else if kind_of(e) == StoreErrorKind::VersionMismatch && version.is_none() {
                failed.kind = StoreErrorKind::Io;
            }
            failed
        };
        let if_match = version.and_then(strong).filter(|_| self.can.read_with_if_match);
        let options = ReaderOptions { if_match, ..ReaderOptions::default() };
        let reader = self.ops.ask.reader_options(path, options).await.map_err(|e| fail(&e))?;
        let mut stream = reader.clone().into_stream(range).await.map_err(|e| fail(&e))?;
        let mut have = 0u64;
        while let Some(buffer) = stream.try_next().await.map_err(|e| fail(&e))? {
            for bytes in buffer {
                let fits = have + bytes.len() as u64 <= u64::from(dest.len);
                if !fits || !self.pool.write(dest.offset + have, &bytes) {
                    return Err(error(
                        StoreErrorKind::Io,
                        format!("read '{path}': the store sent more than was asked for"),
                    ));
                }
                have += bytes.len() as u64;
            }
        }
        if have != u64::from(dest.len) {
            let kind = if version.is_some() { StoreErrorKind::VersionMismatch } else { StoreErrorKind::Io };
            return Err(error(kind, format!("read '{path}': {have} bytes of {}", dest.len)));
        }
        match version {
            Some(version) => self.verify(path, version, reader.metadata()).await,
            None => Ok(()),
        }
    }

    /// Whether what was read is of `version`: by the reply's own metadata where it says enough, else by asking after the
    /// fact, which catches every change made before.
    pub(super) async fn verify(
        &self,
        path: &str,
        version: &Version,
        reply: Option<&opendal::Metadata>,
    ) -> Result<(), StoreError> {
        let said = reply
            .map(|m| self.meta(m))
            .filter(|m| m.etag.is_some() || (version.etag.is_none() && m.mtime_ns.is_some()));
        let now = match said {
            Some(meta) => Some(meta),
            None => self.head_meta(path).await?,
        };
        match now {
            Some(meta) if same_version(&meta, version) => Ok(()),
            Some(_) => Err(error(StoreErrorKind::VersionMismatch, format!("read '{path}': it has changed"))),
            None => Err(error(StoreErrorKind::NotFound, format!("read '{path}': it is gone"))),
        }
    }
}

/// OpenDAL's word for a body that ended early though the connection did not.
fn is_short(e: &opendal::Error) -> bool {
    e.kind() == opendal::ErrorKind::Unexpected && e.to_string().contains("reader got too little data")
}
