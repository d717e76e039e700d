//! What was seen, judged: the checks of every platform.

use super::facts::{Access, Facts};
use super::{Finding, State, snp, tdx};
use casemate_launch::PlatformKind;

use crate::vm::PLATFORMS;

/// Judges `facts`, one finding per check, each with what to do unless all is well.
#[must_use]
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut report = Report { findings: Vec::new(), platforms: PLATFORMS.to_vec() };
    machine(facts, &mut report);
    kvm(facts, &mut report);
    helpers(facts, &mut report);
    report.platforms = vec![PlatformKind::Snp];
    snp::checks(facts, &mut report);
    report.platforms = vec![PlatformKind::Tdx];
    tdx::checks(facts, &mut report);
    report.findings
}

/// Findings in the making.
pub(super) struct Report {
    findings: Vec<Finding>,
    platforms: Vec<PlatformKind>,
}

impl Report {
    pub(super) fn ok(&mut self, check: &str, says: impl Into<String>) {
        self.add(check, State::Ok, says.into(), None);
    }

    pub(super) fn note(&mut self, check: &str, says: impl Into<String>, fix: impl Into<String>) {
        self.add(check, State::Note, says.into(), Some(fix.into()));
    }

    pub(super) fn missing(&mut self, check: &str, says: impl Into<String>, fix: impl Into<String>) {
        self.add(check, State::Missing, says.into(), Some(fix.into()));
    }

    fn add(&mut self, check: &str, state: State, says: String, fix: Option<String>) {
        let (check, platforms) = (check.to_owned(), self.platforms.clone());
        self.findings.push(Finding { check, platforms, state, says, fix });
    }
}

fn machine(facts: &Facts, report: &mut Report) {
    let cpu = &facts.cpu;
    let (family, model, stepping) = cpu.signature;
    let place = if cpu.is_virtual { ", in a virtual machine" } else { "" };
    let name = if cpu.model.is_empty() { &cpu.vendor } else { &cpu.model };
    report.ok(
        "cpu",
        format!("{name}, family {family:#x} model {model:#x} stepping {stepping}{place}"),
    );
    report.ok("kernel", format!("Linux {}", facts.kernel.release));
}

fn kvm(facts: &Facts, report: &mut Report) {
    const DEVICE: &str = "/dev/kvm";
    match facts.device(DEVICE) {
        Access::Opens => {}
        Access::Missing => {
            let fix = no_kvm(facts);
            return report.missing("kvm", "there is no /dev/kvm", fix);
        }
        Access::Denied => {
            return report.missing("kvm", "this user may not open /dev/kvm", grant(DEVICE));
        }
        Access::Fails { why } => {
            let fix = "look for kvm in the kernel's log (dmesg)";
            return report.missing("kvm", format!("/dev/kvm cannot be opened: {why}"), fix);
        }
    }
    let Some(kvm) = &facts.kvm else {
        let fix = "load the kvm modules of this kernel again";
        return report.missing("kvm", "/dev/kvm is not KVM", fix);
    };
    if kvm.api_version != 12 {
        let says = format!("/dev/kvm has API version {}, not 12", kvm.api_version);
        return report.missing("kvm", says, "use a kernel of this century");
    }
    let vcpus = vcpus(facts, PlatformKind::Plain);
    report.ok("kvm", format!("/dev/kvm opens, API version 12{vcpus}"));
    virtualisation(facts, report);
    if kvm.split_irqchip {
        report.ok("irqchip", "KVM can leave the I/O APIC to us");
    } else {
        let fix = "use Linux 4.5 or later on a processor with a local APIC";
        report.missing("irqchip", "KVM cannot leave the I/O APIC to us", fix);
    }
}

/// How many vCPUs a guest of a type can have, to be put behind other words.
pub(super) fn vcpus(facts: &Facts, platform: PlatformKind) -> String {
    let mut known = facts.kvm.iter().flat_map(|kvm| &kvm.max_vcpus);
    let most = known.find(|(known, _)| *known == platform);
    most.map_or(String::new(), |(_, most)| format!(", up to {most} vCPUs"))
}

/// Some kernels have a KVM that interprets guests in software. It runs small programs, and no Linux.
fn virtualisation(facts: &Facts, report: &mut Report) {
    if has_virtualisation(facts) {
        return;
    }
    let says = "/dev/kvm works without hardware virtualisation (neither SVM nor VT-x): Linux guests do not run";
    report.missing(super::VIRTUALISATION, says, enable_virtualisation(facts));
}

fn has_virtualisation(facts: &Facts) -> bool {
    facts.kernel.cpu_flags.iter().any(|flag| flag == "svm" || flag == "vmx")
}

fn no_kvm(facts: &Facts) -> String {
    let module = if facts.cpu.vendor == "GenuineIntel" { "kvm_intel" } else { "kvm_amd" };
    if has_virtualisation(facts) {
        format!("sudo modprobe {module}")
    } else {
        enable_virtualisation(facts)
    }
}

fn enable_virtualisation(facts: &Facts) -> String {
    if facts.cpu.is_virtual {
        "enable nested virtualisation on the host of this virtual machine".into()
    } else {
        "enable virtualisation (SVM or VT-x) in the BIOS".into()
    }
}

/// How a user gets to open a device.
pub(super) fn grant(device: &str) -> String {
    format!("run as root, or: sudo setfacl -m u:$USER:rw {device}")
}

/// What makes guests better, and is not needed to launch one.
fn helpers(facts: &Facts, report: &mut Report) {
    for (check, device, without, module) in [
        ("tun", "/dev/net/tun", "no network for guests", "tun"),
        ("vhost-net", "/dev/vhost-net", "networks of guests are slower", "vhost_net"),
        ("vhost-vsock", "/dev/vhost-vsock", "vsock goes through Unix sockets", "vhost_vsock"),
    ] {
        match facts.device(device) {
            Access::Opens => report.ok(check, format!("{device} opens")),
            Access::Missing => {
                let says = format!("there is no {device}: {without}");
                report.note(check, says, format!("sudo modprobe {module}"));
            }
            Access::Denied => {
                let says = format!("this user may not open {device}: {without}");
                report.note(check, says, grant(device));
            }
            Access::Fails { why } => {
                let says = format!("{device} cannot be opened ({why}): {without}");
                report.note(check, says, format!("sudo modprobe {module}"));
            }
        }
    }
    match &facts.io_uring {
        Access::Opens => report.ok("io_uring", "io_uring can be used"),
        Access::Denied => report.note(
            "io_uring",
            "io_uring is switched off: disks are slower",
            "sudo sysctl kernel.io_uring_disabled=0, and let the container's seccomp filter allow it",
        ),
        Access::Missing | Access::Fails { .. } => report.note(
            "io_uring",
            "the kernel has no io_uring: disks are slower",
            "use a kernel with CONFIG_IO_URING",
        ),
    }
    open_files(facts, report);
}

fn open_files(facts: &Facts, report: &mut Report) {
    /// A vCPU takes two descriptors, a queue of a disk five: enough for 255 of the former, and for 24 disks
    /// of 16 queues.
    const ENOUGH: u64 = 4096;
    // Whoever runs a guest raises the soft limit by himself.
    match facts.limits.open_files.hard {
        Some(hard) if hard < ENOUGH => {
            let says = format!("only {hard} open files: too few for large guests");
            report.note("open files", says, "raise the hard limit of nofile");
        }
        Some(hard) => report.ok("open files", format!("up to {hard}")),
        None => report.ok("open files", "no limit"),
    }
    let locked = match facts.limits.locked_memory.soft {
        Some(bytes) => format!("up to {} KiB; only devices passed through need more", bytes / 1024),
        None => "no limit".into(),
    };
    report.ok("locked memory", locked);
}

/// What KVM must have for private memory of either vendor.
pub(super) fn private_memory(facts: &Facts, platform: PlatformKind, report: &mut Report) {
    let Some(kvm) = &facts.kvm else { return };
    let lacks: Vec<&str> = [
        (kvm.guest_memfd, "guest_memfd"),
        (kvm.user_memory2, "KVM_SET_USER_MEMORY_REGION2"),
        (kvm.memory_fault_info, "memory fault exits"),
        (kvm.map_gpa_range, "page conversion exits"),
        (kvm.private_memory.contains(&platform), "private memory for this type of VM"),
    ]
    .into_iter()
    .filter_map(|(there, name)| (!there).then_some(name))
    .collect();
    if lacks.is_empty() {
        report.ok("private memory", "guest_memfd, memory attributes and conversion exits");
        selinux(facts, report);
        overcommit(facts, report);
    } else {
        let fix = "use Linux 6.11 or later for SEV-SNP, 6.16 or later for TDX";
        report.missing("private memory", format!("KVM lacks {}", lacks.join(", ")), fix);
    }
}

/// A confined domain may not create a guest_memfd: an inode of the class anon_inode, which few policies
/// know for it. Whether this one may is seen at a launch.
fn selinux(facts: &Facts, report: &mut Report) {
    let Some(selinux) = facts.selinux.as_ref().filter(|selinux| selinux.enforcing) else { return };
    let domain = selinux.context.split(':').nth(2).unwrap_or_default();
    if domain.starts_with("unconfined") || domain.is_empty() {
        return report.ok("selinux", format!("enforcing; this process is {domain}"));
    }
    let fix = "if KVM_CREATE_GUEST_MEMFD fails with EACCES, run this from an unconfined domain, or \
               allow the domain anon_inode:create (sudo ausearch -m avc -ts recent)";
    report.note("selinux", format!("enforcing, and this process is confined to {domain}"), fix);
}

/// In mode 2 the kernel also counts address space that is only reserved.
fn overcommit(facts: &Facts, report: &mut Report) {
    if facts.kernel.overcommit == Some(2) {
        let says = "vm.overcommit_memory is 2: a confidential guest counts twice its memory";
        let fix = "sudo sysctl vm.overcommit_memory=0, or raise vm.overcommit_ratio";
        report.note("overcommit", says, fix);
    }
}

/// Room for one more guest among a resource of the `misc` cgroup controller.
pub(super) fn room(facts: &Facts, resource: &str, report: &mut Report) {
    let check = format!("cgroup {resource}");
    let Some(misc) = facts.misc.get(resource) else { return };
    match (misc.room(), misc.capacity) {
        (Some(0), _) => report.missing(
            &check,
            format!(
                "the misc cgroup allows {} guests, and {} run",
                misc.limit.unwrap_or(0),
                misc.used
            ),
            format!("end a guest, or raise `{resource}` in misc.max of this process's cgroups"),
        ),
        (Some(room), _) => report.ok(&check, format!("room for {room} more guests")),
        (None, Some(capacity)) => {
            let says = format!("no limit below the machine's {capacity}");
            report.ok(&check, says);
        }
        (None, None) => {}
    }
}
