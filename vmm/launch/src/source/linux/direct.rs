//! A launch plan that boots a kernel directly: the VMM does what a boot loader does.
//!
//! What the kernel is told lies in the first 64 KiB, which Linux keeps for itself.

use std::collections::BTreeSet;

use super::boot_params::{BootParams, E820_MAX};
use super::pvh::{MEMORY_MAX, StartInfo};
use super::{BzImage, ElfEntry, ElfKernel, Kernel, registers};
use crate::{
    Bytes, Contents, Gpa, GpaError, GpaRange, Import, InitialVcpu, LaunchPlan, MemoryKind,
    MemoryRange, PAGE_SIZE, PageCount, PageKind, Policy, SnpIdentity,
};

const GDT: Gpa = Gpa(0x6000);
/// Zero page or PVH start info.
const PARAMETERS: Gpa = Gpa(0x7000);
const CMDLINE: Gpa = Gpa(0x8000);
/// A root, a table of 1 GiB entries, and a table of 2 MiB entries for each GiB that is mapped.
const PAGE_TABLES: Gpa = Gpa(0x9000);
/// At most 4 of the last kind.
const LOW_END: Gpa = Gpa(0xf000);
/// The page that ends with a BIOS's entry, 16 bytes below 1 MiB.
const RESET_PAGE: Gpa = Gpa(0xf_f000);
const RESET_ENTRY: usize = 0xff0;
/// COMMAND_LINE_SIZE (arch/x86/include/asm/setup.h) with the terminating zero.
const CMDLINE_SIZE: u32 = 2048;
const GIB: u64 = 1 << 30;
/// Initrds of kernels that do not say where they may end stay below 2 GiB, as is the custom.
const INITRD_MAX: u64 = 0x7fff_ffff;

/// The ACPI tables, laid out by the caller.
#[derive(Clone, Debug)]
pub struct AcpiTables {
    /// Page aligned; what the RSDP is at.
    pub start: Gpa,
    /// The tables, the RSDP first.
    pub bytes: Bytes,
}

/// Kernel to boot, and guest memory.
#[derive(Clone, Debug)]
pub struct DirectBoot<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The initrd, if there is one.
    pub initrd: Option<&'a Bytes>,
    /// The command line, without a terminating zero.
    pub cmdline: &'a str,
    /// The whole map that the kernel is told; ascending.
    pub memory: &'a [MemoryRange],
    /// The ACPI tables.
    pub acpi: AcpiTables,
    /// Real-mode code, at most 16 bytes, that resets the machine. It goes where a BIOS is entered
    /// (F000:FFF0): Linux jumps there for a reset when ACPI is hardware-reduced.
    pub reset_code: &'a [u8],
}

/// Why a kernel cannot be booted directly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectBootError {
    /// There is no memory where something must be.
    #[error("the {what} needs guest memory from {start} to {end}, which the guest does not have")]
    NoMemory {
        /// Name of the part.
        what: &'static str,
        /// The first address.
        start: Gpa,
        /// The first address behind it.
        end: Gpa,
    },
    /// The initrd fits nowhere.
    #[error(
        "no room for an initrd of {bytes} bytes in guest memory above the kernel's end at \
         {kernel_end} and up to {limit}"
    )]
    NoRoomForInitrd {
        /// Its length.
        bytes: u64,
        /// The first address behind the kernel.
        kernel_end: Gpa,
        /// The highest address that the kernel takes.
        limit: Gpa,
    },
    /// The command line is too long.
    #[error("a command line of {found} bytes, and the kernel takes {limit}")]
    CommandLine {
        /// Its length without a terminating zero.
        found: usize,
        /// How long it may be.
        limit: u32,
    },
    /// The entry point lies outside the kernel.
    #[error("the kernel's entry point {0} lies outside its segments")]
    Entry(Gpa),
    /// There are more memory ranges than fit.
    #[error("the memory map has {found} ranges, and at most {limit} fit")]
    MemoryMap {
        /// How many there are.
        found: usize,
        /// How many fit.
        limit: usize,
    },
    /// Two things want the same page.
    #[error("the {first} and the {second} overlap at {at}")]
    Overlap {
        /// First range.
        first: &'static str,
        /// Second range.
        second: &'static str,
        /// Start of the second.
        at: Gpa,
    },
    /// Addresses that are not.
    #[error("the {what} does not fit guest memory")]
    Range {
        /// Name of the part.
        what: &'static str,
        /// Why.
        source: GpaError,
    },
}

impl DirectBoot<'_> {
    /// The plan: kernel, initrd, ACPI tables, then what the kernel is told. Only the boot
    /// processor has a state; all others wait for INIT and SIPI.
    ///
    /// # Errors
    /// If something does not fit the guest's memory or contradicts the kernel.
    pub fn plan(&self) -> Result<LaunchPlan, DirectBootError> {
        let mut imports = Imports { list: Vec::new(), memory: self.memory };
        let (start, end) = match self.kernel {
            Kernel::BzImage(image) => imports.bzimage(image)?,
            Kernel::Elf(kernel) => imports.elf(kernel)?,
        };
        let initrd = self.place_initrd(end)?;
        if let (Some((at, _)), Some(bytes)) = (initrd, self.initrd) {
            imports.add(at, bytes.clone(), "initrd")?;
        }
        imports.add(self.acpi.start, self.acpi.bytes.clone(), "ACPI tables")?;
        imports.reset_code(self.reset_code)?;
        imports.check_ram("boot parameters", GDT, LOW_END)?;
        imports.add(CMDLINE, self.command_line()?, "kernel command line")?;
        let boot_processor = self.parameters(&mut imports, start, end, initrd)?;
        let plan = LaunchPlan {
            imports: imports.list,
            vcpus: vec![boot_processor],
            policy: Policy::Plain,
            identity: SnpIdentity::default(),
        };
        match plan.overlap() {
            None => Ok(plan),
            Some((first, second)) => Err(DirectBootError::Overlap {
                first: first.tag,
                second: second.tag,
                at: second.range.start(),
            }),
        }
    }

    /// Zero page or start info, and what else the entry needs.
    fn parameters(
        &self,
        imports: &mut Imports<'_>,
        kernel: Gpa,
        kernel_end: Gpa,
        initrd: Option<(Gpa, u64)>,
    ) -> Result<InitialVcpu, DirectBootError> {
        let (cmdline, rsdp, memory) = (CMDLINE, self.acpi.start, self.memory);
        let (setup_header, entry): (&[u8], _) = match self.kernel {
            Kernel::BzImage(image) => (&image.setup_header, Gpa(kernel.0 + BzImage::ENTRY_64)),
            Kernel::Elf(ElfKernel { entry: ElfEntry::Linux64(entry), .. }) => (&[], *entry),
            Kernel::Elf(ElfKernel { entry: ElfEntry::Pvh(entry), .. }) => {
                self.check_map(MEMORY_MAX)?;
                let info = StartInfo { page: PARAMETERS, initrd, cmdline, rsdp, memory };
                imports.add(PARAMETERS, info.to_page().into(), "PVH start info")?;
                return Ok(registers::pvh(*entry, PARAMETERS));
            }
        };
        self.check_map(E820_MAX)?;
        let page = BootParams { setup_header, kernel, initrd, cmdline, rsdp, memory }.to_page();
        imports.add(PARAMETERS, page.into(), "zero page")?;
        imports.add(GDT, registers::gdt().into(), "GDT")?;
        imports.add(PAGE_TABLES, identity_map(kernel_end)?.into(), "page tables")?;
        Ok(registers::linux64(entry, PARAMETERS, GDT, PAGE_TABLES))
    }

    fn check_map(&self, limit: usize) -> Result<(), DirectBootError> {
        let found = self.memory.len();
        if found > limit { Err(DirectBootError::MemoryMap { found, limit }) } else { Ok(()) }
    }

    fn command_line(&self) -> Result<Bytes, DirectBootError> {
        let limit = match self.kernel {
            // The header counts without the terminating zero.
            Kernel::BzImage(image) => image.cmdline_size.min(CMDLINE_SIZE - 1),
            Kernel::Elf(_) => CMDLINE_SIZE - 1,
        };
        let found = self.cmdline.len();
        if found > usize::try_from(limit).unwrap_or(usize::MAX) {
            return Err(DirectBootError::CommandLine { found, limit });
        }
        let mut bytes = self.cmdline.as_bytes().to_vec();
        bytes.push(0);
        Ok(bytes.into())
    }

    /// As high as memory and kernel allow, so that it is out of the way of all that the kernel
    /// allocates early.
    fn place_initrd(&self, kernel_end: Gpa) -> Result<Option<(Gpa, u64)>, DirectBootError> {
        let Some(initrd) = self.initrd else { return Ok(None) };
        let bytes = initrd.len() as u64;
        let limit = match self.kernel {
            Kernel::BzImage(image) => u64::from(image.initrd_addr_max),
            Kernel::Elf(_) => INITRD_MAX,
        };
        let refused = DirectBootError::NoRoomForInitrd { bytes, kernel_end, limit: Gpa(limit) };
        let ram = self.memory.iter().filter(|range| range.kind == MemoryKind::Ram);
        let place = |range: &MemoryRange| {
            let end = range.start.0.checked_add(range.bytes)?.min(limit.saturating_add(1));
            let length = PageCount::covering(bytes).bytes()?;
            let start = (end / PAGE_SIZE * PAGE_SIZE).checked_sub(length)?;
            (start >= range.start.0.max(kernel_end.0)).then_some(Gpa(start))
        };
        let start = ram.filter_map(place).max().ok_or(refused)?;
        Ok(Some((start, bytes)))
    }
}

/// The imports so far.
struct Imports<'a> {
    list: Vec<Import>,
    memory: &'a [MemoryRange],
}

impl Imports<'_> {
    /// Returns the kernel's first address and the first behind it.
    fn bzimage(&mut self, image: &BzImage) -> Result<(Gpa, Gpa), DirectBootError> {
        let start = image.pref_address;
        let end =
            start.checked_add(u64::from(image.init_size)).ok_or(DirectBootError::Entry(start))?;
        self.check_ram("kernel", start, end)?;
        self.add(start, image.kernel.clone(), "kernel")?;
        Ok((start, end))
    }

    fn elf(&mut self, kernel: &ElfKernel) -> Result<(Gpa, Gpa), DirectBootError> {
        let (ElfEntry::Pvh(entry) | ElfEntry::Linux64(entry)) = kernel.entry;
        if entry < kernel.start() || entry >= kernel.end() {
            return Err(DirectBootError::Entry(entry));
        }
        // Pages that are not full, or that two segments share, are put together one by one.
        let mut partial = BTreeSet::new();
        for segment in &kernel.segments {
            let start = segment.start.0;
            self.check_ram("kernel", segment.start, Gpa(start + segment.bytes))?;
            let end = start + segment.contents.len() as u64;
            let (first, last) = (start.next_multiple_of(PAGE_SIZE), end / PAGE_SIZE * PAGE_SIZE);
            if first < last {
                let offset = |gpa: u64| usize::try_from(gpa - start).unwrap_or(usize::MAX);
                let pages = segment.contents.slice(offset(first)..offset(last)).unwrap_or_default();
                self.add(Gpa(first), pages, "kernel")?;
            }
            let ends = [(start, start < first && start < end), (end, last < end)];
            partial.extend(
                ends.iter().filter(|(_, partial)| *partial).map(|(gpa, _)| gpa / PAGE_SIZE),
            );
        }
        for page in partial {
            let page = Gpa(page * PAGE_SIZE);
            self.add(page, elf_page(kernel, page).into(), "kernel")?;
        }
        Ok((kernel.start(), kernel.end()))
    }

    /// A kernel that has something of its own in that page does without.
    fn reset_code(&mut self, code: &[u8]) -> Result<(), DirectBootError> {
        let page = GpaRange::new(RESET_PAGE, PageCount(1))
            .map_err(|source| DirectBootError::Range { what: "reset code", source })?;
        if self.list.iter().any(|import| import.range.overlaps(page)) {
            return Ok(());
        }
        let mut bytes = vec![0; RESET_ENTRY];
        bytes.extend(code.iter().take(16));
        self.add(RESET_PAGE, bytes.into(), "reset code")
    }

    fn check_ram(&self, what: &'static str, start: Gpa, end: Gpa) -> Result<(), DirectBootError> {
        let mut ram = self.memory.iter().filter(|range| range.kind == MemoryKind::Ram);
        if ram.any(|range| range.contains(start, end)) {
            return Ok(());
        }
        Err(DirectBootError::NoMemory { what, start, end })
    }

    fn add(&mut self, at: Gpa, bytes: Bytes, tag: &'static str) -> Result<(), DirectBootError> {
        let range = GpaRange::new(at, PageCount::covering(bytes.len() as u64))
            .map_err(|source| DirectBootError::Range { what: tag, source })?;
        self.list.push(Import {
            range,
            kind: PageKind::Shared,
            contents: Contents::Bytes(bytes),
            tag,
        });
        Ok(())
    }
}

/// The page at `page` with what all segments have in it: two may meet there.
fn elf_page(kernel: &ElfKernel, page: Gpa) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    for segment in &kernel.segments {
        let start = segment.start.0.max(page.0);
        let end = (segment.start.0 + segment.contents.len() as u64).min(page.0 + PAGE_SIZE);
        let offset = |from: u64, to: u64| usize::try_from(to - from).unwrap_or(usize::MAX);
        if start < end {
            let source = offset(segment.start.0, start)..offset(segment.start.0, end);
            bytes[offset(page.0, start)..offset(page.0, end)]
                .copy_from_slice(&segment.contents[source]);
        }
    }
    bytes
}

/// Page tables that map the first GiBs, up to `end`, onto themselves in pages of 2 MiB.
fn identity_map(end: Gpa) -> Result<Vec<u8>, DirectBootError> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 0x80;
    let tables = end.0.div_ceil(GIB);
    if tables > 4 {
        return Err(DirectBootError::NoMemory { what: "kernel", start: Gpa(0), end });
    }
    let table_at = |index: u64| PAGE_TABLES.0 + index * PAGE_SIZE;
    let mut entries = vec![0; 1024];
    entries[0] = table_at(1) | PRESENT_WRITABLE;
    for (index, entry) in (2..2 + tables).zip(&mut entries[512..]) {
        *entry = table_at(index) | PRESENT_WRITABLE;
    }
    entries.extend((0..tables * 512).map(|index| index << 21 | LARGE | PRESENT_WRITABLE));
    Ok(entries.into_iter().flat_map(u64::to_le_bytes).collect())
}

#[cfg(test)]
mod tests {
    use super::super::{bzimage, elf};
    use super::*;

    const MIB: u64 = 1 << 20;

    fn memory(mib: u64) -> Vec<MemoryRange> {
        let ram = |start, bytes| MemoryRange { start: Gpa(start), bytes, kind: MemoryKind::Ram };
        vec![ram(0, 0xa_0000), ram(MIB, (mib - 1) * MIB)]
    }

    fn plan(
        kernel: Vec<u8>,
        initrd: Option<&Bytes>,
        cmdline: &str,
        mib: u64,
    ) -> Result<LaunchPlan, DirectBootError> {
        let kernel = Kernel::parse(&kernel.into()).unwrap();
        let acpi = AcpiTables { start: Gpa(0xe_0000), bytes: vec![1; 100].into() };
        DirectBoot {
            kernel: &kernel,
            initrd,
            cmdline,
            memory: &memory(mib),
            acpi,
            reset_code: &[0xf4],
        }
        .plan()
    }

    fn import<'a>(plan: &'a LaunchPlan, tag: &str) -> (Gpa, &'a [u8]) {
        let import = plan.imports.iter().find(|import| import.tag == tag).unwrap();
        let Contents::Bytes(bytes) = &import.contents else { panic!("no bytes") };
        (import.range.start(), bytes)
    }

    #[test]
    fn a_bzimage_gets_a_zero_page_and_long_mode() {
        let initrd = Bytes::from(vec![7; 5000]);
        let plan = plan(bzimage::tests::image(8192), Some(&initrd), "console=ttyS0", 256).unwrap();
        assert_eq!(import(&plan, "kernel").0, Gpa(16 * MIB));
        assert_eq!(import(&plan, "initrd").0, Gpa(256 * MIB - 8192));
        assert_eq!(import(&plan, "kernel command line").1, b"console=ttyS0\0");
        let (at, page) = import(&plan, "zero page");
        assert_eq!(at, PARAMETERS);
        assert_eq!(page[0x206..0x208], [0x0f, 0x02]);
        assert_eq!(page[0x210..0x212], [0xff, 0x01]);
        assert_eq!(page[0x218..0x21c], u32::try_from(256 * MIB - 8192).unwrap().to_le_bytes());
        assert_eq!(page[0x21c..0x220], 5000_u32.to_le_bytes());
        assert_eq!(page[0x1e8], 2);
        assert_eq!(page[0x2e4..0x2ec], MIB.to_le_bytes());
        assert_eq!(import(&plan, "reset code").1[RESET_ENTRY..], [0xf4]);
        let [vcpu] = &plan.vcpus[..] else { panic!("one vCPU") };
        assert_eq!((vcpu.rip, vcpu.rsi), (16 * MIB + 0x200, PARAMETERS.0));
        assert_eq!(import(&plan, "page tables").1.len(), 3 * 4096);
    }

    #[test]
    fn an_elf_kernel_with_the_note_is_entered_by_pvh() {
        let plan = plan(elf::tests::kernel(true), None, "", 16).unwrap();
        let [vcpu] = &plan.vcpus[..] else { panic!("one vCPU") };
        assert_eq!((vcpu.rip, vcpu.rbx, vcpu.efer), (0x10_0020, PARAMETERS.0, 0));
        let (_, info) = import(&plan, "PVH start info");
        assert_eq!(info[..16], [0x78, 0xc5, 0x6e, 0x33, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(info[48..52], [2, 0, 0, 0]);
        assert_eq!(info[128 + 24..128 + 32], MIB.to_le_bytes());
    }

    #[test]
    fn segments_that_meet_in_a_page_do_not_wipe_each_other() {
        let plan = plan(elf::tests::kernel(false), None, "", 16).unwrap();
        assert_eq!(plan.vcpus[0].efer, EFER_LONG_MODE);
        let tables: Vec<_> = plan.imports.iter().filter(|i| i.range.start() == Gpa(MIB)).collect();
        let [Import { contents: Contents::Bytes(page), .. }] = &tables[..] else {
            panic!("the page is there once")
        };
        assert!(page[..0x80].iter().all(|&byte| byte == 0x90));
        assert!(page[0x80..0x180].iter().all(|&byte| byte == 0));
        assert!(page[0x180..0x190].iter().all(|&byte| byte == 0x90));
    }

    const EFER_LONG_MODE: u64 = 0x500;

    #[test]
    fn kernels_beyond_memory_are_rejected() {
        let image = || bzimage::tests::image(8192);
        assert!(matches!(
            plan(image(), None, "", 32),
            Err(DirectBootError::NoMemory { what: "kernel", .. })
        ));
        let large = Bytes::from(vec![0; 200 << 20]);
        assert!(matches!(
            plan(image(), Some(&large), "", 128),
            Err(DirectBootError::NoRoomForInitrd { .. })
        ));
        let long = "x".repeat(2048);
        assert_eq!(
            plan(image(), None, &long, 128).err(),
            Some(DirectBootError::CommandLine { found: 2048, limit: 2047 })
        );
        // A segment where the zero page goes.
        let mut low = elf::tests::kernel(true);
        low[64 + 24..64 + 32].copy_from_slice(&0x7000_u64.to_le_bytes());
        low[0x910..0x914].copy_from_slice(&0x7000_u32.to_le_bytes());
        assert!(matches!(plan(low, None, "", 16), Err(DirectBootError::Overlap { .. })));
        let mut outside = elf::tests::kernel(false);
        outside[24..32].fill(0xff);
        assert_eq!(plan(outside, None, "", 16).err(), Some(DirectBootError::Entry(Gpa(u64::MAX))));
    }
}
