//! Prints a judgement.

use std::io::Write;
use std::process::ExitCode;

use casemate_verify::{CheckName, Judgement, Outcome, Part, Question, Verdict, Weakness};
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
    if judgement.is_test() { format!("TEST {verdict}") } else { verdict }
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "FAILED",
        Outcome::NotDone => "not done",
    }
}

/// Each check, the parts below the node that they belong to; and the four answers.
fn table(out: &mut impl Write, judgement: &Judgement) -> std::io::Result<()> {
    rows(out, judgement, "  ")?;
    for question in Question::ALL {
        writeln!(out, "  {}: {}", answer_of(question), word(judgement.answer(question)))?;
    }
    Ok(())
}

fn rows(out: &mut impl Write, judgement: &Judgement, indent: &str) -> std::io::Result<()> {
    for check in &judgement.checks {
        let (result, name) = (word(check.result), check.name.as_str());
        writeln!(out, "{indent}{result:8}  {name:20}  {}", check.detail)?;
    }
    if !judgement.unset.is_empty() {
        let names: Vec<_> = judgement.unset.iter().map(|name| name.as_str()).collect();
        writeln!(out, "{indent}not asked for by the policy: {}", names.join(", "))?;
    }
    for Part { part, judgement } in &judgement.parts {
        writeln!(out, "{indent}{part}: {}", judgement.verdict.as_str())?;
        rows(out, judgement, &format!("{indent}  "))?;
    }
    Ok(())
}

fn answer_of(question: Question) -> &'static str {
    match question {
        Question::Platform => "genuine platform",
        Question::Firmware => "known firmware",
        Question::System => "known system",
        Question::Fresh => "fresh",
    }
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
    for Part { part, judgement } in &judgement.parts {
        writeln!(out, "  {part}: {}", judgement.verdict.as_str())?;
        sentences(out, judgement)?;
    }
    Ok(())
}

/// What a reader must not miss.
fn remarks(judgement: &Judgement) {
    if judgement.is_test() {
        eprintln!(
            "casemate: TEST: the chain leads to the TEST root that was named; this proves nothing"
        );
    }
    if judgement.debuggable {
        eprintln!("casemate: warning: the host can debug this guest, and read all of its memory");
    }
}
