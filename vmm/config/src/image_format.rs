//! Disk images that are not raw, by what they begin or end with.
//!
//! A guest that is given one as a raw disk sees the container in place of its disk, and its first write
//! destroys the container.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};

/// Bytes at the start of an image that are looked at.
const HEAD: usize = 512;
/// Bytes of the footer of a VHD image.
const FOOTER: usize = 512;

/// A format that `qemu-img convert` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageFormat {
    /// Its name.
    pub name: &'static str,
    /// Its name for qemu-img.
    pub qemu_name: &'static str,
}

const fn format(name: &'static str, qemu_name: &'static str) -> ImageFormat {
    ImageFormat { name, qemu_name }
}

const VHD: ImageFormat = format("VHD", "vpc");

/// Formats by the bytes at an offset.
///
/// Sources: QEMU, docs/interop/qcow2.rst, qed_spec.rst and parallels.rst; VMware, Virtual Disk Format 5.0;
/// Microsoft, MS-VHDX section 2.2.1 and the VHD image format specification; VirtualBox, VDICore.h.
const MAGICS: [(usize, &[u8], ImageFormat); 11] = [
    (0, b"QFI\xfb\0\0\0\x01", format("qcow", "qcow")),
    (0, b"QFI\xfb", format("qcow2", "qcow2")),
    (0, b"QED\0", format("QED", "qed")),
    (0, b"KDMV", format("VMDK", "vmdk")),
    (0, b"COWD", format("VMDK", "vmdk")),
    (0, b"# Disk DescriptorFile", format("VMDK", "vmdk")),
    (0, b"vhdxfile", format("VHDX", "vhdx")),
    (0, b"conectix", VHD),
    (0, b"WithoutFreeSpace", format("Parallels", "parallels")),
    (0, b"WithouFreSpacExt", format("Parallels", "parallels")),
    (64, b"\x7f\x10\xda\xbe", format("VDI", "vdi")),
];

/// The format of an image whose first and last bytes these are; `None` if it may be raw.
#[must_use]
pub fn recognize(head: &[u8], footer: &[u8]) -> Option<ImageFormat> {
    let found = MAGICS
        .iter()
        .find(|(offset, magic, _)| head.get(*offset..).is_some_and(|rest| rest.starts_with(magic)));
    // A VHD image of fixed size is a raw one with a footer (511 bytes long in old ones).
    let has_footer = || {
        [0, 1].iter().any(|at| footer.get(*at..).is_some_and(|end| end.starts_with(b"conectix")))
    };
    found.map(|(.., format)| *format).or_else(|| has_footer().then_some(VHD))
}

/// Looks at an image of `length` bytes.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn of(file: &File, length: u64) -> io::Result<Option<ImageFormat>> {
    let head = read(file, HEAD, 0)?;
    let footer = read(file, FOOTER, length.saturating_sub(FOOTER as u64))?;
    Ok(recognize(&head, &footer))
}

/// `length` bytes, or as many as there are.
fn read(mut file: &File, length: usize, offset: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = Vec::with_capacity(length);
    file.take(length as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn name(bytes: &[u8]) -> Option<&'static str> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        of(&file, bytes.len() as u64).unwrap().map(|format| format.qemu_name)
    }

    fn starting_with(magic: &[u8], at: usize) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[at..at + magic.len()].copy_from_slice(magic);
        image
    }

    #[test]
    fn containers_are_recognized_wherever_their_magic_stands() {
        let cases: [(&[u8], usize, &str); 9] = [
            (b"QFI\xfb\0\0\0\x03", 0, "qcow2"),
            (b"QFI\xfb\0\0\0\x01", 0, "qcow"),
            (b"KDMV\x03\0\0\0", 0, "vmdk"),
            (b"# Disk DescriptorFile\n", 0, "vmdk"),
            (b"vhdxfile", 0, "vhdx"),
            (b"conectix", 0, "vpc"),
            (b"conectix", 4096 - 512, "vpc"),
            (b"conectix", 4096 - 511, "vpc"),
            (b"\x7f\x10\xda\xbe", 64, "vdi"),
        ];
        for (magic, at, expected) in cases {
            assert_eq!(name(&starting_with(magic, at)), Some(expected), "{magic:?} at {at}");
        }
    }

    #[test]
    fn raw_images_are_not_mistaken() {
        assert_eq!(name(&[]), None);
        assert_eq!(name(&[0; 513]), None);
        assert_eq!(name(&starting_with(b"EFI PART", 512)), None);
        assert_eq!(name(&starting_with(b"QFI\xfb", 512)), None);
        // Short, and a part of a magic.
        assert_eq!(name(b"QFI"), None);
    }
}
