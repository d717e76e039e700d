//! The report against its endorsement key and against the policy.

use casemate_foreign::Foreign;
use ring::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};

use super::policy::{MinimumTcb, SnpPolicy};
use crate::judgement::Ledger;
use crate::names;
use crate::x509::{Certificate, SECP384R1};

use super::chain::{Certificates, issuers_fit};
use super::claims::GuestPolicy;
use super::product::{Product, Tcb};
use super::report::{Report, SIGNED_LEN};
use super::{SigningKey, checks, vek};

/// The versions that are understood: 2 (ABI 1.51 to 1.54), 3 and 4 (1.55; 4 has the layout of 3) and 5
/// (from 1.56).
const VERSIONS: [u32; 4] = [2, 3, 4, 5];

/// The product by the certificate, or by the report when that says it.
pub(crate) fn product(report: &Report, certificates: Option<&Certificates>) -> Option<Product> {
    let by_report = || {
        let known = VERSIONS.contains(&report.version.get()) && report.version.get() >= 3;
        known.then(|| Product::from_cpuid(report.cpuid)).flatten()
    };
    certificates.and_then(|all| vek::product(&all.vek)).or_else(by_report)
}

/// Checks what a report must look like, whoever signed it.
pub(crate) fn check_format(
    ledger: &mut Ledger,
    report: &Report,
    policy: &SnpPolicy,
    product: Option<Product>,
) {
    let version = report.version.get();
    ledger.record(
        names::VERSION,
        match &policy.versions {
            _ if !VERSIONS.contains(&version) => {
                Err(format!("version {version} is not one of {VERSIONS:?}: nothing is guessed"))
            }
            Some(listed) if !listed.contains(&version) => {
                Err(format!("version {version} is not one of the policy's {listed:?}"))
            }
            _ => Ok(format!("version {version}")),
        },
    );
    let newest = VERSIONS.into_iter().max().unwrap_or_default();
    ledger.record(
        checks::NEWER,
        if version > newest {
            Err(format!("version {version}; the newest known is {newest}"))
        } else {
            Ok(format!("the newest known is {newest}"))
        },
    );
    let algorithm = report.signature_algo.get();
    ledger.record(
        checks::SIG_ALGO,
        match algorithm {
            1 => Ok("ECDSA P-384 with SHA-384".into()),
            other => Err(format!("signature algorithm {other} is not 1 (ECDSA P-384, SHA-384)")),
        },
    );
    ledger
        .record(checks::SIGNATURE_ENCODING, report.signature().map(|_| "padded with zeros".into()));
    ledger.record(names::POLICY_RESERVED, GuestPolicy::of(report).check_reserved());
    if VERSIONS.contains(&version) {
        ledger.record(
            checks::RESERVED_NONZERO,
            match report.reserved_nonzero(product) {
                None => Ok("all zero".into()),
                Some(offset) => Err(format!("the reserved bytes at {offset} are not zero")),
            },
        );
    }
}

/// Checks that the certificate's key signed the report, and that both are of the same chip.
pub(crate) fn check_endorsement(
    ledger: &mut Ledger,
    report: &Report,
    bytes: &[u8],
    certificates: &Certificates,
    product: Option<Product>,
) {
    let vek = &certificates.vek;
    if let (Some(signed), Ok(signature), Some(point)) =
        (bytes.get(..SIGNED_LEN), report.signature(), vek.ec_point(SECP384R1))
    {
        let valid = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point)
            .verify(signed, &signature)
            .map(|()| "the endorsement key signed this report".into())
            .map_err(|_| "the endorsement key did not sign this report".into());
        ledger.record(names::SIGNATURE, valid);
    }
    ledger.record(checks::PRODUCT_MISMATCH, check_product(report, certificates));
    if let Some(product) = product {
        ledger.record(checks::HWID_MISMATCH, check_hwid(report, vek, product));
    }
}

fn check_product(report: &Report, certificates: &Certificates) -> Result<String, String> {
    let name = vek::product_name(&certificates.vek).unwrap_or_default();
    let name = Foreign(&name).to_string();
    let product = vek::product(&certificates.vek)
        .ok_or_else(|| format!("the endorsement key is for an unknown product \"{name}\""))?;
    issuers_fit(certificates, product)
        .map_err(|why| format!("the endorsement key is for {name}, but {why}"))?;
    match report.version.get() {
        0..3 => match product {
            Product::Milan | Product::Genoa => Ok(format!("{name} (the report does not say)")),
            Product::Turin => Err("Turin does not make reports of version 2".into()),
        },
        _ if Product::from_cpuid(report.cpuid) == Some(product) => Ok(name),
        _ => {
            let [family, model, stepping] = report.cpuid;
            Err(format!(
                "the endorsement key is for {name}, the report comes from family {family:#x} \
                 model {model:#x} stepping {stepping:#x}"
            ))
        }
    }
}

fn check_hwid(report: &Report, vek: &Certificate, product: Product) -> Result<String, String> {
    match (vek::kind(vek), vek::hwid(vek)) {
        (Some(SigningKey::Vlek), None) => Ok("a VLEK is not bound to a chip".into()),
        (Some(SigningKey::Vlek), Some(_)) => Err("a VLEK certificate must not name a chip".into()),
        (Some(SigningKey::Vcek), Some(hwid)) => {
            let (used, rest) = report.chip_id.split_at(product.chip_id_len());
            if used == hwid && rest.iter().all(|byte| *byte == 0) {
                Ok(format!("chip {}", crate::hex::text(hwid)))
            } else {
                Err(format!(
                    "the certificate is for chip {}, the report is from chip {}",
                    crate::hex::text(hwid),
                    crate::hex::text(used)
                ))
            }
        }
        (Some(SigningKey::Vcek), None) => Err("the VCEK certificate names no chip".into()),
        (None, _) => Err("the certificate is neither of a VCEK nor of a VLEK".into()),
    }
}

/// Checks the report's TCB versions: among themselves, with the certificate, with the policy.
pub(crate) fn check_tcb(
    ledger: &mut Ledger,
    report: &Report,
    policy: &SnpPolicy,
    certificates: Option<&Certificates>,
    product: Option<Product>,
) {
    let minima = [
        (checks::TCB_MINIMUM, policy.min_reported_tcb, report.reported_tcb),
        (checks::TCB_COMMITTED, policy.min_committed_tcb, report.committed_tcb),
        (checks::TCB_LAUNCH, policy.min_launch_tcb, report.launch_tcb),
    ];
    for (name, minimum, bytes) in minima {
        match (minimum, product) {
            (None, _) => ledger.unset(name),
            (Some(minimum), Some(product)) => {
                ledger.record(name, check_minimum(Tcb::from_bytes(bytes, product), &minimum));
            }
            (Some(_), None) => {}
        }
    }
    let Some(product) = product else { return };
    let reported = Tcb::from_bytes(report.reported_tcb, product);
    let committed = Tcb::from_bytes(report.committed_tcb, product);
    let current = Tcb::from_bytes(report.current_tcb, product);
    let order = match (reported.first_above(committed), committed.first_above(current)) {
        (None, None) => Ok("reported <= committed <= current".into()),
        (Some(name), _) => {
            Err(format!("{name}: reported {reported} is above committed {committed}"))
        }
        (_, Some(name)) => Err(format!("{name}: committed {committed} is above current {current}")),
    };
    ledger.record(checks::TCB_ORDER, order);
    if let Some(certificates) = certificates {
        let matches = vek::tcb(&certificates.vek, product).and_then(|certified| {
            if certified == reported {
                Ok(format!("{certified}"))
            } else {
                Err(format!("the certificate is for {certified}, the report says {reported}"))
            }
        });
        ledger.record(checks::TCB_MISMATCH, matches);
    }
}

fn check_minimum(found: Tcb, minimum: &MinimumTcb) -> Result<String, String> {
    let pairs = [
        ("bl", Some(found.bl), minimum.bl),
        ("tee", Some(found.tee), minimum.tee),
        ("snp", Some(found.snp), minimum.snp),
        ("ucode", Some(found.ucode), minimum.ucode),
        ("fmc", found.fmc, minimum.fmc),
    ];
    for (name, found, wanted) in pairs {
        match (found, wanted) {
            (Some(found), Some(wanted)) if found < wanted => {
                return Err(format!("{name} is {found}, the policy wants at least {wanted}"));
            }
            (None, Some(_)) => {
                return Err(format!("the policy sets a minimum for {name}, this product has none"));
            }
            _ => {}
        }
    }
    Ok(found.to_string())
}

/// Checks which kind of key signed.
pub(crate) fn check_signing_key(
    ledger: &mut Ledger,
    report: &Report,
    policy: &SnpPolicy,
    certificates: Option<&Certificates>,
) {
    let claimed = match report.key_info.get() >> 2 & 0b111 {
        0 => Ok(SigningKey::Vcek),
        1 => Ok(SigningKey::Vlek),
        7 => Err("the report says that it is not signed".to_owned()),
        other => Err(format!("the report names an unknown signing key {other}")),
    };
    let listed = claimed.and_then(|claimed| match &policy.signing_keys {
        Some(list) if !list.contains(&claimed) => {
            let list: Vec<_> = list.iter().map(ToString::to_string).collect();
            Err(format!("{claimed} is not one of the policy's [{}]", list.join(", ")))
        }
        _ => Ok(claimed),
    });
    match (listed, certificates.map(|all| &all.vek)) {
        (Err(why), _) => ledger.record(checks::SIGNING_KEY, Err(why)),
        (Ok(claimed), Some(vek)) if vek::kind(vek) == Some(claimed) => {
            ledger.record(checks::SIGNING_KEY, Ok(claimed.to_string()));
        }
        (Ok(claimed), Some(vek)) => ledger.record(
            checks::SIGNING_KEY,
            Err(format!("the report names a {claimed}, the certificate \"{}\"", vek.shown_name())),
        ),
        (Ok(_), None) => ledger.not_done(checks::SIGNING_KEY, "there is no certificate"),
    }
}

/// Checks what the policy asks of the guest.
pub(crate) fn check_policy(ledger: &mut Ledger, report: &Report, policy: &SnpPolicy) {
    check_guest_policy(ledger, &GuestPolicy::of(report), policy);
    let vmpl = report.vmpl.get();
    ledger.record(
        checks::VMPL,
        match &policy.vmpl {
            _ if vmpl > 3 => Err(format!("{vmpl:#x} is no privilege level of a guest")),
            Some(listed) if !listed.contains(&vmpl) => {
                Err(format!("VMPL {vmpl} is not one of the policy's {listed:?}"))
            }
            _ => Ok(format!("VMPL {vmpl}")),
        },
    );
    ledger.condition(names::MEASUREMENT, policy.measurements.as_ref(), |list| {
        list.check("MEASUREMENT", &report.measurement)
    });
    ledger.condition(names::REPORT_DATA, policy.report_data.as_ref(), |list| {
        list.check("REPORT_DATA", &report.report_data)
    });
    ledger.condition(checks::HOST_DATA, policy.host_data.as_ref(), |list| {
        list.check("HOST_DATA", &report.host_data)
    });
    ledger.condition(checks::GUEST_SVN, policy.min_guest_svn, |least| {
        let found = report.guest_svn.get();
        if found >= least {
            Ok(format!("{found}, at least {least}"))
        } else {
            Err(format!("the guest's security version is {found}, the policy wants {least}"))
        }
    });
    ledger.condition(checks::ID_KEY, policy.id_key_digests.as_ref(), |list| {
        list.check("ID_KEY_DIGEST", &report.id_key_digest)
    });
    ledger.condition(checks::AUTHOR_KEY, policy.author_key_digests.as_ref(), |list| {
        if report.key_info.get() & 1 == 0 {
            return Err("the guest was launched without an author key".into());
        }
        list.check("AUTHOR_KEY_DIGEST", &report.author_key_digest)
    });
}

/// Checks what the policy asks of the platform.
pub(crate) fn check_platform(
    ledger: &mut Ledger,
    report: &Report,
    policy: &SnpPolicy,
    product: Option<Product>,
) {
    ledger.condition(checks::PLATFORM_INFO, policy.platform_info, |wanted| {
        wanted.check(report.platform_info.get())
    });
    ledger.condition(checks::MITIGATIONS, policy.mitigations, |wanted| {
        let Some([launch, current]) = report.mitigations() else {
            return Err(format!("a report of version {} does not say", report.version.get()));
        };
        match wanted & !(launch & current) {
            0 => Ok(format!("{launch:#x} at launch, {current:#x} now")),
            missing => Err(format!("bits {missing:#x} are off at launch or now")),
        }
    });
    ledger.condition(checks::CHIP, policy.chip_ids.as_ref(), |list| {
        if report.chip_id == [0; 64] {
            return Err("the report does not name its chip".into());
        }
        list.check("CHIP_ID", &report.chip_id)
    });
    ledger.condition(checks::PRODUCT, policy.products.as_ref(), |list| match product {
        Some(product) if list.contains(&product) => Ok(product.to_string()),
        Some(product) => Err(format!("{product} is not one of the policy's {list:?}")),
        None => Err("nothing says what the product is".into()),
    });
    ledger.condition(checks::FAMILY_ID, policy.family_ids.as_ref(), |list| {
        list.check("FAMILY_ID", &report.family_id)
    });
    ledger.condition(checks::IMAGE_ID, policy.image_ids.as_ref(), |list| {
        list.check("IMAGE_ID", &report.image_id)
    });
}

fn check_guest_policy(ledger: &mut Ledger, guest: &GuestPolicy, policy: &SnpPolicy) {
    let forbids = |allowed: Option<bool>| (allowed == Some(false)).then_some(());
    let absent = |present: bool, what: &str| {
        if present {
            Err(format!("the guest's policy allows {what}"))
        } else {
            Ok(format!("the guest's policy forbids {what}"))
        }
    };
    ledger.condition(checks::POLICY_DEBUG, forbids(policy.allow_debug), |()| {
        absent(guest.debug_allowed, "debugging by the host")
    });
    ledger.condition(checks::POLICY_SMT, forbids(policy.allow_smt), |()| {
        absent(guest.smt_allowed, "simultaneous multithreading")
    });
    ledger.condition(checks::POLICY_MIGRATE_MA, forbids(policy.allow_migration_agent), |()| {
        absent(guest.migration_agent_allowed, "a migration agent")
    });
    let single = (policy.require_single_socket == Some(true)).then_some(());
    ledger.condition(checks::POLICY_SINGLE_SOCKET, single, |()| {
        if guest.single_socket_required {
            Ok("the guest's policy asks for one socket".into())
        } else {
            Err("the guest's policy does not ask for one socket".into())
        }
    });
}
