//! The virtio and vhost-user side of the device, on virtiofsd (to know that the front-end is right) and on ovfs.

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ovfs_compat_tests::daemon::{Daemon, ovfs_bin, patience};
use ovfs_compat_tests::error::Error;
use ovfs_compat_tests::frontend::{Config, Frontend};
use ovfs_compat_tests::fuse::{InHeader, InitRequest, ROOT, op};
use ovfs_compat_tests::guest::{self, Call, Guest};
use ovfs_compat_tests::memory::Region;
use ovfs_compat_tests::queue::{Queue, Shape, eventfd};
use ovfs_compat_tests::ring::{DESC_NEXT, DESC_WRITE, Descriptor};
use ovfs_compat_tests::subject::{Rng, Share};
use ovfs_compat_tests::vhost_user::{Connection, feature, protocol, wait_readable};

ovfs_compat_tests::on_both_daemons! {
    offers_the_known_feature_words
    config_space_answers_any_offset_and_size
    config_space_is_absent_without_a_tag
    accepts_the_largest_ring_and_refuses_larger
    keeps_256_requests_in_flight
    works_without_event_idx
    works_without_indirect_descriptors
    works_with_merged_buffers
    works_with_neither_event_idx_nor_indirect
    works_on_a_tiny_ring
    ring_indices_wrap_around
    all_request_queues_serve_at_once
    reset_device_forgets_the_session
    a_disabled_ring_waits
    replaced_eventfds_work
    memory_slots_come_and_go
    dirty_log_marks_what_the_device_writes
    dirty_log_marks_the_used_ring
    second_client_is_not_served
    disconnect_ends_the_daemon_with_success
    garbage_on_the_socket_ends_it_with_success
    hiprio_and_request_queue_work_side_by_side
}

fn mount_with(share: &Share, bin: &Path, args: &[&str], config: &Config) -> (Daemon, Guest) {
    let daemon = share.serve(bin, args);
    let mut guest = Guest::connect(&daemon.socket(), config).expect("the device starts");
    guest.init(&InitRequest::default()).expect("INIT succeeds");
    (daemon, guest)
}

fn offers_the_known_feature_words(bin: &Path) {
    let share = Share::new();
    for (args, words) in [(&[][..], 0x8_a42b), (&["--tag", "t"][..], 0x8_a62b)] {
        let daemon = share.serve(bin, args);
        let mut frontend = Frontend::connect(&daemon.socket(), &Config::default()).unwrap();
        assert_eq!(frontend.offered_features(), 0x1_7400_0000);
        assert_eq!(frontend.offered_protocol_features(), words);
        assert!(frontend.queue_count() >= 2);
        assert_eq!(frontend.control.get_max_mem_slots().unwrap(), 509);
    }
}

fn config_space_answers_any_offset_and_size(bin: &Path) {
    let share = Share::new();
    let daemon = share.serve(bin, &["--tag", "a tag of some length"]);
    let mut frontend = Frontend::connect(&daemon.socket(), &Config::default()).unwrap();
    let mut expected = b"a tag of some length".to_vec();
    expected.resize(36, 0);
    expected.extend_from_slice(&1u32.to_le_bytes());
    expected.resize(60, 0);
    // The structure is 60 bytes long; drivers read it whole, field by field, and byte by byte.
    for offset in 0..40u32 {
        for size in 1..=(40 - offset) {
            let bytes = frontend.control.get_config(offset, size).unwrap();
            assert_eq!(bytes, expected[offset as usize..(offset + size) as usize], "{offset}+{size}");
        }
    }
}

fn config_space_is_absent_without_a_tag(bin: &Path) {
    let share = Share::new();
    let daemon = share.serve::<&str>(bin, &[]);
    let frontend = Frontend::connect(&daemon.socket(), &Config::default()).unwrap();
    assert_eq!(frontend.offered_protocol_features() & protocol::CONFIG, 0);
}

fn accepts_the_largest_ring_and_refuses_larger(bin: &Path) {
    let share = Share::new();
    let daemon = share.serve::<&str>(bin, &[]);
    let mut frontend = Frontend::connect(&daemon.socket(), &Config::default()).unwrap();
    frontend.control.set_vring_num(1, 32768).unwrap();
    assert!(frontend.control.set_vring_num(1, 65536).is_err());
}

/// Reads and writes files of many sizes, and many at a time.
fn exercise(guest: &mut Guest) {
    let mut rng = Rng::new(7);
    for size in [0, 1, 4095, 4096, 4097, 100_000] {
        let data = rng.bytes(size);
        let name = format!("f{size}");
        guest.write_file(&name, &data).unwrap();
        assert_eq!(guest.read_file(&name).unwrap(), data);
    }
    assert_eq!(guest.list("").unwrap().len(), 6);
}

fn read_many(guest: &mut Guest, count: usize, seed: u64) {
    let mut rng = Rng::new(seed);
    let content = rng.bytes(64 << 10);
    let entry = guest.write_file("many", &content).unwrap();
    let file = guest.open(entry.nodeid, libc::O_RDONLY).unwrap();
    let mut tickets = Vec::new();
    for _ in 0..count {
        let (at, len) = (rng.below(60 << 10), 1 + rng.below(4096));
        let arg = Guest::read_arg(file.fh, at, len as u32);
        let call = Call {
            opcode: op::READ,
            nodeid: entry.nodeid,
            args: vec![&arg],
            reply: Some(len as u32),
            ..Call::default()
        };
        tickets.push((guest.submit(&call).unwrap(), at as usize, len as usize));
    }
    rng.shuffle(&mut tickets);
    for (ticket, at, len) in tickets {
        assert_eq!(guest.wait(ticket).unwrap(), content[at..at + len]);
    }
    guest.release(entry.nodeid, file.fh).unwrap();
}

fn keeps_256_requests_in_flight(bin: &Path) {
    let share = Share::new();
    let config = Config { queue_size: 1024, ..Config::default() };
    for pool in ["0", "4"] {
        let (_daemon, mut guest) = mount_with(&share, bin, &["--thread-pool-size", pool], &config);
        read_many(&mut guest, 256, 1);
    }
}

fn works_with(bin: &Path, config: &Config) {
    let share = Share::new();
    let (_daemon, mut guest) = mount_with(&share, bin, &[], config);
    exercise(&mut guest);
    read_many(&mut guest, 40, 3);
}

fn works_without_event_idx(bin: &Path) {
    works_with(bin, &Config::default().without(feature::EVENT_IDX));
}

fn works_without_indirect_descriptors(bin: &Path) {
    works_with(bin, &Config::default().without(feature::INDIRECT_DESC));
}

fn works_with_merged_buffers(bin: &Path) {
    works_with(bin, &Config { shape: Shape { indirect: false, pages: false, merged: true }, ..Config::default() });
}

fn works_with_neither_event_idx_nor_indirect(bin: &Path) {
    works_with(bin, &Config::default().without(feature::EVENT_IDX).without(feature::INDIRECT_DESC));
}

fn works_on_a_tiny_ring(bin: &Path) {
    let share = Share::new();
    let config = Config { queue_size: 2, ..Config::default() };
    let (_daemon, mut guest) = mount_with(&share, bin, &[], &config);
    exercise(&mut guest);
}

fn ring_indices_wrap_around(bin: &Path) {
    for config in [Config::default(), Config::default().without(feature::EVENT_IDX)] {
        let share = Share::new();
        let (_daemon, mut guest) = mount_with(&share, bin, &[], &config);
        guest.frontend.control.set_vring_enable(1, false).unwrap();
        guest.frontend.stop_queue(1).unwrap();
        guest.frontend.start_queue(1, 65_500).unwrap();
        exercise(&mut guest);
        read_many(&mut guest, 80, 5);
        assert!(guest.frontend.queue(1).ring().used_idx() < 60_000, "the index has wrapped");
    }
}

fn all_request_queues_serve_at_once(bin: &Path) {
    let share = Share::new();
    let config = Config { request_queues: 64, memory: 256 << 20, ..Config::default() };
    let (_daemon, mut guest) = mount_with(&share, bin, &["--thread-pool-size", "2"], &config);
    let queues = guest.frontend.queues();
    for round in 0..queues {
        read_many(&mut guest, 32 * (queues as usize - 1), round.into());
    }
    let content = b"the same file from every queue".repeat(100);
    let entry = guest.write_file("shared", &content).unwrap();
    let file = guest.open(entry.nodeid, libc::O_RDONLY).unwrap();
    let taken: Vec<Queue> = (1..queues).filter_map(|index| guest.frontend.take_queue(index)).collect();
    assert_eq!(taken.len(), queues as usize - 1);
    let content = &content;
    std::thread::scope(|scope| {
        for mut queue in taken {
            scope.spawn(move || {
                for round in 0..200u64 {
                    let unique = (u64::from(queue.index()) << 32 | round) << 1;
                    let arg = Guest::read_arg(file.fh, round, 512);
                    let call = Call {
                        opcode: op::READ,
                        nodeid: entry.nodeid,
                        args: vec![&arg],
                        reply: Some(512),
                        ..Call::default()
                    };
                    let token = guest::submit(&mut queue, &call, unique, 0, 0).unwrap();
                    let (errno, data) = queue.wait(token).unwrap().reply(unique).unwrap();
                    assert_eq!((errno, data.as_slice()), (0, &content[round as usize..round as usize + 512]));
                }
            });
        }
    });
}

fn hiprio_and_request_queue_work_side_by_side(bin: &Path) {
    let share = Share::new();
    for n in 0..50 {
        fs::write(share.join(&format!("f{n}")), "x").unwrap();
    }
    let (_daemon, mut guest) = share.mount::<&str>(bin, &[]);
    for _ in 0..10 {
        for n in 0..50 {
            let entry = guest.lookup(ROOT, format!("f{n}").as_bytes()).unwrap();
            guest.forget(entry.nodeid, 1).unwrap();
        }
    }
    // A forgotten node is a new one at the next lookup, never a reused number.
    let first = guest.lookup(ROOT, b"f0").unwrap().nodeid;
    guest.batch_forget(&[(first, 1)]).unwrap();
    assert!(guest.lookup(ROOT, b"f0").unwrap().nodeid > first);
}

fn reset_device_forgets_the_session(bin: &Path) {
    let share = Share::new();
    let (_daemon, mut guest) = share.mount::<&str>(bin, &[]);
    let entry = guest.write_file("f", b"kept").unwrap();
    let file = guest.open(entry.nodeid, libc::O_RDONLY).unwrap();
    guest.frontend.control.reset_device().unwrap();
    guest.frontend.restart_device().unwrap();
    guest.init(&InitRequest::default()).unwrap();
    assert!(guest.read(entry.nodeid, file.fh, 0, 16).is_err(), "handles do not survive a reset");
    assert_eq!(guest.read_file("f").unwrap(), b"kept");
}

/// On ovfs alone: virtiofsd 1.14.0 answers before the threads of its pool have finished.
#[test]
fn ovfs_get_vring_base_leaves_no_request_half_done() {
    let share = Share::new();
    let (_daemon, mut guest) = share.mount(&ovfs_bin(), &["--thread-pool-size", "2"]);
    let entry = guest.write_file("f", &[0; 1 << 16]).unwrap();
    let file = guest.open(entry.nodeid, libc::O_RDWR).unwrap();
    for round in 0..8u8 {
        let mut tickets = Vec::new();
        let data = [round + 1; 4096];
        for at in 0..100u64 {
            let arg = Guest::write_arg(file.fh, at * 4096, 4096, 0, 0);
            let call = Call {
                opcode: op::WRITE,
                nodeid: entry.nodeid,
                args: vec![&arg, &data],
                reply: Some(8),
                ..Call::default()
            };
            tickets.push(guest.submit(&call).unwrap());
        }
        let base = guest.frontend.stop_queue(1).unwrap() as u16;
        // Whatever the device took it has finished: the used index stands where the available index was left, and
        // stays there.
        let used = guest.frontend.queue(1).ring().device_used_idx();
        assert_eq!(used, base, "taken requests are completed before GET_VRING_BASE answers");
        let mut queue = guest.frontend.take_queue(1).unwrap();
        guest.frontend.attach(&mut queue, base).unwrap();
        queue.kick().unwrap();
        guest.frontend.put_queue(queue);
        for ticket in tickets {
            guest.wait(ticket).unwrap();
        }
        assert_eq!(guest.read(entry.nodeid, file.fh, 99 * 4096, 4096).unwrap(), data);
    }
}

/// Processor time of a process, in clock ticks.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = stat.rsplit_once(')').unwrap().1;
    rest.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
}

#[test]
fn ovfs_polling_breaks_no_rule_and_ends_when_the_guest_is_idle() {
    for config in &[Config::default(), Config::default().without(feature::EVENT_IDX)] {
        let share = Share::new();
        // The filter of system calls is on, as always.
        let (mut daemon, mut guest) = mount_with(&share, &ovfs_bin(), &["--poll-us=1000"], config);
        exercise(&mut guest);
        for n in 0..300 {
            guest.lookup(ROOT, format!("f{}", [0, 1, 4095][n % 3]).as_bytes()).unwrap();
        }
        let before = ticks(daemon.device_pid());
        std::thread::sleep(Duration::from_millis(500));
        let spent = ticks(daemon.device_pid()) - before;
        assert!(spent <= 5, "{spent} ticks while nothing was asked");
        read_many(&mut guest, 64, 3);
        assert_eq!(daemon.try_exit().unwrap(), None);
    }
}

fn a_disabled_ring_waits(bin: &Path) {
    let share = Share::new();
    let (_daemon, mut guest) = share.mount::<&str>(bin, &[]);
    guest.frontend.control.set_vring_enable(1, false).unwrap();
    let call = Call { opcode: op::STATFS, nodeid: ROOT, reply: Some(80), ..Call::default() };
    let ticket = guest.submit(&call).unwrap();
    // The high-priority queue goes on; an answer there shows that the device has had its chance at the other.
    for _ in 0..20 {
        guest.forget(12345, 1).unwrap();
    }
    guest.frontend.queue(1).reap().unwrap();
    assert_eq!(guest.frontend.queue(1).pending(), 1);
    guest.frontend.control.set_vring_enable(1, true).unwrap();
    guest.frontend.queue(1).kick().unwrap();
    guest.wait(ticket).unwrap();
}

fn replaced_eventfds_work(bin: &Path) {
    let share = Share::new();
    let (_daemon, mut guest) = share.mount::<&str>(bin, &[]);
    for _ in 0..5 {
        let call = Call { opcode: op::STATFS, nodeid: ROOT, reply: Some(80), ..Call::default() };
        // A new kick descriptor counts from the next enabling on.
        let kick = eventfd().unwrap();
        guest.frontend.control.set_vring_enable(1, false).unwrap();
        guest.frontend.control.set_vring_kick(1, Some(kick.as_fd())).unwrap();
        guest.frontend.control.set_vring_enable(1, true).unwrap();
        let ticket = guest.submit(&call).unwrap();
        (&kick).write_all(&1u64.to_ne_bytes()).unwrap();
        guest.wait(ticket).unwrap();
        // A new call descriptor counts at once.
        let call_fd = eventfd().unwrap();
        guest.frontend.control.set_vring_call(1, Some(call_fd.as_fd())).unwrap();
        guest.frontend.queue(1).ring().ask_for_notification();
        guest.submit(&call).unwrap();
        (&kick).write_all(&1u64.to_ne_bytes()).unwrap();
        assert!(wait_readable(&[call_fd.as_raw_fd()], patience()).unwrap()[0]);
        let old = guest.frontend.queue(1).call_fd().try_clone_to_owned().unwrap();
        guest.frontend.control.set_vring_call(1, Some(old.as_fd())).unwrap();
    }
}

fn memory_slots_come_and_go(bin: &Path) {
    let share = Share::new();
    let (_daemon, mut guest) = mount_with(&share, bin, &[], &Config { mem_slots: true, ..Config::default() });
    exercise(&mut guest);
    for round in 0..3u64 {
        let extra = Region::new(0x9_0000_0000 + round * 0x1000_0000, 1 << 20).unwrap();
        guest.frontend.hot_add(&extra).unwrap();
        // A request whose every byte lies in the new region.
        let unique = guest.next_unique();
        let header = InHeader { len: 40, opcode: op::STATFS, unique, nodeid: ROOT, ..InHeader::default() };
        extra.write(extra.gpa(), &header.encode());
        let reply = extra.gpa() + 0x2000;
        let table = [
            Descriptor { addr: extra.gpa(), len: 40, flags: DESC_NEXT, next: 1 },
            Descriptor { addr: reply, len: 96, flags: DESC_WRITE, next: 0 },
        ];
        let queue = guest.frontend.queue(1);
        let token = queue.submit_raw("STATFS in hot-plugged memory", 0, &table);
        // The reply lies outside the queue's own region, so the used entry is read raw.
        let token = token.map(|_| queue.wait_used(1).unwrap());
        let (head, used) = token.unwrap()[0];
        assert_eq!((head, used), (0, 96));
        let bytes = extra.bytes(reply, 16);
        assert_eq!(bytes[..4], 96u32.to_le_bytes());
        assert_eq!(bytes[8..], unique.to_le_bytes());
        guest.frontend.restart_queue(1).unwrap();
        guest.frontend.hot_remove(&extra).unwrap();
        exercise(&mut guest);
    }
}

fn dirty_log_marks_what_the_device_writes(bin: &Path) {
    let share = Share::new();
    let (_daemon, mut guest) = share.mount::<&str>(bin, &[]);
    let content = Rng::new(9).bytes(8 * 4096);
    let entry = guest.write_file("f", &content).unwrap();
    let file = guest.open(entry.nodeid, libc::O_RDONLY).unwrap();
    let log = guest.frontend.start_dirty_log().unwrap();

    let unique = guest.next_unique();
    let arg = Guest::read_arg(file.fh, 0, 8 * 4096);
    let header =
        InHeader { len: 40 + arg.len() as u32, opcode: op::READ, unique, nodeid: entry.nodeid, ..InHeader::default() };
    let queue = guest.frontend.queue(1);
    let buffer = queue.alloc(12 * 4096).unwrap();
    queue.region().write(buffer, &[header.encode(), arg].concat());
    let data = buffer + 3 * 4096;
    let table = [
        Descriptor { addr: buffer, len: 80, flags: DESC_NEXT, next: 1 },
        Descriptor { addr: buffer + 4096, len: 16, flags: DESC_NEXT | DESC_WRITE, next: 2 },
        Descriptor { addr: data, len: 8 * 4096, flags: DESC_WRITE, next: 0 },
    ];
    let token = queue.submit_raw("READ under a dirty log", 0, &table).unwrap();
    let done = queue.wait(token).unwrap();
    assert_eq!(done.reply(unique).unwrap(), (0, content.clone()));
    assert!(log.is_dirty(buffer + 4096), "the reply header's page");
    for page in 0..8 {
        assert!(log.is_dirty(data + page * 4096), "page {page} of the data");
    }
    assert!(!log.is_dirty(buffer), "a page that was only read");
    assert!(!log.is_dirty(buffer + 2 * 4096) && !log.is_dirty(buffer + 11 * 4096), "pages beside the buffers");
    // Logging may be switched off again; the device goes on working.
    guest.frontend.stop_dirty_log().unwrap();
    assert_eq!(guest.read_file("f").unwrap(), content);
}

fn dirty_log_marks_the_used_ring(bin: &Path) {
    let share = Share::new();
    let (_daemon, mut guest) = mount_with(&share, bin, &[], &Config { log_used: true, ..Config::default() });
    guest.write_file("f", b"x").unwrap();
    let log = guest.frontend.start_dirty_log().unwrap();
    guest.stat("f").unwrap();
    let used = guest.frontend.queue(1).ring().used_addr();
    assert!(log.is_dirty(used), "the page of the used index");
    assert!(log.count() >= 2);
    log.clear();
    guest.stat("f").unwrap();
    assert!(log.is_dirty(used), "again after the log was cleared");
}

fn second_client_is_not_served(bin: &Path) {
    let share = Share::new();
    let (daemon, mut guest) = share.mount::<&str>(bin, &[]);
    let mut second = Connection::connect(&daemon.socket(), Duration::from_millis(300));
    if let Ok(second) = &mut second {
        assert!(matches!(second.get_features(), Err(Error::Timeout { .. } | Error::Disconnected(_))));
    }
    guest.write_file("f", b"first client").unwrap();
    assert_eq!(guest.read_file("f").unwrap(), b"first client");
}

fn disconnect_ends_the_daemon_with_success(bin: &Path) {
    for sandbox in ["namespace", "chroot", "none"] {
        let share = Share::new();
        let (mut daemon, mut guest) = share.mount(bin, &["--sandbox", sandbox]);
        guest.write_file("f", b"x").unwrap();
        drop(guest);
        assert_eq!(daemon.wait_exit().unwrap(), 0, "{}", daemon.log());
        assert!(daemon.log().contains("Client disconnected, shutting down"), "{}", daemon.log());
    }
}

fn garbage_on_the_socket_ends_it_with_success(bin: &Path) {
    let share = Share::new();
    let inputs: [&[u8]; 4] = [b"GET / HTTP/1.0\r\n\r\n", &[0xff; 4096], &[1, 0, 0, 0], &[0; 12]];
    for garbage in inputs {
        let mut daemon = share.serve::<&str>(bin, &[]);
        let mut socket = UnixStream::connect(daemon.socket()).unwrap();
        // The daemon may close before everything is written.
        let _ = socket.write_all(garbage);
        socket.shutdown(std::net::Shutdown::Write).unwrap_or(());
        wait_readable(&[socket.as_raw_fd()], patience()).unwrap();
        drop(socket);
        assert_eq!(daemon.wait_exit().unwrap(), 0, "{}", daemon.log());
    }
}
