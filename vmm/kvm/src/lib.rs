//! The kernel interfaces that kvm-ioctls lacks: guest_memfd, SEV-SNP, TDX, host probing; and, of those
//! that it has, what a launch needs.
//!
//! | module | what it is |
//! |---|---|
//! | [`vm`] | VM types, VMs and their capabilities, SEV attributes of /dev/kvm |
//! | [`vcpu`] | vCPUs, and their registers before they run |
//! | [`cpuid`] | CPUID of the host and of vCPUs |
//! | [`memory`] | guest_memfd, memory slots, memory attributes, prefault |
//! | [`snp`] | the SEV-SNP launch commands |
//! | [`sev_device`] | /dev/sev: the secure processor's state |
//! | [`tdx`] | the TDX launch commands |
//! | [`exit`] | what the exits of confidential guests carry |
//! | [`error`] | why a command failed, and what to try |
//! | [`trace`] | record, replay and fail commands, for tests and `--record` |
//! | [`host`] | which guests this machine can launch, and why not others |
//!
//! Layouts and numbers are those of Linux 7.2's `linux/kvm.h`, `asm/kvm.h` and `linux/psp-sev.h`; each
//! has size and offset asserts beside it. Commands exist from Linux 6.11 (SEV-SNP) and 6.16 (TDX)
//! on; what came later is probed, never assumed.
//!
//! Every command is a safe function that takes what it needs by reference. Those that change a
//! launch return only when the kernel has done all of it, or failed for good.

mod boundary;
pub mod cpuid;
pub mod error;
pub mod exit;
pub mod host;
pub mod memory;
pub mod sev_device;
pub mod snp;
pub mod tdx;
pub mod trace;
pub mod vcpu;
pub mod vm;

pub use error::KernelError;
pub use memory::Page;
