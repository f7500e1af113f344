//! The whole device behind its socket.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::message::{GuestSink, GuestSource};
use super::super::{Config, Serve, StartError, serve};
use super::driver::{event, raised};
use super::front_end::{
    CHECK_DEVICE_STATE, FrontEnd, GET_CONFIG, GET_FEATURES, GET_MAX_MEM_SLOTS, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM,
    GET_VRING_BASE, RESET_DEVICE, SET_BACKEND_REQ_FD, SET_DEVICE_STATE_FD, SET_FEATURES, SET_LOG_BASE, SET_MEM_TABLE,
    SET_OWNER, SET_PROTOCOL_FEATURES, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ENABLE, SET_VRING_KICK,
    SET_VRING_NUM, u32s, u64s,
};
use crate::fs::{Migrate, Sink, Source};

const FEATURES: u64 = 0x1_7400_0000;
const LOG_ALL: u64 = 1 << 26;
const EVENT_IDX: u64 = 1 << 29;
const MEMORY_LEN: u64 = 16 << 20;
/// Where the front end claims to have the guest's memory.
const FRONT_END: u64 = 0x7000_0000_0000;

/// Answers with the request's bytes.
#[derive(Default)]
struct Echo {
    resets: AtomicUsize,
    stops: AtomicUsize,
}

impl Serve for Echo {
    async fn serve(&self, mut request: GuestSource, mut reply: GuestSink) -> u32 {
        let mut data = vec![0; request.remaining()];
        request.take(&mut data).unwrap();
        reply.put(&data).map_or(0, |()| u32::try_from(data.len()).unwrap())
    }

    async fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    async fn stopped(&self) {
        self.stops.fetch_add(1, Ordering::Relaxed);
    }
}

/// State that can move: four bytes.
#[derive(Default)]
struct Cargo {
    prepared: AtomicUsize,
    cancelled: AtomicBool,
    loaded: Mutex<Vec<u8>>,
}

impl Migrate for Cargo {
    fn prepare_save(&self, cancel: &Arc<AtomicBool>) {
        self.prepared.fetch_add(1, Ordering::SeqCst);
        let deadline = Instant::now() + Duration::from_millis(200);
        while Instant::now() < deadline && !cancel.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        self.cancelled.store(cancel.load(Ordering::Relaxed), Ordering::SeqCst);
    }

    fn save(&self, mut pipe: File) -> std::io::Result<()> {
        pipe.write_all(b"data")
    }

    fn load(&self, mut pipe: File) -> std::io::Result<()> {
        let mut data = Vec::new();
        pipe.read_to_end(&mut data)?;
        if data != b"data" {
            return Err(std::io::Error::other("not our state"));
        }
        *self.loaded.lock().unwrap() = data;
        Ok(())
    }
}

struct Device {
    front_end: FrontEnd,
    echo: Arc<Echo>,
    thread: JoinHandle<Result<(), StartError>>,
    memory: File,
}

impl Device {
    fn start(config: Config, migrate: Option<Arc<dyn Migrate>>) -> Device {
        Device::start_with(config, migrate, || ())
    }

    /// `confine` runs on the device's thread first.
    fn start_with(config: Config, migrate: Option<Arc<dyn Migrate>>, confine: fn()) -> Device {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let front_end = UnixStream::connect(&path).unwrap();
        front_end.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let echo = Arc::new(Echo::default());
        let server = echo.clone();
        let thread = std::thread::spawn(move || {
            confine();
            serve(&config, server, migrate, &listener)
        });
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(MEMORY_LEN).unwrap();
        Device { front_end: FrontEnd(front_end), echo, thread, memory }
    }

    fn negotiate(&self, features: u64) {
        let front_end = &self.front_end;
        front_end.tell(SET_OWNER, &[]);
        assert_eq!(front_end.ask_u64(GET_FEATURES, &[], &[]), FEATURES);
        let offered = front_end.ask_u64(GET_PROTOCOL_FEATURES, &[], &[]);
        front_end.tell(SET_PROTOCOL_FEATURES, &u64s(&[offered]));
        front_end.set(SET_FEATURES, &u64s(&[features]), &[]);
        let regions = [u32s(&[1, 0]), u64s(&[0, MEMORY_LEN, FRONT_END, 0])].concat();
        front_end.set(SET_MEM_TABLE, &regions, &[&self.memory]);
    }

    /// Starts queue `index` with 8 descriptors at 1 MiB * (index + 1); returns its kick and call events.
    fn start_queue(&self, index: u32) -> (File, File) {
        let (kick, call) = (event(), event());
        let at = FRONT_END + (u64::from(index) + 1) * 0x10_0000;
        let front_end = &self.front_end;
        front_end.set(SET_VRING_NUM, &u32s(&[index, 8]), &[]);
        front_end.set(SET_VRING_BASE, &u32s(&[index, 0]), &[]);
        let addresses = [u32s(&[index, 0]), u64s(&[at, at + 0x2000, at + 0x1000, 0])].concat();
        front_end.set(SET_VRING_ADDR, &addresses, &[]);
        front_end.set(SET_VRING_KICK, &u64s(&[u64::from(index)]), &[&kick]);
        front_end.set(SET_VRING_CALL, &u64s(&[u64::from(index)]), &[&call]);
        front_end.set(SET_VRING_ENABLE, &u32s(&[index, 1]), &[]);
        (kick, call)
    }

    fn put(&self, addr: u64, data: &[u8]) {
        std::os::unix::fs::FileExt::write_all_at(&self.memory, data, addr).unwrap();
    }

    fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        std::os::unix::fs::FileExt::read_exact_at(&self.memory, &mut data, addr).unwrap();
        data
    }

    /// Puts the `n`-th request into queue `index`, without a kick.
    fn offer(&self, index: u32, n: u16, request: &[u8]) {
        let at = (u64::from(index) + 1) * 0x10_0000;
        let data = at + 0x8000;
        self.put(data, request);
        let len = u32::try_from(request.len()).unwrap();
        self.put(at, &[u64s(&[data]), u32s(&[len, 1 | 1 << 16])].concat());
        self.put(at + 16, &[u64s(&[data + 0x1000]), u32s(&[64, 2])].concat());
        self.put(at + 0x1004 + u64::from(n % 8) * 2, &0_u16.to_ne_bytes());
        self.put(at + 0x1002, &(n + 1).to_ne_bytes());
    }

    /// Waits until the used index of queue `index` is `n`.
    fn wait_used(&self, index: u32, n: u16) -> Vec<u8> {
        let at = (u64::from(index) + 1) * 0x10_0000;
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.get(at + 0x2002, 2) != n.to_ne_bytes() {
            assert!(Instant::now() < deadline, "queue {index}");
            std::thread::yield_now();
        }
        let len = self.get(at + 0x2004 + u64::from((n - 1) % 8) * 8 + 4, 4);
        let len = u32::from_ne_bytes(len.try_into().unwrap()) as usize;
        self.get(at + 0x9000, len)
    }

    fn disconnect(self) {
        drop(self.front_end);
        self.thread.join().unwrap().unwrap();
    }
}

fn kick(mut kick: &File) {
    kick.write_all(&1_u64.to_ne_bytes()).unwrap();
}

/// The whole life of a device that QEMU would lead it through.
fn life(device: Device) {
    device.negotiate(FEATURES & !EVENT_IDX & !LOG_ALL);
    let (channel, _theirs) = UnixStream::pair().unwrap();
    let channel = File::from(std::os::fd::OwnedFd::from(channel));
    device.front_end.set(SET_BACKEND_REQ_FD, &[], &[&channel]);
    for index in [0, 1, 8] {
        let (kicks, calls) = device.start_queue(index);
        for n in 0..3 {
            device.offer(index, n, format!("request {n}").as_bytes());
            kick(&kicks);
            assert_eq!(device.wait_used(index, n + 1), format!("request {n}").as_bytes());
        }
        assert!(raised(&calls) >= 1);
    }
    device.front_end.set(RESET_DEVICE, &[], &[]);
    assert_eq!(device.echo.resets.load(Ordering::Relaxed), 1);
    device.front_end.set(SET_FEATURES, &u64s(&[FEATURES & !EVENT_IDX & !LOG_ALL]), &[]);
    let base = device.front_end.ask(GET_VRING_BASE, &u32s(&[1, 0]), &[]);
    assert_eq!(base, u32s(&[1, 3]));
    device.front_end.ask(GET_VRING_BASE, &u32s(&[0, 0]), &[]);
    assert_eq!(device.echo.stops.load(Ordering::Relaxed), 0);
    device.front_end.ask(GET_VRING_BASE, &u32s(&[8, 0]), &[]);
    assert_eq!(device.echo.stops.load(Ordering::Relaxed), 1, "the last queue has stopped");
    device.disconnect();
}

#[test]
fn a_device_from_connection_to_disconnect() {
    life(Device::start(Config { tag: Some("share".to_owned()), ..Config::default() }, None));
}

#[test]
fn a_device_with_a_thread_pool() {
    life(Device::start(Config { thread_pool_size: 3, ..Config::default() }, None));
}

#[test]
fn the_device_needs_no_system_call_outside_the_list() {
    // KILL ends the whole test process: nothing to be mistaken for success.
    let confine = || {
        virtiofsd::seccomp::enable_seccomp(virtiofsd::seccomp::SeccompAction::Kill, false).unwrap();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert!(status.contains("Seccomp:\t2"), "the filter is on: {status}");
    };
    life(Device::start_with(Config { thread_pool_size: 1, ..Config::default() }, None, confine));
}

#[test]
fn feature_words_queues_and_limits() {
    for (tag, protocol) in [(None, 0x8a42b), (Some("t".to_owned()), 0x8a62b)] {
        let device = Device::start(Config { tag, ..Config::default() }, None);
        let front_end = &device.front_end;
        assert_eq!(front_end.ask_u64(GET_FEATURES, &[], &[]), FEATURES);
        assert_eq!(front_end.ask_u64(GET_PROTOCOL_FEATURES, &[], &[]), protocol);
        front_end.tell(SET_PROTOCOL_FEATURES, &u64s(&[protocol]));
        assert_eq!(front_end.ask_u64(GET_QUEUE_NUM, &[], &[]), 9);
        assert_eq!(front_end.ask_u64(GET_MAX_MEM_SLOTS, &[], &[]), 509);
        if protocol & 1 << 9 != 0 {
            let space = front_end.ask(GET_CONFIG, &[u32s(&[0, 40, 0]), vec![0; 40]].concat(), &[]);
            assert_eq!(space[12..14], *b"t\0");
            assert_eq!(space[48..], [1, 0, 0, 0]);
            let byte = front_end.ask(GET_CONFIG, &[u32s(&[36, 1, 0]), vec![0; 1]].concat(), &[]);
            assert_eq!(byte[12..], [1]);
        }
        device.disconnect();
    }
}

#[test]
fn a_kick_before_the_queue_is_enabled_is_not_lost() {
    let device = Device::start(Config::default(), None);
    device.negotiate(FEATURES & !LOG_ALL);
    let (kicks, _calls) = device.start_queue(1);
    device.front_end.set(SET_VRING_ENABLE, &u32s(&[1, 0]), &[]);
    device.offer(1, 0, b"early");
    kick(&kicks);
    device.front_end.set(SET_VRING_ENABLE, &u32s(&[1, 1]), &[]);
    assert_eq!(device.wait_used(1, 1), b"early");
    device.disconnect();
}

#[test]
fn the_kick_descriptor_may_be_replaced_while_the_queue_runs() {
    let device = Device::start(Config::default(), None);
    device.negotiate(FEATURES & !LOG_ALL);
    let (_old, _calls) = device.start_queue(1);
    let new = event();
    device.front_end.set(SET_VRING_KICK, &u64s(&[1]), &[&new]);
    device.offer(1, 0, b"again");
    kick(&new);
    assert_eq!(device.wait_used(1, 1), b"again");
    device.disconnect();
}

#[test]
fn a_queue_can_be_stopped_and_started_again() {
    let device = Device::start(Config::default(), None);
    device.negotiate(FEATURES & !LOG_ALL);
    for _ in 0..3 {
        let (kicks, _calls) = device.start_queue(1);
        device.offer(1, 0, b"round");
        kick(&kicks);
        assert_eq!(device.wait_used(1, 1), b"round");
        assert_eq!(device.front_end.ask(GET_VRING_BASE, &u32s(&[1, 0]), &[]), u32s(&[1, 1]));
        device.put(0x20_1002, &[0; 2]);
        device.put(0x20_2002, &[0; 2]);
    }
    device.disconnect();
}

#[test]
fn dirty_pages_are_logged_until_the_migration_is_called_off() {
    let device = Device::start(Config::default(), None);
    device.negotiate(FEATURES & !LOG_ALL);
    let mut log = tempfile::tempfile().unwrap();
    log.set_len(4096).unwrap();
    device.front_end.ask(SET_LOG_BASE, &u64s(&[4096, 0]), &[&log]);
    device.front_end.set(SET_FEATURES, &u64s(&[FEATURES]), &[]);
    let (kicks, _calls) = device.start_queue(1);
    let dirty = |log: &mut File, page: usize| {
        let mut bits = [0; 4096];
        log.rewind().unwrap();
        log.read_exact(&mut bits).unwrap();
        bits[page / 8] >> (page % 8) & 1 == 1
    };
    device.offer(1, 0, b"dirty");
    kick(&kicks);
    device.wait_used(1, 1);
    assert!(dirty(&mut log, 0x209), "the reply");
    assert!(dirty(&mut log, 0x202), "the used ring");
    assert!(!dirty(&mut log, 0x208), "the request");
    device.front_end.set(SET_FEATURES, &u64s(&[FEATURES & !LOG_ALL]), &[]);
    log.rewind().unwrap();
    log.write_all(&[0; 4096]).unwrap();
    device.offer(1, 1, b"clean");
    kick(&kicks);
    device.wait_used(1, 2);
    assert!(!dirty(&mut log, 0x209));
    device.disconnect();
}

#[test]
fn device_state_moves_out_and_in() {
    let cargo = Arc::new(Cargo::default());
    let device = Device::start(Config::default(), Some(cargo.clone()));
    device.negotiate(FEATURES);
    let (mut read, write) = pipe();
    assert_eq!(device.front_end.ask_u64(SET_DEVICE_STATE_FD, &u32s(&[0, 0]), &[&write]), 0x100);
    drop(write);
    assert_eq!(device.front_end.ask_u64(CHECK_DEVICE_STATE, &[], &[]), 0);
    let mut state = Vec::new();
    read.read_to_end(&mut state).unwrap();
    assert_eq!(state, b"data");
    assert_eq!(cargo.prepared.load(Ordering::SeqCst), 1, "prepared once, when it was announced");

    for (sent, result) in [(&b"data"[..], 0), (b"junk", 1)] {
        let (read, mut write) = pipe();
        assert_eq!(device.front_end.ask_u64(SET_DEVICE_STATE_FD, &u32s(&[1, 0]), &[&read]), 0x100);
        write.write_all(sent).unwrap();
        drop((write, read));
        assert_eq!(device.front_end.ask_u64(CHECK_DEVICE_STATE, &[], &[]), result);
    }
    assert_eq!(*cargo.loaded.lock().unwrap(), b"data");
    assert_eq!(device.front_end.ask_u64(CHECK_DEVICE_STATE, &[], &[]), 1, "there was no transfer");
    device.disconnect();
}

#[test]
fn a_migration_that_is_called_off_stops_its_preparation() {
    let cargo = Arc::new(Cargo::default());
    let device = Device::start(Config::default(), Some(cargo.clone()));
    device.negotiate(FEATURES);
    device.front_end.set(SET_FEATURES, &u64s(&[FEATURES & !LOG_ALL]), &[]);
    assert!(cargo.cancelled.load(Ordering::SeqCst));
    device.disconnect();
}

#[test]
fn a_file_system_that_cannot_move_says_so_and_serves_on() {
    let device = Device::start(Config::default(), None);
    device.negotiate(FEATURES);
    let (_read, write) = pipe();
    assert_eq!(device.front_end.ask_u64(SET_DEVICE_STATE_FD, &u32s(&[0, 0]), &[&write]), 0x101);
    assert_eq!(device.front_end.ask_u64(CHECK_DEVICE_STATE, &[], &[]), 1);
    let (kicks, _calls) = device.start_queue(1);
    device.offer(1, 0, b"still here");
    kick(&kicks);
    assert_eq!(device.wait_used(1, 1), b"still here");
    device.disconnect();
}

#[test]
fn garbage_ends_the_connection_and_nothing_else() {
    for garbage in [&b"GET / HTTP/1.0\r\n\r\n"[..], b"x", &[0xff; 4096]] {
        let device = Device::start(Config::default(), None);
        _ = (&device.front_end.0).write_all(garbage);
        device.disconnect();
    }
}

#[test]
fn a_socket_that_does_not_listen_fails_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    let connected = UnixStream::connect(dir.path().join("socket")).unwrap();
    let not_listening = UnixListener::from(std::os::fd::OwnedFd::from(connected));
    drop(listener);
    let error = serve(&Config::default(), Arc::new(Echo::default()), None, &not_listening).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Failed to start daemon: CreateBackendListener(SocketError(Os { code: 22, kind: InvalidInput, message: \
         \"Invalid argument\" }))"
    );
}

fn pipe() -> (File, File) {
    let (read, write) = std::io::pipe().unwrap();
    (File::from(std::os::fd::OwnedFd::from(read)), File::from(std::os::fd::OwnedFd::from(write)))
}

#[test]
fn a_guest_that_breaks_one_ring_keeps_the_others_and_the_connection() {
    let device = Device::start(Config::default(), None);
    device.negotiate(FEATURES & !LOG_ALL);
    let (broken_kicks, _broken_calls) = device.start_queue(1);
    let (kicks, _calls) = device.start_queue(2);
    device.put(0x20_1002, &20_000_u16.to_ne_bytes());
    kick(&broken_kicks);
    device.offer(2, 0, b"other");
    kick(&kicks);
    assert_eq!(device.wait_used(2, 1), b"other");
    // A reset of the device puts the ring back into service.
    device.put(0x20_1002, &[0; 2]);
    device.front_end.set(RESET_DEVICE, &[], &[]);
    device.front_end.set(SET_FEATURES, &u64s(&[FEATURES & !LOG_ALL]), &[]);
    let (kicks, _calls) = device.start_queue(1);
    device.offer(1, 0, b"mended");
    kick(&kicks);
    assert_eq!(device.wait_used(1, 1), b"mended");
    device.disconnect();
}
