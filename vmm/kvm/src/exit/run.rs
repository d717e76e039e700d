//! Exits of kvm_run that kvm-ioctls does not know: read from the union, answered into it.

#![allow(unsafe_code, reason = "kvm_run has a union")]

use std::mem::offset_of;

use kvm_bindings::kvm_run;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{KVM_EXIT_SNP_REQ_CERTS, KVM_EXIT_TDX};

type Union = [u8; 256];

/// The bytes of the exit's union, if the exit is of this kind.
fn union_of(run: &kvm_run, reason: u32) -> Option<&Union> {
    const _: () = assert!(offset_of!(kvm_run, __bindgen_anon_1) == 32);
    // SAFETY: every member of the union is plain numbers, for which any bytes are valid, and
    // `padding` is as large as the union; i8 and u8 have the same layout.
    let bytes = unsafe { &*(&raw const run.__bindgen_anon_1.padding).cast::<Union>() };
    (run.exit_reason == reason).then_some(bytes)
}

fn union_of_mut(run: &mut kvm_run, reason: u32) -> Option<&mut Union> {
    let matches = run.exit_reason == reason;
    // SAFETY: as above, and the reference is exclusive because that to `run` is.
    let bytes = unsafe { &mut *(&raw mut run.__bindgen_anon_1.padding).cast::<Union>() };
    matches.then_some(bytes)
}

/// `struct kvm_exit_snp_req_certs`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawCertificateRequest {
    gpa: u64,
    npages: u64,
    ret: u64,
}

const _: () = {
    assert!(offset_of!(RawCertificateRequest, npages) == 8);
    assert!(offset_of!(RawCertificateRequest, ret) == 16);
};

/// An SEV-SNP guest asks for a report together with the host's certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateRequest {
    /// Where the certificates go: guest-physical address, aligned to a page, otherwise unchecked.
    /// Must be shared memory.
    pub gpa: u64,
    /// Pages that the guest provides.
    pub pages: u64,
}

/// How a [`CertificateRequest`] is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateReply {
    /// The certificates are in the guest's memory; the kernel now asks for the report.
    Ready,
    /// So many pages are needed.
    TooSmall {
        /// Pages of the certificate table.
        pages: u64,
    },
    /// The guest is to ask again later.
    Busy,
    /// They could not be read.
    Failed,
}

impl CertificateRequest {
    /// The request, if that is why the vCPU exited.
    #[must_use]
    pub fn of(run: &kvm_run) -> Option<Self> {
        let union = union_of(run, KVM_EXIT_SNP_REQ_CERTS)?;
        let (raw, _) = RawCertificateRequest::read_from_prefix(union).ok()?;
        Some(Self { gpa: raw.gpa, pages: raw.npages })
    }
}

impl CertificateReply {
    /// Answers the request that `run` has; nothing happens if it has none.
    pub fn put(self, run: &mut kvm_run) {
        let Some(union) = union_of_mut(run, KVM_EXIT_SNP_REQ_CERTS) else { return };
        let Ok((raw, _)) = RawCertificateRequest::mut_from_prefix(union) else { return };
        // The kernel takes positive numbers, and these only.
        let errno = match self {
            Self::Ready => 0,
            Self::TooSmall { pages } => {
                raw.npages = pages;
                libc::ENOSPC
            }
            Self::Busy => libc::EAGAIN,
            Self::Failed => libc::EIO,
        };
        raw.ret = u64::from(errno.cast_unsigned());
    }
}

/// The `tdx` member of the union.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawTdxCall {
    flags: u64,
    nr: u64,
    ret: u64,
    /// get_quote: gpa, size; get_tdvmcall_info: leaf, r11 to r14; setup_event_notify: vector.
    data: [u64; 5],
}

const _: () = {
    assert!(size_of::<RawTdxCall>() == 64 && offset_of!(RawTdxCall, nr) == 8);
    assert!(offset_of!(RawTdxCall, ret) == 16 && offset_of!(RawTdxCall, data) == 24);
};

/// A TD's call that KVM hands to this process (Intel TDX GHCI).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TdxCall {
    /// GetQuote: turn the report in this shared buffer into a quote.
    GetQuote {
        /// Guest-physical address without the shared bit, unchecked.
        gpa: u64,
        /// Bytes, unchecked.
        size: u64,
    },
    /// GetTdVmCallInfo: which calls the host knows.
    GetInfo {
        /// What of it; KVM hands over leaf 1 only.
        leaf: u64,
    },
    /// SetupEventNotifyInterrupt: the interrupt that says that a quote is done.
    SetupEventNotify {
        /// Vector, 32 to 255 where the guest does as it should.
        vector: u64,
    },
    /// A call that this program does not know; answered by the kernel as unsupported.
    Unknown {
        /// Its number.
        number: u64,
    },
}

/// How a [`TdxCall`] is answered (GHCI, "TDG.VP.VMCALL status codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TdxReply {
    /// Done, or under way.
    Success,
    /// The answer to [`TdxCall::GetInfo`]: R11 to R14.
    Info([u64; 4]),
    /// The guest is to try again.
    Retry,
    /// The guest asked for what cannot be.
    InvalidOperand,
    /// Address or size is not aligned.
    AlignError,
    /// The host does not do this.
    Unsupported,
}

impl TdxCall {
    /// The call, if that is why the vCPU exited.
    #[must_use]
    pub fn of(run: &kvm_run) -> Option<Self> {
        let union = union_of(run, KVM_EXIT_TDX)?;
        let (raw, _) = RawTdxCall::read_from_prefix(union).ok()?;
        let [first, second, ..] = raw.data;
        Some(match raw.nr {
            0x1_0000 => Self::GetInfo { leaf: first },
            0x1_0002 => Self::GetQuote { gpa: first, size: second },
            0x1_0004 => Self::SetupEventNotify { vector: first },
            number => Self::Unknown { number },
        })
    }
}

impl TdxReply {
    /// Answers the call that `run` has; nothing happens if it has none. Without an answer the guest
    /// gets the kernel's, "unsupported" for most.
    pub fn put(self, run: &mut kvm_run) {
        let Some(union) = union_of_mut(run, KVM_EXIT_TDX) else { return };
        let Ok((raw, _)) = RawTdxCall::mut_from_prefix(union) else { return };
        raw.ret = match self {
            Self::Success | Self::Info(_) => 0,
            Self::Retry => 1,
            Self::InvalidOperand => 1 << 63,
            Self::AlignError => 1 << 63 | 2,
            Self::Unsupported => 1 << 63 | 3,
        };
        if let Self::Info(registers) = self {
            raw.data[1..].copy_from_slice(&registers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(reason: u32, words: &[u64]) -> kvm_run {
        let mut run = kvm_run { exit_reason: reason, ..Default::default() };
        let union = union_of_mut(&mut run, reason).expect("the reason given");
        for (bytes, word) in union.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        run
    }

    fn words(run: &kvm_run) -> Vec<u64> {
        let union = union_of(run, run.exit_reason).expect("its own reason");
        let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("8 bytes"));
        union.chunks_exact(8).map(word).collect()
    }

    #[test]
    fn certificates_are_asked_for_and_answered() {
        let mut run = run(KVM_EXIT_SNP_REQ_CERTS, &[0x7000, 2, 0]);
        assert_eq!(
            CertificateRequest::of(&run),
            Some(CertificateRequest { gpa: 0x7000, pages: 2 })
        );
        CertificateReply::TooSmall { pages: 5 }.put(&mut run);
        assert_eq!(words(&run)[..3], [0x7000, 5, 28]);
        CertificateReply::Ready.put(&mut run);
        assert_eq!(words(&run)[..3], [0x7000, 5, 0]);
    }

    #[test]
    fn calls_of_a_td_are_told_apart_and_answered() {
        let mut quote = run(KVM_EXIT_TDX, &[0, 0x1_0002, 9, 0x8000, 0x4000]);
        assert_eq!(TdxCall::of(&quote), Some(TdxCall::GetQuote { gpa: 0x8000, size: 0x4000 }));
        TdxReply::AlignError.put(&mut quote);
        assert_eq!(words(&quote)[2], 0x8000_0000_0000_0002);

        let mut info = run(KVM_EXIT_TDX, &[0, 0x1_0000, 0, 1]);
        assert_eq!(TdxCall::of(&info), Some(TdxCall::GetInfo { leaf: 1 }));
        TdxReply::Info([2, 0, 0, 7]).put(&mut info);
        assert_eq!(words(&info)[2..8], [0, 1, 2, 0, 0, 7]);

        let notify = run(KVM_EXIT_TDX, &[0, 0x1_0004, 0, 0x40]);
        assert_eq!(TdxCall::of(&notify), Some(TdxCall::SetupEventNotify { vector: 0x40 }));
        let unknown = run(KVM_EXIT_TDX, &[0, 0x1_0009]);
        assert_eq!(TdxCall::of(&unknown), Some(TdxCall::Unknown { number: 0x1_0009 }));
    }

    #[test]
    fn another_exit_is_left_alone() {
        let mut run = run(2, &[1, 2, 3]);
        assert_eq!((TdxCall::of(&run), CertificateRequest::of(&run)), (None, None));
        TdxReply::Retry.put(&mut run);
        CertificateReply::Failed.put(&mut run);
        assert_eq!(words(&run)[..3], [1, 2, 3]);
    }
}
