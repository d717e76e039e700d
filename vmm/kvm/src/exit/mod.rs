//! What the exits of confidential guests carry.
//!
//! A guest, or a host that lies, chooses every value here: nothing is used before it is checked.

mod last_words;
mod map_gpa;
mod run;

pub use last_words::{SevTermination, TdxFatal};
pub use map_gpa::{HypercallReply, MapGpaError, MapGpaRange, PageSize};
pub use run::{CertificateReply, CertificateRequest, TdxCall, TdxReply};

/// KVM_EXIT_TDX: kvm-ioctls returns it as an unsupported exit; see [`TdxCall::of`].
pub const KVM_EXIT_TDX: u32 = 40;
/// KVM_EXIT_SNP_REQ_CERTS, likewise; see [`CertificateRequest::of`].
pub const KVM_EXIT_SNP_REQ_CERTS: u32 = 43;
/// KVM_SYSTEM_EVENT_SEV_TERM: `data[0]` is for [`SevTermination::decode`].
pub const KVM_SYSTEM_EVENT_SEV_TERM: u32 = 6;
/// KVM_SYSTEM_EVENT_TDX_FATAL: the data is for [`TdxFatal::decode`].
pub const KVM_SYSTEM_EVENT_TDX_FATAL: u32 = 7;
