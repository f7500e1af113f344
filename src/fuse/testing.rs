//! Doubles for tests: guest memory as vectors, requests built field by field, a file system that tells what it was
//! asked.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, Waker};

use super::ReplyBuffer;
use super::abi::{Field, InHeader, InitIn, InitOut, Opcode, OutHeader};
use crate::fs::{Sink, Source};

/// The readable part of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct VecSource {
    bytes: Vec<u8>,
    taken: usize,
}

impl VecSource {
    pub(crate) fn new(bytes: impl Into<Vec<u8>>) -> VecSource {
        VecSource { bytes: bytes.into(), taken: 0 }
    }

    fn short() -> io::Error {
        io::Error::from(io::ErrorKind::UnexpectedEof)
    }
}

impl Source for VecSource {
    fn remaining(&self) -> usize {
        self.bytes.len() - self.taken
    }

    fn take(&mut self, buf: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.get(self.taken..self.taken + buf.len()).ok_or_else(Self::short)?;
        buf.copy_from_slice(bytes);
        self.taken += buf.len();
        Ok(())
    }

    fn take_to_file(&mut self, file: &File, len: usize, offset: u64, flags: i32) -> io::Result<usize> {
        let len = len.min(self.remaining());
        let offset = if flags & libc::RWF_APPEND != 0 { file.metadata()?.len() } else { offset };
        file.write_all_at(&self.bytes[self.taken..self.taken + len], offset)?;
        self.taken += len;
        Ok(len)
    }
}

/// The writable part of a request. Clones and splits share their bytes.
#[derive(Clone, Debug)]
pub(crate) struct VecReply {
    bytes: Arc<Mutex<Vec<u8>>>,
    next: usize,
    end: usize,
}

impl VecReply {
    /// Room for `len` bytes, zeros at first.
    pub(crate) fn new(len: usize) -> VecReply {
        VecReply { bytes: Arc::new(Mutex::new(vec![0; len])), next: 0, end: len }
    }

    /// All bytes of the buffer, whatever this part of it covers.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }
}

impl Sink for VecReply {
    fn remaining(&self) -> usize {
        self.end - self.next
    }

    fn put(&mut self, data: &[u8]) -> io::Result<()> {
        if data.len() > self.remaining() {
            return Err(io::Error::from(io::ErrorKind::WriteZero));
        }
        self.bytes.lock().unwrap()[self.next..self.next + data.len()].copy_from_slice(data);
        self.next += data.len();
        Ok(())
    }

    fn put_zeros(&mut self, len: usize) -> io::Result<()> {
        self.put(&vec![0; len])
    }

    fn put_from_file(&mut self, file: &File, len: usize, offset: u64, _flags: i32) -> io::Result<usize> {
        let mut buf = vec![0; len.min(self.remaining())];
        let mut count = 0;
        while count < buf.len() {
            match file.read_at(&mut buf[count..], offset + count as u64)? {
                0 => break,
                n => count += n,
            }
        }
        self.put(&buf[..count])?;
        Ok(count)
    }
}

impl ReplyBuffer for VecReply {
    fn split_at(&mut self, len: usize) -> io::Result<Self> {
        if len > self.remaining() {
            return Err(io::Error::from(io::ErrorKind::WriteZero));
        }
        let rest = VecReply { bytes: Arc::clone(&self.bytes), next: self.next + len, end: self.end };
        self.end = self.next + len;
        Ok(rest)
    }
}

/// Builds the bytes of a request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) header: InHeader,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// A request of root's on `nodeid`, with unique 0x5eed.
    pub(crate) fn new(opcode: Opcode, nodeid: u64) -> Request {
        let header = InHeader { opcode: opcode as u32, unique: 0x5eed, nodeid, pid: 1, ..InHeader::default() };
        Request { header, body: Vec::new() }
    }

    /// Appends the fields of a structure.
    pub(crate) fn with(mut self, field: impl Field) -> Request {
        let start = self.body.len();
        self.body.resize(start + size_of_field(field), 0);
        field.put(&mut &mut self.body[start..]);
        self
    }

    /// Appends bytes.
    pub(crate) fn raw(mut self, bytes: impl AsRef<[u8]>) -> Request {
        self.body.extend_from_slice(bytes.as_ref());
        self
    }

    /// Appends a name and its NUL.
    pub(crate) fn name(self, name: impl AsRef<[u8]>) -> Request {
        self.raw(name).raw(b"\0")
    }

    /// Header and body, with the length that is true.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let len = u32::try_from(InHeader::SIZE + self.body.len()).unwrap();
        [&InHeader { len, ..self.header }.to_bytes()[..], &self.body].concat()
    }

    /// An INIT of a guest that offers `flags`.
    pub(crate) fn init(flags: u64) -> Request {
        Request::new(Opcode::Init, 0)
            .with(InitIn { major: 7, minor: 41, max_readahead: 0x2_0000, flags: flags as u32 })
            .with((flags >> 32) as u32)
            .with([0u32; 11])
    }
}

fn size_of_field<T: Field>(_: T) -> usize {
    T::SIZE
}

/// A reply taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) error: i32,
    pub(crate) data: Vec<u8>,
}

impl Reply {
    /// Checks the used length and the header of what was written into `buffer`.
    pub(crate) fn parse(buffer: &VecReply, used: u32, unique: u64) -> Reply {
        let bytes = buffer.bytes();
        let used = used as usize;
        assert!(used >= OutHeader::SIZE && used <= bytes.len(), "used length {used}");
        let header = OutHeader::take(&mut bytes.as_slice()).unwrap();
        assert_eq!(header.len as usize, used, "used length is the header's");
        assert_eq!(header.unique, unique);
        assert!(header.error <= 0 && header.error > -4096);
        assert!(header.error == 0 || used == OutHeader::SIZE, "an error comes alone");
        Reply { error: header.error, data: bytes[OutHeader::SIZE..used].to_vec() }
    }

    /// The structure at `offset` of the data.
    pub(crate) fn at<T: Field>(&self, offset: usize) -> T {
        T::take(&mut &self.data[offset..]).expect("the reply is long enough")
    }

    /// The flags that an INIT was answered with.
    pub(crate) fn init_flags(&self) -> u64 {
        let out: InitOut = self.at(0);
        u64::from(out.flags) | u64::from(out.flags2) << 32
    }
}

/// The output of a future that is ready at first poll.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut TaskContext::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the future waits"),
    }
}
