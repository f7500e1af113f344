//! Long files go to the store while the guest still writes them: in pieces, each sent once it is whole and the writer has
//! gone on. What the store has taken of them is memory again when it is wanted, so a file of any length passes through a bounded
//! pool at the store's speed.
//!
//! It is an upload like any other: it holds the inode's upload lock, its object appears at its end and on the same
//! conditions, and whoever wants the lock or a directory's new name ends it first: fsync(2), close(2), rename(2), unlink(2),
//! reading back or changing what is no longer in memory. If what was sent is changed and still in memory, it is given up and
//! begun anew, so that the store never shows a file as it never was.
//!
//! Until its end the store keeps pieces that nobody can read. Should it refuse the end for good, they are lost: the log
//! says so, and whoever syncs or closes the file is told EIO.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::future::{Either, select};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};

use super::core::Core;
use super::inode::{Inode, State};
use crate::fs::{Errno, Result};
use crate::store::{Base, Condition, FLOW_PIECES_MAX, Kind, Meta, Store, StoreError, StoreErrorKind};

/// A file is sent in pieces once so many of them could be.
const BEGIN: u64 = 2;

/// What stands for pieces on their way before there are any.
const STARTING: usize = 2;

/// Of the memory that may be dirty, a piece takes no more than this part, so that several are on their way.
const SHARE: u64 = 8;

/// Up to which piece they are how many times as long as the first ones: 1.5 TiB in all with first ones of 8 MiB.
const GROWTH: [(u32, u64); 4] = [(1000, 1), (2500, 4), (5000, 16), (FLOW_PIECES_MAX, 64)];

/// Length of the piece `number` if the first ones are `first` bytes long and none may be longer than `most`.
fn piece_len(number: u32, first: u64, most: u64) -> u64 {
    let (_, times) = GROWTH.into_iter().find(|(until, _)| number < *until).unwrap_or((0, 64));
    (first * times).min(most.max(first))
}

impl<S: Store> Core<S> {
    /// The file has more dirty bytes than before: begins to send it, or goes on.
    pub(super) fn go_on_sending(&self, inode: &Arc<Inode>, state: &mut State) {
        if state.flowing {
            if state.content.has_piece(inode.piece_len.load(Ordering::SeqCst)) {
                inode.written.notify(usize::MAX);
            }
            return;
        }
        let Some(base_min) = self.capabilities.flows else { return };
        let able = !state.no_flow && !state.unlinked && !state.moved && state.refused.is_none();
        let enough = BEGIN * self.config.piece;
        if !able || self.piece_max() < self.config.piece || state.content.flows(enough) < enough {
            return;
        }
        if state.content.base().is_some_and(|base| base.version.size < base_min) {
            return;
        }
        state.flowing = true;
        // Who needs memory waits as if pieces were on their way, until they are.
        inode.pieces.fetch_add(STARTING, Ordering::SeqCst);
        inode.piece_len.store(self.config.piece, Ordering::SeqCst);
        let inode = Arc::clone(inode);
        self.spawn(|core| async move {
            core.send_pieces(&inode).await;
        });
    }

    /// Whether memory that `inode` waits for will come of its being sent.
    pub(super) fn is_being_sent(&self, inode: &Inode) -> bool {
        let state = inode.state();
        // The last piece may wait for the next.
        let sent = state.flowing && inode.pieces.load(Ordering::SeqCst) > 1;
        let will_be = state.flowing && state.content.has_piece(inode.piece_len.load(Ordering::SeqCst));
        drop(state);
        if will_be {
            inode.written.notify(usize::MAX);
        }
        sent || will_be
    }

    /// Gives up the memory of what the store has of files that are being sent. False: there is none.
    pub(super) fn release_sent(&self) -> bool {
        let inodes: Vec<Arc<Inode>> = self.tree().inodes().cloned().collect();
        inodes.into_iter().filter(|inode| inode.state().content.release_sent()).count() > 0
    }

    /// Before `from..to` of a file is changed: ends its sending if it must be.
    pub(super) async fn end_sending(&self, inode: &Arc<Inode>, from: u64, to: u64) {
        while inode.state().content.must_end_first(from, to) {
            drop(inode.upload.lock().await);
        }
        inode.written.notify(usize::MAX);
    }

    /// Whether files that are being sent wait for more bytes, or for somebody who wants them.
    #[cfg(test)]
    pub(super) fn sending_rests(&self) -> bool {
        let rests = |inode: &Arc<Inode>| {
            let state = inode.state();
            // Zeros that fallocate(2) adds wait for the next write, or for this.
            inode.written.notify(usize::MAX);
            let waits = inode.pieces.load(Ordering::SeqCst) == 0
                && state.content.is_flowing()
                && !state.content.has_piece(inode.piece_len.load(Ordering::SeqCst));
            !state.flowing || waits
        };
        self.tree().inodes().all(rests)
    }

    fn piece_max(&self) -> u64 {
        self.dirty_max() as u64 / SHARE
    }

    async fn send_pieces(&self, inode: &Arc<Inode>) {
        {
            let _paths_stay = self.renaming.read().await;
            let _one_at_a_time = inode.upload.lock().await;
            let answer = self.send(inode).await;
            // None is on its way any more, nor will be.
            inode.pieces.store(0, Ordering::SeqCst);
            let mut state = inode.state();
            state.flowing = false;
            if answer.is_err() {
                state.no_flow = true;
            }
        }
        self.blocks.wake();
        self.tree().reap(inode.id);
    }

    /// The caller holds `renaming` and the upload lock.
    async fn send(&self, inode: &Arc<Inode>) -> Result<()> {
        if inode.state().exclusive {
            // Only a first object can be refused for one that is there; it is made of what is here.
            self.compose(inode).await?;
            return Ok(());
        }
        let path = {
            let tree = self.tree();
            if inode.state().unlinked {
                return Ok(());
            }
            tree.path(inode.id)?
        };
        self.settle(&path).await;
        let (base, sent) = {
            let mut state = inode.state();
            if state.moved || state.refused.is_some() || !state.content.begin_flow() {
                return Ok(());
            }
            let base = state.content.base().filter(|_| state.content.needs_base()).map(|base| base.version.clone());
            (base.map(|version| Base { path: path.clone(), version }), state.outgoing(inode, self.config.posix))
        };
        let when = base.as_ref().map_or(Condition::Any, |base| Condition::IfVersion(base.version.clone()));
        let flow = self.flows.fetch_add(1, Ordering::Relaxed);
        let begun = self.remote.flow_begin(flow, path.as_str(), base, when, sent.attributes.clone()).await;
        let answer = match begun {
            Ok(()) => self.send_all(inode, flow).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(Some(meta)) => {
                let id = self.tree().content_id();
                let mut state = inode.state();
                state.content.commit(meta.version(), id);
                state.committed(&meta);
                state.posix.arrived(&sent);
                Ok(())
            }
            Ok(None) => {
                {
                    let mut state = inode.state();
                    state.content.fail_flow();
                    // Who writes like that gains nothing by it.
                    state.no_flow = true;
                }
                let _ = self.remote.flow_abort(flow).await;
                Ok(())
            }
            Err(error) => {
                // It may never have begun.
                let _ = self.remote.flow_abort(flow).await;
                Err(self.flow_failed(inode, &path, &error))
            }
        }
    }

    /// Sends pieces until somebody wants the file, and puts the object together. `None`: there was nothing to send.
    async fn send_all(&self, inode: &Arc<Inode>, flow: u64) -> Result<Option<Meta>, StoreError> {
        inode.pieces.fetch_sub(STARTING, Ordering::SeqCst);
        let mut sending = FuturesUnordered::new();
        let mut number = 0;
        let mut until = None;
        loop {
            let written = inode.written.listen();
            let wanted = inode.upload.wanted.listen();
            let renaming = self.rename_wanted.listen();
            let over =
                number + 1 >= FLOW_PIECES_MAX || inode.upload.wanted.is_wanted() || self.rename_wanted.is_wanted();
            let len = piece_len(number, self.config.piece, self.piece_max());
            inode.piece_len.store(len, Ordering::SeqCst);
            let piece = {
                let mut state = inode.state();
                if over && until.is_none() {
                    // Who writes on meanwhile is not waited for.
                    until = Some(state.content.size());
                }
                // Only the last piece may be short.
                let room = number + 1 < FLOW_PIECES_MAX;
                if room { state.content.next_piece(len, until) } else { None }
            };
            if let Some(piece) = piece {
                inode.pieces.fetch_add(1, Ordering::SeqCst);
                let (offset, len) = (piece.offset, piece.len);
                let send = self.remote.flow_send(flow, number, piece.data, piece.keep);
                sending.push(send.map(move |answer| answer.map(|()| (offset, len))));
                number += 1;
                if until.is_some() && len < self.config.piece {
                    break;
                }
                continue;
            }
            if until.is_some() || inode.state().content.flow_is_stale(0) {
                break;
            }
            if sending.len() <= 1 {
                // Whoever waits for memory must look elsewhere.
                self.blocks.wake();
            }
            let more = select(select(written, wanted), renaming);
            if sending.is_empty() {
                more.await;
                continue;
            }
            if let Either::Left((Some(answer), _)) = select(sending.next(), more).await {
                let (offset, len) = answer?;
                // First of all its memory can be had, then it is no longer waited for.
                inode.state().content.piece_sent(offset, len);
                inode.pieces.fetch_sub(1, Ordering::SeqCst);
                self.blocks.wake();
            }
        }
        let total = {
            let mut state = inode.state();
            if number == 0 || state.content.flow_is_stale(until.unwrap_or(0)) {
                return Ok(None);
            }
            state.content.end_flow()
        };
        let rest = async {
            let mut failed = None;
            while let Some(answer) = sending.next().await {
                inode.pieces.fetch_sub(1, Ordering::SeqCst);
                match answer {
                    Ok((offset, len)) => inode.state().content.piece_sent(offset, len),
                    Err(error) => failed = Some(error),
                }
            }
            failed
        };
        let (ended, failed) = futures::join!(self.remote.flow_end(flow, number), rest);
        match (ended, failed) {
            (Ok(meta), _) if meta.kind == Kind::File && meta.size == total => Ok(Some(meta)),
            (Ok(meta), _) => {
                let text = format!("the store has {} bytes where {total} were sent", meta.size);
                Err(StoreError { kind: StoreErrorKind::Io, text })
            }
            (Err(error), None) => Err(error),
            (Err(_), Some(error)) => Err(error),
        }
    }

    fn flow_failed(&self, inode: &Inode, path: &str, error: &StoreError) -> Errno {
        let errno = match error.kind {
            StoreErrorKind::VersionMismatch | StoreErrorKind::NotFound | StoreErrorKind::Exists => Errno::ESTALE,
            _ => Errno::EIO,
        };
        let mut state = inode.state();
        let lost = state.content.fail_flow();
        if lost == 0 {
            log::debug!("{path:?} is not sent in pieces: {error}");
            self.retry_wanted.store(true, Ordering::Relaxed);
            return errno;
        }
        log::error!(
            "{path:?}: {lost} bytes that the store had taken in pieces are lost: {error}; the guest is told {errno}"
        );
        state.content.abandon();
        state.posix.give_up();
        state.asked = None;
        state.own_mtime = false;
        state.lost = Some(errno);
        errno
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many pieces a file of `size` bytes is sent in, and how long the longest is; `None`: too many.
    fn pieces(size: u64, first: u64, most: u64) -> Option<(u32, u64)> {
        let (mut number, mut sent, mut longest) = (0, 0, 0);
        while sent < size {
            if number + 1 >= FLOW_PIECES_MAX {
                return None;
            }
            let len = piece_len(number, first, most);
            longest = longest.max(len);
            sent += len;
            number += 1;
        }
        Some((number, longest))
    }

    #[test]
    fn a_tebibyte_fits_in_the_pieces_that_there_may_be() {
        let (first, gib) = (8u64 << 20, 1u64 << 30);
        let (number, longest) = pieces(100 * gib, first, u64::MAX).expect("fits");
        assert!(number < 3500 && longest <= 128 << 20, "{number} of at most {longest}");
        let (number, longest) = pieces(1024 * gib, first, u64::MAX).expect("fits");
        assert!(number < FLOW_PIECES_MAX && longest <= 512 << 20, "{number} of at most {longest}");
        // Less memory, shorter pieces: then an object is put together now and then, and gone on from.
        let (_, longest) = pieces(50 * gib, first, 16 << 20).expect("fits");
        assert_eq!(longest, 16 << 20);
        assert_eq!(pieces(1024 * gib, first, 16 << 20), None);
        // S3: at least 5 MiB, at most 5 GiB, 10,000 parts with the ranges of what stands there.
        assert!((0..FLOW_PIECES_MAX).all(|n| (5 << 20..=5 * gib).contains(&piece_len(n, first, u64::MAX))));
    }
}
