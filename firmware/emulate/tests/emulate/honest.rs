//! An honest host.

use casemate_firmware_logic::layout::{GRANULE, PAGE};
use casemate_launch::PlatformKind::{Plain, Snp, Tdx};
use casemate_launch::firmware::Flags;
use casemate_launch::loader_window::Payloads;
use casemate_launch::tdx::rtmr;

use crate::given;
use crate::harness::guest::{MEMORY, payloads, plan, plan_with};
use crate::harness::host::{Host, cpuid};
use crate::harness::machine::Machine;
use crate::harness::{End, run};

#[test]
fn the_kernel_starts_with_all_that_it_needs() {
    for platform in [Plain, Snp, Tdx] {
        for (memory, vcpus) in [(64 << 20, 1), (6 << 30, 4)] {
            let payloads = Payloads { memory, vcpus, ..payloads() };
            let run = run(&plan(platform, &payloads), Host { vcpus, ..Host::default() });
            assert_eq!(run.end, End::Kernel, "{platform:?}");
            given::check(&run, &payloads);
        }
    }
}

/// Of the window each byte is read once, so that nobody can change it between a check and a use; but
/// for the one by which the kernel file is placed, which is compared with the copy afterwards.
#[test]
fn the_window_is_read_once() {
    for platform in [Plain, Snp, Tdx] {
        let run = run(&plan(platform, &payloads()), Host::default());
        let kernel = 0x2000;
        assert_eq!(run.machine().read_again, [kernel + 0x1f1]);
    }
}

#[test]
fn registers_of_a_trust_domain_are_those_that_were_predicted() {
    let run = run(&plan(Tdx, &payloads()), Host::default());
    let [rtmr0, rtmr1, rtmr2] = rtmr::own_firmware(&payloads()).unwrap();
    assert_eq!(run.machine().rtmrs[..3], [rtmr0, rtmr1, rtmr2]);
}

#[test]
fn addresses_of_trust_domains_have_two_widths() {
    let run = run(&plan(Tdx, &payloads()), Host { address_bits: 48, ..Host::default() });
    assert_eq!(run.end, End::Kernel);
    given::check(&run, &payloads());
}

/// Caches that keep up with changes of encryption: nothing has to be read.
#[test]
fn all_memory_is_accepted_where_the_config_page_says_so() {
    let flags = Flags { accept_all: true, ..Flags::default() };
    for platform in [Snp, Tdx] {
        let encryption = [1 << 4 | 0b1011, Machine::C_BIT | 1 << 31, 0, 0];
        let cpuid = cpuid(&[(0x8000_001f, encryption)]);
        let host = Host { large: true, cpuid, ..Host::default() };
        let run = run(&plan_with(platform, flags, &payloads()), host);
        assert_eq!(run.end, End::Kernel, "{platform:?}");
        let missing = (0..MEMORY).step_by(4096).filter(|page| !run.machine().is_accepted(*page));
        assert_eq!(missing.count(), 0, "{platform:?}");
        assert!(!run.machine().is_accepted(MEMORY));
    }
}

/// Where the host has memory in large pages, one instruction accepts 512 small ones.
#[test]
fn large_pages_are_accepted_as_such() {
    for platform in [Snp, Tdx] {
        let run = run(&plan(platform, &payloads()), Host { large: true, ..Host::default() });
        assert_eq!(run.end, End::Kernel);
        given::check(&run, &payloads());
        let counts = run.machine().counts;
        let large = (counts.accepted - counts.acceptances) / (GRANULE / PAGE - 1);
        // The first granule, the kernel's three, the initrd's.
        assert_eq!(large, 5, "{counts:?}");
    }
}

/// Caches that do not keep up with changes of encryption: what is accepted is read first.
#[test]
fn accepted_pages_are_touched_where_they_must_be() {
    let untouched = |coherent: u32| {
        let encryption = [1 << 4 | 0b1011, Machine::C_BIT | coherent << 31, 0, 0];
        let cpuid = cpuid(&[(0x8000_001f, encryption)]);
        let run = run(&plan(Snp, &payloads()), Host { cpuid, ..Host::default() });
        assert_eq!(run.end, End::Kernel);
        given::untouched(&run)
    };
    assert!(untouched(1) > 1000);
    assert!(untouched(0) < 30, "pages of the launch and the work area: {}", untouched(0));
}

#[test]
fn a_busy_tdx_module_is_asked_again() {
    const BUSY: u64 = 0x8000_0200 << 32;
    let host = Host {
        tdcall: Box::new(|leaf, _, before, [status, rest @ ..]| {
            let busy = leaf == 6 && before % 3 != 0;
            let [rcx, rdx, r8, r9] = rest;
            [if busy { BUSY } else { status }, rcx, rdx, r8, r9]
        }),
        ..Host::default()
    };
    let run = run(&plan(Tdx, &payloads()), host);
    assert_eq!(run.end, End::Kernel);
    given::check(&run, &payloads());
}
