//! Every guest's measurement is that of the image: it never changes in silence.

use std::fs;
use std::path::Path;

use casemate_firmware_logic::sha256;

/// An image that was built, and the file with the digest of the one that was committed, in this folder.
pub(crate) const EDITIONS: [(&str, &str); 2] =
    [("firmware.bin", "image.sha256"), ("firmware-log.bin", "image-log.sha256")];

/// Why the images in `out` are not those whose digests are in `folder`, built by the compiler that calls
/// itself `rustc`; `None` if they are.
pub(crate) fn refusal(out: &Path, folder: &Path, rustc: &str) -> Option<String> {
    let renewals: Vec<_> = EDITIONS
        .iter()
        .filter_map(|(image, committed)| {
            let image = fs::read(out.join(image)).expect("it has just been built");
            let digest = sha256::digest(&image);
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            let expected = fs::read_to_string(folder.join(committed)).unwrap_or_default();
            let renewal = || format!("    echo {digest} >firmware/image/{committed}");
            (digest != expected.trim()).then(renewal)
        })
        .collect();
    (!renewals.is_empty()).then(|| {
        format!(
            "the firmware image is not the one that was committed: guests with it would have another \
             measurement\n\
             It was built by {rustc}. If that is not the toolchain of rust-toolchain.toml, build with \
             that one.\n\
             If the firmware was changed on purpose, commit the new digests with the change:\n{}",
            renewals.join("\n")
        )
    })
}
