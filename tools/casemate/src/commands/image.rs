//! `casemate image`

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use casemate_foreign::one_line;
use casemate_image::source::LayerInfo;
use casemate_image::verity::Verity;
use casemate_image::{CheckError, ImageFile, ImageInfo, Limits, Selection, Source, Stage, build};
use clap::Subcommand;
use serde_json::{Value, json};

/// The image does not match.
const EXIT_MISMATCH: u8 = 1;
/// Time between two lines of progress.
const TICK: Duration = Duration::from_millis(200);

/// Turn container images into measured disks
///
/// A measured disk is a read-only erofs file system with a dm-verity hash tree in one file. The same
/// image gives the same bytes on every machine; the root hash stands for all of them.
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Build(BuildArgs),
    Inspect(InspectArgs),
    Verify(VerifyArgs),
}

/// Build a disk and print its root hash
///
/// Layers are checked against the digests of the image. Nothing is left behind if the build fails.
#[derive(clap::Args)]
struct BuildArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Disk to write; an existing file is replaced
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Describe an image, or a disk that was built
#[derive(clap::Args)]
struct InspectArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Compare a disk with its hash tree, a root hash, or the image
///
/// Exit status: 0 all blocks match, 1 something differs, 2 bad input or usage.
#[derive(clap::Args)]
struct VerifyArgs {
    /// Disk that `casemate image build` wrote
    #[arg(value_name = "DISK")]
    disk: PathBuf,
    /// Root hash that the disk must have, 64 hexadecimal digits
    #[arg(long, value_name = "HEX", value_parser = root_hash)]
    root_hash: Option<[u8; 32]>,
    /// Image that the disk must be built from: it is built again
    #[arg(long, value_name = "SOURCE", conflicts_with = "root_hash")]
    image: Option<PathBuf>,
    #[command(flatten)]
    selection: SelectionArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct SourceArgs {
    /// OCI layout, OCI or Docker archive, or directory with a root file system
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    #[command(flatten)]
    selection: SelectionArgs,
}

#[derive(clap::Args)]
struct SelectionArgs {
    /// Name, tag or digest of the image, if the source contains several
    #[arg(long, value_name = "NAME")]
    reference: Option<String>,
    /// Operating system and architecture of the image
    #[arg(long, value_name = "OS/ARCH", default_value = "linux/amd64")]
    platform: String,
    /// Give all files of a directory to user and group 0
    #[arg(long)]
    all_root: bool,
    /// Accept names in one directory that differ only in case
    #[arg(long)]
    allow_case_collisions: bool,
    /// Most GiB of all files together, and of each file and uncompressed layer
    #[arg(long, value_name = "GIB", value_parser = clap::value_parser!(u64).range(1..=4096))]
    max_size: Option<u64>,
}

impl SelectionArgs {
    fn selection(&self) -> Selection {
        let mut limits = Limits::default();
        if let Some(gib) = self.max_size {
            let bytes = gib << 30;
            limits = Limits { file_bytes: bytes, image_bytes: bytes, layer_bytes: bytes, ..limits };
        }
        Selection {
            reference: self.reference.clone(),
            platform: self.platform.clone(),
            all_root: self.all_root,
            case_collisions: self.allow_case_collisions,
            limits,
        }
    }
}

fn root_hash(text: &str) -> Result<[u8; 32], String> {
    let digits = text.as_bytes();
    let mut hash = [0; 32];
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err("expected 64 hexadecimal digits".to_owned());
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
        let pair = std::str::from_utf8(pair).map_err(|error| error.to_string())?;
        *byte = u8::from_str_radix(pair, 16).map_err(|error| error.to_string())?;
    }
    Ok(hash)
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.action {
        Action::Build(args) => run_build(args),
        Action::Inspect(args) => run_inspect(args),
        Action::Verify(args) => run_verify(args),
    }
}

/// Progress on a terminal: one line that is overwritten.
struct Progress {
    shown: Option<Instant>,
    stage: &'static str,
    bytes: u64,
    terminal: bool,
}

impl Progress {
    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { shown: None, stage: "", bytes: 0, terminal }
    }

    fn add(&mut self, stage: &'static str, bytes: u64) {
        if self.stage != stage {
            (self.stage, self.bytes) = (stage, 0);
        }
        self.bytes += bytes;
        if self.terminal && self.shown.is_none_or(|shown| shown.elapsed() > TICK) {
            self.shown = Some(Instant::now());
            eprint!("\r\x1b[K{stage}: {} MiB", self.bytes >> 20);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Read => "reading layers",
        Stage::Write => "writing files",
        Stage::Hash => "hashing blocks",
    }
}

fn build_disk(
    source: &Path,
    output: &Path,
    selection: &Selection,
) -> anyhow::Result<casemate_image::Built> {
    let mut progress = Progress::new();
    build(source, output, selection, &mut |at, bytes| progress.add(stage(at), bytes))
        .with_context(|| format!("could not build a disk from {}", source.display()))
}

fn run_build(args: &BuildArgs) -> anyhow::Result<ExitCode> {
    let built = build_disk(&args.source.source, &args.output, &args.source.selection.selection())?;
    let mut out = super::output();
    if args.json {
        let mut value = disk(&built.verity, built.inodes);
        value["image"] = serde_json::to_value(&built.info)?;
        writeln!(out, "{value:#}")?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(digest) = &built.info.digest {
        writeln!(out, "image digest  {digest}")?;
    }
    print_disk(&mut out, &built.verity, built.inodes)?;
    Ok(ExitCode::SUCCESS)
}

fn disk(verity: &Verity, inodes: u64) -> Value {
    json!({
        "root_hash": verity.root_hash_hex(),
        "hash": "sha256",
        "salt": "",
        "block_bytes": 4096,
        "data_blocks": verity.data_blocks,
        "hash_offset": verity.hash_offset(),
        "bytes": verity.image_bytes(),
        "inodes": inodes,
    })
}

fn print_disk(out: &mut impl std::io::Write, verity: &Verity, inodes: u64) -> std::io::Result<()> {
    writeln!(out, "root hash     {}", verity.root_hash_hex())?;
    writeln!(out, "data blocks   {}", verity.data_blocks)?;
    writeln!(out, "hash offset   {}", verity.hash_offset())?;
    writeln!(out, "bytes         {}", verity.image_bytes())?;
    writeln!(out, "inodes        {inodes}")
}

fn run_inspect(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let path = &args.source.source;
    let mut out = super::output();
    // Superblocks identify a disk; any other file is a source.
    if let Ok(file) = ImageFile::open(path) {
        if args.json {
            writeln!(out, "{:#}", disk(file.verity(), file.inodes()))?;
        } else {
            print_disk(&mut out, file.verity(), file.inodes())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let source = Source::open(path, &args.source.selection.selection())
        .with_context(|| format!("could not inspect {}", path.display()))?;
    if args.json {
        writeln!(out, "{:#}", serde_json::to_value(source.info())?)?;
    } else {
        print_info(&mut out, source.info())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_info(out: &mut impl std::io::Write, info: &ImageInfo) -> anyhow::Result<()> {
    writeln!(
        out,
        "kind          {}",
        serde_json::to_value(info.kind)?.as_str().unwrap_or_default()
    )?;
    for name in &info.names {
        // Names are foreign text.
        writeln!(out, "name          {}", one_line(name))?;
    }
    if let Some(digest) = &info.digest {
        writeln!(out, "image digest  {digest}")?;
    }
    if let Some(platform) = &info.platform {
        writeln!(out, "platform      {}", one_line(platform))?;
    }
    for LayerInfo { digest, diff_id, size, .. } in &info.layers {
        writeln!(out, "layer         {}, {size} bytes", digest.as_ref().unwrap_or(diff_id))?;
    }
    for key in ["Entrypoint", "Cmd", "User", "WorkingDir", "StopSignal"] {
        if let Some(value) = info.config.get(key).filter(|value| !value.is_null()) {
            writeln!(out, "{:12}  {}", key.to_lowercase(), one_line(&value.to_string()))?;
        }
    }
    Ok(())
}

fn run_verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let expected = match &args.image {
        Some(image) => {
            let folder = tempfile::tempdir().context("could not make a temporary folder")?;
            let output = folder.path().join("disk");
            let built = build_disk(image, &output, &args.selection.selection())?;
            Some(built.verity.root_hash)
        }
        None => args.root_hash,
    };
    let outcome = verify(&args.disk, expected);
    if let Err(error @ CheckError::Open { .. }) = outcome {
        return Err(error.into());
    }
    let mut out = super::output();
    match &outcome {
        Ok(verity) if args.json => {
            let known = expected.is_some();
            let root = verity.root_hash_hex();
            let value =
                json!({"verdict": "matches", "root_hash": root, "root_hash_checked": known});
            writeln!(out, "{value:#}")?;
        }
        Ok(verity) => {
            writeln!(out, "matches: all blocks of {}", args.disk.display())?;
            writeln!(out, "root hash     {}", verity.root_hash_hex())?;
            if expected.is_none() {
                writeln!(
                    out,
                    "note: compare the root hash yourself, or pass --root-hash or --image"
                )?;
            }
        }
        Err(error) => {
            let detail = chain(error);
            if args.json {
                writeln!(out, "{:#}", json!({"verdict": "differs", "detail": detail}))?;
            } else {
                writeln!(out, "differs: {detail}")?;
            }
        }
    }
    Ok(if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_MISMATCH) })
}

fn verify(disk: &Path, expected: Option<[u8; 32]>) -> Result<Verity, CheckError> {
    let mut file = ImageFile::open(disk)?;
    let root_hash = expected.unwrap_or(file.verity().root_hash);
    let mut progress = Progress::new();
    file.verify(&root_hash, &mut |bytes| progress.add("hashing blocks", bytes))?;
    Ok(*file.verity())
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
