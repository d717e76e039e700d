//! The header of a kernel as the firmware reads it.
#![no_main]

use casemate_firmware_logic::kernel::{HEADER, Kernel, setup_size};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(kernel) = Kernel::from_file(data) else { return };
    assert!(kernel.memory > 0 && kernel.memory < 1 << 32, "{kernel:x?}");
    assert!(kernel.header_end > HEADER && kernel.header_end <= data.len(), "{kernel:x?}");
    assert!(setup_size(data[HEADER]) < data.len() as u64, "{kernel:x?}");
});
