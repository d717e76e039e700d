//! Hosts that write what they like to the loader window, before and while the guest reads it.

use casemate_firmware_logic::fatal::Fatal::{
    self, CommandLine, Initrd, Kernel, KernelFormat, Machine, Room, Window,
};
use casemate_launch::LaunchPlan;
use casemate_launch::PlatformKind::{Snp, Tdx};
use casemate_launch::loader_window::Payloads;
use proptest::prelude::*;

use crate::harness::guest::{MEMORY, payloads, plan};
use crate::harness::host::Host;
use crate::harness::{End, run};
use crate::{Shared, change, given, raise_limits};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Where the window has the kernel's first sectors' number.
const SECTORS: u64 = 0x2000 + 0x1f1;

/// Fields of the header (`window.rs`).
const VCPUS: usize = 0x0c;
const RANGES: usize = 0x10;
const KERNEL: usize = 0x18;
const INITRD: usize = 0x28;
const LINE: usize = 0x38;
const MEMORY_RANGES: usize = 0x48;

/// An attack on the header: fields that the host writes.
type Fields = &'static [(usize, u64)];

fn with(fields: &[(usize, u64)]) -> impl Fn(&mut LaunchPlan) {
    move |plan| {
        change(plan, Shared::Header, |header| {
            for (at, value) in fields {
                let size = if *at == VCPUS { 4 } else { 8 };
                header[*at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
            }
        });
    }
}

/// What the guest does on both platforms with a plan that somebody changed.
fn ends(changed: impl Fn(&mut LaunchPlan), expected: &End, what: &str) {
    for platform in [Snp, Tdx] {
        let mut plan = plan(platform, &payloads());
        raise_limits(&mut plan);
        changed(&mut plan);
        assert_eq!(run(&plan, Host::default()).end, *expected, "{platform:?}, {what}");
    }
}

#[test]
fn headers_that_cannot_be() {
    const ROOM: u64 = 0xfe00_0000 - 0xe800_0000;
    let attacks: [(Fatal, Fields); 35] = [
        (Window, &[(0, 0)]),
        (Window, &[(8, 2)]),
        (Window, &[(RANGES, 9)]),
        (Window, &[(RANGES, u64::MAX)]),
        (Window, &[(KERNEL, 0)]), // over the header
        (Window, &[(KERNEL, 0x2001)]),
        (Window, &[(KERNEL, ROOM)]),
        (Kernel, &[(KERNEL, ROOM), (KERNEL + 8, 0)]), // nothing behind the window is read
        (Window, &[(KERNEL, !0xfff)]),
        (Window, &[(KERNEL + 8, u64::MAX)]),
        (Window, &[(KERNEL + 8, ROOM)]),
        (Window, &[(INITRD, 0x1_0000_0000)]),
        (Window, &[(INITRD + 8, ROOM - 0x3fff)]),
        (Window, &[(LINE, 0xfff)]),
        (Window, &[(LINE + 8, 0)]),
        (Window, &[(LINE + 8, 2049)]),
        (Machine, &[(VCPUS, 0)]),
        (Machine, &[(VCPUS, 256)]),
        (Machine, &[(VCPUS, u64::MAX)]),
        (Window, &[(RANGES, 0)]), // and then bytes without a meaning
        (Machine, &[(RANGES, 0), (MEMORY_RANGES + 8, 0)]),
        (Machine, &[(RANGES, 2)]), // the second is empty
        (Machine, &[(MEMORY_RANGES, 0x1000)]),
        (Machine, &[(MEMORY_RANGES + 8, 0)]),
        (Machine, &[(MEMORY_RANGES + 8, MEMORY + 1)]),
        (Machine, &[(MEMORY_RANGES + 8, 16 * MIB)]),
        (Machine, &[(MEMORY_RANGES + 8, 3 * GIB + 0x1000)]), // among the devices
        (Machine, &[(MEMORY_RANGES + 8, !0xfff)]),
        (Machine, &[(RANGES, 2), (MEMORY_RANGES + 16, 0x1000), (MEMORY_RANGES + 24, MIB)]), // overlap
        (Machine, &[(RANGES, 2), (MEMORY_RANGES + 16, 0xffff_0000), (MEMORY_RANGES + 24, MIB)]), // the image
        (Machine, &[(RANGES, 2), (MEMORY_RANGES + 16, 0xe800_0000), (MEMORY_RANGES + 24, MIB)]), // the window
        // Unsorted, over the C-bit or the shared bit, and more than was measured.
        (
            Machine,
            &[
                (RANGES, 3),
                (MEMORY_RANGES + 16, 6 * GIB),
                (MEMORY_RANGES + 24, MIB),
                (MEMORY_RANGES + 32, 5 * GIB),
                (MEMORY_RANGES + 40, MIB),
            ],
        ),
        (Machine, &[(RANGES, 2), (MEMORY_RANGES + 16, 1 << 51), (MEMORY_RANGES + 24, MIB)]),
        (Machine, &[(RANGES, 2), (MEMORY_RANGES + 16, 4 * GIB), (MEMORY_RANGES + 24, 8 * TIB)]),
        // More than the table of unaccepted memory has room for.
        (Machine, &[(RANGES, 2), (MEMORY_RANGES + 16, 4 * GIB), (MEMORY_RANGES + 24, 3 * TIB)]),
    ];
    for (number, (fatal, fields)) in attacks.into_iter().enumerate() {
        ends(with(fields), &End::Stopped(fatal), &format!("{number}: {fields:x?}"));
    }
}

/// Bytes of the header that mean nothing are not copied into memory of the guest's own.
#[test]
fn every_unused_byte_of_the_header() {
    const USED: usize = MEMORY_RANGES + 16;
    for platform in [Snp, Tdx] {
        for at in (USED..4096).step_by(61).chain([USED, USED + 8, 4088, 4095]) {
            let mut plan = plan(platform, &payloads());
            change(&mut plan, Shared::Header, |header| header[at] = 0x40);
            let end = run(&plan, Host::default()).end;
            assert_eq!(end, End::Stopped(Window), "{platform:?}, {at:#x}");
        }
    }
}

#[test]
fn memory_that_the_payloads_do_not_fit_into() {
    for size in [17 * MIB, 18 * MIB, 20 * MIB] {
        ends(with(&[(MEMORY_RANGES + 8, size)]), &End::Stopped(Room), &format!("{size:#x}"));
    }
}

#[test]
fn other_payloads_than_were_measured() {
    let flip = |part, at: usize| {
        move |plan: &mut LaunchPlan| change(plan, part, |bytes| bytes[at] ^= 0x10)
    };
    for at in [0, 0x1f1, 0x202, 0x230, 2047, 2048, 7047] {
        ends(flip(Shared::Kernel, at), &End::Stopped(Kernel), &format!("kernel, {at:#x}"));
    }
    for at in [0, 64, 4999] {
        ends(flip(Shared::Initrd, at), &End::Stopped(Initrd), &format!("initrd, {at}"));
    }
    for at in [0, 12, 13] {
        ends(flip(Shared::CommandLine, at), &End::Stopped(CommandLine), &format!("line, {at}"));
    }
    let size = |file: usize, by: i64| (file, 7048_u64.saturating_add_signed(by));
    let attacks: [(Fatal, &[(usize, u64)]); 10] = [
        (Kernel, &[size(KERNEL + 8, 1)]),
        (Kernel, &[size(KERNEL + 8, -1)]),
        (Kernel, &[(KERNEL + 8, 0)]),
        (Kernel, &[(KERNEL + 8, 0x1f2)]),
        (Kernel, &[(KERNEL, 0x4000)]), // the initrd
        (Initrd, &[(INITRD + 8, 0)]),
        (Initrd, &[(INITRD + 8, 5001)]),
        (CommandLine, &[(LINE + 8, 13)]), // without its NUL
        (CommandLine, &[(LINE + 8, 15)]),
        (CommandLine, &[(LINE + 8, 2048)]),
    ];
    for (fatal, fields) in attacks {
        ends(with(fields), &End::Stopped(fatal), &format!("{fields:x?}"));
    }
}

/// What was measured is no kernel.
#[test]
fn a_kernel_that_is_none() {
    for kernel in [vec![0x90; 7000], crate::harness::guest::kernel(0), vec![3; 100], Vec::new()] {
        for platform in [Snp, Tdx] {
            let payloads = Payloads { kernel: kernel.clone().into(), ..payloads() };
            let end = run(&plan(platform, &payloads), Host::default()).end;
            assert_eq!(end, End::Stopped(KernelFormat), "{platform:?}, {} bytes", kernel.len());
        }
    }
}

/// A host that changes every byte as soon as it has been read changes nothing.
#[test]
fn a_window_that_changes_once_it_was_read() {
    for platform in [Snp, Tdx] {
        for change in [|byte: u8| !byte, |byte| byte ^ 1, |_| 0] {
            let host = Host {
                after_read: Box::new(
                    move |offset, byte| {
                        if offset == SECTORS { byte } else { change(byte) }
                    },
                ),
                ..Host::default()
            };
            let run = run(&plan(platform, &payloads()), host);
            assert_eq!(run.end, End::Kernel, "{platform:?}");
            given::check(&run, &payloads());
        }
    }
}

/// The byte that is read twice is compared with the copy whose digest was right.
#[test]
fn a_number_of_sectors_that_changes_between_its_two_reads() {
    for platform in [Snp, Tdx] {
        for changed in [0, 2, 4, 63, 255] {
            // The first read gives the wrong one, or the second does.
            for first in [true, false] {
                let mut plan = plan(platform, &payloads());
                let (before, after) = if first { (changed, 3) } else { (3, changed) };
                change(&mut plan, Shared::Kernel, |kernel| kernel[0x1f1] = before);
                let host = Host {
                    after_read: Box::new(move |at, byte| if at == SECTORS { after } else { byte }),
                    ..Host::default()
                };
                let end = run(&plan, host).end;
                assert_eq!(end, End::Stopped(Kernel), "{platform:?}, {before}, {after}");
            }
        }
    }
}

/// Values of header fields: what can be, what is next to a limit, and anything.
fn value() -> impl Strategy<Value = u64> {
    let near = prop::sample::select(vec![
        0,
        0x1000,
        0x2000,
        7048,
        MIB,
        16 * MIB,
        20 * MIB,
        MEMORY,
        3 * GIB,
        0xe800_0000,
        0xffff_0000,
        4 * GIB,
        TIB,
        8 * TIB,
        1 << 47,
        1 << 51,
        1 << 52,
        u64::MAX,
    ]);
    let around = (near, -2..=2_i64, any::<bool>()).prop_map(|(value, by, pages)| {
        value.wrapping_add_signed(if pages { by * 4096 } else { by })
    });
    prop_oneof![4 => around, 1 => any::<u64>(), 1 => any::<u64>().prop_map(|value| value & !0xfff)]
}

/// Sizes of payloads are small, or too large: those between only take long.
fn size() -> impl Strategy<Value = u64> {
    prop_oneof![0..0x8000_u64, 0x1000_0000..=u64::MAX]
}

fn fields() -> impl Strategy<Value = Vec<(usize, u64)>> {
    let places = prop::sample::select(vec![0, 8, VCPUS, RANGES, KERNEL, INITRD, LINE]);
    let memory = (0..6_usize).prop_map(|place| MEMORY_RANGES + 8 * place);
    let sizes = prop::sample::select(vec![KERNEL + 8, INITRD + 8, LINE + 8]);
    let count = (Just(RANGES), 0..9_u64);
    let field = prop_oneof![1 => (places, value()), 4 => (memory, value()), 2 => (sizes, size()), 2 => count];
    prop::collection::vec(field, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Whatever is in the window, and whatever becomes of it while it is read.
    #[test]
    fn any_window_ends_in_the_measured_kernel_or_with_a_reason(
        fields in fields(),
        flip in prop::option::weighted(0.3, (prop::sample::select(vec![1_usize, 2, 3]), 0..5000_usize)),
        later in prop::option::of(any::<u8>()),
        snp: bool,
    ) {
        let mut plan = plan(if snp { Snp } else { Tdx }, &payloads());
        raise_limits(&mut plan);
        with(&fields)(&mut plan);
        if let Some((part, at)) = flip {
            let part = [Shared::CommandLine, Shared::Kernel, Shared::Initrd][part - 1];
            change(&mut plan, part, |bytes| {
                let at = at % bytes.len();
                bytes[at] ^= 1;
            });
        }
        let after_read = move |_, byte| byte ^ later.unwrap_or(0);
        let run = run(&plan, Host { after_read: Box::new(after_read), ..Host::default() });
        match run.end {
            End::Kernel => {
                prop_assert!(flip.is_none());
                let memory = run.memory(0x100_0000, 5000);
                prop_assert!(memory == payloads().kernel[2048..]);
            }
            End::Stopped(fatal) => prop_assert!(
                [Window, Machine, Room, Kernel, Initrd, CommandLine].contains(&fatal), "{fatal:?}"
            ),
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
