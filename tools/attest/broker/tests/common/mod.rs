//! A broker that trusts the TEST chip, and guests on it.

#![allow(dead_code, reason = "each test file takes what it needs")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use casemate_agent::{EvidenceError, EvidenceSource, Trusted};
use casemate_broker::audit::{AuditKey, AuditLog, Event, Record};
use casemate_broker::http::{Answer, Head};
use casemate_broker::{
    Broker, Endorsements, Peer, ReleasePolicy, Secret, SecretId, Store, StoreKey, Verifier,
};
use casemate_protocol::{Evidence, PREFIX, report_data};
use casemate_test_support::chip::Report;
use casemate_test_support::evidence::file;
use casemate_verify::Timestamp;
use kbs_types::{RuntimeData, Tee, TeePubKey};
use ring::digest::{SHA384, digest};
use serde_json::{Value, json};

pub(crate) const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
pub(crate) const SECRET: &str = "the passphrase of the disk";
pub(crate) const ID: &str = "default/disk/root";
pub(crate) const COMMAND_LINE: &str = "console=ttyS0 root=/dev/mapper/root";

/// A launch digest that depends on every byte of a command line, as the real one does.
pub(crate) fn measurement(command_line: &str) -> [u8; 48] {
    digest(&SHA384, command_line.as_bytes()).as_ref().try_into().unwrap()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// No debugging, and this command line only.
pub(crate) fn policy() -> ReleasePolicy {
    let json = json!({"allow_debug": false, "measurements": hex(&measurement(COMMAND_LINE))});
    ReleasePolicy { snp: Some(json.to_string()), ..ReleasePolicy::default() }
}

pub(crate) fn id(text: &str) -> SecretId {
    text.parse().unwrap()
}

pub(crate) fn secret(value: &str, policy: ReleasePolicy) -> Secret {
    Secret { value: value.as_bytes().to_vec().into(), policy }
}

fn audit_key(store_key: StoreKey) -> AuditKey {
    let folder = tempfile::tempdir().unwrap();
    Store::open(&folder.path().join("store"), store_key).unwrap().audit_key()
}

/// The audit key of [`KEY`].
pub(crate) fn key() -> AuditKey {
    audit_key(StoreKey::parse(KEY.as_bytes()).unwrap())
}

/// The audit key of another store.
pub(crate) fn other_key() -> AuditKey {
    audit_key(StoreKey::generate().unwrap())
}

/// Where a broker's files are.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(&self.path("store"), StoreKey::parse(KEY.as_bytes()).unwrap()).unwrap()
    }

    /// What a guest that pins this store's key takes.
    pub(crate) fn trusted(&self) -> Trusted {
        Trusted::Keys(vec![self.store().release_key().unwrap()])
    }

    /// The log, open where the store says that it ended.
    pub(crate) fn open_log(&self) -> AuditLog {
        AuditLog::open(&self.log(), &self.store().audit_head().unwrap(), key()).unwrap()
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path("audit.jsonl")
    }

    /// The log's records.
    pub(crate) fn records(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.log()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A broker with one secret, under `endorsements`.
    pub(crate) fn broker_with(&self, endorsements: Endorsements) -> Broker {
        let store = self.store();
        store.put(&id(ID), &secret(SECRET, policy())).unwrap();
        Broker::new(store, Verifier::new(endorsements), &self.log()).unwrap()
    }

    pub(crate) fn broker(&self) -> Broker {
        self.broker_with(endorsements())
    }
}

/// The TEST chip's.
pub(crate) fn endorsements() -> Endorsements {
    let synthetic = |name: &str| file(&format!("synthetic/{name}.der")).unwrap();
    Endorsements {
        chip_certificates: vec![synthetic("vcek")],
        test_root: Some((synthetic("ask"), synthetic("ark"))),
        ..Endorsements::default()
    }
}

/// A guest on the TEST chip.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) command_line: &'static str,
    pub(crate) policy: u64,
    /// Evidence over this instead of what is asked for.
    pub(crate) report_data: Option<[u8; 64]>,
}

impl Guest {
    pub(crate) fn good() -> Self {
        Guest { command_line: COMMAND_LINE, policy: Report::POLICY, report_data: None }
    }
}

impl EvidenceSource for Guest {
    fn tee(&self) -> Result<Tee, EvidenceError> {
        Ok(Tee::Snp)
    }

    fn evidence(&self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
        let report = Report {
            policy: self.policy,
            report_data: self.report_data.unwrap_or(*report_data),
            measurement: measurement(self.command_line),
        };
        Ok(Evidence::Snp { report: report.sign().unwrap(), certificates: vec![] })
    }
}

pub(crate) fn head(method: &str, path: &str, session: Option<&str>) -> Head {
    Head {
        method: method.into(),
        path: format!("{PREFIX}{path}"),
        session: session.map(str::to_owned),
        ..Head::default()
    }
}

pub(crate) fn ask(broker: &Broker, head: &Head, body: &Value) -> (Answer, Value) {
    let body = if body.is_null() { vec![] } else { body.to_string().into_bytes() };
    let answer = broker.answer(head, &body, &Peer::Vsock(3), Instant::now(), Timestamp::now());
    let json = serde_json::from_slice(&answer.body).unwrap();
    (answer, json)
}

/// A session and its nonce.
pub(crate) fn begin(broker: &Broker) -> (String, String) {
    let request = json!({"version": "0.4.0", "tee": "snp", "extra-params": {}});
    let (answer, challenge) = ask(broker, &head("POST", "auth", None), &request);
    assert_eq!(answer.status, 200, "{challenge}");
    (answer.session.unwrap(), challenge["nonce"].as_str().unwrap().to_owned())
}

/// An attestation of `guest` for this nonce and key.
pub(crate) fn attestation(guest: &Guest, nonce: &str, key: &TeePubKey) -> Value {
    let runtime = RuntimeData { nonce: nonce.into(), tee_pubkey: key.clone() };
    let evidence = guest.evidence(&report_data(&runtime, "")).unwrap();
    json!({
        "init-data": null,
        "runtime-data": runtime,
        "tee-evidence": {"primary_evidence": evidence.to_json(), "additional_evidence": ""},
    })
}

/// Begins, and attests as `guest`: the session, and what came of it.
pub(crate) fn attest(broker: &Broker, guest: &Guest, key: &TeePubKey) -> (String, Answer, Value) {
    let (session, nonce) = begin(broker);
    let (answer, json) =
        ask(broker, &head("POST", "attest", Some(&session)), &attestation(guest, &nonce, key));
    (session, answer, json)
}

/// Whether any file of a folder has these bytes.
pub(crate) fn on_disk(folder: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let contents = std::fs::read(entry.unwrap().path()).unwrap();
        contents.windows(bytes.len()).any(|window| window == bytes)
    })
}

/// Records of all kinds; the first rests on a TEST root, and the text is hard to tell from a line.
pub(crate) fn record(number: u64) -> Record {
    Record {
        time: "2026-11-25T00:00:00Z".into(),
        event: if number.is_multiple_of(3) { Event::Refusal } else { Event::Release },
        peer: "vsock:3".into(),
        secret: Some(format!("default/key/{number}")),
        nonce: Some("bm9uY2U=".into()),
        evidence: None,
        policy: None,
        verdict: Some("accept".into()),
        failing: vec!["measurement".into()],
        trust: (number == 1).then(|| "TEST".into()),
        answered: vec!["platform".into()],
        reason: "a \"reason\",\"hash\":\"with\nall that\"} \u{1f512}".into(),
    }
}
