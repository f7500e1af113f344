//! How messages lie on the socket: a little-endian `u32` length, then so many bytes of postcard. Both ends use it, the device
//! with blocking reads, the broker with tokio's.

use std::io::{self, Read};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::MESSAGE_MAX;

/// Bytes of the length before each message.
pub const HEADER: usize = 4;

/// Why a message cannot be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MESSAGE_MAX`], or empty.
    #[error("a message of {0} bytes; 1 to {MESSAGE_MAX} are allowed")]
    Length(usize),
    /// Not the postcard encoding of the expected type, or bytes left over.
    #[error("a message that cannot be decoded: {0}")]
    Malformed(postcard::Error),
    /// A type that postcard cannot encode.
    #[error("a message that cannot be encoded: {0}")]
    Unencodable(postcard::Error),
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

/// A whole frame, length included.
///
/// # Errors
/// [`FrameError::Length`]: too long to be sent.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut frame = postcard::to_extend(message, vec![0; HEADER]).map_err(FrameError::Unencodable)?;
    let len = frame.len() - HEADER;
    match u32::try_from(len) {
        Ok(short) if (1..=MESSAGE_MAX).contains(&short) => frame[..HEADER].copy_from_slice(&short.to_le_bytes()),
        _ => return Err(FrameError::Length(len)),
    }
    Ok(frame)
}

/// The length of the message that follows `header`.
///
/// # Errors
/// [`FrameError::Length`].
pub fn body_len(header: [u8; HEADER]) -> Result<usize, FrameError> {
    let len = u32::from_le_bytes(header);
    if (1..=MESSAGE_MAX).contains(&len) { Ok(len as usize) } else { Err(FrameError::Length(len as usize)) }
}

/// The message in `body`, which must hold nothing else.
///
/// # Errors
/// [`FrameError::Malformed`].
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    let (message, rest) = postcard::take_from_bytes(body).map_err(FrameError::Malformed)?;
    if rest.is_empty() { Ok(message) } else { Err(FrameError::Malformed(postcard::Error::DeserializeBadEncoding)) }
}

/// Reads one message; `None` at a clean end of the stream. `body` is scratch, kept between calls.
///
/// # Errors
/// read(2)'s; UnexpectedEof in the middle of a message; InvalidData for a [`FrameError`].
pub fn read<T: DeserializeOwned>(from: &mut impl Read, body: &mut Vec<u8>) -> io::Result<Option<T>> {
    let mut header = [0; HEADER];
    let mut have = 0;
    while have < HEADER {
        match from.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    body.resize(body_len(header)?, 0);
    from.read_exact(body)?;
    Ok(Some(decode(body)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::protocol::{Op, ToBroker, ToDevice};

    fn request(path: String) -> ToBroker {
        ToBroker::Request { id: 7, mount: 0, op: Op::Stat { path } }
    }

    #[test]
    fn frames_come_back_one_by_one() {
        let mut stream = Vec::new();
        for path in ["a", "b/c"] {
            stream.extend(encode(&request(path.into())).unwrap());
        }
        let (mut from, mut body) = (&stream[..], Vec::new());
        for path in ["a", "b/c"] {
            let Some(ToBroker::Request { id: 7, mount: 0, op: Op::Stat { path: got } }) =
                read(&mut from, &mut body).unwrap()
            else {
                panic!("another message");
            };
            assert_eq!(got, path);
        }
        assert!(read::<ToBroker>(&mut from, &mut body).unwrap().is_none());
    }

    #[test]
    fn broken_frames_are_errors() {
        let mut body = Vec::new();
        let whole = encode(&request("abc".into())).unwrap();
        for cut in 1..whole.len() {
            let error = read::<ToBroker>(&mut &whole[..cut], &mut body).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{cut}");
        }
        for len in [0u32, MESSAGE_MAX + 1, u32::MAX] {
            let error = read::<ToBroker>(&mut &len.to_le_bytes()[..], &mut body).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{len}");
        }
        let mut trailing = whole.clone();
        trailing[..HEADER].copy_from_slice(&(whole.len() as u32 - 3).to_le_bytes());
        trailing.push(0);
        assert!(read::<ToBroker>(&mut &trailing[..], &mut body).is_err());
        assert!(read::<ToDevice>(&mut &[1, 0, 0, 0, 0xff][..], &mut body).is_err());
    }

    #[test]
    fn too_long_messages_are_not_sent() {
        let path = "x".repeat(MESSAGE_MAX as usize + 1);
        assert!(matches!(encode(&request(path)), Err(FrameError::Length(_))));
    }
}
