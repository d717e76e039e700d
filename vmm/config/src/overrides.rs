//! Values from the command line.

use crate::error::{ConfigError, FlagError};
use crate::keys::{Key, Table};
use crate::schema::{GuestConfig, Snp};

/// Keys of tables that have a flag of their own, with their tables.
const SHORTCUTS: &[(&str, &str)] = &[("vcpu_type", "snp")];

/// The flags of a guest, in the order of the reference: one for each key at the top of the file, one for
/// each of its tables, and the shortcuts.
#[must_use]
pub fn flags() -> Vec<Key> {
    let shortcut = |key: &Key| SHORTCUTS.iter().any(|(name, _)| *name == key.name);
    let own = GuestConfig::keys().into_iter().chain(GuestConfig::tables());
    own.chain(Snp::keys().into_iter().filter(shortcut)).collect()
}

/// Applies the flag `key` to `config`.
fn apply(config: &mut GuestConfig, key: &str, text: &str) -> Result<(), FlagError> {
    match SHORTCUTS.iter().find(|(name, _)| *name == key) {
        Some((_, table)) => {
            let item = format!("{key}={}", text.replace(',', ",,"));
            config.apply_key(table, &item)
        }
        None => config.apply_key(key, text).map_err(|error| error.of(key)),
    }
}

/// Values from the command line; each wins over the file's.
///
/// ```
/// let flags = casemate_config::Overrides::new([("vcpus", "4"), ("disk", "root.img,read_only=true")]);
/// assert!(flags.is_ok());
/// let error = casemate_config::Overrides::new([("vcpus", "many")]).unwrap_err();
/// assert_eq!(error.to_string(), "vcpus: \"many\" is not a number from 0 to 4294967295");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Overrides(Vec<(String, String)>);

impl Overrides {
    /// Takes keys with their values.
    ///
    /// # Errors
    /// A key does not exist, or its value cannot be read.
    pub fn new<'a>(
        values: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, FlagError> {
        let mut all = Self::default();
        for (key, text) in values {
            all.add(key, text)?;
        }
        Ok(all)
    }

    /// Adds the value of a key, as in [`flags`]. A table takes `KEY=VALUE,…`.
    ///
    /// # Errors
    /// The key does not exist, or the value cannot be read.
    pub fn add(&mut self, key: &str, text: &str) -> Result<(), FlagError> {
        apply(&mut GuestConfig::default(), key, text)?;
        self.0.push((key.to_owned(), text.to_owned()));
        Ok(())
    }

    /// Whether a flag gives `key`.
    #[must_use]
    pub fn gives(&self, key: &str) -> bool {
        self.0.iter().any(|(given, _)| given == key)
    }

    /// Applies the values and returns the keys that they are of. All disks and network interfaces of the
    /// file give way to those of flags; of the other tables only the keys that a flag names.
    pub(crate) fn apply(self, config: &mut GuestConfig) -> Result<Vec<String>, ConfigError> {
        let flags = flags();
        let mut keys: Vec<String> = Vec::new();
        for (key, text) in self.0 {
            let repeats = flags.iter().any(|flag| flag.repeats && flag.name == key);
            if repeats && !keys.contains(&key) {
                config.reset_key(&key);
            }
            let applied = apply(config, &key, &text);
            applied.map_err(|source| ConfigError::Flag { key: key.clone(), source })?;
            keys.push(key);
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Disk;

    #[test]
    fn flags_replace_all_disks_of_the_file_and_keep_other_tables() {
        let mut config: GuestConfig =
            toml::from_str("[[disk]]\npath = \"a\"\n[vsock]\nsocket = \"s\"\ncid = 7").unwrap();
        let flags = Overrides::new([("disk", "b"), ("disk", "c"), ("vsock", ",cid=8")]).unwrap();
        flags.apply(&mut config).unwrap();
        let disk = |path: &str| Disk { path: path.into(), ..Disk::default() };
        assert_eq!(config.disk, [disk("b"), disk("c")]);
        let vsock = config.vsock.unwrap();
        assert_eq!((vsock.cid, vsock.socket.as_os_str()), (8, "s".as_ref()));
    }

    #[test]
    fn shortcut_sets_the_key_of_its_table() {
        let mut config: GuestConfig = toml::from_str("[snp]\ndebug = true").unwrap();
        let flags = Overrides::new([("vcpu_type", "EPYC-Milan")]).unwrap();
        assert_eq!(flags.apply(&mut config).unwrap(), ["vcpu_type"]);
        let snp = config.snp.unwrap();
        assert!(snp.debug);
        assert_eq!(snp.vcpu_type.unwrap().to_string(), "\"EPYC-Milan\"");
        let error = Overrides::new([("vcpu_type", "Z80")]).unwrap_err().to_string();
        assert!(error.starts_with("vcpu_type: "), "{error}");
    }
}
