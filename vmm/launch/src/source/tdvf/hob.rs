//! The TD hand-off block list: how a VMM tells a TDVF which memory there is (UEFI Platform
//! Initialization specification, volume 3, "HOB Design"; Intel TDX Virtual Firmware Design Guide,
//! "TD HOB").
//!
//! The list is not in MRTD. The firmware extends it into RTMR0 before it trusts it, so that the
//! same guest must always get the same bytes: ranges ascend, reserved fields are zero, and nothing
//! in it depends on time or chance.

use crate::{Digest384, Gpa, GpaError, GpaRange};

const TYPE_HANDOFF: u16 = 1;
const TYPE_RESOURCE: u16 = 3;
const TYPE_END: u16 = 0xffff;
const HANDOFF: usize = 56;
const RESOURCE: usize = 48;
pub(crate) const END: usize = 8;
const HANDOFF_VERSION: u32 = 9;
/// Present, initialized and tested.
const ATTRIBUTES: u32 = 7;

/// The low memory of QEMU's q35 machine when there is too much for it to be all below 4 GiB.
const Q35_LOW_MEMORY: u64 = 0x8000_0000;
/// From this size on it is too much.
const Q35_LOW_MEMORY_LIMIT: u64 = 0xb000_0000;
const FOUR_GIB: u64 = 1 << 32;

/// State of a range, which determines what the firmware does before it uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceKind {
    /// Nothing: its pages are part of the launch (EFI_RESOURCE_SYSTEM_MEMORY).
    Added,
    /// Accept its pages (EFI_RESOURCE_MEMORY_UNACCEPTED).
    Unaccepted,
}

impl ResourceKind {
    const fn raw(self) -> u32 {
        match self {
            Self::Added => 0,
            Self::Unaccepted => 7,
        }
    }
}

/// A range of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Whether its pages need to be accepted.
    pub kind: ResourceKind,
    /// Which pages.
    pub range: GpaRange,
}

/// A TD HOB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdHob {
    bytes: Vec<u8>,
}

/// Why there is no TD HOB.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum BuildError {
    #[error("{low} and {high} are not ascending, disjoint ranges")]
    Order { low: GpaRange, high: GpaRange },
    #[error("{range} is part of the launch but not, or not as a whole, in the guest's memory")]
    NotInMemory { range: GpaRange },
    #[error("the list of {length} bytes does not fit the {room} bytes at {section}")]
    Room { section: GpaRange, length: usize, room: u64 },
}

/// Why bytes are not a TD HOB. Offsets are bytes from the list's start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ReadError {
    #[error("the HOB list ends at offset {at:#x} within a HOB")]
    Truncated { at: usize },
    #[error("HOB of type {kind:#x} and {length} bytes at offset {at:#x}; expected {expected}")]
    Unexpected { at: usize, kind: u16, length: u16, expected: &'static str },
    #[error("{field} at offset {at:#x} is {found:#x} instead of {expected:#x}")]
    Field { at: usize, field: &'static str, found: u64, expected: u64 },
    #[error("the memory of the HOB at offset {at:#x}")]
    Range {
        at: usize,
        #[source]
        source: GpaError,
    },
    #[error("the HOB at offset {at:#x} describes {range}, which is not above what came before")]
    Order { at: usize, range: GpaRange },
}

/// The RAM of QEMU's q35 machine: below and from 4 GiB.
///
/// # Errors
/// If the size is not a whole number of pages.
pub fn q35_memory(bytes: u64) -> Result<Vec<GpaRange>, GpaError> {
    let low = q35_low_memory(bytes);
    let mut memory = vec![GpaRange::from_bytes(Gpa(0), low)?];
    if bytes > low {
        memory.push(GpaRange::from_bytes(Gpa(FOUR_GIB), bytes - low)?);
    }
    Ok(memory)
}

/// How much of the RAM of QEMU's q35 machine is below 4 GiB, in bytes.
#[must_use]
pub const fn q35_low_memory(bytes: u64) -> u64 {
    if bytes < Q35_LOW_MEMORY_LIMIT { bytes } else { Q35_LOW_MEMORY }
}

/// Cuts the memory of a guest along the ranges that are part of its launch. Both must ascend.
///
/// # Errors
/// If they do not, or a launched range is not in the memory.
pub fn resources(memory: &[GpaRange], added: &[GpaRange]) -> Result<Vec<Resource>, BuildError> {
    for ranges in [memory, added] {
        for pair in ranges.windows(2) {
            if let [low, high] = *pair
                && low.end() > high.start()
            {
                return Err(BuildError::Order { low, high });
            }
        }
    }
    let mut resources = Vec::new();
    let mut added = added.iter().copied().peekable();
    for ram in memory {
        let mut from = ram.start();
        while let Some(range) = added.next_if(|range| range.start() < ram.end()) {
            if !ram.contains(range) {
                return Err(BuildError::NotInMemory { range });
            }
            push(&mut resources, ResourceKind::Unaccepted, from, range.start());
            push(&mut resources, ResourceKind::Added, range.start(), range.end());
            from = range.end();
        }
        push(&mut resources, ResourceKind::Unaccepted, from, ram.end());
    }
    match added.next() {
        Some(range) => Err(BuildError::NotInMemory { range }),
        None => Ok(resources),
    }
}

fn push(resources: &mut Vec<Resource>, kind: ResourceKind, start: Gpa, end: Gpa) {
    if let Some(bytes) = end.0.checked_sub(start.0).filter(|bytes| *bytes > 0)
        && let Ok(range) = GpaRange::from_bytes(start, bytes)
    {
        resources.push(Resource { kind, range });
    }
}

impl TdHob {
    /// Writes the list for the section that it goes to.
    ///
    /// # Errors
    /// If it does not fit there.
    pub fn build(section: GpaRange, resources: &[Resource]) -> Result<Self, BuildError> {
        let length = HANDOFF + RESOURCE * resources.len() + END;
        if length as u64 > section.len() {
            return Err(BuildError::Room { section, length, room: section.len() });
        }
        let mut bytes = Vec::with_capacity(length);
        header(&mut bytes, TYPE_HANDOFF, HANDOFF);
        bytes.extend(HANDOFF_VERSION.to_le_bytes());
        // Boot mode, then memory top and bottom, free memory top and bottom: the firmware's own.
        bytes.extend([0; 4 + 4 * 8]);
        bytes.extend((section.start().0 + length as u64).to_le_bytes());
        for resource in resources {
            header(&mut bytes, TYPE_RESOURCE, RESOURCE);
            // Owner: none.
            bytes.extend([0; 16]);
            bytes.extend(resource.kind.raw().to_le_bytes());
            bytes.extend(ATTRIBUTES.to_le_bytes());
            bytes.extend(resource.range.start().0.to_le_bytes());
            bytes.extend(resource.range.len().to_le_bytes());
        }
        header(&mut bytes, TYPE_END, END);
        Ok(Self { bytes })
    }

    /// The whole list, with its end marker.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Digest that the firmware extends into RTMR0: SHA-384 of the list without its end marker.
    #[must_use]
    pub fn event_digest(&self) -> Digest384 {
        let measured = self.bytes.len().saturating_sub(END);
        Digest384::of(&self.bytes[..measured])
    }
}

fn header(bytes: &mut Vec<u8>, kind: u16, length: usize) {
    bytes.extend(kind.to_le_bytes());
    // At most 56.
    bytes.extend([length.to_le_bytes()[0], 0]);
    bytes.extend([0; 4]);
}

/// Reads the list at `start` of guest memory, as strictly as a firmware should: exactly the HOBs
/// that [`TdHob::build`] writes.
///
/// # Errors
/// At the first byte that is not as it should be.
pub fn read(bytes: &[u8], start: Gpa) -> Result<Vec<Resource>, ReadError> {
    let mut reader = Reader { bytes, at: 0 };
    reader.header(TYPE_HANDOFF, HANDOFF, "a hand-off HOB")?;
    reader.expect32("the version", HANDOFF_VERSION)?;
    reader.expect32("the boot mode", 0)?;
    for field in ["memory top", "memory bottom", "free memory top", "free memory bottom"] {
        reader.expect64(field, 0)?;
    }
    let end_at = reader.at;
    let end = reader.u64()?;
    let mut resources: Vec<Resource> = Vec::new();
    while reader.peek_kind()? == TYPE_RESOURCE {
        let resource = reader.resource()?;
        if let Some(last) = resources.last()
            && resource.range.start() < last.range.end()
        {
            return Err(ReadError::Order { at: reader.at - RESOURCE, range: resource.range });
        }
        resources.push(resource);
    }
    reader.header(TYPE_END, END, "a resource descriptor or the end")?;
    match start.checked_add(reader.at as u64) {
        Some(expected) if expected.0 == end => Ok(resources),
        expected => Err(ReadError::Field {
            at: end_at,
            field: "the end of the list",
            found: end,
            expected: expected.map_or(0, |gpa| gpa.0),
        }),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let chunk = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk::<N>);
        let chunk = *chunk.ok_or(ReadError::Truncated { at: self.bytes.len() })?;
        self.at += N;
        Ok(chunk)
    }

    fn u64(&mut self) -> Result<u64, ReadError> {
        self.take().map(u64::from_le_bytes)
    }

    fn peek_kind(&mut self) -> Result<u16, ReadError> {
        let at = self.at;
        let kind = self.take().map(u16::from_le_bytes);
        self.at = at;
        kind
    }

    fn expect32(&mut self, field: &'static str, expected: u32) -> Result<(), ReadError> {
        let at = self.at;
        let found = u32::from_le_bytes(self.take()?);
        Self::same(at, field, found.into(), expected.into())
    }

    fn expect64(&mut self, field: &'static str, expected: u64) -> Result<(), ReadError> {
        let at = self.at;
        let found = self.u64()?;
        Self::same(at, field, found, expected)
    }

    fn same(at: usize, field: &'static str, found: u64, expected: u64) -> Result<(), ReadError> {
        if found == expected {
            return Ok(());
        }
        Err(ReadError::Field { at, field, found, expected })
    }

    fn header(&mut self, kind: u16, size: usize, what: &'static str) -> Result<(), ReadError> {
        let at = self.at;
        let found = u16::from_le_bytes(self.take()?);
        let length = u16::from_le_bytes(self.take()?);
        if found != kind || usize::from(length) != size {
            return Err(ReadError::Unexpected { at, kind: found, length, expected: what });
        }
        self.expect32("the reserved word", 0)
    }

    fn resource(&mut self) -> Result<Resource, ReadError> {
        let at = self.at;
        self.header(TYPE_RESOURCE, RESOURCE, "a resource descriptor")?;
        self.expect64("the owner", 0)?;
        self.expect64("the owner", 0)?;
        let kind_at = self.at;
        let kind = match u32::from_le_bytes(self.take()?) {
            0 => ResourceKind::Added,
            7 => ResourceKind::Unaccepted,
            other => {
                let (field, found) = ("the resource type", u64::from(other));
                return Err(ReadError::Field { at: kind_at, field, found, expected: 7 });
            }
        };
        self.expect32("the resource attributes", ATTRIBUTES)?;
        let (start, length) = (Gpa(self.u64()?), self.u64()?);
        let range = GpaRange::from_bytes(start, length)
            .map_err(|source| ReadError::Range { at, source })?;
        Ok(Resource { kind, range })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(start: u64, bytes: u64) -> GpaRange {
        GpaRange::from_bytes(Gpa(start), bytes).unwrap()
    }

    #[test]
    fn memory_is_cut_where_the_launch_adds_pages() {
        let memory = [range(0, 0x10_0000), range(1 << 32, 0x1000)];
        let added = [range(0x8000, 0x2000), range(0xa000, 0x1000)];
        let found: Vec<_> = resources(&memory, &added)
            .unwrap()
            .iter()
            .map(|resource| (resource.kind, resource.range.to_string()))
            .collect();
        use ResourceKind::{Added, Unaccepted};
        assert_eq!(
            found,
            [
                (Unaccepted, "0x0..0x8000".to_owned()),
                (Added, "0x8000..0xa000".to_owned()),
                (Added, "0xa000..0xb000".to_owned()),
                (Unaccepted, "0xb000..0x100000".to_owned()),
                (Unaccepted, "0x100000000..0x100001000".to_owned()),
            ]
        );
    }

    #[test]
    fn launched_range_outside_memory_is_rejected() {
        let memory = [range(0, 0x2000), range(0x10000, 0x1000)];
        for outside in [range(0x1000, 0x2000), range(0x8000, 0x1000), range(0x20000, 0x1000)] {
            assert_eq!(
                resources(&memory, &[outside]),
                Err(BuildError::NotInMemory { range: outside })
            );
        }
        assert!(matches!(
            resources(&memory, &[range(0x1000, 0x1000), range(0, 0x1000)]),
            Err(BuildError::Order { .. })
        ));
    }

    #[test]
    fn a_list_that_does_not_fit_is_refused() {
        let resource = Resource { kind: ResourceKind::Added, range: range(0, 0x1000) };
        let section = range(0x80_9000, 0x1000);
        assert!(TdHob::build(section, &[resource; 84]).is_ok());
        assert!(matches!(
            TdHob::build(section, &[resource; 85]),
            Err(BuildError::Room { length: 4144, .. })
        ));
    }

    #[test]
    fn a_range_below_the_one_before_is_refused() {
        let high = Resource { kind: ResourceKind::Added, range: range(0x1000, 0x1000) };
        let low = Resource { kind: ResourceKind::Added, range: range(0, 0x1000) };
        let section = range(0x80_9000, 0x2000);
        let hob = TdHob::build(section, &[high, low]).unwrap();
        assert_eq!(
            read(hob.bytes(), section.start()),
            Err(ReadError::Order { at: HANDOFF + RESOURCE, range: low.range })
        );
    }

    proptest! {
        #[test]
        fn hob_list_round_trips(pages in proptest::collection::vec((1..64_u64, any::<bool>()), 0..60)) {
            let mut start = 0;
            let resources: Vec<_> = pages
                .into_iter()
                .map(|(pages, added)| {
                    let range = range(start, pages * 0x1000);
                    start = range.end().0;
                    let kind =
                        if added { ResourceKind::Added } else { ResourceKind::Unaccepted };
                    Resource { kind, range }
                })
                .collect();
            let section = range(0x80_9000, 0x2000);
            let hob = TdHob::build(section, &resources).unwrap();
            prop_assert_eq!(read(hob.bytes(), section.start()).unwrap(), resources);
        }

        #[test]
        fn changed_bytes_are_read_or_refused(at in 0..160_usize, byte: u8) {
            let resource = Resource { kind: ResourceKind::Unaccepted, range: range(0, 0x1000) };
            let section = range(0x80_9000, 0x2000);
            let hob = TdHob::build(section, &[resource, Resource {
                range: range(0x1000, 0x1000), ..resource
            }]).unwrap();
            let mut bytes = hob.bytes().to_vec();
            let length = bytes.len();
            bytes[at % length] = byte;
            let _ = read(&bytes, section.start());
        }
    }
}
