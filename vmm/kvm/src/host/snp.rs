//! The checks of SEV-SNP.

use super::checks::{Report, grant, private_memory, room, vcpus};
use super::facts::{Access, Facts};
use crate::sev_device::SevDevice;
use casemate_launch::PlatformKind;

pub(super) fn checks(facts: &Facts, report: &mut Report) {
    let cpu = &facts.cpu;
    if cpu.vendor != "AuthenticAMD" {
        let says = format!("{} has no SEV-SNP", named(&cpu.vendor));
        return report.missing("snp cpu", says, "use an AMD EPYC of the third generation or later");
    }
    let offered = facts.kvm.as_ref().is_some_and(|kvm| kvm.offers(PlatformKind::Snp));
    if offered {
        let vcpus = vcpus(facts, PlatformKind::Snp);
        report.ok("snp kvm", format!("KVM launches SEV-SNP guests{vcpus}"));
        private_memory(facts, PlatformKind::Snp, report);
        policy(facts, report);
    } else {
        reasons(facts, report);
    }
    if let Some(leaf) = cpu.sev.filter(|leaf| leaf.snp) {
        asids(facts, leaf.snp_asids(), report);
        room(facts, "sev_es", report);
        device(facts, report);
    }
}

pub(super) fn named(vendor: &str) -> &str {
    if vendor.is_empty() { "this processor" } else { vendor }
}

/// Why KVM offers no SEV-SNP: the first reasons are the causes of the later ones.
fn reasons(facts: &Facts, report: &mut Report) {
    const LOG: &str = "look for SEV and RMP in the kernel's log: sudo dmesg | grep -iE 'sev|rmp'";
    let kernel = &facts.kernel;
    let flag = |name: &str| kernel.cpu_flags.iter().any(|flag| flag == name);
    let parameter = |name: &str| facts.parameter("kvm_amd", name);
    let Some(leaf) = facts.cpu.sev.filter(|leaf| leaf.snp) else {
        let says = if facts.cpu.is_virtual {
            "this virtual machine's processor has no SEV-SNP"
        } else {
            "this processor has no SEV-SNP"
        };
        let fix = "use an AMD EPYC of the third generation or later, on bare metal";
        return report.missing("snp cpu", says, fix);
    };
    report.ok("snp cpu", format!("SEV-SNP, C-bit {}", leaf.c_bit));
    let mut known = false;
    let mut missing = |check: &str, says: &str, fix: &str| {
        known = true;
        report.missing(check, says, fix);
    };
    if kernel.version().is_some_and(|version| version < (6, 11)) {
        missing(
            "snp kernel",
            "KVM launches SEV-SNP guests from Linux 6.11 on",
            "use a newer kernel",
        );
    }
    // RMPREAD and segmented RMP tables, which this family needs.
    if facts.cpu.signature.0 == 0x1a && kernel.version().is_some_and(|version| version < (6, 14)) {
        let says = "KVM launches SEV-SNP guests on processors of family 0x1a from Linux 6.14 on";
        missing("snp kernel", says, "use a newer kernel");
    }
    if !flag("sev") {
        let fix = "in the BIOS: enable SMEE (Secure Memory Encryption)";
        missing("snp bios", "the BIOS keeps memory encryption off", fix);
    } else if !flag("sev_snp") {
        let fix = "in the BIOS: enable SNP and the RMP table for all memory (SEV-SNP Support, SNP \
                   Memory Coverage); boot with iommu on";
        missing("snp bios", "the kernel found no usable RMP table", fix);
    }
    if leaf.snp_asids() == 0 {
        let fix = "in the BIOS: set the minimum SEV ASID (SEV-ES ASID Space Limit) above 1";
        missing("snp asids", "all ASIDs are for SEV guests without SEV-ES", fix);
    }
    if facts.iommus.is_empty() {
        let fix = "in the BIOS: enable the IOMMU; remove amd_iommu=off and iommu=off from the \
                   kernel's command line";
        missing("snp iommu", "there is no IOMMU, which SEV-SNP needs", fix);
    }
    // Then the kernel clears only an attribute of its own (drivers/iommu/amd/init.c, iommu_snp_enable):
    // the processor's flag and the IOMMUs stay visible.
    if !facts.iommus.is_empty() && matches!(parameter("sev_snp"), Some("N" | "0")) {
        if let Some(option) = iommu_option(&kernel.command_line) {
            let says = format!("the kernel was booted with {option}, which rules SEV-SNP out");
            let fix = format!("boot without {option}; the kernel's log says {IOMMU_LOG:?}");
            missing("snp iommu", &says, &fix);
        } else if facts.iommu_group_types.iter().any(|kind| kind == "identity") {
            let says = "the IOMMU is in passthrough mode, which rules SEV-SNP out";
            let fix = format!(
                "boot with iommu.passthrough=0 (or a kernel without \
                 CONFIG_IOMMU_DEFAULT_PASSTHROUGH); the kernel's log says {IOMMU_LOG:?}"
            );
            missing("snp iommu", says, &fix);
        }
    }
    if kernel.cpus.0 != kernel.cpus.1 {
        let says = format!("processors {} of {} are online", kernel.cpus.0, kernel.cpus.1);
        let fix = "bring all processors online and load kvm_amd again: SEV-SNP needs them all";
        missing("snp cpus", &says, fix);
    }
    match parameter("sev_snp") {
        None if facts.modules.contains_key("kvm_amd") => {
            let fix = "use a kernel of 6.11 or later with CONFIG_KVM_AMD_SEV (cloud kernels of \
                       Debian lack it)";
            missing("snp module", "kvm_amd is built without SEV-SNP", fix);
        }
        None => missing("snp module", "kvm_amd is not loaded", "sudo modprobe kvm_amd sev_snp=1"),
        Some("N" | "0") => {
            let says = "kvm_amd has SEV-SNP off (asked to, or because it could not be used)";
            let fix = "remove kvm_amd.sev=0 and kvm_amd.sev_snp=0; then load kvm_amd again and \
                       look into the kernel's log";
            missing("snp module", says, fix);
        }
        Some(_) => {}
    }
    if !facts.modules.contains_key("ccp") {
        let fix = "sudo modprobe ccp, then load kvm_amd again";
        missing("snp psp", "the secure processor's driver is not loaded", fix);
    }
    if !known && facts.kvm.is_some() {
        report.missing("snp kvm", "KVM offers no SEV-SNP, for a reason only the log has", LOG);
    }
}

const IOMMU_LOG: &str = "AMD-Vi: SNP: IOMMU disabled or configured in passthrough mode";

/// The option of a kernel's command line that rules SEV-SNP out, if there is one.
fn iommu_option(command_line: &str) -> Option<&str> {
    const OPTIONS: [&str; 7] = [
        "iommu=pt",
        "iommu=off",
        "iommu.passthrough=1",
        "iommu.passthrough=on",
        "iommu.passthrough=y",
        "amd_iommu=off",
        "amd_iommu=pgtbl_v2",
    ];
    command_line.split_whitespace().find(|option| OPTIONS.contains(option))
}

fn policy(facts: &Facts, report: &mut Report) {
    let Some(kvm) = &facts.kvm else { return };
    let said = if kvm.sev.policy_bits.is_some() { "" } else { " (assumed)" };
    let certificates = if kvm.sev.certificate_requests { "can" } else { "cannot" };
    let smt = if facts.kernel.smt { "on: policies must allow it" } else { "off" };
    report.ok(
        "snp policy",
        format!(
            "policy bits {:#x}{said}, VMSA features {:#x}, certificates {certificates} be given to \
             guests, SMT {smt}",
            kvm.sev.policy_mask(),
            kvm.sev.vmsa_features
        ),
    );
}

fn asids(facts: &Facts, asids: u32, report: &mut Report) {
    let hidden = facts.parameter("kvm_amd", "ciphertext_hiding_asids");
    let hidden = hidden.and_then(|text| text.parse::<u32>().ok()).filter(|count| *count > 0);
    if let Some(hidden) = hidden {
        let says = format!("{hidden} guests with hidden ciphertext, of {asids} ASIDs");
        report.ok("snp asids", says);
    } else if asids > 0 {
        report.ok("snp asids", format!("{asids} SEV-ES and SEV-SNP guests at a time"));
    }
}

fn device(facts: &Facts, report: &mut Report) {
    const CHECK: &str = "snp firmware";
    match facts.device(SevDevice::PATH) {
        Access::Opens => {}
        Access::Missing => {
            let fix = "sudo modprobe ccp; if it stays away, the BIOS hides the secure processor";
            return report.missing(CHECK, "there is no /dev/sev", fix);
        }
        Access::Denied => {
            let fix = format!(
                "{}; for good, write KERNEL==\"sev\", GROUP=\"kvm\", MODE=\"0660\" to \
                 /etc/udev/rules.d/90-sev.rules",
                grant(SevDevice::PATH)
            );
            return report.missing(CHECK, "this user may not open /dev/sev", fix);
        }
        Access::Fails { why } => {
            let fix = "look for ccp in the kernel's log (dmesg)";
            return report.missing(CHECK, format!("/dev/sev cannot be opened: {why}"), fix);
        }
    }
    match &facts.sev_firmware {
        Some(Ok(status)) if status.initialised && status.rmp_initialised => {
            let (major, minor) = status.api;
            let hiding = if status.ciphertext_hiding { ", ciphertext hidden" } else { "" };
            let vlek = if status.vlek { ", VLEK loaded" } else { "" };
            let tcb = status.reported_tcb;
            report.ok(
                CHECK,
                format!(
                    "ABI {major}.{minor} build {}, TCB {tcb:#018x}{vlek}{hiding}",
                    status.build
                ),
            );
        }
        Some(Ok(_)) => report.missing(
            CHECK,
            "the firmware is not initialised for SEV-SNP",
            "load kvm_amd again; look for ccp in the kernel's log (dmesg)",
        ),
        Some(Err(error)) => report.missing(
            CHECK,
            format!("the firmware does not answer: {error}"),
            "update the SEV firmware (linux-firmware or the BIOS)",
        ),
        None => {}
    }
}
