//! Measurements of a [`LaunchPlan`](crate::LaunchPlan): the SEV-SNP launch digest, the TDX MRTD and
//! RTMRs, the manifest that lists what they consist of, and the comparison of two manifests.

mod cores;
pub mod diff;
pub mod igvm;
pub mod manifest;
pub mod own;
pub mod snp;
pub mod tdx;
