//! The common configuration and its rules: in which order a driver may do what (VIRTIO 1.2, sections
//! 2.1, 3.1.1 and 4.1.4.3).

use virtio_bindings::virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::layout::COMMON_LEN;
use super::signals::Signals;
use crate::memory::DeviceMemory;

/// Bits of the device status (section 2.1).
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;

/// Offsets of the fields (section 4.1.4.3).
const DEVICE_FEATURE_SELECT: u32 = 0x00;
const DEVICE_FEATURE: u32 = 0x04;
const DRIVER_FEATURE_SELECT: u32 = 0x08;
const DRIVER_FEATURE: u32 = 0x0c;
const CONFIG_VECTOR: u32 = 0x10;
const NUM_QUEUES: u32 = 0x12;
const DEVICE_STATUS: u32 = 0x14;
const CONFIG_GENERATION: u32 = 0x15;
const QUEUE_SELECT: u32 = 0x16;
const QUEUE_SIZE: u32 = 0x18;
const QUEUE_VECTOR: u32 = 0x1a;
const QUEUE_ENABLE: u32 = 0x1c;
const QUEUE_NOTIFY_OFF: u32 = 0x1e;
const QUEUE_DESC: u32 = 0x20;
const QUEUE_DRIVER: u32 = 0x28;
const QUEUE_DEVICE: u32 = 0x30;

/// What the transport has to do after a write.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    Nothing,
    /// Reset the device.
    Reset,
    /// Hand the queues to the device.
    Activate,
    /// The driver cannot go on: it set up a queue that no device could serve.
    Broken,
}

/// The registers behind the common configuration.
pub(super) struct Common {
    status: u8,
    /// Offered, needed of the driver, and accepted by it.
    offered: u64,
    required: u64,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    queues: Vec<Setup>,
}

/// A queue while its driver prepares it.
struct Setup {
    max_size: u16,
    size: u16,
    /// Descriptor table, available ring, used ring.
    addresses: [u64; 3],
    enabled: bool,
    /// Checked and enabled, until the device takes it.
    queue: Option<Queue>,
}

impl Setup {
    fn new(max_size: u16) -> Self {
        Self { max_size, size: max_size, addresses: [0; 3], enabled: false, queue: None }
    }
}

impl Common {
    /// For a device that has queues of at most `sizes` and offers `features` of its kind.
    pub(super) fn new(sizes: &[u16], features: u64, confidential: bool) -> Self {
        let mut required = 1 << VIRTIO_F_VERSION_1;
        if confidential {
            required |= 1 << VIRTIO_F_ACCESS_PLATFORM;
        }
        let ring = 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX;
        Self {
            status: 0,
            offered: features | required | ring,
            required,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            queues: sizes.iter().map(|&size| Setup::new(size)).collect(),
        }
    }

    /// Forgets everything of the driver's.
    pub(super) fn reset(&mut self) {
        self.status = 0;
        self.accepted = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            *queue = Setup::new(queue.max_size);
        }
    }

    /// The features that both sides agreed on.
    pub(super) fn features(&self) -> u64 {
        self.accepted
    }

    /// Takes the enabled queues out, by index.
    pub(super) fn take_queues(&mut self) -> Vec<Option<Queue>> {
        self.queues.iter_mut().map(|setup| setup.queue.take()).collect()
    }

    /// The driver reads. Any width: what lies behind the last field is zero.
    pub(super) fn read(&self, offset: u32, data: &mut [u8], signals: &Signals) {
        let mut registers = [0; COMMON_LEN as usize];
        self.fill(&mut registers, signals);
        let fields = registers.get(offset as usize..).unwrap_or_default();
        for (byte, field) in data.iter_mut().zip(fields) {
            *byte = *field;
        }
    }

    fn fill(&self, registers: &mut [u8; COMMON_LEN as usize], signals: &Signals) {
        let mut put = |offset: u32, bytes: &[u8]| {
            let start = offset as usize;
            registers[start..start + bytes.len()].copy_from_slice(bytes);
        };
        let count = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        let needs_reset = if signals.reset_is_needed() { NEEDS_RESET } else { 0 };
        put(DEVICE_FEATURE_SELECT, &self.device_feature_select.to_le_bytes());
        put(DEVICE_FEATURE, &half(self.offered, self.device_feature_select).to_le_bytes());
        put(DRIVER_FEATURE_SELECT, &self.driver_feature_select.to_le_bytes());
        put(DRIVER_FEATURE, &half(self.accepted, self.driver_feature_select).to_le_bytes());
        put(CONFIG_VECTOR, &signals.config_vector().to_le_bytes());
        put(NUM_QUEUES, &count.to_le_bytes());
        put(DEVICE_STATUS, &[self.status | needs_reset]);
        put(CONFIG_GENERATION, &[signals.generation()]);
        put(QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that is not there has size 0 (section 4.1.4.3.1).
        let Some(queue) = self.queues.get(usize::from(self.queue_select)) else { return };
        put(QUEUE_SIZE, &queue.size.to_le_bytes());
        put(QUEUE_VECTOR, &signals.queue_vector(self.queue_select).to_le_bytes());
        put(QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
        put(QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
        put(QUEUE_DESC, &queue.addresses[0].to_le_bytes());
        put(QUEUE_DRIVER, &queue.addresses[1].to_le_bytes());
        put(QUEUE_DEVICE, &queue.addresses[2].to_le_bytes());
    }

    /// The driver writes. Writes of a width that no field has, or at a time when they are not
    /// allowed, are ignored: the driver reads back that they were.
    pub(super) fn write(
        &mut self,
        offset: u32,
        data: &[u8],
        signals: &Signals,
        memory: &DeviceMemory,
    ) -> Action {
        match (offset, data) {
            (DEVICE_STATUS, &[status]) => return self.write_status(status, signals),
            (_, &[a, b]) => {
                return self.write_u16(offset, u16::from_le_bytes([a, b]), signals, memory);
            }
            (_, &[a, b, c, d]) => self.write_u32(offset, u32::from_le_bytes([a, b, c, d])),
            (QUEUE_DESC | QUEUE_DRIVER | QUEUE_DEVICE, &[a, b, c, d, e, f, g, h]) => {
                self.write_u32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_u32(offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
        Action::Nothing
    }

    fn write_u16(
        &mut self,
        offset: u32,
        value: u16,
        signals: &Signals,
        memory: &DeviceMemory,
    ) -> Action {
        let selected = self.queue_select;
        match offset {
            CONFIG_VECTOR => signals.set_config_vector(value),
            QUEUE_SELECT => self.queue_select = value,
            QUEUE_VECTOR => signals.set_queue_vector(selected, value),
            QUEUE_SIZE => {
                if let Some(queue) = self.in_setup()
                    && value.is_power_of_two()
                    && value <= queue.max_size
                {
                    queue.size = value;
                }
            }
            QUEUE_ENABLE if value == 1 => {
                let Some(setup) = self.in_setup() else { return Action::Nothing };
                setup.queue = setup.check(memory);
                setup.enabled = setup.queue.is_some();
                if !setup.enabled {
                    let (size, [table, available, used]) = (setup.size, setup.addresses);
                    tracing::warn!(
                        queue = selected,
                        size,
                        "rings at {table:#x}, {available:#x}, {used:#x} are not aligned or not in \
                         memory that the guest shares"
                    );
                    return Action::Broken;
                }
            }
            _ => {}
        }
        Action::Nothing
    }

    fn write_u32(&mut self, offset: u32, value: u32) {
        let address = match offset {
            DEVICE_FEATURE_SELECT => {
                self.device_feature_select = value;
                return;
            }
            DRIVER_FEATURE_SELECT => {
                self.driver_feature_select = value;
                return;
            }
            DRIVER_FEATURE => return self.accept(value),
            QUEUE_DESC..COMMON_LEN if offset.is_multiple_of(4) => offset - QUEUE_DESC,
            _ => return,
        };
        let Some(queue) = self.in_setup() else { return };
        let whole = &mut queue.addresses[address as usize / 8];
        *whole = if address % 8 == 0 {
            *whole & !0xffff_ffff | u64::from(value)
        } else {
            *whole & 0xffff_ffff | u64::from(value) << 32
        };
    }

    /// The driver accepts features: between DRIVER and FEATURES_OK.
    fn accept(&mut self, value: u32) {
        if self.status & (DRIVER | FEATURES_OK) != DRIVER {
            return;
        }
        let value = u64::from(value);
        match self.driver_feature_select {
            0 => self.accepted = self.accepted & !0xffff_ffff | value,
            1 => self.accepted = self.accepted & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    /// The selected queue, if it may be changed now: between FEATURES_OK and DRIVER_OK, before it is
    /// enabled.
    fn in_setup(&mut self) -> Option<&mut Setup> {
        if self.status & (FEATURES_OK | DRIVER_OK) != FEATURES_OK {
            return None;
        }
        self.queues.get_mut(usize::from(self.queue_select)).filter(|queue| !queue.enabled)
    }

    /// The driver sets bits, one step after the other, or resets the device. It cannot take bits
    /// back (section 2.1.1), nor pass a device that needs a reset.
    fn write_status(&mut self, value: u8, signals: &Signals) -> Action {
        if value == 0 {
            return Action::Reset;
        }
        let value = value & !NEEDS_RESET;
        let new = value & !self.status;
        if value & self.status != self.status || signals.reset_is_needed() {
            tracing::debug!(status = self.status, value, "a device status that cannot follow");
            return Action::Nothing;
        }
        let mut refused = 0;
        if new & FEATURES_OK != 0
            && !(value & (ACKNOWLEDGE | DRIVER) == ACKNOWLEDGE | DRIVER && self.features_fit())
        {
            tracing::warn!(
                "the driver's features {:#x} are refused: offered {:#x}, required {:#x}",
                self.accepted,
                self.offered,
                self.required
            );
            refused |= FEATURES_OK;
        }
        if new & DRIVER_OK != 0 && self.status & FEATURES_OK == 0 {
            refused |= DRIVER_OK;
        }
        self.status = value & !refused;
        if new & !refused & DRIVER_OK != 0 { Action::Activate } else { Action::Nothing }
    }

    fn features_fit(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & self.required == self.required
    }
}

impl Setup {
    /// The queue, if its rings are aligned and lie in memory that the guest shares.
    fn check(&self, memory: &DeviceMemory) -> Option<Queue> {
        let [table, available, used] = self.addresses.map(GuestAddress);
        let mut queue = Queue::new(self.max_size).ok()?;
        queue.try_set_size(self.size).ok()?;
        queue.try_set_desc_table_address(table).ok()?;
        queue.try_set_avail_ring_address(available).ok()?;
        queue.try_set_used_ring_address(used).ok()?;
        queue.set_ready(true);
        queue.is_valid(memory).then_some(queue)
    }
}

/// The 32 bits of a 64-bit field that `select` names.
#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is asked for")]
fn half(field: u64, select: u32) -> u32 {
    match select {
        0 => field as u32,
        1 => (field >> 32) as u32,
        _ => 0,
    }
}
