//! `casemate run`

mod check;
mod events;
mod fault;
mod keyboard;
mod keys;
mod log;
mod monitor;
mod report;
mod terminal;

use std::path::{self, Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use casemate_config::{Ending, GuestConfig, Net, QuoteService, Xfam, from_flags, load};
use casemate_kvm::host::{Facts, Finding, State, findings};
use casemate_kvm::trace::Interposer;
use casemate_launch::PlatformKind;
use casemate_machine::platform::{Plain, Platform, Snp, Tdx};
use casemate_machine::{ConsolePorts, Ended, Guest, Machine, Outcome, Outlet, SharedMemory};
use casemate_plan::platforms;
use casemate_sandbox::{Access, Mode, Sandbox, User};
use casemate_supervisor::{Event, Next, Supervisor, ToParent, Verdict};
use check::Waiting;
use report::Reporter;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::SIGSYS;
use terminal::{Screen, Terminal, make_raw};

use super::{EXIT_BAD_INPUT, GuestFlags, words};

/// Exit status of a host that could not go on.
const EXIT_HOST: u8 = 124;

/// Run a guest, with its serial port on this terminal
///
/// Describe the guest in a file, by flags, or both: flags win. Casemate checks everything before it opens
/// /dev/kvm.
///
/// Keys on the terminal: Ctrl-A x ends the guest, Ctrl-A c opens a monitor and closes it, Ctrl-A h
/// shows help, Ctrl-A Ctrl-A sends Ctrl-A.
///
/// Exit status: 0 the guest powered off; the guest's own status if it writes a byte to I/O port 0x501
/// (use 3 to 119); 120 reset; 121 kernel panic, reported through pvpanic; 122 triple fault; 123 stopped
/// by a key, the monitor or a signal; 124 the VMM failed; 125 the guest did not power off in time after
/// SIGTERM; 2 invalid input, or the launch failed.
///
/// Signals: SIGTERM presses the guest's power button, and ends the guest after --stop-timeout; a
/// second one ends it at once, as SIGINT, SIGQUIT and SIGHUP do.
#[derive(clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "A shell in a guest:\n  casemate run --kernel vmlinuz --initrd initrd.img --platform plain\n\n\
                  The same, encrypted and measured:\n  casemate run --kernel vmlinuz --initrd initrd.img \
                  --platform snp"
)]
pub(crate) struct Args {
    /// Configuration of the guest
    #[arg(value_name = "GUEST.toml")]
    file: Option<PathBuf>,
    #[command(flatten)]
    guest: GuestFlags,
    /// Record all launch ioctls to FILE, one JSON object per line
    ///
    /// The record has the arguments of /dev/kvm, VM, vCPUs and /dev/sev without addresses and secrets. It
    /// is also written if the launch fails.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Stop the guest unless it presents matching evidence within SECONDS
    ///
    /// The guest's agent sends the evidence over vsock (`casemate-agent check`).
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "120",
    )]
    attest: Option<u64>,
    /// Time for the guest to power off after SIGTERM; 0 stops it at once
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    stop_timeout: u64,
    /// Sandbox the guest's process; log records system calls instead of killing
    #[arg(long, value_name = "MODE", default_value = "off", value_parser = words::<Mode>(Mode::WORDS))]
    sandbox: Mode,
    /// Run the guest's process as a user, NAME or UID:GID; requires --sandbox on
    ///
    /// Only root can change the user.
    #[arg(long, value_name = "USER")]
    user: Option<User>,
    /// Log filter, such as info or casemate_machine=debug [default: RUST_LOG, or warn]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Write events and log to standard error as JSON, one object per line
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let status = match supervised(args) {
        Ok(Verdict::Status(status)) => return Ok(ExitCode::from(status)),
        Ok(Verdict::Killed(signal)) => {
            let error = killed(signal);
            tell(args, &Sandbox::off(), |reporter, _| failed(reporter, &error, EXIT_HOST))?
        }
        Ok(Verdict::Stopped) => tell(args, &Sandbox::off(), |reporter, _| {
            reporter.ended(&Outcome::Stopped, None);
            Outcome::Stopped.status()
        })?,
        Err(error) => {
            tell(args, &Sandbox::off(), |reporter, _| failed(reporter, &error, EXIT_BAD_INPUT))?
        }
    };
    Ok(ExitCode::from(status))
}

/// The end of a guest's process that reported nothing.
fn killed(signal: i32) -> anyhow::Error {
    match signal {
        SIGSYS => anyhow!(
            "the sandbox ended the process of the guest: it made a system call that it does not need; the \
             kernel's log names it (type=1326)"
        ),
        signal => anyhow!("signal {signal} killed the process of the guest"),
    }
}

/// Runs the guest in children of this process. Before the last one has ended, this process has no
/// thread.
fn supervised(args: &Args) -> anyhow::Result<Verdict> {
    if args.sandbox == Mode::Off && args.user.is_some() {
        bail!("--user is a part of the sandbox: add --sandbox on");
    }
    let config = with_absolute_paths(config(args)?)?;
    let supervisor = Supervisor::new(Duration::from_secs(args.stop_timeout))?;
    let life = |parent: ToParent| {
        let begun = Sandbox::begin(args.sandbox, args.user, accesses(&config), &parent);
        let sandbox = begun.as_ref().map_or_else(|_| Sandbox::off(), Sandbox::clone);
        let done = tell(args, &sandbox, |reporter, screen| match begun {
            Ok(sandbox) => child(args, &config, &parent, &sandbox, reporter, screen),
            Err(error) => failed(reporter, &error.into(), EXIT_BAD_INPUT),
        });
        done.unwrap_or_else(|error| {
            eprintln!("casemate: {error:#}");
            EXIT_BAD_INPUT
        })
    };
    Ok(supervisor.supervise(life)?)
}

/// `config` with paths that mean the same in another root directory.
fn with_absolute_paths(mut config: GuestConfig) -> anyhow::Result<GuestConfig> {
    if let Some(vsock) = config.vsock.as_mut().filter(|vsock| !vsock.vhost) {
        vsock.socket =
            path::absolute(&vsock.socket).context("could not find the socket's folder")?;
    }
    Ok(config)
}

/// Files that a guest's process needs once it is launched.
fn accesses(config: &GuestConfig) -> Vec<Access> {
    let folder = |file: &Path| {
        let folder = file.parent().unwrap_or(Path::new("/"));
        if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder.to_owned() }
    };
    let sockets = config.vsock.as_ref().filter(|vsock| !vsock.vhost);
    let certificates = config.snp.as_ref().and_then(|snp| snp.certificates.as_ref());
    let quotes = config.tdx.as_ref().and_then(|tdx| match &tdx.quote_service {
        QuoteService::Unix(path) => Some(folder(path)),
        QuoteService::Vsock { .. } => None,
    });
    let mut list = Vec::new();
    list.extend(sockets.map(|vsock| Access::Sockets(folder(&vsock.socket))));
    list.extend(certificates.map(|file| Access::Read(folder(file))));
    // A service that is not there yet has no folder yet: its guest gets no quotes.
    list.extend(quotes.filter(|folder| folder.is_dir()).map(Access::Connect));
    list
}

/// Opens standard output and standard error for `work`, and writes what it left for them.
fn tell<T>(
    args: &Args,
    sandbox: &Sandbox,
    work: impl FnOnce(&Reporter, &Screen) -> T,
) -> anyhow::Result<T> {
    let screen =
        Screen::open(sandbox).context("could not use standard output and standard error")?;
    let reporter = Reporter { json: args.json, errors: screen.errors.clone() };
    let done = work(&reporter, &screen);
    screen.flush_errors();
    Ok(done)
}

fn failed(reporter: &Reporter, error: &anyhow::Error, status: u8) -> u8 {
    reporter.failed(error, status);
    status
}

/// The child: one run of the guest; the exit status that tells its end.
fn child(
    args: &Args,
    config: &GuestConfig,
    parent: &ToParent,
    sandbox: &Sandbox,
    reporter: &Reporter,
    screen: &Screen,
) -> u8 {
    fault::end_run_on_panic(reporter.clone());
    guest(args, config, parent, sandbox, reporter, screen)
        .unwrap_or_else(|error| failed(reporter, &error, EXIT_BAD_INPUT))
}

/// From the description of a guest to the end of one run.
fn guest(
    args: &Args,
    config: &GuestConfig,
    parent: &ToParent,
    sandbox: &Sandbox,
    reporter: &Reporter,
    screen: &Screen,
) -> anyhow::Result<u8> {
    let limiter = log::start(args.log.as_deref(), args.json, &screen.errors)?;
    raise_open_files();
    let config = resolved(config.clone());
    taps(&config.net, args)?;
    let guest = match *platforms(&config) {
        [platform] => Guest::new(config, platform)?,
        _ => confidential(&config)?,
    };
    reporter.cautions(&guest);
    reporter.planned(guest.plan())?;
    let (outcome, restarts, shared) = run_once(guest, parent, sandbox, reporter, screen, args)?;
    limiter.finish();
    let outcome = match restarts.then(|| parent.ask_for_restart()) {
        Some(Next::Restart) => {
            reporter.restarts(&outcome);
            return Ok(outcome.status());
        }
        Some(Next::TooMany) => {
            reporter.gives_up();
            outcome
        }
        Some(Next::Stopped) => Outcome::Stopped,
        None => outcome,
    };
    reporter.ended(&outcome, shared);
    Ok(outcome.status())
}

/// The customary limit, 1024, is for programs that use select; a guest with many queues takes more files.
fn raise_open_files() {
    let hard = getrlimit(Resource::Nofile).maximum;
    let raised = setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard });
    // Most guests need few.
    if let Err(error) = raised {
        tracing::debug!(%error, "could not raise the limit of open files to {hard:?}");
    }
}

fn config(args: &Args) -> anyhow::Result<GuestConfig> {
    let overrides = args.guest.0.clone();
    Ok(match &args.file {
        Some(file) => load(file, overrides)?,
        None => from_flags(overrides)?,
    })
}

/// `config` with what this host decides. Where it has no TDX, nothing can be resolved and nothing needs
/// to be.
fn resolved(mut config: GuestConfig) -> GuestConfig {
    if let Some(tdx) = &mut config.tdx
        && tdx.xfam == Xfam::Auto
        && let Ok(offered) = casemate_kvm::tdx::offered_xfam()
    {
        tdx.xfam = tdx.xfam.on_host(offered);
        tracing::warn!("tdx.xfam = {} on this host", tdx.xfam);
    }
    config
}

/// Whether the taps are there. Only where a guest runs must they be: whoever measures it has none.
fn taps(nets: &[Net], args: &Args) -> anyhow::Result<()> {
    let origin = match &args.file {
        Some(file) if !args.guest.0.gives("net") => format!("{}: ", file.display()),
        _ => "--".into(),
    };
    for (at, Net { tap, .. }) in nets.iter().enumerate() {
        let interface = Path::new("/sys/class/net").join(tap);
        let problem = match (interface.exists(), interface.join("tun_flags").exists()) {
            (_, true) => continue,
            (true, _) => "this interface is no tap",
            (false, _) => "there is no such interface",
        };
        bail!(
            "{origin}net[{at}].tap = {tap:?}: {problem}; make one: \
             sudo ip tuntap add dev {tap} mode tap user $USER"
        );
    }
    Ok(())
}

/// The guest of this machine's confidential platform; of SEV-SNP where it has none, so that
/// its launch names the cause.
fn confidential(config: &GuestConfig) -> anyhow::Result<Guest> {
    use casemate_kvm::host::check;
    let for_snp = config.snp.is_some();
    let guest = |platform| Guest::new(config.clone(), platform);
    Ok(match (guest(PlatformKind::Snp), guest(PlatformKind::Tdx)) {
        (Ok(_), Ok(guest))
            if check(PlatformKind::Snp).is_err() && check(PlatformKind::Tdx).is_ok() =>
        {
            guest
        }
        // Firmware can be of TDX alone.
        (Err(_), Ok(guest)) if !for_snp => guest,
        (guest, _) => guest?,
    })
}

fn platform(guest: &Guest) -> anyhow::Result<Box<dyn Platform>> {
    Ok(match guest.plan().platform() {
        PlatformKind::Plain => Box::new(Plain),
        PlatformKind::Snp => {
            let snp = guest.config().snp.as_ref();
            let certificates = snp.and_then(|snp| snp.certificates.as_deref());
            Box::new(Snp::new(guest.plan(), certificates).context("could not use SEV-SNP")?)
        }
        PlatformKind::Tdx => {
            let tdx = guest.config().tdx.clone().unwrap_or_default();
            Box::new(Tdx::new(guest.plan(), tdx.quote_service).context("could not use TDX")?)
        }
    })
}

/// Whether this machine can launch such guests; if not, the causes and their remedies.
fn ready(platform: PlatformKind) -> anyhow::Result<()> {
    let Err(findings) = casemate_kvm::host::check(platform) else { return Ok(()) };
    let mut text = format!("this machine launches no {} guests", platform.name());
    text.extend(findings.iter().map(line));
    text += "\ncasemate host says more; casemate lab runs an emulated host that can";
    if platform != PlatformKind::Plain {
        text += "; with --platform plain the guest runs here, without protection from the host";
    }
    bail!(text)
}

/// A finding on a line of its own, with its fix.
fn line(finding: &Finding) -> String {
    let fix = finding.fix.as_ref().map(|fix| format!("; {fix}")).unwrap_or_default();
    format!("\n  {}: {}{fix}", finding.check, finding.says)
}

/// What is not as it could be on this machine for plain guests, and may be why a launch failed.
fn notes() -> String {
    let mut findings = findings(&Facts::gather(Path::new("/")));
    findings.retain(|finding| {
        finding.platforms.contains(&PlatformKind::Plain)
            && (finding.state == State::Note || finding.blocks(PlatformKind::Plain))
    });
    let lines: String = findings.iter().map(line).collect();
    if lines.is_empty() { lines } else { format!("\npossible causes on this machine:{lines}") }
}

/// What `launch` returns; its commands are in `file` then.
fn recorded<T>(file: &Path, launch: impl FnOnce() -> T) -> anyhow::Result<T> {
    let (outcome, events) = Interposer::recording().run(launch);
    let mut trace = String::new();
    for event in &events {
        trace += &serde_json::to_string(event)?;
        trace.push('\n');
    }
    std::fs::write(file, trace)
        .with_context(|| format!("could not record the launch in {}", file.display()))?;
    Ok(outcome)
}

/// The guest, launched with these on its terminal; if that fails, possible causes on this machine.
fn launched(
    guest: &Guest,
    serial: Outlet,
    console: Option<ConsolePorts>,
    record: Option<&Path>,
    sandbox: &Sandbox,
) -> anyhow::Result<Machine> {
    match guest.plan().platform() {
        // What a plain guest needs is looked at only if its launch fails: now, it would double its time.
        PlatformKind::Plain => {}
        confidential => ready(confidential)?,
    }
    let launch = || Ok(Machine::launch(guest, platform(guest)?, serial, console, sandbox)?);
    let machine: anyhow::Result<Machine> = match record {
        Some(file) => recorded(file, launch)?,
        None => launch(),
    };
    if let (Err(error), PlatformKind::Plain) = (&machine, guest.plan().platform()) {
        ready(PlatformKind::Plain)?;
        bail!("{error:#}{}", notes());
    }
    machine
}

/// Runs the guest once; how it ended, whether its configuration asks for another run then, and what it
/// shared.
fn run_once(
    guest: Guest,
    parent: &ToParent,
    sandbox: &Sandbox,
    reporter: &Reporter,
    screen: &Screen,
    args: &Args,
) -> anyhow::Result<(Outcome, bool, Option<SharedMemory>)> {
    let (on_reset, on_panic) = (guest.config().on_reset, guest.config().on_panic);
    let terminal = Terminal::open(guest.config(), make_raw()?, screen, sandbox)
        .context("could not use standard input and output")?;
    let serial = terminal.serial;
    let has_place = guest.config().serial.is_some();
    let waiting = args.attest.map(|_| Waiting::of(&guest)).transpose()?;
    let machine =
        launched(&guest, serial.clone(), terminal.console, args.record.as_deref(), sandbox)?;
    reporter.launched(&guest);
    // A plan holds kernel and initrd.
    drop(guest);
    let control = machine.control().clone();
    let limit = Duration::from_secs(args.attest.unwrap_or_default());
    let _check = waiting
        .map(|waiting| waiting.start(control.clone(), reporter.clone(), limit, sandbox))
        .transpose()?;
    let commands = events::watcher(parent, control.clone())
        .context("could not watch for commands of the parent process")?;
    let keyboards = [terminal.keyboard, terminal.socket].into_iter().flatten();
    let keyboards = keyboards.map(|keyboard| keyboard.watcher(control.clone()));
    let watchers = keyboards.chain([commands]).collect();
    let Ended { outcome, unfinished } = machine.run(watchers)?;
    parent.send(Event::Ended);
    if let (bytes @ 1.., error) = screen.flush_output() {
        reporter.lost("standard output", bytes, error.as_deref());
    }
    if let (bytes @ 1.., error) = terminal::flush(&serial)
        && has_place
    {
        reporter.lost("the serial port's place", bytes, error.as_deref());
    }
    if !unfinished.is_empty() {
        reporter.unfinished(&unfinished);
    }
    let restarts = match outcome {
        // Files and sockets of a guest that did not end are not free for the next.
        _ if !unfinished.is_empty() => false,
        Outcome::Reset => on_reset == Ending::Restart,
        Outcome::Panic => on_panic == Ending::Restart,
        _ => false,
    };
    Ok((outcome, restarts, control.shared()))
}
