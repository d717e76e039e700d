//! What AMD puts into endorsement key certificates (VCEK and VLEK certificate and KDS
//! specification, "X.509v3 extensions").

use x509_cert::der::Decode as _;
use x509_cert::der::asn1::{Ia5StringRef, ObjectIdentifier, UintRef};

use super::SigningKey;
use super::product::{Product, Tcb};
use super::report::Report;
use crate::x509::Certificate;

const PRODUCT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.2");
const BOOT_LOADER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
const TEE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
const SNP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
const MICROCODE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
const FMC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.9");
const HWID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");

/// The kind of key, by the subject's common name.
pub(crate) fn kind(vek: &Certificate) -> Option<SigningKey> {
    match vek.common_name().as_str() {
        "SEV-VCEK" => Some(SigningKey::Vcek),
        "SEV-VLEK" => Some(SigningKey::Vlek),
        _ => None,
    }
}

/// The certificate, of several (DER or PEM), of the key that signed a report: the one that names the
/// report's chip (VCEK) or is a provider's (VLEK), as the report says; of several such the one that was
/// issued for its TCB. `None` when there is none. Nothing is verified.
#[must_use]
pub fn choose_vek<'a>(report: &[u8], certificates: &[&'a [u8]]) -> Option<&'a [u8]> {
    let report = Report::parse(report)?;
    let claimed = SigningKey::of(report)?;
    let mut best = None;
    for der in certificates {
        let Ok(vek) = Certificate::parse(der) else { continue };
        let Some(product) = product(&vek).filter(|_| kind(&vek) == Some(claimed)) else { continue };
        let used = report.chip_id.get(..product.chip_id_len());
        if claimed == SigningKey::Vcek && hwid(&vek) != used {
            continue;
        }
        let reported = Tcb::from_bytes(report.reported_tcb, product);
        if tcb(&vek, product).is_ok_and(|certified| certified == reported) {
            return Some(der);
        }
        best = best.or(Some(*der));
    }
    best
}

/// The product name's text, such as `Milan-B0`.
pub(crate) fn product_name(vek: &Certificate) -> Option<String> {
    vek.extension(PRODUCT_NAME)
        .and_then(|der| Ia5StringRef::from_der(der).ok())
        .map(|name| name.as_str().to_owned())
}

/// The product.
pub(crate) fn product(vek: &Certificate) -> Option<Product> {
    Product::from_name(&product_name(vek)?)
}

/// The TCB that the certificate was issued for; every component of the product must be there.
pub(crate) fn tcb(vek: &Certificate, product: Product) -> Result<Tcb, String> {
    let component = |oid: ObjectIdentifier| {
        vek.extension(oid)
            .and_then(|der| UintRef::from_der(der).ok())
            .and_then(|number| match number.as_bytes() {
                [byte] => Some(*byte),
                _ => None,
            })
            .ok_or_else(|| format!("the certificate has no security version under {oid}"))
    };
    Ok(Tcb {
        bl: component(BOOT_LOADER)?,
        tee: component(TEE)?,
        snp: component(SNP)?,
        ucode: component(MICROCODE)?,
        fmc: match product {
            Product::Milan | Product::Genoa => None,
            Product::Turin => Some(component(FMC)?),
        },
    })
}

/// The chip's identifier: raw bytes, not DER.
pub(crate) fn hwid(vek: &Certificate) -> Option<&[u8]> {
    vek.extension(HWID)
}
