//! Kinds of sources: the same files make the same image.

use std::fs;

use casemate_image::Selection;
use casemate_image::source::SourceKind;

use crate::archive::{
    Layer, Tar, digits, docker_archive, layout_files, layout_files_for, oci_archive, write_layout,
};
use crate::support::{Folder, message};

fn layers(make: impl Fn(&[u8]) -> Layer) -> Vec<Layer> {
    let lower = Tar::new().directory("a").file("a/x", &[7; 10_000]).file("gone", b"").finish();
    let upper = Tar::new().file(".wh.gone", b"").symlink("a/l", "x").finish();
    vec![make(&lower), make(&upper)]
}

#[test]
fn layouts_archives_and_compressions_give_the_same_bytes() {
    let plain = |tar: &[u8]| Layer::plain(tar.to_vec());
    let folder = Folder::new();
    let mut images = Vec::new();
    for (kind, layers) in [
        (SourceKind::OciLayout, layers(plain)),
        (SourceKind::OciLayout, layers(Layer::gzip)),
        (SourceKind::OciArchive, layers(Layer::zstd)),
        (SourceKind::DockerArchive, layers(plain)),
        (SourceKind::DockerArchive, layers(Layer::gzip)),
    ] {
        let source = folder.path(&format!("source-{}", images.len()));
        match kind {
            SourceKind::OciLayout => write_layout(&source, &layers),
            SourceKind::OciArchive => fs::write(&source, oci_archive(&layers)).unwrap(),
            _ => fs::write(&source, docker_archive(&layers)).unwrap(),
        }
        let built = folder.build(&source).unwrap();
        assert_eq!(built.info.kind, kind);
        assert_eq!(built.info.platform.as_deref(), Some("linux/amd64"));
        assert_eq!(built.info.config["Entrypoint"][0], "/bin/true");
        assert_eq!(built.info.layers.len(), 2);
        images.push(fs::read(folder.output()).unwrap());
    }
    assert!(images.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn digest_is_that_of_the_manifest_or_of_the_configuration() {
    let folder = Folder::new();
    let layers = layers(Layer::gzip);
    let files = layout_files(&layers);
    fs::write(folder.path("oci"), oci_archive(&layers)).unwrap();
    let manifest = &files[files.len() - 3].1;
    let digest = folder.build(&folder.path("oci")).unwrap().info.digest;
    assert_eq!(digest, Some(format!("sha256:{}", digits(manifest))));
    fs::write(folder.path("docker"), docker_archive(&layers)).unwrap();
    let info = folder.build(&folder.path("docker")).unwrap().info;
    assert_eq!(info.digest, Some(format!("sha256:{}", digits(&files[0].1))));
    assert_eq!(info.names, ["made:here"]);
}

#[test]
fn links_of_docker_archives_are_followed_within_them() {
    let folder = Folder::new();
    let layers = layers(|tar| Layer::plain(tar.to_vec()));
    let config = layout_files(&layers).remove(0).1;
    let manifest = serde_json::json!([{
        "Config": "config.json", "RepoTags": null, "Layers": ["a/layer.tar", "b/layer.tar"],
    }]);
    let tar = Tar::new()
        .file("config.json", &config)
        .file("first.tar", &layers[0].stored)
        .symlink("a/layer.tar", "../first.tar")
        .file("second.tar", &layers[1].stored)
        .hard_link("b/layer.tar", "second.tar")
        .file("manifest.json", manifest.to_string().as_bytes());
    fs::write(folder.path("docker"), tar.finish()).unwrap();
    let linked = folder.build(&folder.path("docker")).unwrap().verity;
    fs::write(folder.path("oci"), oci_archive(&layers)).unwrap();
    assert_eq!(folder.build(&folder.path("oci")).unwrap().verity, linked);
}

/// An index of two platforms, one of them behind an index of its own, and an attestation.
fn several(folder: &Folder) -> Vec<String> {
    let arm = layout_files_for("arm64", &[Layer::plain(Tar::new().file("arm", b"").finish())]);
    let amd = layout_files(&[Layer::plain(Tar::new().file("amd", b"").finish())]);
    let describe = |files: &[(String, Vec<u8>)], os: &str, architecture: &str| {
        let manifest = &files[files.len() - 3].1;
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{}", digits(manifest)), "size": manifest.len(),
            "platform": {"os": os, "architecture": architecture},
        })
    };
    let manifests = [
        describe(&arm, "linux", "arm64"),
        describe(&amd, "linux", "amd64"),
        describe(&arm, "unknown", "unknown"),
    ];
    let inner = serde_json::json!({"manifests": manifests}).to_string();
    let digest = digits(inner.as_bytes());
    let outer = serde_json::json!({"manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": format!("sha256:{digest}"), "size": inner.len(),
        "annotations": {"org.opencontainers.image.ref.name": "v1"},
    }]});
    let mut tar = Tar::new()
        .file("oci-layout", b"{}")
        .file("index.json", outer.to_string().as_bytes())
        .file(&format!("blobs/sha256/{digest}"), inner.as_bytes());
    let mut names = vec![];
    for (name, bytes) in arm.iter().chain(&amd).filter(|(name, _)| name.starts_with("blobs/")) {
        if !names.contains(name) {
            tar = tar.file(name, bytes);
            names.push(name.clone());
        }
    }
    fs::write(folder.path("several"), tar.finish()).unwrap();
    let digest = |value: &serde_json::Value| value["digest"].as_str().unwrap().to_owned();
    manifests.iter().map(digest).collect()
}

#[test]
fn image_for_another_platform_is_refused() {
    let folder = Folder::new();
    for archive in [oci_archive, docker_archive] {
        fs::write(folder.path("image.tar"), archive(&[Layer::plain(Tar::new().finish())])).unwrap();
        let selection = Selection { platform: "linux/arm64".to_owned(), ..Selection::default() };
        let error = folder.build_with(&folder.path("image.tar"), &selection).unwrap_err();
        assert!(message(&error).contains("(linux/amd64)"), "{}", message(&error));
    }
}

#[test]
fn platform_and_reference_select_an_image() {
    let folder = Folder::new();
    let digests = several(&folder);
    let build = |platform: &str, reference: Option<&str>| {
        let reference = reference.map(str::to_owned);
        let selection =
            Selection { platform: platform.to_owned(), reference, ..Selection::default() };
        folder.build_with(&folder.path("several"), &selection)
    };
    assert_eq!(build("linux/amd64", None).unwrap().info.digest.as_ref(), Some(&digests[1]));
    assert_eq!(build("linux/amd64", Some("v1")).unwrap().info.digest.as_ref(), Some(&digests[1]));
    let arm = build("linux/arm64", Some(&digests[0])).unwrap();
    assert_eq!(arm.info.digest.as_ref(), Some(&digests[0]));
    let error = build("linux/amd64", Some("v2")).unwrap_err();
    assert!(message(&error).contains("no image matches v2, linux/amd64"), "{}", message(&error));
    let error = build("linux/s390x", None).unwrap_err();
    assert!(message(&error).contains(&digests[1]), "{}", message(&error));
}

/// Changes files of a layout.
type Change<'a> = &'a dyn Fn(&mut Vec<(String, Vec<u8>)>);

#[test]
fn metadata_that_does_not_agree_is_refused() {
    let layer = || vec![Layer::plain(Tar::new().file("a", b"").finish())];
    let folder = Folder::new();
    // Config, layer, manifest, index and oci-layout, in this order.
    let refuse = |change: Change<'_>, expected: &str| {
        let mut files = layout_files(&layer());
        change(&mut files);
        let tar = files.iter().fold(Tar::new(), |tar, (name, bytes)| tar.file(name, bytes));
        fs::write(folder.path("image.tar"), tar.finish()).unwrap();
        let error = folder.build(&folder.path("image.tar")).unwrap_err();
        assert!(message(&error).contains(expected), "{}", message(&error));
    };
    let replace = |bytes: &mut Vec<u8>, from: &str, to: &str| {
        *bytes = String::from_utf8(bytes.clone()).unwrap().replace(from, to).into();
    };
    refuse(&|files| replace(&mut files[0].1, "/bin/true", "/bin/thue"), "has the SHA-256");
    refuse(&|files| replace(&mut files[0].1, "/bin/true", "/bin/false"), "bytes, not");
    refuse(
        &|files| replace(&mut files[2].1, "\"schemaVersion\":2", "\"schemaVersion\":3"),
        "has the SHA-256",
    );
    refuse(&|files| drop(files.remove(1)), "does not contain the file `blobs/sha256/");
    refuse(&|files| files[1].1.push(0), "bytes, not");
    refuse(
        &|files| replace(&mut files[3].1, "sha256:", "sha512:"),
        "is unsupported: expected sha256",
    );
    refuse(&|files| replace(&mut files[3].1, "sha256:", "sha256:../../"), "is unsupported");
    refuse(
        &|files| replace(&mut files[3].1, "manifest.v1", "artifact.v1"),
        "not a supported media type",
    );
    refuse(&|files| files[3].1 = vec![b'['; 5 << 20], "more than the limit");
    refuse(&|files| files[3].1 = vec![b'['; 1 << 20], "malformed");
}
