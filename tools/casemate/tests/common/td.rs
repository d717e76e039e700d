//! A guest of a few instructions for TDX: it does what a list of requests says, see `td.S`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::path::Path;
use std::process::Command;

/// The bit of a guest-physical address that marks shared memory.
pub(crate) const SHARED: u64 = 1 << 47;

/// Where the guest sees the first GiB of its memory as shared.
pub(crate) const SHARED_VIEW: u64 = 4 << 30;

/// What the guest is to do next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    /// TDG.VP.VMCALL with R11 to R15; says R10 and R11.
    Host([u64; 5]),
    /// TDCALL with RAX, RCX, RDX, R8; says RAX.
    Module([u64; 4]),
    /// Says a word of memory.
    Read(u64),
    /// Writes a word to memory.
    Write(u64, u64),
    /// Waits until a word of memory is no longer this one.
    Wait(u64, u64),
    /// Copies memory: from, to, bytes.
    Copy(u64, u64, u64),
}

impl Request {
    /// MapGPA.
    pub(crate) const fn map(gpa: u64, bytes: u64) -> Self {
        Self::Host([0x1_0001, gpa, bytes, 0, 0])
    }

    /// GetQuote.
    pub(crate) const fn quote(gpa: u64, bytes: u64) -> Self {
        Self::Host([0x1_0002, gpa, bytes, 0, 0])
    }

    /// A byte to a port.
    pub(crate) const fn port(port: u64, value: u64) -> Self {
        Self::Host([30, 1, 1, port, value])
    }

    fn words(self) -> Vec<u64> {
        match self {
            Self::Host(registers) => [&[0], &registers[..]].concat(),
            Self::Module(registers) => [&[1], &registers[..], &[0]].concat(),
            Self::Read(address) => vec![2, address, 0, 0, 0, 0],
            Self::Write(address, value) => vec![3, address, value, 0, 0, 0],
            Self::Wait(address, value) => vec![4, address, value, 0, 0, 0],
            Self::Copy(from, to, bytes) => vec![5, from, to, bytes, 0, 0],
        }
    }
}

/// The TDVF image of a guest that does this, in `folder`.
pub(crate) fn image(folder: &Path, requests: &[Request]) -> Vec<u8> {
    const REQUESTS: usize = 0x5000;
    let file = folder.join("td");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/td.S");
    let mut gcc = Command::new("gcc");
    gcc.args(["-nostdlib", "-static", "-Wl,--build-id=none,-Ttext=0xffff8000,--oformat=binary"]);
    gcc.args([source, "-o"]).arg(&file);
    assert!(gcc.status().expect("gcc is there after tests/scripts/setup").success());
    let mut image = std::fs::read(file).unwrap();
    let words = requests.iter().flat_map(|request| request.words());
    let list: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    image[REQUESTS..][..list.len()].copy_from_slice(&list);
    image
}
