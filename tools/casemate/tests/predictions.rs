//! One guest, one plan: `run`, `measure`, `measure --manifest`, `igvm build` and `verify --expect` name the
//! same digest, or all refuse with the same message.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/golden.rs"]
mod golden;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use casemate_config::{Overrides, load};
use casemate_launch::PlatformKind;
use casemate_test_support::{evidence, vectors};
use serde_json::Value;

/// The digest of a guest, or the reason why there is none.
type Prediction = Result<String, String>;

fn casemate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_casemate")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A guest of a file, with flags that `run` and `measure` have both.
struct Guest {
    file: String,
    platform: PlatformKind,
    flags: Vec<String>,
}

impl Guest {
    fn flags(&self) -> Vec<&str> {
        self.flags.iter().map(String::as_str).collect()
    }

    /// The first event of `run`: of the measured plan, or of the failure. This host launches none of
    /// these guests, and if it does, they end at once.
    fn run(&self) -> Prediction {
        let output = casemate(&[&["run", &self.file, "--json"], &self.flags()[..]].concat());
        let errors = text(&output.stderr);
        let mut events = errors.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let event =
            events.find(|event| ["measured", "failed"].contains(&event["event"].as_str().unwrap()));
        let event = event.unwrap();
        match event["event"].as_str().unwrap() {
            "measured" => Ok(event["measurement"].as_str().unwrap().to_owned()),
            "failed" => Err(event["text"].as_str().unwrap().to_owned()),
            other => panic!("{other}: {errors}"),
        }
    }

    fn measure(&self, manifest: &Path) -> [Prediction; 2] {
        let _ = std::fs::remove_file(manifest);
        let list = ["measure", &self.file, "--format", "json"];
        let output = casemate(&[&list[..], &self.flags()].concat());
        let reports: Value = serde_json::from_slice(&output.stdout).unwrap();
        let report = &reports[0];
        assert_eq!(report["platform"], self.platform.word());
        let measured = match report["measurement"].as_str() {
            Some(digest) => Ok(digest.to_owned()),
            None => Err(report["reason"].as_str().unwrap().to_owned()),
        };
        assert_eq!(output.status.code(), Some(if measured.is_ok() { 0 } else { 2 }));

        let list = ["measure", &self.file, "--manifest", manifest.to_str().unwrap()];
        casemate(&[&list[..], &self.flags()].concat());
        let listed = match std::fs::read(manifest) {
            Ok(bytes) => {
                let manifest: Value = serde_json::from_slice(&bytes).unwrap();
                let last = manifest["ranges"].as_array().unwrap().last().unwrap();
                assert_eq!(manifest["measurement"], last["running_digest"]);
                Ok(last["running_digest"].as_str().unwrap().to_owned())
            }
            Err(_) => measured.clone().map(|digest| format!("no manifest, but {digest}")),
        };
        [measured, listed]
    }

    /// The measurement without which `verify --expect` rejects: no report here has it.
    fn verify(&self) -> Prediction {
        let folder = evidence::folder();
        let path = |name: &str| folder.join(name).display().to_string();
        let mut arguments = vec!["verify".to_owned(), self.platform.word().to_owned()];
        let snp = [
            ("--report", "snp/oak-milan_oc_release/report.bin"),
            ("--vek", "snp/oak-milan_oc_release/vek.der"),
            ("--ask", "snp/roots/milan-ask.der"),
            ("--ark", "snp/roots/milan-ark.der"),
        ];
        let tdx = [("--quote", "tdx/gotdx-cos113/quote.bin")];
        let named: &[_] = if self.platform == PlatformKind::Snp { &snp } else { &tdx };
        for (flag, name) in named {
            arguments.extend([(*flag).to_owned(), path(name)]);
        }
        let more = ["--at", "2025-06-01T00:00:00Z", "--format", "json", "--expect", &self.file];
        let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(more).collect();
        let output = casemate(&arguments);
        if output.stdout.is_empty() {
            let errors = text(&output.stderr);
            let (_, reason) = errors.trim_end().split_once(" measures to: ").unwrap();
            return Err(reason.to_owned());
        }
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = result["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == "measurement").unwrap();
        let detail = check["detail"].as_str().unwrap();
        let claim = if self.platform == PlatformKind::Snp { "measurement" } else { "mrtd" };
        let claimed = result["claims"][claim].as_str().unwrap();
        let mut digests =
            detail.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 96);
        Ok(digests.rfind(|digest| *digest != claimed).unwrap().to_owned())
    }

    /// All doors agree; what they say.
    fn check(&self, folder: &Path) -> Prediction {
        let run = self.run();
        let [measured, listed] = self.measure(&folder.join("manifest.json"));
        assert_eq!(run, measured, "run and measure {}", self.describe());
        assert_eq!(run, listed, "run and measure --manifest {}", self.describe());
        // There is no flag for what the file does not say: a verifier judges the file.
        if self.flags.is_empty() {
            assert_eq!(run, self.verify(), "run and verify --expect {}", self.describe());
        }
        run
    }

    fn describe(&self) -> String {
        format!("{:?} {}", self.flags, std::fs::read_to_string(&self.file).unwrap())
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name).to_str().unwrap().to_owned()
    }

    fn kernel(&self) -> String {
        self.write("kernel", &golden::kernel())
    }

    fn guest(&self, platform: PlatformKind, keys: &str) -> Guest {
        let keys = format!("platform = \"{platform}\"\n{keys}");
        let file = self.write("guest.toml", keys.as_bytes());
        Guest { file, platform, flags: Vec::new() }
    }
}

fn input(name: &str) -> String {
    vectors::folder().join("inputs").join(name).to_str().unwrap().to_owned()
}

const CONFIDENTIAL: [PlatformKind; 2] = [PlatformKind::Snp, PlatformKind::Tdx];

/// Casemate's firmware, lazy, eager and logging, directly and from an IGVM file.
#[test]
fn guests_of_our_firmware() {
    let folder = Folder::new();
    let kernel = folder.kernel();
    let mut digests = Vec::new();
    for platform in CONFIDENTIAL {
        for keys in ["", "accept_memory = \"eager\"\n", "firmware_log = true\n"] {
            for vcpus in [1, 2, 255] {
                let boot = format!("kernel = \"{kernel}\"\ncmdline = \"quiet\"\nvcpus = {vcpus}\n");
                let guest = folder.guest(platform, &format!("{boot}{keys}"));
                let digest = guest.check(folder.0.path()).unwrap();
                digests.push(digest.clone());
                if vcpus == 1 {
                    assert_eq!(packed(&folder, platform, &kernel, keys).unwrap(), digest);
                }
            }
        }
    }
    digests.sort();
    digests.dedup();
    // The config page has the limit of vCPUs.
    assert_eq!(digests.len(), 2 * 3 * 3);
}

/// The guest of an IGVM file that `igvm build` makes with these keys as flags.
fn packed(folder: &Folder, platform: PlatformKind, kernel: &str, keys: &str) -> Prediction {
    let igvm = folder.path("built.igvm").to_str().unwrap().to_owned();
    let list = ["igvm", "build", "--platform", platform.word(), "--out", &igvm, "--format", "json"];
    // The limit of memory is measured.
    let boot = ["--kernel", kernel, "--cmdline", "quiet", "--memory", "512M"];
    let flags: &[&str] = match keys {
        "" => &[],
        keys if keys.contains("eager") => &["--accept-memory", "eager"],
        _ => &["--firmware-log"],
    };
    let output = casemate(&[&list[..], &boot, flags].concat());
    let built: Value = serde_json::from_slice(&output.stdout).unwrap();
    let built = built[0]["measurement"].as_str().unwrap().to_owned();
    let list = ["measure", platform.word(), "--igvm", &igvm, "--format", "hex"];
    assert_eq!(text(&casemate(&list).stdout).trim(), built);
    let guest = folder.guest(platform, &format!("igvm = \"{igvm}\"\n"));
    assert_eq!(guest.check(folder.0.path()).unwrap(), built);
    Ok(built)
}

/// OVMF: the CPU model is part of the measurement, given in the file, or by a flag that wins, or not.
#[test]
fn guests_of_ovmf() {
    let folder = Folder::new();
    let (firmware, kernel) = (input("tiny-std.fd"), folder.kernel());
    let known = |vcpus: &str, model: &str| {
        let list = ["measure", "snp", "--firmware", &firmware, "--kernel", &kernel];
        let more = ["--cmdline", "quiet", "--vcpus", vcpus, "--vcpu-type", model];
        text(&casemate(&[&list[..], &more, &["--format", "hex"]].concat()).stdout).trim().to_owned()
    };
    for vcpus in ["1", "3"] {
        let boot = format!(
            "firmware = \"{firmware}\"\nkernel = \"{kernel}\"\ncmdline = \"quiet\"\nvcpus = {vcpus}\n"
        );
        let with_model = |model| format!("{boot}[snp]\nvcpu_type = \"{model}\"\n");
        let mut guest = folder.guest(PlatformKind::Snp, &with_model("EPYC-Genoa"));
        assert_eq!(guest.check(folder.0.path()), Ok(known(vcpus, "EPYC-Genoa")));
        guest.flags = vec!["--vcpu-type".into(), "EPYC-Turin".into()];
        assert_eq!(guest.check(folder.0.path()), Ok(known(vcpus, "EPYC-Turin")));
        let guest = folder.guest(PlatformKind::Snp, &boot);
        let reason = guest.check(folder.0.path()).unwrap_err();
        assert!(reason.contains("add --vcpu-type"), "{reason}");
        let host = folder.guest(PlatformKind::Snp, &with_model("host"));
        host.check(folder.0.path()).unwrap();
    }
}

#[test]
fn guests_of_a_tdvf() {
    let folder = Folder::new();
    let boot = format!("firmware = \"{}\"\nmemory = \"1G\"\n", input("tiny-tdx.fd"));
    let plain = folder.guest(PlatformKind::Tdx, &boot).check(folder.0.path()).unwrap();
    let mut kernel = std::fs::read(input("efi-stub-tiny.bin")).unwrap();
    // syssize, in units of 16 bytes, and init_size, without which this is not a whole bzImage.
    kernel[0x1f4..0x1f8].copy_from_slice(&(3072_u32 / 16).to_le_bytes());
    kernel[0x260..0x264].copy_from_slice(&0x10000_u32.to_le_bytes());
    let kernel = folder.write("kernel", &kernel);
    let kernel = format!("{boot}kernel = \"{kernel}\"\nvcpus = 7\n");
    let with_kernel = folder.guest(PlatformKind::Tdx, &kernel).check(folder.0.path()).unwrap();
    assert_eq!(plain, with_kernel);
}

/// The headers of the same pages in different orders: KVM measures the VMSA last, wherever it is.
#[test]
fn guests_of_igvm_files_with_headers_in_any_order() {
    let folder = Folder::new();
    let basic = std::fs::read(input("basic.igvm")).unwrap();
    let digest = |bytes: &[u8]| {
        let igvm = folder.write("guest.igvm", bytes);
        folder.guest(PlatformKind::Snp, &format!("igvm = \"{igvm}\"\n")).check(folder.0.path())
    };
    let expected = vectors::all("igvm-snp").unwrap()[0]["expected"]["launch_digest"].clone();
    assert_eq!(digest(&basic).unwrap(), expected);
    for bytes in with_vp_context_everywhere(&basic) {
        assert_eq!(digest(&bytes).unwrap(), expected);
        let igvm = folder.write("guest.igvm", &bytes);
        let hex = casemate(&["measure", "snp", "--igvm", &igvm, "--format", "hex"]);
        assert_eq!(text(&hex.stdout).trim(), expected);
    }
    let twice = with_last_page_twice(&basic);
    let reason = digest(&twice).unwrap_err();
    assert!(reason.contains("a page that the guest owns already"), "{reason}");
    let igvm = folder.write("guest.igvm", &twice);
    let report = casemate(&["measure", "snp", "--igvm", &igvm, "--format", "json"]);
    assert_eq!(report.status.code(), Some(2));
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!((&report["measurement"], &report["digests"]["kvm"]), (&Value::Null, &Value::Null));
    let list = casemate(&["igvm", "measure", &igvm, "--format", "json"]);
    assert_eq!(list.status.code(), Some(2));
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(list[0]["measurement"], Value::Null);
    let hex = casemate(&["measure", "snp", "--igvm", &igvm, "--format", "hex"]);
    assert_eq!((hex.status.code(), hex.stdout.len()), (Some(2), 0));
    let refusal = report["digests"]["kvm_refuses"].as_str().unwrap();
    assert!(refusal.contains("a page that the guest owns already"), "{refusal}");
}

/// Offsets and types of the variable headers of a file.
fn headers(bytes: &[u8]) -> Vec<(std::ops::Range<usize>, u32)> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut at = word(8) as usize;
    let end = at + word(12) as usize;
    let mut headers = Vec::new();
    while at < end {
        let length = (word(at + 4) as usize).next_multiple_of(8);
        headers.push((at..at + 8 + length, word(at)));
        at += 8 + length;
    }
    headers
}

const PAGE_DATA: u32 = 0x302;
const VP_CONTEXT: u32 = 0x304;

/// The file with its VP context before each of its pages.
fn with_vp_context_everywhere(bytes: &[u8]) -> Vec<Vec<u8>> {
    let all = headers(bytes);
    let (context, _) = all.iter().find(|(_, kind)| *kind == VP_CONTEXT).unwrap().clone();
    let pages = all.iter().filter(|(place, kind)| *kind == PAGE_DATA && place.end <= context.start);
    let moved = |(page, _): &(std::ops::Range<usize>, u32)| {
        let mut bytes = bytes.to_vec();
        bytes[page.start..context.end].rotate_right(context.len());
        repaired(bytes)
    };
    let all: Vec<_> = pages.map(moved).collect();
    assert!(!all.is_empty());
    all
}

/// The file with the address of its first page in the header of its last one, too.
fn with_last_page_twice(bytes: &[u8]) -> Vec<u8> {
    let pages: Vec<_> = headers(bytes).into_iter().filter(|(_, kind)| *kind == PAGE_DATA).collect();
    let address = |at: usize| at + 8..at + 16;
    let mut bytes = bytes.to_vec();
    let (first, last) = (pages.first().unwrap().0.start, pages.last().unwrap().0.start);
    bytes.copy_within(address(first), address(last).start);
    repaired(bytes)
}

/// Puts the checksum right after a change.
fn repaired(mut bytes: Vec<u8>) -> Vec<u8> {
    let headers = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    bytes[20..24].fill(0);
    let sum = crc32fast::hash(&bytes[..24 + headers]);
    bytes[20..24].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// What `run` refuses is not measured.
#[test]
fn guests_that_cannot_be_launched() {
    let folder = Folder::new();
    let kernel = folder.kernel();
    let (overlapping, tiny) = (overlapping_sections(&folder), input("tiny-std.fd"));
    let igvm = input("basic.igvm");
    for (platform, keys, reason) in [
        (
            PlatformKind::Snp,
            format!("firmware = \"{overlapping}\"\n[snp]\nvcpu_type = \"EPYC\"\n"),
            "overlapping sections",
        ),
        (PlatformKind::Snp, format!("igvm = \"{igvm}\"\nvcpus = 2\n"), "the registers of one vCPU"),
        (PlatformKind::Tdx, format!("igvm = \"{igvm}\"\n"), "does not support TDX"),
        (PlatformKind::Tdx, format!("firmware = \"{tiny}\"\n"), "not a TDVF"),
        (
            PlatformKind::Snp,
            format!(
                "firmware = \"{tiny}\"\nkernel = \"{}\"\n[snp]\nvcpu_type = \"EPYC\"\n",
                input("kernel-tiny.bin")
            ),
            "a bzImage, as OVMF starts it",
        ),
        (
            PlatformKind::Tdx,
            format!("kernel = \"{kernel}\"\nfirmware = \"{tiny}\"\nfirmware_log = true\n"),
            "for Casemate's firmware",
        ),
    ] {
        let found = folder.guest(platform, &keys).check(folder.0.path()).unwrap_err();
        assert!(found.contains(reason), "{found}");
    }
}

/// `tiny-std.fd` with the second section of its SEV metadata where the first one is.
fn overlapping_sections(folder: &Folder) -> String {
    let mut image = std::fs::read(input("tiny-std.fd")).unwrap();
    let metadata = image.windows(4).position(|word| word == b"ASEV").unwrap();
    let (first, second) = (metadata + 16, metadata + 28);
    image.copy_within(first..first + 4, second);
    folder.write("overlapping.fd", &image)
}

/// Every guest file of the repository.
#[test]
fn guests_of_the_repository() {
    let folder = golden::Folder::new();
    let mut count = 0;
    for (name, ..) in folder.guests() {
        let file = folder.config(name).to_str().unwrap().to_owned();
        let config = load(Path::new(&file), Overrides::default()).unwrap();
        let platform = casemate_plan::platforms(&config)[0];
        if platform == PlatformKind::Plain {
            continue;
        }
        let guest = Guest { file, platform, flags: Vec::new() };
        guest.check(&folder.path("")).unwrap();
        count += 1;
    }
    assert!(count >= 4, "{count}");
}
