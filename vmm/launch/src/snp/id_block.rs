//! The ID block of an SNP guest, and the page of signatures over it.
//!
//! Source: SEV-SNP firmware ABI, sections "ID Block" and "ID Authentication Information", and the
//! appendix on the formats of ECDSA P-384 keys and signatures.
