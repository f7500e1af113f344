use std::future::Future;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Instant;

use futures::executor::block_on;
use futures::future::join_all;

use super::super::exchange::GRACE;
use super::super::{Remote, frame};
use super::*;

/// The other end, played by hand.
struct FakeBroker(File);

impl FakeBroker {
    fn next(&mut self) -> ToBroker {
        frame::read(&mut self.0, &mut Vec::new()).unwrap().unwrap()
    }

    fn request(&mut self) -> (u64, Op) {
        match self.next() {
            ToBroker::Request { id, op, .. } => (id, op),
            other => panic!("{other:?}"),
        }
    }

    fn say(&mut self, message: &ToDevice) {
        self.0.write_all(&frame::encode(message).unwrap()).unwrap();
    }

    fn done(&mut self, id: u64, result: Result<Reply, StoreError>) {
        self.say(&ToDevice::Done { id, result });
    }
}

fn pair_with(
    timeout: Duration,
    on_flush: impl FnMut(Duration) -> u64 + Send + 'static,
) -> (Arc<StoreClient>, Remote<Arc<StoreClient>>, FakeBroker) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let client = StoreClient::start(ours.into(), timeout, on_flush).unwrap();
    let remote = Remote::new(Arc::clone(&client), 0);
    (client, remote, FakeBroker(File::from(OwnedFd::from(theirs))))
}

fn pair() -> (Arc<StoreClient>, Remote<Arc<StoreClient>>, FakeBroker) {
    pair_with(Duration::from_secs(60), |_| 0)
}

fn file(size: u64) -> Meta {
    Meta { kind: Kind::File, size, mtime_ns: None, etag: None, marker: None, details: None }
}

struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn replies_find_their_requests_in_any_order() {
    let (client, remote, mut broker) = pair();
    let server = std::thread::spawn(move || {
        let mut seen: Vec<_> = (0..50).map(|_| broker.request()).collect();
        seen.reverse();
        for (id, op) in seen {
            let Op::Stat { path } = op else { panic!("{op:?}") };
            broker.done(id, Ok(Reply::Meta(file(path.parse().unwrap()))));
        }
        broker
    });
    let sizes = block_on(join_all((0..50u64).map(|n| remote.stat(n.to_string()))));
    for (n, meta) in sizes.into_iter().enumerate() {
        assert_eq!(meta.unwrap().size, n as u64);
    }
    assert_eq!(client.in_flight(), 0);
    drop(server.join().unwrap());
}

#[test]
fn what_a_request_keeps_outlives_its_future() {
    let (client, remote, mut broker) = pair();
    let owner = Arc::new(());
    let dest = Slice { offset: 0, len: 1 };
    let mut read = Box::pin(remote.read("a", None, 0, dest, Arc::clone(&owner)));
    assert!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let (id, _) = broker.request();
    drop(read);
    assert_eq!(Arc::strong_count(&owner), 2, "the broker still writes into the slice");
    broker.done(id, Ok(Reply::Unit));
    block_on(async {
        // A round trip: the reader has handled the reply before this one.
        let stat = remote.stat("b");
        let server = std::thread::spawn(move || {
            let (id, _) = broker.request();
            broker.done(id, Ok(Reply::Meta(file(0))));
            broker
        });
        stat.await.unwrap();
        drop(server.join().unwrap());
    });
    assert_eq!(Arc::strong_count(&owner), 1);
    assert_eq!(client.in_flight(), 0);
}

#[test]
fn replies_of_the_wrong_kind_or_with_foul_names_are_protocol_errors() {
    let (_, remote, mut broker) = pair();
    let foul = ListEntry { name: "../x".into(), meta: file(1) };
    let replies = [
        Reply::Unit,
        Reply::Entries { entries: vec![foul], cursor: None, after: None },
        Reply::Entries {
            entries: vec![ListEntry { name: "x".into(), meta: file(u64::MAX) }],
            cursor: None,
            after: None,
        },
    ];
    let count = replies.len();
    let server = std::thread::spawn(move || {
        // Nobody asked for this one; it is ignored.
        broker.done(999, Ok(Reply::Unit));
        for reply in replies {
            let (id, _) = broker.request();
            broker.done(id, Ok(reply));
        }
        broker
    });
    for _ in 0..count {
        let error = block_on(remote.list("", 0)).unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Protocol);
    }
    drop(server.join().unwrap());
}

#[test]
fn a_broker_that_goes_answers_everything() {
    let (_, remote, mut broker) = pair();
    let owner = Arc::new(());
    let wakes = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&wakes));
    let dest = Slice { offset: 0, len: 1 };
    let mut read = Box::pin(remote.read("a", None, 0, dest, Arc::clone(&owner)));
    assert!(read.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let _ = broker.request();
    drop(broker);
    assert_eq!(block_on(read).unwrap_err().kind, StoreErrorKind::Unavailable);
    // Whoever answered may still be about to let go.
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while Arc::strong_count(&owner) > 1 && std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(Arc::strong_count(&owner), 1);
    assert_eq!(block_on(remote.stat("b")).unwrap_err().kind, StoreErrorKind::Unavailable);
}

#[test]
fn garbage_ends_the_connection() {
    let (_, remote, mut broker) = pair();
    let server = std::thread::spawn(move || {
        let _ = broker.request();
        broker.0.write_all(&[2, 0, 0, 0, 0xee, 0xee]).unwrap();
        broker
    });
    assert_eq!(block_on(remote.stat("a")).unwrap_err().kind, StoreErrorKind::Protocol);
    assert_eq!(block_on(remote.stat("b")).unwrap_err().kind, StoreErrorKind::Protocol);
    drop(server.join().unwrap());
}

#[test]
fn a_silent_broker_is_given_up_but_its_slices_are_kept() {
    let grace = GRACE + Duration::from_secs(3);
    let (client, remote, mut broker) = pair_with(Duration::from_millis(10), |_| 0);
    let owner = Arc::new(());
    let start = Instant::now();
    let dest = Slice { offset: 0, len: 1 };
    let result = block_on(remote.read("a", None, 0, dest, Arc::clone(&owner)));
    assert_eq!(result.unwrap_err().kind, StoreErrorKind::Unavailable);
    assert!(start.elapsed() < grace, "{:?}", start.elapsed());
    assert_eq!((Arc::strong_count(&owner), client.in_flight()), (2, 1));
    let (id, _) = broker.request();
    broker.done(id, Ok(Reply::Unit));
    while client.in_flight() != 0 {
        std::thread::yield_now();
    }
    assert_eq!(Arc::strong_count(&owner), 1);
}

#[test]
fn more_than_the_bound_wait_for_room() {
    let (_, remote, mut broker) = pair();
    let total = IN_FLIGHT_MAX + 100;
    let server = std::thread::spawn(move || {
        let first: Vec<_> = (0..IN_FLIGHT_MAX).map(|_| broker.request().0).collect();
        for id in first {
            broker.done(id, Ok(Reply::Meta(file(1))));
        }
        for _ in IN_FLIGHT_MAX..total {
            let (id, _) = broker.request();
            broker.done(id, Ok(Reply::Meta(file(1))));
        }
        broker
    });
    let results = block_on(join_all((0..total).map(|n| remote.stat(n.to_string()))));
    assert!(results.iter().all(Result::is_ok));
    drop(server.join().unwrap());
}

#[test]
fn a_flush_runs_and_is_reported() {
    let (client, _, mut broker) = pair_with(Duration::from_secs(60), |left| left.as_millis() as u64 + 1);
    broker.say(&ToDevice::Flush { deadline_ms: 41 });
    assert!(matches!(broker.next(), ToBroker::Flushed { bytes_lost: 42 }));
    client.disconnect();
    assert!(frame::read::<ToBroker>(&mut broker.0, &mut Vec::new()).unwrap().is_none());
}
