//! How the image is built: two calls of the rustc that builds everything else. The image is measured,
//! so nothing of the outer build may leak into it: not its flags, not its directory.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use casemate_firmware_logic::layout;

/// Common to both calls. No red zone, no SSE: a trap may come at any instruction. Position
/// independent code, since the image runs above 2 GiB.
const FLAGS: &[&str] = &[
    "--edition=2024",
    "--target=x86_64-unknown-linux-gnu",
    "-Copt-level=s",
    "-Cpanic=abort",
    "-Ccodegen-units=1",
    "-Cdebuginfo=0",
    "-Coverflow-checks=on",
    "-Cdebug-assertions=off",
    "-Cno-redzone=yes",
    "-Ctarget-cpu=x86-64",
    "-Ctarget-feature=-sse,-sse2",
    "-Crelocation-model=pie",
    "-Cforce-frame-pointers=no",
    "-Cmetadata=casemate",
];

/// LTO compiles `core` again, with these flags.
const LINK: &[&str] = &[
    "-Clto=fat",
    "-Clinker=rust-lld",
    "-Clinker-flavor=ld.lld",
    "-Clink-arg=-static",
    "-Clink-arg=--no-pie",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=--build-id=none",
    "-Clink-arg=--no-dynamic-linker",
    "-Clink-arg=--gc-sections",
    "-Clink-arg=-zmax-page-size=4096",
];

/// Bytes that the linker script leaves for the image's state and for its stack.
const STATE_SIZE: u64 = 0x4000;
const STACK_SIZE: u64 = 0xc000;

/// Builds the sources in `root`, the workspace's root, into `out`: `firmware.bin` and `firmware-log.bin`,
/// the image for development, and the ELF files that they are cut from.
pub(crate) fn build(root: &Path, out: &Path) {
    let library = out.join("libcasemate_firmware_logic.rlib");
    let mut rustc = rustc(root, "firmware/logic/src/lib.rs", &library);
    run(rustc.args(["--crate-name=casemate_firmware_logic", "--crate-type=rlib"]));

    link(root, out, &library, "firmware", &[]);
    link(root, out, &library, "firmware-log", &["--cfg=firmware_log"]);
}

/// One image.
fn link(root: &Path, out: &Path, library: &Path, name: &str, flags: &[&str]) {
    let elf = out.join(name).with_extension("elf");
    let script = format!("-Clink-arg=-T{}", root.join("firmware/image/guest/link.ld").display());
    let mut rustc = self::rustc(root, "firmware/image/guest/main.rs", &elf);
    rustc.args(["--crate-name=firmware_image", "--crate-type=bin"]);
    rustc.arg(format!("--extern=casemate_firmware_logic={}", library.display()));
    rustc.arg("--check-cfg=cfg(firmware_log)").args(flags);
    rustc.args(LINK).arg(script).args(symbols());
    rustc.arg(format!("-Clink-arg=-Map={}", elf.with_extension("map").display()));
    run(&mut rustc);

    let bytes = fs::read(&elf).expect("rustc has written it");
    fs::write(elf.with_extension("bin"), flatten(&bytes)).expect("OUT_DIR can be written");
}

fn rustc(root: &Path, source: &str, output: &Path) -> Command {
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc")));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let toolchain = ["RUSTUP_HOME", "RUSTUP_TOOLCHAIN"].contains(&&*text);
        if text.starts_with("CARGO") || text.starts_with("RUST") && !toolchain {
            rustc.env_remove(&name);
        }
    }
    rustc.current_dir(root).arg(source).args(FLAGS);
    rustc.arg(format!("--remap-path-prefix={}=", root.display()));
    rustc.arg("-o").arg(output);
    rustc
}

fn run(rustc: &mut Command) {
    let output = rustc.output().expect("rustc runs: it builds this");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the firmware image does not build:\n{said}\n{rustc:?}");
}

/// The addresses of [`layout`] for assembler and linker script.
fn symbols() -> impl Iterator<Item = String> {
    [
        ("IMAGE", layout::IMAGE),
        ("IMAGE_SIZE", layout::IMAGE_SIZE),
        ("SECRETS_PAGE", layout::SECRETS),
        ("CPUID_PAGE", layout::CPUID),
        ("HOB", layout::HOB),
        ("HOB_SIZE", layout::HOB_SIZE),
        ("MAILBOX", layout::MAILBOX),
        ("KEPT_SIZE", layout::KEPT_SIZE),
        ("WORK", layout::WORK),
        ("WORK_SIZE", layout::WORK_SIZE),
        ("STATE_SIZE", STATE_SIZE),
        ("STACK_SIZE", STACK_SIZE),
    ]
    .into_iter()
    .map(|(name, value)| format!("-Clink-arg=--defsym={name}={value:#x}"))
}

/// The image out of the ELF file: what is loaded, each byte at its place below 4 GiB.
fn flatten(elf: &[u8]) -> Vec<u8> {
    let field = |at: usize, size: usize| {
        elf[at..at + size].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    };
    let index = |value: u64| usize::try_from(value).expect("a 64-bit host");
    let mut image = vec![0; index(layout::IMAGE_SIZE)];
    for number in 0..field(56, 2) {
        let header = index(field(32, 8) + number * field(54, 2));
        let (kind, offset) = (field(header, 4), index(field(header + 8, 8)));
        let (address, size) = (field(header + 16, 8), index(field(header + 32, 8)));
        const LOAD: u64 = 1;
        if kind != LOAD || size == 0 {
            continue;
        }
        let at =
            address.checked_sub(layout::IMAGE).expect("the linker script keeps it in the image");
        image[index(at)..][..size].copy_from_slice(&elf[offset..][..size]);
    }
    image
}
