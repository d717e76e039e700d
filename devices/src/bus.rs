//! What a device looks like to the bus it hangs on.

/// A device with registers, on the port or the memory bus.
///
/// Offsets count from the start of the range under which the device was added. A guest chooses
/// offsets and lengths: a device must take any of them. What it does not know it ignores (writes)
/// or answers with what it finds in `data` (reads; the bus fills it with ones beforehand).
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes (1, 2, 4 or 8) at `offset`.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` (1, 2, 4 or 8 bytes) at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}
