//! The hash tree: every changed byte is found.

use std::fs;
use std::io::Cursor;

use casemate_image::verity::{Verity, VerityError, append, read, verify};

/// An image of `blocks` blocks that all differ.
fn image(blocks: u64) -> (Vec<u8>, Verity) {
    let mut file = Cursor::new(Vec::new());
    for block in 0..blocks {
        file.get_mut().extend(block.to_le_bytes());
        file.get_mut().resize(usize::try_from(block + 1).unwrap() * 4096, 0);
    }
    let verity = append(&mut file, blocks, &mut |_| {}).unwrap();
    (file.into_inner(), verity)
}

fn check(bytes: &[u8], verity: &Verity) -> Result<(), VerityError> {
    verify(&mut Cursor::new(bytes), verity, &mut |_| {})
}

#[test]
fn trees_of_all_depths_are_whole_and_accepted_by_veritysetup() {
    for blocks in [1, 2, 127, 128, 129, 300, 128 * 128, 128 * 128 + 1] {
        let (bytes, verity) = image(blocks);
        check(&bytes, &verity).unwrap();
        assert_eq!(bytes.len() as u64, verity.image_bytes());
        assert_eq!(read(&mut Cursor::new(&bytes), verity.hash_offset()).unwrap(), verity);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &bytes).unwrap();
        crate::oracles::veritysetup(file.path(), &verity);
    }
}

#[test]
fn changed_byte_is_found_wherever_it_is() {
    let (bytes, verity) = image(300);
    for at in (0..bytes.len()).step_by(4093).chain([bytes.len() - 1]) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        check(&changed, &verity).unwrap_err();
    }
    let block = usize::try_from(299 * 4096).unwrap();
    let mut changed = bytes.clone();
    changed[block] ^= 1;
    let error = check(&changed, &verity).unwrap_err();
    assert!(matches!(error, VerityError::Mismatch { kind: "data", block: 299, .. }), "{error}");
    check(&bytes[..bytes.len() - 1], &verity).unwrap_err();
    check(&[&bytes[..], &[0]].concat(), &verity).unwrap_err();
    let other = Verity { root_hash: [0; 32], ..verity };
    assert!(matches!(check(&bytes, &other), Err(VerityError::Root { .. })));
    check(&bytes, &Verity { data_blocks: 301, ..verity }).unwrap_err();
}
