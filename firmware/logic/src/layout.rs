//! Guest-physical addresses that firmware and VMM agree on. They are the same on every platform.
//!
//! | range | what |
//! |---|---|
//! | 0 - 640 KiB | RAM for the kernel; accepted by the firmware |
//! | 640 KiB - 1 MiB | RAM that the memory map calls reserved; accepted, because Linux looks there for old tables |
//! | 8 MiB | [`SECRETS`], [`CPUID`], [`HOB`], [`WORK`], [`HANDOFF`] |
//! | 16 MiB | [`KERNEL`] and the memory that it asks for |
//! | up to [`LOW_MEMORY_END`] at most | RAM, with the initrd at its end |
//! | 3.5 GiB | [`ECAM`] |
//! | 3.625 GiB | [`WINDOW`], shared with the host |
//! | 4 GiB - 64 KiB | the image |

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// The granule in which memory is accepted by the firmware or left to the kernel, in bytes. It is
/// also what one entry of a page directory maps.
pub const GRANULE: u64 = 2 << 20;

/// Bytes of the image. It ends at 4 GiB.
pub const IMAGE_SIZE: u64 = 64 << 10;

/// Where the image begins; its first page is the [`Config`](crate::config::Config).
pub const IMAGE: u64 = (4 << 30) - IMAGE_SIZE;

/// The secrets page of SEV-SNP.
pub const SECRETS: u64 = 8 << 20;

/// The CPUID page of SEV-SNP.
pub const CPUID: u64 = SECRETS + PAGE;

/// Where other launchers of TDX guests put their list of resources. Added at launch, never read.
pub const HOB: u64 = CPUID + PAGE;

/// Bytes of [`HOB`].
pub const HOB_SIZE: u64 = 2 * PAGE;

/// Memory of the firmware itself: [`MAILBOX`], page tables, state, stack.
pub const WORK: u64 = HOB + HOB_SIZE;

/// Bytes of [`WORK`]. SEV-SNP: accepted by the image's first instructions. TDX: added at launch.
pub const WORK_SIZE: u64 = 28 * PAGE;

/// The multiprocessor wakeup mailbox of TDX guests (ACPI 6.5, section 5.2.12.19). Its zeroes at
/// launch are measured: vCPUs read it before the boot processor can have written it.
pub const MAILBOX: u64 = WORK;

/// Bytes at the start of [`WORK`] that stay once the kernel runs, for vCPUs that wait: mailbox and
/// page tables. The rest is free then.
pub const KEPT_SIZE: u64 = 8 * PAGE;

/// What the kernel is given: boot parameters, command line, ACPI and EFI tables.
pub const HANDOFF: u64 = WORK + WORK_SIZE;

/// Bytes of [`HANDOFF`].
pub const HANDOFF_SIZE: u64 = 64 * PAGE;

/// Where the kernel's protected-mode part is loaded, whatever it prefers.
pub const KERNEL: u64 = 16 << 20;

/// RAM that starts at 0 ends here at the latest.
pub const LOW_MEMORY_END: u64 = 3 << 30;

/// PCI configuration space of bus 0.
pub const ECAM: u64 = 0xe000_0000;

/// Bytes of [`ECAM`].
pub const ECAM_SIZE: u64 = 1 << 20;

/// The loader window: ordinary shared memory through which kernel, initrd and command line come
/// in. Nothing in it is trusted.
pub const WINDOW: u64 = 0xe800_0000;

/// Where the loader window ends.
pub const WINDOW_END: u64 = 0xfe00_0000;
