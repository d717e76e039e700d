//! The launch of an SEV-SNP guest: KVM_MEMORY_ENCRYPT_OP with the KVM_SEV_SNP commands.
//!
//! In order: [`init`], [`enable_certificate_requests`] where wanted, [`launch_start`]; memory slots
//! and vCPUs; [`launch_update`] for each import; [`launch_finish`]. No vCPU may run before the last
//! has returned, and no failure can be recovered from (but the CPUID page's, see [`Update::Cpuid`]).
//!
//! **Block all signals in the thread that launches.** A signal in the middle of [`launch_update`]
//! makes the kernel report EIO, which cannot be told from a real failure.
//!
//! Sources: Linux `Documentation/virt/kvm/x86/amd-memory-encryption.rst` and `asm/kvm.h`; AMD's
//! SEV-SNP Firmware ABI for what the firmware does.

#![allow(unsafe_code, reason = "ioctls")]

mod abi;
#[cfg(test)]
mod tests;

use std::os::fd::AsRawFd;

use kvm_ioctls::VmFd;
use libc::c_ulong;

use crate::boundary::{Firmware, Nothing, Reply, address_of, call, ioctl, until_done};
use crate::memory::{PAGE_SIZE, Page};
use crate::sev_device::SevDevice;
use crate::{KernelError, vm};

use abi::{CpuidUpdate, Envelope, Init, LaunchFinish, LaunchStart, LaunchUpdate};

const INIT2: u32 = 22;
const LAUNCH_START: u32 = 100;
const LAUNCH_UPDATE: u32 = 101;
const LAUNCH_FINISH: u32 = 102;
const ENABLE_REQ_CERTS: u32 = 103;

const UPDATE: &str = "KVM_SEV_SNP_LAUNCH_UPDATE";

const NORMAL: u8 = 1;
const ZERO: u8 = 3;
const UNMEASURED: u8 = 4;
const SECRETS: u8 = 5;
const CPUID: u8 = 6;

/// Makes `vm` an SEV-SNP guest: takes an ASID. Before the first vCPU.
///
/// `vmsa_features` are SEV_FEATURES of every VMSA, a subset of [`vm::SevAttributes::vmsa_features`];
/// without bit 0 (SNP_ACTIVE), which the kernel sets. They enter the launch digest.
///
/// # Errors
/// The features are not offered, there are vCPUs, no ASID is free, or the `misc` cgroup is full.
pub fn init(vm: &VmFd, sev: &SevDevice, vmsa_features: u64) -> Result<(), KernelError> {
    let mut init = Init { vmsa_features, flags: 0, ghcb_version: 2, pad1: 0, pad2: [0; 8] };
    call("KVM_SEV_INIT2", Firmware::Sev, &mut init, |init| {
        // SAFETY: INIT2 takes this structure, which has no addresses.
        unsafe { command(vm, sev, INIT2, address_of(init)) }
    })
    .map(drop)
}

/// Makes guest requests for a report with certificates end in a
/// [`CertificateRequest`](crate::exit::CertificateRequest). Between [`init`] and the first vCPU, where
/// [`vm::SevAttributes::certificate_requests`] says that the kernel has it.
///
/// # Errors
/// The kernel lacks it (before Linux 7.0), or there are vCPUs.
pub fn enable_certificate_requests(vm: &VmFd, sev: &SevDevice) -> Result<(), KernelError> {
    call("KVM_SEV_SNP_ENABLE_REQ_CERTS", Firmware::Sev, &mut Nothing, |_| {
        // SAFETY: the command takes no structure.
        unsafe { command(vm, sev, ENABLE_REQ_CERTS, 0) }
    })
    .map(drop)
}

/// Begins the launch under `policy` (SEV-SNP Firmware ABI, "Guest Policy"; bit 17 must be 1, the
/// others within [`vm::SevAttributes::policy_mask`]).
///
/// # Errors
/// The kernel or the platform does not allow the policy, or the launch has begun already.
pub fn launch_start(vm: &VmFd, sev: &SevDevice, policy: u64) -> Result<(), KernelError> {
    let mut start = LaunchStart { policy, gosvw: [0; 16], flags: 0, pad0: [0; 6], pad1: [0; 4] };
    call("KVM_SEV_SNP_LAUNCH_START", Firmware::Sev, &mut start, |start| {
        // SAFETY: LAUNCH_START takes this structure, which has no addresses.
        unsafe { command(vm, sev, LAUNCH_START, address_of(start)) }
    })
    .map(drop)
}

/// What enters guest memory.
#[derive(Debug)]
pub enum Update<'a> {
    /// Contents and address are measured.
    Normal(&'a [Page]),
    /// So many pages of zeroes, measured as such.
    Zero(u64),
    /// The address is measured, the contents are not.
    Unmeasured(&'a [Page]),
    /// The firmware writes the guest's secrets page.
    Secrets,
    /// A CPUID table, which the firmware checks. If it refuses it, with
    /// [`SevStatus::INVALID_PARAM`](crate::error::SevStatus::INVALID_PARAM), it has put the values it
    /// accepts into the page, nothing is measured, and the update may be tried again with it.
    Cpuid(&'a mut Page),
}

/// Adds pages to the guest, from guest-physical address `gpa`, a multiple of [`PAGE_SIZE`]. The range
/// must be private, backed by guest_memfd, and not added before. The order of updates is measured.
///
/// # Errors
/// The range is not as said, the firmware refuses a page, memory is short, or a signal came in the
/// middle. The message has the address from which on pages are missing.
pub fn launch_update(
    vm: &VmFd,
    sev: &SevDevice,
    gpa: u64,
    update: Update<'_>,
) -> Result<(), KernelError> {
    match update {
        Update::Normal(pages) => update_from(vm, sev, gpa, NORMAL, pages),
        Update::Unmeasured(pages) => update_from(vm, sev, gpa, UNMEASURED, pages),
        // The kernel insists on a source that it can read, and Linux 6.12 copies it.
        Update::Secrets => update_from(vm, sev, gpa, SECRETS, &[Page::ZERO]),
        Update::Zero(pages) => {
            let size = pages.saturating_mul(PAGE_SIZE);
            // SAFETY: ZERO has no source.
            unsafe { update_range(vm, sev, gpa, ZERO, size, 0) }
        }
        Update::Cpuid(page) => update_cpuid(vm, sev, gpa, page),
    }
}

fn update_cpuid(vm: &VmFd, sev: &SevDevice, gpa: u64, page: &mut Page) -> Result<(), KernelError> {
    let mut update = CpuidUpdate::new(gpa, page);
    let outcome = until_done(UPDATE, PAGE_SIZE, |_| {
        let outcome =
            call(UPDATE, Firmware::Sev, &mut update, |CpuidUpdate { page, update, .. }| {
                update.uaddr = address_of(page);
                // SAFETY: LAUNCH_UPDATE takes this structure. The source is the page beside it, as
                // exclusively borrowed, to which the kernel may write.
                unsafe { command(vm, sev, LAUNCH_UPDATE, address_of(update)) }
            });
        (update.update.len, outcome.map(drop))
    });
    page.0 = update.page;
    outcome
}

fn update_from(
    vm: &VmFd,
    sev: &SevDevice,
    gpa: u64,
    kind: u8,
    pages: &[Page],
) -> Result<(), KernelError> {
    let source = pages.as_ptr().expose_provenance() as u64;
    // SAFETY: the source has the size of the range and is borrowed for the call. Of the page types
    // that come here, the kernel writes to the source of none.
    unsafe { update_range(vm, sev, gpa, kind, size_of_val(pages) as u64, source) }
}

/// # Safety
/// `source` is the address of `size` bytes, valid for reads. ZERO has no source. `kind` is not CPUID.
unsafe fn update_range(
    vm: &VmFd,
    sev: &SevDevice,
    gpa: u64,
    kind: u8,
    size: u64,
    source: u64,
) -> Result<(), KernelError> {
    until_done(UPDATE, size, |left| {
        // The kernel stops at the end of a slot. It says how much is left; where that begins is
        // computed here, so that what it reads is always within the source.
        let done = size - left;
        let mut update = LaunchUpdate::new(gpa.wrapping_add(done), left, kind);
        update.uaddr = if kind == ZERO { 0 } else { source + done };
        let outcome = call(UPDATE, Firmware::Sev, &mut update, |update| {
            // SAFETY: LAUNCH_UPDATE takes this structure. `uaddr` and `len` are the last `left`
            // bytes of the source (until_done keeps `left` at most `size`), and the source is
            // valid for what the kernel does to it by the caller's contract.
            unsafe { command(vm, sev, LAUNCH_UPDATE, address_of(update)) }
        });
        (update.len, outcome.map(drop))
    })
}

/// Who a guest is by its owner's word: compared with the launch digest and the policy, and shown in
/// reports. Layouts: SEV-SNP Firmware ABI, "ID Block" and "ID Authentication Information".
#[derive(Debug)]
pub struct IdBlock<'a> {
    /// The ID block.
    pub block: &'a [u8; 96],
    /// Its signature and keys.
    pub authentication: &'a [u8; 4096],
    /// Whether the authentication has an author key.
    pub has_author_key: bool,
}

/// What [`launch_finish`] binds to the guest.
#[derive(Debug, Default)]
pub struct Finish<'a> {
    /// Checked by the platform, where given.
    pub id_block: Option<IdBlock<'a>>,
    /// The guest gets no report signed by the chip's own key.
    pub vcek_disabled: bool,
    /// HOST_DATA of reports; not measured.
    pub host_data: [u8; 32],
}

/// Measures the initial state of each vCPU, in the order in which they were created, and ends the
/// launch. Then the vCPUs may run, and their registers cannot be read or set any more.
///
/// # Errors
/// The ID block does not fit the launch, or is not signed as it says; a vCPU is being debugged or is
/// running.
pub fn launch_finish(vm: &VmFd, sev: &SevDevice, finish: &Finish<'_>) -> Result<(), KernelError> {
    let address = |bytes: &[u8]| bytes.as_ptr().expose_provenance() as u64;
    let id = finish.id_block.as_ref();
    let mut arguments = LaunchFinish {
        id_block_uaddr: id.map_or(0, |id| address(id.block)),
        id_auth_uaddr: id.map_or(0, |id| address(id.authentication)),
        id_block_en: id.is_some().into(),
        auth_key_en: id.is_some_and(|id| id.has_author_key).into(),
        vcek_disabled: finish.vcek_disabled.into(),
        host_data: finish.host_data,
        pad0: [0; 3],
        flags: 0,
        pad1: [0; 4],
    };
    call("KVM_SEV_SNP_LAUNCH_FINISH", Firmware::Sev, &mut arguments, |arguments| {
        // SAFETY: LAUNCH_FINISH takes this structure and reads 96 and 4096 bytes from the two
        // addresses if an ID block is enabled: the sizes of the arrays that `finish` lends.
        unsafe { command(vm, sev, LAUNCH_FINISH, address_of(arguments)) }
    })
    .map(drop)
}

/// # Safety
/// `data` is the address of the structure that command `id` takes, or 0 if it takes none; what the
/// kernel does to it and through addresses in it is valid until the call returns.
unsafe fn command(vm: &VmFd, sev: &SevDevice, id: u32, data: c_ulong) -> Reply {
    let sev_fd = sev.as_raw_fd().cast_unsigned();
    let mut envelope = Envelope { id, pad0: 0, data, error: 0, sev_fd };
    // SAFETY: KVM_MEMORY_ENCRYPT_OP takes this envelope on an SEV VM; `data` is the caller's
    // contract. On a VM of another type it fails without a look at `data`, or, for TDX, takes the
    // envelope for its own of the same size and refuses these ids.
    let reply = unsafe { ioctl(vm, vm::KVM_MEMORY_ENCRYPT_OP, address_of(&mut envelope)) };
    Reply { status: envelope.error.into(), ..reply }
}
