//! What of a guest the processor and its trusted firmware keep: which page is whose, and what became
//! of it.

use casemate_firmware_logic::layout::{IMAGE, KERNEL, PAGE, WINDOW, WINDOW_END};
use casemate_launch::{Digest384, LaunchPlan, PageKind, PlatformKind};

use super::End;
use super::host::Host;

/// Where the memory of these guests ends at most.
pub(crate) const MOST_MEMORY: u64 = 8 << 30;

/// What an instruction wants of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Execute,
}

/// Counts of what a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Pages of 4 KiB that became the guest's own.
    pub(crate) accepted: u64,
    /// Instructions that did that.
    pub(crate) acceptances: u64,
    /// Exits to the host.
    pub(crate) exits: u64,
    /// Requests of another vCPU to be held.
    pub(crate) holds: u64,
    /// Calls that leave the processor to the host for a while.
    pub(crate) waits: u64,
    /// Requests to end.
    pub(crate) stops: u32,
    /// Calls of the TDX module.
    pub(crate) tdcalls: u64,
    /// Instructions, if they were counted.
    pub(crate) instructions: u64,
    /// The same, an instruction with a repeat prefix being as many as it repeats.
    pub(crate) steps: u64,
}

/// The guest, its host, and what they did.
pub(crate) struct Machine {
    pub(crate) platform: PlatformKind,
    pub(crate) host: Host,
    pub(crate) counts: Counts,
    /// Set when the run is over.
    pub(crate) end: Option<End>,
    /// While the engine is brought into the state that the guest starts in.
    pub(crate) starting: bool,
    /// Which vCPU it is.
    pub(crate) vcpu: u32,
    /// The GHCB MSR.
    pub(crate) ghcb: u64,
    /// Of the trust domain.
    pub(crate) rtmrs: [Digest384; 4],
    /// Whether anything of the window was read.
    pub(crate) has_read_window: bool,
    /// Bytes of the window that were read more than once, as offsets.
    pub(crate) read_again: Vec<u64>,
    read: Vec<bool>,
    /// Whether each page below [`MOST_MEMORY`] is the guest's own.
    accepted: Vec<bool>,
    /// Whether each was read.
    touched: Vec<bool>,
}

impl Machine {
    /// Position of the C-bit.
    pub(crate) const C_BIT: u32 = 51;

    /// Before its first instruction.
    pub(crate) fn new(plan: &LaunchPlan, host: Host) -> Self {
        let plain = plan.platform() == PlatformKind::Plain;
        let mut machine = Self {
            platform: plan.platform(),
            host,
            counts: Counts::default(),
            end: None,
            starting: true,
            vcpu: 0,
            ghcb: 0,
            rtmrs: [Digest384::ZERO; 4],
            has_read_window: false,
            read_again: Vec::new(),
            read: vec![false; index(WINDOW_END - WINDOW)],
            accepted: vec![plain; index(MOST_MEMORY / PAGE)],
            touched: vec![false; index(MOST_MEMORY / PAGE)],
        };
        let private = plan.imports.iter().filter(|import| import.kind != PageKind::Shared);
        for page in private.flat_map(|import| import.range.page_addresses()) {
            machine.accepted[index(page.0 / PAGE)] = true;
        }
        machine
    }

    /// The bit of an address that tells private from shared, and whether it is set in private ones.
    pub(crate) fn private_bit(&self) -> (u64, bool) {
        match self.platform {
            PlatformKind::Plain => (0, false),
            PlatformKind::Snp => (1 << Self::C_BIT, true),
            PlatformKind::Tdx => (1 << (self.host.address_bits - 1), false),
        }
    }

    /// Whether the page at `address` is the guest's own.
    pub(crate) fn is_accepted(&self, address: u64) -> bool {
        let plain = self.platform == PlatformKind::Plain;
        self.accepted.get(index(address / PAGE)).copied().unwrap_or(plain)
    }

    /// Whether the page at `address` was read.
    pub(crate) fn is_touched(&self, address: u64) -> bool {
        self.touched[index(address / PAGE)]
    }

    /// Makes a page, or a large one, the guest's own. `Err` says what is wrong with that whatever
    /// the host does.
    pub(crate) fn accept(&mut self, address: u64, pages: u64) -> Result<(), String> {
        for page in (0..pages).map(|page| address + page * PAGE) {
            if self.is_accepted(page) {
                return Err(format!("{page:#x} is accepted a second time"));
            }
            self.accepted[index(page / PAGE)] = true;
        }
        self.counts.accepted += pages;
        self.counts.acceptances += 1;
        Ok(())
    }

    /// Whether the host has memory at `address` that can become the guest's own.
    pub(crate) fn is_memory(&self, address: u64) -> bool {
        let (low, high) = (self.host.memory, 4 << 30..self.host.high_memory);
        address < low || high.contains(&address)
    }

    /// Whether an access through a private or shared mapping is one that the image may make.
    pub(crate) fn access(
        &mut self,
        address: u64,
        private: bool,
        access: Access,
    ) -> Result<(), String> {
        let window = (WINDOW..WINDOW_END).contains(&address);
        let image = (IMAGE..4 << 30).contains(&address);
        let allowed = match access {
            Access::Read if window => !private || self.platform == PlatformKind::Plain,
            Access::Read => private && self.is_accepted(address),
            Access::Write => private && self.is_accepted(address) && !image && !window,
            Access::Execute => private && (image || address == KERNEL),
        };
        if !allowed {
            let view = if private { "private" } else { "shared" };
            let state = if self.is_accepted(address) { "accepted" } else { "not accepted" };
            return Err(format!("{access:?} of {address:#x}, {state}, by a {view} mapping"));
        }
        if access == Access::Read && !window {
            self.touched[index(address / PAGE)] = true;
        }
        Ok(())
    }

    /// Notes a byte of the window that is read.
    pub(crate) fn read_window(&mut self, offset: u64) {
        self.has_read_window = true;
        let read = &mut self.read[index(offset)];
        if std::mem::replace(read, true) {
            self.read_again.push(offset);
        }
    }

    /// Ends the run, unless it has ended.
    pub(crate) fn finish(&mut self, end: End) {
        self.end.get_or_insert(end);
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).unwrap()
}
