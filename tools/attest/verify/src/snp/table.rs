//! The certificate table that a host hands to a guest with its report (GHCB specification, "SNP
//! Extended Guest Request"); configfs-tsm gives it as `auxblob`.

/// A table that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The list of entries does not end with an entry of zeros.
    #[error("the certificate table of {0} bytes ends before its closing entry")]
    Unterminated(usize),
    /// An entry points outside of the table.
    #[error("entry {index} of the certificate table claims bytes {offset}+{length} of {table}")]
    OutOfBounds {
        /// Which entry, from zero.
        index: usize,
        /// Where it claims to begin.
        offset: u32,
        /// How long it claims to be.
        length: u32,
        /// The table's length.
        table: usize,
    },
    /// Two entries of the same kind: nothing says which one counts.
    #[error("the certificate table has two entries of the kind {0}")]
    Repeated(&'static str),
}

/// The certificates of a table, as they stand in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CertificateTable<'a> {
    /// The chip's endorsement key.
    pub vcek: Option<&'a [u8]>,
    /// The provider's endorsement key.
    pub vlek: Option<&'a [u8]>,
    /// The intermediate: ASK or ASVK.
    pub ask: Option<&'a [u8]>,
    /// The root.
    pub ark: Option<&'a [u8]>,
    /// The root's revocation list.
    pub crl: Option<&'a [u8]>,
}

/// GUID, offset, length. The GUID's bytes are in the order of its text (RFC 4122, section 4.1.2), as
/// AMD's own tools write them, not in the mixed order of UEFI.
const ENTRY_LEN: usize = 24;
const VCEK: [u8; 16] = guid(0x63da_758d, 0xe664, 0x4564, 0xadc5_f4b9_3be8_accd);
const VLEK: [u8; 16] = guid(0xa807_4bc2, 0xa25a, 0x483e, 0xaae6_39c0_45a0_b8a1);
const ASK: [u8; 16] = guid(0x4ab7_b379, 0xbbac, 0x4fe4, 0xa02f_05ae_f327_c782);
const ARK: [u8; 16] = guid(0xc0b4_06a4, 0xa803, 0x4952, 0x9743_3fb6_014c_d0ae);
const CRL: [u8; 16] = guid(0x92f8_1bc3, 0x5811, 0x4d3d, 0x97ff_d19f_88dc_67ea);

impl<'a> CertificateTable<'a> {
    /// Reads a table. Entries of kinds that are not known are passed over.
    ///
    /// # Errors
    /// See [`TableError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TableError> {
        let mut table = CertificateTable::default();
        for (index, entry) in bytes.chunks(ENTRY_LEN).enumerate() {
            let Some((guid, position)) = entry.split_first_chunk::<16>() else { break };
            let (Some(offset), Some(length)) = (u32_at(position, 0), u32_at(position, 4)) else {
                break;
            };
            if *guid == [0; 16] {
                return Ok(table);
            }
            let contents = range(bytes, offset, length).ok_or(TableError::OutOfBounds {
                index,
                offset,
                length,
                table: bytes.len(),
            })?;
            let (kind, slot) = match *guid {
                VCEK => ("VCEK", &mut table.vcek),
                VLEK => ("VLEK", &mut table.vlek),
                ASK => ("ASK", &mut table.ask),
                ARK => ("ARK", &mut table.ark),
                CRL => ("CRL", &mut table.crl),
                _ => continue,
            };
            if slot.replace(contents).is_some() {
                return Err(TableError::Repeated(kind));
            }
        }
        Err(TableError::Unterminated(bytes.len()))
    }

    /// The table's bytes, as [`Self::parse`] reads them. Contents together are less than 4 GiB.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { vcek, vlek, ask, ark, crl } = *self;
        let all = [(VCEK, vcek), (VLEK, vlek), (ASK, ask), (ARK, ark), (CRL, crl)];
        let entries = || all.iter().filter_map(|(guid, contents)| Some((guid, (*contents)?)));
        let mut bytes = Vec::new();
        let mut offset = (entries().count() + 1) * ENTRY_LEN;
        for (guid, contents) in entries() {
            bytes.extend_from_slice(guid);
            for number in [offset, contents.len()] {
                bytes.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
            }
            offset += contents.len();
        }
        bytes.extend([0; ENTRY_LEN]);
        bytes.extend(entries().flat_map(|(_, contents)| contents));
        bytes
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn range(bytes: &[u8], offset: u32, length: u32) -> Option<&[u8]> {
    let offset = usize::try_from(offset).ok()?;
    let length = usize::try_from(length).ok()?;
    bytes.get(offset..offset.checked_add(length)?)
}

const fn guid(first: u32, second: u16, third: u16, rest: u64) -> [u8; 16] {
    let [a, b, c, d] = first.to_be_bytes();
    let [e, f] = second.to_be_bytes();
    let [g, h] = third.to_be_bytes();
    let [i, j, k, l, m, n, o, p] = rest.to_be_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            contents in proptest::array::uniform5(option::of(proptest::collection::vec(any::<u8>(), 0..99)))
        ) {
            let [vcek, vlek, ask, ark, crl] = contents.each_ref().map(Option::as_deref);
            let table = CertificateTable { vcek, vlek, ask, ark, crl };
            let bytes = table.to_bytes();
            prop_assert_eq!(CertificateTable::parse(&bytes), Ok(table));
        }
    }

    fn table(entries: &[([u8; 16], u32, u32)], contents: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (guid, offset, length) in entries {
            bytes.extend_from_slice(guid);
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&length.to_le_bytes());
        }
        bytes.extend_from_slice(contents);
        bytes
    }

    #[test]
    fn finds_certificates_and_passes_over_the_unknown() {
        let bytes =
            table(&[(VCEK, 96, 2), ([9; 16], 96, 1), (ARK, 98, 1), ([0; 16], 0, 0)], b"abc");
        let found = CertificateTable::parse(&bytes).unwrap();
        assert_eq!(found.vcek, Some(&b"ab"[..]));
        assert_eq!(found.ark, Some(&b"c"[..]));
        assert_eq!((found.vlek, found.ask, found.crl), (None, None, None));
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        let unterminated = table(&[(VCEK, 24, 0)], b"");
        assert_eq!(
            CertificateTable::parse(&unterminated),
            Err(TableError::Unterminated(unterminated.len()))
        );
        assert_eq!(CertificateTable::parse(b""), Err(TableError::Unterminated(0)));
        let outside = table(&[(VCEK, 48, u32::MAX), ([0; 16], 0, 0)], b"");
        assert!(matches!(
            CertificateTable::parse(&outside),
            Err(TableError::OutOfBounds { index: 0, .. })
        ));
        let twice = table(&[(ASK, 0, 1), (ASK, 0, 1), ([0; 16], 0, 0)], b"");
        assert_eq!(CertificateTable::parse(&twice), Err(TableError::Repeated("ASK")));
    }
}
