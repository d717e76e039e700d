//! Commands in emulated hosts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::time::Duration;

use casemate_lab::{Chip, Host, LabError, Processor, require};
use kvm_ioctls::Kvm;

/// Runs in the host: what its kernel says of its KVM.
#[test]
#[ignore = "runs inside an emulated host"]
fn inside_kvm_says_what_it_can_run() {
    const KVM_CAP_VM_TYPES: u64 = 235;
    let kvm = Kvm::new().unwrap();
    println!("api {}", kvm.get_api_version());
    println!("types {:#x}", kvm.check_extension_raw(KVM_CAP_VM_TYPES));
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap();
    println!("{}", processor.lines().find(|line| line.starts_with("model name")).unwrap());
    assert!(
        kvm.create_vm().is_ok() || std::env::var("CASEMATE_LAB").is_ok_and(|host| host == "tdx")
    );
}

/// This very program runs there: this machine's files, its libraries, a real `/dev/kvm`.
fn inside(host: Host) -> Option<String> {
    let logs = tempfile::tempdir().unwrap();
    let chip = Chip::recorded(Processor::Milan);
    let lab = require(host)?.chip(chip).timeout(Duration::from_secs(240)).log(logs.path());
    let own = std::env::current_exe().unwrap().display().to_string();
    let test = "inside_kvm_says_what_it_can_run";
    let output = lab.run(&[&own, "--ignored", "--exact", "--nocapture", test]).unwrap();
    assert_eq!(output.status, 0, "{}\n{}", output.console, output.kernel_log);
    assert!(output.console.contains("api 12"), "{}", output.console);
    let console = fs::read_to_string(logs.path().join("console")).unwrap();
    assert!(console.contains("lab: resumed"), "{console}");
    // An echo of the line that made it go on could cut that one.
    assert!(!console.lines().any(|line| line.trim() == "go"), "{console}");
    Some(output.console + &output.kernel_log)
}

#[test]
fn kvm_host_has_plain_guests() {
    let Some(said) = inside(Host::Kvm) else { return };
    assert!(said.contains("kvm_amd: Nested Paging enabled"), "{said}");
}

/// Linux include/uapi/linux/kvm.h and Documentation/virt/kvm/api.rst: `KVM_X86_SNP_VM` is 4.
#[test]
fn snp_host_has_snp_guests() {
    let Some(said) = inside(Host::Snp) else { return };
    assert!(said.contains("kvm_amd: SEV-SNP enabled"), "{said}");
    assert!(said.contains("AMD EPYC 7763 64-Core Processor"), "{said}");
    assert!(vm_types(&said) & (1 << 4) != 0, "{said}");
}

/// `KVM_X86_TDX_VM` is 5.
#[test]
fn tdx_host_has_trust_domains() {
    let Some(said) = inside(Host::Tdx) else { return };
    assert!(said.contains("virt/tdx: TDX-Module initialized"), "{said}");
    assert!(vm_types(&said) & (1 << 5) != 0, "{said}");
}

fn vm_types(said: &str) -> u32 {
    let types = said.lines().find_map(|line| line.strip_prefix("types 0x")).unwrap();
    u32::from_str_radix(types, 16).unwrap()
}

#[test]
fn status_output_and_files_come_back() {
    let Some(lab) = require(Host::Kvm) else { return };
    let directory = tempfile::tempdir().unwrap();
    let lab = lab.share(directory.path()).timeout(Duration::from_secs(120));
    let file = directory.path().join("a file").display().to_string();
    let script = r#"cat /proc/self/comm >"$1"; ls /dev/net/tun /dev/vhost-net /dev/vhost-vsock
        printf 'a\nb\r\n\000\377' | od -An -c; echo to stderr >&2; touch /etc/none && exit 1; exit 7"#;
    let output = lab.run(&["sh", "-c", script, "sh", &file]).unwrap();
    assert_eq!(output.status, 7, "{}", output.console);
    assert_eq!(fs::read_to_string(file).unwrap(), "cat\n");
    for expected in
        ["/dev/vhost-vsock\n", "a  \\n   b  \\r  \\n  \\0 377\n", "to stderr\n", "Read-only"]
    {
        assert!(output.console.contains(expected), "{expected:?} in {:?}", output.console);
    }
    // Each resumed machine gets randomness of its own.
    assert!(output.kernel_log.contains("crng reseeded"), "{}", output.kernel_log);
}

/// Of `/tmp` it sees what is named. Its root is no chroot, in which a kernel makes no user namespaces.
#[test]
fn commands_see_what_they_name_and_may_make_namespaces() {
    let Some(lab) = require(Host::Kvm) else { return };
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let file = directory.path().join("a file").display().to_string();
    fs::write(&file, "seen").unwrap();
    let other = tempfile::tempdir_in("/tmp").unwrap();
    let other = other.path().file_name().unwrap().to_str().unwrap();
    let script = r#"cat "$1" && touch "$1" 2>/dev/null && exit 1
        ls /tmp | grep -q "$2" && exit 2; touch /tmp/new || exit 3
        unshare --user --map-root-user --mount sh -c 'mount -t tmpfs none /mnt && id -u'"#;
    let output = lab.run(&["sh", "-c", script, "sh", &file, other]).unwrap();
    assert_eq!(output.status, 0, "{}", output.console);
    assert!(output.console.ends_with("seen0\n"), "{:?}", output.console);
}

#[test]
fn commands_that_do_not_end_are_ended() {
    let Some(lab) = require(Host::Kvm) else { return };
    // The first start, which saves the machine's state, does not count.
    assert_eq!(lab.run(&["true"]).unwrap().status, 0);
    let lab = lab.timeout(Duration::from_secs(20));
    let error = lab.run(&["sh", "-c", "echo started; sleep 1000"]).unwrap_err();
    assert!(matches!(error, LabError::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains("started"), "{error}");
    assert_eq!(lab.run(&["no such program"]).unwrap().status, 127);
    let error = lab.run(&["sh", "-c", "echo c >/proc/sysrq-trigger"]).unwrap_err();
    assert!(matches!(error, LabError::Died { .. }), "{error}");
    assert!(error.to_string().contains("panic"), "{error}");
}
