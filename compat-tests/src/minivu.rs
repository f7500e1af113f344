//! The least a vhost-user front-end can do: negotiate, share one page pool, send one FUSE request at a time.
//!
//! The process rows need to see a daemon serve (features, INIT, a lookup, a read) and to hang up; they need neither
//! speed nor several queues nor a dirty log. A device test belongs on the full front-end instead.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_QUEUE_NUM: u32 = 17;
const SET_VRING_ENABLE: u32 = 18;

/// VIRTIO_F_VERSION_1 and VHOST_USER_F_PROTOCOL_FEATURES: all that one request at a time needs.
const FEATURES_WANTED: u64 = 1 << 32 | 1 << 30;
/// MQ, BACKEND_REQ is left out: nobody would answer it.
const PROTOCOL_FEATURES_WANTED: u64 = 1;

/// Where the shared memory stands in the front-end's (imaginary) address space.
const USER_BASE: u64 = 0x1_0000_0000;
const MEMORY_SIZE: u64 = 4 << 20;
const QUEUE_SIZE: u16 = 16;
/// Each queue has 64 KiB: descriptors, then the avail ring, then the used ring.
const QUEUE_STRIDE: u64 = 0x1_0000;
const AVAIL_OFFSET: u64 = 0x4000;
const USED_OFFSET: u64 = 0x8000;
const REQUEST_AT: u64 = 0x10_0000;
const REPLY_AT: u64 = 0x20_0000;
const REPLY_SIZE: u32 = 0x10_0000 + 0x1000;
/// The first request queue; 0 is the high-priority one.
const REQUEST_QUEUE: u64 = 1;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// FUSE opcodes that the rows use (fuse_kernel.h).
pub mod opcode {
    /// Look a name up.
    pub const LOOKUP: u32 = 1;
    /// Open a file.
    pub const OPEN: u32 = 14;
    /// Read from an open file.
    pub const READ: u32 = 15;
    /// Negotiate.
    pub const INIT: u32 = 26;
}

/// The root's nodeid.
pub const ROOT: u64 = 1;

/// What the daemon offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Virtio feature word.
    pub features: u64,
    /// Vhost-user protocol feature word.
    pub protocol_features: u64,
    /// GET_QUEUE_NUM.
    pub queue_count: u64,
}

/// One entry of a LOOKUP reply, as far as the rows look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The inode's number in later requests.
    pub nodeid: u64,
    /// Seconds that the name may be cached.
    pub entry_valid: u64,
    /// `st_mode`.
    pub mode: u32,
    /// `st_uid` as the guest sees it.
    pub uid: u32,
    /// `FUSE_ATTR_*`; bit 0 is a submount.
    pub flags: u32,
}

/// A connection to a daemon; dropping it is the hang-up.
pub struct Connection {
    socket: UnixStream,
    memory: File,
    kick: File,
    _call: File,
    next: u16,
    unique: u64,
}

impl Connection {
    /// Connects and waits for an answer to GET_FEATURES: from then on the daemon serves.
    ///
    /// # Errors
    /// Nobody listens, or no answer comes.
    pub fn open(path: &Path) -> io::Result<(Self, Offer)> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let connection = Self { socket, memory: memfd()?, kick: eventfd()?, _call: eventfd()?, next: 0, unique: 0 };
        connection.memory.set_len(MEMORY_SIZE)?;
        connection.send(SET_OWNER, &[], &[])?;
        let features = connection.ask(GET_FEATURES)?;
        let protocol_features = connection.ask(GET_PROTOCOL_FEATURES)?;
        connection.send(SET_PROTOCOL_FEATURES, &PROTOCOL_FEATURES_WANTED.to_le_bytes(), &[])?;
        let queue_count = connection.ask(GET_QUEUE_NUM)?;
        Ok((connection, Offer { features, protocol_features, queue_count }))
    }

    /// Shares memory and starts the high-priority and the first request queue.
    ///
    /// # Errors
    /// The daemon hung up.
    pub fn start_queues(&self) -> io::Result<()> {
        self.send(SET_FEATURES, &FEATURES_WANTED.to_le_bytes(), &[])?;
        let mut table = Vec::new();
        table.extend_from_slice(&1u32.to_le_bytes());
        table.extend_from_slice(&0u32.to_le_bytes());
        for word in [0, MEMORY_SIZE, USER_BASE, 0] {
            table.extend_from_slice(&word.to_le_bytes());
        }
        self.send(SET_MEM_TABLE, &table, &[self.memory.as_raw_fd()])?;
        for queue in 0..=REQUEST_QUEUE {
            let base = USER_BASE + queue * QUEUE_STRIDE;
            self.send(SET_VRING_NUM, &state(queue, QUEUE_SIZE.into()), &[])?;
            let mut address = state(queue, 0);
            for word in [base, base + USED_OFFSET, base + AVAIL_OFFSET, 0] {
                address.extend_from_slice(&word.to_le_bytes());
            }
            self.send(SET_VRING_ADDR, &address, &[])?;
            self.send(SET_VRING_BASE, &state(queue, 0), &[])?;
            // The high-priority queue is never kicked here: a descriptor of its own keeps the two apart.
            let own_kick = eventfd()?;
            let kick = if queue == REQUEST_QUEUE { self.kick.as_raw_fd() } else { own_kick.as_raw_fd() };
            self.send(SET_VRING_CALL, &queue.to_le_bytes(), &[self._call.as_raw_fd()])?;
            self.send(SET_VRING_KICK, &queue.to_le_bytes(), &[kick])?;
            self.send(SET_VRING_ENABLE, &state(queue, 1), &[])?;
        }
        Ok(())
    }

    /// Sends FUSE_INIT as a recent guest would, offering everything; the reply's body.
    ///
    /// # Errors
    /// The daemon's errno, or no answer.
    pub fn init(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        // FUSE 7.38, readahead 128 KiB, every flag of both words.
        for word in [7u32, 38, 128 << 10, u32::MAX, u32::MAX] {
            body.extend_from_slice(&word.to_le_bytes());
        }
        body.resize(64, 0);
        self.fuse(opcode::INIT, 0, &body)
    }

    /// Looks a name up.
    ///
    /// # Errors
    /// The daemon's errno, or no answer.
    pub fn lookup(&mut self, parent: u64, name: &str) -> io::Result<Entry> {
        let reply = self.fuse(opcode::LOOKUP, parent, format!("{name}\0").as_bytes())?;
        let attr = 40;
        Ok(Entry {
            nodeid: u64_at(&reply, 0)?,
            entry_valid: u64_at(&reply, 16)?,
            mode: u32_at(&reply, attr + 60)?,
            uid: u32_at(&reply, attr + 68)?,
            flags: u32_at(&reply, attr + 84)?,
        })
    }

    /// Opens a file: handle and FOPEN flags.
    ///
    /// # Errors
    /// The daemon's errno, or no answer.
    pub fn open_file(&mut self, nodeid: u64, flags: u32) -> io::Result<(u64, u32)> {
        let mut body = flags.to_le_bytes().to_vec();
        body.resize(8, 0);
        let reply = self.fuse(opcode::OPEN, nodeid, &body)?;
        Ok((u64_at(&reply, 0)?, u32_at(&reply, 8)?))
    }

    /// Reads the beginning of an open file.
    ///
    /// # Errors
    /// The daemon's errno, or no answer.
    pub fn read_file(&mut self, nodeid: u64, handle: u64, size: u32) -> io::Result<Vec<u8>> {
        let mut body = handle.to_le_bytes().to_vec();
        body.extend_from_slice(&0u64.to_le_bytes());
        body.extend_from_slice(&size.to_le_bytes());
        body.resize(40, 0);
        self.fuse(opcode::READ, nodeid, &body)
    }

    /// Sends one request and waits for the used ring to move.
    ///
    /// # Errors
    /// The errno of the reply; `TimedOut`; `InvalidData` for a reply that is none.
    pub fn fuse(&mut self, opcode: u32, nodeid: u64, body: &[u8]) -> io::Result<Vec<u8>> {
        self.unique += 2;
        let mut request = Vec::with_capacity(40 + body.len());
        let length = u32::try_from(40 + body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        request.extend_from_slice(&length.to_le_bytes());
        request.extend_from_slice(&opcode.to_le_bytes());
        request.extend_from_slice(&self.unique.to_le_bytes());
        request.extend_from_slice(&nodeid.to_le_bytes());
        // uid, gid, pid, and the unused rest.
        request.resize(40, 0);
        request.extend_from_slice(body);
        self.memory.write_all_at(&request, REQUEST_AT)?;
        self.publish(length)?;
        let used = self.wait_used()?;
        let mut reply = vec![0; used as usize];
        self.memory.read_exact_at(&mut reply, REPLY_AT)?;
        if u32_at(&reply, 0)? != used || u64_at(&reply, 8)? != self.unique {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "reply header does not match the request"));
        }
        match u32_at(&reply, 4)? {
            0 => Ok(reply.split_off(16)),
            error => Err(io::Error::from_raw_os_error(error.wrapping_neg().cast_signed())),
        }
    }

    fn publish(&mut self, request_len: u32) -> io::Result<()> {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        let queue = REQUEST_QUEUE * QUEUE_STRIDE;
        let mut descriptors = Vec::new();
        for (address, len, flags, next) in [(REQUEST_AT, request_len, NEXT, 1u16), (REPLY_AT, REPLY_SIZE, WRITE, 0)] {
            descriptors.extend_from_slice(&address.to_le_bytes());
            descriptors.extend_from_slice(&len.to_le_bytes());
            descriptors.extend_from_slice(&flags.to_le_bytes());
            descriptors.extend_from_slice(&next.to_le_bytes());
        }
        self.memory.write_all_at(&descriptors, queue)?;
        let slot = u64::from(self.next % QUEUE_SIZE);
        self.memory.write_all_at(&0u16.to_le_bytes(), queue + AVAIL_OFFSET + 4 + 2 * slot)?;
        self.next = self.next.wrapping_add(1);
        self.memory.write_all_at(&self.next.to_le_bytes(), queue + AVAIL_OFFSET + 2)?;
        io::Write::write_all(&mut &self.kick, &1u64.to_ne_bytes())
    }

    /// The used length of the request that was just published.
    fn wait_used(&self) -> io::Result<u32> {
        let used_ring = REQUEST_QUEUE * QUEUE_STRIDE + USED_OFFSET;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut word = [0; 4];
        loop {
            self.memory.read_exact_at(&mut word, used_ring)?;
            if u16::from_le_bytes([word[2], word[3]]) == self.next {
                break;
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(Duration::from_micros(200));
        }
        let slot = u64::from(self.next.wrapping_sub(1) % QUEUE_SIZE);
        self.memory.read_exact_at(&mut word, used_ring + 4 + 8 * slot + 4)?;
        Ok(u32::from_le_bytes(word))
    }

    fn ask(&self, request: u32) -> io::Result<u64> {
        self.send(request, &[], &[])?;
        let mut reply = [0; 20];
        (&self.socket).read_exact(&mut reply)?;
        if u32_at(&reply, 0)? != request {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "answer to another question"));
        }
        u64_at(&reply, 12)
    }

    fn send(&self, request: u32, body: &[u8], fds: &[RawFd]) -> io::Result<()> {
        let mut message = Vec::with_capacity(12 + body.len());
        let length = u32::try_from(body.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        for word in [request, 1, length] {
            message.extend_from_slice(&word.to_le_bytes());
        }
        message.extend_from_slice(body);
        send_with_fds(&self.socket, &message, fds)
    }
}

/// A `vhost_vring_state`: index and number.
fn state(queue: u64, number: u32) -> Vec<u8> {
    (queue | u64::from(number) << 32).to_le_bytes().to_vec()
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    let field = bytes.get(at..at + 4).and_then(|field| field.try_into().ok());
    Ok(u32::from_le_bytes(field.ok_or(io::ErrorKind::UnexpectedEof)?))
}

fn u64_at(bytes: &[u8], at: usize) -> io::Result<u64> {
    let field = bytes.get(at..at + 8).and_then(|field| field.try_into().ok());
    Ok(u64::from_le_bytes(field.ok_or(io::ErrorKind::UnexpectedEof)?))
}

fn send_with_fds(socket: &UnixStream, message: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let mut part = libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() };
    let payload = u32::try_from(size_of_val(fds)).map_err(|_| io::ErrorKind::InvalidInput)?;
    // Words, so that the control message header is aligned.
    let mut control = [0u64; 8];
    // SAFETY: an all-zero `msghdr` is a valid, empty one.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    if !fds.is_empty() {
        header.msg_control = control.as_mut_ptr().cast();
        // SAFETY: computes a length from a length.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(payload) } as usize;
        assert!(header.msg_controllen <= size_of_val(&control), "too many descriptors for one message");
        // SAFETY: `msg_control` points to `msg_controllen` zeroed bytes, enough for one header.
        let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
        // SAFETY: `first` points into `control`, which is aligned, and the payload fits by the check above.
        unsafe {
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(payload) as usize;
            std::ptr::copy_nonoverlapping(fds.as_ptr(), libc::CMSG_DATA(first).cast(), fds.len());
        }
    }
    // SAFETY: every pointer in `header` is to a live buffer of the length beside it; the call only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
    match usize::try_from(sent) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(count) if count == message.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
    }
}

fn memfd() -> io::Result<File> {
    // SAFETY: the name is a live C string; the result is checked before use.
    owned(unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) })
}

fn eventfd() -> io::Result<File> {
    // SAFETY: numbers only; the result is checked before use.
    owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

fn owned(fd: libc::c_int) -> io::Result<File> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened by the caller and nobody else owns it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}
