//! A host that has an exception or interrupt come, at any instruction.

use casemate_firmware_logic::fatal::Fatal;
use casemate_launch::PlatformKind::{self, Snp, Tdx};

use crate::harness::guest::{payloads, plan};
use crate::harness::host::Host;
use crate::harness::{End, run};

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

/// As long as there is no table of interrupts the guest ends at once, without a word; then, always
/// with the same.
fn check(ends: &[End]) {
    let trapped = ends.iter().position(|end| *end != End::Shutdown).unwrap();
    assert!(trapped < ends.len() / 4, "{trapped} of {} ended without a word", ends.len());
    for (number, end) in ends.iter().enumerate().skip(trapped) {
        assert_eq!(*end, End::Stopped(Fatal::Trap), "{number} of {}", ends.len());
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
