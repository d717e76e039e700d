//! Any 44 bytes as a vsock header: read or refused, and what is read survives being written.
#![no_main]

use casemate_devices::virtio::vsock::packet::{HEADER_LENGTH, Header, MAX_PAYLOAD};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: ([u8; HEADER_LENGTH], u64)| {
    let (bytes, cid) = input;
    let Ok(header) = Header::from_guest(&bytes, cid) else { return };
    assert!(header.length as usize <= MAX_PAYLOAD);
    let mut back = header.to_guest(cid);
    back[0..16].rotate_left(8);
    back[16..24].rotate_left(4);
    assert_eq!(back, bytes);
});
