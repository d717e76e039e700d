//! The protocol: what each request is answered with.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use casemate_foreign::{Foreign, one_line};
use casemate_protocol::{HASH_ALGORITHM, PREFIX, VERSION, report_data};
use casemate_verify::{Judgement, Outcome, Question, Timestamp, Verdict};
use kbs_types::{Attestation, Challenge, ErrorInformation, Request, Tee};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::audit::{AuditError, AuditKey, AuditLog, Event, Head as AuditHead, Record};
use crate::ear;
use crate::evidence::{GuestEvidence, KINDS, devices};
use crate::http::{Answer, Head};
use crate::jwe::Recipient;
use crate::peer::Peer;
use crate::policy::policy_digest;
use crate::release::ReleaseKey;
use crate::session::{Attested, ChallengeError, Sessions};
use crate::store::{Kind, Secret, SecretId, Store, StoreError};
use crate::token::Signer;
use crate::verifier::Verifier;

/// How long a nonce is good.
const NONCE_LIFETIME: Duration = Duration::from_secs(60);
/// How long what was attested is good for asking for secrets.
const SESSION_LIFETIME: Duration = Duration::from_secs(300);

/// A broker that cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The store does not work.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audit log does not work, or is not what was written.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// The service, without its sockets.
pub struct Broker {
    store: Store,
    verifier: Verifier,
    signer: Signer,
    release_key: ReleaseKey,
    sessions: Sessions,
    log: Mutex<AuditLog>,
}

/// A request that is not granted.
struct Refusal {
    status: u16,
    /// For programs.
    kind: &'static str,
    /// For people.
    detail: String,
}

impl Refusal {
    fn new(status: u16, kind: &'static str, detail: impl Into<String>) -> Self {
        Refusal { status, kind, detail: detail.into() }
    }

    fn internal(error: &dyn std::error::Error) -> Self {
        let cause = error.source().map(|source| format!(": {source}")).unwrap_or_default();
        tracing::error!("{}", one_line(&format!("{error}{cause}")));
        Refusal::new(500, "Internal", "the broker failed; its own log says why")
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let body = error_body(refusal.kind, &refusal.detail);
        Answer { status: refusal.status, body, ..Answer::default() }
    }
}

fn wrong_method(right: &str) -> Refusal {
    Refusal::new(
        405,
        "Method",
        format!("the path takes {right} alone; secrets are put in on the broker itself"),
    )
}

/// The protocol's form of an error.
pub(crate) fn error_body(kind: &str, detail: &str) -> Vec<u8> {
    let information =
        ErrorInformation { error_type: format!("kbs/errors/{kind}"), detail: detail.to_owned() };
    json!(information).to_string().into_bytes()
}

fn granted(body: &Value) -> Answer {
    Answer { status: 200, body: body.to_string().into_bytes(), ..Answer::default() }
}

/// One request on its way.
struct Call<'a> {
    head: &'a Head,
    body: &'a [u8],
    peer: &'a Peer,
    now: Instant,
    at: Timestamp,
}

impl Broker {
    /// A broker that gives out the secrets of `store` and writes to the audit log at `log`.
    ///
    /// # Errors
    /// The store cannot be read, or the log is not what was written or cannot be written.
    pub fn new(store: Store, verifier: Verifier, log: &Path) -> Result<Self, BrokerError> {
        Self::open(store, verifier, log, false)
    }

    /// A broker as of [`Broker::new`] with a store that was restored from a backup: the log goes on after
    /// the record at which the backup was made.
    ///
    /// # Errors
    /// As of [`Broker::new`].
    pub fn restored(store: Store, verifier: Verifier, log: &Path) -> Result<Self, BrokerError> {
        Self::open(store, verifier, log, true)
    }

    fn open(
        store: Store,
        verifier: Verifier,
        log: &Path,
        restored: bool,
    ) -> Result<Self, BrokerError> {
        let signer = Signer::of(&store)?;
        let release_key = ReleaseKey::of(&store)?;
        let log = open_log(&store, log, restored)?;
        let sessions = Sessions::new(NONCE_LIFETIME, SESSION_LIFETIME);
        Ok(Broker { store, verifier, signer, release_key, sessions, log: Mutex::new(log) })
    }

    /// Answers a request of `peer`. `now` is for lifetimes, `at` for dates of certificates.
    #[must_use]
    pub fn answer(
        &self,
        head: &Head,
        body: &[u8],
        peer: &Peer,
        now: Instant,
        at: Timestamp,
    ) -> Answer {
        let call = Call { head, body, peer, now, at };
        let Some(path) = head.path.strip_prefix(PREFIX) else {
            return Refusal::new(404, "Path", format!("paths begin with {PREFIX}")).into();
        };
        let (allow, answered) = match (path, path.strip_prefix("resource/")) {
            ("auth", _) if head.method == "POST" => ("POST", self.challenge(&call)),
            ("attest", _) if head.method == "POST" => ("POST", self.attest(&call)),
            // Trustee's clients give the identifier a `/` of its own.
            (_, Some(id)) if head.method == "GET" => {
                ("GET", self.resource(&call, id.strip_prefix('/').unwrap_or(id)))
            }
            ("auth" | "attest", _) => ("POST", Err(wrong_method("POST"))),
            (_, Some(_)) => ("GET", Err(wrong_method("GET"))),
            (_, None) => ("", Err(Refusal::new(404, "Path", "there is no such path"))),
        };
        let answer = answered.unwrap_or_else(Answer::from);
        Answer { allow: (answer.status == 405).then_some(allow), ..answer }
    }

    /// `POST auth`: a session and a nonce.
    fn challenge(&self, call: &Call<'_>) -> Result<Answer, Refusal> {
        let request: Request = parse(call.body)?;
        // Versions 0.x.y with the same x understand each other.
        let minor = |version: &str| version.rsplit_once('.').map(|(minor, _)| minor.to_owned());
        if minor(&request.version) != minor(VERSION) {
            let asked = Foreign(&request.version);
            let detail =
                format!("the version \"{asked}\" of the protocol is not spoken; {VERSION} is");
            return Err(Refusal::new(401, "ProtocolVersion", detail));
        }
        if !KINDS.contains(&request.tee) {
            let detail = format!("evidence of {} guests cannot be judged", request.tee);
            return Err(Refusal::new(401, "Tee", detail));
        }
        if let Some(list) = request.extra_params["supported-hash-algorithms"].as_array() {
            let known = |name: &Value| {
                name.as_str().is_some_and(|name| name.eq_ignore_ascii_case(HASH_ALGORITHM))
            };
            if !list.iter().any(known) {
                let detail = format!("REPORT_DATA is bound with {HASH_ALGORITHM} here");
                return Err(Refusal::new(401, "HashAlgorithm", detail));
            }
        }
        let begun = self.sessions.begin(request.tee, call.peer, call.now);
        let (id, nonce) =
            begun.ok_or_else(|| Refusal::new(503, "Random", "the system gave no random bytes"))?;
        let extra_params = json!({"selected-hash-algorithm": HASH_ALGORITHM});
        let challenge = json!(Challenge { nonce, extra_params });
        Ok(Answer { session: Some(id), ..granted(&challenge) })
    }

    /// `POST attest`: is the evidence genuine, and bound to the session's nonce and the key?
    fn attest(&self, call: &Call<'_>) -> Result<Answer, Refusal> {
        let attestation: Attestation = parse(call.body)?;
        let session = call.head.session.as_deref().unwrap_or_default();
        let challenge = self.sessions.take_challenge(session, call.now);
        // Anybody can invent a session: that fills no log.
        if let Err(error @ ChallengeError::Unknown) = challenge {
            return Err(Refusal::new(401, "Nonce", error.to_string()));
        }
        let mut record = record(call.peer, call.at);
        record.nonce = Some(attestation.runtime_data.nonce.clone());
        match self.judge_attestation(call, challenge, attestation, &mut record) {
            Ok(token) => {
                let session = call.head.session.clone();
                Ok(Answer { session, ..granted(&json!({"token": token})) })
            }
            Err(refusal) => Err(self.refuse(record, refusal)),
        }
    }

    fn judge_attestation(
        &self,
        call: &Call<'_>,
        challenge: Result<(Tee, String), ChallengeError>,
        attestation: Attestation,
        record: &mut Record,
    ) -> Result<String, Refusal> {
        let nonce_refused = |record: &mut Record, detail: String| {
            record.failing = vec!["nonce".into()];
            Refusal::new(401, "Nonce", detail)
        };
        let session = call.head.session.as_deref().unwrap_or_default();
        let (tee, nonce) = challenge.map_err(|error| nonce_refused(record, error.to_string()))?;
        let Attestation { runtime_data, tee_evidence, .. } = attestation;
        if runtime_data.nonce != nonce {
            return Err(nonce_refused(record, "the nonce is not this session's".into()));
        }
        let evidence = GuestEvidence::from_json(tee, &tee_evidence.primary_evidence)
            .map_err(|error| Refusal::new(401, "Evidence", chain(&error)))?;
        record.evidence = Some(evidence.digest());
        refuse_devices(record, &tee_evidence.additional_evidence)?;
        Recipient::new(&runtime_data.tee_pubkey)
            .map_err(|error| Refusal::new(401, "Key", error.to_string()))?;

        let expected = report_data(&runtime_data, &tee_evidence.additional_evidence);
        let judgement = self.verifier.judge(&evidence, None, &expected, call.at);
        judged(record, &judgement)?;
        let lifetime = self.sessions.lifetime.as_secs();
        let claims = ear::claims(tee, &judgement, &runtime_data, call.at, lifetime)
            .map_err(|error| Refusal::new(401, "Evidence", chain(&error)))?;
        let token = self.signer.sign(&claims).ok_or_else(|| {
            Refusal::new(503, "Random", "the system gave no random bytes: try again later")
        })?;
        let attested = Attested {
            tee,
            nonce,
            evidence,
            report_data: expected,
            key: runtime_data.tee_pubkey,
            token: token.clone(),
        };
        if !self.sessions.attested(session, attested, call.now) {
            return Err(Refusal::new(503, "Busy", "the session made room for others: begin again"));
        }
        Ok(token)
    }

    /// `GET resource/ID`: may this guest have this secret?
    fn resource(&self, call: &Call<'_>, id: &str) -> Result<Answer, Refusal> {
        let by_session =
            call.head.session.as_deref().and_then(|id| self.sessions.by_id(id, call.now));
        let by_token =
            || call.head.token.as_deref().and_then(|token| self.sessions.by_token(token, call.now));
        let attested = by_session.or_else(by_token).ok_or_else(|| {
            Refusal::new(
                401,
                "Session",
                "nothing was attested, or it was too long ago: begin again",
            )
        })?;
        let mut record = record(call.peer, call.at);
        record.secret = Some(id.to_owned());
        record.nonce = Some(attested.nonce.clone());
        record.evidence = Some(attested.evidence.digest());
        match self.judge_release(call, &attested, id, &mut record) {
            Ok(release) => {
                record.event = Event::Release;
                record.reason = "the evidence fulfils the policy".into();
                self.write_down(record)?;
                Ok(release)
            }
            Err(refusal) => Err(self.refuse(record, refusal)),
        }
    }

    /// The secret, encrypted and signed, if the policy allows it.
    fn judge_release(
        &self,
        call: &Call<'_>,
        attested: &Attested,
        id: &str,
        record: &mut Record,
    ) -> Result<Answer, Refusal> {
        let id: SecretId =
            id.parse().map_err(|error| Refusal::new(404, "Secret", format!("{error}")))?;
        let found = self.store.get(&id).map_err(|error| Refusal::internal(&error))?;
        let Secret { value, policy } =
            found.ok_or_else(|| Refusal::new(404, "Secret", "there is no such secret"))?;
        let tee = attested.tee;
        let policy = match tee {
            Tee::Snp => policy.snp,
            Tee::Tdx => policy.tdx,
            Tee::AzSnpVtpm | Tee::AzTdxVtpm => policy.azure,
            _ => None,
        };
        let policy = policy.ok_or_else(|| {
            Refusal::new(401, "Policy", format!("the secret has no policy for {tee} guests"))
        })?;
        record.policy = Some(policy_digest(&policy));
        let judgement =
            self.verifier.judge(&attested.evidence, Some(&policy), &attested.report_data, call.at);
        judged(record, &judgement)?;
        let message = Recipient::new(&attested.key).and_then(|key| key.seal(&value));
        let message = message.map_err(|error| Refusal::new(401, "Key", error.to_string()))?;
        let release = granted(&json!(message));
        let signature = self.release_key.sign(&attested.report_data, id.as_ref(), &release.body);
        Ok(Answer { signature: Some(signature), ..release })
    }

    fn refuse(&self, mut record: Record, refusal: Refusal) -> Refusal {
        record.reason.clone_from(&refusal.detail);
        self.write_down(record).err().unwrap_or(refusal)
    }

    /// Writes a record to the log, and where the log ends to the store; both are on disk when this
    /// returns.
    fn write_down(&self, record: Record) -> Result<(), Refusal> {
        let record = record.bounded();
        let Record { event, peer, secret, reason, failing, trust, .. } = &record;
        let secret = secret.as_deref().unwrap_or("attestation");
        let test = if trust.as_deref() == Some("TEST") { " TEST" } else { "" };
        let told = format!("{event:?}{test}: {secret} for {peer}: {reason} {failing:?}");
        self.log()
            .append_and(record, |head| self.store.set_audit_head(head).map_err(BrokerError::from))
            .map_err(|error| Refusal { status: 503, ..Refusal::internal(&error) })?;
        tracing::info!("{told}");
        Ok(())
    }

    /// Whether nothing can be recorded any more, so that nothing can be answered: the process has to end,
    /// and its successor reads what is on disk.
    pub(crate) fn is_broken(&self) -> bool {
        self.log().is_broken()
    }

    #[cfg(test)]
    pub(crate) fn break_log(&self) {
        self.log().break_it();
    }

    fn log(&self) -> MutexGuard<'_, AuditLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Where the audit log ended when last heard of.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn audit_head(&self) -> Result<AuditHead, StoreError> {
        match self.read(Kind::AuditHead, "")? {
            None => Ok(AuditHead::default()),
            Some(json) => {
                serde_json::from_slice(&json).map_err(|_| StoreError::Sealed("audit-head".into()))
            }
        }
    }

    fn set_audit_head(&self, head: &AuditHead) -> Result<(), StoreError> {
        self.write(Kind::AuditHead, "", json!(head).to_string().as_bytes())
    }

    /// The key by which the audit log's records are known to be a broker's.
    #[must_use]
    pub fn audit_key(&self) -> AuditKey {
        self.key().audit_key()
    }

    /// The public key of this store's tokens, as a JSON web key set.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn token_keys(&self) -> Result<Value, StoreError> {
        Signer::of(self).map(|signer| signer.key_set())
    }
}

/// Opens the log where the store says that it ended. A record that the store does not know was not
/// answered, which is recorded; unless the store is an older one, restored.
fn open_log(store: &Store, path: &Path, restored: bool) -> Result<AuditLog, BrokerError> {
    let known = store.audit_head()?;
    let ahead = if restored { u64::MAX } else { 1 };
    let mut log = AuditLog::open_ahead(path, &known, store.audit_key(), ahead)?;
    if !restored && log.head().records == known.records.saturating_add(1) {
        let record = Record {
            event: Event::Unanswered,
            reason: "the broker ended before it answered the record before this one".into(),
            ..record(&"broker", Timestamp::now())
        };
        log.append_and(record, |head| store.set_audit_head(head).map_err(BrokerError::from))?;
    } else {
        store.set_audit_head(log.head())?;
    }
    Ok(log)
}

fn record(peer: &impl ToString, at: Timestamp) -> Record {
    Record {
        time: at.to_string(),
        event: Event::Refusal,
        peer: peer.to_string(),
        secret: None,
        nonce: None,
        evidence: None,
        policy: None,
        verdict: None,
        failing: Vec::new(),
        trust: None,
        answered: Vec::new(),
        reason: String::new(),
    }
}

/// Notes a judgement; an error unless it accepts.
fn judged(record: &mut Record, judgement: &Judgement) -> Result<(), Refusal> {
    record.verdict = Some(judgement.verdict.as_str().into());
    record.trust = judgement.root().map(|trust| trust.as_str().to_owned());
    let answered =
        Question::ALL.into_iter().filter(|one| judgement.answer(*one) == Outcome::Passed);
    record.answered = answered.map(|question| question.as_str().to_owned()).collect();
    record.failing = judgement.unfulfilled().iter().map(ToString::to_string).collect();
    if judgement.verdict == Verdict::Accept {
        return Ok(());
    }
    let detail = format!("the evidence is not accepted: {}", record.failing.join(", "));
    Err(Refusal::new(401, "Verdict", detail))
}

/// Refuses composite evidence with a device that cannot be judged: to pass over it would let a token and a
/// release speak for it.
fn refuse_devices(record: &mut Record, additional: &str) -> Result<(), Refusal> {
    let refusal = |detail| Refusal::new(401, "Evidence", detail);
    let kinds = devices(additional).map_err(|error| refusal(chain(&error)))?;
    if kinds.is_empty() {
        return Ok(());
    }
    record.failing = vec!["additional-evidence".into()];
    let kinds = kinds.join(", ");
    let kinds = Foreign(&kinds);
    Err(refusal(format!("additional evidence of \"{kinds}\" cannot be judged; attest without it")))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body)
        .map_err(|error| Refusal::new(400, "Json", format!("the message cannot be read: {error}")))
}

/// An error with all that led to it.
fn chain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(chain);
    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
