//! Every case of the evidence folder gets the verdict that its manifest states.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use casemate_attest::snp::{self, SnpEvidence};
use casemate_attest::{CheckName, Judgement, Outcome, SnpPolicy, Timestamp, Verdict};
use casemate_tests::evidence::{Case, Inputs, cases};
use serde_json::Value;

fn time(case: &Case) -> Timestamp {
    match &case.at {
        Some(Value::String(text)) => Timestamp::parse(text).unwrap(),
        Some(Value::Number(seconds)) => Timestamp(seconds.as_u64().unwrap()),
        // A time at which every certificate of the cases without one was valid.
        _ => Timestamp::parse("2026-11-22T00:00:00Z").unwrap(),
    }
}

fn judge(case: &Case) -> Option<Judgement> {
    match &case.inputs {
        Inputs::Snp(snp) => {
            let policy = case.policy.as_ref().map_or_else(SnpPolicy::strict, |policy| {
                SnpPolicy::from_json(policy.to_string().as_bytes()).unwrap()
            });
            let evidence = SnpEvidence {
                report: &snp.report,
                vek: &snp.vek,
                ask: &snp.ask,
                ark: &snp.ark,
                crl: snp.crl.as_deref(),
            };
            let test_root = snp.test_root.then_some(&snp.ark[..]);
            Some(snp::verify(&evidence, &policy, test_root, time(case)))
        }
        Inputs::Tdx { .. } => None,
    }
}

fn check(case: &Case, judgement: &Judgement) -> Result<(), String> {
    let verdict = serde_json::to_value(judgement.verdict).unwrap();
    let failed: Vec<&str> = judgement.failed().map(CheckName::as_str).collect();
    let named =
        case.failing.is_empty() || case.failing.iter().any(|f| failed.contains(&f.as_str()));
    let all_passed = judgement.checks.iter().all(|check| check.result == Outcome::Passed);
    let consistent = (judgement.verdict == Verdict::Accept) == all_passed;
    if verdict == case.verdict.as_str() && named && consistent {
        Ok(())
    } else {
        Err(format!(
            "{}: {verdict}, failed {failed:?}; expected {} with {:?}\n{:#?}",
            case.id, case.verdict, case.failing, judgement.checks
        ))
    }
}

#[test]
fn every_case_gets_its_verdict() {
    let cases = cases().unwrap();
    assert!(cases.len() > 120, "only {} cases", cases.len());
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| judge(case).map(|judgement| check(case, &judgement)))
        .filter_map(Result::err)
        .collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
