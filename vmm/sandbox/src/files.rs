//! Files that the guest's process may open, make and remove after its launch (Landlock).

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetError, Scope,
};

use crate::SandboxError;
use crate::sandbox::Access;

/// The newest version whose rights are handled; an older kernel handles those that it knows, and at least the first.
const NEWEST: ABI = ABI::V6;

/// Rights that are left of all.
#[derive(Debug)]
pub(crate) struct Files(RulesetCreated);

impl Files {
    /// Leaves what `accesses` name.
    pub(crate) fn new(accesses: &[Access]) -> Result<Self, SandboxError> {
        let refused = |error: RulesetError| SandboxError::Files(error.into());
        // Signals stay within the process already, and each thread is a domain of its own.
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V1))
            .map(|rules| rules.set_compatibility(CompatLevel::BestEffort))
            .and_then(|rules| rules.handle_access(AccessFs::from_all(NEWEST)))
            .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
            .and_then(|rules| rules.scope(Scope::AbstractUnixSocket))
            .and_then(Ruleset::create)
            .map_err(refused)?;
        for access in accesses {
            let (path, rights) = match access {
                Access::Sockets(path) => (path, AccessFs::RemoveFile.into()),
                Access::Read(path) => (path, AccessFs::ReadFile | AccessFs::ReadDir),
                // Which Landlock does not handle.
                Access::Connect(_) => continue,
            };
            let folder = PathFd::new(path).map_err(|error| SandboxError::Directory {
                path: path.into(),
                source: error.into(),
            })?;
            rules = rules.add_rule(PathBeneath::new(folder, rights)).map_err(refused)?;
        }
        Ok(Self(rules))
    }

    /// Restricts the calling thread.
    pub(crate) fn restrict(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.0.try_clone()?.restrict_self()?;
        Ok(())
    }
}
