//! The commands of a launch, in order, and what becomes of it when one of them fails. No secure
//! processor is asked: the interposer answers.

use std::fs;

use casemate_config::{ByteSize, Overrides, PlatformChoice};
use casemate_kvm::trace::{Event, Interposer, Reply};
use casemate_launch::{Contents, Gpa, GpaRange};
use kvm_ioctls::Kvm;
use vm_memory::{GuestAddress, GuestMemory as _, Permissions};

use super::*;
use crate::board::Board;
use crate::guest::Guest;
use crate::ram::GuestRam;

const NOTHING: &str = "/dev/null";

/// 1 MiB of memory, the pages of a firmware, and one vCPU.
fn plan() -> LaunchPlan {
    let import = |gpa, pages: u64, kind| Import {
        range: GpaRange::from_bytes(Gpa(gpa), pages * 0x1000).unwrap(),
        kind,
        contents: Contents::Zeroes,
        tag: "test",
    };
    LaunchPlan {
        imports: vec![
            import(0x1000, 2, PageKind::Normal),
            import(0x3000, 1, PageKind::Unmeasured),
            import(0x4000, 3, PageKind::Zero),
            import(0x7000, 1, PageKind::Secrets),
            import(0x8000, 1, PageKind::Cpuid),
            import(0xf000, 1, PageKind::Shared),
        ],
        vcpus: vec![InitialVcpu::default()],
        policy: Policy::Snp(SnpPolicy { guest_policy: 0x3_0000, vmsa_features: 1 }),
        identity: SnpIdentity { host_data: [0xab; 32], ..SnpIdentity::default() },
    }
}

/// What a machine does of a launch, on a plain VM whose commands `interposer` answers. The vCPU's
/// registers are not among them: this machine's KVM may not take a reset state of SEV-SNP.
fn launch(interposer: Interposer) -> (Result<(), StepError>, Vec<Event>) {
    let plan = plan();
    let ram = GuestRam::new(&Board::new(1 << 20).unwrap(), &plan, true).unwrap();
    launch_of(interposer, &plan, &ram)
}

fn launch_of(
    interposer: Interposer,
    plan: &LaunchPlan,
    ram: &GuestRam,
) -> (Result<(), StepError>, Vec<Event>) {
    let kvm = Kvm::new().expect("these tests need a /dev/kvm that this user may open");
    let vm = kvm.create_vm().unwrap();
    let made = Made { vm: &vm, ram, vcpus: &[] };
    interposer.run(|| {
        let mut snp = Snp::with_device(plan, Path::new(NOTHING), None)?;
        snp.prepare_vm(&vm, &CpuId::new(0).unwrap())?;
        ram.map(&vm)?;
        plan.imports.iter().try_for_each(|import| snp.import(made, import))?;
        snp.finish(&vm)
    })
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn commands_come_in_the_order_that_the_kernel_wants() {
    let (outcome, events) = launch(Interposer::succeeding());
    outcome.unwrap();
    let asked = |event: &Event| format!("{}: {}", event.command, event.arguments);
    let asked: Vec<_> = events.iter().map(asked).collect();
    let host_data = format!("KVM_SEV_SNP_LAUNCH_FINISH: HOST_DATA {}", "ab".repeat(32));
    let expected = [
        "KVM_ENABLE_CAP: capability 201, argument 0x1000",
        "KVM_SEV_INIT2: VMSA features 0x0, GHCB version 2",
        "KVM_SEV_SNP_LAUNCH_START: policy 0x30000",
        "KVM_CREATE_GUEST_MEMFD: 1048576 bytes",
        "KVM_SET_USER_MEMORY_REGION2: slot 0, gpa 0x0, 1048576 bytes, private at offset 0x0",
        "KVM_SET_MEMORY_ATTRIBUTES: gpa 0x0, 1048576 bytes, private",
        "KVM_SEV_SNP_LAUNCH_UPDATE: gpa 0x1000, 8192 bytes, NORMAL",
        "KVM_SEV_SNP_LAUNCH_UPDATE: gpa 0x3000, 4096 bytes, UNMEASURED",
        "KVM_SEV_SNP_LAUNCH_UPDATE: gpa 0x4000, 12288 bytes, ZERO",
        "KVM_SEV_SNP_LAUNCH_UPDATE: gpa 0x7000, 4096 bytes, SECRETS",
        "KVM_SEV_SNP_LAUNCH_UPDATE: gpa 0x8000, 4096 bytes, CPUID",
        &host_data,
    ];
    assert_eq!(asked, expected);
}

/// The errnos that the kernel documents for each command, without a word of the firmware's, and every
/// status that the firmware has: the launch ends there, with the command's name, errno and status.
#[test]
fn each_failure_ends_the_launch_and_names_its_command_and_cause() {
    use libc::{E2BIG, EBUSY, EEXIST, EFAULT, EINVAL, EIO, EMFILE, ENFILE, ENOMEM, ENOTTY, EPERM};
    let errnos: [(&str, &[i32]); 7] = [
        ("KVM_ENABLE_CAP", &[EINVAL, EPERM]),
        ("KVM_SEV_INIT2", &[EINVAL, EBUSY, ENOTTY, ENOMEM, EIO, EFAULT]),
        ("KVM_SEV_SNP_LAUNCH_START", &[EINVAL, ENOTTY, ENOMEM, EIO, EFAULT, libc::EBADF]),
        ("KVM_CREATE_GUEST_MEMFD", &[EINVAL, EMFILE, ENFILE, ENOMEM, ENOTTY]),
        ("KVM_SET_USER_MEMORY_REGION2", &[EINVAL, EEXIST, ENOMEM, E2BIG]),
        ("KVM_SET_MEMORY_ATTRIBUTES", &[EINVAL, ENOMEM, ENOTTY]),
        ("KVM_SEV_SNP_LAUNCH_FINISH", &[EINVAL, EIO, EFAULT, ENOMEM, EBUSY]),
    ];
    let mut cases: Vec<(&str, usize, Reply)> = Vec::new();
    for (command, errnos) in errnos {
        cases.extend(errnos.iter().map(|errno| (command, 1, Reply::errno(*errno))));
    }
    for nth in 1..=5 {
        let update = "KVM_SEV_SNP_LAUNCH_UPDATE";
        let errnos = [EINVAL, EIO, EFAULT, ENOMEM];
        cases.extend(errnos.iter().map(|errno| (update, nth, Reply::errno(*errno))));
    }
    for status in (1..=0x3a).filter(|status| SevStatus(*status).words().is_some()) {
        let reply = Reply { status: status.into(), ..Reply::errno(EIO) };
        cases.extend(
            ["KVM_SEV_INIT2", "KVM_SEV_SNP_LAUNCH_START", "KVM_SEV_SNP_LAUNCH_UPDATE", FINISH]
                .map(|command| (command, 1, reply)),
        );
    }
    for (command, nth, reply) in cases {
        let (outcome, events) = launch(Interposer::succeeding().failing(command, nth, reply));
        let error = outcome.unwrap_err().to_string();
        let errno = std::io::Error::from_raw_os_error(reply.errno).to_string();
        assert!(error.starts_with(command) && error.contains(&errno), "{error}");
        if let Some((name, _)) = u32::try_from(reply.status).ok().and_then(|s| SevStatus(s).words())
        {
            assert!(error.contains(name), "{error}");
        }
        let last = events.last().unwrap();
        assert_eq!((last.command.as_str(), last.reply), (command, reply), "nothing comes after it");
    }
}

const FINISH: &str = "KVM_SEV_SNP_LAUNCH_FINISH";

/// A launch that failed, at each step many times: VM, guest_memfd and device are closed each time.
#[test]
fn a_failed_launch_leaves_nothing_open() {
    // Other tests of this process open files at the same time, but not as many as would be left.
    const LAUNCHES: usize = 100;
    for (command, nth) in [
        ("KVM_SEV_INIT2", 1),
        ("KVM_SEV_SNP_LAUNCH_START", 1),
        ("KVM_CREATE_GUEST_MEMFD", 1),
        ("KVM_SET_USER_MEMORY_REGION2", 1),
        ("KVM_SET_MEMORY_ATTRIBUTES", 1),
        ("KVM_SEV_SNP_LAUNCH_UPDATE", 1),
        ("KVM_SEV_SNP_LAUNCH_UPDATE", 4),
        (FINISH, 1),
    ] {
        let before = open_files();
        for _ in 0..LAUNCHES {
            let reply = Reply { status: 0x0b, ..Reply::errno(libc::EIO) };
            let (outcome, events) = launch(Interposer::succeeding().failing(command, nth, reply));
            assert!(outcome.is_err());
            assert_eq!(events.last().unwrap().command, command);
        }
        let left = open_files().saturating_sub(before);
        assert!(left < LAUNCHES, "{command}: {LAUNCHES} launches leave {left} files open");
    }
}

/// Whoever reads a trace sees that the guest gets no reports signed by the VCEK.
#[test]
fn the_end_of_a_launch_says_what_the_guest_goes_without() {
    for (vcek_disabled, said) in [(false, false), (true, true)] {
        let identity = SnpIdentity { vcek_disabled, ..SnpIdentity::default() };
        let plan = LaunchPlan { identity, ..plan() };
        let ram = GuestRam::new(&Board::new(1 << 20).unwrap(), &plan, true).unwrap();
        let (outcome, events) = launch_of(Interposer::succeeding(), &plan, &ram);
        outcome.unwrap();
        let last = events.last().unwrap();
        assert_eq!(last.command, FINISH);
        assert_eq!(last.arguments.ends_with(", without VCEK"), said, "{}", last.arguments);
    }
}

/// All that a termination request has room for: in the firmware's words if they are its own, else
/// with the numbers.
#[test]
fn each_reason_to_end_is_said_in_words_or_numbers() {
    let snp = Snp::with_device(&plan(), Path::new(NOTHING), None).unwrap();
    let last_words = |data: &[u64]| {
        let exit = Exit::SystemEvent { kind: KVM_SYSTEM_EVENT_SEV_TERM, data };
        let Outcome::Failed(words) = snp.last_words(&exit) else { panic!("a failure") };
        words
    };
    for (set, reason) in (0..16).flat_map(|set| (0..=u8::MAX).map(move |reason| (set, reason))) {
        let words = last_words(&[0x100 | u64::from(set) << 12 | u64::from(reason) << 16]);
        let numbers = format!("the guest ended itself, reason {set}:{reason}");
        match Fatal::from_code(reason).filter(|_| set == TERMINATION_SET) {
            Some(fatal) => assert_eq!(words, format!("the firmware ended the guest: {fatal}")),
            None => assert!(
                words
                    .strip_prefix(&numbers)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(": ")),
                "{words}"
            ),
        }
    }
    assert!(last_words(&[]).contains("reason 0:0"), "a kernel that says nothing");
}

#[test]
fn values_that_the_firmware_refuses_are_replaced_once() {
    let update = "KVM_SEV_SNP_LAUNCH_UPDATE";
    let refused = Reply { status: 0x16, ..Reply::errno(libc::EIO) };
    let (outcome, events) = launch(Interposer::succeeding().failing(update, 5, refused));
    outcome.unwrap();
    let cpuid = events.iter().filter(|event| event.arguments.ends_with("CPUID")).count();
    assert_eq!(cpuid, 2);
    let twice = Interposer::succeeding().failing(update, 5, refused).failing(update, 5, refused);
    let (outcome, events) = launch(twice);
    assert!(outcome.unwrap_err().to_string().contains("INVALID_PARAM"));
    assert_eq!(events.last().unwrap().command, update);
}

#[test]
fn a_device_that_is_gone_is_named() {
    let Err(error) = Snp::with_device(&plan(), Path::new("/nowhere/sev"), None) else {
        panic!("a device where there is none");
    };
    let error = error.to_string();
    assert!(error.starts_with("open (/nowhere/sev) failed: No such file"), "{error}");
}

/// What a guest changes while the host is out of memory: the answer is a named failure, devices keep
/// to the private side, and the next attempt works.
#[test]
fn a_conversion_without_memory_fails_and_can_be_tried_again() {
    let plan = plan();
    let kvm = Kvm::new().expect("these tests need a /dev/kvm that this user may open");
    let vm = kvm.create_vm().unwrap();
    let ram = GuestRam::new(&Board::new(1 << 20).unwrap(), &plan, true).unwrap();
    let attributes = "KVM_SET_MEMORY_ATTRIBUTES";
    let denied = Reply::errno(libc::ENOMEM);
    // Attributes are set by `map`, then by each attempt: the first one fails, and of those after
    // it the first one to private. The fourth is that, as a failure counts for itself alone.
    let interposer = Interposer::succeeding()
        .failing(attributes, 2, denied)
        .failing("fallocate", 1, denied)
        .failing(attributes, 4, denied);
    interposer.run(|| {
        ram.map(&vm).unwrap();
        let convert = |private| ram.convert(&vm, 0x2_0000, 0x2000, private);
        let address = GuestAddress(0x2_0000);
        let shared = || ram.memory().check_range(address, 0x2000, Permissions::ReadWrite);
        let fails = |private, command| {
            let error = convert(private).unwrap_err().to_string();
            assert!(error.starts_with(command) && !shared(), "{error}");
            error
        };
        assert!(fails(false, attributes).contains("0x20000"));
        fails(false, "fallocate");
        convert(false).unwrap();
        assert!(shared());
        assert_eq!(ram.ledger().lock().unwrap().memory().current, 0x2000);
        fails(true, attributes);
        convert(true).unwrap();
        assert!(!shared());
        assert_eq!(ram.ledger().lock().unwrap().memory().current, 0);
    });
}

/// The account follows conversions; what is beyond the limit is refused before anything changes.
#[test]
fn shared_memory_has_a_limit_and_pages_do_not_turn_for_ever() {
    let plan = plan();
    let kvm = Kvm::new().expect("these tests need a /dev/kvm that this user may open");
    let vm = kvm.create_vm().unwrap();
    let board = Board::new(1 << 20).unwrap();
    let ram = GuestRam::new(&board, &plan, true).unwrap().sharing_at_most(Some(0x4000));
    let account = || {
        let memory = ram.ledger().lock().unwrap().memory();
        (memory.current, memory.peak, memory.limit)
    };
    Interposer::succeeding().run(|| {
        ram.map(&vm).unwrap();
        ram.convert(&vm, 0x2_0000, 0x3000, false).unwrap();
        let error = ram.convert(&vm, 0x2_2000, 0x3000, false).unwrap_err().to_string();
        assert!(error.contains("4096 bytes beyond its 16384 bytes"), "{error}");
        assert_eq!(account(), (0x3000, 0x3000, Some(0x4000)));
        ram.convert(&vm, 0x2_0000, 0x1000, true).unwrap();
        ram.convert(&vm, 0x2_2000, 0x4000, false).unwrap_err();
        ram.convert(&vm, 0x2_2000, 0x2000, false).unwrap();
        assert_eq!(account(), (0x3000, 0x3000, Some(0x4000)));
        // Beyond memory nothing is shared, and nothing counts.
        ram.convert(&vm, 0xd000_0000, 0x10_0000, false).unwrap();
        let turns =
            (0..2_000).map(|turn| ram.convert_for_access(&vm, 0x3_0000, 0x1000, turn % 2 == 1));
        let (done, refused): (Vec<_>, Vec<_>) = turns.partition(Result::is_ok);
        assert_eq!((done.len(), refused.len()), (1_000, 1_000));
        let error = refused[0].as_ref().unwrap_err().to_string();
        assert!(error.contains("the page at 0x30000 now as private, now as shared"), "{error}");
    });
}

/// Asked before anything is taken from the host; a kernel that does not say is an old one.
#[test]
fn what_the_host_does_not_offer_is_refused_in_words() {
    let check = |plan: &LaunchPlan, certificates, host: &SevAttributes| {
        let snp = Snp::with_device(plan, Path::new(NOTHING), certificates).unwrap();
        snp.check(host).map_err(|error| error.to_string())
    };
    let old = SevAttributes::default();
    let new = SevAttributes { certificate_requests: true, policy_bits: Some(0x3ff_ffff), ..old };
    let file = Some(Path::new("/certificates"));
    assert_eq!(check(&plan(), None, &old), Ok(()));
    assert_eq!(check(&plan(), file, &new), Ok(()));
    let refused = check(&plan(), file, &old).unwrap_err();
    assert!(refused.contains("takes Linux 7.0 or later"), "{refused}");
    let with = |guest_policy, vmsa_features| {
        let policy = Policy::Snp(SnpPolicy { guest_policy, vmsa_features });
        LaunchPlan { policy, ..plan() }
    };
    let single_socket = with(0x13_0000, 1);
    assert_eq!(check(&single_socket, None, &new), Ok(()));
    let refused = check(&single_socket, None, &old).unwrap_err();
    assert_eq!(refused, "the host does not offer the SEV-SNP guest policy bits 0x100000");
    let refused = check(&with(0x3_0000, 1 | 1 << 9), None, &new).unwrap_err();
    assert_eq!(refused, "the host does not offer the VMSA features 0x200");
}

/// They are enabled before the launch starts, where the kernel takes it.
#[test]
fn certificates_are_enabled_before_the_launch_starts() {
    let kvm = Kvm::new().expect("these tests need a /dev/kvm that this user may open");
    let vm = kvm.create_vm().unwrap();
    let prepare = |interposer: Interposer| {
        let file = Some(Path::new("/certificates"));
        let mut snp = Snp::with_device(&plan(), Path::new(NOTHING), file).unwrap();
        interposer.run(|| snp.prepare_vm(&vm, &CpuId::new(0).unwrap()))
    };
    let enable = "KVM_SEV_SNP_ENABLE_REQ_CERTS";
    let (outcome, events) = prepare(Interposer::succeeding());
    outcome.unwrap();
    assert_eq!(events[2].command, enable);
    let refused = Interposer::succeeding().failing(enable, 1, Reply::errno(libc::EINVAL));
    let (outcome, events) = prepare(refused);
    assert!(outcome.unwrap_err().to_string().starts_with(enable));
    assert_eq!(events.len(), 3);
}

/// What `casemate run --record` wrote in the emulated host (Linux 6.12, kvm_amd), of a guest with 64 MiB,
/// two vCPUs and a kernel of one page of zeroes. The same guest asks the same of the kernel, in the same
/// order, and takes its answers.
#[test]
fn a_launch_is_the_one_that_was_recorded_on_a_host() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    fs::write(&kernel, [0; 4096]).unwrap();
    let (memory, vcpus) = (ByteSize(64 << 20), Some(2));
    let flags = Overrides {
        kernel: Some(kernel),
        memory: Some(memory),
        vcpus,
        platform: Some(PlatformChoice::Snp),
        ..Overrides::default()
    };
    let guest = Guest::snp(casemate_config::from_flags(flags).unwrap()).unwrap();
    let recorded: Vec<Event> = include_str!("launch.trace")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (outcome, events) = launch_of(
        Interposer::replaying(recorded.clone()),
        &guest.plan,
        &GuestRam::new(&guest.board, &guest.plan, true).unwrap(),
    );
    assert_eq!(events, recorded);
    outcome.unwrap();
    let measured = guest.plan.imports.iter().filter(|import| import.kind != PageKind::Shared);
    let pages: u64 = measured.map(|import| import.range.pages().0).sum();
    assert!(pages <= 24, "{pages} measured pages");
}
