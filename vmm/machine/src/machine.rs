//! A guest that runs.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use casemate_devices::bus::{Bus, BusDevice};
use casemate_devices::interrupt::Line;
use casemate_devices::legacy::fw_cfg::FwCfg;
use casemate_devices::legacy::{
    AcpiPower, Clock, ExitPort, IoApic, KeyboardReset, PanicPort, Pin, PmRegisters, Serial,
    SerialInput,
};
use casemate_devices::memory::{SharedMemory, SharedPages};
use casemate_devices::outlet::Outlet;
use casemate_devices::pci::{ConfigPorts, Ecam, MmioWindow, PciRoot};
use casemate_devices::virtio::balloon::BalloonHandle;
use casemate_devices::virtio::blk::BlockHandle;
use casemate_devices::virtio::console::ConsoleHandle;
use casemate_devices::virtio::pci::Host;
use casemate_launch::{GpaRange, PageKind};
use casemate_sandbox::{Sandbox, Thread};
use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps as _,
};
use kvm_ioctls::VmFd;

use crate::devices::{ConsolePorts, Devices};
use crate::guest::Guest;
use crate::interrupts::{KvmDoorbells, Messages, deliver};
use crate::launch::{Created, Finished, LaunchError};
use crate::limits;
use crate::outcome::{End, Outcome};
use crate::platform::Platform;
use crate::quiet::Quiet;
use crate::ram::GuestRam;
use crate::teardown::{self, Tasks, Teardown};
use crate::vcpu::{Surroundings, Threads, chain};
use casemate_plan::board::{ECAM, IO_APIC, IO_APIC_SIZE, PCI_WINDOW, gsi, port, power};

/// Events taken from the kernel at once; there are hardly ever two.
const EVENTS: usize = 8;

/// What somebody watches while the guest runs: the terminal, signals.
pub type Watcher = Box<dyn MutEventSubscriber>;

/// A launched guest, before its first instruction.
pub struct Machine {
    launched: Finished,
    ports: Bus,
    memory: Bus,
    prefault: Vec<GpaRange>,
    control: Control,
    sandbox: Sandbox,
    /// Threads of the process before the guest had any.
    before: Tasks,
}

/// The end of a run.
#[derive(Debug)]
pub struct Ended {
    /// How the guest ended.
    pub outcome: Outcome,
    /// Threads of the guest that did not end in time, each with the reason as far as the kernel tells.
    /// They, and the devices that they serve, end with the process.
    pub unfinished: Vec<String>,
}

// The ACPI tables of the plan describe the registers of the devices.
const _: () = {
    assert!(power::SLEEP_CONTROL == AcpiPower::SLEEP_CONTROL && power::S5 == AcpiPower::S5);
    assert!(power::SLEEP_STATUS == AcpiPower::SLEEP_STATUS && power::RESET == AcpiPower::RESET);
    assert!(power::RESET_VALUE == AcpiPower::RESET_VALUE);
    assert!(port::SERIAL_COUNT as u16 == Serial::PORTS);
};

/// The handle by which the host speaks to a running guest.
#[derive(Clone)]
pub struct Control {
    end: End,
    power_button: Arc<dyn Line>,
    serial: SerialInput,
    disks: Vec<BlockHandle>,
    balloon: Option<BalloonHandle>,
    console: Option<ConsoleHandle>,
    exits: Arc<AtomicU64>,
    /// Of a confidential guest.
    shared: Option<Arc<SharedPages>>,
}

impl Control {
    /// Ends the run.
    pub fn stop(&self, outcome: Outcome) {
        self.end.declare(outcome);
    }

    /// Presses the power button. The guest may ignore it.
    ///
    /// # Errors
    /// If KVM refuses the interrupt.
    pub fn press_power_button(&self) -> std::io::Result<()> {
        self.power_button.trigger()
    }

    /// The serial port's input.
    #[must_use]
    pub const fn serial(&self) -> &SerialInput {
        &self.serial
    }

    /// The disks, in the configuration's order.
    #[must_use]
    pub fn disks(&self) -> &[BlockHandle] {
        &self.disks
    }

    /// The balloon, if the guest has one.
    #[must_use]
    pub const fn balloon(&self) -> Option<&BalloonHandle> {
        self.balloon.as_ref()
    }

    /// The virtio console, if the guest has one.
    #[must_use]
    pub const fn console(&self) -> Option<&ConsoleHandle> {
        self.console.as_ref()
    }

    /// How often vCPUs have left the guest for this process.
    #[must_use]
    pub fn exits(&self) -> u64 {
        self.exits.load(Ordering::Relaxed)
    }

    /// How much memory a confidential guest shares with the host.
    #[must_use]
    pub fn shared(&self) -> Option<SharedMemory> {
        self.shared.as_ref().map(|shared| shared.memory())
    }
}

impl Machine {
    /// Launches `guest`; what its serial port sends goes to `output`. Its threads, and the calling one once the
    /// guest runs, enter `sandbox`.
    ///
    /// # Errors
    /// If a step of the launch fails. Then nothing is left of it.
    pub fn launch(
        guest: &Guest,
        platform: Box<dyn Platform>,
        output: Outlet,
        console: Option<ConsolePorts>,
        sandbox: &Sandbox,
    ) -> Result<Self, LaunchError> {
        limits::check(&guest.config)?;
        let before = Tasks::now();
        let ram = GuestRam::new(&guest.board, &guest.plan, platform.confidential())
            .map_err(LaunchError::device("guest memory"))?
            .sharing_at_most(guest.config.shared_memory.map(|size| size.0));
        // What the host may refuse comes before KVM.
        let end = End::new().map_err(LaunchError::device("end of the run"))?;
        let devices = Devices::open(&guest.config, &ram, console, &end, sandbox)?;
        let (balloon, console) = (devices.balloon.clone(), devices.console.clone());
        let disks = devices.disks.clone();
        let quiet = Quiet::new();
        let mut launched = Created::new(platform, ram, &guest.plan, guest.config.topology())?
            .populate(&guest.plan)?
            .finish()?;
        drop(quiet);
        launched.platform.serve(sandbox).map_err(LaunchError::device("helper of vCPUs"))?;
        let mut buses = Buses::new(&launched.vm)?;
        let serial = buses.serial(output, sandbox)?;
        buses.clock()?;
        buses.endings(&end)?;
        let host = Host {
            memory: launched.ram.memory().clone(),
            confidential: launched.platform.confidential(),
            interrupts: Arc::new(Messages::new(launched.vm.clone())),
            doorbells: Arc::new(KvmDoorbells(launched.vm.clone())),
        };
        let mut root = PciRoot::new(PCI_WINDOW);
        if let Some(items) = &guest.firmware_config {
            root = root.like_q35(port::POWER);
            buses.firmware_config(FwCfg::new(items.clone(), host.memory.clone()), &end)?;
        }
        let root = Arc::new(devices.plug(root, &host)?);
        buses.pci(&root, guest.board.bar_window())?;
        if guest.firmware_config.is_some() {
            let ports = ConfigPorts::new(root, end.on_end());
            buses.port("PCI ports", ConfigPorts::BASE, ConfigPorts::COUNT, ports)?;
        }
        let power_button = Arc::new(buses.pin(gsi::EVENTS));
        let exits = Arc::default();
        let shared = launched.platform.confidential().then(|| launched.ram.shared().clone());
        let control = Control { end, power_button, serial, disks, balloon, console, exits, shared };
        let mut prefault = launched.ram.lowest_private(guest.config.prefaulted());
        if launched.platform.confidential() {
            // What the firmware reads of the host.
            let shared = guest.plan.imports.iter().filter(|import| import.kind == PageKind::Shared);
            prefault.extend(shared.map(|import| import.range));
        }
        let (ports, memory, sandbox) = (buses.ports, buses.memory, sandbox.clone());
        Ok(Self { launched, ports, memory, prefault, control, sandbox, before })
    }

    /// The handle by which the host speaks to the guest.
    #[must_use]
    pub const fn control(&self) -> &Control {
        &self.control
    }

    /// Runs the guest until it ends, in its sandbox, and calls `watchers` on this thread when what they watch is
    /// ready. Waits a few seconds for the guest's threads and devices to end with it, and no longer.
    ///
    /// # Errors
    /// If the host has no more threads or file descriptors, or refuses the sandbox.
    pub fn run(self, watchers: Vec<Watcher>) -> Result<Ended, LaunchError> {
        let end = self.control.end.clone();
        let mut events = EventManager::<Watcher>::new_with_capacity(EVENTS)
            .map_err(LaunchError::device("event loop"))?;
        events.add_subscriber(Box::new(EndWatcher(end.clone())));
        for watcher in watchers {
            events.add_subscriber(watcher);
        }
        let Finished { vm, ram, platform, vcpus } = self.launched;
        let around = Arc::new(Surroundings {
            ports: self.ports,
            memory: self.memory,
            platform,
            vm,
            ram,
            end: end.clone(),
            prefault: self.prefault,
            exits: self.control.exits,
        });
        let sandbox = &self.sandbox;
        let refused = LaunchError::device::<io::Error>;
        let folder = teardown::folder();
        sandbox.seal().map_err(LaunchError::device("sandbox"))?;
        let teardown = Teardown::start(sandbox).map_err(refused("end of the run"))?;
        let (threads, key) =
            Threads::start(vcpus, &around, sandbox).map_err(refused("vCPU threads"))?;
        let begun = self.before.begun(folder);
        if let Err(error) = sandbox.enter(Thread::Main) {
            end.declare(Outcome::Failed(chain(&error)));
        }
        drop(key);
        let outcome = loop {
            if let Some(outcome) = end.outcome() {
                break outcome.clone();
            }
            if let Err(error) = events.run() {
                end.declare(Outcome::Failed(format!("event loop: {error}")));
            }
        };
        let end = move || {
            threads.join();
            let private = around.ram.lowest_private(u64::MAX);
            around.platform.before_close(private.into_iter().map(GpaRange::len).sum());
            drop(around);
        };
        let unfinished = teardown.within(teardown::LIMIT, begun, end);
        Ok(Ended { outcome, unfinished })
    }
}

/// Wakes the event loop when the run has ended.
struct EndWatcher(End);

impl MutEventSubscriber for EndWatcher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(self.0.event(), EventSet::IN)) {
            self.0.declare(Outcome::Failed(format!("event loop: {error}")));
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        // The count may stay: the loop looks at the outcome and ends.
    }
}

/// The machine's buses, while devices are plugged in.
struct Buses {
    ports: Bus,
    memory: Bus,
    io_apic: Arc<Mutex<IoApic>>,
}

impl Buses {
    fn new(vm: &Arc<VmFd>) -> Result<Self, LaunchError> {
        let vm = vm.clone();
        let io_apic = IoApic::new(gsi::COUNT, move |message| deliver(&vm, message));
        let io_apic = Arc::new(Mutex::new(io_apic));
        let mut buses =
            Self { ports: Bus::default(), memory: Bus::default(), io_apic: io_apic.clone() };
        insert(&mut buses.memory, "I/O APIC", IO_APIC.into(), IO_APIC_SIZE, io_apic)?;
        Ok(buses)
    }

    fn pin(&self, gsi: u32) -> Pin {
        Pin { io_apic: self.io_apic.clone(), gsi }
    }

    fn serial(&mut self, output: Outlet, sandbox: &Sandbox) -> Result<SerialInput, LaunchError> {
        let sandbox = sandbox.clone();
        let setup = move || Ok(sandbox.enter(Thread::Serial)?);
        let (serial, input) = Serial::new(Arc::new(self.pin(gsi::SERIAL)), output, setup)
            .map_err(LaunchError::device("serial port"))?;
        self.port("serial port", port::SERIAL, Serial::PORTS, serial)?;
        Ok(input)
    }

    fn endings(&mut self, end: &End) -> Result<(), LaunchError> {
        self.port("reset port", port::KEYBOARD, 1, KeyboardReset(end.on_end()))?;
        self.port("exit port", port::EXIT, 1, ExitPort(end.on_end()))?;
        self.port("panic port", port::PANIC, 1, PanicPort(end.on_end()))?;
        self.port("power ports", port::POWER, AcpiPower::PORTS, AcpiPower(end.on_end()))
    }

    /// For guests without a clock of KVM's. No table says that it is there, so that others do not
    /// look at it.
    fn clock(&mut self) -> Result<(), LaunchError> {
        self.port("clock", Clock::BASE, Clock::COUNT, Clock::default())
    }

    fn port(
        &mut self,
        what: &'static str,
        start: u16,
        count: u16,
        device: impl BusDevice + 'static,
    ) -> Result<(), LaunchError> {
        let device = Arc::new(Mutex::new(device));
        insert(&mut self.ports, what, start.into(), count.into(), device)
    }

    /// What OVMF does not start without.
    fn firmware_config(&mut self, device: FwCfg, end: &End) -> Result<(), LaunchError> {
        let what = "firmware configuration";
        self.port(what, FwCfg::BASE, FwCfg::COUNT, device)?;
        let registers = PmRegisters::new(end.on_end());
        let start = port::POWER + PmRegisters::OFFSET;
        self.port("power management registers", start, PmRegisters::COUNT, registers)
    }

    fn pci(&mut self, root: &Arc<PciRoot>, bars: Range<u32>) -> Result<(), LaunchError> {
        let ecam = Arc::new(Mutex::new(Ecam(root.clone())));
        let length = u64::from(ECAM.end - ECAM.start);
        insert(&mut self.memory, "PCI configuration space", ECAM.start.into(), length, ecam)?;
        let window = MmioWindow { root: root.clone(), start: bars.start };
        let length = u64::from(bars.end - bars.start);
        let window = Arc::new(Mutex::new(window));
        insert(&mut self.memory, "PCI window", bars.start.into(), length, window)
    }
}

fn insert(
    bus: &mut Bus,
    what: &str,
    start: u64,
    length: u64,
    device: Arc<Mutex<dyn BusDevice>>,
) -> Result<(), LaunchError> {
    bus.insert(start, length, device).map_err(LaunchError::device(what))
}
