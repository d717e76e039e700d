//! SEV-SNP guests that ask `casemate run` for what cannot be, in the emulated host.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/confidential.rs"]
mod confidential;
#[path = "common/payload.rs"]
mod payload;

use std::path::Path;

use casemate_lab::{Host, require};
use confidential::{Guest, said};
use payload::{Request, SCRATCH, SHARED_VIEW, image};

/// A page of the guest's, and one that no memory is at.
const PAGE: u64 = 0x2_0000;
const HOLE: u64 = 0xd000_0000;

/// What a guest asks for: what it is told in the last word that it says.
fn asked() -> Vec<(Request, Option<u64>)> {
    let (shared, private) = (false, true);
    let mut list = vec![
        // Page state changes one by one: memory, none, far beyond.
        (Request::change(PAGE, shared), None),
        (Request::change(PAGE, private), None),
        (Request::change(HOLE, shared), None),
        (Request::change(HOLE, private), None),
        (Request::change(1 << 46, private), None),
        // By hypercall: fine, not aligned, nothing, too much, across the end of memory, wrong flags.
        (Request::map(PAGE, 16, shared), None),
        (Request::map(PAGE, 16, private), None),
        (Request::map(PAGE | 1, 1, shared), None),
        (Request::map(PAGE, 0, shared), None),
        (Request::map(0, u64::MAX >> 12, private), None),
        (Request::map(0, 1 << 40, shared), None),
        (Request::map(0x3f0_0000, 0x200, private), None),
        (Request::map(HOLE, 1, private), None),
        (Request::hypercall(12, PAGE, 1, u64::MAX), None),
        // A hypercall that nobody knows; an exit that nobody knows; a value that is no request.
        (Request::hypercall(9999, 0, 0, 0), None),
        (Request::Exit([0x8000_ffff, 0, 0, 0, 0, 0, 0, 0]), None),
        (Request::Msr(0xabc), None),
        // Page state changes from a list that is in private memory, and of nonsense.
        (Request::Exit([0x8000_0010, 0, 0, 0, 0, 0, 0, PAGE]), None),
        (Request::Write(SHARED_VIEW + SCRATCH, 0xffff_ffff), None),
        (Request::Exit([0x8000_0010, 0, 0, 0, 0, 0, 0, SCRATCH]), None),
        // Nobody is at this port or address.
        (Request::port(0x1234, 0), None),
    ];
    for request in Request::mmio_read(HOLE, 8) {
        list.push((request, None));
    }
    list
}

#[test]
fn what_cannot_be_is_refused() {
    if require(Host::Snp).is_none() {
        return;
    }
    let guest = Guest::new(Host::Snp, "6.12");
    let mut requests: Vec<_> = asked().into_iter().map(|(request, _)| request).collect();
    requests.push(Request::port(0x600, 0x34));
    let file = guest.write("asks", image(Path::new(&guest.path("")), &requests));
    let script = guest.other_line(&format!("--firmware {file} --log casemate=trace"));
    let Some(output) = guest.in_lab(&script) else { return };
    panic!("{}", output.console);
}
