//! Free lists alone.

use std::sync::Arc;

use loom::thread;

use super::buddy::BLOCK_MIN;
use super::lists::FreeLists;
use super::{Pages, explore};

const PAGE: u64 = BLOCK_MIN as u64;

/// Takes a block, writes it, and gives it back. `None`: there was none. Else what there was no room for.
fn use_one(lists: &FreeLists, pages: &Pages, who: u64) -> Option<Option<u64>> {
    let offset = lists.take(0)?;
    pages.write(offset, BLOCK_MIN, who);
    assert_eq!(pages.read(offset, BLOCK_MIN), [who]);
    Some((!lists.give(offset, 0)).then_some(offset))
}

/// Lists with room for `slots` pages, and all of these in them.
fn filled(slots: u64) -> (Arc<FreeLists>, Pages) {
    let lists = FreeLists::new(slots as usize * 8 * BLOCK_MIN);
    assert!((0..slots).all(|page| lists.give(page * PAGE, 0)));
    (Arc::new(lists), Pages::new(slots as usize + 1))
}

fn drained(lists: &FreeLists) -> Vec<u64> {
    let mut all = Vec::new();
    lists.drain(|offset, _| all.push(offset));
    all
}

#[test]
fn a_block_has_one_owner() {
    explore(3, || {
        let (lists, pages) = filled(2);
        let other = {
            let (lists, pages) = (Arc::clone(&lists), pages.clone());
            thread::spawn(move || [(); 2].map(|()| use_one(&lists, &pages, 1)))
        };
        let ours = [(); 2].map(|()| use_one(&lists, &pages, 2));
        let theirs = other.join().expect("no panic");
        // A slot is nobody's while a thread reads it, so there may seem to be no room; then the block is told.
        assert!(ours.iter().chain(&theirs).all(Option::is_some), "each finds one of two");
        let mut all = drained(&lists);
        all.extend(ours.into_iter().chain(theirs).flatten().flatten());
        all.sort_unstable();
        assert_eq!(all, [0, PAGE]);
    });
}

#[test]
fn of_three_who_want_one_block_each_has_it_alone() {
    explore(2, || {
        let (lists, pages) = filled(1);
        let others: Vec<_> = (1..3)
            .map(|who| {
                let (lists, pages) = (Arc::clone(&lists), pages.clone());
                thread::spawn(move || use_one(&lists, &pages, who))
            })
            .collect();
        let mut all: Vec<u64> = use_one(&lists, &pages, 3).flatten().into_iter().collect();
        all.extend(others.into_iter().filter_map(|other| other.join().expect("no panic").flatten()));
        all.extend(drained(&lists));
        assert_eq!(all, [0]);
    });
}

#[test]
fn what_finds_no_room_is_still_the_givers() {
    explore(3, || {
        let (lists, pages) = filled(1);
        let other = {
            let (lists, pages) = (Arc::clone(&lists), pages.clone());
            thread::spawn(move || use_one(&lists, &pages, 1))
        };
        pages.write(PAGE, BLOCK_MIN, 2);
        let ours = (!lists.give(PAGE, 0)).then_some(PAGE);
        let theirs = other.join().expect("no panic");
        let mut all = drained(&lists);
        all.extend(ours.into_iter().chain(theirs.flatten()));
        all.sort_unstable();
        assert_eq!(all, [0, PAGE]);
    });
}

#[test]
fn draining_beside_those_who_take_and_give_loses_nothing() {
    explore(3, || {
        let (lists, pages) = filled(2);
        let other = {
            let (lists, pages) = (Arc::clone(&lists), pages.clone());
            thread::spawn(move || use_one(&lists, &pages, 1))
        };
        let mut all = drained(&lists);
        all.iter().for_each(|&offset| pages.write(offset, BLOCK_MIN, 2));
        let theirs = other.join().expect("no panic");
        all.extend(theirs.flatten());
        all.extend(drained(&lists));
        all.sort_unstable();
        assert_eq!(all, [0, PAGE]);
    });
}
