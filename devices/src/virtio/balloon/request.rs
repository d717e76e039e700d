//! The format of inflate and deflate requests: page numbers, 32 bits each (VIRTIO 1.2, section
//! 5.5.6).

use vm_memory::GuestAddress;

use super::PAGE_SIZE;
use crate::memory::DeviceMemory;
use crate::virtio::{Chain, QueueFault};

/// Pages that one request names at most. Linux names 256.
const MOST: usize = 4096;

/// The pages of one request.
#[derive(Default)]
pub(super) struct Pages {
    /// Their numbers as they came, then sorted. Kept from request to request, for its room.
    numbers: Vec<u32>,
}

impl Pages {
    /// Reads the pages of a request.
    pub(super) fn read(&mut self, chain: &Chain, memory: &DeviceMemory) -> Result<(), QueueFault> {
        let bytes = chain.readable_len() as usize;
        if bytes == 0 || !bytes.is_multiple_of(4) || bytes > 4 * MOST {
            return Err(chain.malformed("a balloon request is not a list of up to 4096 pages"));
        }
        let mut raw = [0; 4 * 256];
        self.numbers.clear();
        for start in (0..bytes).step_by(raw.len()) {
            let part = &mut raw[..(bytes - start).min(4 * 256)];
            let offset = u32::try_from(start).unwrap_or(u32::MAX);
            chain.read(memory, offset, part)?;
            let words = part.as_chunks().0.iter();
            self.numbers.extend(words.map(|&word| u32::from_le_bytes(word)));
        }
        self.numbers.sort_unstable();
        Ok(())
    }

    /// Ranges of neighbouring pages, as start and length in bytes.
    pub(super) fn runs(&self) -> impl Iterator<Item = (GuestAddress, u64)> {
        self.numbers.chunk_by(|&left, &right| right - left <= 1).filter_map(|run| {
            let (first, last) = (u64::from(*run.first()?), u64::from(*run.last()?));
            Some((GuestAddress(first * PAGE_SIZE), (last - first + 1) * PAGE_SIZE))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn runs(numbers: &[u32]) -> Vec<(u64, u64)> {
        let mut numbers = numbers.to_vec();
        numbers.sort_unstable();
        Pages { numbers }.runs().map(|(start, len)| (start.0, len)).collect()
    }

    #[test]
    fn neighbours_make_one_run() {
        assert_eq!(runs(&[5, 3, 4, 9, 9, 10]), [(0x3000, 0x3000), (0x9000, 0x2000)]);
        assert_eq!(runs(&[u32::MAX, 0]), [(0, 0x1000), (0xfff_ffff_f000, 0x1000)]);
        assert_eq!(runs(&[]), []);
    }

    proptest! {
        #[test]
        fn runs_are_the_pages_and_no_others(
            numbers in prop::collection::vec(prop_oneof![0..40_u32, u32::MAX - 3..=u32::MAX], 0..40)
        ) {
            let mut pages: Vec<u64> = runs(&numbers)
                .into_iter()
                .flat_map(|(start, len)| (start..start + len).step_by(4096))
                .collect();
            let mut expected: Vec<u64> = numbers.iter().map(|&page| u64::from(page) * 4096).collect();
            expected.sort_unstable();
            expected.dedup();
            pages.sort_unstable();
            prop_assert_eq!(pages, expected);
        }
    }
}
