//! TDX measurements against independent calculators (`tests/data/vectors`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::sync::Arc;

use casemate_launch::linux::qemu_kernel;
use casemate_launch::tdvf::hob::{self, TdHob};
use casemate_launch::tdvf::{ATTRIBUTE_SEPT_VE_DISABLE, Tdvf, TdvfError, plan, td_hob};
use casemate_launch::tdx::rtmr::DirectBoot;
use casemate_launch::tdx::{PageOrder, manifest, mrtd};
use casemate_launch::{Digest384, LaunchPlan, TdxPolicy};
use casemate_test_support::vectors::{Inputs, all, folder};
use serde_json::Value;

const GIB: u64 = 1 << 30;

/// The input that a vector names; `None` if it cannot be had, which `inputs` reports.
fn input(inputs: &Inputs, vector: &Value, parameter: &str) -> Option<Arc<[u8]>> {
    inputs.get(vector["params"][parameter].as_str().unwrap()).unwrap()
}

fn plan_of(firmware: &[u8], memory: u64, vcpus: u32) -> LaunchPlan {
    plan(
        firmware,
        &hob::q35_memory(memory).unwrap(),
        vcpus,
        TdxPolicy::new(ATTRIBUTE_SEPT_VE_DISABLE),
    )
    .unwrap()
}

fn hob_of(firmware: &[u8], memory: u64) -> TdHob {
    td_hob(&Tdvf::parse(firmware).unwrap(), &hob::q35_memory(memory).unwrap()).unwrap()
}

fn page_order(vector: &Value) -> PageOrder {
    [PageOrder::PerPage, PageOrder::TwoPass]
        .into_iter()
        .find(|order| vector["params"]["page_order"] == order.as_str())
        .unwrap()
}

#[test]
fn mrtd_is_that_of_other_calculators() {
    let inputs = Inputs::open().unwrap();
    for vector in all("tdx-mrtd").unwrap() {
        let Some(firmware) = input(&inputs, &vector, "firmware") else { continue };
        let order = page_order(&vector);
        let plan = plan_of(&firmware, 2 * GIB, 1);
        assert_eq!(
            vector["expected"]["mrtd"],
            mrtd(&plan, order).unwrap().to_string(),
            "{}",
            vector["id"]
        );
        let manifest = manifest(&plan, order).unwrap();
        assert_eq!(manifest.ranges.last().unwrap().running_digest, manifest.measurement);
        assert_eq!(
            vector["expected"]["mrtd"],
            manifest.measurement.to_string(),
            "{}",
            vector["id"]
        );
    }
}

#[test]
fn neither_memory_nor_vcpus_are_in_mrtd() {
    let firmware = Inputs::open().unwrap().get("tiny-tdx").unwrap().unwrap();
    let of = |memory, vcpus| mrtd(&plan_of(&firmware, memory, vcpus), PageOrder::PerPage).unwrap();
    assert_eq!(of(GIB, 1), of(64 * GIB, 255));
}

#[test]
fn the_td_hob_is_the_one_that_qemu_makes() {
    let inputs = Inputs::open().unwrap();
    for vector in all("tdx-td-hob").unwrap() {
        let Some(firmware) = input(&inputs, &vector, "firmware") else { continue };
        let memory = vector["params"]["memory"].as_u64().unwrap();
        let hob = hob_of(&firmware, memory);
        assert_eq!(vector["expected"]["hob_len"], hob.bytes().len(), "{}", vector["id"]);
        assert_eq!(
            vector["expected"]["event_sha384"],
            hob.event_digest().to_string(),
            "{}",
            vector["id"]
        );
        assert_eq!(hob, hob_of(&firmware, memory));
        let section = Tdvf::parse(&firmware).unwrap().hob().unwrap().range;
        let total: u64 = hob::read(hob.bytes(), section.start())
            .unwrap()
            .iter()
            .map(|resource| resource.range.len())
            .sum();
        assert_eq!(total, memory, "{}", vector["id"]);
    }
}

#[test]
fn the_variable_store_is_an_event() {
    let inputs = Inputs::open().unwrap();
    for vector in all("tdx-cfv").unwrap() {
        let Some(firmware) = input(&inputs, &vector, "firmware") else { continue };
        let digest = Tdvf::parse(&firmware).unwrap().cfv_event_digest().unwrap();
        assert_eq!(vector["expected"]["event_sha384"], digest.to_string(), "{}", vector["id"]);
    }
}

#[test]
fn registers_of_a_direct_boot_are_those_of_other_calculators() {
    let inputs = Inputs::open().unwrap();
    for vector in all("tdx-rtmr-direct").unwrap() {
        let Some(kernel) = input(&inputs, &vector, "kernel") else { continue };
        let Some(initrd) = input(&inputs, &vector, "initrd") else { continue };
        let memory = vector["params"]["memory"].as_u64().unwrap();
        let patched = qemu_kernel::patch(&kernel, Some(initrd.len() as u64), memory).unwrap();
        let boot = DirectBoot {
            kernel: &patched,
            initrd: Some(Digest384::of(&initrd)),
            command_line: vector["params"]["cmdline"].as_str().unwrap(),
        };
        assert_eq!(
            vector["expected"]["rtmr1"],
            boot.rtmr1().unwrap().to_string(),
            "{}",
            vector["id"]
        );
        assert_eq!(vector["expected"]["rtmr2"], boot.rtmr2().to_string(), "{}", vector["id"]);
    }
}

/// QEMU before 10.2 patches the kernel's header, later versions do not. The values are those of
/// another calculator for a guest of 4 GiB without an initrd.
#[test]
fn the_kernel_counts_as_the_firmware_gets_it() {
    let kernel = std::fs::read(folder().join("inputs/efi-stub-tiny.bin")).unwrap();
    let rtmr1 = |kernel: &[u8]| {
        let boot = DirectBoot { kernel, initrd: None, command_line: "console=ttyS0" };
        boot.rtmr1().unwrap().to_string()
    };
    let patched = qemu_kernel::patch(&kernel, None, 4 << 30).unwrap();
    assert_eq!(
        rtmr1(&patched),
        "b80fd58128a9347bf150c7b7c06b70d8666729f4d94a7b9c1623a501104e951a\
         5792320a5902b609b7408a785c5cd8e2"
    );
    assert_eq!(
        rtmr1(&kernel),
        "bd294d4807ef103729975688db8dbbd98b1ba4c59a929a15d21a9a54a891485d\
         fecb1a300f8d2a41ddfa1c3a11d2435d"
    );
}

/// The code half of a firmware names bytes that are in the other file.
#[test]
fn code_without_its_variable_store_is_refused() {
    let inputs = Inputs::open().unwrap();
    let Some(firmware) = inputs.get("ovmf-sid-code4m").unwrap() else { return };
    let error = Tdvf::parse(&firmware).unwrap_err();
    assert!(matches!(error, TdvfError::DataOutOfImage { .. }), "{error}");
}

/// Every byte of the metadata, changed, is read or refused; none of it panics.
#[test]
fn changed_metadata_is_read_or_refused() {
    let firmware = Inputs::open().unwrap().get("tiny-tdx").unwrap().unwrap();
    let at = firmware.windows(4).position(|bytes| bytes == b"TDVF").unwrap();
    let mut refused = 0;
    for offset in at..at + 16 + 32 * 4 {
        for value in [0, 1, 0x7f, 0xff] {
            let mut changed = firmware.to_vec();
            changed[offset] = value;
            refused += usize::from(Tdvf::parse(&changed).is_err());
        }
    }
    assert!(refused > 100, "{refused}");
}
