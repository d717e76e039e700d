//! The digests of an import's pages, on all cores.

use std::sync::{Mutex, PoisonError};

use super::super::cores::on_cores;
use crate::{Contents, Digest384, Import};

const PAGE: usize = 4096;

/// Pages that a core takes at once: enough to be worth the taking, few enough that no core waits long
/// for another that something else keeps busy.
const SHARE: usize = 16;

/// Pages per core that are worth the start of a thread.
const WORTH_A_THREAD: usize = 8 * SHARE;

/// SHA-384 of each page of an import, zeroes following its bytes up to the end of its range.
pub(super) fn page_digests(import: &Import) -> impl Iterator<Item = Digest384> {
    let bytes: &[u8] = match &import.contents {
        Contents::Zeroes => &[],
        Contents::Bytes(bytes) => bytes,
    };
    let (whole, rest) = bytes.as_chunks::<PAGE>();
    let mut digests = whole_page_digests(whole);
    if !rest.is_empty() {
        let mut page = [0; PAGE];
        page[..rest.len()].copy_from_slice(rest);
        digests.push(Digest384::of(&page));
    }
    let pages = usize::try_from(import.range.pages().0).unwrap_or(usize::MAX);
    let zeroes = pages.saturating_sub(digests.len());
    let zero = if zeroes > 0 { Digest384::of(&[0; PAGE]) } else { Digest384::ZERO };
    digests.into_iter().chain(std::iter::repeat_n(zero, zeroes))
}

fn whole_page_digests(pages: &[[u8; PAGE]]) -> Vec<Digest384> {
    let mut digests = vec![Digest384::ZERO; pages.len()];
    let shares = Mutex::new(pages.chunks(SHARE).zip(digests.chunks_mut(SHARE)));
    let next = || shares.lock().unwrap_or_else(PoisonError::into_inner).next();
    on_cores(pages.len() / WORTH_A_THREAD, || {
        while let Some((pages, digests)) = next() {
            digest_each(pages, digests);
        }
    });
    digests
}

/// Padding makes runs of equal pages common in firmware; comparing is cheaper than hashing.
fn digest_each(pages: &[[u8; PAGE]], digests: &mut [Digest384]) {
    let mut previous = None;
    for (page, digest) in pages.iter().zip(digests) {
        *digest = match previous {
            Some((same, known)) if same == page => known,
            _ => Digest384::of(page),
        };
        previous = Some((page, *digest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Gpa, GpaRange, PageCount, PageKind};

    fn import(bytes: Vec<u8>, pages: u64) -> Import {
        Import {
            range: GpaRange::new(Gpa(0), PageCount(pages)).unwrap(),
            kind: PageKind::Normal,
            contents: Contents::Bytes(bytes.into()),
            tag: "test",
        }
    }

    #[test]
    fn every_page_has_its_own_digest_whoever_computed_it() {
        let bytes: Vec<u8> =
            (0..1000_u32).flat_map(|page| [page.to_le_bytes(); 1024]).flatten().collect();
        let found: Vec<_> = page_digests(&import(bytes.clone(), 1000)).collect();
        let expected: Vec<_> = bytes.chunks(PAGE).map(Digest384::of).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn zeroes_follow_the_bytes() {
        let found: Vec<_> = page_digests(&import(vec![7; PAGE + 1], 4)).collect();
        let mut second = [0; PAGE];
        second[0] = 7;
        let zero = Digest384::of(&[0; PAGE]);
        assert_eq!(found, [Digest384::of(&[7; PAGE]), Digest384::of(&second), zero, zero]);
    }
}
