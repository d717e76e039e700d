//! The cases of `tests/data/evidence/cloud/manifest.json`, with their files read and their operations applied.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::evidence::{change_bytes, decode, file, number, text};

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name.
    pub id: String,
    /// The kind of evidence: `azure-vtpm` and so on.
    pub kind: String,
    /// Contents by role.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The verification's time, RFC 3339.
    pub at: Option<String>,
    /// The nonce that the caller expects.
    pub nonce: Option<Vec<u8>>,
    /// Conditions beyond the defaults.
    pub policy: Value,
    /// The whole entry, with expected values of some kinds.
    pub entry: Value,
    /// The expected verdict.
    pub verdict: String,
    /// The checks of which one at least must fail.
    pub failing: Vec<String>,
}

impl Case {
    /// Compares a judgement's verdict and the names of its failed checks with those that are expected.
    ///
    /// # Panics
    /// If they differ.
    pub fn expect(&self, verdict: &str, failed: &[&str]) {
        assert!(
            [verdict, "either"].contains(&self.verdict.as_str()),
            "{}: {verdict}, {failed:?}",
            self.id
        );
        let named = self.failing.iter().any(|name| failed.contains(&name.as_str()));
        assert!(named || self.failing.is_empty(), "{}: {failed:?}", self.id);
    }
}

/// The case of this name.
///
/// # Errors
/// As [`cases`], or if there is none.
pub fn case(kind: &str, id: &str) -> Result<Case> {
    let found = cases(kind)?.into_iter().find(|case| case.id == id);
    found.with_context(|| format!("no case {id}"))
}

/// All cases of a kind, mutations included.
///
/// # Errors
/// The manifest or a file of it cannot be read, or has an operation that is not known.
pub fn cases(kind: &str) -> Result<Vec<Case>> {
    let manifest: Value = serde_json::from_slice(&file("cloud/manifest.json")?)?;
    let entries = manifest.as_array().context("the manifest is not a list")?;
    let mutation = format!("{kind}-mutation");
    let mut cases = Vec::new();
    for entry in entries {
        let id = text(entry, "id")?;
        let found = text(entry, "type")?;
        if found == kind {
            cases.push(genuine(entry).with_context(|| format!("case {id}"))?);
        } else if found == mutation {
            cases.push(mutated(entry, entries).with_context(|| format!("case {id}"))?);
        }
    }
    Ok(cases)
}

fn genuine(entry: &Value) -> Result<Case> {
    let mut files = BTreeMap::new();
    for (role, place) in entry["files"].as_object().context("files")? {
        files.insert(role.clone(), file(text(place, "file")?)?);
    }
    let expected = &entry["expected"];
    Ok(Case {
        id: text(entry, "id")?.to_owned(),
        kind: text(entry, "type")?.to_owned(),
        files,
        at: entry["at"].as_str().map(str::to_owned),
        nonce: entry["nonce"].as_str().map(decode).transpose()?,
        policy: entry["policy"].clone(),
        entry: entry.clone(),
        verdict: text(expected, "verdict")?.to_owned(),
        failing: serde_json::from_value(expected["failing_checks"].clone())?,
    })
}

fn mutated(entry: &Value, entries: &[Value]) -> Result<Case> {
    let find = |id: &str| {
        let found = entries.iter().find(|entry| entry["id"] == id);
        genuine(found.with_context(|| format!("no case {id}"))?)
    };
    let mut case = find(text(entry, "base")?)?;
    let expected = &entry["expected"];
    case.id = text(entry, "id")?.to_owned();
    case.verdict = text(expected, "verdict")?.to_owned();
    case.failing = serde_json::from_value(expected["failing_checks"].clone())?;
    for op in entry["ops"].as_array().context("ops")? {
        match text(op, "op")? {
            "nonce" => case.nonce = Some(decode(text(op, "hex")?)?),
            "at" => case.at = Some(text(op, "time")?.to_owned()),
            "policy" => case.policy = op["set"].clone(),
            "remove-file" => {
                case.files.remove(text(op, "file")?).context("no such file")?;
            }
            "replace-file" => {
                let (id, role) = text(op, "with_")?.split_once('/').context("with_")?;
                let with = find(id)?.files.remove(role).context("no such file")?;
                *case.files.get_mut(text(op, "file")?).context("no such file")? = with;
            }
            _ => {
                let bytes = case.files.get_mut(text(op, "file")?).context("no such file")?;
                change(bytes, op)?;
            }
        }
    }
    Ok(case)
}

fn change(bytes: &mut Vec<u8>, op: &Value) -> Result<()> {
    if text(op, "op")? != "xor-find" {
        return change_bytes(bytes, op);
    }
    let wanted = decode(text(op, "find")?)?;
    let found = bytes.windows(wanted.len()).position(|window| window == wanted);
    let at = found.context("not found")? + usize::try_from(number(op, "plus")?)?;
    *bytes.get_mut(at).context("plus")? ^= u8::try_from(number(op, "mask")?)?;
    Ok(())
}
