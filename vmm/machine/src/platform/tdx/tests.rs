//! The commands of a launch, in order. What becomes of it when one of them fails is the matter of
//! `tools/casemate/tests/launch_faults.rs`.

use casemate_kvm::trace::{Event, Interposer, Reply};
use casemate_launch::{Contents, Gpa, GpaRange, SnpIdentity};
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_ioctls::Kvm;

use super::*;
use crate::ram::GuestRam;
use casemate_plan::Board;

fn plan(kinds: &[PageKind]) -> LaunchPlan {
    let range = GpaRange::from_bytes(Gpa(0x1000), 0x2000).unwrap();
    let import =
        |kind: &PageKind| Import { range, kind: *kind, contents: Contents::Zeroes, tag: "test" };
    // Nothing that a host would have to offer.
    let policy = TdxPolicy { xfam: 0, ..TdxPolicy::new(0) };
    let vcpu = InitialVcpu { rcx: 0x8000, ..InitialVcpu::default() };
    LaunchPlan {
        imports: kinds.iter().map(import).collect(),
        vcpus: vec![vcpu],
        policy: Policy::Tdx(policy),
        identity: SnpIdentity::default(),
    }
}

/// A launch on a VM that is none of TDX, whose commands `interposer` answers.
fn launch(interposer: Interposer, plan: &LaunchPlan) -> (Result<(), StepError>, Vec<Event>) {
    let kvm = Kvm::new().expect("these tests need a /dev/kvm that this user may open");
    let vm = kvm.create_vm().unwrap();
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
    let vcpus = [vm.create_vcpu(0).unwrap()];
    vcpus[0].set_cpuid2(&cpuid).unwrap();
    let ram = GuestRam::new(&Board::new(1 << 20).unwrap(), plan, true).unwrap();
    let made = Made { vm: &vm, ram: &ram, vcpus: &vcpus };
    interposer.run(|| {
        let mut tdx = Tdx::new(plan, QuoteService::default())?;
        tdx.prepare_vm(&vm, &cpuid)?;
        ram.map(&vm)?;
        tdx.prepare_vcpu(&vcpus[0], plan.vcpus.first())?;
        plan.imports.iter().try_for_each(|import| tdx.import(made, import))?;
        tdx.finish(&vm)
    })
}

#[test]
fn commands_come_in_the_order_that_the_kernel_wants() {
    let plan = plan(&[PageKind::Normal, PageKind::Zero]);
    let (outcome, events) = launch(Interposer::succeeding(), &plan);
    outcome.unwrap();
    let asked = |event: &Event| format!("{}: {}", event.command, event.arguments);
    let asked: Vec<_> = events.iter().map(asked).collect();
    let expected = [
        "KVM_ENABLE_CAP: capability 201, argument 0x1000",
        "KVM_ENABLE_CAP: capability 237, argument 0x28",
        "KVM_GET_TSC_KHZ: no arguments",
        "KVM_SET_TSC_KHZ: 100000 kHz",
        "KVM_TDX_CAPABILITIES: what the host offers, 64 CPUID entries",
        // All 64 leaves of the interposer's list, which has zeroes, and that of address widths.
        "KVM_TDX_INIT_VM: attributes 0x0, XFAM 0x0, 65 CPUID entries: 80000008.0: 300000 0 0 0",
        "KVM_CREATE_GUEST_MEMFD: 1048576 bytes",
        "KVM_SET_USER_MEMORY_REGION2: slot 0, gpa 0x0, 1048576 bytes, private at offset 0x0",
        "KVM_SET_MEMORY_ATTRIBUTES: gpa 0x0, 1048576 bytes, private",
        "KVM_GET_CPUID2: all leaves, 256 CPUID entries",
        "KVM_SET_CPUID2: 256 CPUID entries",
        "KVM_TDX_INIT_VCPU: HOB at gpa 0x8000",
        "KVM_TDX_INIT_MEM_REGION: gpa 0x1000, 2 pages, measured",
        "KVM_TDX_INIT_MEM_REGION: gpa 0x1000, 2 pages",
        "KVM_TDX_FINALIZE_VM: no arguments",
    ];
    assert_eq!(asked, expected);
}

#[test]
fn a_close_that_takes_long_is_announced_with_the_amount() {
    assert_eq!(slow_close((4 << 30) - 1), None);
    let words = slow_close(107 << 30).unwrap();
    assert!(words.contains("up to 107 GiB") && words.contains("may take minutes"), "{words}");
}

#[test]
fn a_module_that_is_busy_for_a_moment_is_asked_again() {
    for (command, errno) in
        [("KVM_TDX_INIT_VM", libc::EAGAIN), ("KVM_TDX_INIT_MEM_REGION", libc::EBUSY)]
    {
        let busy = Interposer::succeeding().failing(command, 1, Reply::errno(errno));
        let (outcome, events) = launch(busy, &plan(&[PageKind::Normal]));
        outcome.unwrap();
        assert_eq!(events.iter().filter(|event| event.command == command).count(), 2);
    }
}

#[test]
fn what_only_sev_snp_has_or_the_host_does_not_offer_is_refused() {
    for kind in [PageKind::Secrets, PageKind::Cpuid] {
        let (outcome, _) = launch(Interposer::succeeding(), &plan(&[kind]));
        assert_eq!(outcome.unwrap_err().to_string(), format!("the platform has no {kind:?} pages"));
    }
    let mut debug = plan(&[]);
    debug.policy = Policy::Tdx(TdxPolicy::new(1));
    let (outcome, events) = launch(Interposer::succeeding(), &debug);
    let error = outcome.unwrap_err().to_string();
    assert_eq!(error, "the host does not offer the TD attributes 0x1");
    assert_eq!(events.last().unwrap().command, "KVM_TDX_CAPABILITIES", "before a KeyID is taken");
}
