//! The bytes of one file: what the store holds, what is being uploaded, what is dirty, laid over each other.
//!
//! Pure state, no I/O. Reading asks [`Content::at`] layer by layer; writing goes through [`Content::store`] and
//! [`Content::add`]; an upload is [`Content::begin_upload`], a compose elsewhere, then [`Content::commit`] or [`Content::roll_back`].
//!
//! Invariants
//! (1) Bytes from `size` on do not exist: neither layer shows any there.
//! (2) The base shows its first `base_len` bytes only; between the layers and beyond it are zeros.
//! (3) What is being uploaded (`uploading`) is never written; at most one upload is under way.
//! (4) `lineage` changes when somebody else's version takes the place of the base, and only then.

use crate::cache::extents::Step;
use crate::cache::{Block, ContentId, Extent, Extents};
use crate::fs::Source;
use crate::store::{Segment, Slice, Version};

/// Where a byte of the file comes from.
#[derive(Debug)]
pub enum Layer {
    /// From memory: at most the length asked for.
    Memory(Extent),
    /// From the base object: this many bytes at the same offset.
    Base(usize),
    /// Zeros: this many.
    Zero(usize),
    /// Sent to the store in a piece, and to be had from there once its object is put together.
    Sent,
}

/// The object in the store that a file lies over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseObject {
    /// Its version.
    pub version: Version,
    /// Key of its blocks in the clean cache.
    pub id: ContentId,
}

/// An upload under way: what the new object is made of.
#[derive(Debug)]
pub struct Upload {
    /// The pieces, in order.
    pub segments: Vec<Segment>,
    /// Length of the new object in bytes.
    pub size: u64,
    /// The version that [`Segment::Copy`] pieces come from.
    pub base: Option<Version>,
    /// Owns the memory that the pieces name.
    pub keep: Extents,
}

/// What a file is made of at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// The pieces, in order.
    pub segments: Vec<Segment>,
    /// The version that the file lies over, and that [`Segment::Copy`] pieces come from.
    pub base: Option<Version>,
    /// Owns the memory that the pieces name.
    pub keep: Vec<Extents>,
}

/// The bytes of one file.
#[derive(Debug, Default)]
pub struct Content {
    size: u64,
    base: Option<BaseObject>,
    base_len: u64,
    dirty: Extents,
    uploading: Option<Uploading>,
    /// Something differs from what the store has (or will have, once the upload under way is done).
    changed: bool,
    lineage: u64,
    /// What the file shows of the base, in memory as well: the base is about to lose its name by our doing.
    kept: Option<Extents>,
}

#[derive(Debug, Default)]
struct Uploading {
    extents: Extents,
    /// How much of the object being uploaded is still visible: truncation lowers it.
    visible: u64,
    base_len: u64,
    /// It goes on while the guest writes: what lies before is sent or being sent, beginning at the base's end. What is neither
    /// in the base nor in memory was sent.
    frontier: Option<u64>,
    /// Of that what the store has and memory, too.
    sent: Vec<(u64, u64)>,
    /// Some of it is no longer in memory.
    released: bool,
    /// What was sent is not what the file is made of any more: it is given up.
    stale: bool,
}

/// A piece of an upload that goes on while the guest writes.
#[derive(Debug)]
pub struct FlowPiece {
    /// Where in the file it lies.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Where its bytes are.
    pub data: Vec<Slice>,
    /// Owns that memory.
    pub keep: Extents,
}

impl Content {
    /// A new, empty file that the store does not have yet.
    pub fn new_local() -> Content {
        Content { changed: true, ..Content::default() }
    }

    /// A file that is as the store has it.
    pub fn of_store(version: Version, id: ContentId) -> Content {
        let size = version.size;
        Content { size, base: Some(BaseObject { version, id }), base_len: size, ..Content::default() }
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the store lacks something of this file, or is about to.
    pub fn is_dirty(&self) -> bool {
        self.changed || self.uploading.is_some() || self.kept.is_some()
    }

    /// The object in the store, if there is one.
    pub fn base(&self) -> Option<&BaseObject> {
        self.base.as_ref()
    }

    /// Changes when another program's version takes over.
    pub fn lineage(&self) -> u64 {
        self.lineage
    }

    /// How many dirty runs there are.
    pub fn extents(&self) -> usize {
        self.dirty.count()
    }

    /// Whether a read or an upload still needs bytes of the base object.
    pub fn needs_base(&self) -> bool {
        self.base_len > 0
    }

    /// Another program's version takes over. Only for files that are not dirty.
    pub fn replace(&mut self, version: Version, id: ContentId) {
        let lineage = self.lineage + 1;
        *self = Content::of_store(version, id);
        self.lineage = lineage;
    }

    /// Another program's version took over and went at once: there is nothing that a handle could still show.
    pub fn disown(&mut self) {
        *self = Content { lineage: self.lineage + 1, ..Content::default() };
    }

    /// The base is the same bytes under another version: it was copied or renamed inside the store.
    pub fn rebase(&mut self, version: Version) {
        if let Some(base) = &mut self.base {
            base.version = version;
        }
    }

    /// The base is about to lose its name by our doing: what [`Content::keep`] is given from now on is shown in its stead.
    pub fn begin_parting(&mut self) {
        self.kept.get_or_insert_default();
    }

    /// Puts bytes of the base into memory, without changing what the file shows.
    pub fn keep(&mut self, offset: u64, block: Block, len: usize) {
        let len = len.min(usize::try_from(self.base_len.saturating_sub(offset)).unwrap_or(usize::MAX));
        if let Some(kept) = self.kept.as_mut().filter(|_| len > 0) {
            block.mark_dirty();
            kept.insert(offset, Extent { block: std::sync::Arc::new(block), start: 0, len });
        }
    }

    /// The base has lost its name: the file consists of what is in memory.
    pub fn part(&mut self) {
        let Some(mut kept) = self.kept.take() else { return };
        kept.cut(self.base_len, u64::MAX);
        self.dirty.underlay(&kept);
        self.base = None;
        self.base_len = 0;
        self.changed = true;
    }

    /// The base has its name still: the file lies over it as before, whatever was written meanwhile.
    pub fn reunite(&mut self) {
        self.kept = None;
    }

    /// Where the byte at `offset` comes from, for at most `len` bytes; `None` at the end of the file.
    pub fn at(&self, offset: u64, len: usize) -> Option<Layer> {
        let left = self.size.checked_sub(offset).filter(|&left| left > 0)?;
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(len);
        let gap = match self.dirty.at(offset, len) {
            Ok(extent) => return Some(Layer::Memory(extent)),
            Err(gap) => gap,
        };
        let (gap, base_len) = match &self.uploading {
            Some(up) if offset < up.visible => {
                let gap = gap.min(usize::try_from(up.visible - offset).unwrap_or(usize::MAX));
                match up.extents.at(offset, gap) {
                    Ok(extent) => return Some(Layer::Memory(extent)),
                    Err(_) if up.frontier.is_some() && offset >= up.base_len => return Some(Layer::Sent),
                    Err(gap) => (gap, up.base_len.min(up.visible)),
                }
            }
            Some(_) => return Some(Layer::Zero(gap)),
            None => (gap, self.base_len),
        };
        if offset >= base_len {
            return Some(Layer::Zero(gap));
        }
        let len = gap.min(usize::try_from(base_len - offset).unwrap_or(usize::MAX));
        match self.kept.as_ref().map(|kept| kept.at(offset, len)) {
            Some(Ok(extent)) => Some(Layer::Memory(extent)),
            Some(Err(gap)) => Some(Layer::Base(gap)),
            None => Some(Layer::Base(len)),
        }
    }

    /// Stores the next bytes of a write; see [`Extents::store`].
    ///
    /// # Errors
    /// When `data` is too short or the guest's memory is gone.
    pub fn store(&mut self, offset: u64, len: usize, data: &mut impl Source) -> std::io::Result<Step> {
        let step = self.dirty.store(offset, len, data)?;
        if let Step::Stored(n) = step {
            self.wrote(offset, n);
        }
        Ok(step)
    }

    /// Adds a run for the next bytes of a write; see [`Extents::add`].
    ///
    /// # Errors
    /// When `data` is too short or the guest's memory is gone.
    pub fn add(&mut self, offset: u64, len: usize, block: Block, data: &mut impl Source) -> std::io::Result<usize> {
        let len = match self.dirty.at(offset, len.min(block.capacity())) {
            Ok(under) => under.len,
            Err(gap) => gap,
        };
        self.dirty.add(offset, len, block, data)?;
        self.wrote(offset, len);
        Ok(len)
    }

    fn wrote(&mut self, offset: u64, len: usize) {
        self.size = self.size.max(offset + len as u64);
        self.changed = true;
    }

    /// Gives up what the guest wrote, and what is known of the object: what the store has is asked anew, and is another version
    /// to whoever has the file open.
    pub fn abandon(&mut self) {
        *self = Content { lineage: self.lineage + 1, ..Content::default() };
    }

    /// Makes the first `len` bytes of `block` all of a file that has none yet.
    pub fn fill(&mut self, block: Block, len: usize) {
        let len = len.min(block.capacity());
        block.mark_dirty();
        self.dirty.insert(0, Extent { block: std::sync::Arc::new(block), start: 0, len });
        self.wrote(0, len);
    }

    /// Sets the length; what is cut off is gone, what is added reads as zeros.
    pub fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.dirty.cut(size, u64::MAX);
            self.base_len = self.base_len.min(size);
            if let Some(up) = &mut self.uploading {
                up.visible = up.visible.min(size);
            }
        }
        if size != self.size || (size == 0 && self.base.is_some()) {
            self.changed = true;
        }
        self.size = size;
    }

    /// Makes `from..to` zeros, within the file.
    pub fn zero(&mut self, from: u64, to: u64, block_of_zeros: impl FnMut(usize) -> Option<Block>) -> bool {
        let mut take = block_of_zeros;
        let to = to.min(self.size);
        let mut at = from;
        while at < to {
            let len = usize::try_from(to - at).unwrap_or(usize::MAX).min(crate::cache::extents::EXTENT_BLOCK_MAX);
            let Some(mut block) = take(len) else { return false };
            block.zero(0, len);
            block.mark_dirty();
            self.dirty.insert(at, Extent { block: std::sync::Arc::new(block), start: 0, len });
            self.changed = true;
            at += len as u64;
        }
        true
    }

    /// Freezes what is dirty and says what the new object is made of. `None`: nothing to upload, or an upload is under way.
    pub fn begin_upload(&mut self) -> Option<Upload> {
        if !self.changed || self.uploading.is_some() {
            return None;
        }
        let mut segments = Vec::new();
        self.pieces(0, self.size, &mut segments);
        Some(self.freeze(segments, self.size))
    }

    /// What the file is made of as it is now, an upload under way or not, of which nothing is changed by this. `None`: only the
    /// store has some of it, in pieces that nobody can read.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let mut segments = Vec::new();
        if self.pieces(0, self.size, &mut segments) < self.size {
            return None;
        }
        let uploading = self.uploading.as_ref().map(|up| up.extents.clone());
        let keep = [Some(self.dirty.clone()), uploading, self.kept.clone()].into_iter().flatten().collect();
        Some(Snapshot { segments, base: self.base.as_ref().map(|base| base.version.clone()), keep })
    }

    /// As [`Content::begin_upload`], of a file that `len` bytes of another object, from its byte `offset` on, are copied into at
    /// `to`: the file shows them once the upload is committed. The other object is the base after our own, if ours is
    /// needed. `None`: an upload is under way.
    pub fn begin_copy(&mut self, to: u64, offset: u64, len: u64) -> Option<Upload> {
        if self.uploading.is_some() {
            return None;
        }
        let (size, end) = (self.size, to + len);
        let mut segments = Vec::new();
        self.pieces(0, to.min(size), &mut segments);
        if to > size {
            segments.push(Segment::Zero { len: to - size });
        }
        let at = segments.len();
        self.pieces(end, size, &mut segments);
        let other = u8::from(segments.iter().any(|s| matches!(s, Segment::Copy { .. })));
        segments.insert(at, Segment::Copy { base: other, offset, len });
        let mut upload = self.freeze(segments, size.max(end));
        upload.base = upload.base.filter(|_| other > 0);
        Some(upload)
    }

    /// What the file is made of between `from` and `until`, or the first byte that only the store has, which is returned.
    fn pieces(&self, from: u64, until: u64, segments: &mut Vec<Segment>) -> u64 {
        let mut offset = from;
        while offset < until {
            let left = usize::try_from(until - offset).unwrap_or(usize::MAX);
            let Some(layer) = self.at(offset, left) else { break };
            offset += match layer {
                Layer::Memory(extent) => {
                    segments.push(Segment::Data(extent.block.slice(extent.start, extent.len)));
                    extent.len as u64
                }
                Layer::Base(len) => {
                    segments.push(Segment::Copy { base: 0, offset, len: len as u64 });
                    len as u64
                }
                Layer::Zero(len) => {
                    segments.push(Segment::Zero { len: len as u64 });
                    len as u64
                }
                Layer::Sent => break,
            };
        }
        offset
    }

    fn freeze(&mut self, segments: Vec<Segment>, size: u64) -> Upload {
        let uses_base = segments.iter().any(|s| matches!(s, Segment::Copy { .. }));
        let base = self.base.as_ref().filter(|_| uses_base).map(|b| b.version.clone());
        let extents = std::mem::take(&mut self.dirty);
        let keep = extents.clone();
        self.uploading = Some(Uploading { extents, visible: size, base_len: self.base_len, ..Uploading::default() });
        self.changed = false;
        Upload { segments, size, base, keep }
    }

    /// How many dirty bytes lie at the end of the base in one run, at most `most`; 0 if those cannot be sent in pieces.
    pub fn flows(&self, most: u64) -> u64 {
        let whole = self.base.as_ref().map_or(0, |base| base.version.size) == self.base_len;
        // They would be seen without what was changed before them.
        let changed = self.dirty.iter().next().is_some_and(|(first, _)| first < self.base_len);
        if !whole || changed || self.uploading.is_some() || self.kept.is_some() {
            return 0;
        }
        self.run(self.base_len, most)
    }

    /// Length of the run of dirty bytes at `from`, at most `most`.
    fn run(&self, from: u64, most: u64) -> u64 {
        let mut len = 0;
        while len < most
            && let Ok(extent) = self.dirty.at(from + len, usize::try_from(most - len).unwrap_or(usize::MAX))
        {
            len += extent.len as u64;
        }
        len
    }

    /// Begins an upload that goes on while the guest writes, from the end of the base. False: it cannot be.
    pub fn begin_flow(&mut self) -> bool {
        if self.flows(1) == 0 {
            return false;
        }
        let base_len = self.base_len;
        let extents = Extents::new();
        self.uploading =
            Some(Uploading { extents, visible: base_len, base_len, frontier: Some(base_len), ..Uploading::default() });
        true
    }

    /// Whether an upload goes on while the guest writes, and not in vain.
    #[cfg(test)]
    pub fn is_flowing(&self) -> bool {
        self.uploading.as_ref().is_some_and(|up| up.frontier.is_some() && !up.stale)
    }

    /// Whether [`Content::next_piece`] has one of `len` bytes.
    pub fn has_piece(&self, len: u64) -> bool {
        let frontier = self.uploading.as_ref().and_then(|up| up.frontier.filter(|&frontier| up.visible == frontier));
        frontier.is_some_and(|frontier| self.size.saturating_sub(frontier) >= len && self.run(frontier, len) >= len)
    }

    /// The next piece of `len` bytes, if so many are there; with `until`, as many as there are before that byte.
    pub fn next_piece(&mut self, len: u64, until: Option<u64>) -> Option<FlowPiece> {
        let up = self.uploading.as_ref()?;
        let offset = up.frontier.filter(|&frontier| up.visible == frontier)?;
        let most = until.map_or(len, |until| len.min(until.saturating_sub(offset)));
        let there = self.run(offset, most);
        if there == 0 || (there < len && until.is_none()) {
            return None;
        }
        let (mut keep, mut data, end) = (Extents::new(), Vec::new(), offset + there);
        let mut at = offset;
        while at < end {
            let Ok(extent) = self.dirty.at(at, usize::try_from(end - at).unwrap_or(usize::MAX)) else { break };
            data.push(extent.block.slice(extent.start, extent.len));
            let start = at;
            at += extent.len as u64;
            keep.insert(start, extent);
        }
        self.dirty.cut(offset, end);
        let up = self.uploading.as_mut()?;
        up.extents.underlay(&keep);
        up.frontier = Some(end);
        up.visible = end;
        Some(FlowPiece { offset, len: there, data, keep })
    }

    /// The store has a piece: its memory can be had by [`Content::release_sent`].
    pub fn piece_sent(&mut self, offset: u64, len: u64) {
        if let Some(up) = self.uploading.as_mut().filter(|up| up.frontier.is_some()) {
            up.sent.push((offset, offset + len));
        }
    }

    /// Gives up the memory of what the store has of an upload that goes on. False: there is none, or it is not to be put together.
    pub fn release_sent(&mut self) -> bool {
        let Some(up) = self.uploading.as_mut().filter(|up| !up.stale && !up.sent.is_empty()) else { return false };
        up.sent.drain(..).for_each(|(from, to)| up.extents.cut(from, to));
        up.released = true;
        true
    }

    /// Before `from..to` is changed, whether an upload that goes on must first come to its end, because what it has sent of that
    /// is not in memory any more: in the store a file is only ever seen as it was at some moment. If all is in memory, the
    /// upload is given up.
    pub fn must_end_first(&mut self, from: u64, to: u64) -> bool {
        let Some(up) = self.uploading.as_mut() else { return false };
        if up.frontier.is_none_or(|frontier| from >= frontier || to <= from) {
            return false;
        }
        up.stale |= !up.released;
        up.released
    }

    /// Whether an upload that goes on is to be given up: it was overtaken, or leaves out some of what lies before `until`, and
    /// nothing of it is needed.
    pub fn flow_is_stale(&self, until: u64) -> bool {
        self.uploading.as_ref().is_some_and(|up| {
            up.stale || (!up.released && up.frontier.is_some_and(|frontier| frontier < until.min(self.size)))
        })
    }

    /// No more pieces will be sent: how long the object is that they and the base make.
    pub fn end_flow(&mut self) -> u64 {
        let Some((visible, frontier)) = self.uploading.as_ref().and_then(|up| Some((up.visible, up.frontier?))) else {
            return 0;
        };
        self.changed = !self.dirty.is_empty() || visible != frontier || self.size != frontier;
        frontier
    }

    /// The pieces are no object after all. Returns how many bytes the file has lost by that; if none, it is as if none had
    /// been sent.
    pub fn fail_flow(&mut self) -> u64 {
        let mut lost = 0;
        if let Some(up) = self.uploading.as_ref().filter(|up| up.frontier.is_some()) {
            let mut at = up.base_len;
            while at < up.visible {
                match up.extents.at(at, usize::try_from(up.visible - at).unwrap_or(usize::MAX)) {
                    Ok(extent) => at += extent.len as u64,
                    Err(gap) => {
                        at += gap as u64;
                        lost += gap as u64;
                    }
                }
            }
        }
        if lost == 0 {
            self.roll_back();
        }
        lost
    }

    /// The upload is in the store as `version`. Returns the run that holds the whole object, if one does: it may go
    /// into the clean cache.
    pub fn commit(&mut self, version: Version, id: ContentId) -> Option<Extent> {
        let up = self.uploading.take()?;
        let size = version.size;
        self.base_len = up.visible.min(size);
        self.size = self.size.max(self.base_len);
        self.base = Some(BaseObject { version, id });
        match up.extents.at(0, usize::try_from(size).ok()?) {
            Ok(whole) if whole.len as u64 == size && whole.start == 0 => Some(whole),
            _ => None,
        }
    }

    /// The upload failed: what was being uploaded is dirty again, under what was written since.
    pub fn roll_back(&mut self) {
        if let Some(mut up) = self.uploading.take() {
            up.extents.cut(up.visible, u64::MAX);
            self.dirty.underlay(&up.extents);
            self.base_len = up.base_len.min(up.visible);
            self.changed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Blocks;
    use crate::cache::extents::tests::Bytes;
    use crate::store::Pool;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// A content with the object that the store would hold.
    struct Model {
        pool: Arc<Pool>,
        blocks: Arc<Blocks>,
        content: Content,
        object: Vec<u8>,
        etag: u64,
    }

    impl Model {
        fn read(&self) -> Vec<u8> {
            let mut out = Vec::new();
            while let Some(layer) = self.content.at(out.len() as u64, usize::MAX) {
                match layer {
                    Layer::Memory(e) => out.extend_from_slice(e.block.bytes(e.start, e.len)),
                    Layer::Base(len) => out.extend_from_slice(&self.object[out.len()..out.len() + len]),
                    Layer::Zero(len) => out.resize(out.len() + len, 0),
                    Layer::Sent => unreachable!("nothing is sent in pieces here"),
                }
            }
            out
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            let mut source = Bytes(data);
            let mut done = 0;
            while done < data.len() {
                let at = offset + done as u64;
                match self.content.store(at, data.len() - done, &mut source).expect("store") {
                    Step::Stored(n) => done += n,
                    Step::NeedBlock { len, block_len } => {
                        let block = self.blocks.take(block_len).expect("room");
                        done += self.content.add(at, len, block, &mut source).expect("add");
                    }
                }
            }
        }

        /// What an upload makes; bases after our own, or instead of it, are `other`.
        fn compose(&self, upload: &Upload, other: &[u8]) -> Vec<u8> {
            let mut new = Vec::new();
            for segment in &upload.segments {
                match *segment {
                    Segment::Copy { base, offset, len } => {
                        let own = base == 0 && upload.base.is_some();
                        let from = if own { &self.object } else { other };
                        new.extend_from_slice(&from[offset as usize..(offset + len) as usize]);
                    }
                    Segment::Data(slice) => {
                        let mut bytes = vec![0; slice.len as usize];
                        assert!(self.pool.read(slice.offset, &mut bytes));
                        new.extend_from_slice(&bytes);
                    }
                    Segment::Zero { len } => new.resize(new.len() + len as usize, 0),
                }
            }
            assert_eq!(new.len() as u64, upload.size);
            new
        }

        fn version(&self) -> Version {
            Version { etag: Some(self.etag.to_string()), size: self.object.len() as u64, mtime_ns: None }
        }
    }

    proptest! {
        #[test]
        fn a_file_reads_as_written_whatever_uploads_do(
            steps in prop::collection::vec((0u8..8, 0u64..20_000, 1usize..6_000, any::<u8>()), 1..80),
        ) {
            let pool = Arc::new(Pool::new(64 << 20).expect("memfd"));
            let blocks = Blocks::new(Arc::clone(&pool));
            let mut m = Model { pool, blocks, content: Content::new_local(), object: Vec::new(), etag: 0 };
            let mut expect: Vec<u8> = Vec::new();
            let mut upload: Option<Vec<u8>> = None;
            for (what, offset, len, byte) in steps {
                match what {
                    0..=2 => {
                        let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add(i as u8)).collect();
                        m.write(offset, &data);
                        let end = offset as usize + len;
                        if expect.len() < end {
                            expect.resize(end, 0);
                        }
                        expect[offset as usize..end].copy_from_slice(&data);
                    }
                    3 => {
                        m.content.truncate(offset);
                        expect.resize(offset as usize, 0);
                    }
                    4 => {
                        if let Some(up) = m.content.begin_upload() {
                            prop_assert!(upload.is_none());
                            let new = m.compose(&up, &[]);
                            prop_assert_eq!(&new, &expect);
                            upload = Some(new);
                        }
                    }
                    5 => {
                        if let Some(new) = upload.take() {
                            m.object = new;
                            m.etag += 1;
                            let version = m.version();
                            m.content.commit(version, ContentId(m.etag));
                        }
                    }
                    6 => {
                        let other: Vec<u8> = (0..len + 7).map(|i| byte.wrapping_mul(3).wrapping_add(i as u8)).collect();
                        if let Some(up) = m.content.begin_copy(offset, 7, len as u64) {
                            m.object = m.compose(&up, &other);
                            m.etag += 1;
                            let version = m.version();
                            m.content.commit(version, ContentId(m.etag));
                            let end = offset as usize + len;
                            if expect.len() < end {
                                expect.resize(end, 0);
                            }
                            expect[offset as usize..end].copy_from_slice(&other[7..]);
                            prop_assert_eq!(&m.object, &expect);
                        } else {
                            prop_assert!(upload.is_some());
                        }
                    }
                    _ => {
                        if upload.take().is_some() {
                            m.content.roll_back();
                        }
                    }
                }
                prop_assert_eq!(m.content.size(), expect.len() as u64);
                prop_assert_eq!(m.read(), expect.clone());
            }
            // Whatever happened, one more upload makes the object equal to the file.
            if upload.take().is_some() {
                m.content.roll_back();
            }
            if let Some(up) = m.content.begin_upload() {
                m.object = m.compose(&up, &[]);
                m.content.commit(m.version(), ContentId(0));
            }
            prop_assert!(!m.content.is_dirty());
            prop_assert_eq!(m.read(), expect.clone());
            prop_assert_eq!(&m.object, &expect);
        }
    }
}
