//! Measurements of `casemate-launch` against those of the `sev` and `igvm` crates. All of it is tests: here, so that
//! building and testing the crate itself takes neither.
