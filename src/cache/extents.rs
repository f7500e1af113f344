//! Dirty extents: bytes that the guest wrote and the store does not have yet.
//!
//! Invariants
//! (1) Extents do not overlap, and none is empty.
//! (2) A shared extent (`Arc` held elsewhere: being uploaded) is never written; what is written over it lies in an
//!     [`Extents`] of its own above it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::block::Block;
use super::buddy::BLOCK_MIN;
use crate::fs::Source;

/// Largest block that a growing extent asks for, in bytes.
pub const EXTENT_BLOCK_MAX: usize = 1 << 20;

/// A run of dirty bytes: `len` bytes of `block` from `start`.
#[derive(Debug, Clone)]
pub struct Extent {
    /// The memory; shared with the pieces that truncation or overwriting left of one run.
    pub block: Arc<Block>,
    /// Where in the block the run starts.
    pub start: usize,
    /// Its length in bytes.
    pub len: usize,
}

/// The dirty bytes of a file, by offset.
#[derive(Debug, Default, Clone)]
pub struct Extents {
    map: BTreeMap<u64, Extent>,
}

/// What must be done to store the next bytes of a write.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// This many bytes went into memory that was there.
    Stored(usize),
    /// No memory here yet: give [`Extents::add`] a block of at least `block_len` bytes for the next `len` bytes.
    NeedBlock {
        /// Bytes of the write that the new extent is to take.
        len: usize,
        /// Length of the block to take.
        block_len: usize,
    },
}

impl Extents {
    /// No dirty bytes.
    pub fn new() -> Extents {
        Extents::default()
    }

    /// Whether nothing is dirty.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// How many runs there are.
    pub fn count(&self) -> usize {
        self.map.len()
    }

    /// Runs in order of offset.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Extent)> {
        self.map.iter().map(|(&offset, extent)| (offset, extent))
    }

    /// The run that holds byte `offset`, with its first byte's offset.
    fn holding(&self, offset: u64) -> Option<(u64, &Extent)> {
        let (&first, extent) = self.map.range(..=offset).next_back()?;
        (offset < first + extent.len as u64).then_some((first, extent))
    }

    /// Offset of the first run at or after `offset`.
    fn next_from(&self, offset: u64) -> Option<u64> {
        self.map.range(offset..).next().map(|(&first, _)| first)
    }

    /// What byte `offset` is here: a piece of dirty data of at most `len` bytes, or how many bytes (at most `len`) are
    /// not dirty from there.
    pub fn at(&self, offset: u64, len: usize) -> Result<Extent, usize> {
        if let Some((first, extent)) = self.holding(offset) {
            let skip = (offset - first) as usize;
            return Ok(Extent {
                block: Arc::clone(&extent.block),
                start: extent.start + skip,
                len: len.min(extent.len - skip),
            });
        }
        let gap = self.next_from(offset).map_or(len as u64, |next| next - offset);
        Err(len.min(usize::try_from(gap).unwrap_or(usize::MAX)))
    }

    /// Stores the next at most `len` bytes of a write at `offset`, taken from `data`, in memory that is here: over dirty
    /// bytes, or after a run whose block has room. Call until the write is stored.
    ///
    /// # Errors
    /// When `data` is too short or the guest's memory is gone; nothing is stored then.
    pub fn store(&mut self, offset: u64, len: usize, data: &mut impl Source) -> std::io::Result<Step> {
        let until_next = |this: &Extents, from: u64| {
            this.next_from(from).map_or(u64::MAX, |next| next - from).min(len as u64) as usize
        };
        if let Some((first, skip)) = self.holding(offset).map(|(first, _)| (first, (offset - first) as usize))
            && let Some(extent) = self.map.get_mut(&first)
        {
            let n = len.min(extent.len - skip);
            let at = extent.start + skip;
            if let Some(block) = Arc::get_mut(&mut extent.block) {
                block.fill(at, n, data)?;
                return Ok(Step::Stored(n));
            }
            // Shared with another piece: new memory takes the place of these bytes, once it is filled.
            return Ok(Step::NeedBlock { len: n, block_len: n });
        }
        let gap = until_next(self, offset);
        let mut wanted = gap;
        if let Some((&first, extent)) = self.map.range_mut(..offset).next_back()
            && first + extent.len as u64 == offset
        {
            let end = extent.start + extent.len;
            let capacity = extent.block.capacity();
            if end < capacity
                && let Some(block) = Arc::get_mut(&mut extent.block)
            {
                let n = gap.min(capacity - end);
                block.fill(end, n, data)?;
                extent.len += n;
                return Ok(Step::Stored(n));
            }
            // A run that grows gets larger blocks, so that a stream does not cost a thousand entries.
            wanted = wanted.max(capacity.saturating_mul(2));
        }
        let block_len = wanted.clamp(BLOCK_MIN, EXTENT_BLOCK_MAX);
        Ok(Step::NeedBlock { len: gap.min(block_len), block_len })
    }

    /// Adds a run of `len` bytes at `offset`, in `block` from its start, taken from `data`, over whatever is there.
    ///
    /// # Errors
    /// As [`Extents::store`].
    pub fn add(&mut self, offset: u64, len: usize, mut block: Block, data: &mut impl Source) -> std::io::Result<()> {
        let len = len.min(block.capacity());
        block.fill(0, len, data)?;
        block.mark_dirty();
        self.insert(offset, Extent { block: Arc::new(block), start: 0, len });
        Ok(())
    }

    /// Puts a run at `offset`, over whatever is there.
    pub fn insert(&mut self, offset: u64, extent: Extent) {
        if extent.len == 0 {
            return;
        }
        self.cut(offset, offset + extent.len as u64);
        self.map.insert(offset, extent);
    }

    /// Forgets the bytes `from..to`.
    pub fn cut(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        if let Some((first, extent)) = self.holding(from).map(|(first, e)| (first, e.clone())) {
            let end = first + extent.len as u64;
            if first < from {
                if let Some(head) = self.map.get_mut(&first) {
                    head.len = (from - first) as usize;
                }
                if end > to {
                    let skip = (to - first) as usize;
                    let tail = Extent { start: extent.start + skip, len: extent.len - skip, block: extent.block };
                    self.map.insert(to, tail);
                    return;
                }
            }
        }
        let inside: Vec<u64> =
            self.map.range((Bound::Included(from), Bound::Excluded(to))).map(|(&first, _)| first).collect();
        for first in inside {
            if let Some(extent) = self.map.remove(&first) {
                let end = first + extent.len as u64;
                if end > to {
                    let skip = (to - first) as usize;
                    let tail = Extent { start: extent.start + skip, len: extent.len - skip, block: extent.block };
                    self.map.insert(to, tail);
                }
            }
        }
    }

    /// Puts the runs of `below` under these: where both have bytes, these win.
    pub fn underlay(&mut self, below: &Extents) {
        for (offset, extent) in below.iter() {
            let mut done = 0;
            while done < extent.len {
                let at = offset + done as u64;
                match self.at(at, extent.len - done) {
                    Ok(ours) => done += ours.len,
                    Err(gap) => {
                        let piece = Extent { block: Arc::clone(&extent.block), start: extent.start + done, len: gap };
                        self.map.insert(at, piece);
                        done += gap;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::cache::Blocks;
    use crate::store::Pool;
    use proptest::prelude::*;

    /// A request's data.
    pub(crate) struct Bytes<'a>(pub &'a [u8]);

    impl Source for Bytes<'_> {
        fn remaining(&self) -> usize {
            self.0.len()
        }
        fn take(&mut self, buf: &mut [u8]) -> std::io::Result<()> {
            let (head, tail) = self.0.split_at_checked(buf.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
            buf.copy_from_slice(head);
            self.0 = tail;
            Ok(())
        }
        fn take_to_file(&mut self, _: &std::fs::File, _: usize, _: u64, _: i32) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::Unsupported.into())
        }
    }

    fn write(extents: &mut Extents, blocks: &Arc<Blocks>, offset: u64, data: &[u8]) {
        let mut source = Bytes(data);
        let mut done = 0;
        while done < data.len() {
            match extents.store(offset + done as u64, data.len() - done, &mut source).expect("store") {
                Step::Stored(n) => done += n,
                Step::NeedBlock { len, block_len } => {
                    let block = blocks.take(block_len).expect("pool is large enough");
                    extents.add(offset + done as u64, len, block, &mut source).expect("add");
                    done += len;
                }
            }
        }
    }

    fn read(extents: &Extents, len: usize) -> Vec<Option<u8>> {
        let mut out = Vec::new();
        while out.len() < len {
            match extents.at(out.len() as u64, len - out.len()) {
                Ok(extent) => out.extend(extent.block.bytes(extent.start, extent.len).iter().map(|&b| Some(b))),
                Err(gap) => out.extend(std::iter::repeat_n(None, gap)),
            }
        }
        out
    }

    #[test]
    fn a_stream_of_small_writes_costs_few_extents() {
        let blocks = Blocks::new(Arc::new(Pool::new(16 << 20).expect("memfd")));
        let mut extents = Extents::new();
        for i in 0..1024u64 {
            write(&mut extents, &blocks, i * 4096, &[i as u8; 4096]);
        }
        assert!(extents.count() <= 16, "{} extents", extents.count());
    }

    #[test]
    fn memory_counts_a_block_once() {
        let blocks = Blocks::new(Arc::new(Pool::new(1 << 20).expect("memfd")));
        let mut extents = Extents::new();
        write(&mut extents, &blocks, 0, &[1; 4096]);
        extents.cut(100, 200);
        assert_eq!(extents.count(), 2);
        assert_eq!(blocks.dirty_bytes(), 4096);
        drop(extents);
        assert_eq!(blocks.dirty_bytes(), 0);
        assert_eq!(blocks.free_bytes(), 1 << 20);
    }

    proptest! {
        #[test]
        fn extents_remember_like_an_array(steps in prop::collection::vec((0u8..4, 0u64..30_000, 1usize..9_000, any::<u8>()), 1..60)) {
            const LEN: usize = 40_000;
            let blocks = Blocks::new(Arc::new(Pool::new(32 << 20).expect("memfd")));
            let mut extents = Extents::new();
            let mut frozen: Vec<Extents> = Vec::new();
            let mut model: Vec<Option<u8>> = vec![None; LEN];
            for (what, offset, len, byte) in steps {
                let end = offset as usize + len;
                match what {
                    0 | 1 => {
                        let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add(i as u8)).collect();
                        write(&mut extents, &blocks, offset, &data);
                        for (slot, &b) in model[offset as usize..end].iter_mut().zip(&data) {
                            *slot = Some(b);
                        }
                    }
                    2 => {
                        extents.cut(offset, end as u64);
                        model[offset as usize..end].fill(None);
                    }
                    _ => {
                        // An upload starts and fails: what was dirty comes back under what was written since.
                        if let Some(below) = frozen.pop() {
                            extents.underlay(&below);
                            drop(below);
                        } else {
                            let below = std::mem::take(&mut extents);
                            extents = Extents::new();
                            let seen = read(&below, LEN);
                            prop_assert_eq!(&seen, &model);
                            extents.underlay(&below);
                            frozen.push(Extents::new());
                        }
                    }
                }
                prop_assert_eq!(read(&extents, LEN), model.clone());
            }
            drop(extents);
            drop(frozen);
            prop_assert_eq!(blocks.free_bytes(), 32 << 20);
        }
    }
}
