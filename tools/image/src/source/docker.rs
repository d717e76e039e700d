//! Archives of `docker save`: `manifest.json` names a configuration and layers of each image.

use super::oci::{DockerManifest, is_sha256, parse_config, parse_docker_manifest};
use super::store::Store;
use super::{ImageInfo, Selection, SourceError, SourceKind, digest_of};

pub(super) const MANIFEST: &str = "manifest.json";

/// Reads the selected image of an archive.
pub(super) fn image(store: &Store, selection: &Selection) -> Result<ImageInfo, SourceError> {
    let images = parse_docker_manifest(MANIFEST, &store.read(MANIFEST)?)?;
    let tags = |image: &DockerManifest| image.repo_tags.clone().unwrap_or_default();
    let found = images.iter().flat_map(tags).collect::<Vec<_>>().join(", ");
    let wanted = selection.reference.clone();
    let mut matching = images
        .into_iter()
        .filter(|image| wanted.as_ref().is_none_or(|wanted| tags(image).contains(wanted)));
    let described = wanted.clone().unwrap_or_else(|| "the archive".to_owned());
    let (first, second) = (matching.next(), matching.next());
    let Some(image) = first else {
        return Err(SourceError::NoImage { wanted: described, found });
    };
    if second.is_some() {
        return Err(SourceError::SeveralImages { wanted: described, found });
    }
    let bytes = store.read(&image.config)?;
    let actual = digest_of(&bytes);
    check_name(&image.config, &actual)?;
    let configuration = parse_config(&image.config, &bytes)?;
    let names = tags(&image);
    let stored = image.layers.into_iter().map(|name| {
        let size = store.len(&name)?;
        Ok((name, None, size))
    });
    let stored = stored.collect::<Result<Vec<_>, SourceError>>()?;
    configuration.image(store, selection, SourceKind::DockerArchive, actual, names, stored)
}

/// The configuration's file is named after its hash, in old and in new archives.
fn check_name(name: &str, actual: &str) -> Result<(), SourceError> {
    let file = name.rsplit('/').next().unwrap_or_default();
    let digits = file.strip_suffix(".json").unwrap_or(file);
    let expected = format!("sha256:{digits}");
    if is_sha256(digits) && expected != actual {
        let (name, actual) = (name.to_owned(), actual.to_owned());
        return Err(SourceError::Digest { name, actual, expected });
    }
    Ok(())
}
