//! IGVM files as guests.

use std::fs::File;
use std::io;

use casemate_config::{GuestConfig, TdAttributes};
use casemate_launch::igvm::{IgvmError, IgvmFile, ImportError, Imported, TellError, import};
use casemate_launch::rules::Profile;
use casemate_launch::tdvf::{ATTRIBUTE_DEBUG, ATTRIBUTE_MIGRATABLE, ATTRIBUTE_SEPT_VE_DISABLE};
use casemate_launch::{
    GpaError, InitialVcpu, LaunchPlan, PlatformKind, Policy, SnpIdentity, TdxPolicy,
};

use crate::{Board, Boot, GuestPlan, PlanError, Rules, policy};

/// Why an IGVM file is not launched.
#[derive(Debug, thiserror::Error)]
pub enum IgvmLaunchError {
    /// It cannot be opened.
    #[error("could not open the IGVM file")]
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
    /// The host could read the guest's memory, and nobody has asked for that.
    #[error(
        "the file's guest policy lets the host debug the guest, that is, read its memory: write \
         debug = true in [snp], or make the file anew"
    )]
    Debug,
    /// The guest would be another one than the configuration says.
    #[error("the TD attributes of the file are not those of the configuration: {0}")]
    Attributes(String),
}

/// DEBUG of a guest policy (SEV-SNP firmware ABI, table "Guest Policy Structure").
const SNP_DEBUG: u64 = 1 << 19;

/// The guest of the file that `config` names.
pub(crate) fn plan(
    config: &GuestConfig,
    platform: PlatformKind,
    rules: &Rules,
) -> Result<GuestPlan, PlanError> {
    let refused =
        |source| PlanError::Igvm { file: config.igvm.clone().unwrap_or_default(), source };
    let launch = match platform {
        PlatformKind::Plain => return Err(PlanError::PlainIgvm),
        PlatformKind::Snp => snp(config, policy::snp_identity(config)?, rules).map_err(refused)?,
        PlatformKind::Tdx => tdx(config, &policy::tdx(config), rules).map_err(refused)?,
    };
    let memory = |source| PlanError::memory(config, source);
    let board = Board::like_q35(config.memory.0).map_err(memory)?;
    Ok(GuestPlan {
        launch,
        board,
        boot: Boot::Igvm,
        launcher: rules.launcher.unwrap_or(Profile::Casemate),
    })
}

/// The plan of an SEV-SNP guest: policy and registers are the file's, and so is the ID block if it
/// has one; everything else of its identity is the configuration's. A policy that allows to debug
/// must be asked for there, too.
fn snp(
    config: &GuestConfig,
    identity: SnpIdentity,
    rules: &Rules,
) -> Result<LaunchPlan, Box<IgvmLaunchError>> {
    if config.vcpus != 1 {
        return Err(Box::new(IgvmLaunchError::Vcpus(config.vcpus)));
    }
    let mut plan = imported(config, PlatformKind::Snp, rules)?;
    let asked = config.snp.as_ref().is_some_and(|snp| snp.debug);
    if matches!(&plan.policy, Policy::Snp(policy) if policy.guest_policy & SNP_DEBUG != 0 && !asked)
    {
        return Err(Box::new(IgvmLaunchError::Debug));
    }
    let id_block = match (plan.identity.id_block.take(), identity.id_block) {
        (Some(_), Some(_)) => return Err(Box::new(IgvmLaunchError::IdBlocks)),
        (of_file, of_configuration) => of_file.or(of_configuration),
    };
    plan.identity = SnpIdentity { id_block, ..identity };
    Ok(plan)
}

/// The plan of a TDX guest: attributes are the file's and must be those of `policy`, which has what
/// identifies it.
fn tdx(
    config: &GuestConfig,
    policy: &TdxPolicy,
    rules: &Rules,
) -> Result<LaunchPlan, Box<IgvmLaunchError>> {
    let mut plan = imported(config, PlatformKind::Tdx, rules)?;
    if let Policy::Tdx(of_file) = &plan.policy {
        let differences = differences(of_file.attributes, policy.attributes);
        if !differences.is_empty() {
            return Err(Box::new(IgvmLaunchError::Attributes(differences.join("; "))));
        }
        plan.policy = Policy::Tdx(policy.clone());
    }
    // Their registers are the TDX module's to set.
    plan.vcpus = (0..config.vcpus).map(|_| InitialVcpu::default()).collect();
    Ok(plan)
}

/// Where the TD attributes of file and configuration differ, and what makes them agree.
fn differences(of_file: u64, of_configuration: u64) -> Vec<String> {
    /// What a file can say.
    const KNOWN: u64 = ATTRIBUTE_DEBUG | ATTRIBUTE_SEPT_VE_DISABLE | ATTRIBUTE_MIGRATABLE;
    const FILE: &str = "only the file has";
    const CONFIGURATION: &str = "only the configuration has";
    let (surplus, missing) = (of_file & !of_configuration, of_configuration & !of_file);
    [
        (FILE, surplus & ATTRIBUTE_DEBUG, "write debug = true in [tdx], or make the file anew"),
        (FILE, surplus & !ATTRIBUTE_DEBUG, "make the file anew"),
        (CONFIGURATION, missing & ATTRIBUTE_DEBUG, "leave out tdx.debug, or make the file anew"),
        (CONFIGURATION, missing & KNOWN & !ATTRIBUTE_DEBUG, "make the file anew"),
        (CONFIGURATION, missing & !KNOWN, "leave it out of tdx.attributes, as no file can say it"),
    ]
    .into_iter()
    .filter(|(_, bits, _)| *bits != 0)
    .map(|(whose, bits, remedy)| format!("{whose} {} ({remedy})", TdAttributes(bits)))
    .collect()
}

fn imported(
    config: &GuestConfig,
    kind: PlatformKind,
    rules: &Rules,
) -> Result<LaunchPlan, Box<IgvmLaunchError>> {
    imported_from(config, kind, rules).map_err(Box::new)
}

fn imported_from(
    config: &GuestConfig,
    kind: PlatformKind,
    rules: &Rules,
) -> Result<LaunchPlan, IgvmLaunchError> {
    let path = config.igvm.clone().unwrap_or_default();
    let mut file = IgvmFile::open(File::open(path)?)?;
    let mut imported: Imported =
        import(&mut file, kind, rules.compatibility_mask, rules.zero_pages)?;
    let ram: Vec<_> = Board::like_q35(config.memory.0)?.ram().collect();
    imported.tell(&ram, config.vcpus)?;
    Ok(imported.plan)
}

#[cfg(test)]
mod tests {
    use casemate_config::{Snp, Tdx};
    use casemate_launch::igvm::export;
    use casemate_launch::{Contents, Gpa, GpaRange, Import, PageKind, SnpPolicy};

    use super::snp as snp_plan;
    use super::*;

    /// What becomes of a file with `attributes` where the configuration asks for those of `asked`.
    fn launched(attributes: u64, asked: &Tdx) -> Result<(), String> {
        let page = Import {
            range: GpaRange::from_bytes(Gpa(0x1000), 0x1000).unwrap(),
            kind: PageKind::Normal,
            contents: Contents::Zeroes,
            tag: "test",
        };
        let plan = LaunchPlan {
            imports: vec![page],
            vcpus: Vec::new(),
            policy: Policy::Tdx(TdxPolicy::new(attributes)),
            identity: SnpIdentity::default(),
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), export(&[plan]).unwrap()).unwrap();
        let config = GuestConfig { igvm: Some(file.path().into()), ..GuestConfig::default() };
        let policy = TdxPolicy { mrowner: [7; 48], ..TdxPolicy::new(asked.attributes()) };
        let plan = tdx(&config, &policy, &Rules::default()).map_err(|error| error.to_string())?;
        assert_eq!(plan.policy, Policy::Tdx(policy));
        Ok(())
    }

    #[test]
    fn a_file_that_lets_the_host_debug_is_launched_only_where_that_is_asked_for() {
        let launched = |guest_policy, debug: bool| {
            let page = Import {
                range: GpaRange::from_bytes(Gpa(0x1000), 0x1000).unwrap(),
                kind: PageKind::Normal,
                contents: Contents::Zeroes,
                tag: "test",
            };
            let plan = LaunchPlan {
                imports: vec![page],
                vcpus: vec![InitialVcpu::default()],
                policy: Policy::Snp(SnpPolicy { guest_policy, vmsa_features: 1 }),
                identity: SnpIdentity::default(),
            };
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), export(&[plan]).unwrap()).unwrap();
            let snp = debug.then(|| Snp { debug, ..Snp::default() });
            let igvm = Some(file.path().into());
            let config = GuestConfig { igvm, snp, ..GuestConfig::default() };
            snp_plan(&config, SnpIdentity::default(), &Rules::default()).map(drop)
        };
        let error = launched(0x3_0000 | SNP_DEBUG, false).unwrap_err();
        assert!(matches!(*error, IgvmLaunchError::Debug), "{error}");
        launched(0x3_0000 | SNP_DEBUG, true).unwrap();
        launched(0x3_0000, false).unwrap();
    }

    fn debuggable() -> Tdx {
        Tdx { debug: true, ..Tdx::default() }
    }

    #[test]
    fn a_file_with_the_attributes_of_the_configuration_is_launched() {
        launched(ATTRIBUTE_SEPT_VE_DISABLE, &Tdx::default()).unwrap();
        launched(ATTRIBUTE_SEPT_VE_DISABLE | ATTRIBUTE_DEBUG, &debuggable()).unwrap();
    }

    #[test]
    fn a_file_with_other_attributes_is_refused_with_their_names() {
        let pks = Tdx { attributes: TdAttributes(1 << 30), ..Tdx::default() };
        let usual = ATTRIBUTE_SEPT_VE_DISABLE;
        let debug =
            "only the file has [\"DEBUG\"] (write debug = true in [tdx], or make the file anew)";
        let both = format!("{debug}; only the configuration has [\"SEPT_VE_DISABLE\"] (make the");
        for (attributes, asked, differences) in [
            (usual | ATTRIBUTE_DEBUG, Tdx::default(), debug),
            (ATTRIBUTE_DEBUG, Tdx::default(), &both),
            (usual, debuggable(), "only the configuration has [\"DEBUG\"] (leave out tdx.debug"),
            (
                usual | ATTRIBUTE_MIGRATABLE,
                debuggable(),
                "only the file has [\"MIGRATABLE\"] (make",
            ),
            (usual, pks, "only the configuration has [\"PKS\"] (leave it out of tdx.attributes"),
        ] {
            let error = launched(attributes, &asked).unwrap_err();
            let start = "the TD attributes of the file are not those of the configuration: ";
            assert!(error.starts_with(&format!("{start}{differences}")), "{error}");
        }
    }
}
