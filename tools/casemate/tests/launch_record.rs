//! Launches recorded by `casemate run --record` in emulated hosts: they are those of `golden`, and all
//! that the kernel is asked is in them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/golden.rs"]
mod golden;

use std::fs;
use std::time::Duration;

use casemate_lab::{Host, require};
use golden::{Folder, events, golden, same, trace_file};

const CASEMATE: &str = env!("CARGO_BIN_EXE_casemate");

/// Runs a guest with these flags and ends it once it is launched: it would not end by itself. On one processor: KVM returns
/// the processor's number.
const RUN: &str = concat!(
    "log=$(mktemp)\n",
    "taskset -c 0 ",
    env!("CARGO_BIN_EXE_casemate"),
    " run --json --stop-timeout 0 \"$@\" </dev/null >$log 2>&1 & guest=$!\n",
    "until grep -q '\"launched\"' $log || ! kill -0 $guest; do sleep 0.1; done\n",
    "kill $guest; wait $guest; cat $log\n",
);

/// Records the launch of each guest for this host and kernel, and then runs `more`. What was recorded is
/// compared with what is checked in; with CASEMATE_RENEW_TRACES=1 it takes its place.
fn record(host: Host, kernel: &str, more: impl FnOnce(&Folder) -> String) -> Option<Folder> {
    let lab = require(host)?;
    let folder = Folder::new();
    let here = || folder.guests().filter(|(_, at, series)| (*at, *series) == (host, kernel));
    let run = folder.path("run.sh");
    fs::write(&run, RUN).unwrap();
    let run = run.display();
    let mut script = String::from("set -x\n");
    for (name, ..) in here() {
        let (config, trace) = (folder.config(name), folder.path(name).with_extension("trace"));
        let (config, trace) = (config.display(), trace.display());
        script += &format!("sh {run} {config} --record {trace}\n");
    }
    script += &more(&folder);
    let lab = lab.timeout(Duration::from_secs(300)).share(folder.path(""));
    let lab = if host == Host::Tdx { lab } else { lab.kernel(kernel) };
    let output = lab.run(&["sh", "-c", &script]).unwrap();
    for (name, ..) in here() {
        let trace = fs::read_to_string(folder.path(name).with_extension("trace"));
        let trace = trace.unwrap_or_else(|error| panic!("{name}: {error}: {}", output.console));
        if std::env::var_os("CASEMATE_RENEW_TRACES").is_some() {
            fs::write(trace_file(name), &trace).unwrap();
        }
        same(name, &events(&trace), &golden(name));
    }
    Some(folder)
}

/// The number of a command's request (`linux/kvm.h`); None for what is no ioctl.
fn request(command: &str) -> Option<u64> {
    Some(match command {
        "open" | "fallocate" | "CPUID" => return None,
        "KVM_GET_API_VERSION" => 0xae00,
        "KVM_CREATE_VM" => 0xae01,
        "KVM_GET_VCPU_MMAP_SIZE" => 0xae04,
        "KVM_GET_SUPPORTED_CPUID" => 0xc008_ae05,
        "KVM_CREATE_VCPU" => 0xae41,
        "KVM_SET_USER_MEMORY_REGION2" => 0x40a0_ae49,
        "KVM_SET_REGS" => 0x4090_ae82,
        "KVM_GET_SREGS" => 0x8138_ae83,
        "KVM_SET_SREGS" => 0x4138_ae84,
        "KVM_SET_MSRS" => 0x4008_ae89,
        "KVM_SET_FPU" => 0x41a0_ae8d,
        "KVM_SET_CPUID2" => 0x4008_ae90,
        "KVM_GET_CPUID2" => 0xc008_ae91,
        "KVM_SET_MP_STATE" => 0x4004_ae99,
        "KVM_SET_DEBUGREGS" => 0x4080_aea2,
        "KVM_ENABLE_CAP" => 0x4068_aea3,
        "KVM_SET_XCRS" => 0x4188_aea7,
        "KVM_SET_MEMORY_ATTRIBUTES" => 0x4020_aed2,
        "KVM_CREATE_GUEST_MEMFD" => 0xc040_aed4,
        "KVM_GET_DEVICE_ATTR" => 0x4018_aee2,
        command if command.starts_with("KVM_SEV_") => 0xc008_aeba,
        command => panic!("{command} has no number here"),
    })
}

/// The requests that the first thread of the process with the guest makes to KVM and the secure processor,
/// by strace: the first of all threads that makes one.
fn requests(strace: &str) -> Vec<u64> {
    let to_kvm = |line: &&str| {
        ["</dev/kvm>", "kvm-vm>", "kvm-vcpu:", "</dev/sev>"].iter().any(|file| line.contains(file))
    };
    let thread = |line: &str| line.split_whitespace().next().unwrap().to_owned();
    let first = thread(strace.lines().find(to_kvm).unwrap());
    let own = strace.lines().filter(|line| thread(line) == first);
    let number = |line: &str| {
        let request = line.split(", ").nth(1).unwrap();
        u64::from_str_radix(request.trim_start_matches("0x"), 16).unwrap()
    };
    own.filter(to_kvm).map(number).collect()
}

/// What strace sees of a launch is what `casemate host` asks, and then the trace: nothing is missing, and
/// nothing comes in between or later.
#[test]
fn snp_launches_are_recorded_whole() {
    let strace = "strace -f -y -X raw -e trace=ioctl -o";
    let Some(folder) = record(Host::Snp, "6.12", |folder| {
        let file = |name| folder.path(name).display().to_string();
        let config = folder.config("snp-kernel").display().to_string();
        format!(
            "{strace} {} {CASEMATE} host >/dev/null\n\
             {strace} {} sh {} {config} --record {}\n",
            file("host.strace"),
            file("run.strace"),
            file("run.sh"),
            file("trace"),
        )
    }) else {
        return;
    };
    let read = |name| fs::read_to_string(folder.path(name)).unwrap();
    let recorded = events(&read("trace"));
    same("snp-kernel", &recorded, &golden("snp-kernel"));
    let mut expected = requests(&read("host.strace"));
    expected.extend(recorded.iter().filter_map(|event| request(&event.command)));
    assert_eq!(requests(&read("run.strace")), expected);
}

#[test]
fn snp_launches_on_linux_7_2_are_as_recorded() {
    record(Host::Snp, "7.2", |_| String::new());
}

#[test]
fn tdx_launches_are_as_recorded() {
    record(Host::Tdx, "7.2", |_| String::new());
}

#[test]
fn plain_launches_are_as_recorded() {
    record(Host::Kvm, "6.12", |_| String::new());
}
