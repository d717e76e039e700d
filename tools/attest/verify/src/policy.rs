//! Policies: JSON objects of conditions on one kind of evidence.
//!
//! A key that is null or absent sets no condition, an unknown key is an error, an empty list allows
//! nothing.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess};
use serde::{Deserialize, Deserializer};

/// A policy that cannot be read or understood.
#[derive(Debug, thiserror::Error)]
#[error("could not read the policy as JSON for {kind}")]
pub struct PolicyError {
    pub(crate) kind: &'static str,
    pub(crate) source: serde_json::Error,
}

/// Reads a policy for a kind of evidence.
pub(crate) fn from_json<T: DeserializeOwned>(
    json: &[u8],
    kind: &'static str,
) -> Result<T, PolicyError> {
    serde_json::from_slice(json)
        .map(|Object(policy)| policy)
        .map_err(|source| PolicyError { kind, source })
}

/// A value that must be spelled as a JSON object. Derived code would also take an array of the
/// fields in order, and then `[]` would be a policy without any condition.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = Object<T>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Visitor(PhantomData))
    }
}

pub(crate) fn object<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Ok(Option::<Object<T>>::deserialize(deserializer)?.map(|Object(value)| value))
}
