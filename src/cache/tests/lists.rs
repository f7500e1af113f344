//! Free lists: what is put in comes out once, and there is an end to what goes in.

use std::collections::BTreeSet;

use crate::cache::buddy::{BLOCK_MAX, BLOCK_MIN, ORDER_MAX, len_of};
use crate::cache::lists::FreeLists;

#[test]
fn what_is_at_hand_comes_out_once() {
    let lists = FreeLists::new(64 * BLOCK_MAX);
    let all: BTreeSet<u64> = (0..5).map(|page| page * BLOCK_MIN as u64).collect();
    assert!(all.iter().all(|&offset| lists.give(offset, 0)));
    assert!(lists.give(1 << 22, 10));
    assert_eq!(lists.bytes(), 5 * BLOCK_MIN + BLOCK_MAX);
    assert_eq!(lists.take(1), None);
    assert_eq!(lists.take(10), Some(1 << 22));
    assert_eq!(std::iter::from_fn(|| lists.take(0)).collect::<BTreeSet<_>>(), all);
    assert_eq!((lists.bytes(), lists.take(0)), (0, None));
}

#[test]
fn a_class_has_a_part_of_the_pool_at_hand_and_no_more() {
    for len in [8 * BLOCK_MIN, 8 << 20, 256 << 20, 1 << 34] {
        let lists = FreeLists::new(len);
        for order in 0..=ORDER_MAX {
            let given = (0..100u64).take_while(|&n| lists.give(n * len_of(order) as u64, order)).count();
            assert_eq!(given, (len / 8 / len_of(order)).min(64), "order {order} of {len}");
        }
        assert!(!lists.give(0, ORDER_MAX + 1) && lists.take(ORDER_MAX + 1).is_none());
    }
}

#[test]
fn draining_leaves_nothing() {
    let lists = FreeLists::new(64 * BLOCK_MAX);
    let all: BTreeSet<(u64, u8)> = (0..=ORDER_MAX).flat_map(|order| (0..8).map(move |n| (n << 22, order))).collect();
    assert!(all.iter().all(|&(offset, order)| lists.give(offset, order)));
    let mut drained = BTreeSet::new();
    lists.drain(|offset, order| assert!(drained.insert((offset, order)), "twice"));
    assert_eq!((drained, lists.bytes()), (all, 0));
}
