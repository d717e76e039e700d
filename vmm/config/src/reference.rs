//! Types that can tell what their keys are: the configuration reference is made from them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::size::{ByteSize, Hex, Mac};

/// How values of a type are written.
pub(crate) trait Shape {
    /// In words, with an example where that helps.
    fn shape() -> String;
    /// As it stands in a file; `None`: the key is left out.
    fn shown(&self) -> Option<String>;
}

macro_rules! shape {
    ($type:ty, $words:expr, $shown:expr) => {
        impl Shape for $type {
            fn shape() -> String {
                $words.into()
            }
            fn shown(&self) -> Option<String> {
                let shown: fn(&Self) -> String = $shown;
                Some(shown(self))
            }
        }
    };
}

shape!(bool, "`true` or `false`", ToString::to_string);
shape!(u32, "number", ToString::to_string);
shape!(u16, "number", ToString::to_string);
shape!(String, "text", |text| format!("{text:?}"));
shape!(PathBuf, "path", |path| format!("{path:?}"));
shape!(ByteSize, "size, like `\"512M\"`", ToString::to_string);
shape!(Mac, "MAC address", ToString::to_string);

impl<const N: usize> Shape for Hex<N> {
    fn shape() -> String {
        format!("{} hexadecimal digits", 2 * N)
    }
    fn shown(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl<T: Shape> Shape for Option<T> {
    fn shape() -> String {
        T::shape()
    }
    fn shown(&self) -> Option<String> {
        self.as_ref().and_then(Shape::shown)
    }
}

/// One key of a table.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) docs: &'static [&'static str],
    pub(crate) shape: String,
    pub(crate) default: Option<String>,
}

/// A table of `guest.toml` that knows its keys.
pub(crate) trait Table: Default {
    const DOCS: &'static [&'static str];
    fn keys() -> Vec<Key>;
}

/// A struct whose fields are keys of `guest.toml`, with a default each. Strict: unknown keys are
/// errors. `table` fields hold other tables and have their own section in the reference.
macro_rules! table {
    (
        $(#[doc = $struct_doc:literal])*
        pub struct $name:ident {
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

        impl $crate::reference::Table for $name {
            const DOCS: &'static [&'static str] = &[$($struct_doc),*];
            fn keys() -> Vec<$crate::reference::Key> {
                let defaults = Self::default();
                vec![$($crate::reference::Key {
                    name: stringify!($field),
                    docs: &[$($doc),*],
                    shape: <$type as $crate::reference::Shape>::shape(),
                    default: $crate::reference::Shape::shown(&defaults.$field),
                }),*]
            }
        }
    };
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
            type Err = $crate::flags::FlagError;

            fn from_str(word: &str) -> Result<Self, Self::Err> {
                match word {
                    $($text => Ok(Self::$variant),)*
                    _ => Err($crate::flags::FlagError::word(word, Self::WORDS)),
                }
            }
        }

        impl $crate::reference::Shape for $name {
            fn shape() -> String {
                [$(concat!("`\"", $text, "\"`")),*].join(", ")
            }
            fn shown(&self) -> Option<String> {
                Some(match self { $(Self::$variant => format!("{:?}", $text)),* })
            }
        }
    };
}

pub(crate) use {choice, table};

/// Appends the section of one table; `header` is how the table opens in a file.
pub(crate) fn section<T: Table>(page: &mut String, title: &str, header: Option<&str>) {
    let docs = T::DOCS.concat();
    // Writing to a String cannot fail.
    let _ = write!(page, "\n## {title}\n\n{}\n\n", docs.trim());
    if let Some(header) = header {
        let _ = write!(page, "Opens with `{header}`.\n\n");
    }
    page.push_str("| key | value | default | meaning |\n|---|---|---|---|\n");
    for key in T::keys() {
        let default = match key.default.as_deref() {
            None | Some("\"\"") => String::from("–"),
            Some(text) => format!("`{text}`"),
        };
        let docs = key.docs.concat();
        let _ = writeln!(page, "| `{}` | {} | {default} | {} |", key.name, key.shape, docs.trim());
    }
}

/// A path as errors show it.
pub(crate) fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
