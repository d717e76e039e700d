//! What Intel publishes about platforms: TCB information, enclave identity, revocation lists.
//!
//! `dcap-qvl` judges the platform by it. Dates, identities and signatures are checked here as well, so
//! that each has its name in the result, and none depends on one implementation alone.

use casemate_foreign::Foreign;
use dcap_qvl::QuoteCollateralV3;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde::Deserialize;

use crate::judgement::Ledger;
use crate::names;
use crate::time::Timestamp;
use crate::x509::{Certificate, Dates, PRIME256V1, RevocationList, parse_pem_chain};

use super::checks;
use super::platform::{PckChain, check_intel_root};

const SIGNER: &str = "Intel SGX TCB Signing";

/// The parts of TCB information and enclave identity that are read here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    id: String,
    issue_date: String,
    next_update: String,
    fmspc: Option<String>,
}

/// Collateral, parsed.
pub(crate) struct Collateral {
    /// As `dcap-qvl` takes it.
    pub(crate) raw: QuoteCollateralV3,
    tcb_info: Document,
    qe_identity: Document,
    tcb_signer: [Certificate; 2],
    qe_signer: [Certificate; 2],
    root_crl: RevocationList,
    pck_crl: RevocationList,
}

impl Collateral {
    /// Reads collateral as JSON, in the form of Intel's `sgx_ql_qve_collateral_t`.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        if json.len() > crate::MAX_INPUT {
            return Err(format!("{} bytes, at most {} are read", json.len(), crate::MAX_INPUT));
        }
        let mut raw: QuoteCollateralV3 =
            serde_json::from_slice(json).map_err(|error| format!("not collateral: {error}"))?;
        // The quote's own chain counts; another one beside it could only differ from it.
        raw.pck_certificate_chain = None;
        let document = |name: &str, text: &str| -> Result<Document, String> {
            serde_json::from_str(text).map_err(|error| format!("{name}: {error}"))
        };
        let chain = |name: &str, pem: &str| -> Result<[Certificate; 2], String> {
            let chain = parse_pem_chain(pem.as_bytes()).map_err(|why| format!("{name}: {why}"))?;
            let count = chain.len();
            chain.try_into().map_err(|_| format!("{name}: {count} certificates instead of 2"))
        };
        Ok(Collateral {
            tcb_info: document("tcb_info", &raw.tcb_info)?,
            qe_identity: document("qe_identity", &raw.qe_identity)?,
            tcb_signer: chain("tcb_info_issuer_chain", &raw.tcb_info_issuer_chain)?,
            qe_signer: chain("qe_identity_issuer_chain", &raw.qe_identity_issuer_chain)?,
            root_crl: RevocationList::parse(&raw.root_ca_crl)
                .map_err(|why| format!("root_ca_crl: {why}"))?,
            pck_crl: RevocationList::parse(&raw.pck_crl)
                .map_err(|why| format!("pck_crl: {why}"))?,
            raw,
        })
    }

    /// Records what needs no signature: dates, identities, the platform's model, revocation.
    pub(crate) fn check_contents(
        &self,
        ledger: &mut Ledger,
        chain: Option<&PckChain>,
        at: Timestamp,
    ) {
        self.check_dates(ledger, at);
        let named = |found: &str, wanted: &str| {
            if found == wanted {
                Ok(found.to_owned())
            } else {
                Err(format!("about \"{}\", not \"{wanted}\"", Foreign(found)))
            }
        };
        ledger.record(checks::TCB_INFO_ID, named(&self.tcb_info.id, "TDX"));
        ledger.record(checks::QE_IDENTITY_ID, named(&self.qe_identity.id, "TD_QE"));
        let Some(chain) = chain else { return };
        ledger.record(checks::FMSPC, self.check_fmspc(chain));
        ledger.record(
            names::CRL_ISSUER,
            self.root_crl
                .check_issuer(&chain.root)
                .and_then(|_| self.pck_crl.check_issuer(&chain.issuer)),
        );
        let listed = [
            (&self.root_crl, &chain.issuer),
            (&self.root_crl, &chain.root),
            (&self.root_crl, &self.tcb_signer[0]),
            (&self.root_crl, &self.qe_signer[0]),
            (&self.pck_crl, &chain.leaf),
        ];
        let revoked = listed.iter().find(|(list, certificate)| list.lists(certificate));
        ledger.record(
            names::REVOKED,
            match revoked {
                None => Ok("no certificate is on a revocation list".into()),
                Some((_, one)) => Err(format!("\"{}\" is revoked", one.shown_name())),
            },
        );
    }

    fn check_fmspc(&self, chain: &PckChain) -> Result<String, String> {
        let platform = dcap_qvl::intel::parse_pck_extension(&chain.leaf.der).map_err(|error| {
            format!("the PCK certificate does not name the platform: {error:#}")
        })?;
        let found = crate::hex::text(&platform.fmspc);
        match &self.tcb_info.fmspc {
            Some(about) if about.eq_ignore_ascii_case(&found) => Ok(found),
            about => Err(format!(
                "the platform is {found}, the TCB information is about {}",
                Foreign(about.as_deref().unwrap_or("none"))
            )),
        }
    }

    fn check_dates(&self, ledger: &mut Ledger, at: Timestamp) {
        let mut first_end: Option<Timestamp> = None;
        let mut note = |name: &str, dates: Dates, crl: bool| {
            first_end = Some(first_end.map_or(dates.end, |first| first.min(dates.end)));
            if !dates.begun {
                let detail = format!("{name} begins at {}; it is {at}", dates.begin);
                ledger.record(names::NOT_YET_VALID, Err(detail));
            }
            if dates.ended {
                let detail = format!("{name} ended at {}; it is {at}", dates.end);
                ledger.record(checks::COLLATERAL_EXPIRED, Err(detail.clone()));
                if crl {
                    ledger.record(names::CRL_EXPIRED, Err(detail));
                }
            }
        };
        note("the root's revocation list", self.root_crl.dates(at), true);
        note("the platforms' revocation list", self.pck_crl.dates(at), true);
        for certificate in self.tcb_signer.iter().chain(&self.qe_signer) {
            note(&certificate.shown_name(), certificate.dates(at), false);
        }
        let mut unreadable = Vec::new();
        for (name, document) in
            [("the TCB information", &self.tcb_info), ("the enclave identity", &self.qe_identity)]
        {
            match (Timestamp::parse(&document.issue_date), Timestamp::parse(&document.next_update))
            {
                (Ok(begin), Ok(end)) => {
                    note(name, Dates { begin, end, begun: begin <= at, ended: at > end }, false);
                }
                (Err(error), _) | (_, Err(error)) => unreadable.push(format!("{name}: {error}")),
            }
        }
        for why in unreadable {
            ledger.record(checks::COLLATERAL_EXPIRED, Err(why));
        }
        let end = first_end.unwrap_or(at);
        ledger.record(checks::COLLATERAL_EXPIRED, Ok(format!("good until {end}")));
        ledger.record(names::CRL_EXPIRED, Ok("both revocation lists are current".into()));
    }

    /// Records the signatures, one by one.
    pub(crate) fn check_signatures(&self, ledger: &mut Ledger, chain: Option<&PckChain>) {
        let tcb_info = check_document(
            "TCB information",
            &self.tcb_signer,
            &self.raw.tcb_info,
            &self.raw.tcb_info_signature,
        );
        let qe_identity = check_document(
            "enclave identity",
            &self.qe_signer,
            &self.raw.qe_identity,
            &self.raw.qe_identity_signature,
        );
        ledger.record(checks::COLLATERAL_SIGNATURE, tcb_info);
        ledger.record(checks::COLLATERAL_SIGNATURE, qe_identity);
        if let Some(chain) = chain {
            ledger.record(names::CRL_SIGNATURE, self.root_crl.check_signature(&chain.root));
            ledger.record(names::CRL_SIGNATURE, self.pck_crl.check_signature(&chain.issuer));
        }
    }
}

/// That Intel's signing key, certified by Intel's root, signed exactly this text.
fn check_document(
    name: &str,
    [signer, root]: &[Certificate; 2],
    text: &str,
    signature: &[u8],
) -> Result<String, String> {
    check_intel_root(root)?;
    signer
        .check_issued_by(root)
        .and_then(|()| signer.check_leaf())
        .map_err(|why| format!("the certificate of the {name}'s signer {why}"))?;
    if signer.common_name() != SIGNER {
        return Err(format!("\"{}\" may not sign {name}", signer.shown_name()));
    }
    let key = signer.ec_point(PRIME256V1).ok_or("the signer's key is not a P-256 key")?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key)
        .verify(text.as_bytes(), signature)
        .map(|()| format!("Intel signed the {name}"))
        .map_err(|_| format!("Intel did not sign this text of the {name}"))
}
