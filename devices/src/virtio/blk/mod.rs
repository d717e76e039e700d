//! Disks (VIRTIO 1.2, section 5.2): raw files and block devices.
//!
//! ```text
//! kick ─► Worker ─► Request::parse ─► Job ─► Engine ─► Ring (io_uring) ─┐
//!           ▲                                   └────► blocking calls ──┤
//!           └──────────────── status byte, used ring ◄──────────────────┘
//! ```

#[expect(unsafe_code, reason = "hands guest memory to the kernel: io_uring, preadv2, ioctls")]
pub mod io;
mod polling;
pub mod request;
mod worker;

#[cfg(test)]
mod tests;

use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::service::Service;
use super::{Activation, DeviceControl, DeviceKind, VirtioDevice};
use crate::io_thread::{IoThread, SubscriberId};
use crate::rate_limit::{Limits, RateLimit, Throttle};
use io::{Engine, Image, ImageError};
use request::{ID_LEN, MAX_CLEAR_SECTORS, SECTOR};
use worker::{Engines, Session, Worker};

/// Requests that a queue holds, each of up to this many buffers.
const QUEUE_SIZE: u16 = 256;

/// Called with the message when the host fails a request and nobody is to go on.
pub type OnFailure = Arc<dyn Fn(String) + Send + Sync>;

/// What a disk is like, beside its image.
#[derive(Clone)]
pub struct BlockOptions {
    /// The image's name, for messages.
    pub name: String,
    /// Where the host fails a request: `None`, the guest gets the error; else it gets none.
    pub on_failure: Option<OnFailure>,
    /// The guest cannot write.
    pub read_only: bool,
    /// Serial number; the guest sees its first 20 bytes.
    pub serial: String,
    /// Request queues.
    pub queues: NonZeroU16,
    /// For all queues together, both directions together.
    pub limits: Limits,
}

/// `struct virtio_blk_config` (section 5.2.4), up to the fields of write zeroes.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Config {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    geometry: [u8; 4],
    blk_size: U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
    writeback: u8,
    unused0: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

const _: () = assert!(size_of::<Config>() == 60);

/// A disk.
pub struct Block {
    image: Arc<Image>,
    read_only: bool,
    serial: [u8; ID_LEN],
    name: String,
    on_failure: Option<OnFailure>,
    queue_sizes: Vec<u16>,
    limit: Option<Arc<RateLimit>>,
    threads: Vec<IoThread>,
    engines: Engines,
    workers: Vec<(IoThread, SubscriberId)>,
    control: Arc<Mutex<Option<DeviceControl>>>,
}

/// Tells the guest of a disk's new size, from any thread.
#[derive(Clone)]
pub struct BlockHandle {
    name: String,
    image: Arc<Image>,
    /// While the driver is ready.
    control: Arc<Mutex<Option<DeviceControl>>>,
}

impl BlockHandle {
    /// The image's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The size that the guest knows, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.image.sectors().saturating_mul(SECTOR)
    }

    /// Looks at the image's size again, and tells the guest if it has changed. Returns the size before
    /// in bytes if so.
    ///
    /// # Errors
    /// If the size cannot be had, or is less than a sector; the disk keeps the one that it has.
    pub fn look_again(&self) -> Result<Option<u64>, ImageError> {
        let before = self.image.look_again()?;
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(_), Some(control)) = (before, &*control) {
            control.config_changed();
        }
        Ok(before.map(|sectors| sectors.saturating_mul(SECTOR)))
    }
}

impl Block {
    /// A disk with `image`. Queue by queue is served on one of `threads`, in turn.
    #[must_use]
    pub fn new(image: Image, options: &BlockOptions, threads: Vec<IoThread>) -> Self {
        let image = Arc::new(image);
        let queues = options.queues.get();
        let engines = (0..queues).map(|_| Engine::new(&image, QUEUE_SIZE)).collect();
        let mut serial = [0; ID_LEN];
        for (to, from) in serial.iter_mut().zip(options.serial.bytes()) {
            *to = from;
        }
        Self {
            image,
            read_only: options.read_only,
            serial,
            name: options.name.clone(),
            on_failure: options.on_failure.clone(),
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
            limit: RateLimit::new(options.limits),
            threads,
            engines: Arc::new(Mutex::new(engines)),
            workers: Vec::new(),
            control: Arc::default(),
        }
    }

    /// The handle that tells the guest of a new size.
    #[must_use]
    pub fn handle(&self) -> BlockHandle {
        let (image, control) = (Arc::clone(&self.image), Arc::clone(&self.control));
        BlockHandle { name: self.name.clone(), image, control }
    }

    fn set_control(&self, control: Option<DeviceControl>) {
        *self.control.lock().unwrap_or_else(PoisonError::into_inner) = control;
    }

    fn config(&self) -> Config {
        let (logical, physical) = (self.image.logical_block(), self.image.physical_block());
        let ratio = physical / logical.max(1);
        let block_sectors = physical / 512;
        Config {
            capacity: self.image.sectors().into(),
            size_max: 0.into(),
            // Two descriptors are for header and status.
            seg_max: u32::from(QUEUE_SIZE - 2).into(),
            geometry: [0; 4],
            blk_size: logical.into(),
            physical_block_exp: u8::try_from(ratio.checked_ilog2().unwrap_or(0)).unwrap_or(0),
            alignment_offset: 0,
            min_io_size: u16::try_from(ratio).unwrap_or(1).into(),
            opt_io_size: 0.into(),
            writeback: 0,
            unused0: 0,
            num_queues: u16::try_from(self.queue_sizes.len()).unwrap_or(u16::MAX).into(),
            max_discard_sectors: MAX_CLEAR_SECTORS.into(),
            max_discard_seg: 1.into(),
            discard_sector_alignment: block_sectors.into(),
            max_write_zeroes_sectors: MAX_CLEAR_SECTORS.into(),
            max_write_zeroes_seg: 1.into(),
            write_zeroes_may_unmap: 1,
            unused1: [0; 3],
        }
    }

    fn start(&mut self, mut activation: Activation) -> std::io::Result<()> {
        let session = Arc::new(Session {
            image: Arc::clone(&self.image),
            read_only: self.read_only,
            serial: self.serial,
            name: self.name.clone(),
            on_failure: self.on_failure.clone(),
            // Section 5.2.6.2: without FLUSH, writes are stable when they complete.
            durable: activation.features & 1 << VIRTIO_BLK_F_FLUSH == 0,
            service: Service::new(activation.control.clone()),
        });
        self.set_control(Some(activation.control.clone()));
        let threads = self.threads.clone();
        if threads.is_empty() {
            return Err(std::io::Error::other("no thread to serve the disk's queues"));
        }
        for (index, thread) in (0..self.queue_sizes.len()).zip(threads.iter().cycle()) {
            // A driver need not use all queues.
            if index > 0 && activation.queues.get(index).is_none_or(Option::is_none) {
                continue;
            }
            let queue = activation.take_queue(u16::try_from(index).unwrap_or(u16::MAX))?;
            let throttle = Throttle::new(self.limit.clone())?;
            let worker = Worker::new(&session, queue, &self.engines, throttle)?;
            let id = thread.add(Box::new(worker))?;
            self.workers.push((thread.clone(), id));
        }
        Ok(())
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
        ];
        if self.queue_sizes.len() > 1 {
            bits.push(VIRTIO_BLK_F_MQ);
        }
        if self.read_only {
            bits.push(VIRTIO_BLK_F_RO);
        } else {
            bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        bits.into_iter().fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_fields(self.config().as_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> std::io::Result<()> {
        self.start(activation).inspect_err(|_| self.reset())
    }

    fn reset(&mut self) {
        self.set_control(None);
        for (thread, id) in self.workers.drain(..) {
            // Fails only if the thread has ended, and all of its workers with it.
            let _ = thread.remove(id);
        }
    }
}
