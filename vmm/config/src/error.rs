//! Why a configuration is refused.

use std::io;
use std::path::{Path, PathBuf};

use crate::suggest::unknown_key;

/// Why a configuration is refused. The texts end with what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file itself cannot be read.
    #[error("could not read the configuration {}", file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("{}:{line}: `{text}`: {message}", file.display())]
    Syntax {
        /// Which file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What stands on that line.
        text: String,
        /// What is wrong with it, and what would be right.
        message: String,
    },
    /// A value that cannot be.
    #[error("{origin}{key} = {value}: {problem}; {remedy}")]
    Value {
        /// The file and a colon, or the dashes of a flag.
        origin: String,
        /// The key, as in `disk[0].path`.
        key: String,
        /// What was given, as it would stand in the file.
        value: String,
        /// What is wrong with it.
        problem: String,
        /// What would be right.
        remedy: String,
    },
    /// A flag whose value cannot be read.
    #[error("--{}", key.replace('_', "-"))]
    Flag {
        /// The key.
        key: String,
        /// Reason.
        source: FlagError,
    },
    /// A key that must be there.
    #[error("{origin}: {key} is missing; {remedy}")]
    Missing {
        /// The file, or "command line".
        origin: String,
        /// The key, as in `disk[0].path`.
        key: String,
        /// What would be right.
        remedy: String,
    },
}

/// Reason why the value of a flag is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// A value that the key's type does not accept.
    #[error("{0}")]
    Refused(String),
    /// An item of a table without an equals sign.
    #[error("\"{0}\" is not of the form KEY=VALUE")]
    NotAPair(String),
    /// A key of a table that is given twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// A key that does not exist, with a suggestion.
    #[error("{0}")]
    UnknownKey(String),
    /// A value of a key, refused.
    #[error("{key}: {reason}")]
    InKey {
        /// The key.
        key: String,
        /// Reason.
        reason: String,
    },
}

impl FlagError {
    /// The message without the key, for callers that name the flag themselves.
    #[must_use]
    pub fn reason(self) -> String {
        match self {
            Self::InKey { reason, .. } => reason,
            other => other.to_string(),
        }
    }

    /// `text` is not what a key takes.
    pub(crate) fn expected(text: &str, expected: &str) -> Self {
        Self::Refused(format!("\"{text}\" is not {expected}"))
    }

    /// `word` is not one of a choice.
    pub(crate) fn word(word: &str, words: &[&str]) -> Self {
        Self::Refused(format!("\"{word}\" is not one of {}", words.join(", ")))
    }

    /// Names the key whose value was refused.
    pub(crate) fn of(self, key: &str) -> Self {
        match self {
            Self::Refused(reason) => Self::InKey { key: key.to_owned(), reason },
            other => other,
        }
    }
}

impl ConfigError {
    pub(crate) fn from_toml(file: &Path, text: &str, error: &toml::de::Error) -> Self {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or(text);
        let line = before.matches('\n').count();
        let shown = text.lines().nth(line).unwrap_or_default().trim();
        Self::Syntax {
            file: file.to_owned(),
            line: line + 1,
            text: shown.to_owned(),
            message: unknown_field(error.message()).unwrap_or_else(|| in_words(error.message())),
        }
    }
}

/// The message for a key that serde does not know: "unknown field `a`, expected one of `b`, `c`".
fn unknown_field(message: &str) -> Option<String> {
    let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let rest = message.strip_prefix("unknown field ")?;
    let names: Vec<String> = quoted(rest);
    let (key, known) = names.split_first()?;
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    Some(unknown_key(key, &known))
}

/// What the parser says, without its names of types.
fn in_words(message: &str) -> String {
    const WORDS: [(&str, &str); 5] = [
        ("expected u16", "expected a number like 1"),
        ("expected u32", "expected a number like 1"),
        ("expected path string", "expected a path like \"vmlinuz\""),
        ("expected a boolean", "expected true or false"),
        ("map, expected a sequence", "one table, expected a list; write it as in [[disk]]"),
    ];
    WORDS.iter().fold(message.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
}
