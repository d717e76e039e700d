//! The port and memory buses, and what a device looks like to them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

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

/// Why a device did not get the range it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{length:#x} bytes at {start:#x} are empty, wrap around or belong to another device")]
pub struct RangeError {
    /// The first address.
    pub start: u64,
    /// How many there are.
    pub length: u64,
}

/// Devices by address: one value for all ports, one for all memory-mapped registers. Complete
/// before the first vCPU runs, and shared by all of them then.
#[derive(Default)]
pub struct Bus {
    /// By first address; ranges do not overlap.
    devices: BTreeMap<u64, Slot>,
}

struct Slot {
    /// The last address.
    last: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

impl Bus {
    /// Gives `length` addresses from `start` to `device`.
    ///
    /// # Errors
    /// If the range is empty, wraps around or overlaps another device's.
    pub fn insert(
        &mut self,
        start: u64,
        length: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), RangeError> {
        let refused = RangeError { start, length };
        let last = length.checked_sub(1).and_then(|rest| start.checked_add(rest));
        let last = last.ok_or(refused)?;
        let neighbour = self.devices.range(..=last).next_back();
        if neighbour.is_some_and(|(_, slot)| slot.last >= start) {
            return Err(refused);
        }
        self.devices.insert(start, Slot { last, device });
        Ok(())
    }

    /// The guest reads. Where there is no device, it finds ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        }
    }

    /// The guest writes. Where there is no device, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        }
    }

    /// The device that all `length` bytes belong to, and how far into its range they lie.
    fn find(&self, address: u64, length: usize) -> Option<(u64, &Mutex<dyn BusDevice>)> {
        let (start, slot) = self.devices.range(..=address).next_back()?;
        let last = address.checked_add(u64::try_from(length).ok()?.checked_sub(1)?)?;
        (last <= slot.last).then(|| (address - start, &*slot.device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    #[test]
    fn accesses_find_the_device_that_has_all_of_them() {
        let device = Arc::new(Mutex::new(Recorder::default()));
        let mut bus = Bus::default();
        bus.insert(0x100, 8, device.clone()).unwrap();
        let read = |address, length: usize| {
            let mut data = vec![0; length];
            bus.read(address, &mut data);
            data
        };
        assert_eq!(read(0x104, 4), [4; 4]);
        assert_eq!(read(0x106, 4), [0xff; 4]);
        assert_eq!(read(0xff, 1), [0xff]);
        assert_eq!(read(0x108, 1), [0xff]);
        assert_eq!(read(u64::MAX, 8), [0xff; 8]);
        bus.write(0x107, &[1]);
        bus.write(0x107, &[1, 2]);
        assert_eq!(device.lock().unwrap().0, [(7, vec![1])]);
    }

    #[test]
    fn ranges_do_not_overlap() {
        let device = || Arc::new(Mutex::new(Recorder::default()));
        let mut bus = Bus::default();
        bus.insert(0x100, 8, device()).unwrap();
        for (start, length) in [(0x100, 0), (0x0ff, 2), (0x107, 1), (0xf0, 0x100), (u64::MAX, 2)] {
            assert_eq!(bus.insert(start, length, device()), Err(RangeError { start, length }));
        }
        bus.insert(0x108, 1, device()).unwrap();
        bus.insert(u64::MAX, 1, device()).unwrap();
    }
}
