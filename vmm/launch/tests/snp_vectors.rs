//! SEV-SNP measurements against expected values from other calculators, and from a real chip.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::sync::Arc;

use casemate_launch::kernel_hashes::KernelHashes;
use casemate_launch::ovmf::{self, OvmfError, SnpOptions};
use casemate_launch::profile::{Profile, RESET_VECTOR};
use casemate_launch::sev_metadata::SevMetadata;
use casemate_launch::snp::{self, CpuSignature, FirmwareDigest, LaunchDigest, VmsaPage};
use casemate_launch::{Digest384, SnpIdentity, SnpPolicy, svsm};
use casemate_test_support::vectors::{Inputs, all, json};
use serde_json::Value;

fn number(value: &Value) -> u64 {
    match value {
        Value::String(text) => u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap(),
        value => value.as_u64().unwrap(),
    }
}

fn small(value: &Value) -> u32 {
    number(value).try_into().unwrap()
}

fn digest(value: &Value) -> Digest384 {
    value.as_str().unwrap().parse().unwrap()
}

/// The hashes of a vector's kernel, initrd and command line; `None` if an input cannot be had.
fn kernel(inputs: &Inputs, params: &Value) -> Option<Option<KernelHashes>> {
    let Some(kernel) = params["kernel"].as_str() else { return Some(None) };
    let kernel = inputs.get(kernel).unwrap()?;
    let initrd = match params["initrd"].as_str() {
        Some(initrd) => inputs.get(initrd).unwrap()?,
        None => Arc::from([]),
    };
    let cmdline = params["cmdline"].as_str().unwrap_or_default();
    Some(Some(KernelHashes::new(&kernel, &initrd, cmdline.as_bytes())))
}

fn options(params: &Value, kernel: Option<KernelHashes>) -> SnpOptions {
    SnpOptions {
        profile: params["vmm"].as_str().unwrap_or("qemu").parse().unwrap(),
        vcpus: small(&params["vcpus"]),
        cpu_signature: CpuSignature(params.get("vcpu_sig").map_or(0, small)),
        policy: SnpPolicy {
            guest_policy: 0x3_0000,
            vmsa_features: params.get("guest_features").map_or(1, number),
        },
        kernel,
        identity: SnpIdentity::default(),
    }
}

#[test]
fn launch_digests() {
    let inputs = Inputs::open().unwrap();
    for vector in all("snp-launch-digest").unwrap() {
        let (id, params) = (vector["id"].as_str().unwrap(), &vector["params"]);
        let Some(firmware) = inputs.get(params["firmware"].as_str().unwrap()).unwrap() else {
            continue;
        };
        let Some(kernel) = kernel(&inputs, params) else { continue };
        let options = options(params, kernel);
        let plan = ovmf::snp_plan(&firmware, &options).unwrap();
        let expected = digest(&vector["expected"]["launch_digest"]);
        assert_eq!(snp::measure(&plan).unwrap().launch_digest(), expected, "{id}");
        let named: CpuSignature = params["vcpu_type"].as_str().unwrap().parse().unwrap();
        assert_eq!(named, options.cpu_signature, "{id}");
    }
}

#[test]
fn firmware_seeds() {
    let inputs = Inputs::open().unwrap();
    for vector in all("snp-firmware-seed").unwrap() {
        let firmware = vector["params"]["firmware"].as_str().unwrap();
        let Some(image) = inputs.get(firmware).unwrap() else { continue };
        let params = serde_json::json!({ "vcpus": 3 });
        let plan = ovmf::snp_plan(&image, &options(&params, None)).unwrap();
        let measurement = snp::measure(&plan).unwrap();
        let seed = measurement.firmware_seed(&plan).unwrap();
        assert_eq!(seed, digest(&vector["expected"]["launch_digest"]), "{firmware}");

        // The seed and the metadata are enough for the rest.
        let mut resumed = LaunchDigest::resume(seed);
        let metadata = SevMetadata::parse(&image).unwrap();
        for import in ovmf::section_imports(&metadata, Profile::Qemu, None).unwrap() {
            resumed.add_import(&import);
        }
        resumed.add_vcpus(&plan.vcpus, 1);
        assert_eq!(resumed.value(), measurement.launch_digest(), "{firmware}");
    }
}

/// The published digest of a firmware, through its JSON, gives the digests of its guests.
#[test]
fn launch_digests_from_published_firmware_digests() {
    let inputs = Inputs::open().unwrap();
    let mut count = 0;
    for vector in all("snp-launch-digest").unwrap() {
        let (id, params) = (vector["id"].as_str().unwrap(), &vector["params"]);
        let Some(image) = inputs.get(params["firmware"].as_str().unwrap()).unwrap() else {
            continue;
        };
        let Some(kernel) = kernel(&inputs, params) else { continue };
        let mut seed = LaunchDigest::new();
        seed.add_import(&ovmf::snp_plan(&image, &options(params, None)).unwrap().imports[0]);
        let published = FirmwareDigest::new(seed.value(), &SevMetadata::parse(&image).unwrap());
        let published = serde_json::to_string(&published).unwrap();
        let read: FirmwareDigest = serde_json::from_str(&published).unwrap();
        let expected = digest(&vector["expected"]["launch_digest"]);
        assert_eq!(read.launch_digest(&options(params, kernel)), Ok(expected), "{id}");
        count += 1;
    }
    assert!(count >= 30, "{count}");
}

#[test]
fn firmware_digests_that_no_firmware_has_are_refused() {
    let read = |sections: &str| {
        let text =
            format!("{{\"firmware_seed\": \"{:096}\", \"firmware_sections\": {sections}}}", 0);
        let read: FirmwareDigest =
            serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let params = serde_json::json!({ "vcpus": 1 });
        read.launch_digest(&options(&params, None)).map_err(|error| error.to_string())
    };
    let section =
        |gpa, size| format!("{{\"gpa\": \"{gpa}\", \"size\": {size}, \"section_type\": 1}}");
    read(&format!("[{}]", section("0x1000", 4096))).unwrap();
    for (sections, words) in [
        ("[]".to_owned(), "names no sections"),
        (format!("[{}]", section("0x1001", 4096)), "not page aligned"),
        (format!("[{}]", section("4097", 4096)), "not a number like"),
        (format!("[{}]", section("0x1000", 1 << 30)), "more than 65536 pages"),
        (format!("[{}, {}]", section("0x1000", 8192), section("0x2000", 4096)), "overlapping"),
    ] {
        let error = read(&sections).unwrap_err();
        assert!(error.contains(words), "{sections}: {error}");
    }
}

#[test]
fn launch_digests_under_an_svsm() {
    let inputs = Inputs::open().unwrap();
    let vectors = all("snp-svsm").unwrap();
    assert!(vectors.len() >= 3);
    let plan = |params: &Value, variables, options: &SnpOptions| {
        let image = |name: &str| inputs.get(params[name].as_str().unwrap()).unwrap().unwrap();
        svsm::snp_plan(&image("firmware"), &image("svsm"), variables, options)
    };
    for vector in &vectors {
        let (id, params) = (vector["id"].as_str().unwrap(), &vector["params"]);
        let options = options(params, None);
        let variables = number(&params["variables_size"]);
        let measured = snp::measure(&plan(params, variables, &options).unwrap()).unwrap();
        let expected = digest(&vector["expected"]["launch_digest"]);
        assert_eq!(measured.launch_digest(), expected, "{id}");
        assert_ne!(digest(&vector["disagree"]["sev-snp-measure 0.0.13"]), expected, "{id}");

        let refused = |variables, options: &SnpOptions| {
            plan(params, variables, options).err().unwrap().to_string()
        };
        assert!(
            refused(u64::MAX << 12, &options).starts_with("no room for an SVSM of 0x3000 bytes")
        );
        assert!(refused(0x800, &options).contains("not a number of pages"));
        let kernel = KernelHashes::new(b"kernel", b"", b"");
        let with_kernel = SnpOptions { kernel: Some(kernel), ..options };
        assert!(refused(variables, &with_kernel).contains("would not be measured"));
    }
    let firmware = inputs.get("tiny-std").unwrap().unwrap();
    let error = svsm::snp_plan(&firmware, &firmware, 0, &options(&vectors[0]["params"], None));
    assert!(error.err().unwrap().to_string().contains("not an SVSM image"));
}

#[test]
fn vmsa_pages() {
    for vector in all("snp-vmsa-page").unwrap() {
        let (id, params) = (&vector["id"], &vector["params"]);
        let profile: Profile = params["vmm"].as_str().unwrap().parse().unwrap();
        let signature = CpuSignature(small(&params["vcpu_sig"]));
        let vcpu = profile.vcpu(small(&params["eip"]), signature);
        let page = VmsaPage::new(&vcpu, number(&params["guest_features"]));
        let nonzero = &vector["expected"]["nonzero"];
        for (at, byte) in page.0.iter().enumerate() {
            let expected = nonzero[format!("{at:#x}")].as_str().unwrap_or("00");
            assert_eq!(format!("{byte:02x}"), expected, "{id} at {at:#x}");
        }
        assert_eq!(Digest384::of(&page.0), digest(&vector["expected"]["sha384"]), "{id}");
    }
}

#[test]
fn cpu_signatures() {
    for vector in all("cpu-signature").unwrap() {
        let of = |name: &str| small(&vector["params"][name]);
        let signature = CpuSignature::new(of("family"), of("model"), of("stepping"));
        assert_eq!(signature.to_string(), vector["expected"]["eax"].as_str().unwrap());
    }
}

#[test]
fn tables_of_kernel_hashes() {
    let inputs = Inputs::open().unwrap();
    for vector in all("sev-hashes-table").unwrap() {
        let hashes = kernel(&inputs, &vector["params"]).flatten().unwrap();
        let hex: String = hashes.table().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, vector["expected"]["table"].as_str().unwrap(), "{}", vector["id"]);
    }
}

#[test]
fn refusals() {
    let inputs = Inputs::open().unwrap();
    for vector in all("snp-refuse").unwrap() {
        let (id, params) = (vector["id"].as_str().unwrap(), &vector["params"]);
        let Some(image) = inputs.get(params["firmware"].as_str().unwrap()).unwrap() else {
            continue;
        };
        let kernel = kernel(&inputs, params).unwrap();
        let error = ovmf::snp_plan(&image, &options(params, kernel)).err().unwrap();
        let message = error.to_string();
        let words = match id {
            "refuse/bad-sevsig" => "\"XSEV\" instead of the signature \"ASEV\"",
            "refuse/bad-sectype" => "unknown section type 0x77 at offset 0x1a34",
            "refuse/bad-unaligned" => "not page aligned",
            "refuse/bad-oddsize" => "0x1fff bytes",
            "refuse/bad-empty" => "empty file",
            "refuse/kernel-without-section" => "no kernel hashes section",
            "refuse/tiny-big-sec" => "overlapping sections",
            _ => panic!("{id} has no expectation here"),
        };
        assert!(message.contains(words), "{id}: {message}");
        assert_ne!(error, OvmfError::NoVcpu);
    }
}

/// The digest that a genuine Milan chip signed, of a guest with a measured kernel under QEMU.
#[test]
fn digest_matches_report_of_a_real_chip() {
    let anchor = json("hardware-anchor").unwrap();
    let hash = |name: &str| -> [u8; 32] {
        let text = anchor[name].as_str().unwrap();
        std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
    };
    let cmdline = anchor["base_cmdline"].as_str().unwrap();
    let hashes = KernelHashes {
        kernel: hash("kernel_hash"),
        initrd: hash("initrd_hash"),
        cmdline: KernelHashes::new(b"", b"", cmdline.as_bytes()).cmdline,
    };
    let metadata = metadata(&anchor);
    let mut digest_now = LaunchDigest::resume(digest(&anchor["ovmf_hash"]));
    for import in ovmf::section_imports(&metadata, Profile::Qemu, Some(&hashes)).unwrap() {
        digest_now.add_import(&import);
    }
    let signature: CpuSignature = anchor["vcpu_type"].as_str().unwrap().parse().unwrap();
    let entries = [RESET_VECTOR, metadata.ap_reset.unwrap()];
    let vcpus = entries.map(|entry| Profile::Qemu.vcpu(entry, signature));
    digest_now.add_vcpus(&vcpus, number(&anchor["guest_features"]));
    assert_eq!(digest_now.value(), digest(&anchor["expected"]["launch_digest"]));

    // As dstack publishes the firmware.
    let published: FirmwareDigest = serde_json::from_value(anchor.clone()).unwrap();
    let cpu_signature = signature;
    let guest = serde_json::json!({ "vcpus": 2, "guest_features": anchor["guest_features"] });
    let guest = SnpOptions { cpu_signature, ..options(&guest, Some(hashes)) };
    assert_eq!(published.launch_digest(&guest), Ok(digest_now.value()));

    let report = casemate_test_support::evidence::file("snp/dstack-milan/report.bin").unwrap();
    assert_eq!(report[0x90..0xc0], digest_now.value().0, "MEASUREMENT of the report");
}

/// The metadata of the anchor, of which there is no image.
fn metadata(anchor: &Value) -> SevMetadata {
    use casemate_launch::sev_metadata::{HashTableArea, SectionType, SevSection};
    use casemate_launch::{Gpa, GpaRange};
    let sections = anchor["ovmf_sections"].as_array().unwrap().iter().map(|section| SevSection {
        range: GpaRange::from_bytes(Gpa(number(&section["gpa"])), number(&section["size"]))
            .unwrap(),
        section_type: SectionType::new(small(&section["section_type"])).unwrap(),
        offset: 0,
    });
    let table = Gpa(number(&anchor["sev_hashes_table_gpa"]));
    SevMetadata {
        sections: sections.collect(),
        ap_reset: Some(small(&anchor["sev_es_reset_eip"])),
        hash_table: Some(HashTableArea { gpa: table, size: 0x400 }),
    }
}
