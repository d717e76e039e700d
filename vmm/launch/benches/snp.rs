//! How long an SNP launch digest takes, as a ratio to SHA-384 of the same bytes on one core, and
//! how long a further vCPU count takes once the firmware's seed is known.
//!
//! Prints one JSON object: medians in milliseconds.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on must stop")]

mod common;

use std::hint::black_box;
use std::sync::Arc;

use casemate_launch::ovmf::{self, SnpOptions};
use casemate_launch::profile::{Profile, RESET_VECTOR};
use casemate_launch::sev_metadata::SevMetadata;
use casemate_launch::snp::{self, CpuSignature, LaunchDigest};
use casemate_launch::{Digest384, SnpIdentity, SnpPolicy};
use casemate_test_support::vectors::Inputs;
use common::medians;

const VCPUS: u32 = 255;
/// Within how much of the bare hashing a measurement must be.
const BUDGET: f64 = 1.2;
/// The most that a further vCPU count may take, in milliseconds.
const RESUME_BUDGET: f64 = 0.3;

fn main() {
    let Some(image) = Inputs::open().unwrap().get("ovmf-sid-amdsev").unwrap() else {
        println!("{{\"snp_ovmf_4_mib_255_vcpus\": \"not run: the firmware cannot be had\"}}");
        return;
    };
    let (expected, seed) = measure(&image);
    let metadata = SevMetadata::parse(&image).unwrap();
    let [floor, ours, resumed] = medians([
        &mut || {
            black_box(Digest384::of(black_box(&image)));
        },
        &mut || assert_eq!(measure(&image).0, expected),
        &mut || assert_eq!(resume(seed, &metadata), expected),
    ]);
    let ratio = ours / floor;
    println!(
        "{{\"snp_ovmf_4_mib_255_vcpus\": {{\"ms\": {ours:.2}, \"bare_sha384_ms\": {floor:.2}, \
         \"ratio\": {ratio:.3}, \"budget\": {BUDGET}, \"within_budget\": {}}}, \
         \"snp_255_vcpus_from_seed\": {{\"ms\": {resumed:.3}, \"budget_ms\": {RESUME_BUDGET}, \
         \"within_budget\": {}}}}}",
        ratio <= BUDGET,
        resumed <= RESUME_BUDGET,
    );
}

/// Everything from the image's bytes: launch digest and firmware seed.
fn measure(image: &Arc<[u8]>) -> (Digest384, Digest384) {
    let options = SnpOptions {
        profile: Profile::Qemu,
        vcpus: VCPUS,
        cpu_signature: CpuSignature(0x00a0_0f11),
        policy: SnpPolicy { guest_policy: 0x3_0000, vmsa_features: 1 },
        kernel: None,
        identity: SnpIdentity::default(),
    };
    let plan = ovmf::snp_plan(image, &options).unwrap();
    let measurement = snp::measure(&plan).unwrap();
    (measurement.launch_digest(), measurement.firmware_seed(&plan).unwrap())
}

/// The same digest from the seed.
fn resume(seed: Digest384, metadata: &SevMetadata) -> Digest384 {
    let mut digest = LaunchDigest::resume(seed);
    for import in ovmf::section_imports(metadata, Profile::Qemu, None).unwrap() {
        digest.add_import(&import);
    }
    let entries = (0..VCPUS).map(|index| match index {
        0 => RESET_VECTOR,
        _ => metadata.ap_reset.unwrap(),
    });
    let vcpus: Vec<_> =
        entries.map(|entry| Profile::Qemu.vcpu(entry, CpuSignature(0x00a0_0f11))).collect();
    digest.add_vcpus(&vcpus, 1);
    digest.value()
}
