//! No changed byte of genuine evidence is accepted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use casemate_test_support::evidence::{Inputs, SnpInputs, case};
use casemate_verify::snp::{self, SIGNED_LEN, SnpEvidence};
use casemate_verify::tdx::{self, TdxEvidence};
use casemate_verify::{SnpPolicy, TdxPolicy, Timestamp, Verdict};
use proptest::prelude::*;

fn snp_inputs(id: &str) -> SnpInputs {
    match case(id).unwrap().inputs {
        Inputs::Snp(snp) => snp,
        Inputs::Tdx { .. } => unreachable!(),
    }
}

/// The most lenient policy: only what makes a report genuine counts.
fn snp_verdict(snp: &SnpInputs) -> Verdict {
    let evidence =
        SnpEvidence { report: &snp.report, vek: &snp.vek, ask: &snp.ask, ark: &snp.ark, crl: None };
    let at = Timestamp::parse("2026-11-22T00:00:00Z").unwrap();
    snp::verify(&evidence, &SnpPolicy::default(), None, at).verdict
}

fn tdx_inputs() -> (Vec<u8>, String) {
    match case("tdx-qvl-v4").unwrap().inputs {
        Inputs::Tdx { quote, collateral } => (quote, collateral.unwrap().to_string()),
        Inputs::Snp(_) => unreachable!(),
    }
}

fn tdx_verdict(quote: &[u8], collateral: &str) -> Verdict {
    let collateral = Some(collateral.as_bytes());
    let evidence = TdxEvidence { quote, collateral, event_log: None };
    tdx::verify(&evidence, &TdxPolicy::default(), None, Timestamp(1_751_624_655)).verdict
}

#[test]
fn every_signed_byte_of_a_report_counts() {
    for id in ["snp-dstack-milan", "snp-oak-genoa_oc", "snp-oak-turin_oc"] {
        let mut snp = snp_inputs(id);
        assert_eq!(snp_verdict(&snp), Verdict::Accept, "{id}");
        for at in 0..SIGNED_LEN {
            for mask in [1, 0x80] {
                snp.report[at] ^= mask;
                assert_eq!(snp_verdict(&snp), Verdict::Reject, "{id}: byte {at:#x} mask {mask:#x}");
                snp.report[at] ^= mask;
            }
        }
    }
}

#[test]
fn every_byte_of_a_reports_signature_counts() {
    let mut snp = snp_inputs("snp-oak-turin_oc");
    for at in SIGNED_LEN..snp.report.len() {
        snp.report[at] ^= 1;
        assert_eq!(snp_verdict(&snp), Verdict::Reject, "byte {at:#x}");
        snp.report[at] ^= 1;
    }
}

#[test]
fn every_signed_byte_of_a_quote_counts() {
    let (mut quote, collateral) = tdx_inputs();
    assert_eq!(tdx_verdict(&quote, &collateral), Verdict::Accept);
    // Header and body, their signature and key, and the quoting enclave's report and signature.
    let signed = 48 + 584;
    let end = signed + 4 + 64 + 64 + 6 + 384 + 64;
    for at in 0..end {
        quote[at] ^= 1;
        assert_eq!(tdx_verdict(&quote, &collateral), Verdict::Reject, "byte {at:#x}");
        quote[at] ^= 1;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_change_of_the_endorsement_certificate_is_accepted(at in 0_usize..1347, mask in 1_u8..) {
        let mut snp = snp_inputs("snp-oak-genoa_oc");
        snp.vek[at] ^= mask;
        prop_assert_eq!(snp_verdict(&snp), Verdict::Reject);
    }

    #[test]
    fn no_change_of_several_bytes_of_a_report_is_accepted(
        changes in proptest::collection::btree_map(0_usize..1184, 1_u8.., 1..8),
    ) {
        let mut snp = snp_inputs("snp-oak-milan_oc_release");
        for (at, mask) in changes {
            snp.report[at] ^= mask;
        }
        prop_assert_eq!(snp_verdict(&snp), Verdict::Reject);
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert_eq!(tdx_verdict(&bytes, "{}"), Verdict::Reject);
        let mut snp = snp_inputs("snp-oak-genoa_oc");
        snp.report = bytes;
        prop_assert_eq!(snp_verdict(&snp), Verdict::Reject);
    }
}
