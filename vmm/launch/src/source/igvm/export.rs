//! From plans to a file.

use std::collections::HashMap;

use igvm_defs::{
    IGVM_FIXED_HEADER, IGVM_FORMAT_VERSION_1, IGVM_MAGIC_VALUE, IGVM_VHS_GUEST_POLICY,
    IGVM_VHS_PAGE_DATA, IGVM_VHS_SUPPORTED_PLATFORM, IGVM_VHS_VARIABLE_HEADER, IGVM_VHS_VP_CONTEXT,
    IgvmNativeVpContextX64, IgvmPageDataFlags, IgvmPageDataType, IgvmPlatformType,
    IgvmVariableHeaderType as Type, TdxPolicy as IgvmTdxPolicy,
};
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::id_block;
use crate::plan::{VMSA_GPA, VmsaPage};
use crate::source::tdvf::{ATTRIBUTE_DEBUG, ATTRIBUTE_MIGRATABLE, ATTRIBUTE_SEPT_VE_DISABLE};
use crate::{
    Contents, Digest384, Gpa, Import, InitialVcpu, LaunchPlan, PageKind, PlatformKind, Policy,
    Segment,
};

const PAGE: usize = 4096;

/// Why plans make no file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ExportError {
    #[error("no plan was given")]
    Nothing,
    #[error("two plans are for {name}; an IGVM file has one per platform", name = .0.name())]
    Twice(PlatformKind),
    #[error(
        "\"{tag}\" at {at} is a ZERO page, which IGVM cannot represent for SEV-SNP; a page of zeroes in \
         full measures otherwise"
    )]
    ZeroPage { at: Gpa, tag: &'static str },
    #[error("\"{tag}\" at {at} is a {kind:?} page, which {} does not support", platform.name())]
    Kind { at: Gpa, tag: &'static str, kind: PageKind, platform: PlatformKind },
    #[error("IGVM cannot represent register state of {} vCPU {index}: {what}", platform.name())]
    Registers { platform: PlatformKind, index: usize, what: &'static str },
    #[error("the plan has {0} vCPUs, more than IGVM can number")]
    TooManyVcpus(usize),
    #[error("the file would have 4 GiB or more, which IGVM cannot represent")]
    TooLarge,
}

/// The plan with pages that are measured in full where it has ZERO pages of SEV-SNP, and how many
/// those are.
///
/// IGVM has no word for ZERO pages. The guest gets the same memory, known to be zero, but the
/// launch digest is another.
#[must_use]
pub fn with_normal_zeroes(mut plan: LaunchPlan) -> (LaunchPlan, u64) {
    let mut pages = 0;
    if plan.platform() == PlatformKind::Snp {
        for import in plan.imports.iter_mut().filter(|import| import.kind == PageKind::Zero) {
            import.kind = PageKind::Normal;
            import.contents = Contents::Zeroes;
            pages += import.range.pages().0;
        }
    }
    (plan, pages)
}

/// An IGVM file of plans for different platforms. What it measures to is what the plans do.
///
/// Pages that are alike are in the file once. The plan's order is the file's.
///
/// # Errors
/// If a plan says something that IGVM cannot.
pub fn export(plans: &[LaunchPlan]) -> Result<Vec<u8>, ExportError> {
    if plans.is_empty() {
        return Err(ExportError::Nothing);
    }
    for (index, plan) in plans.iter().enumerate() {
        if plans[..index].iter().any(|other| other.platform() == plan.platform()) {
            return Err(ExportError::Twice(plan.platform()));
        }
    }
    let mut writer = Writer::default();
    let masked = || plans.iter().zip((0..).map(|bit| 1_u32 << bit));
    masked().for_each(|(plan, mask)| writer.platform(plan.platform(), mask));
    masked().for_each(|(plan, mask)| writer.policy(&plan.policy, mask));
    for (plan, mask) in masked() {
        for import in &plan.imports {
            writer.import(import, plan.platform(), mask)?;
        }
        writer.vcpus(plan, mask)?;
        if let Some(id) = &plan.identity.id_block {
            writer.header(Type::IGVM_VHT_SNP_ID_BLOCK, &id_block::to_header(id, mask));
        }
    }
    writer.finish()
}

/// Headers and data; offsets into the data are put right at the end, when the headers' size is
/// known.
#[derive(Default)]
struct Writer {
    headers: Vec<u8>,
    data: Vec<u8>,
    /// Where in `headers` an offset is, and what it is from the start of `data`.
    offsets: Vec<(usize, usize)>,
    known: HashMap<Digest384, usize>,
}

impl Writer {
    fn header<T: IntoBytes + Immutable>(&mut self, kind: Type, body: &T) {
        let body = body.as_bytes();
        // A header of this format has a few hundred bytes.
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let prefix = IGVM_VHS_VARIABLE_HEADER { typ: kind, length };
        self.headers.extend(prefix.as_bytes());
        self.headers.extend(body);
        self.headers.resize(self.headers.len().next_multiple_of(8), 0);
    }

    /// A header whose offset field, 12 bytes into its body, refers to `page`.
    fn header_with_data<T: IntoBytes + Immutable>(&mut self, kind: Type, body: &T, page: &[u8]) {
        let at = self.headers.len() + 8 + 12;
        self.header(kind, body);
        let digest = Digest384::of(page);
        let next = self.data.len();
        let offset = *self.known.entry(digest).or_insert(next);
        if offset == next {
            self.data.extend(page);
            self.data.resize(next + PAGE, 0);
        }
        self.offsets.push((at, offset));
    }

    fn platform(&mut self, kind: PlatformKind, mask: u32) {
        let platform_type = match kind {
            PlatformKind::Plain => IgvmPlatformType::NATIVE,
            PlatformKind::Snp => IgvmPlatformType::SEV_SNP,
            PlatformKind::Tdx => IgvmPlatformType::TDX,
        };
        let platform = IGVM_VHS_SUPPORTED_PLATFORM {
            compatibility_mask: mask,
            highest_vtl: 0,
            platform_type,
            platform_version: 1,
            shared_gpa_boundary: 0,
        };
        self.header(Type::IGVM_VHT_SUPPORTED_PLATFORM, &platform);
    }

    fn policy(&mut self, policy: &Policy, compatibility_mask: u32) {
        let policy = match policy {
            Policy::Plain => return,
            Policy::Snp(policy) => policy.guest_policy,
            Policy::Tdx(policy) => {
                let bit = |attribute| u8::from(policy.attributes & attribute != 0);
                IgvmTdxPolicy::new()
                    .with_debug_allowed(bit(ATTRIBUTE_DEBUG))
                    .with_sept_ve_disable(bit(ATTRIBUTE_SEPT_VE_DISABLE))
                    .with_migratable(bit(ATTRIBUTE_MIGRATABLE))
                    .into()
            }
        };
        let header = IGVM_VHS_GUEST_POLICY { policy, compatibility_mask, reserved: 0 };
        self.header(Type::IGVM_VHT_GUEST_POLICY, &header);
    }

    fn import(
        &mut self,
        import: &Import,
        platform: PlatformKind,
        compatibility_mask: u32,
    ) -> Result<(), ExportError> {
        let (data_type, flags) = page_type(import, platform)?;
        let bytes: &[u8] = match &import.contents {
            Contents::Zeroes => &[],
            Contents::Bytes(bytes) => bytes,
        };
        let mut pages = bytes.chunks(PAGE);
        for gpa in import.range.page_addresses() {
            let page = IGVM_VHS_PAGE_DATA {
                gpa: gpa.0,
                compatibility_mask,
                file_offset: 0,
                flags,
                data_type,
                reserved: 0,
            };
            match pages.next() {
                Some(bytes) if bytes.iter().any(|byte| *byte != 0) => {
                    self.header_with_data(Type::IGVM_VHT_PAGE_DATA, &page, bytes);
                }
                // No offset says zeroes.
                _ => self.header(Type::IGVM_VHT_PAGE_DATA, &page),
            }
        }
        Ok(())
    }

    fn vcpus(&mut self, plan: &LaunchPlan, compatibility_mask: u32) -> Result<(), ExportError> {
        for (index, vcpu) in plan.vcpus.iter().enumerate() {
            let (gpa, page) = match &plan.policy {
                Policy::Snp(policy) => {
                    (VMSA_GPA, VmsaPage::new(vcpu, policy.vmsa_features).0.to_vec())
                }
                Policy::Plain => (Gpa(0), native(vcpu, index)?.as_bytes().to_vec()),
                // The module resets a TD's vCPUs.
                Policy::Tdx(_) => return Ok(()),
            };
            let context = IGVM_VHS_VP_CONTEXT {
                gpa: gpa.0.into(),
                compatibility_mask,
                file_offset: 0,
                vp_index: u16::try_from(index)
                    .map_err(|_| ExportError::TooManyVcpus(plan.vcpus.len()))?,
                reserved: 0,
            };
            self.header_with_data(Type::IGVM_VHT_VP_CONTEXT, &context, &page);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<u8>, ExportError> {
        let small = |size: usize| u32::try_from(size).map_err(|_| ExportError::TooLarge);
        let start = size_of::<IGVM_FIXED_HEADER>();
        let data_start = start + self.headers.len();
        for (at, offset) in &self.offsets {
            let offset = small(data_start + offset)?;
            self.headers[*at..*at + 4].copy_from_slice(&offset.to_le_bytes());
        }
        let mut fixed = IGVM_FIXED_HEADER {
            magic: IGVM_MAGIC_VALUE,
            format_version: IGVM_FORMAT_VERSION_1,
            variable_header_offset: small(start)?,
            variable_header_size: small(self.headers.len())?,
            total_file_size: small(data_start + self.data.len())?,
            checksum: 0,
        };
        let mut crc = crc32fast::Hasher::new();
        crc.update(fixed.as_bytes());
        crc.update(&self.headers);
        fixed.checksum = crc.finalize();
        let mut file = fixed.as_bytes().to_vec();
        file.append(&mut self.headers);
        file.append(&mut self.data);
        Ok(file)
    }
}

fn page_type(
    import: &Import,
    platform: PlatformKind,
) -> Result<(IgvmPageDataType, IgvmPageDataFlags), ExportError> {
    let (at, tag, kind) = (import.range.start(), import.tag, import.kind);
    let flags = IgvmPageDataFlags::new();
    match kind {
        PageKind::Normal => Ok((IgvmPageDataType::NORMAL, flags)),
        PageKind::Unmeasured => Ok((IgvmPageDataType::NORMAL, flags.with_unmeasured(true))),
        PageKind::Zero if platform == PlatformKind::Snp => Err(ExportError::ZeroPage { at, tag }),
        PageKind::Zero => Ok((IgvmPageDataType::NORMAL, flags.with_unmeasured(true))),
        PageKind::Shared => Ok((IgvmPageDataType::NORMAL, flags.with_shared(true))),
        PageKind::Secrets if platform == PlatformKind::Snp => {
            Ok((IgvmPageDataType::SECRETS, flags))
        }
        PageKind::Cpuid if platform == PlatformKind::Snp => {
            Ok((IgvmPageDataType::CPUID_DATA, flags))
        }
        PageKind::Secrets | PageKind::Cpuid => Err(ExportError::Kind { at, tag, kind, platform }),
    }
}

/// A plain vCPU as IGVM has it: one data segment for all, no task register.
fn native(vcpu: &InitialVcpu, index: usize) -> Result<IgvmNativeVpContextX64, ExportError> {
    let refused = |what| ExportError::Registers { platform: PlatformKind::Plain, index, what };
    let base = |segment: Segment| u32::try_from(segment.base).map_err(|_| refused("a base"));
    let limit = |table: Segment| u16::try_from(table.limit).map_err(|_| refused("a table's limit"));
    let same = |other: Segment| other == vcpu.ds;
    if !(same(vcpu.es) && same(vcpu.ss) && same(vcpu.fs))
        || (Segment { base: 0, ..vcpu.gs }) != (Segment { base: 0, ..vcpu.ds })
    {
        return Err(refused("data segments that differ"));
    }
    let mut context = IgvmNativeVpContextX64::new_zeroed();
    context.rax = vcpu.rax;
    context.rcx = vcpu.rcx;
    context.rdx = vcpu.rdx;
    context.rbx = vcpu.rbx;
    context.rsp = vcpu.rsp;
    context.rbp = vcpu.rbp;
    context.rsi = vcpu.rsi;
    context.rdi = vcpu.rdi;
    context.r8 = vcpu.r8;
    context.r9 = vcpu.r9;
    context.r10 = vcpu.r10;
    context.r11 = vcpu.r11;
    context.r12 = vcpu.r12;
    context.r13 = vcpu.r13;
    context.r14 = vcpu.r14;
    context.r15 = vcpu.r15;
    context.rip = vcpu.rip;
    context.rflags = vcpu.rflags;
    context.idtr_base = vcpu.idtr.base;
    context.idtr_limit = limit(vcpu.idtr)?;
    context.gdtr_base = vcpu.gdtr.base;
    context.gdtr_limit = limit(vcpu.gdtr)?;
    context.code_selector = vcpu.cs.selector;
    context.code_attributes = vcpu.cs.attributes;
    context.code_base = base(vcpu.cs)?;
    context.code_limit = vcpu.cs.limit;
    context.data_selector = vcpu.ds.selector;
    context.data_attributes = vcpu.ds.attributes;
    context.data_base = base(vcpu.ds)?;
    context.data_limit = vcpu.ds.limit;
    context.gs_base = vcpu.gs.base;
    context.cr0 = vcpu.cr0;
    context.cr3 = vcpu.cr3;
    context.cr4 = vcpu.cr4;
    context.efer = vcpu.efer;
    Ok(context)
}
