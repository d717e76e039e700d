//! SEV-SNP guests of `casemate run`, in the emulated host: an unmodified kernel with its kvm_amd and
//! its driver of the secure processor, which measures and signs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use casemate_lab::guest::initramfs;
use casemate_lab::kernel::{Flavour, Kernel};
use casemate_lab::packages::Packages;
use casemate_lab::{Host, Output, require};

/// What the guest says of itself: its processors, its encryption, and what its report says of its
/// launch: MEASUREMENT at 0x90, HOST_DATA at 0xc0, ID_KEY_DIGEST at 0xe0 (SEV-SNP firmware ABI,
/// "ATTESTATION_REPORT"). With `again` on its command line it writes to an empty disk and resets. Else
/// it reads its disk and writes the sum of what it read.
const SCRIPT: &str = r"
# No words of the kernel's in the middle of ours.
dmesg -n 1
echo UP vcpus=$(nproc) kernel=$(uname -r)
dmesg | grep -o 'active: AMD SEV SEV-ES SEV-SNP'
mount -t configfs none /sys/kernel/config
report=/sys/kernel/config/tsm/report/r
mkdir $report
head -c 64 /dev/zero >$report/inblob
hex() { dd if=$report/outblob bs=1 skip=$1 count=$2 2>/dev/null | od -An -v -tx1 | tr -d ' \n'; }
echo MEASUREMENT $(hex 144 48)
echo HOST_DATA $(hex 192 32)
echo ID_KEY $(hex 224 48)
if grep -q again /proc/cmdline && ! grep -q written /dev/vda; then
	echo written by the guest | dd of=/dev/vda bs=512 conv=sync,notrunc 2>/dev/null
	sync
	reboot -f
fi
if [ -b /dev/vda ]; then
	echo DISK $(sha256sum </dev/vda | cut -d' ' -f1)
	echo written by the guest | dd of=/dev/vda bs=512 conv=sync,notrunc 2>/dev/null
	sync
fi
";

/// Drivers of reports and disks.
const MODULES: &[&str] = &["configfs", "sev-guest", "virtio_pci", "virtio_blk"];

/// Ciphers that 6.12's driver of reports asks for by name.
const CIPHERS: &[&str] = &["ghash-generic", "gcm"];

const CMDLINE: &str = "console=ttyS0 quiet panic=-1 efi=noruntime";

const HOST_DATA: &str = "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef";

fn in_lab(script: &str, folder: &Path) -> Option<Output> {
    let lab = require(Host::Snp)?.timeout(Duration::from_secs(400)).share(folder);
    Some(lab.run(&["sh", "-c", script]).unwrap())
}

fn guest(series: &str, more_modules: &[&str]) -> tempfile::TempDir {
    let packages = Packages::open().unwrap();
    let kernel = Kernel::debian(&packages, series, Flavour::Cloud).unwrap();
    let modules = kernel.modules(&[more_modules, MODULES].concat()).unwrap();
    // Not in /tmp: the emulated host has one of its own.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = initramfs(&packages, &modules, SCRIPT).unwrap().build();
    fs::write(folder.path().join("initrd"), image).unwrap();
    fs::copy(&kernel.image, folder.path().join("vmlinuz")).unwrap();
    folder
}

/// A line of shell that runs the guest and says its exit status.
fn line(folder: &Path, flags: &str) -> String {
    let (casemate, folder) = (env!("CARGO_BIN_EXE_casemate"), folder.display());
    format!(
        "timeout 150 {casemate} run --platform snp --kernel {folder}/vmlinuz --initrd \
         {folder}/initrd --memory 192M --cmdline '{CMDLINE}' {flags} </dev/null; echo \"ENDED $?\"\n"
    )
}

fn sha256(bytes: &[u8]) -> String {
    let sum = <sha2::Sha256 as sha2::Digest>::digest(bytes);
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The word that follows a name, at its n-th place.
fn said<'a>(console: &'a str, name: &str, place: usize) -> &'a str {
    let after = console.match_indices(name).nth(place);
    let (at, _) = after.unwrap_or_else(|| panic!("no {name} number {place}: {console}"));
    console[at + name.len()..].split_whitespace().next().unwrap()
}

/// What was predicted is what the platform measured and signed.
fn predicted(console: &str, place: usize) {
    let expected = said(console, "expected measurement ", place);
    assert_eq!(expected.len(), 96);
    assert_eq!(said(console, "MEASUREMENT ", place), expected, "{console}");
}

#[test]
fn a_guest_is_encrypted_and_measures_to_what_was_predicted() {
    if require(Host::Snp).is_none() {
        return;
    }
    let folder = guest("6.12", CIPHERS);
    let disk = folder.path().join("disk");
    let contents: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    fs::write(&disk, &contents).unwrap();
    let config = folder.path().join("guest.toml");
    let mut file = fs::File::create(&config).unwrap();
    writeln!(file, "[snp]\nhost_data = \"{HOST_DATA}\"").unwrap();
    let flags = format!("--disk {} {}", disk.display(), config.display());
    let trace = folder.path().join("trace");
    let more = format!("--vcpus 4 --record {} --log casemate=info", trace.display());
    let script = line(folder.path(), &flags)
        + &line(folder.path(), &more)
        + &line(folder.path(), "--vcpus 16");
    let Some(output) = in_lab(&script, folder.path()) else { return };
    let console = &output.console;
    assert_eq!(console.matches("ENDED 0").count(), 3, "{console}");
    for (place, vcpus) in [1, 4, 16].into_iter().enumerate() {
        assert!(console.contains(&format!("UP vcpus={vcpus} kernel=6.12")), "{console}");
        predicted(console, place);
    }
    assert!(console.contains("bytes, at most"), "{console}");
    let trace = fs::read_to_string(trace).unwrap();
    let last = trace.lines().last().unwrap();
    assert!(last.contains("KVM_SEV_SNP_LAUNCH_FINISH"), "{trace}");
    assert!(console.contains("active: AMD SEV SEV-ES SEV-SNP"), "{console}");
    assert_eq!(said(console, "HOST_DATA ", 0), HOST_DATA);
    // Through shared bounce buffers, both ways.
    assert_eq!(said(console, "DISK ", 0), sha256(&contents));
    assert!(fs::read(&disk).unwrap().starts_with(b"written by the guest"));
}

/// With its processors, after a reset as before it: the same plan is launched again.
#[test]
fn a_guest_of_four_processors_resets() {
    if require(Host::Snp).is_none() {
        return;
    }
    let folder = guest("7.2", &[]);
    let disk = folder.path().join("disk");
    fs::write(&disk, [0; 4096]).unwrap();
    let flags = format!(
        "--vcpus 4 --on-reset restart --disk {} --cmdline '{CMDLINE} again'",
        disk.display()
    );
    let script = line(folder.path(), "").replace(&format!("--cmdline '{CMDLINE}'"), &flags)
        + &line(folder.path(), "");
    let Some(output) = in_lab(&script, folder.path()) else { return };
    let (console, single) = output.console.split_once("ENDED 0").unwrap_or_else(|| {
        panic!("{}", output.console);
    });
    assert!(single.contains("UP vcpus=1 kernel=7.2"), "{single}");
    predicted(single, 0);
    assert_eq!(console.matches("UP vcpus=4 kernel=7.2").count(), 2, "{console}");
    let measured = said(console, "MEASUREMENT ", 0);
    assert_eq!(said(console, "MEASUREMENT ", 1), measured, "{console}");
    predicted(console, 0);
    // The machine, in the form that the book documents.
    let machine = "casemate machine 1\nmemory 201326592\nvcpus 4\nrng true\nconsole false\n\
                   disk read_only=false queues=1 serial=-\n";
    assert_eq!(said(console, "HOST_DATA ", 0), sha256(machine.as_bytes()), "{console}");
}

fn casemate(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_casemate")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The secure processor launches what an ID block was signed for, and nothing else.
#[test]
fn an_id_block_is_for_one_measurement() {
    if require(Host::Snp).is_none() {
        return;
    }
    let folder = guest("6.12", CIPHERS);
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (kernel, initrd, key) = (path("vmlinuz"), path("initrd"), id_key());
    let measure = ["measure", "snp", "--vmm", "casemate", "--vcpus", "1", "--kernel", &kernel];
    let more = ["--initrd", &initrd, "--append", CMDLINE, "--format", "hex"];
    let good = casemate(&[&measure[..], &more[..]].concat()).trim().to_owned();
    let other = good.replace(&good[..8], "00000000");
    let mut script = String::new();
    let mut id_key_digest = String::new();
    for (name, measurement) in [("good", &good), ("other", &other)] {
        let (block, page) = (path(&format!("{name}.block")), path(&format!("{name}.auth")));
        let said = casemate(&[
            "id-block",
            "--measurement",
            measurement,
            "--id-key",
            &key,
            "--policy",
            "0x30000",
            "--out-block",
            &block,
            "--out-auth",
            &page,
        ]);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        id_key_digest = said["id_key_digest"].as_str().unwrap().to_owned();
        let config = path(&format!("{name}.toml"));
        let table = format!("[snp]\nid_block = \"{block}\"\nid_authentication = \"{page}\"\n");
        fs::write(&config, table).unwrap();
        script += &line(folder.path(), &config);
    }
    let Some(output) = in_lab(&script, folder.path()) else { return };
    let console = &output.console;
    let (good, other) = console.split_once("ENDED 0").unwrap_or_else(|| panic!("{console}"));
    predicted(good, 0);
    assert_eq!(said(good, "ID_KEY ", 0), id_key_digest);
    assert!(!other.contains("UP vcpus"), "{other}");
    assert!(other.contains("ENDED 2") && other.contains("BAD_MEASUREMENT"), "{other}");
}

fn id_key() -> String {
    let inputs = casemate_tests::vectors::folder().join("inputs");
    inputs.join("TEST-ONLY-id-0.key.pem").to_str().unwrap().to_owned()
}
