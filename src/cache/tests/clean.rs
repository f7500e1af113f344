//! Clean blocks: found, fetched once, and let go.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;

use futures::executor::block_on;
use proptest::prelude::*;

use crate::cache::{Blocks, Clean, CleanCache, ContentId};
use crate::store::Pool;

const ONE: ContentId = ContentId(1);

fn blocks(len: usize) -> Arc<Blocks> {
    Blocks::new(Arc::new(Pool::new(len).expect("memfd")))
}

/// Fetches the block of 4096 bytes number `index`.
async fn fetch(blocks: &Arc<Blocks>, cache: &CleanCache, index: u64) -> Result<Arc<Clean>, ()> {
    let place = (index * 4096, u64::MAX);
    cache.get_or_fetch(blocks, ONE, place, |_| index * 4096..(index + 1) * 4096, |_| async { Ok::<(), ()>(()) }).await
}

#[test]
fn a_second_reader_finds_the_block() {
    let (blocks, cache) = (blocks(1 << 20), CleanCache::new());
    let fetches = Cell::new(0);
    for offset in [0, 17, 4095] {
        let clean = block_on(cache.get_or_fetch(
            &blocks,
            ONE,
            (offset, 5000),
            |_| 0..4096,
            |_| {
                fetches.set(fetches.get() + 1);
                async { Ok::<(), ()>(()) }
            },
        ));
        assert_eq!(clean.map(|c| (c.start, c.len)), Ok((0, 4096)));
    }
    assert_eq!(fetches.get(), 1);
    assert!(cache.get(ONE, 4096).is_none());
}

#[test]
fn readers_of_overlapping_ranges_fetch_each_byte_once() {
    let (blocks, cache) = (blocks(1 << 20), CleanCache::new());
    let fetched = RefCell::new(Vec::new());
    let (answer, wait) = futures::channel::oneshot::channel::<()>();
    block_on(async {
        let first = cache.get_or_fetch(
            &blocks,
            ONE,
            (100, 1 << 20),
            |_| 0..8192,
            |memory| {
                fetched.borrow_mut().push(memory.start..memory.end());
                async {
                    wait.await.ok();
                    Ok::<(), ()>(())
                }
            },
        );
        let second =
            cache.get_or_fetch(&blocks, ONE, (8000, 1 << 20), |_| unreachable!(), |_| async { Ok::<(), ()>(()) });
        let third = async {
            let beside = cache.get_or_fetch(
                &blocks,
                ONE,
                (9000, 1 << 20),
                |gap| {
                    assert_eq!(gap, 8192..1 << 20);
                    4096..12288
                },
                |memory| {
                    fetched.borrow_mut().push(memory.start..memory.end());
                    async { Ok::<(), ()>(()) }
                },
            );
            let beside = beside.await;
            answer.send(()).ok();
            beside
        };
        let (a, b, c) = futures::join!(first, second, third);
        assert!(Arc::ptr_eq(&a.expect("ok"), &b.expect("ok")));
        assert_eq!(c.map(|c| c.start), Ok(8192));
    });
    assert_eq!(*fetched.borrow(), [0..8192, 8192..12288]);
}

#[test]
fn a_failed_fetch_leaves_nothing_behind() {
    let (blocks, cache) = (blocks(1 << 20), CleanCache::new());
    let all = blocks.free_bytes();
    let failed = block_on(cache.get_or_fetch(&blocks, ONE, (0, 9), |gap| gap, |_| async { Err::<(), u8>(7) }));
    assert_eq!(failed.err(), Some(7));
    assert_eq!(blocks.free_bytes(), all);
    assert!(cache.get(ONE, 0).is_none());
    assert_eq!(cache.next_gap(ONE, 0..9), Some(0..9));
}

#[test]
fn what_nobody_looked_at_makes_room() {
    let (blocks, cache) = (blocks(8 * 4096), CleanCache::new());
    for index in 0..8 {
        block_on(fetch(&blocks, &cache, index)).expect("ok");
    }
    assert_eq!(blocks.free_bytes(), 0);
    cache.get(ONE, 0);
    assert!(cache.try_take(&blocks, 4096).is_some());
    assert!(cache.get(ONE, 0).is_some());
    assert!(cache.get(ONE, 4096).is_none());
}

#[test]
fn what_is_kept_for_later_outlives_what_was_looked_at() {
    let (blocks, cache) = (blocks(8 * 4096), CleanCache::new());
    for index in 0..8 {
        let clean = block_on(fetch(&blocks, &cache, index)).expect("ok");
        match index {
            0..4 => drop(cache.get(ONE, clean.start)),
            _ => clean.keep_for_later(),
        }
    }
    for index in 8..12 {
        block_on(fetch(&blocks, &cache, index)).expect("ok").keep_for_later();
    }
    let there: Vec<u64> = (0..12).filter(|index| cache.get(ONE, index * 4096).is_some()).collect();
    assert_eq!(there, (4..12).collect::<Vec<_>>());
}

#[test]
fn gaps_lie_between_what_is_here() {
    let (blocks, cache) = (blocks(1 << 20), CleanCache::new());
    for index in [1, 2, 5] {
        block_on(fetch(&blocks, &cache, index)).expect("ok");
    }
    assert_eq!(cache.next_gap(ONE, 5000..40_000), Some(3 * 4096..5 * 4096));
    assert_eq!(cache.next_gap(ONE, 5 * 4096..40_000), Some(6 * 4096..40_000));
    assert_eq!(cache.next_gap(ONE, 4096..3 * 4096), None);
}

#[test]
fn what_is_looked_at_all_the_time_goes_too_when_nothing_else_is_left() {
    let (blocks, cache) = (blocks(2 * 4096), CleanCache::new());
    for index in 0..100 {
        let clean = block_on(fetch(&blocks, &cache, index)).expect("ok");
        assert!(cache.get(ONE, clean.start).is_some());
    }
    let held = block_on(fetch(&blocks, &cache, 99)).expect("here");
    let other = block_on(fetch(&blocks, &cache, 98)).expect("here");
    assert!(cache.try_take(&blocks, 4096).is_none(), "both are being copied from");
    drop((held, other));
    assert!(cache.try_take(&blocks, 8192).is_some());
}

#[test]
fn less_is_read_where_memory_is_short_or_in_pieces() {
    let (blocks, cache) = (blocks(8 * 4096), CleanCache::new());
    let held: Vec<_> = (0..8).filter_map(|_| blocks.take(4096)).collect();
    let in_pieces: Vec<_> = held.into_iter().step_by(2).collect();
    let ok = |_| async { Ok::<(), ()>(()) };
    let clean = block_on(cache.get_or_fetch(&blocks, ONE, (10_000, 1 << 20), |gap| gap, ok)).expect("ok");
    assert!(clean.start <= 10_000 && clean.end() > 10_000 && clean.len <= 4096, "{clean:?}");
    drop(in_pieces);
}

#[test]
fn memory_that_the_store_may_still_write_is_not_given_out() {
    let (blocks, cache) = (blocks(1 << 20), CleanCache::new());
    let all = blocks.free_bytes();
    let kept = RefCell::new(None);
    let mut fetch = Box::pin(cache.get_or_fetch(
        &blocks,
        ONE,
        (0, 4096),
        |gap| gap,
        |memory| {
            *kept.borrow_mut() = Some(memory);
            std::future::pending::<Result<(), ()>>()
        },
    ));
    assert!(block_on(async { futures::poll!(&mut fetch) }).is_pending());
    drop(fetch);
    assert_eq!(blocks.free_bytes(), all - 4096);
    assert!(cache.get(ONE, 0).is_none());
    kept.take();
    assert_eq!(blocks.free_bytes(), all);
}

proptest! {
    /// Whatever is asked for is inside the answer, blocks do not overlap, and all memory comes back.
    #[test]
    fn blocks_cover_what_is_asked_for_without_overlap(
        steps in prop::collection::vec((0u64..3, 0u64..200_000, 0u64..70_000, 0u64..70_000), 1..200),
    ) {
        let (blocks, cache) = (blocks(32 * 4096), CleanCache::new());
        let all = blocks.free_bytes();
        for (content, offset, before, after) in steps {
            let id = ContentId(content * 16);
            let choose = |_: Range<u64>| offset.saturating_sub(before)..offset + after;
            let got = block_on(cache.get_or_fetch(&blocks, id, (offset, 200_000), choose, |_| async { Ok::<(), ()>(()) }));
            let clean = got.expect("ok");
            prop_assert!(clean.start <= offset && offset < clean.end() && clean.end() <= 200_000);
            drop(clean);
            for content in 0..3 {
                let mut end = 0;
                for range in cache.ranges(ContentId(content * 16)) {
                    prop_assert!(range.start >= end && range.end > range.start);
                    end = range.end;
                }
            }
        }
        while cache.evict_one().is_some() {}
        prop_assert_eq!(blocks.free_bytes(), all);
        prop_assert_eq!(cache.count(), 0);
    }
}
