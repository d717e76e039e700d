//! IGVM files, on every platform. The checksum is put right, so that the headers are reached.

#![no_main]

use std::io::Cursor;

use casemate_launch::PlatformKind;
use casemate_launch::igvm::{IgvmFile, ZeroPages, import, inspect};
use casemate_launch::measure::igvm::{measure_snp, measure_tdx};
use casemate_launch::{snp, tdx};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut bytes = bytes.to_vec();
    repair(&mut bytes);
    let Ok(mut file) = IgvmFile::open(Cursor::new(&bytes)) else { return };
    for platform in file.platforms().to_vec() {
        let items = inspect(&mut file, platform);
        let length = |item: &casemate_launch::igvm::Item| item.length.unwrap_or_default();
        if items.is_ok_and(|items| items.iter().map(length).sum::<u64>() > 16 << 20) {
            return;
        }
    }
    if let Ok(found) = measure_snp(&mut file, None, ZeroPages::Normal)
        && let Ok(imported) = import(&mut file, PlatformKind::Snp, None, ZeroPages::Normal)
    {
        let plan = snp::measure(&imported.plan).map(|measured| measured.launch_digest());
        assert_eq!(plan.ok(), found.kvm.ok());
    }
    if let Ok(found) = measure_tdx(&mut file, None)
        && let Ok(imported) = import(&mut file, PlatformKind::Tdx, None, ZeroPages::Normal)
    {
        let plan = tdx::mrtd(&imported.plan, tdx::PageOrder::PerPage);
        assert_eq!(plan, Ok(found));
    }
});

fn repair(bytes: &mut [u8]) {
    let Ok(size) = u32::try_from(bytes.len()) else { return };
    let Some(fixed) = bytes.first_chunk_mut::<24>() else { return };
    fixed[16..20].copy_from_slice(&size.to_le_bytes());
    fixed[20..24].fill(0);
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| fixed[at + byte])) as usize;
    let end = word(8).saturating_add(word(12)).min(bytes.len());
    let sum = crc32fast::hash(&bytes[..end.max(24)]);
    bytes[20..24].copy_from_slice(&sum.to_le_bytes());
}
