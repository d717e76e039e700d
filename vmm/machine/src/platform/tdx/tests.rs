//! The commands of a launch, in order, and what becomes of it when one of them fails.

use std::fs;
use std::io;

use casemate_kvm::error::SeamcallStatus;
use casemate_kvm::trace::{Event, Interposer, Reply};
use casemate_launch::{Contents, Gpa, GpaRange, SnpIdentity};
use kvm_ioctls::Kvm;

use super::*;
use crate::board::Board;
use crate::ram::GuestRam;

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
        "KVM_TDX_INIT_VM: attributes 0x0, XFAM 0x0, 65 CPUID entries",
        "KVM_CREATE_GUEST_MEMFD: 1048576 bytes",
        "KVM_SET_USER_MEMORY_REGION2: slot 0, gpa 0x0, 1048576 bytes, private at offset 0x0",
        "KVM_SET_MEMORY_ATTRIBUTES: gpa 0x0, 1048576 bytes, private",
        "KVM_TDX_INIT_VCPU: HOB at gpa 0x8000",
        "KVM_TDX_INIT_MEM_REGION: gpa 0x1000, 2 pages, measured",
        "KVM_TDX_INIT_MEM_REGION: gpa 0x1000, 2 pages",
        "KVM_TDX_FINALIZE_VM: no arguments",
    ];
    assert_eq!(asked, expected);
}

/// The errnos that the kernel documents for each command, without a word of the module's, and
/// every status of the module that does not pass: the launch ends there, with the command's name,
/// errno and status.
#[test]
fn each_failure_ends_the_launch_and_names_its_command_and_cause() {
    use libc::{
        E2BIG, EBUSY, EEXIST, EFAULT, EINVAL, EIO, EMFILE, ENFILE, ENOMEM, ENOSPC, ENOTTY,
        EOPNOTSUPP, EPERM,
    };
    const REGION: &str = "KVM_TDX_INIT_MEM_REGION";
    let region = [EINVAL, EFAULT, EIO, ENOMEM, EOPNOTSUPP];
    // The second KVM_ENABLE_CAP is that of the APIC bus.
    let errnos: [(&str, usize, &[i32]); 13] = [
        ("KVM_ENABLE_CAP", 1, &[EINVAL, EPERM]),
        ("KVM_ENABLE_CAP", 2, &[EINVAL, EPERM]),
        ("KVM_GET_TSC_KHZ", 1, &[EIO]),
        ("KVM_SET_TSC_KHZ", 1, &[EINVAL]),
        ("KVM_TDX_CAPABILITIES", 1, &[EINVAL, EFAULT, ENOMEM, ENOTTY]),
        (INIT_VM, 1, &[EINVAL, EBUSY, ENOSPC, ENOMEM, EIO, EFAULT, E2BIG, EOPNOTSUPP]),
        ("KVM_CREATE_GUEST_MEMFD", 1, &[EINVAL, EMFILE, ENFILE, ENOMEM, ENOTTY]),
        ("KVM_SET_USER_MEMORY_REGION2", 1, &[EINVAL, EEXIST, ENOMEM, E2BIG]),
        ("KVM_SET_MEMORY_ATTRIBUTES", 1, &[EINVAL, ENOMEM, ENOTTY]),
        ("KVM_TDX_INIT_VCPU", 1, &[EINVAL, EIO]),
        (REGION, 1, &region),
        (REGION, 2, &region),
        (FINALIZE, 1, &[EINVAL, EIO]),
    ];
    let mut cases: Vec<(&str, usize, Reply)> = Vec::new();
    for (command, nth, errnos) in errnos {
        cases.extend(errnos.iter().map(|errno| (command, nth, Reply::errno(*errno))));
    }
    // About the operand CPUID_CONFIG, where they are about one.
    let statuses = [0x8000_0000_u64, 0xc000_0000, 0xe000_0000].into_iter();
    let statuses = statuses.flat_map(|class| (0..0x1000).map(move |code| class | code));
    for status in statuses.map(|class| SeamcallStatus(class << 32 | 0x45)) {
        if status.name().is_some() && !status.is_transient() {
            let reply = Reply { status: status.0, ..Reply::errno(EIO) };
            cases.extend([(INIT_VM, 1, reply), (FINALIZE, 1, reply)]);
        }
    }
    let plan = plan(&[PageKind::Normal, PageKind::Zero]);
    for (command, nth, reply) in cases {
        let (outcome, events) =
            launch(Interposer::succeeding().failing(command, nth, reply), &plan);
        let error = outcome.unwrap_err().to_string();
        let last = events.last().unwrap();
        assert_eq!((last.command.as_str(), last.reply), (command, reply), "nothing comes after it");
        let runs = events.iter().filter(|event| event.command == command).count();
        assert_eq!(runs, nth, "{error}");
        let errno = io::Error::from_raw_os_error(reply.errno);
        let said = format!("{command} ({}) failed: {errno}", last.arguments);
        assert!(error.starts_with(&said), "{error}");
        if let Some(name) = SeamcallStatus(reply.status).name() {
            let status = format!("; SEAMCALL status {:#018x} {name}", reply.status);
            assert!(error[said.len()..].starts_with(&status), "{error}");
        }
    }
}

const INIT_VM: &str = "KVM_TDX_INIT_VM";
const FINALIZE: &str = "KVM_TDX_FINALIZE_VM";

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A launch that failed late, many times: VM, vCPU and guest_memfd are closed each time.
#[test]
fn a_failed_launch_leaves_nothing_open() {
    // Other tests of this process open files at the same time, but not as many as would be left.
    const LAUNCHES: usize = 100;
    let plan = plan(&[PageKind::Normal]);
    let before = open_files();
    for _ in 0..LAUNCHES {
        let reply = Reply { status: 0xC000_0608_0000_0000, ..Reply::errno(libc::EIO) };
        assert!(launch(Interposer::succeeding().failing(FINALIZE, 1, reply), &plan).0.is_err());
    }
    let left = open_files().saturating_sub(before);
    assert!(left < LAUNCHES, "{left} files are left open by {LAUNCHES} launches");
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
