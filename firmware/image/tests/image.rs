//! What must hold of the bytes that are measured, whatever the compiler made of the sources.

use casemate_firmware_image::{IMAGE, LOGGING_IMAGE};
use casemate_firmware_logic::config::{Config, Flags, Platform};
use casemate_firmware_logic::layout::{CPUID, IMAGE_SIZE, SECRETS};
use casemate_launch::firmware::FirmwareError;
use casemate_launch::kernel_hashes::KernelHashes;
use casemate_launch::ovmf::SnpOptions;
use casemate_launch::profile::Profile;
use casemate_launch::snp::CpuSignature;
use casemate_launch::{PAGE_SIZE, PageKind, SnpIdentity, SnpPolicy, firmware};

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
    let config = firmware::config(Platform::Snp, Flags::default(), &hashes);
    let filled = firmware::configure(IMAGE, &config).unwrap();
    assert_eq!(Config::from_page(filled[..4096].try_into().unwrap()), Some(config));
}

/// The promise in the specification: few measured pages, since each costs the AMD-SP about 1 ms.
#[test]
fn eighteen_pages_are_measured_beside_the_vmsas() {
    let plan = firmware::snp_plan(IMAGE, Flags::default(), &options()).unwrap();
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
/// profile. A change of the firmware changes every guest's measurement: it is made knowingly, with
/// `casemate firmware fw.bin && sha256sum <fw.bin | cut -d' ' -f1 >firmware/image/image.sha256`, and the
/// same with `--log` for `image-log.sha256`.
#[test]
fn they_are_the_images_that_were_committed() {
    for (image, committed) in [
        (IMAGE, include_str!("../image.sha256")),
        (LOGGING_IMAGE, include_str!("../image-log.sha256")),
    ] {
        let digest = casemate_firmware_logic::sha256::digest(image);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, committed.trim());
    }
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
        firmware::configure(image, &firmware::config(Platform::Snp, flags, &hashes)).map(|_| ())
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
        firmware::tdx_plan(IMAGE, flags, &hashes, 1, policy).map(|_| ())
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
    let plan = firmware::tdx_plan(IMAGE, Flags::default(), &hashes, 2, policy).unwrap();
    let measured = plan.imports.iter().filter(|import| import.kind == PageKind::Normal);
    let pages: u64 = measured.map(|import| import.range.pages().0).sum();
    assert_eq!(pages, IMAGE_SIZE / PAGE_SIZE + 1, "the mailbox");
    assert_eq!(plan.overlap().map(|_| ()), None);
}
