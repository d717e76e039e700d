//! What must hold of the bytes that are measured, whatever the compiler made of the sources.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "../committed.rs"]
mod committed;

use std::fs;
use std::path::Path;

use casemate_firmware_image::{IMAGE, LOGGING_IMAGE};
use casemate_firmware_logic::config::{Config, Flags, Platform};
use casemate_firmware_logic::layout::{CPUID, IMAGE_SIZE, SECRETS};
use casemate_launch::firmware::{FirmwareError, Limits};
use casemate_launch::kernel_hashes::KernelHashes;
use casemate_launch::ovmf::SnpOptions;
use casemate_launch::profile::Profile;
use casemate_launch::snp::CpuSignature;
use casemate_launch::{PAGE_SIZE, PageKind, SnpIdentity, SnpPolicy, firmware};
use committed::EDITIONS;
use sha2::Digest as _;

const LIMITS: Limits = Limits { memory: 512 << 20, vcpus: 2 };

fn options() -> SnpOptions {
    SnpOptions {
        profile: Profile::Casemate,
        vcpus: 2,
        cpu_signature: CpuSignature(0),
        policy: SnpPolicy { guest_policy: 0x3_0000, vmsa_features: 1 },
        kernel: Some(KernelHashes::new(b"kernel", b"", b"console=ttyS0")),
        identity: SnpIdentity::default(),
    }
}

#[test]
fn an_image_that_nobody_filled_in_boots_nothing() {
    assert_eq!(Config::from_page(IMAGE[..4096].try_into().unwrap()), None);
    let hashes = KernelHashes::new(b"kernel", b"", b"");
    let config = firmware::config(Platform::Snp, Flags::default(), &hashes, LIMITS);
    let filled = firmware::configure(IMAGE, &config).unwrap();
    assert_eq!(Config::from_page(filled[..4096].try_into().unwrap()), Some(config));
}

/// The promise in the specification: few measured pages, since each costs the AMD-SP about 1 ms.
#[test]
fn eighteen_pages_are_measured_beside_the_vmsas() {
    let plan = firmware::snp_plan(IMAGE, Flags::default(), &options(), LIMITS.memory).unwrap();
    let pages: u64 = plan.imports.iter().map(|import| import.range.pages().0).sum();
    assert_eq!(pages, IMAGE_SIZE / PAGE_SIZE + 2);
    let found: Vec<_> =
        plan.imports.iter().map(|import| (import.kind, import.range.start().0)).collect();
    assert_eq!(
        found[1..],
        [(PageKind::Secrets, SECRETS), (PageKind::Cpuid, CPUID)],
        "the places that the firmware reads"
    );
    // Other vCPUs start in the last page: 16-bit code.
    let entry = plan.vcpus[1].cs.base + plan.vcpus[1].rip;
    assert!((0xffff_f000..0xffff_ffff).contains(&entry), "{entry:#x}");
}

/// 14 KiB of code and tables are used today. Twice that would be another kind of program.
#[test]
fn it_stays_small() {
    let used = IMAGE.iter().filter(|byte| **byte != 0).count();
    assert!(used < 24 << 10, "{used} bytes");
}

/// Paths would make the measurement depend on where it was built.
#[test]
fn no_path_of_the_build_is_in_it() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let root = std::fs::canonicalize(root).unwrap();
    let text = String::from_utf8_lossy(IMAGE);
    assert!(!text.contains(&*root.to_string_lossy()));
    assert!(!text.contains(env!("CARGO_MANIFEST_DIR")));
}

/// Whoever builds these sources with the pinned toolchain gets these bytes, wherever and in whichever
/// profile. A change of the firmware changes every guest's measurement: it is made knowingly.
#[test]
fn they_are_the_images_that_were_committed() {
    for (image, committed) in [
        (IMAGE, include_str!("../image.sha256")),
        (LOGGING_IMAGE, include_str!("../image-log.sha256")),
    ] {
        let digest = sha2::Sha256::digest(image);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, committed.trim());
    }
}

/// The build fails with the digest to commit, for each edition by itself.
#[test]
fn an_image_that_was_not_committed_is_refused() {
    let (out, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut changed = IMAGE.to_vec();
    changed[0x8000] ^= 1;
    let refusal = |image: &[u8]| {
        for ((built, digest), bytes) in EDITIONS.iter().zip([image, LOGGING_IMAGE]) {
            fs::write(out.path().join(built), bytes).unwrap();
            let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join(digest);
            fs::copy(committed, folder.path().join(digest)).unwrap();
        }
        committed::refusal(out.path(), folder.path(), "rustc 1.2.3")
    };
    assert_eq!(refusal(IMAGE), None);
    let words = refusal(&changed).unwrap();
    let digest = sha2::Sha256::digest(&changed);
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(words.contains(&format!("echo {digest} >firmware/image/image.sha256")), "{words}");
    assert!(words.contains("rustc 1.2.3") && !words.contains("image-log.sha256"), "{words}");
}

#[test]
fn what_the_image_for_development_says_is_not_in_the_other() {
    let word = b"for development";
    let says = |image: &[u8; 64 << 10]| image.windows(word.len()).any(|bytes| bytes == word);
    assert_eq!([says(IMAGE), says(LOGGING_IMAGE)], [false, true]);
}

/// Each image ends a guest that is measured to be of the other: said before there is one.
#[test]
fn an_edition_is_not_configured_as_the_other() {
    let hashes = KernelHashes::new(b"kernel", b"", b"");
    let configure = |image: &[u8], log| {
        let flags = Flags { log, ..Flags::default() };
        firmware::configure(image, &firmware::config(Platform::Snp, flags, &hashes, LIMITS))
            .map(|_| ())
    };
    assert_eq!(configure(IMAGE, false), Ok(()));
    assert_eq!(configure(LOGGING_IMAGE, true), Ok(()));
    assert_eq!(configure(IMAGE, true), Err(FirmwareError::DoesNotLog));
    assert_eq!(configure(LOGGING_IMAGE, false), Err(FirmwareError::Logs));
}

/// So does a trust domain that the host may read end.
#[test]
fn no_debuggable_trust_domain_is_planned() {
    let hashes = KernelHashes::new(b"kernel", b"", b"");
    let plan = |attributes, flags| {
        let policy = casemate_launch::TdxPolicy::new(attributes);
        firmware::tdx_plan(IMAGE, flags, &hashes, LIMITS, policy).map(|_| ())
    };
    assert_eq!(plan(1 << 28, Flags::default()), Ok(()));
    assert_eq!(plan(1 << 28 | 1, Flags::default()), Err(FirmwareError::Debug));
    let development = Flags { unmeasured_payload: true, ..Flags::default() };
    assert_eq!(plan(1 << 28 | 1, development), Ok(()));
}

/// One of the three launch ways of the same image: what a TDX launcher reads and measures.
#[test]
fn trust_domains_have_one_page_more_measured() {
    let hashes = KernelHashes::new(b"kernel", b"", b"");
    let policy = casemate_launch::TdxPolicy::new(1 << 28);
    let plan = firmware::tdx_plan(IMAGE, Flags::default(), &hashes, LIMITS, policy).unwrap();
    let measured = plan.imports.iter().filter(|import| import.kind == PageKind::Normal);
    let pages: u64 = measured.map(|import| import.range.pages().0).sum();
    assert_eq!(pages, IMAGE_SIZE / PAGE_SIZE + 1, "the mailbox");
    assert_eq!(plan.overlap().map(|_| ()), None);
}
