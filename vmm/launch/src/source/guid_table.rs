//! The table of GUIDed entries at the end of an OVMF image.
//!
//! It was made for SEV-ES (edk2, `OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm`) and every
//! launcher of confidential guests reads it since: it says where the metadata of SEV and TDX is.
//!
//! ```text
//!   lower addresses
//!   ┌──────────────────────────────────┐
//!   │ data of the last entry           │ ─┐
//!   │ u16 length (data + 18)           │  │ an entry
//!   │ GUID of the last entry           │ ─┘
//!   │ ...                              │
//!   │ u16 length of the whole table    │
//!   │ footer GUID                      │
//!   ├──────────────────────────────────┤ 32 bytes before the end of the image
//!   │ reset vector                     │
//!   └──────────────────────────────────┘
//! ```

use super::Guid;

/// Marks the end of the table.
const FOOTER: Guid = Guid::new(0x96b582de_1fb2_45f7_baea_a366c55a082d);

/// Bytes between the table and the end of the image: the reset vector.
const BEHIND_TABLE: usize = 32;

/// Length and GUID, which end every entry and the table.
const TAIL: usize = 2 + 16;

/// The entries of an image's table.
#[derive(Clone, Debug)]
pub struct GuidTable<'a> {
    /// From the last entry to the first, which is the order in which they are found.
    entries: Vec<(Guid, &'a [u8])>,
}

/// Why an image has no table that can be read. Offsets count from the start of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum GuidTableError {
    #[error("the image has {length} bytes, which is too short for a GUID table")]
    TooShort { length: usize },
    #[error(
        "no GUID table: expected its footer {FOOTER} at offset {offset:#x}, found {found}; is this \
         an OVMF image for confidential guests?"
    )]
    NoFooter { offset: usize, found: Guid },
    #[error(
        "the GUID table says at offset {offset:#x} that it is {length} bytes long, which {why}"
    )]
    TableLength { offset: usize, length: u16, why: &'static str },
    #[error(
        "entry {guid} of the GUID table says at offset {offset:#x} that it is {length} bytes long, \
         but an entry has at least {TAIL} and here at most {remaining}"
    )]
    EntryLength { guid: Guid, offset: usize, length: u16, remaining: usize },
    #[error("{remaining} bytes at offset {offset:#x} of the GUID table are not an entry")]
    Remainder { offset: usize, remaining: usize },
    #[error("entry {guid} is in the GUID table twice, again at offset {offset:#x}")]
    Duplicate { guid: Guid, offset: usize },
}

impl<'a> GuidTable<'a> {
    /// Finds the table at the end of `image` and reads its entries.
    ///
    /// # Errors
    /// There is no footer, or a length does not fit what is there, or a GUID occurs twice (readers
    /// disagree on which one counts).
    pub fn parse(image: &'a [u8]) -> Result<Self, GuidTableError> {
        let too_short = GuidTableError::TooShort { length: image.len() };
        let end = image.len().checked_sub(BEHIND_TABLE).ok_or(too_short)?;
        let (front, length, footer) = split_tail(&image[..end]).ok_or(too_short)?;
        if footer != FOOTER {
            return Err(GuidTableError::NoFooter { offset: end - 16, found: footer });
        }
        let wrong = |why| GuidTableError::TableLength { offset: end - TAIL, length, why };
        let body = usize::from(length)
            .checked_sub(TAIL)
            .ok_or_else(|| wrong("is shorter than its own footer"))?;
        let start = front
            .len()
            .checked_sub(body)
            .ok_or_else(|| wrong("reaches past the start of the image"))?;
        let mut table = Self { entries: Vec::new() };
        table.read(&front[start..], start)?;
        Ok(table)
    }

    /// Reads entries from the end of `rest`, which starts at offset `start` of the image.
    fn read(&mut self, mut rest: &'a [u8], start: usize) -> Result<(), GuidTableError> {
        while !rest.is_empty() {
            let (front, length, guid) = split_tail(rest)
                .ok_or(GuidTableError::Remainder { offset: start, remaining: rest.len() })?;
            let offset = start + front.len();
            let data_length = usize::from(length).checked_sub(TAIL);
            let data_start = data_length.and_then(|length| front.len().checked_sub(length));
            let Some(data_start) = data_start else {
                let remaining = rest.len();
                return Err(GuidTableError::EntryLength { guid, offset, length, remaining });
            };
            if self.find(guid).is_some() {
                return Err(GuidTableError::Duplicate { guid, offset });
            }
            self.entries.push((guid, &front[data_start..]));
            rest = &front[..data_start];
        }
        Ok(())
    }

    /// The data of an entry.
    #[must_use]
    pub fn find(&self, guid: Guid) -> Option<&'a [u8]> {
        self.entries.iter().find(|(found, _)| *found == guid).map(|(_, data)| *data)
    }
}

/// Splits `bytes` into the part before a trailing length and GUID, and those two.
fn split_tail(bytes: &[u8]) -> Option<(&[u8], u16, Guid)> {
    let (front, guid) = bytes.split_last_chunk()?;
    let (front, length) = front.split_last_chunk()?;
    Some((front, u16::from_le_bytes(*length), Guid(*guid)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: Guid = Guid::new(0x00f771de_1a7e_4fcb_890e_68c77e2fb44e);
    const B: Guid = Guid::new(0xdc886566_984a_4798_a75e_5585a7bf67cc);

    /// An image that ends in a table of these entries, the first one at the lowest address.
    fn image(entries: &[(Guid, &[u8])]) -> Vec<u8> {
        let mut image = vec![0xcc; 64];
        let start = image.len();
        let tail = |image: &mut Vec<u8>, length: usize, guid: Guid| {
            image.extend(u16::try_from(length).unwrap().to_le_bytes());
            image.extend(guid.0);
        };
        for (guid, data) in entries {
            image.extend(*data);
            tail(&mut image, data.len() + TAIL, *guid);
        }
        let length = image.len() - start + TAIL;
        tail(&mut image, length, FOOTER);
        image.extend([0; BEHIND_TABLE]);
        image
    }

    #[test]
    fn entries_are_found_by_guid() {
        let image = image(&[(A, &[1, 2, 3, 4]), (B, &[])]);
        let table = GuidTable::parse(&image).unwrap();
        assert_eq!(table.find(A), Some(&[1, 2, 3, 4][..]));
        assert_eq!(table.find(B), Some(&[][..]));
        assert_eq!(table.find(FOOTER), None);
    }

    #[test]
    fn missing_guid_table_is_rejected_with_its_offset() {
        assert_eq!(
            GuidTable::parse(&[0; 49]).unwrap_err(),
            GuidTableError::TooShort { length: 49 }
        );
        let none = GuidTable::parse(&[0; 4096]).unwrap_err();
        assert_eq!(none, GuidTableError::NoFooter { offset: 4096 - 48, found: Guid([0; 16]) });
        let twice = image(&[(A, &[1]), (A, &[2])]);
        let error = GuidTable::parse(&twice).unwrap_err();
        assert_eq!(error, GuidTableError::Duplicate { guid: A, offset: 65 });
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let good = image(&[(A, &[1, 2, 3, 4])]);
        let with = |from_end: usize, length: u16| {
            let mut bad = good.clone();
            let at = bad.len() - from_end;
            bad[at..at + 2].copy_from_slice(&length.to_le_bytes());
            GuidTable::parse(&bad).unwrap_err().to_string()
        };
        assert!(with(50, 17).contains("shorter than its own footer"));
        assert!(with(50, 9999).contains("past the start"));
        assert!(with(50, 20).contains("are not an entry"));
        assert!(with(68, 17).contains("17 bytes long"));
        assert!(with(68, 23).contains("at most 22"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut image = tail;
            image.extend(FOOTER.0);
            image.extend([0; BEHIND_TABLE]);
            let _ = GuidTable::parse(&image);
        }
    }
}
