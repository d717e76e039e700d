//! The shared buffer of a GetQuote call (Intel TDX GHCI, `TDG.VP.VMCALL<GetQuote>`).
//!
//! Version, status, length of what the guest wrote, length of the quote: 24 bytes; then the report,
//! and later the quote. The guest may change any of it at any time: it is read once.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use casemate_devices::memory::DeviceMemory;
use casemate_kvm::exit::TdxReply;
use vm_memory::{Bytes as _, GuestAddress};

const PAGE: u64 = 4096;
/// Quotes have some 5 KiB.
const LARGEST: u64 = 128 << 10;
const VERSION: u64 = 1;
const HEADER: u64 = 24;
const STATUS: u64 = 8;
const QUOTE_LENGTH: u64 = 20;
const IN_FLIGHT: u64 = u64::MAX;

/// How a request ends, as the guest reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Status {
    Success = 0,
    Error = 1 << 63,
    Unavailable = 1 << 63 | 1,
}

/// The buffer of a request that is under way.
#[derive(Debug)]
pub(super) struct QuoteBuffer {
    memory: Weak<DeviceMemory>,
    start: GuestAddress,
    size: u64,
}

impl QuoteBuffer {
    /// Takes a request: the buffer, which says from now on that the quote is under way, and the
    /// guest's report.
    ///
    /// # Errors
    /// The reply to a guest whose request is not as it should be.
    pub(super) fn open(
        memory: &Arc<DeviceMemory>,
        gpa: u64,
        size: u64,
    ) -> Result<(Self, Vec<u8>), TdxReply> {
        if !gpa.is_multiple_of(PAGE) || !size.is_multiple_of(PAGE) {
            return Err(TdxReply::AlignError);
        }
        if size == 0 || size > LARGEST || gpa.checked_add(size).is_none() {
            return Err(TdxReply::InvalidOperand);
        }
        let start = GuestAddress(gpa);
        // All of it is read, so that all of it is known to be shared.
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        memory.read_slice(&mut bytes, start).map_err(|_| TdxReply::InvalidOperand)?;
        let report = report(&bytes).ok_or(TdxReply::InvalidOperand)?.to_vec();
        let buffer = Self { memory: Arc::downgrade(memory), start, size };
        buffer.set(memory, IN_FLIGHT).ok_or(TdxReply::InvalidOperand)?;
        Ok((buffer, report))
    }

    /// Gives the guest its quote, or says why there is none. If the guest is gone, or has made the
    /// buffer private, nobody is told.
    pub(super) fn finish(self, answer: Result<Vec<u8>, Status>) {
        let Some(memory) = self.memory.upgrade() else { return };
        let room = usize::try_from(self.size - HEADER).unwrap_or(0);
        let answer = answer.and_then(|quote| match quote.len() {
            length if length > room => Err(Status::Error),
            _ => Ok(quote),
        });
        let quote = answer.as_deref().unwrap_or_default();
        let length = u32::try_from(quote.len()).unwrap_or(0);
        let status = answer.as_ref().err().copied().unwrap_or(Status::Success);
        let at = |offset| GuestAddress(self.start.0 + offset);
        // An access to no bytes is refused.
        let quote_written = match quote {
            [] => Ok(()),
            quote => memory.write_slice(quote, at(HEADER)),
        };
        let written = quote_written
            .and_then(|()| memory.write_slice(&length.to_le_bytes(), at(QUOTE_LENGTH)));
        // The status last: with it the rest is the guest's to read.
        if written.is_err() || self.set(&memory, status as u64).is_none() {
            tracing::warn!(gpa = self.start.0, "the guest took the buffer of a quote back");
        }
    }

    fn set(&self, memory: &DeviceMemory, status: u64) -> Option<()> {
        let at = GuestAddress(self.start.0 + STATUS);
        memory.store(status.to_le(), at, Ordering::Release).ok()
    }
}

/// The guest's report, if the buffer is as it should be.
#[must_use]
pub fn report(buffer: &[u8]) -> Option<&[u8]> {
    let (version, rest) = buffer.split_first_chunk::<8>()?;
    let (_status, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (_quote_length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok().filter(|length| *length > 0)?;
    (u64::from_le_bytes(*version) == VERSION).then_some(())?;
    rest.get(..length)
}

#[cfg(test)]
mod tests {
    use casemate_devices::memory::SharedPages;
    use vm_memory::GuestMemoryMmap;

    use super::*;

    const GPA: u64 = 0x2000;

    /// Memory of which two pages are shared, with a request for a report of `length` bytes in them.
    fn memory(length: u32) -> Arc<DeviceMemory> {
        let backend = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let memory = DeviceMemory::new(backend, SharedPages::new(GuestAddress(0x1_0000)), true, ());
        memory.iommu().share(GuestAddress(GPA), 0x2000).unwrap();
        let header = [&1_u64.to_le_bytes()[..], &[0; 8], &length.to_le_bytes(), &[0; 4]].concat();
        memory.write_slice(&header, GuestAddress(GPA)).unwrap();
        memory.write_slice(&[7; 1024], GuestAddress(GPA + HEADER)).unwrap();
        Arc::new(memory)
    }

    fn word(memory: &DeviceMemory, offset: u64) -> u64 {
        memory.load(GuestAddress(GPA + offset), Ordering::Acquire).unwrap()
    }

    #[test]
    fn a_report_goes_in_and_a_quote_comes_out() {
        let memory = memory(1024);
        let (buffer, report) = QuoteBuffer::open(&memory, GPA, 0x2000).unwrap();
        assert_eq!((report, word(&memory, STATUS)), (vec![7; 1024], IN_FLIGHT));
        buffer.finish(Ok(vec![9; 3000]));
        assert_eq!((word(&memory, STATUS), word(&memory, 16)), (0, 3000 << 32 | 1024));
        assert_eq!(word(&memory, HEADER), 0x0909_0909_0909_0909);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let memory = memory(1024);
        let refused = |gpa, size| QuoteBuffer::open(&memory, gpa, size).unwrap_err();
        assert_eq!(refused(GPA + 8, 0x1000), TdxReply::AlignError);
        assert_eq!(refused(GPA, 0x1008), TdxReply::AlignError);
        for (gpa, size) in [
            (GPA, 0),
            (GPA, LARGEST + PAGE),
            (GPA, 0x3000),
            (0x8000, 0x1000),
            (1 << 40, 0x1000),
            (u64::MAX - PAGE + 1, PAGE),
        ] {
            assert_eq!(refused(gpa, size), TdxReply::InvalidOperand, "{gpa:#x} {size:#x}");
        }
        for length in [0, 4073, u32::MAX] {
            let memory = self::memory(length);
            let outcome = QuoteBuffer::open(&memory, GPA, 0x1000);
            assert_eq!(outcome.unwrap_err(), TdxReply::InvalidOperand, "{length}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_request_stays_inside_of_its_buffer(
            header: [u8; 24],
            gpa in 0_u64..0x8000,
            size in 0_u64..0x4000,
            answer: Option<Vec<u8>>,
        ) {
            let memory = memory(8);
            memory.write_slice(&header, GuestAddress(GPA)).unwrap();
            if let Ok((buffer, report)) = QuoteBuffer::open(&memory, gpa, size) {
                proptest::prop_assert!(gpa >= GPA && gpa + size <= GPA + 0x2000);
                proptest::prop_assert!((report.len() as u64) <= size - HEADER);
                buffer.finish(answer.ok_or(Status::Error));
            }
        }
    }

    #[test]
    fn a_quote_that_is_too_long_or_comes_too_late_is_none() {
        let memory = memory(1024);
        let open = || QuoteBuffer::open(&memory, GPA, 0x1000).unwrap().0;
        open().finish(Ok(vec![9; 4073]));
        assert_eq!(word(&memory, STATUS), Status::Error as u64);
        open().finish(Err(Status::Unavailable));
        assert_eq!(word(&memory, STATUS), Status::Unavailable as u64);
        let buffer = open();
        memory.iommu().withdraw(GuestAddress(GPA), 0x1000).unwrap();
        buffer.finish(Ok(vec![9; 8]));
        let (late, _) = QuoteBuffer::open(&self::memory(1), GPA, 0x1000).unwrap();
        late.finish(Ok(vec![9; 8]));
    }
}
