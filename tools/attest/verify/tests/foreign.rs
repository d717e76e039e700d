//! Certificates whose names are hostile, and files that hold more than one certificate.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use casemate_test_support::evidence::{Inputs, SnpInputs, case, file};
use casemate_verify::snp::{self, SnpClaims, SnpEvidence, certificate_table};
use casemate_verify::{Judgement, SnpPolicy, Timestamp, Verdict, names};
use proptest::prelude::*;

fn synthetic(name: &str) -> Vec<u8> {
    file(&format!("synthetic/{name}")).unwrap()
}

/// A good report under the TEST root.
fn good() -> SnpInputs {
    match case("snp-synth-ok-v5").unwrap().inputs {
        Inputs::Snp(inputs) => inputs,
        Inputs::Tdx { .. } => unreachable!("an SEV-SNP case"),
    }
}

fn judge(inputs: &SnpInputs) -> Judgement<SnpClaims> {
    let SnpInputs { report, vek, ask, ark, .. } = inputs;
    let evidence = SnpEvidence { report, vek, ask, ark, crl: None };
    let at = Timestamp::parse("2026-11-22T00:00:00Z").unwrap();
    snp::verify(&evidence, &SnpPolicy::strict(), Some(&synthetic("ark.der")), at)
}

/// Every text of a judgement that may repeat what an input says.
fn texts<C>(judgement: &Judgement<C>) -> Vec<&str> {
    let details = judgement.checks.iter().map(|check| check.detail.as_str());
    details.chain(judgement.malformed.iter().map(String::as_str)).collect()
}

fn acts(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The certificate with a forged common name, in the place of each of the three.
fn with_forged(der: &[u8]) -> Vec<SnpInputs> {
    let as_vek = SnpInputs { vek: der.to_vec(), ..good() };
    let as_ask = SnpInputs { ask: der.to_vec(), ..good() };
    let as_ark = SnpInputs { ark: der.to_vec(), ..good() };
    let as_all = SnpInputs { vek: der.to_vec(), ask: der.to_vec(), ark: der.to_vec(), ..good() };
    vec![as_vek, as_ask, as_ark, as_all]
}

#[test]
fn a_name_cannot_clear_the_screen_and_accept() {
    let forged = synthetic("forged-words.der");
    let mut shown = false;
    for inputs in with_forged(&forged) {
        let judgement = judge(&inputs);
        assert_eq!(judgement.verdict, Verdict::Reject);
        for text in texts(&judgement) {
            assert!(!text.contains(acts), "{text:?}");
            shown |= text.contains("\\u{1b}");
        }
    }
    assert!(shown, "no check shows the name");
}

#[test]
fn cert_chain_gives_each_certificate_by_its_role() {
    let bundle = synthetic("cert_chain.pem");
    let both = SnpInputs { ask: bundle.clone(), ark: bundle.clone(), ..good() };
    let judgement = judge(&both);
    assert_eq!(judgement.verdict, Verdict::Accept, "{:#?}", judgement.checks);
    let single = good();
    let table = certificate_table(&single.vek, &single.ask, &single.ark, None).unwrap();
    assert_eq!(certificate_table(&single.vek, &bundle, &bundle, None).unwrap(), table);

    // Two certificates of one role are no answer of AMD's.
    let twice = [&bundle[..], &bundle].concat();
    for wrong in [twice, [&bundle[..], b"more"].concat()] {
        let judgement = judge(&SnpInputs { ask: wrong, ..good() });
        assert!(judgement.failed().any(|name| name == names::CERTIFICATE_PARSE));
    }
    // The bundle is no endorsement key.
    let judgement = judge(&SnpInputs { vek: bundle, ..good() });
    assert!(judgement.failed().any(|name| name == names::CERTIFICATE_PARSE));
}

/// `forged-words.der` with another common name, of as many bytes.
fn renamed(name: &str) -> Vec<u8> {
    let der = synthetic("forged-words.der");
    let old = b"x\n\x1b[2J\x1b[Haccept: every check was done and passed";
    let mut new = String::new();
    for character in name.chars().filter(|character| character.len_utf8() <= old.len()) {
        if new.len() + character.len_utf8() > old.len() {
            break;
        }
        new.push(character);
    }
    let new = [new.as_bytes(), &vec![b' '; old.len() - new.len()]].concat();
    let mut renamed = der.clone();
    let mut count = 0;
    for at in 0..der.len() - old.len() {
        if der[at..].starts_with(old) {
            renamed[at..at + old.len()].copy_from_slice(&new);
            count += 1;
        }
    }
    assert_eq!(count, 2, "subject and issuer");
    renamed
}

proptest! {
    // Each case verifies four chains of RSA keys.
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the name in a certificate is, no character of what is found about it acts on a
    /// terminal.
    #[test]
    fn details_are_printable_whatever_a_name_says(
        name in "(\\PC|[\\x00-\\x1f\\x7f-\u{9f}\u{200b}-\u{200f}\u{2028}-\u{202e}\"\\\\]){1,48}",
    ) {
        for inputs in with_forged(&renamed(&name)) {
            for text in texts(&judge(&inputs)) {
                prop_assert!(!text.contains(acts), "{:?}", text);
            }
        }
    }
}
