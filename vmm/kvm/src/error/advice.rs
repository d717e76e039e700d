//! What a failure most likely means for the user, and the next thing to do.

use libc::{
    E2BIG, EAGAIN, EBUSY, EEXIST, EINTR, EINVAL, EIO, EMFILE, ENFILE, ENODEV, ENOENT, ENOMEM,
    ENOSPC, ENOTTY, ENXIO, EOPNOTSUPP, EPERM,
};

use super::{SevStatus, Status};

/// The firmware's word comes first: it is closer to the cause than the errno.
pub(super) fn advice(
    command: &str,
    arguments: &str,
    errno: i32,
    status: Status,
) -> Option<&'static str> {
    // Only `casemate host` asks this, and it has advice of its own.
    if command == "SNP_PLATFORM_STATUS" {
        return None;
    }
    let by_firmware = match status {
        Status::Sev(status) => by_sev_status(command, arguments, status),
        Status::Seamcall(status) if status.is_transient() => {
            Some("the TDX module stayed busy, or without random numbers: try again")
        }
        Status::Seamcall(status) => status.operand().and_then(by_operand),
        Status::None => None,
    };
    by_firmware.or_else(|| by_errno(command, errno))
}

fn by_sev_status(command: &str, arguments: &str, status: SevStatus) -> Option<&'static str> {
    Some(match (command, status.0) {
        ("KVM_SEV_SNP_LAUNCH_UPDATE", 0x16) if arguments.contains(", CPUID") => {
            "the firmware refused the CPUID page and put the values it accepts into it: take the \
             CPUID leaves from this host rather than from a named model"
        }
        ("KVM_SEV_SNP_LAUNCH_FINISH", 0x07) => {
            "the ID block must have the policy that the guest is launched with"
        }
        ("KVM_SEV_SNP_LAUNCH_FINISH", 0x0a) => {
            "sign the ID block with the key that its authentication block names (ECDSA P-384, \
             numbers in little endian)"
        }
        ("KVM_SEV_SNP_LAUNCH_FINISH", 0x0b) => {
            "the ID block is for another guest: compare its digest with `casemate measure`"
        }
        (_, 0x01 | 0x20 | 0x26) => {
            "the platform is not initialised for SEV-SNP: run `casemate host`, and look for \
             SEV-SNP in the kernel's log"
        }
        (_, 0x03) => "check the SEV-SNP settings of the BIOS (`casemate host` lists them)",
        (_, 0x07) => {
            "compare the policy with the host: SMT, ABI version, ciphertext hiding and single \
             socket must be as the policy asks (`casemate host`)"
        }
        (_, 0x0c | 0x0e | 0x0f | 0x17) => {
            "end guests that are no longer needed and try again; if that does not help, reload \
             kvm_amd"
        }
        (_, 0x11 | 0x15) => "update the SEV firmware (linux-firmware or the BIOS)",
        (_, 0x13 | 0x14) => "restart the host; if it comes again, ask the machine's vendor",
        (_, 0x18) => "the firmware's non-volatile storage is damaged: update the BIOS",
        (_, 0x23 | 0x28) => "reload the ccp module, or restart the host",
        _ => return None,
    })
}

fn by_operand(operand: &str) -> Option<&'static str> {
    Some(match operand {
        "CPUID_CONFIG" => {
            "the CPUID values do not fit the TDX module: pass configurable leaves only, with only \
             the bits of the capability list; update the module if it is old"
        }
        "ATTRIBUTES" => "leave out the TD attributes that the host does not offer",
        "XFAM" => {
            "leave out the XFAM bits that the host does not offer, or complete a pair of them"
        }
        "EPTP_CONTROLS" => "choose a guest physical address width that the host supports (48)",
        "MAX_VCPUS" => "give the guest fewer vCPUs",
        "TSC_FREQUENCY" => "the TSC must run at 100 MHz to 10 GHz, a multiple of 25 MHz",
        _ => return None,
    })
}

fn by_errno(command: &str, errno: i32) -> Option<&'static str> {
    const HOST: &str = "run `casemate host`: it says what this machine lacks";
    const BUGGED: &str = "the kernel gave this guest up; its log has the reason. Start the guest \
                          anew";
    const SEAMCALL: &str = "the TDX module refused and the kernel gave this guest up; the status is in \
                            the kernel's log: sudo dmesg | grep SEAMCALL";
    const KEYIDS: &str = "all TDX KeyIDs are in use, or the `misc` cgroup allows no more: end other \
                          TDX guests or raise misc.max";
    Some(match (command, errno) {
        ("KVM_SEV_INIT2", EBUSY) => {
            "the `misc` cgroup of this process allows no more SEV-ES guests: raise misc.max \
             (`sev_es`), or end other guests"
        }
        ("KVM_SEV_INIT2" | "KVM_SEV_SNP_LAUNCH_START", ENOTTY) => {
            "SEV-SNP is not usable here, or all its ASIDs are taken: run `casemate host`"
        }
        ("KVM_SEV_INIT2", EINVAL) => "leave out VMSA features that the host does not offer",
        ("KVM_SEV_SNP_LAUNCH_START", EINVAL) => {
            "the host does not know a bit of the policy, or misses bit 17; before Linux 7.1 it \
             also wants SMT allowed"
        }
        ("KVM_SEV_SNP_LAUNCH_UPDATE", EIO) => {
            "the memory cgroup may be full, or this page is in the plan twice, or a signal came \
             in the middle: compare the guest's memory with the cgroup's limit"
        }
        ("KVM_TDX_INIT_VM", ENOSPC | EBUSY) => KEYIDS,
        ("KVM_TDX_INIT_VM", EAGAIN) => "the processor's random numbers ran out: try again",
        ("KVM_TDX_INIT_VM", EINVAL) => {
            "attributes, XFAM and CPUID must be within what KVM_TDX_CAPABILITIES reports"
        }
        ("KVM_TDX_INIT_VCPU", EINVAL) => {
            "the vCPU must have its CPUID, with X2APIC, before it is initialised"
        }
        ("KVM_TDX_INIT_MEM_REGION" | "KVM_TDX_FINALIZE_VM", EAGAIN | EBUSY) => {
            "the host is very busy: try again"
        }
        // The kernel hands a status to its caller only for operands that are not valid (Linux 7.2,
        // arch/x86/kvm/vmx/tdx.c, __tdx_td_init).
        (command, EIO) if command.starts_with("KVM_TDX_") => SEAMCALL,
        (command, ENOTTY | EOPNOTSUPP) if command.starts_with("KVM_TDX_") => HOST,
        ("KVM_GET_API_VERSION", _) => "what was opened as /dev/kvm is no KVM",
        ("KVM_CREATE_VM", EBUSY) => {
            "something else uses the processor's virtualisation: stop other hypervisors"
        }
        ("KVM_CREATE_VM", EINTR) => "signals came all the time: try again",
        ("KVM_CREATE_VM" | "KVM_ENABLE_CAP", EINVAL | ENOTTY | EOPNOTSUPP) => HOST,
        ("KVM_CREATE_VCPU", EINVAL) => {
            "the host may have fewer vCPUs for such a guest: let it have fewer, with --vcpus"
        }
        ("KVM_CREATE_VCPU", EEXIST) => {
            "the guest has this vCPU already, which is an error of this program"
        }
        ("KVM_CREATE_VCPU", EIO) => BUGGED,
        ("KVM_SET_CPUID2", EINVAL) => {
            "KVM refuses leaves that it offers itself: update the host's kernel; `--record` writes \
             down all leaves"
        }
        ("KVM_GET_SUPPORTED_CPUID" | "KVM_GET_CPUID2" | "KVM_SET_CPUID2", E2BIG) => {
            "the kernel lists more CPUID leaves than any known kernel has"
        }
        (
            "KVM_SET_REGS" | "KVM_SET_SREGS" | "KVM_SET_FPU" | "KVM_SET_XCRS" | "KVM_SET_DEBUGREGS"
            | "KVM_SET_MSRS" | "KVM_SET_MP_STATE",
            EINVAL,
        ) => {
            "KVM does not take what the guest's firmware or kernel starts with: `--record` writes \
             down all registers"
        }
        (_, EMFILE) => "raise the limit of open files (ulimit -n)",
        (_, ENFILE) => "the host has too many open files: raise fs.file-max",
        ("KVM_CREATE_GUEST_MEMFD", EINVAL | ENOTTY) => HOST,
        ("KVM_CREATE_GUEST_MEMFD", libc::EACCES) => {
            "SELinux confines this process: run it from an unconfined domain, or allow its domain \
             anon_inode:create (sudo ausearch -m avc -ts recent)"
        }
        ("KVM_SET_MEMORY_ATTRIBUTES", ENOMEM) => {
            "the kernel needs some 9 bytes per 4 KiB page: raise the memory cgroup's limit"
        }
        ("KVM_SET_MEMORY_ATTRIBUTES", EINVAL | ENOTTY) => HOST,
        ("KVM_SET_USER_MEMORY_REGION2", EEXIST) => "two memory slots overlap",
        ("fallocate", ENOMEM | ENOSPC) => "the host is out of memory",
        (_, ENOMEM) => "the host or the memory cgroup is out of memory",
        ("open", EPERM | libc::EACCES) => "run as a member of the group that owns the device",
        ("open", ENOENT | ENODEV | ENXIO) => HOST,
        ("KVM_TDX_CAPABILITIES" | "KVM_TDX_GET_CPUID", E2BIG) => {
            "the kernel lists more CPUID leaves than any known TDX module has"
        }
        _ => return None,
    })
}
