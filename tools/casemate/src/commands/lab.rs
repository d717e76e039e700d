//! `casemate lab`

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use casemate_config::ByteSize;
use casemate_lab::{Host, Lab, LabError, Part, State};
use clap::Subcommand;

/// Ended because it took too long; as timeout(1) has it.
const EXIT_TIMED_OUT: u8 = 124;

/// Run commands in an emulated host: plain KVM, SEV-SNP or TDX without the hardware
///
/// A host is a whole machine in software with a kernel of Debian's and a real /dev/kvm. It needs
/// neither root nor virtualisation on this machine. What it is made of is fetched once, from the
/// Debian mirror that this machine uses, and kept in ~/.cache/casemate ($CASEMATE_CACHE).
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(Run),
    Prepare(Prepare),
    Status(Status),
    Guest(Guest),
}

/// Run a command in an emulated host
///
/// The command runs as root, in the current directory, with this machine's files. They are
/// read-only, but for the directory given by --share; /tmp and /run are fresh, with those entries of
/// this machine's that the current directory or a path in the command is in. Its output comes as it is
/// written, and on a terminal it has the terminal.
///
/// Exit status: the command's own; 124 it took too long, 127 there is no such command, 2 there is no
/// such host.
#[derive(clap::Args)]
#[command(
    after_help = "For example:\n  casemate lab run -- casemate run --platform plain --kernel vmlinuz \
                        --initrd initrd\n  casemate lab run --host snp --share out -- sh -c 'dmesg >out/dmesg'"
)]
struct Run {
    /// Kind of host: kvm, snp or tdx
    #[arg(long, default_value = "kvm")]
    host: Host,
    /// Processors of the host; a TDX guest can have as many vCPUs, and no more [default: 1 for kvm
    /// and snp, 2 for tdx]
    #[arg(long, value_name = "N")]
    vcpus: Option<u8>,
    /// Memory of the host [default: 3G for kvm, 6G for snp, 4G for tdx]
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Seconds after which the command is ended, without those in which the emulator waits for a
    /// processor of this machine
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// A directory that the command can write, at the same path
    #[arg(long, value_name = "DIR")]
    share: Option<PathBuf>,
    /// Debian's kernel for the host: oldest, newest, or a series such as 6.12 [default: oldest; tdx has
    /// one of its own]
    #[arg(long, value_name = "SERIES")]
    kernel: Option<String>,
    /// A QEMU as distributions have it, such as qemu-system-x86_64, instead of the patched one; for
    /// --host kvm only
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,
    /// A directory for the host's logs: console, kernel messages, what the platform was asked
    #[arg(long, value_name = "DIR")]
    log: Option<PathBuf>,
    /// Boot the host rather than resume its saved state
    #[arg(long)]
    cold: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Fetch and build what emulated hosts need, so that later runs start at once
#[derive(clap::Args)]
struct Prepare {
    /// Kind of host, may be repeated [default: all]
    #[arg(long)]
    host: Vec<Host>,
}

/// Say what is here, what is missing, and the command that brings it
///
/// Exit status: 0 every host can run, 1 something must be installed or built first.
#[derive(clap::Args)]
struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print only the names of Debian packages that must be installed first
    #[arg(long, conflicts_with = "json")]
    packages: bool,
    /// Only what this kind of host needs, may be repeated [default: all]
    #[arg(long)]
    host: Vec<Host>,
}

/// Make a small guest to try things with: a kernel of Debian's, and a shell
///
/// Writes guest.toml for casemate run, vmlinuz (bzImage), vmlinux (the same as ELF) and initrd: busybox,
/// and the modules for virtio devices and attestation. The guest starts a shell. With casemate.hello on
/// its command line it says what it is and powers off; with casemate.report it also prints evidence over
/// the SHA-512 of its first disk.
#[derive(clap::Args)]
struct Guest {
    /// Where to write the files
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Debian's cloud kernel: oldest, newest, or a series such as 6.12
    #[arg(long, value_name = "SERIES", default_value = casemate_lab::kernel::OLDEST)]
    kernel: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Run(args) => run_command(args),
        Command::Prepare(args) => prepare(args),
        Command::Status(args) => status(args),
        Command::Guest(args) => guest(args),
    }
}

fn run_command(args: &Run) -> anyhow::Result<ExitCode> {
    let mut lab = Lab::new(args.host)
        .vcpus(args.vcpus.unwrap_or(args.host.default_vcpus()))
        .timeout(Duration::from_secs(args.timeout))
        .cold(args.cold);
    if let Some(memory) = args.memory {
        let mib = memory.0 >> 20;
        ensure!(mib << 20 == memory.0, "--memory {}: it must be a whole number of MiB", memory.0);
        lab = lab.memory_mib(u32::try_from(mib).context("--memory is too large")?);
    }
    if let Some(share) = &args.share {
        lab = lab.share(share);
    }
    if let Some(kernel) = &args.kernel {
        lab = lab.kernel(kernel);
    }
    if let Some(program) = &args.qemu {
        lab = lab.qemu(program);
    }
    if let Some(log) = &args.log {
        lab = lab.log(log);
    }
    match lab.stream(&args.command) {
        Ok(output) => Ok(ExitCode::from(output.status)),
        Err(error @ LabError::TimedOut { .. }) => {
            eprintln!("casemate: {error}");
            Ok(ExitCode::from(EXIT_TIMED_OUT))
        }
        Err(error) => Err(error.into()),
    }
}

fn prepare(args: &Prepare) -> anyhow::Result<ExitCode> {
    let hosts = if args.host.is_empty() { &Host::ALL[..] } else { &args.host };
    for host in hosts {
        Lab::new(*host).prepare().with_context(|| format!("preparing the {host} host"))?;
        eprintln!("lab: the {host} host is ready");
    }
    Ok(ExitCode::SUCCESS)
}

fn status(args: &Status) -> anyhow::Result<ExitCode> {
    let mut parts = casemate_lab::status()?;
    if !args.host.is_empty() {
        let asked = |part: &Part| args.host.iter().any(|host| part.hosts.contains(&host.name()));
        parts.retain(asked);
    }
    let mut out = super::output();
    if args.packages {
        for name in parts.iter().flat_map(|part| &part.packages) {
            writeln!(out, "{name}")?;
        }
    } else if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&parts)?)?;
    } else {
        for part in &parts {
            print_part(&mut out, part)?;
        }
    }
    let usable = |part: &Part| matches!(part.state, State::Ready | State::OnDemand);
    Ok(ExitCode::from(u8::from(!parts.iter().all(usable))))
}

fn print_part(out: &mut impl Write, part: &Part) -> io::Result<()> {
    let state = match part.state {
        State::Ready => "ready",
        State::OnDemand => "on demand",
        State::ToBuild => "to build",
        State::Missing => "missing",
    };
    writeln!(out, "{state:10} {:16} {} ({})", part.name, part.detail, part.hosts.join(", "))?;
    if let Some(next) = &part.next {
        writeln!(out, "{:10} {:16} next: {next}", "", "")?;
    }
    Ok(())
}

fn guest(args: &Guest) -> anyhow::Result<ExitCode> {
    let files = casemate_lab::guest::write(&args.directory, &args.kernel)?;
    for file in files {
        writeln!(super::output(), "{}", file.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
