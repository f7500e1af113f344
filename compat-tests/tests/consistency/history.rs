//! What happened to one name, by several who did not wait for each other, and whether it can have happened to one file.
//!
//! Every operation has a time at which it began and one at which it had ended; it took effect at once, somewhere between. A
//! history is right if the operations can be put in an order that respects these times and in which every read
//! sees what the write before it wrote (Herlihy and Wing's linearizability, of a register; the search is Wing and Gong's,
//! which looks at every order and remembers where it has been).

use std::collections::HashSet;
use std::time::Duration;

/// What a name holds: nothing, or the content of that number.
pub type Value = Option<u64>;

/// An operation on a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Closed, uploaded or renamed there, and told that it is done.
    Write(u64),
    /// The same, but what came of it was not told.
    MayWrite(u64),
    /// Deleted.
    Delete,
    /// Opened, and this was found.
    Read(Value),
}

/// An operation with its times, since some moment before all of them.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Who.
    pub actor: &'static str,
    /// What.
    pub op: Op,
    /// When it began.
    pub start: Duration,
    /// When it had ended.
    pub end: Duration,
}

/// Longest history that can be looked at.
pub const EVENTS_MAX: usize = 128;

/// Whether `events` can have happened to one file, empty at first.
pub fn is_possible(events: &[Event]) -> bool {
    assert!(events.len() <= EVENTS_MAX, "a shorter history");
    let all = if events.len() == EVENTS_MAX { u128::MAX } else { (1u128 << events.len()) - 1 };
    let mut seen: HashSet<(u128, Value)> = HashSet::new();
    let mut open = vec![(0u128, None)];
    while let Some((done, value)) = open.pop() {
        if done == all {
            return true;
        }
        if !seen.insert((done, value)) {
            continue;
        }
        let left = || (0..events.len()).filter(|at| done >> at & 1 == 0);
        // Nothing may come before what had ended when it began.
        let limit = left().map(|at| events[at].end).min().unwrap_or_default();
        for at in left().filter(|at| events[*at].start <= limit) {
            let next = done | 1 << at;
            match events[at].op {
                Op::Write(new) => open.push((next, Some(new))),
                Op::MayWrite(new) => open.extend([(next, value), (next, Some(new))]),
                Op::Delete => open.push((next, None)),
                Op::Read(found) if found == value => open.push((next, value)),
                Op::Read(_) => {}
            }
        }
    }
    false
}

/// The history as lines, by time.
pub fn told(events: &[Event]) -> String {
    let mut events = events.to_vec();
    events.sort_by_key(|event| event.start);
    let line =
        |e: &Event| format!("{:>12.6} {:>12.6} {:8} {:?}\n", e.start.as_secs_f64(), e.end.as_secs_f64(), e.actor, e.op);
    events.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(op: Op, start: u64, end: u64) -> Event {
        Event { actor: "x", op, start: Duration::from_millis(start), end: Duration::from_millis(end) }
    }

    #[test]
    fn what_was_closed_before_an_open_is_seen_by_it() {
        assert!(is_possible(&[event(Op::Write(1), 0, 1), event(Op::Read(Some(1)), 2, 3)]));
        assert!(!is_possible(&[event(Op::Write(1), 0, 1), event(Op::Read(None), 2, 3)]));
        let stale = [event(Op::Write(1), 0, 1), event(Op::Write(2), 2, 3), event(Op::Read(Some(1)), 4, 5)];
        assert!(!is_possible(&stale));
    }

    #[test]
    fn what_happens_at_the_same_time_has_either_order_but_one() {
        let both = [event(Op::Write(1), 0, 10), event(Op::Write(2), 0, 10)];
        for last in [1, 2] {
            assert!(is_possible(&[both[0], both[1], event(Op::Read(Some(last)), 11, 12)]));
        }
        let twice = [both[0], both[1], event(Op::Read(Some(1)), 11, 12), event(Op::Read(Some(2)), 13, 14)];
        assert!(!is_possible(&twice));
    }

    #[test]
    fn what_may_have_failed_may_have_happened() {
        for found in [None, Some(1)] {
            assert!(is_possible(&[event(Op::MayWrite(1), 0, 1), event(Op::Read(found), 2, 3)]));
        }
        let deleted = [event(Op::Write(1), 0, 1), event(Op::Delete, 2, 3), event(Op::Read(Some(1)), 4, 5)];
        assert!(!is_possible(&deleted));
    }
}
