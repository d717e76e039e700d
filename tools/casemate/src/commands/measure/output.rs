//! How a measurement is printed; the same for every platform.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use casemate_launch::manifest::Manifest;
use casemate_launch::{Digest384, PlatformKind};
use casemate_protocol::pinned_keys;
use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};

use crate::commands::cautions::{Caution, cautions};
use crate::commands::{EXIT_BAD_INPUT, output};

/// Options of every measurement.
#[derive(Default, clap::Args)]
pub(super) struct Output {
    /// Output format; "hex" prints the measurement alone
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(super) format: Format,
    /// Write all measured ranges to FILE as JSON
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Hex,
    Json,
    #[default]
    Table,
}

/// The result for one platform. As JSON its fields are part of the command's contract.
#[derive(Serialize)]
pub(super) struct Report<Details, Assumptions> {
    pub(super) platform: PlatformKind,
    pub(super) measurement: Digest384,
    /// What only this platform has, such as `firmware_seed`.
    #[serde(flatten)]
    pub(super) details: Details,
    /// Everything that moves the digest.
    pub(super) assumptions: Assumptions,
}

/// A line of the table: what, and its value.
pub(super) type Row = (&'static str, String);

/// A result in all the ways in which it may be printed.
pub(super) struct Measured {
    pub(super) measurement: Digest384,
    /// Reason why no host launches the guest, so that its measurement is nobody's.
    refusal: Option<String>,
    json: Value,
    rows: Vec<Row>,
    /// Hazards of the measured command line.
    cautions: Vec<Caution>,
    /// Takes another pass over everything that is measured.
    pub(super) manifest: Box<dyn FnOnce() -> anyhow::Result<Manifest>>,
}

impl<Details: Serialize, Assumptions: Serialize> Report<Details, Assumptions> {
    /// The result of which `rows` is what the table says after the measurement.
    pub(super) fn measured(
        &self,
        rows: Vec<Row>,
        manifest: impl FnOnce() -> anyhow::Result<Manifest> + 'static,
    ) -> anyhow::Result<Measured> {
        Ok(Measured {
            measurement: self.measurement,
            refusal: None,
            json: serde_json::to_value(self)?,
            rows,
            cautions: Vec::new(),
            manifest: Box::new(manifest),
        })
    }
}

impl Measured {
    /// With one more value that evidence has, which is not part of the measurement.
    pub(super) fn beside(mut self, name: &'static str, value: &[u8]) -> Self {
        let value: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
        self.json[name] = json!(value);
        self.rows.insert(0, (name, value));
        self
    }

    /// Without a measurement: no host launches the guest, for this reason.
    pub(super) fn refused(mut self, reason: String) -> Self {
        self.json["measurement"] = Value::Null;
        self.refusal = Some(reason);
        self
    }

    /// With the broker keys that the measured command line pins, and its hazards. `vsock`: the guest
    /// can reach a broker on its host.
    pub(super) fn with_line(mut self, command_line: &str, vsock: bool) -> Self {
        // A malformed key is a caution.
        let keys = pinned_keys(command_line).unwrap_or_default();
        let keys: Vec<_> = keys.iter().map(ToString::to_string).collect();
        self.json["broker_keys"] = json!(keys);
        let after = self.rows.iter().position(|(name, _)| *name == "command line");
        let at = after.map_or(self.rows.len(), |at| at + 1);
        self.rows.splice(at..at, keys.into_iter().map(|key| ("broker key", key)));
        self.cautions = cautions(command_line, vsock);
        self
    }
}

impl Output {
    /// Prints a result, and writes the manifest if one is wanted.
    pub(super) fn print(&self, measured: Measured) -> anyhow::Result<ExitCode> {
        warn(&measured.cautions);
        let mut out = output();
        match (self.format, &measured.refusal) {
            (Format::Hex, Some(reason)) => bail!("{reason}"),
            (Format::Hex, None) => writeln!(out, "{}", measured.measurement)?,
            (Format::Json, _) => {
                writeln!(out, "{}", serde_json::to_string_pretty(&measured.json)?)?;
            }
            (Format::Table, _) => write!(out, "{}", table(&measured))?,
        }
        if measured.refusal.is_some() {
            return Ok(ExitCode::from(EXIT_BAD_INPUT));
        }
        self.write_manifest(measured)?;
        Ok(ExitCode::SUCCESS)
    }

    /// Prints the results for several platforms side by side; those without one say why.
    pub(super) fn print_all(
        &self,
        results: Vec<(PlatformKind, anyhow::Result<Measured>)>,
    ) -> anyhow::Result<ExitCode> {
        let measured = results.iter().filter(|(_, result)| result.is_ok()).count();
        if measured != 1 && (self.format == Format::Hex || self.manifest.is_some()) {
            bail!(
                "{measured} platforms of this guest are measured, and --format hex and --manifest \
                 are for one: add --platform"
            );
        }
        // Platforms share their command line.
        if let Some(measured) = results.iter().find_map(|(_, result)| result.as_ref().ok()) {
            warn(&measured.cautions);
        }
        match self.format {
            Format::Json => {
                let list: Vec<_> =
                    results.iter().map(|(platform, result)| as_json(*platform, result)).collect();
                writeln!(output(), "{}", serde_json::to_string_pretty(&list)?)?;
            }
            Format::Table => {
                let tables: Vec<_> = results
                    .iter()
                    .map(|(platform, result)| match result {
                        Ok(measured) => table(measured),
                        Err(why) => format!("not measured      {}: {why:#}\n", platform.name()),
                    })
                    .collect();
                write!(output(), "{}", tables.join("\n"))?;
            }
            Format::Hex => {}
        }
        for measured in results.into_iter().filter_map(|(_, result)| result.ok()) {
            if self.format == Format::Hex {
                writeln!(output(), "{}", measured.measurement)?;
            }
            self.write_manifest(measured)?;
        }
        Ok(if measured > 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_BAD_INPUT) })
    }

    fn write_manifest(&self, measured: Measured) -> anyhow::Result<()> {
        let Some(path) = &self.manifest else { return Ok(()) };
        let failed = || format!("could not write the manifest to {}", path.display());
        let manifest = (measured.manifest)()?;
        let mut file = BufWriter::new(File::create(path).with_context(failed)?);
        serde_json::to_writer_pretty(&mut file, &manifest).with_context(failed)?;
        writeln!(file).and_then(|()| file.flush()).with_context(failed)
    }
}

fn warn(cautions: &[Caution]) {
    for caution in cautions {
        eprintln!("casemate: warning: {caution}");
    }
}

fn table(measured: &Measured) -> String {
    let digest = measured.measurement.to_string();
    let none = measured.refusal.as_ref().map(|_| "none".to_owned());
    let measurement = [("measurement", none.unwrap_or(digest))];
    let rows = measurement.iter().chain(&measured.rows);
    rows.map(|(name, value)| format!("{name:16}  {value}\n")).collect()
}

fn as_json(platform: PlatformKind, result: &anyhow::Result<Measured>) -> Value {
    match result {
        Ok(measured) => measured.json.clone(),
        Err(why) => {
            json!({ "platform": platform, "measurement": null, "reason": format!("{why:#}") })
        }
    }
}
