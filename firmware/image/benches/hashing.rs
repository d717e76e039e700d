//! How fast the image hashes what it boots, beside `openssl speed sha256` in the same run, and how
//! many bytes it has. Prints one JSON object.
//!
//! It is the code that is measured and runs in guests that is timed: the image is mapped where it
//! stands in a guest, and its function called there.

#![allow(unsafe_code, reason = "code is called that another compilation made")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on must stop")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::process::Command;

use casemate_firmware_image as image;
use casemate_firmware_logic::layout::{IMAGE, IMAGE_SIZE};
use casemate_firmware_logic::sha256;

/// In turn, so that whatever else the machine does slows both.
const ROUNDS: usize = 5;

/// Bytes that are hashed at once: the largest piece that `openssl speed` takes by itself.
const PIECE: usize = 16384;

type Compress = unsafe fn(&mut [u32; 8], &[[u8; 64]]);

fn main() {
    let used = image::IMAGE.iter().filter(|byte| **byte != 0).count();
    let rates = if std::is_x86_feature_detected!("sha") {
        let compress = map();
        let rounds: Vec<_> = (0..ROUNDS).map(|_| (ours(compress), openssl())).collect();
        let best = |of: fn(&(f64, f64)) -> f64| rounds.iter().map(of).fold(0.0, f64::max);
        let (ours, openssl) = (best(|round| round.0), best(|round| round.1));
        format!(
            r#""bytes_per_second":{ours:.0},"openssl_bytes_per_second":{openssl:.0},"ratio":{:.3}"#,
            ours / openssl
        )
    } else {
        r#""bytes_per_second":"not run: this processor has no instructions for SHA-256""#.to_owned()
    };
    println!(r#"{{"firmware":{{"image_bytes":{IMAGE_SIZE},"used_bytes":{used},{rates}}}}}"#);
}

/// The image's function.
fn map() -> Compress {
    let (address, size) = (usize::try_from(IMAGE).unwrap(), image::IMAGE.len());
    let (write, execute) = (libc::PROT_READ | libc::PROT_WRITE, libc::PROT_READ | libc::PROT_EXEC);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: new memory, in the place of nothing that is mapped.
    let place = unsafe { libc::mmap(address as *mut _, size, write, flags, -1, 0) };
    assert_eq!(place as usize, address, "the image's place is taken");
    // SAFETY: the memory is there and has this size.
    let done = unsafe {
        place.cast::<u8>().copy_from_nonoverlapping(image::IMAGE.as_ptr(), size);
        libc::mprotect(place, size, execute)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    let function = common::Elf(image::ELF).function("sha25624compress_by_instructions");
    // SAFETY: the function of this type, by the compiler that made this; it uses nothing but its
    // arguments and the image's constants.
    unsafe { std::mem::transmute::<usize, Compress>(usize::try_from(function.start).unwrap()) }
}

/// Bytes in a second.
fn ours(compress: Compress) -> f64 {
    let data = [0x5a; PIECE];
    // SAFETY: the processor has the instructions.
    let digest = || sha256::digest_by(|state, blocks| unsafe { compress(state, blocks) }, &data);
    assert_eq!(digest(), sha256::digest(&data));
    let (start, mut count) = (processor_seconds(), 0.0);
    while processor_seconds() < start + 1.0 {
        for _ in 0..100 {
            std::hint::black_box(digest());
        }
        count += 100.0;
    }
    count * PIECE as f64 / (processor_seconds() - start)
}

/// What this thread used, as openssl counts: others may use the processor, too.
fn processor_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes `time`.
    let done = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Bytes in a second: the last word, in thousands.
fn openssl() -> f64 {
    let arguments = ["speed", "-evp", "sha256", "-bytes", &PIECE.to_string(), "-seconds", "1"];
    let output = Command::new("openssl").args(arguments).output();
    let output = output.expect("openssl is needed to compare with");
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = text.split_whitespace().last().and_then(|word| word.strip_suffix('k'));
    1000.0 * rate.unwrap_or_else(|| panic!("openssl speed says {text}")).parse::<f64>().unwrap()
}
