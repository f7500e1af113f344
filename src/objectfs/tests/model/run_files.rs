//! The steps on open files, and truncation by name.

use super::contract::{Dirty, Expected, File, Kind, Outcome, Taken, Verdict};
use super::run::{Open, Runner};
use super::step::{Allocate, Step};
use super::system::System;

impl<S: System> Runner<S> {
    pub(super) fn on_handle(&mut self, step: &Step) -> Verdict {
        if self.open.is_empty() {
            return Ok(());
        }
        let pick = |file: usize| file % self.open.len();
        match *step {
            Step::Read { file, offset, len } => self.read(pick(file), offset, len),
            Step::Write { file, offset, len, sync } => self.write(pick(file), offset, len, sync),
            Step::Truncate { file, size } => self.truncate(pick(file), size),
            Step::Allocate { file, mode, offset, len } => self.allocate(pick(file), mode, offset, len),
            Step::Copy { from, from_offset, to, to_offset, len } => {
                self.copy((pick(from), from_offset), (pick(to), to_offset), len)
            }
            Step::CopyWhole { from, to } => {
                let from = pick(from);
                let len = self.bytes(from).len() as u64;
                self.copy((from, 0), (pick(to), 0), len.max(1))
            }
            Step::Seek { file, offset, hole } => self.seek(pick(file), offset, hole),
            Step::Flush { file } => self.sync(pick(file), false),
            Step::Fsync { file } => self.sync(pick(file), true),
            Step::Close { file } => self.close(pick(file)),
            Step::StatOpen { file } => self.stat_open(pick(file)),
            _ => Ok(()),
        }
    }

    fn bytes(&self, at: usize) -> Vec<u8> {
        self.contract.files.get(&self.open[at].file).map(|file| file.bytes.clone()).unwrap_or_default()
    }

    /// Whether a handle may answer ESTALE; and whether the contract still knows its bytes. Where it does not, handles of what it takes for
    /// one file may be of two versions, and the older ones are stale.
    fn standing(&self, open: &Open) -> (bool, bool) {
        self.contract.files.get(&open.file).map_or((true, false), |file| (file.foreign || file.wild, !file.wild))
    }

    pub(super) fn read(&mut self, at: usize, offset: u64, len: usize) -> Verdict {
        let open = self.open[at];
        let result = self.system.read(open.node, open.handle, offset, len);
        let outcome = self.outcome(result);
        self.contract.settle(&outcome.after, &Expected::new())?;
        let (foreign, known) = self.standing(&open);
        match outcome.result {
            Err(libc::EBADF) if !open.readable => Ok(()),
            Err(_) if outcome.failed => Ok(()),
            Err(libc::ESTALE) if foreign => Ok(()),
            Ok(_) if open.readable && !known => Ok(()),
            Ok(seen) if open.readable => {
                let bytes = self.bytes(at);
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                let expected = &bytes[start..bytes.len().min(start + len)];
                if seen == expected {
                    return Ok(());
                }
                let first = seen.iter().zip(expected).position(|(a, b)| a != b);
                Err(format!("read {} bytes, not {}; first difference {first:?}", seen.len(), expected.len()))
            }
            Ok(_) => Err("reads though it was opened for writing only".into()),
            Err(errno) => Err(format!("answers {errno}")),
        }
    }

    /// Judges a change of the file behind a handle to `new`, of which `own` is the guest's.
    fn changed(
        &mut self,
        open: Open,
        new: Vec<u8>,
        own: std::ops::Range<usize>,
        outcome: &Outcome<()>,
        sync: bool,
    ) -> Verdict {
        let (foreign, _) = self.standing(&open);
        match outcome.result {
            Ok(()) if open.writable => {
                self.contract.change(open.file, new, own);
                let settled = self.contract.settle(&outcome.after, &Expected::new());
                self.contract.change_over();
                settled?;
                if sync { self.contract.must_be_stored(open.file) } else { Ok(()) }
            }
            Ok(()) => Err("changes though it was opened for reading only".into()),
            Err(libc::EBADF) if !open.writable => self.contract.settle(&outcome.after, &Expected::new()),
            Err(libc::ESTALE | libc::EEXIST | libc::EISDIR | libc::ENOTDIR | libc::ENOENT) if foreign => {
                self.half_done(open, new, own, outcome)
            }
            Err(_) if outcome.failed => self.half_done(open, new, own, outcome),
            Err(libc::ENOSPC) if self.contract.memory_is_held() => self.half_done(open, new, own, outcome),
            Err(errno) => Err(format!("answers {errno}")),
        }
    }

    /// A change failed, and nobody said how far it came: looks.
    fn half_done(&mut self, open: Open, new: Vec<u8>, own: std::ops::Range<usize>, outcome: &Outcome<()>) -> Verdict {
        self.contract.change(open.file, new, own);
        self.contract.settle_loosely(&outcome.after, &[])?;
        let seen = if open.readable { self.system.read(open.node, open.handle, 0, 1 << 20).ok() } else { None };
        self.contract.came_so_far(open.file, seen)
    }

    fn write(&mut self, at: usize, offset: u64, len: usize, sync: bool) -> Verdict {
        let open = self.open[at];
        let old = self.bytes(at);
        let offset = if open.append { old.len() as u64 } else { offset };
        let data = self.pattern(len);
        let flags = if sync { libc::O_SYNC } else { 0 };
        let result = self.system.write(open.node, open.handle, offset, &data, flags);
        let outcome = self.outcome(match result {
            Ok(n) if n != len => return Err(format!("wrote {n} of {len}")),
            other => other.map(drop),
        });
        let start = offset as usize;
        let mut new = old;
        new.resize(new.len().max(start + len), 0);
        new[start..start + len].copy_from_slice(&data);
        self.changed(open, new, start..start + len, &outcome, sync)
    }

    fn truncate(&mut self, at: usize, size: u64) -> Verdict {
        let open = self.open[at];
        if !open.writable {
            return Ok(());
        }
        let result = self.system.truncate(open.node, Some(open.handle), size).map(drop);
        let outcome = self.outcome(result);
        let mut new = self.bytes(at);
        new.resize(size as usize, 0);
        self.changed(open, new, 0..0, &outcome, false)
    }

    fn allocate(&mut self, at: usize, mode: Allocate, offset: u64, len: u64) -> Verdict {
        let open = self.open[at];
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let (flags, zeros, extends) = match mode {
            Allocate::Extend => (0, false, true),
            Allocate::KeepSize => (keep, false, false),
            Allocate::Punch => (libc::FALLOC_FL_PUNCH_HOLE | keep, true, false),
            Allocate::Zero => (libc::FALLOC_FL_ZERO_RANGE, true, true),
            Allocate::ZeroKeepSize => (libc::FALLOC_FL_ZERO_RANGE | keep, true, false),
        };
        let result = self.system.allocate(open.node, open.handle, flags, offset, len);
        let outcome = self.outcome(result);
        let mut new = self.bytes(at);
        let (start, end) = (offset as usize, (offset + len) as usize);
        let inside = start.min(new.len())..end.min(new.len());
        if zeros {
            new[inside.clone()].fill(0);
        }
        if extends {
            new.resize(new.len().max(end), 0);
        }
        self.changed(open, new, if zeros { inside } else { 0..0 }, &outcome, false)
    }

    fn copy(&mut self, (from, from_offset): (usize, u64), (to, to_offset): (usize, u64), len: u64) -> Verdict {
        let (source, target) = (self.open[from], self.open[to]);
        let result =
            self.system.copy((source.node, source.handle, from_offset), (target.node, target.handle, to_offset), len);
        let outcome = self.outcome(result);
        let (bytes, mut new) = (self.bytes(from), self.bytes(to));
        let start = (from_offset as usize).min(bytes.len());
        let data = &bytes[start..bytes.len().min(start + len as usize)];
        let (source_foreign, source_known) = self.standing(&source);
        let reach = if source_foreign { len } else { data.len() as u64 };
        let overlap = from_offset < to_offset + reach && to_offset < from_offset + reach;
        let n = match outcome.result {
            Ok(n) => n as usize,
            Err(libc::EBADF) if !source.readable => return self.contract.settle(&outcome.after, &Expected::new()),
            Err(libc::EINVAL) if source.node == target.node && overlap => {
                return self.contract.settle(&outcome.after, &Expected::new());
            }
            Err(libc::ESTALE) if source_foreign && target.writable => data.len(),
            Err(_) => data.len(),
        };
        if n > data.len() || (n == 0 && !data.is_empty()) {
            let (foreign, known) = self.standing(&source);
            return if foreign || !known { self.lose_track(target) } else { Err(format!("copied {n}")) };
        }
        if !source_known {
            return self.lose_track(target);
        }
        let at = to_offset as usize;
        if n > 0 {
            new.resize(new.len().max(at + n), 0);
            new[at..at + n].copy_from_slice(&data[..n]);
        }
        if outcome.result.is_ok() && n == 0 {
            return self.contract.settle(&outcome.after, &Expected::new());
        }
        let result = outcome.result.map(drop);
        let plain = Outcome { result, failed: outcome.failed, after: outcome.after };
        if plain.result == Err(libc::ESTALE) && source_foreign {
            return self.half_done(target, new, at..at + n, &plain);
        }
        self.changed(target, new, at..at + n, &plain, false)
    }

    /// What a handle of unknown bytes gave went into this file.
    fn lose_track(&mut self, open: Open) -> Verdict {
        if let Some(file) = self.contract.files.get_mut(&open.file) {
            file.wild = true;
            if open.writable && file.dirty == Dirty::No {
                file.dirty = if file.foreign { Dirty::Maybe } else { Dirty::Yes };
            }
        }
        let after = self.system.bucket();
        self.contract.settle(&after, &Expected::new())
    }

    fn seek(&mut self, at: usize, offset: u64, hole: bool) -> Verdict {
        let open = self.open[at];
        let whence = if hole { libc::SEEK_HOLE } else { libc::SEEK_DATA };
        let result = self.system.seek(open.node, open.handle, offset, whence);
        let outcome = self.outcome(result);
        self.contract.settle(&outcome.after, &Expected::new())?;
        let (foreign, known) = self.standing(&open);
        let bytes = self.bytes(at);
        let size = bytes.len() as u64;
        match outcome.result {
            _ if foreign || !known || outcome.failed => Ok(()),
            Err(libc::ENXIO) if offset >= size => Ok(()),
            // Nothing but a hole follows.
            Err(libc::ENXIO) if !hole && bytes[offset as usize..].iter().all(|byte| *byte == 0) => Ok(()),
            Ok(to) if hole && (offset..=size).contains(&to) && offset < size => Ok(()),
            Ok(to) if !hole && (offset..size).contains(&to) => {
                let skipped = &bytes[offset as usize..to as usize];
                if skipped.iter().all(|byte| *byte == 0) { Ok(()) } else { Err("skips data".into()) }
            }
            other => Err(format!("answers {other:?} in {size} bytes")),
        }
    }

    fn sync(&mut self, at: usize, fsync: bool) -> Verdict {
        let open = self.open[at];
        let result =
            if fsync { self.system.fsync(open.node, open.handle) } else { self.system.flush(open.node, open.handle) };
        let outcome = self.outcome(result);
        let new = self.contract.files.get(&open.file).is_some_and(File::is_new);
        self.judge_sync(open, &outcome, fsync || open.writable || new)
    }

    fn judge_sync(&mut self, open: Open, outcome: &Outcome<()>, syncs: bool) -> Verdict {
        if syncs {
            return self.contract.synced(open.file, outcome);
        }
        if let Err(errno) = outcome.result {
            return Err(format!("closing a file that was only read answers {errno}"));
        }
        self.contract.settle(&outcome.after, &Expected::new())
    }

    pub(super) fn close(&mut self, at: usize) -> Verdict {
        let open = self.open.swap_remove(at);
        let flushed = self.system.flush(open.node, open.handle);
        self.system.release(open.node, open.handle).ok();
        let outcome = self.outcome(flushed);
        // A file that was just created is stored by whoever closes it.
        let new = self.contract.files.get(&open.file).is_some_and(File::is_new);
        let judged = self.judge_sync(open, &outcome, open.writable || new);
        self.contract.closed(open.file, open.writable);
        judged
    }

    fn stat_open(&mut self, at: usize) -> Verdict {
        let open = self.open[at];
        let result = self.system.getattr(open.node);
        let outcome = self.outcome(result);
        self.contract.settle(&outcome.after, &Expected::new())?;
        let (foreign, known) = self.standing(&open);
        let size = self.bytes(at).len() as u64;
        match outcome.result {
            _ if foreign || !known || outcome.failed => Ok(()),
            Ok(found) if found.size == size && !found.dir => Ok(()),
            other => Err(format!("answers {other:?}, wanted {size} bytes")),
        }
    }

    pub(super) fn truncate_path(&mut self, path: &str, size: u64) -> Verdict {
        if !self.contract.certain(path) {
            return Ok(());
        }
        let mut node = None;
        let result = self.twice(|this| {
            let found = this.lookup(path)?;
            node = Some(found.node);
            this.system.truncate(found.node, None, size).map(drop)
        });
        let outcome = self.outcome(result);
        let wanted = match self.contract.resolve(path) {
            Err(errno) => Err(vec![errno]),
            Ok(Kind::Absent) => Err(vec![libc::ENOENT]),
            Ok(Kind::Dir) => Err(vec![libc::EISDIR]),
            Ok(Kind::File) => Ok(()),
        };
        if wanted.is_err() {
            let taken = self.contract.judge(&[path], wanted, &outcome, |_| Expected::new())?;
            return if taken == Taken::Refused { Ok(()) } else { Err("truncates what is no file".into()) };
        }
        let file = self.contract.opened(path, None)?;
        let (mut new, foreign) = {
            let file = &self.contract.files[&file];
            (file.bytes.clone(), file.foreign)
        };
        let writer = self.open.iter().any(|open| Some(open.node) == node && open.writable);
        new.resize(size as usize, 0);
        self.contract.change(file, new, 0..0);
        match outcome.result {
            Ok(()) => {
                let settled = self.contract.settle(&outcome.after, &Expected::new());
                self.contract.change_over();
                settled?;
                // If nobody is going to close it, it is in the store now.
                if !writer {
                    self.contract.must_be_stored(file)?;
                }
            }
            Err(_) if outcome.failed || foreign => {
                self.contract.settle_loosely(&outcome.after, &[])?;
                let seen = node.and_then(|node| self.peek(node));
                self.contract.came_so_far(file, seen)?;
            }
            Err(errno) => return Err(format!("answers {errno}")),
        }
        self.contract.tidy();
        Ok(())
    }
}
