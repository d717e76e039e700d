//! SHA-256 (FIPS 180-4): as any processor can, and by the instructions that some have for it.

use core::arch::x86_64::{
    _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x,
    _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8,
    _mm_shuffle_epi32,
};

/// Section 4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64
/// primes.
const K: [u32; 64] = {
    let mut k = [0; 64];
    let (mut number, mut found) = (2_u128, 0);
    while found < 64 {
        let (mut divisor, mut prime) = (2, true);
        while divisor * divisor <= number {
            if number.is_multiple_of(divisor) {
                prime = false;
            }
            divisor += 1;
        }
        if prime {
            k[found] = low_half(root(number << 96, 3));
            found += 1;
        }
        number += 1;
    }
    k
};

/// Section 5.3.3: the same of the square roots of the first eight.
const INITIAL: [u32; 8] = {
    let primes = [2_u128, 3, 5, 7, 11, 13, 17, 19];
    let mut state = [0; 8];
    let mut index = 0;
    while index < 8 {
        state[index] = low_half(root(primes[index] << 64, 2));
        index += 1;
    }
    state
};

/// The largest number whose power `exponent` is at most `value`; below 2^40.
const fn root(value: u128, exponent: u32) -> u128 {
    let (mut low, mut high) = (0, 1 << 40);
    while high - low > 1 {
        let middle = (low + high) / 2_u128;
        if middle.pow(exponent) <= value { low = middle } else { high = middle }
    }
    low
}

#[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are what is wanted")]
const fn low_half(value: u128) -> u32 {
    value as u32
}

/// The SHA-256 digest of `data`.
#[must_use]
pub fn digest(data: &[u8]) -> [u8; 32] {
    digest_by(compress, data)
}

/// The same, when `compress` is what changes the state by blocks.
#[must_use]
pub fn digest_by(compress: impl Fn(&mut [u32; 8], &[[u8; 64]]), data: &[u8]) -> [u8; 32] {
    let mut state = INITIAL;
    let (blocks, rest) = data.as_chunks::<64>();
    compress(&mut state, blocks);
    // Section 5.1.1: a one bit, zeroes, and the length in bits.
    let mut tail = [0; 128];
    tail[..rest.len()].copy_from_slice(rest);
    tail[rest.len()] = 0x80;
    let end = if rest.len() < 56 { 64 } else { 128 };
    tail[end - 8..end].copy_from_slice(&(data.len() as u64 * 8).to_be_bytes());
    compress(&mut state, tail[..end].as_chunks::<64>().0);
    let mut digest = [0; 32];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

/// Section 6.2.2, of one block after the other.
#[expect(clippy::many_single_char_names, reason = "the names are the standard's")]
fn compress(state: &mut [u32; 8], blocks: &[[u8; 64]]) {
    /// Step 3 for one `t`. Instead of moving eight variables, the next step calls them otherwise.
    macro_rules! step {
        ($a:ident $b:ident $c:ident $d:ident $e:ident $f:ident $g:ident $h:ident, $kw:expr) => {
            let sum1 = $e.rotate_right(6) ^ $e.rotate_right(11) ^ $e.rotate_right(25);
            let choice = $g ^ ($e & ($f ^ $g));
            let t1 = $h.wrapping_add(sum1).wrapping_add(choice).wrapping_add($kw);
            let sum0 = $a.rotate_right(2) ^ $a.rotate_right(13) ^ $a.rotate_right(22);
            let majority = ($a & $b) | ($c & ($a | $b));
            $d = $d.wrapping_add(t1);
            $h = t1.wrapping_add(sum0).wrapping_add(majority);
        };
    }
    for block in blocks {
        let mut w = [0_u32; 64];
        for (word, bytes) in w.iter_mut().zip(block.as_chunks::<4>().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        for t in 16..64 {
            let (x, y) = (w[t - 15], w[t - 2]);
            let sigma0 = x.rotate_right(7) ^ x.rotate_right(18) ^ (x >> 3);
            let sigma1 = y.rotate_right(17) ^ y.rotate_right(19) ^ (y >> 10);
            w[t] = sigma1.wrapping_add(w[t - 7]).wrapping_add(sigma0).wrapping_add(w[t - 16]);
        }
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
        for (k, w) in K.as_chunks::<8>().0.iter().zip(w.as_chunks::<8>().0) {
            step!(a b c d e f g h, k[0].wrapping_add(w[0]));
            step!(h a b c d e f g, k[1].wrapping_add(w[1]));
            step!(g h a b c d e f, k[2].wrapping_add(w[2]));
            step!(f g h a b c d e, k[3].wrapping_add(w[3]));
            step!(e f g h a b c d, k[4].wrapping_add(w[4]));
            step!(d e f g h a b c, k[5].wrapping_add(w[5]));
            step!(c d e f g h a b, k[6].wrapping_add(w[6]));
            step!(b c d e f g h a, k[7].wrapping_add(w[7]));
        }
        for (word, value) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
            *word = word.wrapping_add(value);
        }
    }
}

/// The same by the instructions that processors have for it (Intel SDM volume 2, SHA256RNDS2,
/// SHA256MSG1, SHA256MSG2). They have the state in two registers, the first word highest.
///
/// # Safety
/// The processor has these instructions, and SSE4.1.
#[target_feature(enable = "sha,sse4.1")]
pub fn compress_by_instructions(state: &mut [u32; 8], blocks: &[[u8; 64]]) {
    let [a, b, c, d, e, f, g, h] = state.map(u32::cast_signed);
    let mut abef = _mm_set_epi32(a, b, e, f);
    let mut cdgh = _mm_set_epi32(c, d, g, h);
    let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let big_endian = |low: [u8; 8], high: [u8; 8]| {
        let words = _mm_set_epi64x(i64::from_le_bytes(high), i64::from_le_bytes(low));
        _mm_shuffle_epi8(words, swap)
    };
    for block in blocks {
        let (abef_before, cdgh_before) = (abef, cdgh);
        // Words t to t + 3 of the message schedule, and the twelve after them.
        let halves = block.as_chunks::<8>().0;
        let mut w0 = big_endian(halves[0], halves[1]);
        let mut w4 = big_endian(halves[2], halves[3]);
        let mut w8 = big_endian(halves[4], halves[5]);
        let mut w12 = big_endian(halves[6], halves[7]);
        for k in K.as_chunks::<4>().0 {
            let [k0, k1, k2, k3] = k.map(u32::cast_signed);
            let kw = _mm_add_epi32(w0, _mm_set_epi32(k3, k2, k1, k0));
            // Two steps of the 64 each; what was a, b, e, f is c, d, g, h then.
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, kw);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32::<0b1110>(kw));
            let sums = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w4), _mm_alignr_epi8::<4>(w12, w8));
            (w0, w4, w8, w12) = (w4, w8, w12, _mm_sha256msg2_epu32(sums, w12));
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    *state = [
        _mm_extract_epi32::<3>(abef),
        _mm_extract_epi32::<2>(abef),
        _mm_extract_epi32::<3>(cdgh),
        _mm_extract_epi32::<2>(cdgh),
        _mm_extract_epi32::<1>(abef),
        _mm_extract_epi32::<0>(abef),
        _mm_extract_epi32::<1>(cdgh),
        _mm_extract_epi32::<0>(cdgh),
    ]
    .map(i32::cast_unsigned);
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;
    use sha2::Digest as _;

    use super::*;

    proptest! {
        #[test]
        fn another_implementation_agrees(data: Vec<u8>) {
            prop_assert_eq!(digest(&data), <[u8; 32]>::from(sha2::Sha256::digest(&data)));
        }
    }

    #[test]
    fn every_length_of_the_last_block_is_padded_right() {
        let data = [0x5a; 200];
        for length in 0..data.len() {
            let theirs: [u8; 32] = sha2::Sha256::digest(&data[..length]).into();
            assert_eq!(digest(&data[..length]), theirs, "{length}");
        }
    }
}
