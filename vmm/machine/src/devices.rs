//! The devices that a configuration asks for, in its order: the same configuration is the same
//! machine.

use std::fs::OpenOptions;
use std::num::{NonZeroU16, NonZeroU64};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;

use casemate_config::{ByteSize, Disk, GuestConfig, Net};
use casemate_devices::io_thread::IoThread;
use casemate_devices::pci::PciRoot;
use casemate_devices::rate_limit::Limits;
use casemate_devices::virtio::VirtioDevice;
use casemate_devices::virtio::balloon::{Balloon, BalloonHandle};
use casemate_devices::virtio::blk::io::Image;
use casemate_devices::virtio::blk::{Block, BlockOptions};
use casemate_devices::virtio::console::{Console, ConsoleHandle};
use casemate_devices::virtio::net::{Net as VirtioNet, NetOptions, Tap};
use casemate_devices::virtio::pci::{Host, VirtioPci};
use casemate_devices::virtio::rng::Rng;
use casemate_devices::virtio::vsock::{KernelVsock, Vsock};

use crate::launch::LaunchError;
use crate::ram::GuestRam;

/// The two ends of the virtio console on the host.
pub struct ConsolePorts {
    /// What the guest is to read: a terminal, pipe or socket.
    pub input: Option<OwnedFd>,
    /// Where it writes.
    pub output: OwnedFd,
}

/// Virtio devices with their files, sockets and interfaces open, but not on a bus yet.
#[derive(Default)]
pub(crate) struct Devices {
    /// What each is, in words, for errors.
    list: Vec<(String, Box<dyn VirtioDevice>)>,
    threads: Vec<IoThread>,
    pub(crate) balloon: Option<BalloonHandle>,
    pub(crate) console: Option<ConsoleHandle>,
}

impl Devices {
    /// Opens everything that `config` asks for.
    pub(crate) fn open(
        config: &GuestConfig,
        ram: &GuestRam,
        console: Option<ConsolePorts>,
    ) -> Result<Self, LaunchError> {
        let mut devices = Self::default();
        for disk in &config.disk {
            devices.disk(disk)?;
        }
        for (index, net) in (0..).zip(&config.net) {
            devices.net(net, index)?;
        }
        if let Some(vsock) = config.vsock.as_ref().filter(|vsock| vsock.vhost) {
            let what = format!("socket device of /dev/vhost-vsock, CID {}", vsock.cid);
            let device = KernelVsock::new(vsock.cid, devices.thread()?)
                .map_err(LaunchError::device(&what))?;
            devices.add(what, device);
        } else if let Some(vsock) = &config.vsock {
            let what = format!("socket device at {}", vsock.socket.display());
            let device = Vsock::new(vsock.cid, &vsock.socket, devices.thread()?)
                .map_err(LaunchError::device(&what))?;
            devices.add(what, device);
        }
        if config.rng {
            let device =
                Rng::new(devices.thread()?).map_err(LaunchError::device("/dev/urandom"))?;
            devices.add("entropy device", device);
        }
        if config.balloon {
            let device = Balloon::new(Arc::new(ram.clone()), devices.thread()?);
            devices.balloon = Some(device.handle());
            devices.add("balloon", device);
        }
        if let Some(ConsolePorts { input, output }) = console {
            let device = Console::new(input, output, devices.thread()?)
                .map_err(LaunchError::device("console"))?;
            devices.console = Some(device.handle());
            devices.add("console", device);
        }
        Ok(devices)
    }

    fn add(&mut self, what: impl Into<String>, device: impl VirtioDevice + 'static) {
        self.list.push((what.into(), Box::new(device)));
    }

    fn disk(&mut self, disk: &Disk) -> Result<(), LaunchError> {
        let what = format!("disk {}", disk.path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(!disk.read_only)
            .custom_flags(if disk.direct { libc::O_DIRECT } else { 0 })
            .open(&disk.path)
            .map_err(LaunchError::device(&what))?;
        let image = Image::new(file, disk.read_only).map_err(LaunchError::device(&what))?;
        let options = BlockOptions {
            read_only: disk.read_only,
            serial: disk.serial.clone().unwrap_or_default(),
            queues: NonZeroU16::new(disk.queues).unwrap_or(NonZeroU16::MIN),
            limits: Limits {
                bytes_per_second: limit(disk.bytes_per_second),
                operations_per_second: disk
                    .requests_per_second
                    .and_then(|n| NonZeroU64::new(n.into())),
            },
        };
        let device = Block::new(image, &options, self.threads(disk.queues)?);
        self.add(what, device);
        Ok(())
    }

    fn net(&mut self, net: &Net, index: u8) -> Result<(), LaunchError> {
        let what = format!("network interface on {}", net.tap);
        let links = Tap::open(&net.tap, net.queues).map_err(LaunchError::device(&what))?;
        let limits = Limits { bytes_per_second: limit(net.bytes_per_second), ..Limits::default() };
        let options = NetOptions {
            // A local address (bit 1 of the first byte) that tells interfaces of a guest apart.
            mac: net.mac.map_or([0x02, 0xca, 0x5e, 0, 0, index], |mac| mac.0),
            mtu: Tap::mtu(&net.tap).map_err(LaunchError::device(&what))?,
            receive: limits,
            transmit: limits,
            vhost: true,
        };
        let device = VirtioNet::new(links, options, self.threads(net.queues)?);
        self.add(what, device);
        Ok(())
    }

    /// The thread of devices with one queue.
    fn thread(&mut self) -> Result<IoThread, LaunchError> {
        self.threads(1).map(|mut threads| threads.swap_remove(0))
    }

    /// Threads for a device with `count` queues. All devices share them, so that there are as many
    /// as the device with the most queues has.
    fn threads(&mut self, count: u16) -> Result<Vec<IoThread>, LaunchError> {
        let count = usize::from(count.max(1));
        while self.threads.len() < count {
            let name = format!("io{}", self.threads.len());
            let thread = IoThread::spawn(&name, || Ok(())).map_err(LaunchError::device(name))?;
            self.threads.push(thread);
        }
        Ok(self.threads[..count].to_vec())
    }

    /// Puts them on a PCI bus, each in the next slot.
    pub(crate) fn plug(self, mut root: PciRoot, host: &Host) -> Result<PciRoot, LaunchError> {
        for (what, device) in self.list {
            let device =
                VirtioPci::new(device, host.clone()).map_err(LaunchError::device(&what))?;
            root.add(Box::new(device)).map_err(LaunchError::device(&what))?;
        }
        Ok(root)
    }
}

fn limit(bytes: Option<ByteSize>) -> Option<NonZeroU64> {
    bytes.and_then(|bytes| NonZeroU64::new(bytes.0))
}
