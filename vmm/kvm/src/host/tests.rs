//! Checks on recorded facts and trees, and on this machine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::vm::PLATFORMS;

/// What `casemate host --json` saw on an emulated SEV-SNP host with Debian's Linux 6.12.
fn snp_host() -> Facts {
    serde_json::from_str(include_str!("../../testdata/snp-host-6.12.json")).expect("recorded facts")
}

/// The same of an emulated TDX host with Linux 7.2.
fn tdx_host() -> Facts {
    serde_json::from_str(include_str!("../../testdata/tdx-host-7.2.json")).expect("recorded facts")
}

/// A root with these files.
fn tree(files: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().expect("a temporary folder");
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("folders");
        fs::write(path, text).expect("a file");
    }
    root
}

fn finding<'a>(findings: &'a [Finding], check: &str) -> &'a Finding {
    let found = findings.iter().find(|finding| finding.check == check);
    found.unwrap_or_else(|| panic!("no finding {check} among {findings:#?}"))
}

#[test]
fn an_snp_host_launches_snp_and_plain_guests() {
    let findings = findings(&snp_host());
    let launchable: Vec<PlatformKind> =
        PLATFORMS.into_iter().filter(|&platform| can_launch(&findings, platform)).collect();
    assert_eq!(launchable, [PlatformKind::Snp, PlatformKind::Plain]);
    assert!(finding(&findings, "snp firmware").says.starts_with("ABI 1.55 build 21"));
    assert!(finding(&findings, "snp policy").says.starts_with("policy bits 0xbffff (assumed)"));
    assert!(finding(&findings, "snp asids").says.starts_with("99 "));
}

/// The recorded host, without SEV-SNP in KVM and with one reason for it.
fn without_snp(spoil: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = snp_host();
    let kvm = facts.kvm.as_mut().expect("recorded");
    kvm.vm_types = 1;
    kvm.private_memory.clear();
    spoil(&mut facts);
    findings(&facts)
}

fn snp_off(facts: &mut Facts) {
    let module = facts.modules.get_mut("kvm_amd").expect("recorded");
    module.insert("sev_snp".into(), "N".into());
}

#[test]
fn a_host_whose_iommu_translates_is_not_told_of_passthrough() {
    let findings = without_snp(|facts| {
        snp_off(facts);
        facts.kernel.command_line = "iommu=nopt iommu.passthrough=0".into();
        facts.iommu_group_types = vec!["DMA-FQ".into()];
    });
    assert!(findings.iter().all(|finding| finding.check != "snp iommu"), "{findings:#?}");
}

#[test]
fn what_a_confidential_guest_meets_beside_kvm_is_noted() {
    let mut facts = snp_host();
    facts.kernel.overcommit = Some(2);
    facts.selinux =
        Some(SeLinux { enforcing: true, context: "system_u:system_r:virt_t:s0".into() });
    let all = findings(&facts);
    for (check, words) in [("overcommit", "counts twice"), ("selinux", "confined to virt_t")] {
        let note = finding(&all, check);
        assert!(note.state == State::Note && note.says.contains(words), "{note:?}");
        assert!(!note.blocks(PlatformKind::Snp) && note.fix.is_some());
    }
    facts.kernel.overcommit = Some(1);
    let context = "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023";
    facts.selinux = Some(SeLinux { enforcing: true, context: context.into() });
    let all = findings(&facts);
    assert!(all.iter().all(|finding| finding.check != "overcommit"));
    assert_eq!(finding(&all, "selinux").state, State::Ok);
    // One that only logs is in nobody's way.
    facts.selinux = Some(SeLinux { enforcing: false, context: "a:b:virt_t:s0".into() });
    assert!(findings(&facts).iter().all(|finding| finding.check != "selinux"));
}

#[test]
fn a_user_who_may_not_open_the_secure_processor_gets_a_udev_rule() {
    let mut facts = snp_host();
    facts.devices.insert("/dev/sev".into(), Access::Denied);
    let all = findings(&facts);
    let fix = finding(&all, "snp firmware").fix.clone().expect("a fix");
    assert!(
        fix.contains("setfacl") && fix.contains("KERNEL==\"sev\", GROUP=\"kvm\", MODE=\"0660\"")
    );
}

#[test]
fn passthrough_overcommit_and_selinux_are_read_from_files() {
    let root = tree(&[
        ("proc/cmdline", "ro iommu=pt\n"),
        ("proc/sys/vm/overcommit_memory", "2\n"),
        ("proc/self/attr/current", "system_u:system_r:virt_t:s0\0"),
        ("sys/fs/selinux/enforce", "1"),
        ("sys/kernel/iommu_groups/0/type", "identity\n"),
        ("sys/kernel/iommu_groups/1/type", "DMA-FQ\n"),
        ("sys/kernel/iommu_groups/2/type", "identity\n"),
    ]);
    let facts = Facts::gather(root.path());
    assert_eq!(facts.kernel.command_line, "ro iommu=pt");
    assert_eq!(facts.kernel.overcommit, Some(2));
    assert_eq!(facts.iommu_group_types, ["DMA-FQ", "identity"]);
    let selinux = facts.selinux.expect("there");
    assert_eq!(
        (selinux.enforcing, selinux.context.as_str()),
        (true, "system_u:system_r:virt_t:s0")
    );
    assert_eq!(Facts::gather(tree(&[]).path()).selinux, None);
}

#[test]
fn each_reason_for_no_snp_is_found() {
    type Spoil = fn(&mut Facts);
    let cases: &[(&str, &str, Spoil)] = &[
        ("snp cpu", "has no SEV-SNP", |facts| facts.cpu.sev = None),
        ("snp cpu", "GenuineIntel has no SEV-SNP", |facts| {
            facts.cpu.vendor = "GenuineIntel".into();
        }),
        ("snp kernel", "from Linux 6.11 on", |facts| {
            facts.kernel.release = "6.1.0-44-amd64".into();
        }),
        ("snp kernel", "family 0x1a from Linux 6.14 on", |facts| {
            facts.cpu.signature.0 = 0x1a;
            facts.kernel.release = "6.12.117+deb13-amd64".into();
        }),
        // The flag of /proc/cpuinfo and the IOMMUs stay: only the parameter is N.
        ("snp iommu", "booted with iommu=pt, which", |facts| {
            snp_off(facts);
            facts.kernel.command_line = "root=/dev/sda1 iommu=pt quiet".into();
        }),
        ("snp iommu", "booted with amd_iommu=pgtbl_v2, which", |facts| {
            snp_off(facts);
            facts.kernel.command_line = "amd_iommu=pgtbl_v2".into();
        }),
        ("snp iommu", "passthrough mode", |facts| {
            snp_off(facts);
            facts.iommu_group_types = vec!["DMA-FQ".into(), "identity".into()];
        }),
        ("snp bios", "keeps memory encryption off", |facts| facts.kernel.cpu_flags.clear()),
        ("snp bios", "no usable RMP table", |facts| {
            facts.kernel.cpu_flags.retain(|flag| flag != "sev_snp");
        }),
        ("snp asids", "all ASIDs", |facts| {
            facts.cpu.sev.as_mut().expect("recorded").min_sev_asid = 1;
        }),
        ("snp iommu", "no IOMMU", |facts| facts.iommus.clear()),
        ("snp cpus", "processors 0-2 of 0-3 are online", |facts| {
            facts.kernel.cpus = ("0-2".into(), "0-3".into());
        }),
        ("snp module", "is not loaded", |facts| drop(facts.modules.remove("kvm_amd"))),
        ("snp module", "built without SEV-SNP", |facts| {
            facts.modules.get_mut("kvm_amd").expect("recorded").remove("sev_snp");
        }),
        ("snp module", "has SEV-SNP off", |facts| {
            let module = facts.modules.get_mut("kvm_amd").expect("recorded");
            module.insert("sev_snp".into(), "N".into());
        }),
        ("snp psp", "driver is not loaded", |facts| drop(facts.modules.remove("ccp"))),
        ("snp kvm", "for a reason only the log has", |_| {}),
    ];
    for (check, words, spoil) in cases {
        let findings = without_snp(spoil);
        let reason = finding(&findings, check);
        assert!(reason.blocks(PlatformKind::Snp) && reason.says.contains(words), "{reason:?}");
        assert!(!reason.blocks(PlatformKind::Plain), "{reason:?}");
        assert!(reason.fix.is_some(), "{reason:?}");
    }
}

#[test]
fn a_tdx_host_launches_tdx_and_plain_guests() {
    let mut facts = tdx_host();
    facts.misc.insert("tdx".into(), Misc { capacity: Some(31), limit: None, used: 0 });
    let findings = findings(&facts);
    let launchable: Vec<PlatformKind> =
        PLATFORMS.into_iter().filter(|&vm_type| can_launch(&findings, vm_type)).collect();
    assert_eq!(launchable, [PlatformKind::Tdx, PlatformKind::Plain]);
    assert_eq!(
        finding(&findings, "tdx kvm").says,
        "KVM launches TDs, up to 2 vCPUs, TDX module 1.5.06"
    );
    assert!(finding(&findings, "cgroup tdx").says.ends_with("31"));
    assert_eq!(finding(&findings, "tdx quotes").state, State::Note);
}

#[test]
fn each_reason_for_no_tdx_is_found() {
    type Spoil = fn(&mut Facts);
    let parameter = |facts: &mut Facts, module: &str, name: &str, value: &str| {
        let module = facts.modules.get_mut(module).expect("recorded");
        module.insert(name.into(), value.into());
    };
    let cases: &[(&str, &str, Spoil)] = &[
        ("tdx cpu", "AuthenticAMD has no TDX", |facts| facts.cpu.vendor = "AuthenticAMD".into()),
        ("tdx cpu", "MOVDIR64B", |facts| facts.cpu.movdir64b = false),
        ("tdx kernel", "from Linux 6.16 on", |facts| facts.kernel.release = "6.12.107".into()),
        ("tdx module", "is not loaded", |facts| drop(facts.modules.remove("kvm_intel"))),
        ("tdx module", "built without TDX", |facts| {
            facts.modules.get_mut("kvm_intel").expect("recorded").remove("tdx");
        }),
        ("tdx hibernation", "can hibernate", |facts| facts.kernel.hibernation = true),
        ("tdx kvm", "for a reason only the log has", |_| {}),
    ];
    let without_tdx = |spoil: &dyn Fn(&mut Facts)| {
        let mut facts = tdx_host();
        let kvm = facts.kvm.as_mut().expect("recorded");
        kvm.vm_types = 1;
        spoil(&mut facts);
        findings(&facts)
    };
    for (check, words, spoil) in cases {
        let findings = without_tdx(spoil);
        let reason = finding(&findings, check);
        assert!(reason.blocks(PlatformKind::Tdx) && reason.says.contains(words), "{reason:?}");
    }
    for (module, name, check) in [
        ("kvm_intel", "tdx", "tdx module"),
        ("kvm_intel", "enable_apicv", "tdx kvm"),
        ("kvm", "enable_virt_at_load", "tdx kvm"),
    ] {
        let findings = without_tdx(&|facts| parameter(facts, module, name, "N"));
        let reason = finding(&findings, check);
        assert!(reason.blocks(PlatformKind::Tdx) && reason.says.contains("off"), "{reason:?}");
    }
}

#[test]
fn what_a_launch_needs_besides_kvm_is_looked_at() {
    type Spoil = fn(&mut Facts);
    let cases: &[(&str, &str, Spoil)] = &[
        ("snp firmware", "no /dev/sev", |facts| drop(facts.devices.remove("/dev/sev"))),
        ("snp firmware", "may not open", |facts| {
            facts.devices.insert("/dev/sev".into(), Access::Denied);
        }),
        ("snp firmware", "not initialised", |facts| {
            if let Some(Ok(status)) = &mut facts.sev_firmware {
                status.initialised = false;
            }
        }),
        ("snp firmware", "does not answer: no", |facts| {
            facts.sev_firmware = Some(Err("no".into()));
        }),
        ("cgroup sev_es", "allows 2 guests, and 2 run", |facts| {
            let limited = Misc { capacity: Some(99), limit: Some(2), used: 2 };
            facts.misc.insert("sev_es".into(), limited);
        }),
        ("private memory", "lacks guest_memfd", |facts| {
            facts.kvm.as_mut().expect("recorded").guest_memfd = false;
        }),
    ];
    for (check, words, spoil) in cases {
        let mut facts = snp_host();
        spoil(&mut facts);
        let findings = findings(&facts);
        let reason = finding(&findings, check);
        assert!(reason.blocks(PlatformKind::Snp) && reason.says.contains(words), "{reason:?}");
    }
}

#[test]
fn without_kvm_nothing_can_be_launched() {
    for (access, fix) in [
        (Access::Missing, "sudo modprobe kvm_amd"),
        (Access::Denied, "run as root, or: sudo setfacl -m u:$USER:rw /dev/kvm"),
        (Access::Fails { why: "Device or resource busy".into() }, "look for kvm"),
    ] {
        let mut facts = snp_host();
        facts.devices.insert("/dev/kvm".into(), access);
        facts.kvm = None;
        let findings = findings(&facts);
        assert!(PLATFORMS.iter().all(|&vm_type| !can_launch(&findings, vm_type)));
        let fixes = finding(&findings, "kvm").fix.as_deref();
        assert!(fixes.is_some_and(|text| text.starts_with(fix)), "{fixes:?}");
    }
}

/// As in virtual machines whose host has no nested virtualisation, and whose kernel has a KVM in software.
#[test]
fn kvm_without_hardware_virtualisation_launches_nothing() {
    let mut facts = snp_host();
    facts.kernel.cpu_flags.clear();
    facts.cpu.is_virtual = true;
    let findings = findings(&facts);
    assert_eq!(finding(&findings, "kvm").state, State::Ok);
    let finding = finding(&findings, "virtualisation");
    assert!(PLATFORMS.iter().all(|&platform| finding.blocks(platform)), "{finding:?}");
    assert!(finding.fix.as_deref().is_some_and(|fix| fix.starts_with("enable nested")));
    // The flag of either vendor is enough.
    facts.kernel.cpu_flags = vec!["vmx".into()];
    assert!(can_launch(&super::findings(&facts), PlatformKind::Plain));
}

#[test]
fn files_of_a_host_are_read() {
    let root = tree(&[
        ("proc/sys/kernel/osrelease", "6.18.3-custom\n"),
        ("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu svm sme sev sev_es\n\nprocessor\t: 1\n"),
        ("sys/devices/system/cpu/online", "0-63\n"),
        ("sys/devices/system/cpu/present", "0-127\n"),
        ("sys/devices/system/cpu/smt/active", "1\n"),
        ("sys/power/disk", "[disabled]\n"),
        ("sys/module/kvm_intel/parameters/tdx", "Y\n"),
        ("sys/module/kvm/parameters/tdp_mmu", "N\n"),
        ("sys/class/iommu/ivhd0/name", ""),
        ("sys/devices/faux/tdx_host/version", "1.5.06\n"),
        ("dev/kvm", "a file, not a device"),
    ]);
    let facts = Facts::gather(root.path());
    assert_eq!(facts.kernel.version(), Some((6, 18)));
    assert_eq!(facts.kernel.cpu_flags, ["svm", "sme", "sev", "sev_es"]);
    assert_eq!(facts.kernel.cpus, ("0-63".into(), "0-127".into()));
    assert!(facts.kernel.smt && !facts.kernel.hibernation);
    assert_eq!(facts.parameter("kvm_intel", "tdx"), Some("Y"));
    assert_eq!(facts.parameter("kvm", "tdp_mmu"), Some("N"));
    assert_eq!(facts.parameter("kvm_amd", "sev_snp"), None);
    assert_eq!(facts.iommus, ["ivhd0"]);
    assert_eq!(facts.tdx_module.as_deref(), Some("1.5.06"));
    assert_eq!(facts.device("/dev/kvm"), &Access::Opens);
    assert_eq!(facts.device("/dev/sev"), &Access::Missing);
    assert_eq!(facts.kvm, None);
    let findings = findings(&facts);
    assert_eq!(finding(&findings, "kvm").says, "/dev/kvm is not KVM");
}

#[test]
fn an_empty_root_is_no_host() {
    let root = tree(&[]);
    let findings = findings(&Facts::gather(root.path()));
    assert!(PLATFORMS.iter().all(|&vm_type| !can_launch(&findings, vm_type)));
}

/// The group of the process is two levels deep; the tightest limit is in the middle.
#[test]
fn the_tightest_cgroup_counts() {
    let group = "sys/fs/cgroup/system.slice";
    let root = tree(&[
        ("proc/self/cgroup", "0::/system.slice/guests.service\n"),
        ("sys/fs/cgroup/misc.capacity", "sev_es 99\ntdx 0\n"),
        (&format!("{group}/misc.max"), "sev_es 3\ntdx max\n"),
        (&format!("{group}/misc.current"), "sev_es 3\n"),
        (&format!("{group}/guests.service/misc.max"), "sev_es 10\n"),
        (&format!("{group}/guests.service/misc.current"), "sev_es 1\n"),
    ]);
    let misc = Facts::gather(root.path()).misc;
    let expected = Misc { capacity: Some(99), limit: Some(3), used: 3 };
    assert_eq!(misc.get("sev_es"), Some(&expected));
    assert_eq!(misc.get("tdx"), Some(&Misc { capacity: Some(0), limit: None, used: 0 }));
}

#[test]
fn a_device_that_may_not_be_opened_is_told_from_a_missing_one() {
    let root = tree(&[("dev/sev", "")]);
    let path = root.path().join("dev/sev");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("chmod");
    if fs::File::open(&path).is_ok() {
        eprintln!("NOT TESTED: this user (root?) may open files without permission");
        return;
    }
    assert_eq!(Facts::gather(root.path()).device("/dev/sev"), &Access::Denied);
}

/// This machine, whatever it is: what is said to be there is there.
#[test]
fn this_machine_is_judged_as_it_is() {
    let facts = Facts::gather(Path::new("/"));
    assert!(!facts.cpu.vendor.is_empty() && facts.kernel.version().is_some(), "{facts:?}");
    let kvm = kvm_ioctls::Kvm::new();
    for vm_type in PLATFORMS {
        let created = kvm.as_ref().is_ok_and(|kvm| kvm.create_vm_with_type(vm_type as u64).is_ok());
        assert!(created || check(vm_type).is_err(), "{vm_type} cannot be created");
    }
    let text = serde_json::to_string(&facts).expect("JSON");
    assert_eq!(serde_json::from_str::<Facts>(&text).expect("the same JSON"), facts);
}
