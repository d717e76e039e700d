//! AMD's roots, built in.

use crate::x509::Certificate;

use super::product::Product;

/// An AMD root key certificate with the intermediates that it signed.
pub(crate) struct AmdRoot {
    pub(crate) product: Product,
    pub(crate) ark: &'static [u8],
    /// Signs VCEKs.
    pub(crate) ask: &'static [u8],
    /// Signs VLEKs, where AMD publishes one that was checked here.
    pub(crate) asvk: Option<&'static [u8]>,
}

/// SHA-256 of the ARKs, also in the documentation:
/// Milan 69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd,
/// Genoa 4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1,
/// Turin 1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a.
pub(crate) const AMD_ROOTS: [AmdRoot; 3] = [
    AmdRoot {
        product: Product::Milan,
        ark: include_bytes!("../../roots/milan-ark.der"),
        ask: include_bytes!("../../roots/milan-ask.der"),
        asvk: Some(include_bytes!("../../roots/milan-asvk.der")),
    },
    AmdRoot {
        product: Product::Genoa,
        ark: include_bytes!("../../roots/genoa-ark.der"),
        ask: include_bytes!("../../roots/genoa-ask.der"),
        asvk: None,
    },
    AmdRoot {
        product: Product::Turin,
        ark: include_bytes!("../../roots/turin-ark.der"),
        ask: include_bytes!("../../roots/turin-ask.der"),
        asvk: None,
    },
];

/// The built-in intermediate and root above an endorsement key certificate (DER or PEM), as
/// `(ASK or ASVK, ARK)`; `None` when its issuer is none of them.
///
/// A convenience for callers that got only the endorsement key: [`super::verify`] checks the chain
/// all the same.
#[must_use]
pub fn chain_for(vek: &[u8]) -> Option<(&'static [u8], &'static [u8])> {
    let vek = Certificate::parse(vek).ok()?;
    AMD_ROOTS
        .iter()
        .flat_map(|root| [Some(root.ask), root.asvk].map(|middle| (middle, root.ark)))
        .filter_map(|(middle, ark)| Some((middle?, ark)))
        .find(|(middle, _)| {
            Certificate::parse(middle).is_ok_and(|middle| middle.subject() == vek.issuer())
        })
}
