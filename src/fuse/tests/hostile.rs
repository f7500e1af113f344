//! Bytes that no guest kernel sends: the "want" column of the probe table, then anything at all.

use proptest::prelude::*;

use super::super::abi::{Field, SetattrIn};
use super::super::flags::{init, setattr};
use super::*;

/// Opcodes that take a name, and a request of each with `name` in its last or only place.
fn named(name: &[u8]) -> Vec<Request> {
    let request = |opcode| Request::new(opcode, 1);
    vec![
        request(Opcode::Lookup).raw(name),
        request(Opcode::Unlink).raw(name),
        request(Opcode::Rmdir).raw(name),
        request(Opcode::Mkdir).with(0u64).raw(name),
        request(Opcode::Mknod).with([0u32; 4]).raw(name),
        request(Opcode::Create).with([0u32; 4]).raw(name),
        request(Opcode::Link).with(1u64).raw(name),
        request(Opcode::Rename).with(1u64).name("ok").raw(name),
        request(Opcode::Rename).with(1u64).raw(name).name("ok"),
        request(Opcode::Rename2).with(1u64).with(0u64).name("ok").raw(name),
        request(Opcode::Symlink).raw(name).name("target"),
    ]
}

#[test]
fn names_that_lead_elsewhere_reach_no_file_system() {
    let server = plain();
    for name in [&b".\0"[..], b"..\0", b"\0", b"/\0", b"a/b\0", b"dir/..\0", b"/etc/passwd\0", b"../evil\0"] {
        for request in named(name) {
            assert_errno(&server, &request, Errno::EINVAL);
        }
    }
    for request in named(b"a\0b\0") {
        let opcode = Opcode::from_number(request.header.opcode).unwrap();
        if opcode != Opcode::Symlink {
            assert_errno(&server, &request, Errno::EINVAL);
        }
    }
    for request in named(&[&[b'n'; 256][..], b"\0"].concat()) {
        assert_errno(&server, &request, Errno::ENAMETOOLONG);
    }
    for request in [
        Request::new(Opcode::Lookup, 1).raw("no nul"),
        Request::new(Opcode::Lookup, 1),
        Request::new(Opcode::Mkdir, 1).with(0u64).raw("no nul"),
        Request::new(Opcode::Rename, 1).with(1u64).name("only one"),
        Request::new(Opcode::Symlink, 1).name("only one"),
        Request::new(Opcode::Setxattr, 1).with([1u32, 0]).raw("no nul"),
        Request::new(Opcode::Getxattr, 1).with([0u32, 0]).name("a\0b"),
    ] {
        assert_errno(&server, &request, Errno::EINVAL);
    }
    assert!(server.fs().calls().is_empty());
    for request in named(&[&[b'n'; 255][..], b"\0"].concat()) {
        assert_eq!(errno(&server, &request), 0);
    }
    assert_eq!(errno(&server, &Request::new(Opcode::Lookup, 1).name(b"\xff\xfe")), 0);
}

#[test]
fn numbers_out_of_range_reach_no_file_system() {
    let server = plain();
    let read = |offset: u64, size: u32| {
        Request::new(Opcode::Read, 9).with(77u64).with(offset).with([size, 0]).with(0u64).with(0u64)
    };
    let write = |offset: u64, size: u32| {
        Request::new(Opcode::Write, 9).with(77u64).with(offset).with([size, 0]).with(0u64).with(0u64).raw("abc")
    };
    let seek = |offset: u64, whence: u32| Request::new(Opcode::Lseek, 9).with(77u64).with(offset).with([whence, 0]);
    let fallocate =
        |offset: u64, len: u64| Request::new(Opcode::Fallocate, 9).with(77u64).with(offset).with(len).with(0u64);
    let copy = |from: u64, to: u64, flags: u64| {
        [77, from, 5, 78, to, 4096, flags].into_iter().fold(Request::new(Opcode::CopyFileRange, 9), |r, v| r.with(v))
    };
    let change = |wire: SetattrIn| Request::new(Opcode::Setattr, 9).with(wire);
    let (top, half) = (u64::MAX, 1u64 << 63);
    let expected = [
        (read(half, 1), Errno::EINVAL),
        (read(top, 1), Errno::EINVAL),
        (read(half - 1, 1), Errno::EINVAL),
        (write(half, 3), Errno::EINVAL),
        (write(half - 1, 3), Errno::EINVAL),
        (write(0, 4), Errno::EINVAL),
        (write(0, u32::MAX), Errno::EINVAL),
        (seek(half, 0), Errno::EINVAL),
        (seek(top, 3), Errno::ENXIO),
        (seek(0, 5), Errno::EINVAL),
        (seek(0, u32::MAX), Errno::EINVAL),
        (fallocate(half, 1), Errno::EINVAL),
        (fallocate(0, top), Errno::EINVAL),
        (fallocate(0, 0), Errno::EINVAL),
        (fallocate(half - 1, 1), Errno::EFBIG),
        (copy(half, 0, 0), Errno::EINVAL),
        (copy(0, top, 0), Errno::EINVAL),
        (copy(half - 1, 0, 0), Errno::EOVERFLOW),
        (copy(0, 0, 1), Errno::EINVAL),
        (change(SetattrIn { valid: setattr::SIZE, size: half, ..SetattrIn::default() }), Errno::EINVAL),
        (change(SetattrIn { valid: setattr::MTIME, mtimensec: 0x3fff_fffe, ..SetattrIn::default() }), Errno::EINVAL),
        (change(SetattrIn { valid: setattr::ATIME, atimensec: u32::MAX, ..SetattrIn::default() }), Errno::EINVAL),
        (Request::new(Opcode::Setxattr, 9).with([1u32 << 20, 0]).name("user.a").raw("xy"), Errno::EINVAL),
    ];
    for (request, errno) in expected {
        assert_errno(&server, &request, errno);
    }
    assert!(server.fs().calls().is_empty(), "{:?}", server.fs().calls());
    assert_eq!(errno(&server, &read(half - 4097, 4096)), 0);
}

#[test]
fn headers_that_lie_or_end_early() {
    let server = plain();
    let good = sample(Opcode::Getattr).bytes();
    let with_len = |len: u32| [&len.to_ne_bytes()[..], &good[4..]].concat();
    let errno_of = |bytes: &[u8]| {
        let (buffer, used) = serve_bytes(&server, bytes, 4096);
        (used > 0).then(|| -Reply::parse(&buffer, used, 0x5eed).error)
    };
    for len in [0, 39, good.len() as u32 + 1, (1 << 20) + 4096] {
        assert_eq!(errno_of(&with_len(len)), Some(libc::EINVAL), "{len}");
    }
    for len in [(1 << 20) + 4097, u32::MAX] {
        assert_eq!(errno_of(&with_len(len)), Some(libc::ENOMEM), "{len}");
    }
    for cut in 0..good.len() {
        let expected = (cut >= 16).then_some(libc::EINVAL);
        assert_eq!(errno_of(&good[..cut]), expected, "cut at {cut}");
        if cut >= 40 {
            let mut honest = good[..cut].to_vec();
            honest[..4].copy_from_slice(&(cut as u32).to_ne_bytes());
            let expected = if cut < 56 { libc::EINVAL } else { 0 };
            assert_eq!(errno_of(&honest), Some(expected), "honest cut at {cut}");
        }
    }
    assert_eq!(server.fs().calls().len(), good.len() - 56, "only what was honest and whole got through");
    let mut unknown = Request::new(Opcode::Lookup, 1);
    for number in [0, 7, 19, 54, 4096, u32::MAX] {
        unknown.header.opcode = number;
        assert_errno(&server, &unknown, Errno::ENOSYS);
    }
    // Bytes behind the claimed length do not belong to the request.
    let trailing = [sample(Opcode::Lookup).bytes(), b"junk".to_vec()].concat();
    assert_eq!(errno_of(&trailing), Some(0));
}

#[test]
fn a_guest_that_cannot_hear_the_answer_changes_nothing() {
    let server = plain();
    for opcode in Opcode::ALL {
        if opcode.is_without_reply() || opcode.is_unsupported() {
            continue;
        }
        for room in [0, 8, 15] {
            assert_eq!(serve_bytes(&server, &sample(*opcode).bytes(), room).1, 0, "{opcode:?}");
        }
        if matches!(opcode, Opcode::Mkdir | Opcode::Create | Opcode::Write | Opcode::Open | Opcode::Setattr) {
            let (buffer, used) = serve_bytes(&server, &sample(*opcode).bytes(), 16);
            assert_eq!(Reply::parse(&buffer, used, 0x5eed).error, -libc::EINVAL, "{opcode:?}");
        }
    }
    assert!(server.fs().calls().is_empty());
}

#[test]
fn forget_is_bounded_by_what_is_there_and_spares_the_root() {
    let server = plain();
    let batch = |count: u32| Request::new(Opcode::BatchForget, 0).with([count, 0]);
    for request in [
        batch(u32::MAX),
        batch(u32::MAX).with(5u64).with(1u64).with(6u64),
        batch(2).with(1u64).with(u64::MAX).with(7u64).with(u64::MAX),
        Request::new(Opcode::Forget, 1).with(u64::MAX),
        Request::new(Opcode::Forget, 8),
        Request::new(Opcode::BatchForget, 8),
    ] {
        assert_eq!(serve_bytes(&server, &request.bytes(), 4096).1, 0);
    }
    assert_eq!(server.fs().calls(), ["forget 5 1", &format!("forget 7 {}", u64::MAX)]);
}

/// Whatever came in: no reply where there is none, else one whose header agrees with the used length.
fn check_shape<F: FileSystem>(server: &Server<F>, bytes: &[u8], room: usize) {
    let (buffer, used) = serve_bytes(server, bytes, room);
    let header = InHeader::take(&mut &*bytes);
    let opcode = header.and_then(|header| Opcode::from_number(header.opcode));
    let is_silent = bytes.len() < 16 || room < 16 || opcode.is_some_and(Opcode::is_without_reply);
    if used == 0 {
        let may_be_silent = bytes.len() < 40 && bytes.len() >= 8;
        assert!(is_silent || may_be_silent, "{opcode:?} deserves a reply");
    } else {
        assert!(!is_silent, "{opcode:?} has no reply");
        let unique = u64::from_ne_bytes(bytes[8..16].try_into().unwrap());
        Reply::parse(&buffer, used, unique);
    }
}

fn any_opcode() -> impl Strategy<Value = Opcode> {
    prop::sample::select(Opcode::ALL)
}

/// A good request with some of its bytes replaced and its end moved.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let extremes = prop::sample::select(vec![0u64, 1, u64::MAX, 1 << 63, (1 << 63) - 1, u64::from(u32::MAX)]);
    let words = prop::collection::vec((any::<prop::sample::Index>(), extremes), 0..3);
    (any_opcode(), edits, words, prop::option::of(0usize..128), any::<bool>()).prop_map(
        |(opcode, edits, words, cut, is_honest)| {
            let mut request = sample(opcode);
            request.body.extend_from_slice(&[0; 8]);
            for (at, word) in words {
                let start = at.index(request.body.len() - 7);
                request.body[start..start + 8].copy_from_slice(&word.to_ne_bytes());
            }
            let mut bytes = request.bytes();
            for (at, byte) in edits {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.unwrap_or(usize::MAX));
            if is_honest && bytes.len() >= 40 {
                let len = bytes.len() as u32;
                bytes[..4].copy_from_slice(&len.to_ne_bytes());
            }
            bytes
        },
    )
}

fn any_server() -> impl Strategy<Value = Server<Probe>> {
    let wanted = prop::sample::select(vec![0, u64::MAX, init::SECURITY_CTX, init::SETXATTR_EXT]);
    (wanted, any::<bool>()).prop_map(|(wanted, readonly)| serving(wanted, ServerOptions { readonly }))
}

impl std::fmt::Debug for Server<Probe> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Server<Probe>")
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_requests_get_at_most_one_reply(
        server in any_server(),
        requests in prop::collection::vec(mutated(), 1..8),
        room in prop::sample::select(vec![0usize, 15, 16, 17, 40, 160, 4112, 70_000]),
    ) {
        for bytes in requests {
            check_shape(&server, &bytes, room);
        }
    }

    #[test]
    fn random_bytes_get_at_most_one_reply(
        opcode in any_opcode(),
        body in prop::collection::vec(any::<u8>(), 0..300),
        server in any_server(),
    ) {
        check_shape(&server, &body, 4096);
        check_shape(&server, &Request::new(opcode, 1).raw(body).bytes(), 4096);
    }
}
