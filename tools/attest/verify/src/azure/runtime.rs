//! The runtime data: JSON that the paravisor made and the hardware report hashes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use casemate_foreign::Foreign;
use serde::Deserialize;

use crate::hex::Hex;
use crate::tpm::RsaKey;

/// The name of the key that signs quotes.
const ATTESTATION_KEY: &str = "HCLAkPub";

/// What is read of it. A name that occurs twice is refused.
pub(super) struct RuntimeData {
    pub(super) key: RsaKey,
    pub(super) user_data: Option<Hex<64>>,
    configuration: Option<Configuration>,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Jwk>,
    #[serde(rename = "vm-configuration")]
    configuration: Option<Configuration>,
    #[serde(rename = "user-data")]
    user_data: Option<Hex<64>>,
}

#[derive(Deserialize)]
struct Jwk {
    kid: String,
    kty: String,
    n: Option<String>,
    e: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Configuration {
    secure_boot: Option<bool>,
    #[serde(rename = "vmUniqueId")]
    vm_id: Option<String>,
}

impl RuntimeData {
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let document: Document = serde_json::from_slice(json)
            .map_err(|error| format!("the runtime data is not JSON as expected: {error}"))?;
        let mut keys = document.keys.iter().filter(|key| key.kid == ATTESTATION_KEY);
        let (Some(key), None) = (keys.next(), keys.next()) else {
            return Err(format!("the runtime data does not have exactly one {ATTESTATION_KEY}"));
        };
        if key.kty != "RSA" {
            return Err(format!("{ATTESTATION_KEY} is \"{}\", not RSA", Foreign(&key.kty)));
        }
        let number = |name: &str, text: &Option<String>| {
            let text = text.as_deref().unwrap_or_default();
            let bytes = URL_SAFE_NO_PAD.decode(text);
            bytes.map_err(|error| format!("{ATTESTATION_KEY}.{name} is not base64url: {error}"))
        };
        let key = RsaKey::new(&number("n", &key.n)?, &number("e", &key.e)?)
            .map_err(|why| format!("{ATTESTATION_KEY}: {why}"))?;
        let Document { configuration, user_data, .. } = document;
        Ok(RuntimeData { key, user_data, configuration })
    }

    pub(super) fn secure_boot(&self) -> Option<bool> {
        self.configuration.as_ref()?.secure_boot
    }

    pub(super) fn vm_id(&self) -> Option<String> {
        let id = self.configuration.as_ref()?.vm_id.as_deref()?;
        Some(Foreign(id).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(keys: &str, rest: &str) -> Result<RuntimeData, String> {
        RuntimeData::parse(format!("{{\"keys\": [{keys}]{rest}}}").as_bytes())
    }

    #[test]
    fn exactly_one_attestation_key_is_taken() {
        let modulus = URL_SAFE_NO_PAD.encode([0xff; 256]);
        let key = |kid: &str, kty: &str, e: &str| {
            format!(r#"{{"kid": "{kid}", "kty": "{kty}", "e": "{e}", "n": "{modulus}"}}"#)
        };
        let good = key("HCLAkPub", "RSA", "AQAB");
        assert!(parse(&good, "").is_ok());
        assert!(parse(&format!("{good}, {}", key("HCLEkPub", "RSA", "AQAB")), "").is_ok());
        for keys in [
            String::new(),
            format!("{good}, {good}"),
            key("HCLEkPub", "RSA", "AQAB"),
            key("HCLAkPub", "EC", "AQAB"),
            key("HCLAkPub", "RSA", "Aw"),
            r#"{"kid": "HCLAkPub", "kty": "RSA"}"#.into(),
        ] {
            assert!(parse(&keys, "").is_err(), "{keys}");
        }
        for rest in [
            r#", "keys": []"#,
            r#", "user-data": "00""#,
            r#", "user-data": null, "user-data": null"#,
            r#", "vm-configuration": {"secure-boot": true, "secure-boot": false}"#,
            r#", "vm-configuration": {"secure-boot": 1}"#,
        ] {
            assert!(parse(&good, rest).is_err(), "{rest}");
        }
    }
}
