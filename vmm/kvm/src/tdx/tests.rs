//! Launches without a platform: answers come from the interposer, VMs are plain.

use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
use kvm_ioctls::Kvm;
use proptest::prelude::*;

use super::*;
use crate::boundary::ATTEMPTS;
use crate::error::Status;
use crate::trace::{Event, Interposer, Written};

fn vm() -> (VmFd, VcpuFd) {
    let kvm = Kvm::new().expect("these tests need a /dev/kvm that this user may open");
    let vm = kvm.create_vm().expect("a plain VM");
    let vcpu = vm.create_vcpu(0).expect("a vCPU");
    (vm, vcpu)
}

fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = registers;
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

fn init() -> InitVm {
    InitVm {
        attributes: ATTRIBUTE_SEPT_VE_DISABLE,
        xfam: 0xe7,
        mrconfigid: [0x11; 48],
        mrowner: [0; 48],
        mrownerconfig: [0; 48],
        cpuid: vec![entry(0x8000_0008, 0, [48 << 16, 0, 0, 0])],
    }
}

fn launch(vm: &VmFd, vcpu: &VcpuFd) -> Result<(), KernelError> {
    init_vm(vm, &init())?;
    init_vcpu(vcpu, 0x80_9000)?;
    init_mem_region(vcpu, 0xffc0_0000, &[Page::ZERO, Page::ZERO], Measure::Contents)?;
    init_mem_region(vcpu, 0x80_9000, &[Page::ZERO], Measure::Address)?;
    finalize_vm(vm)
}

#[test]
fn a_launch_is_these_commands_in_this_order() {
    let (vm, vcpu) = vm();
    let (outcome, events) = Interposer::succeeding().run(|| launch(&vm, &vcpu));
    assert_eq!(outcome, Ok(()));
    let commands: Vec<String> =
        events.iter().map(|event| format!("{} {}", event.command, event.arguments)).collect();
    let identity = "11".repeat(48);
    assert_eq!(
        commands,
        [
            &format!(
                "KVM_TDX_INIT_VM attributes 0x10000000, XFAM 0xe7, MRCONFIGID {identity}, \
                 1 CPUID entries: 80000008: 300000 0 0 0"
            ),
            "KVM_TDX_INIT_VCPU HOB at gpa 0x809000",
            "KVM_TDX_INIT_MEM_REGION gpa 0xffc00000, 2 pages, measured",
            "KVM_TDX_INIT_MEM_REGION gpa 0x809000, 1 pages",
            "KVM_TDX_FINALIZE_VM no arguments",
        ]
    );
}

#[test]
fn every_command_can_fail_and_says_so() {
    let (vm, vcpu) = vm();
    let cpuid_config = 0xC000_0100_0000_0045;
    for (command, nth, errno, status, words) in [
        ("KVM_TDX_INIT_VM", 1, libc::EINVAL, cpuid_config, "OPERAND_INVALID, operand CPUID_CONFIG"),
        ("KVM_TDX_INIT_VM", 1, libc::EBUSY, 0, "attributes 0x10000000"),
        ("KVM_TDX_INIT_VCPU", 1, libc::EINVAL, 0, "HOB at gpa 0x809000"),
        ("KVM_TDX_INIT_MEM_REGION", 2, libc::ENOMEM, 0, "gpa 0x809000, 1 pages"),
        ("KVM_TDX_FINALIZE_VM", 1, libc::EIO, 0, "Input/output error"),
    ] {
        let reply = Reply { errno, value: 0, status };
        let (outcome, events) =
            Interposer::succeeding().failing(command, nth, reply).run(|| launch(&vm, &vcpu));
        let error = outcome.expect_err(command);
        assert_eq!((error.command(), error.errno()), (command, errno));
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.advice().is_some(), "{error}");
        assert_eq!(events.last().expect("the one that failed").reply, reply);
    }
}

#[test]
fn what_passes_is_tried_again() {
    let (vm, vcpu) = vm();
    let (outcome, events) = Interposer::succeeding()
        .failing("KVM_TDX_INIT_VM", 1, Reply::errno(libc::EAGAIN))
        .failing("KVM_TDX_INIT_MEM_REGION", 1, Reply::errno(libc::EBUSY))
        .failing("KVM_TDX_FINALIZE_VM", 1, Reply::errno(libc::EBUSY))
        .run(|| launch(&vm, &vcpu));
    assert_eq!((outcome, events.len()), (Ok(()), 5 + 3));
}

/// OPERAND_BUSY, about RCX. The kernel makes EBUSY or EIO of it.
const BUSY: u64 = 0x8000_0200_0000_0001;

#[test]
fn a_module_that_is_busy_is_asked_again_whatever_the_errno() {
    let (vm, vcpu) = vm();
    for command in ["KVM_TDX_INIT_VM", "KVM_TDX_FINALIZE_VM"] {
        let busy = Reply { status: BUSY, ..Reply::errno(libc::EIO) };
        // A run that fails does not count for the failures after its own: these are two runs.
        let twice = Interposer::succeeding().failing(command, 1, busy).failing(command, 1, busy);
        let (outcome, events) = twice.run(|| launch(&vm, &vcpu));
        assert_eq!((outcome, events.len()), (Ok(()), 5 + 2), "{command}");
    }
}

/// The attempts take about a second; those of all cases run at the same time.
#[test]
fn what_does_not_pass_is_an_error_in_the_end() {
    let again = |command: &'static str, errno, status| {
        let (vm, vcpu) = vm();
        let reply = Reply { status, ..Reply::errno(errno) };
        let never = (0..=ATTEMPTS)
            .fold(Interposer::succeeding(), |answers, _| answers.failing(command, 1, reply));
        let (outcome, events) = never.run(|| launch(&vm, &vcpu));
        let runs = events.iter().filter(|event| event.command == command).count();
        assert_eq!(runs, usize::try_from(ATTEMPTS).expect("few"), "{command}");
        let error = outcome.expect_err(command);
        assert_eq!((error.command(), error.errno()), (command, errno));
        assert_eq!(error.status(), Status::seamcall(status));
        assert_eq!(error.to_string().contains("OPERAND_BUSY, operand RCX; "), status == BUSY);
        assert!(error.advice().is_some_and(|advice| advice.ends_with("try again")), "{error}");
    };
    std::thread::scope(|scope| {
        for (command, errno, status) in [
            ("KVM_TDX_INIT_VM", libc::EAGAIN, 0),
            ("KVM_TDX_INIT_VM", libc::EIO, BUSY),
            ("KVM_TDX_INIT_MEM_REGION", libc::EAGAIN, 0),
            ("KVM_TDX_INIT_MEM_REGION", libc::EBUSY, 0),
            ("KVM_TDX_FINALIZE_VM", libc::EAGAIN, 0),
            ("KVM_TDX_FINALIZE_VM", libc::EBUSY, BUSY),
        ] {
            scope.spawn(move || again(command, errno, status));
        }
    });
}

/// On an interruption the kernel says what is left even though it reports an error.
#[test]
fn a_region_is_resumed_where_it_stopped() {
    let (_vm, vcpu) = vm();
    let event = |gpa: u64, pages: u64, errno: i32, left: u64| Event {
        command: "KVM_TDX_INIT_MEM_REGION".into(),
        arguments: format!("gpa {gpa:#x}, {pages} pages"),
        reply: Reply::errno(errno),
        written: vec![Written { offset: 16, bytes: left.to_le_bytes().to_vec() }],
    };
    let trace = vec![event(0x1000, 4, libc::EAGAIN, 3), event(0x2000, 3, 0, 0)];
    let pages = vec![Page::ZERO; 4];
    let (outcome, events) = Interposer::replaying(trace)
        .run(|| init_mem_region(&vcpu, 0x1000, &pages, Measure::Address));
    assert_eq!((outcome, events.len()), (Ok(()), 2));
}

#[test]
fn the_buffer_of_capabilities_grows() {
    let (vm, _vcpu) = vm();
    let head = CapabilitiesHead {
        supported_attrs: 1 << 28,
        supported_xfam: 0x6_02e7,
        user_tdvmcallinfo_1_r11: 2,
        ..CapabilitiesHead::new_zeroed()
    };
    let leaves: Vec<_> = (0..100).map(|index| entry(4, index, [index, 2, 3, 4])).collect();
    let event = |entries: u32, errno, bytes: Vec<u8>| Event {
        command: "KVM_TDX_CAPABILITIES".into(),
        arguments: format!("what the host offers, {entries} CPUID entries"),
        reply: Reply::errno(errno),
        written: vec![Written { offset: 0, bytes }],
    };
    let answer = WithCpuid::new(&head, &leaves).bytes().to_vec();
    let trace = vec![event(64, libc::E2BIG, Vec::new()), event(128, 0, answer)];
    let (outcome, _) = Interposer::replaying(trace).run(|| capabilities(&vm));
    let expected = Capabilities {
        attributes: 1 << 28,
        xfam: 0x6_02e7,
        kernel_calls: [0, 0],
        user_calls: [2, 0],
        cpuid: leaves,
    };
    assert_eq!(outcome, Ok(expected));
}

#[test]
fn only_configurable_bits_of_configurable_leaves_are_passed() {
    let capabilities = Capabilities {
        attributes: 0,
        xfam: 0,
        kernel_calls: [0; 2],
        user_calls: [0; 2],
        cpuid: vec![
            entry(7, 0, [0, 0xff00, 0, 0]),
            entry(7, 1, [0xf, 0, 0, 0]),
            entry(0x8000_0008, 0, [0xff_0000, 0, 0, 0]),
        ],
    };
    let wanted = [
        entry(1, 0, [1, 2, 3, 4]),
        kvm_cpuid_entry2 { flags: 1, ..entry(7, 0, [9, 0x1234, 5, 6]) },
        entry(0x8000_0008, 0, [0x0039_3030, 7, 7, 7]),
    ];
    let configured = |function, registers| kvm_cpuid_entry2 {
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        ..entry(function, 0, registers)
    };
    assert_eq!(
        capabilities.configure(&wanted, Gpaw::Bits52),
        [configured(7, [0, 0x1200, 0, 0]), configured(0x8000_0008, [52 << 16, 0, 0, 0])]
    );
    assert_eq!(Gpaw::Bits48.shared_bit(), 1 << 47);
}

proptest! {
    /// Whatever the count says, only entries that are there are read.
    #[test]
    fn any_count_is_bounded_by_the_buffer(count: u32, room in 0_usize..8) {
        let mut table = WithCpuid::with_capacity(&NoHead, room);
        table.bytes()[..4].copy_from_slice(&count.to_ne_bytes());
        let (NoHead, entries) = table.into_parts();
        prop_assert_eq!(entries.len(), room.min(count as usize));
    }
}

/// Without an interposer: the kernel of this machine refuses TDX commands on a plain VM.
#[test]
fn a_plain_vm_is_no_td() {
    let (vm, vcpu) = vm();
    assert!(capabilities(&vm).is_err());
    assert!(init_vcpu(&vcpu, 0).is_err());
}
