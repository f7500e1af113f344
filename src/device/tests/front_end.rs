//! A vhost-user front end on a socket, as small as a test needs it.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

pub(super) const GET_FEATURES: u32 = 1;
pub(super) const SET_FEATURES: u32 = 2;
pub(super) const SET_OWNER: u32 = 3;
pub(super) const SET_MEM_TABLE: u32 = 5;
pub(super) const SET_LOG_BASE: u32 = 6;
pub(super) const SET_VRING_NUM: u32 = 8;
pub(super) const SET_VRING_ADDR: u32 = 9;
pub(super) const SET_VRING_BASE: u32 = 10;
pub(super) const GET_VRING_BASE: u32 = 11;
pub(super) const SET_VRING_KICK: u32 = 12;
pub(super) const SET_VRING_CALL: u32 = 13;
pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(super) const SET_PROTOCOL_FEATURES: u32 = 16;
pub(super) const GET_QUEUE_NUM: u32 = 17;
pub(super) const SET_VRING_ENABLE: u32 = 18;
pub(super) const SET_BACKEND_REQ_FD: u32 = 21;
pub(super) const GET_CONFIG: u32 = 24;
pub(super) const RESET_DEVICE: u32 = 34;
pub(super) const GET_MAX_MEM_SLOTS: u32 = 36;
pub(super) const SET_DEVICE_STATE_FD: u32 = 42;
pub(super) const CHECK_DEVICE_STATE: u32 = 43;

const NEED_REPLY: u32 = 8;

/// The front end's side.
pub(super) struct FrontEnd(pub(super) UnixStream);

pub(super) fn u32s(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub(super) fn u64s(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

impl FrontEnd {
    fn send(&self, code: u32, flags: u32, body: &[u8], files: &[&File]) {
        let mut message = u32s(&[code, 1 | flags, u32::try_from(body.len()).unwrap()]);
        message.extend_from_slice(body);
        let files: Vec<_> = files.iter().map(|file| file.as_raw_fd()).collect();
        assert_eq!(self.0.send_with_fds(&[&message[..]], &files).unwrap(), message.len());
    }

    fn receive(&self, code: u32) -> Vec<u8> {
        let mut header = [0; 12];
        (&self.0).read_exact(&mut header).unwrap();
        assert_eq!(header[..8], u32s(&[code, 5]));
        let mut body = vec![0; u32::from_ne_bytes(header[8..].try_into().unwrap()) as usize];
        (&self.0).read_exact(&mut body).unwrap();
        body
    }

    /// A message that has an answer of its own.
    pub(super) fn ask(&self, code: u32, body: &[u8], files: &[&File]) -> Vec<u8> {
        self.send(code, 0, body, files);
        self.receive(code)
    }

    /// A message whose answer is one number.
    pub(super) fn ask_u64(&self, code: u32, body: &[u8], files: &[&File]) -> u64 {
        u64::from_ne_bytes(self.ask(code, body, files).try_into().unwrap())
    }

    /// A message before REPLY_ACK is negotiated.
    pub(super) fn tell(&self, code: u32, body: &[u8]) {
        self.send(code, 0, body, &[]);
    }

    /// A message and its acknowledgement.
    pub(super) fn set(&self, code: u32, body: &[u8], files: &[&File]) {
        self.send(code, NEED_REPLY, body, files);
        assert_eq!(self.receive(code), u64s(&[0]), "message {code}");
    }
}
