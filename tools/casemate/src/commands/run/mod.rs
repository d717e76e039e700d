//! `casemate run`

mod check;
mod fault;
mod keyboard;
mod keys;
mod log;
mod monitor;
mod report;
mod signals;
mod terminal;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use casemate_config::{Ending, GuestConfig, Net, Xfam, from_flags, load};
use casemate_kvm::host::{Facts, Finding, State, findings};
use casemate_kvm::trace::Interposer;
use casemate_kvm::vm::VmType;
use casemate_launch::PlatformKind;
use casemate_machine::platform::{Plain, Platform, Snp, Tdx};
use casemate_machine::{ConsolePorts, Ended, Guest, Machine, Outcome, Outlet, SharedMemory};
use casemate_plan::platforms;
use check::Waiting;
use report::Reporter;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signals::Signals;
use terminal::{RawMode, Screen, Terminal};

use super::{EXIT_BAD_INPUT, GuestFlags};

/// Run a guest, with its serial port on this terminal
///
/// The guest is described by a file, by flags, or by both: flags win. Everything is checked before
/// /dev/kvm is opened.
///
/// Keys on the terminal: Ctrl-A x ends the guest, Ctrl-A c opens a monitor and closes it, Ctrl-A h
/// shows help, Ctrl-A Ctrl-A sends Ctrl-A.
///
/// Exit status: 0 the guest powered off; the guest's own status if it writes one (a byte) to I/O
/// port 0x501; 120 it reset; 121 its kernel panicked (as told by pvpanic); 122 triple fault; 123
/// ended from here, by a key, the monitor or a signal; 124 the host could not go on; 2 bad input, or
/// the launch failed. A guest that gives its own status should keep to 3 to 119.
#[derive(clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "A shell in a guest:\n  casemate run --kernel vmlinuz --initrd initrd.img --platform plain\n\n\
                  The same, encrypted and measured:\n  casemate run --kernel vmlinuz --initrd initrd.img \
                  --platform snp"
)]
pub(crate) struct Args {
    /// Description of the guest, see the configuration reference
    #[arg(value_name = "GUEST.toml")]
    file: Option<PathBuf>,
    #[command(flatten)]
    guest: GuestFlags,
    /// Write what the kernel is asked during the launch to this file: all commands to /dev/kvm, VM, vCPUs and
    /// /dev/sev, with arguments but without addresses and secrets, one JSON object per line; also
    /// those of a launch that fails
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Wait for the guest to show evidence through its agent (`casemate-agent check`, over vsock), and end
    /// it if that is not what was launched, or if there is none after so many seconds
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "120",
    )]
    attest: Option<u64>,
    /// What to log on standard error, like info or casemate_machine=debug [default: RUST_LOG, or warn]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Events and log on standard error as JSON, one object per line
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let screen = Screen::open().context("could not use standard output and standard error")?;
    let reporter = Reporter { json: args.json, errors: screen.errors.clone() };
    fault::end_run_on_panic(reporter.clone());
    let status = guest(args, &reporter, &screen).unwrap_or_else(|error| {
        reporter.failed(&error, EXIT_BAD_INPUT);
        EXIT_BAD_INPUT
    });
    screen.flush_errors();
    Ok(ExitCode::from(status))
}

/// From the description of a guest to its end; the exit status that tells it.
fn guest(args: &Args, reporter: &Reporter, screen: &Screen) -> anyhow::Result<u8> {
    let limiter = log::start(args.log.as_deref(), args.json, &screen.errors)?;
    raise_open_files();
    let config = resolved(config(args)?);
    taps(&config.net, args)?;
    let guest = match *platforms(&config) {
        [platform] => Guest::new(config, platform)?,
        _ => confidential(&config)?,
    };
    reporter.cautions(&guest);
    reporter.planned(guest.plan())?;
    let (outcome, shared) = runs(guest, reporter, screen, args)?;
    limiter.finish();
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

/// The guest of this machine's confidential platform; of SEV-SNP where it has none, for its launch to
/// say what is in the way.
fn confidential(config: &GuestConfig) -> anyhow::Result<Guest> {
    use casemate_kvm::host::check;
    let for_snp = config.snp.is_some();
    let guest = |platform| Guest::new(config.clone(), platform);
    Ok(match (guest(PlatformKind::Snp), guest(PlatformKind::Tdx)) {
        (Ok(_), Ok(guest)) if check(VmType::Snp).is_err() && check(VmType::Tdx).is_ok() => guest,
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

/// Whether this machine can launch such guests; if not, what is in the way and how to mend it.
fn ready(platform: VmType) -> anyhow::Result<()> {
    let Err(findings) = casemate_kvm::host::check(platform) else { return Ok(()) };
    let mut text = format!("this machine launches no {platform} guests");
    text.extend(findings.iter().map(line));
    text += "\ncasemate host says more; casemate lab runs an emulated host that can";
    if platform != VmType::Plain {
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
        finding.state == State::Note && finding.platforms.contains(&VmType::Plain)
    });
    let lines: String = findings.iter().map(line).collect();
    if lines.is_empty() { lines } else { format!("\nif one of these is in the way:{lines}") }
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

/// The guest, launched with these on its terminal; if it cannot be, what is in the way on this machine.
fn launched(
    guest: &Guest,
    serial: Outlet,
    console: Option<ConsolePorts>,
    record: Option<&Path>,
) -> anyhow::Result<Machine> {
    match guest.plan().platform() {
        // What a plain guest needs is looked at only if its launch fails: now, it would double its time.
        PlatformKind::Plain => {}
        PlatformKind::Snp => ready(VmType::Snp)?,
        PlatformKind::Tdx => ready(VmType::Tdx)?,
    }
    let launch = || Ok(Machine::launch(guest, platform(guest)?, serial, console)?);
    let machine: anyhow::Result<Machine> = match record {
        Some(file) => recorded(file, launch)?,
        None => launch(),
    };
    if let (Err(error), PlatformKind::Plain) = (&machine, guest.plan().platform()) {
        ready(VmType::Plain)?;
        bail!("{error:#}{}", notes());
    }
    machine
}

/// Runs the guest, again for as long as its configuration wants that; how the last run ended, and what
/// the guest shared in it.
fn runs(
    guest: Guest,
    reporter: &Reporter,
    screen: &Screen,
    args: &Args,
) -> anyhow::Result<(Outcome, Option<SharedMemory>)> {
    let (on_reset, on_panic) = (guest.config().on_reset, guest.config().on_panic);
    let signals =
        Signals::register(guest.config().console).context("could not watch for signals")?;
    // Only now: a signal before would end this process and leave the terminal raw.
    let raw_mode = RawMode::enter()?;
    let mut again = Some(guest);
    loop {
        let Some(guest) = again.take() else { bail!("the launch plan is gone") };
        let terminal = Terminal::open(guest.config().console, raw_mode.is_some(), screen)
            .context("could not use standard input and output")?;
        let waiting = args.attest.map(|_| Waiting::of(&guest)).transpose()?;
        let machine =
            launched(&guest, screen.output.clone(), terminal.console, args.record.as_deref())?;
        reporter.launched(&guest);
        // A plan holds kernel and initrd: it stays only where it is needed again.
        again = (on_reset == Ending::Restart || on_panic == Ending::Restart).then_some(guest);
        let control = machine.control().clone();
        let limit = Duration::from_secs(args.attest.unwrap_or_default());
        let _check = waiting
            .map(|waiting| waiting.start(control.clone(), reporter.clone(), limit))
            .transpose()?;
        let signals = signals.watcher(control.clone()).context("could not watch for signals")?;
        let keyboard = terminal.keyboard.map(|keyboard| keyboard.watcher(control.clone()));
        let watchers = keyboard.into_iter().chain([signals]).collect();
        let Ended { outcome, unfinished } = machine.run(watchers)?;
        if let (bytes @ 1.., error) = screen.flush_output() {
            reporter.lost(bytes, error.as_deref());
        }
        if !unfinished.is_empty() {
            reporter.unfinished(&unfinished);
        }
        let restart = match outcome {
            // Files and sockets of a guest that did not end are not free for the next.
            _ if !unfinished.is_empty() => false,
            Outcome::Reset => on_reset == Ending::Restart,
            Outcome::Panic => on_panic == Ending::Restart,
            _ => false,
        };
        if !restart {
            return Ok((outcome, control.shared()));
        }
        reporter.restarts(&outcome);
    }
}
