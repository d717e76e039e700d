//! The release service: gives secrets only to guests that prove themselves, and writes down each
//! release and each refusal.
//!
//! It speaks the Key Broker Service protocol of confidential-containers (see [`casemate_protocol`]):
//!
//! ```text
//! guest                                   broker
//!   POST auth      {version, tee}      ──►  a session and a nonce, once, for a minute
//!   POST attest    {nonce, key, evidence} ► judged: genuine, and bound to nonce and key?
//!   GET  resource/REPOSITORY/TYPE/TAG  ──►  judged again, by the secret's own policy;
//!                                           written to the audit log and on disk;
//!                                      ◄──  the secret, encrypted to the key
//! ```
//!
//! Nothing is released by default: a secret has a policy, and evidence has to fulfil it. Every error
//! on the way is a refusal.

#![forbid(unsafe_code)]

pub mod audit;
mod broker;
mod connections;
mod ear;
mod evidence;
pub mod http;
mod jwe;
mod listen;
mod peer;
mod policy;
mod rate;
mod release;
mod seal;
mod server;
mod session;
mod store;
mod token;
mod turns;
mod verifier;

pub use broker::{Broker, BrokerError};
pub use evidence::{GuestEvidence, GuestEvidenceError};
pub use listen::{BindError, ListenAddress, ListenAddressError, Listener, bind_unix};
pub use peer::{Network, NetworkError, Peer, ProxyHeader, TrustedProxies};
pub use policy::{PolicyError, ReleasePolicy};
pub use seal::{KeyError, StoreKey};
pub use server::{Settings, serve};
pub use store::{Secret, SecretId, SecretIdError, Store, StoreError};
pub use verifier::{Endorsements, Verifier};
