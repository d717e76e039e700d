//! A host that has an exception or interrupt come, at any instruction.

use casemate_firmware_logic::fatal::Fatal;
use casemate_firmware_logic::layout::{HANDOFF, KEPT_SIZE, WORK};
use casemate_launch::PlatformKind::{self, Snp, Tdx};
use casemate_launch::loader_window::Payloads;

use crate::harness::guest::{payloads, plan};
use crate::harness::host::Host;
use crate::harness::{End, MOST_INSTRUCTIONS, launch, run};

/// Instructions up to the kernel's first.
fn length(platform: PlatformKind) -> usize {
    let run = run(&plan(platform, &payloads()), Host { count: true, ..Host::default() });
    assert_eq!(run.end, End::Kernel);
    usize::try_from(run.machine().counts.steps).unwrap()
}

/// Has each of the vectors come at several instructions: how the guest ended, in order.
fn inject(platform: PlatformKind, vectors: &[u8], times: usize) -> Vec<End> {
    let (plan, length) = (plan(platform, &payloads()), length(platform));
    let at = |time: usize| 1 + length * time / times;
    let cases = (0..times).map(|time| (at(time), vectors[time % vectors.len()]));
    cases.map(|case| run(&plan, Host { inject: Some(case), ..Host::default() }).end).collect()
}

/// As long as there is no table of interrupts the guest ends at once, without a word; then, always with
/// the same; and again without a word while the firmware clears what it worked with.
fn check(ends: &[End]) {
    let count = ends.len();
    let trapped = ends.iter().position(|end| *end != End::Shutdown).unwrap();
    let cleared = ends.iter().rposition(|end| *end != End::Shutdown).unwrap();
    assert!(trapped < count / 4, "{trapped} of {count} ended without a word");
    assert!(count - cleared < count / 4, "the last after {cleared} of {count}");
    for (number, end) in ends.iter().enumerate().take(cleared + 1).skip(trapped) {
        assert_eq!(*end, End::Stopped(Fatal::Trap), "{number} of {count}");
    }
}

/// Without restricted injection a host can choose any vector (AMD64 APM volume 2, section 15.36.15).
#[test]
fn anything_may_come_to_an_snp_guest() {
    check(&inject(Snp, &[29, 2, 0, 3, 8, 13, 14, 18, 28, 30, 32, 0x80, 255], 60));
}

/// To a trust domain without interrupts enabled, only an NMI may.
#[test]
fn an_nmi_may_come_to_a_trust_domain() {
    check(&inject(Tdx, &[2], 20));
}

/// At each of the first instructions, and of the last: where tables of descriptors change.
#[test]
fn no_instruction_at_either_end_runs_on_tables_of_others() {
    for platform in [Snp, Tdx] {
        let (plan, length) = (plan(platform, &payloads()), length(platform));
        let clearing = (HANDOFF - WORK - KEPT_SIZE) / 8;
        let last = length - usize::try_from(clearing).unwrap();
        // The last are reached by running all that come before: fewer of them.
        let late = (last - 40..last + 10).step_by(5).chain((length - 20..length).step_by(3));
        for (at, vector) in (0..120).chain(late).zip([2, 29, 0xff].into_iter().cycle()) {
            let end = run(&plan, Host { inject: Some((at, vector)), ..Host::default() }).end;
            let stopped = matches!(end, End::Shutdown | End::Stopped(Fatal::Trap));
            assert!(stopped, "{platform:?}, vector {vector} at {at} of {length}: {end:?}");
        }
    }
}

/// The other vCPUs, from their first instruction on: at each place of their loops, before and after the
/// first one has made memory the guest's own and started the kernel.
#[test]
fn whatever_comes_to_a_waiting_vcpu_ends_the_guest() {
    for platform in [Snp, Tdx] {
        let payloads = Payloads { vcpus: 2, ..payloads() };
        let plan = plan(platform, &payloads);
        for first in [false, true] {
            let mut waiting = launch(&plan, Host { vcpus: 2, ..Host::default() });
            if first {
                waiting.start(&plan, 0);
                assert_eq!(waiting.go(MOST_INSTRUCTIONS), End::Kernel);
            }
            let places = (0..60).chain([200, 1000, 3000, 3001, 3002, 3003]);
            for (at, vector) in places.zip([0, 2, 13, 18, 29, 32, 255].into_iter().cycle()) {
                waiting.start(&plan, 1);
                assert_eq!(waiting.go(at), End::Running);
                waiting.raise(vector);
                let end = waiting.go(MOST_INSTRUCTIONS);
                assert_eq!(end, End::Shutdown, "{platform:?}, vector {vector} at {at}");
            }
        }
    }
}
