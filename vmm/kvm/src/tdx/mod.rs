//! The launch of a TD: KVM_MEMORY_ENCRYPT_OP with the KVM_TDX commands, on VMs and vCPUs.
//!
//! In order: split interrupt controller, APIC bus cycle and TSC frequency (see [`crate::vm`]);
//! [`capabilities`], [`init_vm`]; memory slots; for each vCPU its CPUID, **then** [`init_vcpu`]; on
//! the first vCPU [`init_mem_region`] for each import; [`finalize_vm`]. One thread does all this
//! before any vCPU runs: the kernel waits for vCPUs that are in KVM_RUN. Block its signals.
//!
//! Most failures are final for the TD: the kernel then answers every command with EIO.
//!
//! Sources: Linux `Documentation/virt/kvm/x86/intel-tdx.rst` and `asm/kvm.h`; Intel's TDX Module ABI.

#![allow(unsafe_code, reason = "ioctls")]

mod abi;
mod cpuid;
#[cfg(test)]
mod tests;

use std::fmt;
use std::os::fd::AsRawFd;

use casemate_launch::PlatformKind;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{VcpuFd, VmFd};
use libc::c_ulong;
use zerocopy::FromZeros;

use crate::boundary::{
    Argument, Firmware, Nothing, Reply, address_of, call, ioctl, retry, until_done,
};
use crate::cpuid::WithCpuid;
use crate::memory::{PAGE_SIZE, Page};
use crate::{KernelError, vm};

pub use cpuid::Gpaw;

use abi::{CapabilitiesHead, Envelope, InitMemRegion, InitVmHead, NoHead};

/// TD attribute SEPT_VE_DISABLE: the host cannot inject #VE by taking pages away. Linux guests
/// refuse to start without it.
pub const ATTRIBUTE_SEPT_VE_DISABLE: u64 = 1 << 28;

const CAPABILITIES: u32 = 0;
const INIT_VM: u32 = 1;
const INIT_VCPU: u32 = 2;
const INIT_MEM_REGION: u32 = 3;
const FINALIZE_VM: u32 = 4;
const GET_CPUID: u32 = 5;

/// What KVM and the TDX module let a TD have.
#[derive(Clone, Debug, PartialEq)]
pub struct Capabilities {
    /// TD attributes that may be set.
    pub attributes: u64,
    /// XFAM bits that may be set.
    pub xfam: u64,
    /// GetTdVmCallInfo leaf 1, R11 and R12: calls that KVM handles. 0 from kernels that do not say.
    pub kernel_calls: [u64; 2],
    /// The same, of calls that KVM hands to this process.
    pub user_calls: [u64; 2],
    /// CPUID bits that can be configured, per leaf. `flags` of these is 0, also for leaves with
    /// subleaves: go by function and index.
    pub cpuid: Vec<kvm_cpuid_entry2>,
}

/// Asks what a TD can have.
///
/// # Errors
/// `vm` is no TD.
pub fn capabilities(vm: &VmFd) -> Result<Capabilities, KernelError> {
    let (head, cpuid) = growing(|capacity| {
        let mut answer = WithCpuid::with_capacity(&CapabilitiesHead::new_zeroed(), capacity);
        call("KVM_TDX_CAPABILITIES", Firmware::Tdx, &mut answer, |answer| {
            // SAFETY: CAPABILITIES writes this structure and at most as many entries as its count
            // says, which is what the buffer has room for.
            unsafe { command(vm, CAPABILITIES, 0, address_of(answer.bytes())) }
        })?;
        Ok(answer.into_parts())
    })?;
    Ok(Capabilities {
        attributes: head.supported_attrs,
        xfam: head.supported_xfam,
        kernel_calls: [head.kernel_tdvmcallinfo_1_r11, head.kernel_tdvmcallinfo_1_r12],
        user_calls: [head.user_tdvmcallinfo_1_r11, head.user_tdvmcallinfo_1_r12],
        cpuid,
    })
}

/// XFAM bits that this host offers. No KeyID is taken.
///
/// # Errors
/// KVM launches no TDs here.
pub fn offered_xfam() -> Result<u64, KernelError> {
    let vm = vm::create(&vm::open()?, PlatformKind::Tdx)?;
    Ok(capabilities(&vm)?.xfam)
}

/// What a TD is made with. Attributes, XFAM and the three identities are in its reports.
#[derive(Clone, Debug, PartialEq)]
pub struct InitVm {
    /// TD attributes, within [`Capabilities::attributes`].
    pub attributes: u64,
    /// XFAM, within [`Capabilities::xfam`].
    pub xfam: u64,
    /// MRCONFIGID: free for the owner's use.
    pub mrconfigid: [u8; 48],
    /// MROWNER: free for the owner's use.
    pub mrowner: [u8; 48],
    /// MROWNERCONFIG: free for the owner's use.
    pub mrownerconfig: [u8; 48],
    /// The configurable leaves, as [`Capabilities::configure`] makes them.
    pub cpuid: Vec<kvm_cpuid_entry2>,
}

/// Makes `vm` a TD: takes a KeyID. After the interrupt controller and the TSC frequency, before the
/// first vCPU.
///
/// # Errors
/// A value is not offered, no KeyID is free, or there are vCPUs.
pub fn init_vm(vm: &VmFd, init: &InitVm) -> Result<(), KernelError> {
    let head = InitVmHead {
        attributes: init.attributes,
        xfam: init.xfam,
        mrconfigid: init.mrconfigid,
        mrowner: init.mrowner,
        mrownerconfig: init.mrownerconfig,
        reserved: [0; 12],
    };
    // EBUSY is none of these: it says that the cgroup's KeyIDs are used up, which does not pass.
    retry(&[libc::EAGAIN, libc::EINTR], || {
        let mut arguments = WithCpuid::new(&head, &init.cpuid);
        call("KVM_TDX_INIT_VM", Firmware::Tdx, &mut arguments, |arguments| {
            // SAFETY: INIT_VM reads this structure and as many entries as its count says, which are
            // all in the buffer.
            unsafe { command(vm, INIT_VM, 0, address_of(arguments.bytes())) }
        })
        .map(drop)
    })
}

/// What [`init_vcpu`] passes: a value in place of an address.
struct InitVcpu {
    hob: u64,
}

impl fmt::Display for InitVcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HOB at gpa {:#x}", self.hob)
    }
}

impl Argument for InitVcpu {
    fn bytes(&mut self) -> &mut [u8] {
        zerocopy::IntoBytes::as_mut_bytes(&mut self.hob)
    }
}

/// Initialises a vCPU. It must have its CPUID already, with X2APIC. `hob` is what the guest finds in
/// RCX and R8 when it starts: the guest-physical address of the TD HOB.
///
/// # Errors
/// The vCPU has no CPUID, or is initialised already.
pub fn init_vcpu(vcpu: &VcpuFd, hob: u64) -> Result<(), KernelError> {
    call("KVM_TDX_INIT_VCPU", Firmware::None, &mut InitVcpu { hob }, |init| {
        // SAFETY: INIT_VCPU takes a value, not an address.
        unsafe { command(vcpu, INIT_VCPU, 0, init.hob) }
    })
    .map(drop)
}

/// Whether the contents of pages are measured (MR.EXTEND); their address always is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Address and contents.
    Contents,
    /// The address alone.
    Address,
}

/// Adds pages to the TD, from guest-physical address `gpa`, a multiple of [`PAGE_SIZE`] and without the
/// shared bit. The range must be private and backed by guest_memfd. The order is measured. `vcpu` is
/// one that is initialised, by custom the first.
///
/// Goes on where the kernel stopped, and tries again, with a bound, while host or module are busy.
///
/// # Errors
/// The range is not as said, or memory is short. The message has the address from which on pages
/// are missing.
pub fn init_mem_region(
    vcpu: &VcpuFd,
    gpa: u64,
    pages: &[Page],
    measure: Measure,
) -> Result<(), KernelError> {
    const NAME: &str = "KVM_TDX_INIT_MEM_REGION";
    let flags = u32::from(measure == Measure::Contents);
    let source = pages.as_ptr().expose_provenance() as u64;
    let total = pages.len() as u64;
    until_done(NAME, total, |left| {
        // Where the rest begins is computed here, so that what the kernel reads is always within
        // the source.
        let done = (total - left) * PAGE_SIZE;
        let region = InitMemRegion {
            source_addr: source + done,
            gpa: gpa.wrapping_add(done),
            nr_pages: left,
        };
        let mut region = Region { region, measure };
        let outcome = call(NAME, Firmware::None, &mut region, |Region { region, .. }| {
            // SAFETY: INIT_MEM_REGION takes this structure and reads `nr_pages` pages from
            // `source_addr`: the last `left` of `pages` (until_done keeps `left` at most `total`),
            // which are borrowed for the call.
            unsafe { command(vcpu, INIT_MEM_REGION, flags, address_of(region)) }
        });
        (region.region.nr_pages, outcome.map(drop))
    })
}

/// The argument of [`init_mem_region`], which says in the envelope's flags what is measured.
struct Region {
    region: InitMemRegion,
    measure: Measure,
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let measured = if self.measure == Measure::Contents { ", measured" } else { "" };
        write!(f, "{}{measured}", self.region)
    }
}

impl Argument for Region {
    const HOST_ADDRESSES: &'static [usize] = InitMemRegion::HOST_ADDRESSES;
    const REMAINING: Option<usize> = InitMemRegion::REMAINING;

    fn bytes(&mut self) -> &mut [u8] {
        self.region.bytes()
    }
}

/// Ends the launch: MRTD is final, and vCPUs may run.
///
/// # Errors
/// The TD is not initialised, or is final already.
pub fn finalize_vm(vm: &VmFd) -> Result<(), KernelError> {
    retry(&[libc::EAGAIN, libc::EINTR, libc::EBUSY], || {
        call("KVM_TDX_FINALIZE_VM", Firmware::Tdx, &mut Nothing, |_| {
            // SAFETY: FINALIZE_VM takes no structure.
            unsafe { command(vm, FINALIZE_VM, 0, 0) }
        })
        .map(drop)
    })
}

/// The CPUID that the TD really has, after [`init_vm`] and before [`finalize_vm`].
///
/// # Errors
/// The TD is not initialised, or is final already.
pub fn cpuid(vcpu: &VcpuFd) -> Result<Vec<kvm_cpuid_entry2>, KernelError> {
    let (NoHead, cpuid) = growing(|capacity| {
        let mut answer = WithCpuid::with_capacity(&NoHead, capacity);
        call("KVM_TDX_GET_CPUID", Firmware::None, &mut answer, |answer| {
            // SAFETY: GET_CPUID writes a count and at most as many entries as the count said
            // before, which is what the buffer has room for.
            unsafe { command(vcpu, GET_CPUID, 0, address_of(answer.bytes())) }
        })?;
        Ok(answer.into_parts())
    })?;
    Ok(cpuid)
}

/// Runs `query` with room for more and more entries, until the kernel is content.
fn growing<T>(mut query: impl FnMut(usize) -> Result<T, KernelError>) -> Result<T, KernelError> {
    const MOST: usize = 1024;
    let mut capacity = 64;
    loop {
        match query(capacity) {
            Err(error) if error.errno() == libc::E2BIG && capacity < MOST => capacity *= 2,
            outcome => return outcome,
        }
    }
}

/// # Safety
/// `data` is what command `id` takes: a value, or an address of a structure; what the kernel does to
/// that and through addresses in it is valid until the call returns.
unsafe fn command(fd: &impl AsRawFd, id: u32, flags: u32, data: c_ulong) -> Reply {
    let mut envelope = Envelope { id, flags, data, hw_error: 0 };
    // SAFETY: KVM_MEMORY_ENCRYPT_OP takes this envelope on a TD and its vCPUs; `data` is the
    // caller's contract. An SEV VM takes the envelope for its own of the same size, knows none of
    // these ids as an INIT2 VM, and refuses them.
    let reply = unsafe { ioctl(fd, vm::KVM_MEMORY_ENCRYPT_OP, address_of(&mut envelope)) };
    Reply { status: envelope.hw_error, ..reply }
}
