//! A TDX guest with Linux and Casemate's own firmware, in the emulated host.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs;
use std::time::Duration;

use casemate_lab::guest::initramfs;
use casemate_lab::kernel::{Flavour, Kernel};
use casemate_lab::packages::Packages;
use casemate_lab::{Host, require};

/// What the guest says of itself: its processors, its encryption, and its registers as its kernel
/// has them of the TDX module. A processor goes and comes again: the firmware holds it meanwhile.
const LINUX: &str = r"
dmesg -n 1
echo UP vcpus=$(nproc) kernel=$(uname -r)
dmesg | grep -o 'active: Intel TDX'
echo 0 >/sys/devices/system/cpu/cpu1/online
echo 1 >/sys/devices/system/cpu/cpu1/online
echo AGAIN vcpus=$(nproc)
for register in mrtd:sha384 rtmr0:sha384 rtmr1:sha384 rtmr2:sha384; do
	value=$(od -An -v -tx1 /sys/devices/virtual/misc/tdx_guest/measurements/$register | tr -d ' \n')
	echo REGISTER $register $value
done
";

/// Our own firmware, with the kernel that it starts: both are measured, and the kernel says the same.
#[test]
fn linux_is_started_by_our_firmware_and_has_the_predicted_registers() {
    if require(Host::Tdx).is_none() {
        return;
    }
    const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 efi=noruntime";
    // Not in /tmp: the emulated host has one of its own.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let packages = Packages::open().unwrap();
    let kernel = Kernel::debian(&packages, "7.2", Flavour::Cloud).unwrap();
    let modules = kernel.modules(&["tdx-guest"]).unwrap();
    fs::write(path("initrd"), initramfs(&packages, &modules, LINUX).unwrap().build()).unwrap();
    fs::copy(&kernel.image, path("vmlinuz")).unwrap();
    let casemate = env!("CARGO_BIN_EXE_casemate");
    let guest = [
        ["--kernel", &path("vmlinuz")],
        ["--initrd", &path("initrd")],
        ["--memory", "192M"],
        ["--vcpus", "2"],
    ];
    let run = format!(
        "timeout 600 {casemate} run --platform tdx {} --cmdline '{COMMAND_LINE}' </dev/null 2>&1; \
         echo \"ENDED $?\"\n",
        guest.as_flattened().join(" ")
    );
    let lab = require(Host::Tdx).unwrap().timeout(Duration::from_secs(900)).share(folder.path());
    let output = lab.run(&["sh", "-c", &run]).unwrap();
    let console = &output.console;
    assert!(console.contains("ENDED 0"), "{console}");
    assert!(console.contains("UP vcpus=2 kernel=7.2"), "{console}");
    assert!(console.contains("active: Intel TDX"), "{console}");
    assert!(console.contains("AGAIN vcpus=2"), "{console}");
    let measure = std::process::Command::new(casemate)
        .args(["measure", "tdx", "--format", "json", "--append", COMMAND_LINE])
        .args(guest.as_flattened())
        .output()
        .unwrap();
    let measured: serde_json::Value = serde_json::from_slice(&measure.stdout).unwrap();
    let mrtd = format!(" mrtd {}", measured["mrtd"].as_str().unwrap());
    assert!(output.platform_log.contains(&mrtd), "{mrtd}: {}", output.platform_log);
    let rtmr = &measured["rtmr"];
    for (register, value) in [
        ("mrtd:sha384", &measured["mrtd"]),
        ("rtmr0:sha384", &rtmr[0]),
        ("rtmr1:sha384", &rtmr[1]),
        ("rtmr2:sha384", &rtmr[2]),
    ] {
        let said = format!("REGISTER {register} {}", value.as_str().unwrap());
        assert!(console.contains(&said), "{said}: {console}");
    }
}
