//! Whether the store means what it says of conditional writes.
//!
//! Many servers that speak S3 ignore If-Match and If-None-Match, and lose updates without a word; some refuse the right
//! ETag. So, in the background at the start, an object of our own is written four times, and the answers tell. Writes
//! with a condition wait for that. A condition that is not kept is not sent any more: a question just before the write
//! takes its place, which leaves a gap, and the log says so, once.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use opendal::options::WriteOptions;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::super::error::kind_of;
use super::super::services::Upload;
use super::{Remote, unique};
use crate::store::StoreErrorKind;

/// How the names of the objects begin that are written to find out.
pub(super) const PROBE: &str = ".ovfs-probe-";

/// An ETag that no object of ours has.
const WRONG: &str = "\"00000000000000000000000000000000\"";

/// How often a store that fails to answer is asked, and how long it is left alone between.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(2);

/// What came of it for one condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// It works, as far as is known.
    Yes,
    /// It does not.
    No,
    /// The store has not said: it is sent, and the question asked, too.
    Unknown,
}

/// Both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub if_match: Kept,
    pub if_absent: Kept,
}

/// Nobody has asked: what OpenDAL says of the service counts.
const DECLARED: Found = Found { if_match: Kept::Yes, if_absent: Kept::Yes };
const UNKNOWN: Found = Found { if_match: Kept::Unknown, if_absent: Kept::Unknown };

/// The answers, once there are any.
pub(super) struct Conditions {
    /// `None` while the question is open.
    found: watch::Sender<Option<Found>>,
}

impl Default for Conditions {
    fn default() -> Self {
        Conditions { found: watch::Sender::new(Some(DECLARED)) }
    }
}

impl fmt::Debug for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Conditions").field(&*self.found.borrow()).finish()
    }
}

impl Remote {
    /// Begins to find out, where there is something to be found out.
    pub(super) fn probe_conditions(self: &Arc<Self>) {
        let native = matches!(self.service.upload, Upload::Parts | Upload::OneShot);
        if !native || !(self.can.write_with_if_match || self.can.write_with_if_not_exists) {
            return;
        }
        self.conditions.found.send_replace(None);
        let store = Arc::clone(self);
        tokio::spawn(async move {
            let found = store.find_out().await;
            store.conditions.found.send_replace(Some(found));
            let complain = |kept, what: &str, instead: &str| {
                if kept == Kept::No {
                    log::warn!(
                        "the store ignores {what}: {instead} is checked just before each write instead, and a change by \
                         another program between the two can be lost"
                    );
                }
            };
            complain(found.if_match, "If-Match", "the version of an object");
            complain(found.if_absent, "If-None-Match", "the absence of an object");
        });
    }

    /// What is known, after as long a wait as any request may take.
    pub(super) async fn conditions(&self) -> Found {
        let mut found = self.conditions.found.subscribe();
        let known = timeout(self.patience, found.wait_for(Option::is_some)).await;
        known.ok().and_then(Result::ok).and_then(|found| *found).unwrap_or(UNKNOWN)
    }

    async fn find_out(&self) -> Found {
        let path = format!("{PROBE}{}", unique());
        for attempt in 1..=ATTEMPTS {
            let found = self.ask_conditions(&path).await;
            if let Err(e) = self.ops.ask.delete(&path).await {
                log::debug!("'{path}' cannot be removed now: {}", self.cleaner.clean(&e.to_string()));
            }
            match found {
                Ok(found) => return found,
                Err(e) => {
                    log::debug!("cannot find out about conditional writes: {}", self.cleaner.clean(&e.to_string()));
                    if kind_of(&e) != StoreErrorKind::Unavailable {
                        break;
                    }
                }
            }
            if attempt < ATTEMPTS {
                sleep(PAUSE).await;
            }
        }
        UNKNOWN
    }

    /// Errors are those that say nothing about conditions.
    async fn ask_conditions(&self, path: &str) -> opendal::Result<Found> {
        let mut found = DECLARED;
        let absent = WriteOptions { if_not_exists: true, ..WriteOptions::default() };
        let mut there = None;
        if self.can.write_with_if_not_exists {
            there = self.put_probe(path, "1", absent.clone()).await?;
            if there.is_none() || self.put_probe(path, "2", absent).await?.is_some() {
                found.if_absent = Kept::No;
            }
        }
        if self.can.write_with_if_match {
            if there.is_none() || found.if_absent == Kept::No {
                there = self.put_probe(path, "3", WriteOptions::default()).await?;
            }
            let with = |etag: &str| WriteOptions { if_match: Some(etag.to_owned()), ..WriteOptions::default() };
            let right = match there.flatten() {
                Some(etag) => Some(etag),
                None => self.ops.ask.stat(path).await?.etag().map(|etag| self.quoted(etag)),
            };
            let wrong_is_taken = self.put_probe(path, "4", with(WRONG)).await?.is_some();
            let right_is_taken = match right {
                Some(etag) => self.put_probe(path, "5", with(&etag)).await?.is_some(),
                None => false,
            };
            if wrong_is_taken || !right_is_taken {
                found.if_match = Kept::No;
            }
        }
        Ok(found)
    }

    /// Writes the object, once; `None` if the condition was refused, or is nothing that the server knows. Else its ETag.
    async fn put_probe(
        &self,
        path: &str,
        content: &'static str,
        options: WriteOptions,
    ) -> opendal::Result<Option<Option<String>>> {
        let conditional = options.if_not_exists || options.if_match.is_some();
        match self.ops.ask_once.write_options(path, content, options).await {
            Ok(metadata) => Ok(Some(metadata.etag().filter(|e| !e.is_empty()).map(|e| self.quoted(e)))),
            Err(e) if conditional && !e.is_temporary() && says_no(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Whether this is an answer to a condition: it does not hold, or cannot be had.
fn says_no(e: &opendal::Error) -> bool {
    let text = e.to_string();
    matches!(kind_of(e), StoreErrorKind::VersionMismatch | StoreErrorKind::Exists | StoreErrorKind::Unsupported)
        || ["status: 400", "status: 501", "NotImplemented", "InvalidArgument", "InvalidRequest"]
            .iter()
            .any(|s| text.contains(s))
}
