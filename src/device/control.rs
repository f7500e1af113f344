//! The front end's messages: features, memory, vrings, configuration, migration.
//!
//! `vhost` parses the messages and this answers them, in place of `vhost-user-backend`'s daemon, whose vrings and errors
//! are used: that daemon and the message parser call getsockopt(2) and shutdown(2), which virtiofsd's seccomp list
//! forbids (`connection` deals with the former), end a queue thread at the first bad kick, and never stop logging dirty
//! pages. A queue's thread is made when the front end first starts the queue.
//!
//! Invariants
//! (1) A kick descriptor is listened to exactly while its vring is started and enabled.
//! (2) GET_VRING_BASE and RESET_DEVICE answer only after every accepted request is published.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use vhost_user_backend::VringT;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Address, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::config_space::ConfigSpace;
use super::dirty_log::{DirtyLog, LogMemory};
use super::executor::Lane;
use super::message::Memory;
use super::migration::Migration;
use super::queue::{AtomicMemory, Ring};
use super::{MEMORY_SLOTS, QUEUE_SIZE_MAX};

/// virtio features, LOG_ALL to VERSION_1: 0x174000000.
const FEATURES: u64 = VhostUserVirtioFeatures::LOG_ALL.bits()
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_F_VERSION_1;

/// How often the log tells that a vring cannot be stopped yet.
const DRAIN_REPORT: Duration = Duration::from_secs(10);

/// Makes the worker of a ring.
pub(super) type SpawnWorker = Box<dyn Fn(Arc<Ring>) -> io::Result<Lane> + Send>;

/// What the file system does when the device changes state. Both may block.
pub(super) struct Hooks {
    /// Forgets the session.
    pub(super) reset: Box<dyn Fn() + Send>,
    /// Makes durable what was acknowledged.
    pub(super) stopped: Box<dyn Fn() + Send>,
}

/// One queue of the device.
struct Queue {
    ring: Arc<Ring>,
    lane: Option<Lane>,
}

/// A memory region: where the front end has it and where the guest has it.
struct Mapping {
    front_end: u64,
    guest: u64,
    len: u64,
}

/// The device as the front end sees it.
pub(super) struct Control {
    queues: Vec<Queue>,
    spawn: SpawnWorker,
    hooks: Hooks,
    memory: AtomicMemory,
    mappings: Vec<Mapping>,
    log: Option<Arc<LogMemory>>,
    config: ConfigSpace,
    migration: Migration,
    backend_channel: Option<File>,
    owned: bool,
    features: u64,
    protocol_features: u64,
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

impl Control {
    /// A device of `queue_count` queues (the first is hiprio) without memory or a front end. `spawn` makes a queue's
    /// worker.
    ///
    /// # Errors
    /// When a vring cannot be made.
    pub(super) fn new(
        queue_count: usize,
        config: ConfigSpace,
        migration: Migration,
        spawn: SpawnWorker,
        hooks: Hooks,
    ) -> std::result::Result<Control, virtio_queue::Error> {
        let memory = AtomicMemory::new(Memory::new());
        let queues = (0..queue_count)
            .map(|index| Ok(Queue { ring: Arc::new(Ring::new(index, memory.clone(), QUEUE_SIZE_MAX)?), lane: None }))
            .collect::<std::result::Result<_, virtio_queue::Error>>()?;
        Ok(Control {
            queues,
            spawn,
            hooks,
            memory,
            mappings: Vec::new(),
            log: None,
            config,
            migration,
            backend_channel: None,
            owned: false,
            features: 0,
            protocol_features: 0,
        })
    }

    /// Whether the front end has acknowledged a protocol feature.
    pub(super) fn has(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.protocol_features & feature.bits() != 0
    }

    /// Keeps the channel for requests to the front end. None is sent; it stays open because front ends watch it.
    pub(super) fn set_backend_channel(&mut self, channel: File) {
        self.backend_channel = Some(channel);
    }

    /// After the front end has gone: accepts nothing more, waits at most `patience` for what is in flight, and ends the
    /// workers. A worker that is stuck is left behind. Returns how many requests were not finished.
    pub(super) fn shut_down(&mut self, patience: Duration) -> usize {
        for queue in &mut self.queues {
            queue.ring.vring().set_enabled(false);
            if let Some(lane) = &mut queue.lane {
                lane.unlisten();
            }
        }
        let deadline = Instant::now() + patience;
        let mut unfinished = 0_usize;
        for queue in &mut self.queues {
            let left = queue.ring.in_flight().drain_until(deadline);
            unfinished = unfinished.saturating_add(left);
            if let Some(mut lane) = queue.lane.take() {
                lane.end(left == 0);
            }
            if queue.ring.malformed() > 0 {
                log::warn!("Virtqueue {}: {} malformed requests in all", queue.ring.index(), queue.ring.malformed());
            }
        }
        unfinished
    }

    fn queue(&mut self, index: u32) -> Result<&mut Queue> {
        usize::try_from(index).ok().and_then(|index| self.queues.get_mut(index)).ok_or(Error::InvalidParam)
    }

    /// Brings invariant (1) about for one queue.
    fn update(&mut self, index: u32) -> Result<()> {
        let index = usize::try_from(index).map_err(|_| Error::InvalidParam)?;
        let queue = self.queues.get_mut(index).ok_or(Error::InvalidParam)?;
        match queue.ring.kick() {
            Some(kick) if queue.ring.is_running() => {
                let lane = match &mut queue.lane {
                    Some(lane) => lane,
                    none => none.insert((self.spawn)(Arc::clone(&queue.ring)).map_err(Error::ReqHandlerError)?),
                };
                lane.listen(kick).map_err(Error::ReqHandlerError)
            }
            _ => {
                if let Some(lane) = &mut queue.lane {
                    lane.unlisten();
                }
                Ok(())
            }
        }
    }

    /// A vring starts when it has a kick descriptor.
    fn start_if_kicked(&mut self, index: u32) -> Result<()> {
        let queue = self.queue(index)?;
        if queue.ring.kick().is_some() && !queue.ring.is_started() {
            queue.ring.set_started(true);
        }
        self.update(index)
    }

    fn drain(ring: &Ring) {
        ring.in_flight().drain(DRAIN_REPORT, |left| {
            log::warn!("Virtqueue {}: waiting for {left} requests before it stops", ring.index());
        });
    }

    fn to_guest(&self, address: u64) -> Result<u64> {
        self.mappings
            .iter()
            .find_map(|mapping| {
                let offset = address.checked_sub(mapping.front_end)?;
                (offset < mapping.len).then(|| mapping.guest.checked_add(offset))?
            })
            .ok_or(Error::InvalidParam)
    }

    /// Lets `region` log its writes, if anything is logged.
    fn start_log(&self, region: &GuestRegionMmap<DirtyLog>, log: Option<&Arc<LogMemory>>) -> Result<()> {
        let Some(log) = log else { return Ok(()) };
        if !log.covers(region.last_addr().raw_value()) {
            return Err(failed("the dirty log is too small for the guest's memory"));
        }
        region.mapping_log().start(Arc::clone(log), region.start_addr().raw_value());
        Ok(())
    }

    fn replace_memory(&mut self, memory: Memory) -> Result<()> {
        self.memory.lock().map_err(|_| Error::BackendInternalError)?.replace(memory);
        Ok(())
    }
}

/// The log inside a region, without the slice that `GuestMemoryRegion::bitmap` wraps around it.
trait MappingLog {
    fn mapping_log(&self) -> &DirtyLog;
}

impl MappingLog for GuestRegionMmap<DirtyLog> {
    fn mapping_log(&self) -> &DirtyLog {
        let mapping: &vm_memory::MmapRegion<DirtyLog> = self;
        mapping.bitmap()
    }
}

fn map_region(region: &VhostUserMemoryRegion, file: File) -> Result<GuestRegionMmap<DirtyLog>> {
    GuestRegionMmap::new(region.mmap_region(file)?, GuestAddress(region.guest_phys_addr))
        .ok_or_else(|| Error::ReqHandlerError(io::ErrorKind::InvalidInput.into()))
}

fn mapping(region: &VhostUserMemoryRegion) -> Mapping {
    Mapping { front_end: region.user_addr, guest: region.guest_phys_addr, len: region.memory_size }
}

impl VhostUserBackendReqHandlerMut for Control {
    fn set_owner(&mut self) -> Result<()> {
        if self.owned {
            return Err(Error::InvalidOperation("already claimed"));
        }
        self.owned = true;
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.owned = false;
        self.features = 0;
        self.protocol_features = 0;
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        for index in 0..self.queues.len() {
            let index = u32::try_from(index).map_err(|_| Error::InvalidParam)?;
            self.queue(index)?.ring.vring().set_enabled(false);
            self.update(index)?;
        }
        for queue in &self.queues {
            Control::drain(&queue.ring);
            queue.ring.mend();
        }
        self.features = 0;
        (self.hooks.reset)();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::InvalidParam);
        }
        let before = std::mem::replace(&mut self.features, features);
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        for index in 0..self.queues.len() {
            let index = u32::try_from(index).map_err(|_| Error::InvalidParam)?;
            let ring = Arc::clone(&self.queue(index)?.ring);
            ring.vring().set_queue_event_idx(event_idx);
            // Without protocol features there is no SET_VRING_ENABLE: vrings are enabled from the start.
            if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
                ring.vring().set_enabled(true);
                self.update(index)?;
            }
        }
        let logging = features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0;
        if !logging && before & VhostUserVirtioFeatures::LOG_ALL.bits() != 0 {
            self.log = None;
            let memory = self.memory.memory();
            memory.iter().for_each(|region| region.mapping_log().stop());
        }
        self.migration.announce(logging);
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mapped =
            regions.iter().zip(files).map(|(region, file)| map_region(region, file)).collect::<Result<Vec<_>>>()?;
        for region in &mapped {
            self.start_log(region, self.log.as_ref())?;
        }
        self.replace_memory(Memory::from_regions(mapped).map_err(failed)?)?;
        self.mappings = regions.iter().map(mapping).collect();
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let queue = self.queue(index)?;
        match u16::try_from(num) {
            Ok(num) if num > 0 && num <= QUEUE_SIZE_MAX => {
                queue.ring.vring().set_queue_size(num);
                Ok(())
            }
            _ => {
                log::error!("Virtqueue {index}: size {num} is not between 1 and {QUEUE_SIZE_MAX}");
                Err(Error::InvalidParam)
            }
        }
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let (descriptor, available, used) =
            (self.to_guest(descriptor)?, self.to_guest(available)?, self.to_guest(used)?);
        let vring = self.queue(index)?.ring.vring();
        vring.set_queue_info(descriptor, available, used).map_err(|_| Error::InvalidParam)?;
        // SET_VRING_BASE carries only the available index; the used index is where the guest's ring stands.
        let next_used = vring.queue_used_idx().map_err(|_| Error::BackendInternalError)?;
        vring.set_queue_next_used(next_used);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base & 0xffff).map_err(|_| Error::InvalidParam)?;
        self.queue(index)?.ring.vring().set_queue_next_avail(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let ring = Arc::clone(&self.queue(index)?.ring);
        ring.set_started(false);
        self.update(index)?;
        Control::drain(&ring);
        if !self.queues.iter().any(|queue| queue.ring.is_started()) {
            (self.hooks.stopped)();
        }
        let base = ring.vring().queue_next_avail();
        ring.set_kick(None);
        ring.vring().set_call(None);
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.queue(u32::from(index))?.ring.set_kick(file);
        self.start_if_kicked(u32::from(index))
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.queue(u32::from(index))?.ring.vring().set_call(file);
        self.start_if_kicked(u32::from(index))
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.queue(u32::from(index))?.ring.set_err(file);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::DEVICE_STATE;
        // QEMU 7.1 to 8.0 crashes when it is offered a configuration space that it did not ask for.
        if self.config.has_tag() {
            features |= VhostUserProtocolFeatures::CONFIG;
        }
        Ok(features)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.protocol_features = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.queues.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        if self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return Err(Error::InactiveFeature(VhostUserVirtioFeatures::PROTOCOL_FEATURES));
        }
        self.queue(index)?.ring.vring().set_enabled(enable);
        self.update(index)
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Ok(self.config.read(offset, size))
    }

    fn set_config(&mut self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        // Every field is read-only; writes are ignored, as the virtio specification has it.
        Ok(())
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("not a GPU"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("no shared objects"))
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("not supported"))
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("not supported"))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MEMORY_SLOTS)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let mapped = map_region(region, file)?;
        self.start_log(&mapped, self.log.as_ref())?;
        let memory = self.memory.memory().insert_region(Arc::new(mapped)).map_err(failed)?;
        self.replace_memory(memory)?;
        self.mappings.push(mapping(region));
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (memory, _) = self
            .memory
            .memory()
            .remove_region(GuestAddress(region.guest_phys_addr), region.memory_size)
            .map_err(failed)?;
        self.replace_memory(memory)?;
        self.mappings.retain(|mapping| mapping.guest != region.guest_phys_addr);
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        direction: VhostTransferStateDirection,
        phase: VhostTransferStatePhase,
        file: File,
    ) -> Result<Option<File>> {
        self.migration.start(direction, phase, file).map_err(Error::ReqHandlerError)?;
        Ok(None)
    }

    fn check_device_state(&mut self) -> Result<()> {
        self.migration.check().map_err(Error::ReqHandlerError)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("no shared memory regions"))
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let log = Arc::new(LogMemory::map(file, log.mmap_offset, log.mmap_size).map_err(Error::ReqHandlerError)?);
        let memory = self.memory.memory();
        if memory.iter().any(|region| !log.covers(region.last_addr().raw_value())) {
            return Err(failed("the dirty log is too small for the guest's memory"));
        }
        for region in memory.iter() {
            self.start_log(region, Some(&log))?;
        }
        self.log = Some(log);
        Ok(())
    }
}
