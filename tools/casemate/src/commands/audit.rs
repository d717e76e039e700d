//! `casemate audit`

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use casemate_broker::Store;
use casemate_broker::audit::{self, ChainError, Head, Summary};
use clap::Subcommand;

use super::broker::read_key;
use super::verify::Format;

const EXIT_CHANGED: u8 = 1;

/// Verify the audit log of a broker
///
/// The log has one JSON object per line. Each object has the hash of the previous one.
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Verify(VerifyArgs),
}

/// Verify that an audit log is unchanged
///
/// A changed, moved or removed record breaks the chain of hashes. To detect records that are missing at the
/// end, pass the broker's store or a hash that an earlier run printed. To detect records that the broker did
/// not write, pass the store: its key authenticates each record.
///
/// Exit status: 0 the log is unchanged, 1 it was changed, 2 invalid input or usage.
#[derive(clap::Args)]
struct VerifyArgs {
    /// Audit log
    log: PathBuf,
    /// Hash of a record that the log must have, 96 hexadecimal digits
    #[arg(long, value_name = "HEX", conflicts_with = "store")]
    head: Option<String>,
    /// Store of the broker, which has the end of the log
    #[arg(long, value_name = "FILE", requires = "key")]
    store: Option<PathBuf>,
    /// Key of the store
    #[arg(long, value_name = "FILE", requires = "store")]
    key: Option<PathBuf>,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Command::Verify(args) = &args.command;
    let store = args.store()?;
    let anchor = args.anchor(store.as_ref())?;
    let key = store.as_ref().map(Store::audit_key);
    let log = File::open(&args.log)
        .with_context(|| format!("could not open the audit log {}", args.log.display()))?;
    let mut outcome = audit::verify(BufReader::new(log), anchor.as_ref(), key.as_ref());
    // A running broker may have gone on in between, but notes each record before the next.
    let known = store.map(|store| store.audit_head()).transpose()?.map(|head| head.records);
    if let (Ok(Summary { head, .. }), Some(known)) = (&outcome, known)
        && head.records > known.saturating_add(1)
    {
        outcome = Err(ChainError::Unknown { found: head.records, known });
    }
    if let Err(error @ ChainError::Read { .. }) = outcome {
        return Err(error).with_context(|| format!("the audit log {}", args.log.display()));
    }
    let mut out = super::output();
    match args.format {
        Format::Json => writeln!(out, "{:#}", json(&outcome, anchor.is_some()))?,
        Format::Text => match &outcome {
            Ok(summary) => text(&mut out, summary, anchor.is_some())?,
            Err(error) => writeln!(out, "changed: {error}")?,
        },
    }
    Ok(if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_CHANGED) })
}

impl VerifyArgs {
    fn store(&self) -> anyhow::Result<Option<Store>> {
        let (Some(store), Some(key)) = (&self.store, &self.key) else { return Ok(None) };
        ensure!(store.exists(), "there is no store {}", store.display());
        Ok(Some(Store::open(store, read_key(key)?)?))
    }

    /// Where the log must have been.
    fn anchor(&self, store: Option<&Store>) -> anyhow::Result<Option<Head>> {
        if let Some(hash) = &self.head {
            let digits = hash.len() == 96 && hash.bytes().all(|digit| digit.is_ascii_hexdigit());
            ensure!(digits, "--head takes 96 hexadecimal digits, as an earlier run printed them");
            return Ok(Some(Head { records: 0, hash: hash.to_ascii_lowercase() }));
        }
        Ok(store.map(Store::audit_head).transpose()?)
    }
}

fn text(out: &mut impl std::io::Write, summary: &Summary, anchored: bool) -> std::io::Result<()> {
    let Summary { head, releases, refusals, unanswered, test_releases, partial, .. } = summary;
    writeln!(
        out,
        "whole: {} records, {releases} releases and {refusals} refusals\nhead:  {}",
        head.records, head.hash
    )?;
    if *unanswered > 0 {
        writeln!(out, "note: {unanswered} records were not answered: the broker ended before")?;
    }
    if *test_releases > 0 {
        writeln!(out, "TEST: {test_releases} releases rest on a TEST root, which proves nothing")?;
    }
    if *partial > 0 {
        writeln!(
            out,
            "note: the last line is unfinished ({partial} bytes): the broker was stopped while it wrote, \
             before it answered; it takes the line away when it starts"
        )?;
    }
    if !anchored {
        writeln!(
            out,
            "note: records that are missing at the end cannot be seen without --store or --head, and \
             records that no broker wrote not without --store"
        )?;
    }
    Ok(())
}

fn json(outcome: &Result<Summary, ChainError>, anchored: bool) -> serde_json::Value {
    match outcome {
        Ok(summary) => serde_json::json!({
            "verdict": "whole",
            "records": summary.head.records,
            "head": summary.head.hash,
            "releases": summary.releases,
            "refusals": summary.refusals,
            "unanswered": summary.unanswered,
            "test_releases": summary.test_releases,
            "unfinished_bytes": summary.partial,
            "end_checked": anchored,
        }),
        Err(error) => serde_json::json!({"verdict": "changed", "detail": error.to_string()}),
    }
}
