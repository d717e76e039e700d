//! `casemate measure --search`

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use casemate_config::{ByteSize, GuestConfig};
use casemate_launch::firmware;
use casemate_launch::kernel_hashes::KernelHashes;
use casemate_launch::measure::own;
use casemate_launch::rules::Profile;
use casemate_launch::snp::search::{Explanation, Inputs, search};
use casemate_launch::tdx::{self, PageOrder};
use casemate_launch::{Digest384, PlatformKind};
use casemate_plan::{Rules, plan};
use casemate_verify::snp::{REPORT_LEN, Report};
use casemate_verify::tdx::TdxEvidence;
use casemate_verify::{MAX_INPUT, TdxPolicy, Timestamp};
use serde_json::{Value, json};

use super::output::Format;
use super::search_igvm;
use crate::commands::{MAX_FIRMWARE, MAX_PAYLOAD, output, read, read_optional};

/// The most vCPUs that are tried: more than guests have, and less than a second's work.
const MOST_VCPUS: u32 = 512;
/// The most vCPUs of a guest of Casemate's.
const MOST_OWN_VCPUS: u32 = 255;

const EXIT_UNEXPLAINED: u8 = 1;

/// What the guest is thought to have been launched with.
#[derive(clap::Args)]
pub(super) struct Known {
    /// Firmware of the guest, for --search [default: Casemate's own]
    #[arg(long, value_name = "FILE", requires = "search")]
    firmware: Option<PathBuf>,
    /// IGVM file of the guest, for --search
    #[arg(long, value_name = "FILE", requires = "search", conflicts_with_all = ["firmware", "kernel"])]
    igvm: Option<PathBuf>,
    /// Memory of a guest of Casemate's firmware, for --search [default: usual sizes]
    #[arg(long, value_name = "SIZE", requires = "search")]
    memory: Option<ByteSize>,
    /// Kernel of the guest, for --search
    #[arg(long, value_name = "FILE", requires = "search")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk of the guest, for --search
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Kernel command line of the guest, for --search
    #[arg(
        long,
        alias = "append",
        value_name = "TEXT",
        requires = "kernel",
        allow_hyphen_values = true
    )]
    cmdline: Option<OsString>,
}

/// Says which guest explains a report. Exit status 0: one does, 1: none that was tried.
pub(super) fn run(report: &Path, known: &Known, format: Format) -> anyhow::Result<ExitCode> {
    let (platform, measurement) = measurement_of(report)?;
    let found = match (&known.igvm, &known.firmware, &known.kernel) {
        (Some(file), ..) => search_igvm::search(platform, measurement, file)
            .with_context(|| format!("{} cannot be measured", file.display()))?,
        (_, Some(file), _) => search_firmware(platform, measurement, file, known)
            .with_context(|| format!("{} cannot be measured", file.display()))?,
        (_, None, Some(_)) => search_own(platform, measurement, known)?,
        (_, None, None) => bail!(
            "--search needs the files of the launch: pass --igvm, or pass --firmware, and --kernel, \
             --initrd and --cmdline for a direct kernel boot"
        ),
    };
    print(measurement, found.as_ref(), format)?;
    Ok(if found.is_some() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_UNEXPLAINED) })
}

/// The explanation as words and as JSON.
pub(super) type Found = (Vec<String>, Value);

/// The measurement of a report or a quote. Nothing of it is verified here.
fn measurement_of(report: &Path) -> anyhow::Result<(PlatformKind, Digest384)> {
    let bytes = read("report", report, MAX_INPUT)?;
    if bytes.len() == REPORT_LEN {
        let report = Report::parse(&bytes)
            .with_context(|| format!("{} is not an attestation report", report.display()))?;
        return Ok((PlatformKind::Snp, Digest384(report.measurement)));
    }
    let measurement = mrtd_of(&bytes).with_context(|| {
        format!("{} is neither an SEV-SNP report nor a TDX quote", report.display())
    })?;
    Ok((PlatformKind::Tdx, measurement))
}

/// Guests of a firmware image.
fn search_firmware(
    platform: PlatformKind,
    measurement: Digest384,
    file: &Path,
    known: &Known,
) -> anyhow::Result<Option<Found>> {
    let image: Arc<[u8]> = read("firmware", file, MAX_FIRMWARE)?.into();
    if firmware::is_ours(&image) {
        return search_own_image(platform, measurement, &image, known);
    }
    match platform {
        PlatformKind::Tdx => search_tdx(measurement, file),
        PlatformKind::Snp | PlatformKind::Plain => search_snp(measurement, &image, known),
    }
}

/// Guests of the firmware in this program, of both editions.
fn search_own(
    platform: PlatformKind,
    measurement: Digest384,
    known: &Known,
) -> anyhow::Result<Option<Found>> {
    for logs in [false, true] {
        let image = casemate_firmware_image::image(logs);
        let found = search_own_image(platform, measurement, image, known)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Guests of an image of Casemate's firmware.
fn search_own_image(
    platform: PlatformKind,
    measurement: Digest384,
    image: &[u8],
    known: &Known,
) -> anyhow::Result<Option<Found>> {
    let kernels = kernels(known)?;
    let memory = known.memory.map_or_else(usual_memory, |ByteSize(bytes)| vec![bytes]);
    let inputs = own::Inputs {
        image,
        logs: firmware::logs(image),
        kernels: &kernels,
        memory: &memory,
        most_vcpus: MOST_OWN_VCPUS,
    };
    let found = own::search(measurement, platform, &inputs)?;
    Ok(found.map(|found| own_words(&found)))
}

/// 512 MiB, and each power of two up to 256 GiB.
fn usual_memory() -> Vec<u64> {
    (29..=38).map(|shift| 1 << shift).collect()
}

fn own_words(found: &own::Explanation) -> Found {
    let accept = if found.accept_all { "eager" } else { "lazy" };
    let memory = ByteSize(found.memory).to_string().replace('"', "");
    let mut words = vec![
        "Casemate's own firmware".to_owned(),
        format!("{} vCPUs", found.vcpus),
        format!("memory of {memory}"),
        format!("accept_memory = {accept:?}"),
        format!("a kernel {}", found.kernel),
    ];
    if found.log {
        words.push("the edition that logs (firmware_log = true)".to_owned());
    }
    let json = json!({
        "vmm": Profile::Casemate.name(),
        "vcpus": found.vcpus,
        "memory": found.memory,
        "accept_memory": accept,
        "firmware_log": found.log,
        "kernel": found.kernel,
    });
    (words, json)
}

fn search_snp(
    measurement: Digest384,
    image: &Arc<[u8]>,
    known: &Known,
) -> anyhow::Result<Option<Found>> {
    let kernels = kernels(known)?;
    let inputs = Inputs { image, kernels: &kernels, most_vcpus: MOST_VCPUS };
    Ok(search(measurement, &inputs)?.map(|found| words(&found)))
}

/// The kernel with the command line as given, and as scripts spoil it.
fn kernels(known: &Known) -> anyhow::Result<Vec<(KernelHashes, &'static str)>> {
    let Some(kernel) = &known.kernel else { return Ok(Vec::new()) };
    let kernel = read("kernel", kernel, MAX_PAYLOAD)?;
    let initrd = read_optional("initial RAM disk", known.initrd.as_deref(), MAX_PAYLOAD)?;
    let cmdline = known.cmdline.as_ref().map_or(&[][..], |text| text.as_bytes());
    let given = KernelHashes::new(&kernel, initrd.as_deref().unwrap_or_default(), cmdline);
    let with = |cmdline: &[u8]| KernelHashes {
        cmdline: KernelHashes::new(&[], &[], cmdline).cmdline,
        ..given
    };
    let no_initrd = KernelHashes::new(&[], &[], &[]).initrd;
    Ok(vec![
        (given, "with the command line as given"),
        (with(&[cmdline, b"\n"].concat()), "with a newline behind the command line"),
        (with(&[cmdline, b" "].concat()), "with a space behind the command line"),
        (with(cmdline.trim_ascii()), "with the command line trimmed"),
        (with(&[]), "with an empty command line"),
        (KernelHashes { initrd: no_initrd, ..given }, "without the initial RAM disk"),
    ])
}

fn words(found: &Explanation) -> Found {
    let kernel =
        found.kernel.map_or("no measured kernel".to_owned(), |how| format!("a kernel {how}"));
    let signature = found.signature.map(|signature| signature.to_string());
    let mut words = vec![
        format!("registers of {}", found.profile),
        format!("{} vCPUs", found.vcpus),
        signature.as_ref().map_or("any CPU model".to_owned(), |it| format!("CPU signature {it}")),
        format!("guest features {:#x}", found.features),
        kernel,
    ];
    if found.old_fpu {
        words.push("a host before Linux 6.10: MXCSR and x87 control word are zero".to_owned());
    }
    let json = json!({
        "vmm": found.profile.name(),
        "vcpus": found.vcpus,
        "vcpu_signature": signature,
        "guest_features": format!("{:#x}", found.features),
        "kernel": found.kernel,
        "fpu_state_zero": found.old_fpu,
    });
    (words, json)
}

/// MRTD of a quote. Nothing of it is verified here.
fn mrtd_of(quote: &[u8]) -> Option<Digest384> {
    let evidence = TdxEvidence { quote, collateral: None, event_log: None };
    let judgement =
        casemate_verify::tdx::verify(&evidence, &TdxPolicy::default(), None, Timestamp::now());
    judgement.claims.map(|claims| Digest384(claims.mrtd.0))
}

fn search_tdx(measurement: Digest384, firmware: &Path) -> anyhow::Result<Option<Found>> {
    // MRTD depends neither on the memory nor on the kernel.
    let memory = ByteSize(2 << 30);
    let config =
        GuestConfig { firmware: Some(firmware.to_owned()), memory, ..GuestConfig::default() };
    let plan = plan(&config, PlatformKind::Tdx, &Rules::default())?.launch;
    for order in [PageOrder::PerPage, PageOrder::TwoPass] {
        if tdx::mrtd(&plan, order)? == measurement {
            let name = order.as_str();
            return Ok(Some((vec![format!("page order {name}")], json!({ "page_order": name }))));
        }
    }
    Ok(None)
}

fn print(measurement: Digest384, found: Option<&Found>, format: Format) -> anyhow::Result<()> {
    let mut out = output();
    match (format, found) {
        (Format::Hex, _) => bail!("--format hex is for one measurement"),
        (Format::Json, _) => {
            let explanation = found.map(|(_, json)| json);
            let result = json!({ "measurement": measurement, "explanation": explanation });
            writeln!(out, "{}", serde_json::to_string_pretty(&result)?)?;
        }
        (Format::Table, Some((words, _))) => {
            writeln!(out, "{measurement} is explained by")?;
            for word in words {
                writeln!(out, "  {word}")?;
            }
        }
        (Format::Table, None) => writeln!(
            out,
            "{measurement} is not explained: these files with 1 to {MOST_VCPUS} vCPUs, all known \
             CPU models, register profiles, features and page orders give other measurements. \
             Another firmware, kernel or IGVM file was launched"
        )?,
    }
    eprintln!("casemate: the report's signature was not checked; use casemate verify");
    Ok(())
}
