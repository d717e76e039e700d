//! What else than our firmware with a kernel starts an SEV-SNP guest of `casemate run`: OVMF, and IGVM
//! files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/snp.rs"]
mod snp;

use std::fs;

use casemate_lab::{Host, require};
use casemate_tests::vectors::Inputs;
use snp::{CIPHERS, guest, in_lab, line, predicted, said, sha256};

#[test]
fn ovmf_starts_a_kernel_that_it_has_measured() {
    if require(Host::Snp).is_none() {
        return;
    }
    let folder = guest("6.12", CIPHERS);
    let path = |name: &str| folder.path().join(name);
    let Some(ovmf) = Inputs::open().unwrap().get("ovmf-sid-amdsev").unwrap() else { return };
    fs::write(path("ovmf"), ovmf).unwrap();
    let contents: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    fs::write(path("disk"), &contents).unwrap();
    let flags = format!("--firmware {} --disk {}", path("ovmf").display(), path("disk").display());
    let script = line(folder.path(), &flags);
    let Some(output) = in_lab(&script, folder.path()) else { return };
    let console = &output.console;
    eprintln!("{console}\n{}", output.platform_log);
    assert_eq!(console.matches("ENDED 0").count(), 1, "{console}");
    predicted(console, 0);
    assert_eq!(said(console, "DISK ", 0), sha256(&contents));
}
