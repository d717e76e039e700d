//! The certificates of a chip, put together for a host to hand to its guests.

use super::chain::check_links;
use super::{CertificateTable, SigningKey, vek};
use crate::x509::{Certificate, RevocationList, Role};

/// Why certificates do not make a table.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// One cannot be read.
    #[error("the {which}: {why}")]
    Malformed {
        /// Which one.
        which: &'static str,
        /// Why.
        why: String,
    },
    /// They do not belong together.
    #[error("{0}; is each file the one that it is given as?")]
    Chain(String),
}

/// The certificate table (see [`CertificateTable`]) of a key, what issued it, the root, and the root's
/// revocation list: DER or PEM each. Verifiers find the chain in it that [`verify`](super::verify)
/// wants; whether the root is AMD's they judge themselves.
///
/// # Errors
/// See [`BundleError`].
pub fn certificate_table(
    vek: &[u8],
    ask: &[u8],
    ark: &[u8],
    crl: Option<&[u8]>,
) -> Result<Vec<u8>, BundleError> {
    let read = |which, parsed: Result<Certificate, String>| {
        parsed.map_err(|why| BundleError::Malformed { which, why })
    };
    let vek = read("endorsement key certificate", Certificate::parse(vek))?;
    let ask = read("ASK certificate", Certificate::parse_role(ask, Role::Intermediate))?;
    let ark = read("ARK certificate", Certificate::parse_role(ark, Role::Root))?;
    check_links(&vek, &ask, &ark).map_err(BundleError::Chain)?;
    let malformed = |why| BundleError::Malformed { which: "revocation list", why };
    let crl = crl.map(RevocationList::parse).transpose().map_err(malformed)?;
    if let Some(crl) = &crl {
        crl.check_issuer(&ark).and_then(|_| crl.check_signature(&ark)).map_err(malformed)?;
    }
    let mut table = CertificateTable {
        ask: Some(&ask.der),
        ark: Some(&ark.der),
        crl: crl.as_ref().map(|crl| &crl.der[..]),
        ..CertificateTable::default()
    };
    // Of one kind or the other: the links were checked.
    match vek::kind(&vek) {
        Some(SigningKey::Vlek) => table.vlek = Some(&vek.der),
        _ => table.vcek = Some(&vek.der),
    }
    Ok(table.to_bytes())
}

#[cfg(test)]
mod tests {
    use casemate_test_support::evidence::file;

    use super::*;

    fn synthetic(name: &str) -> Vec<u8> {
        file(&format!("synthetic/{name}.der")).unwrap()
    }

    #[test]
    fn a_chain_becomes_a_table() {
        let [vcek, vlek, ask, asvk, ark, crl] =
            ["vcek", "vlek", "ask", "asvk", "ark", "crl-empty"].map(synthetic);
        let bytes = certificate_table(&vcek, &ask, &ark, Some(&crl)).unwrap();
        let table = CertificateTable::parse(&bytes).unwrap();
        assert_eq!((table.vcek, table.ask, table.ark), (Some(&*vcek), Some(&*ask), Some(&*ark)));
        assert_eq!((table.crl, table.vlek), (Some(&*crl), None));
        let bytes = certificate_table(&vlek, &asvk, &ark, None).unwrap();
        let table = CertificateTable::parse(&bytes).unwrap();
        assert_eq!((table.vlek, table.ask), (Some(&*vlek), Some(&*asvk)));
        assert_eq!((table.vcek, table.crl), (None, None));
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let [vcek, rogue, ask, asvk, ark, badsig] =
            ["vcek", "vcek_rogue", "ask", "asvk", "ark", "crl-badsig"].map(synthetic);
        for (vek, ask, ark, crl, words) in [
            (&ask, &vcek, &ark, None, "the ASK certificate"),
            (&vcek, &ark, &ask, None, "the ARK certificate"),
            (&vcek, &asvk, &ark, None, "the VEK certificate"),
            (&rogue, &ask, &ark, None, "the VEK certificate"),
            (&vcek, &ask, &ark, Some(&badsig[..]), "the revocation list"),
            (&vcek, &ask, &badsig, None, "the ARK certificate: not an X.509 certificate"),
        ] {
            let error = certificate_table(vek, ask, ark, crl).unwrap_err().to_string();
            assert!(error.starts_with(words), "{error}");
        }
    }
}
