//! Why a vCPU came back from KVM_RUN, decoded once.

#![allow(unsafe_code, reason = "kvm_run is shared with the kernel and has a union")]

use std::ptr::NonNull;

use casemate_kvm::exit::MapGpaRange;
use kvm_bindings::kvm_run;
use kvm_ioctls::{HypercallExit, VcpuExit, VcpuFd};

/// Why a vCPU came back.
#[derive(Debug)]
pub enum Exit<'a> {
    /// `out` or `outs`: values of `size` bytes, one after the other.
    PortWrite {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        size: usize,
        /// The values.
        data: &'a [u8],
    },
    /// `in` or `ins`: values of `size` bytes, to be filled in.
    PortRead {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        size: usize,
        /// The values.
        data: &'a mut [u8],
    },
    /// A write where there is no memory.
    MemoryWrite {
        /// The guest-physical address.
        address: u64,
        /// At most 8 bytes.
        data: &'a [u8],
    },
    /// A read where there is no memory.
    MemoryRead {
        /// The guest-physical address.
        address: u64,
        /// At most 8 bytes, to be filled in.
        data: &'a mut [u8],
    },
    /// The guest asks for pages to be made private or shared (`KVM_HC_MAP_GPA_RANGE`).
    MapGpaRange {
        /// As in KVM's documentation of the hypercall.
        arguments: [u64; 6],
        /// To be filled in.
        reply: &'a mut u64,
    },
    /// The guest uses a page as private that is shared, or as shared that is private.
    MemoryFault {
        /// The guest-physical address, of whole pages.
        gpa: u64,
        /// Bytes, of whole pages.
        size: u64,
        /// How the guest uses it.
        private: bool,
    },
    /// A signal arrived, or the vCPU waits for another one to start it.
    Interrupted,
    /// A fault while delivering a double fault.
    TripleFault,
    /// The guest told KVM something about the whole machine (`KVM_SYSTEM_EVENT_*`).
    SystemEvent {
        /// Which one.
        kind: u32,
        /// More about it.
        data: &'a [u64],
    },
    /// KVM could not go on (`KVM_INTERNAL_ERROR_*`).
    InternalError {
        /// Which error.
        suberror: u32,
    },
    /// The CPU refused to enter the guest.
    EntryFailed {
        /// The CPU's code.
        reason: u64,
    },
    /// One that no device or platform here asked for.
    Unexpected(u32),
}

/// The page that a vCPU shares with the kernel.
#[derive(Clone, Copy)]
pub(crate) struct RunPage(NonNull<kvm_run>);

// SAFETY: it is a page of the process, not of a thread. Who uses it says why it may.
unsafe impl Send for RunPage {}

impl RunPage {
    pub(crate) fn of(vcpu: &mut VcpuFd) -> Self {
        Self(NonNull::from(vcpu.get_kvm_run()))
    }

    /// Where to write 1 to make KVM_RUN return at once.
    pub(crate) fn immediate_exit(self) -> *mut u8 {
        // SAFETY: the pointer is to a whole kvm_run; no reference is made of it.
        unsafe { &raw mut (*self.0.as_ptr()).immediate_exit }
    }

    /// The size of a port access; only while the exit is one.
    fn port_size(self) -> usize {
        // SAFETY: the mapping lives as long as the vCPU, which the caller has just run. The kernel
        // writes it only during KVM_RUN, and the data of the access lies outside of this structure.
        let size = unsafe { (*self.0.as_ptr()).__bindgen_anon_1.io.size };
        usize::from(size).max(1)
    }

    /// The code of an internal error; only while the exit is one.
    fn suberror(self) -> u32 {
        // SAFETY: as for `port_size`.
        unsafe { (*self.0.as_ptr()).__bindgen_anon_1.internal.suberror }
    }
}

/// Lets the kernel take the answer to an exit, which it does before anything of the guest runs.
///
/// # Errors
/// As for [`run`].
pub(crate) fn take_answer(vcpu: &mut VcpuFd, page: RunPage) -> Result<Exit<'_>, kvm_ioctls::Error> {
    let immediate_exit = page.immediate_exit();
    // SAFETY: a byte of a page that lives as long as the vCPU. A kick's handler, on this thread, may
    // write 1 as well.
    unsafe { immediate_exit.write_volatile(1) };
    let exit = run(vcpu, page);
    // SAFETY: as above. A kick that comes before this is undone, but whoever kicks has declared the
    // end of the run before, which is looked at before the vCPU runs again.
    unsafe { immediate_exit.write_volatile(0) };
    exit
}

/// Runs the vCPU until it exits.
///
/// # Errors
/// If KVM_RUN fails with anything but a signal or a vCPU that is not started yet.
pub(crate) fn run(vcpu: &mut VcpuFd, page: RunPage) -> Result<Exit<'_>, kvm_ioctls::Error> {
    let exit = match vcpu.run() {
        Ok(exit) => exit,
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
            return Ok(Exit::Interrupted);
        }
        Err(error) => return Err(error),
    };
    Ok(match exit {
        VcpuExit::IoOut(port, data) => Exit::PortWrite { port, size: page.port_size(), data },
        VcpuExit::IoIn(port, data) => Exit::PortRead { port, size: page.port_size(), data },
        VcpuExit::MmioWrite(address, data) => Exit::MemoryWrite { address, data },
        VcpuExit::MmioRead(address, data) => Exit::MemoryRead { address, data },
        VcpuExit::Hypercall(HypercallExit { nr: MapGpaRange::NUMBER, args, ret, .. }) => {
            Exit::MapGpaRange { arguments: args, reply: ret }
        }
        VcpuExit::MemoryFault { flags, gpa, size } => {
            let private = flags & u64::from(kvm_bindings::KVM_MEMORY_EXIT_FLAG_PRIVATE) != 0;
            Exit::MemoryFault { gpa, size, private }
        }
        VcpuExit::Intr => Exit::Interrupted,
        VcpuExit::Shutdown => Exit::TripleFault,
        VcpuExit::SystemEvent(kind, data) => Exit::SystemEvent { kind, data },
        VcpuExit::InternalError => Exit::InternalError { suberror: page.suberror() },
        VcpuExit::FailEntry(reason, _) => Exit::EntryFailed { reason },
        VcpuExit::Unsupported(reason) => Exit::Unexpected(reason),
        other => Exit::Unexpected(reason_of(&other)),
    })
}

/// The number of an exit that KVM does not give unless it is asked for.
const fn reason_of(exit: &VcpuExit<'_>) -> u32 {
    match exit {
        VcpuExit::Hypercall(_) => kvm_bindings::KVM_EXIT_HYPERCALL,
        VcpuExit::Debug(_) => kvm_bindings::KVM_EXIT_DEBUG,
        VcpuExit::Hlt => kvm_bindings::KVM_EXIT_HLT,
        VcpuExit::IoapicEoi(_) => kvm_bindings::KVM_EXIT_IOAPIC_EOI,
        VcpuExit::X86Rdmsr(_) => kvm_bindings::KVM_EXIT_X86_RDMSR,
        VcpuExit::X86Wrmsr(_) => kvm_bindings::KVM_EXIT_X86_WRMSR,
        _ => kvm_bindings::KVM_EXIT_UNKNOWN,
    }
}
