//! ACPI tables (ACPI 6.5). The firmware has its own, so that no code of the host's (AML) runs in
//! the guest's kernel. All but the MADT are constant: the board is always the same.

use crate::bytes::put;
use crate::fatal::Fatal;
use crate::handoff::ACPI_SIZE;

/// RSDP, XSDT, FADT, MCFG and DSDT for the place that [`handoff`](crate::handoff) gives them. Made
/// by the VMM's code, which describes the same board to plain guests; a test there keeps them equal.
pub const CONSTANT: &[u8] = include_bytes!("acpi.dat");

/// Where the XSDT expects the MADT, from the RSDP.
pub const MADT: usize = 0x1000;

/// The MADT up to its first entry: header with length and checksum still missing, then the local
/// APICs' address (section 5.2.12).
const MADT_START: usize = 44;

/// The only I/O APIC: identifier 0, at 0xfec00000, interrupts from 0 (section 5.2.12.3).
const IO_APIC: [u8; 12] = [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];

/// How the kernel gets at vCPUs that wait (section 5.2.12.19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wakeup {
    /// The page through which one is told where to go on.
    pub mailbox: u64,
    /// Where one goes that is to wait again.
    pub reset_vector: u64,
}

/// Writes the tables of a machine with `vcpus` vCPUs into `area`, the RSDP first. `wakeup` is for
/// vCPUs that INIT and SIPI do not reach.
///
/// # Errors
/// [`Fatal::Machine`] if there are more vCPUs than local APICs have identifiers, 255.
pub fn write(area: &mut [u8], vcpus: u32, wakeup: Option<Wakeup>) -> Result<(), Fatal> {
    let count = u8::try_from(vcpus).map_err(|_| Fatal::Machine)?;
    put(area, 0, CONSTANT);
    let madt = area.get_mut(MADT..ACPI_SIZE).ok_or(Fatal::Machine)?;
    put(madt, 0, b"APIC");
    // Revision; OEM, table, revision, and who made it: as in the other tables.
    put(madt, 8, &[1]);
    put(madt, 10, constant(10, 26));
    put(madt, 36, &0xfee0_0000_u32.to_le_bytes());
    let mut end = MADT_START;
    for id in 0..count {
        put(madt, end, &[0, 8, id, id, 1, 0, 0, 0]);
        end += 8;
    }
    put(madt, end, &IO_APIC);
    end += IO_APIC.len();
    if let Some(Wakeup { mailbox, reset_vector }) = wakeup {
        // Type, length, version; the version with a reset vector.
        put(madt, end, &[0x10, 24, 1, 0]);
        put(madt, end + 8, &mailbox.to_le_bytes());
        put(madt, end + 16, &reset_vector.to_le_bytes());
        end += 24;
    }
    put(madt, 4, &u32::try_from(end).unwrap_or(u32::MAX).to_le_bytes());
    let sum = madt.iter().take(end).fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    put(madt, 9, &[sum.wrapping_neg()]);
    Ok(())
}

/// Bytes of the header of the first table behind the RSDP.
fn constant(offset: usize, length: usize) -> &'static [u8] {
    const FIRST_TABLE: usize = 48;
    CONSTANT.get(FIRST_TABLE + offset..).and_then(|rest| rest.get(..length)).unwrap_or_default()
}
