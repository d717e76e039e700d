//! The devices of confidential guests, through the pages that they share with the host: a network
//! round trip, sockets both ways, a disk; in the emulated SEV-SNP and TDX hosts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod common;
#[path = "common/confidential.rs"]
mod confidential;

use casemate_lab::{Host, require};
use confidential::{CMDLINE, DEVICES, Guest, said, sha256};

fn devices_work_both_ways(host: Host) {
    if require(host).is_none() {
        return;
    }
    let program = common::compile(include_str!("common/echo.c"));
    let guest = Guest::with(host, "7.2", DEVICES, &[("echo", &program)]);
    let echo = guest.program("echo", &program);
    let (disk, contents) = guest.disk();
    let flags = format!("{} --disk {disk} --net tap7 --vsock /tmp/sock", guest.kernel(CMDLINE));
    let script = format!(
        "ip tuntap add tap7 mode tap && ip addr add 10.0.0.1/24 dev tap7 && ip link set tap7 up\n\
         {echo} listen unix /tmp/sock_6000 >/dev/null &\n{} >/tmp/log 2>&1 &\n\
         until grep -q LISTENING /tmp/log || ! kill -0 $!; do sleep 0.2; done\n\
         {echo} connect unix /tmp/sock \"$(printf 'CONNECT 5000\\nfrom-the-host-END')\"\n\
         wait $!; echo ENDED $?; cat /tmp/log",
        guest.run(&flags)
    );
    let Some(output) = guest.in_lab(&script) else { return };
    let console = &output.console;
    assert!(console.contains("ENDED 0"), "{console}");
    assert_eq!(said(console, "DISK ", 0), sha256(&contents), "{console}");
    assert!(std::fs::read(&disk).unwrap().starts_with(b"written by the guest"));
    assert!(console.contains("PING 3 packets received"), "{console}");
    assert_eq!(said(console, "TO-HOST ", 0), "from-the-guest-END", "{console}");
    assert!(console.contains("\nfrom-the-host-END"), "{console}");
}

/// `casemate run --attest`: the agent shows its evidence, or it does not.
#[test]
fn a_guest_shows_its_evidence_to_its_host() {
    if require(Host::Snp).is_none() {
        return;
    }
    let agent = std::fs::read(casemate_test_support::agent::static_binary().unwrap()).unwrap();
    let guest = Guest::with(Host::Snp, "7.2", DEVICES, &[("casemate-agent", &agent)]);
    let shows = guest.kernel(&format!("{CMDLINE} shows"));
    let hides = guest.kernel(&format!("{CMDLINE} hides -- wait"));
    let script = guest.other_line(&format!("{shows} --vsock /tmp/sock --attest=3600"))
        + &guest.other_line(&format!("{hides} --vsock /tmp/sock --attest=2"))
        + "ls /tmp/sock_* 2>&1\n";
    let Some(output) = guest.in_lab(&script) else { return };
    let (shows, hides) = output.console.split_once("ENDED 0").unwrap_or_else(|| {
        panic!("{}", output.console);
    });
    assert!(
        shows.contains("casemate: the guest's evidence is that of what was launched"),
        "{shows}"
    );
    assert_eq!(said(shows, "SHOWN ", 0), "0", "{shows}");
    assert!(hides.contains("it has shown no evidence within 2 s") && hides.contains("ENDED 124"));
    assert!(hides.contains("No such file"), "{hides}");
}

#[test]
fn of_an_sev_snp_guest() {
    devices_work_both_ways(Host::Snp);
}

#[test]
fn of_a_tdx_guest() {
    devices_work_both_ways(Host::Tdx);
}
