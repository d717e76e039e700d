//! Any bytes as a disk: superblocks, inodes, directories and hash tree are read, or refused.
#![no_main]

use std::io::{Cursor, sink};

use casemate_image::erofs::Image;
use casemate_image::{ImageFile, Limits, verity};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|disk: &[u8]| {
    let limits = Limits { inodes: 1000, ..Limits::default() };
    if let Ok(mut image) = Image::open(Cursor::new(disk)) {
        let _ = image.walk(&limits, |image, _, inode| {
            assert!(inode.size <= u64::from(image.blocks()) * 4096);
            image.copy(inode, &mut sink()).map(drop)
        });
    }
    if let Ok(mut file) = ImageFile::read(Cursor::new(disk)) {
        let root_hash = file.verity().root_hash;
        let _ = file.verify(&root_hash, &mut |_| {});
    }
    let _ = verity::read(&mut Cursor::new(disk), 4096);
});
