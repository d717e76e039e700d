//! Every case of the evidence folder gets the verdict that its manifest states.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use casemate_test_support::evidence::{Case, Inputs, cases};
use casemate_verify::snp::{self, SnpEvidence};
use casemate_verify::tdx::{self, TdxEvidence};
use casemate_verify::{CheckName, Judgement, Outcome, SnpPolicy, TdxPolicy, Timestamp, Verdict};
use serde_json::Value;

fn time(case: &Case) -> Timestamp {
    match &case.at {
        Some(Value::String(text)) => Timestamp::parse(text).unwrap(),
        Some(Value::Number(seconds)) => Timestamp(seconds.as_u64().unwrap()),
        // A time at which every certificate of the cases without one was valid.
        _ => Timestamp::parse("2026-11-22T00:00:00Z").unwrap(),
    }
}

fn judge(case: &Case) -> Judgement {
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
            snp::verify(&evidence, &policy, test_root, time(case)).erase()
        }
        Inputs::Tdx { quote, collateral } => {
            let collateral = collateral.as_ref().map(ToString::to_string);
            let evidence = TdxEvidence {
                quote,
                collateral: collateral.as_deref().map(str::as_bytes),
                event_log: None,
            };
            tdx::verify(&evidence, &TdxPolicy::strict(), None, time(case)).erase()
        }
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
    let wrong: Vec<String> =
        cases.iter().filter_map(|case| check(case, &judge(case)).err()).collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn collateral_that_has_ended_accepts_nothing() {
    for id in ["tdx-qvl-v4", "tdx-flashbots-gcp"] {
        let mut case = casemate_test_support::evidence::case(id).unwrap();
        let good = time(&case).0;
        case.at = Some((good + 90 * 86400).into());
        case.verdict = "reject".into();
        case.failing = vec!["collateral-expired".into()];
        check(&case, &judge(&case)).unwrap();
    }
}

#[test]
fn event_logs_give_the_registers_of_genuine_quotes() {
    for (folder, log, registers) in [
        ("gotdx-cos113", "ccel_data.dat", 4),
        ("dstack-64g", "eventlog.json", 3),
        ("dstack-2g", "eventlog.json", 3),
    ] {
        let quote =
            casemate_test_support::evidence::file(&format!("tdx/{folder}/quote.bin")).unwrap();
        let log = casemate_test_support::evidence::file(&format!("tdx/{folder}/{log}")).unwrap();
        let replayed = casemate_verify::rtmr::replay(&log).unwrap();
        // Version 4: the TD report begins at 48, its registers at 328.
        let in_quote: Vec<&[u8]> = quote[48 + 328..].chunks(48).take(registers).collect();
        assert_eq!(in_quote, replayed.iter().take(registers).collect::<Vec<_>>(), "{folder}");
    }
}
