//! The whole pool: blocks that are written, dirty, clean, read, let go and given back, in any order.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use crate::cache::buddy::{BLOCK_MAX, BLOCK_MIN};
use crate::cache::{Block, Blocks, Clean, CleanCache, ContentId, Part};
use crate::metrics::MountMeter;
use crate::store::Pool;

const CONTENT: ContentId = ContentId(3);

/// Far enough apart that no two blocks overlap.
const APART: u64 = 1 << 23;

#[derive(Clone, Debug)]
enum Step {
    /// A block of so many bytes, evicting for it.
    Take(usize),
    /// One that is held is dirty.
    Dirty(usize),
    /// One that is dirty is stored: it stays as a clean one, if nobody else has it.
    Store(usize),
    /// One is let go.
    Drop(usize),
    /// A clean one is read, and the reader keeps it for some time.
    Read(usize),
    /// The oldest reader is done.
    Done,
    /// Memory is given back, if all was quiet.
    GiveBack,
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![Just(1), Just(BLOCK_MIN), 1..=16 * BLOCK_MIN, 1..=BLOCK_MAX, Just(BLOCK_MAX)];
    prop_oneof![
        6 => len.prop_map(Step::Take),
        3 => any::<usize>().prop_map(Step::Dirty),
        3 => any::<usize>().prop_map(Step::Store),
        3 => any::<usize>().prop_map(Step::Drop),
        2 => any::<usize>().prop_map(Step::Read),
        1 => Just(Step::Done),
        1 => Just(Step::GiveBack),
    ]
}

/// Writes what only the block `number` has, to its first and its last byte.
fn sign(block: &mut Block, number: u64) {
    let last = block.capacity() - 8;
    block.write(0, &number.to_le_bytes());
    block.write(last, &number.to_le_bytes());
}

fn is_signed(block: &Block, number: u64) -> bool {
    let mine = number.to_le_bytes();
    block.bytes(0, 8) == mine && block.bytes(block.capacity() - 8, 8) == mine
}

/// Where a block lies.
fn place(block: &Block) -> (u64, u64) {
    let slice = block.slice(0, block.capacity());
    (slice.offset, slice.offset + u64::from(slice.len))
}

proptest! {
    #[test]
    fn every_byte_has_one_owner_and_none_is_lost(
        steps in prop::collection::vec(step(), 1..150),
        pages in 1usize..(3 * BLOCK_MAX / BLOCK_MIN),
    ) {
        let pool = Arc::new(Pool::new((pages + 1) * BLOCK_MIN).expect("memfd"));
        let meter = MountMeter::default();
        let part = Part::of(pool, BLOCK_MIN, pages * BLOCK_MIN).counting(meter.clone());
        let (blocks, cache) = (Blocks::new(part), CleanCache::new());
        let mut held: BTreeMap<u64, (Block, bool)> = BTreeMap::new();
        let mut readers: Vec<Arc<Clean>> = Vec::new();
        let mut dirty = 0;
        for (number, step) in (1u64..).zip(steps) {
            let pick = |among: usize, all: &BTreeMap<u64, (Block, bool)>| all.keys().nth(among % all.len().max(1)).copied();
            match step {
                Step::Take(len) => {
                    let used: usize = held.values().map(|(block, _)| block.capacity()).sum();
                    match cache.try_take(&blocks, len) {
                        Some(mut block) => {
                            prop_assert!(block.capacity() >= len);
                            sign(&mut block, number);
                            held.insert(number, (block, false));
                        }
                        None => prop_assert!(used > 0 || !readers.is_empty() || len.next_power_of_two() > blocks.len() / 2),
                    }
                }
                Step::Dirty(among) => if let Some((block, is)) = pick(among, &held).and_then(|key| held.get_mut(&key)) {
                    block.mark_dirty();
                    dirty += if *is { 0 } else { block.capacity() };
                    *is = true;
                },
                Step::Store(among) => if let Some(key) = pick(among, &held) && let Some((block, is)) = held.remove(&key) {
                    block.mark_clean();
                    dirty -= if is { block.capacity() } else { 0 };
                    let len = block.capacity();
                    cache.insert(CONTENT, Arc::new(Clean::new(key * APART, block, len)));
                },
                Step::Drop(among) => if let Some((block, is)) = pick(among, &held).and_then(|key| held.remove(&key)) {
                    dirty -= if is { block.capacity() } else { 0 };
                },
                Step::Read(among) => {
                    let here = cache.ranges(CONTENT);
                    if let Some(range) = here.get(among % here.len().max(1)) {
                        let clean = cache.get(CONTENT, range.start);
                        prop_assert!(clean.is_some());
                        readers.extend(clean);
                    }
                }
                Step::Done => if !readers.is_empty() {
                    readers.remove(0);
                },
                Step::GiveBack => {
                    blocks.give_back_if_idle();
                    blocks.give_back_if_idle();
                }
            }
            // Clean blocks that a reader has are not let go; others are looked at without making them look used.
            let clean: Vec<Arc<Clean>> =
                cache.ranges(CONTENT).iter().filter_map(|range| cache.get(CONTENT, range.start)).collect();
            let numbered = clean.iter().map(|clean| (clean.start / APART, &clean.block));
            let all: BTreeMap<u64, &Block> = held.iter().map(|(&key, (block, _))| (key, block)).chain(numbered).collect();
            prop_assert!(readers.iter().all(|reader| all.contains_key(&(reader.start / APART))), "a reader's block is kept");
            let mut places: Vec<(u64, u64)> = all.values().map(|block| place(block)).collect();
            places.sort_unstable();
            prop_assert!(places.windows(2).all(|two| two[0].1 <= two[1].0), "two owners");
            prop_assert!(places.iter().all(|&(start, end)| start >= BLOCK_MIN as u64 && end <= ((pages + 1) * BLOCK_MIN) as u64));
            for (&key, block) in &all {
                prop_assert!(is_signed(block, key), "somebody else wrote it");
            }
            let used: usize = all.values().map(|block| block.capacity()).sum();
            prop_assert_eq!(blocks.free_bytes(), blocks.len() - used);
            prop_assert_eq!(blocks.dirty_bytes(), dirty);
            let counted: u64 = meter.used_bytes.iter().map(|class| class.load(std::sync::atomic::Ordering::Relaxed)).sum();
            prop_assert_eq!(counted, used as u64);
        }
        drop((held, readers));
        while cache.evict_one().is_some() {}
        prop_assert_eq!((blocks.free_bytes(), blocks.dirty_bytes()), (blocks.len(), 0));
        let whole: Vec<Block> = std::iter::from_fn(|| blocks.take(BLOCK_MAX)).collect();
        prop_assert_eq!(whole.len(), blocks.len() / BLOCK_MAX, "everything is merged again");
    }
}

#[test]
fn a_block_that_was_let_go_is_at_hand() {
    let meter = MountMeter::default();
    let pool = Arc::new(Pool::new(64 * BLOCK_MIN).expect("memfd"));
    let blocks = Blocks::new(Part::from(pool).counting(meter.clone()));
    let count = |order: usize| {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        (load(&meter.taken_listed[order]), load(&meter.taken_cut[order]))
    };
    let first = blocks.take(BLOCK_MIN).expect("free");
    let place = first.slice(0, 1);
    drop(first);
    let again = blocks.take(BLOCK_MIN).expect("free");
    assert_eq!((again.slice(0, 1), count(0)), (place, (1, 1)));
    drop(again);
    assert!(blocks.take(64 * BLOCK_MIN).is_some(), "what is at hand is part of a larger block again");
    assert_eq!((count(0), count(6)), ((1, 1), (0, 1)));
    blocks.give_back_if_idle();
    blocks.give_back_if_idle();
    assert!(blocks.take(BLOCK_MIN).is_some());
    assert_eq!(count(0), (1, 2), "nothing is at hand after memory was given back");
}
