//! What both ends of the Key Broker Service protocol agree on.
//!
//! The protocol is that of confidential-containers, version [`VERSION`]: request, challenge,
//! attestation, resource (`kbs_attestation_protocol.md` of its project Trustee). The messages are
//! those of the crate `kbs-types`; here is what their fields hold:
//!
//! * [`report_data`]: how nonce and key are bound into evidence;
//! * [`challenge_data`]: how the agent binds a challenge that is not a broker's;
//! * [`Evidence`]: evidence as JSON;
//! * [`BrokerKey`] and [`release_message`]: the signature of a release, by which a guest knows its broker;
//! * [`TeeKey`]: the guest's key, to which the broker encrypts, and [`key_encryption_key`], from
//!   which both sides know how.

#![forbid(unsafe_code)]

mod binding;
mod challenge;
mod command_line;
mod evidence;
mod jwe;
mod release;
mod snp_json;

pub use binding::{HASH_ALGORITHM, HASH_LEN, report_data};
pub use challenge::{Challenger, Nonce, NonceError, challenge_data};
pub use command_line::parameters;
pub use evidence::{Evidence, EvidenceError};
pub use jwe::{EC_ALGORITHM, EC_CURVE, ENCRYPTION, JweError, TeeKey, key_encryption_key};
pub use release::{
    BROKER_KEY_PARAMETER, BrokerKey, BrokerKeyError, SIGNATURE_HEADER, pinned_keys, release_message,
};

/// The protocol's version, as requests state it.
pub const VERSION: &str = "0.4.0";
/// What all paths of the protocol begin with.
pub const PREFIX: &str = "/kbs/v0/";
/// The cookie that names a session.
pub const COOKIE: &str = "kbs-session-id";
/// The vsock port of the host at which `casemate run --attest` waits for its guest's evidence. It sends a
/// nonce of 64 bytes; the guest answers with a line of JSON, `{"tee": ..., "evidence": ...}`, whose
/// REPORT_DATA is [`challenge_data`] of [`Challenger::Check`]; then a line says that all is as it was
/// launched (`ok`), or what is not.
pub const CHECK_PORT: u32 = 8079;
/// The longest secret, in bytes: it must fit into a pipe.
pub const MAX_SECRET: usize = 32 * 1024;
