//! SEV-SNP guests that ask `casemate run` for what cannot be, in the emulated host; and what becomes of
//! their memory.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/confidential.rs"]
mod confidential;
#[path = "common/payload.rs"]
mod payload;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use casemate_lab::{Chip, Host, Processor, require};
use casemate_test_support::process::GUEST_IN_SHELL;
use confidential::{Guest, said, sha256};
use payload::{Request, SCRATCH, SHARED_VIEW, image};

const SHARED: bool = false;
const PRIVATE: bool = true;

/// A page of the guest's, and one that no memory is at.
const PAGE: u64 = 0x2_0000;
const HOLE: u64 = 0xd000_0000;

/// What a guest asks for, and the last word that it says of it.
fn asked() -> Vec<(Request, u64)> {
    /// Response of the MSR protocol, and its error bit.
    const CHANGED: u64 = 0x15;
    const FAILED: u64 = 1 << 63 | CHANGED;
    /// What a hypercall of KVM's answers: nothing wrong; of ours: refused; EINVAL; unknown.
    const DONE: u64 = 0;
    const REFUSED: u64 = 22;
    const EINVAL: u64 = (-22_i64).cast_unsigned();
    const ENOSYS: u64 = (-1000_i64).cast_unsigned();
    vec![
        // Page state changes one by one: memory, none, far beyond.
        (Request::change(PAGE, SHARED), CHANGED),
        (Request::change(PAGE, PRIVATE), CHANGED),
        (Request::change(HOLE, SHARED), CHANGED),
        (Request::change(HOLE, PRIVATE), FAILED),
        (Request::change(1 << 46, PRIVATE), FAILED),
        // Registers: of a device, of PCI's configuration space, of the I/O APIC, of the local one.
        (Request::change(0xc000_0000, PRIVATE), FAILED),
        (Request::change(0xe000_0000, PRIVATE), FAILED),
        (Request::change(0xfec0_0000, PRIVATE), FAILED),
        (Request::change(0xfee0_0000, PRIVATE), FAILED),
        // By hypercall: fine, not aligned, nothing, far too much, across the end of memory, none.
        (Request::map(PAGE, 16, SHARED), DONE),
        (Request::map(PAGE, 16, PRIVATE), DONE),
        // Of pages that are so in part; of a page of 2 MiB.
        (Request::map(PAGE, 16, SHARED), DONE),
        (Request::map(PAGE + 0x8000, 16, PRIVATE), DONE),
        (Request::map(PAGE + 0x4000, 8, SHARED), DONE),
        (Request::map(PAGE, 24, PRIVATE), DONE),
        (Request::hypercall(12, 0x60_0000, 512, 1 << 4 | 1), DONE),
        (Request::map(PAGE | 1, 1, SHARED), EINVAL),
        (Request::map(PAGE, 0, SHARED), EINVAL),
        (Request::map(0, (1 << 52) - 1, PRIVATE), REFUSED),
        (Request::map(PAGE, 1 << 36, PRIVATE), REFUSED),
        (Request::map((192 << 20) - 0x1000, 2, PRIVATE), REFUSED),
        (Request::map(HOLE, 1, PRIVATE), REFUSED),
        // A value that is no request; a hypercall that nobody knows; changes from a list that is private, and from nonsense.
        (Request::Msr(0xabc), 0xabc),
        (Request::hypercall(9999, 0, 0, 0), ENOSYS),
        (Request::Exit([0x8000_0010, 0, 0, 0, 0, 0, 0, PAGE]), 0),
        (Request::Write(SHARED_VIEW + SCRATCH, 0xffff_ffff), 0),
        (Request::Exit([0x8000_0010, 0, 0, 0, 0, 0, 0, SCRATCH]), 0),
        // Nobody is at this port or address.
        (Request::port(0x1234, 0), 0),
        (Request::Exit([0x8000_0002, HOLE, 8, 0, 0, 0, 0, SCRATCH]), 0),
    ]
}

/// A driver of the entropy device that has it write to a private page; the device's status at last.
fn private_buffer() -> Vec<Request> {
    const COMMAND: u64 = 0xe000_8004;
    const DEVICE: u64 = 0xc000_0000;
    const STATUS: u64 = DEVICE + 0x14;
    const QUEUE: u64 = 0x3_0000;
    const BUFFER: u64 = 0x1_2000;
    let mut requests = vec![
        Request::change(QUEUE, SHARED),
        // A descriptor that the device is to write to, and the ring that offers it.
        Request::Write(SHARED_VIEW + QUEUE, BUFFER),
        Request::Write(SHARED_VIEW + QUEUE + 8, 2 << 32 | 64),
        Request::Write(SHARED_VIEW + QUEUE + 0x100, 1 << 16),
        Request::Write(BUFFER, 0x5ec2e7),
    ];
    // VIRTIO 1.2, sections 3.1.1 and 4.1.4.3: features VERSION_1 and ACCESS_PLATFORM.
    for (register, bytes, value) in [
        (COMMAND, 2, 6),
        (STATUS, 1, 0),
        (STATUS, 1, 3),
        (DEVICE + 0x8, 4, 1),
        (DEVICE + 0xc, 4, 3),
        (STATUS, 1, 11),
        (DEVICE + 0x16, 2, 0),
        (DEVICE + 0x18, 2, 8),
        (DEVICE + 0x20, 4, QUEUE),
        (DEVICE + 0x28, 4, QUEUE + 0x100),
        (DEVICE + 0x30, 4, QUEUE + 0x200),
        (DEVICE + 0x1c, 2, 1),
        (STATUS, 1, 15),
        (DEVICE + 0x1000, 2, 0),
    ] {
        requests.extend(Request::mmio_write(register, bytes, value));
    }
    // A byte from the host: by then the device has seen it.
    requests.push(Request::Input);
    requests.extend(Request::mmio_read(STATUS, 1));
    requests.push(Request::Read(BUFFER));
    requests
}

/// A payload as a file of a guest's.
fn payload(guest: &Guest, name: &str, requests: &[Request], last: Request) -> String {
    let image = image(Path::new(&guest.path("")), &[requests, &[last]].concat());
    guest.write(name, image)
}

/// The last words of the lines that a guest said.
fn words(console: &str) -> Vec<u64> {
    let word = |line: &str| u64::from_str_radix(line.trim().rsplit(' ').next()?, 16).ok();
    console.lines().filter(|line| line.starts_with(['0', '8', 'f'])).filter_map(word).collect()
}

/// They get nothing, a guest beside them loses nothing, and in the end the host has its memory again.
#[test]
fn what_cannot_be_is_refused() {
    if require(Host::Snp).is_none() {
        return;
    }
    let guest = Guest::new(Host::Snp, "6.12");
    let (disk, contents) = guest.disk();
    let power_off = Request::port(0x600, 0x34);
    // A page to and fro.
    let turns = (0..40).map(|turn| (Request::change(PAGE, turn % 2 == 1), 0x15));
    let (asked, replies): (Vec<_>, Vec<_>) = asked().into_iter().chain(turns).unzip();
    let hostile = payload(&guest, "asks", &asked, power_off);
    let private = payload(&guest, "private", &private_buffer(), power_off);
    let mut script = format!(
        "memory() {{ sync; echo 3 >/proc/sys/vm/drop_caches; grep MemAvailable /proc/meminfo; }}\n\
         echo BEFORE $(memory)\n{} >/tmp/beside 2>&1 & beside=$!\n{}\
         mkfifo /tmp/input\n\
         (until grep -q 0x12000 /tmp/private; do sleep 0.1; done; echo) >/tmp/input &\n\
         {} </tmp/input 2>/tmp/private; echo \"ENDED $?\"; cat /tmp/private\n",
        guest.run(&format!("{} --disk {disk}", guest.kernel(confidential::CMDLINE))),
        guest.other_line(&format!("--vcpu-type host --firmware {hostile} 2>/tmp/log")),
        guest.run(&format!("--vcpu-type host --firmware {private}")).replace("</dev/null", ""),
    );
    let ends = [
        (Request::Exit([0x8000_ffff, 0, 0, 0, 0, 0, 0, 0]), "KVM_RUN: ", 124),
        // There is nothing to read, and nobody to handle that.
        (Request::Read(1 << 40), "triple fault", 122),
        (Request::terminate(0, 0), "reason 0:0: a failure without a name", 124),
        (Request::terminate(1, 2), "reason 1:2: PVALIDATE failed", 124),
        (Request::terminate(5, 1), "the firmware ended the guest: ", 124),
        (Request::terminate(15, 255), "reason 15:255", 124),
    ];
    for (at, (end, ..)) in ends.iter().enumerate() {
        let file = payload(&guest, &format!("end{at}"), &[*end], power_off);
        script += &guest.other_line(&format!("--vcpu-type host --firmware {file}"));
    }
    script += "wait $beside; echo \"ENDED $?\"; echo AFTER $(memory); cat /tmp/beside\n";
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    let guests: Vec<_> = console.split("ENDED ").collect();
    let [asks, private, ended @ .., beside] = &guests[..] else { panic!("{console}") };
    let said_so = words(asks);
    let replies: Vec<_> = asked
        .iter()
        .zip(replies)
        .filter(|(request, _)| !matches!(request, Request::Write(..)))
        .collect();
    assert_eq!(said_so.len(), replies.len(), "{asks}");
    for ((request, reply), said) in replies.into_iter().zip(said_so) {
        assert_eq!(said, reply, "{request:?}: {asks}");
    }
    // DEVICE_NEEDS_RESET, said in the log; the private page has what the guest wrote.
    assert!(ended[0].contains("address 0x12000"), "{console}");
    let private = words(private);
    assert_eq!(private[private.len() - 2..], [0x4f, 0x5ec2e7], "{console}");
    assert_eq!(ended.len(), ends.len() + 1, "{console}");
    for (found, (end, sentence, status)) in ended.windows(2).zip(ends) {
        assert!(found[0].contains(sentence), "{end:?}: {}", found[0]);
        assert!(found[1].starts_with(&format!("{status}\n")), "{end:?}: {}", found[1]);
    }
    assert!(beside.starts_with("0\n") && beside.contains("UP vcpus=1"), "{console}");
    assert_eq!(said(beside, "DISK ", 0), sha256(&contents), "{console}");
    let available =
        |name| said(console, &format!("{name} MemAvailable:"), 0).parse::<i64>().unwrap();
    let lost = available("BEFORE") - available("AFTER");
    assert!(lost < 16 << 10, "{lost} KiB of the host's memory are gone: {console}");
}

/// A guest that shares as much as it may, and then more, in each way that it can ask: it is told no, the
/// host says so in its log, what was shared before stays, and what it gives back it may share again.
#[test]
fn sharing_ends_at_the_limit() {
    const LIMIT: u64 = 1 << 20;
    const PAGES: u64 = LIMIT >> 12;
    const START: u64 = 32 << 20;
    /// As above: a hypercall that is done or refused, a page state change that is done or failed.
    const DONE: u64 = 0;
    const REFUSED: u64 = 22;
    const CHANGED: u64 = 0x15;
    const FAILED: u64 = 1 << 63 | CHANGED;
    if require(Host::Snp).is_none() {
        return;
    }
    let guest = Guest::new(Host::Snp, "6.12");
    let after = START + LIMIT;
    let (asked, replies): (Vec<_>, Vec<_>) = [
        // The GHCB is a shared page, too.
        (Request::map(START, PAGES, SHARED), REFUSED),
        (Request::map(START, PAGES - 1, SHARED), DONE),
        (Request::map(after, 1, SHARED), REFUSED),
        (Request::change(after, SHARED), FAILED),
        // Shared already: nothing more is.
        (Request::map(START, PAGES - 1, SHARED), DONE),
        (Request::map(START, 2, PRIVATE), DONE),
        (Request::change(after, SHARED), CHANGED),
        (Request::map(after, 3, SHARED), REFUSED),
        (Request::map(after, 2, SHARED), DONE),
        (Request::map(START, 1, SHARED), REFUSED),
    ]
    .into_iter()
    .unzip();
    let file = payload(&guest, "shares", &asked, Request::port(0x600, 0x34));
    let flags = format!("--vcpu-type host --firmware {file} --shared-memory 1M --json 2>/tmp/log");
    let Some(output) = guest.in_lab(&(guest.other_line(&flags) + "cat /tmp/log")) else { return };
    let console = &output.console;
    assert!(console.contains("ENDED 0"), "{console}");
    assert_eq!(words(console), replies, "{console}");
    let refused = console.matches("bytes beyond its 1048576 bytes of shared memory").count();
    assert_eq!(refused, replies.iter().filter(|reply| [REFUSED, FAILED].contains(reply)).count());
    for (name, bytes) in [("current", LIMIT), ("peak", LIMIT), ("limit", LIMIT)] {
        assert!(console.contains(&format!("\"{name}\":{bytes}")), "{name}: {console}");
    }
}

/// A guest that uses a page now as shared, now as private, without a word: each access changes it, until
/// the host has seen enough.
#[test]
fn a_page_that_is_used_both_ways_for_ever_ends_the_guest() {
    const TURNS: u64 = 499;
    if require(Host::Snp).is_none() {
        return;
    }
    let guest = Guest::new(Host::Snp, "6.12");
    // As often as a page may turn; then the host says so at the next access.
    let both = [Request::Write(SHARED_VIEW + PAGE, 1), Request::Touch(PAGE, 0x1000, true)];
    let turns =
        |more| [&both[..], &[Request::Again(2, TURNS + more), Request::Read(PAGE)]].concat();
    let power_off = Request::port(0x600, 0x34);
    let often = payload(&guest, "often", &turns(0), power_off);
    let for_ever = payload(&guest, "for-ever", &turns(1), power_off);
    let script = guest.other_line(&format!("--vcpu-type host --firmware {often}"))
        + &guest.other_line(&format!("--vcpu-type host --firmware {for_ever}"));
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    let guests: Vec<_> = console.split("ENDED ").collect();
    let [often, for_ever, end] = &guests[..] else { panic!("{console}") };
    // The page has its own address: what it was touched with.
    assert_eq!(words(often), [PAGE], "{console}");
    assert!(for_ever.starts_with("0\n"), "{console}");
    assert!(!for_ever.contains(&format!("{PAGE:016x}")), "{console}");
    let said =
        format!("the page at {PAGE:#x} now as private, now as shared, and gets nowhere with it");
    assert!(for_ever.contains(&said) && end.starts_with("124\n"), "{console}");
}

/// As the host counts: the pages of guest_memfd among its files, the shared ones in the VMM.
#[test]
fn converted_memory_is_given_back() {
    const START: u64 = 32 << 20;
    const SIZE: u64 = 64 << 20;
    /// A private word, which the guest says before each step: all ones.
    const MARK: u64 = 0x1_2000;
    if require(Host::Snp).is_none() {
        return;
    }
    let guest = Guest::new(Host::Snp, "6.12");
    let step = |request| [Request::Read(MARK), Request::Input, request];
    let pages = SIZE >> 12;
    let requests = [
        step(Request::Touch(START, SIZE, true)),
        step(Request::map(START, pages, SHARED)),
        step(Request::Touch(SHARED_VIEW + START, SIZE, false)),
        step(Request::map(START, pages, PRIVATE)),
    ];
    let mut requests = [&[Request::Write(MARK, u64::MAX)], requests.as_flattened()].concat();
    requests.extend([Request::Read(MARK), Request::Input]);
    let file = payload(&guest, "converts", &requests, Request::port(0x600, 0x34));
    let script = format!(
        "{GUEST_IN_SHELL}mkfifo /tmp/input\n{} </tmp/input >/tmp/log 2>&1 &\nexec 3>/tmp/input\n\
         for step in 1 2 3 4 5; do\n\
         until [ $(grep -c '^ffffffff' /tmp/log) -ge $step ]; do sleep 0.1; done\n\
         echo PRIVATE-$step $(sed -n 's/^Cached: *//p' /proc/meminfo)\n\
         echo SHARED-$step $(sed -n 's/^VmRSS:[^0-9]*//p' /proc/$(guest)/status)\n\
         echo >&3; done; wait; cat /tmp/log",
        guest
            .run(&format!("--vcpu-type host --firmware {file} --prefault 0"))
            .replace("</dev/null", ""),
    );
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    let counts = |name: &str| -> [i64; 5] {
        [1, 2, 3, 4, 5].map(|step| said(console, &format!("{name}-{step} "), 0).parse().unwrap())
    };
    let size = i64::try_from(SIZE >> 10).unwrap();
    // Each step but the first changes one of the two by the whole size, or both: up or down.
    for (name, changes) in [("PRIVATE", [1, -1, 0, 1]), ("SHARED", [0, 0, 1, -1])] {
        let found = counts(name);
        for (two, change) in found.windows(2).zip(changes) {
            let off = two[1] - two[0] - change * size;
            assert!(off.abs() < size / 8, "{name}: {found:?} KiB: {console}");
        }
    }
}

/// Memory of the guest below, and the first word of each of its pages: its address.
const PRIVATE_START: u64 = 32 << 20;
const SHARED_START: u64 = 96 << 20;
const TOUCHED: u64 = 32 << 20;

/// As on silicon, a page that becomes private holds noise, another in each page, whatever the host had
/// in it; and the host that reads private memory reads noise.
#[test]
fn private_memory_is_noise_to_the_host_and_when_new_to_the_guest() {
    if require(Host::Snp).is_none() {
        return;
    }
    let guest = Guest::new(Host::Snp, "6.12");
    let shared = SHARED_VIEW + SHARED_START;
    let requests = [
        Request::Touch(PRIVATE_START, TOUCHED, true),
        Request::Read(PRIVATE_START),
        Request::Read(PRIVATE_START + 8),
        Request::Read(PRIVATE_START + 0x1008),
        Request::map(SHARED_START, TOUCHED >> 12, SHARED),
        Request::Touch(shared, TOUCHED, false),
        Request::Read(shared + 8),
        Request::change(SHARED_START, PRIVATE),
        Request::Touch(SHARED_START, 0x1000, true),
        Request::Read(SHARED_START + 8),
        Request::Input,
    ];
    let file = payload(&guest, "noise", &requests, Request::port(0x600, 0x34));
    let sample = std::env::current_exe().unwrap();
    let script = format!(
        "mkfifo /tmp/input\n{} </tmp/input >/tmp/log 2>&1 &\nexec 3>/tmp/input\n\
         until [ $(grep -cE '^[0-9a-f]{{16}} ' /tmp/log) -ge 7 ]; do sleep 0.1; done\n\
         {} --ignored --exact --nocapture inside_memory_is_sampled\n\
         echo >&3; wait; cat /tmp/log",
        guest.run(&format!("--vcpu-type host --firmware {file}")).replace("</dev/null", ""),
        sample.display(),
    );
    let Some(output) = guest.in_lab_of_chip(Chip::recorded(Processor::Milan), &script) else {
        return;
    };
    let console = &output.console;
    let word = |line: &str| {
        let last = line.trim_end().rsplit(' ').next().filter(|word| word.len() == 16)?;
        u64::from_str_radix(last, 16).ok()
    };
    let words: Vec<_> = console.lines().filter_map(word).collect();
    let [first, noise, other, mapped, zero, changed, again] = words[..] else {
        panic!("{console}")
    };
    assert_eq!((first, mapped, zero, changed), (PRIVATE_START, 0, 0, 0x15), "{console}");
    let noises = [0, noise, other, again];
    for (place, noise) in noises.iter().enumerate() {
        assert!(!noises[..place].contains(noise), "{console}");
    }
    let hits = |name| said(console, name, 0).parse::<u32>().unwrap();
    let (private, shared) = (hits("PRIVATE-HITS "), hits("SHARED-HITS "));
    assert!(shared >= 20 && private * 10 < shared, "{private} and {shared}: {console}");
}

/// Reads the first word of each 191st page of the host's memory, as its kernel does.
#[test]
#[ignore = "runs inside an emulated host"]
fn inside_memory_is_sampled() {
    const STRIDE: u64 = 191 << 12;
    let core = fs::File::open("/proc/kcore").unwrap();
    let mut header = vec![0; 0x1_0000];
    let count = core.read_at(&mut header, 0).unwrap();
    let number = |at: usize| u64::from_le_bytes(header[..count][at..at + 8].try_into().unwrap());
    // ELF-64: the table of program headers, 56 bytes each.
    let segments = usize::from(u16::from_le_bytes([header[0x38], header[0x39]]));
    let table = usize::try_from(number(0x20)).unwrap();
    let (mut private, mut shared) = (0, 0);
    for segment in (0..segments).map(|segment| table + 56 * segment) {
        let [offset, physical, size] = [8, 24, 32].map(|field| number(segment + field));
        if physical == u64::MAX {
            continue;
        }
        for at in (0..size).step_by(usize::try_from(STRIDE).unwrap()) {
            let mut word = [0; 8];
            if core.read_exact_at(&mut word, offset + at).is_err() {
                continue;
            }
            let own = |start| {
                let address = u64::from_le_bytes(word).wrapping_sub(start);
                u32::from(address < TOUCHED && address % 0x1000 == 0)
            };
            private += own(PRIVATE_START);
            shared += own(SHARED_VIEW + SHARED_START);
        }
    }
    println!("PRIVATE-HITS {private}\nSHARED-HITS {shared}");
}
