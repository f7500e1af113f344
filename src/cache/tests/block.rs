//! Blocks: exclusive memory, given back.

use std::sync::Arc;

use crate::cache::buddy::{BLOCK_MAX, BLOCK_MIN};
use crate::cache::{Block, Blocks, Part};
use crate::store::Pool;

/// Bytes that the kernel has given to the pool.
fn resident(pool: &Pool) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::File::from(pool.fd().try_clone().expect("dup"));
    file.metadata().expect("fstat").blocks() * 512
}

#[test]
fn memory_of_free_blocks_is_given_back_when_all_is_quiet() {
    let pool = Arc::new(Pool::new(4 * BLOCK_MAX).expect("memfd"));
    let blocks = Blocks::new(Part::of(Arc::clone(&pool), BLOCK_MIN, 4 * BLOCK_MAX));
    let all = blocks.free_bytes();
    let mut held: Vec<Block> = (0..100).map(|_| blocks.take(64 << 10).expect("free")).collect();
    held.iter_mut().for_each(|block| block.write(0, &[7; 64 << 10]));
    assert_eq!(resident(&pool), 100 << 16);
    let kept = held.split_off(90);
    drop(held);
    assert_eq!((blocks.give_back_if_idle(), resident(&pool)), (0, 100 << 16), "blocks were taken just now");
    assert!(blocks.give_back_if_idle() >= 90 << 16);
    assert_eq!(resident(&pool), 10 << 16);
    assert!(kept.iter().all(|block| block.bytes(0, 64 << 10) == [7; 64 << 10]));
    assert_eq!(blocks.give_back_if_idle(), 0, "nothing was freed since");
    drop(kept);
    blocks.give_back_if_idle();
    assert_eq!((resident(&pool), blocks.free_bytes()), (0, all));
}

#[test]
fn parts_of_a_pool_share_no_byte() {
    let pool = Arc::new(Pool::new(8 * BLOCK_MIN).expect("memfd"));
    let parts = [(0, 3 * BLOCK_MIN + 7), (3 * BLOCK_MIN, 5 * BLOCK_MIN), (9 * BLOCK_MIN, BLOCK_MIN)];
    let parts = parts.map(|(start, len)| Blocks::new(Part::of(Arc::clone(&pool), start, len)));
    assert_eq!(parts.each_ref().map(|blocks| blocks.len()), [3 * BLOCK_MIN, 5 * BLOCK_MIN, 0]);
    let mut seen = Vec::new();
    for blocks in &parts {
        let held: Vec<Block> = std::iter::from_fn(|| blocks.take(BLOCK_MIN)).collect();
        assert_eq!(held.len() * BLOCK_MIN, blocks.len());
        seen.extend(held.iter().map(|block| block.slice(0, BLOCK_MIN).offset));
        drop(held);
        assert_eq!(blocks.free_bytes(), blocks.len());
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..8).map(|page| page * BLOCK_MIN as u64).collect::<Vec<_>>());
}
