//! A listing entry by entry, that knows where a page of the store's ends.
//!
//! OpenDAL hides pages: whoever takes one entry more than a page has, sends a request, even to learn that there is nothing more.
//! Here the request is kept back, so that a full page that is the last one is known for that, and so that pages of ours are those
//! of the store: what follows a page can then be listed from the greatest key in it.

use opendal::Capability;
use opendal::options::ListOptions;
use opendal::raw::oio;

use super::super::gate::unsent;
use super::super::operator::Operators;
use crate::store::LIST_PAGE_MAX;

/// A listing under way.
pub(super) struct Pages {
    lister: oio::Lister,
    /// Requests can be kept back.
    http: bool,
    ahead: Option<oio::Entry>,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// An entry that is here already, or may be.
    Here,
    /// Another page, by a request.
    Page,
    /// Nothing.
    End,
}

impl Pages {
    /// Of the names below `dir`, which ends with a slash; those after the key `after`, if it is given, and perhaps that one.
    ///
    /// # Errors
    /// OpenDAL's; nothing is asked yet.
    pub fn open(ops: &Operators, http: bool, dir: &str, after: Option<String>) -> opendal::Result<Pages> {
        let options = ListOptions { limit: Some(LIST_PAGE_MAX), start_after: after, ..ListOptions::default() };
        Pages::with(ops, http, dir, options)
    }

    /// Of all keys that begin with `path`, `limit` per request.
    ///
    /// # Errors
    /// OpenDAL's; nothing is asked yet.
    pub fn of_keys(ops: &Operators, http: bool, path: &str, limit: usize) -> opendal::Result<Pages> {
        let options = ListOptions { limit: Some(limit), recursive: true, ..ListOptions::default() };
        Pages::with(ops, http, path, options)
    }

    fn with(ops: &Operators, http: bool, dir: &str, options: ListOptions) -> opendal::Result<Pages> {
        // By the service itself: OpenDAL's own listing ends with the first error, even with one that says nothing.
        let lister = ops.raw.service().list_dyn(ops.raw.context(), dir, options.into())?;
        Ok(Pages { lister, http, ahead: None })
    }

    /// Whether listings of a store that `can` so much may begin after a key.
    pub fn resume(can: &Capability) -> bool {
        can.list_with_start_after && can.list_with_limit
    }

    /// The next entry.
    ///
    /// # Errors
    /// The store's.
    pub async fn next(&mut self) -> opendal::Result<Option<oio::Entry>> {
        match self.ahead.take() {
            Some(entry) => Ok(Some(entry)),
            None => self.lister.next_dyn().await,
        }
    }

    /// What [`Pages::next`] would have to do.
    ///
    /// # Errors
    /// The store's.
    pub async fn peek(&mut self) -> opendal::Result<Next> {
        if self.ahead.is_some() || !self.http {
            return Ok(Next::Here);
        }
        // A request that is not sent changes nothing of the lister: that happens when an answer comes.
        match unsent(self.lister.next_dyn()).await {
            None => Ok(Next::Page),
            Some(entry) => {
                self.ahead = entry?;
                Ok(if self.ahead.is_some() { Next::Here } else { Next::End })
            }
        }
    }
}
