//! How long a judgement takes, as a ratio to the signature operations that it cannot do without.
//!
//! Prints one JSON object. Times are the smallest of many short runs, in microseconds: noise only
//! ever adds. The bare operations are ring's, on keys and messages of the same evidence.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on must stop")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use casemate_test_support::evidence::file;
use casemate_verify::snp::{self, SnpEvidence};
use casemate_verify::tdx::{self, TdxEvidence};
use casemate_verify::{SnpPolicy, TdxPolicy, Timestamp, Verdict};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1,
    ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _,
    RSA_PSS_2048_8192_SHA384, UnparsedPublicKey, VerificationAlgorithm,
};
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};

/// The most a judgement may take, in microseconds.
const REPORT_BUDGET: f64 = 1500.0;
const QUOTE_BUDGET: f64 = 2000.0;

fn main() {
    let rsa = rsa();
    let p384 = ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1);
    let p256 = ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P256_SHA256_ASN1);
    let report = report();
    let quote = quote();
    // ARK, ASK and VEK are each signed with RSA-4096, the report with P-384.
    let report_floor = 3.0 * rsa + p384;
    // Root and platform list, platform's issuer, platform, signer, two documents, enclave, quote.
    let quote_floor = 9.0 * p256;
    let line = |name: &str, time: f64, floor: f64, budget: f64| {
        format!(
            "\"{name}\": {{\"us\": {time:.1}, \"bare_signatures_us\": {floor:.1}, \
             \"ratio\": {:.3}, \"budget_us\": {budget:.0}, \"within_budget\": {}}}",
            time / floor,
            time <= budget
        )
    };
    println!(
        "{{{}, {}, \"rsa4096_pss_verify_us\": {rsa:.1}, \"p384_verify_us\": {p384:.1}, \
         \"p256_verify_us\": {p256:.1}}}",
        line("attest_snp_report_with_chain", report, report_floor, REPORT_BUDGET),
        line("attest_tdx_quote_with_collateral", quote, quote_floor, QUOTE_BUDGET),
    );
}

/// The smallest time of one run, in microseconds, over about half a second.
fn smallest(mut run: impl FnMut()) -> f64 {
    run();
    let end = Instant::now() + Duration::from_millis(500);
    let mut smallest = Duration::MAX;
    while Instant::now() < end {
        let start = Instant::now();
        run();
        smallest = smallest.min(start.elapsed());
    }
    smallest.as_secs_f64() * 1e6
}

/// One check of a certificate's RSA-4096 signature.
fn rsa() -> f64 {
    let root = Certificate::from_der(&file("snp/roots/turin-ark.der").unwrap()).unwrap();
    let tbs = root.tbs_certificate().to_der().unwrap();
    let key = root.tbs_certificate().subject_public_key_info().subject_public_key.raw_bytes();
    let signature = root.signature().raw_bytes();
    smallest(|| {
        let key = UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, key);
        key.verify(black_box(&tbs), signature).unwrap();
    })
}

/// One check of an ECDSA signature.
fn ecdsa(
    signing: &'static EcdsaSigningAlgorithm,
    algorithm: &'static dyn VerificationAlgorithm,
) -> f64 {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(signing, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(signing, document.as_ref(), &random).unwrap();
    let message = [0x5a; 672];
    let signature = pair.sign(&random, &message).unwrap();
    smallest(|| {
        let key = UnparsedPublicKey::new(algorithm, pair.public_key());
        key.verify(black_box(&message), signature.as_ref()).unwrap();
    })
}

fn report() -> f64 {
    let read = |name: &str| file(name).unwrap();
    let report = read("snp/oak-turin_oc/report.bin");
    let vek = read("snp/oak-turin_oc/vek.der");
    let (ask, ark) = (read("snp/roots/turin-ask.der"), read("snp/roots/turin-ark.der"));
    let evidence = SnpEvidence { report: &report, vek: &vek, ask: &ask, ark: &ark, crl: None };
    let (policy, at) = (SnpPolicy::strict(), Timestamp(1_795_305_600));
    smallest(|| {
        let judgement = snp::verify(black_box(&evidence), &policy, None, at);
        assert_eq!(judgement.verdict, Verdict::Accept);
    })
}

fn quote() -> f64 {
    let quote = file("tdx/qvl-v4/quote.bin").unwrap();
    let collateral = file("tdx/qvl-v4/collateral.json").unwrap();
    let evidence = TdxEvidence { quote: &quote, collateral: Some(&collateral), event_log: None };
    let (policy, at) = (TdxPolicy::strict(), Timestamp(1_751_624_655));
    smallest(|| {
        let judgement = tdx::verify(black_box(&evidence), &policy, None, at);
        assert_eq!(judgement.verdict, Verdict::Accept);
    })
}
