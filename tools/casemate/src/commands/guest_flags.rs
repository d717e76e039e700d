//! The flags that describe a guest, made from the table of keys.

use casemate_config::{FlagError, Key, Overrides, flags};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser as _, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

/// Values of the flags that were given.
#[derive(Clone, Debug, Default)]
pub(crate) struct GuestFlags(pub(crate) Overrides);

impl clap::Args for GuestFlags {
    fn augment_args(command: Command) -> Command {
        flags().iter().fold(command, |command, key| command.arg(flag(key)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for GuestFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut values = Self::default();
        values.update_from_arg_matches(matches)?;
        Ok(values)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for key in flags() {
            for text in matches.get_many::<String>(key.name).unwrap_or_default() {
                let added = self.0.add(key.name, text);
                added.map_err(|error| {
                    clap::Error::raw(clap::error::ErrorKind::ValueValidation, error)
                })?;
            }
        }
        Ok(())
    }
}

/// Second names of flags.
const ALIASES: &[(&str, &str)] = &[("cmdline", "append")];

/// The flag of a key.
fn flag(key: &Key) -> Arg {
    let name = key.name;
    let default = match &key.default {
        Some(text) if key.choices.is_empty() => format!(" [default: {}]", text.trim_matches('"')),
        Some(text) => format!(" [default: {text}]").replace('"', ""),
        None => String::new(),
    };
    let help = |text: &str| format!("{}{default}", text.replace('`', ""));
    let action = if key.repeats { ArgAction::Append } else { ArgAction::Set };
    let aliases = ALIASES.iter().filter(|(key, _)| *key == name).map(|(_, alias)| *alias);
    Arg::new(name)
        .aliases(aliases)
        .long(name.replace('_', "-"))
        .value_name(key.value_name.to_uppercase())
        .help(help(key.summary()))
        .long_help(help(key.meaning.trim_end_matches('.')))
        .value_parser(parser(key))
        .action(action)
        .allow_hyphen_values(key.name == "cmdline")
}

/// Checks a value as the configuration would, so that an error names the flag.
fn parser(key: &Key) -> ValueParser {
    let name = key.name;
    if key.choices.is_empty() {
        let check = move |text: &str| {
            Overrides::new([(name, text)]).map(|_| text.to_owned()).map_err(FlagError::reason)
        };
        return ValueParser::new(check);
    }
    let choices = key.choices.iter().map(|(word, meaning)| {
        PossibleValue::new(*word).help(meaning.trim().trim_end_matches('.'))
    });
    PossibleValuesParser::new(choices).map(String::from).into()
}
