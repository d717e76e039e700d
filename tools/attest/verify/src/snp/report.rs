//! The attestation report's bytes (SEV-SNP firmware ABI, table "ATTESTATION_REPORT Structure").

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::product::Product;

/// The length of a report in bytes.
pub const REPORT_LEN: usize = 0x4a0;
/// The signature is over this many bytes from the start.
pub const SIGNED_LEN: usize = 0x2a0;

/// A report as the firmware writes it.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct Report {
    pub version: U32,
    pub guest_svn: U32,
    pub policy: U64,
    pub family_id: [u8; 16],
    pub image_id: [u8; 16],
    pub vmpl: U32,
    pub signature_algo: U32,
    pub current_tcb: [u8; 8],
    pub platform_info: U64,
    pub key_info: U32,
    reserved_4c: [u8; 4],
    pub report_data: [u8; 64],
    pub measurement: [u8; 48],
    pub host_data: [u8; 32],
    pub id_key_digest: [u8; 48],
    pub author_key_digest: [u8; 48],
    pub report_id: [u8; 32],
    pub report_id_ma: [u8; 32],
    pub reported_tcb: [u8; 8],
    /// Family, model and stepping; from version 3, else reserved.
    pub cpuid: [u8; 3],
    reserved_18b: [u8; 21],
    pub chip_id: [u8; 64],
    pub committed_tcb: [u8; 8],
    /// Build, minor, major.
    pub current_version: [u8; 3],
    reserved_1eb: u8,
    /// Build, minor, major.
    pub committed_version: [u8; 3],
    reserved_1ef: u8,
    pub launch_tcb: [u8; 8],
    /// Launch and current mitigation vectors; from version 5, else reserved.
    pub mitigation_vectors: [u8; 16],
    reserved_208: [u8; 152],
    pub signature_r: [u8; 72],
    pub signature_s: [u8; 72],
    signature_rest: [u8; 368],
}

const _: () = assert!(size_of::<Report>() == REPORT_LEN);
const _: () = assert!(std::mem::offset_of!(Report, report_data) == 0x50);
const _: () = assert!(std::mem::offset_of!(Report, reported_tcb) == 0x180);
const _: () = assert!(std::mem::offset_of!(Report, chip_id) == 0x1a0);
const _: () = assert!(std::mem::offset_of!(Report, launch_tcb) == 0x1f0);
const _: () = assert!(std::mem::offset_of!(Report, signature_r) == SIGNED_LEN);

impl Report {
    /// Reads a report of exactly [`REPORT_LEN`] bytes.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<&Self> {
        Report::ref_from_bytes(bytes).ok()
    }

    /// The signature as ring takes it, or which bytes that must be zero are not.
    pub(crate) fn signature(&self) -> Result<[u8; 96], String> {
        let mut signature = [0; 96];
        let (r, s) = signature.split_at_mut(48);
        for (name, field, big_endian) in [("r", &self.signature_r, r), ("s", &self.signature_s, s)]
        {
            let (number, padding) = field.split_at(48);
            if padding.iter().any(|byte| *byte != 0) {
                return Err(format!("the padding of {name} is not zero"));
            }
            big_endian.copy_from_slice(number);
            big_endian.reverse();
        }
        if self.signature_rest.iter().any(|byte| *byte != 0) {
            return Err("the bytes after the signature are not zero".into());
        }
        Ok(signature)
    }

    /// Mitigations at launch and now; from version 5.
    pub(crate) fn mitigations(&self) -> Option<[u64; 2]> {
        let (halves, _) = self.mitigation_vectors.as_chunks::<8>();
        match halves {
            [launch, current] if self.version.get() >= 5 => {
                Some([launch, current].map(|half| u64::from_le_bytes(*half)))
            }
            _ => None,
        }
    }

    /// The offset of a field that this report's version reserves and that is not zero.
    pub(crate) fn reserved_nonzero(&self, product: Option<Product>) -> Option<String> {
        let version = self.version.get();
        let tcb_reserved = |tcb: &[u8; 8]| match product {
            Some(Product::Turin) => tcb[4..7].to_vec(),
            Some(Product::Milan | Product::Genoa) => tcb[2..6].to_vec(),
            None => Vec::new(),
        };
        let key_info = (self.key_info.get() >> 5).to_le_bytes();
        let fields: [(&str, &[u8]); 12] = [
            ("0x4c", &self.reserved_4c),
            ("0x188", if version < 3 { &self.cpuid } else { &[] }),
            ("0x18b", &self.reserved_18b),
            ("0x1eb", std::slice::from_ref(&self.reserved_1eb)),
            ("0x1ef", std::slice::from_ref(&self.reserved_1ef)),
            ("0x1f8", if version < 5 { &self.mitigation_vectors } else { &[] }),
            ("0x208", &self.reserved_208),
            ("0x48 (KEY_INFO)", &key_info),
            ("0x38 (CURRENT_TCB)", &tcb_reserved(&self.current_tcb)),
            ("0x180 (REPORTED_TCB)", &tcb_reserved(&self.reported_tcb)),
            ("0x1e0 (COMMITTED_TCB)", &tcb_reserved(&self.committed_tcb)),
            ("0x1f0 (LAUNCH_TCB)", &tcb_reserved(&self.launch_tcb)),
        ];
        fields
            .iter()
            .find(|(_, bytes)| bytes.iter().any(|byte| *byte != 0))
            .map(|(offset, _)| (*offset).to_owned())
    }
}
