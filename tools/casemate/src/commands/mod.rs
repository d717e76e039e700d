//! One module per command. Each has a `clap::Args` type named `Args`, whose doc comment is the
//! command's help, and `pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode>`.
//!
//! Exit status, unless a command's help says otherwise: 0 it worked, 1 a negative verdict, 2 bad
//! input or usage (also what an `Err` from `run` becomes).

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
pub(crate) use guest_flags::GuestFlags;
pub(crate) use output::output;
pub(crate) use own_firmware::{OwnFirmware, firmware_notes};

pub(crate) mod audit;
pub(crate) mod broker;
pub(crate) mod cautions;
pub(crate) mod certificates;
pub(crate) mod completions;
pub(crate) mod explain;
pub(crate) mod firmware;
mod guest_flags;
pub(crate) mod host;
pub(crate) mod id_block;
pub(crate) mod igvm;
pub(crate) mod image;
pub(crate) mod lab;
pub(crate) mod man;
pub(crate) mod measure;
mod output;
mod own_firmware;
pub(crate) mod policy;
pub(crate) mod run;
pub(crate) mod verify;

/// Bad input or usage. clap uses the same.
pub(crate) const EXIT_BAD_INPUT: u8 = 2;

/// The most that is read of a firmware image, in bytes: several times what firmware has.
pub(crate) const MAX_FIRMWARE: usize = 256 << 20;
/// The most that is read of a kernel or an initial RAM disk, in bytes.
pub(crate) const MAX_PAYLOAD: usize = 4 << 30;

/// Reads a file of at most `limit` bytes.
pub(crate) fn read(what: &str, path: &Path, limit: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)
        .and_then(|file| file.take(more).read_to_end(&mut bytes))
        .with_context(|| format!("could not read the {what} from {}", path.display()))?;
    ensure!(
        bytes.len() <= limit,
        "{} is too long for a {what}: more than {limit} bytes",
        path.display()
    );
    Ok(bytes)
}

/// Reads a file if one is named.
pub(crate) fn read_optional(
    what: &str,
    path: Option<&Path>,
    limit: usize,
) -> anyhow::Result<Option<Vec<u8>>> {
    path.map(|path| read(what, path, limit)).transpose()
}

/// A parser for a choice between words, which help and completions then list.
pub(crate) fn words<T>(
    words: &'static [&'static str],
) -> impl clap::builder::TypedValueParser<Value = T>
where
    T: std::str::FromStr + Clone + Send + Sync + 'static,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    PossibleValuesParser::new(words.iter().copied()).try_map(|word| word.parse())
}

/// A number, in hexadecimal after `0x`.
pub(crate) fn number<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16).ok(),
        _ => text.parse().ok(),
    };
    parsed
        .and_then(|value| T::try_from(value).ok())
        .ok_or_else(|| format!("expected a number such as 0x1 of {} bits", size_of::<T>() * 8))
}
