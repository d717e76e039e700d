//! Hosts of SEV-SNP guests: the GHCB MSR protocol, PVALIDATE, the CPUID page.

use casemate_firmware_logic::fatal::Fatal;
use casemate_firmware_logic::layout::{GRANULE, HANDOFF, KERNEL, WORK};
use casemate_launch::PlatformKind::Snp;
use proptest::prelude::*;

use crate::harness::guest::{MEMORY, payloads, plan};
use crate::harness::host::{Host, cpuid};
use crate::harness::machine::Machine;
use crate::harness::{End, run};
use crate::{Attack, attack, change_image};

const INFO: u64 = 0x002;
const FEATURES: u64 = 0x080;

#[test]
fn a_host_that_breaks_the_protocol() {
    fn answer(host: &mut Host, to: u64, answer: impl Fn(u64) -> u64 + 'static) {
        let asked = move |request: u64| request & 0xfff == to;
        host.msr =
            Box::new(move |request, honest| if asked(request) { answer(honest) } else { honest });
    }
    let attacks: [fn(&mut Host); 14] = [
        |host| answer(host, INFO, |_| 0),
        |host| answer(host, INFO, |_| u64::MAX),
        |host| answer(host, INFO, |_| INFO), // the request, unanswered
        |host| answer(host, INFO, |honest| honest & !0xfff | 0x007), // another answer
        |host| answer(host, INFO, |honest| honest & !(0xffff << 48) | 1 << 48), // up to version 1
        |host| answer(host, INFO, |honest| honest & !(0xffff << 32) | 3 << 32), // from version 3 on
        |host| answer(host, INFO, |honest| honest ^ 1 << 24), // another C-bit
        |host| answer(host, INFO, |honest| honest & !(0xff << 24)), // no C-bit
        |host| answer(host, FEATURES, |_| 0),
        |host| answer(host, FEATURES, |_| FEATURES),
        |host| answer(host, FEATURES, |honest| honest & !0xfff | 0x001),
        |host| answer(host, FEATURES, |_| 0x081), // none
        |host| answer(host, FEATURES, |honest| honest ^ 1 << 12), // no SEV-SNP
        |host| answer(host, FEATURES, |honest| honest ^ 2 << 12), // vCPUs cannot be created
    ];
    attack(Snp, attacks.map(|change| (Fatal::Hypervisor, change)));
}

/// Somebody else's code is at VMPL0.
#[test]
fn another_privilege_level() {
    let attacks: [fn(&mut Host); 2] = [|host| host.vmpl = 1, |host| host.vmpl = 3];
    attack(Snp, attacks.map(|change| (Fatal::Vmpl, change)));
}

/// Measured to be the image that logs what it does, which this one is not.
#[test]
fn the_other_image() {
    let mut plan = plan(Snp, &payloads());
    change_image(&mut plan, |image| image[0x10] ^= 1 << 2);
    assert_eq!(run(&plan, Host::default()).end, End::Stopped(Fatal::Config));
}

/// A page is taken away, and another put in its place, before the guest accepts it.
#[test]
fn pages_that_are_accepted_already() {
    fn already(host: &mut Host, page: u64) {
        host.validate =
            Box::new(move |address, _, honest| if address == page { (0, true) } else { honest });
    }
    let attacks: [fn(&mut Host); 8] = [
        |host| already(host, WORK),
        |host| already(host, WORK + 0x5000),
        |host| already(host, 0),
        |host| already(host, HANDOFF),
        |host| already(host, KERNEL - 0x1000),
        |host| already(host, KERNEL),
        |host| already(host, MEMORY - 0x1000), // the initrd's
        |host| {
            host.large = true;
            already(host, KERNEL);
        },
    ];
    attack(Snp, attacks.map(|change| (Fatal::AcceptedTwice, change)));
}

#[test]
fn pages_that_cannot_be_accepted() {
    fn fail(host: &mut Host, page: u64, result: u32) {
        host.validate = Box::new(
            move |address, _, honest| {
                if address == page { (result, false) } else { honest }
            },
        );
    }
    let attacks: [fn(&mut Host); 8] = [
        |host| fail(host, WORK, 1),
        |host| fail(host, WORK, 6),
        |host| fail(host, HANDOFF, 1),
        |host| fail(host, KERNEL, 2),
        |host| fail(host, KERNEL, u32::MAX),
        |host| fail(host, KERNEL, 6), // no large page, and then no small one
        |host| host.memory = 0,       // there is nothing where the window says that there is
        |host| host.memory = 32 << 20,
    ];
    attack(Snp, attacks.map(|change| (Fatal::Accept, change)));
}

/// Of the CPUID page, which the AMD firmware checks for some of what it says.
#[test]
fn a_cpuid_page_that_is_none() {
    const LEAF: u32 = 0x8000_001f;
    const SNP: u32 = 1 << 4;
    fn page(host: &mut Host, leaf: u32, eax: u32, ebx: u32) {
        host.cpuid = cpuid(&[(leaf, [eax, ebx, 0, 0])]);
    }
    fn count(host: &mut Host, count: u32) {
        host.cpuid[..4].copy_from_slice(&count.to_le_bytes());
    }
    /// Puts bytes into an entry that is there: leaves 0, 1, 7 and the one of encryption.
    fn put(host: &mut Host, entry: usize, at: usize, bytes: &[u8]) {
        host.cpuid[16 + 48 * entry + at..][..bytes.len()].copy_from_slice(bytes);
    }
    /// Another entry behind these, a copy of one of them.
    fn again(host: &mut Host, entry: usize) {
        let copy = host.cpuid[16 + 48 * entry..][..48].to_vec();
        put(host, 4, 0, &copy);
        count(host, 5);
    }
    let attacks: [fn(&mut Host); 22] = [
        |host| again(host, 0),
        |host| again(host, 2),
        |host| again(host, 3),
        |host| {
            // The same leaf with another subleaf, which Linux does not look at.
            again(host, 3);
            put(host, 4, 4, &[1]);
        },
        |host| {
            again(host, 1);
            put(host, 4, 4, &[1]);
        },
        |host| put(host, 3, 4, &[1]),
        |host| put(host, 3, 8, &[1]),     // another XCR0
        |host| put(host, 3, 16, &[1]),    // another XSS
        |host| put(host, 2, 15, &[0x80]), // of the leaf of features
        |host| put(host, 0, 40, &[1]),    // reserved
        |host| host.cpuid[4] = 1,
        |host| host.cpuid[4095] = 1,
        |host| put(host, 4, 0, &[1]),     // behind the last entry
        |host| put(host, 1, 32, &[0; 4]), // no RDRAND
        |host| host.cpuid.fill(0),
        |host| count(host, 65),
        |host| count(host, u32::MAX),
        |host| count(host, 3), // one less than there are
        |host| page(host, LEAF ^ 1, SNP, Machine::C_BIT),
        |host| page(host, LEAF, 0, Machine::C_BIT),
        |host| page(host, LEAF, SNP, 31),
        |host| page(host, LEAF, SNP, 52),
    ];
    attack(Snp, attacks.map(|change| (Fatal::Cpuid, change)));
}

/// With the wrong C-bit the first page table is elsewhere, where nothing is the guest's own: on a
/// processor an exception, while there is no table of exceptions.
#[test]
fn a_cpuid_page_with_another_c_bit() {
    let cpuid = cpuid(&[(0x8000_001f, [1 << 4, 47, 0, 0])]);
    let end = run(&plan(Snp, &payloads()), Host { cpuid, ..Host::default() }).end;
    let End::Broken(wrong) = end else { panic!("{end:?}") };
    assert!(wrong.starts_with("the page table at 0x8000"), "{wrong}");
}

/// Instructions that the page promises and the processor has not.
#[test]
fn a_cpuid_page_that_promises_too_much() {
    const SHA: u32 = 1 << 29;
    let encryption = (0x8000_001f, [1 << 4, Machine::C_BIT, 0, 0]);
    let mut cpuid = cpuid(&[encryption]);
    // EBX of leaf 7, the third entry.
    cpuid[16 + 2 * 48 + 28..][..4].copy_from_slice(&SHA.to_le_bytes());
    let end = run(&plan(Snp, &payloads()), Host { cpuid, ..Host::default() }).end;
    assert_eq!(end, End::Stopped(Fatal::Trap));
}

#[test]
fn a_guest_that_is_not_what_was_measured() {
    let attacks: [Attack; 3] = [
        (Fatal::Platform, |host| host.sev_status = 0),
        (Fatal::Platform, |host| host.sev_status = 0b001),
        (Fatal::Platform, |host| host.sev_status = 0b011),
    ];
    attack(Snp, attacks);
}

/// Such an image has another measurement; it stops nevertheless.
#[test]
fn a_config_page_that_says_something_unknown() {
    for at in [0, 8, 0x11, 0x24, 0xfff] {
        let mut plan = plan(Snp, &payloads());
        change_image(&mut plan, |image| image[at] ^= 2);
        assert_eq!(run(&plan, Host::default()).end, End::Stopped(Fatal::Config), "{at:#x}");
    }
}

#[test]
fn a_guest_that_gave_up_and_is_run_again() {
    let mut hosts: [fn(&mut Host); 2] =
        [|host| host.sev_status = 0, |host| host.msr = Box::new(|_, _| 0)];
    for (fatal, change) in [Fatal::Platform, Fatal::Hypervisor].into_iter().zip(&mut hosts) {
        let mut host = Host { resumes: 5, ..Host::default() };
        change(&mut host);
        let run = run(&plan(Snp, &payloads()), host);
        assert_eq!(run.end, End::Stopped(fatal));
        assert_eq!(run.machine().counts.stops, 6);
    }
}

/// A host may use large pages for some memory and small ones for other.
#[test]
fn pages_of_both_sizes() {
    let host = Host {
        large: true,
        validate: Box::new(|address, large, honest| {
            if large && (address / GRANULE).is_multiple_of(2) { (6, false) } else { honest }
        }),
        ..Host::default()
    };
    let run = run(&plan(Snp, &payloads()), host);
    assert_eq!(run.end, End::Kernel);
    crate::given::check(&run, &payloads());
}

/// Answers that are almost right, or anything.
fn answer(honest: u64) -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => Just(honest),
        2 => (0..64_u32).prop_map(move |bit| honest ^ 1_u64 << bit),
        1 => any::<u64>(),
        1 => any::<u64>().prop_map(move |value| value & !0xfff | honest & 0xfff),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever a host answers, and to whichever page.
    #[test]
    fn any_answer_ends_in_the_kernel_or_with_a_reason(
        info in answer(2 << 48 | 1 << 32 | u64::from(Machine::C_BIT) << 24 | 0x001),
        features in answer(0b11 << 12 | 0x081),
        page in prop::option::of((0..MEMORY / 0x1000, 0..8_u32, any::<bool>())),
        large: bool,
    ) {
        let host = Host {
            large,
            msr: Box::new(move |request, _| if request == INFO { info } else { features }),
            validate: Box::new(move |address, _, honest| match page {
                Some((page, result, unchanged)) if page == address / 0x1000 => (result, unchanged),
                _ => honest,
            }),
            ..Host::default()
        };
        let run = run(&plan(Snp, &payloads()), host);
        match run.end {
            End::Kernel => crate::given::check(&run, &payloads()),
            End::Stopped(fatal) => prop_assert!(
                [Fatal::Hypervisor, Fatal::Accept, Fatal::AcceptedTwice].contains(&fatal),
                "{fatal:?}"
            ),
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
