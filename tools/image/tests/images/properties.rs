//! Any tree is written and read back as it was; any bytes are read without a panic.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Cursor;

use casemate_image::erofs::{FileKind, Image};
use casemate_image::source::{
    parse_config, parse_docker_manifest, parse_index, parse_manifest, read_index,
};
use casemate_image::tar::TarReader;
use casemate_image::tree::Tree;
use casemate_image::{Limits, apply, verity};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::archive::{Header, Tar, digits};
use crate::support::{Folder, list};

/// A file: its path is its key. Directories come from paths.
#[derive(Debug, Clone)]
struct Made {
    content: Vec<u8>,
    link: Option<String>,
    mode: u32,
    owner: (u32, u32),
    mtime: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
}

fn made() -> impl Strategy<Value = Made> {
    let len = prop_oneof![0..200_usize, 3900..4200_usize, 0..20_000_usize];
    let content = (len, any::<u8>()).prop_map(|(len, seed)| {
        (0..len).map(|at| at.wrapping_mul(usize::from(seed) | 1).to_le_bytes()[0]).collect()
    });
    let link = proptest::option::weighted(0.2, "[a-z]{1,90}");
    let xattrs = btree_map("[a-z]{1,20}", vec(any::<u8>(), 0..600), 0..3);
    let owner = (0..0o7_777_777_u32, 0..0o7_777_777_u32);
    (content, link, 0..0o10_000_u32, owner, any::<u32>(), xattrs).prop_map(
        |(content, link, mode, owner, mtime, xattrs)| Made {
            content,
            link,
            mode,
            owner,
            mtime,
            xattrs,
        },
    )
}

fn tar(files: &BTreeMap<String, Made>) -> Vec<u8> {
    let mut tar = Tar::new();
    for (path, file) in files {
        let records: Vec<_> = file
            .xattrs
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.user.{name}"), value.as_slice()))
            .collect();
        let records: Vec<_> = records.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        if !records.is_empty() {
            tar = tar.pax(&records);
        }
        let header = Header {
            path,
            kind: if file.link.is_some() { b'2' } else { b'0' },
            link: file.link.as_deref().unwrap_or_default(),
            mode: file.mode,
            owner: file.owner,
            mtime: file.mtime.into(),
            ..Header::default()
        };
        tar = tar.member(&header, if file.link.is_some() { b"" } else { &file.content });
    }
    tar.finish()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn trees_come_back_as_they_were(files in btree_map("(d[a-z]{0,2}/){0,3}f[a-z]{0,30}", made(), 0..60)) {
        let folder = Folder::new();
        let built = folder.build_layers(vec![tar(&files)]).unwrap();
        let listed = list(&folder.output());
        for (path, file) in &files {
            let found = &listed[path];
            match &file.link {
                Some(link) => prop_assert_eq!(&found.kind, &FileKind::Symlink(link.clone().into())),
                None => prop_assert_eq!(found.content.as_ref(), Some(&digits(&file.content))),
            }
            prop_assert_eq!(u32::from(found.mode), file.mode);
            prop_assert_eq!(found.owner, file.owner);
            prop_assert_eq!(found.mtime, u64::from(file.mtime));
            let xattrs = found.xattrs.iter().map(|xattr| {
                let name = String::from_utf8(xattr.name.to_vec()).unwrap();
                (name.trim_start_matches("user.").to_owned(), xattr.value.to_vec())
            });
            prop_assert_eq!(&xattrs.collect::<BTreeMap<_, _>>(), &file.xattrs);
        }
        let directories = listed.values().filter(|file| file.kind == FileKind::Directory).count();
        prop_assert_eq!(listed.len(), files.len() + directories);
        prop_assert_eq!(built.inodes, listed.len() as u64);
        let mut image = File::open(folder.output()).unwrap();
        verity::verify(&mut image, &built.verity, &mut |_| {}).unwrap();
    }

    #[test]
    fn changed_images_are_read_without_a_panic(
        changes in vec((0..20_000_usize, any::<u8>()), 1..8), seed in any::<u8>(),
    ) {
        let content = vec![seed; 5000];
        let layer = Tar::new().file("a/b", &content).symlink("c", "a").hard_link("d", "a/b").finish();
        let folder = Folder::new();
        folder.build_layers(vec![layer]).unwrap();
        let mut bytes = std::fs::read(folder.output()).unwrap();
        let len = bytes.len();
        for (at, value) in changes {
            bytes[at % len] = value;
        }
        if let Ok(mut image) = Image::open(Cursor::new(&bytes)) {
            let _ = image.walk(&Limits::default(), |image, _, inode| {
                image.copy(inode, &mut std::io::sink()).map(drop)
            });
        }
        let _ = verity::read(&mut Cursor::new(&bytes), 4 * 4096);
    }

    #[test]
    fn changed_archives_are_read_without_a_panic(
        changes in vec((0..3000_usize, any::<u8>()), 0..8), junk in vec(any::<u8>(), 0..2000),
    ) {
        let layer = Tar::new().pax(&[("path", b"x/y")]).file("a", b"1").hard_link("b", "x/y");
        let mut bytes = layer.symlink("c", "a").finish();
        let len = bytes.len();
        for (at, value) in changes {
            bytes[at % len] = value;
        }
        for bytes in [&bytes, &junk] {
            let mut tree = Tree::new(&Limits::default());
            if apply(&mut tree, 1, &bytes[..]).is_ok() {
                let _ = tree.check(false);
            }
            let _ = read_index("archive".as_ref(), &bytes[..]);
            let mut reader = TarReader::new(&bytes[..]);
            while let Ok(Some(_)) = reader.next_member() {}
            let _ = (parse_index("", bytes), parse_manifest("", bytes), parse_config("", bytes));
            let _ = parse_docker_manifest("", bytes);
        }
    }
}
