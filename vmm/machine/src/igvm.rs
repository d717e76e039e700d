//! IGVM files as guests.

use std::fs::File;
use std::io;

use casemate_config::GuestConfig;
use casemate_launch::igvm::{
    IgvmError, IgvmFile, ImportError, Imported, TellError, ZeroPages, import,
};
use casemate_launch::{
    GpaError, InitialVcpu, LaunchPlan, PlatformKind, Policy, SnpIdentity, TdxPolicy,
};

use crate::board::Board;

/// Why an IGVM file is not launched.
#[derive(Debug, thiserror::Error)]
pub enum IgvmLaunchError {
    /// It cannot be opened.
    #[error("could not open it")]
    Open(#[from] io::Error),
    /// It is no IGVM file that can be used.
    #[error(transparent)]
    File(#[from] IgvmError),
    /// It makes no plan.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The guest cannot be told what the file asks for.
    #[error(transparent)]
    Tell(#[from] TellError),
    /// The memory cannot be laid out.
    #[error("could not lay out the guest's memory")]
    Memory(#[from] GpaError),
    /// SEV-SNP measures the registers of all vCPUs.
    #[error(
        "the file has the registers of one vCPU, and KVM measures those of all: the guest has vcpus \
         = 1, not {0}"
    )]
    Vcpus(u32),
    /// Two ID blocks.
    #[error("both the file and the configuration (snp.id_block) have an ID block: leave one out")]
    IdBlocks,
}

/// The plan of an SEV-SNP guest: policy and registers are the file's, and so is the ID block if it
/// has one; everything else of its identity is the configuration's.
pub(crate) fn snp(
    config: &GuestConfig,
    identity: SnpIdentity,
) -> Result<LaunchPlan, Box<IgvmLaunchError>> {
    if config.vcpus != 1 {
        return Err(Box::new(IgvmLaunchError::Vcpus(config.vcpus)));
    }
    let mut plan = imported(config, PlatformKind::Snp)?;
    let id_block = match (plan.identity.id_block.take(), identity.id_block) {
        (Some(_), Some(_)) => return Err(Box::new(IgvmLaunchError::IdBlocks)),
        (of_file, of_configuration) => of_file.or(of_configuration),
    };
    plan.identity = SnpIdentity { id_block, ..identity };
    Ok(plan)
}

/// The plan of a TDX guest: attributes are the file's, what identifies it is in `policy`.
pub(crate) fn tdx(
    config: &GuestConfig,
    policy: &TdxPolicy,
) -> Result<LaunchPlan, Box<IgvmLaunchError>> {
    let mut plan = imported(config, PlatformKind::Tdx)?;
    if let Policy::Tdx(of_file) = &plan.policy {
        let attributes = of_file.attributes;
        plan.policy = Policy::Tdx(TdxPolicy { attributes, ..policy.clone() });
    }
    // Their registers are the TDX module's to set.
    plan.vcpus = (0..config.vcpus).map(|_| InitialVcpu::default()).collect();
    Ok(plan)
}

fn imported(config: &GuestConfig, kind: PlatformKind) -> Result<LaunchPlan, Box<IgvmLaunchError>> {
    imported_from(config, kind).map_err(Box::new)
}

fn imported_from(config: &GuestConfig, kind: PlatformKind) -> Result<LaunchPlan, IgvmLaunchError> {
    let path = config.igvm.clone().unwrap_or_default();
    let mut file = IgvmFile::open(File::open(path)?)?;
    let mut imported: Imported = import(&mut file, kind, None, ZeroPages::Normal)?;
    let ram: Vec<_> = Board::like_q35(config.memory.0)?.ram().collect();
    imported.tell(&ram, config.vcpus)?;
    Ok(imported.plan)
}
