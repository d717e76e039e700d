//! Makes tar archives and images: an encoder of its own, apart from the reader under test.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// A tar archive under construction.
#[derive(Clone, Default)]
pub(crate) struct Tar(Vec<u8>);

/// Header of a member; the rest is zero.
#[derive(Clone)]
pub(crate) struct Header<'a> {
    pub(crate) path: &'a str,
    pub(crate) kind: u8,
    pub(crate) link: &'a str,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
}

impl Default for Header<'_> {
    fn default() -> Self {
        Self {
            path: "file",
            kind: b'0',
            link: "",
            mode: 0o644,
            owner: (0, 0),
            mtime: 1_700_000_000,
            device: (0, 0),
        }
    }
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn member(mut self, header: &Header<'_>, content: &[u8]) -> Self {
        let mut block = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, header.path.as_bytes());
        put(100, format!("{:07o}", header.mode).as_bytes());
        put(108, format!("{:07o}", header.owner.0).as_bytes());
        put(116, format!("{:07o}", header.owner.1).as_bytes());
        put(124, format!("{:011o}", content.len()).as_bytes());
        put(136, format!("{:011o}", header.mtime).as_bytes());
        put(148, b"        ");
        put(156, &[header.kind]);
        put(157, header.link.as_bytes());
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}", header.device.0).as_bytes());
        put(337, format!("{:07o}", header.device.1).as_bytes());
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend(block);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, content: &[u8]) -> Self {
        self.member(&Header { path, ..Header::default() }, content)
    }

    pub(crate) fn directory(self, path: &str) -> Self {
        self.member(&Header { path, kind: b'5', mode: 0o755, ..Header::default() }, b"")
    }

    pub(crate) fn symlink(self, path: &str, link: &str) -> Self {
        if link.len() > 100 {
            let tar = self.pax(&[("linkpath", link.as_bytes())]);
            return tar.symlink(path, "cut");
        }
        self.member(&Header { path, link, kind: b'2', mode: 0o777, ..Header::default() }, b"")
    }

    pub(crate) fn hard_link(self, path: &str, link: &str) -> Self {
        self.member(&Header { path, link, kind: b'1', ..Header::default() }, b"")
    }

    /// An extended header for the next member.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
            // The length counts its own digits.
            let len = (1..20).find(|digits| (body.len() + digits).to_string().len() == *digits);
            bytes.extend((body.len() + len.unwrap()).to_string().bytes());
            bytes.extend(body);
        }
        self.member(&Header { path: "pax", kind: b'x', ..Header::default() }, &bytes)
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    /// The members so far, without an end.
    pub(crate) fn unfinished(self) -> Vec<u8> {
        self.0
    }
}

pub(crate) fn digits(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// A layer as it is stored, and uncompressed.
pub(crate) struct Layer {
    pub(crate) stored: Vec<u8>,
    pub(crate) diff_id: String,
}

impl Layer {
    pub(crate) fn plain(tar: Vec<u8>) -> Self {
        Self { diff_id: digits(&tar), stored: tar }
    }

    pub(crate) fn gzip(tar: &[u8]) -> Self {
        Self { stored: gzip(tar), diff_id: digits(tar) }
    }

    pub(crate) fn zstd(tar: &[u8]) -> Self {
        Self { stored: zstd(tar), diff_id: digits(tar) }
    }
}

/// Files of an OCI layout with one image, by name.
pub(crate) fn layout_files(layers: &[Layer]) -> Vec<(String, Vec<u8>)> {
    layout_files_for("amd64", layers)
}

pub(crate) fn layout_files_for(architecture: &str, layers: &[Layer]) -> Vec<(String, Vec<u8>)> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", layer.diff_id)).collect();
    let config = serde_json::json!({
        "os": "linux", "architecture": architecture,
        "config": {"Entrypoint": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let mut files = Vec::new();
    let mut add = |media_type: &str, bytes: Vec<u8>| {
        let (name, size) = (digits(&bytes), bytes.len());
        files.push((format!("blobs/sha256/{name}"), bytes));
        serde_json::json!({"mediaType": media_type, "digest": format!("sha256:{name}"), "size": size})
    };
    let config = add("application/vnd.oci.image.config.v1+json", config.to_string().into());
    let mut descriptors = Vec::new();
    for layer in layers {
        let media_type = match layer.stored.as_slice() {
            [0x1f, ..] => "application/vnd.oci.image.layer.v1.tar+gzip",
            [0x28, ..] => "application/vnd.oci.image.layer.v1.tar+zstd",
            _ => "application/vnd.oci.image.layer.v1.tar",
        };
        descriptors.push(add(media_type, layer.stored.clone()));
    }
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": descriptors});
    let manifest = add("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    files.push(("index.json".to_owned(), index.to_string().into()));
    files.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    files
}

pub(crate) fn write_layout(folder: &Path, layers: &[Layer]) {
    for (name, bytes) in layout_files(layers) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// An archive of an OCI layout.
pub(crate) fn oci_archive(layers: &[Layer]) -> Vec<u8> {
    let files = layout_files(layers);
    files.iter().fold(Tar::new(), |tar, (name, bytes)| tar.file(name, bytes)).finish()
}

/// An archive as `docker save` of old made it: a folder for each layer.
pub(crate) fn docker_archive(layers: &[Layer]) -> Vec<u8> {
    let files = layout_files(layers);
    let (_, config) = &files[0];
    let config_name = format!("{}.json", digits(config));
    let mut tar = Tar::new().file(&config_name, config);
    let mut names = Vec::new();
    for layer in layers {
        let name = format!("{}/layer.tar", &layer.diff_id[..64]);
        tar = tar.directory(&layer.diff_id[..64]).file(&name, &layer.stored);
        names.push(name);
    }
    let manifest =
        serde_json::json!([{"Config": config_name, "RepoTags": ["made:here"], "Layers": names}]);
    tar.file("manifest.json", manifest.to_string().as_bytes()).finish()
}
