//! Why a configuration is refused.

use std::io;
use std::path::{Path, PathBuf};

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
            message: in_words(error.message()),
        }
    }
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
