//! The vectors of `tests/data/vectors`: expected measurements, and the inputs they are about.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use casemate_lab::packages::{PackageError, Packages, Spec};
use casemate_lab::{nothing_may_be_missing, require_ok};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The folder with the vectors.
#[must_use]
pub fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../data/vectors"))
}

/// All vectors of a file, such as `snp-launch-digest`.
///
/// # Errors
/// The file cannot be read or is no list.
pub fn all(name: &str) -> Result<Vec<Value>> {
    match json(name)? {
        Value::Array(list) => Ok(list),
        _ => bail!("{name}.json is not a list"),
    }
}

/// A file of the folder that is not a list of vectors.
///
/// # Errors
/// The file cannot be read or is not JSON.
pub fn json(name: &str) -> Result<Value> {
    let path = folder().join(name).with_extension("json");
    let text = fs::read(&path).with_context(|| format!("could not read {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

/// The inputs of one test. On its end, what could not be had is reported by name.
pub struct Inputs {
    entries: HashMap<String, Value>,
    read: RefCell<HashMap<String, Option<Arc<[u8]>>>>,
    /// Input and reason, and how many vectors were not run for want of it.
    missing: RefCell<BTreeMap<String, (String, usize)>>,
}

impl Inputs {
    /// Reads the list of inputs.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn open() -> Result<Self> {
        let list = json("inputs")?;
        let list = list["inputs"].as_array().context("inputs.json has no list of inputs")?;
        let entry = |entry: &Value| Some((entry["id"].as_str()?.to_owned(), entry.clone()));
        Ok(Self {
            entries: list.iter().filter_map(entry).collect(),
            read: RefCell::default(),
            missing: RefCell::default(),
        })
    }

    /// The bytes of an input; `None` if it comes from a package that cannot be had, which is
    /// remembered and reported.
    ///
    /// # Errors
    /// There is no such input, or it is not what the list says.
    pub fn get(&self, id: &str) -> Result<Option<Arc<[u8]>>> {
        if let Some((_, count)) = self.missing.borrow_mut().get_mut(id) {
            *count += 1;
            return Ok(None);
        }
        if let Some(known) = self.read.borrow().get(id) {
            return Ok(known.clone());
        }
        let entry = self.entries.get(id).with_context(|| format!("no input {id}"))?;
        let text = |name: &str| entry[name].as_str().with_context(|| format!("{id}: no {name}"));
        let bytes = match text("kind")? {
            "generated" => fs::read(folder().join(text("file")?))?,
            "recipe" => stream(id, entry["size"].as_u64().context("no size")?)?,
            "debian-package" => match package_file(entry) {
                Ok(bytes) => bytes,
                // Debian keeps only the newest version; any other reason is this machine's.
                Err(error) if !is_replaced(&error) && nothing_may_be_missing() => {
                    return Err(error.context(format!("{id} could not be had")));
                }
                Err(error) => {
                    let why = format!(
                        "{} of package {} {}: {error:#}",
                        text("path")?,
                        text("package")?,
                        text("version")?
                    );
                    self.missing.borrow_mut().insert(id.to_owned(), (why, 1));
                    return Ok(None);
                }
            },
            kind => bail!("{id}: unknown kind {kind}"),
        };
        ensure!(hex(&Sha256::digest(&bytes)) == text("sha256")?, "{id} is another file");
        let bytes: Option<Arc<[u8]>> = Some(bytes.into());
        self.read.borrow_mut().insert(id.to_owned(), bytes.clone());
        Ok(bytes)
    }
}

impl Drop for Inputs {
    fn drop(&mut self) {
        for (id, (why, count)) in self.missing.borrow().iter() {
            // Not eprintln: the test harness keeps that to itself when a test passes.
            let line = format!("NOT RUN: {count} vectors need {id}, {why}\n");
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }
}

/// SHA-256(seed || counter) over and over, cut to size; `seed` is the input's name.
fn stream(seed: &str, size: u64) -> Result<Vec<u8>> {
    let size = usize::try_from(size)?;
    let mut bytes = Vec::with_capacity(size + 32);
    for counter in 0_u64.. {
        if bytes.len() >= size {
            break;
        }
        bytes.extend(
            Sha256::new().chain_update(seed).chain_update(counter.to_le_bytes()).finalize(),
        );
    }
    bytes.truncate(size);
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// From this machine's cache, a directory of copies, or the package.
fn package_file(entry: &Value) -> Result<Vec<u8>> {
    let text = |name: &str| entry[name].as_str().with_context(|| format!("no {name}"));
    let spec = Spec::version(text("package")?, text("version")?)?;
    let path = Packages::open()?.file(&spec, text("path")?, Some(text("sha256")?))?;
    Ok(fs::read(path)?)
}

fn is_replaced(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(PackageError::NotInArchive { .. }))
}

/// Firmware for a test that runs it, of an input's package: of the input's version, or, where Debian
/// has replaced that, of the newest in the same suite. `None`, and a line on standard error, where
/// neither can be had; see [`casemate_lab::require`].
///
/// # Panics
/// Neither can be had, and nothing may be missing.
///
/// # Errors
/// There is no such input.
pub fn firmware(id: &str) -> Result<Option<Vec<u8>>> {
    let inputs = Inputs::open()?;
    let entry = inputs.entries.get(id).with_context(|| format!("no input {id}"))?;
    let text = |name: &str| entry[name].as_str().with_context(|| format!("{id}: no {name}"));
    let file = package_file(entry).or_else(|error| {
        if !is_replaced(&error) {
            return Err(error);
        }
        let newest: Spec = format!("{}/{}", text("package")?, text("suite")?).parse()?;
        Ok(fs::read(Packages::open()?.file(&newest, text("path")?, None)?)?)
    });
    Ok(require_ok(file, id))
}
