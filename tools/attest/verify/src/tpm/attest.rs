//! TPMS_ATTEST of a quote (TPM 2.0 Library, part 2, section 10.12).

use crate::names::CheckName;

use super::reader::Reader;
use super::registers::Selected;
use super::{MAX_QUOTE, checks};

/// TPM_GENERATED_VALUE: "\xffTCG".
const GENERATED: u32 = 0xff54_4347;
/// TPM_ST_ATTEST_QUOTE.
const ATTEST_QUOTE: u16 = 0x8018;
/// TPM_ALG_SHA256.
const SHA256: u16 = 0x000b;
/// Banks that a TPM may have selected at once.
const MAX_BANKS: u32 = 8;

/// What a quote says.
pub(crate) struct Quote<'a> {
    /// extraData: what the caller passed.
    pub(crate) nonce: &'a [u8],
    /// Algorithm and bitmap of each bank.
    banks: Vec<(u16, &'a [u8])>,
    pub(crate) pcr_digest: &'a [u8],
}

/// Why a quote cannot be read.
pub(crate) struct Fault {
    pub(crate) check: CheckName,
    pub(crate) detail: String,
}

impl<'a> Quote<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Fault> {
        let fault = |check, detail: String| Fault { check, detail };
        let short = || {
            let detail = format!("{} bytes are not a whole attestation structure", bytes.len());
            fault(checks::QUOTE_PARSE, detail)
        };
        if bytes.len() > MAX_QUOTE {
            let detail = format!("{} bytes, at most {MAX_QUOTE} are read", bytes.len());
            return Err(fault(checks::QUOTE_PARSE, detail));
        }
        let mut reader = Reader(bytes);
        let magic = reader.u32().ok_or_else(short)?;
        if magic != GENERATED {
            return Err(fault(checks::QUOTE_MAGIC, format!("{magic:#x} is not TPM_GENERATED")));
        }
        let kind = reader.u16().ok_or_else(short)?;
        if kind != ATTEST_QUOTE {
            return Err(fault(checks::QUOTE_TYPE, format!("type {kind:#x} is not a quote")));
        }
        let quote = Self::read(&mut reader).ok_or_else(short)?;
        if reader.0.is_empty() {
            Ok(quote)
        } else {
            Err(fault(checks::QUOTE_TRAILING, format!("{} bytes follow", reader.0.len())))
        }
    }

    fn read(reader: &mut Reader<'a>) -> Option<Self> {
        let _qualified_signer = reader.sized()?;
        let nonce = reader.sized()?;
        // Clock, counts of resets and restarts, safe; the firmware's version.
        reader.take(8 + 4 + 4 + 1 + 8)?;
        let count = reader.u32().filter(|count| *count <= MAX_BANKS)?;
        let mut banks = Vec::new();
        for _ in 0..count {
            let algorithm = reader.u16()?;
            let length = reader.u8()?;
            banks.push((algorithm, reader.take(usize::from(length))?));
        }
        Some(Quote { nonce, banks, pcr_digest: reader.sized()? })
    }

    pub(crate) fn check_nonce(&self, nonce: &[u8]) -> Result<String, String> {
        let found = crate::hex::text(self.nonce);
        if self.nonce == nonce {
            Ok(found)
        } else {
            Err(format!("the quote has {found}, the policy wants {}", crate::hex::text(nonce)))
        }
    }

    /// The registers of the one SHA-256 bank that is selected. Two banks, or another one, would be proven by
    /// other values than those that are looked at.
    pub(crate) fn selected(&self) -> Result<Selected, String> {
        let chosen: Vec<_> =
            self.banks.iter().filter(|(_, map)| map.iter().any(|byte| *byte != 0)).collect();
        match chosen.as_slice() {
            [(SHA256, map)] => Selected::of(map),
            [] => Err("no register is selected".into()),
            [(other, _)] => Err(format!("the bank {other:#06x} is selected, not SHA-256 (0x000b)")),
            more => Err(format!("{} banks are selected instead of one", more.len())),
        }
    }
}
