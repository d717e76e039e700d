//! Any bytes as index, manifest and configuration of an OCI image, and as the manifest of `docker save`.
#![no_main]

use casemate_image::source::{parse_config, parse_docker_manifest, parse_index, parse_manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = parse_index("index", bytes);
    let _ = parse_manifest("manifest", bytes);
    let _ = parse_config("configuration", bytes);
    let _ = parse_docker_manifest("manifest.json", bytes);
});
