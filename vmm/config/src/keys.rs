//! The table of keys: one line per key gives its type, default, reference entry, flag and help.

use std::path::{Path, PathBuf};

use crate::error::FlagError;
use crate::size::{ByteSize, Hex, Mac};
use crate::suggest::unknown_key;

/// A type that a key can have.
pub(crate) trait Value: Sized {
    /// Placeholder of a value in help.
    const NAME: &'static str;
    /// All values with their descriptions, if there are only a few.
    const CHOICES: &'static [(&'static str, &'static str)] = &[];
    /// Whether each flag adds a value instead of replacing it.
    const REPEATS: bool = false;

    /// Describes the values, with an example where that helps.
    fn shape() -> String;
    /// The value as a file has it; `None` if the key is left out.
    fn shown(&self) -> Option<String>;
    /// Reads the value of a flag.
    fn parse(text: &str) -> Result<Self, FlagError>;

    /// Applies a flag to the value that a file gave.
    fn apply(&mut self, text: &str) -> Result<(), FlagError> {
        *self = Self::parse(text)?;
        Ok(())
    }

    /// Resolves relative paths against `folder`.
    fn start_at(&mut self, _folder: &Path) {}
}

macro_rules! from_str {
    ($type:ty, $name:literal, $shape:expr, $shown:expr, $refused:expr) => {
        impl $crate::keys::Value for $type {
            const NAME: &'static str = $name;

            fn shape() -> String {
                $shape.into()
            }

            fn shown(&self) -> Option<String> {
                let shown: fn(&Self) -> String = $shown;
                Some(shown(self))
            }

            fn parse(text: &str) -> Result<Self, $crate::error::FlagError> {
                let refused: fn(&str, _) -> $crate::error::FlagError = $refused;
                text.parse().map_err(|error| refused(text, error))
            }
        }
    };
    // The type's own error is the message.
    ($type:ty, $name:literal, $shape:expr) => {
        $crate::keys::from_str!($type, $name, $shape, ToString::to_string, |_, error| {
            $crate::error::FlagError::Refused(ToString::to_string(&error))
        });
    };
}

from_str!(bool, "BOOL", "`true` or `false`", ToString::to_string, |text, _| {
    FlagError::expected(text, "true or false")
});
from_str!(u32, "NUMBER", "number", ToString::to_string, |text, _| {
    FlagError::expected(text, "a number from 0 to 4294967295")
});
from_str!(u16, "NUMBER", "number", ToString::to_string, |text, _| {
    FlagError::expected(text, "a number from 0 to 65535")
});
from_str!(
    String,
    "TEXT",
    "text",
    |text| format!("{text:?}"),
    |_, never: std::convert::Infallible| match never {}
);
from_str!(ByteSize, "SIZE", "size, like `\"512M\"`");
from_str!(Mac, "MAC", "MAC address");

impl Value for PathBuf {
    const NAME: &'static str = "FILE";

    fn shape() -> String {
        "path".into()
    }

    fn shown(&self) -> Option<String> {
        Some(format!("{self:?}"))
    }

    fn parse(text: &str) -> Result<Self, FlagError> {
        Ok(text.into())
    }

    /// An empty path is a missing one, and must stay that.
    fn start_at(&mut self, folder: &Path) {
        if !self.as_os_str().is_empty() {
            *self = folder.join(&*self);
        }
    }
}

impl<const N: usize> Value for Hex<N> {
    const NAME: &'static str = "HEX";

    fn shape() -> String {
        format!("{} hexadecimal digits", 2 * N)
    }

    fn shown(&self) -> Option<String> {
        Some(self.to_string())
    }

    fn parse(text: &str) -> Result<Self, FlagError> {
        text.parse().map_err(FlagError::Refused)
    }
}

impl<T: Value> Value for Option<T> {
    const NAME: &'static str = T::NAME;
    const CHOICES: &'static [(&'static str, &'static str)] = T::CHOICES;
    const REPEATS: bool = T::REPEATS;

    fn shape() -> String {
        T::shape()
    }

    fn shown(&self) -> Option<String> {
        self.as_ref().and_then(Value::shown)
    }

    fn parse(text: &str) -> Result<Self, FlagError> {
        T::parse(text).map(Some)
    }

    fn apply(&mut self, text: &str) -> Result<(), FlagError> {
        match self {
            Some(value) => value.apply(text),
            None => Self::parse(text).map(|value| *self = value),
        }
    }

    fn start_at(&mut self, folder: &Path) {
        self.iter_mut().for_each(|value| value.start_at(folder));
    }
}

/// A table that may be repeated: each flag adds one.
impl<T: Table> Value for Vec<T> {
    const NAME: &'static str = T::NAME;
    const REPEATS: bool = true;

    fn shape() -> String {
        T::shape()
    }

    fn shown(&self) -> Option<String> {
        None
    }

    fn parse(text: &str) -> Result<Self, FlagError> {
        Ok(vec![T::parse(text)?])
    }

    fn apply(&mut self, text: &str) -> Result<(), FlagError> {
        self.push(T::parse(text)?);
        Ok(())
    }

    fn start_at(&mut self, folder: &Path) {
        self.iter_mut().for_each(|value| value.start_at(folder));
    }
}

/// One key of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The key as it stands in a file. The flag has dashes for its underscores.
    pub name: &'static str,
    /// Meaning, in Markdown; the first sentence stands alone.
    pub meaning: String,
    /// Description of the values, in Markdown.
    pub shape: String,
    /// Placeholder of a value in help.
    pub value_name: &'static str,
    /// All values with their meanings, if there are only a few.
    pub choices: &'static [(&'static str, &'static str)],
    /// The default as a file would have it; `None` if the key may be left out.
    pub default: Option<String>,
    /// Whether the flag may be repeated.
    pub repeats: bool,
}

impl Key {
    /// The first sentence of the meaning, for a line of help.
    #[must_use]
    pub fn summary(&self) -> &str {
        self.meaning.split(". ").next().unwrap_or_default().trim_end_matches('.')
    }
}

/// A table of `guest.toml`.
pub(crate) trait Table: Value + Default {
    const DOCS: &'static [&'static str];
    /// The key that the first item of a flag sets when it names none.
    const FIRST: Option<&'static str>;

    /// Keys with a value of their own.
    fn keys() -> Vec<Key>;
    /// Keys that hold tables.
    fn tables() -> Vec<Key>;
    /// Applies the flag of `key`.
    fn apply_key(&mut self, key: &str, text: &str) -> Result<(), FlagError>;
    /// Gives `key` its default again.
    fn reset_key(&mut self, key: &str);

    /// Applies `[FIRST,]KEY=VALUE,…`. Two commas stand for one in a value.
    fn apply_items(&mut self, text: &str) -> Result<(), FlagError> {
        let mut seen: Vec<String> = Vec::new();
        for (at, item) in items(text).into_iter().enumerate() {
            let (key, value) = match (item.split_once('='), Self::FIRST) {
                (_, Some(_)) if at == 0 && item.is_empty() => continue,
                (_, Some(first)) if at == 0 => (first, item.as_str()),
                (Some(pair), _) => pair,
                (None, _) => return Err(FlagError::NotAPair(item)),
            };
            if seen.iter().any(|seen| seen == key) {
                return Err(FlagError::Twice(key.to_owned()));
            }
            self.apply_key(key, value).map_err(|error| error.of(key))?;
            seen.push(key.to_owned());
        }
        Ok(())
    }
}

/// The text between single commas, with two commas as one.
fn items(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let last = items.len() - 1;
        if c != ',' {
            items[last].push(c);
        } else if rest.next_if_eq(&',').is_some() {
            items[last].push(',');
        } else {
            items.push(String::new());
        }
    }
    items
}

/// The key's error if a table does not know it.
pub(crate) fn unknown(key: &str, known: &[&str]) -> FlagError {
    FlagError::UnknownKey(unknown_key(key, known))
}

/// Joins the lines of a doc comment.
pub(crate) fn joined(lines: &[&str]) -> String {
    lines.concat().trim().to_owned()
}

/// A struct whose fields are keys of `guest.toml`, with a default each. Strict: unknown keys are
/// errors. `tables` hold other tables. The key in parentheses is the one that a flag need not name.
macro_rules! table {
    (
        $(#[doc = $struct_doc:literal])*
        pub struct $name:ident $(($first:ident))? {
            $($(#[doc = $doc:literal])* $field:ident: $type:ty = $default:expr,)*
        }
        $(tables { $($(#[doc = $table_doc:literal])* $table:ident: $table_type:ty,)* })?
    ) => {
        $(#[doc = $struct_doc])*
        #[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[doc = $doc])* pub $field: $type,)*
            $($($(#[doc = $table_doc])* pub $table: $table_type,)*)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* $($($table: Default::default(),)*)? }
            }
        }

        impl $crate::keys::Value for $name {
            const NAME: &'static str = match $crate::keys::first(
                &[$(concat!(stringify!($first), "[,KEY=VALUE,...]"))?]
            ) {
                Some(name) => name,
                None => "KEY=VALUE,...",
            };

            fn shape() -> String {
                "table".into()
            }

            fn shown(&self) -> Option<String> {
                None
            }

            fn parse(text: &str) -> Result<Self, $crate::error::FlagError> {
                let mut table = Self::default();
                $crate::keys::Table::apply_items(&mut table, text)?;
                Ok(table)
            }

            fn apply(&mut self, text: &str) -> Result<(), $crate::error::FlagError> {
                $crate::keys::Table::apply_items(self, text)
            }

            fn start_at(&mut self, folder: &std::path::Path) {
                $($crate::keys::Value::start_at(&mut self.$field, folder);)*
                $($($crate::keys::Value::start_at(&mut self.$table, folder);)*)?
            }
        }

        impl $crate::keys::Table for $name {
            const DOCS: &'static [&'static str] = &[$($struct_doc),*];
            const FIRST: Option<&'static str> =
                $crate::keys::first(&[$(stringify!($first))?]);

            fn keys() -> Vec<$crate::keys::Key> {
                let defaults = Self::default();
                vec![$($crate::keys::key(stringify!($field), &[$($doc),*], &defaults.$field)),*]
            }

            fn tables() -> Vec<$crate::keys::Key> {
                #[allow(unused_variables, reason = "few tables hold tables")]
                let defaults = Self::default();
                vec![$($($crate::keys::key(stringify!($table), &[$($table_doc),*], &defaults.$table)),*)?]
            }

            fn apply_key(&mut self, key: &str, text: &str) -> Result<(), $crate::error::FlagError> {
                match key {
                    $(stringify!($field) => $crate::keys::Value::apply(&mut self.$field, text),)*
                    $($(stringify!($table) => $crate::keys::Value::apply(&mut self.$table, text),)*)?
                    _ => Err($crate::keys::unknown(key, &[
                        $(stringify!($field),)* $($(stringify!($table),)*)?
                    ])),
                }
            }

            fn reset_key(&mut self, key: &str) {
                let defaults = Self::default();
                match key {
                    $(stringify!($field) => self.$field = defaults.$field,)*
                    $($(stringify!($table) => self.$table = defaults.$table,)*)?
                    _ => {}
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::error::FlagError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::keys::Value::parse(text)
            }
        }
    };
}

/// The first of at most one name.
pub(crate) const fn first(names: &[&'static str]) -> Option<&'static str> {
    if names.is_empty() { None } else { Some(names[0]) }
}

/// Describes a key by its type and its default.
pub(crate) fn key<T: Value>(name: &'static str, docs: &[&str], default: &T) -> Key {
    Key {
        name,
        meaning: joined(docs),
        shape: T::shape(),
        value_name: T::NAME,
        choices: T::CHOICES,
        default: default.shown(),
        repeats: T::REPEATS,
    }
}

/// A choice between words.
macro_rules! choice {
    (
        $(#[doc = $doc:literal])*
        pub enum $name:ident { $($(#[doc = $variant_doc:literal])* $variant:ident = $text:literal,)* }
        default $default:ident
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
        pub enum $name { $($(#[doc = $variant_doc])* #[serde(rename = $text)] $variant,)* }

        impl Default for $name {
            fn default() -> Self {
                Self::$default
            }
        }

        impl $name {
            /// The words, as they stand in a file and on the command line.
            pub const WORDS: &[&str] = &[$($text),*];
        }

        impl std::str::FromStr for $name {
            type Err = $crate::error::FlagError;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                match word {
                    $($text => Ok(Self::$variant),)*
                    _ => Err($crate::error::FlagError::word(word, Self::WORDS)),
                }
            }
        }

        impl $crate::keys::Value for $name {
            const NAME: &'static str = "WORD";
            const CHOICES: &'static [(&'static str, &'static str)] =
                &[$(($text, concat!($($variant_doc),*))),*];

            fn shape() -> String {
                [$(concat!("`\"", $text, "\"`")),*].join(", ")
            }

            fn shown(&self) -> Option<String> {
                Some(match self { $(Self::$variant => format!("{:?}", $text)),* })
            }

            fn parse(text: &str) -> Result<Self, $crate::error::FlagError> {
                text.parse()
            }
        }
    };
}

pub(crate) use {choice, from_str, table};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cpu, Disk, Ending, GuestConfig, Net, PlatformChoice, Snp, Vsock};
    use casemate_launch::PlatformKind;

    #[test]
    fn flag_of_a_table_has_the_keys_of_the_file() {
        let disk: Disk =
            "a=b.img,read_only=true,queues=2,serial=7,bytes_per_second=1M".parse().unwrap();
        let expected = Disk {
            path: "a=b.img".into(),
            read_only: true,
            queues: 2,
            serial: Some("7".into()),
            bytes_per_second: Some(ByteSize(1 << 20)),
            ..Disk::default()
        };
        assert_eq!(disk, expected);
        let net: Net = "tap0,mac=02:00:00:00:00:01".parse().unwrap();
        assert_eq!((net.tap.as_str(), net.mac.is_some()), ("tap0", true));
        assert_eq!("/run/v.sock,cid=7".parse::<Vsock>().unwrap().cid, 7);
        let kernel: Vsock = ",vhost=true,cid=7".parse().unwrap();
        assert_eq!((kernel.vhost, kernel.socket.as_os_str().len()), (true, 0));
        let cpu: Cpu = "sockets=2,threads=2".parse().unwrap();
        assert_eq!(cpu, Cpu { sockets: 2, cores: None, threads: 2 });
        assert!("2".parse::<Cpu>().is_err());
        assert!("debug=true,smt=false".parse::<Snp>().is_ok_and(|snp| snp.debug && !snp.smt));
        assert_eq!("tdx".parse(), Ok(PlatformChoice::Only(PlatformKind::Tdx)));
    }

    #[test]
    fn two_commas_stand_for_one() {
        let disk: Disk = "a,,b.img,serial=x,,y".parse().unwrap();
        assert_eq!((disk.path, disk.serial), ("a,b.img".into(), Some("x,y".into())));
        let path = |text: &str| text.parse::<Disk>().unwrap().path;
        assert_eq!(path("a,,,queues=2"), Path::new("a,"));
        assert_eq!(path(",,,,a"), Path::new(",,a"));
        let refused = "a,,queues=2,b".parse::<Disk>().unwrap_err();
        assert_eq!(refused.to_string(), "\"b\" is not of the form KEY=VALUE");
    }

    #[test]
    fn flag_errors_name_the_problem() {
        let refused = |text: &str| text.parse::<Disk>().unwrap_err().to_string();
        assert_eq!(refused("a,ro"), "\"ro\" is not of the form KEY=VALUE");
        assert_eq!(refused("a,direct=true,direct=true"), "direct is given twice");
        assert_eq!(refused("a,readonly=true"), "unknown key `readonly`; did you mean `read_only`?");
        assert!(refused("a,speed=1").starts_with("unknown key `speed`; keys are `path`"));
        assert_eq!(refused("a,queues=many"), "queues: \"many\" is not a number from 0 to 65535");
        let word = "stop".parse::<Ending>().unwrap_err();
        assert_eq!(word.to_string(), "\"stop\" is not one of exit, restart");
    }

    #[test]
    fn flag_of_an_optional_table_keeps_what_it_does_not_name() {
        let mut config: GuestConfig = toml::from_str("[snp]\nsmt = false").unwrap();
        config.apply_key("snp", "debug=true").unwrap();
        let snp = config.snp.unwrap();
        assert!(snp.debug && !snp.smt);
    }

    /// Help has one line per flag; the first sentence is that line.
    #[test]
    fn first_sentence_of_every_key_fits_a_line_of_help() {
        for key in crate::flags() {
            let summary = key.summary();
            assert!(summary.len() <= 80 && !summary.is_empty(), "{}: {summary}", key.name);
        }
    }
}
