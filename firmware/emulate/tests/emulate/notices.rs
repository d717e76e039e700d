//! What the harness has to notice, it does: programs that do it, in the place of the image's first
//! instructions.

use casemate_launch::PlatformKind::{Plain, Tdx};

use crate::change_image;
use crate::harness::guest::{payloads, plan};
use crate::harness::host::Host;
use crate::harness::{End, MOST_INSTRUCTIONS, launch, run};

/// Runs `code`, in 32-bit mode, as a trust domain; gives what was wrong.
fn wrong(code: &[u8]) -> String {
    const BEFORE_END: usize = 0x800;
    let mut plan = plan(Tdx, &payloads());
    change_image(&mut plan, |image| {
        let (at, reset) = (image.len() - BEFORE_END, image.len() - 0x10);
        image[at..at + code.len()].copy_from_slice(code);
        // jmp, from the end of its five bytes
        image[reset] = 0xe9;
        let distance = u32::try_from(at).unwrap().wrapping_sub(u32::try_from(reset).unwrap() + 5);
        image[reset + 1..reset + 5].copy_from_slice(&distance.to_le_bytes());
    });
    match run(&plan, Host::default()).end {
        End::Broken(wrong) => wrong,
        other => panic!("{other:?}"),
    }
}

#[test]
fn memory_that_is_not_accepted() {
    // movb 0x1000, %al
    let read = wrong(&[0xa0, 0x00, 0x10, 0, 0]);
    assert_eq!(read, "Read of 0x1000, not accepted, by a private mapping");
    // movb %al, 0x1000
    let write = wrong(&[0xa2, 0x00, 0x10, 0, 0]);
    assert_eq!(write, "Write of 0x1000, not accepted, by a private mapping");
    // movl $0x1000, %eax; jmp *%eax
    let execution = wrong(&[0xb8, 0x00, 0x10, 0, 0, 0xff, 0xe0]);
    assert_eq!(execution, "Execute of 0x1000, not accepted, by a private mapping");
}

#[test]
fn a_second_acceptance() {
    // movl $6, %eax; xorl %ecx, %ecx; tdcall
    let accept = [0xb8, 6, 0, 0, 0, 0x31, 0xc9, 0x66, 0x0f, 0x01, 0xcc];
    assert_eq!(wrong(&accept.repeat(2)), "0x0 is accepted a second time");
}

#[test]
fn a_write_to_the_window_and_to_the_image() {
    // movb $1, address
    let write = |address: u32| [&[0xc6, 0x05], &address.to_le_bytes()[..], &[1]].concat();
    let window = wrong(&write(0xe800_0000));
    assert_eq!(window, "Write of 0xe8000000, not accepted, by a private mapping");
    let image = wrong(&write(0xffff_f000));
    assert_eq!(image, "Write of 0xfffff000, accepted, by a private mapping");
}

/// Changes the entry that maps a granule once the window is being read, and gives what was wrong then.
fn remapped(granule: u64, entry: u64) -> String {
    const DIRECTORIES: u64 = 0x80_7000;
    let plan = plan(Tdx, &payloads());
    let mut run = launch(&plan, Host::default());
    run.start(&plan, 0);
    while !run.machine().has_read_window {
        assert_eq!(run.go(100), End::Running);
    }
    run.write(DIRECTORIES + granule / (2 << 20) * 8, &entry.to_le_bytes());
    match run.go(MOST_INSTRUCTIONS) {
        End::Broken(wrong) => wrong,
        other => panic!("{other:?}"),
    }
}

#[test]
fn memory_that_is_writable_and_executable() {
    let kernel = remapped(16 << 20, 16 << 20 | 0x83);
    assert_eq!(kernel, "0x1000000 is writable and executable");
    let image = remapped(0xffe0_0000, 0xffe0_0000 | 0x83);
    assert_eq!(image, "0xffe00000 is writable and executable");
}

#[test]
fn an_access_that_a_mapping_does_not_allow() {
    let fetch = remapped(0xffe0_0000, 0xffe0_0000 | 0x81 | 1 << 63);
    assert!(fetch.starts_with("Execute of 0xffff"), "{fetch}");
    assert!(fetch.ends_with("which is not mapped for that"), "{fetch}");
    let write = remapped(8 << 20, 8 << 20 | 0x81 | 1 << 63);
    assert!(write.starts_with("Write of 0x8"), "{write}");
    assert!(write.ends_with("which is not mapped for that"), "{write}");
}

/// By the table of interrupts of real mode, which lies in memory.
#[test]
fn an_interrupt_by_a_table_that_is_not_the_images() {
    let plan = plan(Plain, &payloads());
    let mut run = launch(&plan, Host::default());
    run.start(&plan, 0);
    run.raise(2);
    assert_eq!(run.go(1), End::Broken("vector 2 by the table at 0x0".into()));
}

#[test]
fn an_endless_loop() {
    // jmp to itself
    assert!(wrong(&[0xeb, 0xfe]).starts_with("no end"));
}

#[test]
fn an_image_that_nobody_filled_in_ends_at_once() {
    let mut plan = plan(Plain, &payloads());
    change_image(&mut plan, |image| image[..4096].fill(0));
    assert_eq!(run(&plan, Host::default()).end, End::Shutdown);
}
