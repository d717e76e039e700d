//! Hosts of trust domains. The TDX module answers, and it is trusted; a host chooses what it makes it
//! answer.

use casemate_firmware_logic::fatal::Fatal;
use casemate_firmware_logic::layout::{HANDOFF, KERNEL, SECRETS};
use casemate_launch::PlatformKind::Tdx;

use crate::harness::guest::{MEMORY, payloads, plan};
use crate::harness::host::Host;
use crate::harness::{End, run};
use crate::{Attack, attack, change_image};

const INFO: u64 = 1;
const EXTEND: u64 = 2;
const ACCEPT: u64 = 6;

/// The module's answer to a leaf, from a page on or any, is an error.
fn fail(host: &mut Host, leaf: u64, page: Option<u64>, status: u64) {
    host.tdcall = Box::new(move |asked, rcx, _, mut answer| {
        if asked == leaf && page.is_none_or(|page| rcx & !0xfff == page) {
            answer[0] = status;
        }
        answer
    });
}

#[test]
fn a_domain_that_is_not_protected() {
    const SEPT_VE_DISABLE: u64 = 1 << 28;
    const DEBUG: u64 = 1;
    let attacks: [Attack; 7] = [
        (Fatal::Attributes, |host| host.attributes = 0),
        (Fatal::Attributes, |host| host.attributes = DEBUG),
        (Fatal::Attributes, |host| host.attributes = DEBUG | SEPT_VE_DISABLE),
        (Fatal::Machine, |host| host.vcpus = 2),
        (Fatal::Machine, |host| host.vcpus = 0),
        (Fatal::Platform, |host| fail(host, INFO, None, 0xc000_0100 << 32)),
        (Fatal::Platform, |host| host.cpuid_signature = *b"KVMKVMKVM\0\0\0"),
    ];
    attack(Tdx, attacks);
}

#[test]
fn addresses_of_an_impossible_width() {
    let host = Host {
        tdcall: Box::new(|leaf, _, _, mut answer| {
            if leaf == INFO {
                answer[1] = 50;
            }
            answer
        }),
        ..Host::default()
    };
    assert_eq!(run(&plan(Tdx, &payloads()), host).end, End::Stopped(Fatal::Platform));
}

/// A page is removed and another added, or augmented, before the guest accepts it.
#[test]
fn pages_that_are_accepted_already() {
    const ALREADY: u64 = 0x0000_0b0a << 32;
    let attacks: [fn(&mut Host); 6] = [
        |host| fail(host, ACCEPT, Some(0), ALREADY),
        |host| fail(host, ACCEPT, Some(SECRETS), ALREADY),
        |host| fail(host, ACCEPT, Some(HANDOFF), ALREADY),
        |host| fail(host, ACCEPT, Some(KERNEL), ALREADY),
        |host| fail(host, ACCEPT, Some(MEMORY - 0x1000), ALREADY), // the initrd's
        |host| {
            host.large = true;
            fail(host, ACCEPT, Some(KERNEL), ALREADY);
        },
    ];
    attack(Tdx, attacks.map(|change| (Fatal::AcceptedTwice, change)));
}

#[test]
fn pages_that_cannot_be_accepted() {
    let attacks: [fn(&mut Host); 6] = [
        |host| fail(host, ACCEPT, Some(KERNEL), 0xc000_0100 << 32),
        // Neither as a large page nor as a small one.
        |host| fail(host, ACCEPT, Some(KERNEL), 0xc000_0b0b << 32),
        |host| fail(host, ACCEPT, None, u64::MAX),
        |host| fail(host, ACCEPT, Some(HANDOFF), 0x8000_0203 << 32),
        |host| host.memory = 0,
        |host| host.memory = 32 << 20,
    ];
    attack(Tdx, attacks.map(|change| (Fatal::Accept, change)));
}

#[test]
fn registers_that_cannot_be_extended() {
    let attacks: [Attack; 1] = [(Fatal::Measure, |host| fail(host, EXTEND, None, 1 << 63))];
    attack(Tdx, attacks);
}

/// Such an image has another measurement; it stops nevertheless.
#[test]
fn a_config_page_that_says_something_unknown() {
    for at in [0, 8, 0x11, 0x24, 0xfff] {
        let mut plan = plan(Tdx, &payloads());
        change_image(&mut plan, |image| image[at] ^= 2);
        assert_eq!(run(&plan, Host::default()).end, End::Stopped(Fatal::Config), "{at:#x}");
    }
    let mut plan = plan(Tdx, &payloads());
    change_image(&mut plan, |image| image[0x0c] = 2);
    assert_eq!(run(&plan, Host::default()).end, End::Shutdown, "measured as an SEV-SNP guest");
}

#[test]
fn a_guest_that_gave_up_and_is_run_again() {
    let run = run(&plan(Tdx, &payloads()), Host { resumes: 5, attributes: 0, ..Host::default() });
    assert_eq!(run.end, End::Stopped(Fatal::Attributes));
    assert_eq!(run.machine().counts.stops, 6);
}
