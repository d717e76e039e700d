//! The agent's command line.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use casemate_agent::{
    Address, DEFAULT_PORT, FetchError, LuksHeader, TSM_ROOT, Trusted, Tsm, check, fetch, forward,
    open_volume, protect_memory, report, run,
};
use casemate_foreign::{cut, one_line};
use casemate_protocol::{BROKER_KEY_PARAMETER, BrokerKey, CHECK_PORT, Nonce, pinned_keys};
use lexopt::{Arg, Parser, ValueExt as _};
use zeroize::Zeroizing;

const HELP: &str = "\
Obtains evidence from the processor of a confidential guest, and fetches secrets with it.

casemate-agent run    --secret ID [--fd N] -- PROGRAM [ARGUMENT...]
    Runs PROGRAM, which reads the secret from file descriptor N (default 3).
casemate-agent unlock --secret ID --device DEVICE --name NAME [--cryptsetup PROGRAM]
    Opens the LUKS volume on DEVICE as /dev/mapper/NAME with the secret.
casemate-agent report --nonce HEX
    Prints evidence over a nonce of 1 to 64 bytes as JSON. REPORT_DATA is SHA-512 of the line
    \"casemate-agent report\" and the nonce, which `casemate verify --nonce HEX` computes.
casemate-agent check
    Sends evidence to a VMM that was started with `casemate run --attest`, at the address of --broker, by
    default vsock:2:8079. The VMM compares it with its launch.
casemate-agent forward [--listen IP:PORT]
    Forwards TCP connections (default 127.0.0.1:8080) to the broker, for other clients of the Key Broker
    Service protocol in a guest without a network. They obtain evidence themselves.

ID is the name of a secret: REPOSITORY/TYPE/TAG. Secrets are not written to any file or log. run and unlock
need a pinned broker key.

    --broker ADDRESS  address of the broker: vsock:CID:PORT, tcp:IP:PORT or unix:PATH; repeatable: the agent
                      uses the first that it can reach. Default: vsock:2:8080, the host
    --broker-key KEY  accept secrets only from the broker with this key, from `casemate broker release-key`;
                      repeatable. Default: the keys of casemate.broker_key=KEY on the kernel command line
    --any-broker      accept secrets of any broker, signed or not: the host can then choose them
    --tsm DIRECTORY   directory of the kernel's reports; default /sys/kernel/config/tsm/report

Exit status: 0 success (run: that of PROGRAM), 1 the broker refuses, 2 invalid usage, 3 other failures.
";

/// The kernel's command line, which a confidential guest's measurement covers.
const COMMAND_LINE: &str = "/proc/cmdline";

/// The longest message on standard error, in characters.
const LONGEST_MESSAGE: usize = 1024;

const EXIT_REFUSED: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_FAILED: u8 = 3;

type Failure = Box<dyn std::error::Error>;

/// What the command line says.
#[derive(Default)]
struct Options {
    command: Option<String>,
    brokers: Vec<Address>,
    broker_keys: Vec<BrokerKey>,
    any_broker: bool,
    tsm: Option<PathBuf>,
    secret: Option<String>,
    descriptor: Option<RawFd>,
    program: Vec<OsString>,
    device: Option<PathBuf>,
    name: Option<OsString>,
    cryptsetup: Option<OsString>,
    nonce: Option<Nonce>,
    listen: Option<SocketAddr>,
    help: bool,
}

fn main() -> ExitCode {
    let options = match Options::read(Parser::from_env()) {
        Ok(options) => options,
        Err(error) => return usage(&error.to_string()),
    };
    if options.help {
        print!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let outcome = match (options.command.as_deref(), &options.secret) {
        (Some("run"), Some(id)) if !options.program.is_empty() => match options.trusted() {
            Ok(trusted) => start(&options, &trusted, id),
            Err(error) => return usage(&error),
        },
        (Some("unlock"), Some(id)) => match (&options.device, &options.name, options.trusted()) {
            (Some(device), Some(name), Ok(trusted)) => unlock(&options, &trusted, id, device, name),
            (Some(_), Some(_), Err(error)) => return usage(&error),
            _ => return usage("unlock needs --device and --name"),
        },
        (Some("report"), None) => match &options.nonce {
            Some(nonce) => print_report(&options, nonce),
            None => return usage("report needs --nonce"),
        },
        (Some("forward"), None) => serve(&options),
        (Some("check"), None) => answer_check(&options),
        (Some("run" | "unlock"), _) => {
            return usage("--secret ID is needed, and run needs -- PROGRAM at the end");
        }
        _ => return usage("the command is run, unlock, report, check or forward"),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&*error),
    }
}

impl Options {
    fn read(mut parser: Parser) -> Result<Self, lexopt::Error> {
        let mut options = Options::default();
        while let Some(argument) = parser.next()? {
            match argument {
                Arg::Short('h') | Arg::Long("help") => options.help = true,
                Arg::Long("broker") => options.brokers.push(parser.value()?.parse()?),
                Arg::Long("broker-key") => options.broker_keys.push(parser.value()?.parse()?),
                Arg::Long("any-broker") => options.any_broker = true,
                Arg::Long("tsm") => options.tsm = Some(parser.value()?.into()),
                Arg::Long("secret") => options.secret = Some(parser.value()?.string()?),
                Arg::Long("fd") => options.descriptor = Some(parser.value()?.parse()?),
                Arg::Long("device") => options.device = Some(parser.value()?.into()),
                Arg::Long("name") => options.name = Some(parser.value()?),
                Arg::Long("cryptsetup") => options.cryptsetup = Some(parser.value()?),
                Arg::Long("nonce") => options.nonce = Some(parser.value()?.parse()?),
                Arg::Long("listen") => options.listen = Some(parser.value()?.parse()?),
                Arg::Value(value) if options.command.is_none() => {
                    options.command = Some(value.string()?);
                }
                Arg::Value(value) if options.command.as_deref() == Some("run") => {
                    // The program, and all that follows is its own.
                    options.program = vec![value];
                    options.program.extend(parser.raw_args()?);
                }
                other => return Err(other.unexpected()),
            }
        }
        Ok(options)
    }

    fn tsm(&self) -> Tsm {
        Tsm::new(self.tsm.as_deref().unwrap_or(TSM_ROOT.as_ref()))
    }

    fn brokers(&self) -> Vec<Address> {
        if self.brokers.is_empty() { vec![Address::host()] } else { self.brokers.clone() }
    }

    /// The brokers whose secrets are taken.
    fn trusted(&self) -> Result<Trusted, String> {
        if self.any_broker || !self.broker_keys.is_empty() {
            return trusted(&self.broker_keys, self.any_broker, "");
        }
        let line = std::fs::read_to_string(COMMAND_LINE)
            .map_err(|error| format!("could not read {COMMAND_LINE}: {error}; mount /proc"))?;
        trusted(&[], false, &line)
    }

    /// The secret, from the first broker that can be reached.
    fn fetch(&self, trusted: &Trusted, id: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
        protect_memory()?;
        let source = self.tsm();
        let brokers = self.brokers();
        let (last, others) = brokers.split_last().ok_or("no broker is named")?;
        for broker in others {
            match fetch(broker, &source, trusted, id) {
                Err(FetchError::Exchange(error)) => say(&chain(&error)),
                other => return Ok(other?),
            }
        }
        Ok(fetch(last, &source, trusted, id)?)
    }
}

/// The brokers whose secrets are taken: those with `keys`, or else with the keys that the kernel's
/// command line pins, or any if that is asked for.
fn trusted(keys: &[BrokerKey], any: bool, command_line: &str) -> Result<Trusted, String> {
    if any && !keys.is_empty() {
        return Err("--any-broker and --broker-key exclude each other".into());
    }
    if any {
        return Ok(Trusted::AnyBroker);
    }
    let pinned = || {
        pinned_keys(command_line)
            .map_err(|error| format!("{BROKER_KEY_PARAMETER} on the kernel command line: {error}"))
    };
    let keys = if keys.is_empty() { pinned()? } else { keys.to_vec() };
    if keys.is_empty() {
        return Err(format!(
            "no broker key is pinned, so the host could choose the secret: add \
             {BROKER_KEY_PARAMETER}=KEY to the measured kernel command line, or --broker-key KEY"
        ));
    }
    Ok(Trusted::Keys(keys))
}

fn start(options: &Options, trusted: &Trusted, id: &str) -> Result<(), Failure> {
    let (program, arguments) = options.program.split_first().ok_or("no program is named")?;
    let secret = options.fetch(trusted, id)?;
    Err(run(secret, options.descriptor.unwrap_or(3), program, arguments).into())
}

fn unlock(
    options: &Options,
    trusted: &Trusted,
    id: &str,
    device: &Path,
    name: &std::ffi::OsStr,
) -> Result<(), Failure> {
    // Before a secret is asked for: a volume that is refused needs none.
    let header = read_header(device)?;
    let secret = options.fetch(trusted, id)?;
    let cryptsetup = options.cryptsetup.as_deref().unwrap_or("cryptsetup".as_ref());
    Ok(open_volume(&secret, &header, cryptsetup, device, name)?)
}

fn read_header(device: &Path) -> Result<LuksHeader, Failure> {
    let place = device.display();
    let mut file =
        File::open(device).map_err(|error| format!("could not open {place}: {error}"))?;
    LuksHeader::read(&mut file).map_err(|error| format!("{place}: {}", chain(&error)).into())
}

fn print_report(options: &Options, nonce: &Nonce) -> Result<(), Failure> {
    println!("{}", report(nonce, &options.tsm())?);
    Ok(())
}

/// See [`CHECK_PORT`].
fn answer_check(options: &Options) -> Result<(), Failure> {
    let host = options.brokers.first().cloned().unwrap_or(Address::host_at(CHECK_PORT));
    let mut socket = host.connect().map_err(|error| format!("could not reach {host}: {error}"))?;
    Ok(check(&mut socket, &options.tsm())?)
}

fn serve(options: &Options) -> Result<(), Failure> {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT));
    let address = options.listen.unwrap_or(default);
    let listener = TcpListener::bind(address)
        .map_err(|error| format!("could not listen at {address}: {error}"))?;
    let brokers = options.brokers();
    let first = || {
        let none = Err(io::Error::other("no broker is named"));
        brokers.iter().fold(none, |found, broker| found.or_else(|_| broker.connect()))
    };
    Ok(forward(&listener, first)?)
}

fn usage(error: &str) -> ExitCode {
    say(error);
    eprintln!("Try: casemate-agent --help");
    ExitCode::from(EXIT_USAGE)
}

fn failed(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    say(&chain(error));
    let refused = matches!(error.downcast_ref(), Some(FetchError::Refused { .. }));
    ExitCode::from(if refused { EXIT_REFUSED } else { EXIT_FAILED })
}

/// Shows a message on standard error. Part of it may be text of the host's or of a broker's.
fn say(message: &str) {
    eprintln!("casemate-agent: {}", shown(message));
}

/// The message on one line of bounded length, in which characters that do not print are escaped.
fn shown(message: &str) -> String {
    let start = cut(message, LONGEST_MESSAGE);
    let rest = if start.len() < message.len() { "…" } else { "" };
    format!("{}{rest}", one_line(start))
}

/// The error and all that led to it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use casemate_agent::CheckError;

    use super::*;

    fn read(arguments: &[&str]) -> Result<Options, lexopt::Error> {
        Options::read(Parser::from_args(arguments))
    }

    #[test]
    fn what_follows_the_program_is_its_own() {
        let options = read(&["run", "--secret", "a/b/c", "--", "sh", "-c", "--fd"]).unwrap();
        assert_eq!(options.program, ["sh", "-c", "--fd"]);
        assert_eq!(options.secret.as_deref(), Some("a/b/c"));
        assert!(read(&["report", "more"]).is_err());
        assert!(read(&["run", "--broker", "nonsense"]).is_err());
        assert!(read(&["report", "--nonce", "0"]).is_err());
    }

    #[test]
    fn a_broker_key_is_needed_and_the_flag_comes_first() {
        let key = |byte| BrokerKey::new([byte; 32]);
        let line = format!("quiet casemate.broker_key={}", key(1));
        let pinned = |keys: &[BrokerKey], line| trusted(keys, false, line).unwrap();
        assert_eq!(pinned(&[], &line), Trusted::Keys(vec![key(1)]));
        assert_eq!(pinned(&[key(2)], &line), Trusted::Keys(vec![key(2)]));
        assert_eq!(trusted(&[], true, &line), Ok(Trusted::AnyBroker));
        let error = trusted(&[], false, "quiet").unwrap_err();
        assert!(error.contains("casemate.broker_key=KEY"), "{error}");
        assert!(trusted(&[], false, "casemate.broker_key=x").is_err());
        assert!(trusted(&[key(1)], true, "").is_err());
        assert!(read(&["unlock", "--broker-key", "x"]).is_err());
    }

    /// A broker's or a host's text, in an error as it reaches the console.
    #[test]
    fn text_from_outside_cannot_act_on_the_console() {
        let hostile = "\u{1b}[2J\r\naccept \u{202e}\u{9b}2J\u{2028}".to_owned() + &"x".repeat(5000);
        let refused =
            FetchError::Refused { what: "the secret", status: 401, detail: hostile.clone() };
        let rejected = CheckError::Rejected(hostile);
        for error in [&refused as &dyn std::error::Error, &rejected] {
            let shown = shown(&chain(error));
            assert!(
                shown.contains("\\u{1b}[2J\\u{d}\\u{a}accept \\u{202e}\\u{9b}2J\\u{2028}x"),
                "{shown}"
            );
            assert!(!shown.chars().any(char::is_control), "{shown}");
            assert!(shown.chars().count() < 2 * LONGEST_MESSAGE && shown.ends_with('…'), "{shown}");
        }
        let usual = "could not open \"it's\" \\ ä: 5";
        assert_eq!(shown(usual), usual);
    }
}
