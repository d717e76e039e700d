//! A guest's request for a quote, and a quote service's answer: what is taken from either is all there.
#![no_main]

use casemate_machine::platform::quote_request;
use casemate_machine::quote_service::{Response, response};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(report) = quote_request(bytes) {
        let length = u32::try_from(report.len()).unwrap();
        assert_eq!(bytes[16..20], length.to_le_bytes());
        assert!(bytes[24..].starts_with(report) && !report.is_empty());
    }
    if let Ok(Response::Quote(quote)) = response(bytes) {
        assert!(bytes[24..].ends_with(quote) && !quote.is_empty());
    }
});
