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

use casemate_firmware::fatal::Fatal;
use casemate_launch::LaunchPlan;
use unicorn_engine::{RegisterX86, Unicorn};

use host::Host;
use machine::Machine;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// At the kernel's 64-bit entry.
    Kernel,
    /// By a request to the host, which had this reason.
    Stopped(Fatal),
    /// By a triple fault.
    Shutdown,
    /// The image did what it must not do under any host.
    Broken(String),
}

/// A guest that has ended.
pub(crate) struct Run {
    /// How.
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

    /// One of its registers.
    pub(crate) fn register(&self, register: RegisterX86) -> u64 {
        self.engine.reg_read(register).unwrap()
    }
}

/// Starts the guest of `plan` and runs it to its end.
pub(crate) fn run(plan: &LaunchPlan, host: Host) -> Run {
    let mut engine = engine::launch(plan, host);
    let end = engine::run(&mut engine);
    Run { end, engine }
}
