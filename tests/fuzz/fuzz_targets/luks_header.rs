//! Any bytes as a LUKS volume, and any JSON in a header whose checksum fits: refused, or a header that
//! is read alike when it is read again.
#![no_main]

use casemate_agent::{LuksHeader, MAX_HEADER};
use libfuzzer_sys::fuzz_target;
use ring::digest::{SHA256, digest};

/// Bytes of one copy; the first 4096 are binary.
const COPY: usize = 0x4000;

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    let mut volume = vec![0; 2 * COPY + (1 << 20)];
    volume[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
    volume[8..16].copy_from_slice(&0x4000_u64.to_be_bytes());
    volume[72..78].copy_from_slice(b"sha256");
    let json = &bytes[..bytes.len().min(COPY - 4096)];
    volume[4096..][..json.len()].copy_from_slice(json);
    let sum = digest(&SHA256, &volume[..COPY]);
    volume[448..480].copy_from_slice(sum.as_ref());
    read(&volume);
});

fn read(mut volume: &[u8]) {
    if let Ok(header) = LuksHeader::read(&mut volume) {
        assert!(header.as_bytes().len() <= MAX_HEADER);
        let again = LuksHeader::read(&mut header.as_bytes()).expect("a checked header");
        assert_eq!(header, again);
    }
}
