//! SEV-SNP evidence as Trustee's clients send it: `{"attestation_report": {...}, "cert_chain": [...]}`,
//! the report field by field as the crate `sev` names them.
//!
//! A signature is over bytes, so the report is put together again. What the fields do not carry
//! (reserved bytes) becomes zero, as it is in every report that the firmware specification knows;
//! should it ever be something else, the signature does not fit and the evidence is refused.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Evidence of one report.
#[derive(Deserialize)]
pub(crate) struct SnpFields {
    attestation_report: ReportFields,
    #[serde(default)]
    cert_chain: Option<Vec<CertificateEntry>>,
}

/// ATTESTATION_REPORT (SEV-SNP firmware ABI, "Attestation"), offsets at [`SnpFields::report`].
#[derive(Deserialize)]
struct ReportFields {
    version: u32,
    guest_svn: u32,
    policy: u64,
    family_id: Bytes<16>,
    image_id: Bytes<16>,
    vmpl: u32,
    sig_algo: u32,
    current_tcb: Tcb,
    plat_info: u64,
    key_info: u32,
    report_data: Bytes<64>,
    measurement: Bytes<48>,
    host_data: Bytes<32>,
    id_key_digest: Bytes<48>,
    author_key_digest: Bytes<48>,
    report_id: Bytes<32>,
    report_id_ma: Bytes<32>,
    reported_tcb: Tcb,
    cpuid_fam_id: Option<u8>,
    cpuid_mod_id: Option<u8>,
    cpuid_step: Option<u8>,
    chip_id: Bytes<64>,
    committed_tcb: Tcb,
    current: Version,
    committed: Version,
    launch_tcb: Tcb,
    #[serde(default)]
    launch_mit_vector: Option<u64>,
    #[serde(default)]
    current_mit_vector: Option<u64>,
    signature: Signature,
}

/// TCB_VERSION; with an FMC it has the byte order of Turin.
#[derive(Deserialize)]
struct Tcb {
    #[serde(default)]
    fmc: Option<u8>,
    bootloader: u8,
    tee: u8,
    snp: u8,
    microcode: u8,
}

#[derive(Deserialize)]
struct Version {
    major: u8,
    minor: u8,
    build: u8,
}

/// Little-endian halves.
#[derive(Deserialize)]
struct Signature {
    r: Bytes<72>,
    s: Bytes<72>,
}

#[derive(Deserialize)]
struct CertificateEntry {
    cert_type: CertificateKind,
    data: Vec<u8>,
}

#[derive(Deserialize)]
enum CertificateKind {
    Empty,
    #[serde(rename = "ARK")]
    Ark,
    #[serde(rename = "ASK")]
    Ask,
    #[serde(rename = "VCEK")]
    Vcek,
    #[serde(rename = "VLEK")]
    Vlek,
    #[serde(rename = "CRL")]
    Crl,
    /// Some other GUID; of no use here.
    #[serde(rename = "OTHER")]
    Other(serde::de::IgnoredAny),
}

struct Bytes<const N: usize>([u8; N]);

impl<'de, const N: usize> Deserialize<'de> for Bytes<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        let length = bytes.len();
        let array = bytes.try_into();
        array.map(Bytes).map_err(|_| D::Error::custom(format!("{length} bytes instead of {N}")))
    }
}

impl Tcb {
    fn bytes(&self) -> [u8; 8] {
        match self.fmc {
            Some(fmc) => [fmc, self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode],
            None => [self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode],
        }
    }
}

impl Version {
    fn bytes(&self) -> [u8; 3] {
        [self.build, self.minor, self.major]
    }
}

impl SnpFields {
    /// The report's 1184 bytes.
    pub(crate) fn report(&self) -> Vec<u8> {
        let fields = &self.attestation_report;
        let cpuid = [fields.cpuid_fam_id, fields.cpuid_mod_id, fields.cpuid_step];
        let mut report = vec![0; 0x4a0];
        let mut put = |offset: usize, bytes: &[u8]| {
            report[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0x000, &fields.version.to_le_bytes());
        put(0x004, &fields.guest_svn.to_le_bytes());
        put(0x008, &fields.policy.to_le_bytes());
        put(0x010, &fields.family_id.0);
        put(0x020, &fields.image_id.0);
        put(0x030, &fields.vmpl.to_le_bytes());
        put(0x034, &fields.sig_algo.to_le_bytes());
        put(0x038, &fields.current_tcb.bytes());
        put(0x040, &fields.plat_info.to_le_bytes());
        put(0x048, &fields.key_info.to_le_bytes());
        put(0x050, &fields.report_data.0);
        put(0x090, &fields.measurement.0);
        put(0x0c0, &fields.host_data.0);
        put(0x0e0, &fields.id_key_digest.0);
        put(0x110, &fields.author_key_digest.0);
        put(0x140, &fields.report_id.0);
        put(0x160, &fields.report_id_ma.0);
        put(0x180, &fields.reported_tcb.bytes());
        put(0x188, &cpuid.map(Option::unwrap_or_default));
        put(0x1a0, &fields.chip_id.0);
        put(0x1e0, &fields.committed_tcb.bytes());
        put(0x1e8, &fields.current.bytes());
        put(0x1ec, &fields.committed.bytes());
        put(0x1f0, &fields.launch_tcb.bytes());
        put(0x1f8, &fields.launch_mit_vector.unwrap_or_default().to_le_bytes());
        put(0x200, &fields.current_mit_vector.unwrap_or_default().to_le_bytes());
        put(0x2a0, &fields.signature.r.0);
        put(0x2e8, &fields.signature.s.0);
        report
    }

    /// The certificates as the table that a host gives (GHCB specification, "SNP Extended Guest
    /// Request"): entries of GUID, offset and length, one of zeros, then the contents.
    pub(crate) fn certificate_table(&self) -> Vec<u8> {
        let known: Vec<_> = self
            .cert_chain
            .iter()
            .flatten()
            .filter_map(|entry| Some((entry.cert_type.guid()?, &entry.data)))
            .collect();
        if known.is_empty() {
            return Vec::new();
        }
        let mut entries = Vec::new();
        let mut contents = Vec::new();
        for (guid, data) in &known {
            let offset = (known.len() + 1) * 24 + contents.len();
            entries.extend_from_slice(guid);
            // Longer than 4 GiB is longer than any message; the table would then not be read.
            for number in [offset, data.len()] {
                entries.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
            }
            contents.extend_from_slice(data);
        }
        entries.extend_from_slice(&[0; 24]);
        entries.extend_from_slice(&contents);
        entries
    }
}

impl CertificateKind {
    /// The GUID of the kind, in the order of its text.
    fn guid(&self) -> Option<[u8; 16]> {
        let guid: u128 = match self {
            CertificateKind::Vcek => 0x63da758d_e664_4564_adc5_f4b93be8accd,
            CertificateKind::Vlek => 0xa8074bc2_a25a_483e_aae6_39c045a0b8a1,
            CertificateKind::Ask => 0x4ab7b379_bbac_4fe4_a02f_05aef327c782,
            CertificateKind::Ark => 0xc0b406a4_a803_4952_9743_3fb6014cd0ae,
            CertificateKind::Crl => 0x92f81bc3_5811_4d3d_97ff_d19f88dc67ea,
            CertificateKind::Empty | CertificateKind::Other(_) => return None,
        };
        Some(guid.to_be_bytes())
    }
}
