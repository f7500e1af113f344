//! The server as a whole, driven by bytes.

mod hostile;
mod probe;
mod session;
mod wire;

use std::sync::Arc;

use super::abi::{InHeader, Opcode};
use super::testing::{Reply, Request, VecReply, VecSource, now};
use super::{Server, ServerOptions};
use crate::fs::{Errno, FileSystem};
use probe::Probe;

/// A server whose file system is a [`Probe`] that wants `wanted`, after an INIT that offers everything.
fn serving(wanted: u64, options: ServerOptions) -> Server<Probe> {
    let server = Server::new(Arc::new(Probe::wanting(wanted)), options);
    assert_eq!(ask(&server, &Request::init(u64::MAX)).error, 0);
    server.fs().calls();
    server
}

fn plain() -> Server<Probe> {
    serving(0, ServerOptions::default())
}

fn serve_bytes<F: FileSystem>(server: &Server<F>, bytes: &[u8], room: usize) -> (VecReply, u32) {
    let buffer = VecReply::new(room);
    let used = now(server.serve(VecSource::new(bytes), buffer.clone()));
    (buffer, used)
}

/// Serves the request, with ample room; there must be a reply.
fn ask<F: FileSystem>(server: &Server<F>, request: &Request) -> Reply {
    let (buffer, used) = serve_bytes(server, &request.bytes(), 1 << 16);
    Reply::parse(&buffer, used, request.header.unique)
}

/// The errno that the request ends in, 0 for none.
fn errno<F: FileSystem>(server: &Server<F>, request: &Request) -> i32 {
    -ask(server, request).error
}

fn assert_errno<F: FileSystem>(server: &Server<F>, request: &Request, expected: Errno) {
    assert_eq!(errno(server, request), expected.raw(), "{request:?} should end in {expected}");
}

/// A well-formed request of the opcode, as a Linux guest would send it.
fn sample(opcode: Opcode) -> Request {
    let request = Request::new(opcode, 1);
    match opcode {
        Opcode::Lookup | Opcode::Unlink | Opcode::Rmdir => request.name("name"),
        Opcode::Removexattr => request.name("user.a"),
        Opcode::Symlink => request.name("name").name("target"),
        Opcode::Mknod | Opcode::Create => request.with([0o100_644u32, 0, 0o22, 0]).name("name"),
        Opcode::Mkdir => request.with([0o755u32, 0o22]).name("name"),
        Opcode::Rename => request.with(3u64).name("old").name("new"),
        Opcode::Rename2 => request.with(3u64).with(1u64).name("old").name("new"),
        Opcode::Link => request.with(3u64).name("name"),
        Opcode::Write => request.with(77u64).with(0u64).with([3u32, 0]).with(0u64).with(0u64).raw("abc"),
        Opcode::Read | Opcode::Readdir | Opcode::Readdirplus => {
            request.with(77u64).with(0u64).with([4096u32, 0]).with(0u64).with(0u64)
        }
        Opcode::Setxattr => request.with([5u32, 0]).name("user.a").raw("value"),
        Opcode::Getxattr => request.with([64u32, 0]).name("user.a"),
        Opcode::Listxattr => request.with([64u32, 0]),
        Opcode::Init => Request::init(u64::MAX),
        Opcode::Setattr => request.raw([0; 88]),
        Opcode::BatchForget => request.with([2u32, 0]).with(5u64).with(1u64).with(6u64).with(2u64),
        Opcode::Fallocate => request.with(77u64).with(0u64).with(10u64).with(0u64),
        Opcode::Readlink | Opcode::Statfs | Opcode::Destroy => request,
        _ => request.raw([0; 56]),
    }
}
