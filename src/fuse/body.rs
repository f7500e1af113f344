//! The bytes between a request's header and its data, copied out of guest memory once.

use crate::fs::{Errno, Result, Source};

/// Enough for every structure and for the names that people give to files; longer ones cost an allocation.
const INLINE: usize = 192;

/// Short bodies live inside, so that the common request allocates nothing.
pub(super) enum Body {
    Inline { bytes: [u8; INLINE], len: usize },
    Heap(Vec<u8>),
}

impl Body {
    /// Takes the next `len` bytes of `request`, which has them.
    ///
    /// # Errors
    /// EINVAL: it has not. EIO: the guest's memory is gone.
    pub(super) fn take(request: &mut impl Source, len: usize) -> Result<Body> {
        if len > request.remaining() {
            return Err(Errno::EINVAL);
        }
        let mut body = if len > INLINE { Body::Heap(vec![0; len]) } else { Body::Inline { bytes: [0; INLINE], len } };
        request.take(body.bytes_mut())?;
        Ok(body)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Body::Inline { bytes, len } => &bytes[..*len],
            Body::Heap(bytes) => bytes,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Body::Inline { bytes, len } => &mut bytes[..*len],
            Body::Heap(bytes) => bytes,
        }
    }
}
