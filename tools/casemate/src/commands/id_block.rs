//! `casemate id-block`

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use casemate_launch::Digest384;
use casemate_launch::snp::id_block::{IdBlockFields, SigningKey, sign};
use serde::Serialize;

use super::{number, read};

/// Sign a measurement: write an ID block and its authentication page
///
/// A guest that is launched with both files runs only if its launch digest is the signed one, and its
/// attestation reports name the signing keys. Prints the key digests as JSON: ID_KEY_DIGEST and
/// AUTHOR_KEY_DIGEST of a report.
///
/// Keys are ECDSA P-384 in PEM, for example from
///   openssl ecparam -name secp384r1 -genkey -noout -out id.pem
#[derive(clap::Args)]
#[command(arg_required_else_help = true, verbatim_doc_comment)]
pub(crate) struct Args {
    /// Launch digest, 96 hexadecimal digits as printed by `casemate measure`
    #[arg(long, value_name = "HEX")]
    measurement: Digest384,
    /// Key that signs the ID block
    #[arg(long, value_name = "PEM")]
    id_key: PathBuf,
    /// Key that signs the ID key
    #[arg(long, value_name = "PEM")]
    author_key: Option<PathBuf>,
    /// Guest policy of the launch
    #[arg(long, value_name = "BITS", value_parser = number::<u64>)]
    policy: u64,
    /// Family identifier of your choice, 32 hexadecimal digits
    #[arg(long, value_name = "HEX", value_parser = id, default_value = NO_ID, hide_default_value = true)]
    family_id: Id,
    /// Image identifier of your choice, 32 hexadecimal digits
    #[arg(long, value_name = "HEX", value_parser = id, default_value = NO_ID, hide_default_value = true)]
    image_id: Id,
    /// Security version of the guest
    #[arg(long, value_name = "N", value_parser = number::<u32>, default_value = "0")]
    guest_svn: u32,
    /// Version of the ID block's format; firmware supports 1
    #[arg(long, value_name = "N", value_parser = number::<u32>, default_value = "1")]
    version: u32,
    /// File for the ID block, 96 bytes
    #[arg(long, value_name = "FILE")]
    out_block: PathBuf,
    /// File for the authentication page, 4096 bytes
    #[arg(long, value_name = "FILE")]
    out_auth: PathBuf,
}

type Id = [u8; 16];

const NO_ID: &str = "00000000000000000000000000000000";

fn id(text: &str) -> Result<Id, String> {
    let digits = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let value = u128::from_str_radix(text, 16).ok().filter(|_| digits);
    value.map(u128::to_be_bytes).ok_or_else(|| "expected 32 hexadecimal digits".to_owned())
}

#[derive(Serialize)]
struct KeyDigests {
    id_key_digest: Digest384,
    author_key_digest: Option<Digest384>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let id_key = key(&args.id_key)?;
    let author_key = args.author_key.as_deref().map(key).transpose()?;
    let fields = IdBlockFields {
        launch_digest: args.measurement,
        family_id: args.family_id,
        image_id: args.image_id,
        version: args.version,
        guest_svn: args.guest_svn,
        policy: args.policy,
    };
    let signed = sign(&fields, &id_key, author_key.as_ref());
    write("ID block", &args.out_block, &*signed.block)?;
    write("authentication page", &args.out_auth, &*signed.authentication)?;
    let digests = KeyDigests {
        id_key_digest: id_key.digest(),
        author_key_digest: author_key.map(|key| key.digest()),
    };
    writeln!(super::output(), "{}", serde_json::to_string_pretty(&digests)?)?;
    Ok(ExitCode::SUCCESS)
}

fn key(path: &Path) -> anyhow::Result<SigningKey> {
    const MAX_KEY: usize = 64 << 10;
    let pem = read("key", path, MAX_KEY)?;
    SigningKey::from_pem(&pem).with_context(|| format!("{} cannot sign", path.display()))
}

fn write(what: &str, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, bytes)
        .with_context(|| format!("could not write the {what} to {}", path.display()))
}
