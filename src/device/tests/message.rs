//! Guest memory as source and sink.

use std::io::{Read, Seek, Write};
use std::sync::Arc;

use super::super::dirty_log::LogMemory;
use super::super::message::{Chain, GuestSink, GuestSource, MESSAGE_LEN_MAX};
use super::super::queue::WhenEmpty;
use super::driver::{BUFFERS, Guest, SECOND_REGION, WRITE};
use crate::fs::{Sink, Source};
use crate::fuse::ReplyBuffer;

/// Pops the chain of these descriptors.
fn popped(guest: &mut Guest, descriptors: &[(u64, u32, u16)]) -> Arc<Chain> {
    guest.chain(0, descriptors);
    guest.offer(0);
    let mut out = Vec::new();
    guest.ring.pop(1, WhenEmpty::Ask, &mut Vec::new(), &mut out);
    let accepted = out.pop().unwrap();
    assert_eq!(accepted.fault, None);
    accepted.chain
}

#[test]
fn takes_and_puts_across_descriptors() {
    let mut guest = Guest::new(16, true);
    guest.put(BUFFERS, b"abc");
    guest.put(BUFFERS + 100, b"defgh");
    let chain = popped(
        &mut guest,
        &[(BUFFERS, 3, 0), (BUFFERS + 100, 5, 0), (BUFFERS + 200, 4, WRITE), (BUFFERS + 300, 4, WRITE)],
    );
    let mut source = GuestSource::new(chain.clone());
    let (mut first, mut rest) = ([0; 4], [0; 4]);
    source.take(&mut first).unwrap();
    assert_eq!(source.remaining(), 4);
    source.take(&mut rest).unwrap();
    assert_eq!((&first, &rest), (b"abcd", b"efgh"));
    assert!(source.take(&mut [0]).is_err());

    let mut sink = GuestSink::new(chain);
    sink.put(b"12345").unwrap();
    sink.put_zeros(2).unwrap();
    assert_eq!(sink.remaining(), 1);
    assert!(sink.put(b"xy").is_err(), "more than there is room for");
    assert!(sink.put_zeros(2).is_err());
    assert_eq!(guest.get(BUFFERS + 200, 4), b"1234");
    assert_eq!(guest.get(BUFFERS + 300, 4), b"5\0\0\0");
}

#[test]
fn splits_a_reply_into_header_and_data() {
    let mut guest = Guest::new(16, true);
    let chain = popped(&mut guest, &[(BUFFERS, 10, WRITE), (BUFFERS + 100, 10, WRITE)]);
    let mut header = GuestSink::new(chain);
    assert!(header.split_at(21).is_err());
    let mut data = header.split_at(16).unwrap();
    assert_eq!((header.remaining(), data.remaining()), (16, 4));
    data.put(b"DATA").unwrap();
    header.put(&[b'h'; 16]).unwrap();
    assert!(header.put(b"x").is_err(), "the header ends where the data begins");
    assert_eq!(guest.get(BUFFERS, 10), [b'h'; 10]);
    assert_eq!(guest.get(BUFFERS + 100, 10), b"hhhhhhDATA");
}

#[test]
fn a_buffer_may_span_two_memory_regions() {
    let mut guest = Guest::new(16, true);
    let at = SECOND_REGION - 4;
    let chain = popped(&mut guest, &[(at, 8, 0), (at, 8, WRITE)]);
    GuestSink::new(chain.clone()).put(b"12345678").unwrap();
    let mut data = [0; 8];
    GuestSource::new(chain).take(&mut data).unwrap();
    assert_eq!(&data, b"12345678");
}

#[test]
fn files_are_read_and_written_in_place() {
    let mut guest = Guest::new(16, true);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"0123456789").unwrap();
    let descriptors: Vec<_> = (0..4).map(|n| (BUFFERS + n * 100, 4, WRITE)).collect();
    let chain = popped(&mut guest, &descriptors);
    let mut sink = GuestSink::new(chain);
    let mut data = sink.split_at(2).unwrap();
    assert_eq!(data.put_from_file(&file, 6, 1, 0).unwrap(), 6);
    assert_eq!(data.remaining(), 8);
    assert_eq!(data.put_from_file(&file, 100, 7, 0).unwrap(), 3, "short at the end of the file");
    assert_eq!(data.put_from_file(&file, 100, 20, 0).unwrap(), 0, "nothing beyond it");
    assert!(data.put_from_file(&file, 1, 1 << 63, 0).is_err());
    assert_eq!(guest.get(BUFFERS, 4), b"\0\x0012");
    assert_eq!(guest.get(BUFFERS + 100, 4), b"3456");
    assert_eq!(guest.get(BUFFERS + 200, 4), b"789\0");

    guest.put(BUFFERS + 1000, b"abcdef");
    guest.put(BUFFERS + 2000, b"ghij");
    let chain = popped(&mut guest, &[(BUFFERS + 1000, 6, 0), (BUFFERS + 2000, 4, 0)]);
    let mut source = GuestSource::new(chain);
    source.take(&mut [0; 2]).unwrap();
    assert_eq!(source.take_to_file(&file, 100, 3, 0).unwrap(), 8);
    assert_eq!(source.remaining(), 0);
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "012cdefghij");
}

#[test]
fn a_megabyte_in_scattered_pages_is_moved_whole() {
    let mut guest = Guest::new(512, true);
    let mut file = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    file.write_all(&content).unwrap();
    // Every other page, so that nothing can be merged; more ranges than one call takes.
    let mut descriptors = vec![(BUFFERS - 4096, 16, WRITE)];
    descriptors.extend((0..512).map(|n| (BUFFERS + n * 8192, 2048, WRITE)));
    descriptors.truncate(510);
    let chain = popped(&mut guest, &descriptors);
    let mut sink = GuestSink::new(chain);
    let mut data = sink.split_at(16).unwrap();
    let room = data.remaining();
    assert_eq!(data.put_from_file(&file, 1 << 20, 0, 0).unwrap(), room);
    for n in [0, 263, 264, 508] {
        let at = usize::try_from(n).unwrap() * 2048;
        assert_eq!(guest.get(BUFFERS + n * 8192, 2048), content[at..at + 2048], "page {n}");
    }
}

#[test]
fn what_the_guest_offers_beyond_a_megabyte_is_left_alone() {
    let mut guest = Guest::new(512, true);
    let descriptors: Vec<_> = (0..255).map(|_| (0, 32 << 20, WRITE)).collect();
    let chain = popped(&mut guest, &descriptors);
    assert_eq!(chain.writable_len(), MESSAGE_LEN_MAX);
    let chain = popped(&mut guest, &[(0, 32 << 20, 0)]);
    assert_eq!(GuestSource::new(chain).remaining(), MESSAGE_LEN_MAX);
}

#[test]
fn writes_are_logged_as_dirty_reads_are_not() {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    let mut guest = Guest::new(16, true);
    let mut log = tempfile::tempfile().unwrap();
    log.set_len(4096).unwrap();
    let shared = Arc::new(LogMemory::map(log.try_clone().unwrap(), 0, 4096).unwrap());
    assert!(shared.covers((4096 * 8 * 4096) - 1) && !shared.covers(4096 * 8 * 4096));
    let memory = guest.memory();
    let regions: Vec<_> = memory.iter().collect();
    let logs: Vec<&super::super::dirty_log::DirtyLog> = regions.iter().map(|region| (***region).bitmap()).collect();
    for (region, dirty) in regions.iter().zip(&logs) {
        dirty.start(shared.clone(), region.start_addr().0);
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[1; 8192]).unwrap();
    let descriptors = [(BUFFERS, 64, 0), (SECOND_REGION + 0x3000, 8, WRITE), (SECOND_REGION + 0x5ff0, 64, WRITE)];
    let chain = popped(&mut guest, &descriptors);
    // The ring's own writes (notification flags) are logged as well; look at the buffers' pages only.
    GuestSource::new(chain.clone()).take_to_file(&file, 64, 0, 0).unwrap();
    let mut sink = GuestSink::new(chain);
    let mut data = sink.split_at(8).unwrap();
    assert_eq!(data.put_from_file(&file, 16, 0, 0).unwrap(), 16);
    let dirty = |log: &mut std::fs::File, addr: u64| {
        let mut bits = [0; 4096];
        log.rewind().unwrap();
        log.read_exact(&mut bits).unwrap();
        bits[usize::try_from(addr / 4096 / 8).unwrap()] >> (addr / 4096 % 8) & 1 == 1
    };
    assert!(!dirty(&mut log, BUFFERS));
    assert!(!dirty(&mut log, SECOND_REGION + 0x3000), "the header is not written yet");
    assert!(dirty(&mut log, SECOND_REGION + 0x5000));
    assert!(!dirty(&mut log, SECOND_REGION + 0x6000), "16 bytes end at the page's edge");
    sink.put(&[0; 8]).unwrap();
    assert!(dirty(&mut log, SECOND_REGION + 0x3000));
    logs.iter().for_each(|dirty| dirty.stop());
    data.put(&[0; 16]).unwrap();
    assert!(!dirty(&mut log, SECOND_REGION + 0x6000), "logging has stopped");
}
