//! The image under hosts that are honest, hosts that attack it, and hosts that write anything at all.
//! Whatever a host does, a guest ends in the kernel that was measured or by a request to end it, with
//! the reason.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "../../harness/mod.rs"]
mod harness;

mod fresh;
mod given;
mod handed_over;
mod honest;
mod interrupts;
mod notices;
mod snp;
mod tdx;
mod vcpus;
mod window;

use casemate_firmware_logic::fatal::Fatal;
use casemate_launch::{Contents, LaunchPlan, PageKind, PlatformKind};
use harness::host::Host;
use harness::{End, guest, run};

/// Why a guest has to stop, and what its host does.
type Attack = (Fatal, fn(&mut Host));

/// Runs the guest under each host.
fn attack(platform: PlatformKind, attacks: impl IntoIterator<Item = Attack>) {
    let plan = guest::plan(platform, &guest::payloads());
    for (number, (fatal, change)) in attacks.into_iter().enumerate() {
        let mut host = Host::default();
        change(&mut host);
        let end = run(&plan, host).end;
        assert_eq!(end, End::Stopped(fatal), "{platform:?}, attack {number}");
    }
}

/// Shared parts of a plan, in their order in the window.
#[derive(Clone, Copy)]
enum Shared {
    Header,
    CommandLine,
    Kernel,
    Initrd,
}

/// The bytes of a part of the window, for a host to change.
fn change(plan: &mut LaunchPlan, part: Shared, change: impl FnOnce(&mut Vec<u8>)) {
    let mut shared = plan.imports.iter_mut().filter(|import| import.kind == PageKind::Shared);
    change_import(shared.nth(part as usize).unwrap(), change);
}

/// The same of the image, which is measured: another image has another measurement.
fn change_image(plan: &mut LaunchPlan, change: impl FnOnce(&mut Vec<u8>)) {
    change_import(&mut plan.imports[0], change);
}

/// Measures the guest to have the largest limits that there can be, so that no other check hides behind
/// them: memory at 0x18 of the config page, vCPUs at 0x20.
fn raise_limits(plan: &mut LaunchPlan) {
    change_image(plan, |image| {
        image[0x18..0x20].copy_from_slice(&(8_u64 << 40).to_le_bytes());
        image[0x20..0x24].copy_from_slice(&255_u32.to_le_bytes());
    });
}

fn change_import(import: &mut casemate_launch::Import, change: impl FnOnce(&mut Vec<u8>)) {
    let Contents::Bytes(bytes) = &import.contents else { panic!("zeroes") };
    let mut changed = bytes.to_vec();
    change(&mut changed);
    import.contents = Contents::Bytes(changed.into());
}
