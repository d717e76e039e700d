//! What OVMF is told of the machine and of its kernel, through the firmware configuration device.
//!
//! Sources: QEMU, docs/specs/fw_cfg.rst; OVMF, OvmfPkg/Include/IndustryStandard/QemuLoader.h.

use std::sync::Arc;

use acpi_tables::rsdp::Rsdp;
use casemate_devices::legacy::fw_cfg::{Items, item};
use casemate_launch::GpaRange;
use casemate_launch::linux::BzImage;
use casemate_plan::{BootFiles, acpi};

use casemate_plan::Board;

/// Everything that OVMF asks for. Without boot files it starts what it finds on disks.
pub(crate) fn items(board: &Board, vcpus: u32, boot: Option<&BootFiles>) -> Items {
    let mut items = Items::default();
    let processors = u16::try_from(vcpus).unwrap_or(u16::MAX);
    items.insert(item::PROCESSORS, Arc::new(processors.to_le_bytes()));
    if let Some(boot) = boot {
        boot_items(&mut items, boot);
    }
    items.insert_file("etc/e820", Arc::new(memory_map(board)));
    let [rsdp, tables, script] = acpi_files(vcpus);
    items.insert_file(RSDP, Arc::new(rsdp));
    items.insert_file(TABLES, Arc::new(tables));
    items.insert_file("etc/table-loader", Arc::new(script));
    items
}

fn boot_items(items: &mut Items, boot: &BootFiles) {
    let command_line = [boot.cmdline.as_bytes(), &[0]].concat();
    let [setup, kernel] = BzImage::split(&boot.kernel);
    let contents = [&kernel, &boot.initrd, &command_line.into(), &setup];
    for ((number, size_number), content) in item::SIZES.into_iter().zip(contents) {
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        items.insert(size_number, Arc::new(size.to_le_bytes()));
        items.insert(number, Arc::new(content.clone()));
    }
}

/// RAM: entries of address, length and type.
fn memory_map(board: &Board) -> Vec<u8> {
    const RAM: u32 = 1;
    let entry = |range: GpaRange| {
        [&range.start().0.to_le_bytes()[..], &range.len().to_le_bytes(), &RAM.to_le_bytes()]
            .concat()
    };
    board.ram().flat_map(entry).collect()
}

const RSDP: &str = "etc/acpi/rsdp";
const TABLES: &str = "etc/acpi/tables";

/// Commands of the table loader: 128 bytes each, the first four of which say which it is.
const COMMAND_SIZE: usize = 128;
const NAME_SIZE: usize = 56;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// Anywhere; between 0xf0000 and 0x100000.
const HIGH: u8 = 1;
const FSEG: u8 = 2;
const ALIGNMENT: u32 = 64;

/// Where pointers and checksums are (ACPI 6.5, sections 5.2.5.3, 5.2.6, 5.2.8 and 5.2.9).
const RSDP_XSDT: usize = 24;
const RSDP_CHECKSUMS: [(usize, usize); 2] = [(8, 20), (32, 36)];
const HEADER: usize = 36;
const LENGTH: usize = 4;
const CHECKSUM: usize = 9;
const FADT_X_DSDT: usize = 140;

/// The RSDP, the other tables, and how to put them into memory: pointers are offsets in the tables'
/// file until they are there, and checksums are zero.
fn acpi_files(vcpus: u32) -> [Vec<u8>; 3] {
    let mut tables = acpi::tables(0, vcpus).bytes.to_vec();
    let mut rsdp = tables[..Rsdp::len()].to_vec();
    let mut script = Script::default();
    script.allocate(RSDP, FSEG);
    script.allocate(TABLES, HIGH);
    let xsdt = offset(&rsdp, RSDP_XSDT);
    let entries = (xsdt + HEADER..xsdt + length(&tables, xsdt)).step_by(8);
    let fadt = offset(&tables, xsdt + HEADER);
    script.add_pointer(RSDP, RSDP_XSDT);
    for pointer in entries.chain([fadt + FADT_X_DSDT]) {
        script.add_pointer(TABLES, pointer);
    }
    for table in [xsdt, fadt] {
        tables[table + CHECKSUM] = 0;
        script.add_checksum(TABLES, table + CHECKSUM, table, length(&tables, table));
    }
    for (checksum, length) in RSDP_CHECKSUMS {
        rsdp[checksum] = 0;
        script.add_checksum(RSDP, checksum, 0, length);
    }
    [rsdp, tables, script.0]
}

/// An offset of 8 bytes in tables that we made.
fn offset(tables: &[u8], at: usize) -> usize {
    let bytes = tables[at..].first_chunk().copied().unwrap_or_default();
    usize::try_from(u64::from_le_bytes(bytes)).unwrap_or_default()
}

/// Length of the table at an offset in tables that we made.
fn length(tables: &[u8], table: usize) -> usize {
    let bytes = tables[table + LENGTH..].first_chunk().copied().unwrap_or_default();
    usize::try_from(u32::from_le_bytes(bytes)).unwrap_or_default()
}

#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn command(&mut self, kind: u32, fields: &[&[u8]]) {
        let start = self.0.len();
        self.0.extend(kind.to_le_bytes());
        fields.iter().for_each(|field| self.0.extend_from_slice(field));
        self.0.resize(start + COMMAND_SIZE, 0);
    }

    fn allocate(&mut self, file: &str, zone: u8) {
        self.command(ALLOCATE, &[&name(file), &ALIGNMENT.to_le_bytes(), &[zone]]);
    }

    /// The 8 bytes at `offset` of `file` are an offset in the tables' file.
    fn add_pointer(&mut self, file: &str, offset: usize) {
        self.command(ADD_POINTER, &[&name(file), &name(TABLES), &number(offset), &[8]]);
    }

    fn add_checksum(&mut self, file: &str, checksum: usize, start: usize, length: usize) {
        let numbers = [number(checksum), number(start), number(length)];
        self.command(ADD_CHECKSUM, &[&name(file), numbers.as_flattened()]);
    }
}

fn name(file: &str) -> [u8; NAME_SIZE] {
    let mut name = [0; NAME_SIZE];
    name[..file.len()].copy_from_slice(file.as_bytes());
    name
}

fn number(value: usize) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carries out the script as firmware does, with the files at these addresses.
    fn load(files: [Vec<u8>; 3], rsdp_at: u64, tables_at: u64) -> (Vec<u8>, Vec<u8>) {
        let [mut rsdp, mut tables, script] = files;
        for command in script.chunks(COMMAND_SIZE) {
            let text = |at: usize| {
                let name = &command[at..at + NAME_SIZE];
                let end = name.iter().position(|byte| *byte == 0).unwrap();
                str::from_utf8(&name[..end]).unwrap()
            };
            let word =
                |at: usize| u32::from_le_bytes(command[at..at + 4].try_into().unwrap()) as usize;
            let file = if text(4) == RSDP { &mut rsdp } else { &mut tables };
            match u32::try_from(word(0)).unwrap() {
                ALLOCATE => assert_eq!(command[64], if text(4) == RSDP { FSEG } else { HIGH }),
                ADD_POINTER => {
                    assert_eq!((text(60), command[120]), (TABLES, 8));
                    let place = word(116)..word(116) + 8;
                    let value = u64::from_le_bytes(file[place.clone()].try_into().unwrap());
                    file[place].copy_from_slice(&(value + tables_at).to_le_bytes());
                }
                ADD_CHECKSUM => {
                    let (at, range) = (word(60), word(64)..word(64) + word(68));
                    let sum = file[range].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
                    file[at] = sum.wrapping_neg();
                }
                other => panic!("{other}"),
            }
        }
        assert!(rsdp_at < 1 << 20);
        (rsdp, tables)
    }

    #[test]
    fn loaded_tables_are_those_of_other_guests() {
        for vcpus in [1, 255] {
            let (rsdp, tables) = load(acpi_files(vcpus), 0xf_0000, 0x7f00_0000);
            let expected = acpi::tables(0x7f00_0000, vcpus).bytes;
            assert_eq!(rsdp, expected[..rsdp.len()]);
            assert!(tables[rsdp.len()..] == expected[rsdp.len()..]);
        }
    }

    #[test]
    fn the_memory_map_has_all_ram() {
        let board = Board::like_q35(4 << 30).unwrap();
        let map = memory_map(&board);
        assert_eq!(map.len(), 40);
        assert_eq!(map[..20], [&[0; 8][..], &(2_u64 << 30).to_le_bytes(), &[1, 0, 0, 0]].concat());
        assert_eq!(map[20..28], (4_u64 << 30).to_le_bytes());
    }
}
