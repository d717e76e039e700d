//! Judges SEV-SNP reports and TDX quotes against a policy, offline, at a given time.
