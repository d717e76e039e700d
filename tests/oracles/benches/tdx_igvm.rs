//! How long MRTDs and IGVM files take, as ratios to SHA-384 of the same bytes on one core and to
//! the `igvm` crate, and how much memory a large IGVM file needs.
//!
//! Prints one JSON object: medians in milliseconds, peaks in MiB. All measurements that a ratio is
//! made of take turns in one run, so that noise meets them alike.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on must stop")]

#[path = "../../../vmm/launch/benches/common/mod.rs"]
mod common;

use std::fs::File;
use std::hint::black_box;
use std::path::Path;

use casemate_launch::igvm::{IgvmFile, ZeroPages, export};
use casemate_launch::measure::igvm::{measure_snp, measure_tdx};
use casemate_launch::tdvf::{hob, plan};
use casemate_launch::tdx::{PageOrder, mrtd};
use casemate_launch::{
    Contents, Digest384, Gpa, GpaRange, Import, LaunchPlan, PageKind, Policy, SnpIdentity,
    SnpPolicy, TdxPolicy,
};
use casemate_test_support::vectors::Inputs;
use common::medians;
use ring::digest::{SHA384, digest};

const MIB: usize = 1 << 20;
/// Within how much of the bare hashing a measurement must be.
const BUDGET: f64 = 1.2;
/// Asks this program to measure one file and print its peak memory: who does it, and the file.
const PEAK: &str = "--peak";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == PEAK) {
        println!("{:.1}", peak(&arguments[at + 1], Path::new(&arguments[at + 2])));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (small, large) = (folder.path().join("8.igvm"), folder.path().join("64.igvm"));
    std::fs::write(&small, igvm_file(8 * MIB)).unwrap();
    let bytes = igvm_file(64 * MIB);
    std::fs::write(&large, &bytes).unwrap();
    let snp = igvm_snp(&large, &bytes);
    let tdx = igvm_tdx(&large);
    println!(
        "{{{}, \"igvm_snp_64_mib\": {snp}, \"igvm_tdx_64_mib\": {tdx}, \
         \"igvm_peak_mib\": {{\"casemate_8_mib\": {}, \"casemate_64_mib\": {}, \
         \"igvm_crate_64_mib\": {}}}}}",
        mrtd_of_ovmf(),
        child("casemate", &small),
        child("casemate", &large),
        child("crate", &large),
    );
}

/// MRTD of a 4 MiB OVMF, and SHA-384 of the very bytes that MRTD is a digest of.
fn mrtd_of_ovmf() -> String {
    let firmware = Inputs::open().unwrap().get("ovmf-sid-inteltdx").unwrap();
    let Some(firmware) = firmware else {
        return "\"mrtd_ovmf_4_mib\": \"not run: the firmware cannot be had\"".to_owned();
    };
    let memory = hob::q35_memory(2 << 30).unwrap();
    let plan_of = || plan(&firmware, &memory, 1, TdxPolicy::new(0)).unwrap();
    let stream = stream(&plan_of());
    let expected = mrtd(&plan_of(), PageOrder::PerPage).unwrap();
    let [floor, ours] =
        medians([&mut || assert_eq!(Digest384(sha384(&stream)), expected), &mut || {
            assert_eq!(mrtd(&plan_of(), PageOrder::PerPage).unwrap(), expected);
        }]);
    format!("\"mrtd_ovmf_4_mib\": {}", line(ours, floor, None))
}

fn igvm_snp(path: &Path, bytes: &[u8]) -> String {
    let expected = casemate(path);
    let pages = &bytes[bytes.len() - 64 * MIB..];
    let [floor, ours, theirs] = medians([
        &mut || {
            for page in pages.chunks(4096) {
                black_box(sha384(page));
                black_box(sha384(&page[..0x70]));
            }
        },
        &mut || assert_eq!(casemate(path), expected),
        &mut || assert_eq!(igvm_crate(path), expected),
    ]);
    line(ours, floor, Some(theirs))
}

fn igvm_tdx(path: &Path) -> String {
    let measure = || measure_tdx(&mut IgvmFile::open(File::open(path).unwrap()).unwrap(), None);
    // Every page, 256 bytes at a time, with a record of 128 for each, and one for the page.
    let stream = vec![0x5a_u8; 64 * MIB + 64 * MIB / 256 * 128 + 64 * MIB / 4096 * 128];
    let [floor, ours] = medians([
        &mut || {
            black_box(sha384(&stream));
        },
        &mut || {
            black_box(measure().unwrap());
        },
    ]);
    line(ours, floor, None)
}

fn line(ours: f64, floor: f64, igvm_crate: Option<f64>) -> String {
    let ratio = ours / floor;
    let other = igvm_crate.map_or(String::new(), |time| {
        format!(", \"igvm_crate_ms\": {time:.2}, \"ratio_to_igvm_crate\": {:.3}", ours / time)
    });
    format!(
        "{{\"ms\": {ours:.2}, \"bare_sha384_ms\": {floor:.2}, \"ratio\": {ratio:.3}, \
         \"budget\": {BUDGET}, \"within_budget\": {}{other}}}",
        ratio <= BUDGET
    )
}

fn sha384(bytes: &[u8]) -> [u8; 48] {
    digest(&SHA384, bytes).as_ref().try_into().unwrap()
}

/// What MRTD is a digest of (Intel TDX module ABI, TDH.MEM.PAGE.ADD and TDH.MR.EXTEND).
fn stream(plan: &LaunchPlan) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut record = |operation: &[u8], gpa: u64, bytes: &[u8]| {
        let start = stream.len();
        stream.extend(operation);
        stream.resize(start + 16, 0);
        stream.extend(gpa.to_le_bytes());
        stream.resize(start + 128, 0);
        stream.extend(bytes);
    };
    for import in &plan.imports {
        for (index, gpa) in import.range.page_addresses().enumerate() {
            record(b"MEM.PAGE.ADD", gpa.0, &[]);
            if let (PageKind::Normal, Contents::Bytes(bytes)) = (import.kind, &import.contents) {
                let page = &bytes[index * 4096..][..4096];
                for (chunk, offset) in page.chunks(256).zip((0..).step_by(256)) {
                    record(b"MR.EXTEND", gpa.0 + offset, chunk);
                }
            }
        }
    }
    stream
}

/// A file for SEV-SNP and TDX whose pages are all different.
fn igvm_file(size: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let contents: Vec<u8> = (0..size / 8)
        .flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_le_bytes()
        })
        .collect();
    let snp = LaunchPlan {
        imports: vec![Import {
            range: GpaRange::from_bytes(Gpa(0x100_0000), size as u64).unwrap(),
            kind: PageKind::Normal,
            contents: Contents::Bytes(contents.into()),
            tag: "benchmark",
        }],
        vcpus: Vec::new(),
        policy: Policy::Snp(SnpPolicy { guest_policy: 0x3_0000, vmsa_features: 1 }),
        identity: SnpIdentity::default(),
    };
    let tdx = LaunchPlan { policy: Policy::Tdx(TdxPolicy::new(0)), ..snp.clone() };
    export(&[snp, tdx]).unwrap()
}

fn casemate(path: &Path) -> Digest384 {
    let mut file = IgvmFile::open(File::open(path).unwrap()).unwrap();
    measure_snp(&mut file, None, ZeroPages::Normal).unwrap().file
}

fn igvm_crate(path: &Path) -> Digest384 {
    let bytes = std::fs::read(path).unwrap();
    let file = igvm::IgvmFile::new_from_binary(&bytes, None).unwrap();
    let (headers, directives) = (file.initializations(), file.directives());
    Digest384(igvm::measurement::generate_snp_measurement(headers, directives, 1).unwrap())
}

/// The peak memory of this program after measuring a file, in MiB.
fn peak(who: &str, path: &Path) -> f64 {
    black_box(if who == "casemate" { casemate(path) } else { igvm_crate(path) });
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// The same, in a program of its own.
fn child(who: &str, path: &Path) -> String {
    let own = std::env::current_exe().unwrap();
    let output = std::process::Command::new(own).args([PEAK, who]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
