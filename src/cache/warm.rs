//! Where memory may be that nobody needs: the pieces of the pool in which a block was freed since the kernel got it back.

use super::buddy::BLOCK_MAX;
use super::sync::{AtomicU64, Ordering};

/// A set of pieces of [`BLOCK_MAX`] bytes.
#[derive(Debug)]
pub struct Warm {
    words: Vec<AtomicU64>,
}

impl Warm {
    /// None of the pieces of a pool of `len` bytes.
    pub fn new(len: usize) -> Warm {
        let words = len.div_ceil(BLOCK_MAX).div_ceil(64);
        Warm { words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Adds the piece that byte `offset` lies in. Call it after the block is free for others to see: whoever takes the piece
    /// out sees the block, or the piece is put in once more.
    pub fn insert(&self, offset: u64) {
        let piece = offset / BLOCK_MAX as u64;
        if let Some(word) = usize::try_from(piece / 64).ok().and_then(|at| self.words.get(at)) {
            word.fetch_or(1 << (piece % 64), Ordering::Release);
        }
    }

    /// Takes out the first piece that begins at byte `from` or later; returns where it begins.
    pub fn take_from(&self, from: u64) -> Option<u64> {
        let first = from.div_ceil(BLOCK_MAX as u64);
        let skip = usize::try_from(first / 64).ok()?;
        for (at, word) in self.words.iter().enumerate().skip(skip) {
            let among = if at == skip { u64::MAX << (first % 64) } else { u64::MAX };
            let seen = word.load(Ordering::Relaxed) & among;
            if seen != 0 {
                let bit = seen & seen.wrapping_neg();
                // Only one thread takes pieces out, so it is there still.
                word.fetch_and(!bit, Ordering::Acquire);
                return Some((at as u64 * 64 + u64::from(bit.trailing_zeros())) * BLOCK_MAX as u64);
            }
        }
        None
    }
}
