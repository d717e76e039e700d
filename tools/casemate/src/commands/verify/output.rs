//! Prints a judgement.

use std::io::Write;
use std::process::ExitCode;

use casemate_verify::snp::Trust;
use casemate_verify::tdx::Root;
use casemate_verify::{CheckName, Claims, Judgement, Outcome, Verdict, Weakness};
use serde::Serialize;

use super::{Common, Format};
use crate::commands::EXIT_BAD_INPUT;

const EXIT_REJECT: u8 = 1;
const EXIT_NO_COLLATERAL: u8 = 3;

/// A judgement, and what the policy left open.
#[derive(Serialize)]
struct Object<'a> {
    #[serde(flatten)]
    judgement: &'a Judgement,
    open: &'a [Weakness],
}

/// Prints a judgement by a policy that leaves `open`, and gives the exit status that says the same.
pub(super) fn print(
    judgement: &Judgement,
    open: &[Weakness],
    common: &Common,
) -> anyhow::Result<ExitCode> {
    let mut out = crate::commands::output();
    match common.format {
        Format::Json => {
            writeln!(out, "{}", serde_json::to_string_pretty(&Object { judgement, open })?)?;
            if common.explain {
                sentences(&mut std::io::stderr().lock(), judgement)?;
            }
        }
        Format::Text => {
            writeln!(out, "{}", headline(judgement))?;
            if common.explain {
                sentences(&mut out, judgement)?;
            } else {
                table(&mut out, judgement)?;
            }
        }
    }
    remarks(judgement);
    for weakness in open {
        eprintln!("casemate: warning: the policy is weak: {weakness}");
    }
    for what in &judgement.malformed {
        eprintln!("casemate: bad input: {what}");
    }
    Ok(ExitCode::from(match judgement.verdict {
        _ if !judgement.malformed.is_empty() => EXIT_BAD_INPUT,
        Verdict::Accept => 0,
        Verdict::Reject => EXIT_REJECT,
        Verdict::NoCollateral => EXIT_NO_COLLATERAL,
    }))
}

fn headline(judgement: &Judgement) -> String {
    let verdict = match judgement.verdict {
        Verdict::Accept => "accept: every check was done and passed".to_owned(),
        Verdict::NoCollateral => {
            "no-collateral: the quote is genuine, but nothing says whether its platform is good"
                .into()
        }
        Verdict::Reject => {
            let failed: Vec<_> = judgement.failed().map(CheckName::as_str).collect();
            format!("reject: {}", failed.join(", "))
        }
    };
    if is_test(judgement) { format!("TEST {verdict}") } else { verdict }
}

fn is_test(judgement: &Judgement) -> bool {
    match &judgement.claims {
        Claims::Snp(claims) => claims.trust == Some(Trust::Test),
        Claims::Tdx(claims) => claims.trust == Some(Root::Test),
        Claims::None {} => false,
    }
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "FAILED",
        Outcome::NotDone => "not done",
    }
}

fn table(out: &mut impl Write, judgement: &Judgement) -> std::io::Result<()> {
    for check in &judgement.checks {
        writeln!(out, "  {:8}  {:20}  {}", word(check.result), check.name.as_str(), check.detail)?;
    }
    if !judgement.unset.is_empty() {
        let names: Vec<_> = judgement.unset.iter().map(|name| name.as_str()).collect();
        writeln!(out, "  not asked for by the policy: {}", names.join(", "))?;
    }
    Ok(())
}

fn sentences(out: &mut impl Write, judgement: &Judgement) -> std::io::Result<()> {
    for check in &judgement.checks {
        let sentence = check.name.sentence().trim_end_matches('.');
        let (verb, detail) = (word(check.result), &check.detail);
        writeln!(out, "  {} ({verb}): {sentence}. Found: {detail}.", check.name)?;
    }
    for name in &judgement.unset {
        let sentence = name.sentence().trim_end_matches('.');
        writeln!(out, "  {name} (not asked for by the policy): {sentence}.")?;
    }
    Ok(())
}

/// What a reader must not miss.
fn remarks(judgement: &Judgement) {
    if is_test(judgement) {
        eprintln!(
            "casemate: TEST: the chain leads to the TEST root that was named; this proves nothing"
        );
    }
    let debug = match &judgement.claims {
        Claims::Snp(claims) => claims.policy.debug_allowed,
        Claims::Tdx(claims) => claims.debug,
        Claims::None {} => false,
    };
    if debug {
        eprintln!("casemate: warning: the host can debug this guest, and read all of its memory");
    }
}
