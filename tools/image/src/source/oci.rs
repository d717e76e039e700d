//! OCI image specification: "Image Layout", "Image Index", "Image Manifest" and "Image Configuration".

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::store::Store;
use super::{ImageInfo, LayerInfo, MAX_LAYERS, Selection, SourceError, SourceKind};

/// File that marks a layout.
pub(super) const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";
/// Annotation with the tag of a manifest.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation by which containerd and Docker add the whole name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Levels of indices within indices.
const MAX_NESTING: usize = 4;
/// Most manifests of all indices together.
const MAX_MANIFESTS: usize = 1000;

const INDEX_TYPES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFEST_TYPES: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const LAYER_TYPES: [&str; 8] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    os: String,
    architecture: String,
}

/// An image index.
#[derive(Debug, Deserialize)]
pub struct Index {
    manifests: Vec<Descriptor>,
}

/// An image manifest.
#[derive(Debug, Deserialize)]
pub struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// An image configuration.
#[derive(Debug, Deserialize)]
pub struct Configuration {
    os: String,
    architecture: String,
    rootfs: ConfigDigests,
    #[serde(default)]
    config: Value,
}

/// Section `rootfs` of a configuration.
#[derive(Debug, Deserialize)]
pub struct ConfigDigests {
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<String>,
}

/// An entry of `manifest.json` of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerManifest {
    pub(super) config: String,
    pub(super) repo_tags: Option<Vec<String>>,
    pub(super) layers: Vec<String>,
}

fn parse<'a, T: Deserialize<'a>>(name: &str, bytes: &'a [u8]) -> Result<T, SourceError> {
    serde_json::from_slice(bytes)
        .map_err(|error| SourceError::Json { name: name.to_owned(), problem: error.to_string() })
}

/// Parses an image index.
///
/// # Errors
///
/// If it is malformed. `name` is for the message, here and below.
pub fn parse_index(name: &str, bytes: &[u8]) -> Result<Index, SourceError> {
    parse(name, bytes)
}

/// Parses an image manifest.
///
/// # Errors
///
/// If it is malformed, or a layer has an unsupported digest or media type.
pub fn parse_manifest(name: &str, bytes: &[u8]) -> Result<Manifest, SourceError> {
    let manifest: Manifest = parse(name, bytes)?;
    blob(&manifest.config.digest)?;
    for layer in &manifest.layers {
        blob(&layer.digest)?;
        if !LAYER_TYPES.contains(&layer.media_type.as_str()) {
            let media_type = layer.media_type.clone();
            return Err(SourceError::MediaType { media_type, what: "a layer" });
        }
    }
    Ok(manifest)
}

/// Parses an image configuration.
///
/// # Errors
///
/// If it is malformed, or has too many layers or an unsupported digest.
pub fn parse_config(name: &str, bytes: &[u8]) -> Result<Configuration, SourceError> {
    let configuration: Configuration = parse(name, bytes)?;
    let diff_ids = &configuration.rootfs.diff_ids;
    if diff_ids.len() > MAX_LAYERS {
        let problem = format!("it lists more than {MAX_LAYERS} layers");
        return Err(SourceError::Json { name: name.to_owned(), problem });
    }
    diff_ids.iter().try_for_each(|digest| blob(digest).map(drop))?;
    Ok(configuration)
}

/// Parses `manifest.json` of `docker save`.
///
/// # Errors
///
/// If it is malformed.
pub fn parse_docker_manifest(name: &str, bytes: &[u8]) -> Result<Vec<DockerManifest>, SourceError> {
    parse(name, bytes)
}

/// Name of the file that has this digest, which is checked to be one.
fn blob(digest: &str) -> Result<String, SourceError> {
    let digits = digest.strip_prefix("sha256:").filter(|digits| is_sha256(digits));
    let syntax = || SourceError::DigestSyntax { digest: crate::tree::show(digest.as_bytes()) };
    digits.map(|digits| format!("blobs/sha256/{digits}")).ok_or_else(syntax)
}

pub(super) fn is_sha256(digits: &str) -> bool {
    digits.len() == 64 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// Reads the selected image of a layout.
pub(super) fn image(store: &Store, selection: &Selection) -> Result<ImageInfo, SourceError> {
    let index = parse_index(INDEX, &store.read(INDEX)?)?;
    let mut candidates = Vec::new();
    for descriptor in index.manifests {
        let names: Vec<_> = [REF_NAME, CONTAINERD_NAME]
            .iter()
            .filter_map(|key| descriptor.annotations.as_ref()?.get(*key).cloned())
            .collect();
        collect(store, descriptor, &names, None, MAX_NESTING, &mut candidates)?;
    }
    let chosen = choose(candidates, selection)?;
    let (manifest, names) = (chosen.descriptor, chosen.names);
    let bytes = read_blob(store, &manifest)?;
    let parsed = parse_manifest(&manifest.digest, &bytes)?;
    let configuration = read_blob(store, &parsed.config)?;
    let configuration = parse_config(&parsed.config.digest, &configuration)?;
    let stored = parsed
        .layers
        .iter()
        .map(|layer| Ok((blob(&layer.digest)?, Some(layer.digest.clone()), layer.size)));
    let stored = stored.collect::<Result<Vec<_>, SourceError>>()?;
    configuration.image(store, selection, SourceKind::OciArchive, manifest.digest, names, stored)
}

struct Candidate {
    descriptor: Descriptor,
    names: Vec<String>,
    /// Digest of the index in the top one that leads here.
    index: Option<String>,
}

/// Finds the manifests that a descriptor stands for.
fn collect(
    store: &Store,
    descriptor: Descriptor,
    names: &[String],
    index: Option<&str>,
    nesting: usize,
    found: &mut Vec<Candidate>,
) -> Result<(), SourceError> {
    let media_type = descriptor.media_type.as_str();
    let problem = if found.len() >= MAX_MANIFESTS {
        "the indices list more than 1000 manifests"
    } else if nesting == 0 {
        "the indices are nested too deeply"
    } else if MANIFEST_TYPES.contains(&media_type) {
        let index = index.map(str::to_owned);
        found.push(Candidate { descriptor, names: names.to_vec(), index });
        return Ok(());
    } else if INDEX_TYPES.contains(&media_type) {
        let inner = parse_index(&descriptor.digest, &read_blob(store, &descriptor)?)?;
        for inner in inner.manifests {
            let index = index.unwrap_or(&descriptor.digest);
            collect(store, inner, names, Some(index), nesting - 1, found)?;
        }
        return Ok(());
    } else {
        let media_type = media_type.to_owned();
        return Err(SourceError::MediaType { media_type, what: "a manifest" });
    };
    Err(SourceError::Json { name: INDEX.to_owned(), problem: problem.to_owned() })
}

fn choose(candidates: Vec<Candidate>, selection: &Selection) -> Result<Candidate, SourceError> {
    let describe = |candidate: &Candidate| {
        let platform = candidate.descriptor.platform.as_ref();
        let platform = platform.map(|it| format!(" ({}/{})", it.os, it.architecture));
        let names = candidate.names.join(", ");
        format!("{names} {}{}", candidate.descriptor.digest, platform.unwrap_or_default())
    };
    let list =
        |candidates: &[Candidate]| candidates.iter().map(describe).collect::<Vec<_>>().join("; ");
    let found = list(&candidates);
    let matching: Vec<_> = candidates
        .into_iter()
        .filter(|candidate| {
            let Candidate { descriptor, names, index } = candidate;
            let platform = descriptor.platform.as_ref().is_none_or(|platform| {
                format!("{}/{}", platform.os, platform.architecture) == selection.platform
            });
            let named = selection.reference.as_ref().is_none_or(|wanted| {
                names.contains(wanted)
                    || *wanted == descriptor.digest
                    || index.as_ref() == Some(wanted)
            });
            platform && named
        })
        .collect();
    let wanted = selection.reference.as_ref();
    let wanted =
        wanted.map_or_else(String::new, |wanted| format!("{wanted}, ")) + &selection.platform;
    if matching.len() > 1 {
        return Err(SourceError::SeveralImages { wanted, found: list(&matching) });
    }
    matching.into_iter().next().ok_or(SourceError::NoImage { wanted, found })
}

fn read_blob(store: &Store, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
    let name = blob(&descriptor.digest)?;
    check_size(store, &name, descriptor.size)?;
    store.read_checked(&name, &descriptor.digest)
}

fn check_size(store: &Store, name: &str, expected: u64) -> Result<(), SourceError> {
    let actual = store.len(name)?;
    if actual != expected {
        return Err(SourceError::Size { name: name.to_owned(), actual, expected });
    }
    Ok(())
}

/// Name of the file of a layer, its digest if it is known, and its length in bytes.
pub(super) type Stored = (String, Option<String>, u64);

impl Configuration {
    pub(super) fn image(
        self,
        store: &Store,
        selection: &Selection,
        kind: SourceKind,
        digest: String,
        names: Vec<String>,
        stored: Vec<Stored>,
    ) -> Result<ImageInfo, SourceError> {
        let platform = format!("{}/{}", self.os, self.architecture);
        if platform != selection.platform {
            let found = format!("{digest} ({platform})");
            return Err(SourceError::NoImage { wanted: selection.platform.clone(), found });
        }
        let diff_ids = self.rootfs.diff_ids;
        if stored.len() != diff_ids.len() {
            let (layers, diff_ids) = (stored.len(), diff_ids.len());
            return Err(SourceError::LayerCount { layers, diff_ids });
        }
        let mut layers = Vec::new();
        for ((name, digest, size), diff_id) in stored.into_iter().zip(diff_ids) {
            check_size(store, &name, size)?;
            layers.push(LayerInfo { digest, diff_id, size, name });
        }
        let (digest, platform) = (Some(digest), Some(platform));
        Ok(ImageInfo { kind, digest, names, platform, layers, config: self.config })
    }
}
