//! A file of 100 GiB, written from its beginning to its end through a memory that is far smaller, into a store that keeps
//! nothing of it but the lengths of its pieces. Usually all lengths are 1/1024; `OVFS_STREAM_MIB_PER_GIB=1024` for the true ones.

use std::collections::BTreeMap;
use std::task::Poll;

use super::*;
use crate::store::{FLOW_PIECES_MAX, Keep, Kind, Meta, MountId, Op, Reply, Store, StoreError};

const GIB: u64 = 100;

/// The lengths of the pieces of each object that was sent, and the length of the one that stands.
#[derive(Default)]
struct Sent {
    flows: BTreeMap<u64, BTreeMap<u32, u64>>,
    object: Option<u64>,
}

#[derive(Clone, Default)]
struct Null(Arc<Mutex<Sent>>);

impl Null {
    fn sent(&self) -> std::sync::MutexGuard<'_, Sent> {
        self.0.lock().expect("no panics")
    }

    fn meta(size: u64) -> Meta {
        let etag = Some(format!("\"{size}\""));
        Meta { kind: Kind::File, size, mtime_ns: Some(1), etag, marker: None, details: None }
    }
}

impl Store for Null {
    async fn perform(&self, _: MountId, op: Op, _keep: Keep) -> std::result::Result<Reply, StoreError> {
        let not_found = || StoreError { kind: StoreErrorKind::NotFound, text: String::new() };
        match op {
            Op::FlowBegin { flow, base, .. } => {
                assert_eq!(base, None, "it is one object from its beginning to its end");
                assert!(self.sent().flows.insert(flow, BTreeMap::new()).is_none());
                Ok(Reply::Unit)
            }
            Op::FlowSend { flow, number, data } => {
                let len = data.iter().map(|slice| u64::from(slice.len)).sum();
                let before = self.sent().flows.get_mut(&flow).expect("begun").insert(number, len);
                assert_eq!(before, None, "a piece twice");
                Ok(Reply::Unit)
            }
            Op::FlowEnd { flow, pieces } => {
                while self.sent().flows[&flow].len() < pieces as usize {
                    // Those that are under way come first.
                    let mut again = false;
                    std::future::poll_fn(|cx| {
                        cx.waker().wake_by_ref();
                        if std::mem::replace(&mut again, true) { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                }
                let mut sent = self.sent();
                let size = sent.flows[&flow].values().sum();
                sent.object = Some(size);
                Ok(Reply::Meta(Null::meta(size)))
            }
            Op::Stat { .. } | Op::Tell { .. } => {
                self.sent().object.map(Null::meta).map(Reply::Meta).ok_or_else(not_found)
            }
            other => panic!("nobody needs {other:?} for that"),
        }
    }
}

#[test]
fn a_long_file_is_one_object_of_pieces_that_s3_takes() {
    let unit: u64 = std::env::var("OVFS_STREAM_MIB_PER_GIB").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let size = GIB * (unit << 20) + 12_345;
    let piece = (8 * unit) << 10;
    // Room for several of the longest pieces.
    let pool = Arc::new(Pool::new((unit as usize) << 24).expect("memfd"));
    let store = Null::default();
    let able = Capabilities { flows: Some(2 * piece), ..capabilities() };
    let config = Config { piece, ..testing::config() };
    let fs = ObjectFs::new(config, Remote::new(store.clone(), 0), able, pool).expect("threads");
    block_on(fs.init(u64::MAX)).expect("init");
    let ext = Extensions::default();
    let (entry, opened) = block_on(fs.create(CTX, NodeId::ROOT, b"f", 0o644, RDWR, 0, false, ext)).expect("create");
    let (nodeid, handle) = (entry.nodeid, opened.handle.expect("a handle"));
    let chunk = vec![7; 1 << 20];
    let mut at = 0;
    while at < size {
        let len = (size - at).min(chunk.len() as u64);
        let op = Write {
            nodeid,
            handle,
            offset: at,
            size: len as u32,
            lock_owner: None,
            delayed: false,
            kill_priv: false,
            flags: RDWR,
        };
        at += block_on(fs.write(CTX, op, &mut Buffer::of(&chunk[..len as usize]))).expect("write") as u64;
    }
    block_on(fs.flush(CTX, nodeid, handle, 0)).expect("flush");
    block_on(fs.release(CTX, nodeid, handle, 0, None, false)).expect("release");
    let sent = store.sent();
    assert_eq!(sent.object, Some(size));
    assert_eq!(sent.flows.len(), 1, "it was begun once");
    let pieces = &sent.flows[sent.flows.keys().next().expect("one")];
    let count = pieces.len() as u32;
    assert!(pieces.keys().copied().eq(0..count) && count <= FLOW_PIECES_MAX, "{count} pieces");
    let lens: Vec<u64> = pieces.values().copied().collect();
    let (last, others) = lens.split_last().expect("some");
    // S3 takes 5 MiB to 5 GiB; what it puts together must be the same from 1/1024 of that on.
    assert!(others.iter().all(|&len| (piece..=64 * piece).contains(&len)) && *last > 0);
    assert!(others.is_sorted(), "they only grow");
}
