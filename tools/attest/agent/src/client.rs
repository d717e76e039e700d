//! Fetching a secret: request, challenge, attestation, resource.

use casemate_foreign::Foreign;
use casemate_protocol::{BrokerKey, JweError, PREFIX, TeeKey, VERSION, report_data};
use kbs_types::{
    Attestation, Challenge, CompositeEvidence, ErrorInformation, Request, RuntimeData,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use zeroize::Zeroizing;

use crate::exchange::{self, Answer, exchange};
use crate::{Address, EvidenceError, EvidenceSource, ExchangeError};

/// The brokers whose secrets a guest takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trusted {
    /// Those that sign their releases with one of these keys.
    Keys(Vec<BrokerKey>),
    /// Whoever answers. Whoever controls the way to the broker, the host by default, can then give the
    /// guest a secret of their own.
    AnyBroker,
}

/// No secret.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The broker cannot be spoken to.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The guest has no evidence.
    #[error("could not make evidence")]
    Evidence(#[from] EvidenceError),
    /// The broker says no.
    #[error("the broker refuses {what} with status {status}: {detail}")]
    Refused {
        /// Which of the protocol's steps.
        what: &'static str,
        /// HTTP status.
        status: u16,
        /// The broker's reason.
        detail: String,
    },
    /// The broker's answer is not the protocol's.
    #[error("the broker's answer to {what} cannot be understood")]
    Answer {
        /// Which of the protocol's steps.
        what: &'static str,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Not a secret's identifier.
    #[error("\"{}\" is not the identifier of a secret: write REPOSITORY/TYPE/TAG", Foreign(.0))]
    Id(String),
    /// The release has no signature.
    #[error(
        "the release is not signed: this is not the pinned broker, or one that does not sign \
         releases (--any-broker takes those)"
    )]
    Unsigned,
    /// The release has another broker's signature, or was signed for another guest or secret.
    #[error(
        "the release is not signed by a pinned broker key for this guest and secret: compare the \
         output of `casemate broker release-key` with the pinned key"
    )]
    Signature,
    /// The secret does not decrypt.
    #[error("could not decrypt the secret")]
    Decrypt(#[from] JweError),
}

/// Fetches the secret `id` (`REPOSITORY/TYPE/TAG`) from the broker at `address`, with a key pair and
/// evidence made for this one fetch. A release that none of the `trusted` brokers signed for this guest,
/// session and secret is not decrypted.
///
/// # Errors
/// See [`FetchError`].
pub fn fetch(
    address: &Address,
    source: &dyn EvidenceSource,
    trusted: &Trusted,
    id: &str,
) -> Result<Zeroizing<Vec<u8>>, FetchError> {
    // It becomes part of a request line, and of the signed message before a line feed.
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(FetchError::Id(id.to_owned()));
    }
    let request = Request { version: VERSION.into(), tee: source.tee()?, extra_params: json!({}) };
    let answer = post(address, "the request", "auth", None, &request)?;
    let challenge: Challenge = read("the request", &answer)?;
    let session = answer.session.ok_or_else(|| FetchError::Answer {
        what: "the request",
        source: "it names no session".into(),
    })?;

    let key = TeeKey::generate()?;
    let runtime_data = RuntimeData { nonce: challenge.nonce, tee_pubkey: key.public().clone() };
    let binding = report_data(&runtime_data, "");
    let evidence = source.evidence(&binding)?;
    let tee_evidence = CompositeEvidence {
        primary_evidence: evidence.to_json(),
        additional_evidence: String::new(),
    };
    let attestation = Attestation { init_data: None, runtime_data, tee_evidence };
    post(address, "the evidence", "attest", Some(&session), &attestation)?;

    let path = format!("{PREFIX}resource/{id}");
    let request =
        exchange::Request { method: "GET", path: &path, session: Some(&session), body: b"" };
    let answer = granted("the secret", exchange(address, &request)?)?;
    trusted.check(&answer, &binding, id)?;
    Ok(key.open(read("the secret", &answer)?)?)
}

impl Trusted {
    /// Whether a release is a trusted broker's, to the guest and for the secret.
    fn check(&self, answer: &Answer, binding: &[u8; 64], id: &str) -> Result<(), FetchError> {
        let keys = match self {
            Trusted::AnyBroker => return Ok(()),
            Trusted::Keys(keys) => keys,
        };
        let signature = answer.signature.as_deref().ok_or(FetchError::Unsigned)?;
        if keys.iter().any(|key| key.signed(signature, binding, id, &answer.body)) {
            Ok(())
        } else {
            Err(FetchError::Signature)
        }
    }
}

fn post(
    address: &Address,
    what: &'static str,
    step: &str,
    session: Option<&str>,
    message: &impl Serialize,
) -> Result<Answer, FetchError> {
    let body = serde_json::to_vec(message)
        .map_err(|source| FetchError::Answer { what, source: source.into() })?;
    let path = format!("{PREFIX}{step}");
    let request = exchange::Request { method: "POST", path: &path, session, body: &body };
    granted(what, exchange(address, &request)?)
}

fn granted(what: &'static str, answer: Answer) -> Result<Answer, FetchError> {
    match answer.status {
        200 => Ok(answer),
        status => {
            let reason = serde_json::from_slice::<ErrorInformation>(&answer.body);
            let detail = reason.map_or_else(|_| "no reason given".into(), |reason| reason.detail);
            Err(FetchError::Refused { what, status, detail })
        }
    }
}

fn read<T: DeserializeOwned>(what: &'static str, answer: &Answer) -> Result<T, FetchError> {
    serde_json::from_slice(&answer.body)
        .map_err(|source| FetchError::Answer { what, source: source.into() })
}
