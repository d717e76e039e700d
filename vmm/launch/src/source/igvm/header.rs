//! The variable headers, decoded one by one.

use igvm_defs::{
    IGVM_VHS_ERROR_RANGE, IGVM_VHS_GUEST_POLICY, IGVM_VHS_PAGE_DATA, IGVM_VHS_PARAMETER,
    IGVM_VHS_PARAMETER_AREA, IGVM_VHS_PARAMETER_INSERT, IGVM_VHS_REQUIRED_MEMORY,
    IGVM_VHS_SNP_ID_BLOCK, IGVM_VHS_SUPPORTED_PLATFORM, IGVM_VHS_VP_CONTEXT, IGVM_VHT_OPTIONAL_BIT,
    IGVM_VHT_RANGE_DIRECTIVE, IGVM_VHT_RANGE_INIT, IgvmVariableHeaderType as Type,
};
use zerocopy::FromBytes;

use super::IgvmError;

/// What a parameter tells the guest, and the VMM has to write into its area.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum ParameterKind {
    VpCount,
    Srat,
    Madt,
    MmioRanges,
    MemoryMap,
    CommandLine,
    Slit,
    Pptt,
    DeviceTree,
    EnvironmentInfo,
}

/// One header, as far as a launch cares.
pub(super) enum Header {
    Platform(IGVM_VHS_SUPPORTED_PLATFORM),
    GuestPolicy(IGVM_VHS_GUEST_POLICY),
    PageData(IGVM_VHS_PAGE_DATA),
    ParameterArea(IGVM_VHS_PARAMETER_AREA),
    Parameter(ParameterKind, IGVM_VHS_PARAMETER),
    ParameterInsert(IGVM_VHS_PARAMETER_INSERT),
    VpContext(IGVM_VHS_VP_CONTEXT),
    RequiredMemory(IGVM_VHS_REQUIRED_MEMORY),
    ErrorRange(IGVM_VHS_ERROR_RANGE),
    SnpIdBlock(Box<IGVM_VHS_SNP_ID_BLOCK>),
    /// Nothing that a launch on KVM needs: relocation hints, version strings, endorsements, what
    /// is only for other platforms, and headers that say of themselves that they are optional.
    Ignored,
}

impl Header {
    /// The platforms that the header is for; `None` if it is for all.
    pub(super) fn mask(&self) -> Option<u32> {
        match self {
            Self::GuestPolicy(policy) => Some(policy.compatibility_mask),
            Self::PageData(page) => Some(page.compatibility_mask),
            Self::ParameterInsert(insert) => Some(insert.compatibility_mask),
            Self::VpContext(context) => Some(context.compatibility_mask),
            Self::RequiredMemory(memory) => Some(memory.compatibility_mask),
            Self::ErrorRange(range) => Some(range.compatibility_mask),
            Self::SnpIdBlock(block) => Some(block.compatibility_mask),
            Self::Platform(_) | Self::ParameterArea(_) | Self::Parameter(..) | Self::Ignored => {
                None
            }
        }
    }
}

/// Decodes the body of the header of type `kind` at file offset `at`.
pub(super) fn decode(at: u64, kind: u32, body: &[u8]) -> Result<Header, IgvmError> {
    let parameter = |of| Ok(Header::Parameter(of, exact(at, "parameter", body)?));
    match Type(kind) {
        Type::IGVM_VHT_SUPPORTED_PLATFORM => {
            Ok(Header::Platform(exact(at, "SUPPORTED_PLATFORM", body)?))
        }
        Type::IGVM_VHT_GUEST_POLICY => Ok(Header::GuestPolicy(exact(at, "GUEST_POLICY", body)?)),
        Type::IGVM_VHT_PAGE_DATA => Ok(Header::PageData(exact(at, "PAGE_DATA", body)?)),
        Type::IGVM_VHT_PARAMETER_AREA => {
            Ok(Header::ParameterArea(exact(at, "PARAMETER_AREA", body)?))
        }
        Type::IGVM_VHT_PARAMETER_INSERT => {
            Ok(Header::ParameterInsert(exact(at, "PARAMETER_INSERT", body)?))
        }
        Type::IGVM_VHT_VP_CONTEXT => Ok(Header::VpContext(exact(at, "VP_CONTEXT", body)?)),
        Type::IGVM_VHT_REQUIRED_MEMORY => {
            Ok(Header::RequiredMemory(exact(at, "REQUIRED_MEMORY", body)?))
        }
        Type::IGVM_VHT_ERROR_RANGE => Ok(Header::ErrorRange(exact(at, "ERROR_RANGE", body)?)),
        Type::IGVM_VHT_SNP_ID_BLOCK => {
            Ok(Header::SnpIdBlock(Box::new(exact(at, "SNP_ID_BLOCK", body)?)))
        }
        Type::IGVM_VHT_VP_COUNT_PARAMETER => parameter(ParameterKind::VpCount),
        Type::IGVM_VHT_SRAT => parameter(ParameterKind::Srat),
        Type::IGVM_VHT_MADT => parameter(ParameterKind::Madt),
        Type::IGVM_VHT_MMIO_RANGES => parameter(ParameterKind::MmioRanges),
        Type::IGVM_VHT_MEMORY_MAP => parameter(ParameterKind::MemoryMap),
        Type::IGVM_VHT_COMMAND_LINE => parameter(ParameterKind::CommandLine),
        Type::IGVM_VHT_SLIT => parameter(ParameterKind::Slit),
        Type::IGVM_VHT_PPTT => parameter(ParameterKind::Pptt),
        Type::IGVM_VHT_DEVICE_TREE => parameter(ParameterKind::DeviceTree),
        Type::IGVM_VHT_ENVIRONMENT_INFO_PARAMETER => parameter(ParameterKind::EnvironmentInfo),
        Type::IGVM_VHT_RELOCATABLE_REGION
        | Type::IGVM_VHT_PAGE_TABLE_RELOCATION_REGION
        | Type::IGVM_VHT_CCA_POLICY
        | Type::IGVM_VHT_VERSION_STRING
        | Type::IGVM_VHT_VBS_MEASUREMENT => Ok(Header::Ignored),
        // CoRIM document and its signature: endorsements, not part of the guest.
        Type(0x104 | 0x105) => Ok(Header::Ignored),
        _ if kind & IGVM_VHT_OPTIONAL_BIT != 0 => Ok(Header::Ignored),
        _ => Err(IgvmError::Unknown { at, kind }),
    }
}

/// Platform headers come first, then initialization headers, then directives.
pub(super) fn section(kind: u32) -> u32 {
    let kind = kind & !IGVM_VHT_OPTIONAL_BIT;
    if IGVM_VHT_RANGE_DIRECTIVE.contains(&kind) {
        2
    } else {
        u32::from(IGVM_VHT_RANGE_INIT.contains(&kind))
    }
}

fn exact<T: FromBytes>(at: u64, name: &'static str, body: &[u8]) -> Result<T, IgvmError> {
    T::read_from_bytes(body).map_err(|_| {
        let why = format!("it has {} bytes instead of {}", body.len(), size_of::<T>());
        IgvmError::header(at, name, why)
    })
}
