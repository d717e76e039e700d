//! Evidence over a challenge that does not come from a broker.

use std::io::{self, Read, Write};

use casemate_protocol::{Challenger, Evidence, Nonce, challenge_data};
use serde_json::json;

use crate::{EvidenceError, EvidenceSource};

/// The longest verdict that is read from the VMM, in bytes.
const LONGEST_VERDICT: u64 = 4096;

/// The VMM does not confirm the evidence.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The guest has no evidence.
    #[error("could not make evidence")]
    Evidence(#[from] EvidenceError),
    /// The connection breaks.
    #[error("the connection to the VMM broke")]
    Broken(#[from] io::Error),
    /// The VMM closes the connection before it has judged the evidence.
    #[error("the VMM closed the connection without a verdict")]
    NoVerdict,
    /// The VMM has found a difference.
    #[error("the VMM rejects the evidence: {0}")]
    Rejected(String),
}

/// Answers the challenge of the VMM at the other end of `stream` (see
/// [`casemate_protocol::CHECK_PORT`]), and waits for its verdict.
///
/// # Errors
/// See [`CheckError`].
pub fn check(
    stream: &mut (impl Read + Write),
    source: &dyn EvidenceSource,
) -> Result<(), CheckError> {
    let mut challenge = [0; 64];
    stream.read_exact(&mut challenge)?;
    let evidence = source.evidence(&challenge_data(Challenger::Check, &challenge))?;
    stream.write_all(format!("{}\n", line(&evidence)).as_bytes())?;
    let mut verdict = Vec::new();
    stream.take(LONGEST_VERDICT).read_to_end(&mut verdict)?;
    match verdict.trim_ascii_end() {
        b"ok" => Ok(()),
        b"" => Err(CheckError::NoVerdict),
        verdict => Err(CheckError::Rejected(String::from_utf8_lossy(verdict).into_owned())),
    }
}

/// Evidence over `nonce`, as the line of JSON that `casemate-agent report` prints.
///
/// # Errors
/// The guest has no evidence.
pub fn report(nonce: &Nonce, source: &dyn EvidenceSource) -> Result<String, EvidenceError> {
    let evidence = source.evidence(&challenge_data(Challenger::Report, nonce.as_ref()))?;
    Ok(line(&evidence))
}

fn line(evidence: &Evidence) -> String {
    json!({"tee": evidence.tee(), "evidence": evidence.to_json()}).to_string()
}
