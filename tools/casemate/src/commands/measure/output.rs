//! How a measurement is printed; the same for every platform.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use casemate_launch::manifest::Manifest;
use casemate_launch::{Digest384, PlatformKind};
use clap::ValueEnum;
use serde::Serialize;

/// Options of every measurement.
#[derive(clap::Args)]
pub(super) struct Output {
    /// How to print the result; "hex" is the measurement and nothing else
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Write every measured range to this file, as JSON
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Hex,
    Json,
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

impl Output {
    /// Prints a report, `rows` being what the table says after the measurement, and writes the
    /// manifest if one is wanted.
    pub(super) fn print(
        &self,
        report: &Report<impl Serialize, impl Serialize>,
        rows: Vec<Row>,
        manifest: impl FnOnce() -> anyhow::Result<Manifest>,
    ) -> anyhow::Result<()> {
        if let Some(path) = &self.manifest {
            let failed = || format!("could not write the manifest to {}", path.display());
            let mut file = BufWriter::new(File::create(path).with_context(failed)?);
            serde_json::to_writer_pretty(&mut file, &manifest()?).with_context(failed)?;
            writeln!(file).and_then(|()| file.flush()).with_context(failed)?;
        }
        let mut out = std::io::stdout().lock();
        match self.format {
            Format::Hex => writeln!(out, "{}", report.measurement)?,
            Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(report)?)?,
            Format::Table => {
                let measurement = [("measurement", report.measurement.to_string())];
                for (name, value) in measurement.into_iter().chain(rows) {
                    writeln!(out, "{name:16}  {value}")?;
                }
            }
        }
        Ok(())
    }
}
