//! Differences between guests in words, and the guest that explains a digest.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::sync::Arc;

use casemate_launch::diff::differences;
use casemate_launch::kernel_hashes::KernelHashes;
use casemate_launch::manifest::Manifest;
use casemate_launch::ovmf::{SnpOptions, snp_plan};
use casemate_launch::profile::Profile;
use casemate_launch::snp::search::{Explanation, Inputs, search};
use casemate_launch::snp::{self, CpuSignature};
use casemate_launch::{SnpIdentity, SnpPolicy};
use casemate_test_support::vectors;

fn firmware(name: &str) -> Arc<[u8]> {
    vectors::Inputs::open().unwrap().get(name).unwrap().unwrap()
}

fn options() -> SnpOptions {
    SnpOptions {
        profile: Profile::Qemu,
        vcpus: 4,
        cpu_signature: CpuSignature(0x00a0_0f11),
        policy: SnpPolicy { guest_policy: 0x3_0000, vmsa_features: 1 },
        kernel: None,
        identity: SnpIdentity::default(),
    }
}

fn manifest(image: &str, options: &SnpOptions) -> Manifest {
    snp::manifest(&snp_plan(&firmware(image), options).unwrap()).unwrap()
}

#[test]
fn differences_name_their_cause() {
    let base = manifest("tiny-std", &options());
    let against = |image: &str, options: &SnpOptions| differences(&base, &manifest(image, options));
    assert_eq!(against("tiny-std", &options()), Vec::<String>::new());

    let debug_swap = SnpPolicy { guest_policy: 0x3_0000, vmsa_features: 0x21 };
    assert_eq!(
        against("tiny-std", &SnpOptions { policy: debug_swap, ..options() }),
        ["VMSA of every vCPU: SEV_FEATURES bit 5, debug swap, is set only in the second"]
    );
    assert_eq!(
        against("tiny-std", &SnpOptions { vcpus: 2, ..options() }),
        ["4 vCPUs in the first, 2 in the second"]
    );
    let genoa = SnpOptions { cpu_signature: CpuSignature(0x00a1_0f10), ..options() };
    assert_eq!(
        against("tiny-std", &genoa),
        ["VMSA of every vCPU: RDX is 0xa00f11 in the first and 0xa10f10 in the second, the CPU \
          model's signature"]
    );
    let kernel = SnpOptions { kernel: Some(KernelHashes::new(b"a", b"", b"")), ..options() };
    assert_eq!(
        against("tiny-std", &kernel),
        [
            "at 0x810000: kernel hashes, none given (zero) in the first, kernel hashes (normal) in the \
          second"
        ]
    );
    let other = SnpOptions { kernel: Some(KernelHashes::new(b"b", b"", b"")), ..options() };
    assert_eq!(
        differences(&manifest("tiny-std", &kernel), &manifest("tiny-std", &other)),
        ["kernel hashes at 0x810000: other contents"]
    );
    let order = against("tiny-order", &options());
    assert!(
        order.contains(&"ranges that both have enter in another order".to_owned()),
        "{order:?}"
    );
    assert!(
        order.contains(&"firmware: 0x2000 bytes in the first, 0x3000 in the second".to_owned())
    );
}

#[test]
fn one_vcpu_alone_is_named() {
    let base = manifest("tiny-std", &options());
    let mut plan = snp_plan(&firmware("tiny-std"), &options()).unwrap();
    plan.vcpus[3].rbx = 7;
    assert_eq!(
        differences(&base, &snp::manifest(&plan).unwrap()),
        ["VMSA of vCPU 3: RBX is 0x0 in the first and 0x7 in the second"]
    );
}

#[test]
fn a_digest_is_explained_by_the_guest_that_has_it() {
    let image = firmware("tiny-std");
    let kernel = |cmdline: &[u8]| KernelHashes::new(b"kernel", b"", cmdline);
    let kernels = [(kernel(b"quiet"), "as given"), (kernel(b"quiet\n"), "with a newline")];
    let inputs = Inputs { image: &image, kernels: &kernels, most_vcpus: 64 };
    let find = |options: &SnpOptions| {
        let plan = snp_plan(&image, options).unwrap();
        search(snp::measure(&plan).unwrap().launch_digest(), &inputs).unwrap()
    };
    let found = Explanation {
        profile: Profile::Qemu,
        vcpus: 17,
        signature: Some(CpuSignature(0x00a1_0f10)),
        features: 0x21,
        kernel: Some("with a newline"),
        old_fpu: false,
    };
    let guest = SnpOptions {
        vcpus: 17,
        cpu_signature: CpuSignature(0x00a1_0f10),
        policy: SnpPolicy { guest_policy: 0, vmsa_features: 0x21 },
        kernel: Some(kernel(b"quiet\n")),
        ..options()
    };
    assert_eq!(find(&guest), Some(found.clone()));
    let gce = SnpOptions { profile: Profile::Gce, vcpus: 1, kernel: None, ..options() };
    let found = Explanation {
        profile: Profile::Gce,
        vcpus: 1,
        signature: None,
        features: 1,
        kernel: None,
        old_fpu: false,
    };
    assert_eq!(find(&gce), Some(found));
    assert_eq!(find(&SnpOptions { vcpus: 65, ..options() }), None);

    // A host before Linux 6.10.
    let mut plan = snp_plan(&image, &options()).unwrap();
    for vcpu in &mut plan.vcpus {
        (vcpu.mxcsr, vcpu.x87_fcw) = (0, 0);
    }
    let found = search(snp::measure(&plan).unwrap().launch_digest(), &inputs).unwrap().unwrap();
    assert!(found.old_fpu && found.vcpus == 4 && found.kernel.is_none());
}
