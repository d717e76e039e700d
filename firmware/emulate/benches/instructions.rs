//! What it takes from the reset vector to the kernel, counted by the emulated processor: instructions,
//! launch pages, acceptances, exits. Prints one JSON object; a table goes to standard error.
//!
//! Payloads are hashed and copied byte for byte, so that two kernels of different sizes tell what a
//! byte takes. The rest is what does not depend on payloads.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on must stop")]

#[path = "../harness/mod.rs"]
#[allow(dead_code, reason = "tests use more of it")]
mod harness;

use casemate_firmware_logic::window::HEADER_SIZE;
use casemate_launch::loader_window::Payloads;
use casemate_launch::ovmf::{self, SnpOptions};
use casemate_launch::profile::Profile;
use casemate_launch::snp::CpuSignature;
use casemate_launch::tdvf::{self, hob};
use casemate_launch::{LaunchPlan, PageKind, PlatformKind, SnpIdentity, SnpPolicy, TdxPolicy};
use casemate_test_support::vectors::Inputs;
use harness::host::Host;
use harness::machine::Counts;
use harness::{End, guest, run};

/// Of the two kernels, in bytes.
const SIZES: [usize; 2] = [128 << 10, 640 << 10];

/// Instructions outside of hashing and copying, and pages of the launch beside VMSAs, at most.
const MOST_INSTRUCTIONS: f64 = 2e6;
const MOST_PAGES: u64 = 24;

fn main() {
    let mut rows = vec![
        ours("plain", PlatformKind::Plain, false),
        ours("snp", PlatformKind::Snp, false),
        ours("snp_large_pages", PlatformKind::Snp, true),
        ours("tdx", PlatformKind::Tdx, false),
        ours("tdx_large_pages", PlatformKind::Tdx, true),
    ];
    let inputs = Inputs::open().unwrap();
    rows.push(theirs(
        "ovmf_snp",
        inputs.get("ovmf-sid-amdsev").unwrap().map(|image| {
            let options = SnpOptions {
                profile: Profile::Qemu,
                vcpus: 1,
                cpu_signature: CpuSignature(0x00a0_0f11),
                policy: SnpPolicy { guest_policy: 0x3_0000, vmsa_features: 1 },
                kernel: None,
                identity: SnpIdentity::default(),
            };
            ovmf::snp_plan(&image, &options).unwrap()
        }),
    ));
    rows.push(theirs(
        "ovmf_tdx",
        inputs.get("ovmf-sid-inteltdx").unwrap().map(|image| {
            let memory = hob::q35_memory(256 << 20).unwrap();
            tdvf::plan(&image, &memory, 1, TdxPolicy::new(0)).unwrap()
        }),
    ));
    println!("{{\"firmware_image\": {{{}}}}}", rows.join(", "));
}

/// Pages that enter the guest's memory before it runs, and those of them that are measured.
fn pages(plan: &LaunchPlan) -> (u64, u64) {
    let count = |kinds: &[PageKind]| {
        let imports = plan.imports.iter().filter(|import| kinds.contains(&import.kind));
        imports.map(|import| import.range.pages().0).sum()
    };
    use PageKind::{Cpuid, Normal, Secrets, Unmeasured, Zero};
    (count(&[Cpuid, Normal, Secrets, Unmeasured, Zero]), count(&[Normal]))
}

fn counts(platform: PlatformKind, large: bool, size: usize) -> (Counts, LaunchPlan, usize) {
    let payloads = Payloads { kernel: guest::kernel(size).into(), ..guest::payloads() };
    let plan = guest::plan(platform, &payloads);
    let run = run(&plan, Host { count: true, large, ..Host::default() });
    assert_eq!(run.end, End::Kernel);
    // A trust domain has a digest of the window's header, too.
    let header = if platform == PlatformKind::Tdx { HEADER_SIZE } else { 0 };
    let bytes = header + payloads.kernel.len() + payloads.initrd.len() + payloads.cmdline.len();
    (run.machine().counts, plan, bytes)
}

fn ours(name: &str, platform: PlatformKind, large: bool) -> String {
    let [(small, plan, bytes), (big, ..)] = SIZES.map(|size| counts(platform, large, size));
    let a_byte = (big.instructions - small.instructions) as f64 / (SIZES[1] - SIZES[0]) as f64;
    let constant = small.instructions as f64 - a_byte * bytes as f64;
    let (pages, measured) = pages(&plan);
    // No page is accepted by way of an exit: these are all that there are.
    let per_exit = small.accepted.checked_div(small.exits);
    let per_exit = per_exit.map_or("null".to_owned(), |pages| pages.to_string());
    eprintln!(
        "| {name} | {constant:.0} instructions, {a_byte:.1} a byte | {pages} launch pages, {measured} \
         measured | {} accepted by {} | {} exits |",
        small.accepted, small.acceptances, small.exits
    );
    format!(
        "\"{name}\": {{\"instructions\": {constant:.0}, \"instructions_a_byte\": {a_byte:.1}, \
         \"budget\": {MOST_INSTRUCTIONS:.0}, \"launch_pages\": {pages}, \"measured_pages\": {measured}, \
         \"budget_pages\": {MOST_PAGES}, \"within_budget\": {}, \"accepted_pages\": {}, \
         \"acceptances\": {}, \"exits\": {}, \"accepted_per_exit\": {per_exit}}}",
        constant < MOST_INSTRUCTIONS && pages <= MOST_PAGES,
        small.accepted,
        small.acceptances,
        small.exits,
    )
}

/// Of OVMF, the launch alone: beyond it, it talks to devices, of which the emulated machine has none.
fn theirs(name: &str, plan: Option<LaunchPlan>) -> String {
    let Some(plan) = plan else {
        return format!("\"{name}\": \"not run: the firmware cannot be had\"");
    };
    let (pages, measured) = pages(&plan);
    eprintln!("| {name} | not run: it needs devices | {pages} launch pages, {measured} measured |");
    format!(
        "\"{name}\": {{\"instructions\": \"not run: it needs devices\", \"launch_pages\": {pages}, \
         \"measured_pages\": {measured}}}"
    )
}
