//! A strict reader of CBOR (RFC 8949) that borrows from its input.
//!
//! Evidence is signed as bytes, so nothing is encoded again. Beyond well-formed items it refuses what leaves a
//! reader a choice: a key that occurs twice, text that is not UTF-8, bytes after the item. Lengths may be
//! indefinite for arrays and maps, which AWS uses.

/// How deep items may be nested.
const MAX_DEPTH: usize = 8;

/// An item.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Item<'a> {
    /// A number from -2^64 to 2^64 - 1.
    Integer(i128),
    Bytes(&'a [u8]),
    Text(&'a str),
    Array(Vec<Item<'a>>),
    Map(Vec<(Item<'a>, Item<'a>)>),
    Tag(u64, Box<Item<'a>>),
    Bool(bool),
    Null,
}

impl<'a> Item<'a> {
    /// Reads exactly one item.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let mut reader = Reader { bytes, at: 0 };
        let item = reader.item(MAX_DEPTH)?;
        match bytes.len() - reader.at {
            0 => Ok(item),
            rest => Err(format!("{rest} bytes follow the CBOR item")),
        }
    }

    pub(crate) fn bytes(&self) -> Option<&'a [u8]> {
        if let Item::Bytes(bytes) = self { Some(bytes) } else { None }
    }

    pub(crate) fn text(&self) -> Option<&'a str> {
        if let Item::Text(text) = self { Some(text) } else { None }
    }

    pub(crate) fn integer(&self) -> Option<i128> {
        if let Item::Integer(number) = self { Some(*number) } else { None }
    }

    pub(crate) fn array(&self) -> Option<&[Item<'a>]> {
        if let Item::Array(items) = self { Some(items) } else { None }
    }

    pub(crate) fn map(&self) -> Option<&[(Item<'a>, Item<'a>)]> {
        if let Item::Map(pairs) = self { Some(pairs) } else { None }
    }

    /// The value of a key of a map.
    pub(crate) fn get(&self, key: &Item<'_>) -> Option<&Item<'a>> {
        let pairs = self.map()?;
        pairs.iter().find(|(found, _)| found == key).map(|(_, value)| value)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The argument of an item's head.
enum Argument {
    Number(u64),
    Indefinite,
}

impl<'a> Reader<'a> {
    fn fault(&self, what: &str) -> String {
        format!("CBOR: {what} at byte {}", self.at)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| self.fault("the end of the data"))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn argument(&mut self, low: u8) -> Result<Argument, String> {
        let width = match low {
            0..24 => return Ok(Argument::Number(u64::from(low))),
            24..28 => 1 << (low - 24),
            31 => return Ok(Argument::Indefinite),
            _ => return Err(self.fault("a reserved length")),
        };
        let bytes = self.take(width)?;
        Ok(Argument::Number(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))))
    }

    fn number(&mut self, low: u8) -> Result<u64, String> {
        match self.argument(low)? {
            Argument::Number(number) => Ok(number),
            Argument::Indefinite => Err(self.fault("an indefinite length")),
        }
    }

    fn item(&mut self, depth: usize) -> Result<Item<'a>, String> {
        let below =
            depth.checked_sub(1).ok_or_else(|| self.fault("items that are nested too deep"))?;
        let head = self.byte()?;
        let low = head & 0x1f;
        match head >> 5 {
            0 => Ok(Item::Integer(i128::from(self.number(low)?))),
            1 => Ok(Item::Integer(-1 - i128::from(self.number(low)?))),
            2 => {
                let length = self.number(low)?;
                Ok(Item::Bytes(self.take(length)?))
            }
            3 => {
                let length = self.number(low)?;
                let text = str::from_utf8(self.take(length)?);
                Ok(Item::Text(text.map_err(|_| self.fault("text that is not UTF-8"))?))
            }
            4 => {
                let argument = self.argument(low)?;
                let mut items = Vec::new();
                while !self.ends(&argument, items.len())? {
                    items.push(self.item(below)?);
                }
                Ok(Item::Array(items))
            }
            5 => self.pairs(low, below),
            6 => {
                let tag = self.number(low)?;
                Ok(Item::Tag(tag, Box::new(self.item(below)?)))
            }
            _ => match low {
                20 => Ok(Item::Bool(false)),
                21 => Ok(Item::Bool(true)),
                22 => Ok(Item::Null),
                _ => Err(self.fault("a value of an unknown type")),
            },
        }
    }

    fn pairs(&mut self, low: u8, below: usize) -> Result<Item<'a>, String> {
        let argument = self.argument(low)?;
        let mut pairs: Vec<(Item<'a>, Item<'a>)> = Vec::new();
        while !self.ends(&argument, pairs.len())? {
            let key = self.item(below)?;
            if pairs.iter().any(|(earlier, _)| *earlier == key) {
                return Err(self.fault("a key that occurs twice"));
            }
            pairs.push((key, self.item(below)?));
        }
        Ok(Item::Map(pairs))
    }

    /// Whether a collection that has `count` items ends here.
    fn ends(&mut self, argument: &Argument, count: usize) -> Result<bool, String> {
        match argument {
            Argument::Number(number) => Ok(u64::try_from(count) == Ok(*number)),
            Argument::Indefinite => {
                let end = self.bytes.get(self.at) == Some(&0xff);
                self.at += usize::from(end);
                Ok(end)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn items_of_the_specification_are_read() {
        // RFC 8949, appendix A.
        for (bytes, item) in [
            (&b"\x18\x64"[..], Item::Integer(100)),
            (b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff", Item::Integer(u64::MAX.into())),
            (b"\x39\x03\xe7", Item::Integer(-1000)),
            (b"\x44\x01\x02\x03\x04", Item::Bytes(&[1, 2, 3, 4])),
            (b"\x62\xc3\xbc", Item::Text("\u{fc}")),
            (b"\x9f\x01\xff", Item::Array(vec![Item::Integer(1)])),
            (b"\xbf\x61a\xf6\xff", Item::Map(vec![(Item::Text("a"), Item::Null)])),
            (b"\xd2\x80", Item::Tag(18, Box::new(Item::Array(Vec::new())))),
            (b"\xf5", Item::Bool(true)),
        ] {
            assert_eq!(Item::parse(bytes), Ok(item));
        }
    }

    #[test]
    fn what_leaves_a_choice_is_refused() {
        for bytes in [
            &b""[..],
            b"\x01\x01",
            b"\xa2\x01\x01\x01\x02",
            b"\xbf\x01\x01\x18\x01\x02\xff",
            b"\x5f\x41\x00\xff",
            b"\x61\xff",
            b"\x1c",
            b"\xff",
            b"\xf9\x00\x00",
            b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff\x00",
            b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
            &[0x81; 100],
        ] {
            assert!(Item::parse(bytes).is_err(), "{bytes:02x?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Item::parse(&bytes);
        }
    }
}
