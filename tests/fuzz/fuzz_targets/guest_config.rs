//! Any text as guest.toml, any flags after it (behind a NUL, one on a line): a configuration that is
//! accepted is one of a guest that can be, an error is text of one line.
#![no_main]

use std::fs;

use casemate_config::{Overrides, load};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

fuzz_target!(|input: &[u8]| {
    // A path of the input's leads nowhere outside of this folder, unless it begins with a slash.
    if input.windows(2).any(|pair| pair == b"..") || input.contains(&b'/') {
        return;
    }
    let mut parts = input.splitn(2, |byte| *byte == 0);
    let (text, flags) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let flags = String::from_utf8_lossy(flags);
    let flags = flags.lines().filter_map(|line| line.split_once('='));
    let overrides = match Overrides::new(flags) {
        Ok(overrides) => overrides,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let folder = TempDir::new_in("/dev/shm").unwrap();
    // Files that keys may name.
    fs::write(folder.path().join("k"), [0x5a; 4096]).unwrap();
    let file = folder.path().join("guest.toml");
    fs::write(&file, text).unwrap();
    match load(&file, overrides) {
        Ok(config) => {
            assert!(config.memory.0 >= 2 << 20 && config.memory.0 % (1 << 20) == 0);
            assert!(config.cmdline.len() <= 2047 && !config.cmdline.contains('\0'));
        }
        Err(error) => {
            let error = error.to_string();
            assert!(!error.trim().is_empty());
        }
    }
});
