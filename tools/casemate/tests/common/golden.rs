//! The guests of `golden`: what they are launched from, and their launches under an interposer.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use casemate_config::{Overrides, PlatformChoice, load};
use casemate_kvm::trace::{Event, Interposer};
use casemate_lab::Host;
use casemate_launch::PlatformKind;
use casemate_machine::platform::{Plain, Platform, Snp, Tdx};
use casemate_machine::{Guest, Machine, Outlet};
use casemate_sandbox::Sandbox;
use casemate_test_support::vectors::Inputs;

/// Each guest, and the emulated host on which its launch was recorded.
const GUESTS: [(&str, Host, &str); 6] = [
    ("snp-kernel", Host::Snp, "6.12"),
    ("snp-certificates", Host::Snp, "7.2"),
    ("snp-ovmf", Host::Snp, "6.12"),
    ("snp-igvm", Host::Snp, "6.12"),
    ("tdx-kernel", Host::Tdx, "7.2"),
    ("plain-kernel", Host::Kvm, "6.12"),
];

/// The file with the launch of a guest.
pub(crate) fn trace_file(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    folder.join(name).with_extension("trace")
}

/// The commands in a trace.
pub(crate) fn events(trace: &str) -> Vec<Event> {
    trace.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The launch of a guest as it was recorded.
pub(crate) fn golden(name: &str) -> Vec<Event> {
    events(&fs::read_to_string(trace_file(name)).unwrap())
}

/// That two launches of a guest are the same. Names the first command that differs.
pub(crate) fn same(name: &str, events: &[Event], recorded: &[Event]) {
    for (at, (event, recorded)) in events.iter().zip(recorded).enumerate() {
        assert_eq!(
            event, recorded,
            "{name}, command {at}; where a newer kernel of the host says more, golden/README.md has how \
             to record anew"
        );
    }
    assert_eq!(events.len(), recorded.len(), "{name}");
}

/// A folder with the configurations of all guests and the files that they name. The emulated host sees it.
pub(crate) struct Folder {
    folder: tempfile::TempDir,
    has_ovmf: bool,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let ovmf = Inputs::open().unwrap().get("ovmf-sid-amdsev").unwrap();
        // Not in /tmp: the emulated host has one of its own.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let folder = Self { folder, has_ovmf: ovmf.is_some() };
        for (name, ..) in GUESTS {
            let config = trace_file(name).with_extension("toml");
            fs::copy(config, folder.config(name)).unwrap();
        }
        let path = |name: &str| folder.path(name).to_str().unwrap().to_owned();
        fs::write(path("kernel"), kernel()).unwrap();
        fs::write(path("certificates"), [0; 24]).unwrap();
        fs::write(path("ovmf"), ovmf.unwrap_or_default()).unwrap();
        let mut build = Command::new(env!("CARGO_BIN_EXE_casemate"));
        build.args(["igvm", "build", "--platform", "snp", "--memory", "64M"]);
        build.args(["--kernel", &path("kernel"), "--out", &path("igvm")]);
        let built = build.output().unwrap();
        assert!(built.status.success(), "{built:?}");
        folder
    }

    /// Those of [`GUESTS`] that can be launched: all, unless OVMF cannot be had, which is said then.
    pub(crate) fn guests(&self) -> impl Iterator<Item = (&'static str, Host, &'static str)> {
        let has_ovmf = self.has_ovmf;
        GUESTS.into_iter().filter(move |(name, ..)| has_ovmf || *name != "snp-ovmf")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A guest's configuration.
    pub(crate) fn config(&self, name: &str) -> PathBuf {
        self.path(name).with_extension("toml")
    }

    pub(crate) fn guest(&self, name: &str) -> Guest {
        let config = load(&self.config(name), Overrides::default()).unwrap();
        let platform = casemate_plan::platforms(&config)[0];
        Guest::new(config, platform).unwrap()
    }
}

/// Enough of a bzImage for a launch (Linux `Documentation/arch/x86/boot.rst`): it is never run.
pub(crate) fn kernel() -> Vec<u8> {
    let mut file = vec![0; 1024 + 4096];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    // setup_sects, syssize, boot_flag, jump, header, version, loadflags, initrd_addr_max, xloadflags,
    // cmdline_size, pref_address, init_size.
    put(0x1f1, &[1]);
    put(0x1f4, &(4096_u32 / 16).to_le_bytes());
    put(0x1fe, &0xaa55_u16.to_le_bytes());
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &0x7f_u16.to_le_bytes());
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x10_0000_u32.to_le_bytes());
    file
}

/// Launches a guest as `casemate run` does, with the commands answered by `interposer`; what it came
/// to, and the commands.
pub(crate) fn launch(guest: &Guest, interposer: Interposer) -> (Result<(), String>, Vec<Event>) {
    let chain = |error: &dyn std::error::Error| {
        let causes = std::iter::successors(Some(error), |error| error.source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    };
    let platform = || -> Result<Box<dyn Platform>, String> {
        let (plan, config) = (guest.plan(), guest.config());
        Ok(match config.platform {
            PlatformChoice::Only(PlatformKind::Snp) => {
                let certificates = config.snp.as_ref().and_then(|snp| snp.certificates.as_deref());
                Box::new(Snp::new(plan, certificates).map_err(|error| chain(&error))?)
            }
            PlatformChoice::Only(PlatformKind::Tdx) => {
                let service = config.tdx.clone().unwrap_or_default().quote_service;
                Box::new(Tdx::new(plan, service).map_err(|error| chain(&error))?)
            }
            _ => Box::new(Plain),
        })
    };
    interposer.run(|| {
        let machine =
            Machine::launch(guest, platform()?, Outlet::sink().unwrap(), None, &Sandbox::off());
        machine.map(drop).map_err(|error| chain(&error))
    })
}
