//! INIT, DESTROY, migration, `--readonly`.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use super::super::abi::{InitIn, InitOut};
use super::super::flags::init;
use super::*;
use crate::fs::Migrate;

fn fresh() -> Server<Probe> {
    Server::new(Arc::new(Probe::default()), ServerOptions::default())
}

#[test]
fn nothing_but_init_works_before_init_and_after_destroy() {
    let server = fresh();
    let check = |server: &Server<Probe>| {
        for opcode in Opcode::ALL {
            if *opcode == Opcode::Init || opcode.is_without_reply() {
                continue;
            }
            let expected = if opcode.is_unsupported() { Errno::ENOSYS } else { Errno::EBADF };
            assert_errno(server, &sample(*opcode), expected);
        }
        serve_bytes(server, &sample(Opcode::BatchForget).bytes(), 0);
        assert!(server.fs().calls().is_empty());
    };
    check(&server);
    assert_eq!(ask(&server, &Request::init(u64::MAX)).error, 0);
    serve_bytes(&server, &Request::new(Opcode::Destroy, 0).bytes(), 0);
    server.fs().calls();
    check(&server);
    assert_eq!(ask(&server, &Request::init(u64::MAX)).error, 0);
    now(server.reset());
    assert_eq!(server.fs().calls().last().unwrap(), "destroy");
    check(&server);
}

#[test]
fn init_answers_a_subset_of_what_is_offered() {
    let wanted = init::DO_READDIRPLUS | init::READDIRPLUS_AUTO;
    for (offered, expected) in [
        (u64::MAX, 0x104_4844_f829),
        (init::ASYNC_READ | init::DO_READDIRPLUS, init::ASYNC_READ | init::DO_READDIRPLUS),
        // The upper half counts only with INIT_EXT.
        (!init::INIT_EXT, 0x0844_f829 & !init::INIT_EXT),
        (0, 0),
    ] {
        let server = Server::new(Arc::new(Probe::wanting(wanted)), ServerOptions::default());
        assert_eq!(ask(&server, &Request::init(offered)).init_flags(), expected, "{offered:#x}");
    }
}

#[test]
fn init_tolerates_the_short_structure_and_refuses_less() {
    let server = fresh();
    let short = |flags| InitIn { major: 7, minor: 38, max_readahead: 5, flags };
    let reply = ask(&server, &Request::new(Opcode::Init, 0).with(short(u32::MAX)));
    assert_eq!((reply.error, reply.data.len(), reply.init_flags() >> 32), (0, 64, 0));
    assert_eq!(reply.at::<InitOut>(0).max_readahead, 5);
    assert_errno(&server, &Request::new(Opcode::Init, 0).with([7u32, 38, 5]), Errno::EINVAL);
}

#[test]
fn versions_are_virtiofsds() {
    let server = fresh();
    let init = |major, minor| Request::new(Opcode::Init, 0).with(InitIn { major, minor, ..InitIn::default() });
    assert_errno(&server, &init(7, 26), Errno::EPROTO);
    assert_errno(&server, &init(6, 40), Errno::EPROTO);
    let bare = ask(&server, &init(8, 0));
    assert_eq!(bare.at::<InitOut>(0), InitOut { major: 7, minor: 38, ..InitOut::default() });
    assert!(server.fs().calls().is_empty());
    assert_eq!(errno(&server, &init(7, 27)), 0);
}

#[test]
fn init_that_fails_leaves_no_session_and_a_second_one_begins_anew() {
    let server = fresh();
    *server.fs().error.lock().unwrap() = Some(Errno::EPROTO);
    assert_errno(&server, &Request::init(u64::MAX), Errno::EPROTO);
    assert_errno(&server, &sample(Opcode::Lookup), Errno::EBADF);
    *server.fs().error.lock().unwrap() = None;
    assert_eq!(ask(&server, &Request::init(u64::MAX)).error, 0);
    assert_eq!(ask(&server, &Request::init(init::ASYNC_READ)).init_flags(), init::ASYNC_READ);
    assert_eq!(errno(&server, &sample(Opcode::Lookup)), 0);
}

/// Polls until done; `is_slow` file systems wait once.
fn twice<T>(future: impl Future<Output = T> + Send) -> T {
    let mut future = pin!(future);
    let mut task = Context::from_waker(Waker::noop());
    assert!(future.as_mut().poll(&mut task).is_pending());
    match future.poll(&mut task) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the future waits twice"),
    }
}

#[test]
fn requests_may_wait_and_their_futures_are_small() {
    let server = plain();
    server.fs().is_slow.store(true, Ordering::Relaxed);
    for opcode in Opcode::ALL {
        if opcode.is_without_reply() || opcode.is_unsupported() {
            continue;
        }
        let buffer = VecReply::new(1 << 16);
        let future = server.serve(VecSource::new(sample(*opcode).bytes()), buffer.clone());
        assert!(size_of_val(&future) < 2048, "{} bytes", size_of_val(&future));
        let used = twice(future);
        assert_eq!(Reply::parse(&buffer, used, 0x5eed).error, 0, "{opcode:?}");
    }
}

#[test]
fn an_init_under_way_shuts_everything_else_out() {
    let server = fresh();
    server.fs().is_slow.store(true, Ordering::Relaxed);
    let buffer = VecReply::new(4096);
    {
        let mut init = pin!(server.serve(VecSource::new(Request::init(0).bytes()), buffer.clone()));
        assert!(init.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_errno(&server, &Request::init(0), Errno::EAGAIN);
        assert_errno(&server, &sample(Opcode::Lookup), Errno::EBADF);
    }
    server.fs().is_slow.store(false, Ordering::Relaxed);
    assert_eq!(ask(&server, &Request::init(0)).error, 0, "an INIT that was dropped bars nothing");
}

impl Migrate for Probe {
    fn prepare_save(&self, _cancel: &Arc<AtomicBool>) {}
    fn save(&self, _pipe: std::fs::File) -> std::io::Result<()> {
        Ok(())
    }
    fn load(&self, _pipe: std::fs::File) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_migrated_session_understands_both_forms() {
    let server = fresh();
    server.load(tempfile::tempfile().unwrap()).unwrap();
    assert_eq!(errno(&server, &sample(Opcode::Lookup)), 0);
    server.fs().calls();
    for extra in [0u32, 1] {
        let long = Request::new(Opcode::Setxattr, 9).with([1u32, 2, extra, 0]).name("user.a").raw("v");
        assert_eq!(errno(&server, &long), 0);
        assert_eq!(server.fs().calls(), [format!("setxattr 9 user.a=v 2 {extra}")]);
    }
    let short = Request::new(Opcode::Setxattr, 9).with([1u32, 2]).name("user.a").raw("v");
    assert_eq!(errno(&server, &short), 0);
    assert_eq!(server.fs().calls(), ["setxattr 9 user.a=v 2 0"]);

    let mkdir = Request::new(Opcode::Mkdir, 9).with([0u32, 0]).name("d");
    assert_eq!(errno(&server, &mkdir.clone().with([8u32, 0]).with([16u32, 32]).with([1u32, 7])), 0);
    assert_eq!(errno(&server, &mkdir), 0);
    assert_eq!(
        server.fs().calls(),
        [
            "mkdir 9 d 0 0 Extensions { security: None, groups: [7] }",
            "mkdir 9 d 0 0 Extensions { security: None, groups: [] }"
        ]
    );
}

#[test]
fn readonly_lets_nothing_through_that_writes() {
    let server = serving(0, ServerOptions { readonly: true });
    let refused = [
        Opcode::Setattr,
        Opcode::Symlink,
        Opcode::Mknod,
        Opcode::Mkdir,
        Opcode::Unlink,
        Opcode::Rmdir,
        Opcode::Rename,
        Opcode::Rename2,
        Opcode::Link,
        Opcode::Write,
        Opcode::Setxattr,
        Opcode::Removexattr,
        Opcode::Fallocate,
        Opcode::CopyFileRange,
    ];
    for opcode in refused {
        assert_errno(&server, &sample(opcode), Errno::EROFS);
    }
    let open = |flags: i32| Request::new(Opcode::Open, 9).with([flags.cast_unsigned(), 0]);
    for (flags, expected) in [
        (libc::O_WRONLY, Errno::EROFS),
        (libc::O_RDWR, Errno::EROFS),
        (libc::O_WRONLY | libc::O_TRUNC, Errno::EROFS),
        (libc::O_EXCL, Errno::EROFS),
        (libc::O_TRUNC, Errno::EINVAL),
        (libc::O_TMPFILE, Errno::EINVAL),
    ] {
        assert_errno(&server, &open(flags), expected);
    }
    let access = |mask| Request::new(Opcode::Access, 9).with([mask, 0u32]);
    assert_errno(&server, &access(2), Errno::EROFS);
    assert!(server.fs().calls().is_empty());

    for request in [open(0), open(libc::O_DIRECTORY), access(5), sample(Opcode::Fsync), sample(Opcode::Syncfs)] {
        assert_eq!(errno(&server, &request), 0, "{request:?}");
    }
    for opcode in [Opcode::Lookup, Opcode::Read, Opcode::Statfs, Opcode::Getxattr, Opcode::Opendir, Opcode::Flush] {
        assert_eq!(errno(&server, &sample(opcode)), 0, "{opcode:?}");
    }
}

#[test]
fn readonly_create_opens_what_is_there() {
    let server = serving(0, ServerOptions { readonly: true });
    let create = |flags: i32| Request::new(Opcode::Create, 9).with([flags.cast_unsigned(), 0o644, 0, 0]).name("f");
    assert_eq!(errno(&server, &create(libc::O_CREAT)), 0);
    assert_eq!(server.fs().calls(), ["lookup 9 f", "open 42 0o0 false"]);
    assert_errno(&server, &create(libc::O_CREAT | libc::O_WRONLY), Errno::EROFS);
    assert_errno(&server, &create(libc::O_CREAT | libc::O_EXCL), Errno::EROFS);
    assert_errno(&server, &create(libc::O_TRUNC), Errno::EINVAL);
    assert_eq!(server.fs().calls(), ["lookup 9 f", "forget 42 1"].repeat(3));
    *server.fs().error.lock().unwrap() = Some(Errno::ENOENT);
    assert_errno(&server, &create(libc::O_CREAT), Errno::EROFS);
}
