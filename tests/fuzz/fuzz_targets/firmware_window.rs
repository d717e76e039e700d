//! The header of the firmware's loader window: what an untrusted host says of the machine.
#![no_main]

use casemate_firmware_logic::config::{Config, Flags, Platform};
use casemate_firmware_logic::layout::{LOW_MEMORY_END, WINDOW, WINDOW_END};
use casemate_firmware_logic::memory_map::MemoryMap;
use casemate_firmware_logic::window::{HEADER_SIZE, Header};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let config = Config {
        platform: Platform::Snp,
        flags: Flags::default(),
        most_memory: 1 << 40,
        most_vcpus: 255,
        kernel: [0; 32],
        initrd: [0; 32],
        command_line: [0; 32],
    };
    // What is short is followed by zeroes.
    let mut bytes = [0; HEADER_SIZE];
    let length = data.len().min(HEADER_SIZE);
    bytes[..length].copy_from_slice(&data[..length]);
    let Ok(header) = Header::from_copy(&bytes, &config, 46) else { return };
    assert!((1..=config.most_vcpus).contains(&header.vcpus));
    let (mut end, mut total) = (0, 0);
    for range in header.ranges() {
        assert!(range.start >= end && range.end() <= 1 << 46, "{header:x?}");
        assert!(range.end() <= LOW_MEMORY_END || range.start >= 4 << 30, "{header:x?}");
        end = range.end();
        total += range.size;
    }
    assert!(total <= config.most_memory, "{header:x?}");
    for payload in [header.kernel, header.initrd, header.command_line] {
        assert!(payload.offset >= HEADER_SIZE as u64, "{header:x?}");
        assert!(payload.offset + payload.size <= WINDOW_END - WINDOW, "{header:x?}");
    }
    let _ = MemoryMap::new(&header);
});
