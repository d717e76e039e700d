//! Launches without a platform: answers come from the interposer, VMs are plain.

use kvm_ioctls::Kvm;

use super::*;
use crate::error::{SevStatus, Status};
use crate::trace::{Event, Interposer, Written};

fn vm() -> (VmFd, SevDevice) {
    let kvm = Kvm::new().expect("these tests need a /dev/kvm that this user may open");
    (kvm.create_vm().expect("a plain VM"), SevDevice::stand_in().expect("/dev/null"))
}

fn launch(vm: &VmFd, sev: &SevDevice) -> Result<(), KernelError> {
    init(vm, sev, 0)?;
    enable_certificate_requests(vm, sev)?;
    launch_start(vm, sev, 0x3_0000)?;
    launch_update(vm, sev, 0xffff_0000, Update::Normal(&[Page::ZERO, Page::ZERO]))?;
    launch_update(vm, sev, 0x80_0000, Update::Zero(9))?;
    launch_update(vm, sev, 0x80_d000, Update::Secrets)?;
    launch_update(vm, sev, 0x80_e000, Update::Cpuid(&mut Page::ZERO.clone()))?;
    launch_finish(vm, sev, &Finish { host_data: [0xab; 32], ..Finish::default() })
}

#[test]
fn a_launch_is_these_commands_in_this_order() {
    let (vm, sev) = vm();
    let (outcome, events) = Interposer::succeeding().run(|| launch(&vm, &sev));
    assert_eq!(outcome, Ok(()));
    let commands: Vec<String> =
        events.iter().map(|event| format!("{} {}", event.command, event.arguments)).collect();
    let host_data = "ab".repeat(32);
    assert_eq!(
        commands,
        [
            "KVM_SEV_INIT2 VMSA features 0x0, GHCB version 2",
            "KVM_SEV_SNP_ENABLE_REQ_CERTS no arguments",
            "KVM_SEV_SNP_LAUNCH_START policy 0x30000",
            "KVM_SEV_SNP_LAUNCH_UPDATE gpa 0xffff0000, 8192 bytes, NORMAL",
            "KVM_SEV_SNP_LAUNCH_UPDATE gpa 0x800000, 36864 bytes, ZERO",
            "KVM_SEV_SNP_LAUNCH_UPDATE gpa 0x80d000, 4096 bytes, SECRETS",
            "KVM_SEV_SNP_LAUNCH_UPDATE gpa 0x80e000, 4096 bytes, CPUID",
            &format!("KVM_SEV_SNP_LAUNCH_FINISH HOST_DATA {host_data}"),
        ]
    );
}

#[test]
fn every_command_can_fail_and_says_so() {
    let (vm, sev) = vm();
    for (command, nth, errno, status, words) in [
        ("KVM_SEV_INIT2", 1, libc::EBUSY, 0, "the firmware was not called"),
        ("KVM_SEV_SNP_ENABLE_REQ_CERTS", 1, libc::EINVAL, 0, "Invalid argument"),
        ("KVM_SEV_SNP_LAUNCH_START", 1, libc::EIO, 0x07, "POLICY_FAILURE"),
        ("KVM_SEV_SNP_LAUNCH_UPDATE", 3, libc::EIO, 0x1a, "gpa 0x80d000, 4096 bytes, SECRETS"),
        ("KVM_SEV_SNP_LAUNCH_FINISH", 1, libc::EIO, 0x0b, "BAD_MEASUREMENT"),
    ] {
        let reply = Reply { errno, value: 0, status };
        let (outcome, events) =
            Interposer::succeeding().failing(command, nth, reply).run(|| launch(&vm, &sev));
        let error = outcome.expect_err(command);
        assert_eq!((error.command(), error.errno()), (command, errno));
        assert!(error.to_string().contains(words), "{error}");
        let last = events.last().expect("the one that failed");
        assert_eq!((last.command.as_str(), last.reply), (command, reply));
    }
}

/// The kernel stops at the end of a memory slot and says how much is left.
#[test]
fn an_update_goes_on_where_the_kernel_stopped() {
    let (vm, sev) = vm();
    let partial = |gpa: u64, len: u64, left: u64| Event {
        command: "KVM_SEV_SNP_LAUNCH_UPDATE".into(),
        arguments: format!("gpa {gpa:#x}, {len} bytes, NORMAL"),
        reply: Reply::default(),
        written: vec![Written { offset: 16, bytes: left.to_le_bytes().to_vec() }],
    };
    let trace = vec![partial(0x1000, 0x4000, 0x3000), partial(0x2000, 0x3000, 0)];
    let pages = vec![Page::ZERO; 4];
    let (outcome, events) = Interposer::replaying(trace)
        .run(|| launch_update(&vm, &sev, 0x1000, Update::Normal(&pages)));
    assert_eq!((outcome, events.len()), (Ok(()), 2));
}

#[test]
fn a_kernel_that_says_more_is_left_than_was_asked_for_is_not_believed() {
    let (vm, sev) = vm();
    let event = Event {
        command: "KVM_SEV_SNP_LAUNCH_UPDATE".into(),
        arguments: "gpa 0x1000, 4096 bytes, NORMAL".into(),
        reply: Reply::default(),
        written: vec![Written { offset: 16, bytes: 0x8000_u64.to_le_bytes().to_vec() }],
    };
    let (outcome, _) = Interposer::replaying(vec![event])
        .run(|| launch_update(&vm, &sev, 0x1000, Update::Normal(&[Page::ZERO])));
    assert_eq!(outcome.expect_err("0x8000 of 0x1000").errno(), libc::EPROTO);
}

#[test]
fn a_busy_kernel_is_asked_again() {
    let (vm, sev) = vm();
    let (outcome, events) = Interposer::succeeding()
        .failing("KVM_SEV_SNP_LAUNCH_UPDATE", 1, Reply::errno(libc::EAGAIN))
        .run(|| launch_update(&vm, &sev, 0x1000, Update::Zero(1)));
    assert_eq!((outcome, events.len()), (Ok(()), 2));
}

#[test]
fn a_refused_cpuid_page_has_what_the_firmware_accepts() {
    let (vm, sev) = vm();
    let reply = Reply { errno: libc::EIO, value: 0, status: 0x16 };
    let mut page = Page::ZERO;
    let (outcome, _) = Interposer::succeeding()
        .failing("KVM_SEV_SNP_LAUNCH_UPDATE", 1, reply)
        .run(|| launch_update(&vm, &sev, 0x1000, Update::Cpuid(&mut page)));
    let status = outcome.expect_err("refused").status();
    assert_eq!(status, Status::Sev(SevStatus::INVALID_PARAM));
}

/// Without an interposer: the kernel of this machine refuses SEV commands on a plain VM.
#[test]
fn a_plain_vm_is_no_sev_guest() {
    let (vm, sev) = vm();
    let error = init(&vm, &sev, 0).expect_err("a plain VM");
    assert!(matches!(error.errno(), libc::ENOTTY | libc::EINVAL | libc::EPERM), "{error}");
}
