//! Launches that were recorded on emulated hosts (`golden`), replayed on this machine, whatever it
//! is: the same guest asks the same of the kernel, in the same order and with the same arguments, and
//! takes its answers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/golden.rs"]
mod golden;

use casemate_kvm::trace::{Event, Interposer};
use golden::{Folder, golden, launch, same};

#[test]
fn launches_are_those_that_were_recorded_on_hosts() {
    let folder = Folder::new();
    for (name, ..) in folder.guests() {
        let recorded = golden(name);
        let (outcome, events) =
            launch(&folder.guest(name), Interposer::replaying(recorded.clone()));
        same(name, &events, &recorded);
        assert_eq!(outcome, Ok(()), "{name}");
    }
}

/// Each command that is missing, moved, or asked with something else ends the replay there.
#[test]
fn a_launch_that_is_not_the_recorded_one_fails() {
    let folder = Folder::new();
    let (name, guest) = ("snp-kernel", folder.guest("snp-kernel"));
    let recorded = golden(name);
    // The host is only asked there: what it does not say, it does not have.
    let asks = |event: &Event| event.command == "KVM_GET_DEVICE_ATTR";
    for at in (0..recorded.len()).filter(|at| !asks(&recorded[*at])) {
        let (mut missing, mut moved, mut other) =
            (recorded.clone(), recorded.clone(), recorded.clone());
        missing.remove(at);
        let event = moved.remove(at);
        moved.insert((at + 2) % recorded.len(), event);
        other[at].arguments.pop();
        for (how, trace) in [("missing", missing), ("moved", moved), ("other", other)] {
            let (outcome, events) = launch(&guest, Interposer::replaying(trace));
            assert!(outcome.is_err(), "{how}, command {at}");
            assert!(events.len() <= recorded.len(), "{how}, command {at}");
        }
    }
}
