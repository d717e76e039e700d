//! CPUID as KVM has it: a table of leaves (`struct kvm_cpuid2`), of the host, of a vCPU, or as a part of
//! another structure.

use std::arch::x86_64::{__cpuid_count, CpuidResult};
use std::fmt;
use std::marker::PhantomData;
use std::mem::offset_of;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Kvm, VcpuFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::KernelError;
use crate::boundary::{Argument, Firmware, Reply, Told, call};
use crate::error::Status;
use crate::trace;

/// What KVM can give guests on this host (KVM_GET_SUPPORTED_CPUID).
///
/// # Errors
/// The kernel is out of memory, or lists more leaves than any kernel has.
pub fn supported(kvm: &Kvm) -> Result<CpuId, KernelError> {
    ask("KVM_GET_SUPPORTED_CPUID", || kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES))
}

/// What a vCPU has (KVM_GET_CPUID2).
///
/// # Errors
/// It has more leaves than any kernel gives.
pub fn of(vcpu: &VcpuFd) -> Result<CpuId, KernelError> {
    ask("KVM_GET_CPUID2", || vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES))
}

/// Gives a vCPU its leaves (KVM_SET_CPUID2), which must not have run.
///
/// # Errors
/// They contradict each other or the host, or the kernel is out of memory.
pub fn set(vcpu: &VcpuFd, cpuid: &CpuId) -> Result<(), KernelError> {
    let mut told = Told::new(words(cpuid.as_slice()));
    call("KVM_SET_CPUID2", Firmware::None, &mut told, |_| Reply::by(vcpu.set_cpuid2(cpuid)))
        .map(drop)
}

/// EAX to EDX of the processor itself, whatever KVM makes of them. The registers of one processor are
/// taken for those of all, as KVM does.
///
/// # Errors
/// A trace is replayed in which the processor is not asked.
pub fn of_processor(leaf: u32, subleaf: u32) -> Result<[u32; 4], KernelError> {
    let mut answer = OfProcessor { leaf, subleaf, registers: [0; 4] };
    call("CPUID", Firmware::None, &mut answer, |answer| {
        let CpuidResult { eax, ebx, ecx, edx } = __cpuid_count(leaf, subleaf);
        answer.registers = [eax, ebx, ecx, edx];
        Reply::default()
    })?;
    Ok(answer.registers)
}

/// The argument of [`of_processor`].
struct OfProcessor {
    leaf: u32,
    subleaf: u32,
    registers: [u32; 4],
}

impl fmt::Display for OfProcessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leaf {:#x}.{}", self.leaf, self.subleaf)
    }
}

impl Argument for OfProcessor {
    const STAYS: bool = true;

    fn bytes(&mut self) -> &mut [u8] {
        self.registers.as_mut_bytes()
    }
}

fn ask(
    name: &'static str,
    kernel: impl FnOnce() -> Result<CpuId, kvm_ioctls::Error>,
) -> Result<CpuId, KernelError> {
    let mut answer = WithCpuid::with_capacity(&AllLeaves, KVM_MAX_CPUID_ENTRIES);
    let mut asked = None;
    call(name, Firmware::None, &mut answer, |answer| {
        let cpuid = kernel().map(|cpuid| asked.insert(cpuid).as_slice());
        // For the trace: what nobody writes down need not be turned into bytes and back.
        Reply::by(cpuid.map(|cpuid| {
            if trace::is_active() {
                answer.put(cpuid);
            }
        }))
    })?;
    if let Some(cpuid) = asked {
        return Ok(cpuid);
    }
    let (AllLeaves, entries) = answer.into_parts();
    as_table(name, &entries)
}

/// A table of these entries, as a vCPU takes it.
///
/// # Errors
/// There are more of them than KVM takes.
pub fn table(entries: &[kvm_cpuid_entry2]) -> Result<CpuId, KernelError> {
    as_table("KVM_SET_CPUID2", entries)
}

fn as_table(name: &'static str, entries: &[kvm_cpuid_entry2]) -> Result<CpuId, KernelError> {
    CpuId::from_entries(entries).map_err(|_| KernelError::new(name, "", libc::E2BIG, Status::None))
}

/// What comes before the table of a command that asks for one: nothing.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct AllLeaves;

impl fmt::Display for AllLeaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("all leaves")
    }
}

/// `struct kvm_cpuid_entry2`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Entry {
    function: u32,
    index: u32,
    flags: u32,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
    padding: [u32; 3],
}

const _: () = assert!(size_of::<Entry>() == 40 && offset_of!(Entry, eax) == 12);

impl From<&kvm_cpuid_entry2> for Entry {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        let kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding } = *entry;
        Self { function, index, flags, eax, ebx, ecx, edx, padding }
    }
}

impl From<Entry> for kvm_cpuid_entry2 {
    fn from(entry: Entry) -> Self {
        let Entry { function, index, flags, eax, ebx, ecx, edx, padding } = entry;
        Self { function, index, flags, eax, ebx, ecx, edx, padding }
    }
}

/// How many leaves there are, and of those that say something, hexadecimal: leaf, subleaf if it has any,
/// EAX to EDX.
fn words(entries: &[kvm_cpuid_entry2]) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        write!(f, "{} CPUID entries", entries.len())?;
        let mut separator = ": ";
        for entry in entries {
            let [eax, ebx, ecx, edx] = [entry.eax, entry.ebx, entry.ecx, entry.edx];
            if eax | ebx | ecx | edx == 0 {
                continue;
            }
            write!(f, "{separator}{:x}", entry.function)?;
            if entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0 {
                write!(f, ".{:x}", entry.index)?;
            }
            write!(f, ": {eax:x} {ebx:x} {ecx:x} {edx:x}")?;
            separator = ", ";
        }
        Ok(())
    })
}

/// A structure that ends in a `struct kvm_cpuid2`: head, number of entries, padding, entries.
pub(crate) struct WithCpuid<Head> {
    bytes: Vec<u8>,
    /// Entries that there is room for, where the kernel is to fill them in.
    room: Option<usize>,
    head: PhantomData<Head>,
}

impl<Head: FromBytes + IntoBytes + Immutable + fmt::Display> WithCpuid<Head> {
    const HEAD: usize = size_of::<Head>();
    const ENTRIES: usize = Self::HEAD + 8;

    /// With these entries.
    pub(crate) fn new(head: &Head, entries: &[kvm_cpuid_entry2]) -> Self {
        let mut all = Self::with_capacity(head, entries.len());
        all.put(entries);
        Self { room: None, ..all }
    }

    /// With room for `capacity` entries.
    pub(crate) fn with_capacity(head: &Head, capacity: usize) -> Self {
        let mut bytes = head.as_bytes().to_vec();
        bytes.resize(Self::ENTRIES + capacity * size_of::<Entry>(), 0);
        let count = u32::try_from(capacity).unwrap_or(u32::MAX);
        bytes[Self::HEAD..][..4].copy_from_slice(&count.to_ne_bytes());
        Self { bytes, room: Some(capacity), head: PhantomData }
    }

    /// Replaces the entries by these, as many as there is room for.
    fn put(&mut self, entries: &[kvm_cpuid_entry2]) {
        let (head, room) = self.bytes.split_at_mut(Self::ENTRIES);
        let room = room.chunks_exact_mut(size_of::<Entry>());
        let count = u32::try_from(entries.len().min(room.len())).unwrap_or(u32::MAX);
        head[Self::HEAD..][..4].copy_from_slice(&count.to_ne_bytes());
        for (place, entry) in room.zip(entries) {
            place.copy_from_slice(Entry::from(entry).as_bytes());
        }
    }

    /// What the kernel made of it.
    pub(crate) fn into_parts(self) -> (Head, Vec<kvm_cpuid_entry2>) {
        self.parts()
    }

    fn parts(&self) -> (Head, Vec<kvm_cpuid_entry2>) {
        let head =
            Head::read_from_prefix(&self.bytes).map_or_else(|_| Head::new_zeroed(), |(h, _)| h);
        let count = u32::read_from_prefix(&self.bytes[Self::HEAD..]).map_or(0, |(count, _)| count);
        let entries = self.bytes[Self::ENTRIES..].chunks_exact(size_of::<Entry>());
        // More entries than there is room for cannot be; then all that are there count.
        let entries = entries
            .take(count as usize)
            .filter_map(|bytes| Entry::read_from_bytes(bytes).ok())
            .map(kvm_cpuid_entry2::from);
        (head, entries.collect())
    }
}

impl<Head: FromBytes + IntoBytes + Immutable + fmt::Display> fmt::Display for WithCpuid<Head> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (head, entries) = self.parts();
        match self.room {
            Some(room) => write!(f, "{head}, {room} CPUID entries"),
            None => write!(f, "{head}, {}", words(&entries)),
        }
    }
}

impl<Head: FromBytes + IntoBytes + Immutable + fmt::Display> Argument for WithCpuid<Head> {
    /// The kernel reads entries or writes them, and its heads say nothing of what it writes.
    const STAYS: bool = true;

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}
