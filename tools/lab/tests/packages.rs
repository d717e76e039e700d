//! Packages from the mirror that this machine's apt uses.

use std::time::Instant;

use casemate_lab::packages::{PackageError, Packages, Spec};

/// Concurrent callers, an old version beside a current one, a file checked by hash.
#[test]
fn files_come_out_of_packages_of_any_suite() {
    let packages = Packages::open().unwrap();
    let start = Instant::now();
    let file = |spec: &str, path: &str| packages.file(&spec.parse::<Spec>().unwrap(), path, None);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let busybox = file("busybox-static/bookworm", "/bin/busybox").unwrap();
                assert!(std::fs::metadata(busybox).unwrap().len() > 1_000_000);
            });
            scope.spawn(|| file("ovmf-amdsev/sid", "usr/share/ovmf/OVMF.amdsev.fd").unwrap());
        }
    });
    eprintln!("{:.1} s", start.elapsed().as_secs_f32());
    // Whatever the reason is, offline or not in the archive, it is an error that says so.
    let missing = file("ovmf=1.0-none", "/x").unwrap_err();
    assert!(
        missing.to_string().contains("ovmf=1.0-none") || matches!(missing, PackageError::Tool(_)),
        "{missing}"
    );
}
