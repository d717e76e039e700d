//! A VM as a whole: its type, the capabilities that confidential guests need, and what /dev/kvm
//! says about SEV.

#![allow(unsafe_code, reason = "ioctls")]

use std::fmt;
use std::mem::offset_of;
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd};

use casemate_launch::PlatformKind;
use kvm_ioctls::{Kvm, VmFd};
use libc::c_ulong;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::KernelError;
use crate::boundary::{Firmware, Nothing, Reply, Told, address_of, argument, call, ioctl, retry};
use crate::error::Status;

/// All platforms, the most protected first.
pub const PLATFORMS: [PlatformKind; 3] =
    [PlatformKind::Snp, PlatformKind::Tdx, PlatformKind::Plain];

/// The argument of KVM_CREATE_VM for guests of a platform.
#[must_use]
pub const fn vm_type(platform: PlatformKind) -> u32 {
    match platform {
        PlatformKind::Plain => kvm_bindings::KVM_X86_DEFAULT_VM,
        // Since Linux 6.11.
        PlatformKind::Snp => kvm_bindings::KVM_X86_SNP_VM,
        // Since Linux 6.16.
        PlatformKind::Tdx => kvm_bindings::KVM_X86_TDX_VM,
    }
}

/// Whether `kvm` can create VMs of a platform now. For SEV-SNP and TDX the kernel sets the bit only if
/// CPU, BIOS, firmware and module parameters all worked.
#[must_use]
pub fn offers(kvm: &Kvm, platform: PlatformKind) -> bool {
    vm_types(kvm) & (1 << vm_type(platform)) != 0
}

/// Lets guests of this process use AMX, where the processor has it: without permission KVM lists
/// neither its state nor, consistently, its features. Before [`crate::cpuid::supported`] and the first
/// vCPU; TDs need it not. Harmless elsewhere: the kernel refuses.
///
/// Source: Linux `Documentation/arch/x86/xstate.rst`, "Dynamic features for virtual machines".
pub fn permit_amx() {
    const ARCH_REQ_XCOMP_GUEST_PERM: libc::c_int = 0x1025;
    const XFEATURE_XTILE_DATA: libc::c_ulong = 18;
    // SAFETY: arch_prctl takes two numbers here, and reads and writes no memory.
    let outcome = unsafe {
        libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_GUEST_PERM, XFEATURE_XTILE_DATA)
    };
    tracing::debug!(allowed = outcome == 0, "AMX for guests");
}

/// Opens /dev/kvm.
///
/// # Errors
/// It is not there, or this user may not open it.
pub fn open() -> Result<Kvm, KernelError> {
    const NAME: &str = "open";
    const PATH: &str = "/dev/kvm";
    let mut opened = None;
    call(NAME, Firmware::None, &mut Told::new(PATH), |_| {
        Reply::by(Kvm::new().map(|kvm| opened = Some(kvm)))
    })?;
    let failed =
        |error: kvm_ioctls::Error| KernelError::new(NAME, PATH, error.errno(), Status::None);
    // Without one, an interposer said yes in the kernel's place: stand-ins are made on the real one.
    opened.map_or_else(|| Kvm::new().map_err(failed), Ok)
}

/// The version of KVM's interface: 12, for all kernels there are (KVM_GET_API_VERSION).
///
/// # Errors
/// What was opened is no KVM.
pub fn api_version(kvm: &Kvm) -> Result<i32, KernelError> {
    call("KVM_GET_API_VERSION", Firmware::None, &mut Told::returning("no arguments", 12), |_| {
        Reply::of(kvm.get_api_version())
    })
}

/// Creates a VM without memory and vCPUs (KVM_CREATE_VM, KVM_GET_VCPU_MMAP_SIZE).
///
/// # Errors
/// The host has no such VMs, or is out of memory, files or processors to run them on.
pub fn create(kvm: &Kvm, platform: PlatformKind) -> Result<VmFd, KernelError> {
    const NAME: &str = "KVM_CREATE_VM";
    const KVM_CREATE_VM: c_ulong = 0xAE01;
    let vm_type = vm_type(platform);
    let mut file = None;
    // A signal can interrupt it before it has done anything.
    retry(&[libc::EINTR], || {
        let words = fmt::from_fn(|f| write!(f, "type {vm_type}, {}", platform.name()));
        call(NAME, Firmware::None, &mut Told::new(words), |_| {
            // SAFETY: /dev/kvm takes the number of a type.
            let reply = unsafe { ioctl(kvm, KVM_CREATE_VM, c_ulong::from(vm_type)) };
            if reply.errno == 0 {
                // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
                file = Some(unsafe { OwnedFd::from_raw_fd(reply.value) });
            }
            Reply { value: 0, ..reply }
        })
    })?;
    let mut vm = None;
    call("KVM_GET_VCPU_MMAP_SIZE", Firmware::None, &mut Nothing, |_| {
        let Some(file) = file else { return Reply::default() };
        // SAFETY: the descriptor is that of a VM, and its owner gives it up if this succeeds.
        match unsafe { kvm.create_vmfd_from_rawfd(file.as_raw_fd()) } {
            Ok(made) => {
                _ = file.into_raw_fd();
                let size = i32::try_from(made.run_size()).unwrap_or(0);
                vm = Some(made);
                Reply { value: size, ..Reply::default() }
            }
            Err(error) => Reply::errno(error.errno()),
        }
    })?;
    let stand_in =
        |error: kvm_ioctls::Error| KernelError::new(NAME, "stand-in", error.errno(), Status::None);
    // Without one, an interposer said yes in the kernel's place: a plain one will do.
    vm.map_or_else(|| kvm.create_vm().map_err(stand_in), Ok)
}

/// How many vCPUs the VM may have; 0 if the kernel does not say (KVM_CHECK_EXTENSION).
#[must_use]
pub fn max_vcpus(vm: &VmFd) -> u32 {
    let mut told = Told::new("KVM_CAP_MAX_VCPUS");
    let most = call("KVM_CHECK_EXTENSION", Firmware::None, &mut told, |_| {
        Reply::of(vm.check_extension_raw(c_ulong::from(kvm_bindings::KVM_CAP_MAX_VCPUS)))
    });
    most.ok().and_then(|most| u32::try_from(most).ok()).unwrap_or(0)
}

/// On VMs and, for TDX, on vCPUs.
pub(crate) const KVM_MEMORY_ENCRYPT_OP: c_ulong = 0xC008_AEBA;

/// KVM_CAP_VM_TYPES: a bit for each type. Kernels that lack the capability have plain VMs only.
pub(crate) fn vm_types(kvm: &Kvm) -> u64 {
    let types = kvm.check_extension_raw(c_ulong::from(kvm_bindings::KVM_CAP_VM_TYPES));
    u64::try_from(types).unwrap_or(0).max(1)
}

/// `struct kvm_enable_cap`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct EnableCap {
    cap: u32,
    flags: u32,
    args: [u64; 4],
    pad: [u8; 64],
}

const _: () = assert!(size_of::<EnableCap>() == 104 && offset_of!(EnableCap, args) == 8);

impl fmt::Display for EnableCap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "capability {}, argument {:#x}", self.cap, self.args[0])
    }
}

argument!(EnableCap);

/// Lets guests convert memory: their requests arrive as hypercall exits with number
/// [`MapGpaRange::NUMBER`](crate::exit::MapGpaRange::NUMBER). Without it confidential guests die early.
///
/// # Errors
/// The kernel does not offer it.
pub fn enable_map_gpa_range_exits(vm: &VmFd) -> Result<(), KernelError> {
    let hypercalls = 1 << crate::exit::MapGpaRange::NUMBER;
    enable_cap(vm, kvm_bindings::KVM_CAP_EXIT_HYPERCALL, hypercalls)
}

/// Sets the period of the APIC bus in nanoseconds: 40 for TDX, whose module says so to guests.
/// Before the first vCPU.
///
/// # Errors
/// There are vCPUs already, or the kernel does not offer it.
pub fn set_apic_bus_cycle(vm: &VmFd, nanoseconds: u64) -> Result<(), KernelError> {
    enable_cap(vm, kvm_bindings::KVM_CAP_X86_APIC_BUS_CYCLES_NS, nanoseconds)
}

/// Moves PIC, PIT and I/O APIC to this process, local APICs stay in the kernel; `pins` interrupts
/// are kept for an I/O APIC. Before the first vCPU. TDX has no other mode.
///
/// # Errors
/// There are vCPUs or another interrupt controller already.
pub fn enable_split_irqchip(vm: &VmFd, pins: u64) -> Result<(), KernelError> {
    enable_cap(vm, kvm_bindings::KVM_CAP_SPLIT_IRQCHIP, pins)
}

fn enable_cap(vm: &VmFd, cap: u32, argument: u64) -> Result<(), KernelError> {
    const KVM_ENABLE_CAP: c_ulong = 0x4068_AEA3;
    let mut enable = EnableCap { cap, flags: 0, args: [argument, 0, 0, 0], pad: [0; 64] };
    call("KVM_ENABLE_CAP", Firmware::None, &mut enable, |enable| {
        // SAFETY: a VM takes this structure, which has no addresses; the kernel only reads it.
        unsafe { ioctl(vm, KVM_ENABLE_CAP, address_of(enable)) }
    })
    .map(drop)
}

/// A TSC frequency for the whole VM, in kHz. 0 is the host's.
struct TscFrequency(u32);

impl fmt::Display for TscFrequency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} kHz", self.0)
    }
}

impl crate::boundary::Argument for TscFrequency {
    fn bytes(&mut self) -> &mut [u8] {
        self.0.as_mut_bytes()
    }
}

/// Sets the TSC frequency in kHz that vCPUs of the VM start with; 0 is the host's. For TDX before
/// [`tdx::init_vm`](crate::tdx::init_vm), 100,000 to 10,000,000 and a multiple of 25,000; for
/// SEV-SNP with Secure TSC before [`snp::launch_start`](crate::snp::launch_start).
///
/// # Errors
/// There are vCPUs already, or the host cannot scale the TSC so.
pub fn set_tsc_khz(vm: &VmFd, khz: u32) -> Result<(), KernelError> {
    const KVM_SET_TSC_KHZ: c_ulong = 0xAEA2;
    call("KVM_SET_TSC_KHZ", Firmware::None, &mut TscFrequency(khz), |khz| {
        // SAFETY: the argument is a number, not an address.
        unsafe { ioctl(vm, KVM_SET_TSC_KHZ, c_ulong::from(khz.0)) }
    })
    .map(drop)
}

/// The TSC frequency in kHz that vCPUs of the VM start with: the host's where nothing was set.
///
/// # Errors
/// The host's TSC is of no use to guests.
pub fn tsc_khz(vm: &VmFd) -> Result<u32, KernelError> {
    const KVM_GET_TSC_KHZ: c_ulong = 0xAEA3;
    let khz = call("KVM_GET_TSC_KHZ", Firmware::None, &mut Nothing, |_| {
        // SAFETY: the command takes no argument.
        unsafe { ioctl(vm, KVM_GET_TSC_KHZ, 0) }
    })?;
    Ok(u32::try_from(khz).unwrap_or(0))
}

/// What /dev/kvm says about SEV guests (device attributes of group KVM_X86_GRP_SEV).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SevAttributes {
    /// VMSA features that [`snp::init`](crate::snp::init) accepts.
    pub vmsa_features: u64,
    /// Policy bits that [`snp::launch_start`](crate::snp::launch_start) accepts; None from kernels
    /// that do not say.
    pub policy_bits: Option<u64>,
    /// Whether [`snp::enable_certificate_requests`](crate::snp::enable_certificate_requests) exists.
    pub certificate_requests: bool,
}

impl SevAttributes {
    /// Bits 0 to 17 and 19: what a kernel accepts that has no attribute for it (Linux 6.11 to
    /// 7.0, SNP_POLICY_MASK_VALID; bit 20 is in that mask, but refused).
    const OLD_POLICY_BITS: u64 = 0xb_ffff;

    /// Asks `kvm`. What the kernel does not know is 0, None or false.
    #[must_use]
    pub fn of(kvm: &Kvm) -> Self {
        Self {
            vmsa_features: sev_attribute(kvm, 0).unwrap_or(0),
            policy_bits: sev_attribute(kvm, 1),
            certificate_requests: sev_attribute(kvm, 2).is_some_and(|value| value != 0),
        }
    }

    /// The policy bits that may be set.
    #[must_use]
    pub fn policy_mask(&self) -> u64 {
        self.policy_bits.unwrap_or(Self::OLD_POLICY_BITS)
    }
}

/// `struct kvm_device_attr`, and the value that its `addr` is made to point to.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct DeviceAttribute {
    flags: u32,
    group: u32,
    attr: u64,
    addr: u64,
    value: u64,
}

const _: () = {
    assert!(offset_of!(DeviceAttribute, attr) == 8 && offset_of!(DeviceAttribute, addr) == 16);
    assert!(offset_of!(DeviceAttribute, value) == 24, "sizeof(struct kvm_device_attr)");
};

impl fmt::Display for DeviceAttribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {}, attribute {}", self.group, self.attr)
    }
}

argument!(DeviceAttribute, HOST_ADDRESSES = &[offset_of!(DeviceAttribute, addr)]);

/// None if the kernel does not know the attribute (ENXIO, or ENOTTY from very old ones).
fn sev_attribute(kvm: &Kvm, attr: u64) -> Option<u64> {
    const KVM_GET_DEVICE_ATTR: c_ulong = 0x4018_AEE2;
    const KVM_X86_GRP_SEV: u32 = 1;
    let mut query = DeviceAttribute { flags: 0, group: KVM_X86_GRP_SEV, attr, addr: 0, value: 0 };
    call("KVM_GET_DEVICE_ATTR", Firmware::None, &mut query, |query| {
        query.addr = address_of(&mut query.value);
        // SAFETY: /dev/kvm takes this structure; the kernel reads it and writes the u64 at `addr`,
        // which is the last field of the same, exclusively borrowed value.
        unsafe { ioctl(kvm, KVM_GET_DEVICE_ATTR, address_of(query)) }
    })
    .ok()?;
    Some(query.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Event, Interposer, Reply, Written};

    fn kvm() -> Kvm {
        Kvm::new().expect("these tests need a /dev/kvm that this user may open")
    }

    #[test]
    fn types_are_those_of_the_kernel() {
        assert_eq!(PLATFORMS.map(vm_type), [4, 5, 0]);
        assert!(offers(&kvm(), PlatformKind::Plain));
    }

    #[test]
    fn a_plain_vm_takes_what_all_platforms_need() {
        let vm = kvm().create_vm().expect("a plain VM");
        enable_map_gpa_range_exits(&vm).expect("conversion exits");
        enable_split_irqchip(&vm, 24).expect("a split interrupt controller");
        let error = enable_split_irqchip(&vm, 24).expect_err("a second one");
        assert!(error.to_string().contains("capability 121, argument 0x18"), "{error}");
    }

    #[test]
    fn settings_are_made_before_vcpus_exist() {
        let vm = kvm().create_vm().expect("a plain VM");
        let (outcome, events) = Interposer::succeeding().run(|| {
            set_apic_bus_cycle(&vm, 40)?;
            set_tsc_khz(&vm, 1_000_000)
        });
        assert_eq!(outcome, Ok(()));
        let arguments: Vec<&str> = events.iter().map(|event| event.arguments.as_str()).collect();
        assert_eq!(arguments, ["capability 237, argument 0x28", "1000000 kHz"]);
    }

    #[test]
    fn sev_attributes_are_asked_one_by_one() {
        let event = |attr, reply, value: u64| Event {
            command: "KVM_GET_DEVICE_ATTR".into(),
            arguments: format!("group 1, attribute {attr}"),
            reply,
            written: vec![Written { offset: 24, bytes: value.to_ne_bytes().to_vec() }],
        };
        let unknown = Reply::errno(libc::ENXIO);
        let new = vec![
            event(0, Reply::default(), 1 << 5 | 1 << 9),
            event(1, Reply::default(), 0x3ff_ffff),
            event(2, Reply::default(), 1),
        ];
        let old = vec![event(0, Reply::default(), 0), event(1, unknown, 0), event(2, unknown, 0)];
        let kvm = kvm();
        let (new, _) = Interposer::replaying(new).run(|| SevAttributes::of(&kvm));
        let (old, _) = Interposer::replaying(old).run(|| SevAttributes::of(&kvm));
        assert_eq!((new.vmsa_features, new.certificate_requests), (0x220, true));
        assert_eq!((new.policy_mask(), old.policy_mask()), (0x3ff_ffff, 0xb_ffff));
        assert_eq!((old.policy_bits, old.certificate_requests), (None, false));
    }
}
