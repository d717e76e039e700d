//! Launching: a one-shot state machine whose states are types. Every failure is the end of it.
//!
//! [`Created`] → [`Populated`] → [`Finished`]

use std::sync::Arc;

use casemate_config::Topology;
use casemate_kvm::{KernelError, vcpu, vm};
use casemate_launch::{GpaRange, LaunchPlan};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::arch::{self, Cpuid};
use crate::limits::LimitError;
use crate::platform::{Made, Platform, StepError};
use crate::ram::GuestRam;

/// Why a launch failed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The host would not let the guest run to its end.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// KVM speaks another language.
    #[error("/dev/kvm has API version {0}, not 12")]
    ApiVersion(i32),
    /// The VM could not be made.
    #[error("could not create the VM")]
    Vm(#[source] StepError),
    /// A vCPU could not be made.
    #[error("could not create vCPU {index}")]
    Vcpu {
        /// Which one.
        index: u32,
        /// Why.
        source: StepError,
    },
    /// Something could not enter guest memory.
    #[error("could not import the {tag} at {range}")]
    Import {
        /// What it is.
        tag: &'static str,
        /// Where it goes.
        range: GpaRange,
        /// Why.
        source: StepError,
    },
    /// The launch could not be finished.
    #[error("could not finish the launch")]
    Finish(#[source] StepError),
    /// The machine around the vCPUs could not be made.
    #[error("could not set up the {what}")]
    Device {
        /// What it is.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl LaunchError {
    /// For `map_err`.
    pub(crate) fn device<E>(what: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let what = what.into();
        move |error| Self::Device { what, source: error.into() }
    }
}

/// VM, memory and vCPUs are there.
pub(crate) struct Created {
    vm: Arc<VmFd>,
    ram: GuestRam,
    platform: Box<dyn Platform>,
    vcpus: Vec<VcpuFd>,
}

/// All imports have been taken.
pub(crate) struct Populated(Created);

/// vCPUs may run.
pub(crate) struct Finished {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) ram: GuestRam,
    pub(crate) platform: Box<dyn Platform>,
    pub(crate) vcpus: Vec<VcpuFd>,
}

impl Created {
    /// Creates a VM with the memory `ram` and vCPUs in this arrangement, in the states that `plan` has.
    pub(crate) fn new(
        mut platform: Box<dyn Platform>,
        ram: GuestRam,
        plan: &LaunchPlan,
        topology: Topology,
    ) -> Result<Self, LaunchError> {
        let refused = |error: KernelError| LaunchError::Vm(error.into());
        let kvm = vm::open().map_err(refused)?;
        match vm::api_version(&kvm).map_err(refused)? {
            12 => {}
            other => return Err(LaunchError::ApiVersion(other)),
        }
        if !platform.confidential() {
            arch::permit_features();
        }
        let vm = vm::create(&kvm, platform.kind()).map_err(refused)?;
        arch::create_interrupt_controller(&vm).map_err(refused)?;
        let cpuid = Cpuid::new(&kvm, topology).map_err(refused)?;
        platform.prepare_vm(&vm, &cpuid.of(0).map_err(refused)?).map_err(LaunchError::Vm)?;
        ram.map(&vm).map_err(|error| LaunchError::Vm(error.into()))?;
        let vcpus = (0..topology.vcpus())
            .map(|index| {
                let state = plan.vcpus.get(usize::try_from(index).unwrap_or(usize::MAX));
                let vcpu = create_vcpu(&vm, &cpuid, index)?;
                platform.prepare_vcpu(&vcpu, state)?;
                Ok(vcpu)
            })
            .zip(0..)
            .map(|(vcpu, index)| vcpu.map_err(|source| LaunchError::Vcpu { index, source }))
            .collect::<Result<_, _>>()?;
        Ok(Self { vm: Arc::new(vm), ram, platform, vcpus })
    }

    /// Takes all imports of the plan, in its order.
    pub(crate) fn populate(mut self, plan: &LaunchPlan) -> Result<Populated, LaunchError> {
        let made = Made { vm: &self.vm, ram: &self.ram, vcpus: &self.vcpus };
        for import in &plan.imports {
            let (tag, range) = (import.tag, import.range);
            self.platform.import(made, import).map_err(|source| LaunchError::Import {
                tag,
                range,
                source,
            })?;
        }
        Ok(Populated(self))
    }
}

impl Populated {
    /// Ends the launch.
    pub(crate) fn finish(self) -> Result<Finished, LaunchError> {
        let Created { vm, ram, mut platform, vcpus } = self.0;
        platform.finish(&vm).map_err(LaunchError::Finish)?;
        Ok(Finished { vm, ram, platform, vcpus })
    }
}

fn create_vcpu(vm: &VmFd, cpuid: &Cpuid, index: u32) -> Result<VcpuFd, StepError> {
    let vcpu = vcpu::create(vm, index).map_err(|error| match vm::max_vcpus(vm) {
        most @ 1.. if index >= most => StepError::Vcpus { most },
        _ => error.into(),
    })?;
    casemate_kvm::cpuid::set(&vcpu, &cpuid.of(index)?)?;
    Ok(vcpu)
}
