//! R rows: descriptor chains and rings that break the rules of virtio.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ovfs_compat_tests::daemon::patience;
use ovfs_compat_tests::fuse::{ROOT, op};
use ovfs_compat_tests::guest::Guest;
use ovfs_compat_tests::hostile::{Session, Target};
use ovfs_compat_tests::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor};
use ovfs_compat_tests::vhost_user::wait_readable;

use crate::{EXIT, REFUSED};

/// A STATFS request in memory of its own: (unique, request address, reply address); the reply takes 96 bytes.
fn statfs_in_memory(s: &mut Session) -> (u64, u64, u64) {
    let header = s.header(op::STATFS, ROOT, 0);
    let (region, at) = s.alloc(0x2000);
    region.write(at, &header.encode());
    (header.unique, at, at + 0x1000)
}

fn readable(addr: u64, len: u32, next: u16) -> Descriptor {
    Descriptor { addr, len, flags: DESC_NEXT, next }
}

fn writable(addr: u64, len: u32) -> Descriptor {
    Descriptor { addr, len, flags: DESC_WRITE, next: 0 }
}

pub(crate) fn r1_descriptors_outside_memory(target: &Target) {
    let mut s = Session::start(target, &[]);
    // A request that cannot be read has no `unique`.
    let want = [REFUSED, &["EIO for unique 0"]].concat();
    for addr in [0, 0x10, u64::MAX - 16, u64::MAX, 1 << 63] {
        let (unique, _, reply) = statfs_in_memory(&mut s);
        let outcome = s.send_table(unique, &[readable(addr, 40, 1), writable(reply, 96)]);
        s.judge(&format!("request at {addr:#x}"), &outcome, &want, EXIT);
        let (unique, at, _) = statfs_in_memory(&mut s);
        let outcome = s.send_table(unique, &[readable(at, 40, 1), writable(addr, 96)]);
        s.judge(&format!("reply at {addr:#x}"), &outcome, REFUSED, EXIT);
    }
    let end = s.guest().frontend.region().gpa() + s.guest().frontend.region().size();
    let (unique, at, _) = statfs_in_memory(&mut s);
    let outcome = s.send_table(unique, &[readable(at, 40, 1), readable(end - 8, 4096, 2), writable(at + 0x1000, 96)]);
    s.judge("a descriptor across the end of memory", &outcome, REFUSED, EXIT);
    s.finish();
}

pub(crate) fn r2_chain_without_end(target: &Target) {
    let mut s = Session::start(target, &[]);
    let (unique, at, reply) = statfs_in_memory(&mut s);
    let outcome = s.send_table(unique, &[readable(at, 40, 0)]);
    s.judge("a descriptor that follows itself", &outcome, REFUSED, EXIT);
    let (unique, at, _) = statfs_in_memory(&mut s);
    let outcome = s.send_table(unique, &[readable(at, 40, 1), readable(at, 4096, 0)]);
    s.judge("two that follow each other", &outcome, REFUSED, EXIT);
    let looping = Descriptor { flags: DESC_NEXT | DESC_WRITE, ..readable(reply, 0, 1) };
    let outcome = s.send_table(unique, &[readable(at, 40, 1), looping]);
    s.judge("an empty writable one that follows itself", &outcome, REFUSED, &[]);
    s.finish();
}

pub(crate) fn r3_indices_beyond_the_ring(target: &Target) {
    let mut s = Session::start(target, &[]);
    let (unique, at, _) = statfs_in_memory(&mut s);
    for next in [512, 0x7fff, 0xffff] {
        let outcome = s.send_table(unique, &[readable(at, 40, next)]);
        s.judge(&format!("next {next}"), &outcome, REFUSED, EXIT);
    }
    // Such a head cannot be completed; what follows it must be.
    for head in [512, 0x7fff, 0xffff] {
        let queue = s.guest().frontend.queue(1);
        queue.ring().push(head);
        queue.kick_if_wanted().unwrap();
        let outcome = s.request(op::STATFS, ROOT, &[], 80);
        s.judge(&format!("a request behind head {head}"), &outcome, &["ok"], EXIT);
    }
    s.finish();
}

pub(crate) fn r4_empty_chain(target: &Target) {
    let mut s = Session::start(target, &[]);
    let (unique, at, reply) = statfs_in_memory(&mut s);
    let outcome = s.send_table(unique, &[Descriptor { flags: 0, ..readable(at, 0, 0) }]);
    s.judge("one empty descriptor", &outcome, &["used 0"], EXIT);
    let outcome = s.send_table(unique, &[writable(reply, 96)]);
    s.judge("nothing readable", &outcome, REFUSED, EXIT);
    s.finish();
}

fn indirect(target: &Target, probe: impl Fn(&mut Session, u64, u64, u64) -> (String, Descriptor)) {
    let mut s = Session::start(target, &[]);
    let (unique, at, reply) = statfs_in_memory(&mut s);
    let (region, table) = s.alloc(0x1000);
    region.write(table, &readable(at, 40, 1).encode());
    region.write(table + 16, &writable(reply, 96).encode());
    let (what, entry) = probe(&mut s, table, at, reply);
    let outcome = s.send_table(unique, &[entry]);
    s.judge(&what, &outcome, REFUSED, EXIT);
    s.finish();
}

fn table_at(addr: u64, len: u32) -> Descriptor {
    Descriptor { addr, len, flags: DESC_INDIRECT, next: 0 }
}

pub(crate) fn r5_nested_indirect(target: &Target) {
    indirect(target, |s, table, _, _| {
        let region = s.guest().frontend.region().clone();
        region.write(table + 32, &table_at(table, 32).encode());
        ("a table in a table".into(), table_at(table + 32, 16))
    });
}

pub(crate) fn r6_indirect_table_of_odd_length(target: &Target) {
    for len in [0, 1, 15, 17, 33] {
        indirect(target, |_, table, _, _| (format!("a table of {len} bytes"), table_at(table, len)));
    }
}

pub(crate) fn r7_indirect_table_of_4g(target: &Target) {
    indirect(target, |_, table, _, _| ("a table of 4 GiB".into(), table_at(table, u32::MAX - 15)));
}

pub(crate) fn r8_indirect_table_outside_memory(target: &Target) {
    for addr in [0x10, u64::MAX - 31, 1 << 63] {
        indirect(target, |_, _, _, _| (format!("a table at {addr:#x}"), table_at(addr, 32)));
    }
}

pub(crate) fn r9_one_head_many_times(target: &Target) {
    let mut s = Session::start(target, &[]);
    let (unique, at, reply) = statfs_in_memory(&mut s);
    let queue = s.guest().frontend.queue(1);
    queue.ring().set_descriptor(7, &readable(at, 40, 8));
    queue.ring().set_descriptor(8, &writable(reply, 96));
    for _ in 0..256 {
        queue.ring().push(7);
    }
    queue.kick_if_wanted().unwrap();
    let used = queue.wait_used(256).unwrap();
    assert!(used.iter().all(|&entry| entry == (7, 96)), "{used:?}");
    assert_eq!(queue.region().bytes(reply + 8, 8), unique.to_le_bytes());
    s.guest().frontend.restart_queue(1).unwrap();
    s.finish();
}

pub(crate) fn r10_available_index_jumps(target: &Target) {
    let mut s = Session::start(target, &[]);
    let queue = s.guest().frontend.queue(1);
    let jumped = queue.ring().avail_idx().wrapping_add(20_000);
    queue.ring().force_avail_idx(jumped);
    queue.kick().unwrap();
    if s.wanted() {
        let queue = s.guest().frontend.queue(1);
        let err = queue.err_fd().as_raw_fd();
        assert!(wait_readable(&[err], patience()).unwrap()[0], "a broken ring is reported");
        assert!(queue.err_signalled());
        // Kicking on must not make it busy or talkative.
        for _ in 0..1000 {
            queue.kick().unwrap();
        }
        // The other queue and the control channel go on; a driver that resets the ring gets a working one.
        s.guest().forget(12345, 1).unwrap();
        s.guest().frontend.restart_queue(1).unwrap();
    } else {
        let deadline = Instant::now() + patience();
        while s.daemon().log_len() < 1 << 20 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(s.daemon().log_len() >= 1 << 20, "virtiofsd 1.14.0 floods its log");
    }
    s.finish();
}

pub(crate) fn r11_spurious_kicks(target: &Target) {
    let mut s = Session::start(target, &[]);
    let mut kick = std::fs::File::from(s.guest().frontend.queue(1).kick_fd().try_clone_to_owned().unwrap());
    for _ in 0..20_000 {
        // A full counter is a kick as good as any.
        let _ = kick.write_all(&1u64.to_ne_bytes());
    }
    let outcome = s.request(op::STATFS, ROOT, &[], 80);
    s.judge("a request afterwards", &outcome, &["ok"], &["ok"]);
    s.finish();
}

pub(crate) fn r12_overlapping_giants(target: &Target) {
    let mut s = Session::start(target, &[]);
    let f = s.guest().resolve("f").unwrap();
    let fh = s.guest().open(f, libc::O_RDONLY).unwrap().fh;
    let arg = Guest::read_arg(fh, 0, u32::MAX);
    let header = s.header(op::READ, f, arg.len());
    const GIANT: u64 = 24 << 20;
    let (region, giant) = s.alloc(GIANT);
    let (_, at) = s.alloc(0x1000);
    region.write(at, &[header.encode(), arg].concat());
    let mut table = vec![readable(at, 80, 1)];
    for next in 2..=256u16 {
        table.push(Descriptor { addr: giant, len: GIANT as u32, flags: DESC_WRITE | DESC_NEXT, next });
    }
    table.push(writable(giant, 4096));
    let outcome = s.send_table(header.unique, &table);
    s.judge("READ into 6 GiB of overlapping buffers", &outcome, &["ok", "EINVAL", "EIO", "used 0"], &[]);
    s.finish();
}

pub(crate) fn r13_exchanged_directions(target: &Target) {
    let mut s = Session::start(target, &[]);
    // Where the readable part begins is anybody's guess, so `unique` may be unknown.
    let want = [REFUSED, &["EINVAL for unique 0"]].concat();
    let (unique, at, reply) = statfs_in_memory(&mut s);
    let header = Descriptor { flags: DESC_WRITE | DESC_NEXT, ..readable(at, 40, 1) };
    let outcome = s.send_table(unique, &[header, Descriptor { flags: 0, ..writable(reply, 96) }]);
    s.judge("header writable, reply readable", &outcome, &want, &[]);
    let (unique, at, reply) = statfs_in_memory(&mut s);
    let first = Descriptor { flags: DESC_WRITE | DESC_NEXT, next: 1, ..writable(reply, 96) };
    let outcome = s.send_table(unique, &[first, Descriptor { flags: 0, ..readable(at, 40, 0) }]);
    s.judge("reply before the request", &outcome, &want, &[]);
    s.finish();
}

pub(crate) fn r14_request_changes_under_way(target: &Target) {
    let mut s = Session::start(target, &["--xattr"]);
    let (region, at) = s.alloc(0x3000);
    let stop = AtomicBool::new(false);
    let names: [&[u8]; 6] = [b"f\0", b"..", b"/\0", b"\0\0", b"a/", b"ab"];
    let mut failures = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 0usize;
            while !stop.load(Ordering::Relaxed) {
                region.write(at + 40, names[round % names.len()]);
                // Length and opcode change too; `unique` stays, since the reply is matched by it.
                let len: u32 = [42, 41, 40, 0, 4096, u32::MAX][round % 6];
                region.write(at, &len.to_le_bytes());
                let opcode = [op::LOOKUP, op::MKDIR, op::UNLINK, op::GETATTR, op::SYMLINK][round % 5];
                region.write(at + 4, &opcode.to_le_bytes());
                round += 1;
            }
        });
        let rounds = if s.wanted() { 3000 } else { 0 };
        for _ in 0..rounds {
            let header = s.header(op::LOOKUP, ROOT, 2);
            region.write(at, &header.encode());
            let outcome = s.send_table(header.unique, &[readable(at, 42, 1), writable(at + 0x1000, 4096)]);
            if outcome == "hang" || outcome.starts_with("exit") || outcome.starts_with("bad reply") {
                failures.push(outcome);
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(failures.is_empty(), "{failures:?}");
    // The probe may well have removed the file.
    s.guest().write_file("f", b"hello world").unwrap();
    s.finish();
}
