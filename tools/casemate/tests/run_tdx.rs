//! TDX guests of `casemate run`, in the emulated host: an unmodified kernel with its kvm_intel, and a
//! TDX module in the emulator, which measures.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/td.rs"]
mod td;

use std::fs;
use std::path::Path;
use std::time::Duration;

use casemate_lab::{Host, Output, require};
use casemate_tests::vectors::Inputs;
use td::{Request, SHARED, SHARED_VIEW, image};

fn folder() -> tempfile::TempDir {
    // Not in /tmp: the emulated host has one of its own.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn in_lab(script: &str, folder: &Path) -> Option<Output> {
    let lab = require(Host::Tdx)?.timeout(Duration::from_secs(300)).share(folder);
    Some(lab.run(&["sh", "-c", script]).unwrap())
}

/// A line of shell that runs a guest and says its exit status.
fn line(firmware: &Path, limit: u32, flags: &str) -> String {
    let (casemate, firmware) = (env!("CARGO_BIN_EXE_casemate"), firmware.display());
    format!(
        "timeout {limit} {casemate} run --platform tdx --firmware {firmware} --memory 64M {flags} \
         </dev/null 2>&1; echo \"ENDED $?\"\n"
    )
}

/// What was predicted is what the module measured, for each guest in turn; returns how many.
fn predicted(output: &Output) -> usize {
    let after = |text: &str, name: &str| -> Vec<String> {
        let found = text.match_indices(name).map(|(at, _)| &text[at + name.len()..]);
        found.map(|rest| rest.split_whitespace().next().unwrap().to_owned()).collect()
    };
    let expected = after(&output.console, "expected measurement ");
    assert_eq!(after(&output.platform_log, " mrtd "), expected, "{}", output.console);
    expected.len()
}

/// What a TD may ask that cannot be, and what it is told in R10; R11 where it says more.
fn hostile() -> Vec<(Request, &'static str)> {
    const DONE: &str = "0000000000000000";
    const INVALID: &str = "8000000000000000";
    const MISALIGNED: &str = "8000000000000002";
    const UNSUPPORTED: &str = "8000000000000003";
    let private_hole = 0xc000_0000;
    vec![
        (Request::map(0x2_0000 | SHARED, 0x1000), DONE),
        (Request::map(0x2_0001 | SHARED, 0x1000), MISALIGNED),
        (Request::map(0x2_0000 | SHARED, 0x123), MISALIGNED),
        (Request::map(0, 1 << 46), INVALID),
        (Request::map(private_hole | SHARED, 0x1000), DONE),
        (Request::map(private_hole, 0x1000), INVALID),
        (Request::map(1 << 46, 0x1000), INVALID),
        (Request::map(SHARED - 0x1000, 0x2000), INVALID),
        (Request::Host([0x1_0000, 0, 0, 0, 0]), DONE),
        (Request::Host([0x1_0000, 1, 0, 0, 0]), DONE),
        (Request::Host([0x1_0004, 5, 0, 0, 0]), INVALID),
        (Request::Host([0x1_ffff, 0, 0, 0, 0]), UNSUPPORTED),
        // Nobody is at this port or address.
        (Request::Host([30, 4, 0, 0x1234, 0]), DONE),
        (Request::Host([48, 8, 0, 0xd000_0000 | SHARED, 0]), DONE),
    ]
}

#[test]
fn tds_measure_to_what_was_predicted_and_ask_in_vain_for_what_cannot_be() {
    if require(Host::Tdx).is_none() {
        return;
    }
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let hostile = hostile();
    let word = 0x1122_3344_5566_7788;
    let view = SHARED_VIEW + 0x2_0000;
    let mut requests: Vec<_> = hostile.iter().map(|(request, _)| *request).collect();
    requests.extend([Request::Write(view, word), Request::Read(view)]);
    // Accepted, a page of zeroes.
    requests.extend([Request::Module([6, 0x3_0000, 0, 0]), Request::Read(0x3_0000)]);
    let ends = |last| [&requests[..], &[last]].concat();
    let words = |text: &[u8; 8]| u64::from_le_bytes(*text);
    let fatal = Request::Host([0x1_0003, 7, 0, words(b"no \x1b[2J "), words(b"memory\0\0")]);
    fs::write(path("powers-off"), image(folder.path(), &ends(Request::port(0x600, 0x34)))).unwrap();
    fs::write(path("gives-up"), image(folder.path(), &ends(fatal))).unwrap();
    let Some(ovmf) = Inputs::open().unwrap().get("ovmf-sid-inteltdx").unwrap() else { return };
    fs::write(path("ovmf"), ovmf).unwrap();
    let script = line(&path("powers-off"), 60, "")
        + &line(&path("gives-up"), 60, "")
        // Without its configuration device it waits for ever, after it has accepted all memory.
        + &line(&path("ovmf"), 20, "");
    let Some(output) = in_lab(&script, folder.path()) else { return };
    assert_eq!(predicted(&output), 3);
    let guests: Vec<_> = output.console.split("ENDED ").collect();
    let [off, fatal, ovmf, _] = guests[..] else { panic!("{}", output.console) };
    let said: Vec<_> = off.lines().filter(|line| line.len() == 34 || line.len() == 17).collect();
    for ((request, reply), said) in hostile.iter().zip(&said) {
        assert_eq!(said.split(' ').next(), Some(*reply), "{request:?}: {off}");
    }
    let rest = &said[hostile.len()..];
    assert_eq!(rest[..3].concat(), format!("{word:016x} {:016x} {:016x} ", 0, 0), "{off}");
    assert!(fatal.starts_with("0\n"), "{off}");
    let message = "the guest reports a fatal error, code 0x7: \"no .[2J memory\"";
    assert!(fatal.contains(message), "{fatal}");
    assert!(ovmf.starts_with("124\n"), "{ovmf}");
    // TDH.MEM.PAGE.AUG: memory that a guest accepted.
    let accepted = output.platform_log.matches("seamcall 6 ").count();
    assert!(accepted > 16_000, "{accepted} pages of 64 MiB");
}
