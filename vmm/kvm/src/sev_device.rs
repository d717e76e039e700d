//! /dev/sev: the way to AMD's secure processor.

#![allow(unsafe_code, reason = "ioctls")]

use std::fmt;
use std::fs::{File, OpenOptions};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use libc::c_ulong;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::KernelError;
use crate::boundary::{Firmware, Reply, Told, address_of, argument, call, ioctl};

/// An open /dev/sev.
///
/// **Keep it open for the VM's whole life.** KVM remembers the descriptor's number and looks it up
/// again, in whichever thread runs a vCPU, when the guest asks for a report.
#[derive(Debug)]
pub struct SevDevice(File);

impl SevDevice {
    /// Where the device is.
    pub const PATH: &str = "/dev/sev";

    /// Opens the device at `path`, normally [`Self::PATH`].
    ///
    /// # Errors
    /// It is not there (no SEV in this machine or kernel), or this user may not open it.
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let mut opened = None;
        call("open", Firmware::None, &mut Told::new(path.display()), |_| match OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
        {
            Ok(file) => {
                opened = Some(file);
                Reply::default()
            }
            Err(error) => Reply::errno(error.raw_os_error().unwrap_or(libc::EIO)),
        })?;
        // Without one, an interposer said yes in the kernel's place.
        opened.map_or_else(Self::stand_in, |file| Ok(Self(file)))
    }

    /// A device of no use but under an [`Interposer`](crate::trace::Interposer), for tests on
    /// machines without SEV.
    ///
    /// # Errors
    /// /dev/null cannot be opened.
    pub fn stand_in() -> Result<Self, KernelError> {
        let file = File::open("/dev/null");
        file.map(Self).map_err(|error| KernelError::of_io("open", "/dev/null", &error))
    }

    /// Asks the firmware for the state of SEV-SNP.
    ///
    /// # Errors
    /// The firmware knows no SEV-SNP, or failed.
    pub fn platform_status(&self) -> Result<PlatformStatus, KernelError> {
        const SNP_PLATFORM_STATUS: u32 = 9;
        let mut status = RawStatus::new_zeroed();
        call("SNP_PLATFORM_STATUS", Firmware::Sev, &mut status, |status| {
            // SAFETY: the command writes a structure of this size.
            unsafe { self.command(SNP_PLATFORM_STATUS, address_of(status)) }
        })?;
        Ok(status.into())
    }

    /// # Safety
    /// `data` is the address of what command `id` takes, valid for what the kernel does to it until
    /// the call returns.
    unsafe fn command(&self, id: u32, data: c_ulong) -> Reply {
        const SEV_ISSUE_CMD: c_ulong = 0xC010_5300;
        let mut issue = IssueCommand { id, data, error: 0 };
        // SAFETY: /dev/sev takes this structure; `data` is the caller's contract.
        let reply = unsafe { ioctl(&self.0, SEV_ISSUE_CMD, address_of(&mut issue)) };
        Reply { status: u64::from(issue.error), ..reply }
    }
}

impl AsRawFd for SevDevice {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// `struct sev_issue_cmd`: packed, so that the address is at offset 4.
#[repr(C, packed)]
struct IssueCommand {
    id: u32,
    data: u64,
    error: u32,
}

const _: () = {
    assert!(size_of::<IssueCommand>() == 16);
    assert!(offset_of!(IssueCommand, data) == 4 && offset_of!(IssueCommand, error) == 12);
};

/// `struct sev_user_data_snp_status`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RawStatus {
    api_major: u8,
    api_minor: u8,
    state: u8,
    rmp: u8,
    build: u32,
    flags: u32,
    guest_count: u32,
    current_tcb: u64,
    reported_tcb: u64,
}

const _: () = {
    assert!(size_of::<RawStatus>() == 32);
    assert!(offset_of!(RawStatus, build) == 4 && offset_of!(RawStatus, flags) == 8);
    assert!(offset_of!(RawStatus, guest_count) == 12);
    assert!(offset_of!(RawStatus, current_tcb) == 16);
    assert!(offset_of!(RawStatus, reported_tcb) == 24);
};

impl fmt::Display for RawStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no arguments")
    }
}

argument!(RawStatus);

/// The state of SEV-SNP in the firmware (SEV-SNP Firmware ABI, SNP_PLATFORM_STATUS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformStatus {
    /// The firmware's ABI version: major, minor.
    pub api: (u8, u8),
    /// The firmware's build.
    pub build: u32,
    /// SNP_INIT was done: guests can be launched.
    pub initialised: bool,
    /// The RMP is set up.
    pub rmp_initialised: bool,
    /// Reports show no chip identifier.
    pub chip_id_masked: bool,
    /// Reports are not signed with the chip's own key.
    pub chip_key_masked: bool,
    /// A VLEK is loaded.
    pub vlek: bool,
    /// RAPL (energy counters) is off.
    pub rapl_disabled: bool,
    /// DRAM ciphertext can be hidden from the host.
    pub ciphertext_hiding_capable: bool,
    /// It is hidden.
    pub ciphertext_hiding: bool,
    /// Guests that the firmware knows.
    pub guests: u32,
    /// The TCB that runs, as in reports.
    pub current_tcb: u64,
    /// The TCB that reports show.
    pub reported_tcb: u64,
}

impl From<RawStatus> for PlatformStatus {
    fn from(raw: RawStatus) -> Self {
        let flag = |bit: u32| raw.flags & (1 << bit) != 0;
        Self {
            api: (raw.api_major, raw.api_minor),
            build: raw.build,
            initialised: raw.state == 1,
            rmp_initialised: raw.rmp & 1 != 0,
            chip_id_masked: flag(0),
            chip_key_masked: flag(1),
            vlek: flag(2),
            rapl_disabled: flag(4),
            ciphertext_hiding_capable: flag(5),
            ciphertext_hiding: flag(6),
            guests: raw.guest_count,
            current_tcb: raw.current_tcb,
            reported_tcb: raw.reported_tcb,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Event, Interposer, Written};

    /// What the kernel writes, byte by byte.
    #[test]
    fn the_platform_status_is_decoded() {
        let mut bytes = vec![1, 55, 1, 1];
        bytes.extend(21_u32.to_le_bytes());
        bytes.extend(0b110_0100_u32.to_le_bytes());
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(0xd3_16_00_00_00_00_00_08_u64.to_le_bytes());
        bytes.extend(0xd2_15_00_00_00_00_00_07_u64.to_le_bytes());
        let event = Event {
            command: "SNP_PLATFORM_STATUS".into(),
            arguments: "no arguments".into(),
            reply: Reply::default(),
            written: vec![Written { offset: 0, bytes }],
        };
        let device = SevDevice::stand_in().expect("/dev/null");
        let (status, _) = Interposer::replaying(vec![event]).run(|| device.platform_status());
        let expected = PlatformStatus {
            api: (1, 55),
            build: 21,
            initialised: true,
            rmp_initialised: true,
            chip_id_masked: false,
            chip_key_masked: false,
            vlek: true,
            rapl_disabled: false,
            ciphertext_hiding_capable: true,
            ciphertext_hiding: true,
            guests: 3,
            current_tcb: 0xd316_0000_0000_0008,
            reported_tcb: 0xd215_0000_0000_0007,
        };
        assert_eq!(status, Ok(expected));
    }

    #[test]
    fn a_missing_device_is_named() {
        let error = SevDevice::open(Path::new("/nowhere/sev")).expect_err("no such file");
        assert!(error.to_string().starts_with("open (/nowhere/sev) failed: No such file"));
    }
}
