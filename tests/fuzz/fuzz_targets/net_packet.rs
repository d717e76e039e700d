//! Any header before a packet of any length, and any control request: what is passed on was
//! negotiated, and passing it on again changes nothing.
#![no_main]

use casemate_devices::virtio::net::packet::{Header, Offloads, checked_header, requested_pairs};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Header, u32, [bool; 4], Vec<u8>, u16)| {
    let (header, len, [checksum, tso4, tso6, ecn], request, pairs) = input;
    let offloads = Offloads { checksum, tso4, tso6, ecn };
    if let Ok(clean) = checked_header(&header, len, offloads) {
        assert!(checksum || clean == Header::default());
        assert_eq!(checked_header(&clean, len, offloads), Ok(clean));
    }
    if let Some(wanted) = requested_pairs(&request, pairs) {
        assert!(wanted >= 1 && wanted <= pairs);
    }
});
