//! TDX guests of `casemate run`, in the emulated host: an unmodified kernel with its kvm_intel, and a
//! TDX module in the emulator, which measures.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

#[path = "common/td.rs"]
mod td;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::Duration;

use casemate_lab::{Host, Output, require};
use socket2::{Domain, SockAddr, Socket, Type};
use td::{Request, SHARED, SHARED_VIEW, image};

fn folder() -> tempfile::TempDir {
    // Not in /tmp: the emulated host has one of its own.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn in_lab(script: &str, folder: &Path) -> Option<Output> {
    let lab = require(Host::Tdx)?.timeout(Duration::from_secs(1200)).share(folder);
    Some(lab.run(&["sh", "-c", script]).unwrap())
}

/// A command that runs a guest.
fn run(firmware: &Path, flags: &str) -> String {
    let (casemate, firmware) = (env!("CARGO_BIN_EXE_casemate"), firmware.display());
    format!(
        "{casemate} run --platform tdx --firmware {firmware} --memory 64M {flags} </dev/null \
         2>/tmp/log"
    )
}

/// A line of shell that runs a guest and says its exit status.
fn line(firmware: &Path, flags: &str) -> String {
    // The log comes after the guest's words: between them it would cut their lines.
    format!("{}; status=$?; echo; cat /tmp/log; echo \"ENDED $status\"\n", run(firmware, flags))
}

/// The same for a guest that does not end: it is killed when its log has `text` twice.
fn line_until_twice(text: &str, firmware: &Path, flags: &str) -> String {
    format!(
        ">/tmp/log; {} & guest=$!
         until [ \"$(grep -c '{text}' /tmp/log)\" -ge 2 ] || ! kill -0 $guest; do sleep 0.1; done
         kill -KILL $guest; wait $guest; status=$?; cat /tmp/log; echo \"ENDED $status\"\n",
        run(firmware, flags)
    )
}

/// What was predicted is what the module measured, for each guest in turn; the same guest started
/// again counts once.
fn predicted(output: &Output) -> Vec<String> {
    let after = |text: &str, name: &str| -> Vec<String> {
        let found = text.match_indices(name).map(|(at, _)| &text[at + name.len()..]);
        found.map(|rest| rest.split_whitespace().next().unwrap().to_owned()).collect()
    };
    let mut expected = after(&output.console, "expected measurement ");
    let mut measured = after(&output.platform_log, " mrtd ");
    expected.dedup();
    measured.dedup();
    assert_eq!(measured, expected, "{}", output.console);
    expected
}

/// What a TD may ask that cannot be, and what it is told in R10.
fn hostile() -> Vec<(Request, u64)> {
    const DONE: u64 = 0;
    const INVALID: u64 = 1 << 63;
    const MISALIGNED: u64 = 1 << 63 | 2;
    const UNSUPPORTED: u64 = 1 << 63 | 3;
    let hole = 0xc000_0000;
    vec![
        // Conversions: of a page, of more than fits one exit, of what is no memory or no range.
        (Request::map(BUFFER | SHARED, 0x1000), DONE),
        (Request::map(0x100_0000 | SHARED, 0x100_0000), DONE),
        (Request::map(BUFFER | 1 | SHARED, 0x1000), MISALIGNED),
        (Request::map(BUFFER | SHARED, 0x123), MISALIGNED),
        (Request::map(0, 1 << 46), INVALID),
        (Request::map(hole | SHARED, 0x1000), DONE),
        (Request::map(hole, 0x1000), INVALID),
        (Request::map(1 << 46, 0x1000), INVALID),
        (Request::map(SHARED - 0x1000, 0x2000), INVALID),
        // What the host knows; an interrupt that is none; a call that nobody knows.
        (Request::Host([0x1_0000, 0, 0, 0, 0]), DONE),
        (Request::Host([0x1_0000, 1, 0, 0, 0]), DONE),
        (Request::Host([0x1_0004, 5, 0, 0, 0]), INVALID),
        (Request::Host([0x1_ffff, 0, 0, 0, 0]), UNSUPPORTED),
        // Nobody is at this port or address.
        (Request::Host([30, 4, 0, 0x1234, 0]), DONE),
        (Request::Host([48, 8, 0, 0xd000_0000 | SHARED, 0]), DONE),
        // Quotes: nothing in the buffer, or part of it private, not there, too large.
        (Request::quote(BUFFER | SHARED, 0x1000), INVALID),
        (Request::quote(BUFFER | SHARED, 0x2000), INVALID),
        (Request::quote(hole | SHARED, 0x1000), INVALID),
        (Request::quote(0x100_0000 | SHARED, 0x100_0000), INVALID),
    ]
}

/// A shared page, as the guest maps and as it sees it.
const BUFFER: u64 = 0x2_0000;
const VIEW: u64 = SHARED_VIEW + BUFFER;

/// A private page of the guest's image.
const REPORT: u64 = 0x1_3000;

/// Where the guest counts interrupts of [`VECTOR`].
const COUNT: u64 = 0x1_2800;
const VECTOR: u64 = 0x40;

/// A report, and then a quote: how the request is taken, how it ends, the lengths, and of the report in
/// the quote MRTD (6 words), a word each of MRCONFIGID, MROWNER and MROWNERCONFIG, and how many
/// interrupts came.
fn quote() -> Vec<Request> {
    const IN_FLIGHT: u64 = u64::MAX;
    // TDINFO of a TDREPORT (Intel TDX module ABI, "TDREPORT_STRUCT"), behind the test's own header.
    let mrtd = VIEW + 24 + 16 + 528;
    let mut requests = vec![
        Request::map(BUFFER | SHARED, 0x2000),
        Request::Module([4, REPORT, REPORT + 0x800, 0]),
        Request::Write(VIEW, 1),
        Request::Write(VIEW + 16, 1024),
        Request::Copy(REPORT, VIEW + 24, 1024),
        // SetupEventNotifyInterrupt
        Request::Host([0x1_0004, VECTOR, 0, 0, 0]),
        Request::quote(BUFFER | SHARED, 0x2000),
        Request::Wait(VIEW + 8, IN_FLIGHT),
        Request::Read(VIEW + 8),
        Request::Read(VIEW + 16),
    ];
    requests.extend((0..6).map(|word| Request::Read(mrtd + 8 * word)));
    requests.extend([48, 96, 144].map(|identity| Request::Read(mrtd + identity)));
    requests.extend([Request::Wait(COUNT, 0), Request::Read(COUNT)]);
    requests
}

/// The words that a guest said, of each line the first.
fn said(console: &str) -> Vec<u64> {
    let digits = |line: &str| {
        let word = line.split(' ').next().filter(|word| word.len() == 16);
        word.and_then(|word| u64::from_str_radix(word, 16).ok())
    };
    console.lines().filter_map(digits).collect()
}

/// Where the quote service listens besides its Unix socket.
const PORT: u32 = 4050;

/// Stands in for Intel's quote service: gives back each report with a header. No verifier takes that
/// for a quote.
#[test]
#[ignore = "other tests run it in the emulated host"]
fn quote_service() {
    let sockets = Socket::new(Domain::VSOCK, Type::STREAM, None).unwrap();
    // VMADDR_CID_ANY
    sockets.bind(&SockAddr::vsock(u32::MAX, PORT)).unwrap();
    sockets.listen(1).unwrap();
    thread::spawn(move || {
        loop {
            answer(sockets.accept().unwrap().0);
        }
    });
    let listener = UnixListener::bind("/tmp/quotes").unwrap();
    listener.incoming().for_each(|stream| answer(stream.unwrap()));
}

/// Answers one request.
fn answer(mut stream: impl Read + Write) {
    let mut request = [0; 4 + 24 + 1024];
    stream.read_exact(&mut request).unwrap();
    let quote = [b"EMULATED QUOTE\0\0", &request[28..]].concat();
    let length = u32::try_from(quote.len()).unwrap();
    let size = 24 + length;
    let mut answer = [&size.to_be_bytes()[..], &[1, 0, 1, 0]].concat();
    for value in [1, size, 0, 0, length] {
        answer.extend(value.to_le_bytes());
    }
    answer.extend(quote);
    stream.write_all(&answer).unwrap();
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
    let mut requests: Vec<_> = hostile.iter().map(|(request, _)| *request).collect();
    requests.extend([Request::Write(VIEW, word), Request::Read(VIEW)]);
    // Accepted, a page of zeroes.
    requests.extend([Request::Module([6, 0x3_0000, 0, 0]), Request::Read(0x3_0000)]);
    // Shared because it is used so, without a word; and private again in the same way.
    let other = SHARED_VIEW + 0x4_0000;
    requests.extend([Request::Write(other, word), Request::Read(other)]);
    requests.extend([Request::Module([6, 0x4_0000, 0, 0]), Request::Read(0x4_0000)]);
    let words = |text: &[u8; 8]| u64::from_le_bytes(*text);
    let fatal = Request::Host([0x1_0003, 7, 0, words(b"no \x1b[2J "), words(b"memory\0\0")]);
    let power_off = Request::port(0x600, 0x34);
    let guest = |name: &str, requests: &[Request], last| {
        let image = image(folder.path(), &[requests, &[last]].concat());
        fs::write(path(name), image).unwrap();
    };
    guest("asks", &requests, power_off);
    guest("gives-up", &[], fatal);
    guest("resets", &[], Request::port(0x602, 1));
    guest("quotes", &quote(), power_off);
    let identities = [0x11_u8, 0x22, 0x33];
    let [config, owner, owner_config] = identities.map(|byte| format!("{byte:02x}").repeat(48));
    let table = format!(
        "[tdx]\nmrconfigid = \"{config}\"\nmrowner = \"{owner}\"\nmrownerconfig = \
         \"{owner_config}\"\nquote_service = \"unix:/tmp/quotes\"\n"
    );
    let file = path("guest.toml");
    fs::write(&file, format!("firmware = {:?}\n{table}", path("quotes"))).unwrap();
    let debug = path("debug.toml");
    fs::write(&debug, "firmware = \"quotes\"\n[tdx]\ndebug = true\n").unwrap();
    let service = std::env::current_exe().unwrap();
    let selftest = |service: &str| {
        let casemate = env!("CARGO_BIN_EXE_casemate");
        format!("{casemate} host --quote-selftest {service}; echo \"ENDED $?\"\n")
    };
    let script = line(&path("asks"), "--vcpus 2")
        + &line(&path("gives-up"), "")
        + &line_until_twice("it starts anew", &path("resets"), "--on-reset restart")
        + &line(&path("quotes"), "")
        + &format!("{} --ignored quote_service >/tmp/service 2>&1 &\n", service.display())
        + "until [ -S /tmp/quotes ]; do sleep 0.1; done\n"
        + &selftest("unix:/tmp/quotes")
        // The host's own address.
        + &selftest(&format!("vsock:1:{PORT}"))
        + &line(&path("quotes"), &file.display().to_string())
        + &line(&path("quotes"), &debug.display().to_string())
        // The emulated host has two processors.
        + &line(&path("quotes"), "--vcpus 3");
    let Some(output) = in_lab(&script, folder.path()) else { return };
    let console = &output.console;
    let guests: Vec<_> = console.split("ENDED ").collect();
    let [asks, gives_up, resets, alone, selftest, vsock, quotes, debug, many, end] = guests[..]
    else {
        panic!("{console}")
    };

    let asked = said(asks);
    assert_eq!(asked.len(), requests.len() - 2, "{asks}");
    for ((request, reply), said) in hostile.iter().zip(&asked) {
        assert_eq!(said, reply, "{request:?}: {asks}");
    }
    assert_eq!(asked[hostile.len()..], [word, 0, 0, word, 0, 0], "{asks}");
    assert!(gives_up.starts_with("0\n"), "{gives_up}");
    let message = "the guest reports a fatal error, code 0x7: \"no .[2J memory\"";
    assert!(gives_up.contains(message), "{gives_up}");
    assert!(resets.starts_with("124\n"), "{resets}");
    assert!(resets.matches("it starts anew").count() > 1, "{resets}");

    let unavailable = 1 << 63 | 1;
    assert_eq!(said(alone)[4], unavailable, "{alone}");
    assert!(alone.contains("could not connect to the quote service"), "{alone}");
    for selftest in [selftest, vsock] {
        assert!(selftest.contains("gives quotes: 1040 bytes"), "{selftest}");
    }
    let quoted = said(quotes);
    assert_eq!(quoted[..6], [0, 0, 0, 0, 0, 1040 << 32 | 1024], "{quotes}");
    let mrtd: String =
        quoted[6..12].iter().map(|word| format!("{:016x}", word.swap_bytes())).collect();
    let expected = predicted(&output);
    assert_eq!(expected[3], mrtd, "{quotes}");
    let identity = identities.map(|byte| u64::from_le_bytes([byte; 8]));
    assert_eq!(quoted[12..15], identity, "{quotes}");
    assert_eq!((said(alone)[15], quoted[15]), (1, 1), "{alone}{quotes}");
    assert!(debug.contains("the host does not offer the TD attributes 0x1"), "{debug}");
    assert!(many.contains("gives such a guest at most 2 vCPUs"), "{many}");
    assert!(end.starts_with("2\n"), "{end}");
}
