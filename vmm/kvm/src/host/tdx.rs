//! The checks of TDX.

use super::checks::{Report, grant, private_memory, room, vcpus};
use super::facts::{Access, Facts, QUOTE_SERVICE};
use super::snp::named;
use casemate_launch::PlatformKind;

pub(super) fn checks(facts: &Facts, report: &mut Report) {
    let cpu = &facts.cpu;
    if cpu.vendor != "GenuineIntel" {
        let says = format!("{} has no TDX", named(&cpu.vendor));
        return report.missing(
            "tdx cpu",
            says,
            "use an Intel Xeon of the fifth generation or later",
        );
    }
    let offered = facts.kvm.as_ref().is_some_and(|kvm| kvm.offers(PlatformKind::Tdx));
    if !offered {
        return reasons(facts, report);
    }
    let module = facts.tdx_module.as_ref();
    let version = module.map_or(String::new(), |version| format!(", TDX module {version}"));
    let vcpus = vcpus(facts, PlatformKind::Tdx);
    report.ok("tdx kvm", format!("KVM launches TDs{vcpus}{version}"));
    private_memory(facts, PlatformKind::Tdx, report);
    room(facts, "tdx", report);
    quotes(facts, report);
}

/// Why KVM offers no TDX: the first reasons are the causes of the later ones.
fn reasons(facts: &Facts, report: &mut Report) {
    const LOG: &str = "look for TDX in the kernel's log: sudo dmesg | grep -i tdx";
    let mut known = false;
    let mut missing = |check: &str, says: &str, fix: &str| {
        known = true;
        report.missing(check, says, fix);
    };
    if !facts.cpu.movdir64b {
        let fix = "use an Intel Xeon of the fifth generation or later, on bare metal";
        missing("tdx cpu", "this processor has no TDX (nor MOVDIR64B)", fix);
    }
    if facts.kernel.version().is_some_and(|version| version < (6, 16)) {
        missing("tdx kernel", "KVM launches TDs from Linux 6.16 on", "use a newer kernel");
    }
    match facts.parameter("kvm_intel", "tdx") {
        None if facts.modules.contains_key("kvm_intel") => {
            let fix = "use a kernel with CONFIG_INTEL_TDX_HOST and CONFIG_KVM_INTEL_TDX (Debian's \
                       have neither)";
            missing("tdx module", "kvm_intel is built without TDX", fix);
        }
        None => missing("tdx module", "kvm_intel is not loaded", "sudo modprobe kvm_intel tdx=1"),
        Some("N" | "0") => {
            let says = "kvm_intel has TDX off (as it has by default, or because it failed)";
            let fix = "boot with kvm_intel.tdx=1; in the BIOS: enable TME-MT, TDX with KeyIDs for it, \
                       and the SEAM loader; then look for TDX in the kernel's log";
            missing("tdx module", says, fix);
        }
        Some(_) => {}
    }
    for (module, name, what) in [
        ("kvm", "enable_virt_at_load", "virtualisation from the start"),
        ("kvm", "tdp_mmu", "the TDP MMU"),
        ("kvm", "mmio_caching", "MMIO caching"),
        ("kvm_intel", "ept", "EPT"),
        ("kvm_intel", "enable_apicv", "APICv"),
    ] {
        if matches!(facts.parameter(module, name), Some("N" | "0")) {
            let fix = format!("boot without {module}.{name}=0");
            missing("tdx kvm", &format!("TDX needs {what}, which is off"), &fix);
        }
    }
    if facts.kernel.hibernation {
        let says = "the kernel can hibernate, which TDX does not allow";
        missing("tdx hibernation", says, "boot with nohibernate");
    }
    if !known && facts.kvm.is_some() {
        report.missing("tdx kvm", "KVM offers no TDX, for a reason only the log has", LOG);
    }
}

fn quotes(facts: &Facts, report: &mut Report) {
    const CHECK: &str = "tdx quotes";
    match &facts.quote_service {
        Access::Opens => report.ok(CHECK, format!("a quote service listens on {QUOTE_SERVICE}")),
        Access::Denied => {
            report.note(CHECK, "this user may not use the quote service", grant(QUOTE_SERVICE));
        }
        Access::Missing | Access::Fails { .. } => report.note(
            CHECK,
            format!("no quote service on {QUOTE_SERVICE}: guests get reports, but no quotes"),
            "install and start tdx-qgs, or name another socket in the guest's configuration",
        ),
    }
}
