//! The `sev` crate as a second opinion: it accepts every genuine report that is accepted here, and
//! refuses nothing that is. The other way round it is too lenient: it checks a signature over its own
//! encoding of the report, so that changed reserved bytes pass.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use casemate_test_support::evidence::{Inputs, SnpInputs, cases};
use casemate_verify::snp::{self, CertificateTable, SnpEvidence};
use casemate_verify::{SnpPolicy, Timestamp, Verdict};
use sev::certs::snp::{Chain, Verifiable as _};
use sev::firmware::guest::AttestationReport;
use sev::firmware::host::{CertTableEntry, CertType};
use sev::parser::ByteParser as _;

fn sev_accepts(snp: &SnpInputs) -> bool {
    let Ok(chain) = Chain::from_der(&snp.ark, &snp.ask, &snp.vek) else { return false };
    let Ok(report) = AttestationReport::from_bytes(&snp.report) else { return false };
    (&chain, &report).verify().is_ok()
}

fn accepted(snp: &SnpInputs) -> bool {
    let evidence =
        SnpEvidence { report: &snp.report, vek: &snp.vek, ask: &snp.ask, ark: &snp.ark, crl: None };
    let test_root = snp.test_root.then_some(&snp.ark[..]);
    // A time at which every certificate was valid, the VLEK's too.
    let at = Timestamp::parse("2025-11-22T00:00:00Z").unwrap();
    snp::verify(&evidence, &SnpPolicy::default(), test_root, at).verdict == Verdict::Accept
}

#[test]
fn what_is_accepted_here_the_sev_crate_accepts() {
    let mut both = 0;
    for case in cases().unwrap() {
        let Inputs::Snp(snp) = &case.inputs else { continue };
        if accepted(snp) {
            assert!(sev_accepts(snp), "{}", case.id);
            both += 1;
        }
    }
    assert!(both > 10, "only {both} cases were accepted by both");
}

#[test]
fn certificate_tables_of_the_sev_crate_are_read() {
    let entries = [CertType::VCEK, CertType::VLEK, CertType::ASK, CertType::ARK, CertType::CRL]
        .map(|kind| CertTableEntry { data: kind.to_string().into_bytes(), cert_type: kind });
    let bytes = CertTableEntry::cert_table_to_vec_bytes(&entries).unwrap();
    let table = CertificateTable::parse(&bytes).unwrap();
    for (entry, found) in
        entries.iter().zip([table.vcek, table.vlek, table.ask, table.ark, table.crl])
    {
        assert_eq!(found, Some(&entry.data[..]), "{}", entry.cert_type);
    }
}

#[test]
fn the_sev_crate_reads_certificate_tables_from_here() {
    let file = |name: &str| {
        casemate_test_support::evidence::file(&format!("synthetic/{name}.der")).unwrap()
    };
    let [vcek, ask, ark, crl] = ["vcek", "ask", "ark", "crl-empty"].map(file);
    let mut bytes = snp::certificate_table(&vcek, &ask, &ark, Some(&crl)).unwrap();
    let entries = CertTableEntry::vec_bytes_to_cert_table(&mut bytes).unwrap();
    let expected =
        [(CertType::VCEK, vcek), (CertType::ASK, ask), (CertType::ARK, ark), (CertType::CRL, crl)];
    assert_eq!(entries.len(), expected.len());
    for (entry, (kind, data)) in entries.into_iter().zip(expected) {
        assert_eq!((entry.cert_type, entry.data), (kind, data));
    }
}
