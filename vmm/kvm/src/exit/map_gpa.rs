//! KVM_HC_MAP_GPA_RANGE: a guest asks for memory to be made private or shared.

use thiserror::Error;

use crate::memory::PAGE_SIZE;

/// A guest's request to convert memory, checked. The guest-physical address has no shared bit, the
/// range is not empty, aligned to [`PAGE_SIZE`], and within the guest's addresses; whether there is
/// memory at all is for the caller to say.
///
/// Linux `Documentation/virt/kvm/x86/hypercalls.rst`, "KVM_HC_MAP_GPA_RANGE".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapGpaRange {
    /// First guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// Whether the guest wants the range private (encrypted).
    pub private: bool,
    /// A hint: the size of the pages that the guest maps the range with.
    pub page_size: PageSize,
}

/// Sizes of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB
    Small,
    /// 2 MiB
    Large,
    /// 1 GiB
    Huge,
}

/// What is wrong with a request. The right reply is [`HypercallReply::Invalid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum MapGpaError {
    #[error("gpa {gpa:#x} is not the start of a page")]
    Unaligned { gpa: u64 },
    #[error("no pages at gpa {gpa:#x}")]
    Empty { gpa: u64 },
    #[error("{pages} pages at gpa {gpa:#x} reach beyond the guest's {width} address bits")]
    TooFar { gpa: u64, pages: u64, width: u32 },
    #[error("attributes {attributes:#x} are not defined")]
    Attributes { attributes: u64 },
}

impl MapGpaRange {
    /// The hypercall's number.
    pub const NUMBER: u64 = 12;

    /// Decodes the arguments of a hypercall exit with number [`Self::NUMBER`]; `width` is the number
    /// of bits of guest-physical addresses.
    ///
    /// # Errors
    /// The guest asks for what cannot be.
    pub fn decode(arguments: &[u64; 6], width: u32) -> Result<Self, MapGpaError> {
        const PAGE_SIZE_MASK: u64 = 0xf;
        const ENCRYPTED: u64 = 1 << 4;
        let [gpa, pages, attributes, ..] = *arguments;
        let page_size = match attributes & PAGE_SIZE_MASK {
            0 => PageSize::Small,
            1 => PageSize::Large,
            2 => PageSize::Huge,
            _ => return Err(MapGpaError::Attributes { attributes }),
        };
        if attributes & !(PAGE_SIZE_MASK | ENCRYPTED) != 0 {
            return Err(MapGpaError::Attributes { attributes });
        }
        if !gpa.is_multiple_of(PAGE_SIZE) {
            return Err(MapGpaError::Unaligned { gpa });
        }
        if pages == 0 {
            return Err(MapGpaError::Empty { gpa });
        }
        let limit = 1_u64.checked_shl(width).unwrap_or(u64::MAX);
        let size = pages.checked_mul(PAGE_SIZE);
        let within = |&size: &u64| gpa.checked_add(size).is_some_and(|end| end <= limit);
        let too_far = MapGpaError::TooFar { gpa, pages, width };
        let size = size.filter(within).ok_or(too_far)?;
        Ok(Self { gpa, size, private: attributes & ENCRYPTED != 0, page_size })
    }
}

/// What a hypercall exit may be answered with. Every exit must be: some kernels leave other bytes in
/// the field, and Linux 7.2 refuses to run the vCPU with any other value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum HypercallReply {
    /// Done.
    Done = 0,
    /// EAGAIN: the guest is to try again. SEV-SNP guests take it for a failure.
    Again = 11,
    /// EINVAL: the guest asked for what cannot be.
    Invalid = 22,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(gpa: u64, pages: u64, attributes: u64) -> Result<MapGpaRange, MapGpaError> {
        MapGpaRange::decode(&[gpa, pages, attributes, 0, 0, 0], 48)
    }

    #[test]
    fn page_size_and_encryption_are_different_bits() {
        let shared_2m = decode(0x20_0000, 512, 1).expect("valid");
        assert_eq!((shared_2m.private, shared_2m.page_size), (false, PageSize::Large));
        let private_4k = decode(0x1000, 1, 16).expect("valid");
        assert_eq!((private_4k.private, private_4k.page_size), (true, PageSize::Small));
        let private_1g = decode(1 << 30, 1 << 18, 18).expect("valid");
        assert_eq!((private_1g.size, private_1g.page_size), (1 << 30, PageSize::Huge));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(decode(0x1001, 1, 0), Err(MapGpaError::Unaligned { gpa: 0x1001 }));
        assert_eq!(decode(0x1000, 0, 0), Err(MapGpaError::Empty { gpa: 0x1000 }));
        for attributes in [3, 15, 32, 1 << 63] {
            let refused = MapGpaError::Attributes { attributes };
            assert_eq!(decode(0x1000, 1, attributes), Err(refused));
        }
        for (gpa, pages) in
            [(1 << 48, 1), ((1 << 48) - 4096, 2), (0, u64::MAX), (u64::MAX - 4095, 1)]
        {
            assert_eq!(decode(gpa, pages, 0), Err(MapGpaError::TooFar { gpa, pages, width: 48 }));
        }
        decode((1 << 48) - 4096, 1, 0).expect("the last page");
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_a_range_of_pages(arguments: [u64; 6], width in 0_u32..80) {
            if let Ok(range) = MapGpaRange::decode(&arguments, width) {
                prop_assert!(range.size > 0 && range.gpa % 4096 == 0 && range.size % 4096 == 0);
                prop_assert!(range.gpa.checked_add(range.size).is_some());
            }
        }
    }
}
