//! What a host does. Each field is something that a host of a confidential guest can choose; the
//! default is what it should choose.

use super::machine::{MOST_MEMORY, Machine};

/// What a page holds when it becomes the guest's own by PVALIDATE, which clears nothing; and a page that
/// a trust domain's host added at launch without it being measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fresh {
    /// What decryption makes of whatever was there: of each page something else.
    Noise,
    /// The same byte everywhere.
    Byte(u8),
    /// What the page at this address holds, which was the guest's and lay in the same host page: the
    /// key and the tweak of the encryption are those of the host page.
    MovedFrom(u64),
}

/// Answer to PVALIDATE: EAX, and the carry flag, which says that nothing changed.
pub(crate) type Validation = (u32, bool);

/// Answer of the TDX module: RAX, RCX, RDX, R8 and R9.
pub(crate) type Answer = [u64; 5];

/// What the host does when it is asked; the last argument is what it should answer.
pub(crate) struct Host {
    /// Writes to a byte of the loader window once it has been read: offset, byte.
    pub(crate) after_read: Box<dyn Fn(u64, u8) -> u8>,
    /// Answers a request of the GHCB MSR protocol.
    pub(crate) msr: Box<dyn Fn(u64, u64) -> u64>,
    /// Has taken a page away, or put another in its place, so that PVALIDATE answers this: address,
    /// whether it is a large page.
    pub(crate) validate: Box<dyn Fn(u64, bool, Validation) -> Validation>,
    /// What is in new pages.
    pub(crate) fresh: Fresh,
    /// The same for the TDX module: leaf, RCX, and how often it was called before.
    pub(crate) tdcall: Box<dyn Fn(u64, u64, u64, Answer) -> Answer>,
    /// Has an exception or interrupt come: before which instruction, and its vector.
    pub(crate) inject: Option<(usize, u8)>,
    /// Counts instructions; runs take longer then.
    pub(crate) count: bool,
    /// Runs a guest that gave up so often again.
    pub(crate) resumes: u32,
    /// Whether memory is in pages of 2 MiB.
    pub(crate) large: bool,
    /// Where memory that starts at 0 ends.
    pub(crate) memory: u64,
    /// Where memory that starts at 4 GiB ends.
    pub(crate) high_memory: u64,
    /// `SEV_STATUS` of what was launched.
    pub(crate) sev_status: u64,
    /// The CPUID page that was launched.
    pub(crate) cpuid: Vec<u8>,
    /// The privilege level at which an SEV-SNP guest was launched.
    pub(crate) vmpl: u8,
    /// Bits of a trust domain's guest-physical addresses.
    pub(crate) address_bits: u32,
    /// Of the trust domain.
    pub(crate) attributes: u64,
    /// Of the trust domain.
    pub(crate) vcpus: u32,
    /// What leaf 0x21 of CPUID says in a trust domain; elsewhere a host may say anything.
    pub(crate) cpuid_signature: [u8; 12],
}

impl Default for Host {
    fn default() -> Self {
        Self {
            after_read: Box::new(|_, byte| byte),
            msr: Box::new(|_, honest| honest),
            validate: Box::new(|_, _, honest| honest),
            fresh: Fresh::Noise,
            tdcall: Box::new(|_, _, _, honest| honest),
            inject: None,
            count: false,
            resumes: 0,
            large: false,
            memory: 3 << 30,
            high_memory: MOST_MEMORY,
            sev_status: 0b111,
            cpuid: cpuid(&[(0x8000_001f, [1 << 4 | 0b1011, Machine::C_BIT, 0, 0])]),
            vmpl: 0,
            address_bits: 52,
            attributes: 1 << 28,
            vcpus: 1,
            cpuid_signature: *b"IntelTDX    ",
        }
    }
}

/// A CPUID page with these leaves: EAX to EDX of each, all of subleaf 0. Of others it says that there is
/// RDRAND, and nothing that the emulated processor lacks.
pub(crate) fn cpuid(leaves: &[(u32, [u32; 4])]) -> Vec<u8> {
    const RDRAND: u32 = 1 << 30;
    let all = [(0, [7, 0, 0, 0]), (1, [0, 0, RDRAND, 0]), (7, [0; 4])];
    let leaves: Vec<_> = all.iter().chain(leaves).collect();
    let mut page = vec![0; 4096];
    page[0] = u8::try_from(leaves.len()).unwrap();
    for (entry, (leaf, registers)) in page[16..].chunks_exact_mut(48).zip(leaves) {
        entry[..4].copy_from_slice(&leaf.to_le_bytes());
        for (place, register) in entry[24..40].chunks_exact_mut(4).zip(registers) {
            place.copy_from_slice(&register.to_le_bytes());
        }
    }
    page
}
