//! The bridges of the bus: a configuration space each, and nothing behind it.

use super::{ConfigSpace, Identity, PciDevice};

/// A bridge that Linux takes as it is, without chipset registers of its own: Cloud Hypervisor's.
const HOST_BRIDGE: Identity =
    Identity { vendor: 0x8086, device: 0x0d57, class: 0x06_00_00, revision: 0, subsystem: (0, 0) };

/// The bridges of QEMU's q35 machine: OVMF knows by them where things are.
const Q35_HOST_BRIDGE: Identity = Identity { device: 0x29c0, ..HOST_BRIDGE };
const ICH9_LPC: Identity = Identity { device: 0x2918, class: 0x06_01_00, ..HOST_BRIDGE };

/// Registers of the LPC bridge (Intel I/O Controller Hub 9 Family data sheet, sections 13.1.12 and
/// 13.1.13): PMBASE, with the bit that says that it is a port, and ACPI_CNTL.
const PMBASE: usize = 0x40;
const IN_PORTS: u16 = 1;
const ACPI_CNTL: usize = 0x44;
const ACPI_ENABLE: u8 = 1 << 7;

/// A device of the bus without a BAR.
pub(super) struct Bridge(ConfigSpace);

impl Bridge {
    /// The host bridge.
    pub(super) fn host() -> Self {
        Self(ConfigSpace::new(HOST_BRIDGE, 0))
    }

    /// QEMU's.
    pub(super) fn q35_host() -> Self {
        Self(ConfigSpace::new(Q35_HOST_BRIDGE, 0))
    }

    /// The bridge that tells OVMF of the power management registers at the port `pmbase`.
    pub(super) fn ich9_lpc(pmbase: u16) -> Self {
        let mut lpc = ConfigSpace::new(ICH9_LPC, 0);
        lpc.set(PMBASE, &(pmbase | IN_PORTS).to_le_bytes());
        lpc.set(ACPI_CNTL, &[ACPI_ENABLE]);
        Self(lpc)
    }
}

impl PciDevice for Bridge {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.0.write(offset, data);
    }

    fn read_bar(&mut self, _: u32, _: &mut [u8]) {}

    fn write_bar(&mut self, _: u32, _: &[u8]) {}
}
