//! Each command of a launch fails as its kernel can have it fail: the launch ends there with a named
//! cause, and nothing is left of it. The launches are those of `golden`; no host is asked.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/golden.rs"]
mod golden;

use std::fs;

use casemate_kvm::error::{SeamcallStatus, SevStatus};
use casemate_kvm::trace::{Event, Interposer, Reply};
use casemate_machine::Guest;
use golden::{Folder, golden, launch};
use libc::{
    E2BIG, EACCES, EAGAIN, EBADF, EBUSY, EEXIST, EFAULT, EINTR, EINVAL, EIO, EMFILE, ENFILE,
    ENODEV, ENOENT, ENOMEM, ENOSPC, ENOTTY, ENXIO, EOPNOTSUPP, EPERM,
};

/// Errnos of a command, as Linux `Documentation/virt/kvm` names them or its source has them, 6.11 to 7.2.
fn errnos(command: &str) -> &'static [i32] {
    match command {
        "open" => &[ENOENT, ENODEV, ENXIO, EACCES, EPERM, EBUSY, EMFILE, ENFILE, ENOMEM],
        "KVM_GET_API_VERSION" => &[EINVAL, ENOTTY],
        "KVM_CREATE_VM" => &[EINVAL, EBUSY, EIO, EMFILE, ENFILE, ENOMEM, EOPNOTSUPP],
        "KVM_GET_VCPU_MMAP_SIZE" => &[EINVAL],
        "KVM_ENABLE_CAP" => &[EINVAL, EEXIST, EFAULT, ENOMEM, ENOTTY, EPERM],
        "KVM_GET_SUPPORTED_CPUID" => &[E2BIG, EFAULT, EINVAL, ENOMEM],
        "KVM_CREATE_GUEST_MEMFD" => &[EFAULT, EINVAL, EMFILE, ENFILE, ENOMEM, ENOTTY],
        "KVM_SET_USER_MEMORY_REGION2" => &[E2BIG, EBADF, EEXIST, EFAULT, EINVAL, ENOMEM, ENOTTY],
        "KVM_SET_MEMORY_ATTRIBUTES" => &[EFAULT, EINVAL, ENOMEM, ENOTTY],
        "KVM_CREATE_VCPU" => &[EEXIST, EINVAL, EIO, EMFILE, ENFILE, ENOMEM],
        "KVM_SET_CPUID2" => &[E2BIG, EFAULT, EINVAL, ENOMEM],
        "KVM_GET_CPUID2" => &[E2BIG, EFAULT],
        // An instruction, which does not.
        "CPUID" => &[],
        "KVM_GET_SREGS" | "KVM_SET_SREGS" | "KVM_SET_REGS" | "KVM_SET_FPU" | "KVM_SET_XCRS" => {
            &[EFAULT, EINVAL, ENOMEM]
        }
        "KVM_SET_DEBUGREGS" | "KVM_SET_MP_STATE" => &[EFAULT, EINVAL],
        "KVM_SET_MSRS" => &[E2BIG, EFAULT, EINVAL, ENOMEM],
        "KVM_SEV_INIT2" => &[EBUSY, EFAULT, EINVAL, EIO, ENOMEM, ENOTTY],
        "KVM_SEV_SNP_ENABLE_REQ_CERTS" => &[EINVAL, ENOTTY],
        "KVM_SEV_SNP_LAUNCH_START" => &[EBADF, EFAULT, EINVAL, EIO, ENOMEM, ENOTTY],
        "KVM_SEV_SNP_LAUNCH_UPDATE" => &[EFAULT, EINVAL, EIO, ENOMEM],
        "KVM_SEV_SNP_LAUNCH_FINISH" => &[EBUSY, EFAULT, EINVAL, EIO, ENOMEM],
        "KVM_GET_TSC_KHZ" => &[EIO],
        "KVM_SET_TSC_KHZ" => &[EINVAL],
        "KVM_TDX_CAPABILITIES" => &[EFAULT, EINVAL, ENOMEM, ENOTTY],
        "KVM_TDX_INIT_VM" => &[E2BIG, EBUSY, EFAULT, EINVAL, EIO, ENOMEM, ENOSPC, EOPNOTSUPP],
        "KVM_TDX_INIT_VCPU" => &[EINVAL, EIO, ENOMEM],
        "KVM_TDX_INIT_MEM_REGION" => &[EFAULT, EINVAL, EIO, ENOMEM, EOPNOTSUPP],
        "KVM_TDX_FINALIZE_VM" => &[EINVAL, EIO],
        command => panic!("how does {command} fail?"),
    }
}

/// Words of the firmware, for the commands that have any.
fn statuses(command: &str) -> Vec<u64> {
    let named = |status: &u32| SevStatus(*status).words().is_some();
    match command {
        "KVM_SEV_INIT2"
        | "KVM_SEV_SNP_LAUNCH_START"
        | "KVM_SEV_SNP_LAUNCH_UPDATE"
        | "KVM_SEV_SNP_LAUNCH_FINISH" => (1..=0x3a).filter(named).map(u64::from).collect(),
        // About the operand CPUID_CONFIG, where they are about one.
        "KVM_TDX_INIT_VM" | "KVM_TDX_FINALIZE_VM" => [0x8000_0000_u64, 0xc000_0000, 0xe000_0000]
            .into_iter()
            .flat_map(|class| (0..0x1000).map(move |code| (class | code) << 32 | 0x45))
            .filter(|status| SeamcallStatus(*status).name().is_some())
            .filter(|status| !SeamcallStatus(*status).is_transient())
            .collect(),
        _ => Vec::new(),
    }
}

/// What a process holds: its open files, and the bytes of its address space without the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    files: usize,
    bytes: u64,
}

impl Held {
    fn now() -> Self {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let size = |line: &str| {
            let (from, to) = line.split_whitespace().next()?.split_once('-')?;
            Some(u64::from_str_radix(to, 16).ok()? - u64::from_str_radix(from, 16).ok()?)
        };
        let others = maps.lines().filter(|line| !line.ends_with("[heap]"));
        let files = fs::read_dir("/proc/self/fd").unwrap().count();
        Self { files, bytes: others.filter_map(size).sum() }
    }
}

/// The launch that was recorded up to command `at`, which ends with `reply`.
fn until(recorded: &[Event], at: usize, reply: Reply) -> Vec<Event> {
    let failed = Event { reply, written: Vec::new(), ..recorded[at].clone() };
    [&recorded[..at], &[failed]].concat()
}

/// The launch fails at command `at`, and says so; it asks for nothing more but how many vCPUs there may be.
fn ends(name: &str, guest: &Guest, recorded: &[Event], at: usize, reply: Reply) {
    let trace = until(recorded, at, reply);
    let (outcome, events) = launch(guest, Interposer::replaying(trace.clone()));
    let Event { command, arguments, .. } = &recorded[at];
    let error = outcome.expect_err(&format!("{name}: {command} {reply:?}"));
    let shown: String = arguments.chars().take(100).collect();
    let errno = std::io::Error::from_raw_os_error(reply.errno).to_string();
    let said = format!("{command} ({shown}");
    assert!(error.contains(&said) && error.contains(&format!("failed: {errno}")), "{error}");
    let status = match command.starts_with("KVM_TDX_") {
        true => SeamcallStatus(reply.status).name().map(ToString::to_string),
        false => {
            SevStatus(u32::try_from(reply.status).unwrap()).words().map(|(name, _)| name.into())
        }
    };
    if let Some(status) = status.filter(|_| reply.status != 0) {
        assert!(error.contains(&status), "{error}");
    }
    assert_eq!(events[..=at], trace, "{name}: {command} {reply:?}");
    let more: Vec<_> = events[at + 1..].iter().map(|event| &*event.command).collect();
    let expected: &[&str] =
        if command == "KVM_CREATE_VCPU" { &["KVM_CHECK_EXTENSION"] } else { &[] };
    assert_eq!(more, expected, "{name}: {command} {reply:?}");
}

/// What the host is only asked, and need not know.
fn is_optional(command: &str) -> bool {
    command == "KVM_GET_DEVICE_ATTR"
}

/// The only test of this process, so that what it holds is what launches leave.
#[test]
fn each_failure_of_each_command_is_named_and_leaves_nothing() {
    let folder = Folder::new();
    let guests = folder.guests().map(|(name, ..)| (name, folder.guest(name), golden(name)));
    let guests: Vec<_> = guests.collect();
    for (name, guest, recorded) in &guests {
        launch(guest, Interposer::replaying(recorded.clone())).0.expect(name);
    }
    let before = Held::now();
    let mut failures = 0;
    for (name, guest, recorded) in &guests {
        for at in 0..recorded.len() {
            let command = &*recorded[at].command;
            if is_optional(command) {
                continue;
            }
            for errno in errnos(command) {
                ends(name, guest, recorded, at, Reply::errno(*errno));
                failures += 1;
            }
            for status in statuses(command) {
                // The firmware's own values for the CPUID page are taken: another test's matter.
                if status == 0x16 && recorded[at].arguments.contains(", CPUID") {
                    continue;
                }
                ends(name, guest, recorded, at, Reply { status, ..Reply::errno(EIO) });
                failures += 1;
            }
        }
        assert_eq!(Held::now(), before, "{name}");
    }
    assert!(failures > 1_000, "{failures}");
    others(&guests[0].1, &guests[0].2);
    assert_eq!(Held::now(), before);
}

/// Failures that do not end a launch: what passes is asked again, and what the host need not know is not
/// needed. And one that says no errno.
fn others(guest: &Guest, recorded: &[Event]) {
    for (at, event) in recorded.iter().enumerate() {
        let errnos: &[i32] = match &*event.command {
            "KVM_CREATE_VM" => &[EINTR],
            "KVM_SEV_SNP_LAUNCH_UPDATE" => &[EAGAIN, EBUSY, EINTR],
            _ => &[],
        };
        for errno in errnos {
            let mut trace = until(recorded, at, Reply::errno(*errno));
            trace.extend_from_slice(&recorded[at..]);
            let (outcome, events) = launch(guest, Interposer::replaying(trace.clone()));
            assert_eq!((outcome, events.len()), (Ok(()), trace.len()), "{event:?}");
        }
        if event.command == "KVM_SET_MSRS" {
            // The kernel stops at the first MSR that it does not know, and says so by its number.
            let trace = until(recorded, at, Reply::default());
            let (outcome, events) = launch(guest, Interposer::replaying(trace));
            let error = outcome.expect_err("an MSR that is not known");
            assert!(error.contains("KVM_SET_MSRS set 0 MSRs and refused the next one"), "{error}");
            assert_eq!(events.len(), at + 1);
        }
        if is_optional(&event.command) {
            for errno in [ENXIO, ENOTTY, EFAULT] {
                let mut trace = until(recorded, at, Reply::errno(errno));
                trace.extend_from_slice(&recorded[at + 1..]);
                let (outcome, events) = launch(guest, Interposer::replaying(trace.clone()));
                assert_eq!((outcome, events.len()), (Ok(()), trace.len()), "{event:?}");
            }
        }
    }
}
