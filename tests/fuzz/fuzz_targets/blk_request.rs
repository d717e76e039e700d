//! Any request on any disk: none that is accepted leaves the disk, or writes to a read-only one.
#![no_main]

use casemate_devices::virtio::blk::request::{Geometry, Request, SECTOR};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, u64, u64, u64, bool)| {
    let (head, readable, writable, sectors, read_only) = input;
    let sectors = sectors % (u64::MAX / SECTOR);
    let disk = Geometry { sectors, read_only };
    let extent = match Request::parse(&head, readable, writable, &disk) {
        Ok(Request::Read(extent)) => extent,
        Ok(
            Request::Write(extent) | Request::Discard(extent) | Request::WriteZeroes { extent, .. },
        ) => {
            assert!(!read_only);
            extent
        }
        Ok(Request::Flush | Request::Identify) | Err(_) => return,
    };
    assert!(extent.len > 0 && extent.offset + extent.len <= sectors * SECTOR);
    assert!((extent.offset | extent.len) % SECTOR == 0);
});
