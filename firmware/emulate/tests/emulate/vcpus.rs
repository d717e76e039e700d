//! The other vCPUs: those of a trust domain wait in the image until the kernel wakes them, those of an
//! SEV-SNP guest until the host gives them the state that the kernel made.

use casemate_firmware_logic::layout::{IMAGE, KERNEL, MAILBOX};
use casemate_launch::PlatformKind::{Snp, Tdx};
use casemate_launch::loader_window::Payloads;
use unicorn_engine::RegisterX86;

use crate::harness::guest::{payloads, plan};
use crate::harness::host::Host;
use crate::harness::{End, MOST_INSTRUCTIONS, Run, launch};

/// More than what a waiting vCPU needs from its start to its loop.
const SOME: usize = 1000;

/// The mailbox (ACPI 6.5, table 5.45): command, APIC identifier, vector.
fn command(run: &mut Run, command: u16, apic_id: u32, vector: u64) {
    run.write(MAILBOX + 8, &vector.to_le_bytes());
    run.write(MAILBOX + 4, &apic_id.to_le_bytes());
    run.write(MAILBOX, &command.to_le_bytes());
}

/// Whether the command in the mailbox was heard.
fn heard(run: &Run) -> bool {
    run.memory(MAILBOX, 2) == [0, 0]
}

#[test]
fn a_vcpu_of_a_trust_domain_waits_for_page_tables_and_then_for_the_kernel() {
    const WAKEUP: u16 = 1;
    const TEST: u16 = 2;
    let plan = plan(Tdx, &Payloads { vcpus: 2, ..payloads() });
    let mut run = launch(&plan, Host { vcpus: 2, ..Host::default() });
    // It starts before the first one does.
    run.start(&plan, 1);
    assert_eq!(run.go(SOME), End::Running);
    assert!(run.register(RegisterX86::RIP) >= IMAGE);
    run.start(&plan, 0);
    assert_eq!(run.go(MOST_INSTRUCTIONS), End::Kernel);

    run.start(&plan, 1);
    assert_eq!(run.go(SOME), End::Running);
    assert_eq!(run.machine().counts.waits, 0, "the mailbox is looked at often");
    assert_eq!(run.go(10 * SOME), End::Running);
    assert_ne!(run.machine().counts.waits, 0, "but not all the time");
    let vector = KERNEL + 0x200;
    for (other, id) in [(WAKEUP, 0), (WAKEUP, 2), (3, 1), (u16::MAX, 1)] {
        command(&mut run, other, id, vector);
        assert_eq!(run.go(SOME), End::Running, "command {other} to {id}");
        assert!(!heard(&run), "command {other} to {id}");
    }
    command(&mut run, TEST, 1, vector);
    assert_eq!(run.go(SOME), End::Running);
    assert!(heard(&run));
    command(&mut run, WAKEUP, 1, vector);
    assert_eq!(run.go(SOME), End::Kernel);
    assert!(heard(&run));
    assert_ne!(run.register(RegisterX86::CR4) & 1 << 6, 0, "machine checks stay enabled");
}

/// It does nothing but ask to be held, before there is any memory of the guest's own.
#[test]
fn a_vcpu_of_an_snp_guest_asks_to_be_held() {
    let plan = plan(Snp, &Payloads { vcpus: 2, ..payloads() });
    let mut run = launch(&plan, Host::default());
    run.start(&plan, 1);
    assert_eq!(run.go(SOME), End::Running);
    let counts = run.machine().counts;
    assert!(counts.holds > 10 && counts.holds == counts.exits, "{counts:?}");
}
