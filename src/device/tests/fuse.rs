//! The FUSE server behind a vring.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::Serve;
use super::driver::{Guest, raised};
use crate::fs::{FileSystem, NodeId, Result};
use crate::fuse::{Server, ServerOptions};

const FORGET: u32 = 2;
const INIT: u32 = 26;

/// A file system that knows how to begin, to forget and to flush.
#[derive(Default)]
struct Bare {
    forgotten: AtomicU64,
    flushed: AtomicU64,
}

impl FileSystem for Bare {
    async fn init(&self, _offered: u64) -> Result<u64> {
        Ok(0)
    }

    fn forget(&self, _nodeid: NodeId, nlookup: u64) {
        self.forgotten.fetch_add(nlookup, Ordering::Relaxed);
    }

    async fn flush_all(&self, _deadline: Duration) -> u64 {
        self.flushed.fetch_add(1, Ordering::Relaxed);
        0
    }
}

fn request(opcode: u32, unique: u64, nodeid: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&u32::try_from(40 + body.len()).unwrap().to_le_bytes());
    bytes.extend_from_slice(&opcode.to_le_bytes());
    bytes.extend_from_slice(&unique.to_le_bytes());
    bytes.extend_from_slice(&nodeid.to_le_bytes());
    bytes.resize(40, 0);
    bytes.extend_from_slice(body);
    bytes
}

#[test]
fn a_session_begins_and_forgets_over_a_vring() {
    let mut guest = Guest::new(16, true);
    let fs = Arc::new(Bare::default());
    let server = Arc::new(Server::new(fs.clone(), ServerOptions::default()));
    let at_work = server.clone();
    let mut worker = guest.worker(move |request, reply| {
        let server = at_work.clone();
        async move { Serve::serve(server.as_ref(), request, reply).await }
    });

    let mut init = Vec::new();
    for word in [7_u32, 38, 1 << 17, 0] {
        init.extend_from_slice(&word.to_le_bytes());
    }
    init.resize(64, 0);
    let reply = guest.request(0, &request(INIT, 11, 0, &init), 80);
    worker.turn();
    assert_eq!(guest.used(), [(0, 80)]);
    assert_eq!(
        guest.get(reply, 20),
        [&80_u32.to_le_bytes()[..], &[0; 4], &11_u64.to_le_bytes(), &[7, 0, 0, 0]].concat()
    );

    guest.request(1, &request(FORGET, 12, 5, &3_u64.to_le_bytes()), 0);
    let refused = guest.request(2, &request(9999, 13, 1, &[]), 16);
    worker.turn();
    assert_eq!(guest.used(), [(2, 0), (4, 16)]);
    assert_eq!(fs.forgotten.load(Ordering::Relaxed), 3);
    assert_eq!(guest.get(refused, 8), [16_u32.to_le_bytes(), (-libc::ENOSYS).to_le_bytes()].concat());
    assert!(raised(&guest.call) >= 1);

    futures::executor::block_on(Serve::stopped(server.as_ref()));
    assert_eq!(fs.flushed.load(Ordering::Relaxed), 1);
}
