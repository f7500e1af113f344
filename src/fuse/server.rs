//! One request in, one reply out: the dispatcher, and the only place where an error becomes a reply.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use futures::FutureExt;

use super::ReplyBuffer;
use super::abi::{Field, ForgetOne, InHeader, InitIn, InitOut, Opcode};
use super::body::Body;
use super::decode::{self, Operation};
use super::reply::{self, Answer, DirPacker, Sent};
use super::session::{self, Greeting, Hello, MAX_MESSAGE, MAX_WRITE, Session, Terms};
use crate::fs::flags::{CREATION_FLAGS, refused_readonly};
use crate::fs::{
    Context, Entry, Errno, Extensions, FileSystem, Handle, Migrate, NodeId, Opened, Read, Result, Source, Write,
    XattrReply, readonly,
};
use crate::metrics::Board;
use crate::process::throttle::Throttle;

/// What a server does apart from its file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerOptions {
    /// Refuse everything that would change the file system, with EROFS (`--readonly`).
    pub readonly: bool,
}

/// A FUSE server over one file system. Shared by all queues.
pub struct Server<F> {
    fs: Arc<F>,
    options: ServerOptions,
    session: Session,
    /// Where requests are counted, if they are.
    board: Option<Arc<Board>>,
    malformed: Throttle,
    failing: Throttle,
    unwelcome: Throttle,
}

/// A request whose header holds, and the bytes behind it.
struct Request<S> {
    header: InHeader,
    opcode: Opcode,
    /// Bytes behind the header, as the header counts them; so many are there.
    payload: usize,
    source: S,
}

impl<F: FileSystem> Server<F> {
    /// A server without a session: the guest's first request must be INIT.
    pub fn new(fs: Arc<F>, options: ServerOptions) -> Server<F> {
        let (malformed, failing, unwelcome) = (Throttle::new(), Throttle::new(), Throttle::new());
        Server { fs, options, session: Session::new(), board: None, malformed, failing, unwelcome }
    }

    /// Counts requests on `board`.
    #[must_use]
    pub fn counting(self, board: Arc<Board>) -> Server<F> {
        Server { board: Some(board), ..self }
    }

    /// The file system.
    pub fn fs(&self) -> &Arc<F> {
        &self.fs
    }

    /// Ends the session, as FUSE_DESTROY does; vhost-user RESET_DEVICE.
    pub async fn reset(&self) {
        self.session.end();
        self.fs.destroy().await;
    }

    /// Serves one request. `request` holds the readable bytes of the descriptor chain, `reply` the room for the answer.
    ///
    /// Returns the used length: exactly `fuse_out_header.len`, or 0 when there is no reply, because the protocol has
    /// none for the opcode, because not even a header fits, or because the request is too short to tell its `unique`.
    pub fn serve<S: Source, W: ReplyBuffer>(&self, request: S, reply: W) -> impl Future<Output = u32> + Send {
        let began = self.board.as_ref().map(|board| (board, request.arrived().unwrap_or_else(Instant::now)));
        // No future around the future: what it holds would be there twice.
        self.serve_any(request, reply).map(move |(opcode, sent)| {
            if let Some((board, began)) = began {
                board.record(opcode, sent.failed, began.elapsed());
            }
            sent.len
        })
    }

    /// Serves one request; its opcode's number (0: it has none that we know), and what went out.
    async fn serve_any<S: Source, W: ReplyBuffer>(&self, request: S, reply: W) -> (u32, Sent) {
        let silent = |failed| Sent { len: 0, failed };
        let request = match self.accept(request) {
            Ok(request) => request,
            Err(Refused { unique, errno, opcode }) => {
                let number = opcode.map_or(0, |opcode| opcode as u32);
                return (number, unique.map_or(silent(true), |unique| reply::error(reply, unique, errno)));
            }
        };
        let opcode = request.opcode;
        let sent = if opcode.is_without_reply() {
            self.swallow(request).await;
            silent(false)
        } else if reply.remaining() < reply::HEADER {
            self.malformed.warn(format_args!("Guest left no room for the reply to {opcode:?}"));
            silent(true)
        } else {
            self.answer(request, reply).await
        };
        (opcode as u32, sent)
    }

    /// Reads the header and checks it against the bytes that are there.
    fn accept<S: Source>(&self, mut source: S) -> std::result::Result<Request<S>, Refused> {
        let mut bytes = [0; InHeader::SIZE];
        let have = source.remaining().min(InHeader::SIZE);
        let is_read = bytes.get_mut(..have).is_some_and(|bytes| source.take(bytes).is_ok());
        let header = InHeader::take(&mut bytes.as_slice()).filter(|_| is_read).unwrap_or_default();
        let opcode = Opcode::from_number(header.opcode);
        let has_reply = !opcode.is_some_and(Opcode::is_without_reply);
        // `unique` is the third field: 16 bytes tell it.
        let unique = (has_reply && is_read && have >= reply::HEADER).then_some(header.unique);
        let refuse = |errno| Refused { unique, errno, opcode };

        if header.len > MAX_MESSAGE && have == InHeader::SIZE {
            self.malformed.warn(format_args!("Guest claims a request of {} bytes", header.len));
            return Err(refuse(Errno::ENOMEM));
        }
        let payload = usize::try_from(header.len).ok().and_then(|len| len.checked_sub(InHeader::SIZE));
        let Some(payload) = payload.filter(|payload| have == InHeader::SIZE && *payload <= source.remaining()) else {
            let there = have + source.remaining();
            self.malformed.warn(format_args!("Guest claims a request of {} bytes and sent {there}", header.len));
            return Err(refuse(Errno::EINVAL));
        };
        log::debug!(
            "Received request: opcode={opcode:?} ({}), inode={}, unique={}, pid={}",
            header.opcode,
            header.nodeid,
            header.unique,
            header.pid
        );
        match opcode {
            Some(opcode) if !opcode.is_unsupported() => Ok(Request { header, opcode, payload, source }),
            _ => Err(refuse(Errno::ENOSYS)),
        }
    }

    /// Reads what stands behind the header into a body that [`decode::operation`] can borrow from.
    fn body<S: Source>(&self, request: &mut Request<S>) -> Result<Body> {
        Body::take(&mut request.source, decode::body_len(request.opcode, request.payload))
    }

    fn decode<'a, S>(&self, request: &Request<S>, terms: Terms, body: &'a Body) -> Result<Operation<'a>> {
        let Request { header, opcode, payload, .. } = request;
        let operation = decode::operation(header, *opcode, terms, *payload, body.bytes());
        if let Err(Errno::EINVAL) = operation {
            self.malformed.warn(format_args!("Guest sent a malformed {opcode:?} request, {payload} bytes"));
        }
        operation
    }

    /// Serves what the protocol knows no reply to.
    async fn swallow<S: Source>(&self, mut request: Request<S>) {
        let Some(terms) = self.session.terms() else { return };
        let Ok(body) = self.body(&mut request) else { return };
        match self.decode(&request, terms, &body) {
            Ok(Operation::Forget { nlookup }) => self.forget(NodeId(request.header.nodeid), nlookup),
            Ok(Operation::BatchForget { count }) => self.forget_many(&mut request, count),
            Ok(Operation::Destroy) if self.session.end() => self.fs.destroy().await,
            _ => {}
        }
    }

    /// The root stays: a guest that forgets it would lose everything behind it.
    fn forget(&self, nodeid: NodeId, nlookup: u64) {
        if nodeid != NodeId::ROOT {
            self.fs.forget(nodeid, nlookup);
        }
    }

    /// Goes by the items that are there, not by `count`.
    fn forget_many<S: Source>(&self, request: &mut Request<S>, count: u32) {
        let mut bytes = [0; ForgetOne::SIZE];
        for index in 0..count {
            let is_there = request.source.remaining() >= ForgetOne::SIZE && request.source.take(&mut bytes).is_ok();
            let Some(item) = ForgetOne::take(&mut bytes.as_slice()).filter(|_| is_there) else {
                self.malformed.warn(format_args!("Guest claims {count} items of BATCH_FORGET and sent {index}"));
                return;
            };
            self.forget(NodeId(item.nodeid), item.nlookup);
        }
    }

    async fn answer<S: Source, W: ReplyBuffer>(&self, mut request: Request<S>, reply: W) -> Sent {
        let unique = request.header.unique;
        let terms = match self.session.terms() {
            Some(terms) => terms,
            None if request.opcode == Opcode::Init => Terms::agreed(0),
            None => return reply::error(reply, unique, Errno::EBADF),
        };
        let body = match self.body(&mut request) {
            Ok(body) => body,
            Err(errno) => return reply::error(reply, unique, errno),
        };
        let operation = match self.decode(&request, terms, &body) {
            Ok(operation) => operation,
            Err(errno) => return reply::error(reply, unique, errno),
        };
        if let Some(errno) = self.refusal(&operation, reply.remaining() - reply::HEADER) {
            return reply::error(reply, unique, errno);
        }
        let Request { header, opcode, source, .. } = request;
        let nodeid = NodeId(header.nodeid);
        let ctx = Context { uid: header.uid, gid: header.gid, pid: header.pid, unique };
        match operation {
            Operation::Read(op) => self.read(ctx, op, reply).await,
            Operation::Readdir { handle, offset, size } => {
                self.readdir(ctx, (nodeid, handle, offset, size), false, reply).await
            }
            Operation::Readdirplus { handle, offset, size } => {
                self.readdir(ctx, (nodeid, handle, offset, size), true, reply).await
            }
            Operation::Write(op) => self.finish(opcode, reply, unique, self.write(ctx, op, source).await),
            other => self.finish(opcode, reply, unique, self.ask(ctx, nodeid, other).await),
        }
    }

    /// What must not reach the file system: what `--readonly` forbids, and what could not be answered for want of
    /// room, so that a guest which cannot hear the answer changes nothing.
    fn refusal(&self, operation: &Operation<'_>, room: usize) -> Option<Errno> {
        if self.options.readonly
            && let Some(errno) = refused_operation(operation)
        {
            return Some(errno);
        }
        if room < answer_len(operation) {
            self.malformed.warn(format_args!("Guest left {room} bytes for an answer that needs more"));
            return Some(Errno::EINVAL);
        }
        None
    }

    fn finish<W: ReplyBuffer>(&self, opcode: Opcode, reply: W, unique: u64, result: Result<Answer>) -> Sent {
        match result {
            Ok(answer) => reply::answer(reply, unique, &answer),
            Err(errno) => self.fail(opcode, reply, unique, errno),
        }
    }

    fn fail<W: ReplyBuffer>(&self, opcode: Opcode, reply: W, unique: u64, errno: Errno) -> Sent {
        match errno {
            Errno::EIO | Errno::ETIMEDOUT | Errno::EREMOTEIO => {
                self.failing.warn(format_args!("{opcode:?} failed: {errno}"));
            }
            _ => log::debug!("Replying {errno} to {opcode:?}, unique={unique}"),
        }
        reply::error(reply, unique, errno)
    }

    async fn read<W: ReplyBuffer>(&self, ctx: Context, op: Read, mut reply: W) -> Sent {
        let unique = ctx.unique;
        let op = decode::clamp_read(op, reply.remaining() - reply::HEADER);
        let (op, mut data) = match (op, reply.split_at(reply::HEADER)) {
            (Ok(op), Ok(data)) => (op, data),
            (Err(errno), _) => return reply::error(reply, unique, errno),
            (_, Err(_)) => return reply::error(reply, unique, Errno::EIO),
        };
        let room = data.remaining();
        match self.fs.read(ctx, op, &mut data).await {
            // Only what was put counts: the guest must not take stale bytes of its own for data.
            Ok(count) => reply::data_header(reply, unique, count.min(room - data.remaining())),
            Err(errno) => self.fail(Opcode::Read, reply, unique, errno),
        }
    }

    async fn write<S: Source>(&self, ctx: Context, op: Write, mut source: S) -> Result<Answer> {
        let count = self.fs.write(ctx, op, &mut source).await?;
        Ok(Answer::Count(u32::try_from(count).unwrap_or(op.size).min(op.size)))
    }

    /// READDIR and READDIRPLUS of directory, handle, cookie and size. The cookie is the file system's own number.
    async fn readdir<W: ReplyBuffer>(
        &self,
        ctx: Context,
        (nodeid, handle, offset, size): (NodeId, Handle, u64, u32),
        is_plus: bool,
        mut reply: W,
    ) -> Sent {
        let opcode = if is_plus { Opcode::Readdirplus } else { Opcode::Readdir };
        let size = size.min(MAX_WRITE) as usize;
        if reply.remaining() < size {
            return self.fail(opcode, reply, ctx.unique, Errno::ENOMEM);
        }
        let Ok(room) = reply.split_at(reply::HEADER) else {
            return self.fail(opcode, reply, ctx.unique, Errno::EIO);
        };
        let mut packer = DirPacker::new(room, size);
        let result = if is_plus {
            self.fs.readdirplus(ctx, nodeid, handle, offset, &mut packer).await
        } else {
            self.fs.readdir(ctx, nodeid, handle, offset, &mut packer).await
        };
        match result {
            Ok(()) => reply::data_header(reply, ctx.unique, packer.used()),
            // The entries packed so far have raised lookup counts: the guest must get them. It asks again for the rest.
            Err(_) if is_plus && packer.used() > 0 => reply::data_header(reply, ctx.unique, packer.used()),
            Err(errno) => self.fail(opcode, reply, ctx.unique, errno),
        }
    }

    /// Everything whose answer is a structure or a few bytes.
    async fn ask(&self, ctx: Context, nodeid: NodeId, operation: Operation<'_>) -> Result<Answer> {
        let fs = &*self.fs;
        Ok(match operation {
            Operation::Init(hello) => Answer::Init(self.init(&hello).await?),
            Operation::Lookup { name } => Answer::Entry(fs.lookup(ctx, nodeid, name).await?),
            Operation::Getattr { handle } => {
                let (attr, timeout) = fs.getattr(ctx, nodeid, handle).await?;
                Answer::Attr(attr, timeout)
            }
            Operation::Setattr { change } => {
                let (attr, timeout) = fs.setattr(ctx, nodeid, change).await?;
                Answer::Attr(attr, timeout)
            }
            Operation::Readlink => Answer::Data(fs.readlink(ctx, nodeid).await?),
            Operation::Symlink { name, target, ext } => {
                Answer::Entry(fs.symlink(ctx, nodeid, name, target, ext).await?)
            }
            Operation::Mknod { name, mode, rdev, umask, ext } => {
                Answer::Entry(fs.mknod(ctx, nodeid, name, mode, rdev, umask, ext).await?)
            }
            Operation::Mkdir { name, mode, umask, ext } => {
                Answer::Entry(fs.mkdir(ctx, nodeid, name, mode, umask, ext).await?)
            }
            Operation::Create { name, mode, flags, umask, kill_priv, ext } => {
                let how = Creation { mode, flags, umask, kill_priv };
                let (entry, opened) = self.create(ctx, nodeid, name, how, ext).await?;
                Answer::Created(entry, opened)
            }
            Operation::Link { inode, name } => Answer::Entry(fs.link(ctx, inode, nodeid, name).await?),
            Operation::Open { flags, kill_priv } => {
                Answer::Opened(fs.open(ctx, nodeid, flags & !CREATION_FLAGS, kill_priv).await?)
            }
            Operation::Opendir { flags } => Answer::Opened(fs.opendir(ctx, nodeid, flags & !CREATION_FLAGS).await?),
            Operation::Statfs => Answer::StatFs(fs.statfs(ctx, nodeid).await?),
            Operation::Getxattr { name, size } => xattr(fs.getxattr(ctx, nodeid, name, size).await?),
            Operation::Listxattr { size } => xattr(fs.listxattr(ctx, nodeid, size).await?),
            Operation::Lseek { at, whence } => Answer::Offset(fs.lseek(ctx, at, whence).await?),
            Operation::CopyFileRange { from, to, len, flags } => {
                let count = fs.copy_file_range(ctx, from, to, len, flags).await?;
                Answer::Count(u32::try_from(count).unwrap_or(u32::MAX))
            }
            other => {
                self.act(ctx, nodeid, other).await?;
                Answer::Empty
            }
        })
    }

    /// Everything whose answer is that it is done.
    async fn act(&self, ctx: Context, nodeid: NodeId, operation: Operation<'_>) -> Result<()> {
        let fs = &*self.fs;
        match operation {
            Operation::Unlink { name } => fs.unlink(ctx, nodeid, name).await,
            Operation::Rmdir { name } => fs.rmdir(ctx, nodeid, name).await,
            Operation::Rename { name, new_parent, new_name, flags } => {
                fs.rename(ctx, nodeid, name, new_parent, new_name, flags).await
            }
            Operation::Flush { handle, lock_owner } => fs.flush(ctx, nodeid, handle, lock_owner).await,
            Operation::Fsync { handle, datasync } => fs.fsync(ctx, nodeid, handle, datasync).await,
            Operation::Release { handle, flags, lock_owner, flock_unlock } => {
                fs.release(ctx, nodeid, handle, flags, lock_owner, flock_unlock).await
            }
            Operation::Fsyncdir { handle, datasync } => fs.fsyncdir(ctx, nodeid, handle, datasync).await,
            Operation::Releasedir { handle, flags } => fs.releasedir(ctx, nodeid, handle, flags).await,
            Operation::Setxattr { name, value, flags, extra } => {
                fs.setxattr(ctx, nodeid, name, value, flags, extra).await
            }
            Operation::Removexattr { name } => fs.removexattr(ctx, nodeid, name).await,
            Operation::Access { mask } => fs.access(ctx, nodeid, mask).await,
            Operation::Fallocate { at, length, mode } => fs.fallocate(ctx, at, length, mode).await,
            Operation::Syncfs => fs.syncfs(ctx, nodeid).await,
            _ => Err(Errno::ENOSYS),
        }
    }

    async fn init(&self, hello: &Hello) -> Result<InitOut> {
        let offered = match session::greet(hello) {
            Ok(Greeting::NameVersion(out)) => return Ok(out),
            Ok(Greeting::Negotiate(offered)) => offered,
            Err(errno) => {
                let InitIn { major, minor, .. } = hello.init;
                let text = format_args!("Unsupported fuse protocol version: {major}.{minor}");
                self.unwelcome.log(log::Level::Error, text);
                return Err(errno);
            }
        };
        let starting = self.session.start()?;
        let agreed = session::agree(offered, self.fs.init(offered).await?);
        starting.commit(agreed);
        Ok(session::welcome(hello.init.max_readahead, agreed))
    }

    /// Read-only, CREATE may still open what is there.
    async fn create(
        &self,
        ctx: Context,
        parent: NodeId,
        name: &[u8],
        how: Creation,
        ext: Extensions,
    ) -> Result<(Entry, Opened)> {
        let Creation { mode, flags, umask, kill_priv } = how;
        if !self.options.readonly {
            return self.fs.create(ctx, parent, name, mode, flags, umask, kill_priv, ext).await;
        }
        readonly::create(self.fs.as_ref(), ctx, parent, name, flags, kill_priv).await
    }
}

impl<F: Migrate> Migrate for Server<F> {
    fn prepare_save(&self, cancel: &Arc<AtomicBool>) {
        self.fs.prepare_save(cancel);
    }

    fn save(&self, pipe: File) -> io::Result<()> {
        self.fs.save(pipe)
    }

    /// The guest does not send INIT again: the session goes on, with terms that only its source knew.
    fn load(&self, pipe: File) -> io::Result<()> {
        self.fs.load(pipe)?;
        self.session.assume();
        Ok(())
    }
}

/// A request whose header is no use.
struct Refused {
    /// Whom to tell; `None` when it cannot be known, or is not to be told.
    unique: Option<u64>,
    errno: Errno,
    opcode: Option<Opcode>,
}

/// How CREATE creates.
#[derive(Clone, Copy)]
struct Creation {
    mode: u32,
    flags: u32,
    umask: u32,
    kill_priv: bool,
}

fn xattr(reply: XattrReply) -> Answer {
    match reply {
        XattrReply::Data(data) => Answer::Data(data),
        XattrReply::Size(size) => Answer::XattrSize(size),
    }
}

/// The least room behind the header that an answer needs.
fn answer_len(operation: &Operation<'_>) -> usize {
    use super::abi;
    match operation {
        Operation::Lookup { .. }
        | Operation::Symlink { .. }
        | Operation::Mknod { .. }
        | Operation::Mkdir { .. }
        | Operation::Link { .. } => abi::EntryOut::SIZE,
        Operation::Create { .. } => abi::EntryOut::SIZE + abi::OpenOut::SIZE,
        Operation::Getattr { .. } | Operation::Setattr { .. } => abi::AttrOut::SIZE,
        Operation::Open { .. } | Operation::Opendir { .. } => abi::OpenOut::SIZE,
        Operation::Write(_) | Operation::CopyFileRange { .. } => abi::WriteOut::SIZE,
        Operation::Getxattr { size: 0, .. } | Operation::Listxattr { size: 0 } => abi::GetxattrOut::SIZE,
        Operation::Statfs => abi::Kstatfs::SIZE,
        Operation::Init(_) => InitOut::SIZE,
        Operation::Lseek { .. } => abi::LseekOut::SIZE,
        _ => 0,
    }
}

/// Why a read-only server refuses the operation, if it does. CREATE has its own way.
fn refused_operation(operation: &Operation<'_>) -> Option<Errno> {
    match operation {
        Operation::Setattr { .. }
        | Operation::Symlink { .. }
        | Operation::Mknod { .. }
        | Operation::Mkdir { .. }
        | Operation::Unlink { .. }
        | Operation::Rmdir { .. }
        | Operation::Rename { .. }
        | Operation::Link { .. }
        | Operation::Write(_)
        | Operation::Setxattr { .. }
        | Operation::Removexattr { .. }
        | Operation::Fallocate { .. }
        | Operation::CopyFileRange { .. } => Some(Errno::EROFS),
        Operation::Access { mask } if mask & libc::W_OK.cast_unsigned() != 0 => Some(Errno::EROFS),
        Operation::Open { flags, .. } | Operation::Opendir { flags } => refused_readonly(*flags),
        _ => None,
    }
}
