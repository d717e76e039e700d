//! Pages that are new to the guest hold what their host chose: noise, bytes that mean something, or what a
//! page of the guest held that lay there before. The kernel gets nothing of it.

use casemate_firmware_logic::fatal::Fatal;
use casemate_firmware_logic::layout::{HANDOFF, KEPT_SIZE, KERNEL, PAGE, SECRETS, WORK};
use casemate_launch::PlatformKind::{Plain, Snp, Tdx};
use casemate_launch::firmware::Flags;
use casemate_launch::loader_window::Payloads;

use crate::handed_over::{Guest, compare, image_is_unchanged};
use crate::harness::guest::{self, plan, plan_with};
use crate::harness::host::{Fresh, Host};
use crate::harness::{End, run};
use crate::{Shared, change, raise_limits};

/// As little memory as these guests can have: all of it is accepted and compared, many times.
fn payloads() -> Payloads {
    Payloads { memory: 24 << 20, ..guest::payloads() }
}

const EAGER: Flags = Flags { unmeasured_payload: false, accept_all: true, log: false };

#[test]
fn all_that_is_handed_over_is_what_was_computed() {
    for platform in [Plain, Snp, Tdx] {
        for flags in [Flags::default(), EAGER] {
            for (fresh, vcpus) in [(Fresh::Noise, 1), (Fresh::Byte(0xff), 7), (Fresh::Byte(0), 2)] {
                let payloads = Payloads { vcpus, ..payloads() };
                let plan = plan_with(platform, flags, &payloads);
                let run = run(&plan, Host { fresh, vcpus, ..Host::default() });
                assert_eq!(run.end, End::Kernel, "{platform:?}, {flags:?}, {fresh:?}");
                compare(&run, &Guest::of(&payloads, flags));
                image_is_unchanged(&run, &plan);
            }
        }
    }
}

/// The host page of each page that the firmware has at its start comes back in the place of every page
/// that the firmware accepts later, with its contents: among them the copy of the window's header, which
/// are bytes of the host's, and the page tables.
#[test]
fn pages_of_the_guest_that_come_back_elsewhere_show_nothing() {
    for flags in [Flags::default(), EAGER] {
        let payloads = payloads();
        let plan = plan_with(Snp, flags, &payloads);
        // Secrets, CPUID, mailbox, a page table, the copy of the header, other state, the stack.
        let state = WORK + KEPT_SIZE;
        let pages =
            [SECRETS, SECRETS + PAGE, WORK, WORK + PAGE, state, state + PAGE, HANDOFF - PAGE];
        for page in pages {
            let fresh = Fresh::MovedFrom(page);
            let run = run(&plan, Host { fresh, ..Host::default() });
            assert_eq!(run.end, End::Kernel, "{page:#x}");
            compare(&run, &Guest::of(&payloads, flags));
        }
    }
}

/// Memory above 4 GiB has no page tables at first, and is mapped a piece at a time to be accepted.
#[test]
fn high_memory_is_cleared_as_well() {
    const GIB: u64 = 1 << 30;
    for platform in [Snp, Tdx] {
        let payloads = payloads();
        let mut plan = plan_with(platform, EAGER, &payloads);
        raise_limits(&mut plan);
        let high = (4 * GIB + (6 << 20), 4 * GIB + (9 << 20) + PAGE);
        change(&mut plan, Shared::Header, |header| {
            header[0x10] = 2;
            header[0x58..0x60].copy_from_slice(&high.0.to_le_bytes());
            header[0x60..0x68].copy_from_slice(&(high.1 - high.0).to_le_bytes());
        });
        for large in [false, true] {
            let run = run(&plan, Host { large, ..Host::default() });
            assert_eq!(run.end, End::Kernel, "{platform:?}");
            let memory = vec![(0, payloads.memory), high];
            for page in (high.0..high.1).step_by(4096) {
                assert!(run.machine().is_accepted(page), "{page:#x}");
            }
            compare(&run, &Guest { payloads: &payloads, flags: EAGER, memory });
        }
    }
}

/// What the firmware worked with is gone when the kernel starts, the copies of the host's bytes first.
#[test]
fn nothing_of_the_window_is_left_but_the_payloads() {
    for platform in [Plain, Snp, Tdx] {
        let run = run(&plan(platform, &payloads()), Host::default());
        assert_eq!(run.end, End::Kernel);
        let rest = run.memory(WORK + KEPT_SIZE, HANDOFF - WORK - KEPT_SIZE);
        assert!(rest.iter().all(|byte| *byte == 0), "{platform:?}");
        let area = run.memory(0, KERNEL);
        let found = area.windows(8).position(|bytes| bytes == b"CSMWINDW");
        assert_eq!(found, None, "{platform:?}");
    }
}

/// A limit that is measured: the host says that there is more, or more vCPUs.
#[test]
fn no_host_says_more_than_was_configured() {
    for (at, value) in [(0x0c, 2_u64), (0x50, payloads().memory + PAGE)] {
        for platform in [Snp, Tdx] {
            let mut plan = plan(platform, &payloads());
            change(&mut plan, Shared::Header, |header| {
                let size = if at == 0x0c { 4 } else { 8 };
                header[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
            });
            let end = run(&plan, Host { vcpus: 2, ..Host::default() }).end;
            assert_eq!(end, End::Stopped(Fatal::Machine), "{platform:?}, {at:#x}");
        }
    }
}
