//! The devices that a configuration asks for, in its order: the same configuration is the same
//! machine.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use casemate_config::GuestConfig;
use casemate_devices::io_thread::IoThread;
use casemate_devices::pci::PciRoot;
use casemate_devices::virtio::VirtioDevice;
use casemate_devices::virtio::balloon::{Balloon, BalloonHandle};
use casemate_devices::virtio::console::{Console, ConsoleHandle};
use casemate_devices::virtio::pci::{Host, VirtioPci};
use casemate_devices::virtio::rng::Rng;
use casemate_devices::virtio::vsock::Vsock;

use crate::board::PCI_WINDOW;
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
    thread: Option<IoThread>,
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
        if let Some(vsock) = &config.vsock {
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

    /// One thread serves the queues of all devices; there is none where there are no devices.
    fn thread(&mut self) -> Result<IoThread, LaunchError> {
        if let Some(thread) = &self.thread {
            return Ok(thread.clone());
        }
        let thread = IoThread::spawn("io", || Ok(())).map_err(LaunchError::device("I/O thread"))?;
        Ok(self.thread.insert(thread).clone())
    }

    /// Puts them on a PCI bus, each in the next slot.
    pub(crate) fn plug(self, host: &Host) -> Result<PciRoot, LaunchError> {
        let mut root = PciRoot::new(PCI_WINDOW);
        for (what, device) in self.list {
            let device =
                VirtioPci::new(device, host.clone()).map_err(LaunchError::device(&what))?;
            root.add(Box::new(device)).map_err(LaunchError::device(&what))?;
        }
        Ok(root)
    }
}
