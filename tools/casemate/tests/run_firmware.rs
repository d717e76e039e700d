//! What our firmware does before the kernel, as the development image says it, in the emulated host.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/confidential.rs"]
mod confidential;

use casemate_lab::{Host, require};
use confidential::{Guest, said};

/// A bzImage (Linux, Documentation/arch/x86/boot.rst) of one sector of setup, whose 64-bit entry jumps
/// to itself.
fn kernel_that_waits() -> Vec<u8> {
    let mut file = vec![0; 4096];
    for (offset, field) in [
        (0x1f1, &[1][..]),
        (0x201, &[0x6c]),
        (0x202, b"HdrS"),
        (0x206, &[0x0f, 2]),
        (0x22c, &[0xff, 0xff, 0xff, 0x7f]),
        (0x236, &[1]),
        (0x258, &[0, 0, 0, 1]),
        (0x400 + 0x200, &[0xeb, 0xfe]),
    ] {
        file[offset..][..field.len()].copy_from_slice(field);
    }
    file
}

/// As the host counts, the pages of guest_memfd among its files: a guest starts with as few whatever
/// memory it is given, unless it is told to accept all, or is given some before.
#[test]
fn what_a_guest_has_when_its_kernel_starts_does_not_grow_with_its_memory() {
    if require(Host::Snp).is_none() {
        return;
    }
    let guest = Guest::new(Host::Snp, "6.12");
    let waits = guest.write("waits", kernel_that_waits());
    let guests = [
        ("256M", "lazy", "0"),
        ("2G", "lazy", "0"),
        ("256M", "eager", "0"),
        ("256M", "lazy", "128M"),
    ];
    let mut script = String::new();
    for (memory, accept, prefault) in guests {
        let flags = format!(
            "--kernel {waits} --firmware-log true --accept-memory {accept} --prefault {prefault} \
             --stop-timeout 0"
        );
        let run = guest.run(&flags).replace("192M", memory);
        script += &format!(
            "sync; echo 3 >/proc/sys/vm/drop_caches\n{run} >/tmp/log 2>&1 & guest=$!\n\
             until grep -q 'starting the kernel' /tmp/log || ! kill -0 $guest; do sleep 0.1; done\n\
             echo CACHED-{memory}-{accept}-{prefault} $(sed -n 's/^Cached: *//p' /proc/meminfo)\n\
             kill $guest; wait $guest; echo \"ENDED $?\"; cat /tmp/log\n"
        );
    }
    let bad = guest.write("bad", [0; 8192]);
    script += &guest.other_line(&format!("--kernel {bad} --firmware-log true"));
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    let [small, large, eager, before] = guests.map(|(memory, accept, prefault)| {
        let name = format!("CACHED-{memory}-{accept}-{prefault} ");
        said(console, &name, 0).parse::<i64>().unwrap()
    });
    assert!((large - small).abs() < 4 << 10, "{small} and {large} KiB: {console}");
    assert!(eager - small > 200 << 10, "{small} and {eager} KiB: {console}");
    // What the firmware accepts of the first 128 MiB it has in either case.
    assert!((before - small - (112 << 10)).abs() < 16 << 10, "{small} and {before} KiB: {console}");
    assert_eq!(console.matches("firmware: starting the kernel").count(), guests.len(), "{console}");
    assert!(console.contains("firmware: memory: 0x0 to 0x80000000"), "{console}");
    let reason = "the kernel is no bzImage that can be loaded at 16 MiB";
    for words in ["firmware: stopped: ", "the firmware ended the guest: "] {
        assert!(console.contains(&format!("{words}{reason}")), "{console}");
    }
    assert!(console.contains("ENDED 124"), "{console}");
}
