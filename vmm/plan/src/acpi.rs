//! ACPI tables of a plain guest: hardware-reduced, so that there is no PIT, no PM timer and no CMOS
//! clock to ask for.
//!
//! Source: ACPI 6.5; PCI Firmware 3.3, section 4.1.2 (MCFG).

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Method,
    Name, Notify, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use casemate_firmware_logic::acpi::MADT;
use casemate_launch::Gpa;
use casemate_launch::linux::AcpiTables;

use crate::board::{ECAM, IO_APIC, LOCAL_APIC, PCI_WINDOW, gsi, port, power};

const OEM: [u8; 6] = *b"CASEMT";
const TABLE: [u8; 8] = *b"CASEMATE";
const REVISION: u32 = 1;
/// Each table starts at a multiple of it.
const ALIGNMENT: usize = 16;

/// IAPC_BOOT_ARCH (table 5.11): no VGA, no CMOS clock. That the bits for a keyboard controller and
/// for legacy devices are clear says that there are none.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;

/// Tables that follow each other in guest memory.
struct Tables {
    start: u64,
    bytes: Vec<u8>,
}

impl Tables {
    /// Adds a table and returns its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        let address = self.start + self.bytes.len() as u64;
        table.to_aml_bytes(self);
        address
    }
}

impl AmlSink for Tables {
    fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }
}

/// The tables of a machine with `vcpus` vCPUs, at most 255, for the address `start`. The RSDP is
/// first; the MADT is last and at a place of its own, so that all others are constant: our firmware
/// has them in its image.
#[must_use]
pub fn tables(start: u64, vcpus: u32) -> AcpiTables {
    let mut tables = Tables { start, bytes: vec![0; Rsdp::len()] };
    let dsdt = tables.add(&dsdt());
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    for table in [&fadt(dsdt) as &dyn Aml, &mcfg()] {
        xsdt.add_entry(tables.add(table));
    }
    xsdt.add_entry(start + MADT as u64);
    let xsdt = tables.add(&xsdt);
    tables.bytes.resize(MADT, 0);
    tables.add(&madt(vcpus));
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    let mut bytes = tables.bytes;
    bytes[..rsdp.len()].copy_from_slice(&rsdp);
    AcpiTables { start: Gpa(start), bytes: bytes.into() }
}

fn fadt(dsdt: u64) -> impl Aml {
    let register = |offset: u16| {
        let address = u64::from(port::POWER + offset);
        GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address)
    };
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // Power and sleep buttons are devices in the DSDT, if anything.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = register(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = register(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(power::SLEEP_STATUS);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(TABLE).into();
    fadt.finalize()
}

fn madt(vcpus: u32) -> impl Aml {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for id in (0..=u8::MAX).zip(0..vcpus).map(|(id, _)| id) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

fn mcfg() -> impl Aml {
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(ECAM.start.into(), 0, 0, 0);
    mcfg
}

fn dsdt() -> Sdt {
    let mut body = Vec::new();
    // Soft off: the sleep type that goes into the sleep control register.
    Name::new("_S5_".into(), &Package::new(vec![&power::S5])).to_aml_bytes(&mut body);
    Scope::new(
        "\\_SB_".into(),
        vec![&pci_root(), &reserved(), &serial(), &power_button(), &events(), &panic_port()],
    )
    .to_aml_bytes(&mut body);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, REVISION);
    dsdt.append_slice(&body);
    dsdt
}

/// AML of one device: its name, what it is, and the rest.
struct Node(Vec<u8>);

impl Aml for Node {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

impl Node {
    fn new(name: &str, hid: &dyn Aml, rest: Vec<&dyn Aml>) -> Self {
        let hid = Name::new("_HID".into(), hid);
        let children = [&hid as &dyn Aml].into_iter().chain(rest).collect();
        let mut bytes = Vec::new();
        Device::new(name.into(), children).to_aml_bytes(&mut bytes);
        Self(bytes)
    }
}

fn resources(descriptors: Vec<&dyn Aml>) -> Name {
    Name::new("_CRS".into(), &ResourceTemplate::new(descriptors))
}

fn edge(gsi: u32) -> Interrupt {
    let (consumer, edge_triggered, active_low, shared) = (true, true, false, false);
    Interrupt::new(consumer, edge_triggered, active_low, shared, gsi)
}

/// The host bridge: bus 0 and the window of its devices.
fn pci_root() -> Node {
    let bus = AddressSpace::new_bus_number(0_u16, 0);
    let (cacheable, writable) = (AddressSpaceCacheable::NotCacheable, true);
    let window =
        AddressSpace::new_memory(cacheable, writable, PCI_WINDOW.start, PCI_WINDOW.end - 1, None);
    Node::new(
        "PCI0",
        // PCI Express; plain PCI for those who do not know that.
        &EISAName::new("PNP0A08"),
        vec![
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &0_u8),
            &Name::new("_UID".into(), &0_u8),
            // Devices see what is in the CPUs' caches.
            &Name::new("_CCA".into(), &1_u8),
            &resources(vec![&bus, &window]),
        ],
    )
}

/// Addresses that no device may be given: without this Linux does not trust the MCFG.
fn reserved() -> Node {
    let ecam = Memory32Fixed::new(true, ECAM.start, ECAM.end - ECAM.start);
    Node::new("MBRD", &EISAName::new("PNP0C02"), vec![&resources(vec![&ecam])])
}

fn serial() -> Node {
    let ports = IO::new(port::SERIAL, port::SERIAL, 0, port::SERIAL_COUNT);
    Node::new(
        "COM1",
        &EISAName::new("PNP0501"),
        vec![&Name::new("_UID".into(), &0_u8), &resources(vec![&ports, &edge(gsi::SERIAL)])],
    )
}

fn power_button() -> Node {
    Node::new("PWRB", &EISAName::new("PNP0C0C"), vec![])
}

/// The generic event device (section 5.6.9): its interrupt says that the power button was pressed.
fn events() -> Node {
    const BUTTON_PRESSED: u8 = 0x80;
    let (button, pressed) = (Path::new("PWRB"), BUTTON_PRESSED);
    let notify = Notify::new(&button, &pressed);
    Node::new(
        "GED_",
        &"ACPI0013",
        vec![
            &resources(vec![&edge(gsi::EVENTS)]),
            &Method::new("_EVT".into(), 1, true, vec![&notify]),
        ],
    )
}

/// pvpanic, under the name that Linux knows it by.
fn panic_port() -> Node {
    let ports = IO::new(port::PANIC, port::PANIC, 1, 1);
    Node::new("PEVT", &"QEMU0001", vec![&resources(vec![&ports])])
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::board::ACPI_TABLES;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// The table at `address`, its length taken from its header.
    fn table(bytes: &[u8], address: u64) -> &[u8] {
        let at = usize::try_from(address - ACPI_TABLES.start).unwrap();
        let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap());
        &bytes[at..at + usize::try_from(length).unwrap()]
    }

    /// Where they differ, `tables(..)` is right and the firmware's `acpi.dat` is its first
    /// `constant` bytes: a change of the board is a change of the measured image.
    #[test]
    fn the_firmware_has_the_same_tables() {
        use casemate_firmware_logic::handoff::{ACPI, ACPI_SIZE};
        use casemate_firmware_logic::{acpi, layout};

        for vcpus in [1, 2, 255] {
            let ours = tables(layout::HANDOFF + ACPI as u64, vcpus);
            let constant = ours.bytes[..MADT].iter().rposition(|byte| *byte != 0).unwrap() + 1;
            if std::env::var_os("CASEMATE_WRITE_ACPI").is_some() {
                let file =
                    concat!(env!("CARGO_MANIFEST_DIR"), "/../../firmware/logic/src/acpi.dat");
                std::fs::write(file, &ours.bytes[..constant]).unwrap();
            }
            let mut theirs = vec![0; ACPI_SIZE];
            acpi::write(&mut theirs, vcpus, None).unwrap();
            assert!(acpi::CONSTANT == &ours.bytes[..constant], "see above");
            assert!(theirs[..ours.bytes.len()] == *ours.bytes, "the MADT of {vcpus} vCPUs");
        }
    }

    #[test]
    fn all_tables_are_found_from_the_rsdp() {
        let tables = tables(ACPI_TABLES.start, 255);
        let bytes = &*tables.bytes;
        assert!(bytes.len() as u64 <= ACPI_TABLES.end - ACPI_TABLES.start);
        assert_eq!(&bytes[..8], b"RSD PTR ");
        assert_eq!((sum(&bytes[..20]), sum(&bytes[..36])), (0, 0));
        let xsdt = table(bytes, u64::from_le_bytes(bytes[24..32].try_into().unwrap()));
        let found: Vec<_> = xsdt[36..]
            .chunks_exact(8)
            .map(|address| table(bytes, u64::from_le_bytes(address.try_into().unwrap())))
            .collect();
        let signatures: Vec<_> = found.iter().map(|table| &table[..4]).collect();
        assert_eq!(signatures, [b"FACP", b"MCFG", b"APIC"]);
        let fadt = found[0];
        let dsdt = table(bytes, u64::from_le_bytes(fadt[140..148].try_into().unwrap()));
        assert_eq!(&dsdt[..4], b"DSDT");
        assert!(found.iter().chain([&xsdt, &dsdt]).all(|table| sum(table) == 0));
        // HW_REDUCED_ACPI; no VGA, no CMOS clock.
        assert_eq!(fadt[112..116][2] & 1 << 4, 1 << 4);
        assert_eq!(fadt[109..111], [0b10_0100, 0]);
        // Header, address, flags, 255 local APICs, an I/O APIC.
        assert_eq!(found[2].len(), 44 + 255 * 8 + 12);
    }

    /// ACPICA, whose interpreter is Linux's, disassembles each table and compiles it to the same bytes.
    #[test]
    fn tables_pass_iasl() {
        let iasl = |folder: &Path, arguments: &[&str]| {
            let output = Command::new("iasl").args(arguments).current_dir(folder).output();
            output.map(|output| {
                let [out, err] = [output.stdout, output.stderr].map(String::from_utf8);
                (output.status.success(), out.unwrap() + &err.unwrap())
            })
        };
        let folder = tempfile::tempdir().unwrap();
        if let Err(error) = iasl(folder.path(), &["-v"]) {
            eprintln!(
                "NOT TESTED: iasl, of the Debian package acpica-tools, is not there: {error}"
            );
            return;
        }
        let tables = tables(ACPI_TABLES.start, 255);
        let bytes = &*tables.bytes;
        let address = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let xsdt = table(bytes, address(&bytes[24..32]));
        let mut found: Vec<_> =
            xsdt[36..].chunks_exact(8).map(|at| table(bytes, address(at))).collect();
        found.extend([xsdt, table(bytes, address(&found[0][140..148]))]);
        for table in found {
            let name = str::from_utf8(&table[..4]).unwrap().to_lowercase();
            let [source, dsl, aml] = ["dat", "dsl", "aml"].map(|end| format!("{name}.{end}"));
            std::fs::write(folder.path().join(&source), table).unwrap();
            let (done, text) = iasl(folder.path(), &["-d", &source]).unwrap();
            assert!(done, "{name}: {text}");
            // Without optimizations: these tables are as they are.
            let (done, text) = iasl(folder.path(), &["-oa", &dsl]).unwrap();
            assert!(done && text.contains("0 Errors, 0 Warnings, 0 Remarks"), "{name}: {text}");
            let mut again = std::fs::read(folder.path().join(&aml)).unwrap();
            // The compiler enters itself as the creator, which changes the checksum.
            again[9] = table[9];
            again[28..36].copy_from_slice(&table[28..36]);
            assert_eq!(again, table, "{name}");
        }
    }
}
