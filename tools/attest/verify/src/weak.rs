//! Conditions that a policy for a secret should set, and what is open without each.

use std::fmt;

use serde::Serialize;

/// Something that a policy leaves open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Weakness {
    /// The key that would close it.
    pub key: &'static str,
    /// What is open, and the value that closes it.
    pub detail: &'static str,
}

impl fmt::Display for Weakness {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.key, self.detail)
    }
}

/// The weaknesses of which the condition holds.
pub(crate) fn those<const N: usize>(
    list: [(bool, &'static str, &'static str); N],
) -> Vec<Weakness> {
    let open = list.into_iter().filter(|(open, ..)| *open);
    open.map(|(_, key, detail)| Weakness { key, detail }).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    /// A policy without anything open, and what is open without each of its keys.
    pub(crate) fn one_by_one(whole: &serde_json::Value, open: impl Fn(&str) -> Vec<&'static str>) {
        assert!(open(&whole.to_string()).is_empty(), "{whole}");
        let keys: Vec<_> = whole.as_object().unwrap().keys().cloned().collect();
        for key in keys {
            let mut less = whole.clone();
            less.as_object_mut().unwrap().remove(&key);
            assert_eq!(open(&less.to_string()), [key]);
        }
    }
}
