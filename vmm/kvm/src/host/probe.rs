//! What only asking tells: /dev/kvm's capabilities, limits, io_uring.

#![allow(unsafe_code, reason = "opening /dev/kvm by path, getrlimit and io_uring_setup")]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_bindings as kvm;
use kvm_ioctls::{Kvm, VmFd};
use libc::c_ulong;
use serde::{Deserialize, Serialize};

use super::facts::{Access, Limit, Limits};
use crate::memory;
use casemate_launch::PlatformKind;

use crate::vm::{self, PLATFORMS, SevAttributes, vm_types};

/// What /dev/kvm offers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmFacts {
    /// KVM_GET_API_VERSION; 12 for all kernels there are.
    pub api_version: i32,
    /// KVM_CAP_VM_TYPES: a bit per type.
    pub vm_types: u64,
    /// KVM_CAP_SPLIT_IRQCHIP.
    pub split_irqchip: bool,
    /// KVM_CAP_USER_MEMORY2.
    pub user_memory2: bool,
    /// KVM_CAP_MEMORY_FAULT_INFO.
    pub memory_fault_info: bool,
    /// KVM_CAP_GUEST_MEMFD.
    pub guest_memfd: bool,
    /// KVM_CAP_GUEST_MEMFD_FLAGS of a plain VM; 0 before Linux 6.18.
    pub guest_memfd_flags: u32,
    /// KVM_CAP_EXIT_HYPERCALL has KVM_HC_MAP_GPA_RANGE.
    pub map_gpa_range: bool,
    /// KVM_CAP_PRE_FAULT_MEMORY.
    pub prefault: bool,
    /// vCPUs of a guest, per type that can be launched.
    pub max_vcpus: Vec<(PlatformKind, u32)>,
    /// Types whose VMs have private memory.
    pub private_memory: Vec<PlatformKind>,
    /// SEV's device attributes.
    pub sev: SevAttributes,
}

impl KvmFacts {
    /// Asks the KVM at `path`; None if it is none.
    #[must_use]
    pub fn read(path: &Path) -> Option<Self> {
        let path = CString::new(path.as_os_str().as_bytes()).ok()?;
        let kvm = Kvm::new_with_path(path).ok()?;
        let api_version = kvm.get_api_version();
        if api_version < 0 {
            return None;
        }
        let has = |cap: u32| kvm.check_extension_raw(c_ulong::from(cap)) > 0;
        let types = vm_types(&kvm);
        let vms: Vec<(PlatformKind, VmFd)> = PLATFORMS
            .into_iter()
            .filter(|platform| types & (1 << vm::vm_type(*platform)) != 0)
            .filter_map(|platform| {
                let vm = kvm.create_vm_with_type(vm::vm_type(platform).into()).ok()?;
                Some((platform, vm))
            })
            .collect();
        let plain = vms.iter().find(|(platform, _)| *platform == PlatformKind::Plain);
        let of_plain = |cap: u32| {
            let value = plain.map(|(_, vm)| vm.check_extension_raw(c_ulong::from(cap)));
            value.and_then(|value| u32::try_from(value).ok()).unwrap_or(0)
        };
        let hypercalls = kvm.check_extension_raw(c_ulong::from(kvm::KVM_CAP_EXIT_HYPERCALL));
        let max_vcpus = vms.iter().filter_map(|(platform, vm)| {
            let most = vm.check_extension_raw(c_ulong::from(kvm::KVM_CAP_MAX_VCPUS));
            Some((*platform, u32::try_from(most).ok()?))
        });
        let private = vms.iter().filter(|(_, vm)| memory::has_private_memory(vm));
        Some(Self {
            api_version,
            vm_types: types,
            split_irqchip: has(kvm::KVM_CAP_SPLIT_IRQCHIP),
            user_memory2: has(kvm::KVM_CAP_USER_MEMORY2),
            memory_fault_info: has(kvm::KVM_CAP_MEMORY_FAULT_INFO),
            guest_memfd: has(kvm::KVM_CAP_GUEST_MEMFD) || of_plain(kvm::KVM_CAP_GUEST_MEMFD) > 0,
            guest_memfd_flags: of_plain(memory::KVM_CAP_GUEST_MEMFD_FLAGS),
            map_gpa_range: hypercalls & (1 << crate::exit::MapGpaRange::NUMBER) != 0,
            prefault: has(kvm::KVM_CAP_PRE_FAULT_MEMORY),
            max_vcpus: max_vcpus.collect(),
            private_memory: private.map(|(platform, _)| *platform).collect(),
            sev: SevAttributes::of(&kvm),
        })
    }

    /// Whether VMs of this type can be created now.
    #[must_use]
    pub fn offers(&self, platform: PlatformKind) -> bool {
        self.vm_types & (1 << vm::vm_type(platform)) != 0
    }
}

pub(super) fn limits() -> Limits {
    Limits { locked_memory: limit(libc::RLIMIT_MEMLOCK), open_files: limit(libc::RLIMIT_NOFILE) }
}

fn limit(resource: libc::__rlimit_resource_t) -> Limit {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes two numbers into the structure, which is exclusively borrowed. It
    // fails for unknown resources only; the limits are 0 then.
    unsafe { libc::getrlimit(resource, &raw mut limit) };
    let finite = |value: libc::rlim_t| (value != libc::RLIM_INFINITY).then_some(value);
    Limit { soft: finite(limit.rlim_cur), hard: finite(limit.rlim_max) }
}

/// Asks for a ring without parameters, which fails one way or another.
pub(super) fn io_uring() -> Access {
    // SAFETY: the kernel finds no memory at address 0 and changes nothing.
    let setup = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null_mut::<u8>()) };
    debug_assert!(setup < 0, "a ring without parameters");
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EFAULT) => Access::Opens,
        Some(libc::EPERM) => Access::Denied,
        Some(libc::ENOSYS) => Access::Missing,
        _ => Access::Fails { why: error.to_string() },
    }
}
