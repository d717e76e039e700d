//! Debian's kernels, placed in memory by a plan and by rust-vmm's `linux-loader`: the same bytes in the
//! same places, and the same entry.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs::File;
use std::path::Path;

use casemate_config::{Overrides, from_flags};
use casemate_lab::cache::Cache;
use casemate_lab::kernel::{Flavour, Kernel};
use casemate_lab::packages::Packages;
use casemate_launch::{Contents, LaunchPlan, PlatformKind};
use casemate_machine::Guest;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader as _, KernelLoaderResult};
use vm_memory::{ByteValued as _, Bytes as _, GuestAddress, GuestMemoryMmap};

const HIGH_MEMORY: GuestAddress = GuestAddress(1 << 20);
const MEMORY: usize = 512 << 20;

fn plan(kernel: &Path) -> LaunchPlan {
    let kernel = kernel.to_str().unwrap();
    let flags = Overrides::new([("kernel", kernel), ("platform", "plain")]).unwrap();
    Guest::new(from_flags(flags).unwrap(), PlatformKind::Plain).unwrap().plan().clone()
}

/// Compares all that the plan calls a kernel with what `loader` has put in memory. Returns the kernel's first
/// address, and what the loader says.
fn compare(
    plan: &LaunchPlan,
    loader: impl FnOnce(&GuestMemoryMmap, GuestAddress) -> KernelLoaderResult,
) -> (GuestAddress, KernelLoaderResult) {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let kernel = || plan.imports.iter().filter(|import| import.tag == "kernel");
    let start = GuestAddress(kernel().map(|import| import.range.start().0).min().unwrap());
    let loaded = loader(&memory, start);
    let mut bytes_compared = 0;
    for import in kernel() {
        let Contents::Bytes(ours) = &import.contents else { continue };
        let mut theirs = vec![0; ours.len()];
        memory.read_slice(&mut theirs, GuestAddress(import.range.start().0)).unwrap();
        assert!(ours[..] == theirs[..], "they differ in the import at {}", import.range.start());
        bytes_compared += theirs.len();
    }
    // All of the kernel, not only its beginning.
    assert!(bytes_compared > 10 << 20, "{bytes_compared}");
    (start, loaded)
}

#[test]
fn kernels_lie_where_linux_loader_puts_them() {
    let packages = Packages::open().unwrap();
    for series in ["6.12", "7.2"] {
        let kernel = Kernel::debian(&packages, series, Flavour::Cloud).unwrap();
        let vmlinux = kernel.vmlinux(&Cache::open().unwrap()).unwrap();
        let elf = plan(&vmlinux);
        let (_, loaded) = compare(&elf, |memory, _| {
            let mut file = File::open(&vmlinux).unwrap();
            Elf::load(memory, None, &mut file, Some(HIGH_MEMORY)).unwrap()
        });
        let entry = PvhBootCapability::PvhEntryPresent(GuestAddress(elf.vcpus[0].rip));
        assert_eq!(loaded.pvh_boot_cap, entry);

        let bzimage = plan(&kernel.image);
        let (start, loaded) = compare(&bzimage, |memory, start| {
            let mut file = File::open(&kernel.image).unwrap();
            BzImage::load(memory, Some(start), &mut file, Some(HIGH_MEMORY)).unwrap()
        });
        // The 64-bit entry (Linux, Documentation/arch/x86/boot.rst).
        assert_eq!(bzimage.vcpus[0].rip, start.0 + 0x200);
        // The kernel's header is in the zero page, but for what a boot loader fills in.
        let header = loaded.setup_header.unwrap();
        let page = bzimage.imports.iter().find(|import| import.tag == "zero page").unwrap();
        let Contents::Bytes(page) = &page.contents else { panic!("a zero page of zeroes") };
        // From `boot_flag` to `version`; `type_of_loader` is the first of the loader's fields.
        assert_eq!(page[0x1fe..0x210], header.as_slice()[0xd..0x1f]);
    }
}
