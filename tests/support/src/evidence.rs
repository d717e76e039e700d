//! The cases of `tests/data/evidence/manifest.json`, with their files read and their operations applied.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// What a case hands to a verifier.
#[derive(Clone, Debug)]
pub enum Inputs {
    /// An SEV-SNP report with its certificates.
    Snp(SnpInputs),
    /// A TDX quote, with collateral where there is some.
    Tdx {
        /// The quote.
        quote: Vec<u8>,
        /// Collateral as JSON text.
        collateral: Option<Value>,
    },
}

/// Files of an SEV-SNP case.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct SnpInputs {
    pub report: Vec<u8>,
    pub vek: Vec<u8>,
    pub ask: Vec<u8>,
    pub ark: Vec<u8>,
    pub crl: Option<Vec<u8>>,
    /// Whether the root is the synthetic one.
    pub test_root: bool,
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name.
    pub id: String,
    /// What the verifier gets.
    pub inputs: Inputs,
    /// The verification's time: RFC 3339 text, or seconds since 1970; `None`: any time will do.
    pub at: Option<Value>,
    /// The policy as JSON; `None`: the default.
    pub policy: Option<Value>,
    /// The expected verdict: `accept`, `reject`, `no-collateral`.
    pub verdict: String,
    /// The checks of which one at least must fail.
    pub failing: Vec<String>,
}

/// The folder with the evidence.
#[must_use]
pub fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../data/evidence"))
}

/// A file of the evidence.
///
/// # Errors
/// It cannot be read.
pub fn file(path: &str) -> Result<Vec<u8>> {
    let path = folder().join(path);
    fs::read(&path).with_context(|| format!("could not read {}", path.display()))
}

/// All cases that a verifier is to judge.
///
/// # Errors
/// The manifest or a file of it cannot be read, or has an operation that is not known.
pub fn cases() -> Result<Vec<Case>> {
    let manifest: Value = serde_json::from_slice(&file("manifest.json")?)?;
    let entries = manifest.as_array().context("the manifest is not a list")?;
    let mut cases = Vec::new();
    for entry in entries {
        let id = text(entry, "id")?;
        let case = match text(entry, "type")? {
            "ccel-replay" | "rtmr-replay" => continue,
            "snp-report-mutation" | "tdx-quote-mutation" => mutated(entry, entries),
            _ => genuine(entry),
        };
        cases.push(case.with_context(|| format!("case {id}"))?);
    }
    Ok(cases)
}

/// The case called `id`.
///
/// # Errors
/// There is none, or the manifest cannot be read.
pub fn case(id: &str) -> Result<Case> {
    cases()?.into_iter().find(|case| case.id == id).with_context(|| format!("no case {id}"))
}

fn genuine(entry: &Value) -> Result<Case> {
    let expected = &entry["expected"];
    Ok(Case {
        id: text(entry, "id")?.to_owned(),
        inputs: inputs(entry)?,
        at: entry.get("at").or(expected.get("at")).cloned(),
        policy: entry.get("policy").cloned(),
        verdict: text(expected, "verdict")?.to_owned(),
        failing: serde_json::from_value(expected["failing_checks"].clone())?,
    })
}

fn mutated(entry: &Value, entries: &[Value]) -> Result<Case> {
    let base = find(entries, text(entry, "base")?)?;
    let mut case = Case { inputs: inputs(base)?, ..genuine_fields(entry)? };
    for op in entry["ops"].as_array().context("ops")? {
        apply(&mut case, op, entries)?;
    }
    Ok(case)
}

/// A mutation's own fields; its inputs are the base's.
fn genuine_fields(entry: &Value) -> Result<Case> {
    let expected = &entry["expected"];
    Ok(Case {
        id: text(entry, "id")?.to_owned(),
        inputs: Inputs::Tdx { quote: Vec::new(), collateral: None },
        at: entry.get("at").cloned(),
        policy: entry.get("policy").cloned(),
        verdict: text(expected, "verdict")?.to_owned(),
        failing: serde_json::from_value(expected["failing_checks"].clone())?,
    })
}

fn inputs(entry: &Value) -> Result<Inputs> {
    if entry.get("quote").is_some() {
        let quote = file(text(&entry["quote"], "file")?)?;
        let collateral = match entry["collateral"]["file"].as_str() {
            None => None,
            Some(path) => Some(serde_json::from_slice(&file(path)?)?),
        };
        return Ok(Inputs::Tdx { quote, collateral });
    }
    let root = |at: usize| file(entry["roots"][at].as_str().context("roots")?);
    Ok(Inputs::Snp(SnpInputs {
        report: file(text(&entry["report"], "file")?)?,
        vek: file(text(&entry["vek"], "file")?)?,
        ask: root(0)?,
        ark: root(1)?,
        crl: entry["crl"].as_str().map(file).transpose()?,
        test_root: text(entry, "trust")? == "test-root",
    }))
}

fn apply(case: &mut Case, op: &Value, entries: &[Value]) -> Result<()> {
    match (text(op, "op")?, &mut case.inputs) {
        ("at", _) => case.at = Some(op["time"].clone()),
        ("roots", Inputs::Snp(snp)) => {
            let product = text(op, "product")?;
            snp.ask = file(&format!("snp/roots/{product}-ask.der"))?;
            snp.ark = file(&format!("snp/roots/{product}-ark.der"))?;
        }
        ("roots-swap", Inputs::Snp(snp)) => std::mem::swap(&mut snp.ask, &mut snp.ark),
        ("replace-file", Inputs::Snp(snp)) => {
            let with = text(op, "with_")?;
            let bytes = match with.split_once(':') {
                Some(("root", name)) => file(&format!("snp/roots/{name}.der"))?,
                Some(("evidence", id)) => file(text(&find(entries, id)?["vek"], "file")?)?,
                _ => bail!("unknown replacement {with}"),
            };
            *target(snp, text(op, "file")?)? = bytes;
        }
        (name, Inputs::Tdx { collateral: Some(collateral), .. })
            if name.starts_with("collateral-") =>
        {
            change_collateral(collateral, op, entries)?;
        }
        (_, Inputs::Snp(snp)) => change_bytes(target(snp, text(op, "file")?)?, op)?,
        (_, Inputs::Tdx { quote, .. }) => change_bytes(quote, op)?,
    }
    Ok(())
}

fn target<'a>(snp: &'a mut SnpInputs, name: &str) -> Result<&'a mut Vec<u8>> {
    match name {
        "report" => Ok(&mut snp.report),
        "vek" => Ok(&mut snp.vek),
        other => bail!("unknown file {other}"),
    }
}

/// The operations on bytes.
pub(crate) fn change_bytes(bytes: &mut Vec<u8>, op: &Value) -> Result<()> {
    let offset = || position(op, "offset", bytes.len());
    match text(op, "op")? {
        "xor" => {
            let (offset, mask) = (offset()?, u8::try_from(number(op, "mask")?)?);
            *bytes.get_mut(offset).context("offset")? ^= mask;
        }
        "set" => {
            let (offset, new) = (offset()?, decode(text(op, "hex")?)?);
            bytes.get_mut(offset..offset + new.len()).context("offset")?.copy_from_slice(&new);
        }
        "fill" => {
            let (offset, len) = (offset()?, usize::try_from(number(op, "len")?)?);
            let byte = u8::try_from(number(op, "byte")?)?;
            bytes.get_mut(offset..offset + len).context("offset")?.fill(byte);
        }
        "swap" => {
            let len = usize::try_from(number(op, "len")?)?;
            let (a, b) = (position(op, "a", bytes.len())?, position(op, "b", bytes.len())?);
            ensure!(a + len <= b && b + len <= bytes.len(), "swap overlaps or overruns");
            let (front, back) = bytes.split_at_mut(b);
            front[a..a + len].swap_with_slice(&mut back[..len]);
        }
        "truncate" => bytes.truncate(usize::try_from(number(op, "len")?)?),
        "append" => bytes.extend(decode(text(op, "hex")?)?),
        other => bail!("unknown operation {other}"),
    }
    Ok(())
}

/// The operations on collateral.
fn change_collateral(collateral: &mut Value, op: &Value, entries: &[Value]) -> Result<()> {
    let field = text(op, "field")?;
    match text(op, "op")? {
        "collateral-xor-hex" => {
            let mut bytes = decode(text(collateral, field)?)?;
            let offset = position(op, "offset", bytes.len())?;
            bytes[offset] ^= u8::try_from(number(op, "mask")?)?;
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            collateral[field] = hex.into();
        }
        "collateral-replace-text" => {
            let old = text(collateral, field)?;
            let find = text(op, "find")?;
            ensure!(old.contains(find), "{field} has no {find}");
            collateral[field] = old.replacen(find, text(op, "with_")?, 1).into();
        }
        "collateral-copy-from-evidence" => {
            let path = text(&find(entries, text(op, "evidence")?)?["collateral"], "file")?;
            let other: Value = serde_json::from_slice(&file(path)?)?;
            for name in field.split('+') {
                collateral[name] = other[name].clone();
            }
        }
        other => bail!("unknown operation {other}"),
    }
    Ok(())
}

fn find<'a>(entries: &'a [Value], id: &str) -> Result<&'a Value> {
    entries
        .iter()
        .find(|entry| entry["id"].as_str() == Some(id))
        .with_context(|| format!("no entry {id}"))
}

pub(crate) fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("no text under {key}"))
}

pub(crate) fn number(value: &Value, key: &str) -> Result<i64> {
    value[key].as_i64().with_context(|| format!("no number under {key}"))
}

/// An offset; a negative one counts from the end.
fn position(op: &Value, key: &str, len: usize) -> Result<usize> {
    let offset = number(op, key)?;
    let position = if offset < 0 { i64::try_from(len)? + offset } else { offset };
    Ok(usize::try_from(position)?)
}

pub(crate) fn decode(hex: &str) -> Result<Vec<u8>> {
    ensure!(hex.len().is_multiple_of(2) && hex.is_ascii(), "odd hexadecimal");
    (0..hex.len()).step_by(2).map(|at| Ok(u8::from_str_radix(&hex[at..at + 2], 16)?)).collect()
}
