//! Any bytes as an event log: no panic, and no registers of a genuine quote from another log.
#![no_main]

use casemate_verify::rtmr;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|log: &[u8]| {
    let _ = rtmr::replay(log);
    let _ = rtmr::replay_ccel(log);
    let _ = rtmr::replay_json(log);
});
