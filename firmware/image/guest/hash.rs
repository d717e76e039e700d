//! SHA-256 at the speed of the processor.

use casemate_firmware_logic::config::Platform;
use casemate_firmware_logic::{cpuid, sha256};

use crate::snp;

/// The SHA-256 digest of `data`.
pub fn digest(platform: Platform, data: &[u8]) -> [u8; 32] {
    if !has_instructions(platform) {
        return sha256::digest(data);
    }
    let by_instructions = |state: &mut [u32; 8], blocks: &[[u8; 64]]| {
        // SAFETY: the processor has SHA, and none was made that has it without SSE4.1. The first code
        // enables XMM registers (CR4.OSFXSR). Nobody else in the image uses them, so nothing of
        // anybody's is in them, and no trap needs to save them: each is the end.
        unsafe { sha256::compress_by_instructions(state, blocks) }
    };
    sha256::digest_by(by_instructions, data)
}

/// Whether the processor has the instructions. SEV-SNP guests are told in a page what CPUID says: the
/// instruction would be a call of the host.
fn has_instructions(platform: Platform) -> bool {
    if platform == Platform::Snp {
        return cpuid::page_has_sha(snp::cpuid_page());
    }
    let leaves = core::arch::x86_64::__cpuid(0).eax;
    leaves >= cpuid::FEATURES
        && cpuid::has_sha(core::arch::x86_64::__cpuid_count(cpuid::FEATURES, 0).ebx)
}
