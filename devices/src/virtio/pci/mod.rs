//! Virtio over PCI, without the legacy interface (VIRTIO 1.2, section 4.1).

mod common;
mod layout;
mod signals;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::common::{Action, Common};
use self::layout::Offsets;
use self::signals::Signals;
use super::{Activation, ActiveQueue, DeviceControl, QueueInterrupt, Transport as _, VirtioDevice};
use crate::doorbell::Doorbells;
use crate::interrupt::MessageInterrupts;
use crate::memory::DeviceMemory;
use crate::pci::{ConfigSpace, Msix, PciDevice};

/// What virtio devices on PCI need of the machine.
#[derive(Clone)]
pub struct Host {
    /// Guest memory.
    pub memory: Arc<DeviceMemory>,
    /// Whether the guest keeps its memory from the host: then its drivers must know
    /// (ACCESS_PLATFORM).
    pub confidential: bool,
    /// Where interrupts come from.
    pub interrupts: Arc<dyn MessageInterrupts>,
    /// Where notifications go.
    pub doorbells: Arc<dyn Doorbells>,
}

/// A virtio device as a PCI device.
pub struct VirtioPci {
    device: Box<dyn VirtioDevice>,
    host: Host,
    space: ConfigSpace,
    offsets: Offsets,
    common: Common,
    signals: Arc<Signals>,
    /// The notifications of each queue.
    kicks: Vec<EventFd>,
    /// The queues that the device serves, while it does.
    active: Option<Vec<u16>>,
    /// The doorbells there are: address and queue.
    doorbells: Vec<(u64, u16)>,
    /// The address of the BAR to which they belong.
    doorbells_bar: Option<u32>,
}

impl VirtioPci {
    /// Carries `device`.
    ///
    /// # Errors
    /// If the host has no more interrupts or eventfds, or the device has more queues than vectors.
    pub fn new(device: Box<dyn VirtioDevice>, host: Host) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let queues = u16::try_from(sizes.len())
            .ok()
            .filter(|_| sizes.len() <= layout::MAX_QUEUES)
            .ok_or_else(|| io::Error::other(format!("a device with {} queues", sizes.len())))?;
        let msix = Msix::new(&*host.interrupts, queues + 1)?;
        let (space, offsets) = layout::config_space(device.kind(), queues, &msix);
        let common = Common::new(sizes, device.features(), host.confidential);
        let signals = Arc::new(Signals::new(msix, sizes.len()));
        let kicks = sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK));
        let kicks = kicks.collect::<io::Result<_>>()?;
        Ok(Self {
            device,
            host,
            space,
            offsets,
            common,
            signals,
            kicks,
            active: None,
            doorbells: Vec::new(),
            doorbells_bar: None,
        })
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Nothing => {}
            Action::Reset => self.reset(),
            Action::Broken => self.signals.needs_reset(),
            Action::Activate => {
                if let Err(error) = self.activate() {
                    tracing::warn!(device = ?self.device.kind(), %error, "cannot start the device");
                    self.signals.needs_reset();
                }
            }
        }
    }

    fn activate(&mut self) -> io::Result<()> {
        let mut queues = Vec::with_capacity(self.kicks.len());
        for ((index, queue), kick) in (0..).zip(self.common.take_queues()).zip(&self.kicks) {
            let Some(queue) = queue else {
                queues.push(None);
                continue;
            };
            let interrupt = QueueInterrupt::new(self.signals.clone(), index);
            queues.push(Some(ActiveQueue { index, queue, kick: kick.try_clone()?, interrupt }));
        }
        self.active = Some(queues.iter().flatten().map(|queue| queue.index).collect());
        self.device.activate(Activation {
            memory: Arc::clone(&self.host.memory),
            features: self.common.features(),
            queues,
            control: DeviceControl::new(self.signals.clone(), self.device.kind()),
        })?;
        self.hang_doorbells();
        Ok(())
    }

    fn reset(&mut self) {
        if self.active.is_some() {
            self.take_doorbells();
            self.device.reset();
            self.active = None;
            for kick in &self.kicks {
                // Fails where there was no notification.
                let _ = kick.read();
            }
        }
        self.common.reset();
        self.signals.reset();
    }

    /// Resets the whole function: the device, its interrupts, and its configuration space.
    fn reset_function(&mut self) {
        self.reset();
        self.signals.msix.reset();
        self.space.reset();
    }

    /// Lets notifications go around the transport, as far as the host can; the others reach
    /// [`PciDevice::write_bar`]. Doorbells follow the BAR, but stay where they are while memory
    /// decoding is off: a guest that looks at the BAR's size does so, and changing them is slow.
    fn hang_doorbells(&mut self) {
        let bar = self.space.bar();
        if self.active.is_none() || bar.is_none() || bar == self.doorbells_bar {
            return;
        }
        self.take_doorbells();
        let (Some(queues), Some(base)) = (&self.active, bar) else { return };
        for &queue in queues {
            let Some(kick) = self.kicks.get(usize::from(queue)) else { continue };
            let offset = layout::NOTIFY + u32::from(queue) * layout::NOTIFY_STRIDE;
            let address = u64::from(base) + u64::from(offset);
            match self.host.doorbells.register(address, kick) {
                Ok(()) => self.doorbells.push((address, queue)),
                Err(error) => tracing::debug!(%error, "no doorbell at {address:#x}"),
            }
        }
        self.doorbells_bar = bar;
    }

    fn take_doorbells(&mut self) {
        for (address, queue) in self.doorbells.drain(..) {
            let Some(kick) = self.kicks.get(usize::from(queue)) else { continue };
            if let Err(error) = self.host.doorbells.unregister(address, kick) {
                tracing::warn!(%error, "cannot remove the doorbell at {address:#x}");
            }
        }
        self.doorbells_bar = None;
    }

    fn notify(&self, offset: u32) {
        let queue = (offset / layout::NOTIFY_STRIDE) as usize;
        if let Some(kick) = self.kicks.get(queue).filter(|_| self.active.is_some()) {
            // Fails where the counter is full; then the device is about to look anyway.
            let _ = kick.write(1);
        }
    }

    /// If a configuration access of `len` bytes at `offset` means the data of the access window
    /// (section 4.1.4.9): the BAR offset that it leads to.
    fn window(&self, offset: usize, len: usize) -> Option<u32> {
        let field = |at: usize| {
            let mut data = [0; 4];
            self.space.read(self.offsets.window + at, &mut data);
            u32::from_le_bytes(data)
        };
        let (bar, target, length) = (field(4) & 0xff, field(8), field(12));
        let matches = offset == self.offsets.window + 16 && length as usize == len;
        let allowed = bar == 0 && matches!(length, 1 | 2 | 4) && target % length == 0;
        (matches && allowed && target < layout::BAR_SIZE).then_some(target)
    }
}

impl PciDevice for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.space
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.space
    }

    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        if let Some(target) = self.window(offset, data.len()) {
            data.fill(0);
            self.read_bar(target, data);
        } else {
            self.space.read(offset, data);
        }
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.space.write(offset, data);
        let mut control = [0];
        self.space.read(self.offsets.function_reset, &mut control);
        if control[0] != 0 {
            return self.reset_function();
        }
        if let Some(target) = self.window(offset, data.len()) {
            self.write_bar(target, data);
        }
        let control = self.offsets.msix_control;
        if offset < control + 2 && offset + data.len() > control {
            let mut value = [0; 2];
            self.space.read(control, &mut value);
            self.signals.msix.set_control(u16::from_le_bytes(value));
        }
        self.hang_doorbells();
    }

    fn read_bar(&mut self, offset: u32, data: &mut [u8]) {
        match offset {
            ..layout::ISR => self.common.read(offset - layout::COMMON, data, &self.signals),
            layout::ISR => data.iter_mut().take(1).for_each(|byte| *byte = self.signals.take_isr()),
            layout::DEVICE..layout::NOTIFY => {
                self.device.read_config(u64::from(offset - layout::DEVICE), data);
            }
            layout::MSIX_TABLE..layout::MSIX_PENDING => {
                self.signals.msix.read_table(offset - layout::MSIX_TABLE, data);
            }
            layout::MSIX_PENDING.. => {
                self.signals.msix.read_pending(offset - layout::MSIX_PENDING, data);
            }
            _ => {}
        }
    }

    fn write_bar(&mut self, offset: u32, data: &[u8]) {
        match offset {
            ..layout::ISR => {
                let offset = offset - layout::COMMON;
                let action = self.common.write(offset, data, &self.signals, &self.host.memory);
                self.act(&action);
            }
            layout::DEVICE..layout::NOTIFY => {
                self.device.write_config(u64::from(offset - layout::DEVICE), data);
            }
            layout::NOTIFY..layout::MSIX_TABLE => self.notify(offset - layout::NOTIFY),
            layout::MSIX_TABLE..layout::MSIX_PENDING => {
                self.signals.msix.write_table(offset - layout::MSIX_TABLE, data);
            }
            _ => {}
        }
    }
}

impl Drop for VirtioPci {
    /// The device's workers end before what they use goes.
    fn drop(&mut self) {
        self.reset();
    }
}
