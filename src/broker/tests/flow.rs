//! Objects that are sent piece by piece: right in any order, conditional, and nothing of a failed one stays.

use futures::future::join_all;

use super::faults::{Fault, Proxy};
use super::s3::{Server, moto, url_at};
use super::*;

const PIECE: usize = 6 << 20;

fn bed() -> (Server, Proxy, Bed) {
    let server = moto();
    let proxy = Proxy::new(&server);
    let bed = Bed::with_timeout(&url_at(proxy.port, ""), Duration::from_secs(20));
    (server, proxy, bed)
}

fn base(path: &str, meta: &Meta) -> Base {
    Base { path: path.into(), version: meta.version() }
}

/// Two slices with the bytes.
fn slices(bed: &Bed, bytes: &[u8]) -> Vec<Slice> {
    let (head, tail) = bytes.split_at(bytes.len() / 3);
    let data = [head, tail].map(|part| bed.data(part));
    data.iter().map(|segment| if let Segment::Data(slice) = segment { *slice } else { unreachable!() }).collect()
}

/// Begins, sends all of `bytes`, the last piece first, and ends.
fn send(bed: &Bed, path: &str, from: Option<Base>, when: Condition, bytes: &[u8]) -> Result<Meta, StoreError> {
    block_on(async {
        bed.remote.flow_begin(7, path, from, when, None).await?;
        let pieces: Vec<&[u8]> = bytes.chunks(PIECE).collect();
        let sends = pieces.iter().enumerate().rev().map(|(n, piece)| {
            let data = slices(bed, piece);
            bed.remote.flow_send(7, n as u32, data, ())
        });
        let (ended, sent) =
            futures::join!(bed.remote.flow_end(7, pieces.len() as u32), join_all(sends.collect::<Vec<_>>()));
        if ended.is_ok() {
            assert!(sent.iter().all(Result::is_ok), "{sent:?}");
        }
        ended
    })
}

#[test]
fn pieces_make_an_object_whatever_their_order() {
    let (_server, proxy, bed) = bed();
    assert!(block_on(bed.remote.probe()).unwrap().flows.is_some());
    let bytes = noise(3 * PIECE + 1000, 1);
    let made = send(&bed, "k", None, Condition::Any, &bytes).unwrap();
    assert_eq!(made.version(), bed.stat("k").unwrap().version());
    assert!(bed.get("k") == bytes);
    assert_eq!(proxy.count("PUT /bucket/k?partNumber"), 4, "{:?}", proxy.heads());
    assert_eq!((proxy.count("POST /bucket/k?uploads"), proxy.count("POST /bucket/k?uploadId")), (1, 1));
    // One piece is an object, too.
    let short = send(&bed, "k", None, Condition::Any, b"short").unwrap();
    assert_eq!((short.size, bed.get("k").as_slice()), (5, &b"short"[..]));
}

#[test]
fn a_long_object_is_gone_on_from_if_it_is_still_the_same() {
    let (_server, proxy, bed) = bed();
    let mut bytes = noise(17 << 20, 2);
    let old = bed.put("k", &bytes);
    let more = noise(PIECE + 5, 3);
    proxy.forget();
    let made = send(&bed, "k", Some(base("k", &old)), Condition::IfVersion(old.version()), &more).unwrap();
    bytes.extend_from_slice(&more);
    assert_eq!(made.size, bytes.len() as u64);
    assert!(bed.get("k") == bytes);
    // Somebody else was faster: theirs stays, ours is given up.
    let theirs = bed.put("k", b"theirs");
    proxy.forget();
    let refused = send(&bed, "k", Some(base("k", &made)), Condition::IfVersion(made.version()), &more).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::VersionMismatch, "{refused}");
    let short = block_on(bed.remote.flow_begin(8, "k", Some(base("k", &theirs)), Condition::Any, None)).unwrap_err();
    assert_eq!(short.kind, StoreErrorKind::Protocol, "{short}");
    assert_eq!(bed.get("k"), b"theirs");
}

#[test]
fn somebody_elses_change_during_the_pieces_is_no_loss_of_theirs() {
    let (_server, proxy, bed) = bed();
    let old = bed.put("k", &noise(16 << 20, 4));
    let from = Some(base("k", &old));
    block_on(bed.remote.flow_begin(1, "k", from, Condition::IfVersion(old.version()), None)).unwrap();
    let piece = noise(PIECE, 5);
    let first = bed.remote.flow_send(1, 0, slices(&bed, &piece), ());
    bed.put("k", b"theirs");
    let (first, ended) = block_on(async { futures::join!(first, bed.remote.flow_end(1, 1)) });
    let refused = ended.unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::VersionMismatch, "{refused}");
    drop(first);
    assert_eq!(bed.get("k"), b"theirs");
    assert_eq!(proxy.count("DELETE /bucket/k?uploadId="), 1, "its parts must be given back");
}

#[test]
fn what_is_given_up_leaves_nothing() {
    let (_server, proxy, bed) = bed();
    let begin_and_send = |number: u64| {
        let (first, second) = (noise(PIECE, 6), noise(PIECE, 7));
        block_on(bed.remote.flow_begin(number, "k", None, Condition::Any, None)).unwrap();
        let (first, second) = (slices(&bed, &first), slices(&bed, &second));
        block_on(async {
            let first = bed.remote.flow_send(number, 0, first, ());
            // The writer holds on to the last piece: it may be the only one.
            let second = bed.remote.flow_send(number, 1, second, ());
            let both = futures::future::select(Box::pin(first), Box::pin(second));
            assert!(both.await.factor_first().0.is_ok());
        });
    };
    begin_and_send(1);
    block_on(bed.remote.flow_abort(1)).unwrap();
    assert_eq!(proxy.count("DELETE /bucket/k?uploadId="), 1);
    assert_eq!(block_on(bed.remote.flow_end(1, 2)).unwrap_err().kind, StoreErrorKind::Protocol);
    // A number that is used again takes the place of what it was.
    begin_and_send(2);
    block_on(bed.remote.flow_begin(2, "k", None, Condition::Any, None)).unwrap();
    assert_eq!(proxy.count("DELETE /bucket/k?uploadId="), 2);
    // The device goes away in the midst of it.
    begin_and_send(3);
    drop(bed);
    assert_eq!(proxy.count("DELETE /bucket/k?uploadId="), 3);
    assert_eq!(proxy.count("POST /bucket/k?uploadId="), 0);
}

#[test]
fn a_store_that_is_away_for_a_moment_loses_nothing() {
    let (_server, proxy, bed) = bed();
    let bytes = noise(3 * PIECE, 8);
    let mut left = 5;
    proxy.rule(move |line| {
        let hit = left > 0 && line.starts_with("PUT ") && line.contains("partNumber=1&");
        left -= i32::from(hit);
        hit.then_some(Fault::Refuse)
    });
    let made = send(&bed, "k", None, Condition::Any, &bytes).unwrap();
    assert_eq!(made.size, bytes.len() as u64);
    assert!(bed.get("k") == bytes);
    assert!(proxy.count("partNumber=1&") > 5);
    proxy.once(&["POST ", "uploadId="], Fault::LoseAnswer);
    let again = send(&bed, "k", None, Condition::Any, &bytes[..2 * PIECE]).unwrap();
    assert_eq!(again.version(), bed.stat("k").unwrap().version());
}

#[test]
fn there_is_a_bound_for_how_many_are_sent_at_once() {
    let (_server, _proxy, bed) = bed();
    for number in 0..FLOWS_MAX as u64 {
        block_on(bed.remote.flow_begin(number, "k", None, Condition::Any, None)).unwrap();
    }
    let refused = block_on(bed.remote.flow_begin(FLOWS_MAX as u64, "k", None, Condition::Any, None)).unwrap_err();
    assert_eq!(refused.kind, StoreErrorKind::Unavailable, "{refused}");
    let beyond = Slice { offset: POOL as u64, len: 1 };
    for data in [vec![], vec![beyond], vec![Slice { offset: 0, len: 0 }]] {
        assert_eq!(block_on(bed.remote.flow_send(0, 0, data, ())).unwrap_err().kind, StoreErrorKind::Protocol);
    }
    let number = FLOW_PIECES_MAX;
    let piece = vec![Slice { offset: 0, len: 1 }];
    assert_eq!(block_on(bed.remote.flow_send(0, number, piece, ())).unwrap_err().kind, StoreErrorKind::Protocol);
}
