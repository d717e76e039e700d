//! Guest images made of real packages.

use casemate_lab::cache::Cache;
use casemate_lab::guest;
use casemate_lab::kernel::{Flavour, Kernel};
use casemate_lab::packages::Packages;

#[test]
fn images_of_both_kernels_have_what_guests_need() {
    let packages = Packages::open().unwrap();
    for series in ["6.12", "7.2"] {
        let kernel = Kernel::debian(&packages, series, Flavour::Cloud).unwrap();
        let names = [
            "virtio_blk",
            "virtio_net",
            "vmw_vsock_virtio_transport",
            "virtio_console",
            "virtio_rng",
            "virtio_balloon",
            "sev-guest",
            "tdx-guest",
        ];
        let modules = kernel.modules(&names).unwrap();
        let order: Vec<_> = modules.iter().map(|(name, _)| name.as_str()).collect();
        eprintln!("{}: {order:?}", kernel.release);
        let at = |name| order.iter().position(|have| *have == name);
        // Whatever is a module comes after what it needs.
        assert!(at("vsock") < at("vmw_vsock_virtio_transport"));
        if series == "6.12" {
            assert!(at("gcm").is_some() && at("gcm") < at("sev_guest"));
        }
        assert!(modules.iter().all(|(_, bytes)| bytes.starts_with(b"\x7fELF")));
        let image = guest::initramfs(&packages, &modules, "echo up").unwrap().build();
        assert!(image.starts_with(b"070701") && image.len() < 32 << 20);
        let vmlinux = kernel.vmlinux(&Cache::open().unwrap()).unwrap();
        assert!(std::fs::metadata(vmlinux).unwrap().len() > 30 << 20);
        assert!(kernel.modules(&["no_such_module"]).is_err());
    }
}
