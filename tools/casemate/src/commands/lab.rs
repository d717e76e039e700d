//! `casemate lab`

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use casemate_config::ByteSize;
use casemate_lab::{Chip, Host, Lab, LabError, Part, Processor, State};
use clap::Subcommand;

/// Ended because it took too long; as timeout(1) has it.
const EXIT_TIMED_OUT: u8 = 124;

/// Run commands in an emulated host with plain KVM, SEV-SNP or TDX
///
/// A host is a machine in software with a Debian kernel and a real /dev/kvm. It does not need root or
/// virtualisation on this machine. Its components are downloaded once, from the Debian mirror of this
/// machine, to ~/.cache/casemate ($CASEMATE_CACHE).
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
/// The command runs as root, in the current directory, with this machine's files. They are read-only,
/// except the directory of --share. /tmp and /run are empty, except entries of this machine that contain
/// the current directory or a path in the command. The command uses the terminal, if there is one.
///
/// Exit status: that of the command; 124 it timed out, 127 it does not exist, 2 the host does not exist.
#[derive(clap::Args)]
#[command(
    after_help = "For example:\n  casemate lab run -- casemate run --platform plain --kernel vmlinuz \
                        --initrd initrd\n  casemate lab run --host snp --share out -- sh -c 'dmesg >out/dmesg'"
)]
struct Run {
    /// Kind of host: kvm, snp or tdx
    #[arg(long, default_value = "kvm")]
    host: Host,
    /// Recorded processor of an snp host: milan or genoa
    ///
    /// Its CPUID is that of an EPYC 7763 or 9124, except for features that the emulator cannot execute, and
    /// the secure processor checks the CPUID page against it. As on silicon, private memory is noise to
    /// the host, and to the guest until it writes to it.
    #[arg(long, value_name = "NAME")]
    cpu: Option<Processor>,
    /// Let the secure processor of an snp host correct one CPUID entry per request
    ///
    /// By default it corrects all entries at once.
    #[arg(long)]
    correct_first: bool,
    /// Time that launch commands of an snp host take per page
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    launch_delay: u32,
    /// Processors of the host [default: 1 for kvm and snp, 2 for tdx]
    ///
    /// A TDX guest can have as many vCPUs as the host has processors.
    #[arg(long, value_name = "N")]
    vcpus: Option<u8>,
    /// Memory of the host [default: 3G for kvm, 6G for snp, 4G for tdx]
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Stop the command after SECONDS
    ///
    /// Time in which the emulator waits for a processor of this machine does not count.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
    /// Directory that the command can write, at the same path
    #[arg(long, value_name = "DIR")]
    share: Option<PathBuf>,
    /// Debian kernel of the host: oldest, newest, or a series such as 6.12
    ///
    /// The default is oldest. A tdx host always uses its own kernel.
    #[arg(long, value_name = "SERIES")]
    kernel: Option<String>,
    /// QEMU for --host kvm instead of the patched one, such as qemu-system-x86_64
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,
    /// Directory for logs: console, kernel messages, requests to the platform
    #[arg(long, value_name = "DIR")]
    log: Option<PathBuf>,
    /// Boot the host instead of resuming its saved state
    #[arg(long)]
    cold: bool,
    /// Command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Download and build the components of emulated hosts
#[derive(clap::Args)]
struct Prepare {
    /// Kind of host; repeatable [default: all]
    #[arg(long)]
    host: Vec<Host>,
}

/// List lab components and how to install missing ones
///
/// Exit status: 0 all hosts can run, 1 components are missing.
#[derive(clap::Args)]
struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print only the names of Debian packages that must be installed first
    #[arg(long, conflicts_with = "json")]
    packages: bool,
    /// List components of this kind of host only; repeatable [default: all]
    #[arg(long)]
    host: Vec<Host>,
}

/// Make a small guest: a Debian kernel and a shell
///
/// Writes guest.toml for casemate run, vmlinuz (bzImage), vmlinux (the same as ELF) and initrd: busybox,
/// and the modules for virtio devices and attestation. The guest starts a shell. With casemate.hello on
/// its command line it describes itself and powers off; with casemate.report it also prints evidence over
/// the SHA-512 of its first disk.
#[derive(clap::Args)]
struct Guest {
    /// Directory for the files
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Debian cloud kernel: oldest, newest, or a series such as 6.12
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
    let strict = args.cpu.is_some() || args.correct_first || args.launch_delay != 0;
    ensure!(
        !strict || args.host == Host::Snp,
        "--cpu, --correct-first and --launch-delay describe an snp host, not {}; add --host snp",
        args.host
    );
    lab = lab.chip(Chip {
        processor: args.cpu,
        corrects_first: args.correct_first,
        launch_delay_us: args.launch_delay,
    });
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
