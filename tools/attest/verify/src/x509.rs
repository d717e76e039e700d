//! Certificates and revocation lists, with signatures checked over the bytes as they were received.

use std::fmt;

use casemate_foreign::Foreign;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, UnparsedPublicKey,
};
use x509_cert::certificate::{CertificateInner, Rfc5280};
use x509_cert::crl::CertificateList;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier, UintRef};
use x509_cert::der::{self, Decode, Encode as _, Reader as _, SliceReader};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::name::Name;
use x509_cert::spki::AlgorithmIdentifierOwned;

use crate::time::Timestamp;

const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const RSASSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const SHA256_WITH_RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const ECDSA_WITH_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
pub(crate) const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
pub(crate) const PRIME256V1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");

/// RSASSA-PSS-params (RFC 8017, A.2.3) with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes.
const PSS_SHA384: &[u8] = b"\x30\x34\
    \xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
    \xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\
    \x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
    \xa2\x03\x02\x01\x30";
/// What AMD's roots append: the default trailer field, spelled out.
const PSS_TRAILER: &[u8] = b"\xa3\x03\x02\x01\x01";

/// A name's common name, or nothing readable.
fn common_name(name: &Name) -> String {
    match name.common_name() {
        Ok(Some(name)) => name.value().into_owned(),
        Ok(None) | Err(_) => String::new(),
    }
}

/// A name's common name for messages: whoever made the certificate chose it.
fn shown(name: &Name) -> String {
    Foreign(&common_name(name)).to_string()
}

/// A certificate. Serial number 0 is allowed: AMD's endorsement keys have it.
pub(crate) struct Certificate {
    pub(crate) der: Vec<u8>,
    parsed: CertificateInner<Rfc5280>,
}

impl Certificate {
    /// Reads exactly one certificate, DER or PEM.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let der = der_of(bytes, "CERTIFICATE")?;
        let parsed = CertificateInner::<Rfc5280>::from_der(&der)
            .map_err(|error| format!("not an X.509 certificate: {error}"))?;
        let certificate = Certificate { der, parsed };
        let extensions = certificate.extensions();
        for (at, extension) in extensions.iter().enumerate() {
            if extensions.iter().skip(at + 1).any(|other| other.extn_id == extension.extn_id) {
                return Err(format!("extension {} appears twice", extension.extn_id));
            }
        }
        Ok(certificate)
    }

    /// Reads the certificate of a role from one certificate, or from several in PEM, as AMD's key
    /// distribution service answers `cert_chain`: the one in it that has the role.
    pub(crate) fn parse_role(bytes: &[u8], role: Role) -> Result<Self, String> {
        if !is_pem(bytes) {
            return Certificate::parse(bytes);
        }
        if bytes.len() > crate::MAX_CERTIFICATE {
            return Err(too_long(bytes));
        }
        let mut found = parse_pem_chain(bytes)?;
        if found.len() > 1 {
            found.retain(|certificate| certificate.role() == role);
        }
        let count = found.len();
        match found.pop() {
            Some(one) if count == 1 => Ok(one),
            _ => Err(format!("the file has {count} {role} certificates instead of one")),
        }
    }

    fn role(&self) -> Role {
        if self.subject() == self.issuer() { Role::Root } else { Role::Intermediate }
    }

    fn extensions(&self) -> &[Extension] {
        self.parsed.tbs_certificate().extensions().map_or(&[], Vec::as_slice)
    }

    /// The contents of an extension.
    pub(crate) fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        self.extensions()
            .iter()
            .find(|extension| extension.extn_id == oid)
            .map(|extension| extension.extn_value.as_bytes())
    }

    pub(crate) fn subject(&self) -> &Name {
        self.parsed.tbs_certificate().subject()
    }

    pub(crate) fn issuer(&self) -> &Name {
        self.parsed.tbs_certificate().issuer()
    }

    pub(crate) fn serial(&self) -> &[u8] {
        self.parsed.tbs_certificate().serial_number().as_bytes()
    }

    /// The subject's common name, to compare it; or nothing readable.
    pub(crate) fn common_name(&self) -> String {
        common_name(self.subject())
    }

    /// The subject's common name, to show it.
    pub(crate) fn shown_name(&self) -> String {
        shown(self.subject())
    }

    /// The uncompressed point of a public key on `curve`, `None` for any other key.
    pub(crate) fn ec_point(&self, curve: ObjectIdentifier) -> Option<&[u8]> {
        let key = self.parsed.tbs_certificate().subject_public_key_info();
        let parameters = key.algorithm.parameters.as_ref()?;
        let found: ObjectIdentifier = parameters.decode_as().ok()?;
        let matches = key.algorithm.oid == EC_PUBLIC_KEY && found == curve;
        if matches { key.subject_public_key.as_bytes() } else { None }
    }

    /// Modulus and exponent of an RSA key, big-endian; `None` for any other key.
    pub(crate) fn rsa_key(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let key = self.parsed.tbs_certificate().subject_public_key_info();
        if key.algorithm.oid != RSA_ENCRYPTION {
            return None;
        }
        let numbers = AnyRef::from_der(key.subject_public_key.as_bytes()?).ok()?;
        let mut reader = SliceReader::new(numbers.value()).ok()?;
        let [modulus, exponent] =
            [UintRef::decode(&mut reader).ok()?, UintRef::decode(&mut reader).ok()?];
        Some((modulus.as_bytes().to_vec(), exponent.as_bytes().to_vec()))
    }

    /// Whether `at` lies in the validity, both ends included.
    pub(crate) fn dates(&self, at: Timestamp) -> Dates {
        let validity = self.parsed.tbs_certificate().validity();
        let begin = Timestamp(validity.not_before.to_unix_duration().as_secs());
        let end = Timestamp(validity.not_after.to_unix_duration().as_secs());
        Dates { begin, end, begun: begin <= at, ended: at > end }
    }

    /// That this is a certificate authority above `below` further authorities.
    pub(crate) fn check_authority(&self, below: u8) -> Result<(), String> {
        let constraints = self
            .extension(BASIC_CONSTRAINTS)
            .ok_or("has no basic constraints")
            .and_then(|der| BasicConstraints::from_der(der).map_err(|_| "has bad constraints"))?;
        if !constraints.ca {
            return Err("is not a certificate authority".into());
        }
        if constraints.path_len_constraint.is_some_and(|longest| longest < below) {
            return Err("may not issue authorities".into());
        }
        match self.extension(KEY_USAGE).map(KeyUsage::from_der) {
            None => Ok(()),
            Some(Ok(usage)) if usage.key_cert_sign() => Ok(()),
            Some(_) => Err("may not sign certificates".into()),
        }
    }

    /// That this is no certificate authority.
    pub(crate) fn check_leaf(&self) -> Result<(), String> {
        match self.extension(BASIC_CONSTRAINTS).map(BasicConstraints::from_der) {
            None | Some(Ok(BasicConstraints { ca: false, .. })) => Ok(()),
            Some(_) => Err("is a certificate authority".into()),
        }
    }

    /// That no critical extension says something that nobody here understands.
    pub(crate) fn check_critical(&self) -> Result<(), String> {
        self.check_critical_but(&[])
    }

    /// The same, apart from extensions that the caller understands.
    pub(crate) fn check_critical_but(&self, known: &[ObjectIdentifier]) -> Result<(), String> {
        let unknown = self.extensions().iter().find(|extension| {
            extension.critical
                && ![BASIC_CONSTRAINTS, KEY_USAGE].contains(&extension.extn_id)
                && !known.contains(&extension.extn_id)
        });
        match unknown {
            None => Ok(()),
            Some(extension) => Err(format!("has an unknown critical {}", extension.extn_id)),
        }
    }

    /// That `issuer` issued this certificate: by name, and by signature over the raw bytes.
    pub(crate) fn check_issued_by(&self, issuer: &Certificate) -> Result<(), String> {
        if self.issuer() != issuer.subject() {
            return Err(format!("names \"{}\" as its issuer", shown(self.issuer())));
        }
        if self.parsed.signature_algorithm() != self.parsed.tbs_certificate().signature() {
            return Err("names two signature algorithms".into());
        }
        let signature =
            self.parsed.signature().as_bytes().ok_or("has a signature of partial bytes")?;
        issuer.check_signature(self.parsed.signature_algorithm(), &self.der, signature)
    }

    /// That this certificate's key made `signature` over the "to be signed" part of `der`.
    fn check_signature(
        &self,
        algorithm: &AlgorithmIdentifierOwned,
        der: &[u8],
        signature: &[u8],
    ) -> Result<(), String> {
        let signed = signed_part(der).map_err(|error| format!("cannot be taken apart: {error}"))?;
        let key = self.parsed.tbs_certificate().subject_public_key_info();
        let key_bytes = key.subject_public_key.as_bytes().ok_or("has a key of partial bytes")?;
        let valid = if is_pss_sha384(algorithm) && key.algorithm.oid == RSA_ENCRYPTION {
            UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, key_bytes).verify(signed, signature)
        } else if algorithm.oid == ECDSA_WITH_SHA256 && self.ec_point(PRIME256V1).is_some() {
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key_bytes).verify(signed, signature)
        } else if algorithm.oid == ECDSA_WITH_SHA384 && self.ec_point(SECP384R1).is_some() {
            UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, key_bytes).verify(signed, signature)
        } else if algorithm.oid == SHA256_WITH_RSA && key.algorithm.oid == RSA_ENCRYPTION {
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key_bytes).verify(signed, signature)
        } else {
            return Err(format!("is signed with an algorithm not used here ({})", algorithm.oid));
        };
        valid.map_err(|_| format!("is not signed by \"{}\"", self.shown_name()))
    }
}

/// What a certificate is in a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// Names itself as its issuer.
    Root,
    /// Names another issuer.
    Intermediate,
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Role::Root => "root",
            Role::Intermediate => "intermediate",
        })
    }
}

/// Reads a chain in PEM; blanks and zeros between and after the blocks are passed over.
pub(crate) fn parse_pem_chain(pem: &[u8]) -> Result<Vec<Certificate>, String> {
    const END: &str = "-----END CERTIFICATE-----";
    let text = std::str::from_utf8(pem).map_err(|_| "the certificate chain is not text")?;
    let mut rest = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\0');
    let mut chain = Vec::new();
    while !rest.is_empty() {
        let end = rest.find(END).ok_or("the certificate chain has something else in it")?;
        let (block, after) = rest.split_at(end + END.len());
        chain.push(Certificate::parse(block.as_bytes())?);
        rest = after.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\0');
        if chain.len() > 8 {
            return Err("the certificate chain has more than 8 certificates".into());
        }
    }
    Ok(chain)
}

/// Where a time lies in a validity.
pub(crate) struct Dates {
    pub(crate) begin: Timestamp,
    pub(crate) end: Timestamp,
    pub(crate) begun: bool,
    pub(crate) ended: bool,
}

/// A full certificate revocation list.
pub(crate) struct RevocationList {
    pub(crate) der: Vec<u8>,
    parsed: CertificateList<Rfc5280>,
}

impl RevocationList {
    /// Reads exactly one list, DER or PEM.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let der = der_of(bytes, "X509 CRL")?;
        let parsed = CertificateList::<Rfc5280>::from_der(&der)
            .map_err(|error| format!("not an X.509 revocation list: {error}"))?;
        Ok(RevocationList { der, parsed })
    }

    /// That `issuer` is the list's, and that the list speaks for all of its certificates.
    pub(crate) fn check_issuer(&self, issuer: &Certificate) -> Result<String, String> {
        let list = &self.parsed.tbs_cert_list;
        if &list.issuer != issuer.subject() {
            return Err(format!("the list is issued by \"{}\"", shown(&list.issuer)));
        }
        let partial = list
            .crl_extensions
            .iter()
            .flatten()
            .chain(
                list.revoked_certificates
                    .iter()
                    .flatten()
                    .flat_map(|entry| entry.crl_entry_extensions.iter().flatten()),
            )
            .find(|extension| extension.critical);
        match partial {
            None => Ok(format!("issued by \"{}\"", issuer.shown_name())),
            Some(extension) => Err(format!(
                "the list has a critical extension {}: it may not be a full list of its issuer",
                extension.extn_id
            )),
        }
    }

    /// That `issuer` signed the list.
    pub(crate) fn check_signature(&self, issuer: &Certificate) -> Result<String, String> {
        if self.parsed.signature_algorithm != self.parsed.tbs_cert_list.signature {
            return Err("the list names two signature algorithms".into());
        }
        let may_sign = match issuer.extension(KEY_USAGE).map(KeyUsage::from_der) {
            None => true,
            Some(usage) => usage.is_ok_and(|usage| usage.crl_sign()),
        };
        if !may_sign {
            return Err(format!("\"{}\" may not sign revocation lists", issuer.shown_name()));
        }
        let signature =
            self.parsed.signature.as_bytes().ok_or("the list has a signature of partial bytes")?;
        issuer
            .check_signature(&self.parsed.signature_algorithm, &self.der, signature)
            .map(|()| format!("signed by \"{}\"", issuer.shown_name()))
            .map_err(|why| format!("the list {why}"))
    }

    /// Where `at` lies between this update and the next; a list without a next update has ended.
    pub(crate) fn dates(&self, at: Timestamp) -> Dates {
        let list = &self.parsed.tbs_cert_list;
        let begin = Timestamp(list.this_update.to_unix_duration().as_secs());
        let end =
            list.next_update.map_or(begin, |next| Timestamp(next.to_unix_duration().as_secs()));
        Dates { begin, end, begun: begin <= at, ended: list.next_update.is_none() || at > end }
    }

    /// Whether the list has a certificate's serial number.
    pub(crate) fn lists(&self, certificate: &Certificate) -> bool {
        self.parsed
            .tbs_cert_list
            .revoked_certificates
            .iter()
            .flatten()
            .any(|entry| entry.serial_number.as_bytes() == certificate.serial())
    }
}

/// The bytes as they are, or the contents of the one PEM block with this label.
fn der_of(bytes: &[u8], label: &str) -> Result<Vec<u8>, String> {
    if bytes.len() > crate::MAX_CERTIFICATE {
        return Err(too_long(bytes));
    }
    if !is_pem(bytes) {
        return Ok(bytes.to_vec());
    }
    match der::pem::decode_vec(bytes) {
        Ok((found, der)) if found == label => Ok(der),
        Ok((found, _)) => Err(format!("a PEM block \"{}\" instead of \"{label}\"", Foreign(found))),
        Err(error) => Err(format!("not one PEM block: {error}")),
    }
}

fn is_pem(bytes: &[u8]) -> bool {
    bytes.starts_with(b"-----BEGIN")
}

fn too_long(bytes: &[u8]) -> String {
    format!("{} bytes, at most {} are read", bytes.len(), crate::MAX_CERTIFICATE)
}

/// The first element of the outer sequence, as received.
fn signed_part(der: &[u8]) -> der::Result<&[u8]> {
    let outer = AnyRef::from_der(der)?;
    SliceReader::new(outer.value())?.tlv_bytes()
}

fn is_pss_sha384(algorithm: &AlgorithmIdentifierOwned) -> bool {
    let Some(parameters) = algorithm.parameters.as_ref().and_then(|any| any.to_der().ok()) else {
        return false;
    };
    let exact = parameters == PSS_SHA384;
    let with_trailer = parameters.get(2..).is_some_and(|found| {
        PSS_SHA384.get(2..).is_some_and(|common| found.strip_prefix(common) == Some(PSS_TRAILER))
    });
    algorithm.oid == RSASSA_PSS && (exact || with_trailer)
}
