//! A guest of a few instructions for SEV-SNP: it does what a list of requests says, see `snp.S`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::path::Path;
use std::process::Command;

/// Where the guest sees the first GiB of its memory as shared.
pub(crate) const SHARED_VIEW: u64 = 4 << 30;

/// A place in the GHCB for the bytes of a request, and where the guest sees it.
pub(crate) const SCRATCH: u64 = 0x1_0800;

/// Bytes of a request.
const SIZE: u64 = 72;

/// What the guest is to do next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    /// A value for the GHCB MSR; says what it has then.
    Msr(u64),
    /// Exit code, both infos, RAX, RBX, RCX, RDX and scratch of the GHCB; says both infos and RAX.
    Exit([u64; 8]),
    /// Says a word of memory.
    Read(u64),
    /// Writes a word to memory.
    Write(u64, u64),
    /// Writes to each page from an address on, so many bytes; validates them before.
    Touch(u64, u64, bool),
    /// Waits for a byte from the host.
    Input,
    /// Does so many requests before this one again, so often.
    Again(u64, u64),
}

impl Request {
    /// Page state change of one page by the MSR protocol.
    pub(crate) const fn change(gpa: u64, private: bool) -> Self {
        Self::Msr(gpa | 0x14 | if private { 1 << 52 } else { 2 << 52 })
    }

    /// The hypercall KVM_HC_MAP_GPA_RANGE.
    pub(crate) const fn map(gpa: u64, pages: u64, private: bool) -> Self {
        Self::hypercall(12, gpa, pages, if private { 1 << 4 } else { 0 })
    }

    /// VMMCALL.
    pub(crate) const fn hypercall(number: u64, rbx: u64, rcx: u64, rdx: u64) -> Self {
        Self::Exit([0x81, 0, 0, number, rbx, rcx, rdx, 0])
    }

    /// Writes `bytes` bytes of `value` to a register of a device.
    pub(crate) const fn mmio_write(gpa: u64, bytes: u64, value: u64) -> [Self; 2] {
        [
            Self::Write(SHARED_VIEW + SCRATCH, value),
            Self::Exit([0x8000_0002, gpa, bytes, 0, 0, 0, 0, SCRATCH]),
        ]
    }

    /// Reads a register of a device; says the word that it is in.
    pub(crate) const fn mmio_read(gpa: u64, bytes: u64) -> [Self; 3] {
        [
            Self::Write(SHARED_VIEW + SCRATCH, 0),
            Self::Exit([0x8000_0001, gpa, bytes, 0, 0, 0, 0, SCRATCH]),
            Self::Read(SHARED_VIEW + SCRATCH),
        ]
    }

    /// A byte to a port.
    pub(crate) const fn port(port: u64, value: u64) -> Self {
        Self::Exit([0x7b, port << 16 | 1 << 9 | 1 << 4, 0, value, 0, 0, 0, 0])
    }

    /// Asks for an end, with a reason out of a set.
    pub(crate) const fn terminate(set: u64, reason: u64) -> Self {
        Self::Msr(0x100 | set << 12 | reason << 16)
    }

    fn words(self) -> [u64; 9] {
        let (kind, values): (u64, &[u64]) = match &self {
            Self::Msr(value) => (0, &[*value]),
            Self::Exit(values) => (1, values),
            Self::Read(address) => (2, &[*address]),
            Self::Write(address, value) => (3, &[*address, *value]),
            Self::Touch(address, bytes, validate) => (4, &[*address, *bytes, u64::from(*validate)]),
            Self::Input => (5, &[]),
            Self::Again(requests, times) => (6, &[SIZE * *requests, *times]),
        };
        let mut words = [0; 9];
        words[0] = kind;
        words[1..=values.len()].copy_from_slice(values);
        words
    }
}

/// The firmware image of a guest that does this, made in `folder`.
pub(crate) fn image(folder: &Path, requests: &[Request]) -> Vec<u8> {
    const REQUESTS: usize = 0x5000;
    const CODE: usize = 0x7000;
    let file = folder.join("payload");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/snp.S");
    let mut gcc = Command::new("gcc");
    gcc.args(["-nostdlib", "-static", "-Wl,--build-id=none,-Ttext=0xffff8000,--oformat=binary"]);
    gcc.args([source, "-o"]).arg(&file);
    assert!(gcc.status().expect("gcc is there after tests/scripts/setup").success());
    let mut image = std::fs::read(file).unwrap();
    let words = requests.iter().flat_map(|request| request.words());
    let list: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    image[REQUESTS..CODE][..list.len()].copy_from_slice(&list);
    image
}
