//! All memory that a kernel gets, computed from the documents that describe it (Linux,
//! Documentation/arch/x86/boot.rst and zero-page.rst; ACPI 6.5; UEFI 2.10), and compared byte by byte with
//! what is there: whatever the guest owns and nobody wrote is zero. Addresses and offsets are those of
//! docs and formats, not of the image's code.

use std::collections::BTreeMap;

use casemate_firmware_logic::acpi;
use casemate_launch::PlatformKind::{Plain, Snp, Tdx};
use casemate_launch::firmware::Flags;
use casemate_launch::loader_window::Payloads;
use casemate_launch::{Contents, LaunchPlan};

use crate::harness::Run;

const PAGE: u64 = 0x1000;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const GRANULE: u64 = 2 * MIB;

const SECRETS: u64 = 8 * MIB;
const CPUID: u64 = SECRETS + PAGE;
const MAILBOX: u64 = 0x80_4000;
const TABLES: u64 = 0x80_5000;
const KEPT_END: u64 = 0x80_c000;
const HANDOFF: u64 = 0x82_0000;
const HANDOFF_END: u64 = 0x86_0000;
const KERNEL: u64 = 16 * MIB;
const ECAM: u64 = 0xe000_0000;
const WINDOW: u64 = 0xe800_0000;
const WINDOW_END: u64 = 0xfe00_0000;
const IMAGE: u64 = 0xffff_0000;

const RAM: u32 = 1;
const RESERVED: u32 = 2;
const ACPI: u32 = 3;

/// A guest as it was launched and told of its memory.
pub(crate) struct Guest<'a> {
    pub(crate) payloads: &'a Payloads,
    pub(crate) flags: Flags,
    /// Start and end of its memory.
    pub(crate) memory: Vec<(u64, u64)>,
}

impl<'a> Guest<'a> {
    /// One that is told of the memory of its payloads.
    pub(crate) fn of(payloads: &'a Payloads, flags: Flags) -> Self {
        let low = payloads.memory.min(3 * GIB);
        let mut memory = vec![(0, low)];
        if payloads.memory > low {
            memory.push((4 * GIB, 4 * GIB + payloads.memory - low));
        }
        Self { payloads, flags, memory }
    }
}

/// Bytes that are written somewhere; zero elsewhere.
#[derive(Default)]
struct Memory(BTreeMap<u64, Vec<u8>>);

impl Memory {
    fn put(&mut self, mut address: u64, bytes: &[u8]) {
        for byte in bytes {
            let page = self.0.entry(address & !(PAGE - 1)).or_insert_with(|| vec![0; 4096]);
            page[usize::try_from(address % PAGE).unwrap()] = *byte;
            address += 1;
        }
    }

    fn put_u32(&mut self, address: u64, value: u32) {
        self.put(address, &value.to_le_bytes());
    }

    fn put_u64(&mut self, address: u64, value: u64) {
        self.put(address, &value.to_le_bytes());
    }

    fn page(&self, address: u64) -> Vec<u8> {
        self.0.get(&address).cloned().unwrap_or_else(|| vec![0; 4096])
    }
}

/// Compares every page that the guest owns.
pub(crate) fn compare(run: &Run, guest: &Guest<'_>) {
    let platform = run.machine().platform;
    let mut memory = Memory::default();
    let map = memory_map(guest);
    boot_parameters(&mut memory, guest, &map);
    payloads(&mut memory, guest);
    acpi_tables(&mut memory, guest, run);
    page_tables(&mut memory, run);
    if platform == Snp {
        confidential_blob(&mut memory);
        memory.put(CPUID, &run.machine().host.cpuid);
        // By the AMD firmware: nobody but the kernel reads it.
        memory.put(SECRETS, &run.memory(SECRETS, PAGE));
    }
    if platform != Plain && !guest.flags.accept_all {
        unaccepted_table(&mut memory, run, &map);
        efi_tables(&mut memory, &map);
    }
    let mut compared = 0;
    for (start, end) in &guest.memory {
        for page in (*start..*end).step_by(4096).filter(|page| run.machine().is_accepted(*page)) {
            let (found, expected) = (run.memory(page, PAGE), memory.page(page));
            if let Some(at) = (0..4096).find(|at| found[*at] != expected[*at]) {
                let bytes = at..(at + 16).min(4096);
                panic!(
                    "{:#x} has {:x?} instead of {:x?}",
                    page + at as u64,
                    &found[bytes.clone()],
                    &expected[bytes]
                );
            }
            compared += PAGE;
        }
        if platform == Plain {
            break;
        }
    }
    assert!(compared >= 5 * GRANULE, "{compared:#x} bytes");
}

/// Start, size and kind of the ranges of the e820 table.
fn memory_map(guest: &Guest<'_>) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, 0xa_0000, RAM),
        (0xa_0000, 0x6_0000, RESERVED),
        (MIB, 7 * MIB, RAM),
        (SECRETS, KEPT_END - SECRETS, ACPI),
        (KEPT_END, HANDOFF - KEPT_END, RAM),
        (HANDOFF, HANDOFF_END - HANDOFF, ACPI),
        (HANDOFF_END, guest.memory[0].1 - HANDOFF_END, RAM),
        (ECAM, MIB, RESERVED),
    ];
    map.extend(guest.memory[1..].iter().map(|(start, end)| (*start, end - start, RAM)));
    map
}

fn boot_parameters(memory: &mut Memory, guest: &Guest<'_>, map: &[(u64, u64, u32)]) {
    let kernel = &guest.payloads.kernel;
    let header_end = 0x202 + usize::from(kernel[0x201]);
    memory.put(HANDOFF + 0x1f1, &kernel[0x1f1..header_end]);
    memory.put_u64(HANDOFF + 0x70, HANDOFF + 0x2000);
    memory.put(HANDOFF + 0x1e8, &[u8::try_from(map.len()).unwrap()]);
    memory.put(HANDOFF + 0x210, &[0xff, kernel[0x211] | 1]);
    memory.put_u32(HANDOFF + 0x214, 16 << 20);
    memory.put_u32(HANDOFF + 0x228, 0x82_1000);
    for (entry, (start, size, kind)) in (HANDOFF + 0x2d0..).step_by(20).zip(map) {
        memory.put_u64(entry, *start);
        memory.put_u64(entry + 8, *size);
        memory.put_u32(entry + 16, *kind);
    }
    memory.put(HANDOFF + 0x1000, &[&guest.payloads.cmdline, &b"\0"[..]].concat());
}

/// The kernel with its setup part in front of 16 MiB, the initrd at the end of low memory.
fn payloads(memory: &mut Memory, guest: &Guest<'_>) {
    let Payloads { kernel, initrd, .. } = guest.payloads;
    memory.put(KERNEL - (u64::from(kernel[0x1f1]) + 1) * 512, kernel);
    let highest = u64::from(u32::from_le_bytes(kernel[0x22c..0x230].try_into().unwrap()));
    let end = guest.memory[0].1.min(highest) / GRANULE * GRANULE;
    let start = (end - initrd.len() as u64) / PAGE * PAGE;
    memory.put(start, initrd);
    memory.put_u32(HANDOFF + 0x218, u32::try_from(start).unwrap());
    memory.put_u32(HANDOFF + 0x21c, u32::try_from(initrd.len()).unwrap());
}

/// The constant tables, and the MADT (ACPI 6.5, section 5.2.12).
fn acpi_tables(memory: &mut Memory, guest: &Guest<'_>, run: &Run) {
    let tables = HANDOFF + 0x2000;
    memory.put(tables, acpi::CONSTANT);
    let mut madt = b"APIC\0\0\0\0\x01\0".to_vec();
    // Who made it: as in the first constant table.
    madt.extend(&acpi::CONSTANT[48 + 10..48 + 36]);
    madt.extend([0, 0, 0xe0, 0xfe, 0, 0, 0, 0]);
    for id in 0..u8::try_from(guest.payloads.vcpus).unwrap() {
        madt.extend([0, 8, id, id, 1, 0, 0, 0]);
    }
    madt.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    if run.machine().platform == Tdx {
        madt.extend([0x10, 24, 1, 0, 0, 0, 0, 0]);
        madt.extend(MAILBOX.to_le_bytes());
        madt.extend(wait_again(run).to_le_bytes());
    }
    let length = u32::try_from(madt.len()).unwrap().to_le_bytes();
    madt[4..8].copy_from_slice(&length);
    madt[9] = madt.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    memory.put(tables + 0x1000, &madt);
}

/// Where a vCPU waits again: the only place of the image that an indirect jump may lead to.
fn wait_again(run: &Run) -> u64 {
    // endbr64; cli
    const START: [u8; 5] = [0xf3, 0x0f, 0x1e, 0xfa, 0xfa];
    let image = run.memory(IMAGE, (4 << 30) - IMAGE);
    let mut places = (IMAGE..).zip(image.windows(5)).filter(|(_, bytes)| *bytes == START);
    let (place, _) = places.next().unwrap();
    assert_eq!(places.next(), None);
    place
}

/// The mailbox, which says that page tables are there, and these: RAM is the kernel's to execute and to
/// write, the window is read, the image is executed.
fn page_tables(memory: &mut Memory, run: &Run) {
    let (bit, set) = run.machine().private_bit();
    let (private, shared) = if set { (bit, 0) } else { (0, bit) };
    memory.put_u32(MAILBOX + 0x800, 1);
    memory.put_u64(TABLES, (TABLES + 0x1003) | private);
    for table in 0..4 {
        memory.put_u64(TABLES + 0x1000 + 8 * table, (TABLES + 0x2003 + table * PAGE) | private);
    }
    for granule in 0..2048 {
        let address = granule * GRANULE;
        let entry = match address {
            0..0xc000_0000 => address | 0x83 | private,
            WINDOW..WINDOW_END => address | 0x81 | 1 << 63 | shared,
            0xffe0_0000.. => address | 0x81 | private,
            _ => continue,
        };
        memory.put_u64(TABLES + 0x2000 + 8 * granule, entry);
    }
    // The root of five levels.
    memory.put_u64(TABLES + 0x6000, TABLES + 3);
}

/// A `setup_data` of type 7, and the `cc_blob_sev_info` that it points to.
fn confidential_blob(memory: &mut Memory) {
    let data = HANDOFF + 0x8000;
    memory.put_u64(HANDOFF + 0x250, data);
    memory.put_u32(data + 8, 7);
    memory.put_u32(data + 12, 4);
    memory.put_u32(data + 16, 0x82_8020);
    let blob = 0x82_8020;
    memory.put(blob, b"AMDE");
    memory.put_u64(blob + 8, SECRETS);
    memory.put_u32(blob + 16, 0x1000);
    memory.put_u64(blob + 24, CPUID);
    memory.put_u32(blob + 32, 0x1000);
}

/// A bit for each granule of RAM that is not the guest's own yet.
fn unaccepted_table(memory: &mut Memory, run: &Run, map: &[(u64, u64, u32)]) {
    let ram = || map.iter().filter(|(.., kind)| *kind == RAM);
    let end = ram().map(|(start, size, _)| start + size).max().unwrap();
    let mut bitmap = vec![0_u8; usize::try_from(end.div_ceil(8 * GRANULE)).unwrap()];
    for (start, size, _) in ram() {
        for granule in start / GRANULE..(start + size).div_ceil(GRANULE) {
            if !run.machine().is_accepted((granule * GRANULE).max(*start)) {
                bitmap[usize::try_from(granule / 8).unwrap()] |= 1 << (granule % 8);
            }
        }
    }
    let table = HANDOFF + 0x2_0000 - 24;
    memory.put_u32(table, 1);
    memory.put_u32(table + 4, 2 << 20);
    memory.put_u64(table + 16, bitmap.len() as u64);
    memory.put(table + 24, &bitmap);
}

/// A system table (UEFI 2.10, section 4.3) with one configuration table, and a memory map (7.2.3).
fn efi_tables(memory: &mut Memory, map: &[(u64, u64, u32)]) {
    let (system, configuration, vendor, descriptors) =
        (HANDOFF + 0x8100, HANDOFF + 0x8200, HANDOFF + 0x8300, HANDOFF + 0x8400);
    memory.put(system, b"IBI SYST");
    memory.put_u32(system + 8, 0x2_0064);
    memory.put_u32(system + 12, 120);
    memory.put_u64(system + 24, vendor);
    memory.put_u64(system + 104, 1);
    memory.put_u64(system + 112, configuration);
    let name: Vec<u8> = "Casemate".encode_utf16().flat_map(u16::to_le_bytes).collect();
    memory.put(vendor, &name);
    // d5d1de3c-105c-44f9-9ea9-bcef98120031
    memory.put(configuration, &[0x3c, 0xde, 0xd1, 0xd5, 0x5c, 0x10, 0xf9, 0x44]);
    memory.put(configuration + 8, &[0x9e, 0xa9, 0xbc, 0xef, 0x98, 0x12, 0x00, 0x31]);
    memory.put_u64(configuration + 16, HANDOFF + 0x2_0000 - 24);
    for (at, (start, size, kind)) in (descriptors..).step_by(40).zip(map) {
        let (kind, attributes) = match *kind {
            RAM => (2, 8),
            RESERVED => (0, 0),
            _ => (9, 8),
        };
        memory.put_u32(at, kind);
        memory.put_u64(at + 8, *start);
        memory.put_u64(at + 24, size / PAGE);
        memory.put_u64(at + 32, attributes);
    }
    memory.put(HANDOFF + 0x1c0, b"EL64");
    memory.put_u32(HANDOFF + 0x1c4, 0x82_8100);
    memory.put_u32(HANDOFF + 0x1c8, 40);
    memory.put_u32(HANDOFF + 0x1cc, 1);
    memory.put_u32(HANDOFF + 0x1d0, 0x82_8400);
    memory.put_u32(HANDOFF + 0x1d4, u32::try_from(40 * map.len()).unwrap());
}

/// The image is as it was launched, to its last byte.
pub(crate) fn image_is_unchanged(run: &Run, plan: &LaunchPlan) {
    let Contents::Bytes(bytes) = &plan.imports[0].contents else { panic!("the image has bytes") };
    assert!(run.memory(IMAGE, bytes.len() as u64) == **bytes, "the image was written to");
}
