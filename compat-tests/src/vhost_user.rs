//! The vhost-user control protocol, front-end side.
//!
//! One message is a 12-byte header (request, flags, payload size; little endian here) and a payload; descriptors travel
//! beside it as SCM_RIGHTS. After `REPLY_ACK` is negotiated every message without a reply of its own asks for an
//! acknowledgement, so that a refusal shows up where it happened. QEMU's `docs/interop/vhost-user.rst` decides.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::Error;

/// Message numbers.
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
}

/// Virtio feature bits.
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod feature {
    pub const LOG_ALL: u64 = 1 << 26;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
}

/// Protocol feature bits.
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod protocol {
    pub const MQ: u64 = 1 << 0;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const BACKEND_SEND_FD: u64 = 1 << 10;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const INBAND_NOTIFICATIONS: u64 = 1 << 14;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const DEVICE_STATE: u64 = 1 << 19;
}

const VERSION: u32 = 1;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;
const FDS_MAX: usize = 16;

/// One memory region as the protocol describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// Guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub size: u64,
    /// Address in this process.
    pub user_addr: u64,
    /// Offset in the passed descriptor.
    pub offset: u64,
}

impl MemoryRegion {
    fn encode(&self) -> [u8; 32] {
        let mut out = [0; 32];
        for (at, value) in out.chunks_mut(8).zip([self.gpa, self.size, self.user_addr, self.offset]) {
            at.copy_from_slice(&value.to_le_bytes());
        }
        out
    }
}

/// Where a ring lies, in user addresses.
#[derive(Clone, Copy, Debug)]
pub struct VringAddr {
    /// Descriptor table.
    pub desc: u64,
    /// Used ring.
    pub used: u64,
    /// Available ring.
    pub avail: u64,
    /// Guest-physical address of the used ring when its writes are to be logged.
    pub log: Option<u64>,
}

/// A received message.
#[derive(Debug)]
pub struct Message {
    /// Request number.
    pub request: u32,
    /// Header flags.
    pub flags: u32,
    /// Payload.
    pub payload: Vec<u8>,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// A connection to a back-end.
#[derive(Debug)]
pub struct Connection {
    socket: UnixStream,
    timeout: Duration,
    reply_ack: bool,
}

impl Connection {
    /// Connects to a listening daemon. `timeout` bounds every wait for a reply.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Connection, Error> {
        let socket = UnixStream::connect(path)?;
        Ok(Connection { socket, timeout, reply_ack: false })
    }

    /// The socket, to watch for hang-up or to write what no front-end would.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Sends a message; with `need_reply` the back-end is asked to acknowledge it.
    pub fn send(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd], need_reply: bool) -> Result<(), Error> {
        let flags = VERSION | if need_reply { FLAG_NEED_REPLY } else { 0 };
        let mut message = Vec::with_capacity(12 + payload.len());
        message.extend_from_slice(&request.to_le_bytes());
        message.extend_from_slice(&flags.to_le_bytes());
        message.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        message.extend_from_slice(payload);
        self.send_bytes(&message, fds)
    }

    /// Writes bytes that need not form a message, with descriptors.
    pub fn send_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd]) -> Result<(), Error> {
        let mut rest = bytes;
        let mut fds = fds;
        while !rest.is_empty() {
            let sent = match send_with_fds(self.socket.as_raw_fd(), rest, fds) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET)) => {
                    return Err(Error::Disconnected("sending a vhost-user message".into()));
                }
                Err(error) => return Err(error.into()),
            };
            rest = &rest[sent..];
            fds = &[];
        }
        Ok(())
    }

    /// Receives one message within the connection's time limit.
    pub fn receive(&mut self, what: &'static str) -> Result<Message, Error> {
        let deadline = Instant::now() + self.timeout;
        let mut fds = Vec::new();
        let mut header = [0; 12];
        self.receive_exact(&mut header, &mut fds, deadline, what)?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let size = word(8);
        if size > 64 * 1024 {
            return Err(Error::Protocol(format!("reply to {what} claims {size} bytes")));
        }
        let mut payload = vec![0; size as usize];
        self.receive_exact(&mut payload, &mut fds, deadline, what)?;
        Ok(Message { request: word(0), flags: word(4), payload, fds })
    }

    fn receive_exact(
        &mut self,
        buf: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        deadline: Instant,
        what: &'static str,
    ) -> Result<(), Error> {
        let mut filled = 0;
        while filled < buf.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if !wait_readable(&[self.socket.as_raw_fd()], left)?[0] {
                return Err(Error::Timeout { what: what.into(), after: self.timeout });
            }
            match receive_with_fds(self.socket.as_raw_fd(), &mut buf[filled..], fds) {
                Ok(0) => return Err(Error::Disconnected(format!("waiting for the reply to {what}"))),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => {
                    return Err(Error::Disconnected(format!("waiting for the reply to {what}")));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends a request that has a reply of its own and returns the reply.
    pub fn ask(
        &mut self,
        what: &'static str,
        request: u32,
        payload: &[u8],
        fds: &[BorrowedFd],
    ) -> Result<Message, Error> {
        self.send(request, payload, fds, false)?;
        let reply = self.receive(what)?;
        if reply.request != request {
            return Err(Error::Protocol(format!("reply to {what} carries request number {}", reply.request)));
        }
        if reply.flags & 3 != VERSION || reply.flags & FLAG_REPLY == 0 {
            return Err(Error::Protocol(format!("reply to {what} has flags {:#x}", reply.flags)));
        }
        Ok(reply)
    }

    fn ask_u64(&mut self, what: &'static str, request: u32, payload: &[u8], fds: &[BorrowedFd]) -> Result<u64, Error> {
        let reply = self.ask(what, request, payload, fds)?;
        let bytes: [u8; 8] =
            reply.payload.as_slice().try_into().map_err(|_| {
                Error::Protocol(format!("reply to {what} has {} bytes instead of 8", reply.payload.len()))
            })?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Sends a request without a reply of its own; acknowledged once REPLY_ACK is negotiated.
    pub fn tell(&mut self, what: &'static str, request: u32, payload: &[u8], fds: &[BorrowedFd]) -> Result<(), Error> {
        if !self.reply_ack {
            return self.send(request, payload, fds, false);
        }
        self.send(request, payload, fds, true)?;
        let reply = self.receive(what)?;
        if reply.request != request || reply.payload.len() != 8 {
            return Err(Error::Protocol(format!("bad acknowledgement of {what}: {reply:?}")));
        }
        let mut code = [0; 8];
        code.copy_from_slice(&reply.payload);
        match u64::from_le_bytes(code) {
            0 => Ok(()),
            code => Err(Error::Refused { request: what, code }),
        }
    }

    /// The virtio features on offer.
    pub fn get_features(&mut self) -> Result<u64, Error> {
        self.ask_u64("GET_FEATURES", request::GET_FEATURES, &[], &[])
    }

    /// Accepts virtio features.
    pub fn set_features(&mut self, features: u64) -> Result<(), Error> {
        self.tell("SET_FEATURES", request::SET_FEATURES, &features.to_le_bytes(), &[])
    }

    /// The protocol features on offer.
    pub fn get_protocol_features(&mut self) -> Result<u64, Error> {
        self.ask_u64("GET_PROTOCOL_FEATURES", request::GET_PROTOCOL_FEATURES, &[], &[])
    }

    /// Accepts protocol features; acknowledgements start after this when REPLY_ACK is among them.
    pub fn set_protocol_features(&mut self, features: u64) -> Result<(), Error> {
        self.reply_ack = false;
        self.tell("SET_PROTOCOL_FEATURES", request::SET_PROTOCOL_FEATURES, &features.to_le_bytes(), &[])?;
        self.reply_ack = features & protocol::REPLY_ACK != 0;
        Ok(())
    }

    /// Claims the device.
    pub fn set_owner(&mut self) -> Result<(), Error> {
        self.tell("SET_OWNER", request::SET_OWNER, &[], &[])
    }

    /// Number of queues the back-end has.
    pub fn get_queue_num(&mut self) -> Result<u64, Error> {
        self.ask_u64("GET_QUEUE_NUM", request::GET_QUEUE_NUM, &[], &[])
    }

    /// Number of memory regions the back-end can hold.
    pub fn get_max_mem_slots(&mut self) -> Result<u64, Error> {
        self.ask_u64("GET_MAX_MEM_SLOTS", request::GET_MAX_MEM_SLOTS, &[], &[])
    }

    /// Replaces the memory table.
    pub fn set_mem_table(&mut self, regions: &[(MemoryRegion, BorrowedFd)]) -> Result<(), Error> {
        let mut payload = Vec::with_capacity(8 + 32 * regions.len());
        payload.extend_from_slice(&(regions.len() as u32).to_le_bytes());
        payload.extend_from_slice(&0u32.to_le_bytes());
        let mut fds = Vec::new();
        for (region, fd) in regions {
            payload.extend_from_slice(&region.encode());
            fds.push(*fd);
        }
        self.tell("SET_MEM_TABLE", request::SET_MEM_TABLE, &payload, &fds)
    }

    /// Adds one memory region.
    pub fn add_mem_reg(&mut self, region: &MemoryRegion, fd: BorrowedFd) -> Result<(), Error> {
        let payload = [&[0; 8][..], &region.encode()].concat();
        self.tell("ADD_MEM_REG", request::ADD_MEM_REG, &payload, &[fd])
    }

    /// Removes one memory region.
    pub fn rem_mem_reg(&mut self, region: &MemoryRegion) -> Result<(), Error> {
        let payload = [&[0; 8][..], &region.encode()].concat();
        self.tell("REM_MEM_REG", request::REM_MEM_REG, &payload, &[])
    }

    /// Gives the back-end a dirty log of `size` bytes; its reply carries no meaning beyond arriving.
    pub fn set_log_base(&mut self, size: u64, fd: BorrowedFd) -> Result<(), Error> {
        let payload = [size.to_le_bytes(), 0u64.to_le_bytes()].concat();
        self.ask("SET_LOG_BASE", request::SET_LOG_BASE, &payload, &[fd]).map(drop)
    }

    fn vring_state(&mut self, what: &'static str, request: u32, index: u32, value: u32) -> Result<(), Error> {
        self.tell(what, request, &[index.to_le_bytes(), value.to_le_bytes()].concat(), &[])
    }

    /// Sets the size of ring `index`.
    pub fn set_vring_num(&mut self, index: u32, size: u32) -> Result<(), Error> {
        self.vring_state("SET_VRING_NUM", request::SET_VRING_NUM, index, size)
    }

    /// Sets the next available index of ring `index`.
    pub fn set_vring_base(&mut self, index: u32, base: u32) -> Result<(), Error> {
        self.vring_state("SET_VRING_BASE", request::SET_VRING_BASE, index, base)
    }

    /// Enables or disables ring `index`.
    pub fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<(), Error> {
        self.vring_state("SET_VRING_ENABLE", request::SET_VRING_ENABLE, index, enable.into())
    }

    /// Stops ring `index` and returns its next available index.
    pub fn get_vring_base(&mut self, index: u32) -> Result<u32, Error> {
        let payload = [index.to_le_bytes(), 0u32.to_le_bytes()].concat();
        let value = self.ask_u64("GET_VRING_BASE", request::GET_VRING_BASE, &payload, &[])?;
        if value as u32 != index {
            return Err(Error::Protocol(format!("GET_VRING_BASE of ring {index} answers for ring {}", value as u32)));
        }
        Ok((value >> 32) as u32)
    }

    /// Sets the place of ring `index`.
    pub fn set_vring_addr(&mut self, index: u32, addr: &VringAddr) -> Result<(), Error> {
        let mut payload = Vec::with_capacity(40);
        payload.extend_from_slice(&index.to_le_bytes());
        payload.extend_from_slice(&u32::from(addr.log.is_some()).to_le_bytes());
        for value in [addr.desc, addr.used, addr.avail, addr.log.unwrap_or(0)] {
            payload.extend_from_slice(&value.to_le_bytes());
        }
        self.tell("SET_VRING_ADDR", request::SET_VRING_ADDR, &payload, &[])
    }

    fn vring_fd(&mut self, what: &'static str, request: u32, index: u32, fd: Option<BorrowedFd>) -> Result<(), Error> {
        const NO_FD: u64 = 1 << 8;
        let value = u64::from(index) | if fd.is_none() { NO_FD } else { 0 };
        let fds: Vec<_> = fd.into_iter().collect();
        self.tell(what, request, &value.to_le_bytes(), &fds)
    }

    /// Hands over the descriptor the driver kicks ring `index` with.
    pub fn set_vring_kick(&mut self, index: u32, fd: Option<BorrowedFd>) -> Result<(), Error> {
        self.vring_fd("SET_VRING_KICK", request::SET_VRING_KICK, index, fd)
    }

    /// Hands over the descriptor the back-end notifies ring `index` with.
    pub fn set_vring_call(&mut self, index: u32, fd: Option<BorrowedFd>) -> Result<(), Error> {
        self.vring_fd("SET_VRING_CALL", request::SET_VRING_CALL, index, fd)
    }

    /// Hands over the descriptor the back-end reports a broken ring `index` with.
    pub fn set_vring_err(&mut self, index: u32, fd: Option<BorrowedFd>) -> Result<(), Error> {
        self.vring_fd("SET_VRING_ERR", request::SET_VRING_ERR, index, fd)
    }

    /// Reads `size` bytes of the configuration space at `offset`.
    ///
    /// An empty reply is the protocol's way to say no.
    pub fn get_config(&mut self, offset: u32, size: u32) -> Result<Vec<u8>, Error> {
        let mut payload = [offset.to_le_bytes(), size.to_le_bytes(), 0u32.to_le_bytes()].concat();
        payload.resize(12 + size as usize, 0);
        let reply = self.ask("GET_CONFIG", request::GET_CONFIG, &payload, &[])?;
        if reply.payload.is_empty() {
            return Err(Error::Refused { request: "GET_CONFIG", code: 0 });
        }
        if reply.payload.len() != 12 + size as usize || reply.payload[..8] != payload[..8] {
            return Err(Error::Protocol(format!("GET_CONFIG {offset}+{size} answers {:?}", reply.payload)));
        }
        Ok(reply.payload[12..].to_vec())
    }

    /// Resets the device, keeping the connection.
    pub fn reset_device(&mut self) -> Result<(), Error> {
        self.tell("RESET_DEVICE", request::RESET_DEVICE, &[], &[])
    }

    /// Starts a device-state transfer (`load`: into the back-end) through `fd` and returns the raw reply:
    /// 0x100 means "go on, no descriptor of mine".
    pub fn set_device_state_fd(&mut self, load: bool, fd: BorrowedFd) -> Result<u64, Error> {
        let payload = [u32::from(load).to_le_bytes(), 0u32.to_le_bytes()].concat();
        self.ask_u64("SET_DEVICE_STATE_FD", request::SET_DEVICE_STATE_FD, &payload, &[fd])
    }

    /// Whether the transfer succeeded: 0 is success.
    pub fn check_device_state(&mut self) -> Result<u64, Error> {
        self.ask_u64("CHECK_DEVICE_STATE", request::CHECK_DEVICE_STATE, &[], &[])
    }
}

/// Waits until a descriptor is readable (or hung up) or the time is over; one flag per descriptor.
pub fn wait_readable(fds: &[RawFd], timeout: Duration) -> io::Result<Vec<bool>> {
    wait_events(&fds.iter().map(|&fd| (fd, libc::POLLIN)).collect::<Vec<_>>(), timeout)
}

/// Waits until one of the (descriptor, poll events) pairs has an event; with events 0 that is a hang-up or an error.
pub fn wait_events(fds: &[(RawFd, i16)], timeout: Duration) -> io::Result<Vec<bool>> {
    let deadline = Instant::now() + timeout;
    let mut polls: Vec<_> = fds.iter().map(|&(fd, events)| libc::pollfd { fd, events, revents: 0 }).collect();
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis().min(60_000) as libc::c_int;
        // SAFETY: `polls` is an array of that many pollfds for the length of the call.
        let n = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, left) };
        if n < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        if n > 0 || Instant::now() >= deadline {
            return Ok(polls.iter().map(|p| n > 0 && p.revents != 0).collect());
        }
    }
}

#[repr(C, align(8))]
struct ControlBuffer([u8; 128]);

fn send_with_fds(socket: RawFd, bytes: &[u8], fds: &[BorrowedFd]) -> io::Result<usize> {
    assert!(fds.len() <= FDS_MAX);
    let raw: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = ControlBuffer([0; 128]);
    // SAFETY: an all-zero msghdr is a valid empty one.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    if !raw.is_empty() {
        let len = std::mem::size_of_val(raw.as_slice());
        msg.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: pure arithmetic on the length.
        msg.msg_controllen = unsafe { libc::CMSG_SPACE(len as u32) } as usize;
        // SAFETY: the control buffer is aligned and larger than CMSG_SPACE of FDS_MAX descriptors, so the first header
        // lies inside it and has room for `len` bytes.
        unsafe {
            let cmsg = libc::CMSG_FIRSTHDR(&raw const msg);
            (*cmsg).cmsg_level = libc::SOL_SOCKET;
            (*cmsg).cmsg_type = libc::SCM_RIGHTS;
            (*cmsg).cmsg_len = libc::CMSG_LEN(len as u32) as usize;
            std::ptr::copy_nonoverlapping(raw.as_ptr().cast::<u8>(), libc::CMSG_DATA(cmsg), len);
        }
    }
    // SAFETY: `msg` points to live buffers for the length of the call.
    let sent = unsafe { libc::sendmsg(socket, &raw const msg, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn receive_with_fds(socket: RawFd, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let mut control = ControlBuffer([0; 128]);
    // SAFETY: an all-zero msghdr is a valid empty one.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.0.as_mut_ptr().cast();
    msg.msg_controllen = control.0.len();
    // SAFETY: `msg` points to live, writable buffers for the length of the call.
    let received = unsafe { libc::recvmsg(socket, &raw mut msg, libc::MSG_CMSG_CLOEXEC) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel filled `msg`; the macros walk the control buffer within `msg_controllen`.
    unsafe {
        let mut cmsg = libc::CMSG_FIRSTHDR(&raw const msg);
        while !cmsg.is_null() {
            if (*cmsg).cmsg_level == libc::SOL_SOCKET && (*cmsg).cmsg_type == libc::SCM_RIGHTS {
                let count = ((*cmsg).cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                for at in 0..count {
                    let fd = libc::CMSG_DATA(cmsg).cast::<RawFd>().add(at).read_unaligned();
                    fds.push(OwnedFd::from_raw_fd(fd));
                }
            }
            cmsg = libc::CMSG_NXTHDR(&raw const msg, cmsg);
        }
    }
    Ok(received)
}
