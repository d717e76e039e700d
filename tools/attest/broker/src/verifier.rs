//! Evidence judged with what the broker has beside it: certificates, revocation lists, collateral.

use std::cmp::Reverse;

use casemate_protocol::{Evidence, HASH_LEN};
use casemate_verify::azure::{self, AzureEvidence, AzureFiles, AzureHardware, AzurePolicy};
use casemate_verify::snp::{self, CertificateTable, SnpEvidence};
use casemate_verify::tdx::{self, TdxEvidence};
use casemate_verify::{Hex, Judgement, OneOrMany, SnpPolicy, TdxPolicy, Timestamp, Verdict};

use crate::evidence::GuestEvidence;

/// What vouches for processors. Certificates and lists are DER or PEM.
#[derive(Clone, Debug, Default)]
pub struct Endorsements {
    /// VCEK and VLEK certificates, for guests whose host gives none with the report.
    pub chip_certificates: Vec<Vec<u8>>,
    /// AMD's revocation lists. When there are any, only they count, whatever a host gives.
    pub revocation_lists: Vec<Vec<u8>>,
    /// Intel's collateral, one JSON object per kind of platform.
    pub collateral: Vec<Vec<u8>>,
    /// ASK and ARK of a TEST root. Evidence that it vouches for proves nothing.
    pub test_root: Option<(Vec<u8>, Vec<u8>)>,
}

/// Judges evidence.
#[derive(Clone, Debug, Default)]
pub struct Verifier {
    endorsements: Endorsements,
}

impl Verifier {
    /// A verifier with these endorsements beside AMD's and Intel's built-in roots.
    #[must_use]
    pub fn new(endorsements: Endorsements) -> Self {
        Verifier { endorsements }
    }

    /// Judges evidence at the time `at`, by a policy's text. Without a policy: is it genuine? In any
    /// case its REPORT_DATA has to be `report_data`; for Azure's guests, whose paravisor owns that field, the
    /// nonce of the TPM's quote has to be the hash at its beginning.
    ///
    /// Of several certificates the one of the chip that reports counts. Of several lists or collaterals
    /// those count with which the evidence is accepted; if there are none, those with which the fewest
    /// checks fail.
    #[must_use]
    pub fn judge(
        &self,
        evidence: &GuestEvidence,
        policy: Option<&str>,
        report_data: &[u8; 64],
        at: Timestamp,
    ) -> Judgement {
        let judgements = match evidence {
            GuestEvidence::Bare(evidence) => self.judge_bare(evidence, policy, report_data, at),
            GuestEvidence::Azure(files) => match azure_policy(policy, report_data) {
                Ok(policy) => self.judge_azure(files, &policy, at),
                Err(error) => vec![Judgement::policy_invalid(&error)],
            },
        };
        let best = judgements.into_iter().max_by_key(|judgement| {
            (judgement.verdict == Verdict::Accept, Reverse(judgement.failed().count()))
        });
        best.expect("each kind is judged at least once, with empty certificates if there are none")
    }

    fn judge_bare(
        &self,
        evidence: &Evidence,
        policy: Option<&str>,
        report_data: &[u8; 64],
        at: Timestamp,
    ) -> Vec<Judgement> {
        let json = policy.unwrap_or("{}").as_bytes();
        let report_data = Some(OneOrMany(vec![Hex(*report_data)]));
        match evidence {
            Evidence::Snp { report, certificates } => match SnpPolicy::from_json(json) {
                Ok(policy) => {
                    self.judge_snp(report, certificates, &SnpPolicy { report_data, ..policy }, at)
                }
                Err(error) => vec![Judgement::policy_invalid(&error)],
            },
            Evidence::Tdx { quote, event_log } => match TdxPolicy::from_json(json) {
                Ok(policy) => {
                    let policy = TdxPolicy { report_data, ..policy };
                    self.judge_tdx(quote, event_log.as_deref(), &policy, at)
                }
                Err(error) => vec![Judgement::policy_invalid(&error)],
            },
        }
    }

    fn judge_azure(
        &self,
        files: &AzureFiles,
        policy: &AzurePolicy,
        at: Timestamp,
    ) -> Vec<Judgement> {
        let Endorsements { chip_certificates, revocation_lists, collateral, test_root } =
            &self.endorsements;
        let evidence = files.evidence();
        let known: Vec<&[u8]> =
            evidence.vek.into_iter().chain(chip_certificates.iter().map(Vec::as_slice)).collect();
        let (vek, beside) = match files.hardware() {
            Some(AzureHardware::Snp(report)) => {
                (snp::choose_vek(report, &known).or(evidence.vek), revocation_lists)
            }
            _ => (None, collateral),
        };
        let test_root = test_root.as_ref().map(|(ask, ark)| (ask.as_slice(), ark.as_slice()));
        let issuers = snp::chain_for(vek.unwrap_or_default()).or(test_root);
        let root = test_root.map(|(_, ark)| ark);
        let mut beside: Vec<Option<&[u8]>> =
            beside.iter().map(|file| Some(file.as_slice())).collect();
        if beside.is_empty() {
            beside.push(None);
        }
        // Of a list and collateral the hardware's own kind is read, the other passed over.
        let judge = |file| {
            let evidence = AzureEvidence { vek, issuers, crl: file, collateral: file, ..evidence };
            azure::verify(&evidence, policy, root, at).erase()
        };
        beside.into_iter().map(judge).collect()
    }

    fn judge_snp(
        &self,
        report: &[u8],
        table: &[u8],
        policy: &SnpPolicy,
        at: Timestamp,
    ) -> Vec<Judgement> {
        let Endorsements { chip_certificates, revocation_lists, test_root, .. } =
            &self.endorsements;
        // The table comes from the host: if it cannot be read, the broker's own certificates do.
        let table = CertificateTable::parse(table).unwrap_or_default();
        let mut veks: Vec<&[u8]> = table.vcek.into_iter().chain(table.vlek).collect();
        veks.extend(chip_certificates.iter().map(Vec::as_slice));
        // Without one of this chip any will do: its failed checks say what is wrong.
        let vek = snp::choose_vek(report, &veks).or(veks.first().copied()).unwrap_or_default();
        let mut lists: Vec<Option<&[u8]>> =
            revocation_lists.iter().map(|list| Some(list.as_slice())).collect();
        if lists.is_empty() {
            lists.push(table.crl);
        }
        let test_root = test_root.as_ref().map(|(ask, ark)| (ask.as_slice(), ark.as_slice()));
        let chain = snp::chain_for(vek).or(test_root).or(table.ask.zip(table.ark));
        let (ask, ark) = chain.unwrap_or_default();
        let root = test_root.map(|(_, ark)| ark);
        let judge = |crl| {
            snp::verify(&SnpEvidence { report, vek, ask, ark, crl }, policy, root, at).erase()
        };
        lists.into_iter().map(judge).collect()
    }

    fn judge_tdx(
        &self,
        quote: &[u8],
        event_log: Option<&[u8]>,
        policy: &TdxPolicy,
        at: Timestamp,
    ) -> Vec<Judgement> {
        let mut collateral: Vec<Option<&[u8]>> =
            self.endorsements.collateral.iter().map(|json| Some(json.as_slice())).collect();
        if collateral.is_empty() {
            collateral.push(None);
        }
        collateral
            .into_iter()
            .map(|collateral| {
                tdx::verify(&TdxEvidence { quote, collateral, event_log }, policy, None, at).erase()
            })
            .collect()
    }
}

fn azure_policy(
    policy: Option<&str>,
    report_data: &[u8; 64],
) -> Result<AzurePolicy, casemate_verify::PolicyError> {
    let mut policy = match policy {
        Some(text) => AzurePolicy::from_json(text.as_bytes())?,
        None => AzurePolicy::genuine(),
    };
    policy.tpm.nonce = report_data.get(..HASH_LEN).map(<[u8]>::to_vec);
    Ok(policy)
}
