//! The virtio-fs configuration space: the tag, and how many request queues the guest shall use.

/// Bytes of the tag field (virtio 1.3, 5.11.4).
pub const TAG_LEN_MAX: usize = 36;

/// `struct virtio_fs_config` without the notification field, which belongs to a feature that is not offered.
pub(super) struct ConfigSpace {
    bytes: [u8; TAG_LEN_MAX + 4],
    has_tag: bool,
}

impl ConfigSpace {
    /// The space for `tag` (what is beyond 36 bytes is cut; the command line refuses it before) and a number of queues.
    pub(super) fn new(tag: Option<&str>, request_queues: u32) -> ConfigSpace {
        let mut bytes = [0; TAG_LEN_MAX + 4];
        let (name, count) = bytes.split_at_mut(TAG_LEN_MAX);
        for (to, from) in name.iter_mut().zip(tag.unwrap_or_default().bytes()) {
            *to = from;
        }
        count.copy_from_slice(&request_queues.to_le_bytes());
        ConfigSpace { bytes, has_tag: tag.is_some() }
    }

    /// Whether there is a tag, without which the space is not offered.
    pub(super) fn has_tag(&self) -> bool {
        self.has_tag
    }

    /// Exactly `size` bytes from `offset`, zeros beyond the end.
    pub(super) fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let rest = self.bytes.get(offset..).unwrap_or_default();
        rest.iter().copied().chain(std::iter::repeat(0)).take(size).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::ConfigSpace;

    #[test]
    fn reads_tag_and_queue_number() {
        let space = ConfigSpace::new(Some("share"), 1);
        let bytes = space.read(0, 40);
        assert_eq!(&bytes[..6], b"share\0");
        assert_eq!(&bytes[36..], [1, 0, 0, 0]);
        assert_eq!(space.read(4, 1), b"e");
    }

    #[test]
    fn any_offset_gives_exactly_the_size_asked_for() {
        let space = ConfigSpace::new(Some("t"), 8);
        assert_eq!(space.read(36, 8), [8, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(space.read(40, 4), [0; 4]);
        assert_eq!(space.read(u32::MAX, 3), [0; 3]);
        assert_eq!(space.read(5, 0), Vec::<u8>::new());
    }

    #[test]
    fn a_tag_of_36_bytes_fills_the_field() {
        let space = ConfigSpace::new(Some(&"x".repeat(36)), 1);
        assert_eq!(space.read(0, 36), [b'x'; 36]);
    }
}
