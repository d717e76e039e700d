//! The guest of these tests: a small kernel, initrd and command line.

use casemate_firmware_image::IMAGE;
use casemate_launch::firmware::{self, Flags};
use casemate_launch::loader_window::Payloads;
use casemate_launch::{LaunchPlan, PlatformKind, SnpIdentity, SnpPolicy, TdxPolicy};

/// Where its memory ends, which starts at 0.
pub(crate) const MEMORY: u64 = 64 << 20;

/// A kernel file: a setup header of boot protocol 2.15 (Linux, Documentation/arch/x86/boot.rst), and
/// `size` bytes to load, of which no two neighbours are equal.
pub(crate) fn kernel(size: usize) -> Vec<u8> {
    let mut file = vec![0; 2048];
    let fields: [(usize, &[u8]); 9] = [
        (0x1f1, &[3]),                           // sectors of setup, one more
        (0x201, &[0x6c]),                        // length of the header
        (0x202, b"HdrS\x0f\x02"),                // version
        (0x211, &[1]),                           // loaded high
        (0x22c, &0x7fff_ffff_u32.to_le_bytes()), // the initrd's highest address
        (0x230, &0x20_0000_u32.to_le_bytes()),   // alignment
        (0x234, &[1, 21, 1, 0]),                 // relocatable; 64-bit entry
        (0x258, &0x100_0000_u64.to_le_bytes()),  // preferred address
        (0x260, &0x30_0000_u32.to_le_bytes()),   // memory needed
    ];
    for (at, field) in fields {
        file[at..at + field.len()].copy_from_slice(field);
    }
    file.extend((0..size).map(|at| u8::try_from(at % 251).unwrap()));
    file
}

pub(crate) fn payloads() -> Payloads {
    Payloads {
        kernel: kernel(5000).into(),
        initrd: vec![0x1d; 5000].into(),
        cmdline: b"console=ttyS0".as_slice().into(),
        memory: MEMORY,
        vcpus: 1,
    }
}

/// The plan by which `casemate run` launches it.
pub(crate) fn plan(platform: PlatformKind, payloads: &Payloads) -> LaunchPlan {
    plan_with(platform, Flags::default(), payloads)
}

pub(crate) fn plan_with(platform: PlatformKind, flags: Flags, payloads: &Payloads) -> LaunchPlan {
    match platform {
        PlatformKind::Plain => firmware::plain_plan(IMAGE, flags, payloads),
        PlatformKind::Snp => {
            let policy = SnpPolicy { guest_policy: 0x3_0000, vmsa_features: 1 };
            firmware::snp_guest(IMAGE, flags, payloads, policy, SnpIdentity::default())
        }
        PlatformKind::Tdx => firmware::tdx_guest(IMAGE, flags, payloads, TdxPolicy::new(1 << 28)),
    }
    .unwrap()
}
