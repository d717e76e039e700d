//! PCI: one bus of up to 31 slots behind a host bridge, with eight functions each (PCI Local Bus 3.0; the
//! memory-mapped configuration of PCI Express Base 5.0, section 7.2.2).
//!
//! A device of ours is a function, with one 32-bit memory BAR with all its registers, and MSI-X; there
//! are no I/O BARs and no INTx. BARs come assigned, and a guest may move them: whoever accesses the
//! window is led to the device whose BAR now lies there.

mod bridges;
mod config_space;
mod msix;
mod root;

pub use config_space::{ConfigSpace, Identity};
pub use msix::{MSIX_CAPABILITY, Msix};
pub use root::{AddError, ConfigPorts, Ecam, MmioWindow, PciRoot, Place};

/// A device on the bus. Configuration space offsets are below 256; BAR offsets below the size of the
/// BAR. Lengths are 1, 2, 4 or 8 bytes, and nothing is aligned unless the guest is kind.
pub trait PciDevice: Send {
    /// Its configuration space. The bus reads the BAR there.
    fn config(&self) -> &ConfigSpace;

    /// The same, for the bus to say where the BAR is, and what else is in the slot, when the guest
    /// starts.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// The guest reads the configuration space.
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// The guest writes the configuration space.
    fn write_config(&mut self, offset: usize, data: &[u8]);

    /// The guest reads the BAR; `data` comes zeroed.
    fn read_bar(&mut self, offset: u32, data: &mut [u8]);

    /// The guest writes the BAR.
    fn write_bar(&mut self, offset: u32, data: &[u8]);
}
