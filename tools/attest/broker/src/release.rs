//! The key that signs releases, by which guests know this broker.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use casemate_protocol::{BrokerKey, release_message};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

use crate::store::{Kind, Store, StoreError};

/// The key that signs releases. It signs nothing else.
pub(crate) struct ReleaseKey(Ed25519KeyPair);

impl ReleaseKey {
    /// The store's key; made when there is none yet.
    pub(crate) fn of(store: &Store) -> Result<Self, StoreError> {
        let document = store.read_or_make(Kind::ReleaseKey, || {
            let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).ok()?;
            Some(document.as_ref().to_vec().into())
        })?;
        let key = Ed25519KeyPair::from_pkcs8(&document);
        key.map(ReleaseKey).map_err(|_| StoreError::Sealed("release-key".into()))
    }

    /// The half that guests pin.
    fn public(&self) -> Result<BrokerKey, StoreError> {
        let bytes = self.0.public_key().as_ref().try_into();
        bytes.map(BrokerKey::new).map_err(|_| StoreError::Sealed("release-key".into()))
    }

    /// The text of the signature's header; see [`release_message`].
    pub(crate) fn sign(&self, report_data: &[u8; 64], id: &str, body: &[u8]) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.0.sign(&release_message(report_data, id, body)))
    }
}

impl Store {
    /// The public half of the key that signs this store's releases, for guests to pin.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn release_key(&self) -> Result<BrokerKey, StoreError> {
        ReleaseKey::of(self)?.public()
    }
}
