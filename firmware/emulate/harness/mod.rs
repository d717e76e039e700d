//! The built image, as it is, in an emulated processor: from its real reset vector to the kernel's
//! first instruction, under a host that may do whatever hosts can.
//!
//! | module | what |
//! |---|---|
//! | [`host`] | what the host does: by default what it should |
//! | [`machine`] | what the processor and the trusted firmware know: which page is whose |
//! | [`engine`] | Unicorn with the guest in it: its start, its run |
//! | [`processor`] | what Unicorn lacks: private memory, exceptions |
//! | [`guest`] | what is launched: a small kernel, initrd and command line |
//! | [`snp`], [`tdx`] | the instructions that Unicorn does not have |

mod engine;
pub(crate) mod guest;
pub(crate) mod host;
pub(crate) mod machine;
mod processor;
mod snp;
mod tdx;

use casemate_firmware_logic::fatal::Fatal;
use casemate_launch::LaunchPlan;
use unicorn_engine::{RegisterX86, Unicorn};

use host::Host;
use machine::Machine;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Not yet.
    Running,
    /// At the kernel's 64-bit entry.
    Kernel,
    /// By a request to the host, which had this reason.
    Stopped(Fatal),
    /// By a triple fault.
    Shutdown,
    /// The image did what it must not do under any host.
    Broken(String),
}

/// More instructions than any guest of these needs, most of them for hashing.
pub(crate) const MOST_INSTRUCTIONS: usize = 50_000_000;

/// A guest, and how far it came.
pub(crate) struct Run {
    /// How it ended.
    pub(crate) end: End,
    engine: Unicorn<'static, Machine>,
}

impl Run {
    /// What its processor and host have seen.
    pub(crate) fn machine(&self) -> &Machine {
        self.engine.get_data()
    }

    /// Its memory.
    pub(crate) fn memory(&self, address: u64, size: u64) -> Vec<u8> {
        self.engine.mem_read_as_vec(address, usize::try_from(size).unwrap()).unwrap()
    }

    /// Writes to its memory, as its kernel would.
    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) {
        self.engine.mem_write(address, bytes).unwrap();
    }

    /// Puts the processor into the state in which a vCPU of the plan starts; memory stays as it is.
    pub(crate) fn start(&mut self, plan: &LaunchPlan, vcpu: u32) {
        engine::start(&mut self.engine, plan, vcpu);
    }

    /// Goes on for so many instructions, or to the end.
    pub(crate) fn go(&mut self, instructions: usize) -> End {
        self.end = engine::go(&mut self.engine, instructions);
        self.end.clone()
    }

    /// Has an exception or interrupt come to the vCPU that is running.
    pub(crate) fn raise(&mut self, vector: u8) {
        processor::raise(&mut self.engine, vector);
    }

    /// One of its registers.
    pub(crate) fn register(&self, register: RegisterX86) -> u64 {
        self.engine.reg_read(register).unwrap()
    }
}

/// A guest with its launch pages.
pub(crate) fn launch(plan: &LaunchPlan, host: Host) -> Run {
    Run { end: End::Running, engine: engine::launch(plan, host) }
}

/// Starts the guest of `plan` and runs it to its end.
pub(crate) fn run(plan: &LaunchPlan, host: Host) -> Run {
    let inject = host.inject;
    let mut run = launch(plan, host);
    run.start(plan, 0);
    if let Some((instructions, vector)) = inject
        && run.go(instructions) == End::Running
    {
        processor::raise(&mut run.engine, vector);
    }
    if run.go(MOST_INSTRUCTIONS) == End::Running {
        run.end = End::Broken(format!("no end within {MOST_INSTRUCTIONS} instructions"));
    }
    run
}
