//! A VMM's side of one device: the connection, guest memory, and the queues with their life cycle.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::daemon::patience;
use crate::error::Error;
use crate::memory::{Arena, Region};
use crate::queue::{Queue, Shape};
use crate::ring::Ring;
use crate::vhost_user::{Connection, MemoryRegion, VringAddr, feature, protocol};

/// What a front-end asks for.
#[derive(Clone, Debug)]
pub struct Config {
    /// Bytes of guest memory.
    pub memory: u64,
    /// Guest-physical address of that memory.
    pub gpa: u64,
    /// Request queues to use; more than the device has means all of them.
    pub request_queues: u32,
    /// Entries per queue.
    pub queue_size: u16,
    /// Virtio features to accept when offered.
    pub features: u64,
    /// Protocol features to accept when offered.
    pub protocol: u64,
    /// Pass memory by ADD_MEM_REG instead of SET_MEM_TABLE.
    pub mem_slots: bool,
    /// Log writes to the used rings into the dirty log, when there is one.
    pub log_used: bool,
    /// Descriptor layout of requests.
    pub shape: Shape,
    /// Limit of every single wait.
    pub timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            memory: 64 << 20,
            gpa: 0x1_4000_0000,
            request_queues: 1,
            queue_size: 512,
            features: feature::INDIRECT_DESC | feature::EVENT_IDX | feature::PROTOCOL_FEATURES | feature::VERSION_1,
            protocol: protocol::MQ
                | protocol::LOG_SHMFD
                | protocol::REPLY_ACK
                | protocol::CONFIG
                | protocol::RESET_DEVICE
                | protocol::CONFIGURE_MEM_SLOTS
                | protocol::DEVICE_STATE,
            mem_slots: false,
            log_used: false,
            shape: Shape::default(),
            timeout: patience(),
        }
    }
}

impl Config {
    /// The same without a virtio feature.
    pub fn without(mut self, feature: u64) -> Config {
        self.features &= !feature;
        self
    }
}

/// A connected, running device.
#[derive(Debug)]
pub struct Frontend {
    /// The control channel.
    pub control: Connection,
    config: Config,
    offered: u64,
    offered_protocol: u64,
    accepted: u64,
    queue_count: u64,
    region: Arc<Region>,
    queues: Vec<Option<Queue>>,
    slices: Vec<(u64, u64)>,
}

impl Frontend {
    /// Connects, negotiates and starts the queues.
    pub fn connect(socket: &Path, config: &Config) -> Result<Frontend, Error> {
        let mut control = Connection::connect(socket, config.timeout)?;
        let offered = control.get_features()?;
        let offered_protocol = control.get_protocol_features()?;
        control.set_protocol_features(offered_protocol & config.protocol)?;
        let queue_count = control.get_queue_num()?;
        control.set_owner()?;
        let accepted = offered & config.features;
        control.set_features(accepted)?;
        let region = Region::new(config.gpa, config.memory)?;
        let mut frontend = Frontend {
            control,
            config: config.clone(),
            offered,
            offered_protocol,
            accepted,
            queue_count,
            region,
            queues: Vec::new(),
            slices: Vec::new(),
        };
        frontend.share_memory()?;
        let queues = config.request_queues.saturating_add(1).min(queue_count as u32);
        frontend.start_queues(queues)?;
        Ok(frontend)
    }

    fn share_memory(&mut self) -> Result<(), Error> {
        let entry = describe(&self.region);
        if self.config.mem_slots {
            self.control.add_mem_reg(&entry, self.region.file().as_fd())
        } else {
            self.control.set_mem_table(&[(entry, self.region.file().as_fd())])
        }
    }

    fn start_queues(&mut self, queues: u32) -> Result<(), Error> {
        let share = self.config.memory / u64::from(queues) / 4096 * 4096;
        for index in 0..queues {
            self.slices.push((self.config.gpa + share * u64::from(index), share));
            self.queues.push(None);
            self.start_queue(index, 0)?;
        }
        Ok(())
    }

    /// Virtio features on offer.
    pub fn offered_features(&self) -> u64 {
        self.offered
    }

    /// Protocol features on offer.
    pub fn offered_protocol_features(&self) -> u64 {
        self.offered_protocol
    }

    /// Virtio features in use.
    pub fn features(&self) -> u64 {
        self.accepted
    }

    /// What GET_QUEUE_NUM answered.
    pub fn queue_count(&self) -> u64 {
        self.queue_count
    }

    /// Number of queues started, the high-priority queue included.
    pub fn queues(&self) -> u32 {
        self.queues.len() as u32
    }

    /// Main guest memory.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// A running queue.
    pub fn queue(&mut self, index: u32) -> &mut Queue {
        match self.queues.get_mut(index as usize) {
            Some(Some(queue)) => queue,
            _ => panic!("queue {index} is not running"),
        }
    }

    /// Takes a queue out, to drive it from a thread of its own.
    pub fn take_queue(&mut self, index: u32) -> Option<Queue> {
        self.queues.get_mut(index as usize)?.take()
    }

    /// Puts a taken queue back.
    pub fn put_queue(&mut self, queue: Queue) {
        let index = queue.index() as usize;
        self.queues[index] = Some(queue);
    }

    /// Sets up ring `index` afresh, with its indices starting at `base`, and enables it.
    pub fn start_queue(&mut self, index: u32, base: u16) -> Result<(), Error> {
        let (start, len) = self.slices[index as usize];
        let size = self.config.queue_size;
        let event_idx = self.accepted & feature::EVENT_IDX != 0;
        let ring = Ring::new(self.region.clone(), start, size, event_idx, base);
        let used = Ring::footprint(size);
        let arena = Arena::new(start + used, len - used);
        let indirect = self.accepted & feature::INDIRECT_DESC != 0;
        let shape = Shape { indirect: indirect && self.config.shape.indirect, ..self.config.shape };
        let timeout = self.config.timeout;
        let control = self.control.socket().as_fd();
        let mut queue = Queue::new(index, ring, self.region.clone(), arena, shape, control, timeout)?;
        self.attach(&mut queue, base)?;
        self.queues[index as usize] = Some(queue);
        Ok(())
    }

    /// Tells the device about a queue, as it is, and enables it.
    pub fn attach(&mut self, queue: &mut Queue, base: u16) -> Result<(), Error> {
        let index = queue.index();
        let region = self.region.clone();
        let (size, desc, avail, used) = {
            let ring = queue.ring();
            (ring.size(), ring.desc_addr(), ring.avail_addr(), ring.used_addr())
        };
        let addr = VringAddr {
            desc: region.user_addr(desc),
            used: region.user_addr(used),
            avail: region.user_addr(avail),
            log: self.config.log_used.then_some(used),
        };
        self.control.set_vring_num(index, size.into())?;
        self.control.set_vring_addr(index, &addr)?;
        self.control.set_vring_base(index, base.into())?;
        self.control.set_vring_call(index, Some(queue.call_fd()))?;
        self.control.set_vring_err(index, Some(queue.err_fd()))?;
        self.control.set_vring_kick(index, Some(queue.kick_fd()))?;
        self.control.set_vring_enable(index, true)
    }

    /// Stops ring `index` and returns where the device stands in it; the queue and its memory are kept until the next
    /// start.
    pub fn stop_queue(&mut self, index: u32) -> Result<u32, Error> {
        self.control.get_vring_base(index)
    }

    /// Stops ring `index` and starts it empty, as a guest driver does after a reset.
    pub fn restart_queue(&mut self, index: u32) -> Result<(), Error> {
        self.control.set_vring_enable(index, false)?;
        self.stop_queue(index)?;
        self.start_queue(index, 0)
    }

    /// Negotiates again and starts every queue empty, after RESET_DEVICE.
    pub fn restart_device(&mut self) -> Result<(), Error> {
        self.control.set_features(self.accepted)?;
        for index in 0..self.queues() {
            self.start_queue(index, 0)?;
        }
        Ok(())
    }

    /// Adds a further memory region.
    pub fn hot_add(&mut self, region: &Region) -> Result<(), Error> {
        self.control.add_mem_reg(&describe(region), region.file().as_fd())
    }

    /// Removes a region added by [`Frontend::hot_add`].
    pub fn hot_remove(&mut self, region: &Region) -> Result<(), Error> {
        self.control.rem_mem_reg(&describe(region))
    }

    /// Hands over a dirty log that covers guest memory and switches logging on.
    pub fn start_dirty_log(&mut self) -> Result<DirtyLog, Error> {
        let pages = (self.region.gpa() + self.region.size()) / 4096;
        let bytes = pages.div_ceil(8).next_multiple_of(4096);
        let log = Region::new(0, bytes)?;
        self.control.set_log_base(bytes, log.file().as_fd())?;
        self.accepted |= feature::LOG_ALL & self.offered;
        self.control.set_features(self.accepted)?;
        Ok(DirtyLog { log })
    }

    /// Switches dirty logging off.
    pub fn stop_dirty_log(&mut self) -> Result<(), Error> {
        self.accepted &= !feature::LOG_ALL;
        self.control.set_features(self.accepted)
    }

    /// Saves the device's state through DEVICE_STATE: the bytes and the verdict of CHECK_DEVICE_STATE.
    pub fn save_state(&mut self) -> Result<(Vec<u8>, u64), Error> {
        let (reader, writer) = io::pipe()?;
        self.begin_transfer(false, writer.as_fd())?;
        drop(writer);
        let mut state = Vec::new();
        io::Read::read_to_end(&mut { reader }, &mut state)?;
        Ok((state, self.control.check_device_state()?))
    }

    /// Loads a device state; the verdict of CHECK_DEVICE_STATE.
    pub fn load_state(&mut self, state: &[u8]) -> Result<u64, Error> {
        let (reader, writer) = io::pipe()?;
        self.begin_transfer(true, reader.as_fd())?;
        drop(reader);
        // The device may refuse early and close its end; its verdict is what counts.
        let _ = io::Write::write_all(&mut { writer }, state);
        self.control.check_device_state()
    }

    fn begin_transfer(&mut self, load: bool, fd: BorrowedFd) -> Result<(), Error> {
        match self.control.set_device_state_fd(load, fd)? {
            0x100 => Ok(()),
            code => Err(Error::Refused { request: "SET_DEVICE_STATE_FD", code }),
        }
    }
}

fn describe(region: &Region) -> MemoryRegion {
    MemoryRegion { gpa: region.gpa(), size: region.size(), user_addr: region.user_addr(region.gpa()), offset: 0 }
}

/// The dirty log: one bit per guest page.
#[derive(Debug)]
pub struct DirtyLog {
    log: Arc<Region>,
}

impl DirtyLog {
    /// Whether the page of `gpa` is marked.
    pub fn is_dirty(&self, gpa: u64) -> bool {
        let page = gpa / 4096;
        self.log.bytes(page / 8, 1)[0] & (1 << (page % 8)) != 0
    }

    /// Number of marked pages.
    pub fn count(&self) -> u32 {
        self.log.bytes(0, self.log.size() as usize).iter().map(|b| b.count_ones()).sum()
    }

    /// Clears all marks.
    pub fn clear(&self) {
        self.log.fill(0, self.log.size(), 0);
    }
}
