//! The devices that a configuration asks for, in its order: the same configuration is the same
//! machine.

use std::fs::OpenOptions;
use std::num::{NonZeroU16, NonZeroU64, NonZeroUsize};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::thread;

use casemate_config::{ByteSize, Disk, GuestConfig, Net, OnError};
use casemate_devices::io_thread::IoThread;
use casemate_devices::outlet::Outlet;
use casemate_devices::pci::PciRoot;
use casemate_devices::rate_limit::Limits;
use casemate_devices::virtio::VirtioDevice;
use casemate_devices::virtio::balloon::{Balloon, BalloonHandle};
use casemate_devices::virtio::blk::io::Image;
use casemate_devices::virtio::blk::{Block, BlockHandle, BlockOptions, OnFailure};
use casemate_devices::virtio::console::{Console, ConsoleHandle};
use casemate_devices::virtio::net::{Net as VirtioNet, NetOptions, Tap};
use casemate_devices::virtio::pci::{Host, VirtioPci};
use casemate_devices::virtio::rng::Rng;
use casemate_devices::virtio::vsock::{KernelVsock, Vsock};

use casemate_sandbox::{Sandbox, Thread};

use crate::launch::LaunchError;
use crate::outcome::{End, Outcome};
use crate::ram::GuestRam;

/// The two ends of the virtio console on the host.
pub struct ConsolePorts {
    /// What the guest is to read: a terminal, pipe or socket.
    pub input: Option<OwnedFd>,
    /// Where it writes.
    pub output: Outlet,
}

/// Virtio devices with their files, sockets and interfaces open, but not on a bus yet.
pub(crate) struct Devices {
    /// For devices that cannot go on.
    end: End,
    sandbox: Sandbox,
    /// What each is, in words, for errors.
    list: Vec<(String, Box<dyn VirtioDevice>)>,
    shared: Option<IoThread>,
    pub(crate) disks: Vec<BlockHandle>,
    pub(crate) balloon: Option<BalloonHandle>,
    pub(crate) console: Option<ConsoleHandle>,
}

impl Devices {
    /// Opens everything that `config` asks for.
    pub(crate) fn open(
        config: &GuestConfig,
        ram: &GuestRam,
        console: Option<ConsolePorts>,
        end: &End,
        sandbox: &Sandbox,
    ) -> Result<Self, LaunchError> {
        let (end, sandbox) = (end.clone(), sandbox.clone());
        let (list, disks) = (Vec::new(), Vec::new());
        let mut devices =
            Self { end, sandbox, list, shared: None, disks, balloon: None, console: None };
        for (index, disk) in (0..).zip(&config.disk) {
            devices.disk(disk, index)?;
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
            let device = Vsock::new(vsock.cid, &vsock.socket, spawn("vsock", &devices.sandbox)?)
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
            let device = Console::new(input, output, devices.thread()?);
            devices.console = Some(device.handle());
            devices.add("console", device);
        }
        Ok(devices)
    }

    fn add(&mut self, what: impl Into<String>, device: impl VirtioDevice + 'static) {
        self.list.push((what.into(), Box::new(device)));
    }

    fn disk(&mut self, disk: &Disk, index: u32) -> Result<(), LaunchError> {
        let what = format!("disk {}", disk.path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(!disk.read_only)
            .custom_flags(if disk.direct { libc::O_DIRECT } else { 0 })
            .open(&disk.path)
            .map_err(LaunchError::device(&what))?;
        let image = Image::new(file, disk.read_only).map_err(LaunchError::device(&what))?;
        image.lock(disk.read_only).map_err(LaunchError::device(&what))?;
        let stop = self.end.clone();
        let options = BlockOptions {
            name: disk.path.display().to_string(),
            on_failure: (disk.on_error == OnError::Stop).then(|| -> OnFailure {
                Arc::new(move |message| stop.declare(Outcome::Failed(message)))
            }),
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
        let threads = threads(&format!("disk{index}"), disk.queues, &self.sandbox)?;
        let device = Block::new(image, &options, threads);
        self.disks.push(device.handle());
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
        let threads = threads(&format!("net{index}"), net.queues, &self.sandbox)?;
        let device = VirtioNet::new(links, options, threads);
        self.add(what, device);
        Ok(())
    }

    /// The thread of devices that have little to do and wait for nobody.
    fn thread(&mut self) -> Result<IoThread, LaunchError> {
        match &self.shared {
            Some(thread) => Ok(thread.clone()),
            None => Ok(self.shared.insert(spawn("io", &self.sandbox)?).clone()),
        }
    }

    /// Puts them on a PCI bus, in their order.
    pub(crate) fn plug(self, root: PciRoot, host: &Host) -> Result<PciRoot, LaunchError> {
        let mut root = root.for_devices(self.list.len());
        for (what, device) in self.list {
            let device =
                VirtioPci::new(device, host.clone()).map_err(LaunchError::device(&what))?;
            root.add(Box::new(device)).map_err(LaunchError::device(&what))?;
        }
        Ok(root)
    }
}

/// The threads of one device: it may be busy, or wait for a slow file or a rate limit, and others go
/// on. There is one for each of its `queues`, as far as the host has processors.
fn threads(device: &str, queues: u16, sandbox: &Sandbox) -> Result<Vec<IoThread>, LaunchError> {
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    match usize::from(queues).min(processors) {
        0 | 1 => Ok(vec![spawn(device, sandbox)?]),
        count => (0..count).map(|queue| spawn(&format!("{device}.{queue}"), sandbox)).collect(),
    }
}

fn spawn(name: &str, sandbox: &Sandbox) -> Result<IoThread, LaunchError> {
    let sandbox = sandbox.clone();
    IoThread::spawn(name, move || Ok(sandbox.enter(Thread::Io)?)).map_err(LaunchError::device(name))
}

fn limit(bytes: Option<ByteSize>) -> Option<NonZeroU64> {
    bytes.and_then(|bytes| NonZeroU64::new(bytes.0))
}
