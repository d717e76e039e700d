//! What the host of a guest can do to it.

use casemate_config::GuestConfig;
use casemate_launch::PlatformKind;
use casemate_plan::Boot;
use serde::Serialize;

/// Powers of the host, by what they amount to.
#[derive(Serialize)]
pub(super) struct Host {
    pub(super) see: Vec<&'static str>,
    pub(super) change: Vec<&'static str>,
    pub(super) delay: Vec<&'static str>,
    pub(super) withhold: Vec<&'static str>,
}

impl Host {
    pub(super) fn new(platform: PlatformKind, boot: Option<&Boot>, config: &GuestConfig) -> Self {
        Self {
            see: see(platform, config),
            change: change(platform, boot, config),
            delay: vec![
                "every vCPU, at any instruction",
                "interrupts, timers, and the completion of device requests",
            ],
            withhold: withhold(platform, config),
        }
    }
}

fn see(platform: PlatformKind, config: &GuestConfig) -> Vec<&'static str> {
    let mut list = if platform == PlatformKind::Plain {
        vec!["all memory and all registers"]
    } else {
        vec![
            "memory that the guest shares: buffers of devices, and nothing else",
            "which pages the guest touches and when, through page tables and cache side channels",
        ]
    };
    if !config.disk.is_empty() {
        list.push(
            "what is written to disks, unless the guest encrypts it; sizes and places either way",
        );
    }
    if !config.net.is_empty() {
        list.push(
            "network packets, unless the guest encrypts them; peers, sizes and times either way",
        );
    }
    if config.vsock.is_some() {
        list.push("what passes through vsock, unless the guest encrypts it");
    }
    list.push("what the guest prints on its serial port and console");
    list
}

fn change(platform: PlatformKind, boot: Option<&Boot>, config: &GuestConfig) -> Vec<&'static str> {
    let mut list = Vec::new();
    if platform == PlatformKind::Plain {
        list.push("all memory and all registers");
    }
    if !config.disk.is_empty() {
        list.push("disk contents, also back to an older state: the guest has to authenticate what it reads");
    }
    if !config.net.is_empty() || config.vsock.is_some() {
        list.push("what comes in over network and vsock: the guest has to authenticate its peers");
    }
    if config.rng {
        list.push(
            "what the entropy device gives; the guest has the processor's own random numbers",
        );
    }
    if matches!(boot, Some(Boot::FirmwareConfig(_))) {
        list.push("ACPI tables, whose code runs in the guest's kernel");
    }
    list.push("the wall clock that the guest is told");
    list.push("every answer of a device, in any way: drivers in the guest have to expect it");
    list
}

fn withhold(platform: PlatformKind, config: &GuestConfig) -> Vec<&'static str> {
    let mut list = vec!["processor time and memory: nothing here protects availability"];
    if !config.disk.is_empty() || !config.net.is_empty() {
        list.push("any device, or any single request to one");
    }
    match platform {
        PlatformKind::Plain => {}
        PlatformKind::Snp => {
            list.push("attestation reports: requests for them pass through the host, encrypted");
        }
        PlatformKind::Tdx => list.push("quotes: the host makes them of the TD's reports"),
    }
    list
}
