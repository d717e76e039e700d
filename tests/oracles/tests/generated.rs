//! Generated firmware: ours against the `sev` crate's calculator, and our own firmware's config
//! page.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::sync::Arc;

use casemate_launch::firmware::{self, FirmwareError, Flags, Limits, Platform};
use casemate_launch::kernel_hashes::KernelHashes;
use casemate_launch::ovmf::{self, SnpOptions};
use casemate_launch::profile::Profile;
use casemate_launch::snp::{self, CpuSignature};
use casemate_launch::{Contents, Guid, LaunchPlan, SnpIdentity, SnpPolicy};
use proptest::collection::vec;
use proptest::prelude::*;
use sev::measurement::snp::{SnpMeasurementArgs, snp_calc_launch_digest};
use sev::measurement::vcpu_types::CpuType;
use sev::measurement::vmsa::{GuestFeatures, VMMType};
use sev::parser::ByteParser as _;

const FOOTER: Guid = Guid::new(0x96b582de_1fb2_45f7_baea_a366c55a082d);
const METADATA: Guid = Guid::new(0xdc886566_984a_4798_a75e_5585a7bf67cc);
const RESET: Guid = Guid::new(0x00f771de_1a7e_4fcb_890e_68c77e2fb44e);
const HASH_TABLE: Guid = Guid::new(0x7255371f_3a3b_4b04_927b_1da6efa8d454);
const CONFIG: Guid = Guid::new(0x8ae37e5b_2c1f_4d8e_9d5a_63b0c3a5e1f4);

/// Bytes of the area at the end that holds tables: one page.
const TABLES: usize = 4096;

/// An image of `fill` and one page with tables.
fn image(fill: &[u8], sections: &[[u32; 3]], entries: &[(Guid, Vec<u8>)]) -> Arc<[u8]> {
    let mut table = Vec::new();
    let metadata_from_end = u32::try_from(TABLES).unwrap();
    let all = [&[(METADATA, metadata_from_end.to_le_bytes().to_vec())], entries].concat();
    for (guid, data) in &all {
        table.extend(data);
        table.extend(u16::try_from(data.len() + 18).unwrap().to_le_bytes());
        table.extend(guid.0);
    }
    table.extend(u16::try_from(table.len() + 18).unwrap().to_le_bytes());
    table.extend(FOOTER.0);

    let mut tail = b"ASEV".to_vec();
    let count = u32::try_from(sections.len()).unwrap();
    for field in [16 + 12 * count, 1, count].iter().chain(sections.as_flattened()) {
        tail.extend(field.to_le_bytes());
    }
    tail.resize(TABLES - 32 - table.len(), 0xcc);
    tail.extend(table);
    tail.resize(TABLES, 0x90);
    [fill, &tail].concat().into()
}

fn options(profile: Profile, vcpus: u32, signature: u32, features: u64) -> SnpOptions {
    SnpOptions {
        profile,
        vcpus,
        cpu_signature: CpuSignature(signature),
        policy: SnpPolicy { guest_policy: 0x3_0000, vmsa_features: features },
        kernel: None,
        identity: SnpIdentity::default(),
    }
}

/// Page, size in pages and type of sections that do not overlap; the last is for kernel hashes.
fn sections() -> impl Strategy<Value = Vec<[u32; 3]>> {
    vec((1_u32..20, 1_u32..=4), 0..8).prop_map(|list| {
        let mut gpa = 0x80_0000;
        let mut sections: Vec<_> = list
            .into_iter()
            .map(|(pages, section_type)| {
                let size = if matches!(section_type, 2 | 3) { 0x1000 } else { pages * 0x1000 };
                gpa += size + 0x1000;
                [gpa - size, size, section_type]
            })
            .collect();
        sections.push([0x40_0000, 0x1000, 0x10]);
        sections.rotate_left(1);
        sections
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_sev_crate_agrees(
        fill in vec(any::<u8>(), 0..4).prop_map(|pages| {
            pages.into_iter().flat_map(|byte| vec![byte; 4096]).collect::<Vec<u8>>()
        }),
        sections in sections(),
        reset in 1_u32..,
        offset in 0_u32..=4096 - 176,
        vcpus in 1_u32..20,
        model in 0_usize..4,
        features in any::<u16>(),
        payload in proptest::option::of((vec(any::<u8>(), 0..100), "[a-z=/][ a-z=/]{0,40}[a-z=/]")),
    ) {
        let (name, cpu) = [
            ("EPYC-v4", CpuType::EpycV4),
            ("EPYC-Rome", CpuType::EpycRome),
            ("EPYC-Milan", CpuType::EpycMilan),
            ("EPYC-Genoa", CpuType::EpycGenoa),
        ][model];
        let area = [(0x40_0000 + offset).to_le_bytes(), 0x400_u32.to_le_bytes()].concat();
        let entries = [(RESET, reset.to_le_bytes().to_vec()), (HASH_TABLE, area)];
        let image = image(&fill, &sections, &entries);

        let folder = tempfile::tempdir().unwrap();
        let (firmware, kernel) = (folder.path().join("firmware"), folder.path().join("kernel"));
        std::fs::write(&firmware, &image).unwrap();
        let signature: CpuSignature = name.parse().unwrap();
        let mut options = options(Profile::Qemu, vcpus, signature.0, features.into());
        if let Some((bytes, cmdline)) = &payload {
            std::fs::write(&kernel, bytes).unwrap();
            options.kernel = Some(KernelHashes::new(bytes, &[], cmdline.as_bytes()));
        }
        let theirs = snp_calc_launch_digest(SnpMeasurementArgs {
            vcpus,
            vcpu_type: cpu,
            ovmf_file: firmware,
            guest_features: GuestFeatures::from_bytes(&u64::from(features).to_le_bytes()).unwrap(),
            kernel_file: payload.is_some().then_some(kernel),
            initrd_file: None,
            append: payload.as_ref().map(|(_, cmdline)| cmdline.as_str()),
            ovmf_hash_str: None,
            vmm_type: Some(VMMType::QEMU),
        });
        let plan = ovmf::snp_plan(&image, &options).unwrap();
        let ours = snp::measure(&plan).unwrap().launch_digest();
        prop_assert_eq!(ours.to_string(), theirs.unwrap().get_hex_ld());

        let manifest = snp::manifest(&plan).unwrap();
        prop_assert_eq!(manifest.measurement, ours);
        let text = serde_json::to_string(&manifest).unwrap();
        prop_assert_eq!(serde_json::from_str::<casemate_launch::manifest::Manifest>(&text).unwrap(), manifest);
    }

    #[test]
    fn any_tables_are_read_or_refused(
        fill in vec(any::<u8>(), 0..3).prop_map(|pages| vec![0; pages.len() * 4096]),
        sections in vec((any::<u32>(), any::<u32>(), 0_u32..0x12).prop_map(<[u32; 3]>::from), 0..5),
        from_end in any::<u32>(),
        area in vec(any::<u8>(), 0..9),
    ) {
        let entries = [(HASH_TABLE, area), (CONFIG, from_end.to_le_bytes().to_vec())];
        let image = image(&fill, &sections, &entries);
        let mut options = options(Profile::Casemate, 1, 0, 1);
        let _ = ovmf::snp_plan(&image, &options);
        options.kernel = Some(KernelHashes::new(b"kernel", b"", b""));
        let _ = ovmf::snp_plan(&image, &options);
        let _ = firmware::snp_plan(&image, Flags::default(), &options, MEMORY);
    }
}

/// What guests of our firmware have.
const MEMORY: u64 = 512 << 20;

/// An image as the firmware's footer describes it, its config page empty.
fn our_image() -> Arc<[u8]> {
    let sections = [[0x80_0000, 0x1000, 2], [0x80_1000, 0x1000, 3]];
    let reset = (RESET, 0xffff_f000_u32.to_le_bytes().to_vec());
    let config = (CONFIG, 0x1_0000_u32.to_le_bytes().to_vec());
    let mut fill = vec![0; 0xf000];
    fill[0x1000..].fill(0xf4);
    image(&fill, &sections, &[reset, config])
}

fn planned(image: &[u8], options: &SnpOptions) -> Result<LaunchPlan, FirmwareError> {
    firmware::snp_plan(image, Flags::default(), options, MEMORY)
}

#[test]
fn the_config_page_of_our_firmware_is_measured() {
    let kernel = KernelHashes::new(b"kernel", b"initrd", b"console=hvc0");
    let mut options = options(Profile::Casemate, 2, 0, 1);
    assert_eq!(planned(&our_image(), &options).err(), Some(FirmwareError::NoKernel));
    options.kernel = Some(kernel);
    let plan = planned(&our_image(), &options).unwrap();
    let Contents::Bytes(bytes) = &plan.imports[0].contents else { panic!("firmware has bytes") };
    let page = bytes[..4096].try_into().unwrap();
    let config = casemate_firmware_logic::config::Config::from_page(page).unwrap();
    let limits = Limits { memory: MEMORY, vcpus: 2 };
    assert_eq!(config, firmware::config(Platform::Snp, Flags::default(), &kernel, limits));
    assert_eq!((config.kernel, config.command_line), (kernel.kernel, kernel.cmdline));

    // The CPU model does not count, and everything of the payload does.
    let digest = |options: &SnpOptions| {
        snp::measure(&planned(&our_image(), options).unwrap()).unwrap().launch_digest()
    };
    let first = digest(&options);
    options.cpu_signature = CpuSignature(0x00a0_0f11);
    assert_eq!(digest(&options), first);
    let flags = Flags { accept_all: true, ..Flags::default() };
    for (flags, memory) in [(flags, MEMORY), (Flags::default(), MEMORY + 4096)] {
        let other = firmware::snp_plan(&our_image(), flags, &options, memory).unwrap();
        assert_ne!(snp::measure(&other).unwrap().launch_digest(), first, "{flags:?}, {memory}");
    }
    for (kernel, initrd, cmdline) in [
        ("kernel2", "initrd", "console=hvc0"),
        ("kernel", "", "console=hvc0"),
        ("kernel", "initrd", ""),
    ] {
        options.kernel =
            Some(KernelHashes::new(kernel.as_bytes(), initrd.as_bytes(), cmdline.as_bytes()));
        assert_ne!(digest(&options), first, "{kernel} {initrd} {cmdline}");
    }
}

#[test]
fn foreign_firmware_is_rejected() {
    let mut options = options(Profile::Casemate, 1, 0, 1);
    options.kernel = Some(KernelHashes::new(b"kernel", b"", b""));
    let refused = |image: &[u8]| planned(image, &options).err().unwrap();
    assert_eq!(refused(&image(&[], &[], &[])), FirmwareError::NotOurs);
    let with = |from_end: u32| image(&[0; 4096], &[], &[(CONFIG, from_end.to_le_bytes().to_vec())]);
    for from_end in [0, 1, 0x1001, 0x3000, u32::MAX] {
        assert_eq!(refused(&with(from_end)), FirmwareError::Place { from_end, length: 0x2000 });
    }
    let short = image(&[], &[], &[(CONFIG, vec![0; 3])]);
    assert_eq!(refused(&short), FirmwareError::EntrySize { found: 3 });
}

#[test]
fn what_cannot_be_measured_truthfully_is_refused() {
    let options = options(Profile::Qemu, 2, 0, 1);
    let refused = |sections: &[[u32; 3]], entries: &[(Guid, Vec<u8>)]| {
        ovmf::snp_plan(&image(&[], sections, entries), &options).err().unwrap().to_string()
    };
    let reset = (RESET, vec![0, 0x10, 0, 0]);
    assert!(refused(&[], &[]).contains("no SEV-ES reset block"));
    assert!(refused(&[], &[(RESET, vec![0; 5])]).contains("5 bytes of data instead of 4"));
    // A size that underflowed in a firmware that was published.
    let huge = refused(&[[0x80_f000, 0xff7f_1000, 1]], std::slice::from_ref(&reset));
    assert!(huge.contains("more than 65536 pages"), "{huge}");
    let secrets = refused(&[[0x80_0000, 0x2000, 2]], std::slice::from_ref(&reset));
    assert!(secrets.contains("2 pages"), "{secrets}");
    let over = refused(&[[0xffff_f000, 0x1000, 1]], std::slice::from_ref(&reset));
    assert!(over.contains("where the firmware itself is"), "{over}");

    let kernel = KernelHashes::new(b"kernel", b"", b"");
    let with_kernel = SnpOptions { kernel: Some(kernel), ..options.clone() };
    let refused = |gpa: u32, size: u32| {
        let area = [gpa.to_le_bytes(), size.to_le_bytes()].concat();
        let sections = [[0x81_0000, 0x1000, 0x10]];
        let image = image(&[], &sections, &[reset.clone(), (HASH_TABLE, area)]);
        ovmf::snp_plan(&image, &with_kernel).err().map(|error| error.to_string())
    };
    assert_eq!(refused(0x81_0f50, 0xb0), None);
    for (gpa, size) in
        [(0x81_0f51, 0xb0), (0x80_f000, 0x400), (0x81_1000, 0x400), (0x81_0000, 0x10)]
    {
        let message = refused(gpa, size).unwrap();
        assert!(message.contains("inside the one page"), "{message}");
    }
    assert!(refused(0, 0).unwrap().contains("no address for the table of hashes"));
}
