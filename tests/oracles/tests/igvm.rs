//! IGVM files against independent calculators (`tests/data/vectors`), and against the `igvm` crate.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::io::Cursor;

use casemate_launch::igvm::{
    ExportError, IgvmError, IgvmFile, ImportError, KvmRefusal, ZeroPages, export, import,
    with_normal_zeroes,
};
use casemate_launch::measure::igvm::{MeasureFileError, manifest, measure_snp, measure_tdx};
use casemate_launch::profile::{Profile, RESET_VECTOR};
use casemate_launch::snp::{self, CpuSignature};
use casemate_launch::tdvf::ATTRIBUTE_SEPT_VE_DISABLE;
use casemate_launch::tdx::{PageOrder, mrtd};
use casemate_launch::{
    Contents, Digest384, Gpa, GpaRange, Import, LaunchPlan, PageCount, PageKind, PlatformKind,
    Policy, SnpIdentity, SnpPolicy, TdxPolicy,
};
use casemate_test_support::vectors::{all, folder};
use proptest::prelude::*;
use serde_json::Value;

fn open(bytes: &[u8]) -> Result<IgvmFile<Cursor<&[u8]>>, IgvmError> {
    IgvmFile::open(Cursor::new(bytes))
}

fn file_of(vector: &Value) -> (Vec<u8>, Option<u32>) {
    let bytes = std::fs::read(folder().join(vector["params"]["file"].as_str().unwrap())).unwrap();
    let mask = vector["params"]["compatibility_mask"].as_u64().unwrap();
    (bytes, Some(mask.try_into().unwrap()))
}

#[test]
fn snp_digests_are_those_of_other_calculators() {
    for vector in all("igvm-snp").unwrap() {
        let (bytes, mask) = file_of(&vector);
        let mut file = open(&bytes).unwrap();
        let expected = &vector["expected"]["launch_digest"];
        let found = measure_snp(&mut file, mask, ZeroPages::Normal).unwrap();
        assert_eq!(*expected, found.file.to_string(), "{}", vector["id"]);
        let platform = file.platform(PlatformKind::Snp, mask).unwrap();
        let manifest = manifest(&mut file, platform, ZeroPages::Normal).unwrap();
        assert_eq!(manifest.measurement, found.file, "{}", vector["id"]);
        // Each of these files has its one VMSA at the end, where KVM measures it.
        if let Ok(kvm) = found.kvm {
            assert_eq!(kvm, found.file, "{}", vector["id"]);
            let plan = import(&mut file, PlatformKind::Snp, mask, ZeroPages::Normal).unwrap().plan;
            let measured = snp::measure(&plan).unwrap().launch_digest();
            assert_eq!(measured, found.file, "{}", vector["id"]);
        }
    }
}

#[test]
fn mrtds_are_those_of_other_calculators() {
    for vector in all("igvm-tdx").unwrap() {
        let (bytes, mask) = file_of(&vector);
        let mut file = open(&bytes).unwrap();
        let expected = &vector["expected"]["mrtd"];
        let found = measure_tdx(&mut file, mask).unwrap();
        assert_eq!(*expected, found.to_string(), "{}", vector["id"]);
        let plan = import(&mut file, PlatformKind::Tdx, mask, ZeroPages::Normal).unwrap().plan;
        assert_eq!(mrtd(&plan, PageOrder::PerPage).unwrap(), found, "{}", vector["id"]);
    }
}

#[test]
fn a_mask_of_another_platform_is_refused() {
    let bytes = std::fs::read(folder().join("inputs/multi-platform.igvm")).unwrap();
    let mut file = open(&bytes).unwrap();
    assert!(matches!(
        measure_snp(&mut file, Some(2), ZeroPages::Normal),
        Err(IgvmError::MaskPlatform { mask: 2, found: Some(PlatformKind::Tdx), .. })
    ));
    assert!(matches!(
        measure_tdx(&mut file, Some(4)),
        Err(MeasureFileError::File(IgvmError::Mask { mask: 4, .. }))
    ));
    let bytes = std::fs::read(folder().join("inputs/tdx-only.igvm")).unwrap();
    let mut file = open(&bytes).unwrap();
    assert!(matches!(
        measure_snp(&mut file, None, ZeroPages::Normal),
        Err(IgvmError::NoPlatform { wanted: PlatformKind::Snp, .. })
    ));
}

/// What a test wants in a page.
fn page(index: u64, pages: u64, kind: PageKind, fill: Option<u8>) -> Import {
    let range = GpaRange::new(Gpa(index * 0x1000), PageCount(pages)).unwrap();
    let contents = match fill {
        Some(fill) => Contents::Bytes(vec![fill; usize::try_from(range.len()).unwrap()].into()),
        None => Contents::Zeroes,
    };
    Import { range, kind, contents, tag: "test" }
}

fn snp_plan(imports: Vec<Import>, vcpus: usize) -> LaunchPlan {
    let vcpu = Profile::Qemu.vcpu(RESET_VECTOR, CpuSignature(0x00a0_0f11));
    LaunchPlan {
        imports,
        vcpus: vec![vcpu; vcpus],
        policy: Policy::Snp(SnpPolicy { guest_policy: 0x3_0000, vmsa_features: 0x21 }),
        identity: SnpIdentity::default(),
    }
}

fn tdx_plan(imports: Vec<Import>) -> LaunchPlan {
    let policy = TdxPolicy::new(ATTRIBUTE_SEPT_VE_DISABLE);
    LaunchPlan {
        imports,
        vcpus: Vec::new(),
        policy: Policy::Tdx(policy),
        identity: SnpIdentity::default(),
    }
}

#[test]
fn a_file_of_three_platforms_measures_as_its_plans() {
    let pages = || {
        vec![
            page(1, 3, PageKind::Normal, Some(0xab)),
            page(8, 2, PageKind::Unmeasured, Some(1)),
            page(16, 1, PageKind::Normal, None),
            page(32, 1, PageKind::Shared, Some(2)),
        ]
    };
    let snp = snp_plan(pages(), 1);
    let tdx = tdx_plan(pages());
    let mut plain = snp_plan(pages(), 1);
    plain.policy = Policy::Plain;
    plain.vcpus[0].cs.attributes = 0x9b;
    let file = export(&[snp.clone(), tdx.clone(), plain]).unwrap();
    // Pages that are alike are there once: 0xab, 1, 2, the VMSA and the plain vCPU.
    let headers = 24 + 3 * 24 + 2 * 24 + 3 * 7 * 32 + 2 * 32;
    assert_eq!(file.len(), headers + 5 * 4096);
    let mut file = open(&file).unwrap();
    let digests = measure_snp(&mut file, None, ZeroPages::Normal).unwrap();
    assert_eq!(digests.file, snp::measure(&snp).unwrap().launch_digest());
    assert_eq!(digests.kvm, Ok(digests.file));
    assert_eq!(measure_tdx(&mut file, None).unwrap(), mrtd(&tdx, PageOrder::PerPage).unwrap());
    let imported = import(&mut file, PlatformKind::Snp, None, ZeroPages::Normal).unwrap().plan;
    assert_eq!(imported.vcpus, snp.vcpus);
    assert_eq!(imported.policy, snp.policy);
    let imported = import(&mut file, PlatformKind::Tdx, None, ZeroPages::Normal).unwrap().plan;
    assert_eq!(imported.policy, tdx.policy);
}

#[test]
fn zero_pages_have_to_be_made_whole_first() {
    let plan = snp_plan(vec![page(1, 2, PageKind::Zero, None)], 1);
    let refused = ExportError::ZeroPage { at: Gpa(0x1000), tag: "test" };
    assert_eq!(export(std::slice::from_ref(&plan)).unwrap_err(), refused);
    let before = snp::measure(&plan).unwrap().launch_digest();
    let (plan, pages) = with_normal_zeroes(plan);
    assert_eq!(pages, 2);
    let file = export(std::slice::from_ref(&plan)).unwrap();
    let mut file = open(&file).unwrap();
    let normal = measure_snp(&mut file, None, ZeroPages::Normal).unwrap().file;
    assert_eq!(normal, snp::measure(&plan).unwrap().launch_digest());
    // A launcher that has a word for them gives the original plan's digest.
    assert_eq!(measure_snp(&mut file, None, ZeroPages::Native).unwrap().file, before);
}

#[test]
fn what_kvm_cannot_launch_as_written_has_no_kvm_digest() {
    let refusal = |plan: &LaunchPlan, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = export(std::slice::from_ref(plan)).unwrap();
        change(&mut bytes);
        repair_checksum(&mut bytes);
        let mut file = open(&bytes).unwrap();
        let refusal = measure_snp(&mut file, None, ZeroPages::Normal).unwrap().kvm.unwrap_err();
        let error = import(&mut file, PlatformKind::Snp, None, ZeroPages::Normal).err().unwrap();
        assert!(matches!(error, ImportError::Kvm(ref same) if *same == refusal), "{error}");
        refusal
    };
    let pages = || vec![page(1, 1, PageKind::Normal, Some(1))];
    let nothing = |_: &mut Vec<u8>| {};
    assert_eq!(refusal(&snp_plan(pages(), 0), &nothing), KvmRefusal::NoVpContext);
    let two = refusal(&snp_plan(pages(), 2), &nothing);
    assert!(matches!(two, KvmRefusal::ManyVpContexts { .. }), "{two}");
    // The headers: platform and policy with 24 bytes each, page data with 32, then the VP context.
    let context = 24 + 24 + 24 + 32;
    let moved = refusal(&snp_plan(pages(), 1), &|bytes| bytes[context + 8 + 1] = 0xe0);
    let gpa = Gpa(0xffff_ffff_e000);
    assert_eq!(moved, KvmRefusal::VmsaGpa { at: context as u64, gpa });
    let vmsa = context + 8 + 24 + 4096;
    let virtual_tom = refusal(&snp_plan(pages(), 1), &|bytes| bytes[vmsa + 0x3c8] = 1);
    assert!(virtual_tom.to_string().contains("byte 0x3c8"), "{virtual_tom}");
}

/// With the VMSA before the pages the file says one digest, and KVM makes another.
#[test]
fn a_vmsa_before_pages_gives_two_digests() {
    let plan = snp_plan(vec![page(1, 1, PageKind::Normal, Some(1))], 1);
    let mut bytes = export(std::slice::from_ref(&plan)).unwrap();
    let directives = 24 + 24 + 24;
    bytes[directives..directives + 64].rotate_left(32);
    repair_checksum(&mut bytes);
    let found = measure_snp(&mut open(&bytes).unwrap(), None, ZeroPages::Normal).unwrap();
    let kvm = snp::measure(&plan).unwrap().launch_digest();
    assert_eq!(found.kvm, Ok(kvm));
    assert_eq!(found.launch_digest(), kvm);
    assert_ne!(found.file, kvm);
    let mut file = open(&bytes).unwrap();
    let platform = file.platform(PlatformKind::Snp, None).unwrap();
    let listed = manifest(&mut file, platform, ZeroPages::Normal).unwrap();
    assert_eq!(listed.measurement, kvm);
    let order: Vec<_> = listed.ranges.iter().map(|range| range.tag.as_str()).collect();
    assert_eq!(order, ["IGVM page data", "VMSA of vCPU 0"]);
    assert_eq!(found.file, crate_snp(&bytes));
}

/// KVM takes no page that the guest owns already.
#[test]
fn a_page_that_is_added_twice_is_refused() {
    let twice = || {
        vec![
            page(1, 3, PageKind::Normal, Some(1)),
            page(9, 1, PageKind::Normal, Some(1)),
            page(3, 1, PageKind::Unmeasured, Some(2)),
        ]
    };
    let bytes = export(&[snp_plan(twice(), 1), tdx_plan(twice())]).unwrap();
    let mut file = open(&bytes).unwrap();
    let range = |start, pages| GpaRange::new(Gpa(start), PageCount(pages)).unwrap();
    let refusal = KvmRefusal::Twice {
        first: range(0x1000, 3),
        first_tag: "IGVM page data",
        second: range(0x3000, 1),
        second_tag: "IGVM unmeasured page",
    };
    let found = measure_snp(&mut file, None, ZeroPages::Normal).unwrap();
    assert_eq!(found.kvm, Err(refusal.clone()));
    assert_eq!(found.launch_digest(), found.file);
    let error = measure_tdx(&mut file, None).unwrap_err();
    assert!(matches!(error, MeasureFileError::Kvm(ref same) if *same == refusal), "{error}");
    for kind in [PlatformKind::Snp, PlatformKind::Tdx] {
        let error = import(&mut file, kind, None, ZeroPages::Normal).err().unwrap();
        assert!(matches!(error, ImportError::Kvm(ref same) if *same == refusal), "{error}");
    }
}

/// A page of 2 MiB is 512 pages.
#[test]
fn large_pages_are_their_small_ones() {
    let fill = |index: usize| index.to_le_bytes()[0].wrapping_mul(31);
    let contents: Vec<u8> = (0..2 << 20).map(|index: usize| fill(index / 4096)).collect();
    let range = GpaRange::from_bytes(Gpa(2 << 20), 2 << 20).unwrap();
    let import = Import {
        range,
        kind: PageKind::Normal,
        contents: Contents::Bytes(contents.clone().into()),
        tag: "test",
    };
    for plan in [snp_plan(vec![import.clone()], 1), tdx_plan(vec![import])] {
        // One page, whose header then says that it is large, and its other 511 behind it.
        let first = page(512, 1, PageKind::Normal, Some(0xff));
        let small = LaunchPlan { imports: vec![first], ..plan.clone() };
        let mut bytes = export(&[small]).unwrap();
        let headers = 24 + 24 + 24;
        bytes[headers + 8 + 16] = 1;
        let at = u32::from_le_bytes(bytes[headers + 20..headers + 24].try_into().unwrap()) as usize;
        let behind = bytes.split_off(at + 4096);
        bytes.truncate(at);
        bytes.extend(&contents);
        let moved = u32::try_from(bytes.len()).unwrap();
        bytes.extend(behind);
        if plan.platform() == PlatformKind::Snp {
            bytes[headers + 32 + 20..headers + 32 + 24].copy_from_slice(&moved.to_le_bytes());
        }
        repair_checksum(&mut bytes);
        let mut file = open(&bytes).unwrap();
        let (found, expected) = if plan.platform() == PlatformKind::Snp {
            let found = measure_snp(&mut file, None, ZeroPages::Normal).unwrap().file;
            (found, snp::measure(&plan).unwrap().launch_digest())
        } else {
            let found = measure_tdx(&mut file, None).unwrap();
            (found, mrtd(&plan, PageOrder::PerPage).unwrap())
        };
        assert_eq!(found, expected);
    }
}

/// Puts size and checksum right after a change.
fn repair_checksum(bytes: &mut [u8]) {
    let size = u32::try_from(bytes.len()).unwrap();
    bytes[16..20].copy_from_slice(&size.to_le_bytes());
    let headers = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    bytes[20..24].fill(0);
    let sum = crc32fast::hash(&bytes[..24 + headers]);
    bytes[20..24].copy_from_slice(&sum.to_le_bytes());
}

fn crate_snp(bytes: &[u8]) -> Digest384 {
    let file = igvm::IgvmFile::new_from_binary(bytes, None).unwrap();
    let (headers, directives) = (file.initializations(), file.directives());
    Digest384(igvm::measurement::generate_snp_measurement(headers, directives, 1).unwrap())
}

fn crate_tdx(bytes: &[u8]) -> Digest384 {
    let file = igvm::IgvmFile::new_from_binary(bytes, None).unwrap();
    Digest384(igvm::measurement::generate_tdx_measurement(file.directives(), 1).unwrap())
}

/// Pages, their kind, what fills them, and how many are left out behind them.
type Pages = Vec<(u64, PageKind, Option<u8>, u64)>;

fn pages(kinds: impl Strategy<Value = PageKind>) -> impl Strategy<Value = Pages> {
    proptest::collection::vec((1..4_u64, kinds, any::<Option<u8>>(), 0..2_u64), 0..12)
}

fn imports(pages: Pages) -> Vec<Import> {
    let mut next = 1;
    let mut imports: Vec<_> = pages
        .into_iter()
        .map(|(pages, kind, fill, gap)| {
            let import = page(next, pages, kind, fill);
            next += pages + gap;
            import
        })
        .collect();
    // The crate does not read files without data.
    imports.push(page(next, 1, PageKind::Normal, Some(7)));
    imports
}

proptest! {
    #[test]
    fn the_igvm_crate_agrees_on_snp(
        pages in pages(prop_oneof![
            Just(PageKind::Normal), Just(PageKind::Unmeasured), Just(PageKind::Shared),
            Just(PageKind::Secrets), Just(PageKind::Cpuid),
        ]),
        vcpus in 0..3_usize,
    ) {
        let plan = snp_plan(imports(pages), vcpus);
        let bytes = export(std::slice::from_ref(&plan)).unwrap();
        let found = measure_snp(&mut open(&bytes).unwrap(), None, ZeroPages::Normal).unwrap().file;
        prop_assert_eq!(found, snp::measure(&plan).unwrap().launch_digest());
        prop_assert_eq!(found, crate_snp(&bytes));
    }

    #[test]
    fn the_igvm_crate_agrees_on_tdx(pages in pages(prop_oneof![
        Just(PageKind::Normal), Just(PageKind::Unmeasured), Just(PageKind::Zero),
        Just(PageKind::Shared),
    ])) {
        let plan = tdx_plan(imports(pages));
        let bytes = export(std::slice::from_ref(&plan)).unwrap();
        let found = measure_tdx(&mut open(&bytes).unwrap(), None).unwrap();
        prop_assert_eq!(found, mrtd(&plan, PageOrder::PerPage).unwrap());
        prop_assert_eq!(found, crate_tdx(&bytes));
    }

    #[test]
    fn changed_headers_are_read_or_refused(at in 24..512_usize, value: u8, length in 0..32_usize) {
        let mut bytes = std::fs::read(folder().join("inputs/multi-platform.igvm")).unwrap();
        let end = (at + length).min(bytes.len());
        bytes[at..end].fill(value);
        repair_checksum(&mut bytes);
        if let Ok(mut file) = open(&bytes) {
            let _ = measure_snp(&mut file, Some(1), ZeroPages::Normal);
            let _ = import(&mut file, PlatformKind::Tdx, None, ZeroPages::Native);
        }
    }
}

#[test]
fn a_changed_byte_of_the_headers_breaks_the_checksum() {
    let good = std::fs::read(folder().join("inputs/basic.igvm")).unwrap();
    for at in 0..24 + 272 {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        assert!(open(&bytes).is_err(), "byte {at:#x}");
    }
    assert!(matches!(open(&good[..good.len() - 1]), Err(IgvmError::Size { .. })));
    assert!(matches!(open(b"IGVM"), Err(IgvmError::Read { .. })));
    assert!(matches!(open(&[0; 64]), Err(IgvmError::Magic(_))));
}
