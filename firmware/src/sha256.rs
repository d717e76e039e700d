//! SHA-256 (FIPS 180-4), small rather than fast.

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
    let mut state = INITIAL;
    let (blocks, rest) = data.as_chunks::<64>();
    for block in blocks {
        compress(&mut state, block);
    }
    // Section 5.1.1: a one bit, zeroes, and the length in bits.
    let mut tail = [0; 128];
    tail[..rest.len()].copy_from_slice(rest);
    tail[rest.len()] = 0x80;
    let end = if rest.len() < 56 { 64 } else { 128 };
    tail[end - 8..end].copy_from_slice(&(data.len() as u64 * 8).to_be_bytes());
    for block in tail[..end].as_chunks::<64>().0 {
        compress(&mut state, block);
    }
    let mut digest = [0; 32];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

/// Section 6.2.2.
#[expect(clippy::many_single_char_names, reason = "the names are the standard's")]
fn compress(state: &mut [u32; 8], block: &[u8; 64]) {
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
    for t in 0..64 {
        let sum1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choice = (e & f) ^ (!e & g);
        let t1 = h.wrapping_add(sum1).wrapping_add(choice).wrapping_add(K[t]).wrapping_add(w[t]);
        let sum0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t2 = sum0.wrapping_add((a & b) ^ (a & c) ^ (b & c));
        (h, g, f, e) = (g, f, e, d.wrapping_add(t1));
        (d, c, b, a) = (c, b, a, t1.wrapping_add(t2));
    }
    for (word, value) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *word = word.wrapping_add(value);
    }
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
