//! What the fuzzers found worth keeping (`tests/fuzz/corpus`): whatever a host writes is refused, or
//! harmless.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::path::Path;

use casemate_firmware_logic::config::{Config, Flags, Platform};
use casemate_firmware_logic::kernel::{HEADER, Kernel, setup_size};
use casemate_firmware_logic::layout::{LOW_MEMORY_END, WINDOW, WINDOW_END};
use casemate_firmware_logic::memory_map::MemoryMap;
use casemate_firmware_logic::window::{HEADER_SIZE, Header};

/// Gives `target` each input of a fuzz target of that name; of some it takes what it is given.
fn replay(name: &str, target: impl Fn(&[u8]) -> bool) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(name);
    let inputs: Vec<_> = std::fs::read_dir(&corpus).unwrap().collect();
    assert!(inputs.len() > 10, "{} has only {} inputs", corpus.display(), inputs.len());
    let taken = inputs
        .into_iter()
        .filter(|input| target(&std::fs::read(input.as_ref().unwrap().path()).unwrap()))
        .count();
    assert!(taken > 0, "{}: all are refused", corpus.display());
}

#[test]
fn headers_of_the_loader_window() {
    let config = Config {
        platform: Platform::Snp,
        flags: Flags::default(),
        most_memory: 1 << 40,
        most_vcpus: 255,
        kernel: [0; 32],
        initrd: [0; 32],
        command_line: [0; 32],
    };
    replay("firmware_window", |input| {
        let mut bytes = [0; HEADER_SIZE];
        bytes[..input.len()].copy_from_slice(input);
        let Ok(header) = Header::from_copy(&bytes, &config, 46) else { return false };
        let mut end = 0;
        for range in header.ranges() {
            assert!(range.start >= end && range.end() <= 1 << 46, "{header:x?}");
            assert!(range.end() <= LOW_MEMORY_END || range.start >= 4 << 30, "{header:x?}");
            end = range.end();
        }
        for payload in [header.kernel, header.initrd, header.command_line] {
            assert!(payload.offset + payload.size <= WINDOW_END - WINDOW, "{header:x?}");
        }
        let _ = MemoryMap::new(&header);
        true
    });
}

#[test]
fn kernels() {
    replay("firmware_kernel", |file| {
        let Ok(kernel) = Kernel::from_file(file) else { return false };
        assert!(kernel.header_end > HEADER && kernel.header_end <= file.len(), "{kernel:x?}");
        assert!(setup_size(file[HEADER]) < file.len() as u64, "{kernel:x?}");
        true
    });
}
