//! What the fuzzers found worth keeping (`tests/fuzz/corpus`): no input panics, whatever it is.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::io::Cursor;
use std::path::Path;

use casemate_launch::igvm::{IgvmFile, ZeroPages};
use casemate_launch::linux::{AcpiTables, DirectBoot, Kernel};
use casemate_launch::measure::igvm::{measure_snp, measure_tdx};
use casemate_launch::ovmf::SnpOptions;
use casemate_launch::profile::Profile;
use casemate_launch::snp::CpuSignature;
use casemate_launch::tdvf::{self, hob};
use casemate_launch::{
    Bytes, Gpa, MemoryKind, MemoryRange, SnpIdentity, SnpPolicy, TdxPolicy, ovmf, snp,
};

const MEMORY: u64 = 256 << 20;

/// Gives `target` each input of a fuzz target of that name.
fn replay(name: &str, target: impl Fn(Vec<u8>)) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(name);
    let inputs: Vec<_> = std::fs::read_dir(&corpus).unwrap().collect();
    assert!(inputs.len() > 20, "{} has only {} inputs", corpus.display(), inputs.len());
    for input in inputs {
        target(std::fs::read(input.unwrap().path()).unwrap());
    }
}

#[test]
fn ovmf_images() {
    let options = SnpOptions {
        profile: Profile::Qemu,
        vcpus: 2,
        cpu_signature: CpuSignature(0x00a0_0f11),
        policy: SnpPolicy { guest_policy: 0x3_0000, vmsa_features: 1 },
        kernel: None,
        identity: SnpIdentity::default(),
    };
    replay("launch_ovmf", |end| {
        // As the target does: what counts is at the end of whole pages.
        let mut image = vec![0; end.len().next_multiple_of(4096) - end.len()];
        image.extend(end);
        if let Ok(plan) = ovmf::snp_plan(&image.into(), &options) {
            let _ = snp::measure(&plan);
        }
    });
}

#[test]
fn tdvf_images_and_hobs() {
    let memory = hob::q35_memory(4 << 30).unwrap();
    replay("launch_tdvf", |image| {
        let _ = tdvf::plan(&image, &memory, 1, TdxPolicy::new(0));
    });
    replay("launch_hob", |list| {
        let _ = hob::read(&list, Gpa(0x80_9000));
    });
}

#[test]
fn igvm_files() {
    replay("launch_igvm", |bytes| {
        if let Ok(mut file) = IgvmFile::open(Cursor::new(bytes)) {
            let _ = measure_snp(&mut file, None, ZeroPages::Normal);
            let _ = measure_tdx(&mut file, None);
        }
    });
}

#[test]
fn kernels_lie_inside_memory_or_are_refused() {
    let memory = [MemoryRange { start: Gpa(0), bytes: MEMORY, kind: MemoryKind::Ram }];
    replay("launch_kernel", |file| {
        let Ok(kernel) = Kernel::parse(&file.into()) else { return };
        let boot = DirectBoot {
            kernel: &kernel,
            initrd: Some(&Bytes::from(vec![0; 5000])),
            cmdline: "console=ttyS0",
            memory: &memory,
            acpi: AcpiTables { start: Gpa(0xe_0000), bytes: vec![0; 64].into() },
            reset_code: &[0xf4],
        };
        if let Ok(plan) = boot.plan() {
            assert!(plan.imports.iter().all(|import| import.range.end() <= Gpa(MEMORY)));
        }
    });
}
