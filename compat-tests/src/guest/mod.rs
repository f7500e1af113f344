//! A guest kernel's FUSE client, without its caches: one method per operation, each a request on a queue.
//!
//! Ordinary requests go round-robin over the request queues, FORGET and INTERRUPT to the high-priority queue, as Linux
//! does. [`Guest::submit`] and [`Guest::wait`] keep many in flight; the typed methods are the two in one.
//!
//! [`path`] holds helpers that walk paths.

mod node;
mod path;

pub use node::SetAttr;

use std::path::Path;

use crate::error::{Answer, Error, Fault};
use crate::frontend::{Config, Frontend};
use crate::fuse::{Body, InHeader, InitReply, InitRequest, op};
use crate::queue::{Queue, Token};

/// A request of any opcode.
#[derive(Clone, Debug, Default)]
pub struct Call<'a> {
    /// Opcode.
    pub opcode: u32,
    /// The inode it is about.
    pub nodeid: u64,
    /// Arguments, each in a descriptor of its own.
    pub args: Vec<&'a [u8]>,
    /// Extensions (security context, groups), padded to eight bytes, appended to the arguments.
    pub extensions: Vec<u8>,
    /// Bytes reserved for the reply's payload; `None` for requests without a reply.
    pub reply: Option<u32>,
}

/// A request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    queue: u32,
    token: Token,
    unique: u64,
}

/// A mounted device.
#[derive(Debug)]
pub struct Guest {
    /// The device below.
    pub frontend: Frontend,
    /// Caller's user id in further requests.
    pub uid: u32,
    /// Caller's group id in further requests.
    pub gid: u32,
    unique: u64,
    next_queue: u32,
    negotiated: u64,
}

impl Guest {
    /// Connects to a daemon and sends INIT with every flag offered.
    ///
    /// # Panics
    /// When that fails: a test cannot go on.
    pub fn mount(socket: &Path) -> Guest {
        let mut guest = Guest::connect(socket, &Config::default()).expect("the device starts");
        guest.init(&InitRequest::default()).expect("INIT succeeds");
        guest
    }

    /// Connects to a daemon without sending INIT.
    pub fn connect(socket: &Path, config: &Config) -> Result<Guest, Error> {
        Ok(Guest::over(Frontend::connect(socket, config)?))
    }

    /// A guest over a running device.
    pub fn over(frontend: Frontend) -> Guest {
        Guest { frontend, uid: 0, gid: 0, unique: 0, next_queue: 0, negotiated: 0 }
    }

    /// INIT flags in use.
    pub fn negotiated(&self) -> u64 {
        self.negotiated
    }

    /// Takes over what another guest had negotiated: after a migration there is no INIT.
    pub fn resume(&mut self, negotiated: u64) {
        self.negotiated = negotiated;
    }

    /// A number for a request that no other request of this guest has.
    pub fn next_unique(&mut self) -> u64 {
        self.unique += 2;
        self.unique
    }

    /// The request queue whose turn it is.
    pub fn next_request_queue(&mut self) -> u32 {
        let request_queues = self.frontend.queues() - 1;
        self.next_queue = (self.next_queue + 1) % request_queues;
        1 + self.next_queue
    }

    /// Submits a request.
    pub fn submit(&mut self, call: &Call) -> Result<Ticket, Error> {
        let hiprio = matches!(call.opcode, op::FORGET | op::BATCH_FORGET | op::INTERRUPT);
        let queue = if hiprio { 0 } else { self.next_request_queue() };
        self.submit_on(queue, call)
    }

    /// Submits a request on a queue of the caller's choice.
    pub fn submit_on(&mut self, queue: u32, call: &Call) -> Result<Ticket, Error> {
        let unique = self.next_unique();
        let (uid, gid) = (self.uid, self.gid);
        submit(self.frontend.queue(queue), call, unique, uid, gid).map(|token| Ticket { queue, token, unique })
    }

    /// Waits for a request and checks its reply: the payload, or the errno.
    pub fn wait(&mut self, ticket: Ticket) -> Answer<Vec<u8>> {
        let done = self.frontend.queue(ticket.queue).wait(ticket.token)?;
        match done.reply(ticket.unique)? {
            (0, payload) => Ok(payload),
            (errno, _) => Err(Fault::Errno(errno)),
        }
    }

    /// Waits for a request that has no reply: its used length must be zero.
    pub fn wait_silent(&mut self, ticket: Ticket) -> Result<(), Error> {
        let done = self.frontend.queue(ticket.queue).wait(ticket.token)?;
        if done.used == 0 {
            return Ok(());
        }
        Err(Error::BadReply(format!("{}: used length {} without a reply", done.what, done.used)))
    }

    /// Submits a request and waits for it.
    pub fn call(&mut self, call: &Call) -> Answer<Vec<u8>> {
        let ticket = self.submit(call)?;
        self.wait(ticket)
    }

    /// A request with one argument and a reply of at most `reply` bytes.
    pub fn simple(&mut self, opcode: u32, nodeid: u64, arg: &[u8], reply: u32) -> Answer<Vec<u8>> {
        self.call(&Call { opcode, nodeid, args: vec![arg], reply: Some(reply), ..Call::default() })
    }

    /// A request whose reply must be empty.
    pub(crate) fn plain(&mut self, opcode: u32, nodeid: u64, arg: &[u8]) -> Answer<()> {
        let payload = self.simple(opcode, nodeid, arg, 0)?;
        debug_assert!(payload.is_empty());
        Ok(())
    }

    /// INIT.
    pub fn init(&mut self, request: &InitRequest) -> Answer<InitReply> {
        let payload = self.simple(op::INIT, 0, &request.encode(), 64)?;
        let reply = InitReply::read(&payload)?;
        self.negotiated = reply.flags & request.flags;
        Ok(reply)
    }

    /// DESTROY; virtiofsd does not reply to it, which is allowed.
    pub fn destroy(&mut self) -> Result<(), Error> {
        let call = Call { opcode: op::DESTROY, reply: Some(0), ..Call::default() };
        let ticket = self.submit(&call)?;
        self.frontend.queue(ticket.queue).wait(ticket.token).map(drop)
    }

    /// FORGET of `count` references.
    pub fn forget(&mut self, nodeid: u64, count: u64) -> Result<(), Error> {
        let arg = Body::new().u64s(&[count]).0;
        let ticket = self.submit(&Call { opcode: op::FORGET, nodeid, args: vec![&arg], ..Call::default() })?;
        self.wait_silent(ticket)
    }

    /// BATCH_FORGET of (nodeid, count) pairs.
    pub fn batch_forget(&mut self, items: &[(u64, u64)]) -> Result<(), Error> {
        let arg = items.iter().fold(Body::new().u32s(&[items.len() as u32, 0]), |b, &(id, n)| b.u64s(&[id, n])).0;
        let ticket = self.submit(&Call { opcode: op::BATCH_FORGET, args: vec![&arg], ..Call::default() })?;
        self.wait_silent(ticket)
    }

    /// INTERRUPT of another request.
    pub fn interrupt(&mut self, unique: u64) -> Result<(), Error> {
        let arg = Body::new().u64s(&[unique]).0;
        let ticket = self.submit(&Call { opcode: op::INTERRUPT, args: vec![&arg], ..Call::default() })?;
        self.wait_silent(ticket)
    }
}

/// Submits a request on a queue that may live on another thread than its guest.
pub fn submit(queue: &mut Queue, call: &Call, unique: u64, uid: u32, gid: u32) -> Result<Token, Error> {
    let args_len: usize = call.args.iter().map(|arg| arg.len()).sum();
    let header = InHeader {
        len: (40 + args_len + call.extensions.len()) as u32,
        opcode: call.opcode,
        unique,
        nodeid: call.nodeid,
        uid,
        gid,
        pid: std::process::id(),
        total_extlen: (call.extensions.len() / 8) as u16,
    };
    let header = header.encode();
    let mut parts: Vec<&[u8]> = vec![&header];
    parts.extend(&call.args);
    parts.push(&call.extensions);
    let what = format!("opcode {} on node {}", call.opcode, call.nodeid);
    queue.submit(&what, &parts, call.reply.map_or(0, |len| 16 + len))
}

/// The extension that carries one security attribute for a new inode.
pub fn security_extension(name: &[u8], value: &[u8]) -> Vec<u8> {
    let context = Body::new().u32s(&[value.len() as u32, 0]).name(name).bytes(value).pad8().0;
    Body::new().u32s(&[8 + context.len() as u32, 1]).bytes(&context).0
}

/// The extension that carries supplementary groups for a new inode.
pub fn group_extension(groups: &[u32]) -> Vec<u8> {
    let body = Body::new().u32s(&[groups.len() as u32]).u32s(groups).0;
    let len = (8 + body.len()).next_multiple_of(8) as u32;
    Body::new().u32s(&[len, 32]).bytes(&body).pad8().0
}
