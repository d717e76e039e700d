//! The message `Attestation` of Google's TPM client (go-tpm-tools, `proto/attest.proto`), read by hand:
//! protocol buffers of version 3, of which only varints and byte strings occur.

/// The most fields of a message.
const MAX_FIELDS: usize = 4096;

/// A field of a message.
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, in its order.
pub(super) fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() && fields.len() < MAX_FIELDS {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut bytes)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (taken, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Value::Bytes(taken)
            }
            _ => return None,
        };
        fields.push((key >> 3, value));
    }
    bytes.is_empty().then_some(fields)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        number |= part.checked_shl(shift).filter(|shifted| shifted >> shift == part)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// A quote of one bank.
#[derive(Clone, Default, Debug)]
pub(super) struct Quote<'a> {
    pub(super) message: &'a [u8],
    pub(super) signature: &'a [u8],
    /// The bank by TPM_ALG_ID, and its registers.
    pub(super) bank: u64,
    pub(super) registers: Vec<(u32, &'a [u8])>,
}

/// The parts that are read. Others are passed over.
#[derive(Clone, Default, Debug)]
pub(super) struct Attestation<'a> {
    pub(super) ak_public: &'a [u8],
    pub(super) quotes: Vec<Quote<'a>>,
    pub(super) event_log: Option<&'a [u8]>,
    pub(super) ak_certificate: &'a [u8],
    pub(super) intermediates: Vec<&'a [u8]>,
}

impl<'a> Attestation<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut found = Attestation::default();
        for field in fields(bytes)? {
            match field {
                (1, Value::Bytes(bytes)) => found.ak_public = bytes,
                (2, Value::Bytes(bytes)) => found.quotes.push(Quote::parse(bytes)?),
                (3, Value::Bytes(bytes)) => found.event_log = Some(bytes),
                (6, Value::Bytes(bytes)) => found.ak_certificate = bytes,
                (7, Value::Bytes(bytes)) => found.intermediates.push(bytes),
                (1 | 2 | 3 | 6 | 7, Value::Number(_)) => return None,
                _ => {}
            }
        }
        Some(found)
    }
}

impl<'a> Quote<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut found = Quote::default();
        for field in fields(bytes)? {
            match field {
                (1, Value::Bytes(bytes)) => found.message = bytes,
                (2, Value::Bytes(bytes)) => found.signature = bytes,
                (3, Value::Bytes(bytes)) => found.read_registers(bytes)?,
                _ => return None,
            }
        }
        Some(found)
    }

    fn read_registers(&mut self, bytes: &'a [u8]) -> Option<()> {
        for field in fields(bytes)? {
            match field {
                (1, Value::Number(bank)) => self.bank = bank,
                (2, Value::Bytes(entry)) => {
                    let (mut number, mut value) = (0, &[][..]);
                    for field in fields(entry)? {
                        match field {
                            (1, Value::Number(found)) => number = found,
                            (2, Value::Bytes(found)) => value = found,
                            _ => return None,
                        }
                    }
                    let number = u32::try_from(number).ok()?;
                    if self.registers.iter().any(|(earlier, _)| *earlier == number) {
                        return None;
                    }
                    self.registers.push((number, value));
                }
                _ => return None,
            }
        }
        self.registers.sort_by_key(|(number, _)| *number);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_have_64_bits() {
        let number = |mut bytes: &[u8]| varint(&mut bytes);
        assert_eq!(number(&[0x96, 0x01]), Some(150));
        assert_eq!(
            number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
            Some(u64::MAX)
        );
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]), None);
        assert_eq!(number(&[0x80; 11]), None);
        assert_eq!(number(&[0x80]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Attestation::parse(&bytes);
        }
    }
}
