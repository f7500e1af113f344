//! Listings that are under way: a bounded table of cursors, each forgotten after a minute of disuse.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most listings under way per mount; the longest unused goes for a new one.
pub(super) const CURSORS_MAX: usize = 1024;

/// How long an unused cursor lives.
pub(super) const CURSOR_IDLE: Duration = Duration::from_secs(60);

/// Cursors to listings of type `L`, each for one path.
#[derive(Debug)]
pub(super) struct Cursors<L> {
    table: Mutex<Table<L>>,
}

#[derive(Debug)]
struct Table<L> {
    next: u64,
    open: HashMap<u64, Open<L>>,
}

#[derive(Debug)]
struct Open<L> {
    path: String,
    listing: L,
    used: Instant,
}

impl<L> Default for Cursors<L> {
    fn default() -> Self {
        Cursors { table: Mutex::new(Table { next: 1, open: HashMap::new() }) }
    }
}

impl<L> Cursors<L> {
    /// Takes the listing of `path` out for its next page; `None` if the cursor is no more, or another path's.
    pub fn take(&self, cursor: u64, path: &str) -> Option<L> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        table.open.retain(|_, open| now.duration_since(open.used) < CURSOR_IDLE);
        if table.open.get(&cursor)?.path != path {
            return None;
        }
        table.open.remove(&cursor).map(|open| open.listing)
    }

    /// Puts a listing away until its next page, under a new cursor, never 0.
    pub fn put(&self, path: &str, listing: L) -> u64 {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let used = Instant::now();
        table.open.retain(|_, open| used.duration_since(open.used) < CURSOR_IDLE);
        if table.open.len() >= CURSORS_MAX
            && let Some(oldest) = table.open.iter().min_by_key(|(_, open)| open.used).map(|(cursor, _)| *cursor)
        {
            table.open.remove(&oldest);
        }
        let cursor = table.next;
        table.next += 1;
        table.open.insert(cursor, Open { path: path.to_owned(), listing, used });
        cursor
    }

    /// Forgets a cursor; an unknown one is fine.
    pub fn end(&self, cursor: u64) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = table.open.remove(&cursor);
        drop(table);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_serves_once_and_its_own_path() {
        let cursors = Cursors::default();
        let cursor = cursors.put("a", 1);
        assert_eq!(cursors.take(cursor, "b"), None);
        assert_eq!(cursors.take(cursor, "a"), Some(1));
        assert_eq!(cursors.take(cursor, "a"), None);
        let next = cursors.put("a", 2);
        assert!(next != 0 && next != cursor);
        cursors.end(next);
        assert_eq!(cursors.take(next, "a"), None);
    }

    #[test]
    fn the_table_is_bounded() {
        let cursors = Cursors::default();
        let all: Vec<_> = (0..CURSORS_MAX + 1).map(|n| cursors.put("a", n)).collect();
        assert_eq!(cursors.take(all[0], "a"), None);
        assert_eq!(cursors.take(all[1], "a"), Some(1));
    }
}
