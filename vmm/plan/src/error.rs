//! Reasons why no plan follows from a configuration.

use std::io;
use std::path::{Path, PathBuf};

use casemate_config::{ByteSize, GuestConfig};
use casemate_launch::firmware::FirmwareError;
use casemate_launch::linux::{DirectBootError, KernelError};
use casemate_launch::ovmf::OvmfError;
use casemate_launch::snp::FirmwareDigestError;
use casemate_launch::svsm::SvsmError;
use casemate_launch::tdvf::SourceError;
use casemate_launch::{GpaError, GpaRange, Import};

use crate::igvm::IgvmLaunchError;

/// Why a guest has no plan: it could not be launched.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum PlanError {
    #[error("could not read the {what} from {}", file.display())]
    File { what: &'static str, file: PathBuf, source: io::Error },
    #[error("could not boot kernel = {file:?}, which has to be {wanted}")]
    Kernel { file: PathBuf, wanted: &'static str, source: KernelError },
    #[error("could not boot kernel = {file:?} with memory = {memory}; {}", remedy(source))]
    Boot { file: PathBuf, memory: ByteSize, source: DirectBootError },
    /// `file` is `None` for the firmware in this program.
    #[error("could not start the guest with {}", named(file.as_deref()))]
    Firmware { file: Option<PathBuf>, source: FirmwareError },
    #[error(
        "could not start the guest with firmware = {file:?}, which has to be a TDVF or an edition \
         of Casemate's firmware"
    )]
    Tdvf { file: PathBuf, source: SourceError },
    #[error(
        "could not start the guest with firmware = {file:?}, which has to be OVMF or an edition of \
         Casemate's firmware"
    )]
    Ovmf { file: PathBuf, source: OvmfError },
    #[error("could not launch igvm = {file:?}, which has to be an IGVM file for the platform")]
    Igvm { file: PathBuf, source: Box<IgvmLaunchError> },
    #[error("could not lay out {bytes} bytes of guest memory")]
    Memory { bytes: u64, source: GpaError },
    #[error(
        "the guest would get {first} (\"{first_tag}\") and then {second} (\"{second_tag}\"): KVM \
         refuses a page that the guest owns already"
    )]
    Twice { first: GpaRange, first_tag: &'static str, second: GpaRange, second_tag: &'static str },
    #[error("plain guests boot a kernel: give one with --kernel or in the configuration")]
    NoPlainKernel,
    #[error("plain guests boot a kernel or firmware: leave igvm out, or choose another platform")]
    PlainIgvm,
    #[error("Casemate's firmware boots a kernel: add --kernel, or kernel to the configuration")]
    NoKernel,
    #[error(
        "accept_memory and firmware_log are for Casemate's firmware: leave them out, or firmware"
    )]
    OwnFirmwareKeys,
    #[error(
        "with the registers of {launcher} the digest depends on the CPU model: add --vcpu-type, \
         such as --vcpu-type EPYC-Milan, or snp.vcpu_type to the configuration"
    )]
    NoModel { launcher: &'static str },
    #[error(
        "Cloud Hypervisor launches confidential guests from IGVM files: pass the file with --igvm"
    )]
    NeedsIgvm,
    #[error(
        "only QEMU launches an SVSM as an image of its own: choose --vmm qemu, or pass an IGVM file"
    )]
    SvsmLauncher,
    #[error("could not put the SVSM {} below the firmware", file.display())]
    Svsm { file: PathBuf, source: SvsmError },
    #[error("could not compute the launch digest from the firmware digest")]
    FirmwareDigest(#[source] FirmwareDigestError),
    #[error(
        "the image of Casemate's firmware has the hashes of its guest's kernel, so that no digest of \
         it serves other guests: pass the kernel, and leave the firmware digest out"
    )]
    OwnFirmwareDigest,
    #[error("this machine's processor is not an x86 one: set snp.vcpu_type to a CPU model")]
    NoHostModel,
}

impl PlanError {
    pub(crate) fn memory(config: &GuestConfig, source: GpaError) -> Self {
        Self::Memory { bytes: config.memory.0, source }
    }

    pub(crate) const fn overlap(first: &Import, second: &Import) -> Self {
        Self::Twice {
            first: first.range,
            first_tag: first.tag,
            second: second.range,
            second_tag: second.tag,
        }
    }
}

/// Remedy for a kernel that does not fit.
const fn remedy(error: &DirectBootError) -> &'static str {
    match error {
        DirectBootError::CommandLine { .. } => "shorten cmdline",
        DirectBootError::Entry(_) => "give another kernel",
        DirectBootError::NoRoomForInitrd { .. } => "raise memory, or give a smaller initrd",
        _ => "raise memory",
    }
}

/// The name of a firmware of ours.
fn named(file: Option<&Path>) -> String {
    file.map_or("the firmware of this program".into(), |file| format!("firmware = {file:?}"))
}
