//! Any bytes as a layer, and as the archive around an image: refused, or a tree that can be laid out, and extents
//! within the archive.
#![no_main]

use casemate_image::erofs::Layout;
use casemate_image::source::read_index;
use casemate_image::tree::Tree;
use casemate_image::{Limits, apply};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|archive: &[u8]| {
    let limits = Limits { inodes: 1000, metadata_bytes: 1 << 20, ..Limits::default() };
    let mut tree = Tree::new(&limits);
    // The second layer is applied to what the first one left.
    let (lower, upper) = archive.split_at(archive.len() / 1024 * 512);
    let applied = apply(&mut tree, 1, lower).and_then(|()| apply(&mut tree, 2, upper));
    if applied.is_ok() && tree.check(true).is_ok() {
        let layout = Layout::new(&tree).expect("a small tree fits");
        assert!(layout.inodes() <= tree.len());
    }
    if let Ok(index) = read_index("archive".as_ref(), archive) {
        let len = archive.len() as u64;
        assert!(index.values().all(|extent| extent.offset + extent.size <= len));
    }
});
