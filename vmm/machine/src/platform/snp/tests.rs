//! The commands of a launch, in order, and what becomes of those that do not end it when they fail; of
//! the others, see `tools/casemate/tests/launch_faults.rs`. No secure processor is asked: the interposer
//! answers.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use casemate_kvm::trace::{Event, Interposer, Reply, Written};
use casemate_lab::{Chip, Processor};
use casemate_launch::{Contents, Gpa, GpaRange};
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use vm_memory::{GuestAddress, GuestMemory as _, Permissions};

use super::*;
use crate::ram::GuestRam;
use casemate_plan::Board;

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

#[test]
fn commands_come_in_the_order_that_the_kernel_wants() {
    let (outcome, events) = launch(Interposer::succeeding());
    outcome.unwrap();
    let asked = |event: &Event| format!("{}: {}", event.command, event.arguments);
    let asked: Vec<_> = events.iter().map(asked).collect();
    let host_data = format!("KVM_SEV_SNP_LAUNCH_FINISH: HOST_DATA {}", "ab".repeat(32));
    let expected = [
        "open: /dev/null",
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

const FINISH: &str = "KVM_SEV_SNP_LAUNCH_FINISH";

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

/// What is logged, as a writer of tracing-subscriber's.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `work` returns, and what it logs.
fn logged<T>(work: impl FnOnce() -> T) -> (T, String) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let outcome = tracing::subscriber::with_default(subscriber, work);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    (outcome, log)
}

/// The firmware refuses the CPUID page and writes its own values into it, all of them or one at a time:
/// they are offered until it takes them, given to KVM as well, and logged once.
#[test]
fn values_that_the_firmware_refuses_are_replaced_until_it_takes_them() {
    let entry = |function, value| kvm_cpuid_entry2 {
        function,
        eax: value,
        ecx: value,
        ..kvm_cpuid_entry2::default()
    };
    let kvm = Kvm::new().expect("these tests need a /dev/kvm that this user may open");
    let vm = kvm.create_vm().unwrap();
    let vcpus = [vm.create_vcpu(0).unwrap()];
    let ram = GuestRam::new(&Board::new(1 << 20).unwrap(), &plan(), true).unwrap();
    let made = Made { vm: &vm, ram: &ram, vcpus: &vcpus };
    let mut snp = Snp::with_device(&plan(), Path::new(NOTHING), None).unwrap();
    snp.cpuid = Some(CpuId::from_entries(&[entry(1, 0xff), entry(7, 0xff)]).unwrap());
    let add = |trace: &[Event]| {
        let interposer = Interposer::replaying(trace.to_vec());
        let ((outcome, events), log) = logged(|| interposer.run(|| snp.add_cpuid(made, 0x8000)));
        (outcome.map_err(|error| error.to_string()), events, log)
    };
    let event = |command: &str, arguments: String, reply| Event {
        command: command.into(),
        arguments,
        reply,
        written: Vec::new(),
    };
    let update = |page: &str, reply| {
        let arguments = format!("gpa 0x8000, 4096 bytes, CPUID: {page}");
        event("KVM_SEV_SNP_LAUNCH_UPDATE", arguments, reply)
    };
    let refused = Reply { status: 0x16, ..Reply::errno(libc::EIO) };
    let taken = Reply::default();
    // EAX is at byte 24 of an entry and ECX at 32; entries have 48 bytes and begin at 16.
    let (ecx_of_1, eax_of_7) = ((16 + 32, 0x3f), (16 + 48 + 24, 1));
    let corrected = |page: &str, corrections: &[(usize, u8)]| Event {
        written: corrections
            .iter()
            .map(|&(offset, byte)| Written { offset, bytes: vec![byte] })
            .collect(),
        ..update(page, refused)
    };
    let ours = "1.0: ff 0 ff 0, 7.0: ff 0 ff 0";
    let between = "1.0: ff 0 3f 0, 7.0: ff 0 ff 0";
    let theirs = "1.0: ff 0 3f 0, 7.0: 1 0 ff 0";
    // KVM's own leaves: none, as the interposer has no vCPU.
    let to_kvm = [
        event("KVM_GET_CPUID2", "all leaves, 256 CPUID entries".into(), taken),
        event("KVM_SET_CPUID2", "256 CPUID entries".into(), taken),
    ];
    for tries in [
        vec![corrected(ours, &[ecx_of_1, eax_of_7])],
        vec![corrected(ours, &[ecx_of_1]), corrected(between, &[eax_of_7])],
    ] {
        let count = tries.len();
        let trace: Vec<_> =
            tries.into_iter().chain([update(theirs, taken)]).chain(to_kvm.clone()).collect();
        let (outcome, events, log) = add(&trace);
        assert_eq!((outcome, events.len()), (Ok(()), count + 3));
        let said: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
        assert_eq!(said.len(), 1, "{log}");
        let words = "replaced values of CPUID: 0x1.0 ECX 0xff by 0x3f, 0x7.0 EAX 0xff by 0x1";
        assert!(said[0].ends_with(words), "{log}");
    }

    // A firmware that refuses a page and leaves it as it is is not asked again.
    let (outcome, events, _) =
        add(&[corrected(ours, &[ecx_of_1, eax_of_7]), update(theirs, refused)]);
    let error = outcome.unwrap_err();
    assert!(
        error.starts_with("KVM_SEV_SNP_LAUNCH_UPDATE (gpa 0x8000, 4096 bytes, CPUID: 1.0: ff 0 3f")
    );
    assert!(error.contains("INVALID_PARAM") && error.contains("take the CPUID leaves"), "{error}");
    assert_eq!(events.len(), 2);

    // One that never is content is asked 64 times.
    let turns = (0..100_u32).map(|turn| match turn % 2 {
        0 => corrected(ours, &[(16 + 32, 0x3f)]),
        _ => corrected(between, &[(16 + 32, 0xff)]),
    });
    let (outcome, events, _) = add(&turns.collect::<Vec<_>>());
    assert!(outcome.is_err() && events.len() == 64, "{}", events.len());

    // Whatever else is wrong with the page ends the launch at once.
    let other = Reply { status: 0x1a, ..refused };
    let (outcome, events, log) = add(&[update(ours, other)]);
    assert!(outcome.is_err() && log.is_empty() && events.len() == 1);
}

/// The firmware of the emulated host refuses each wrong bit, and corrects all entries at once, or one per
/// request, and takes as long as it is set to. This very test runs again in the host.
#[test]
fn the_emulated_hosts_firmware_corrects_a_cpuid_page() {
    const DELAY: Duration = Duration::from_millis(300);
    let mode = std::env::var("CASEMATE_FIRMWARE_CORRECTS");
    if let Ok(mode) = mode {
        return each_wrong_bit_is_refused(&mode, DELAY);
    }
    let milan = Chip::recorded(Processor::Milan);
    let slow = Chip {
        corrects_first: true,
        launch_delay_us: u32::try_from(DELAY.as_micros()).unwrap(),
        ..milan.clone()
    };
    let this = std::env::current_exe().unwrap();
    let name = "platform::snp::tests::the_emulated_hosts_firmware_corrects_a_cpuid_page";
    for (mode, chip) in [("all", milan), ("first", slow)] {
        let Some(lab) = casemate_lab::require(casemate_lab::Host::Snp) else { return };
        let lab = lab.chip(chip).timeout(Duration::from_secs(120));
        let mode = format!("CASEMATE_FIRMWARE_CORRECTS={mode}");
        let output = lab.run(&["env", &mode, this.to_str().unwrap(), "--exact", name]).unwrap();
        assert!(output.console.contains("1 passed"), "{}", output.console);
    }
}

/// Offers CPUID pages with one wrong bit each to the firmware, then one with three wrong entries.
fn each_wrong_bit_is_refused(mode: &str, delay: Duration) {
    let plan = plan();
    let vm = vm::create(&vm::open().unwrap(), PlatformKind::Snp).unwrap();
    let ram = GuestRam::new(&Board::new(1 << 20).unwrap(), &plan, true).unwrap();
    let mut snp = Snp::new(&plan, None).unwrap();
    snp.prepare_vm(&vm, &CpuId::new(0).unwrap()).unwrap();
    ram.map(&vm).unwrap();
    let made = Made { vm: &vm, ram: &ram, vcpus: &[] };
    let mut offer = |page: u64, entries: &[kvm_cpuid_entry2]| {
        snp.cpuid = Some(CpuId::from_entries(entries).unwrap());
        let started = Instant::now();
        let ((outcome, events), log) =
            logged(|| Interposer::recording().run(|| snp.add_cpuid(made, page << 12)));
        outcome.unwrap();
        let (taken, refused) = events.split_last().unwrap();
        assert_eq!(taken.reply.status, 0, "{events:?}");
        assert!(refused.iter().all(|event| event.reply.status == 0x16), "{events:?}");
        if mode == "first" {
            assert!(started.elapsed() >= delay * u32::try_from(events.len()).unwrap());
        }
        (refused.len(), log)
    };
    let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    // Bits that an EPYC 7763 does not report, or that firmware refuses although it does: PPR, "BitMask".
    let wrong = [
        ("0x1.0 ECX 0x1000000 by 0x0", kvm_cpuid_entry2 { function: 1, ecx: 1 << 24, ..zero() }),
        ("0x7.0 EBX 0x2 by 0x0", kvm_cpuid_entry2 { function: 7, ebx: 1 << 1, ..zero() }),
        (
            "0x7.1 EAX 0x20 by 0x0",
            kvm_cpuid_entry2 { function: 7, index: 1, flags, eax: 0x20, ..zero() },
        ),
        (
            "0x80000008.0 EBX 0x2000000 by 0x0",
            kvm_cpuid_entry2 { function: 0x8000_0008, ebx: 1 << 25, ..zero() },
        ),
        (
            "0x8000001d.3 EDX 0x6 by 0x2",
            kvm_cpuid_entry2 { function: 0x8000_001d, index: 3, flags, edx: 6, ..zero() },
        ),
        (
            "0x80000021.0 EAX 0x18000245 by 0x18000045",
            kvm_cpuid_entry2 { function: 0x8000_0021, eax: 0x1800_0245, ..zero() },
        ),
        (
            "0x80000021.0 ECX 0x6 by 0x0",
            kvm_cpuid_entry2 { function: 0x8000_0021, ecx: 0x6, ..zero() },
        ),
    ];
    let (_, fine) = offer(8, &[kvm_cpuid_entry2 { function: 0x8000_0021, eax: 0x45, ..zero() }]);
    assert_eq!(fine, "");
    if mode == "all" {
        for (page, (said, entry)) in (9..).zip(wrong) {
            let (refused, log) = offer(page, &[entry]);
            assert_eq!(refused, 1, "{said}: {log}");
            assert!(log.trim_end().ends_with(&format!("CPUID: {said}")), "{said}: {log}");
        }
    }
    let entries = [wrong[0].1, wrong[2].1, wrong[5].1];
    let (refused, log) = offer(16, &entries);
    assert_eq!(refused, if mode == "first" { entries.len() } else { 1 }, "{log}");
    assert!([0, 2, 5].iter().all(|&place| log.contains(wrong[place].0)), "{log}");
}

fn zero() -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2::default()
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
    // Attributes are set by `map`, then by each attempt, and set back where the discard fails: the
    // first attempt fails, and of those after it the first one to private. The fifth is that, as a
    // failure counts for itself alone.
    let interposer = Interposer::succeeding()
        .failing(attributes, 2, denied)
        .failing("fallocate", 1, denied)
        .failing(attributes, 5, denied);
    interposer.run(|| {
        ram.map(&vm).unwrap();
        let convert = |private| ram.convert(&vm, 0x2_0000, 0x2000, private);
        let address = GuestAddress(0x2_0000);
        let shared = || ram.memory().check_range(address, 0x2000, Permissions::ReadWrite);
        let fails = |private, command| {
            let error = convert(private).unwrap_err().to_string();
            assert!(error.starts_with(command) && shared() == private, "{error}");
            error
        };
        assert!(fails(false, attributes).contains("0x20000"));
        fails(false, "fallocate");
        convert(false).unwrap();
        assert!(shared());
        assert_eq!(ram.shared().memory().current, 0x2000);
        fails(true, attributes);
        convert(true).unwrap();
        assert!(!shared());
        assert_eq!(ram.shared().memory().current, 0);
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
        let memory = ram.shared().memory();
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
