//! Configurations that are refused, each with the exact text of its error.
//!
//! `refusals.txt` has them in blocks: the file, a line that starts with `=> `, an empty line.

#![allow(clippy::unwrap_used, reason = "helpers of tests, not only tests")]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use casemate_config::{ByteSize, ConfigError, Overrides, from_flags, load};

/// The files that cases name, in a folder of their own.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, length) in [("empty", 0), ("one", 512), ("odd", 513), ("big", 2 << 20)] {
        fs::write(folder.path().join(name), vec![1; length]).unwrap();
    }
    // Containers: the header of one, the footer of the other, neither of whole sectors.
    let qcow2 = [&b"QFI\xfb\0\0\0\x03"[..], &[0; 700]].concat();
    let vhd = [&[0; 1000][..], b"conectix", &[0; 504]].concat();
    for (name, bytes) in [("disk.qcow2", qcow2), ("fixed.vhd", vhd)] {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn refusal(folder: &Path, text: &str) -> String {
    let file = folder.join("guest.toml");
    fs::write(&file, text).unwrap();
    let error = load(&file, Overrides::default()).expect_err(text);
    error.to_string().replace(&format!("{}/", folder.display()), "")
}

#[test]
fn each_refusal_says_what_is_wrong_and_what_would_be_right() {
    let table = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/refusals.txt");
    let text = fs::read_to_string(table).unwrap();
    let folder = folder();
    let mut made = String::new();
    let mut cases = 0;
    for block in text.split("\n\n").filter(|block| !block.trim().is_empty()) {
        let (config, _) = block.rsplit_once("\n=> ").unwrap();
        let config = config.trim_start_matches('\n');
        let _ = write!(made, "{config}\n=> {}\n\n", refusal(folder.path(), config));
        cases += 1;
    }
    assert!(cases >= 40, "only {cases} cases");
    if std::env::var_os("CASEMATE_UPDATE_REFUSALS").is_some() {
        fs::write(table, &made).unwrap();
    }
    for (expected, found) in text.split("\n\n").zip(made.split("\n\n")) {
        assert_eq!(expected, found);
    }
}

fn flags(values: &[(&str, &str)]) -> Overrides {
    Overrides::new(values.iter().copied()).unwrap()
}

#[test]
fn flags_win_and_their_errors_say_so() {
    let folder = folder();
    let file = folder.path().join("guest.toml");
    fs::write(&file, "kernel = \"one\"\nvcpus = 300\n").unwrap();
    let config = load(&file, flags(&[("vcpus", "4")])).unwrap();
    assert_eq!((config.vcpus, config.memory), (4, ByteSize(512 << 20)));
    assert_eq!(config.kernel, Some(folder.path().join("one")));
    let error = load(&file, flags(&[("vcpus", "0")])).unwrap_err();
    assert_eq!(error.to_string(), "--vcpus = 0: a guest has 1 to 255 vCPUs; try vcpus = 1");
    let disk = flags(&[("disk", "disk.img,read_only=true"), ("vcpus", "1")]);
    let error = load(&file, disk);
    assert!(error.unwrap_err().to_string().starts_with("--disk[0].path = \"disk.img\": "));
    let error = from_flags(Overrides::default()).unwrap_err();
    let expected = "command line: kernel is missing; give a kernel, firmware, or an igvm file";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn what_cannot_be_tabled_is_refused_too() {
    let folder = folder();
    let kernel = "kernel = \"one\"\n";
    let long = refusal(folder.path(), &format!("{kernel}cmdline = \"{}\"", "x".repeat(2048)));
    assert!(long.contains("2048 bytes are too long for Linux; shorten it to 2047 bytes"), "{long}");
    let nets: String = (0..237).map(|at| format!("[[net]]\ntap = \"t{at}\"\n")).collect();
    let many = refusal(folder.path(), &format!("{kernel}{nets}"));
    assert!(many.ends_with("do not fit the PCI bus; have at most 236 in all"), "{many}");
    let deep = format!("{kernel}[vsock]\nsocket = \"{}\"", "s".repeat(97));
    assert!(refusal(folder.path(), &deep).ends_with("use at most 96 bytes"));
    let kernels = format!("{kernel}[vsock]\nvhost = true");
    assert!(refusal(folder.path(), &kernels).contains("the kernel serves only plain guests"));
    let both = format!("platform = \"plain\"\n{kernels}\nsocket = \"s\"");
    assert!(refusal(folder.path(), &both).ends_with("leave vsock.socket out"));
    let nowhere = refusal(folder.path(), &format!("{kernel}[serial]"));
    assert!(nowhere.ends_with("give either file or socket"), "{nowhere}");
    let absent = load(&folder.path().join("absent.toml"), Overrides::default()).unwrap_err();
    assert!(matches!(absent, ConfigError::Unreadable { .. }));
}

#[test]
fn policies_become_the_specifications_bits() {
    let folder = folder();
    let file = folder.path().join("guest.toml");
    fs::write(&file, "firmware = \"one\"\n[snp]\n[tdx]\ndebug = true\n").unwrap();
    let config = load(&file, Overrides::default()).unwrap();
    assert_eq!(config.snp.unwrap().guest_policy(), 0x3_0000);
    assert_eq!(config.tdx.unwrap().attributes(), 0x1000_0001);
}
