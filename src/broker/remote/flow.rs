//! Objects that are sent piece by piece while the guest still writes them.
//!
//! What a piece lay in is free again once the store has it, so a failed request is repeated for longer than elsewhere: the
//! bytes are nowhere else. Pieces may come in any order and go to the writer in theirs. Nothing of an object is seen before
//! its end, and nothing of one that is given up stays: its upload is aborted.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use opendal::{Buffer, Writer};
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::sleep;

use super::super::error::error;
use super::super::gate::guarded;
use super::super::operator::noting_retries;
use super::compose::{Donor, Job, Prepared, lost_base};
use super::plan::{self, Step};
use super::{Remote, same_version};
use crate::store::pool::PoolBytes;
use crate::store::{
    Attributes, Base, Condition, FLOW_PIECES_MAX, FLOWS_MAX, Meta, Segment, Slice, StoreError, StoreErrorKind,
};

/// Fewest bytes of an object that is gone on from: shorter ranges are not copied inside the store.
pub(super) const BASE_MIN: u64 = 16 << 20;

/// How long a store is left alone that does not take a piece, again and again: two minutes beside its own time.
const PAUSES: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(10),
    Duration::from_secs(20),
    Duration::from_secs(35),
    Duration::from_secs(50),
];

/// What stands for the turn of a piece when there are no turns any more.
const OVER: u32 = u32::MAX;

/// Those of one store.
#[derive(Default)]
pub(super) struct Flows(std::sync::Mutex<HashMap<u64, Arc<Flow>>>);

impl fmt::Debug for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flows").finish_non_exhaustive()
    }
}

/// One object on its way.
struct Flow {
    path: String,
    base: Option<Base>,
    when: Condition,
    attributes: Option<Attributes>,
    prepared: Prepared,
    /// The piece whose turn it is, or [`OVER`].
    turn: watch::Sender<u32>,
    state: Mutex<State>,
}

struct State {
    writer: Writer,
    /// Length of what was handed over.
    sent: u64,
    failed: Option<StoreError>,
}

impl Flow {
    fn base_len(&self) -> u64 {
        self.base.as_ref().map_or(0, |base| base.version.size)
    }

    fn job<'a>(&'a self, total: u64) -> Job<'a> {
        let bases = self.base.as_slice();
        let attributes = self.attributes.as_ref();
        Job { path: &self.path, bases, when: &self.when, segments: &[], attributes, total, donor: Donor::Target }
    }

    /// Waits until all pieces before `number` are handed over.
    async fn turn(&self, number: u32) -> Result<(), StoreError> {
        let mut turn = self.turn.subscribe();
        match turn.wait_for(|now| *now >= number).await.map(|now| *now) {
            Ok(now) if now == number => Ok(()),
            _ => Err(self.over()),
        }
    }

    fn over(&self) -> StoreError {
        error(StoreErrorKind::Io, format!("write '{}': it has failed or ended before", self.path))
    }
}

impl Flows {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Flow>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, number: u64) -> Result<Arc<Flow>, StoreError> {
        self.all()
            .get(&number)
            .cloned()
            .ok_or_else(|| error(StoreErrorKind::Protocol, "no object is sent by that number"))
    }
}

impl Remote {
    /// Begins an object that is to be the copy of `base`, if there is one, and of what follows.
    pub async fn flow_begin(
        &self,
        number: u64,
        path: &str,
        base: Option<&Base>,
        when: &Condition,
        attributes: Option<&Attributes>,
    ) -> Result<(), StoreError> {
        if !self.flows_can_be() {
            return Err(error(StoreErrorKind::Unsupported, format!("write '{path}': not piece by piece")));
        }
        if base.is_some_and(|base| base.version.size < BASE_MIN || base.path != path) {
            return Err(error(StoreErrorKind::Protocol, format!("write '{path}': no base to go on from")));
        }
        if self.flows.all().len() >= FLOWS_MAX {
            return Err(error(StoreErrorKind::Unavailable, format!("write '{path}': too many at once")));
        }
        let attributes = attributes.filter(|_| self.posix);
        let bases = base.map_or(&[][..], std::slice::from_ref);
        // As long as it gets, for what is decided by the length.
        let total = plan::TOTAL_MAX;
        let job = Job { path, bases, when, segments: &[], attributes, total, donor: Donor::Target };
        let prepared = self.prepare(&job).await?;
        let writer = self.ops.write.writer_options(path, prepared.options.clone()).await;
        let mut writer = writer.map_err(|e| self.fail("write", path, &e))?;
        if let Some(base) = base {
            let segments = [Segment::Copy { base: 0, offset: 0, len: base.version.size }];
            for step in plan::plan(&segments, base.version.size.saturating_mul(2), true) {
                let copied = match step {
                    Step::Copy { base, offset, len } => self.copy_inside(&job, &mut writer, base, offset, len).await,
                    Step::Send(_) => Err(error(StoreErrorKind::Protocol, format!("write '{path}': a base too short"))),
                };
                if let Err(e) = copied {
                    self.abort_writer(path, &mut writer).await;
                    return Err(e);
                }
            }
        }
        let flow = Arc::new(Flow {
            path: path.to_owned(),
            base: base.cloned(),
            when: when.clone(),
            attributes: attributes.cloned(),
            prepared,
            turn: watch::Sender::new(0),
            state: Mutex::new(State { writer, sent: 0, failed: None }),
        });
        let before = self.flows.all().insert(number, flow);
        if let Some(before) = before {
            self.give_up_flow(&before).await;
        }
        Ok(())
    }

    /// Sends the piece `number` of an object. Returns when the store has it, or it is clear that it never will.
    pub async fn flow_send(&self, flow: u64, number: u32, data: &[Slice]) -> Result<(), StoreError> {
        let flow = self.flows.get(flow)?;
        let (held, released) = oneshot::channel::<()>();
        let held = Arc::new(held);
        let mut piece = Vec::with_capacity(data.len());
        let mut len = 0;
        for slice in data {
            // SAFETY: the device promises not to write these bytes until the reply, which comes after they were let go.
            let bytes = unsafe { PoolBytes::new(&self.pool, *slice) };
            let bytes = bytes.ok_or_else(|| error(StoreErrorKind::Protocol, "a slice outside the pool"))?;
            len += u64::from(slice.len);
            piece.push(Bytes::from_owner(Held { bytes, _held: Arc::clone(&held) }));
        }
        drop(held);
        if number >= FLOW_PIECES_MAX {
            return Err(error(StoreErrorKind::Protocol, "too many pieces"));
        }
        flow.turn(number).await?;
        {
            let mut state = flow.state.lock().await;
            let state = &mut *state;
            if let Some(failed) = &state.failed {
                return Err(failed.clone());
            }
            let _upload = self.meter.upload(&flow.path, len);
            let piece = Buffer::from(piece);
            if let Err(e) = self.persist(&flow, &mut state.writer, &piece).await {
                self.abort_writer(&flow.path, &mut state.writer).await;
                state.failed = Some(e.clone());
                flow.turn.send_replace(OVER);
                return Err(e);
            }
            state.sent += len;
            flow.turn.send_replace(number + 1);
        }
        // Nobody sends on it: it ends when the last of the piece is let go.
        let _ = released.await;
        // A writer that fails lets go of everything.
        match &flow.state.lock().await.failed {
            Some(failed) => Err(failed.clone()),
            None => Ok(()),
        }
    }

    /// Hands a piece to the writer, again and again while the store is away.
    async fn persist(&self, flow: &Flow, writer: &mut Writer, piece: &Buffer) -> Result<(), StoreError> {
        let mut pauses = PAUSES.iter();
        loop {
            // After an error that passes the writer has not taken the piece, and repeats what failed of those before.
            let e = match writer.write(piece.clone()).await {
                Ok(()) => return Ok(()),
                Err(e) => e,
            };
            let failed = self.fail("write", &flow.path, &e);
            match pauses.next().filter(|_| passes(&e)) {
                Some(pause) => {
                    log::warn!("'{}': a piece was not taken yet, it is tried again: {failed}", flow.path);
                    sleep(*pause).await;
                }
                None => return Err(failed),
            }
        }
    }

    /// Puts the `pieces` of an object together.
    pub async fn flow_end(&self, number: u64, pieces: u32) -> Result<Meta, StoreError> {
        let flow = self.flows.get(number)?;
        let ended = async {
            flow.turn(pieces).await?;
            let mut state = flow.state.lock().await;
            if let Some(failed) = &state.failed {
                return Err(failed.clone());
            }
            flow.turn.send_replace(OVER);
            let total = flow.base_len() + state.sent;
            let job = flow.job(total);
            let _upload = self.meter.upload(&flow.path, total);
            let (closed, retried) = noting_retries(self.close_flow(&flow, &job, &mut state.writer)).await;
            let closed = match closed {
                Err(e) => {
                    let e = self.named_by_condition(&job, e).await;
                    match retried && e.kind == StoreErrorKind::NotFound {
                        // The echo of a success, whose answer was lost: the parts are no more, the object is there.
                        true => self.landed_flow(&flow, total).await.ok_or(e),
                        false => Err(e),
                    }
                }
                Ok(metadata) => Ok(self.describe(&job, &flow.prepared, &metadata).await),
            };
            if let Err(e) = &closed {
                self.abort_writer(&flow.path, &mut state.writer).await;
                state.failed = Some(e.clone());
            }
            closed
        };
        let result = ended.await;
        self.flows.all().remove(&number);
        result
    }

    async fn close_flow(
        &self,
        flow: &Flow,
        job: &Job<'_>,
        writer: &mut Writer,
    ) -> Result<opendal::Metadata, StoreError> {
        let check = async || {
            for base in job.bases {
                self.verify(&base.path, &base.version, None).await.map_err(lost_base)?;
            }
            if flow.prepared.guard { self.check_target(&flow.path, &flow.when).await } else { Ok(()) }
        };
        let mut pauses = PAUSES.iter();
        loop {
            let mut again = false;
            let close = async {
                writer.close().await.map_err(|e| {
                    again = passes(&e);
                    self.fail("write", &flow.path, &e)
                })
            };
            let closed = match flow.prepared.guard || !job.bases.is_empty() {
                true => guarded(close, &check).await,
                false => close.await,
            };
            let Err(failed) = closed else { return closed };
            match pauses.next().filter(|_| again && failed.kind == StoreErrorKind::Unavailable) {
                Some(pause) => {
                    log::warn!("'{}': its end was not taken yet, it is tried again: {failed}", flow.path);
                    sleep(*pause).await;
                }
                None => return Err(failed),
            }
        }
    }

    async fn landed_flow(&self, flow: &Flow, total: u64) -> Option<Meta> {
        let now = self.detailed(&self.head(&flow.path).await.ok()??);
        let before = flow.prepared.before.as_ref();
        let other = before.is_none_or(|before| !same_version(&now, &before.version()));
        (other && now.size == total).then_some(now)
    }

    /// Gives an object up, if it is not there yet.
    pub async fn flow_abort(&self, number: u64) {
        let flow = self.flows.all().remove(&number);
        if let Some(flow) = flow {
            self.give_up_flow(&flow).await;
        }
    }

    /// Gives up all: the device that sent them is gone.
    pub async fn abort_flows(&self) {
        let all: Vec<Arc<Flow>> = self.flows.all().drain().map(|(_, flow)| flow).collect();
        futures::future::join_all(all.iter().map(|flow| self.give_up_flow(flow))).await;
    }

    async fn give_up_flow(&self, flow: &Flow) {
        flow.turn.send_replace(OVER);
        let mut state = flow.state.lock().await;
        if state.failed.is_none() {
            state.failed = Some(flow.over());
            self.abort_writer(&flow.path, &mut state.writer).await;
        }
    }

    pub(super) async fn abort_writer(&self, path: &str, writer: &mut Writer) {
        if let Err(e) = writer.abort().await {
            let text = self.cleaner.clean(&e.to_string());
            log::debug!("an upload of '{path}' may have left parts in the store: {text}");
        }
    }

    /// Whether objects can be sent piece by piece: where parts are put together at the end, and an object that stands is
    /// gone on from without its passing through us.
    pub(super) fn flows_can_be(&self) -> bool {
        self.service.scheme == "s3" && self.can.write && self.can.write_can_copy_from
    }
}

/// Whether it may go away.
fn passes(e: &opendal::Error) -> bool {
    e.is_temporary() || e.is_persistent()
}

/// Bytes of a piece.
struct Held {
    bytes: PoolBytes,
    _held: Arc<oneshot::Sender<()>>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}
