//! Any bytes as an audit log: whole or changed, and what is whole stays so when it is read again.
#![no_main]

use casemate_broker::audit::verify;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(summary) = verify(bytes, None, None) {
        assert_eq!(summary.length + summary.partial, bytes.len() as u64);
        let again = verify(bytes, Some(&summary.head), None).expect("its own head");
        assert_eq!(again, summary);
    }
});
