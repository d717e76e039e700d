//! The GUID table and SEV metadata of a firmware image or an SVSM, and the plan and digest that follow; a
//! published firmware digest.

#![no_main]

use std::sync::Arc;

use casemate_launch::kernel_hashes::KernelHashes;
use casemate_launch::ovmf::SnpOptions;
use casemate_launch::profile::Profile;
use casemate_launch::snp::CpuSignature;
use casemate_launch::{SnpIdentity, SnpPolicy, firmware, ovmf, snp, svsm};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &[u8])| {
    let (with_kernel, end) = input;
    // What counts is at the end of whole pages.
    let mut image = vec![0; end.len().next_multiple_of(4096) - end.len()];
    image.extend(end);
    let image: Arc<[u8]> = image.into();
    let options = SnpOptions {
        profile: Profile::Qemu,
        vcpus: 2,
        cpu_signature: CpuSignature(0x00a0_0f11),
        policy: SnpPolicy { guest_policy: 0x3_0000, vmsa_features: 1 },
        kernel: with_kernel.then(|| KernelHashes::new(b"kernel", b"", b"")),
        identity: SnpIdentity::default(),
    };
    let _ = firmware::snp_plan(&image, firmware::Flags::default(), &options, 512 << 20);
    if let Ok(plan) = ovmf::snp_plan(&image, &options) {
        let _ = snp::measure(&plan);
    }
    let firmware: Arc<[u8]> = vec![0; 4096].into();
    if let Ok(plan) = svsm::snp_plan(&firmware, &image, 0x1000, &options) {
        let _ = snp::measure(&plan);
    }
    if let Ok(published) = serde_json::from_slice::<snp::FirmwareDigest>(end) {
        let _ = published.launch_digest(&options);
    }
});
