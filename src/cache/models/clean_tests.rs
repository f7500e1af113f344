//! Clean blocks: eviction beside those who read, write and store.

use std::sync::Arc;

use loom::thread;

use super::block::Blocks;
use super::buddy::BLOCK_MIN;
use super::clean::{Clean, CleanCache, ContentId};
use super::{Pages, blocks, explore, pool};

const FILE: ContentId = ContentId(1);
const PAGE: u64 = BLOCK_MIN as u64;

/// A pool of which `clean` pages hold a file, each its own number, and the others are free.
fn filled(pool: &Arc<crate::store::Pool>, clean: u64) -> (Arc<Blocks>, Arc<CleanCache>, Pages) {
    let (blocks, pages) = blocks(pool);
    let cache = CleanCache::new();
    for number in 0..clean {
        let block = blocks.take(BLOCK_MIN).expect("free");
        pages.write_block(&block, number);
        cache.insert(FILE, Arc::new(Clean::new(number * PAGE, block, BLOCK_MIN)));
    }
    (blocks, Arc::new(cache), pages)
}

/// Takes a block, evicting for it, and writes it.
fn take(blocks: &Arc<Blocks>, cache: &CleanCache, pages: &Pages, who: u64) -> Option<super::block::Block> {
    let block = cache.try_take(blocks, BLOCK_MIN)?;
    pages.write_block(&block, who);
    Some(block)
}

fn all_is_back(blocks: &Arc<Blocks>, cache: &CleanCache) {
    while cache.evict_one().is_some() {}
    assert_eq!((blocks.free_bytes(), blocks.dirty_bytes()), (blocks.len(), 0));
    assert!(blocks.take(blocks.len()).is_some());
}

#[test]
fn what_a_reader_holds_is_not_evicted() {
    let pool = pool(1);
    explore(3, move || {
        let (blocks, cache, pages) = filled(&pool, 1);
        let reader = {
            let (cache, pages) = (Arc::clone(&cache), pages.clone());
            thread::spawn(move || {
                let Some(clean) = cache.get(FILE, 0) else { return };
                assert_eq!(pages.read_block(&clean.block), [0]);
                thread::yield_now();
                assert_eq!(pages.read_block(&clean.block), [0], "the block is the file's as long as it is held");
            })
        };
        drop(take(&blocks, &cache, &pages, 9));
        reader.join().expect("no panic");
        all_is_back(&blocks, &cache);
    });
}

#[test]
fn two_who_evict_get_different_blocks() {
    let pool = pool(2);
    explore(2, move || {
        let (blocks, cache, pages) = filled(&pool, 2);
        let other = {
            let (blocks, cache, pages) = (Arc::clone(&blocks), Arc::clone(&cache), pages.clone());
            thread::spawn(move || take(&blocks, &cache, &pages, 8))
        };
        let ours = take(&blocks, &cache, &pages, 9);
        let theirs = other.join().expect("no panic");
        for (block, who) in [(&ours, 9), (&theirs, 8)] {
            assert!(block.as_ref().is_none_or(|block| pages.read_block(block) == [who]));
        }
        assert!(ours.is_some() || theirs.is_some());
        drop((ours, theirs));
        all_is_back(&blocks, &cache);
    });
}

/// A writer takes memory, makes it dirty, stores it and leaves it as a clean block, while another evicts: what is dirty stays.
#[test]
fn what_is_dirty_is_not_evicted() {
    let pool = pool(2);
    explore(2, move || {
        let (blocks, cache, pages) = filled(&pool, 2);
        let writer = {
            let (blocks, cache, pages) = (Arc::clone(&blocks), Arc::clone(&cache), pages.clone());
            thread::spawn(move || {
                let Some(block) = take(&blocks, &cache, &pages, 8) else { return };
                block.mark_dirty();
                thread::yield_now();
                assert_eq!(pages.read_block(&block), [8]);
                assert_eq!(blocks.dirty_bytes(), BLOCK_MIN);
                block.mark_clean();
                cache.insert(ContentId(2), Arc::new(Clean::new(0, block, BLOCK_MIN)));
                if let Some(clean) = cache.get(ContentId(2), 0) {
                    assert_eq!(pages.read_block(&clean.block), [8]);
                }
            })
        };
        for who in [4, 5] {
            drop(take(&blocks, &cache, &pages, who));
        }
        writer.join().expect("no panic");
        all_is_back(&blocks, &cache);
    });
}

/// Dropping all that is clean, as when nobody uses the mount any more, beside a reader and one who evicts.
#[test]
fn dropping_all_beside_readers_loses_nothing() {
    let pool = pool(2);
    explore(2, move || {
        let (blocks, cache, pages) = filled(&pool, 2);
        let reader = {
            let (cache, pages) = (Arc::clone(&cache), pages.clone());
            thread::spawn(move || {
                if let Some(clean) = cache.get(FILE, PAGE) {
                    assert_eq!(pages.read_block(&clean.block), [1]);
                }
            })
        };
        cache.clear();
        drop(take(&blocks, &cache, &pages, 9));
        reader.join().expect("no panic");
        all_is_back(&blocks, &cache);
    });
}
