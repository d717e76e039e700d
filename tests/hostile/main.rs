//! Hostile guests and hosts, on this machine's /dev/kvm: `casemate run` outlives them, or ends with the
//! right status, and spends no more than stated on them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

mod ceilings;
mod ends;
mod guest;
mod table;

use ceilings::{Ceilings, watch};
use guest::Guest;
use table::{ATTACKS, Attack};

/// Runs the attacks of one device.
fn run(device: &str) {
    let attacks: Vec<_> = ATTACKS.iter().filter(|attack| attack.device == device).collect();
    assert!(!attacks.is_empty(), "no attack on the {device}");
    for attack in attacks {
        let Attack { name, does, flags, .. } = attack;
        let guest = Guest::attack(name, flags);
        let seen = watch(guest);
        let failed = format!("{name} ({does}): {seen:?}\n{}", seen.log);
        assert_eq!(seen.status, 42, "{failed}");
        seen.stays_within(&Ceilings::of(attack), &failed);
    }
}

#[test]
fn transport_outlives_hostile_drivers() {
    run("transport");
}

#[test]
fn rings_outlive_hostile_drivers() {
    run("ring");
}

#[test]
fn pci_outlives_hostile_drivers() {
    run("pci");
}

#[test]
fn board_outlives_hostile_guests() {
    run("board");
}

#[test]
fn disk_outlives_hostile_drivers() {
    run("disk");
}

#[test]
fn sockets_outlive_hostile_drivers() {
    run("sockets");
}

#[test]
fn balloon_and_console_outlive_hostile_drivers() {
    run("balloon");
    run("console");
}

#[test]
fn each_attack_is_another_one() {
    let mut names: Vec<_> = ATTACKS.iter().map(|attack| attack.name).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(count >= 60, "{count} attacks");
    let source = include_str!("guest/attacks.c");
    for attack in ATTACKS {
        assert!(source.contains(&format!("static void {}(void)", attack.name)), "{}", attack.name);
        assert!(!attack.does.is_empty() && !attack.breaks.is_empty(), "{}", attack.name);
    }
}
