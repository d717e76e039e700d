//! Casemate measures, launches and proves confidential guests.

use std::process::ExitCode;

use clap::{Args as _, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

mod commands;

use commands::{
    audit, broker, certificates, completions, explain, firmware, host, id_block, igvm, image, lab,
    man, measure, policy, run, verify,
};

/// Measures, launches and proves confidential guests.
#[derive(Parser)]
#[command(name = "casemate", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// One variant per module of `commands`, in the order of a guest's life.
#[derive(Subcommand)]
enum Command {
    Host(host::Args),
    Measure(Box<measure::Args>),
    Explain(explain::Args),
    IdBlock(id_block::Args),
    Certificates(certificates::Args),
    Run(Box<run::Args>),
    Igvm(igvm::Args),
    Image(image::Args),
    Verify(verify::Args),
    Policy(policy::Args),
    Broker(broker::Args),
    Audit(audit::Args),
    Lab(lab::Args),
    Firmware(firmware::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// The command of the command line. Ends the process with help or an error where there is none.
fn asked() -> Command {
    // To describe all commands costs as many instructions as to start a guest: `run` comes without.
    let run_alone = std::env::args_os().nth(1).is_some_and(|word| word == "run");
    let mut cli = if run_alone { only_run() } else { Cli::command() };
    let parsed = cli.try_get_matches_from_mut(std::env::args_os());
    let command = parsed.and_then(|mut matches| Command::from_arg_matches_mut(&mut matches));
    command.unwrap_or_else(|error| {
        let words: Vec<_> = std::env::args().skip(1).collect();
        suggested(error, innermost(&cli, &words)).exit()
    })
}

/// The command that `words` lead to.
fn innermost<'a>(command: &'a clap::Command, words: &[String]) -> &'a clap::Command {
    words.iter().fold(command, |command, word| command.find_subcommand(word).unwrap_or(command))
}

/// Adds the name of a flag of `command` to an error about another program's, such as `-m` or `--smp`.
fn suggested(mut error: clap::Error, command: &clap::Command) -> clap::Error {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let known: Vec<_> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg)
        && let Some(flag) = casemate_config::suggestion(argument, &known)
    {
        error.insert(ContextKind::SuggestedArg, ContextValue::String(format!("--{flag}")));
        // clap's advice to pass the argument as a value: no file is named like that.
        error.remove(ContextKind::Suggested);
    }
    error
}

/// `casemate` with the command `run` alone.
fn only_run() -> clap::Command {
    let run = run::Args::augment_args(clap::Command::new("run"));
    clap::Command::new("casemate").subcommand(run)
}

fn main() -> ExitCode {
    let outcome = match asked() {
        Command::Host(args) => host::run(&args),
        Command::Measure(args) => measure::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::IdBlock(args) => id_block::run(&args),
        Command::Certificates(args) => certificates::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Igvm(args) => igvm::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Policy(args) => policy::run(&args),
        Command::Broker(args) => broker::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Lab(args) => lab::run(&args),
        Command::Firmware(args) => firmware::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        // The whole chain, outermost first: what was attempted, then why it failed.
        // Some part of it may come from a guest, a peer or a file.
        eprintln!("casemate: {}", casemate_foreign::lines(&format!("{error:#}")));
        ExitCode::from(commands::EXIT_BAD_INPUT)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_alone_is_the_run_of_all_commands() {
        let help = |mut command: clap::Command| {
            command.build();
            let run = command.find_subcommand_mut("run").unwrap();
            run.render_long_help().to_string()
        };
        assert_eq!(help(only_run()), help(Cli::command()));
    }

    /// The first paragraphs of help texts that are too long without their default, with their places.
    fn long_help(command: &clap::Command, path: &str) -> Vec<String> {
        let path = format!("{path} {}", command.get_name());
        let own = command.get_about().map(|about| (path.clone(), about.to_string()));
        let of_arguments = command.get_arguments().filter_map(|argument| {
            Some((format!("{path} {}", argument.get_id()), argument.get_help()?.to_string()))
        });
        let length = |help: &str| help.split(" [default: ").next().unwrap_or_default().len();
        let long = own.into_iter().chain(of_arguments).filter(|(_, help)| length(help) >= 80);
        let long = long.map(|(place, help)| format!("{place}: {help}"));
        long.chain(command.get_subcommands().flat_map(|command| long_help(command, &path)))
            .collect()
    }

    #[test]
    fn first_lines_of_help_are_under_80_characters() {
        let mut cli = Cli::command();
        cli.build();
        assert_eq!(long_help(&cli, ""), Vec::<String>::new());
    }

    #[test]
    fn flags_of_other_programs_lead_to_ours() {
        for (line, ours) in [
            ("run -m 4G", "--memory"),
            ("run --mem 4G", "--memory"),
            ("run --smp 4", "--vcpus"),
            ("run --accept-memry lazy", "--accept-memory"),
            ("measure snp --ovmf OVMF.fd", "--firmware"),
            ("measure tdx --bios OVMF.fd", "--firmware"),
        ] {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            for cli in [only_run(), Cli::command()] {
                let command = innermost(&cli, &words);
                let parsed = cli.clone().no_binary_name(true).try_get_matches_from(&words);
                let message = suggested(parsed.unwrap_err(), command).render().to_string();
                let known = cli.find_subcommand(&words[0]).is_some();
                assert_eq!(message.contains(&format!("'{ours}'")), known, "{message}");
            }
        }
        let cli = only_run();
        let other = cli.clone().try_get_matches_from(["casemate", "run", "--quux"]).unwrap_err();
        let message = suggested(other, innermost(&cli, &["run".into()])).render().to_string();
        assert!(!message.contains("similar"), "{message}");
    }

    #[test]
    fn run_has_a_flag_for_each_key_of_a_guest() {
        let reference = casemate_config::reference();
        let guest = reference.split("\n## ").nth(1).unwrap();
        let keys: Vec<_> = guest.lines().filter_map(|line| line.strip_prefix("| `")).collect();
        assert!(keys.len() > 10, "{guest}");
        let command = only_run();
        let run = command.find_subcommand("run").unwrap();
        for key in keys {
            let flag = key.split('`').next().unwrap().replace('_', "-");
            assert!(run.get_arguments().any(|arg| arg.get_long() == Some(&flag)), "--{flag}");
        }
    }
}
