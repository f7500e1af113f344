//! The front end's socket: one client, its messages, its end.
//!
//! `vhost` reads and answers the messages, but one: before it takes the front end's channel for requests
//! (SET_BACKEND_REQ_FD) it asks for the socket's type with getsockopt(2), which the seccomp list does not allow. So each
//! message's header is looked at first, and that message is taken here.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};
use vhost::vhost_user::{BackendReqHandler, Error, Result};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::control::Control;

/// Request code, flags, size of the body; all native-endian u32.
const HEADER_LEN: usize = 12;

/// Header flags: protocol version 1, "this is a reply", "please acknowledge".
const VERSION: u32 = 0x1;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;

/// Waits for a client.
///
/// # Errors
/// accept(2)'s, for instance when the descriptor is not a listening socket.
pub(super) fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    loop {
        match listener.accept() {
            Ok((socket, _)) => return Ok(socket),
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => wait_readable(listener)?,
                _ => return Err(error),
            },
        }
    }
}

/// A listening socket that a launcher made non-blocking.
fn wait_readable(listener: &UnixListener) -> io::Result<()> {
    let epoll = Epoll::new()?;
    epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), EpollEvent::new(EventSet::IN, 0))?;
    match epoll.wait(-1, &mut [EpollEvent::default()]) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// A header, looked at without being taken off the socket.
struct Peeked {
    code: u32,
    flags: u32,
    size: u32,
}

/// Serves the client's messages until it goes away or sends one that cannot be answered.
///
/// # Errors
/// Always one: [`Error::Disconnected`] is the regular end.
pub(super) fn run(socket: &UnixStream, control: &Arc<Mutex<Control>>) -> Result<()> {
    let stream = socket.try_clone().map_err(Error::SocketError)?;
    let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(control));
    loop {
        match peek(socket)? {
            Some(header) if header.code == FrontendReq::SET_BACKEND_REQ_FD as u32 => {
                take_backend_channel(socket, &header, control)?;
            }
            Some(header) if header.code == FrontendReq::GPU_SET_SOCKET as u32 => return Err(Error::InvalidMessage),
            _ => catch_unwind(AssertUnwindSafe(|| handler.handle_request()))
                .unwrap_or(Err(Error::BackendInternalError))?,
        }
    }
}

/// Looks at the next message's header. `None`: there is no whole header (yet); reading it will tell why.
fn peek(socket: &UnixStream) -> Result<Option<Peeked>> {
    let mut buf = [0_u32; 3];
    let mut iovec = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: HEADER_LEN };
    // SAFETY: all-zero is a valid `msghdr`: no name, no buffers, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iovec;
    message.msg_iovlen = 1;
    loop {
        // SAFETY: `message` points to one iovec over the 12 bytes of `buf`; both live through the call.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_PEEK) };
        if n < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(Error::SocketError(error));
        }
        let [code, flags, size] = buf;
        return Ok((usize::try_from(n) == Ok(HEADER_LEN)).then_some(Peeked { code, flags, size }));
    }
}

/// SET_BACKEND_REQ_FD: takes the message off the socket, keeps its descriptor and acknowledges.
fn take_backend_channel(socket: &UnixStream, header: &Peeked, control: &Arc<Mutex<Control>>) -> Result<()> {
    let mut control = control.lock().unwrap_or_else(PoisonError::into_inner);
    if !control.has(VhostUserProtocolFeatures::BACKEND_REQ) {
        return Err(Error::InactiveOperation(VhostUserProtocolFeatures::BACKEND_REQ));
    }
    let mut taken = [0; HEADER_LEN];
    let (len, channel) = socket.recv_with_fd(&mut taken).map_err(|error| Error::SocketError(error.into()))?;
    if len != HEADER_LEN || header.size != 0 {
        return Err(Error::InvalidMessage);
    }
    let known = channel.is_some();
    if let Some(channel) = channel {
        control.set_backend_channel(channel);
    }
    if control.has(VhostUserProtocolFeatures::REPLY_ACK) && header.flags & NEED_REPLY != 0 {
        let mut reply = [0_u8; HEADER_LEN + 8];
        let words = [header.code, VERSION | REPLY, 8, u32::from(!known), 0];
        for (to, word) in reply.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        let sent = socket.send_with_fds(&[&reply[..]], &[]).map_err(|error| Error::SocketError(error.into()))?;
        if sent != reply.len() {
            return Err(Error::PartialMessage);
        }
    }
    if known { Ok(()) } else { Err(Error::InvalidMessage) }
}
