//! Owners as the guest numbers them and as the store does. The rules and their reading are virtiofsd's own.

use std::io;

use virtiofsd::soft_idmap::cmdline::IdMap as Rule;
use virtiofsd::soft_idmap::{GuestGid, GuestUid, HostGid, HostUid, Id, IdMap};

use crate::fs::{Errno, Result};

/// How user and group ids are translated between guest and store. An id that no rule names is the same in both.
pub struct Ids {
    uids: IdMap<GuestUid, HostUid>,
    gids: IdMap<GuestGid, HostGid>,
}

impl std::fmt::Debug for Ids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ids").finish_non_exhaustive()
    }
}

impl Default for Ids {
    /// Every id is the same in guest and store.
    fn default() -> Ids {
        Ids { uids: IdMap::empty(), gids: IdMap::empty() }
    }
}

impl Ids {
    /// By the rules of `--translate-uid` and `--translate-gid`, where "host" means the store.
    ///
    /// # Errors
    /// Rules that overlap, or leave the range of ids.
    pub fn new(uids: Vec<Rule>, gids: Vec<Rule>) -> io::Result<Ids> {
        uids.iter().chain(&gids).try_for_each(targets_are_ids)?;
        Ok(Ids { uids: uids.try_into()?, gids: gids.try_into()? })
    }

    /// The store's number for the guest's user `uid`.
    ///
    /// # Errors
    /// EIO, as virtiofsd says it: a rule forbids this user to own anything.
    pub fn stored_uid(&self, uid: u32) -> Result<u32> {
        self.uids.map_guest(uid.into()).map(Id::into_inner).map_err(|error| Errno::from(io::Error::from(error)))
    }

    /// As [`Ids::stored_uid`], for a group.
    ///
    /// # Errors
    /// As [`Ids::stored_uid`].
    pub fn stored_gid(&self, gid: u32) -> Result<u32> {
        self.gids.map_guest(gid.into()).map(Id::into_inner).map_err(|error| Errno::from(io::Error::from(error)))
    }

    /// The guest's number for the store's user `uid`. (No rule forbids ids of the store.)
    pub fn guest_uid(&self, uid: u32) -> u32 {
        self.uids.map_host(uid.into()).map_or(NOBODY, Id::into_inner)
    }

    /// As [`Ids::guest_uid`], for a group.
    pub fn guest_gid(&self, gid: u32) -> u32 {
        self.gids.map_host(gid.into()).map_or(NOBODY, Id::into_inner)
    }
}

/// The kernel's id for owners that cannot be named.
const NOBODY: u32 = 65534;

/// Refuses a rule whose target range runs over the largest number: its ids would come out wrong.
fn targets_are_ids(rule: &Rule) -> io::Result<()> {
    let ranges = match *rule {
        Rule::Guest { to_host: to, count, .. } | Rule::Host { to_guest: to, count, .. } => [(to, count); 2],
        Rule::Bidirectional { guest, host, count } => [(guest, count), (host, count)],
        Rule::SquashGuest { .. } | Rule::SquashHost { .. } | Rule::ForbidGuest { .. } => return Ok(()),
    };
    if ranges.iter().all(|(to, count)| to.checked_add(*count).is_some()) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{rule}: the target range leaves the range of ids")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(rules: &[&str]) -> io::Result<Ids> {
        let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().expect("a rule")).collect();
        Ids::new(rules.clone(), rules)
    }

    #[test]
    fn ids_are_translated_both_ways_and_others_stay() {
        let ids = ids(&["map:0:100000:10", "squash-guest:500:7:100", "squash-host:2000:9:5"]).expect("rules");
        assert_eq!((ids.stored_uid(3), ids.stored_gid(3)), (Ok(100_003), Ok(100_003)));
        assert_eq!((ids.guest_uid(100_003), ids.guest_gid(100_009)), (3, 9));
        assert_eq!((ids.stored_uid(599), ids.guest_uid(2004)), (Ok(7), 9));
        assert_eq!((ids.stored_uid(10), ids.guest_uid(5)), (Ok(10), 5));
        let same = Ids::default();
        assert_eq!((same.stored_gid(42), same.guest_gid(42)), (Ok(42), 42));
    }

    #[test]
    fn forbidden_ids_own_nothing() {
        let ids = ids(&["forbid-guest:10:5"]).expect("rules");
        assert_eq!(ids.stored_uid(12), Err(Errno::EIO));
        assert_eq!((ids.stored_uid(15), ids.guest_uid(12)), (Ok(15), 12));
    }

    #[test]
    fn rules_that_overlap_or_overflow_are_refused() {
        for rules in [&["guest:5:100:10", "guest:5:200:10"][..], &["guest:0:4294967290:10"], &["map:1:0:4294967295"]] {
            assert!(ids(rules).is_err(), "{rules:?}");
        }
    }
}
