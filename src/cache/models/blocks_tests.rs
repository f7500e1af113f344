//! Blocks: the lists, the buddy allocator behind them, and the memory that the kernel gets back.

use std::sync::Arc;

use loom::thread;

use super::block::{Block, Blocks};
use super::buddy::BLOCK_MIN;
use super::{Pages, blocks, explore, pool};

/// A pool that has room for one page at hand.
const PAGES: usize = 8;

fn use_one(blocks: &Arc<Blocks>, pages: &Pages, len: usize, who: u64) -> bool {
    let Some(block) = blocks.take(len) else { return false };
    pages.write_block(&block, who);
    assert!(pages.read_block(&block).iter().all(|&seen| seen == who));
    true
}

/// Nothing is lost, and all of it can be had in one piece.
fn all_is_back(blocks: &Arc<Blocks>) {
    assert_eq!((blocks.free_bytes(), blocks.dirty_bytes()), (blocks.len(), 0));
    assert!(blocks.take(blocks.len()).is_some());
}

#[test]
fn a_block_has_one_owner() {
    let pool = pool(PAGES);
    explore(2, move || {
        let (blocks, pages) = blocks(&pool);
        let other = {
            let (blocks, pages) = (Arc::clone(&blocks), pages.clone());
            thread::spawn(move || {
                assert!(use_one(&blocks, &pages, BLOCK_MIN, 1));
                assert!(use_one(&blocks, &pages, 2 * BLOCK_MIN, 2));
            })
        };
        assert!(use_one(&blocks, &pages, BLOCK_MIN, 3));
        assert!(use_one(&blocks, &pages, BLOCK_MIN, 4));
        other.join().expect("no panic");
        all_is_back(&blocks);
    });
}

#[test]
fn there_is_never_more_than_the_pool_has() {
    let pool = pool(PAGES);
    explore(2, move || {
        let (blocks, _) = blocks(&pool);
        let other = {
            let blocks = Arc::clone(&blocks);
            thread::spawn(move || [blocks.take(4 * BLOCK_MIN), blocks.take(4 * BLOCK_MIN)])
        };
        let ours = [blocks.take(4 * BLOCK_MIN), blocks.take(BLOCK_MIN)];
        let theirs = other.join().expect("no panic");
        let held: Vec<Block> = ours.into_iter().chain(theirs).flatten().collect();
        let used: usize = held.iter().map(Block::capacity).sum();
        assert!(used <= blocks.len() && used >= 5 * BLOCK_MIN, "{used} bytes");
        assert_eq!(blocks.free_bytes(), blocks.len() - used);
        drop(held);
        all_is_back(&blocks);
    });
}

/// A page is at hand when somebody wants all there is, and another one takes it and gives it back: the one gets all or the
/// other has the page, and then all is there at the next try.
#[test]
fn what_is_at_hand_is_merged_for_a_larger_block() {
    let pool = pool(PAGES);
    explore(3, move || {
        let (blocks, pages) = blocks(&pool);
        drop(blocks.take(BLOCK_MIN));
        let other = {
            let (blocks, pages) = (Arc::clone(&blocks), pages.clone());
            thread::spawn(move || use_one(&blocks, &pages, BLOCK_MIN, 1))
        };
        let got_all = use_one(&blocks, &pages, PAGES * BLOCK_MIN, 2);
        assert!(other.join().expect("no panic") || got_all, "one of them gets what it wants");
        all_is_back(&blocks);
    });
}

/// Memory of a block that is freed while others are given back is given back at the next pass, at the latest.
#[test]
fn memory_that_is_freed_meanwhile_is_given_back_later() {
    let pool = pool(PAGES);
    explore(3, move || {
        let (blocks, pages) = blocks(&pool);
        let block = blocks.take(PAGES * BLOCK_MIN).expect("free");
        assert_eq!(blocks.give_back_if_idle(), 0, "a block was taken");
        let other = {
            let (blocks, pages) = (Arc::clone(&blocks), pages.clone());
            thread::spawn(move || {
                pages.write_block(&block, 1);
                drop(block);
                drop(blocks);
            })
        };
        let given = blocks.give_back_if_idle();
        other.join().expect("no panic");
        assert!(given + blocks.give_back_if_idle() > 0);
        assert_eq!(blocks.give_back_if_idle(), 0);
        all_is_back(&blocks);
    });
}

/// As before, of a page that is kept at hand.
#[test]
fn memory_at_hand_is_given_back_too() {
    let pool = pool(PAGES);
    explore(3, move || {
        let (blocks, pages) = blocks(&pool);
        let rest = [blocks.take(4 * BLOCK_MIN), blocks.take(2 * BLOCK_MIN), blocks.take(BLOCK_MIN)];
        let last = blocks.take(BLOCK_MIN).expect("free");
        assert_eq!(blocks.give_back_if_idle(), 0);
        let other = thread::spawn(move || {
            pages.write_block(&last, 1);
            drop(last);
        });
        let given = blocks.give_back_if_idle();
        other.join().expect("no panic");
        assert_eq!(given + blocks.give_back_if_idle(), BLOCK_MIN, "once, in this pass or the next");
        drop(rest);
        all_is_back(&blocks);
    });
}

#[test]
fn who_takes_a_block_while_memory_is_given_back_has_it_alone() {
    let pool = pool(PAGES);
    explore(2, move || {
        let (blocks, pages) = blocks(&pool);
        drop(blocks.take(BLOCK_MIN));
        blocks.give_back_if_idle();
        let other = {
            let (blocks, pages) = (Arc::clone(&blocks), pages.clone());
            thread::spawn(move || {
                let Some(mut block) = blocks.take(BLOCK_MIN) else { return };
                pages.write_block(&block, 1);
                block.write(0, &[7]);
                assert_eq!(block.bytes(0, 1), [7], "its bytes are not taken away");
            })
        };
        blocks.give_back_if_idle();
        other.join().expect("no panic");
        all_is_back(&blocks);
    });
}

#[test]
fn a_block_is_counted_as_dirty_once() {
    let pool = pool(PAGES);
    explore(3, move || {
        let (blocks, _) = blocks(&pool);
        let block = Arc::new(blocks.take(BLOCK_MIN).expect("free"));
        let other = {
            let block = Arc::clone(&block);
            thread::spawn(move || block.mark_dirty())
        };
        block.mark_dirty();
        other.join().expect("no panic");
        assert_eq!(blocks.dirty_bytes(), BLOCK_MIN);
        let other = {
            let block = Arc::clone(&block);
            thread::spawn(move || block.mark_clean())
        };
        block.mark_clean();
        other.join().expect("no panic");
        assert_eq!(blocks.dirty_bytes(), 0);
        drop(block);
        all_is_back(&blocks);
    });
}
